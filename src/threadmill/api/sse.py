"""Server-sent events: one run's stream to one client."""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threadmill.runs.events import Events, Listener


class EventStream(Response):
    """An answer that passes on what a listener hears. Whoever hangs up stops listening; the
    run goes on."""

    def __init__(
        self, events: Events, channel: str, listener: Listener, keep_alive_s: float
    ) -> None:
        super().__init__()  # FastAPI passes on what it knows as a response
        self._events = events
        self._channel = channel
        self._listener = listener
        self._keep_alive_s = keep_alive_s

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
            self._events.leave(self._channel, self._listener)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._listener.end()
