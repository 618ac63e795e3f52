"""The connections to Postgres.

Statements are written by hand and run by psycopg: an SQLAlchemy Core statement costs three to four
times the CPU, and a run has to get by with few milliseconds. Connections are in autocommit mode, so
that a single statement is one round trip and one commit; what takes several says `transaction()`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import psycopg
import psycopg.types.json
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8Dumper
from psycopg_pool import AsyncConnectionPool, PoolTimeout

Connection = AsyncConnection[TupleRow]

# What callers may catch, so that they need not know psycopg.
DatabaseError = psycopg.Error
Unreachable = psycopg.OperationalError  # not there, gone in the middle, or no connection free
NoConnectionFree = PoolTimeout  # nothing was sent

_ACQUIRE_TIMEOUT_S = 10.0


def is_not_a_url(fault: DatabaseError) -> bool:
    """Whether the URL of the database is what is wrong; the words repeat it, password and all."""
    return isinstance(fault, psycopg.ProgrammingError) and fault.sqlstate is None


class Database:
    def __init__(self, url: str, *, max_connections: int = 20) -> None:
        self.url = url
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            min_size=2,
            max_size=max_connections,
            timeout=_ACQUIRE_TIMEOUT_S,
            open=False,
            configure=prepare,
            kwargs=CONNECT,
            name="threadmill",
        )

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=_ACQUIRE_TIMEOUT_S)

    async def close(self) -> None:
        await self._pool.close()

    def use(self) -> dict[str, int]:
        """How many connections there are, are in use and may be, and how many wait for one."""
        stats = self._pool.get_stats()
        opened = stats["pool_size"]
        return {
            "open": opened,
            "in_use": opened - stats["pool_available"],
            "max": stats["pool_max"],
            "waiting": stats["requests_waiting"],
        }

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection on which every statement commits by itself."""
        async with self._pool.connection() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection whose statements all take effect at the end of the block, or none."""
        async with self._pool.connection() as connection, connection.transaction():
            yield connection


# Hot statements are few: prepare each at its second use, not its sixth.
CONNECT: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": 1,
    "application_name": "threadmill",
}
_PREPARED_MAX = 500  # statements kept prepared on each connection


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """A single connection, for a command that needs no more."""
    async with await AsyncConnection.connect(url, **CONNECT) as connection:
        await prepare(connection)
        yield connection


async def prepare(connection: Connection) -> None:
    connection.prepared_max = _PREPARED_MAX
    # One type for all integers, or each mixture of int2, int4 and int8 is a statement of its own.
    connection.adapters.register_dumper(int, Int8Dumper)
    psycopg.types.json.set_json_loads(orjson.loads, connection)
    psycopg.types.json.set_json_dumps(orjson.dumps, connection)
