"""Server-sent events: one run's stream to one client, wherever the run is executed."""

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threadmill.errors import NotFound
from threadmill.runs.events import Events, Listener, Said, channel, without_content
from threadmill.runs.follow import Follower, Followers
from threadmill.store.rows import Run


class Streams:
    """The ways to hear of a run."""

    def __init__(self, events: Events, followers: Followers | None, keep_alive_s: float) -> None:
        self._events = events
        self._followers = followers  # None: there is no event log
        self._keep_alive_s = keep_alive_s

    def here(self, run: Run, *, shows_content: bool) -> "EventStream":
        """Of a run that this process is about to execute."""
        heard_on = channel(run)
        listener = self._events.listen(heard_on, shows_content=shows_content)
        leave = partial(self._events.leave, heard_on, listener)
        return EventStream(listener, self._keep_alive_s, leave)

    def elsewhere(self, run: Run, opening: Said, *, shows_content: bool) -> "EventStream":
        """Of a run that was put into the queue with its opening."""
        assert self._followers is not None  # else this process would have taken the run
        follower = self._followers.follow(run.id, opening.last_seq, shows_content=shows_content)
        frames = opening.frames
        follower.listener.put(frames if shows_content else without_content(frames))
        return self._of(self._followers, follower)

    async def pick_up(self, run: Run, after: int, *, shows_content: bool) -> "EventStream":
        """Of a run of which the client may have heard before."""
        if self._followers is None:
            raise NotFound("This server keeps no events.", code="events_gone")
        follower = await self._followers.pick_up(run, after, shows_content=shows_content)
        return self._of(self._followers, follower)

    def _of(self, followers: Followers, follower: Follower) -> "EventStream":
        leave = partial(followers.leave, follower)
        return EventStream(follower.listener, self._keep_alive_s, leave)


class EventStream(Response):
    """An answer that passes on what a listener hears. Whoever hangs up stops listening; the
    run goes on."""

    def __init__(self, listener: Listener, keep_alive_s: float, leave: Callable[[], None]) -> None:
        super().__init__()  # FastAPI passes on what it knows as a response
        self._listener = listener
        self._keep_alive_s = keep_alive_s
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # or nginx gathers the events
        ]
        gone = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while (frames := await self._listener.read(self._keep_alive_s)) is not None:
                await send({"type": "http.response.body", "body": frames, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self._leave()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._listener.end()
