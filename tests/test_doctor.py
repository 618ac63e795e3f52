"""What `threadmill doctor` says of real things: databases, endpoints and sockets."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import tiktoken
from aiohttp import web
from pydantic import SecretStr

from threadmill import doctor
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.sandbox import docker
from threadmill.sandbox.frames import PROTOCOL
from threadmill.settings import ModelRoute, Settings
from threadmill.store import migrate

SUBJECTS = [
    *("database", "migrations", "pgvector", "model", "embeddings", "tokenizer"),
    *("docker", "image", "files", "disk"),
]
PASSWORD = "open-sesame"  # no line may hold it


class Report:
    def __init__(self, passed: bool, lines: list[str]) -> None:
        self.passed = passed
        self.lines = lines

    def __getitem__(self, subject: str) -> str:
        """The one line on a subject, without the subject."""
        [line] = self.all(subject)
        return line

    def all(self, subject: str) -> list[str]:
        lines = [line for line in self.lines if line[6:].startswith(f"{subject} ")]
        return [f"{line[:4].strip()} {line[18:]}" for line in lines]


async def examine(settings: Settings, **changes: Any) -> Report:
    lines: list[str] = []
    passed = await doctor.examine(settings.model_copy(update=changes), lines.append)
    assert PASSWORD not in "\n".join(lines)
    assert passed == (not any(line.startswith("FAIL") for line in lines))
    return Report(passed, lines)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With the engine that a machine has by itself."""
    return settings.model_copy(update={"docker_hosts": []})


@pytest.fixture(autouse=True)
def lonely_machine(monkeypatch: pytest.MonkeyPatch, short_tmp: Path) -> None:
    """Without Docker and without internet."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{short_tmp}/nobody.sock")
    # Set here so that it is taken back: what loads an encoding sets it for good.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(short_tmp))

    def fail(name: str) -> tiktoken.Encoding:
        raise ConnectionError("no internet")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)


async def test_one_line_per_check_in_a_fixed_order(settings: Settings) -> None:
    report = await examine(settings)
    assert [line[6:].split()[0] for line in report.lines[:-2]] == SUBJECTS
    assert {line[:6] for line in report.lines[:-2]} <= {"ok    ", "warn  ", "FAIL  ", "-     "}
    assert report.lines[-2:] == ["", "0 failures, 3 warnings."]
    assert report.passed


# --- database ---


async def test_a_database_that_is_up_to_date(settings: Settings) -> None:
    report = await examine(settings)
    assert report["database"].startswith("ok PostgreSQL 1")
    assert report["migrations"] == f"ok at revision {migrate.HEAD}, the newest"
    assert report["pgvector"].startswith("ok 0.")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DROP TABLE alembic_version", "database is empty"),
        ("UPDATE alembic_version SET version_num = '0000'", "database is at revision 0000"),
    ],
)
async def test_an_old_database_is_migrated_by_typing_so(
    settings: Settings, database_url: str, statement: str, expected: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement.encode())
    line = (await examine(settings))["migrations"]
    assert line.startswith("FAIL")
    assert expected in line
    assert line.endswith("Type: threadmill migrate")


async def test_a_database_of_a_newer_version_is_not_for_us(
    settings: Settings, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    line = (await examine(settings))["migrations"]
    assert line.startswith("FAIL")
    assert "a newer one has used it" in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://me:{PASSWORD}@127.0.0.1:1/x", "Start that database, or set"),
        (f"postgresq://me:{PASSWORD}@127.0.0.1:1/x", "cannot be understood"),
        (f"me:{PASSWORD}@127.0.0.1", "cannot be understood"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1:port/x", "THREADMILL_DATABASE_URL"),
        (f"postgresql://me:{PASSWORD}@[127.0.0.1/x", "THREADMILL_DATABASE_URL"),
    ],
)
async def test_without_a_database_the_other_checks_go_on(
    settings: Settings, url: str, expected: str
) -> None:
    report = await examine(settings, database_url=url)
    assert report["database"].startswith("FAIL")
    assert expected in report["database"]
    assert report["migrations"] == report["pgvector"] == "- Not looked at, as there is no database."
    assert report["model"].startswith("ok")


async def test_the_embedded_database_is_started_and_stopped(
    settings: Settings, short_tmp: Path
) -> None:
    report = await examine(settings, database_url=None, data_dir=short_tmp)
    assert f"embedded in {short_tmp}, started in" in report["database"]
    assert report["migrations"].startswith("ok empty; `threadmill serve` brings it")
    assert report.passed
    assert not (short_tmp / "postgres" / "postmaster.pid").exists()


async def test_an_embedded_database_that_runs_is_joined(
    settings: Settings, short_tmp: Path
) -> None:
    postgres = await EmbeddedPostgres.start(short_tmp, settings={"fsync": "off"})
    try:
        await asyncio.to_thread(migrate.upgrade, postgres.url)
        report = await examine(settings, database_url=None, data_dir=short_tmp)
    finally:
        await postgres.stop()
    assert "in use by a threadmill that runs" in report["database"]
    assert report["migrations"].startswith("ok at revision")


async def test_a_folder_in_which_postgres_cannot_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = await examine(settings, database_url=None, data_dir=tmp_path / "file")
    assert report["database"].startswith("FAIL The database in")
    assert "set THREADMILL_DATA_DIR to another folder" in report["database"]


# --- model endpoints ---

Endpoint = Callable[[web.BaseRequest], web.Response]


@asynccontextmanager
async def answering(answer: Endpoint) -> AsyncIterator[str]:
    """The base URL of an endpoint that gives every request this answer."""

    async def handle(request: web.BaseRequest) -> web.Response:
        return answer(request)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def refuse(request: web.BaseRequest) -> web.Response:
    """As OpenAI does it: with what was sent."""
    sent = request.headers.get("Authorization", "nothing")
    return web.json_response({"error": {"message": f"Incorrect key: {sent}"}}, status=401)


async def test_a_model_endpoint_that_answers(settings: Settings, model: ScriptedModel) -> None:
    line = (await examine(settings))["model"]
    assert line.startswith(f"ok {model.base_url} answers in 0.")
    assert line.endswith("and has 1 model")


async def test_no_model_endpoint(settings: Settings) -> None:
    line = (await examine(settings, model_base_url=None))["model"]
    assert line.startswith("FAIL No endpoint is set")
    assert "THREADMILL_MODEL_BASE_URL" in line


@pytest.mark.parametrize(
    ("own", "openai", "expected"),
    [
        (PASSWORD, None, "Put the right key into THREADMILL_MODEL_API_KEY."),
        (None, PASSWORD, "Put the right key into OPENAI_API_KEY."),
        (None, None, "Put a key into THREADMILL_MODEL_API_KEY."),
    ],
)
async def test_a_refused_key_names_the_setting_that_holds_it(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    openai: str | None,
    expected: str,
) -> None:
    if openai:
        monkeypatch.setenv("OPENAI_API_KEY", openai)
    async with answering(refuse) as url:
        report = await examine(
            settings,
            model_base_url=url,
            model_api_key=SecretStr(own) if own else None,
            embedding_model="embedder",
        )
    for subject in ("model", "embeddings"):
        assert report[subject].startswith("FAIL")
        assert "401" in report[subject]
        assert report[subject].endswith(expected)


async def test_an_endpoint_without_a_list_may_work_all_the_same(settings: Settings) -> None:
    async with answering(lambda request: web.Response(status=404)) as url:
        line = (await examine(settings, model_base_url=url))["model"]
    assert line.startswith("warn")
    assert "most end in /v1" in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"http://me:{PASSWORD}@127.0.0.1:1/v1", "Is it running, and is its URL right?"),
        (f"me:{PASSWORD}@host/v1", "does not begin with http:// or https://"),
        ("localhost:11434/v1", "does not begin with http:// or https://"),
    ],
)
async def test_an_endpoint_that_cannot_be_reached(
    settings: Settings, url: str, expected: str
) -> None:
    report = await examine(settings, model_base_url=url, embedding_model="embedder")
    assert report["model"].startswith("FAIL")
    assert expected in report["model"]
    assert report["embeddings"].startswith("FAIL")


async def test_an_endpoint_that_is_silent_holds_nobody_up(settings: Settings) -> None:
    connected: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/v1"
    async with asyncio.timeout(30):
        report = await examine(settings, model_base_url=url, model_connect_timeout_s=0.1)
    assert report["model"].startswith("FAIL")
    assert "within 0.1 seconds" in report["model"]
    silent.close()
    for writer in connected:
        writer.close()


async def test_every_endpoint_of_the_models_table_is_asked_once(
    settings: Settings, model: ScriptedModel
) -> None:
    async with ScriptedModel() as other, answering(refuse) as url:
        table = {
            "same": ModelRoute(upstream_name="scripted"),
            "other": ModelRoute(base_url=other.base_url),
            "other-*": ModelRoute(base_url=other.base_url),
            "closed": ModelRoute(base_url=url, api_key=SecretStr(PASSWORD)),
        }
        lines = (await examine(settings, models=table)).all("model")
    assert [line.split()[:2] for line in lines] == [
        ["ok", model.base_url],
        ["ok", other.base_url],
        ["FAIL", f"{url}:"],
    ]
    assert lines[-1].endswith('Put the right key into api_key in [models."closed"].')


async def test_embeddings(settings: Settings) -> None:
    line = (await examine(settings))["embeddings"]
    assert line.startswith("warn file search will work by text alone; set THREADMILL_EMBEDDING_MOD")
    line = (await examine(settings, embedding_model="embedder"))["embeddings"]
    assert line.startswith("ok embedder has 64 dimensions and took 0.")
    line = (await examine(settings, embedding_model="embedder", model_base_url=None))["embeddings"]
    assert line.startswith("FAIL There is no endpoint for embedder.")


async def test_an_endpoint_that_does_not_heed_the_dimensions(settings: Settings) -> None:
    body = {"data": [{"index": 0, "embedding": [0.6, 0.8]}]}
    async with answering(lambda request: web.json_response(body)) as url:
        report = await examine(
            settings, embedding_base_url=url, embedding_model="embedder", embedding_dimensions=512
        )
    assert report["embeddings"].startswith("FAIL")
    assert "512 were expected" in report["embeddings"]
    assert report["embeddings"].endswith("_DIMENSIONS.")


# --- the machine ---


async def test_tokenizer_files_that_are_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    line = (await examine(settings))["tokenizer"]
    assert line.startswith("warn token counts are estimates")
    assert line.endswith(f"and copy the file to {short_tmp}")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    line = (await examine(settings))["tokenizer"]
    assert line.endswith(f"and copy the file to {settings.data_dir}/tiktoken")


async def test_tokenizer_files_that_are_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = tiktoken.Encoding(
        "tiny", pat_str=".", mergeable_ranks={bytes([n]): n for n in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    assert (await examine(settings))["tokenizer"].startswith("ok o200k_base is in")


async def test_a_machine_without_docker(settings: Settings, short_tmp: Path) -> None:
    report = await examine(settings)
    assert report["docker"] == (
        "warn code_interpreter will not work: no Docker engine at"
        f" unix://{short_tmp}/nobody.sock (there is no such socket). Start it, or set DOCKER_HOST."
    )
    assert report["image"].startswith("- threadmill-sandbox:latest was not looked for")


async def test_engines_that_are_named_must_be_there(settings: Settings, short_tmp: Path) -> None:
    (short_tmp / "dead.sock").touch()
    hosts = [
        f"unix://{short_tmp}/dead.sock",
        "tcp://127.0.0.1:1",
        f"tcp://me:{PASSWORD}@127.0.0.1:1",
        f"ssh://me:{PASSWORD}@127.0.0.1",
    ]
    lines = (await examine(settings, docker_hosts=hosts)).all("docker")
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("FAIL code_interpreter will not work")
        assert line.endswith("Start it, or set THREADMILL_DOCKER_HOSTS.")
    assert "nobody listens there" in lines[0]
    assert "me@127.0.0.1" in lines[2]


@asynccontextmanager
async def engine(socket: Path, protocol: str | None) -> AsyncIterator[str]:
    """The host of something that answers like a Docker engine, as far as doctor asks. Its image
    speaks that protocol; None: it has none."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path.endswith("/version"):
            return web.json_response({"Version": "28.0.1", "ApiVersion": "1.48"})
        if request.path.endswith("/info"):
            return web.json_response({"ID": "an engine", "ServerVersion": "28.0.1"})
        if protocol is not None and request.path.endswith("/threadmill-sandbox:latest/json"):
            return web.json_response({"Config": {"Labels": {"threadmill.protocol": protocol}}})
        return web.json_response({"message": "No such image"}, status=404)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    yield f"unix://{socket}"
    await runner.cleanup()


async def test_each_engine_is_asked_for_the_image(settings: Settings, short_tmp: Path) -> None:
    async with (
        engine(short_tmp / "with.sock", PROTOCOL) as complete,
        engine(short_tmp / "old.sock", "0") as outdated,
        engine(short_tmp / "without.sock", None) as empty,
    ):
        report = await examine(settings, docker_hosts=[complete, outdated, empty])
    assert report.all("docker") == [
        f"ok engine 28.0.1 at {complete}",
        f"ok engine 28.0.1 at {outdated}",
        f"ok engine 28.0.1 at {empty}",
    ]
    assert report.all("image") == [
        f"ok threadmill-sandbox:latest is on {complete}",
        f"FAIL code_interpreter will not work at {outdated}: its image threadmill-sandbox:latest"
        " was built by another version; type: threadmill sandbox build",
        f"FAIL code_interpreter will not work at {empty}: it has no image"
        " threadmill-sandbox:latest; type: threadmill sandbox build",
    ]


@pytest.mark.skipif(
    not os.path.exists(docker.LOCAL_HOST.removeprefix("unix://")), reason="needs Docker"
)
async def test_a_real_engine(settings: Settings) -> None:
    report = await examine(settings, docker_hosts=[docker.LOCAL_HOST])
    assert report["docker"].startswith("ok engine ")


async def test_a_folder_for_files_is_tried(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for _ in range(2):  # nothing is made by asking
        assert (await examine(settings))["files"] == f"ok {folder} will be made"
    os.mkdir(folder)
    line = (await examine(settings))["files"]
    assert line.startswith(f"ok file://{folder} can be written to, took 0.")
    assert os.listdir(folder) == []


async def test_a_folder_for_files_that_cannot_be_written_to(
    settings: Settings, short_tmp: Path
) -> None:
    os.chmod(short_tmp, 0o755)
    os.mkdir(short_tmp / "folder", mode=0o555)
    (short_tmp / "file").touch()
    for path in ("folder", "file", "file/below"):
        with nobody():
            line = (await examine(settings, blob_url=f"file://{short_tmp}/{path}"))["files"]
        assert line.startswith("FAIL")
        assert line.endswith(
            "Make it a folder that this user may write to, or set THREADMILL_BLOB_URL."
        )


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write everywhere; tests are run by root in containers."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


async def test_the_disk_of_a_folder_that_is_not_there_yet(
    settings: Settings, tmp_path: Path
) -> None:
    line = (await examine(settings, data_dir=tmp_path / "later" / "on"))["disk"]
    assert line.endswith(f"GB are free in {tmp_path}")
