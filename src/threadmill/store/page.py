"""Cursor paging, written once for every list."""

from typing import Any, Protocol, TypeVar

import msgspec
from psycopg.rows import args_row

from threadmill.errors import NotFound, not_found
from threadmill.store.database import Connection
from threadmill.store.rows import columns

Row = TypeVar("Row", bound=msgspec.Struct)


class Cursor(Protocol):
    """What a client asks of a list; `after` and `before` are ids, both exclusive."""

    @property
    def limit(self) -> int: ...
    @property
    def order(self) -> str: ...
    @property
    def after(self) -> str | None: ...
    @property
    def before(self) -> str | None: ...


async def page(
    connection: Connection,
    row: type[Row],
    table: str,
    cursor: Cursor,
    noun: str,
    **scope: Any,
) -> tuple[list[Row], bool]:
    """One page of the rows whose columns equal `scope`, and whether there are more behind it.

    Sorted by `seq`, the order of creation. With `before` alone the page is the one that ends there,
    as a reader who pages backwards expects. Raises NotFound for a cursor that is not in the list.
    """
    backwards = cursor.before is not None and cursor.after is None
    newest_first = cursor.order == "desc"
    where = [f"{column} = %({column})s" for column in scope]
    for value, name, comes_after in (
        (cursor.after, "after", True),
        (cursor.before, "before", False),
    ):
        if value is not None:
            sign = "<" if newest_first == comes_after else ">"
            of_scope = " AND ".join([*where[: len(scope)], f"id = %({name})s"])
            where.append(f"seq {sign} (SELECT seq FROM {table} WHERE {of_scope})")
    direction = "DESC" if newest_first != backwards else "ASC"
    statement = (
        f"SELECT {columns(row)} FROM {table} WHERE {' AND '.join(where) or 'true'}"
        f" ORDER BY seq {direction} LIMIT %(limit)s"
    )
    values = scope | {
        "after": cursor.after,
        "before": cursor.before,
        "limit": cursor.limit + 1,
    }
    async with connection.cursor(row_factory=args_row(row)) as found:
        await found.execute(statement, values)
        rows = await found.fetchall()
    if not rows:
        await _check_cursors(connection, table, cursor, noun, scope)
    has_more = len(rows) > cursor.limit
    rows = rows[: cursor.limit]
    if backwards:
        rows.reverse()
    return rows, has_more


async def _check_cursors(
    connection: Connection, table: str, cursor: Cursor, noun: str, scope: dict[str, Any]
) -> None:
    """An unknown cursor makes an empty page: tell it from a list that is over."""
    where = " AND ".join([*(f"{column} = %({column})s" for column in scope), "id = %(id)s"])
    statement = f"SELECT 1 FROM {table} WHERE {where}"
    for name, object_id in (("after", cursor.after), ("before", cursor.before)):
        if object_id is not None:
            known = await connection.execute(statement, scope | {"id": object_id})
            if await known.fetchone() is None:
                raise _missing(noun, object_id, name)


def _missing(noun: str, object_id: str, param: str) -> NotFound:
    error = not_found(noun, object_id)
    error.param = param
    return error
