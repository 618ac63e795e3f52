"""The same conversations through six generations of the official SDKs, side by side.

    python tests/sdk/matrix/run.py [what names must contain, such as "node" or "1.30"]

Each SDK is installed once, unchanged, into a folder of its own under build/sdk-matrix. They talk to
one server with a scripted model, each with a key and a project of its own.
"""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import replies
import structlog
from pydantic import SecretStr

from threadmill.app import Served, served
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.settings import Settings
from threadmill.store import projects

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / "build" / "sdk-matrix"
TIMEOUT_S = 300  # for all conversations of one SDK

# The oldest Python SDK passes an argument to httpx that httpx 0.28 took away.
PYTHON = {
    "1.30.5": ["openai==1.30.5", "httpx<0.28"],
    "1.109.1": ["openai==1.109.1"],
    "2.54.0": ["openai==2.54.0"],
    "3.51.0": ["openai==3.51.0"],
}
NODE = {"4.104.0": ["openai@4.104.0"], "7.55.0": ["openai@7.55.0"]}


@dataclass
class Sdk:
    name: str
    command: Sequence[str]
    folder: Path
    outcomes: dict[str, str] = field(default_factory=dict)  # by flow: "ok" or "FAILED"
    says: str = ""  # what it wrote about its failures
    exit_status: int | None = None
    took_s: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.exit_status == 0 and set(self.outcomes.values()) == {"ok"}


def main(wanted: str = "") -> int:
    sdks = [sdk for sdk in _install() if wanted in sdk.name]
    started = time.monotonic()
    asyncio.run(_converse(sdks))
    for sdk in sdks:
        if not sdk.is_good:
            print(f"\n--- {sdk.name} ---\n{sdk.says or 'It told of no flow.'}")
    print(f"\n{_table(sdks)}\n\nAll of that took {time.monotonic() - started:.1f} s.")
    return 0 if sdks and all(sdk.is_good for sdk in sdks) else 1


# --- the SDKs ---


def _install() -> list[Sdk]:
    sdks = [_python(version, packages) for version, packages in PYTHON.items()]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return sdks + [_node(node, npm, version, packages) for version, packages in NODE.items()]
    if os.environ.get("CI"):
        sys.exit("node and npm are missing, and CI must test their SDKs.")
    print("node or npm is missing: the SDKs of Node are skipped.")
    return sdks


def _python(version: str, packages: list[str]) -> Sdk:
    folder = CACHE / f"python-{version}-on-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    _once(
        folder,
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    )
    return Sdk(f"python {version}", [str(python), str(HERE / "conversation.py")], folder)


def _node(node: str, npm: str, version: str, packages: list[str]) -> Sdk:
    folder = CACHE / f"node-{version}"
    quietly = ["--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    _once(folder, [npm, "install", *quietly, "--prefix", str(folder), *packages])
    return Sdk(f"node {version}", [node, str(HERE / "conversation.mjs")], folder)


def _once(folder: Path, *commands: list[str]) -> None:
    is_done = folder / ".installed"
    if is_done.exists():
        return
    print(f"Installing {folder.name} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    is_done.touch()


# --- their conversations ---


async def _converse(sdks: list[Sdk]) -> None:
    _speak_up_only_for_faults()
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedModel(keep_requests=False) as model:
            model.answer = replies.answer
            settings = Settings(
                data_dir=Path(folder),
                port=0,
                model_base_url=model.base_url,
                api_keys=[SecretStr("sk-nobody-uses-it")],  # so that keys are demanded at once
                drain_timeout_s=1,
            )
            async with served(settings) as server:
                at_once = asyncio.Semaphore(os.cpu_count() or 1)
                await asyncio.gather(*(_play(sdk, server, at_once) for sdk in sdks))


async def _play(sdk: Sdk, server: Served, at_once: asyncio.Semaphore) -> None:
    async with at_once:
        key = await _new_key(server, sdk.name)
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *sdk.command, f"{server.address}/v1", key, cwd=sdk.folder, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told, says = await process.communicate()
        except TimeoutError:
            process.kill()
            told, says = await process.communicate()
            says += f"It did not end within {TIMEOUT_S} s.".encode()
        sdk.exit_status = process.returncode
        sdk.took_s = time.monotonic() - started
        sdk.says = says.decode(errors="replace")
        for line in told.decode().splitlines():
            outcome, _, _, flow = line.split(maxsplit=3)
            sdk.outcomes[flow] = outcome
        print(f"{sdk.name}: {sdk.took_s:.1f} s", flush=True)


async def _new_key(server: Served, name: str) -> str:
    async with server.runtime.database.connection() as connection:
        project = await projects.get_or_create(connection, name)
        _, key = await projects.create_key(connection, project, name)
    return key


def _speak_up_only_for_faults() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


# --- what comes out ---


def _table(sdks: list[Sdk]) -> str:
    """A line for each flow; a dash where an SDK has nothing of the kind."""
    flows = list(dict.fromkeys(flow for sdk in sdks for flow in sdk.outcomes))
    width = max(map(len, flows), default=0)
    lines = [" " * width + "".join(f"{sdk.name:>16}" for sdk in sdks)]
    for flow in flows:
        outcomes = "".join(f"{sdk.outcomes.get(flow, '-'):>16}" for sdk in sdks)
        lines.append(f"{flow:{width}}{outcomes}")
    times = "".join(f"{f'{sdk.took_s:.1f} s':>16}" for sdk in sdks)
    return "\n".join([*lines, f"{'':{width}}{times}"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
