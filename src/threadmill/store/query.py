"""Running one statement and reading its rows."""

from typing import Any, TypeVar

import msgspec
from psycopg.rows import args_row

from threadmill.store.database import Connection

Row = TypeVar("Row", bound=msgspec.Struct)


async def one(
    connection: Connection, row: type[Row], statement: str, values: dict[str, Any]
) -> Row | None:
    """The statement's first row; its columns must be those of `row`, in order."""
    async with connection.cursor(row_factory=args_row(row)) as cursor:
        await cursor.execute(statement, values)
        return await cursor.fetchone()


async def many(
    connection: Connection, row: type[Row], statement: str, values: dict[str, Any]
) -> list[Row]:
    async with connection.cursor(row_factory=args_row(row)) as cursor:
        await cursor.execute(statement, values)
        return await cursor.fetchall()


async def value(connection: Connection, statement: str, values: dict[str, Any]) -> Any:
    """The first column of the first row, or None."""
    cursor = await connection.execute(statement, values)
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def execute(connection: Connection, statement: str, values: dict[str, Any]) -> int:
    """How many rows it touched."""
    cursor = await connection.execute(statement, values)
    return cursor.rowcount
