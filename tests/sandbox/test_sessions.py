"""Which thread has which container: on a real engine."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from processes import Process, launcher
from runs.wire import eventually
from sandbox.yard import Yard, hold, let_go, run, said
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.sandbox.session import CellEnd, FileRefused, KnownFile, SandboxAway, Session
from threadmill.sandbox.sessions import Sandboxes
from threadmill.store import sandboxes as rows
from threadmill.store.database import Database

SWALLOWS = """
while True:
    try:
        while True: pass
    except KeyboardInterrupt: pass
"""


CELL_OK = CellEnd("ok")
LOOPBACK = IPv4Address("127.0.0.1")


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


# --- a session ---


async def test_a_cell_says_what_it_prints_its_value_and_its_error(yard: Yard) -> None:
    session = await hold(await yard.open(), await yard.thread())
    assert session.is_fresh
    assert await run(session, "x = 41\nprint('so')\nx + 1") == (CELL_OK, "so\n42\n", 0)
    end, text, _ = await run(session, "1 / 0")
    assert end.status == "error"
    assert "ZeroDivisionError" in text
    chart = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
    assert (await run(session, chart))[2] == 1
    end, text, _ = await run(session, "print('before')\nwhile True: pass", timeout_s=0.5)
    assert (end.status, end.restarted, text.startswith("before\n")) == ("timeout", False, True)
    assert await said(session, "x") == "41"


async def test_files_go_in_and_out(yard: Yard) -> None:
    session = await hold(await yard.open(), await yard.thread())
    large = bytes(range(256)) * 5000
    await session.put("file-a", "sales.csv", pieces(b"a,b\n", b"1,2\n"))
    await session.put("file-b", None, pieces(large))
    await session.put("file-c", "empty.txt", pieces())
    read = "[open(f'/mnt/data/{n}').read() for n in ('file-a', 'sales.csv', 'empty.txt')]"
    assert await said(session, read) == "['a,b\\n1,2\\n', 'a,b\\n1,2\\n', '']"
    await said(session, "import os; os.makedirs('deep/er'); open('deep/er/ö.txt', 'w').write('x')")
    listed = {entry.name: entry.size for entry in await session.list()}
    assert listed == {"file-a": 8, "file-b": len(large), "file-c": 0, "deep/er/ö.txt": 1}
    assert b"".join([piece async for piece in session.get("file-b", len(large))]) == large
    assert [piece async for piece in session.get("deep/er/ö.txt", 1)] == [b"x"]
    for name, max_bytes in (("file-b", 100), ("none", 100), ("../etc/passwd", 100), ("deep", 9)):
        with pytest.raises(FileRefused):
            await anext(session.get(name, max_bytes))
    with pytest.raises(FileRefused):
        await session.put("../x", None, pieces(b"x"))
    # Left in the middle, a file does not get in the way of what comes next.
    fetched = session.get("file-b", len(large))
    await anext(fetched)
    await fetched.aclose()  # type: ignore[attr-defined]
    assert await said(session, "'next'") == "'next'"


async def test_a_full_disk_refuses_a_file_and_goes_on(yard: Yard) -> None:
    one = await yard.open(sandbox_disk_max_bytes=2 * 1024**2)
    session = await hold(one, await yard.thread())
    with pytest.raises(FileRefused, match=r"No space left|File too large"):
        await session.put("file-a", None, pieces(b"x" * 1024**2, b"x" * 1024**2, b"x" * 1024**2))
    assert await session.list() == []
    await session.put("file-b", None, pieces(b"fits"))


async def test_nothing_gets_out_and_nothing_outside_can_be_written(yard: Yard) -> None:
    session = await hold(await yard.open(), await yard.thread())
    code = """
import os, socket
def tried(what):
    try: what(); return 'done'
    except OSError as fault: return fault.strerror
[tried(lambda: socket.create_connection(('1.1.1.1', 53), 1)), tried(lambda: open('/x', 'w')),
 tried(lambda: open('/etc/x', 'w')), tried(lambda: open('/opt/venv/x', 'w')), os.getuid(),
 sorted(os.listdir('/sys/class/net'))]
"""
    read_only = "'Read-only file system'"
    expected = f"['Network is unreachable', {', '.join([read_only] * 3)}, 65534, ['lo']]"
    assert " ".join((await said(session, code)).split()) == expected


async def test_a_cancelled_cell_has_ended_within_2_seconds(yard: Yard) -> None:
    """Once of three times: the machine may have been busy with something else."""
    session = await hold(await yard.open(), await yard.thread())

    async def cancelled_within_s(code: str) -> float:
        begun = asyncio.Event()
        cell = asyncio.create_task(
            session.run(
                f"print('begun')\n{code}",
                timeout_s=60,
                on_output=lambda _: begun.set(),
            )
        )
        await begun.wait()
        cancelled = time.monotonic()
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        took_s = time.monotonic() - cancelled
        assert not session.is_broken
        return took_s

    for code, survives in (("while True: pass", True), (SWALLOWS, False)):
        await said(session, "kept = 1")
        assert min([await cancelled_within_s(code) for _ in range(3)]) < 2
        assert ("'kept'" in await said(session, "list(globals())")) is survives


async def test_a_session_at_rest_is_paused_and_wakes_up(yard: Yard) -> None:
    one = await yard.open()
    session = await hold(one, await yard.thread())
    await said(session, "x = 1")
    assert yard.status(session.container) == "running"

    async def is_paused() -> bool:
        return yard.status(session.container) == "paused"

    await eventually(is_paused)
    assert await said(session, "x") == "1"
    await let_go(one, session)
    assert await is_paused()


# --- whose it is ---


async def test_state_is_kept_from_run_to_run(yard: Yard) -> None:
    one, thread = await yard.open(), await yard.thread()
    session = await hold(one, thread)
    await said(session, "x = 41; open('kept.txt', 'w').write('y')")
    known = KnownFile("file-a", size=1, mtime_ns=2, inode=3, is_put=True)
    session.files["kept.txt"] = known
    await let_go(one, session)
    again = await hold(one, thread)
    assert (again.container, again.is_fresh) == (session.container, False)
    assert again.files == {"kept.txt": known}
    assert await said(again, "x, open('kept.txt').read()") == "(41, 'y')"


async def test_two_threads_do_not_see_each_other(yard: Yard) -> None:
    one = await yard.open()
    first, second = await asyncio.gather(*[hold(one, await yard.thread()) for _ in range(2)])
    await said(first, "secret = 1; open('secret.txt', 'w').write('1')")
    assert await said(second, "import os; os.listdir(), 'secret' in globals()") == "([], False)"
    assert first.container != second.container


async def test_another_process_goes_on_with_a_session(yard: Yard) -> None:
    one, two, thread = await yard.open("one"), await yard.open("two"), await yard.thread()
    session = await hold(one, thread)
    await said(session, "x = 1")
    await one.release(session)  # it may still be on its way to being paused
    session = await hold(two, thread)
    assert not session.is_fresh
    assert await said(session, "x += 1; x") == "2"
    await let_go(two, session)
    session = await hold(one, thread)
    assert await said(session, "x") == "2"


async def test_of_two_processes_one_has_the_session_and_the_other_waits(yard: Yard) -> None:
    one, two, thread = await yard.open("one"), await yard.open("two"), await yard.thread()
    taken: list[Sandboxes] = []

    async def use(holder: Sandboxes) -> None:
        session = await hold(holder, thread)
        taken.append(holder)
        before = len(taken)
        await said(session, "n = globals().get('n', 0) + 1")
        await asyncio.sleep(0.3)
        assert len(taken) == before  # nobody else came in
        await holder.release(session)

    await asyncio.gather(*(use(holder) for holder in (one, two, one, two)))
    assert len(taken) == 4
    assert len(await yard.rows()) == 1
    await yard.until(containers=1)  # what was made for the losers is gone
    assert await said(await hold(one, thread), "n") == "4"


@pytest.mark.parametrize("running", ["", "import time; time.sleep(60)", SWALLOWS])
async def test_a_session_of_a_dead_process_is_taken_over(yard: Yard, running: str) -> None:
    one, two, thread = await yard.open("one"), await yard.open("two"), await yard.thread()
    session = await hold(one, thread)
    await said(session, "x = 1")
    session.files["a"] = KnownFile(None, 1, 1, 1, is_put=False)
    await one.save_files(session)
    if running:
        begun = asyncio.Event()
        cell = asyncio.create_task(
            session.run(f"print(1)\n{running}", timeout_s=90, on_output=lambda _: begun.set())
        )
        await begun.wait()
        assert session._attachment is not None
        session._attachment._writer.transport.abort()  # as when its process is killed
        assert (await cell).status == "died"
    await yard.dies("one")
    taken = await hold(two, thread)
    assert taken.container == session.container
    survives = running != SWALLOWS
    assert taken.is_fresh is not survives
    assert list(taken.files) == (["a"] if survives else [])
    assert ("'x'" in await said(taken, "list(globals())")) is survives


async def test_a_holder_that_has_lost_its_run_is_not_waited_for_for_ever(yard: Yard) -> None:
    one, thread = await yard.open("one"), await yard.thread()
    two = await yard.open("two", run_lease_s=0.1)
    lost = await hold(one, thread)
    session = await hold(two, thread)  # 5 s and the lease
    assert session.container != lost.container
    assert session.is_fresh
    assert (await run(lost, "1"))[0].status == "died"
    await let_go(one, lost)
    assert await said(session, "1") == "1"
    assert [row[:2] for row in await yard.rows()] == [("two", True)]


# --- what breaks ---


async def test_a_container_that_is_gone_is_replaced(yard: Yard) -> None:
    one, thread = await yard.open(), await yard.thread()
    session = await hold(one, thread)
    await let_go(one, session)
    yard.kill(session.container)
    session = await hold(one, thread)
    assert session.is_fresh
    assert session.files == {}
    yard.kill(session.container)
    assert (await run(session, "1"))[0].status == "died"  # between cells
    with pytest.raises(SandboxAway):
        await run(session, "1")
    await let_go(one, session)
    session = await hold(one, thread)
    begun = asyncio.Event()
    cell = asyncio.create_task(
        session.run(
            "import time; print('begun'); time.sleep(60)",
            timeout_s=90,
            on_output=lambda _: begun.set(),
        )
    )
    await begun.wait()
    yard.kill(session.container)  # during one
    end = await cell
    assert (end.status, end.restarted, session.is_broken) == ("died", True, True)
    await let_go(one, session)
    assert await said(await hold(one, thread), "1") == "1"


PREFACE = """
import json, os, struct, sys, time
def frame(header, body=b''):
    header = json.dumps(header).encode()
    return struct.pack('>II', len(header), len(body)) + header + body
def say(written):
    while written: written = written[os.write(1, written):]
def hear():
    header_bytes, body_bytes = struct.unpack('>II', os.read(0, 8))
    header = json.loads(os.read(0, header_bytes)) if header_bytes else {}
    if body_bytes: os.read(0, body_bytes)
    return header
say(frame({'op': 'ready'}))
"""


@pytest.mark.parametrize(
    "program",
    [
        "hear(); say(b'garbage' * 100000); time.sleep(60)",
        "hear(); say(struct.pack('>II', 2**31, 2**31) + b'x' * 2**20); time.sleep(60)",
        "hear(); say(frame({'op': 'open', 'id': 1})); time.sleep(60)",
        "hear(); say(struct.pack('>II', 60000, 0) + b'[' * 60000); time.sleep(60)",
        "hear(); os._exit(0)",
        # Well-formed, and for nobody:
        "id = hear()['id']\nwhile True: say(frame({'op': 'done', 'id': id - 1, 'status': 'ok'}))",
        # For the cell, and without end:
        "id = hear()['id']\n"
        "piece = frame({'op': 'text', 'id': id, 'stream': 'stdout'}, b'x' * 2**20)\n"
        "while True: say(piece)",
        "id = hear()['id']\n"
        "png = bytes([137]) + b'PNG\\r\\n' + bytes([26]) + b'\\n' + b'x' * 2**19\n"
        "for n in range(10**9):\n"
        "    say(frame({'op': 'image', 'id': id, 'image': n, 'at': 0, 'last': True,"
        " 'format': 'png'}, png))",
        "id = hear()['id']\n"
        "for n in range(10**9):\n"
        "    say(frame({'op': 'image', 'id': id, 'image': 0, 'at': n * 2**20, 'last': False,"
        " 'format': 'png'}, b'x' * 2**20))",
    ],
)
async def test_a_driver_that_means_harm_ends_its_session_and_nothing_else(
    yard: Yard, program: str
) -> None:
    thread = await yard.thread()
    good = await yard.open("good")
    other = await hold(good, await yard.thread())
    with yard.image(PREFACE + program) as image:
        one = await yard.open("one", sandbox_image=image)
        session = await hold(one, thread)
        memory_before = psutil.Process().memory_info().rss
        cell = asyncio.create_task(run(session, "1", timeout_s=5))
        while not cell.done():
            assert await said(other, "1 + 1") == "2"  # whoever else is there is served
            await asyncio.sleep(0.1)
        end, text, images = await cell
        assert (end.status, session.is_broken) == ("died", True)
        assert len(text) <= 2 * 1024**2
        assert images <= 128
        assert psutil.Process().memory_info().rss - memory_before < 200 * 1024**2
        await let_go(one, session)
    assert await said(await hold(good, thread), "2 + 2") == "4"


async def test_forged_answers_to_requests_for_files(yard: Yard) -> None:
    answers = """
while True:
    request = hear(); op, id = request['op'], request['id']
    if op == 'list':
        names = ['good', '../up', '/abs', 'a//b', 'nul\\0', 'line\\n', 'x' * 5000, 'neg']
        files = [dict(name=n, size=1, mtime_ns=1, inode=1) for n in names]
        files[-1]['size'] = -1
        say(frame({'op': 'files', 'id': id}, json.dumps(files).encode()))
    elif op == 'get':
        say(frame({'op': 'data', 'id': id, 'at': 0, 'last': False}, b'x' * 1000))
        say(frame({'op': 'data', 'id': id, 'at': 1000, 'last': False}, b'x' * 1000))
"""
    with yard.image(PREFACE + answers) as image:
        one = await yard.open(sandbox_image=image)
        session = await hold(one, await yard.thread())
        assert [entry.name for entry in await session.list()] == ["good"]
        fetched = session.get("good", 1500)
        assert len(await anext(fetched)) == 1000
        with pytest.raises(SandboxAway):
            await anext(fetched)
        assert session.is_broken
        await let_go(one, session)


async def test_a_container_that_is_never_ready_is_removed(yard: Yard) -> None:
    with yard.image("print('Traceback (most recent call last):', flush=True)") as image:
        one = await yard.open(sandbox_image=image)
        with pytest.raises(SandboxAway, match="could not be started"):
            await hold(one, await yard.thread())
        await one.until_quiet()
        assert await yard.containers() == []
    assert await yard.rows() == []


async def test_without_an_engine_it_is_said_what_is_missing(
    yard: Yard,
) -> None:
    nowhere = await yard.open("nowhere", docker_hosts=["unix:///nonexistent/docker.sock"])
    with pytest.raises(SandboxAway, match=r"no such socket.*threadmill doctor"):
        await hold(nowhere, await yard.thread())
    imageless = await yard.open("imageless", sandbox_image="no-such-image:latest")
    with pytest.raises(SandboxAway, match="no image no-such-image:latest; type: threadmill"):
        await hold(imageless, await yard.thread())
    wrong = await yard.open("wrong", sandbox_runtime="no-such-runtime")
    with pytest.raises(SandboxAway, match="no-such-runtime"):
        await hold(wrong, await yard.thread())


class Wire:
    """A way to the engine over TCP that can be cut, or fall silent."""

    def __init__(self, host: str, tls: ssl.SSLContext | None = None) -> None:
        self._path = host.removeprefix("unix://")
        self._tls = tls
        self._is_silent = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Wire":
        await self.mend(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    @property
    def host(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def mend(self, port: int) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fall_silent(self) -> None:
        self._is_silent.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, theirs[1]]
        for one, other in ((reader, theirs[1]), (theirs[0], writer)):
            task = asyncio.create_task(self._carry(one, other))
            self._tasks.add(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                if not self._is_silent.is_set():
                    writer.write(piece)
                    await writer.drain()
        writer.close()


async def test_an_engine_over_tcp_that_goes_away_and_comes_back(yard: Yard) -> None:
    thread = await yard.thread()
    async with Wire(yard.host) as wire:
        one = await yard.open(docker_hosts=[wire.host])
        session = await hold(one, thread)
        await said(session, "x = 1")
        await let_go(one, session)
        session = await hold(one, thread)
        assert await said(session, "x") == "1"
        await let_go(one, session)
        await wire.cut()
        with pytest.raises(SandboxAway):
            await hold(one, thread)
        with pytest.raises(SandboxAway):
            await hold(one, await yard.thread())
        await wire.mend(wire.port)

        async def is_back() -> bool:
            try:
                session = await hold(one, thread)
            except SandboxAway:
                return False
            assert await said(session, "x") == "1"  # it was not given up
            await let_go(one, session)
            return True

        await eventually(is_back)
        await one.stop()


async def test_an_engine_over_tls(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables that Docker's own client goes by."""
    new_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    async with Wire(yard.host, tls) as wire:
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        one = await yard.open(docker_hosts=[wire.host])
        session = await hold(one, await yard.thread())
        await session.put("file-a", None, pieces(b"x" * 3 * 1024**2))
        assert len(await said(session, "print('y' * 500_000)")) == 500_000
        got = [piece async for piece in session.get("file-a", 4 * 1024**2)]
        assert sum(map(len, got)) == 3 * 1024**2
        await one.stop()
        monkeypatch.delenv("DOCKER_TLS_VERIFY")
        monkeypatch.delenv("DOCKER_CERT_PATH")
        stranger = await yard.open("stranger", docker_hosts=[wire.host])
        with pytest.raises(SandboxAway):
            await hold(stranger, await yard.thread())


def new_certificate(folder: Path) -> None:
    """One that signs itself and serves both sides, under the names that Docker looks for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    (folder / "ca.pem").write_bytes(certificate)
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


async def test_an_engine_that_does_not_answer_is_not_waited_for_for_ever(yard: Yard) -> None:
    async with Wire(yard.host) as wire:
        one = await yard.open(docker_hosts=[wire.host], sandbox_engine_timeout_s=4)
        session = await hold(one, await yard.thread())
        wire.fall_silent()
        begun = time.monotonic()
        with pytest.raises(SandboxAway):
            await hold(one, await yard.thread())
        await let_go(one, session)
        assert time.monotonic() - begun < 20  # which is what it waits for by default
    await yard.sweep()


async def test_an_engine_that_is_away_is_passed_over(yard: Yard) -> None:
    """There is one engine here, which by two addresses is the same."""
    async with Wire(yard.host) as wire:
        hosts = ["unix:///nonexistent/docker.sock", wire.host, yard.host]
        one = await yard.open(docker_hosts=hosts)
        thread = await yard.thread()
        session = await hold(one, thread)
        await said(session, "x = 1")
        await let_go(one, session)
        await wire.cut()
        session = await hold(one, thread)
        assert await said(session, "x") == "1"


# --- how many there are ---


async def test_a_warm_container_is_ready_and_replaced_when_it_is_taken(yard: Yard) -> None:
    one = await yard.open(sandbox_warm_sessions=1)
    warming = asyncio.create_task(one.keep_warm())
    await yard.until(containers=1)
    (warm,) = await yard.containers()

    async def is_warm() -> bool:
        return yard.status(warm) == "paused"

    await eventually(is_warm)
    await one.sweep_once()
    assert await yard.containers() == [warm]
    session = await hold(one, await yard.thread())
    assert session.container == warm
    assert await said(session, "1") == "1"
    await yard.until(containers=2)
    warming.cancel()


async def test_a_warm_container_that_was_killed_does_not_matter(yard: Yard) -> None:
    one = await yard.open(sandbox_warm_sessions=1)
    warming = asyncio.create_task(one.keep_warm())
    await yard.until(containers=1)
    (warm,) = await yard.containers()

    async def is_warm() -> bool:
        return yard.status(warm) == "paused"

    await eventually(is_warm)
    yard.kill(warm)
    assert await said(await hold(one, await yard.thread()), "1") == "1"
    warming.cancel()


async def test_on_a_full_engine_the_session_idle_for_longest_makes_room(yard: Yard) -> None:
    one = await yard.open(sandbox_max_sessions=2)
    threads = [await yard.thread() for _ in range(3)]
    for thread in threads[:2]:
        session = await hold(one, thread)
        await said(session, "x = 1")
        await let_go(one, session)
    session = await hold(one, threads[0])  # the other one is idle for longer now
    await let_go(one, session)
    await hold(one, threads[2])
    assert len(await yard.containers()) == 2
    first = await hold(one, threads[0])
    assert not first.is_fresh


async def test_processes_that_create_at_once_stay_below_the_limit_together(yard: Yard) -> None:
    limits = {"sandbox_max_sessions": 3, "sandbox_queue_timeout_s": 0.1}
    processes = [await yard.open(f"process {n}", **limits) for n in range(4)] * 2

    async def take(one: Sandboxes, thread: str) -> Session | None:
        with suppress(SandboxAway):
            return await hold(one, thread)
        return None

    for _ in range(3):  # from the second time on idle ones have to go first
        threads = [await yard.thread() for _ in processes]
        taken = await asyncio.gather(*map(take, processes, threads))
        assert len(await yard.containers()) == 3
        held = [(one, session) for one, session in zip(processes, taken, strict=True) if session]
        assert len(held) == 3
        await asyncio.gather(*(let_go(one, session) for one, session in held))


async def test_whoever_finds_all_busy_waits_for_a_while(yard: Yard) -> None:
    one = await yard.open(sandbox_max_sessions=1, sandbox_max_waiting=1, sandbox_queue_timeout_s=30)
    session = await hold(one, await yard.thread())
    waiting = asyncio.create_task(hold(one, await yard.thread()))
    await asyncio.sleep(1)
    with pytest.raises(SandboxAway, match="All sandboxes are busy"):  # one may wait
        await hold(one, await yard.thread())
    assert not waiting.done()
    await one.release(session)
    session = await waiting
    assert await said(session, "1") == "1"
    hasty = await yard.open("hasty", sandbox_max_sessions=1, sandbox_queue_timeout_s=0.3)
    with pytest.raises(SandboxAway, match="All sandboxes are busy"):
        await hold(hasty, await yard.thread())
    # Who gives up waiting is in nobody's way.
    waiting = asyncio.create_task(hold(one, await yard.thread()))
    await asyncio.sleep(0.5)
    waiting.cancel()
    await asyncio.wait([waiting])
    await let_go(one, session)
    assert await said(await hold(one, await yard.thread()), "1") == "1"
    assert len(await yard.containers()) == 1


async def test_a_run_that_is_cancelled_while_its_container_starts_leaves_none(yard: Yard) -> None:
    one = await yard.open()
    for wait_s in (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        starting = asyncio.create_task(hold(one, await yard.thread()))
        await asyncio.sleep(wait_s)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            break  # this machine is faster
        await one.until_quiet()
        assert await yard.containers() == []
        assert await yard.rows() == []


async def test_eight_threads_at_once(yard: Yard) -> None:
    one = await yard.open()

    async def use(thread: str) -> str:
        session = await hold(one, thread)
        text = await said(session, f"'{thread}'")
        await one.release(session)
        return text

    threads = [await yard.thread() for _ in range(8)]
    assert await asyncio.gather(*map(use, threads)) == [f"'{thread}'" for thread in threads]


# --- the end of it ---


@pytest.mark.parametrize("column", ["used_at", "created_at"])
async def test_what_has_had_its_time_is_swept(yard: Yard, column: str) -> None:
    one = await yard.open()
    old, young = await yard.thread(), await yard.thread()
    held = await hold(one, await yard.thread())
    for thread in (old, young):
        await let_go(one, await hold(one, thread))
    past = f"UPDATE sandbox_sessions SET {column} = now() - interval '2 hours'"
    await yard.execute(f"{past} WHERE thread_id = '{old}' OR is_held")
    await one.sweep_once()
    assert len(await yard.containers()) == 2
    assert not (await hold(one, young)).is_fresh
    assert await said(held, "1") == "1"


async def test_a_session_whose_life_is_over_is_not_used_again(yard: Yard) -> None:
    one = await yard.open(sandbox_lifetime_s=3600)
    thread = await yard.thread()
    await let_go(one, await hold(one, thread))
    await yard.execute("UPDATE sandbox_sessions SET created_at = now() - interval '2 hours'")
    assert (await hold(one, thread)).is_fresh
    assert len(await yard.containers()) == 1
    brief = await yard.open("brief", sandbox_lifetime_s=0.01)
    session = await hold(brief, await yard.thread())
    await asyncio.sleep(0.02)
    await let_go(brief, session)  # it was over while somebody held it
    assert session.container not in await yard.containers()


async def test_the_container_of_a_deleted_thread_is_swept(yard: Yard) -> None:
    one, two, thread = await yard.open("one"), await yard.open("two"), await yard.thread()
    await let_go(one, await hold(one, thread))
    held = await hold(one, thread)
    await yard.execute(f"DELETE FROM threads WHERE id = '{thread}'")
    await let_go(one, held)
    assert await yard.containers() == []
    thread = await yard.thread()
    await let_go(one, await hold(one, thread))
    await let_go(two, await hold(two, thread))
    await yard.execute(f"DELETE FROM threads WHERE id = '{thread}'")
    await two.sweep_once()  # it leaves to the other what the other has made
    await one.sweep_once()
    assert await yard.containers() == []


async def test_what_a_dead_process_has_left_is_swept_and_nothing_else(yard: Yard) -> None:
    dead, living = await yard.open("dead", sandbox_warm_sessions=1), await yard.open("living")
    warming = asyncio.create_task(dead.keep_warm())
    await yard.until(containers=1)
    await hold(dead, await yard.thread())
    await let_go(dead, await hold(dead, await yard.thread()))
    handed = await yard.thread()
    await let_go(dead, await hold(dead, handed))
    used = await hold(living, handed)
    await let_go(living, await hold(living, await yard.thread()))
    await living.sweep_once()
    warming.cancel()
    assert len(await yard.containers()) >= 4
    await yard.dies("dead")
    await living.sweep_once()
    assert len(await yard.containers()) == 2
    assert {row[0] for row in await yard.rows()} == {"living"}
    assert await said(used, "1") == "1"


async def test_another_installation_is_left_alone(yard: Yard) -> None:
    one = await yard.open()
    await let_go(one, await hold(one, await yard.thread()))
    with yard._client() as client:
        other = client.create_container(
            yard.settings.sandbox_image,
            labels={"threadmill.installation": "another", "threadmill.owner": "nobody"},
        )["Id"]
        try:
            await one.sweep_once()
            assert client.inspect_container(other)["Id"] == other
        finally:
            client.remove_container(other, force=True)


async def test_a_row_without_its_container_is_forgotten(yard: Yard) -> None:
    one = await yard.open()
    session = await hold(one, await yard.thread())
    await let_go(one, session)
    yard.kill(session.container)
    await one.sweep_once()
    assert await yard.rows() == []


async def test_a_stray_hold_of_our_own_is_ended(yard: Yard, database: Database) -> None:
    """As when the answer to the claim was lost."""
    one, thread = await yard.open(), await yard.thread()
    await let_go(one, await hold(one, thread))
    async with database.connection() as connection:
        assert await rows.claim(connection, thread, "one")
    await one.sweep_once()
    assert len(await yard.rows()) == 1  # somebody may be about to use it
    await yard.execute("UPDATE sandbox_sessions SET used_at = now() - interval '2 minutes'")
    await one.sweep_once()
    assert await yard.rows() == []
    assert await yard.containers() == []


async def test_a_process_that_stops_hands_its_sessions_over(yard: Yard) -> None:
    one, two, thread = await yard.open("one"), await yard.open("two"), await yard.thread()
    session = await hold(one, thread)
    await said(session, "x = 1")
    await one.release(session)
    await one.stop()
    await yard.dies("one")
    assert [row[:2] for row in await yard.rows()] == [(None, False)]
    await two.sweep_once()
    session = await hold(two, thread)
    assert await said(session, "x") == "1"
    await two.release(session)
    await two.stop()  # nobody is left
    assert await yard.rows() == []
    assert await yard.containers() == []
    with pytest.raises(SandboxAway, match="stopping"):
        await hold(two, thread)


async def test_of_processes_that_stop_together_nothing_is_left(yard: Yard) -> None:
    """None hands its sessions over to another that is about to be gone as well."""
    names = [f"process {n}" for n in range(5)]
    stopping = [await yard.open(name) for name in names]
    threads = [await yard.thread() for _ in stopping]
    for one, thread in zip(stopping, threads, strict=True):
        await let_go(one, await hold(one, thread))
    await asyncio.gather(*(one.stop() for one in stopping))
    assert await yard.rows() == []
    assert await yard.containers() == []


async def test_of_servers_that_are_stopped_together_nothing_is_left(
    yard: Yard, database_url: str, model: ScriptedModel, tmp_path: Path
) -> None:
    def answer(body: Any) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return Reply(text=["2"])
        return Reply(tool_calls=[ToolCall("code_interpreter", {"code": "1 + 1"})])

    model.answer = answer
    async with launcher(database_url, model, tmp_path) as launch:
        servers = [await launch(THREADMILL_DOCKER_HOSTS=yard.host) for _ in range(3)]
        await asyncio.gather(*(use_code(server) for server in servers))
        assert len(await yard.containers()) == len(servers)
        for server in servers:
            server.signal(15)
        assert [await server.ended() for server in servers] == [0, 0, 0]
        assert await yard.containers() == []
    assert await yard.rows() == []


async def use_code(server: Process) -> None:
    """In a thread of its own, by a run that this very process executes, for it holds its stream."""
    threads = server.client.beta.threads
    assistant = await server.client.beta.assistants.create(
        model="m", tools=[{"type": "code_interpreter"}]
    )
    thread = await threads.create(messages=[{"role": "user", "content": "1 + 1?"}])
    async with threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        await stream.until_done()
        assert stream.current_run is not None
        assert stream.current_run.status == "completed", stream.current_run.last_error


async def test_what_a_killed_server_has_left_is_gone_soon_after_the_next_start(
    yard: Yard, database_url: str, model: ScriptedModel, tmp_path: Path
) -> None:
    warm = {
        "THREADMILL_DOCKER_HOSTS": yard.host,
        "THREADMILL_SANDBOX_WARM_SESSIONS": "1",
    }
    async with launcher(database_url, model, tmp_path) as launch:
        killed = await launch(**warm)
        await yard.until(containers=1)
        left = await yard.containers()
        await killed.dies()
        successor = await launch(**warm)

        async def are_gone() -> bool:
            now = await yard.containers()
            return len(now) == 1 and now != left

        await eventually(are_gone)
        successor.signal(15)
        assert await successor.ended() == 0
        assert await yard.containers() == []
