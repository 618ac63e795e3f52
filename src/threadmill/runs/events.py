"""What a run says while it lives, and who listens.

`publish` is the one door: a client that streams reads what went through it, frame by frame.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode

DONE = b"event: done\ndata: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def frame(name: str, data: Any) -> bytes:
    """One server-sent event with its data as a single line of JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


class Listener:
    """The events of one run on their way to one client."""

    def __init__(self, backlog_max_bytes: int) -> None:
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._backlog_max_bytes = backlog_max_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._has_ended = False

    def put(self, frames: bytes) -> None:
        if self._has_ended:
            return
        self._backlog.append(frames)
        self._backlog_bytes += len(frames)
        if self._backlog_bytes > self._backlog_max_bytes:
            # The client does not read. It loses its stream, not the run.
            self._backlog.clear()
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
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            alarm = loop.call_later(keep_alive_s, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                alarm.cancel()
            if not self._backlog and not self._has_ended:
                return KEEP_ALIVE
        if not self._backlog:
            return None
        frames = b"".join(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = 0
        return frames

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Events:
    """The runs that this process executes, and the clients that listen to them."""

    def __init__(self, backlog_max_bytes: int) -> None:
        self._backlog_max_bytes = backlog_max_bytes
        self._listeners: dict[str, list[Listener]] = {}

    def listen(self, run_id: str) -> Listener:
        listener = Listener(self._backlog_max_bytes)
        self._listeners.setdefault(run_id, []).append(listener)
        return listener

    def leave(self, run_id: str, listener: Listener) -> None:
        listeners = self._listeners.get(run_id, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(run_id, None)

    def has_listeners(self, run_id: str) -> bool:
        return run_id in self._listeners

    def publish(self, run_id: str, frames: Iterable[bytes]) -> None:
        """Frames that are ready together leave together: one send instead of many."""
        listeners = self._listeners.get(run_id)
        if listeners:
            together = b"".join(frames)
            for listener in listeners:
                listener.put(together)

    def end(self, run_id: str) -> None:
        """Nothing more comes from this run here."""
        for listener in self._listeners.pop(run_id, []):
            listener.end()


class Voice:
    """One run's way of speaking: it gathers events and sends them together."""

    def __init__(self, events: Events, run_id: str) -> None:
        self._events = events
        self._run_id = run_id
        self._frames: list[bytes] = []

    @property
    def is_heard(self) -> bool:
        return self._events.has_listeners(self._run_id)

    def say(self, name: str, data: Any) -> None:
        if self.is_heard:
            self._frames.append(frame(name, data))

    def say_frame(self, ready: bytes) -> None:
        self._frames.append(ready)

    def send(self) -> None:
        if self._frames:
            self._events.publish(self._run_id, self._frames)
            self._frames.clear()

    def end(self) -> None:
        """Close the stream: every one ends with `done`."""
        self._frames.append(DONE)
        self.send()
        self._events.end(self._run_id)

    def break_off(self) -> None:
        """Close the stream without an end: somebody else goes on with the run."""
        self.send()
        self._events.end(self._run_id)
