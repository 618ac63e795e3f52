"""The playground: over HTTP, and in a real browser from the first word to the program that does
the same again."""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from playwright.async_api import FilePayload, Page, expect

from dashboard.conftest import Desk, Open
from dashboard.hostile import HOSTILE
from dashboard.test_thread import PNG, said
from threadmill.demo.scripted_model import Gate, Reply, ToolCall

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PATIENCE_MS = 30_000


@pytest.fixture(autouse=True)
def _patience() -> None:
    expect.set_options(timeout=PATIENCE_MS)


# --- over HTTP ---


async def test_the_page_shows_things_of_its_own_project_only(desk: Desk, other_desk: Desk) -> None:
    assistant = await desk.client.beta.assistants.create(model="m", name="Ours")
    thread_id = await desk.thread("Is it **late**?")
    html = await desk.page(f"/ui/playground?assistant={assistant.id}&thread={thread_id}")
    assert f'<option value="{assistant.id}" selected>Ours' in html
    assert f'data-thread="{thread_id}"' in html
    assert "<strong>late</strong>" in html
    assert '<option value="scripted">' in html  # the models of the server
    page = await other_desk.page("/ui/playground")
    assert "Ours" not in page
    run = await desk.run(thread_id)
    [message] = (await desk.client.beta.threads.messages.list(thread_id, limit=1)).data
    for path in (
        f"playground?assistant={assistant.id}",
        f"playground?thread={thread_id}",
        f"playground/calls/{run.id}",
        f"threads/{thread_id}/messages/{message.id}",
    ):
        assert (await desk.send("GET", f"/ui/{path}")).status == 200
        assert (await other_desk.send("GET", f"/ui/{path}")).status == 404
    for path in ("playground?assistant=x", "playground?thread=x", "playground/calls/x"):
        assert (await desk.send("GET", f"/ui/{path}")).status in (400, 404)


async def test_it_opens_with_the_assistant_that_answered_last(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    desk.model.say("Hi.")
    run = await desk.run(thread_id, name="Last", instructions="Be <brief>.")
    html = await desk.page(f"/ui/playground?thread={thread_id}")
    assert f'<option value="{run.assistant_id}" selected>Last' in html
    assert "Be &lt;brief&gt;." in html
    await desk.client.beta.assistants.delete(run.assistant_id)
    assert "Hi." in await desk.page(f"/ui/playground?thread={thread_id}")


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        ("", ""),
        (json.dumps(WEATHER), "1 function: get_weather"),
        (json.dumps([{"type": "function", "function": WEATHER}]), "1 function: get_weather"),
        ("[{]", "not JSON"),
        ('{"name": "a b"}', "Invalid"),
        ("[1]", "expected an object"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
        (json.dumps([WEATHER, WEATHER]), "Function names must be unique."),
    ],
)
async def test_functions_are_checked_as_the_api_would(
    desk: Desk, functions: str, told: str
) -> None:
    answer = await desk.send("POST", "/ui/playground/check", {"functions": functions})
    assert answer.status == 200
    assert told in await answer.text()
    form = {"response_format": '{"type":"json_schema"}', "schema": '{"schema": {}}'}
    answer = await desk.send("POST", "/ui/playground/check", form)
    assert "response_format.json_schema.name" in await answer.text()


@pytest.mark.parametrize("language", ["python", "node", "curl"])
async def test_programs_are_made_of_what_the_api_takes_alone(desk: Desk, language: str) -> None:
    address = f"/ui/playground/program/{language}"
    assert "Send a message first" in await (await desk.send("POST", address, {"done": ""})).text()
    run = {"assistant_id": "asst_1", "stream": True, "temperature": None}
    for wrong in (
        "{",
        "[]",
        json.dumps({"assistant_id": "asst_1"}),
        '{"assistant_id": "asst_1", "run": {"metadata": ' + "[" * 5_000 + "]" * 5_000 + "}}",
        json.dumps({"assistant_id": "asst_1", "run": run | {"x=1)\nimport os": 1}}),
    ):
        answer = await desk.send("POST", address, {"done": wrong})
        assert answer.status == 400, wrong
    done = {"assistant_id": "asst_1", "run": run}
    answer = await desk.send("POST", address, {"done": json.dumps(done)})
    assert "temperature" not in await answer.text()
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert (await desk.send("POST", address, {"done": ""}, headers=foreign)).status == 403


# --- in a browser ---


async def test_from_the_first_word_to_the_program_by_keyboard_alone(
    desk: Desk, look: Open, tmp_path: Any
) -> None:
    """A function is answered by hand on the way."""
    call = ToolCall("get_weather", {"city": "Lisbon"}, id="call_1")
    gate = Gate()
    desk.model.reply(Reply(tool_calls=[call]), Reply(text=["It is ", gate, "**21** degrees."]))
    async with look() as page:
        await page.goto("/ui/playground")
        await expect(page.get_by_label(re.compile("^Message"))).to_be_focused()
        await _tab_to(page, "Name", back=True)
        await page.keyboard.type("Weather <bot>")
        await _tab_to(page, "Instructions")
        await page.keyboard.type("It's \"brief\" \\ 'and' <b>bold</b>,")
        await page.keyboard.press("Enter")
        await page.keyboard.type("on two lines.")
        await _tab_to(page, "Functions")
        await page.keyboard.insert_text(json.dumps(WEATHER))
        await expect(page.get_by_text("1 function: get_weather")).to_be_visible()
        await _tab_to(page, re.compile("^Message"))
        await page.keyboard.type("Weather in")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("Lisbon?")
        await page.keyboard.press("Enter")
        output = page.get_by_label("Output")
        await expect(output).to_be_focused()
        await expect(output).to_have_value('{"city":"Lisbon","result":"ok"}')
        await expect(page.locator("fieldset pre")).to_have_text('{"city": "Lisbon"}')
        await page.keyboard.press("Control+A")
        await page.keyboard.insert_text('{"temp": 21, "note": "it\'s"}')
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label(re.compile("^Message"))).to_be_focused()
        await expect(page.locator("#first .live").last).to_have_text("It is ")  # before the end
        await expect(page.locator("#first ol")).to_have_attribute("aria-busy", "true")
        gate.set()
        await expect(page.locator("#first strong")).to_have_text("21")
        await expect(page.locator("#facts-first a")).to_have_text("completed")
        await expect(page.locator("#first ol")).to_have_attribute("aria-busy", "false")
        first = float(await page.locator("#facts-first").get_attribute("data-first") or "")
        assert first > 0
        count = int(await page.locator("#facts-first").get_attribute("data-count") or 0)
        assert count >= 8
        await expect(page.locator("#wire summary", has_text="requires_action")).to_have_count(1)
        await expect(page.locator("#wire summary", has_text="done")).to_have_count(2)
        thread_id = re.search(r"thread=(thread_\w+)", page.url)
        assert thread_id
        assert await said(desk, thread_id[1]) == ["Weather in\nLisbon?", "It is **21** degrees."]

        desk.model.reply(Reply(tool_calls=[call]), Reply(text=["Again."]))
        written = await _program(page, "Python")
        out = await _execute([sys.executable, "-W", "ignore", "-c", written], desk)
        assert "Again." in out
        assert out.strip().endswith("completed")
        made = (await desk.client.beta.assistants.list()).data
        assert len(made) == 2
        assert made[0].id != made[1].id
        assert made[0].model_dump(exclude={"id", "created_at"}) == made[1].model_dump(
            exclude={"id", "created_at"}
        )
        assert made[0].instructions == "It's \"brief\" \\ 'and' <b>bold</b>,\non two lines."
        outputs = [one for one in desk.model.requests[-1].body["messages"] if one["role"] == "tool"]
        assert outputs[0]["content"] == '{"temp": 21, "note": "it\'s"}'

        if bash := shutil.which("bash"):
            desk.model.say("By curl.")
            written = await _program(page, "curl")
            assert "By curl." in await _execute([bash, "-c", written], desk)
        assert "submitToolOutputs" in await _program(page, "Node")
        await page.reload()
        await expect(page.locator("#first strong")).to_have_text("21")
        await expect(page.get_by_label("Name", exact=True)).to_have_value("Weather <bot>")


async def test_text_is_there_before_the_run_has_ended_and_stop_keeps_it(
    desk: Desk, look: Open
) -> None:
    gate = Gate()
    desk.model.say("Half of ", gate, "it")
    async with look() as page:
        await page.goto("/ui/playground")
        await _say(page, "Hello")
        await expect(page.locator("#first .live").last).to_have_text("Half of ")
        await expect(page.get_by_role("button", name="Send")).to_be_disabled()
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#facts-first a")).to_have_text("cancelled")
        await expect(page.locator("#first .assistant .text")).to_have_text("Half of ")
        await expect(page.locator("#first .assistant .who .status")).to_have_text("incomplete")
        gate.set()
        desk.model.say("Whole.")
        await _say(page, "Again")
        await expect(page.locator("#first .assistant .text")).to_have_text(["Half of ", "Whole."])


async def test_a_waiting_run_is_found_again_and_stopped(desk: Desk, look: Open) -> None:
    desk.model.reply(Reply(tool_calls=[ToolCall("get_weather")]))
    thread_id = await desk.thread("Hello")
    await desk.run(thread_id, tools=[{"type": "function", "function": WEATHER}])
    async with look() as page:
        await page.goto(f"/ui/playground?thread={thread_id}")
        await expect(page.get_by_label("Output")).to_be_focused()
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#facts-first a")).to_have_text("cancelled")
        await expect(page.get_by_role("button", name="Submit outputs")).to_be_hidden()
        await expect(page.get_by_role("button", name="Send")).to_be_enabled()


async def test_a_stream_that_is_cut_is_taken_up_again(desk: Desk, look: Open) -> None:
    """And events come in pieces of a few bytes, cut anywhere."""
    gate = Gate()
    desk.model.say("One, ", "zwei – drei, ", gate, "four.")
    async with _narrow(desk) as line, look(line_breaks=True) as page:
        await page.goto("/ui/playground")
        line.is_narrow = True
        await _say(page, "Count")
        await expect(page.locator("#first .live").last).to_have_text("One, zwei – drei, ")
        line.cut()
        gate.set()
        await expect(page.locator("#first .assistant .text")).to_have_text(
            "One, zwei – drei, four."
        )
        await expect(page.locator("#facts-first a")).to_have_text("completed")
        heard = await page.locator("#wire pre").all_text_contents()
        numbers = [int(text.split(" ")[0]) for text in heard if text[0].isdigit()]
        assert len(numbers) > 8
        assert numbers == sorted(set(numbers))
    assert line.cuts >= 1


async def test_hostile_strings_execute_nothing(desk: Desk, look: Open) -> None:
    everything = "\n\n".join(HOSTILE)
    thread_id = await desk.thread("Hello")
    name = HOSTILE[1].replace("\n", " ")[:60]
    assistant = await desk.client.beta.assistants.create(
        model="m",
        name=name,
        instructions=everything,
        tools=[{"type": "function", "function": WEATHER}],
    )
    async with look() as page:
        await page.goto(f"/ui/playground?assistant={assistant.id}&thread={thread_id}")
        calls = [
            ToolCall("get_weather", json.dumps({"a": text}), id=f'c"><img src=x onerror=pwned={n}>')
            for n, text in enumerate(HOSTILE)
        ]
        calls.append(ToolCall(name, everything))
        for number, text in enumerate(HOSTILE, 1):
            desk.model.say(text[:9], text[9:])
            await _say(page, text)
            await expect(page.locator("#first .assistant")).to_have_count(number)
            await expect(page.locator("#facts-first a")).to_have_text("completed")
            await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        desk.model.reply(Reply(tool_calls=calls), Reply(text=[everything]))
        await _say(page, everything)
        await expect(page.get_by_label("Output")).to_have_count(len(calls))
        assert everything in await page.locator("fieldset pre").all_text_contents()
        for output in await page.get_by_label("Output").all():
            await output.fill(everything)
        await page.get_by_role("button", name="Submit outputs").click()
        await expect(page.locator("#facts-first a")).to_have_text("completed")
        file: FilePayload = {
            "name": '"><img src=x onerror=window.pwned=1>.md',
            "mimeType": "text/markdown",
            "buffer": everything.encode(),
        }
        await page.get_by_label("Attach files").set_input_files(file)
        await page.get_by_role("checkbox", name="file_search").check()
        desk.model.say("Read.")
        await _say(page, "Read it")
        await expect(page.locator("#first .assistant").last).to_contain_text("Read.")
        for language in ("Python", "Node", "curl"):
            await _program(page, language)
        desk.model.reply(Reply(status=400, body={"error": {"message": everything}}))
        await _say(page, "Fail")
        await expect(page.locator("#problem")).to_contain_text("window.pwned=1")
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("iframe, base, object, embed, [hx-get^=http]").count() == 0
        assert await page.locator("[onerror], [onload], main style, main script").count() == 0


async def test_two_models_answer_the_same(desk: Desk, look: Open) -> None:
    desk.model.answer = lambda body: [f"I am {body['model']}."]
    thread_id = await desk.thread("Who are you?")
    await desk.run(thread_id, model="first")
    async with look() as page:
        await page.goto(f"/ui/playground?thread={thread_id}")
        await page.get_by_label("Beside it").fill("second")
        for text in ("Really?", "And now?"):
            await _say(page, text)
            await expect(page.locator("#facts-second a")).to_have_text("completed")
            await expect(page.locator("#first")).to_contain_text(text)
            await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        texts = page.locator("#first .text")
        await expect(texts).to_have_text(
            ["Who are you?", *("I am first.", "Really?", "I am first.", "And now?", "I am first.")]
        )
        await expect(page.locator("#second .text")).to_have_text(
            ["Who are you?", "I am first.", "Really?", "I am second.", "And now?", "I am second."]
        )
        await expect(page.locator("#wire .second").first).to_be_visible()
        await expect(page.locator("#wire .first").first).to_be_visible()


async def test_a_dropped_file_is_searched_and_cited(desk: Desk, look: Open) -> None:
    def answer(request: dict[str, Any]) -> Reply:
        found = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not found:
            return Reply(tool_calls=[ToolCall("file_search", {"queries": ["refund"]})])
        return Reply(text=["Within 30 days ", found[0].partition("】")[0] + "】", "."])

    desk.model.answer = answer
    async with look() as page:
        await page.goto("/ui/playground")
        await page.evaluate(
            """() => {
                const data = new DataTransfer();
                data.items.add(new File(["A refund takes 30 days."], "refunds.md"));
                const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true });
                document.getElementById("say").dispatchEvent(drop);
            }"""
        )
        await expect(page.locator("#chosen li")).to_contain_text("refunds.md")
        await page.get_by_label(re.compile("^Message")).fill("When?")
        await page.keyboard.press("Enter")
        await expect(page.locator("#problem")).to_contain_text("Tick file_search")
        await page.get_by_role("checkbox", name="file_search").check()
        await page.get_by_role("checkbox", name="code_interpreter").check()
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Send").click()
        await page.locator("#first .mark").hover()
        await expect(page.locator(".card")).to_contain_text("A refund takes 30 days.")
        await expect(page.locator("#first .attachments .tag")).to_have_text(
            ["file_search", "code_interpreter"]
        )
        [run_address] = await page.locator("#facts-first a[href]").all()
        await run_address.click()
        await expect(page.locator("h1 .status")).to_have_text("completed")


async def test_a_picture_goes_to_the_model(desk: Desk, look: Open) -> None:
    picture: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": PNG}
    desk.model.say("A picture.")
    async with look() as page:
        await page.goto("/ui/playground")
        await page.get_by_label("Attach files").set_input_files(picture)
        await _say(page, "What is it?")
        await expect(page.locator("#first .assistant .text")).to_have_text("A picture.")
        await expect(page.locator("#first .user img")).to_have_count(1)
        await expect(page.locator("#chosen li")).to_have_count(0)
    [*_, asked] = desk.model.requests[-1].body["messages"]
    assert [part["type"] for part in asked["content"]] == ["text", "image_url"]


async def test_an_assistant_is_saved_and_tried_otherwise(desk: Desk, look: Open) -> None:
    old = await desk.client.beta.assistants.create(
        model="m",
        name="Old",
        instructions="Be old.",
        tools=[{"type": "file_search", "file_search": {"max_num_results": 7}}],
    )
    other = await desk.client.beta.assistants.create(model="n", name="Other")
    desk.model.answer = lambda body: ["Yes."]
    async with look() as page:
        await page.goto(f"/ui/playground?assistant={old.id}")
        await page.get_by_role("textbox", name="Instructions", exact=True).fill("Be new.")
        await page.get_by_text("Run options").click()
        await page.get_by_label("Max completion tokens").fill("77")
        await page.locator("[name=truncation_strategy]").select_option("last 5 messages")
        await page.locator("[name=tool_choice]").select_option("none")
        await page.locator("[name=additional_instructions]").fill("Be kind.")
        await _say(page, "Hello")
        await expect(page.locator("#facts-first a")).to_have_text("completed")
        assert (await desk.client.beta.assistants.retrieve(old.id)).instructions == "Be old."
        thread_id = page.url.rpartition("=")[2]
        [run] = (await desk.client.beta.threads.runs.list(thread_id)).data
        assert run.instructions == "Be new.\n\nBe kind."
        assert (run.max_completion_tokens, run.tool_choice) == (77, "none")
        assert run.truncation_strategy is not None
        assert run.truncation_strategy.last_messages == 5
        await page.get_by_label("Temperature").fill("0.5")
        await page.get_by_role("button", name="Save assistant").click()
        await expect(page.locator("#setup.changed")).to_have_count(0)
        saved = await desk.client.beta.assistants.retrieve(old.id)
        assert (saved.instructions, saved.temperature) == ("Be new.", 0.5)
        assert saved.tools[0].file_search.max_num_results == 7  # type: ignore[union-attr]
        await page.locator("[name=assistant]").select_option("Other")
        await expect(page.get_by_label("Model", exact=True)).to_have_value("n")
        await _say(page, "Who?")
        await expect(page.locator("#first .assistant")).to_have_count(2)
        await expect(page.locator("#facts-first a")).to_have_text("completed")
        [newest, _] = (await desk.client.beta.threads.runs.list(thread_id)).data
        assert newest.assistant_id == other.id


async def test_code_is_shown_as_it_is_written(desk: Desk, look: Open) -> None:
    """There is no engine behind this server: that is what the model is told, and what is shown."""
    gate = Gate()
    call = ToolCall("code_interpreter", ['{"code": "print(', gate, '1 + 1)"}'])
    desk.model.reply(Reply(tool_calls=[call]), Reply(text=["It cannot be run here."]))
    async with look() as page:
        await page.goto("/ui/playground")
        await page.get_by_role("checkbox", name="code_interpreter").check()
        await _say(page, "1 + 1?")
        await expect(page.locator("#first .step pre").first).to_have_text("print(")
        gate.set()
        await expect(page.locator("#first .step pre").first).to_have_text("print(1 + 1)")
        await expect(page.locator("#facts-first a")).to_have_text(re.compile("completed|failed"))


async def test_without_scripts_it_says_that_it_needs_them(desk: Desk, look: Open) -> None:
    async with look(java_script_enabled=False) as page:
        await page.goto("/ui/playground")
        await expect(page.get_by_text("The playground needs JavaScript")).to_be_visible()


async def _say(page: Page, text: str) -> None:
    await page.get_by_label(re.compile("^Message")).fill(text)
    await page.get_by_label(re.compile("^Message")).press("Enter")
    await expect(page.get_by_label(re.compile("^Message"))).to_have_value("")


async def _tab_to(page: Page, label: str | re.Pattern[str], *, back: bool = False) -> None:
    exact = {"exact": True} if isinstance(label, str) else {}
    wanted = page.get_by_label(label, **exact)  # type: ignore[arg-type]
    for _ in range(60):
        if await wanted.evaluate("(one) => one === document.activeElement"):
            return
        await page.keyboard.press("Shift+Tab" if back else "Tab")
    pytest.fail(f"{label} is not reached by the keyboard")


async def _program(page: Page, language: str) -> str:
    text = page.locator("#program-text")
    await text.evaluate("(one) => one.replaceChildren()")
    button = page.get_by_role("button", name=f"Copy as {language}")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(text).not_to_be_empty()
    await expect(text).to_be_visible()
    written = await text.text_content()
    await page.keyboard.press("Escape")
    await expect(text).to_be_hidden()
    return written or ""


async def _execute(command: list[str], desk: Desk) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {"OPENAI_API_KEY": desk.key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


class _Line:
    """What lies between the browser and the server."""

    def __init__(self, server: str) -> None:
        self._host, _, self._port = server.removeprefix("http://").partition(":")
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_narrow = False
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += len(self._writers)
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, to_server = await asyncio.open_connection(self._host, int(self._port))
        self._writers |= {writer, to_server}
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, to_server), self._pass(above, writer))
        for one in (writer, to_server):
            self._writers.discard(one)
            one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(7 if self.is_narrow else 65536):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def _narrow(desk: Desk) -> AsyncIterator[_Line]:
    """Everything goes through it, also for what is opened inside."""
    line, address = _Line(desk.address), desk.address
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    desk.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        desk.address = address
        server.close()
        line.cut()
