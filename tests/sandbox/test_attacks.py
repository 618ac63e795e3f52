"""Each attack runs in a container of its own. Whatever it does, its cell ends in time and as it
should, the session or a fresh one answers afterwards, and neither this process nor the engine has
grown by it."""

import asyncio
import re

import psutil
import pytest

from sandbox import attacks
from sandbox.attacks import Attack
from sandbox.yard import Yard, hold, let_go, run, said
from threadmill.sandbox.session import FileRefused, SandboxAway, Session
from threadmill.sandbox.sessions import Sandboxes

_AFTER_TIMEOUT_S = 8  # two for the code to hear of it, the rest for a machine that is busy
_MEBIBYTE = 1024**2
_TEXT_MAX_CHARACTERS = 2 * _MEBIBYTE
_GROWTH_MAX_BYTES = 300 * _MEBIBYTE


@pytest.mark.parametrize("attack", attacks.ALL, ids=lambda attack: attack.name)
async def test_an_attack_ends_as_it_should_and_leaves_no_harm(yard: Yard, attack: Attack) -> None:
    one = await yard.open()
    thread = await yard.thread()
    session = await hold(one, thread)
    before = _memory_bytes()

    async with asyncio.timeout(attack.timeout_s + _AFTER_TIMEOUT_S + 20):
        end, text, images = await run(session, attack.code, attack.timeout_s)

    assert end.status in attack.ends, (end, text[-2000:])
    assert not re.search("(?m)^got in", text), text[-2000:]
    assert re.search(attack.says, text), text[-2000:]
    assert len(text) <= _TEXT_MAX_CHARACTERS
    assert images <= 20
    await _files_can_be_looked_at(session)
    await let_go(one, session)
    assert await _goes_on(one, thread) == "42"
    assert _memory_bytes() - before < _GROWTH_MAX_BYTES


async def _goes_on(one: Sandboxes, thread: str) -> str:
    """The next run of the thread, in the old container or a new one. The first cell may be told
    that what was there is gone, the second is as any other."""
    for _ in range(3):
        session = await hold(one, thread)
        try:
            await session.run("0", timeout_s=60, on_output=lambda _: None)
            return await said(session, "print(6 * 7)")
        except (SandboxAway, AssertionError):
            continue
        finally:
            await let_go(one, session)
    return "nothing"


async def _files_can_be_looked_at(session: Session) -> None:
    """Only regular files are shown, and of these no more than was asked for is read."""
    try:
        entries = await session.list()
    except SandboxAway:
        return  # the next run gets a fresh one
    assert len(entries) <= 1000
    assert not {entry.name for entry in entries} & {"passwd", "environ", "loop", "pipe", "socket"}
    for entry in entries[:5]:
        read = 0
        try:
            async for piece in session.get(entry.name, _MEBIBYTE):
                read += len(piece)
        except (FileRefused, SandboxAway):
            continue
        assert read <= _MEBIBYTE
    for name in (
        "passwd",
        "environ",
        "pipe",
        "../../etc/passwd",
        "/etc/passwd",
        "everything/etc/passwd",
    ):
        try:
            async for piece in session.get(name, _MEBIBYTE):
                raise AssertionError(f"{name} was read: {piece[:50]!r}")
        except (FileRefused, SandboxAway):
            pass


def _memory_bytes() -> int:
    """Of this process and of the engine, where that is on this machine."""
    total = psutil.Process().memory_info().rss
    for process in psutil.process_iter(["name", "memory_info"]):
        if process.info["name"] in ("dockerd", "containerd") and process.info["memory_info"]:
            total += process.info["memory_info"].rss
    return total
