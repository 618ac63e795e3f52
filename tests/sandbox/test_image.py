"""What is in the image, what its profile of system calls permits, and how it is built."""

import asyncio
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import docker as docker_package
import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from threadmill.sandbox import image
from threadmill.sandbox.docker import image_folder
from threadmill.sandbox.frames import PROTOCOL
from threadmill.settings import Settings

Inside = Callable[..., str]

PROFILE = (image_folder() / "seccomp.json").read_text()

EVERY_PACKAGE = """
import importlib, importlib.metadata, re, sys
wanted = set(sys.argv[1:])
for module, distributions in importlib.metadata.packages_distributions().items():
    named = {re.sub("[-_.]+", "-", one).lower() for one in distributions} & wanted
    if named and module[0] != "_":
        importlib.import_module(module)
        wanted -= named
assert not wanted, wanted
"""

WORK = """
import asyncio, multiprocessing, os, shutil, sqlite3, subprocess, threading
import joblib, numpy, pandas, sklearn.datasets, sklearn.ensemble

X, y = sklearn.datasets.make_classification(200)
sklearn.ensemble.RandomForestClassifier(n_jobs=4).fit(X, y)
assert (numpy.ones((500, 500)) @ numpy.ones((500, 500))).sum() == 500**3
assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(n) for n in (-1, 2)) == [1, 2]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
threads = [threading.Thread(target=os.getpid) for _ in range(20)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert subprocess.check_output(["sh", "-c", "echo fine | cat"]) == b"fine\\n"

async def talk():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    await asyncio.open_connection(*server.sockets[0].getsockname())
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0

asyncio.run(talk())
pandas.DataFrame({"a": [1]}).to_excel("table.xlsx")
assert pandas.read_excel("table.xlsx").shape == (1, 2)
sqlite3.connect("base.db").execute("CREATE TABLE t (a)")
os.mkdir("folder"), os.mkfifo("folder/fifo"), shutil.copy2("table.xlsx", "folder")
shutil.make_archive("archive", "zip", "folder"), shutil.rmtree("folder")
"""

CHART = """
import os, pathlib, shutil
shutil.copytree("/opt/matplotlib", os.environ["MPLCONFIGDIR"])
[fonts] = pathlib.Path(os.environ["MPLCONFIGDIR"]).iterdir()
baked = fonts.stat().st_mtime_ns
import matplotlib.pyplot as pyplot
pyplot.style.use("default")
pyplot.title("Größe Ωμέγα Размер 数据 データ 데이터")
pyplot.savefig("chart.png")
assert fonts.stat().st_mtime_ns == baked, "the list of fonts was made anew"
"""

FORBIDDEN = """
import ctypes, errno, json, platform, socket

libc = ctypes.CDLL(None, use_errno=True)
is_arm = platform.machine() == "aarch64"

def outcome(function, *arguments):
    ctypes.set_errno(0)
    result = function(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "worked"

def call(number, *arguments):
    return outcome(libc.syscall, number, *map(ctypes.c_long, (*arguments, *[0] * 6)[:6]))

def open_socket(*arguments):
    try:
        socket.socket(*arguments).close()
    except OSError as fault:
        return errno.errorcode[fault.errno]
    return "worked"

NEW_USER = 0x10000000
print(json.dumps({
    "ptrace": outcome(libc.ptrace, 0, 0, 0, 0),
    "process_vm_readv": outcome(libc.process_vm_readv, 0, 0, 0, 0, 0, 0),
    "unshare": outcome(libc.unshare, NEW_USER),
    "setns": outcome(libc.setns, 0, 0),
    "mount": outcome(libc.mount, 0, 0, 0, 0, 0),
    "chroot": outcome(libc.chroot, b"/tmp"),
    "personality": outcome(libc.personality, 0x40000),
    "shmget": outcome(libc.shmget, 0, 4096, 0o1600),
    "inotify": outcome(libc.inotify_init1, 0),
    "setxattr": outcome(libc.setxattr, b"/tmp", b"user.a", b"b", 1, 0),
    "clone into a namespace": call(220 if is_arm else 56, NEW_USER | 17),
    "bpf": call(280 if is_arm else 321),
    "keyctl": call(219 if is_arm else 250, 0, -3, 1),
    "add_key": call(217 if is_arm else 248),
    "userfaultfd": call(282 if is_arm else 323, 1),
    "perf_event_open": call(241 if is_arm else 298),
    "seccomp": call(277 if is_arm else 317),
    "open_by_handle_at": call(265 if is_arm else 304),
    "io_uring_setup": call(425),
    "io_uring_enter": call(426),
    "open_tree": call(428),
    "fsopen": call(430),
    "pidfd_getfd": call(438),
    "netlink": open_socket(16, 3),
    "packet": open_socket(17, 3),
    "alg": open_socket(38, 5),
    "vsock": open_socket(40, 1),
    "raw": open_socket(2, 3, 1),
    "multipath": open_socket(2, 1, 262),
}))
"""


@pytest.fixture
def inside(engine: str) -> Iterator[Inside]:
    """Run Python in the image in the way code is run, and hear what it prints."""
    client = docker_package.DockerClient(base_url=engine)

    def run(code: str, *arguments: str, user: str = "65534:65534") -> str:
        printed = client.containers.run(
            Settings().sandbox_image,
            ["-W", "error", "-c", code, *arguments],
            entrypoint=["python"],
            user=user,
            working_dir="/mnt/data",
            network_mode="none",
            read_only=True,
            tmpfs={"/mnt/data": "uid=65534,mode=0700", "/tmp": "noexec"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={PROFILE}"],
            mem_limit="1g",
            pids_limit=256,
            remove=True,
        )
        return str(printed, "utf-8")

    yield run
    client.close()


def test_every_package_that_is_listed_can_be_imported(inside: Inside) -> None:
    listed = (image_folder() / "requirements.in").read_text().split()
    inside(EVERY_PACKAGE, *listed)


def test_threads_processes_and_files_work_under_the_profile(inside: Inside) -> None:
    inside(WORK)


def test_charts_have_the_signs_of_many_scripts(inside: Inside) -> None:
    inside(CHART)


def test_what_the_profile_forbids(inside: Inside) -> None:
    outcomes = orjson.loads(inside(FORBIDDEN))
    assert len(outcomes) == 29
    assert {what: how for what, how in outcomes.items() if how != "EPERM"} == {}


def test_nobody_becomes_root_or_fetches_or_compiles(inside: Inside) -> None:
    look = "find / -xdev -type f -perm /6000; for one in gcc cc curl wget pip; do which $one; done"
    code = f"import subprocess; subprocess.run(['sh', '-c', '{look}'])"
    assert inside(code, user="0:0") == ""


def test_everything_was_compiled_beforehand(inside: Inside) -> None:
    found = inside(
        "import importlib.util, pathlib\n"
        "for root in ('/opt/driver', '/opt/venv'):\n"
        "    for file in pathlib.Path(root).rglob('*.py'):\n"
        "        if not pathlib.Path(importlib.util.cache_from_source(file)).exists():\n"
        "            print(file)"
    )
    assert found == ""


def test_the_image_says_which_protocol_its_driver_speaks() -> None:
    dockerfile = (image_folder() / "Dockerfile").read_text()
    assert re.findall(r'^LABEL threadmill.protocol="(.*)"$', dockerfile, re.MULTILINE) == [PROTOCOL]


# --- building it ---


class Builder:
    """Something that answers like a Docker engine that builds."""

    def __init__(self) -> None:
        self.events: list[dict[str, str]] = []
        self.query: dict[str, str] = {}
        self.files: set[str] = set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.endswith("/version"):
            return web.json_response({"ApiVersion": "1.48"})
        self.query = dict(request.query)
        with tarfile.open(fileobj=io.BytesIO(await request.read())) as context:
            self.files = {member.name for member in context if member.isfile()}
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for event in self.events:
            await response.write(orjson.dumps(event) + b"\n")
        return response


@pytest_asyncio.fixture
async def builder(tmp_path: Path) -> AsyncIterator[tuple[Builder, str]]:
    builder = Builder()
    runner = web.ServerRunner(web.Server(builder.answer))
    await runner.setup()
    with tempfile.TemporaryDirectory() as short:
        await web.UnixSite(runner, f"{short}/engine.sock").start()
        yield builder, f"unix://{short}/engine.sock"
    await runner.cleanup()


async def test_what_is_handed_to_the_engine(
    builder: tuple[Builder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, host = builder
    engine.events = [{"stream": "Step 1/2 : FROM x\n"}, {"stream": "\n"}, {"status": "Pulling"}]
    for name in image._PASSED_ON:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    said: list[str] = []
    await asyncio.to_thread(image.build, host, "an-image:1", "a-base", said.append)
    assert said == ["Step 1/2 : FROM x", "Pulling"]
    assert engine.query["t"] == "an-image:1"
    assert orjson.loads(engine.query["buildargs"]) == {
        "BASE_IMAGE": "a-base",
        "PIP_INDEX_URL": "https://packages.example/simple",
    }
    others = {name for name in engine.files if not name.startswith("driver/")}
    assert others == {"Dockerfile", ".dockerignore", "requirements.txt"}
    assert "driver/__main__.py" in engine.files


async def test_a_build_that_fails_says_why(builder: tuple[Builder, str]) -> None:
    engine, host = builder
    engine.events = [{"stream": "Step 1/2 : FROM x\n"}, {"error": "no such\n registry"}]
    ended = await asyncio.to_thread(sandbox_build, "--host", host)
    assert ended.returncode == 1
    assert ended.stdout == "Step 1/2 : FROM x\n"
    assert ended.stderr == (
        "no such registry\nWhere no registry of images can be reached, type: threadmill sandbox"
        " build --make-base\n"
    )


def test_building_without_an_engine(tmp_path: Path) -> None:
    ended = sandbox_build("--host", f"unix://{tmp_path}/nobody.sock")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"The engine at unix://{tmp_path}/nobody.sock cannot be used: there is no such socket\n"
    )


def test_a_base_cannot_be_made_without_mmdebstrap(tmp_path: Path) -> None:
    ended = sandbox_build("--make-base", PATH=str(tmp_path))
    assert ended.returncode == 1
    assert "apt install mmdebstrap" in ended.stderr


def test_a_base_that_could_not_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\necho 'no mirror' >&2; exit 25\n")
    (tmp_path / "mmdebstrap").chmod(0o755)
    ended = sandbox_build("--make-base", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert ended.returncode == 1
    assert ended.stderr == "no mirror\nThe base could not be made (exit code 25).\n"


def test_a_base_is_given_or_made() -> None:
    ended = sandbox_build("--make-base", "--base", "debian")
    assert ended.returncode == 1
    assert "--base or --make-base" in ended.stderr


def sandbox_build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "threadmill", "sandbox", "build", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
