"""code_interpreter in a run: what the code is given, what the client sees, what the model is told.

The code runs for real, in the sandbox's containers; the model is scripted: it writes code, and then
it says something.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncAssistantEventHandler
from openai.types.beta.threads import ImageFile, Message
from openai.types.beta.threads.runs import RunStep
from PIL import Image

from api import contract
from runs.coding import (
    CODE,
    ENDLESS,
    LINK,
    STUBBORN,
    begun,
    calls,
    coding,
    completed,
    logs,
    outputs_in,
)
from runs.scenes import BEGUN, CALLS, COMPLETED, MESSAGE, WRITTEN, deltas
from runs.wire import WEATHER, Api, Conversation, Event, Json, eventually, names, text_of
from shelf import Archive, Shelf, new_shelf
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall

pytestmark = pytest.mark.asyncio(loop_scope="session")

SALES = "month,total\nJan,10\nFeb,30\nMar,20\n"
CHART = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"


@pytest_asyncio.fixture(loop_scope="session")
async def api(bench: Shelf) -> AsyncIterator[Api]:
    async with Api(bench.address, bench.client.api_key) as api:
        yield api


async def begin(
    bench: Shelf, *file_ids: str, tools: list[Any] | None = None, question: str = "Compute."
) -> Conversation:
    assistant = await bench.client.beta.assistants.create(
        model="scripted",
        tools=tools or [CODE],
        tool_resources={"code_interpreter": {"file_ids": list(file_ids)}},
    )
    return await Conversation.begin(bench.client, assistant.id, question)


def chats(model: ScriptedModel) -> list[Json]:
    return [one.body for one in model.requests if one.path.endswith("/chat/completions")]


def told(bench: Shelf) -> list[str]:
    """What the model was told of its calls, in its last prompt."""
    return outputs_in(chats(bench.model)[-1])


async def compute(bench: Shelf, talk: Conversation, *cells: str) -> list[str]:
    """The logs of these cells, run in one run."""
    bench.model.answer = coding(*cells)
    run = await completed(talk)
    return [logs(call) for call in await calls(talk, run)]


async def last_message(talk: Conversation) -> Message:
    return (await talk.messages())[-1]


async def content(bench: Shelf, file_id: str) -> bytes:
    return (await bench.client.files.content(file_id)).content


# --- what it is for ---


async def test_a_table_is_read_and_drawn(bench: Shelf) -> None:
    file_id = await bench.upload("sales.csv", SALES)
    talk = await begin(bench, file_id)
    cell = (
        "import pandas as pd\nimport matplotlib.pyplot as plt\n"
        "sales = pd.read_csv('/mnt/data/sales.csv')\nprint(sales.total.sum())\n"
        "sales.plot.bar(x='month', y='total')\nplt.show()"
    )
    bench.model.answer = coding(cell, say="The total is 60.")
    run = await completed(talk)
    [call] = await calls(talk, run)
    assert call.code_interpreter.input == cell
    assert [one.type for one in call.code_interpreter.outputs] == ["logs", "image"]
    assert logs(call) == "60\n"
    image_id = call.code_interpreter.outputs[1].image.file_id

    message = await last_message(talk)
    assert [part.type for part in message.content] == ["image_file", "text"]
    assert isinstance(message.content[0].image_file, ImageFile)  # type: ignore[union-attr]
    assert message.content[0].image_file.file_id == image_id  # type: ignore[union-attr]
    assert text_of(message) == "The total is 60."
    assert message.attachments == []

    file = await bench.client.files.retrieve(image_id)
    assert (file.purpose, file.filename) == ("assistants_output", f"{image_id}.png")
    png = await content(bench, image_id)
    assert len(png) == file.bytes
    with Image.open(BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 100
    assert "60" in told(bench)[0]
    assert "Images that the user is shown: 1." in told(bench)[0]

    # A later run is told of the image in words: chat completions take none from assistants.
    await talk.say("And now?")
    bench.model.answer = coding()
    await completed(talk)
    [_, answer, _] = chats(bench.model)[-1]["messages"]
    assert answer == {"role": "assistant", "content": f"[image {image_id}]\nThe total is 60."}


async def test_a_file_is_written_and_linked(bench: Shelf) -> None:
    talk = await begin(bench)
    cell = "open('/mnt/data/out.csv', 'w').write('a,b')"
    bench.model.answer = coding(cell, say=f"🦊 [here]({LINK}out.csv), not ({LINK}other.csv).")
    await completed(talk)
    message = await last_message(talk)
    [part] = message.content
    assert part.type == "text"
    [annotation] = part.text.annotations
    assert annotation.type == "file_path"
    start, end = annotation.start_index, annotation.end_index
    assert part.text.value[start:end] == annotation.text == f"{LINK}out.csv"
    assert start == 9
    file_id = annotation.file_path.file_id
    file = await bench.client.files.retrieve(file_id)
    assert (file.filename, file.purpose, file.bytes) == ("out.csv", "assistants_output", 3)
    assert await content(bench, file_id) == b"a,b"
    assert message.to_dict()["attachments"] == [{"file_id": file_id, "tools": [CODE]}]
    assert f"[out.csv]({LINK}out.csv)" in told(bench)[0]


async def test_an_error_is_mended(bench: Shelf) -> None:
    talk = await begin(bench)
    broken, mended = await compute(bench, talk, "print('so far')\n1 / 0", "1 / 4")
    assert broken.startswith("so far\n")
    assert "ZeroDivisionError: division by zero" in broken
    assert mended.strip() == "0.25"
    assert "ZeroDivisionError" in told(bench)[0]
    assert "\x1b" not in told(bench)[0]
    assert told(bench)[1] == "0.25"
    steps = await talk.steps((await talk.client.beta.threads.runs.list(talk.thread_id)).data[0].id)
    assert [(step.type, step.status) for step in steps] == [
        ("tool_calls", "completed"),
        ("tool_calls", "completed"),
        ("message_creation", "completed"),
    ]


async def test_variables_are_kept_from_run_to_run(bench: Shelf) -> None:
    talk = await begin(bench)
    assert await compute(bench, talk, "x = 21", "x += 1; print(x)") == ["", "22\n"]
    assert told(bench)[0] == "There was no output."
    await talk.say("Go on.")
    assert await compute(bench, talk, "print(x * 2)") == ["44\n"]


async def test_threads_never_see_each_other(bench: Shelf) -> None:
    first = await begin(bench, await bench.upload("first.txt", "1"))
    second = await begin(bench, await bench.upload("second.txt", "2"))
    cell = (
        "import os, time\nopen(f'/mnt/data/{os.urandom(4).hex()}.out', 'w').write('mine')\n"
        "secret = 1\ntime.sleep(0.5)\nprint(sorted(os.listdir('/mnt/data')))"
    )
    bench.model.answer = coding(cell)
    runs = await asyncio.gather(completed(first), completed(second))
    seen = []
    for talk, run, name in zip((first, second), runs, ("first.txt", "second.txt"), strict=True):
        [call] = await calls(talk, run)
        listed = eval(logs(call))
        assert len(listed) == 3
        assert name in listed
        seen.append(set(listed))
    assert not seen[0] & seen[1]


# --- what a client hears ---


class Assembled(AsyncAssistantEventHandler):
    """What the SDK's helper makes of the deltas, and what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, Any]] = []
        self.snapshots: dict[str, Any] = {}
        self.steps: list[RunStep] = []
        self.text = ""

    async def on_run_step_delta(self, delta: Any, snapshot: Any) -> None:
        self.snapshots[snapshot.id] = snapshot

    async def on_run_step_done(self, run_step: RunStep) -> None:
        self.steps.append(run_step)

    async def on_tool_call_created(self, tool_call: Any) -> None:
        self.called.append(("created", tool_call.id))

    async def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.called.append(("delta", snapshot.id))

    async def on_tool_call_done(self, tool_call: Any) -> None:
        self.called.append(("done", tool_call))

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.text += delta.value

    async def on_text_done(self, text: Any) -> None:
        self.called.append(("text", text.value))

    async def on_image_file_done(self, image_file: Any) -> None:
        self.called.append(("image", image_file.file_id))


def without_index(call: Any) -> Json:
    """A call as the helper has put it together, as it would be stored."""
    shown: Json = call.to_dict()
    shown.pop("index")
    for output in shown["code_interpreter"]["outputs"]:
        output.pop("index")
    return shown


async def test_input_and_output_are_streamed(bench: Shelf, api: Api) -> None:
    """The output is told while the code is still running."""
    talk = await begin(bench)
    cell = f"import time\nprint('éins 🦊', flush=True)\ntime.sleep(3)\n{CHART}\nprint('two')"
    written = json.dumps({"code": cell})
    pieces = [written[at : at + 7] for at in range(0, len(written), 7)]
    gate = Gate()

    def answer(request: Json) -> Reply:
        if outputs_in(request):
            return Reply(text=["See ", "above."])
        arguments = [*pieces[:5], gate, *pieces[5:]]
        return Reply(tool_calls=[ToolCall("code_interpreter", arguments, id="call_code")])

    bench.model.answer = answer
    came_at: dict[str, float] = {}
    async with api.stream(talk.runs_path, talk.body) as stream:
        async for event in stream:
            for part in code_parts([event]):
                if "import time" in part.get("input", ""):
                    gate.set()  # the code is heard before it is whole
                for output in part.get("outputs", ()):
                    came_at.setdefault(output.get("logs", "image").strip(), time.monotonic())
            gate.set() if event.name == "thread.run.step.delta" else None
        events = stream.events
    assert came_at["two"] - came_at["éins 🦊"] > 0.9
    parts = code_parts(events)
    assert parts[0] == {"input": "", "outputs": []}
    assert "".join(part.get("input", "") for part in parts) == cell
    outputs = [output for part in parts for output in part.get("outputs", ())]
    assert [(one["index"], one["type"]) for one in outputs] == [
        (0, "logs"),
        (1, "image"),
        (0, "logs"),
    ]
    assert names(events)[: len(BEGUN) + 2] == [*BEGUN, *CALLS]
    heard = [name for name in names(events) if name != "run.step.delta"]
    assert heard == [
        *BEGUN,
        *CALLS,
        "run.step.completed",
        *MESSAGE,
        *deltas(3),
        *WRITTEN,
        *COMPLETED,
    ]
    image = outputs[1]["image"]
    messages = [event for event in events if event.name == "thread.message.delta"]
    assert [event.data["delta"]["content"] for event in messages] == [
        [{"index": 0, "type": "image_file", "image_file": image}],
        [{"index": 1, "type": "text", "text": {"value": "See ", "annotations": []}}],
        [{"index": 1, "type": "text", "text": {"value": "above."}}],
    ]
    [closed] = [
        event.data["step_details"]["tool_calls"]
        for event in events
        if event.name == "thread.run.step.completed" and event.data["type"] == "tool_calls"
    ]
    for event in events:
        if event.name.startswith(("thread.run.step", "thread.message")):
            contract.check(event.data)
    run_id = events[-2].data["id"]
    _, listed = await api.get(f"{talk.runs_path}/{run_id}/steps")
    contract.check(listed)
    assert listed["data"][1]["step_details"]["tool_calls"] == closed
    assert closed == [
        {
            "id": "call_code",
            "type": "code_interpreter",
            "code_interpreter": {
                "input": cell,
                "outputs": [
                    {"type": "logs", "logs": "éins 🦊\ntwo\n"},
                    {"type": "image", "image": image},
                ],
            },
        }
    ]


def code_parts(events: list[Event]) -> list[Json]:
    return [
        call["code_interpreter"]
        for event in events
        if event.name == "thread.run.step.delta"
        for call in event.data["delta"]["step_details"]["tool_calls"]
        if call["type"] == "code_interpreter"
    ]


async def test_the_helper_puts_together_what_is_stored(bench: Shelf) -> None:
    """Two calls in one turn, text between, images, links: with the SDK's own handler."""
    talk = await begin(bench)
    first = f"print('one')\n{CHART}\nprint('two')\n{CHART}"
    second = "open('/mnt/data/x.txt', 'w').write('x')"

    def answer(request: Json) -> Reply:
        if outputs_in(request):
            return Reply(text=["See [x](sand", f"{LINK[4:]}x.t", "xt)."])
        cells = [{"code": first}, {"code": second}]
        return Reply(tool_calls=[ToolCall("code_interpreter", cell) for cell in cells])

    bench.model.answer = answer
    handler = Assembled()
    async with bench.client.beta.threads.runs.stream(
        thread_id=talk.thread_id, assistant_id=talk.assistant_id, event_handler=handler
    ) as stream:
        await stream.until_done()
        run = await stream.get_final_run()
    assert run.status == "completed", run.last_error
    stored = await talk.steps(run)
    assert [step.to_dict() for step in handler.steps] == [step.to_dict() for step in stored]
    [tool_step] = [step for step in stored if step.step_details.type == "tool_calls"]
    snapshot = handler.snapshots[tool_step.id].step_details.tool_calls
    shown = [call.to_dict() for call in await calls(talk, run)]
    assert [without_index(call) for call in snapshot] == shown
    one, other = (call["id"] for call in shown)
    kinds = [(what, call if isinstance(call, str) else call.id) for what, call in handler.called]
    of_calls = [kind for kind in kinds if kind[0] in ("created", "done")]
    assert of_calls[:4] == [
        ("created", one),
        ("done", one),
        ("created", other),
        ("done", other),
    ]
    [done, *_] = [call for what, call in handler.called if what == "done"]
    assert len(done.code_interpreter.outputs) == 3
    message = await last_message(talk)
    images = [part.image_file.file_id for part in message.content if part.type == "image_file"]
    assert [file_id for what, file_id in handler.called if what == "image"] == images
    assert len(images) == 2
    assert handler.text == text_of(message) == f"See [x]({LINK}x.txt)."
    final = (await stream.get_final_messages())[-1]
    assert final.to_dict() == message.to_dict()


async def test_a_link_cut_anywhere_arrives_whole(bench: Shelf, api: Api) -> None:
    """However the model's words are cut: in one delta with its annotation."""
    talk = await begin(bench)
    text = f"🦊 See [it]({LINK}my%20file%20(2).txt) and 【4:0†x】 {LINK}none."
    bench.model.answer = coding("open('/mnt/data/my file (2).txt', 'w').write('x')", say=text)
    await completed(talk)
    for cut in range(0, len(text), 3):
        await talk.say("Again.")
        bench.model.answer = coding(say=[text[:cut], text[cut:]])
        async with api.stream(talk.runs_path, talk.body) as stream:
            events = await stream.all()
        value, found = "", []
        for event in events:
            if event.name == "thread.message.delta":
                [part] = event.data["delta"]["content"]
                for annotation in part["text"].get("annotations", ()):
                    assert annotation["text"] == part["text"]["value"]
                    assert annotation["start_index"] == len(value)
                    found.append(annotation)
                value += part["text"]["value"]
        assert value == text
        assert [annotation.pop("index") for annotation in found] == [0]
        [part] = (await last_message(talk)).to_dict()["content"]  # type: ignore[misc, assignment]
        assert part["text"]["annotations"] == found


async def test_both_kinds_of_annotations_in_one_text(bench: Shelf) -> None:
    store = await bench.store({"foods.txt": "Anna likes pizza."})
    assistant = await bench.client.beta.assistants.create(
        model="scripted",
        tools=[CODE, {"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    talk = await Conversation.begin(bench.client, assistant.id)

    def answer(request: Json) -> Reply:
        outputs = outputs_in(request)
        if not outputs:
            code = {"code": "open('/mnt/data/foods.csv', 'w').write('pizza')"}
            search = {"queries": ["Anna"]}
            return Reply(
                tool_calls=[ToolCall("code_interpreter", code), ToolCall("file_search", search)]
            )
        marker = outputs[1].partition("\n")[0]
        return Reply(text=list(f"Pizza{marker}: {LINK}foods.csv{marker}"))

    bench.model.answer = answer
    await completed(talk)
    [part] = (await last_message(talk)).content
    assert part.type == "text"
    assert [one.type for one in part.text.annotations] == [
        "file_citation",
        "file_path",
        "file_citation",
    ]
    for one in part.text.annotations:
        assert part.text.value[one.start_index : one.end_index] == one.text


# --- files ---


async def test_files_lie_under_their_ids_and_their_names(bench: Shelf) -> None:
    uploaded = [
        await bench.upload(name, name)
        for name in ("a.txt", "b/a.txt", "Ü 1.txt", "C:\\x\\c.csv", "..")
    ]
    of_thread = await bench.upload("a.txt", "of the thread")
    attached = await bench.upload("d.txt", "attached")
    talk = await begin(bench, *uploaded)
    await bench.client.beta.threads.update(
        talk.thread_id, tool_resources={"code_interpreter": {"file_ids": [of_thread]}}
    )
    await talk.say("See.", attachments=[{"file_id": attached, "tools": [CODE]}])
    cell = (
        "import os\nos.chdir('/mnt/data')\n"
        "print({name: open(name).read() for name in os.listdir()})"
    )
    [listed] = await compute(bench, talk, cell)
    names_there = {
        "a.txt": "a.txt",
        "a (2).txt": "b/a.txt",
        "Ü 1.txt": "Ü 1.txt",
        "c.csv": "C:\\x\\c.csv",
        "a (3).txt": "of the thread",
        "d.txt": "attached",
    }
    by_id = dict(zip(uploaded, ("a.txt", "b/a.txt", "Ü 1.txt", "C:\\x\\c.csv", ".."), strict=True))
    assert eval(listed) == names_there | by_id | {of_thread: "of the thread", attached: "attached"}
    [tool] = chats(bench.model)[0]["tools"]
    description = tool["function"]["description"]
    assert f"/mnt/data/{of_thread} = /mnt/data/a (3).txt" in description
    assert f"/mnt/data/{uploaded[4]}." not in description
    assert "20 seconds" in description


async def test_a_file_attached_later_is_there_at_the_next_call(bench: Shelf) -> None:
    talk = await begin(bench, await bench.upload("a.txt", "1"))
    cell = "import os\nprint(sorted(n for n in os.listdir('/mnt/data') if n.endswith('.txt')))"
    assert await compute(bench, talk, cell) == ["['a.txt']\n"]
    file_id = await bench.upload("a.txt", "2")
    await talk.say("This too.", attachments=[{"file_id": file_id, "tools": [CODE]}])
    both = await compute(bench, talk, cell, "print(open('/mnt/data/a (2).txt').read())")
    assert both == ["['a (2).txt', 'a.txt']\n", "2\n"]


async def test_files_that_cannot_be_had_are_told_of(bench: Shelf) -> None:
    gone, lost, kept = [await bench.upload(name, name) for name in ("gone", "lost", "kept")]
    talk = await begin(bench, gone, lost, kept)
    await bench.client.beta.threads.update(
        talk.thread_id, tool_resources={"code_interpreter": {"file_ids": [gone]}}
    )
    # Its row is still there; its bytes are not.
    await bench.execute("UPDATE files SET id = 'file-without' WHERE id = %s", lost)
    await bench.execute(
        "UPDATE assistants SET tool_resources = replace(tool_resources::text, %s,"
        " 'file-without')::json",
        lost,
    )
    run = await talk.start()
    bench.model.answer = coding("print(open('/mnt/data/kept').read())")
    await talk.stopped(run)
    [call] = await calls(talk, run)
    assert logs(call) == "kept\n"
    assert "/mnt/data/file-without (lost): it was deleted." in told(bench)[0]


async def test_an_input_that_was_changed_is_a_new_file(bench: Shelf) -> None:
    file_id = await bench.upload("sales.csv", SALES)
    talk = await begin(bench, file_id)
    cell = "open('/mnt/data/sales.csv', 'a').write('Apr,40')"
    text = f"Before I had {file_id}; now ({LINK}sales.csv), same as ({LINK}{file_id})."
    bench.model.answer = coding(cell, say=text)
    await completed(talk)
    [part] = (await last_message(talk)).content
    assert part.type == "text"
    first, second = part.text.annotations
    assert first.type == second.type == "file_path"
    assert first.file_path.file_id == second.file_path.file_id != file_id
    file = await bench.client.files.retrieve(first.file_path.file_id)
    assert file.filename == "sales.csv"
    assert await content(bench, file.id) == (SALES + "Apr,40").encode()
    listed = await bench.client.files.list(purpose="assistants_output")
    assert [one.id for one in listed.data] == [file.id]
    # In a later run; and where the session is gone, what was linked last, until there is a new one.
    for session_is_gone in (False, True):
        await talk.say("Again?")
        if session_is_gone:
            await remove_container(bench, talk)
        bench.model.answer = coding(say=f"{LINK}sales.csv")
        await completed(talk)
        [part] = (await last_message(talk)).content
        assert part.type == "text"
        [annotation] = part.text.annotations
        assert annotation.type == "file_path"
        assert annotation.file_path.file_id == file.id
    await talk.say("Begin anew.")
    bench.model.answer = coding("1", say=f"{LINK}sales.csv")
    await completed(talk)
    [part] = (await last_message(talk)).content
    assert part.type == "text"
    [annotation] = part.text.annotations
    assert annotation.type == "file_path"
    assert annotation.file_path.file_id == file_id


async def remove_container(bench: Shelf, talk: Conversation) -> None:
    [[container]] = await bench.fetch(
        "SELECT container FROM sandbox_sessions WHERE thread_id = %s", talk.thread_id
    )
    process = await asyncio.create_subprocess_exec(
        "docker", "rm", "-f", container, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0


async def test_an_input_can_be_linked(bench: Shelf) -> None:
    file_id = await bench.upload("a b.txt", "1")
    talk = await begin(bench, file_id)
    bench.model.answer = coding(say=f"({LINK}a%20b.txt) ({LINK}{file_id})")
    await completed(talk)
    message = await last_message(talk)
    [part] = message.content
    assert part.type == "text"
    found = [one.file_path.file_id for one in part.text.annotations if one.type == "file_path"]
    assert found == [file_id, file_id]
    assert message.attachments == []


async def test_only_what_somebody_made_on_purpose_is_kept(bench: Shelf) -> None:
    talk = await begin(bench)
    cell = """
import os
os.chdir('/mnt/data')
os.makedirs('sub/.hidden')
for name in ('.secret', 'a~', 'b.tmp', 'sub/.hidden/x', 'sub/kept.txt', 'empty'):
    open(name, 'w').write('' if name == 'empty' else name)
os.symlink('/etc/passwd', 'link')
os.mkfifo('pipe')
"""
    await compute(bench, talk, cell, "print('nothing new')")
    listed = await bench.client.files.list()
    assert sorted((one.filename, one.bytes) for one in listed.data) == [
        ("empty", 0),
        ("kept.txt", 12),
    ]


# --- what models write ---


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ('{"code": "print(1)"}', "1"),
        ("print(2)", "2"),
        ('"print(3)"', "3"),
        ('{"source": "print(4)"}', "4"),
        ("{}", 'Give the code to run: {"code": "..."}.'),
        ('{"code": "  "}', 'Give the code to run: {"code": "..."}.'),
        (json.dumps({"code": "#" * 1024**2 + "12"}), "The code is longer than 1048576 bytes."),
    ],
)
async def test_arguments_as_models_write_them(bench: Shelf, arguments: str, output: str) -> None:
    talk = await begin(bench)

    def answer(request: Json) -> Reply:
        if outputs_in(request):
            return Reply(text="Done.")
        return Reply(tool_calls=[ToolCall("code_interpreter", arguments)])

    bench.model.answer = answer
    await completed(talk)
    assert told(bench)[0].startswith(output)


async def test_much_output_is_cut_for_the_model_alone(bench: Shelf) -> None:
    talk = await begin(bench)
    [long] = await compute(bench, talk, "print('a' * 20_000 + 'b' * 20_000)")
    assert long == "a" * 20_000 + "b" * 20_000 + "\n"
    [output] = told(bench)
    assert output == "a" * 8000 + "\n[24000 characters left out]\n" + "b" * 8000


async def test_a_flood_of_output_ends(bench: Shelf) -> None:
    talk = await begin(bench)
    [flood] = await compute(bench, talk, "for n in range(400_000): print(n, '\\0')")
    assert 900_000 < len(flood) < 1_100_000
    assert flood.endswith("There was more output than is kept.\n")
    assert "There was more output than is kept." in told(bench)[0]
    assert "\0" not in flood


async def test_a_forced_tool_and_a_clash_of_names(bench: Shelf) -> None:
    theirs = {"type": "function", "function": {"name": "code_interpreter", "parameters": {}}}
    talk = await begin(bench, tools=[theirs, CODE])

    def answer(request: Json) -> Reply:
        if outputs_in(request):
            return Reply(text="Done.")
        return Reply(tool_calls=[ToolCall("threadmill_code_interpreter", {"code": "print(7)"})])

    bench.model.answer = answer
    await completed(talk, tool_choice=CODE)
    first, second = chats(bench.model)
    named = {"type": "function", "function": {"name": "threadmill_code_interpreter"}}
    assert first["tool_choice"] == named
    assert "tool_choice" not in second
    assert told(bench) == ["7"]
    called = second["messages"][-2]["tool_calls"][0]["function"]
    assert called["name"] == "threadmill_code_interpreter"


async def test_functions_in_the_same_turn_wait_for_the_code(bench: Shelf, api: Api) -> None:
    """And the session is not held while the client is waited for. An image of before is shown in
    the message that comes after."""
    talk = await begin(bench, tools=[WEATHER, CODE])

    def answer(request: Json) -> Reply:
        outputs = outputs_in(request)
        if len(outputs) == 2:
            return Reply(tool_calls=[ToolCall("code_interpreter", {"code": "print(x)"})])
        if outputs:
            return Reply(text=f"{LINK}x.txt")
        code = {"code": f"x = 1\nopen('/mnt/data/x.txt', 'w').write('x')\n{CHART}"}
        return Reply(
            tool_calls=[
                ToolCall("code_interpreter", code, id="call_code"),
                ToolCall("get_weather", {"city": "Paris"}, id="call_weather"),
            ]
        )

    bench.model.answer = answer
    async with api.stream(talk.runs_path, talk.body) as stream:
        events = await stream.all()
    assert names(events)[-2:] == ["run.requires_action", "done"]
    order = [
        call["type"]
        for event in events
        if event.name == "thread.run.step.delta"
        for call in event.data["delta"]["step_details"]["tool_calls"]
    ]
    assert order == ["code_interpreter"] * 3 + ["function"] * 2
    run = await talk.look(events[-2].data["id"])

    async def is_let_go() -> bool:
        [[is_held]] = await bench.fetch(
            "SELECT is_held FROM sandbox_sessions WHERE thread_id = %s", talk.thread_id
        )
        return not is_held

    await eventually(is_let_go)
    assert run.required_action is not None
    waiting = run.required_action.submit_tool_outputs.tool_calls
    assert [call.id for call in waiting] == ["call_weather"]
    await talk.answer(run, "sunny")
    run = await talk.stopped(run)
    assert run.status == "completed", run.last_error
    assert [logs(call) for call in await calls(talk, run)] == ["", "1\n"]
    message = await last_message(talk)
    assert [part.type for part in message.content] == ["image_file", "text"]
    assert len(message.content[1].text.annotations) == 1  # type: ignore[union-attr]


async def test_images_of_a_run_that_says_nothing_more(bench: Shelf) -> None:
    talk = await begin(bench)
    bench.model.answer = coding(CHART, say=())
    await completed(talk)
    assert len(await talk.messages()) == 1


# --- ends ---


@pytest.mark.parametrize("cell", [ENDLESS, STUBBORN])
async def test_a_cancel_stops_the_code(bench: Shelf, cell: str) -> None:
    talk = await begin(bench)
    await compute(bench, talk, "x = 1")  # the container is there

    async def cancelled_within_s() -> float:
        await talk.say("Go on.")
        bench.model.answer = coding(cell)
        run = await talk.start()
        await begun(talk, run)
        [step] = await talk.steps(run)
        assert step.status == "in_progress"
        began = time.monotonic()
        await talk.cancel(run)
        assert (await talk.stopped(run)).status == "cancelled"
        took_s = time.monotonic() - began
        [step] = await talk.steps(run)
        assert step.status == "cancelled"
        return took_s

    # Once of three times: the machine may have been busy with something else.
    assert min([await cancelled_within_s() for _ in range(3)]) < 2
    await talk.say("Go on.")
    cells = ["print('answers')"] + (["print(x)"] if cell is ENDLESS else [])
    assert await compute(bench, talk, *cells) == ["answers\n", "1\n"][: len(cells)]


async def test_code_that_kills_its_process(bench: Shelf) -> None:
    talk = await begin(bench)
    died, after = await compute(bench, talk, "import os; os._exit(1)", "print('alive')")
    assert died == "The Python process exited with code 1. Its variables are gone.\n"
    assert after == "alive\n"


async def test_a_container_that_is_gone_is_replaced(bench: Shelf) -> None:
    file_id = await bench.upload("a.txt", "1")
    talk = await begin(bench, file_id)
    await compute(bench, talk, "x = 1")
    await remove_container(bench, talk)
    await talk.say("Go on.")
    lost, read = await compute(bench, talk, "print(x)", "print(open('/mnt/data/a.txt').read())")
    assert "NameError" in lost
    assert "first code of a new session" in told(bench)[0]
    assert read == "1\n"


# --- what is kept for those who look ---


async def test_the_turn_tells_its_times_and_what_the_model_was_given(
    bench: Shelf, api: Api
) -> None:
    talk = await begin(bench)
    bench.model.answer = coding("import time; time.sleep(0.2); print('x')")
    run = await completed(talk)
    code, message = await talk.steps(run)
    _, first = await api.get(f"{talk.runs_path}/{run.id}/steps/{code.id}/request")
    _, second = await api.get(f"{talk.runs_path}/{run.id}/steps/{message.id}/request")
    assert first["timings"]["tools_ms"] > 200
    [_, called, output] = second["request"]["messages"]
    assert called["tool_calls"][0]["function"]["name"] == "code_interpreter"
    assert output["content"] == "x"
    [[record]] = await bench.fetch(
        "SELECT record FROM turns WHERE run_id = %s AND turn = 1", run.id
    )
    [tool] = record["tools"]
    assert tool["started_at"] < tool["ready_at"] < tool["ended_at"]
    [[given]] = await bench.fetch("SELECT given FROM steps WHERE id = %s", code.id)
    [kept] = given.values()
    assert (kept["name"], kept["output"], kept["status"]) == ("code_interpreter", "x", "ok")


async def test_projects_never_see_each_others_files(bench: Shelf, workshop: Archive) -> None:
    talk = await begin(bench)
    bench.model.answer = coding("open('/mnt/data/x.txt', 'w').write('x')", say=f"{LINK}x.txt")
    await completed(talk)
    [file] = (await bench.client.files.list()).data
    async with new_shelf(workshop) as other:
        with pytest.raises(openai.NotFoundError):
            await other.client.files.content(file.id)
