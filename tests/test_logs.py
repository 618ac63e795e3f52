"""The log: what a line tells, and above all what it never does."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psycopg
import pytest
from pydantic import SecretStr

from processes import Process
from runs.wire import WEATHER, Conversation, eventually
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.logs import Secrets
from threadmill.settings import ModelRoute, Settings

PASSWORD = "a-password-of-the-database"
CLIENT_KEY = "sk-tm-the-static-key-of-a-client"
WRONG_KEY = "sk-tm-a-key-that-is-not-valid"
MODEL_KEY = "key-for-the-model-endpoint"
METRICS_KEY = "key-for-the-metrics"
ASKED = "the user asks for launch codes"
TOLD = "the model tells launch codes"
ARGUMENTS = "launch codes among arguments"
OUTPUT = "launch codes among outputs"
DOCUMENT = "launch codes in a document"
QUOTED = "launch codes"  # short, for of each column Postgres quotes 64 characters
SECRETS = [
    *(PASSWORD, CLIENT_KEY, WRONG_KEY, MODEL_KEY, METRICS_KEY),
    *(ASKED, TOLD, ARGUMENTS, OUTPUT, DOCUMENT, QUOTED),
]


class Logged:
    """A server that runs, and what it has written to its standard error."""

    def __init__(self, process: Process, path: Path) -> None:
        self.process = process
        self.address = process.address
        self._path = path

    @property
    def text(self) -> str:
        return self._path.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of a log in JSON. Each line has to be some."""
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def has(self, event: str) -> None:
        async def is_there() -> bool:
            return event in self.text

        await eventually(is_there)


Start = Callable[..., Any]


@pytest.fixture
def start(database_url: str, model: ScriptedModel, tmp_path: Path) -> Start:
    @asynccontextmanager
    async def start(**settings: str) -> AsyncIterator[Logged]:
        path = tmp_path / "stderr"
        environment = {
            "PATH": "",
            "PYTHONPATH": ":".join(sys.path),
            "THREADMILL_DATABASE_URL": with_password(database_url),
            "THREADMILL_DATA_DIR": str(tmp_path),
            "THREADMILL_MODEL_BASE_URL": model.base_url,
            "THREADMILL_MODEL_API_KEY": MODEL_KEY,
            "THREADMILL_MODEL_MAX_RETRY_WAIT_S": "0.05",
            "THREADMILL_API_KEYS": CLIENT_KEY,
            "THREADMILL_METRICS_KEY": METRICS_KEY,
            "THREADMILL_DOCKER_HOSTS": "unix:///nonexistent/docker.sock",
            "THREADMILL_LOG_FORMAT": "json",
        }
        with path.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "threadmill", "serve", "--port", "0"),
                env=environment | {f"THREADMILL_{name}": value for name, value in settings.items()},
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line, path.read_text()
        running = Process(process, line, database_url)
        try:
            yield Logged(running, path)
        finally:
            await running.close()

    return start


def with_password(url: str) -> str:
    user, _, rest = url.removeprefix("postgresql://").partition("@")
    return f"postgresql://{user.partition(':')[0]}:{PASSWORD}@{rest}"


def client_of(server: Logged, key: str = CLIENT_KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{server.address}/v1", max_retries=0)


async def live(server: Logged, model: ScriptedModel, postgres: str, database_url: str) -> None:
    """All that may happen to a server in one day."""
    async with client_of(server) as client, client_of(server, WRONG_KEY) as stranger:
        await converse(client, model)
        await be_refused(server, client, stranger)
        await fail_at_the_model(client, model)
        await fail_in_the_database(client, model, database_url)
        await lose_the_database(server, client, postgres, database_url)


async def converse(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    assistant = await client.beta.assistants.create(
        model="scripted", instructions=TOLD, tools=[WEATHER, {"type": "file_search"}]
    )
    store = await client.vector_stores.create()
    for name, content in (("notes.txt", DOCUMENT.encode()), ("broken.pdf", DOCUMENT.encode())):
        file = await client.files.create(file=(name, io.BytesIO(content)), purpose="assistants")
        await client.vector_stores.files.create_and_poll(
            vector_store_id=store.id, file_id=file.id, poll_interval_ms=20
        )
    model.reply(
        Reply(TOLD, tool_calls=[ToolCall("file_search", {"queries": [ARGUMENTS]})]),
        Reply(tool_calls=[ToolCall("get_weather", {"city": ARGUMENTS})]),
        Reply(TOLD),
    )
    talk = await Conversation.begin(client, assistant.id, ASKED)
    run = await talk.run(tools=[WEATHER, {"type": "file_search"}])
    run = await talk.stopped(await talk.answer(run, OUTPUT))
    assert run.status == "completed"


async def be_refused(
    server: Logged, client: openai.AsyncOpenAI, stranger: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.AuthenticationError):
        await stranger.beta.threads.create()
    with pytest.raises(openai.BadRequestError):
        await client.beta.threads.create(messages=[{"role": "nobody", "content": ASKED}])  # type: ignore[typeddict-item]
    headers = {"Authorization": f"Bearer {CLIENT_KEY}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for body in (f'{{"messages": "{ASKED}"', b"\xff\xfe"):
            async with http.post(f"{server.address}/v1/threads", data=body) as answer:
                assert answer.status == 400
        async with http.get(f"{server.address}/metrics") as answer:
            assert answer.status == 401


async def fail_at_the_model(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    assistant = await client.beta.assistants.create(model="scripted")
    for reply in (
        Reply(status=401, body={"error": {"message": f"Wrong key: {MODEL_KEY}. You said {ASKED}"}}),
        Reply(TOLD, drop_after_chunks=1),
        Reply(raw=[b"data: {" + TOLD.encode() + b"\n\n"]),
    ):
        model.answer = lambda _, reply=reply: reply
        talk = await Conversation.begin(client, assistant.id, ASKED)
        assert (await talk.run()).status == "failed"
    model.answer = None


async def fail_in_the_database(
    client: openai.AsyncOpenAI, model: ScriptedModel, database_url: str
) -> None:
    """Postgres quotes whole rows in the words of its errors."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE messages ADD CONSTRAINT no_poison"
            " CHECK (content::text NOT LIKE '%poison%')"
        )
        thread = await client.beta.threads.create()
        with pytest.raises(openai.InternalServerError):
            await client.beta.threads.messages.create(
                thread.id, role="user", content=f"{QUOTED}, and poison"
            )
        assistant = await client.beta.assistants.create(model="scripted", instructions=TOLD)
        model.say(f"{QUOTED}, and poison")
        talk = await Conversation.begin(client, assistant.id, ASKED)
        run = await talk.start()

        async def is_over() -> bool:
            return (await talk.look(run.id)).status == "failed"

        await eventually(is_over)
        connection.execute("ALTER TABLE messages DROP CONSTRAINT no_poison")


async def lose_the_database(
    server: Logged, client: openai.AsyncOpenAI, postgres: str, database_url: str
) -> None:
    name = database_url.rpartition("?")[0].rpartition("/")[2]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        with suppress(openai.APIError):
            await client.beta.threads.create(timeout=3)
        await server.has("database_away")
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_secret_and_no_text_is_ever_logged(
    start: Start, model: ScriptedModel, postgres: str, database_url: str, log_format: str
) -> None:
    async with start(LOG_LEVEL="debug", LOG_FORMAT=log_format, LOG_REQUESTS="true") as server:
        await live(server, model, postgres, database_url)
        text = server.text
    # What could have told them is there ...
    for event in ("run_taken_up", "run_executed", "request_failed", "run_failed", "database_away"):
        assert event in text, text
    assert "Traceback" in text or '"frames"' in text
    assert "no_poison" in text  # of the error whose next line is the row
    # ... and tells nothing.
    found = [secret for secret in SECRETS if secret in text]
    assert not found, [line for line in text.splitlines() if any(one in line for one in found)]


async def test_a_run_has_a_line_with_its_ids_and_times(start: Start, model: ScriptedModel) -> None:
    async with start() as server, client_of(server) as client:
        model.reply(Reply("Fine.", usage={"prompt_tokens": 30, "completion_tokens": 4}))
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id)
        created = await client.beta.threads.runs.with_raw_response.create(
            talk.thread_id, assistant_id=assistant.id
        )
        run = created.parse()
        await talk.stopped(run.id)
        await server.has("run_executed")
        [line] = server.of("run_executed")
        assert server.of("request") == []  # only where somebody wants them
    assert line["run_id"] == run.id
    assert line["thread_id"] == talk.thread_id
    assert line["assistant_id"] == assistant.id
    assert line["request_id"] == created.headers["x-request-id"]  # of the one that made it
    assert (line["status"], line["model"], line["turns"]) == ("completed", "scripted", 1)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (30, 4)
    assert 0 <= line["queue_ms"] <= line["first_token_ms"] <= 5000
    assert 0 <= line["took_ms"] <= 5000
    assert line["level"] == "info"


async def test_every_request_has_a_line_where_that_is_wanted(start: Start) -> None:
    async with start(LOG_REQUESTS="true") as server, client_of(server) as client:
        answer = await client.beta.threads.with_raw_response.create()
        await server.has('"request"')
        [line] = server.of("request")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/threads", 200)
    assert 0 < line["began_ms"] <= line["took_ms"]


async def test_a_fault_is_logged_under_the_id_that_its_client_was_told(
    start: Start, database_url: str
) -> None:
    async with start() as server, client_of(server) as client:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE threads RENAME TO threads_elsewhere")
        with pytest.raises(openai.InternalServerError) as fault:
            await client.beta.threads.create()
        request_id = fault.value.response.headers["x-request-id"]
        assert request_id in fault.value.message
        [line] = [line for line in server.of("request_failed") if line["level"] == "error"]
    assert line["request_id"] == request_id
    assert line["exception"][0]["exc_type"] == "UndefinedTable"
    assert not any("locals" in frame for frame in line["exception"][0]["frames"])


# --- what is hidden, one by one ---


@pytest.mark.parametrize(
    ("told", "logged"),
    [
        (f"no, {MODEL_KEY} is wrong", "no, [hidden] is wrong"),
        ("key-of-a-route", "[hidden]"),
        ("postgresql://me:s3cret@host:5432/db", "postgresql://me:[hidden]@host:5432/db"),
        ("https://:s3cret@host/path?x=1", "https://:[hidden]@host/path?x=1"),
        ("host=db password=s3cret user=me", "host=db password=[hidden] user=me"),
        ("password='with a \\' in it' user=me", "password=[hidden] user=me"),
        ("Authorization: Bearer abcdefgh.ijkl-mnop", "Authorization: Bearer [hidden]"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic [hidden]"),
        ("a key sk-proj-abcdefghijkl there", "a key sk-[hidden] there"),
        (
            "ERROR: no\nDETAIL:  Failing row (a,\nb).\nHINT: x",
            "ERROR: no\nDETAIL: [hidden]\nHINT: x",
        ),
        ("http://127.0.0.1:8000/v1 and 10:30", "http://127.0.0.1:8000/v1 and 10:30"),
        ("a basic question, an ask-me", "a basic question, an ask-me"),
    ],
)
def test_what_slips_into_words_is_hidden(told: str, logged: str) -> None:
    settings = Settings(
        model_api_key=SecretStr(MODEL_KEY),
        api_keys=[SecretStr(CLIENT_KEY)],
        models={"other": ModelRoute(api_key=SecretStr("key-of-a-route"))},
    )
    event = {"text": told, "inside": {"deep": [told]}, "other": ValueError(told), "number": 7}
    assert Secrets(settings).hide(None, "info", event) == {
        "text": logged,
        "inside": {"deep": [logged]},
        "other": logged,
        "number": 7,
    }


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_libraries_say_looks_the_same_and_is_hidden_as_well(log_format: str) -> None:
    program = f"""
import logging, structlog
from pydantic import SecretStr
from threadmill import logs
from threadmill.settings import Settings

logs.set_up(Settings(model_api_key=SecretStr("{MODEL_KEY}"), log_format="{log_format}"))
structlog.contextvars.bind_contextvars(request_id="req_1")
try:
    password = "{PASSWORD}"
    raise OSError("no route to postgresql://me:" + password + "@host/db")
except OSError:
    logging.getLogger("asyncio").exception("Task failed for %s", "{MODEL_KEY}")
    structlog.get_logger().exception("task_failed")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # The source line stands in the traceback, the values of variables do not.
    assert run.stderr.count(PASSWORD) == 0
    assert MODEL_KEY not in run.stderr
    assert "me:[hidden]@host/db" in run.stderr
    if log_format == "json":
        theirs, ours = map(json.loads, run.stderr.splitlines())
        assert theirs["event"] == "Task failed for [hidden]"
        assert theirs["logger"] == "asyncio"
        assert ours["event"] == "task_failed"
        for line in (theirs, ours):
            assert (line["level"], line["request_id"]) == ("error", "req_1")
            [fault] = line["exception"]
            assert fault["exc_value"] == "no route to postgresql://me:[hidden]@host/db"
