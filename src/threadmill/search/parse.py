"""Documents into chunks, in processes of their own that may die of a document.

One reader per server process. What it starts (`search.extract`) has a clean environment and none of
our sockets; a document can cost it no more than the limits, and the file is `failed` then.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import msgspec
import structlog

from threadmill.llm.tokens import TokenCounter
from threadmill.search import frames
from threadmill.search.chunk import Chunk
from threadmill.search.formats.kinds import SUPPORTED_EXTENSIONS, Unreadable, invalid, unsupported
from threadmill.settings import Settings

__all__ = ["SUPPORTED_EXTENSIONS", "Chunk", "DocumentReader", "Unreadable"]

# Its encoding is the one in which most models' requests are counted, so it is there anyway.
_ENCODING_OF = "gpt-4o"
_IDLE_S = 60  # 150 MB are not worth keeping for longer; a new start takes two seconds
_START_TIMEOUT_S = 120
_END_TIMEOUT_S = 5
# All that the program gets to know of our environment.
_ENVIRONMENT = ["PATH", "HOME", "LANG", "PYTHONPATH", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"]

log = structlog.get_logger(__name__)


class DocumentReader:
    def __init__(self, settings: Settings, *, idle_s: float = _IDLE_S) -> None:
        self._settings = settings
        self._idle_s = idle_s
        self._cache_dir = settings.data_dir / "tiktoken"
        self._tokens = TokenCounter(self._cache_dir, settings.tokenizer_download_timeout_s)
        self._limits = frames.Limits(
            memory_max_bytes=settings.parse_memory_max_bytes,
            cpu_max_s=settings.parse_cpu_max_s,
            output_max_bytes=settings.parse_output_max_bytes,
            file_max_tokens=settings.file_max_tokens,
        )
        self._room = asyncio.Semaphore(settings.parse_concurrency)
        self._starting = asyncio.Lock()
        self._zygote: _Zygote | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._reading = 0

    async def close(self) -> None:
        """What is being read is cut off."""
        async with self._starting:
            self._retire()
        if self._ending:
            await asyncio.wait(self._ending)

    async def read(
        self,
        path: Path,
        filename: str,
        *,
        max_chunk_size_tokens: int,
        chunk_overlap_tokens: int,
        skip: int = 0,
    ) -> AsyncGenerator[list[Chunk], None]:
        """The chunks of a document in order, or `Unreadable`, possibly after some chunks.

        The first `skip` are left out, to go on where an earlier reading ended. Reading goes only
        as far ahead as some buffers hold; whoever stops early closes the generator (`aclosing`),
        and the process ends.
        """
        extension = PurePath(filename).suffix.lower()
        if extension not in SUPPORTED_EXTENSIONS:
            raise unsupported(extension[:20] or "a name without extension")
        job = frames.Job(
            0, filename, max_chunk_size_tokens, chunk_overlap_tokens, skip, self._limits
        )
        async with self._room:
            try:
                async with aclosing(self._read_once(path, job)) as batches:
                    async for batch in batches:
                        job.skip += len(batch)
                        yield batch
                return
            except _Lost as lost:
                log.warning("a document's reader was killed, reading goes on", reason=str(lost))
            try:
                async with aclosing(self._read_once(path, job)) as batches:
                    async for batch in batches:
                        yield batch
            except _Lost as lost:
                message = f"The process that read the file was killed twice: {lost}."
                raise Unreadable("server_error", message) from lost

    async def _read_once(self, path: Path, job: frames.Job) -> AsyncGenerator[list[Chunk], None]:
        self._reading += 1
        if self._idle:
            self._idle.cancel()
        try:
            zygote = await self._living()
            with path.open("rb") as file:
                reading = await zygote.start(job, file, self._settings.parse_wall_max_s)
            try:
                while batch := await reading.next():
                    yield batch
            finally:
                reading.close()
        finally:
            self._reading -= 1
            if not self._reading:
                self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._retire)

    async def _living(self) -> "_Zygote":
        async with self._starting:
            if self._zygote and not self._zygote.alive:
                self._retire()
            if not self._zygote:
                loading = await self._tokens.load(_ENCODING_OF)
                self._zygote = await _Zygote.launch(
                    frames.Begin(
                        _ENCODING_OF,
                        str(self._cache_dir),
                        # What could be loaded here can be loaded there, however long that takes
                        # on a busy machine: whoever goes on with a document after a kill has to
                        # count as the one before did, or chunks would be missing.
                        _START_TIMEOUT_S,
                        loading.exact,
                    )
                )
            return self._zygote

    def _retire(self) -> None:
        if self._idle:
            self._idle.cancel()
        zygote, self._zygote = self._zygote, None
        if zygote:
            task = asyncio.get_running_loop().create_task(zygote.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # openpyxl imports numpy if it is there, which starts threads; and with threads is no forking.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class _Lost(Exception):
    """Somebody killed the process, or it never came up: not the document's fault."""


class _Zygote:
    """The program, seen from here: jobs go in, and how each ended comes out."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.alive = True
        self._process = process
        self._control = control
        self._buffer = bytearray()
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[bool] = self._loop.create_future()
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._loop.add_reader(control, self._receive)

    @classmethod
    async def launch(cls, begin: frames.Begin) -> "_Zygote":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "threadmill.search.extract",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C is for the server
            )
        zygote = cls(process, ours)
        try:
            ours.sendall(frames.pack(begin))
            async with asyncio.timeout(_START_TIMEOUT_S):
                exact = await zygote._ready
        except (TimeoutError, OSError, _Lost) as error:
            await zygote.end()
            raise _Lost("it did not start") from error
        except BaseException:
            await zygote.end()
            raise
        log.debug("documents can be read", process=process.pid, exact_tokens=exact)
        return zygote

    async def start(self, job: frames.Job, file: BinaryIO, wall_max_s: float) -> "_Reading":
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        with theirs:
            job.id = next(self._ids)
            ended = self._ends[job.id] = self._loop.create_future()
            try:
                if not self.alive:
                    raise _Lost("it ended")
                socket.send_fds(self._control, [frames.pack(job)], [file.fileno(), theirs.fileno()])
            except (OSError, _Lost) as error:
                writer.close()
                del self._ends[job.id]
                raise _Lost("it ended") from error
        return _Reading(self, job, reader, writer, ended, wall_max_s)

    def stop(self, job: frames.Job) -> None:
        if job.id in self._ends:
            with contextlib.suppress(OSError):
                self._control.sendall(frames.pack(frames.Stop(job.id)))

    async def end(self) -> None:
        self._disconnect()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _receive(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._buffer += data
        for frame in frames.take_frames(self._buffer):
            match msgspec.msgpack.decode(frame, type=frames.Report):
                case frames.Ready() as ready:
                    self._ready.set_result(ready.exact)
                case frames.Ended() as ended:
                    self._ends.pop(ended.id).set_result(ended.status)
        if not data:
            self._disconnect()

    def _disconnect(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._ends.values()]
        self._ends = {}
        for future in waiting:
            if not future.done():
                future.set_exception(_Lost("it ended"))
                future.exception()  # not everybody waits


class _Reading:
    """One document on its way. What comes from its process is not to be trusted."""

    def __init__(
        self,
        zygote: _Zygote,
        job: frames.Job,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ended: asyncio.Future[int],
        wall_max_s: float,
    ) -> None:
        self._zygote = zygote
        self._job = job
        self._reader = reader
        self._writer = writer
        self._ended = ended
        self._wall_max_s = wall_max_s
        self._waited_s = 0.0  # the time that we take between two batches does not count
        self._received_bytes = 0

    async def next(self) -> list[Chunk]:
        """Nothing after the last."""
        frame = await self._next_frame()
        match frame:
            case frames.Batch(found):
                return found
            case frames.Done():
                return []
            case frames.Failed(code, message):
                raise Unreadable(code, message)

    def close(self) -> None:
        self._zygote.stop(self._job)
        self._writer.close()

    async def _next_frame(self) -> frames.Result:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._wall_max_s - self._waited_s):
                return await self._receive()
        except TimeoutError:
            raise invalid(f"reading it took more than {self._wall_max_s:g} seconds") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._reason() from None
        except msgspec.DecodeError:
            raise invalid("its reader did not work as it should; is it built to do harm?") from None
        finally:
            self._waited_s += loop.time() - began

    async def _receive(self) -> frames.Result:
        size = frames.unpack_length(await self._reader.readexactly(frames.LENGTH_BYTES))
        self._received_bytes += size
        # Chunks overlap by half at most, so what is sent is twice the text, and their other fields.
        if size > frames.FRAME_MAX_BYTES or (
            self._received_bytes > 3 * self._job.limits.output_max_bytes
        ):
            raise invalid("it gives too much text")
        data = await self._reader.readexactly(size)
        frame: frames.Result = msgspec.msgpack.decode(data, type=frames.Result)
        return frame

    async def _reason(self) -> Exception:
        """Why a process ended without a last word."""
        try:
            status = await asyncio.shield(self._ended)
        except _Lost as lost:
            return lost
        if not os.WIFSIGNALED(status):
            return invalid("its reader ended in the middle of it")
        killer = signal.Signals(os.WTERMSIG(status))
        match killer:
            case signal.SIGXCPU:
                limit = self._job.limits.cpu_max_s
                return invalid(f"reading it took more than {limit} seconds of processor time")
            case signal.SIGKILL | signal.SIGTERM:
                return _Lost(f"{killer.name}, as by a machine that is out of memory")
            case _:
                return invalid(
                    f"its reader crashed ({killer.name}): it is damaged, or takes more than "
                    f"{self._job.limits.memory_max_bytes // 1024**2} MB of memory"
                )
