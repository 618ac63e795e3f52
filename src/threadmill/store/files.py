"""Files: what is known of them. Their bytes lie in the blob store under the file's id.

A file that has expired counts as gone, though its row stays until the next sweep.
"""

from typing import Any

from threadmill.errors import NotFound
from threadmill.store import query, vector_stores
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import File, columns

_COLUMNS = columns(File)
_ALIVE = "(expires_at IS NULL OR expires_at > extract(epoch FROM now()))"


def missing(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", param="id")


async def create(connection: Connection, file: File) -> None:
    fields = file.__struct_fields__
    await query.execute(
        connection,
        f"INSERT INTO files ({_COLUMNS}) VALUES ({', '.join(f'%({name})s' for name in fields)})",
        {name: getattr(file, name) for name in fields},
    )


async def get(connection: Connection, project_id: str, file_id: str) -> File:
    row = await query.one(
        connection,
        File,
        f"SELECT {_COLUMNS} FROM files WHERE id = %(id)s AND project_id = %(project_id)s"
        f" AND {_ALIVE}",
        {"id": file_id, "project_id": project_id},
    )
    if row is None:
        raise missing(file_id)
    return row


async def find(connection: Connection, project_id: str, file_ids: list[str]) -> list[File]:
    """Those of the files that exist."""
    return await query.many(
        connection,
        File,
        f"SELECT {_COLUMNS} FROM files WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s"
        f" AND {_ALIVE}",
        {"ids": file_ids, "project_id": project_id},
    )


async def names(
    connection: Connection, project_id: str, file_ids: list[str], *, hold: bool = False
) -> dict[str, str]:
    """The names of those of the files that exist. With `hold` none of them is deleted until the
    transaction ends."""
    cursor = await connection.execute(
        "SELECT id, filename FROM files WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s"
        f" AND {_ALIVE}" + (" ORDER BY id FOR KEY SHARE" if hold else ""),
        {"ids": file_ids, "project_id": project_id},
    )
    return dict(await cursor.fetchall())


async def list_page(
    connection: Connection, project_id: str, cursor: Cursor, purpose: str | None = None
) -> tuple[list[File], bool]:
    alive = f"(SELECT * FROM files WHERE {_ALIVE}) AS alive"
    scope = {"project_id": project_id} | ({"purpose": purpose} if purpose else {})
    return await page(connection, File, alive, cursor, "file", **scope)


async def remove(connection: Connection, project_id: str, file_id: str) -> None:
    """Wants a transaction. The bytes are gone once `spent_blobs` were looked after."""
    await get(connection, project_id, file_id)
    # Threads before files: a message that brings a file locks them in this order.
    await _detach(connection, [project_id], [file_id])
    scope = {"id": file_id, "project_id": project_id}
    if not await query.execute(
        connection,
        f"SELECT FROM files WHERE id = %(id)s AND project_id = %(project_id)s AND {_ALIVE}"
        " FOR UPDATE",
        scope,
    ):
        raise missing(file_id)  # somebody else was faster
    await vector_stores.detach_everywhere(connection, [file_id])
    await _delete(connection, [file_id])


async def remove_expired(connection: Connection, limit: int) -> list[str]:
    """Remove up to `limit` files that have expired; their ids. Wants a transaction."""
    cursor = await connection.execute(
        f"SELECT id, project_id FROM files WHERE NOT {_ALIVE}"
        " ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED",
        {"limit": limit},
    )
    return await _remove(connection, await cursor.fetchall())


async def remove_old(
    connection: Connection, project_id: str, made_before: int, limit: int
) -> list[File]:
    """Remove up to `limit` files of that age that nothing needs. Wants a transaction."""
    old = await query.many(
        connection,
        File,
        f"SELECT {_COLUMNS} FROM files WHERE {OLD} ORDER BY seq LIMIT %(limit)s"
        " FOR UPDATE SKIP LOCKED",
        {"project_id": project_id, "made_before": made_before, "limit": limit},
    )
    await _remove(connection, [(file.id, file.project_id) for file in old])
    return old


# What an assistant works with, or can be searched in a vector store that has not expired, is needed
# however old it is.
OLD = """
    project_id = %(project_id)s AND created_at < %(made_before)s
    AND NOT EXISTS (
        SELECT FROM vector_store_files AS held
            JOIN vector_stores AS stores ON stores.id = held.vector_store_id
        WHERE held.id = files.id
            AND (stores.expires_at IS NULL OR stores.expires_at > extract(epoch FROM now()))
    )
    AND id NOT IN (
        SELECT named.id FROM assistants,
            json_array_elements_text(tool_resources #> '{code_interpreter,file_ids}') AS named (id)
        WHERE assistants.project_id = %(project_id)s
    )
"""


async def _remove(connection: Connection, found: list[Any]) -> list[str]:
    file_ids = [file_id for file_id, _ in found]
    if found:
        await vector_stores.detach_everywhere(connection, file_ids)
        await _delete(connection, file_ids)
        await _detach(connection, sorted({project_id for _, project_id in found}), file_ids)
    return file_ids


async def _delete(connection: Connection, file_ids: list[str]) -> None:
    await query.execute(
        connection,
        "WITH removed AS (DELETE FROM files WHERE id = ANY(%(ids)s) RETURNING id)"
        " INSERT INTO spent_blobs (id) SELECT id FROM removed",
        {"ids": file_ids},
    )


async def spent_blobs(
    connection: Connection, limit: int, file_ids: list[str] | None = None
) -> list[str]:
    """The ids of bytes whose file is gone: of these files, or of any."""
    of_files = "" if file_ids is None else " WHERE id = ANY(%(ids)s)"
    cursor = await connection.execute(
        f"SELECT id FROM spent_blobs{of_files} LIMIT %(limit)s", {"ids": file_ids, "limit": limit}
    )
    return [file_id for (file_id,) in await cursor.fetchall()]


async def forget_blobs(connection: Connection, file_ids: list[str]) -> None:
    await query.execute(
        connection, "DELETE FROM spent_blobs WHERE id = ANY(%(ids)s)", {"ids": file_ids}
    )


async def _detach(connection: Connection, project_ids: list[str], file_ids: list[str]) -> None:
    """Take the files from every assistant and thread that gives them to its code interpreter."""
    values: dict[str, Any] = {"project_ids": project_ids, "file_ids": file_ids}
    for table in ("assistants", "threads"):
        # In the order of ids: two that detach files from the same rows would else wait for each
        # other. Rebuilt key by key: going through jsonb as a whole would change their order.
        statement = f"""
            WITH holding AS (
                SELECT id FROM {table}
                WHERE project_id = ANY(%(project_ids)s)
                    AND tool_resources #>> '{{code_interpreter,file_ids,0}}' IS NOT NULL
                    AND (tool_resources #> '{{code_interpreter,file_ids}}')::jsonb ?| %(file_ids)s
                ORDER BY id
                FOR NO KEY UPDATE
            )
            UPDATE {table} SET tool_resources = (
                SELECT json_object_agg(key, CASE key
                    WHEN 'code_interpreter' THEN json_build_object(
                        'file_ids', (value -> 'file_ids')::jsonb - %(file_ids)s::text[])
                    ELSE value END)
                FROM json_each({table}.tool_resources)
            )
            FROM holding WHERE {table}.id = holding.id
        """
        await query.execute(connection, statement, values)
