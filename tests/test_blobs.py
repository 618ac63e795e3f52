import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from threadmill.blobs import Blobs
from threadmill.errors import NotFound

MEGABYTE = 1024**2


class Interrupted(Exception):
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    return Blobs(f"file://{folder}")


async def pieces(*given: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in given:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def all_of(blobs: Blobs, blob_id: str) -> bytes:
    return b"".join([piece async for piece in await blobs.open(blob_id)])


@pytest.mark.parametrize("size", [0, 1, 5 * MEGABYTE, 5 * MEGABYTE + 1, 23 * MEGABYTE])
async def test_what_was_written_is_read(blobs: Blobs, size: int) -> None:
    content = (b"threadmill" * (size // 10 + 1))[:size]
    await blobs.write("file-a", pieces(content[: size // 3], b"", content[size // 3 :]))
    assert await all_of(blobs, "file-a") == content
    assert await blobs.read("file-a") == content


@pytest.mark.parametrize("before", [0, 1, 11])
async def test_nothing_is_left_when_a_piece_raises(blobs: Blobs, folder: Path, before: int) -> None:
    with pytest.raises(Interrupted):
        await blobs.write("file-a", pieces(*[bytes(MEGABYTE)] * before, Interrupted()))
    assert names_in(folder) == []


async def test_nothing_is_left_when_the_writing_task_is_cancelled(
    blobs: Blobs, folder: Path
) -> None:
    is_half_way = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield bytes(MEGABYTE)
        is_half_way.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(blobs.write("file-a", endless()))
    await is_half_way.wait()
    assert names_in(folder) not in ([], ["file-a"])
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert names_in(folder) == []


async def test_pieces_are_drawn_by_the_task_that_writes(blobs: Blobs) -> None:
    tasks = set()

    async def some() -> AsyncIterator[bytes]:
        for _ in range(3):
            tasks.add(asyncio.current_task())
            yield b"x"

    await blobs.write("file-a", some())
    assert tasks == {asyncio.current_task()}


async def test_a_blob_that_is_missing_is_told_before_its_first_piece(blobs: Blobs) -> None:
    with pytest.raises(NotFound, match="No such File object: file-a"):
        await blobs.open("file-a")
    with pytest.raises(NotFound, match="No such File object: file-a"):
        await blobs.read("file-a")


async def test_deleting_twice_is_deleting(blobs: Blobs, folder: Path) -> None:
    await blobs.write("file-a", pieces(b"x"))
    await blobs.delete("file-a")
    await blobs.delete("file-a")
    assert names_in(folder) == []


@pytest.mark.parametrize("url", ["nonsense", "/var/files", "ftp://host/files", "file:///dev/null"])
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises((ValueError, OSError)):
        Blobs(url)
