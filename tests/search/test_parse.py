"""The processes that read: what they get, how they end, and what is left when they do."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from threadmill.search.parse import Chunk, DocumentReader, Unreadable
from threadmill.settings import Settings

SENTENCES = "".join(
    f"This is the sentence with the number {n} of a long text.\n" for n in range(10_000)
)


OTHERS: set[psutil.Process] = set()  # that ran before the test


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", tokenizer_download_timeout_s=10)


@pytest.fixture(autouse=True)
def others() -> None:
    """Servers of other tests' fixtures have their own."""
    OTHERS.clear()
    OTHERS.update(psutil.Process().children(recursive=True))


@pytest_asyncio.fixture
async def reader(settings: Settings) -> AsyncIterator[DocumentReader]:
    reader = DocumentReader(settings)
    yield reader
    await reader.close()
    assert left() == []


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long"
    path.write_text(SENTENCES)
    return path


@pytest.fixture
def short_text(tmp_path: Path) -> Path:
    path = tmp_path / "short"
    path.write_text("a few words")
    return path


async def all_of(reader: DocumentReader, path: Path) -> list[Chunk]:
    return [chunk async for batch in batches(reader, path) for chunk in batch]


def batches(reader: DocumentReader, path: Path) -> AsyncGenerator[list[Chunk], None]:
    return reader.read(path, "a.txt", max_chunk_size_tokens=100, chunk_overlap_tokens=50)


def zygotes() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [process for process in found if process not in OTHERS and is_zygote(process)]


def left() -> list[psutil.Process]:
    """Zygotes of the test, and their children, that are still there."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process not in OTHERS and is_zygote(process)]


def is_zygote(process: psutil.Process) -> bool:
    try:
        return "threadmill.search.extract" in process.cmdline()
    except psutil.NoSuchProcess:  # or a zombie, which is one of these
        return False


def children() -> list[psutil.Process]:
    return [child for zygote in zygotes() for child in zygote.children() if alive(child)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it is about processes, which tell nobody
            await asyncio.sleep(0.01)


async def test_one_process_is_started_for_all_files(
    reader: DocumentReader, short_text: Path
) -> None:
    assert zygotes() == []
    await all_of(reader, short_text)
    (zygote,) = zygotes()
    for _ in range(5):
        await all_of(reader, short_text)
    assert zygotes() == [zygote]
    await until(lambda: zygote.children() == [])  # also no zombies
    assert zygote.num_threads() == 1


async def test_a_child_gets_neither_secrets_nor_sockets(
    settings: Settings, long_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADMILL_MODEL_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    reader = DocumentReader(settings)
    async with aclosing(batches(reader, long_text)) as reading:
        await anext(reading)
        for process in (*zygotes(), *children()):
            assert "sk-secret" not in process.environ().values()
            assert process.net_connections("inet") == []
        (child,) = children()
        opened = {
            os.readlink(f"/proc/{child.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{child.pid}/fd")
        }
        assert {name.partition(":")[0] for name in opened} == {
            "/dev/null",
            str(long_text),
            "socket",
        }
        assert len(opened) == 3
    await reader.close()
    listening.close()
    await listening.wait_closed()


async def test_reading_goes_only_a_little_ahead(reader: DocumentReader, long_text: Path) -> None:
    async with aclosing(batches(reader, long_text)) as reading:
        await anext(reading)
        (child,) = children()
        await until(lambda: child.status() == psutil.STATUS_SLEEPING)
        used = child.cpu_times().user
        await asyncio.sleep(0.3)
        assert child.cpu_times().user - used < 0.1


async def test_time_that_the_caller_takes_does_not_count(
    settings: Settings, long_text: Path
) -> None:
    reader = DocumentReader(settings.model_copy(update={"parse_wall_max_s": 3}))
    await all_of(reader, long_text)
    count = 0
    async for batch in batches(reader, long_text):
        if count == 0:
            await asyncio.sleep(3.2)
        count += len(batch)
    assert count > 500
    await reader.close()


async def test_who_stops_early_leaves_nothing_behind(
    reader: DocumentReader, long_text: Path, short_text: Path
) -> None:
    async with aclosing(batches(reader, long_text)) as reading:
        await anext(reading)
        assert len(children()) == 1
    (zygote,) = zygotes()
    await until(lambda: zygote.children() == [])
    assert len(await all_of(reader, short_text)) == 1


async def test_a_cancelled_task_ends_its_process(reader: DocumentReader, long_text: Path) -> None:
    async def stall() -> None:
        async with aclosing(batches(reader, long_text)) as reading:
            async for _ in reading:
                await asyncio.sleep(60)

    task = asyncio.create_task(stall())
    await until(lambda: len(children()) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (zygote,) = zygotes()
    await until(lambda: zygote.children() == [])


async def test_some_are_read_at_once_and_no_more(
    reader: DocumentReader, long_text: Path, short_text: Path
) -> None:
    most = 0
    expected = await all_of(reader, long_text)

    async def read() -> list[Chunk]:
        nonlocal most
        found = []
        async for batch in batches(reader, long_text):
            most = max(most, len(children()))
            found += batch
        return found

    for found in await asyncio.gather(*(read() for _ in range(5))):
        assert found == expected
    assert most == 2


async def test_a_hundred_small_files(reader: DocumentReader, short_text: Path) -> None:
    found = await asyncio.gather(*(all_of(reader, short_text) for _ in range(100)))
    assert [len(chunks) for chunks in found] == [1] * 100


@pytest.mark.parametrize("who", ["child", "zygote"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_reading_goes_on_after_a_kill(
    reader: DocumentReader, long_text: Path, who: str, how: signal.Signals
) -> None:
    expected = await all_of(reader, long_text)
    found: list[Chunk] = []
    killed = False
    async for batch in batches(reader, long_text):
        found += batch
        if not killed and len(found) > 200:
            killed = True
            (process,) = children() if who == "child" else zygotes()
            process.send_signal(how)
    assert found == expected


@pytest.mark.parametrize("who", ["child", "zygote"])
async def test_a_second_kill_is_the_end_of_it(
    reader: DocumentReader, long_text: Path, short_text: Path, who: str
) -> None:
    async def read() -> None:
        last: psutil.Process | None = None
        async for _ in batches(reader, long_text):
            processes = children() if who == "child" else zygotes()
            for process in processes:
                if process != last:
                    last = process
                    process.kill()

    with pytest.raises(Unreadable, match="was killed twice") as raised:
        await read()
    assert raised.value.code == "server_error"
    assert len(await all_of(reader, short_text)) == 1


@pytest.mark.parametrize("crash", [signal.SIGABRT, signal.SIGSEGV])
async def test_a_crash_is_the_document_s_fault(
    reader: DocumentReader, long_text: Path, crash: signal.Signals
) -> None:
    async with aclosing(batches(reader, long_text)) as reading:
        await anext(reading)
        children()[0].send_signal(crash)
        with pytest.raises(Unreadable, match=f"its reader crashed \\({crash.name}\\)") as raised:
            async for _ in reading:
                pass
    assert raised.value.code == "invalid_file"


async def test_processor_time_is_limited(settings: Settings, tmp_path: Path) -> None:
    reader = DocumentReader(settings.model_copy(update={"parse_cpu_max_s": 1}))
    path = tmp_path / "a"
    path.write_text("<b>x</b>" * 8_000_000)
    with pytest.raises(Unreadable, match="more than 1 seconds of processor time"):
        async for _ in reader.read(
            path, "a.html", max_chunk_size_tokens=800, chunk_overlap_tokens=0
        ):
            pass
    await reader.close()


async def test_a_file_that_is_not_there(reader: DocumentReader, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await all_of(reader, tmp_path / "missing")


async def test_the_program_ends_when_it_has_nothing_to_do(
    settings: Settings, short_text: Path
) -> None:
    reader = DocumentReader(settings, idle_s=0.2)
    await all_of(reader, short_text)
    assert len(zygotes()) == 1
    await until(lambda: zygotes() == [])
    assert len(await all_of(reader, short_text)) == 1
    await reader.close()
    assert zygotes() == []


async def test_closing_cuts_off_what_is_being_read(settings: Settings, long_text: Path) -> None:
    reader = DocumentReader(settings)
    reading = batches(reader, long_text)
    await anext(reading)
    await reader.close()
    assert left() == []
    await reading.aclose()


async def test_without_the_encoding_tokens_are_estimated(
    settings: Settings, long_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiktoken.get_encoding", unreachable)
    reader = DocumentReader(settings)
    found = await all_of(reader, long_text)
    assert max(chunk.token_count for chunk in found) <= 100
    assert sum(chunk.token_count for chunk in found) / len(found) > 60
    await reader.close()


def unreachable(name: str) -> None:
    raise OSError("no internet")


async def test_nothing_survives_the_server(long_text: Path, tmp_path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from threadmill.search.parse import DocumentReader
from threadmill.settings import Settings

async def main():
    settings = Settings(data_dir=Path({str(tmp_path)!r}), tokenizer_download_timeout_s=2)
    reader = DocumentReader(settings)
    reading = reader.read(
        Path({str(long_text)!r}), "a.txt", max_chunk_size_tokens=100, chunk_overlap_tokens=50
    )
    await anext(reading)
    print("reading", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout
    async for line in server.stdout:
        if b"reading" in line:
            break
    processes = psutil.Process(server.pid).children(recursive=True)
    assert len(processes) == 2
    server.kill()
    await until(lambda: not any(alive(process) for process in processes))
    await server.communicate()


def alive(process: psutil.Process) -> bool:
    """A container may have no init that reaps: then a dead process stays as a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_loop_is_not_held_up(reader: DocumentReader, long_text: Path) -> None:
    await all_of(reader, long_text)

    async def longest_hold_s() -> float:
        longest = 0.0
        reading = asyncio.create_task(all_of(reader, long_text))
        while not reading.done():
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)
        return longest

    # Once of three times: the machine may have been busy with something else.
    assert min([await longest_hold_s() for _ in range(3)]) < 0.5
