"""The processes that execute runs. A process whose lease is over has lost what it held."""

import time

from threadmill.store import query
from threadmill.store.database import Connection


async def renew(connection: Connection, worker: str, lease_s: float) -> None:
    """Say that the worker is alive, for `lease_s` from now by the database's clock.

    One row for the whole process, however many runs it holds.
    """
    await query.execute(
        connection,
        "INSERT INTO workers (id, started_at, lease_until)"
        " VALUES (%(id)s, %(now)s, now() + make_interval(secs => %(lease_s)s))"
        " ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until",
        {"id": worker, "now": int(time.time()), "lease_s": lease_s},
    )


async def release_dead(connection: Connection, me: str) -> int:
    """Free the runs of workers whose lease is over, but for `me`, who asks and so is alive though
    it may have slept; returns how many there were."""
    return await query.execute(
        connection,
        "UPDATE runs SET worker = NULL WHERE worker <> %(me)s AND NOT EXISTS"
        " (SELECT FROM workers WHERE workers.id = runs.worker AND lease_until > now())",
        {"me": me},
    )


async def remove(connection: Connection, worker: str) -> None:
    """The worker stops in good order: what it still holds is free at once."""
    await query.execute(connection, "DELETE FROM workers WHERE id = %(id)s", {"id": worker})


async def forget_old(connection: Connection) -> None:
    await query.execute(
        connection, "DELETE FROM workers WHERE lease_until < now() - interval '1 hour'", {}
    )
