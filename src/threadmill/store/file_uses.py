"""What a file is used by. No index knows all of it, so looking takes as long as it is given."""

from typing import Any

import msgspec
from psycopg import errors
from psycopg.rows import args_row

from threadmill.store.database import Connection, Database

SHOWN_MAX = 20
_MAX_MS = 100  # for each kind


class Use(msgspec.Struct):
    id: str
    name: str | None


class Uses(msgspec.Struct):
    """Of one kind: one more than is shown where there are more."""

    found: list[Use]
    is_known: bool = True  # False: looking took too long


async def find(database: Database, project_id: str, file_id: str) -> dict[str, Uses]:
    """By the kind of what uses it: stores, assistants, threads."""
    values = {"project_id": project_id, "file_id": file_id, "limit": SHOWN_MAX + 1}
    return {kind: await _within(database, of, values) for kind, of in _STATEMENTS.items()}


async def _within(database: Database, statement: str, values: dict[str, Any]) -> Uses:
    try:
        async with database.transaction() as connection:
            return Uses(await _found(connection, statement, values))
    except errors.QueryCanceled:
        return Uses([], is_known=False)


async def _found(connection: Connection, statement: str, values: dict[str, Any]) -> list[Use]:
    await connection.execute(f"SET LOCAL statement_timeout = {_MAX_MS}; SET LOCAL jit = off")
    async with connection.cursor(row_factory=args_row(Use)) as cursor:
        await cursor.execute(statement, values)
        return await cursor.fetchall()


_FOR_CODE = "strpos(tool_resources #>> '{code_interpreter,file_ids}', %(file_id)s) > 0"
# A text may speak of a file without using it.
_IN_CONTENT = """
    SELECT FROM json_array_elements(content) AS part
    WHERE part #>> '{image_file,file_id}' = %(file_id)s
        OR strpos(part #>> '{text,annotations}', %(file_id)s) > 0
"""
# A thread names it, or one of its messages does. Ids are of one length, so none is in another.
_STATEMENTS = {
    "stores": """
        SELECT vector_stores.id, vector_stores.name FROM vector_store_files
        JOIN vector_stores ON vector_stores.id = vector_store_files.vector_store_id
        WHERE vector_store_files.id = %(file_id)s
            AND vector_store_files.project_id = %(project_id)s
        LIMIT %(limit)s
    """,
    "assistants": f"""
        SELECT id, name FROM assistants WHERE project_id = %(project_id)s AND {_FOR_CODE}
        ORDER BY seq DESC LIMIT %(limit)s
    """,
    "threads": f"""
        SELECT id, first_user_text FROM threads WHERE project_id = %(project_id)s AND (
            {_FOR_CODE}
            OR id IN (
                SELECT thread_id FROM messages WHERE project_id = %(project_id)s AND (
                    strpos(attachments::text, %(file_id)s) > 0
                    OR strpos(content::text, %(file_id)s) > 0 AND EXISTS ({_IN_CONTENT})
                )
            )
        )
        LIMIT %(limit)s
    """,
}
