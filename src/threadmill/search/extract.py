"""The program that reads documents: `python -m threadmill.search.extract <socket>`.

It is started by `search.parse` and never sees a document itself. It imports the readers and the
tokenizer's encoding once (two seconds), then forks a child for every document (a few milliseconds),
confines it, and reports how it ended. So it has to stay of one thread, and holds nothing that a
document could be after: no database, no keys in its environment.
"""

import contextlib
import ctypes
import errno
import gc
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from threadmill.llm.tokens import TokenCounter
from threadmill.search import frames
from threadmill.search.chunk import Chunk, Split, chunks, estimated_split, too_long
from threadmill.search.formats import document
from threadmill.search.formats.kinds import Passage, Unreadable, invalid

_RECEIVED_BYTES = 64 * 1024
_BATCH_MAX_CHUNKS = 32
_BATCH_MAX_BYTES = 256 * 1024
_SPARE_BYTES = 32 * 1024**2  # what a child that is out of memory may still take to say so
_NICENESS = 5  # streams of tokens to clients go first
_SAMPLES = 32
_SAMPLE_BYTES = 8 * 1024

_DISK_ERRORS = (errno.EIO, errno.ESTALE)  # all others come of offsets that a document names

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.setblocking(True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    Zygote(control).serve()


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = bytearray()
        self._descriptors: list[int] = []  # that came with jobs, two for each, in their order
        self._children: dict[int, int] = {}  # process id -> job id
        self._split: Split = estimated_split

    def serve(self) -> None:
        """Until the server closes its end of the socket, or dies, which closes it too."""
        awake, wake = socket.socketpair()
        for end in (awake, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(awake, selectors.EVENT_READ)
            connected = True
            while connected:
                for key, _ in selector.select():
                    if key.fileobj is awake:
                        awake.recv(4096)
                        self._reap()
                    else:
                        connected = self._receive()
        for process in self._children:
            os.kill(process, signal.SIGKILL)
        for process in self._children:
            os.waitpid(process, 0)

    def _receive(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _RECEIVED_BYTES, 16)
        except ConnectionError:
            return False
        self._descriptors += descriptors
        self._buffer += data
        for frame in frames.take_frames(self._buffer):
            match msgspec.msgpack.decode(frame, type=frames.Order):
                case frames.Begin() as begin:
                    self._begin(begin)
                case frames.Job() as job:
                    self._start(job)
                case frames.Stop() as stop:
                    self._stop(stop)
        return bool(data)

    def _begin(self, begin: frames.Begin) -> None:
        encoded = _exact_split(begin) if begin.exact else None
        self._split = encoded or estimated_split
        # What is here stays: children shall not copy its pages for the collector's marks.
        gc.collect()
        gc.freeze()
        with contextlib.suppress(ConnectionError):  # the server may be gone by now
            self._control.sendall(frames.pack(frames.Ready(exact=encoded is not None)))

    def _start(self, job: frames.Job) -> None:
        file, stream = self._descriptors[:2]
        del self._descriptors[:2]
        zygote = os.getpid()
        try:
            process = os.fork()
        except OSError:  # too many processes: the stream's end says that nothing will come
            self._control.sendall(frames.pack(frames.Ended(job.id, signal.SIGKILL)))
        else:
            if process == 0:
                _live(zygote, job, file, stream, self._split)
            self._children[process] = job.id
        finally:
            os.close(file)
            os.close(stream)

    def _stop(self, stop: frames.Stop) -> None:
        for process, job in self._children.items():
            if job == stop.id:
                os.kill(process, signal.SIGKILL)

    def _reap(self) -> None:
        while self._children:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            job = self._children.pop(process)
            with contextlib.suppress(ConnectionError):  # the server went; `_receive` hears of it
                self._control.sendall(frames.pack(frames.Ended(job, status)))


def _exact_split(begin: frames.Begin) -> Split | None:
    counter = TokenCounter(Path(begin.cache_dir), begin.load_timeout_s)
    encoding = counter.encoding(begin.encoding_of)
    if encoding is None:
        return None
    return lambda text: encoding.decode_tokens_bytes(encoding.encode_ordinary(text))


# --- From here on in the child, which has one document to read and then to end. ---


def _live(zygote: int, job: frames.Job, file: int, stream: int, split: Split) -> NoReturn:
    try:
        address_space = _confine(zygote, job.limits, (file, stream))
        send = _sender(stream)
        try:
            with open(file, "rb", closefd=False) as document_file:
                for batch in _batches(_wanted(document_file, job, split), job.skip):
                    send(frames.Batch(batch))
            send(frames.Done())
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_AS, (address_space + _SPARE_BYTES,) * 2)
            limit = job.limits.memory_max_bytes // 1024**2
            send(_failed(invalid(f"reading it takes more than {limit} MB of memory")))
        except Unreadable as error:
            send(_failed(error))
        except RecursionError:
            send(_failed(invalid("it is nested too deeply")))
        except Exception as error:  # whatever a library says of a file that it does not understand
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                send(_failed(Unreadable("server_error", f"The file could not be read: {error}.")))
            else:
                send(_failed(invalid(f"it is damaged ({type(error).__name__}: {error})")))
    finally:
        os._exit(0)


def _wanted(file: BinaryIO, job: frames.Job, split: Split) -> Iterator[Chunk]:
    limits = job.limits
    if document.is_plain_text(job.filename):
        _refuse_if_far_too_long(file, split, limits.file_max_tokens)
    found = False
    for chunk in chunks(
        _limited(document.passages(file, job.filename), limits.output_max_bytes),
        split,
        max_tokens=job.max_chunk_size_tokens,
        overlap_tokens=job.chunk_overlap_tokens,
        file_max_tokens=limits.file_max_tokens,
    ):
        found = True
        yield chunk
    if not found:
        raise invalid("no text was found in it")


def _limited(passages: Iterable[Passage], output_max_bytes: int) -> Iterator[Passage]:
    size = 0
    for passage in passages:
        size += len(passage.text)
        if size > output_max_bytes:
            raise invalid(f"it has more than {output_max_bytes // 1024**2} MB of text")
        yield passage


def _refuse_if_far_too_long(file: BinaryIO, split: Split, file_max_tokens: int) -> None:
    """A sample, so that a huge file is refused before a part of it was embedded, for money."""
    size = file.seek(0, os.SEEK_END)
    if size > 4 * file_max_tokens:
        tokens = 0
        for number in range(_SAMPLES):
            file.seek(size * number // _SAMPLES)
            tokens += len(split(file.read(_SAMPLE_BYTES).decode("utf-8", "ignore")))
        if tokens * size > 1.5 * file_max_tokens * _SAMPLES * _SAMPLE_BYTES:
            raise too_long(file_max_tokens)
    file.seek(0)


def _batches(found: Iterable[Chunk], skip: int) -> Iterator[list[Chunk]]:
    batch: list[Chunk] = []
    size = 0
    for number, chunk in enumerate(found):
        if number < skip:
            continue
        batch.append(chunk)
        size += len(chunk.text)
        if len(batch) == _BATCH_MAX_CHUNKS or size > _BATCH_MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sender(stream: int) -> Callable[[frames.Result], None]:
    """Blocks while the server has enough: that is all the backpressure there is."""
    pipe = socket.socket(fileno=stream)
    pipe.setblocking(True)
    return lambda frame: pipe.sendall(frames.pack(frame))


def _failed(error: Unreadable) -> frames.Failed:
    message = " ".join(error.message.split()).encode("utf-8", "replace").decode()
    return frames.Failed(error.code, message.replace("\0", "\ufffd")[:500])


def _confine(zygote: int, limits: frames.Limits, kept: tuple[int, ...]) -> int:
    """Take away all that reading does not need. Returns the size that memory is limited to."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        # Where memory runs out, this goes and not the database.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != zygote:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    bound = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
    for low, high in zip((3, *sorted(fd + 1 for fd in kept)), (*sorted(kept), bound), strict=True):
        os.closerange(low, high)
    address_space = _address_space_bytes() + limits.memory_max_bytes
    for what, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, 32, 32),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CPU, limits.cpu_max_s, limits.cpu_max_s + 5),
        (resource.RLIMIT_AS, address_space, address_space + _SPARE_BYTES),
    ):
        _limit(what, soft, hard)
    return address_space


def _limit(what: int, soft: int, hard: int) -> None:
    """Never above what the process was started with."""
    allowed = resource.getrlimit(what)[1]
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    with contextlib.suppress(ValueError, OSError):  # macOS does not limit memory
        resource.setrlimit(what, (soft, hard))


def _address_space_bytes() -> int:
    """The zygote's own, shared with it and not the child's doing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 1024**3
    return pages * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
