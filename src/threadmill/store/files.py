"""Files: what is known of them. Their bytes lie in the blob store under the file's id."""

import time

from threadmill.errors import NotFound
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.rows import File, columns

_COLUMNS = columns(File)


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
    """Raises NotFound also for a file that has expired and is not swept yet."""
    row = await query.one(
        connection,
        File,
        f"SELECT {_COLUMNS} FROM files WHERE id = %(id)s AND project_id = %(project_id)s"
        " AND (expires_at IS NULL OR expires_at > %(now)s)",
        {"id": file_id, "project_id": project_id, "now": int(time.time())},
    )
    if row is None:
        raise missing(file_id)
    return row


async def names(connection: Connection, project_id: str, file_ids: list[str]) -> dict[str, str]:
    """The names of those of the files that exist."""
    cursor = await connection.execute(
        "SELECT id, filename FROM files WHERE id = ANY(%(ids)s) AND project_id = %(project_id)s"
        " AND (expires_at IS NULL OR expires_at > %(now)s)",
        {"ids": file_ids, "project_id": project_id, "now": int(time.time())},
    )
    return dict(await cursor.fetchall())
