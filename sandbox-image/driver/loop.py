"""The one loop of PID 1: the host's requests, the worker's output, and time."""

import json
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from typing import Any, NoReturn

from .cell import Cell
from .folder import Folder, Refused
from .wire import (
    READ_MAX_BYTES,
    Header,
    Kind,
    Message,
    Outlet,
    Unreadable,
    pack_frame,
    pack_message,
    read_some,
    take_frames,
    take_messages,
)
from .worker import Worker, cause_of_death, kill_everyone, out_of_memory_kills

GRACE_S = 2.0  # between the SIGINT that keeps variables and the SIGKILL that does not
SLEEP_MAX_S = 3600.0
BATCH_S = 0.02  # text that trickles is sent this often
OUTLET_MAX_BYTES = 4 * 1024 * 1024  # more than this waits for the host: nothing more is read
PIPE_MAX_BYTES = 1024 * 1024  # what the kernel may hold of a pipe at most


class HostGone(Exception):
    """Nobody will send or read anything any more."""


class Driver:
    def __init__(
        self,
        requests: int,
        answers: int,
        folder: Folder,
        live: Callable[[int, int, int], NoReturn],
    ) -> None:
        self.requests = requests
        self.arrived = bytearray()
        self.outlet = Outlet(answers)
        self.folder = folder
        self.live = live
        self.worker: Worker | None = None
        self.cell: Cell | None = None
        self.lost: str | None = None  # why variables are gone, until a cell has told the host
        self.kills_before = 0
        self.quiet_until = 0.0
        self.fetches: deque[Iterator[bytes]] = deque()
        self.children_end = self._hear_of_children()

    def run(self) -> None:
        """Until the host is gone."""
        self.start_worker()
        self.send(pack_frame({"op": "ready"}))
        with suppress(HostGone, ConnectionError):
            while True:
                self.turn()

    def turn(self) -> None:
        for descriptor, _ in self.wait():
            if descriptor == self.requests:
                self.read_requests()
            elif descriptor == self.outlet.descriptor:
                self.outlet.flush()
            elif descriptor == self.children_end:
                self.bury_children()
            elif self.worker and descriptor == self.worker.channel:
                self.hear_worker(self.worker)
            elif self.worker and descriptor in self.worker.pipes:
                self.read_pipes(self.worker)
        self.keep_time()
        self.fetch()

    def wait(self) -> list[tuple[int, int]]:
        """Until something can be done. What a slow host has not taken holds up the worker."""
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        poll.register(self.children_end, select.POLLIN)
        if self.outlet.waiting_bytes:
            poll.register(self.outlet.descriptor, select.POLLOUT)
        has_room = self.has_room()
        worker, now = self.worker, time.monotonic()
        if worker:
            events = (select.POLLIN if has_room else 0) | (
                select.POLLOUT if worker.outlet.waiting_bytes else 0
            )
            if events:
                poll.register(worker.channel, events)
            if has_room and now >= self.quiet_until:
                for pipe in worker.pipes:
                    poll.register(pipe, select.POLLIN)
        wakes_at = now + SLEEP_MAX_S
        if self.cell:
            wakes_at = min(wakes_at, self.cell.wakes_at())
        if worker and now < self.quiet_until:
            wakes_at = min(wakes_at, self.quiet_until)
        # Rounded up: woken a little early, it would ask for no time at all again and again.
        return poll.poll(ceil(max(0.0, wakes_at - now) * 1000))

    def has_room(self) -> bool:
        return self.outlet.waiting_bytes < OUTLET_MAX_BYTES

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.outlet.put(frame)

    # --- the host ---

    def read_requests(self) -> None:
        arrived = read_some(self.requests)
        if arrived == b"":
            raise HostGone
        self.arrived += arrived or b""
        for header, body in take_frames(self.arrived):
            try:
                self.answer(header, body)
            except (KeyError, TypeError, ValueError) as error:
                self.refuse(header, f"The request cannot be read: {error!r}")

    def answer(self, header: Header, body: bytes) -> None:
        match header.get("op"):
            case "exec":
                self.execute(int(header["id"]), float(header["timeout_s"]), body)
            case "interrupt":
                self.interrupt(header["id"], float(header.get("grace_s", GRACE_S)))
            case "put":
                self.put(header, body)
            case "list":
                self.list_files(header)
            case "get":
                max_bytes = int(header["max_bytes"])
                self.fetches.append(self.pieces(header, str(header["name"]), max_bytes))
            case "ping":
                worker = self.worker.pid if self.worker else None
                pong = {"op": "pong", "id": header["id"], "pid": os.getpid(), "worker": worker}
                self.send(pack_frame(pong))
            case unknown:
                self.refuse(header, f"There is no request '{unknown}'.")

    def refuse(self, header: Header, error: str) -> None:
        self.send(pack_frame({"op": "error", "id": header.get("id"), "error": error}))

    def execute(self, cell_id: int, timeout_s: float, code: bytes) -> None:
        cell = Cell(cell_id, time.monotonic() + timeout_s)
        if self.cell:
            detail = "another cell is running"
            self.send(*cell.done("error", restarted=False, detail=detail))
            return
        self.cell = cell
        if self.worker is None:
            try:
                self.start_worker()
            except OSError as error:
                self.lost = f"No Python process could be started: {error}"
                self.finish("died")
                return
        assert self.worker
        self.kills_before = out_of_memory_kills()
        self.tell(self.worker, Kind.CODE, code)

    def interrupt(self, cell_id: Any, grace_s: float) -> None:
        if self.cell and cell_id in (self.cell.id, None):
            self.cell.stop("interrupted", time.monotonic(), grace_s)

    def put(self, header: Header, piece: bytes) -> None:
        request_id, error = header["id"], None
        name, link, at, last = (header[key] for key in ("name", "link", "at", "last"))
        try:
            if not self.folder.put(request_id, name, link, at, last, piece):
                return
        except (Refused, OSError) as refusal:
            error = in_words(refusal)
        self.send(pack_frame({"op": "put", "id": request_id, "error": error}))

    def list_files(self, header: Header) -> None:
        files, truncated = self.folder.list()
        answer = {"op": "files", "id": header["id"], "truncated": truncated}
        self.send(pack_frame(answer, json.dumps(files, ensure_ascii=False).encode()))

    def pieces(self, header: Header, name: str, max_bytes: int) -> Iterator[bytes]:
        answer = {"op": "data", "id": header["id"]}
        try:
            for at, piece, last in self.folder.get(name, max_bytes):
                yield pack_frame({**answer, "at": at, "last": last}, piece)
        except (Refused, OSError) as refusal:
            yield pack_frame({**answer, "error": in_words(refusal), "last": True})

    def fetch(self) -> None:
        """Read on in the files that the host wants, as fast as it takes them."""
        while self.fetches and self.has_room():
            frame = next(self.fetches[0], None)
            if frame is None:
                self.fetches.popleft()
            else:
                self.send(frame)

    # --- the worker ---

    def start_worker(self) -> None:
        self.kills_before = out_of_memory_kills()
        self.worker = Worker(self.live)
        self.quiet_until = 0.0

    def stop_worker(self) -> None:
        """And every other process; what it has said is still heard."""
        kill_everyone()
        worker, self.worker = self.worker, None
        if worker:
            self.drain(worker)
            worker.close()

    def tell(self, worker: Worker, kind: Kind, body: bytes = b"") -> None:
        # If it cannot listen any more, its end is noticed elsewhere.
        with suppress(OSError):
            worker.outlet.put(pack_message(kind, body))

    def hear_worker(self, worker: Worker) -> None:
        with suppress(OSError):
            worker.outlet.flush()
        try:
            arrived = read_some(worker.channel)
            if arrived == b"":
                status = worker.ending()
                if status is None:
                    raise Unreadable("its channel is closed")
                self.lose_worker(self.cause_of_death(status))
                return
            worker.arrived += arrived or b""
            for message in take_messages(worker.arrived):
                self.take(worker, message)
        except Unreadable as error:
            self.lose_worker(f"The Python process broke off: {error}.")

    def take(self, worker: Worker, message: Message) -> None:
        """What was written before comes before: text has to be fetched from the pipes first."""
        kind, waits, body = message
        self.read_pipes(worker, to_the_end=True)
        if self.cell:
            match kind:
                case Kind.RESULT:
                    self.send(*self.cell.said("result", body.decode(errors="replace")))
                case Kind.ERROR:
                    self.send(*self.cell.said("error", body.decode(errors="replace")))
                case Kind.IMAGE:
                    self.send(*self.cell.drew(body))
                case Kind.DONE:
                    self.finish("ok" if body == b"ok" else "error")
                case _:
                    raise Unreadable("it sent something unknown")
        if waits:
            self.tell(worker, Kind.SEEN)

    def read_pipes(self, worker: Worker, *, to_the_end: bool = False) -> None:
        """To the end: what is in them now, and no more of a flood that goes on."""
        for pipe, stream in list(worker.pipes.items()):
            read_bytes = 0
            while read_bytes < PIPE_MAX_BYTES:
                piece = read_some(pipe)
                if piece == b"":
                    os.close(pipe)
                    del worker.pipes[pipe]
                if not piece:
                    break
                if self.cell:
                    self.send(*self.cell.written(stream, piece))
                read_bytes += len(piece)
                if not to_the_end:
                    break
            if 0 < read_bytes < READ_MAX_BYTES and self.cell and not self.cell.truncated:
                self.quiet_until = time.monotonic() + BATCH_S

    def drain(self, worker: Worker) -> None:
        """The last words of a worker that is dead."""
        with suppress(Unreadable):
            while arrived := read_some(worker.channel):
                worker.arrived += arrived
                for message in take_messages(worker.arrived):
                    self.take(worker, message)
        self.read_pipes(worker, to_the_end=True)

    def lose_worker(self, why: str) -> None:
        """The next cell gets a new one; forked only then, a worker that dies at once does not
        keep us busy."""
        self.lost = why
        self.stop_worker()
        if self.cell:
            self.finish(self.cell.ending or "died")

    def finish(self, status: str) -> None:
        assert self.cell
        cell, self.cell = self.cell, None
        lost, self.lost = self.lost, None
        self.send(*cell.done(cell.ending or status, restarted=lost is not None, detail=lost))

    # --- time and death ---

    def keep_time(self) -> None:
        if self.cell is None or self.worker is None:
            return
        now = time.monotonic()
        if self.cell.ending is None and now >= self.cell.deadline:
            self.cell.stop("timeout", now, GRACE_S)
        if now >= self.cell.kill_at:
            self.lose_worker("The code did not stop; its Python process was killed.")
        elif now >= self.cell.nudge_at:
            self.worker.interrupt()
            self.cell.nudged(now)

    def bury_children(self) -> None:
        """Orphans come to us as well."""
        while read_some(self.children_end):
            pass
        with suppress(ChildProcessError):
            while (buried := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = buried
                if self.worker and pid == self.worker.pid:
                    self.lose_worker(self.cause_of_death(status))

    def cause_of_death(self, status: int) -> str:
        return cause_of_death(status, out_of_memory_kills() > self.kills_before)

    def _hear_of_children(self) -> int:
        """A descriptor that is readable when one has ended. The handler does nothing, so that it
        is no matter who sends the signal."""
        heard, told = os.pipe()
        for end in (heard, told):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return heard


def in_words(refusal: Exception) -> str:
    if isinstance(refusal, OSError) and refusal.strerror:
        return f"{refusal.strerror}."
    return str(refusal)
