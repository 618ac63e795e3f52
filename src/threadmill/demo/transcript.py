"""`threadmill demo`: one conversation with a real server over HTTP, written down as it happens.

Only the model is a stand-in, and the transcript says so.
"""

import asyncio
import json
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from threadmill.app import Served, served
from threadmill.demo.client import client_of, events
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.lifecycle import RunStatus
from threadmill.sandbox import docker
from threadmill.schemas.queries import RESULT_CONTENT
from threadmill.settings import Settings
from threadmill.store import runs
from threadmill.store.projects import DEFAULT_PROJECT_ID

Say = Callable[[str], None]
Json = dict[str, Any]

QUESTION = "I am leaving for Lisbon. Will I need an umbrella, and how late is it there?"

DOCUMENT_NAME = "lisbon.md"
DOCUMENT = """\
# Getting around

Trams are slow and crowded; line 28 climbs through the old town. The metro runs from half past six
in the morning until one at night. A ticket for 24 hours costs 7 euros and is good for everything
on wheels, the ferries across the river not included. A card must be bought once, for half a euro.
Taxis are cheap by day and a fifth dearer at night. Whoever walks wears shoes that grip: the
pavements are of polished stone, and the streets are steep.

# Eating

Lunch is served from noon to three, dinner from half past seven. Bread and olives that are put on
the table unasked are paid for if they are eaten. Grilled sardines are best in June, when the whole
town smells of them. The custard tarts of Belém are eaten warm, with cinnamon; the queue in front
of the bakery is long, and moves fast.

# Museums

Most museums are closed on Mondays. The tile museum in the old convent shows five centuries of
painted tiles, among them a view of the town before the earthquake of 1755. On Sundays the museums
of the state are free for those who live in the country.
"""
DOCUMENT_QUESTION = "Until when does the metro run at night?"

INTRODUCTION = """\
The model in this demo is a scripted stand-in: it is no language model and says what it was told
to. All else is real: the server, its Postgres (in a temporary folder), HTTP and the streams.
"""

WHAT_WAS_SHOWN = """
A run streamed two parallel function calls in fragments, waited for their outputs, went on where it
had stopped, and streamed its answer. While it waited, nothing but its row in Postgres was kept.

Now a document, and a question about it.
"""

WHAT_WAS_FOUND = """
The file was read in a process of its own, cut into passages, and searched by words and by vectors
(scripted ones: they know words, but no meanings). The citation is one because that passage was
really given to the model; a marker that it made up would have been plain text.
"""

WHAT_WAS_DRAWN = """
The code ran in a container of its own, without network, and the chart came out as a file. It is the
one thing that this demo leaves behind: {path}
"""

NOTHING_WAS_DRAWN = """
The code interpreter is not shown, for there is nothing here to run it in: {reason}.
With a Docker engine, `threadmill sandbox build` makes the image, and this demo draws a chart.
"""

WHERE_TO_GO = """
Now with a model of yours: any endpoint that speaks chat/completions.

    export THREADMILL_MODEL_BASE_URL=http://localhost:11434/v1
    export THREADMILL_MODEL_API_KEY=...          # if it wants one
    . .venv/bin/activate                         # in a clone
    threadmill doctor                            # is all there that is needed?
    threadmill serve

Your program keeps the openai package and is told another address:

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any")
"""

CHART_QUESTION = "How did the fares develop? Draw them."
CHART_NAME = "threadmill-demo-chart.png"
CODE = """\
import matplotlib.pyplot as plt

fares = {2019: 6.4, 2021: 6.6, 2023: 6.8, 2025: 7.0}
plt.bar([str(year) for year in fares], fares.values())
plt.ylabel("euros for 24 hours")
plt.show()
print(f"{fares[2025] / fares[2019] - 1:.1%}")
"""

_CHUNKING = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0},
}
PREFIX = "threadmill-demo-"  # of the temporary folder
_FRAGMENT_EVERY_S = 0.04  # the pace of a model of middling speed: one can read along
_LOOK_EVERY_S = 0.05
_ANSWER_WITHIN_S = 30
_LOOK_WITHIN_S = 5


async def show(say: Say) -> None:
    """Takes about five seconds, with a chart ten, and leaves that behind and nothing else."""
    say(INTRODUCTION)
    with one_interrupt() as no_more, tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        async with ScriptedModel() as model, served(_settings(Path(folder), model)) as server:
            model.answer = _answer
            try:
                await _perform(server, say)
            finally:
                no_more()
    say(WHERE_TO_GO.rstrip())


@contextmanager
def one_interrupt() -> Iterator[Callable[[], None]]:
    """The first Ctrl-C ends the demo, further ones are not heard, nor is the first once `no_more`
    was called: closing takes half a second, and cut short it would never end, or let go of a
    Postgres that still writes into its folder."""
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt):  # a shell's background job: it is ignored as it is
        yield lambda: None
        return
    is_heard = True

    def no_more() -> None:
        nonlocal is_heard
        is_heard = False

    def end() -> None:  # may be called twice for two that came together
        if is_heard:
            no_more()
            interrupt(signal.SIGINT, None)

    loop = asyncio.get_running_loop()
    # As a callback of the loop it comes between two steps of a task, never in the midst of one.
    loop.add_signal_handler(signal.SIGINT, end)
    try:
        yield no_more
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, interrupt)


async def _perform(server: Served, say: Say) -> None:
    say(f"The server and its Postgres are up at {server.address}.\n")
    async with client_of(server.address, "any", within_s=_ANSWER_WITHIN_S) as client:
        conversation = Conversation(client, say)
        await _read_back(server, await conversation.hold(), say)
        await conversation.ask_about_document()
        say(WHAT_WAS_FOUND)
        await _draw(server, conversation, say)


async def sandbox_fault(server: Served) -> str | None:
    """Why no code can be run here; None if it can."""
    settings = server.runtime.settings
    host = docker.hosts(settings.docker_hosts)[0]
    try:
        facts = await docker.look(host, settings.sandbox_image, _LOOK_WITHIN_S)
        return facts.fault_of(settings.sandbox_image)
    except docker.EngineAway as away:
        return f"no Docker engine at {docker.shown(host)} ({away})"


async def _draw(server: Served, conversation: "Conversation", say: Say) -> None:
    """Where there is an engine with the image; else say what is missing."""
    reason = await sandbox_fault(server)
    if reason is not None:
        say(NOTHING_WAS_DRAWN.format(reason=reason).rstrip())
        return
    chart = await conversation.ask_for_chart()
    path = Path(tempfile.gettempdir()) / CHART_NAME
    await asyncio.to_thread(path.write_bytes, chart)
    say(WHAT_WAS_DRAWN.format(path=path).rstrip())


def _settings(folder: Path, model: ScriptedModel) -> Settings:
    # Made like this, Settings asks neither the environment nor threadmill.toml: the demo is the
    # same on every machine.
    return Settings.model_construct(
        data_dir=folder,
        port=0,
        model_base_url=model.base_url,
        model_api_key=SecretStr("scripted"),  # or it would be looked for in OPENAI_API_KEY
        embedding_model="scripted-stand-in",
        tokenizer_download_timeout_s=0,  # the demo asks nobody for anything
        drain_timeout_s=0,
        sandbox_warm_sessions=0,  # one is needed, and only if it comes to that
    )


# --- what the program of a user does ---


def get_weather(city: str) -> Json:
    return {"city": city, "sky": "light rain", "celsius": 17}


def get_local_time(city: str) -> Json:
    return {"city": city, "local_time": "18:42"}


FUNCTIONS = {function.__name__: function for function in (get_weather, get_local_time)}


class Conversation:
    def __init__(self, client: aiohttp.ClientSession, say: Say) -> None:
        self._client = client
        self._page = Page(say)

    async def hold(self) -> Json:
        """The run as the last event showed it."""
        self._page.write("you", "Make an assistant with two functions.")
        assistant = await self._post(
            "assistants",
            {
                "model": "scripted-stand-in",
                "instructions": "You help travellers.",
                "tools": [_as_tool(name) for name in FUNCTIONS],
            },
        )
        self._page.write("you", QUESTION)
        thread = await self._post("threads", {"messages": [{"role": "user", "content": QUESTION}]})
        runs_path = f"threads/{thread['id']}/runs"
        run = await self._listen(runs_path, {"assistant_id": assistant["id"], "stream": True})
        if run["status"] != RunStatus.REQUIRES_ACTION:
            return run
        outputs = self._call_functions(run)
        return await self._listen(
            f"{runs_path}/{run['id']}/submit_tool_outputs",
            {"tool_outputs": outputs, "stream": True},
        )

    async def ask_about_document(self) -> None:
        self._page.write("you", "Make an assistant that knows a document.")
        store_id = await self._ingest()
        assistant = await self._post(
            "assistants",
            {
                "model": "scripted-stand-in",
                "tools": [{"type": "file_search"}],
                "tool_resources": {"file_search": {"vector_store_ids": [store_id]}},
            },
        )
        self._page.write("you", DOCUMENT_QUESTION)
        messages = [{"role": "user", "content": DOCUMENT_QUESTION}]
        thread = await self._post("threads", {"messages": messages})
        runs_path = f"threads/{thread['id']}/runs"
        run = await self._listen(runs_path, {"assistant_id": assistant["id"], "stream": True})
        assert run["status"] == RunStatus.COMPLETED, f"The demo's run is {run['status']}."
        await self._show_citation(thread["id"], run["id"])

    async def ask_for_chart(self) -> bytes:
        """The image of the answer, as it is downloaded."""
        self._page.write("you", "Make an assistant that can run code.")
        assistant = await self._post(
            "assistants", {"model": "scripted-stand-in", "tools": [{"type": "code_interpreter"}]}
        )
        self._page.write("you", CHART_QUESTION)
        messages = [{"role": "user", "content": CHART_QUESTION}]
        thread = await self._post("threads", {"messages": messages})
        runs_path = f"threads/{thread['id']}/runs"
        run = await self._listen(runs_path, {"assistant_id": assistant["id"], "stream": True})
        assert run["status"] == RunStatus.COMPLETED, f"The run failed: {run['last_error']}"
        said = await self._get(f"threads/{thread['id']}/messages?run_id={run['id']}")
        file_id = said["data"][0]["content"][0]["image_file"]["file_id"]
        async with self._client.get(f"files/{file_id}/content") as response:
            return await response.read()

    async def _ingest(self) -> str:
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", DOCUMENT.encode(), filename=DOCUMENT_NAME)
        async with self._client.post("files", data=form) as response:
            file = await response.json()
        self._page.write("server", file["id"], "POST /v1/files")
        store = await self._post(
            "vector_stores", {"file_ids": [file["id"]], "chunking_strategy": _CHUNKING}
        )
        while store["status"] == "in_progress":
            await asyncio.sleep(_LOOK_EVERY_S)
            store = await self._get(f"vector_stores/{store['id']}")
        counts = store["file_counts"]
        said = f"{counts['completed']} file ingested, {counts['failed']} failed"
        self._page.write("server", said, "GET /v1/vector_stores/...")
        return str(store["id"])

    async def _show_citation(self, thread_id: str, run_id: str) -> None:
        """What the answer cites, and the passage that the model was given under that marker."""
        messages = await self._get(f"threads/{thread_id}/messages?run_id={run_id}")
        text = messages["data"][0]["content"][0]["text"]
        [citation] = text["annotations"]
        steps = await self._get(
            f"threads/{thread_id}/runs/{run_id}/steps?order=asc&include[]={RESULT_CONTENT}"
        )
        [call] = steps["data"][0]["step_details"]["tool_calls"]
        place = int(citation["text"].partition("†")[0].rpartition(":")[2])
        result = call["file_search"]["results"][place]
        start, end = citation["start_index"], citation["end_index"]
        self._page.quote(text["value"], "The answer:")
        self._page.quote(citation["text"], f"Its characters {start} to {end} are a citation:")
        self._page.quote(
            result["content"][0]["text"].strip(),
            f"Of {result['file_name']}, {result['file_id']}, score {result['score']:.2f}:",
        )

    def _call_functions(self, run: Json) -> list[Json]:
        outputs = []
        for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            output = json.dumps(FUNCTIONS[name](**arguments))
            self._page.write("you", f"{name} returns {output}")
            outputs.append({"tool_call_id": call["id"], "output": output})
        return outputs

    async def _post(self, path: str, body: Json) -> Json:
        async with self._client.post(path, json=body) as response:
            created: Json = await response.json()
        self._page.write("server", created["id"], f"POST /v1/{path}")
        return created

    async def _get(self, path: str) -> Json:
        async with self._client.get(path) as response:
            found: Json = await response.json()
        return found

    async def _listen(self, path: str, body: Json) -> Json:
        """Write down every event of a stream; the run as the last of them showed it."""
        run: Json = {}
        self._page.write("", "", f"POST .../{path.rpartition('/')[2]}, streamed")
        async with self._client.post(path, json=body) as response:
            async for name, data in events(response):
                self._page.write_event(name, data)
                if data.get("object") == "thread.run":
                    run = data
        return run


def _as_tool(name: str) -> Json:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": city}}


# --- what the stand-in says ---


def _answer(request: Json) -> Reply:
    """Calls, and once their outputs are in the prompt, a text made of these."""
    tools = {tool["function"]["name"] for tool in request["tools"]}
    if "file_search" in tools:
        return _answer_from_document(request["messages"])
    if "code_interpreter" in tools:
        return _answer_with_chart(request["messages"])
    facts: Json = {}
    for message in request["messages"]:
        if message["role"] == "tool":
            facts |= json.loads(message["content"])
    if not facts:
        # In pieces that are no JSON by themselves, as models write them; the two calls take turns.
        calls = [ToolCall(name, ['{"city', '": "Lis', 'bon"}']) for name in FUNCTIONS]
        return Reply(tool_calls=calls, delay_s=_FRAGMENT_EVERY_S)
    text = [
        "Yes, take one: ",
        f"{facts['city']} has {facts['sky']} ",
        f"at {facts['celsius']} degrees. ",
        f"It is {facts['local_time']} there.",
    ]
    return Reply(text=text, delay_s=_FRAGMENT_EVERY_S)


def _answer_from_document(messages: list[Json]) -> Reply:
    """The sentence of the first passage that shares most words with the question."""
    if messages[-1]["role"] != "tool":
        arguments = ['{"queries": ["', messages[-1]["content"], '"]}']
        return Reply(tool_calls=[ToolCall("file_search", arguments)], delay_s=_FRAGMENT_EVERY_S)
    heading, _, passages = messages[-1]["content"].partition("\n")
    marker = heading[: heading.index("】") + 1]
    asked = _words(DOCUMENT_QUESTION)
    sentences = passages.partition("\n\n【")[0].replace("\n", " ").split(". ")
    best = max(sentences, key=lambda sentence: len(asked & _words(sentence)))
    words = best.split()
    text = [" ".join(words[at : at + 3]) + " " for at in range(0, len(words), 3)]
    # In pieces too; a client gets it whole.
    return Reply(text=[*text, marker[:3], marker[3:], "."], delay_s=_FRAGMENT_EVERY_S)


def _answer_with_chart(messages: list[Json]) -> Reply:
    if messages[-1]["role"] != "tool":
        written = json.dumps({"code": CODE})
        arguments = [written[at : at + 24] for at in range(0, len(written), 24)]
        call = ToolCall("code_interpreter", arguments)
        return Reply(tool_calls=[call], delay_s=_FRAGMENT_EVERY_S)
    found = re.search(r"[\d.]+%", messages[-1]["content"])
    grown = found[0] if found else "not at all"
    return Reply(text=["They have grown by ", grown, " since 2019."], delay_s=_FRAGMENT_EVERY_S)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


# --- what is written down ---


class Page:
    """Lines of three columns: who speaks, what is said, and by which event or request."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._called: dict[int, str] = {}  # the fragments that follow do not name their call

    def write(self, who: str, text: str, wire: str = "") -> None:
        self._say(f"{who:>6}  {text:<46}  {wire}".rstrip())

    def write_event(self, name: str, data: Json) -> None:
        if name == "thread.message.delta":
            self.write("model", "".join(map(_part, data["delta"]["content"])), name)
        elif name == "thread.run.step.delta":
            for call in data["delta"]["step_details"].get("tool_calls", []):
                self.write("model", self._call(call), name)
        elif name == "thread.run.requires_action":
            self.write("server", "It is your program's turn.", name)
        else:
            self.write("", _usage(data.get("usage")), name)

    def quote(self, text: str, about: str) -> None:
        self._say(f"\n{about}\n")
        for line in text.splitlines():
            self._say(f"  {line}".rstrip())

    def _call(self, call: Json) -> str:
        if call["type"] == "file_search":  # the server answers this one itself
            return "file_search(...)"
        if call["type"] == "code_interpreter":
            return _code(call["code_interpreter"])
        function = call["function"]
        is_new = call["index"] not in self._called
        name = self._called.setdefault(call["index"], function.get("name", ""))
        return f"{name}(...)" if is_new else f"{name}: {function['arguments']}"


def _part(part: Json) -> str:
    if part["type"] == "image_file":
        return f"[image {part['image_file']['file_id']}]"
    return str(part["text"]["value"])


def _code(piece: Json) -> str:
    """A piece of the code as it is written, or of what it gives."""
    for output in piece.get("outputs") or ():
        if output["type"] == "image":
            return f"-> image {output['image']['file_id']}"
        return f"-> {output['logs'].strip()}"
    written = piece.get("input") or ""
    return written.replace("\n", "⏎") or "code_interpreter(...)"


def _usage(usage: Json | None) -> str:
    if not usage:
        return ""
    return f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"


async def _read_back(server: Served, shown: Json, say: Say) -> None:
    async with server.runtime.database.connection() as connection:
        run = await runs.get(connection, DEFAULT_PROJECT_ID, shown["thread_id"], shown["id"])
        steps = await runs.steps_of(connection, run.id)
    say("\nIn the database now:\n")
    tokens = f"{run.prompt_tokens} tokens in, {run.completion_tokens} out"
    say(f"  {run.id:<32} {'run':<18} {run.status:<12} {tokens}")
    for step in steps:
        calls = step.step_details.get("tool_calls", [])
        names = " and ".join(call["function"]["name"] for call in calls)
        say(f"  {step.id:<32} {step.type:<18} {step.status:<12} {names}".rstrip())
    assert run.status == RunStatus.COMPLETED, f"The demo's run is {run.status}: {run.last_error}"
    say(WHAT_WAS_SHOWN)
