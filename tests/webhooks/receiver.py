"""A client's server that takes webhooks, over real HTTP."""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from aiohttp import web


class Taken(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        return orjson.loads(self.body)


class Receiver:
    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.statuses: list[int] = []  # of the next answers; 200 when there are none left
        self.holds: set[str] = set()  # paths that never answer
        self.headers: dict[str, str] = {}
        self.address = ""
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Receiver":
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def received(self, count: int, patience_s: float = 30) -> list[Taken]:
        async with asyncio.timeout(patience_s), self._changed:
            await self._changed.wait_for(lambda: len(self.taken) >= count)
        return self.taken

    async def _take(self, request: web.Request) -> web.StreamResponse:
        taken = Taken(request.path, request.headers.copy(), await request.read())
        async with self._changed:
            self.taken.append(taken)
            self._changed.notify_all()
        if request.path in self.holds:
            await asyncio.Event().wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers=self.headers)
