"""The driver of the sandbox image as a real process, spoken to over pipes, without a container."""

import io
import json
import os
import select
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import psutil
import pytest
from PIL import Image

FOLDER_OF_DRIVER = Path(__file__).parents[2] / "sandbox-image"
PATIENCE_S = 60
MEGABYTE = 1024 * 1024
PNG_START = b"\x89PNG\r\n\x1a\n"


class Ending(dict[str, Any]):
    """The last frame of a cell, and what it said and drew before."""

    def __init__(self, frames: list[tuple[dict[str, Any], bytes]]) -> None:
        super().__init__(frames[-1][0])
        self.frames = frames[:-1]
        self.images: dict[int, bytes] = {}
        for header, body in self.frames:
            if header["op"] == "image":
                before = self.images.get(header["image"], b"")
                assert header["at"] == len(before)
                self.images[header["image"]] = before + body

    def text(self, *streams: str) -> str:
        return b"".join(
            body
            for header, body in self.frames
            if header["op"] == "text" and (not streams or header["stream"] in streams)
        ).decode()


def frame(header: dict[str, Any], body: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack(">II", len(encoded), len(body)) + encoded + body


class Host:
    """The other end of the driver's descriptors."""

    def __init__(self, data: Path, *before: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [*before, sys.executable, "-s", "-m", "driver"],
            cwd=FOLDER_OF_DRIVER,
            env={**os.environ, "SANDBOX_DATA": str(data)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.last_id = 1000
        assert self.receive() == ({"op": "ready"}, b"")
        self.pid = self.ask({"op": "ping"})[0]["pid"]

    def send(self, header: dict[str, Any], body: bytes = b"") -> Any:
        self.last_id += 1
        header = {"id": self.last_id, **header}
        self.send_raw(frame(header, body))
        return header["id"]

    def send_raw(self, data: bytes) -> None:
        assert self.process.stdin
        while data:
            data = data[self.process.stdin.write(data) :]

    def receive(self) -> tuple[dict[str, Any], bytes]:
        header_bytes, body_bytes = struct.unpack(">II", self._read(8))
        assert header_bytes <= 64 * 1024
        assert body_bytes <= MEGABYTE
        return json.loads(self._read(header_bytes)), self._read(body_bytes)

    def _read(self, count: int) -> bytes:
        assert self.process.stdout
        arrived = b""
        while len(arrived) < count:
            readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
            assert readable, "the driver says nothing"
            piece = self.process.stdout.read(count - len(arrived))
            assert piece, "the driver is gone"
            arrived += piece
        return arrived

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        request_id = self.send(header, body)
        answer = self.receive()
        assert answer[0]["id"] == request_id
        return answer

    def begin(self, code: str, timeout_s: float = PATIENCE_S) -> int:
        return self.send({"op": "exec", "timeout_s": timeout_s}, code.encode())

    def end(self, cell_id: int) -> Ending:
        frames = [self.receive()]
        while frames[-1][0]["op"] != "done":
            frames.append(self.receive())
        assert {header["id"] for header, _ in frames} == {cell_id}
        return Ending(frames)

    def run(self, code: str, timeout_s: float = PATIENCE_S) -> Ending:
        return self.end(self.begin(code, timeout_s))

    def begin_and_hear(self, code: str, timeout_s: float = PATIENCE_S) -> int:
        """Run `code`, which has to print when it has got to where the test wants it."""
        cell_id = self.begin(code, timeout_s)
        assert self.receive()[0]["op"] == "text"
        return cell_id

    def renew(self) -> None:
        """Have the Python process killed, in whatever state it is, and another one answer."""
        self.last_id += 1
        # Both at once: a process that is broken may answer before the second comes.
        self.send_raw(
            frame({"op": "exec", "id": self.last_id, "timeout_s": PATIENCE_S}, b"while True: pass")
            + frame({"op": "interrupt", "id": self.last_id, "grace_s": 0}, b"")
        )
        ended = self.end(self.last_id)
        assert (ended["status"], ended["restarted"]) == ("interrupted", True)
        assert self.run("1 + 1").text() == "2\n"

    def put(self, name: str, data: bytes, link: str | None = None) -> str | None:
        pieces = [data[at : at + MEGABYTE] for at in range(0, len(data), MEGABYTE)] or [b""]
        self.last_id += 1
        request = {"op": "put", "id": self.last_id, "name": name, "link": link}
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            self.send({**request, "at": number * MEGABYTE, "last": last}, piece)
        header, _ = self.receive()
        assert header["op"] == "put"
        return header["error"]  # type: ignore[no-any-return]

    def files(self) -> tuple[dict[str, dict[str, Any]], bool]:
        header, body = self.ask({"op": "list"})
        return {entry["name"]: entry for entry in json.loads(body)}, header["truncated"]

    def get(self, name: str, max_bytes: int = 64 * MEGABYTE) -> bytes | str:
        """The file, or why not."""
        self.send({"op": "get", "name": name, "max_bytes": max_bytes})
        data = b""
        while True:
            header, body = self.receive()
            if header.get("error"):
                return str(header["error"])
            assert header["at"] == len(data)
            data += body
            if header["last"]:
                return data

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("data"))
    yield host
    assert host.close() == 0


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """The same driver for all tests: it has to outlive every one of them."""
    yield shared_host
    shared_host.renew()
    for entry in shared_host.data.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@pytest.fixture(scope="module")
def shared_first_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The driver as PID 1 of a namespace, and its folder a disk of one megabyte."""
    namespaces = ("unshare", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*namespaces, "true"], capture_output=True).returncode != 0:
        pytest.skip("no namespaces for a PID 1 here")
    data = tmp_path_factory.mktemp("disk")
    mount = 'mount -t tmpfs -o size=1m none "$SANDBOX_DATA" && exec "$@"'
    host = Host(data, *namespaces, "sh", "-c", mount, "-")
    assert host.pid == 1
    yield host
    assert host.close() == 0


@pytest.fixture
def first_process(shared_first_process: Host) -> Iterator[Host]:
    yield shared_first_process
    shared_first_process.renew()


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


# --- what a notebook does ---


def test_variables_live_from_cell_to_cell(host: Host) -> None:
    ended = host.run("x = 20 + 1")
    assert ended == {
        **{"op": "done", "id": host.last_id, "status": "ok", "restarted": False},
        **{"truncated": False, "detail": None},
    }
    assert ended.frames == []
    assert host.run("x * 2").text("result") == "42\n"
    assert host.run("_ + 1").text("result") == "43\n"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("2 + 2;", ""),
        ("None", ""),
        ("'é' * 2", "'éé'\n"),
        ("import asyncio\nawait asyncio.sleep(0, 'awaited')", "'awaited'\n"),
        ("!echo from a shell", "from a shell\n"),
        ("display('a'); 'b'", "'a'\n'b'\n"),
        ("print('\\ud800')", "\\ud800\n"),
        ("ls = 3\nls", "3\n"),
        ("%who_ls int", "[]\n"),
        ("import os; os.getcwd() == os.environ['SANDBOX_DATA']", "True\n"),
    ],
)
def test_a_cell_shows_what_a_notebook_shows(host: Host, code: str, shown: str) -> None:
    ended = host.run(code)
    assert (ended["status"], ended.text()) == ("ok", shown)


def test_a_table_is_shown_as_text(host: Host) -> None:
    shown = host.run("import pandas\npandas.DataFrame({'a': [1, 2]})").text("result")
    assert shown == f"{pandas.DataFrame({'a': [1, 2]})}\n"


def test_modules_of_the_code_are_found_and_none_of_the_driver(host: Host) -> None:
    assert host.put("driver.py", b"whose = 'mine'") is None
    assert host.run("import driver; driver.whose").text() == "'mine'\n"


def test_output_keeps_its_order(host: Host) -> None:
    code = """
import os, subprocess, sys
print("1")
os.system("echo 2")
print("3")
display(4)
print("5")
os.write(1, b"6\\n")
subprocess.run(["echo", "7"])
print("8", end="")
display(9)
print("10")
11
"""
    for _ in range(5):
        shown = host.run(code).text().split()
        assert shown == ["1", "2", "3", "4", "5", "6", "7", "89", "10", "11"]


def test_text_arrives_while_the_cell_runs(host: Host) -> None:
    cell_id = host.begin("import time\nprint('early', flush=True)\ntime.sleep(60)")
    header, body = host.receive()
    assert (header["stream"], body) == ("stdout", b"early\n")
    host.send({"op": "interrupt", "id": cell_id})
    assert host.end(cell_id)["status"] == "interrupted"


def test_stderr_is_told_from_stdout(host: Host) -> None:
    ended = host.run("import sys\nprint('o')\nprint('e', file=sys.stderr)")
    assert (ended.text("stdout"), ended.text("stderr")) == ("o\n", "e\n")


def test_a_character_may_be_cut_and_half_of_one_does_no_harm(host: Host) -> None:
    code = """
import os, time
os.write(1, b"\\xc3")
time.sleep(0.1)
os.write(1, b"\\xa9\\xff|\\xe2\\x82");
"""
    assert host.run(code).text("stdout") == "é\N{REPLACEMENT CHARACTER}|\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("def f():\n    return 1 / 0\nf()", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("exit()", "SystemExit"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise KeyboardInterrupt('own')", "KeyboardInterrupt: own"),
        ("%nonsense", "UsageError: Line magic function `%nonsense` not found."),
    ],
)
def test_an_error_is_a_traceback_without_colours(host: Host, code: str, last_line: str) -> None:
    ended = host.run(code)
    assert ended["status"] == "error"
    assert not ended["restarted"]
    assert ended.text().strip().splitlines()[-1].strip() == last_line
    assert "\x1b" not in ended.text()


def test_figures_shown_and_left_open_are_images(host: Host) -> None:
    ended = host.run(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); plt.show(); print('between')\n"
        "plt.figure(); plt.plot([2, 1])\n"
        "plt.figure(); plt.plot([2, 1]); 1 / 0"
    )
    kinds = [header.get("stream", header["op"]) for header, _ in ended.frames]
    assert kinds == ["image", "stdout", "error", "image", "image"]
    for png in ended.images.values():
        assert Image.open(io.BytesIO(png)).format == "PNG"
    assert host.run("plt.get_fignums()").text() == "[]\n"


def test_figures_of_another_backend_are_images_too(host: Host) -> None:
    host.run("import matplotlib; matplotlib.use('Agg')\nimport matplotlib.pyplot as plt")
    assert list(host.run("plt.plot([1]); plt.show()").images) == [0]
    assert host.run("len(plt.get_fignums())").text() == "0\n"


def test_pictures_are_images_whatever_they_are_made_of(host: Host) -> None:
    code = """
import io
from IPython.display import Image as Shown
from PIL import Image
red = Image.new("RGB", (3, 2), "red")
display(red)
jpeg = io.BytesIO(); red.save(jpeg, "JPEG")
Shown(jpeg.getvalue())
"""
    ended = host.run(code)
    assert [Image.open(io.BytesIO(png)).size for png in ended.images.values()] == [(3, 2), (3, 2)]
    assert ended.text() == ""


# --- caps ---


def test_a_flood_is_cut_and_the_traceback_behind_it_arrives(host: Host) -> None:
    ended = host.run(
        "for n in range(300_000): print('é' * 20)\nraise ValueError('after ' + 'x' * 10**6)"
    )
    assert (ended["status"], ended["truncated"]) == ("error", True)
    assert MEGABYTE * 0.9 < len(ended.text().encode()) <= MEGABYTE
    assert "ValueError: after" in ended.text("error")
    assert not host.run("print('next')")["truncated"]


@pytest.mark.parametrize(
    "code",
    [
        "'x' * 10**8",
        "for n in range(1000): display('x' * 10**4)",
        "import subprocess; subprocess.run('yes | head -c 30000000', shell=True); None",
        "import sys; sys.stderr.write('x' * 10**7); None",
    ],
)
def test_every_way_of_flooding_is_cut(host: Host, code: str) -> None:
    ended = host.run(code)
    assert (ended["status"], ended["truncated"]) == ("ok", True)
    assert len(ended.text()) <= MEGABYTE


def test_images_are_limited_in_number_and_size(host: Host) -> None:
    host.run(f"png = {PNG_START!r}\ndef show(png): display({{'image/png': png}}, raw=True)")
    ended = host.run("for n in range(25): show(png)")
    assert (len(ended.images), ended["truncated"]) == (20, True)
    ended = host.run("show(png + bytes(17 * 2**20))")
    assert (ended["status"], len(ended.images), ended["truncated"]) == ("ok", 0, True)
    ended = host.run("show(png + bytes(3 * 2**20))")
    assert len(ended.images[0]) == 3 * MEGABYTE + len(PNG_START)
    assert not ended["truncated"]
    assert host.run("show(b'no image')")["truncated"]


def test_a_host_that_does_not_read_holds_up_the_code_not_the_memory(host: Host) -> None:
    flood = f"""
png = {PNG_START!r} + bytes(2**20)
for n in range(20): display({{"image/png": png}}, raw=True)
"""
    before = psutil.Process(host.process.pid).memory_info().rss
    cell_id = host.begin(flood, timeout_s=1)
    time.sleep(2)
    assert psutil.Process(host.process.pid).memory_info().rss - before < 16 * MEGABYTE
    ended = host.end(cell_id)
    assert ended["status"] == "timeout"
    assert len(ended.images) < 20


def test_a_large_file_is_read_as_the_host_takes_it(host: Host) -> None:
    with (host.data / "large").open("wb") as large:
        large.truncate(60 * MEGABYTE)
    before = psutil.Process(host.process.pid).memory_info().rss
    host.send({"op": "get", "name": "large", "max_bytes": 64 * MEGABYTE})
    host.receive()
    time.sleep(0.3)
    assert psutil.Process(host.process.pid).memory_info().rss - before < 16 * MEGABYTE
    while not host.receive()[0]["last"]:
        pass


# --- ending what does not end ---


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import os; os.system('sleep 1000')",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        "try:\n    while True: pass\nexcept KeyboardInterrupt:\n    while True: pass",
        "import threading; threading.Event().wait()",
        "while True: print('flood')",
    ],
)
def test_an_endless_loop_is_interrupted_and_variables_stay(host: Host, loop: str) -> None:
    host.run("x = 5")
    ended = host.run(loop, timeout_s=0.1)
    assert (ended["status"], ended["restarted"]) == ("timeout", False)
    assert host.run("x").text() == "5\n"


DEAF = {
    "catches": """
while True:
    try:
        print("on", flush=True)
        while True: pass
    except KeyboardInterrupt:
        pass
""",
    "catches in a repr": """
class Sticky:
    def __repr__(self):
        while True:
            try:
                print("on", flush=True)
                while True: pass
            except BaseException:
                pass
Sticky()
""",
    "ignores": """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("on", flush=True)
while True: pass
""",
    "blocks": """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("on", flush=True)
while True: pass
""",
    "has a handler that loops": """
import signal
def handle(*_):
    while True: pass
signal.signal(signal.SIGINT, handle)
print("on", flush=True)
while True: pass
""",
    "is in C": """
import itertools, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("on", flush=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, sum(itertools.repeat(1)))
""",
    "is a thread without a main one": """
import ctypes, signal, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)
def work():
    while True: pass
threading.Thread(target=work).start()
print("on", flush=True)
ctypes.CDLL(None).pthread_exit(0)
""",
}


@pytest.mark.parametrize("loop", DEAF.values(), ids=DEAF.keys())
def test_what_does_not_listen_is_killed(host: Host, loop: str) -> None:
    host.run("x = 5")
    cell_id = host.begin(loop)
    assert host.receive()[1] == b"on\n"
    host.send({"op": "interrupt", "id": cell_id, "grace_s": 0.2})
    ended = host.end(cell_id)
    assert (ended["status"], ended["restarted"]) == ("interrupted", True)
    assert "NameError" in host.run("x").text()


def test_a_timeout_kills_after_its_grace(host: Host) -> None:
    started = time.monotonic()
    ended = host.run("import itertools; sum(itertools.repeat(1))", timeout_s=0.1)
    assert time.monotonic() - started > 2
    assert (ended["status"], ended["restarted"]) == ("timeout", True)
    assert ended["detail"] == "The code did not stop; its Python process was killed."


def test_an_interrupt_right_behind_the_cell_is_not_lost(host: Host) -> None:
    host.run("x = 5")
    for _ in range(10):
        cell_id = host.begin("while True: pass")
        host.send({"op": "interrupt", "id": cell_id})
        ended = host.end(cell_id)
        assert (ended["status"], ended["restarted"]) == ("interrupted", False)
    assert host.run("x").text() == "5\n"


def test_an_interrupt_for_a_cell_that_has_ended_is_ignored(host: Host) -> None:
    cell_id = host.begin("1")
    host.end(cell_id)
    running = host.begin_and_hear(
        "import time; print('on', flush=True); time.sleep(0.5); print('end')"
    )
    host.send({"op": "interrupt", "id": cell_id})
    ended = host.end(running)
    assert (ended["status"], ended.text()) == ("ok", "end\n")
    running = host.begin_and_hear("print('on', flush=True)\nwhile True: pass")
    host.send({"op": "interrupt", "id": None})
    assert host.end(running)["status"] == "interrupted"


# --- code that means harm ---


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os; os._exit(3)", "exited with code 3."),
        ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV."),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL."),
        ("import os; os.abort()", "was killed by SIGABRT."),
        ("import os; os.execv('/bin/true', ['true'])", "exited with code 0."),
        ("import os; os.closerange(0, 4096); print(1)", "exited with code 1."),
    ],
)
def test_a_worker_that_dies_says_how_and_is_replaced(host: Host, code: str, detail: str) -> None:
    host.run("x = 5")
    ended = host.run("print('last words')\n" + code)
    assert (ended["status"], ended["restarted"]) == ("died", True)
    assert ended["detail"] == f"The Python process {detail}"
    assert ended.text("stdout") == "last words\n"
    assert "NameError" in host.run("x").text()


def test_a_worker_that_dies_between_cells_is_told_with_the_next(host: Host) -> None:
    host.run("import os, threading; threading.Timer(0.05, os._exit, [7]).start()")
    wait_until(lambda: host.ask({"op": "ping"})[0]["worker"] is None)
    ended = host.run("1")
    assert (ended["status"], ended["restarted"]) == ("ok", True)
    assert ended["detail"] == "The Python process exited with code 7."
    assert not host.run("1")["restarted"]


@pytest.mark.parametrize(
    "code",
    [
        "pid = os.fork()\nif pid: os.waitpid(pid, 0)",
        "pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: 1 / 0",
        "pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: sys.exit()",
        "pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: display('child')",
        "for n in range(4): os.fork()",
    ],
)
def test_a_forked_child_does_not_answer(host: Host, code: str) -> None:
    ended = host.run("import os, sys\nx = os.getpid()\n" + code)
    assert ended["status"] == "ok"
    for _ in range(3):
        assert host.run("x == os.getpid()").text("result") == "True\n"


def test_processes_of_the_code_end_with_its_own(host: Host) -> None:
    host.run(
        "import subprocess\n"
        "one = subprocess.Popen(['sleep', '1000'])\n"
        "subprocess.run('setsid sh -c \"sleep 1000 & sleep 1000\" &', shell=True); None"
    )
    assert host.run("one.poll()").text() == ""
    wait_until(lambda: [child.name() for child in host.children()].count("sleep") == 3)
    host.renew()
    assert len(host.children()) == 1


def test_orphans_are_buried(host: Host) -> None:
    host.run("import os\nfor n in range(30): os.system('(sleep 0.01 &)')")
    wait_until(lambda: len(host.children()) == 1)


def test_output_of_the_background_belongs_to_no_ended_cell(host: Host) -> None:
    host.run("import subprocess; noisy = subprocess.Popen(['yes']); None")
    assert host.run("x = 1")["status"] == "ok"
    assert host.ask({"op": "ping"})[0]["op"] == "pong"
    host.run("noisy.kill()")


def test_closed_streams_are_open_again_in_the_next_cell(host: Host) -> None:
    for code in (
        "import os; os.closerange(0, 3)",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "sys.stdout = sys.stderr = None",
    ):
        host.run(code)
        assert host.run("import sys; print('here')").text() == "here\n", code


FORGED = {
    "a frame for the host": struct.pack(">II", 33, 0) + b'{"op":"done","id":1,"status":"ok"}',
    "an end": struct.pack(">c?I", b"d", False, 2) + b"ok",
    "an end that waits": struct.pack(">c?I", b"d", True, 2) + b"ok",
    "something unknown": struct.pack(">c?I", b"?", True, 2) + b"ok",
    "a length beyond all": struct.pack(">c?I", b"r", False, 2**32 - 1),
    "half a message": struct.pack(">c?I", b"i", False, 2**20) + b"x",
    "noise": bytes(range(256)) * 500,
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_forged_messages_harm_nobody_but_their_cell(host: Host, forged: bytes) -> None:
    code = f"""
import os
forged = bytes.fromhex("{forged.hex()}")
for descriptor in range(3, 1024):
    try:
        os.set_blocking(descriptor, False)
        os.write(descriptor, forged)
    except OSError:
        pass
"""
    host.run(code, timeout_s=1)
    host.renew()
    ended = host.run("print('sound')")
    assert (ended["status"], ended.text()) == ("ok", "sound\n")


@pytest.mark.parametrize(
    "code",
    [
        "import builtins\nfor name in ('print', 'open', 'len', 'isinstance', 'repr', 'str'):\n"
        "    setattr(builtins, name, None)",
        "import os\nos.write = os.read = os.getpid = os.dup2 = None",
        "import struct, signal, threading, sys\nsignal.signal = threading.current_thread = None\n"
        "sys.modules.clear()",
        "get_ipython().channel.send = lambda *_: None",
        "get_ipython().run_cell = None",
        "import gc\nfor thing in gc.get_objects():\n  if isinstance(thing, dict): thing.clear()",
        "import sys\nsys.settrace(lambda *_: 1 / 0)",
    ],
)
def test_what_the_code_breaks_in_its_process_is_whole_in_the_next(host: Host, code: str) -> None:
    host.run(code, timeout_s=0.5)
    host.renew()
    assert host.run("print(len(repr('x')))").text() == "3\n"


def test_threads_may_display_and_leave(host: Host) -> None:
    code = """
import threading
def work(n):
    for _ in range(20): display(n); print(n)
threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
for thread in threads: thread.start()
for n in range(20): display(n)
for thread in threads: thread.join()
"""
    ended = host.run(code)
    assert ended["status"] == "ok"
    assert len(ended.text("result").split()) == 9 * 20


def test_pid_1_outlives_every_signal_of_the_code(first_process: Host) -> None:
    ended = first_process.run(
        "import os, signal\n"
        "for number in range(1, 65):\n"
        "    if number not in (32, 33): os.kill(1, number)\n"
        "print('sent')"
    )
    assert ended.text() == "sent\n"
    ended = first_process.run(
        "import subprocess, time; subprocess.Popen(['sh', '-c', 'kill -9 -1']); time.sleep(60)"
    )
    assert ended["detail"] == "The Python process was killed by SIGKILL."
    assert first_process.ask({"op": "ping"})[0]["pid"] == 1


def test_nobody_forks_away_from_pid_1(first_process: Host) -> None:
    bomb = """
import os, time
print("on", flush=True)
for n in range(6):
    os.fork()
    os.setsid() if os.getpid() != os.getsid(0) else None
while True:
    if os.fork() == 0 and os.fork(): os._exit(0)
    time.sleep(0.01)
"""
    cell_id = first_process.begin_and_hear(bomb)
    time.sleep(0.2)
    first_process.send({"op": "interrupt", "id": cell_id, "grace_s": 0})
    ended = first_process.end(cell_id)
    assert (ended["status"], ended["restarted"]) == ("interrupted", True)
    alive = first_process.run("import os; sum(name.isdigit() for name in os.listdir('/proc'))")
    assert alive.text() == "2\n"


def test_a_full_disk_is_an_answer(first_process: Host) -> None:
    assert first_process.put("large", bytes(3 * MEGABYTE)) == "No space left on device."
    assert first_process.files() == ({}, False)
    assert first_process.put("small", b"fits", "link") is None
    assert first_process.get("small") == b"fits"


# --- files ---


def test_files_go_in_and_come_out(host: Host) -> None:
    data = os.urandom(2 * MEGABYTE + 17)
    assert host.put("file-abc", data, "sales über.csv") is None
    assert host.run(
        "open('sales über.csv', 'rb').read() == open('file-abc', 'rb').read()"
    ).text() == ("True\n")
    assert os.readlink(host.data / "sales über.csv") == "file-abc"
    assert host.get("file-abc") == data
    assert host.put("empty", b"") is None
    assert host.get("empty") == b""
    files, truncated = host.files()
    status = (host.data / "file-abc").stat()
    assert files["file-abc"] == {
        **{"name": "file-abc", "size": len(data)},
        **{"mtime_ns": status.st_mtime_ns, "inode": status.st_ino},
    }
    assert (set(files), truncated) == ({"file-abc", "empty"}, False)
    assert host.put("empty", b"no more") is None
    assert host.get("empty") == b"no more"


def test_a_put_that_is_abandoned_leaves_nothing(host: Host) -> None:
    request = {"op": "put", "name": "half", "link": None, "last": False}
    host.send({**request, "at": 0}, b"first half")
    assert host.put("whole", b"whole") is None
    assert os.listdir(host.data) == ["whole"]
    host.send({**request, "id": 1, "at": 0}, b"first half")
    assert host.ask({**request, "id": 1, "at": 3}, b"wrong")[0]["error"] == (
        "A piece at 3 came after 10 bytes."
    )
    assert os.listdir(host.data) == ["whole"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "x" * 256, "\ud800"])
def test_a_name_that_is_none_is_refused(host: Host, name: str) -> None:
    assert host.put(name, b"x")
    assert host.put("good", b"x", link=name)
    assert os.listdir(host.data) == []
    assert isinstance(host.get(name), str)


def test_what_lies_in_the_way_of_a_file_is_replaced_not_followed(
    host: Host, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    os.symlink(outside, host.data / "a")
    os.symlink("a", host.data / "b")
    os.mkfifo(host.data / "c")
    os.symlink(outside, host.data / "d")
    for name in ("a", "c"):
        assert host.put(name, b"put", "d") is None
        assert host.get(name) == b"put"
    assert stat.S_ISREG((host.data / "c").lstat().st_mode)
    assert outside.read_text() == "untouched"
    assert os.readlink(host.data / "d") == "c"


def test_a_folder_in_the_way_is_refused(host: Host) -> None:
    (host.data / "folder").mkdir()
    (host.data / "folder" / "kept").touch()
    assert host.put("folder", b"x") == "Is a directory."
    assert host.put("file", b"x", link="folder") == "Is a directory."
    assert set(os.listdir(host.data)) == {"folder", "file"}


def test_only_regular_files_come_out(host: Host, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", host.data / "link")
    os.symlink(tmp_path, host.data / "way")
    os.mkfifo(host.data / "fifo")
    (host.data / "folder").mkdir()
    for name in ("link", "way/secret", "folder", "folder/../link", "/etc/passwd"):
        assert isinstance(host.get(name), str), name
    assert host.get("fifo") == "It is not a regular file."
    assert host.get("missing") == "No such file or directory."
    assert host.files() == ({}, False)


def test_a_file_that_is_too_large_does_not_come_out(host: Host) -> None:
    with (host.data / "sparse").open("wb") as sparse:
        sparse.truncate(2**40)
    (host.data / "just").write_bytes(bytes(1000))
    assert host.get("sparse", max_bytes=MEGABYTE) == f"The file is larger than {MEGABYTE} bytes."
    assert host.get("just", max_bytes=999) == "The file is larger than 999 bytes."
    assert host.get("just", max_bytes=1000) == bytes(1000)


def test_a_file_with_a_lease_does_not_keep_the_driver_waiting(host: Host) -> None:
    assert host.put("leased", b"x") is None
    taken = host.run(
        "import fcntl, signal\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "leased = open('leased', 'r+')\nfcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    )
    assert taken["status"] == "ok"
    assert host.get("leased") == "Resource temporarily unavailable."


def test_names_are_listed_as_they_are_or_left_out(host: Host) -> None:
    (host.data / "line\nbreak\x07").write_text("x")
    (host.data / "one" / "two").mkdir(parents=True)
    (host.data / "one" / "two" / "three").write_text("deep")
    assert set(host.files()[0]) == {"line\nbreak\x07", "one/two/three"}
    assert not host.files()[1]
    assert host.get("one/two/three") == b"deep"
    assert host.get("line\nbreak\x07") == b"x"
    (host.data / os.fsdecode(b"\xff\xfe")).write_text("x")
    files, truncated = host.files()
    assert (len(files), truncated) == (2, True)


def test_a_list_ends(host: Host) -> None:
    deep = host.data
    for _ in range(20):
        deep = deep / "d"
        deep.mkdir()
        (deep / "file").touch()
    files, truncated = host.files()
    assert (len(files), truncated) == (7, True)
    for number in range(1100):
        (host.data / f"{number:0250}").touch()
    files, truncated = host.files()
    assert (len(files), truncated) == (1000, True)


# --- requests ---


def test_one_cell_at_a_time(host: Host) -> None:
    running = host.begin_and_hear("import time; print('on', flush=True); time.sleep(60)")
    second = host.begin("1")
    header, _ = host.receive()
    assert (header["id"], header["status"]) == (second, "error")
    assert header["detail"] == "another cell is running"
    assert host.put("meanwhile", b"x") is None
    assert host.get("meanwhile") == b"x"
    host.send({"op": "interrupt", "id": running})
    assert host.end(running)["status"] == "interrupted"


def test_a_request_that_makes_no_sense_is_refused(host: Host) -> None:
    for request in ({"op": "nonsense"}, {"op": "exec"}, {"op": "get", "name": "x"}, {"op": "put"}):
        header, _ = host.ask(request)
        assert header["op"] == "error"
        assert header["error"]


def test_a_frame_beyond_its_caps_ends_the_driver(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.send_raw(struct.pack(">II", 10, MEGABYTE + 1))
    assert host.close() != 0
