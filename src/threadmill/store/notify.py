"""Hints from one process to the others. Losing one may cost a second, never a run."""

import asyncio
from collections.abc import Callable

import psycopg
import structlog
from psycopg import AsyncConnection

from threadmill.store.database import Connection

log = structlog.get_logger()

_CHANNEL = "threadmill"
_RECONNECT_S = 1.0


async def hint(connection: Connection, message: str) -> None:
    """Tell every process that listens. Outside of any transaction: NOTIFY serialises commits."""
    await connection.execute("SELECT pg_notify(%s, %s)", [_CHANNEL, message])


class Hints:
    """Listens on a connection of its own, and comes back when that is lost."""

    def __init__(self, url: str, on_hint: Callable[[str], None]) -> None:
        self._url = url
        self._on_hint = on_hint
        self.listening = asyncio.Event()  # set while hints can arrive

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except psycopg.OperationalError as lost:
                log.warning("hints_lost", error=str(lost).strip())
            self.listening.clear()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self) -> None:
        connection = await AsyncConnection.connect(
            self._url, autocommit=True, application_name="threadmill hints"
        )
        async with connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            self.listening.set()
            async for notification in connection.notifies():
                self._on_hint(notification.payload)
