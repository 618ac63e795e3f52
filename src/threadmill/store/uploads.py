"""Uploads: a file that comes in parts. Each part's bytes lie in the blob store under its own id.

The rows of parts outlive what they were for, until their bytes are gone: `spent_parts` are those
whose upload is over, and whoever deletes the bytes calls `forget_parts` afterwards.
"""

from threadmill.errors import InvalidRequest, NotFound, not_found
from threadmill.lifecycle import UploadStatus
from threadmill.store import files, query
from threadmill.store.database import Connection
from threadmill.store.rows import File, Upload, UploadPart, columns

_COLUMNS = columns(Upload)
# One that is past its time counts as expired, though its row says so only after the next sweep.
_PENDING = "status = 'pending' AND expires_at > extract(epoch FROM now())"
_SCOPE = "id = %(id)s AND project_id = %(project_id)s"


def missing(upload_id: str) -> NotFound:
    return not_found("upload", upload_id)


def not_pending(upload: Upload) -> InvalidRequest:
    return InvalidRequest(
        f"Upload '{upload.id}' is {upload.status}; only a pending one can change."
    )


async def create(connection: Connection, upload: Upload) -> None:
    fields = upload.__struct_fields__
    await query.execute(
        connection,
        f"INSERT INTO uploads ({_COLUMNS}) VALUES ({', '.join(f'%({name})s' for name in fields)})",
        {name: getattr(upload, name) for name in fields},
    )


async def get_pending(
    connection: Connection, project_id: str, upload_id: str, *, for_share: bool = False
) -> Upload:
    """Raises InvalidRequest for one that is over. With `for_share` it stays pending until the
    transaction ends."""
    upload = await query.one(
        connection,
        Upload,
        f"SELECT {_COLUMNS} FROM uploads WHERE {_SCOPE} AND {_PENDING}"
        + (" FOR SHARE" if for_share else ""),
        {"id": upload_id, "project_id": project_id},
    )
    if upload is None:
        raise await _why_not(connection, project_id, upload_id)
    return upload


async def add_part(
    connection: Connection, project_id: str, part: UploadPart, *, max_parts: int, max_bytes: int
) -> None:
    """Wants a transaction. `max_bytes` are those of all parts together."""
    await get_pending(connection, project_id, part.upload_id, for_share=True)
    cursor = await connection.execute(
        "SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM upload_parts WHERE upload_id = %s",
        [part.upload_id],
    )
    row = await cursor.fetchone()
    assert row is not None
    count, size_bytes = row
    if count >= max_parts:
        raise InvalidRequest(
            f"Upload '{part.upload_id}' has {count} parts already, and can have no more."
        )
    if size_bytes + part.bytes > max_bytes:
        raise InvalidRequest(
            f"Upload '{part.upload_id}' would have {size_bytes + part.bytes} bytes in its parts,"
            f" and can have {max_bytes}."
        )
    await query.execute(
        connection,
        f"INSERT INTO upload_parts ({columns(UploadPart)})"
        " VALUES (%(id)s, %(upload_id)s, %(created_at)s, %(bytes)s)",
        {name: getattr(part, name) for name in part.__struct_fields__},
    )


async def part_sizes(connection: Connection, upload_id: str) -> dict[str, int]:
    """The bytes of each part, by its id."""
    cursor = await connection.execute(
        "SELECT id, bytes FROM upload_parts WHERE upload_id = %s", [upload_id]
    )
    return dict(await cursor.fetchall())


async def complete(connection: Connection, upload: Upload, file: File) -> Upload:
    """The upload becomes the file, whose bytes are there already. Wants a transaction. Of two who
    complete it, or complete and cancel it, one wins and the other hears of it."""
    return await _end(
        connection, upload.project_id, upload.id, UploadStatus.COMPLETED, with_file=file
    )


async def cancel(connection: Connection, project_id: str, upload_id: str) -> Upload:
    return await _end(connection, project_id, upload_id, UploadStatus.CANCELLED)


async def expire(connection: Connection, limit: int) -> int:
    """Move up to `limit` uploads whose time is over to `expired`; returns how many."""
    return await query.execute(
        connection,
        "UPDATE uploads SET status = 'expired' WHERE id IN (SELECT id FROM uploads"
        " WHERE status = 'pending' AND expires_at <= extract(epoch FROM now())"
        " ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)",
        {"limit": limit},
    )


async def spent_parts(
    connection: Connection, limit: int, upload_id: str | None = None
) -> list[str]:
    """The ids of parts whose upload is over: their bytes are of no use any more."""
    of_upload = "" if upload_id is None else " AND uploads.id = %(upload_id)s"
    cursor = await connection.execute(
        "SELECT upload_parts.id FROM upload_parts JOIN uploads ON uploads.id = upload_id"
        f" WHERE uploads.status <> 'pending'{of_upload} LIMIT %(limit)s",
        {"limit": limit, "upload_id": upload_id},
    )
    return [row[0] for row in await cursor.fetchall()]


async def forget_parts(connection: Connection, part_ids: list[str]) -> None:
    await query.execute(
        connection, "DELETE FROM upload_parts WHERE id = ANY(%(ids)s)", {"ids": part_ids}
    )


async def _end(
    connection: Connection,
    project_id: str,
    upload_id: str,
    to: UploadStatus,
    *,
    with_file: File | None = None,
) -> Upload:
    upload = await query.one(
        connection,
        Upload,
        f"UPDATE uploads SET status = %(to)s, file_id = %(file_id)s WHERE {_SCOPE} AND {_PENDING}"
        f" RETURNING {_COLUMNS}",
        {
            "id": upload_id,
            "project_id": project_id,
            "to": to.value,
            "file_id": with_file.id if with_file else None,
        },
    )
    if upload is None:
        raise await _why_not(connection, project_id, upload_id)
    if with_file is not None:
        await files.create(connection, with_file)
    return upload


async def _why_not(connection: Connection, project_id: str, upload_id: str) -> InvalidRequest:
    upload = await query.one(
        connection,
        Upload,
        f"SELECT {_COLUMNS} FROM uploads WHERE {_SCOPE}",
        {"id": upload_id, "project_id": project_id},
    )
    if upload is None:
        return missing(upload_id)
    if upload.status == UploadStatus.PENDING:
        upload.status = UploadStatus.EXPIRED
    return not_pending(upload)
