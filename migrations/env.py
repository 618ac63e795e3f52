"""How alembic reaches the database: by the URL that `threadmill migrate` passes in, or by the
environment variable THREADMILL_DATABASE_URL when a developer calls alembic itself."""

import os

from alembic import context
from sqlalchemy import create_engine, make_url, pool

from threadmill.store.tables import metadata

url = make_url(
    context.config.get_main_option("sqlalchemy.url") or os.environ["THREADMILL_DATABASE_URL"]
)
engine = create_engine(url.set(drivername="postgresql+psycopg"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        # Two servers that start at once migrate one after the other.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7309453)")
        context.run_migrations()
engine.dispose()
