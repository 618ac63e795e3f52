"""Bringing the database to the schema of this version. Forward only."""

from pathlib import Path

import psycopg
from psycopg import errors

# The newest revision in migrations/versions (a test holds that it is), so that a server with an
# up-to-date database need not load alembic to know it.
HEAD = "0008"

_INSIDE_THE_PACKAGE = Path(__file__).parent.parent / "migrations"  # in the wheel
_BESIDE_THE_PACKAGE = Path(__file__).parents[3] / "migrations"  # in a checkout


def current(url: str) -> str | None:
    """The revision that the database is at; None for an empty one. Raises psycopg.Error."""
    with psycopg.connect(url, connect_timeout=10) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except errors.UndefinedTable:
            return None
        return str(row[0]) if row else None


def upgrade(url: str) -> None:
    """Run every migration that the database has not seen. Raises on the first that fails; each is
    one transaction."""
    import alembic.command
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(location()).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    alembic.command.upgrade(config, "head")


def location() -> Path:
    return _INSIDE_THE_PACKAGE if _INSIDE_THE_PACKAGE.exists() else _BESIDE_THE_PACKAGE
