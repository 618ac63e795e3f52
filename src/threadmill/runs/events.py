"""What a run says while it lives, and who listens.

`publish` is the one door: a client that streams reads what went through it, frame by frame.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from threadmill.schemas import objects
from threadmill.store.rows import Run, Step

_encode = msgspec.json.Encoder().encode

DONE = b"event: done\ndata: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
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
        self._backlog_bytes = 0
        self._backlog_max_bytes = backlog_max_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._has_ended = False
        self._silent_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def put(self, frames: bytes) -> None:
        if self._has_ended:
            return
        self._backlog.append(frames)
        self._backlog_bytes += len(frames)
        if self._backlog_bytes > self._backlog_max_bytes:
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
        self._backlog_bytes = 0
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

    def __init__(self, backlog_max_bytes: int) -> None:
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

    def shows_content(self, channel: str) -> bool:
        return any(listener.shows_content for listener in self._listeners.get(channel, ()))

    def publish(self, channel: str, frames: Iterable[bytes]) -> None:
        """Frames that are ready together leave together: one send instead of many."""
        listeners = self._listeners.get(channel)
        if listeners:
            together = b"".join(frames)
            for listener in listeners:
                listener.put(together)

    def end(self, channel: str) -> None:
        """Nothing more comes from this run here."""
        for listener in self._listeners.pop(channel, []):
            listener.end()


class Voice:
    """One run's way of speaking: it gathers events and sends them together."""

    def __init__(self, events: Events, channel: str) -> None:
        self._events = events
        self._channel = channel
        self._frames: list[bytes] = []

    @property
    def is_heard(self) -> bool:
        return self._events.has_listeners(self._channel)

    def say(self, name: str, data: Any) -> None:
        if self.is_heard:
            self._frames.append(frame(name, data))

    def say_step(self, name: str, step: Step) -> None:
        if self.is_heard:
            shows_content = self._events.shows_content(self._channel)
            wanted = objects.StepWithContent if shows_content else objects.Step
            self._frames.append(frame(name, objects.shape(step, wanted)))

    def say_frame(self, ready: bytes) -> None:
        self._frames.append(ready)

    def send(self) -> None:
        if self._frames:
            self._events.publish(self._channel, self._frames)
            self._frames.clear()

    def end(self) -> None:
        """Close the stream: every one ends with `done`."""
        self._frames.append(DONE)
        self.send()
        self._events.end(self._channel)

    def break_off(self) -> None:
        """Close the stream without an end: the run is gone, or somebody else goes on with it."""
        self._frames.append(CUT_SHORT)
        self.send()
        self._events.end(self._channel)
