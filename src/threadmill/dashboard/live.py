"""What moves in open pages. However many are open, each kind of thing is looked at every 0.75 s,
all that is followed of it in one statement, and nobody looks while nobody follows. A page is sent
the parts of it that have changed.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threadmill.dashboard.session import Keys, Viewer, lasting
from threadmill.errors import Unavailable
from threadmill.runtime import Runtime
from threadmill.store.database import Connection, DatabaseError

log = structlog.get_logger()

_LOOKS_EVERY_S = 0.75  # so that with the look itself pages are told within a second
_SIGN_INS_LOOKED_AT_EVERY_S = 20.0
_STREAMS_MAX = 1000  # in one process
# The page closes its stream by it (`hx-sse:close="over"`), and does not come back.
_OVER = b"event: over\ndata: over\n\n"
_SIGNED_OUT = (
    '<p id="signed-out" class="problem" role="alert">You are signed out.'
    ' <a href="/ui/sign-in">Sign in again</a></p>'
)


class Shown(msgspec.Struct):
    """How things look."""

    parts: dict[str, str]  # HTML, by the id of the element whose place it takes
    is_over: bool = False  # none of it will move any more


class Topic(Protocol):
    """A kind of thing that pages follow. There is one object of it in the process."""

    async def look(self, connection: Connection, subjects: list[str]) -> Mapping[str, Any]:
        """How they stand, in one statement; what is gone is left out, and followed no more."""

    async def show(self, subject: str, seen: Any) -> Shown:
        """Called where what was seen is not equal to what was seen before."""


class LiveStream(Response):
    """An answer that goes on. A slow reader gets the newest of each part: none waits in a row."""

    def __init__(
        self, viewer: Viewer, circle: "_Circle", subject: str, keep_alive_s: float
    ) -> None:
        super().__init__()
        self.viewer = viewer
        self.subject = subject
        self._circle = circle
        self._keep_alive_s = keep_alive_s
        self._unsent: dict[str, str] = {}
        self._is_over = False
        self._has_ended = False
        self._news = asyncio.Event()

    def put(self, parts: dict[str, str]) -> None:
        self._unsent |= parts
        self._news.set()

    def end(self, *, is_over: bool = False) -> None:
        """A page whose stream ends comes back for another, unless it is over."""
        self._is_over |= is_over
        self._has_ended = True
        self._news.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # or nginx gathers the events
        ]
        gone = asyncio.create_task(self._watch(receive))
        self._circle.join(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while (frames := await self._read()) is not None:
                await send({"type": "http.response.body", "body": frames, "more_body": True})
            last = _OVER if self._is_over else b""
            await send({"type": "http.response.body", "body": last})
        finally:
            gone.cancel()
            self._circle.leave(self)

    async def _read(self) -> bytes | None:
        """The next to send; a comment where there was nothing for long."""
        try:
            async with asyncio.timeout(self._keep_alive_s):
                await self._news.wait()
        except TimeoutError:
            return b": still here\n\n"
        self._news.clear()
        unsent, self._unsent = self._unsent, {}
        if unsent:
            if self._has_ended:
                self._news.set()
            return _frame(unsent)
        return None if self._has_ended else b": still here\n\n"

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end()


class Live:
    def __init__(
        self,
        runtime: Runtime,
        keys: Keys,
        *,
        sign_ins_looked_at_every_s: float = _SIGN_INS_LOOKED_AT_EVERY_S,
    ) -> None:
        self._runtime = runtime
        self._keys = keys
        self._sign_ins_every_s = sign_ins_looked_at_every_s
        self._circles: dict[Topic, _Circle] = {}

    def follow(self, viewer: Viewer, topic: Topic, subject: str) -> LiveStream:
        """For a page at which the viewer looks. That the subject is of the viewer's project is for
        the caller to know. Raises Unavailable."""
        if self._runtime.is_ending:
            raise Unavailable("The server is shutting down.")
        if sum(circle.size for circle in self._circles.values()) >= _STREAMS_MAX:
            raise Unavailable(f"{_STREAMS_MAX} pages are followed already.")
        if topic not in self._circles:
            self._circles[topic] = _Circle(self._runtime, self._keys, topic, self._sign_ins_every_s)
        circle = self._circles[topic]
        return LiveStream(viewer, circle, subject, self._runtime.settings.stream_keep_alive_s)


class _Circle:
    """Those who follow one topic."""

    def __init__(self, runtime: Runtime, keys: Keys, topic: Topic, sign_ins_every_s: float) -> None:
        self._runtime = runtime
        self._keys = keys
        self._topic = topic
        self._sign_ins_every_s = sign_ins_every_s
        self._streams: dict[str, set[LiveStream]] = {}  # by subject
        self._seen: dict[str, Any] = {}
        self._shown: dict[str, dict[str, str]] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        return sum(map(len, self._streams.values()))

    def join(self, stream: LiveStream) -> None:
        self._streams.setdefault(stream.subject, set()).add(stream)
        if parts := self._shown.get(stream.subject):
            stream.put(parts)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())

    def leave(self, stream: LiveStream) -> None:
        others = self._streams.get(stream.subject, set())
        others.discard(stream)
        if not others:
            for of_subject in (self._streams, self._seen, self._shown):
                of_subject.pop(stream.subject, None)

    async def _look_on(self) -> None:
        """Until nobody follows any more."""
        try:
            looked_at_sign_ins = time.monotonic()
            while self._streams and not self._runtime.is_ending:
                began = time.monotonic()
                try:
                    if began - looked_at_sign_ins >= self._sign_ins_every_s:
                        looked_at_sign_ins = began
                        await self._look_at_sign_ins()
                    await self._look()
                except DatabaseError as away:  # pages stand still until it is back
                    log.warning("live_pages_stand_still", error=str(away).strip())
                await asyncio.sleep(max(began + _LOOKS_EVERY_S - time.monotonic(), 0.1))
        except Exception as fault:
            log.error("live_pages_failed", exc_info=fault)
        finally:
            self._looking = None
            for stream in self._all():
                stream.end()

    async def _look(self) -> None:
        subjects = list(self._streams)
        if not subjects:
            return
        async with self._runtime.database.connection() as connection:
            seen = await self._topic.look(connection, subjects)
        for subject in subjects:
            streams = self._streams.get(subject)
            if not streams:
                continue
            if subject not in seen:
                self._end(streams)
            elif subject not in self._seen or self._seen[subject] != seen[subject]:
                shown = await self._topic.show(subject, seen[subject])
                # Somebody may have left while it was made, or have come and got the last one.
                if streams := self._streams.get(subject):
                    self._seen[subject] = seen[subject]
                    self._tell(subject, streams, shown)

    def _tell(self, subject: str, streams: Iterable[LiveStream], shown: Shown) -> None:
        before = self._shown.get(subject, {})
        self._shown[subject] = shown.parts
        changed = {name: part for name, part in shown.parts.items() if before.get(name) != part}
        for stream in streams:
            if changed:
                stream.put(changed)
            if shown.is_over:
                stream.end(is_over=True)

    def _end(self, streams: Iterable[LiveStream]) -> None:
        for stream in streams:
            stream.end(is_over=True)

    async def _look_at_sign_ins(self) -> None:
        streams = self._all()
        signed_in = await lasting(self._runtime, self._keys, [one.viewer for one in streams])
        for stream in streams:
            if stream.viewer.token_hash not in signed_in:
                stream.put({"signed-out": _SIGNED_OUT})
                stream.end(is_over=True)

    def _all(self) -> list[LiveStream]:
        return [stream for streams in self._streams.values() for stream in streams]


def _frame(parts: dict[str, str]) -> bytes:
    html = "".join(
        f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">{part}</hx-partial>'
        for name, part in parts.items()
    )
    lines = html.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines).encode() + b"\n"
