"""What servers hold while nobody asks for anything."""

from typing import Any, LiteralString, NamedTuple

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

_MIB = 1024**2
# Tables that must not grow with what was done; rows of the event log may, until they are swept.
_COUNTS: dict[str, LiteralString] = {
    "log rows": "SELECT count(*) FROM run_events",
    "sessions": "SELECT count(*) FROM sandbox_sessions",
    "spent blobs": "SELECT count(*) FROM spent_blobs",
    "webhooks due": "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'",
    "busy threads": "SELECT count(*) FROM threads WHERE active_run_id IS NOT NULL",
    "connections": "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'threadmill'"
    " AND datname = current_database()",
}


class Held(NamedTuple):
    """By one process."""

    memory_mib: float  # its own: what would be free if it ended
    descriptors: int
    threads: int
    children: int


class Sight(NamedTuple):
    runs: int  # that have ended until then
    processes: dict[str, Held]
    database: dict[str, int]

    def __str__(self) -> str:
        held = "; ".join(
            f"{name}: {one.memory_mib:.1f} MiB, {one.descriptors} fd, {one.threads} threads,"
            f" {one.children} children"
            for name, one in self.processes.items()
        )
        counts = ", ".join(f"{name} {count}" for name, count in self.database.items())
        return f"{self.runs} runs | {held} | {counts}"


def look(runs: int, processes: dict[str, psutil.Process], database_url: str) -> Sight:
    held = {name: _held_by(process) for name, process in processes.items()}
    return Sight(runs, held, counts(database_url))


def counts(database_url: str) -> dict[str, int]:
    return {name: int(value(database_url, statement)) for name, statement in _COUNTS.items()}


def value(database_url: str, statement: LiteralString) -> Any:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


def connected(process: psutil.Process, database_url: str) -> list[str]:
    """To whom it has connections, apart from Postgres."""
    port = int(conninfo_to_dict(database_url).get("port") or 5432)
    return [
        f"{one.laddr.port} to {one.raddr.port}, {one.status}"
        for one in process.net_connections("tcp")
        if one.raddr and one.raddr.port != port
    ]


def _held_by(process: psutil.Process) -> Held:
    with process.oneshot():
        return Held(
            process.memory_full_info().uss / _MIB,
            process.num_fds(),
            process.num_threads(),
            len(process.children(recursive=True)),
        )
