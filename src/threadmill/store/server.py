"""What a Postgres server says about itself, whatever state its database is in."""

import msgspec
import psycopg
from psycopg import errors


class Server(msgspec.Struct):
    version: str
    place: str  # host, port and database
    revision: str | None  # of the migrations; None for an empty database
    pgvector_installed: str | None  # versions
    pgvector_available: str | None


async def look(url: str, timeout_s: float) -> Server:
    """On a connection of its own. Raises psycopg.Error."""
    connection = await psycopg.AsyncConnection.connect(
        url, autocommit=True, connect_timeout=max(2, int(timeout_s))
    )
    async with connection:
        found = await connection.execute(
            "SELECT installed_version, default_version FROM pg_available_extensions"
            " WHERE name = 'vector'"
        )
        installed, available = await found.fetchone() or (None, None)
        info = connection.info
        return Server(
            version=info.parameter_status("server_version") or "of unknown version",
            place=f"{info.host}:{info.port}/{info.dbname}",
            revision=await _revision(connection),
            pgvector_installed=installed,
            pgvector_available=available,
        )


async def _revision(connection: psycopg.AsyncConnection) -> str | None:
    try:
        found = await connection.execute("SELECT version_num FROM alembic_version")
    except errors.UndefinedTable:
        return None
    row = await found.fetchone()
    return str(row[0]) if row else None
