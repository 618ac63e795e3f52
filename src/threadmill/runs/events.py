"""What a run says while it lives, and who listens.

`publish` is the one door: a client that streams reads what went through it, frame by frame. The
same goes into the event log (log.py), out of which everybody else hears of the run (follow.py).
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from threadmill.runs import seq
from threadmill.runs.log import EventLog, Record
from threadmill.schemas import objects
from threadmill.store.rows import Run, Step
from threadmill.store.run_events import Row

_encode = msgspec.json.Encoder().encode

DONE = b"event: done\ndata: [DONE]\n\n"
# No empty line behind it: with ids, the official Python SDK takes that for an event without data.
KEEP_ALIVE = b": keep-alive\n"
# A stream that just ended would look like a run that did.
_CUT_SHORT = {
    "message": "The stream was cut short. Its run may go on: retrieve it to see.",
    "type": "server_error",
    "param": None,
    "code": None,
}


def frame(name: str, data: Any) -> bytes:
    """One server-sent event with its data as a single line of JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


def channel(run: Run) -> str:
    """Where the run is heard, under its present claim: an execution that has lost its run, and does
    not know it yet, must not talk into the stream of the next one."""
    return f"{run.id}/{run.claims}"


CUT_SHORT = frame("error", {"error": _CUT_SHORT})  # nested, or the SDKs do not raise it


class Listener:
    """The events of one run on their way to one client."""

    def __init__(self, backlog_max_bytes: int, *, shows_content: bool = False) -> None:
        self.shows_content = shows_content  # of the results of file_search
        self._backlog: list[bytes] = []
        self.backlog_bytes = 0
        self._backlog_max_bytes = backlog_max_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._has_ended = False
        self._silent_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def put(self, frames: bytes) -> None:
        if self._has_ended:
            return
        self._backlog.append(frames)
        self.backlog_bytes += len(frames)
        if self.backlog_bytes > self._backlog_max_bytes:
            # The client does not read. It loses its stream, not the run.
            self._backlog = [CUT_SHORT]
            self._has_ended = True
        self._wake()

    def end(self) -> None:
        self._has_ended = True
        self._wake()

    async def read(self, keep_alive_s: float) -> bytes | None:
        """All that has come since the last call, waiting for the first of it; None at the end.

        A comment line when nothing came for `keep_alive_s`, so that no proxy cuts the connection.
        """
        if not self._backlog and not self._has_ended:
            self._waiter = asyncio.get_running_loop().create_future()
            self._set_alarm(keep_alive_s)
            try:
                await self._waiter
            finally:
                self._waiter = None
            if not self._backlog and not self._has_ended:
                return KEEP_ALIVE
        if not self._backlog:
            return None
        frames = b"".join(self._backlog)
        self._backlog.clear()
        self.backlog_bytes = 0
        return frames

    def _set_alarm(self, keep_alive_s: float) -> None:
        """One timer for the whole stream: setting and cancelling one for every piece of text would
        cost as much as sending it."""
        loop = asyncio.get_running_loop()
        self._silent_at = loop.time() + keep_alive_s
        if self._alarm is None:
            self._alarm = loop.call_at(self._silent_at, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        if self._waiter is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._silent_at:
            self._alarm = loop.call_at(self._silent_at, self._on_alarm)
        else:
            self._wake()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Events:
    """The runs that this process executes, and the clients that listen to them."""

    def __init__(self, backlog_max_bytes: int, log: EventLog | None) -> None:
        self.log = log  # None: it is off
        self._backlog_max_bytes = backlog_max_bytes
        self._listeners: dict[str, list[Listener]] = {}

    def listen(self, channel: str, *, shows_content: bool = False) -> Listener:
        listener = Listener(self._backlog_max_bytes, shows_content=shows_content)
        self._listeners.setdefault(channel, []).append(listener)
        return listener

    def leave(self, channel: str, listener: Listener) -> None:
        listener.close()
        listeners = self._listeners.get(channel, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(channel, None)

    def has_listeners(self, channel: str) -> bool:
        return channel in self._listeners

    def publish(self, channel: str, frames: bytes, plain: bytes | None = None) -> None:
        """`plain` for those who do not want to see the content, where that makes a difference."""
        for listener in self._listeners.get(channel, ()):
            listener.put(frames if plain is None or listener.shows_content else plain)

    def row(self, run_id: str, said: "Said") -> Row | None:
        """What is said of a run that nobody holds, for the log if that is on."""
        if self.log is None:
            return None
        return Row(run_id, said.first_seq, said.last_seq, False, said.frames)

    def end(self, channel: str) -> None:
        """Nothing more comes from this run here."""
        for listener in self._listeners.pop(channel, []):
            listener.end()


class Said(msgspec.Struct):
    """Events with their numbers."""

    first_seq: int
    last_seq: int
    frames: bytes


def said(first_seq: int, frames: list[bytes]) -> Said:
    together = b"".join(map(_numbered, itertools.count(first_seq), frames))
    return Said(first_seq, first_seq + len(frames) - 1, together)


def opening(claims: int, frames: list[bytes]) -> Said:
    """What is said under a claim by whoever asks for it, before anybody holds it."""
    return said(seq.first_said(claims) - len(frames), frames)


class Voice:
    """One run's way of speaking: it gathers events and sends them together."""

    def __init__(self, events: Events, run: Run) -> None:
        self._events = events
        self._channel = channel(run)
        self._next_seq = seq.first_said(run.claims)
        self.is_opened = False
        self._frames: list[bytes] = []
        self._record: Record | None = None
        if events.log is not None:
            self._record = events.log.record(run.id, self._settle)
        self._pieces: list[str] = []  # of a text that nobody listens to, not made an event yet
        self._make: Callable[[str, bool], bytes] | None = None
        self._is_first = False

    @property
    def is_heard(self) -> bool:
        """By somebody, now or later."""
        return self._record is not None or self._events.has_listeners(self._channel)

    def open(self, opening: Said) -> None:
        self.is_opened = True
        self._events.publish(self._channel, opening.frames, without_content(opening.frames))
        if self._record is not None:
            self._record.add(opening.frames, opening.first_seq, opening.last_seq)

    def expect_followers(self, for_s: float) -> None:
        """Somebody who is not here may be waiting for what is said."""
        if self._record is not None:
            self._record.watch(for_s)

    def say(self, name: str, data: Any) -> None:
        if self.is_heard:
            self.say_frame(frame(name, data))

    def say_step(self, name: str, step: Step) -> None:
        if not self.is_heard:
            return
        whole = frame(name, objects.shape(step, objects.StepWithContent))
        if b'"file_search":' not in whole:
            self.say_frame(whole)
            return
        self._settle()
        whole = _numbered(self._next_seq, whole)
        self._publish(whole, without_content(whole), 1)

    def say_frame(self, ready: bytes) -> None:
        if self._pieces:
            self._put_text()
        self._frames.append(_numbered(self._next_seq + len(self._frames), ready))

    def say_piece(self, make: Callable[[str, bool], bytes], piece: str, is_first: bool) -> None:
        """A piece of a text, `is_first` if it begins with it. Where nobody listens now, all pieces
        that come until the log is written become one event."""
        if self._events.has_listeners(self._channel):
            self.say_frame(make(piece, is_first))
        elif self._record is not None:
            if make is not self._make and self._pieces:
                self._put_text()
            if not self._pieces:
                self._make, self._is_first = make, is_first
                self._record.touch()
            self._pieces.append(piece)

    def send(self) -> None:
        if self._frames:
            count = len(self._frames)
            together = b"".join(self._frames)
            self._frames.clear()
            self._publish(together, None, count)

    def end(self) -> None:
        """Close the stream: every one ends with `done`."""
        self.say_frame(DONE)
        self.close()

    def break_off(self) -> None:
        """Close the stream without an end: the run is gone, or somebody else goes on with it. Who
        follows the run by the log need not know."""
        self._settle()
        self._events.publish(self._channel, CUT_SHORT)
        self.close()

    def close(self) -> None:
        self._settle()
        self._events.end(self._channel)
        if self._record is not None:
            self._record.close()

    def _settle(self) -> None:
        if self._pieces:
            self._put_text()
        self.send()

    def _put_text(self) -> None:
        assert self._make is not None
        text, make, self._make = "".join(self._pieces), self._make, None
        self._pieces.clear()
        self.say_frame(make(text, self._is_first))

    def _publish(self, frames: bytes, plain: bytes | None, count: int) -> None:
        first_seq = self._next_seq
        self._next_seq += count
        self._events.publish(self._channel, frames, plain)
        if self._record is not None:
            self._record.add(frames, first_seq, self._next_seq - 1)


def _numbered(number: int, ready: bytes) -> bytes:
    return b"id: %d\n%b" % (number, ready)


def split(frames: bytes) -> list[bytes]:
    """One by one. JSON has no line breaks, so an empty line is the end of an event."""
    return [one + b"\n\n" for one in frames.split(b"\n\n")[:-1]]


def behind(frames: bytes, number: int) -> bytes:
    """Those that come after the one with this number."""
    head = b"id: %d\n" % (number + 1)
    if frames.startswith(head):
        return frames
    at = frames.find(b"\n\n" + head)
    return frames[at + 2 :] if at >= 0 else b""


def without_content(frames: bytes) -> bytes:
    """As they are for those who did not ask for the text of what file_search has found."""
    if b'"file_search":' not in frames:
        return frames
    return b"".join(map(_without_content, split(frames)))


def _without_content(one: bytes) -> bytes:
    head, _, data = one.partition(b"\ndata: ")
    if b"\nevent: thread.run.step." not in head or head.endswith(b".delta"):
        return one
    step = msgspec.json.decode(data, type=objects.Step)
    return b"%b\ndata: %b\n\n" % (head, _encode(step))
