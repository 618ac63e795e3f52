"""One container that runs a thread's code: cells go in and output comes out, files both ways.

Whoever holds a session speaks to it alone. Everything that comes out was made by somebody's code,
and is believed only as far as it can be checked.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal

import msgspec
import structlog

from threadmill.sandbox import frames
from threadmill.sandbox.attachment import Attachment
from threadmill.sandbox.docker import ContainerFault, Engine, EngineAway
from threadmill.sandbox.frames import Broken, Frame

log = structlog.get_logger()

_PIECE_BYTES = 256 * 1024
_READY_TIMEOUT_S = 60.0  # a machine that starts many at once takes its time
_ANSWER_TIMEOUT_S = 10.0
_PIECE_TIMEOUT_S = 30.0
_REST_AFTER_S = 1.0  # without a request, then it is paused
_INTERRUPT_GRACE_S = 0.8  # then the worker is killed; a cancelled run has ended within 2 s
_INTERRUPT_MAX_S = 1.8
# The driver ends cells that have had their time, by force if need be. This is for a driver that
# does not.
_DRIVER_GRACE_S = 10.0

# What one request may bring back. The driver's limits are lower; these are for one that somebody
# has got the better of.
_TEXT_MAX_CHARACTERS = 2 * 1024**2
_IMAGE_MAX_BYTES = 16 * 1024**2
_IMAGES_MAX_BYTES = 64 * 1024**2
_RECEIVED_MAX_BYTES = 400 * 1024**2
_FRAME_COST_BYTES = 1024
_LISTED_MAX_FILES = 1000
_NAME_MAX_CHARACTERS = 1024
_PNG = b"\x89PNG\r\n\x1a\n"

_GONE = "The sandbox of this thread is gone."

Stream = Literal["stdout", "stderr", "result", "error"]


class SandboxAway(Exception):
    """Code cannot be run, and it is not the code's fault: no engine, no image, no room, a container
    that is gone. The text is for people."""


class FileRefused(Exception):
    """A file cannot be put or fetched, in words for people and models: no room, no such file."""


class KnownFile(msgspec.Struct):
    """A file in /mnt/data as it was when we last looked."""

    file_id: str | None  # None: it was not kept as a file of the API
    size: int
    mtime_ns: int
    inode: int
    is_put: bool  # by us; else the code made it


class FileEntry(msgspec.Struct, frozen=True):
    """A regular file in /mnt/data."""

    name: str  # relative to /mnt/data, with slashes where it lies in a folder
    size: int
    mtime_ns: int
    inode: int


class Text(msgspec.Struct, frozen=True):
    stream: Stream
    text: str


class Image(msgspec.Struct, frozen=True):
    png: bytes


Output = Text | Image


class CellEnd(msgspec.Struct, frozen=True):
    status: Literal["ok", "error", "timeout", "interrupted", "died"]
    restarted: bool = False  # variables are gone
    truncated: bool = False  # there was more output than is passed on
    detail: str | None = None


class Session:
    """After `run` has said `died`, or anything raised SandboxAway, it may be broken: release it
    then, and hold another."""

    def __init__(self, engine: Engine, container: str, attachment: Attachment | None) -> None:
        self.engine = engine
        self.container = container
        self.is_fresh = True
        self.is_broken = False
        self.files: dict[str, KnownFile] = {}  # by the name in /mnt/data; see Sandboxes.save_files
        # The row that says whose it is, once it is somebody's.
        self.thread_id = ""
        self.holds = 0
        self.ends_at = float("inf")  # by the clock of the loop
        self._attachment = attachment
        # A process that attaches after another must not take old answers for its own.
        self._last_id = random.randrange(2**52)
        self._received_bytes = 0
        self._received_max_bytes = _RECEIVED_MAX_BYTES
        self._requests = 0  # under way
        self._is_paused = False
        self._turning = asyncio.Lock()  # one at a time is paused or unpaused
        self._rest: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for a run ---

    async def run(
        self, code: str, *, timeout_s: float, on_output: Callable[[Output], None]
    ) -> CellEnd:
        """Raises SandboxAway if the session is broken before the code was sent. A container that
        breaks in the middle ends the cell as `died`. Cancelled while it waits, it interrupts the
        cell."""
        async with self._awake():
            cell = _Cell(self._next_id(), on_output)
            try:
                await self._send(frames.Exec(cell.id, timeout_s), code.encode(errors="replace"))
                async with _within(timeout_s + _DRIVER_GRACE_S):
                    while cell.end is None:
                        cell.take(await self._next(cell.id))
                return cell.end
            except asyncio.CancelledError:
                await self._interrupt(cell)
                raise
            except Broken as fault:
                self._break(fault)
                return CellEnd("died", restarted=True, detail=f"The sandbox broke: {fault}.")

    async def put(self, name: str, link: str | None, pieces: AsyncIterator[bytes]) -> None:
        """Raises FileRefused or SandboxAway."""
        async with self._awake(), self._speaking():
            put_id, at = self._next_id(), 0
            async for large in pieces:
                for start in range(0, len(large), _PIECE_BYTES):
                    piece = large[start : start + _PIECE_BYTES]
                    await self._send(frames.Put(put_id, name, link, at, last=False), piece)
                    at += len(piece)
            await self._send(frames.Put(put_id, name, link, at, last=True))
            answer = (await self._answer(put_id, _PIECE_TIMEOUT_S)).header
            match answer:
                case frames.PutEnd(error=None):
                    return
                case frames.PutEnd(error=error) | frames.Refusal(error=error):
                    raise FileRefused(_shown(error or ""))
            raise Broken("a file was answered with something else")

    async def list(self) -> list[FileEntry]:
        """The regular files in /mnt/data, up to a thousand. Raises SandboxAway."""
        async with self._awake(), self._speaking():
            list_id = self._next_id()
            await self._send(frames.List(list_id))
            answer = await self._answer(list_id, _ANSWER_TIMEOUT_S)
            if not isinstance(answer.header, frames.Files):
                raise Broken("a request for files was answered with something else")
            return _entries(answer.body)

    async def get(self, name: str, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """Raises FileRefused or SandboxAway."""
        async with self._awake(max_bytes), self._speaking():
            get_id, at = self._next_id(), 0
            await self._send(frames.Get(get_id, name, max_bytes))
            while True:
                frame = await self._answer(get_id, _PIECE_TIMEOUT_S)
                match frame.header:
                    case frames.Data(error=str(error)) | frames.Refusal(error=error):
                        raise FileRefused(_shown(error))
                    case frames.Data(at=found_at, last=last) if found_at == at:
                        at += len(frame.body)
                    case _:
                        raise Broken("a file came in the wrong order")
                if at > max_bytes:
                    raise Broken("more of a file came than was asked for")
                yield frame.body
                if last:
                    return

    # --- for whoever hands sessions out; it raises SandboxAway if it cannot be used ---

    async def wait_ready(self) -> None:
        async with self._speaking(), _within(_READY_TIMEOUT_S):
            if not isinstance((await self._receive()).header, frames.Ready):
                raise Broken("its first word was another")

    async def pause(self) -> None:
        with self._engine_faults():
            await self._turn(is_paused=True)

    async def attach(self) -> None:
        """It belongs to nobody now; it may be paused. Raises EngineAway or ContainerFault."""
        self._is_paused = True
        await self._turn(is_paused=False)
        self._attachment = await self.engine.attach(self.container)

    async def greet(self) -> None:
        """Hear from it that it is there."""
        async with self._awake(), self._speaking():
            ping_id = self._next_id()
            await self._send(frames.Ping(ping_id))
            if not isinstance((await self._answer(ping_id, _ANSWER_TIMEOUT_S)).header, frames.Pong):
                raise Broken("it does not answer as it should")

    async def settle(self) -> None:
        """End what still runs for somebody who is gone. A session that loses its variables over it
        is fresh again."""
        async with self._awake(), self._speaking(), _within(_ANSWER_TIMEOUT_S):
            await self._send(frames.Interrupt(None, _INTERRUPT_GRACE_S))
            while True:
                if await self._is_at_rest():
                    break
                await asyncio.sleep(_INTERRUPT_GRACE_S / 10)
        if self.is_fresh:
            self.files.clear()

    async def let_go(self) -> None:
        """Pause it, and leave it to whoever attaches next."""
        try:
            await self.pause()
        finally:
            await self.close()

    async def close(self) -> None:
        self._stop_resting()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._attachment is not None:
            attachment, self._attachment = self._attachment, None
            await attachment.close()

    # --- how it speaks ---

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _send(self, header: frames.Request, body: bytes = b"") -> None:
        async with _within(_PIECE_TIMEOUT_S):
            await self._attached().send(frames.pack(header, body))

    async def _answer(self, request_id: int, timeout_s: float) -> Frame:
        async with _within(timeout_s):
            return await self._next(request_id)

    async def _next(self, request_id: int) -> Frame:
        """The next frame for this request; what is for others, nobody waits for any more."""
        while True:
            frame = await self._receive()
            if frame.header.id == request_id:
                return frame

    async def _receive(self) -> Frame:
        frame = await self._attached().receive()
        self._received_bytes += len(frame.body) + _FRAME_COST_BYTES
        if self._received_bytes > self._received_max_bytes:
            raise Broken("it said more than it may")
        return frame

    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise Broken("nobody is attached to it")
        return self._attachment

    async def _interrupt(self, cell: "_Cell") -> None:
        """The run is over, and so is its cell, one way or the other."""
        cell.is_heard = False
        try:
            async with _within(_INTERRUPT_MAX_S):
                await self._send(frames.Interrupt(cell.id, _INTERRUPT_GRACE_S))
                while cell.end is None:
                    cell.take(await self._next(cell.id))
        except (Broken, asyncio.CancelledError) as fault:
            self._break(fault)

    async def _is_at_rest(self) -> bool:
        """Run nothing at all, which is refused while something else runs."""
        nothing = self._next_id()
        await self._send(frames.Exec(nothing, _ANSWER_TIMEOUT_S))
        while True:
            answer = (await self._receive()).header
            if isinstance(answer, frames.Done):
                self.is_fresh = self.is_fresh or answer.restarted
                if answer.id == nothing:
                    return answer.status == "ok"

    @asynccontextmanager
    async def _speaking(self) -> AsyncIterator[None]:
        """Whoever does not answer as agreed is not spoken to again."""
        try:
            yield
        except Broken as fault:
            self._break(fault)
            raise SandboxAway(_GONE) from fault

    def _break(self, fault: BaseException) -> None:
        self.is_broken = True
        log.warning("sandbox_broken", container=self.container, fault=repr(fault))

    # --- how it rests ---

    @asynccontextmanager
    async def _awake(self, file_bytes: int = 0) -> AsyncIterator[None]:
        """Not paused while somebody is in the block, nor shortly after."""
        if self.is_broken:
            raise SandboxAway(_GONE)
        self._stop_resting()
        self._requests += 1
        self._received_bytes = 0
        self._received_max_bytes = _RECEIVED_MAX_BYTES + file_bytes
        try:
            with self._engine_faults():
                await self._turn(is_paused=False)
            yield
        finally:
            self._requests -= 1
            if not self._requests and not self.is_broken and self._attachment is not None:
                loop = asyncio.get_running_loop()
                self._rest = loop.call_later(_REST_AFTER_S, self._begin_to_rest)

    def _begin_to_rest(self) -> None:
        self._spawn(self._rest_quietly())

    async def _rest_quietly(self) -> None:
        # If it cannot be paused, whoever wants it next finds out why.
        with suppress(ContainerFault, EngineAway):
            await self._change(is_paused=True)

    def _stop_resting(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    async def _turn(self, *, is_paused: bool) -> None:
        """Once asked for it is done, even if whoever asked is cancelled: an engine that is asked
        twice at once may answer in any order."""
        if self._is_paused != is_paused or self._turning.locked():
            await asyncio.shield(self._spawn(self._change(is_paused=is_paused)))

    async def _change(self, *, is_paused: bool) -> None:
        async with self._turning:
            if self._is_paused == is_paused or (is_paused and self._requests):
                return
            move = self.engine.pause if is_paused else self.engine.unpause
            await move(self.container)
            self._is_paused = is_paused

    def _spawn(self, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return task

    @contextmanager
    def _engine_faults(self) -> Iterator[None]:
        try:
            yield
        except (ContainerFault, EngineAway) as fault:
            self._break(fault)
            raise SandboxAway(_GONE) from fault


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as fault:
        raise Broken("it does not answer any more") from fault


class _Cell:
    """What one cell says, as far as it may."""

    def __init__(self, cell_id: int, on_output: Callable[[Output], None]) -> None:
        self.id = cell_id
        self.end: CellEnd | None = None
        self.is_heard = True
        self._on_output = on_output
        self._characters = 0
        self._image = bytearray()
        self._image_number = -1
        self._images_bytes = 0
        self._is_cut = False

    def take(self, frame: Frame) -> None:
        match frame.header:
            case frames.TextPiece(stream=stream):
                self._say(stream, frame.body.decode(errors="replace"))
            case frames.ImagePiece() as piece:
                self._draw(piece, frame.body)
            case frames.Done(status=status, restarted=restarted, truncated=truncated) as done:
                detail = None if done.detail is None else _shown(done.detail)
                self.end = CellEnd(status, restarted, truncated or self._is_cut, detail)
            case _:
                raise Broken("a cell was answered with something else")

    def _say(self, stream: Stream, text: str) -> None:
        room = _TEXT_MAX_CHARACTERS - self._characters
        self._is_cut = self._is_cut or len(text) > room
        self._characters += len(text)
        if text[:room]:
            self._pass_on(Text(stream, text[:room]))

    def _draw(self, piece: frames.ImagePiece, body: bytes) -> None:
        if piece.at == 0:
            self._image.clear()
            self._image_number = piece.image
        if piece.image != self._image_number or piece.at != len(self._image):
            raise Broken("an image came in the wrong order")
        if len(self._image) + len(body) > _IMAGE_MAX_BYTES:
            raise Broken("an image is over its limit")
        self._image += body
        if not piece.last:
            return
        png, self._image_number = bytes(self._image), -1
        self._image.clear()
        self._images_bytes += len(png)
        if png.startswith(_PNG) and self._images_bytes <= _IMAGES_MAX_BYTES:
            self._pass_on(Image(png))
        else:
            self._is_cut = True

    def _pass_on(self, output: Output) -> None:
        if self.is_heard:
            self._on_output(output)


def _entries(body: bytes) -> list[FileEntry]:
    try:
        found = msgspec.json.decode(body, type=list[FileEntry])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise Broken(f"a list of files is none: {fault}") from fault
    return [entry for entry in found[:_LISTED_MAX_FILES] if _is_sound(entry)]


def _is_sound(entry: FileEntry) -> bool:
    parts = entry.name.split("/")
    return (
        len(entry.name) <= _NAME_MAX_CHARACTERS
        and not any(part in ("", ".", "..") for part in parts)
        and _can_be_written(entry.name)
        and min(entry.size, entry.mtime_ns, entry.inode) >= 0
        and max(entry.size, entry.mtime_ns, entry.inode) < 2**63
    )


def _can_be_written(name: str) -> bool:
    return not any(sign < " " or sign == "\x7f" for sign in name)


def _shown(text: str) -> str:
    """What the driver says, for people: printable and short."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text[:500])
    return " ".join(printable.split())
