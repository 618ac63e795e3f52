"""From an id alone, as people have it from a log, to what it belongs to."""

from threadmill.store import query
from threadmill.store.database import Connection

_TABLES = {
    "thread": "threads",
    "run": "runs",
    "asst": "assistants",
    "file": "files",
    "vs": "vector_stores",
}
_HOLDERS = {"msg": ("messages", "thread_id"), "step": ("steps", "run_id")}


async def exists(connection: Connection, project_id: str, prefix: str, object_id: str) -> bool:
    return bool(
        await query.value(
            connection,
            f"SELECT EXISTS (SELECT FROM {_TABLES[prefix]}"
            " WHERE id = %(id)s AND project_id = %(project_id)s)",
            {"id": object_id, "project_id": project_id},
        )
    )


async def holder(
    connection: Connection, project_id: str, prefix: str, object_id: str
) -> str | None:
    """The thread of a message, the run of a step."""
    table, column = _HOLDERS[prefix]
    found: str | None = await query.value(
        connection,
        f"SELECT {column} FROM {table} WHERE id = %(id)s AND project_id = %(project_id)s",
        {"id": object_id, "project_id": project_id},
    )
    return found
