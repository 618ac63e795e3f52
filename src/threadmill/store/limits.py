"""Limits of keys and projects: requests and tokens in a minute, stored bytes.

Where a key and its project both have a limit, both hold. (How many runs go on at once is in
store/slots.py.)

Requests and tokens come out of buckets that hold as many as the limit, and fill up evenly, a full
one in a minute. This is the generic cell rate algorithm (ITU-T I.371, appendix I): all that is kept
of a bucket is when it will be full, and a request that may pass moves that point on by the time in
which one comes back. One conditional statement does it, by the database's clock, so that many
processes let pass exactly as many as one would. Hence a wait that is told is a true one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
from psycopg import Rollback

from threadmill.errors import InvalidRequest
from threadmill.store import query
from threadmill.store.database import Connection, Database
from threadmill.store.rows import ApiKey, Project

MINUTE_NS = 60 * 10**9

_NOW_NS = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"


class Bound(NamedTuple):
    """One limit of one key or project."""

    subject: str  # its id
    told: str  # how an error text names it
    limit: int


class Caller(msgspec.Struct):
    """Who asks: a project, by one of its keys (None: a static key, or none is demanded)."""

    project: Project
    key: ApiKey | None
    request_bounds: list[Bound] = []
    token_bounds: list[Bound] = []
    storage_bounds: list[Bound] = []
    is_run_bound: bool = False

    def __post_init__(self) -> None:
        self.request_bounds = self._bounds("max_requests_per_minute")
        self.token_bounds = self._bounds("max_tokens_per_minute")
        self.storage_bounds = self._bounds("max_stored_bytes")
        self.is_run_bound = bool(self._bounds("max_concurrent_runs"))

    @property
    def project_id(self) -> str:
        return self.project.id

    @property
    def key_id(self) -> str | None:
        return self.key.id if self.key else None

    def _bounds(self, name: str) -> list[Bound]:
        """The key's before the project's: rows are locked in this order, everywhere."""
        bounds = []
        for row, noun in ((self.key, "API key"), (self.project, "project")):
            limit = getattr(row, name, None)
            if row is not None and limit is not None:
                bounds.append(Bound(row.id, f"{noun} {row.id}", limit))
        return bounds


class Level(NamedTuple):
    """How a bucket stands."""

    bound: Bound
    ahead_ns: int  # until it is full

    @property
    def interval_ns(self) -> int:
        return interval_ns(self.bound)

    @property
    def used(self) -> int:
        return -(-max(self.ahead_ns, 0) // self.interval_ns)

    @property
    def left(self) -> int:
        return max(self.bound.limit - self.used, 0)

    @property
    def wait_ns(self) -> int:
        """Until one is there; 0 if there is one."""
        return max(self.ahead_ns + self.interval_ns - MINUTE_NS, 0)


def interval_ns(bound: Bound) -> int:
    """In which one comes back. Rounded down, so that as many as the limit fit into the minute."""
    return max(MINUTE_NS // bound.limit, 1)


async def take_request(database: Database, bounds: list[Bound]) -> tuple[bool, list[Level]]:
    """Count one request: against all bounds, or, where one of them is reached, against none.
    Whether it may pass, and how the buckets stand, in the latter case that one alone."""
    if len(bounds) == 1:
        async with database.connection() as connection:
            return await _take_all(connection, bounds)
    passes, levels = False, list[Level]()
    async with database.transaction() as connection:
        passes, levels = await _take_all(connection, bounds)
        if not passes:
            raise Rollback
    return passes, levels


async def _take_all(connection: Connection, bounds: list[Bound]) -> tuple[bool, list[Level]]:
    levels = []
    for bound in bounds:
        ahead_ns = await query.value(connection, _TAKE, _values(bound, "requests"))
        if ahead_ns is None:
            ahead_ns = await query.value(connection, _LOOK, _values(bound, "requests"))
            return False, [Level(bound, ahead_ns or 0)]
        levels.append(Level(bound, ahead_ns))
    return True, levels


# By the clock, not by now(): who has waited for the row must not look at it from before.
_TAKE = (
    "INSERT INTO rate_buckets AS bucket (subject, kind, interval_ns, full_at_ns)"
    f" VALUES (%(subject)s, %(kind)s, %(interval_ns)s, {_NOW_NS} + %(interval_ns)s)"
    " ON CONFLICT (subject, kind) DO UPDATE SET interval_ns = excluded.interval_ns,"
    f" full_at_ns = greatest(bucket.full_at_ns, {_NOW_NS}) + excluded.interval_ns"
    f" WHERE greatest(bucket.full_at_ns, {_NOW_NS}) + excluded.interval_ns"
    f" <= {_NOW_NS} + {MINUTE_NS} RETURNING full_at_ns - {_NOW_NS}"
)
_LOOK = (
    f"SELECT full_at_ns - {_NOW_NS} FROM rate_buckets"
    " WHERE subject = %(subject)s AND kind = %(kind)s"
)


async def look(connection: Connection, bounds: list[Bound], kind: str) -> list[Level]:
    """How the buckets of `requests` or `tokens` stand. Nothing is taken or changed."""
    return [
        Level(bound, await query.value(connection, _LOOK, _values(bound, kind)) or 0)
        for bound in bounds
    ]


async def token_levels(connection: Connection, bounds: list[Bound]) -> list[Level]:
    """How the buckets of tokens stand. Nothing is taken: what a run costs is known afterwards, and
    is taken then by the statement that writes it down (`SPEND`)."""
    return [
        Level(bound, await query.value(connection, _OPEN, _values(bound, "tokens")))
        for bound in bounds
    ]


_OPEN = (
    "INSERT INTO rate_buckets (subject, kind, interval_ns, full_at_ns)"
    f" VALUES (%(subject)s, %(kind)s, %(interval_ns)s, {_NOW_NS})"
    " ON CONFLICT (subject, kind) DO UPDATE SET interval_ns = excluded.interval_ns"
    f" RETURNING full_at_ns - {_NOW_NS}"
)

# Part of a statement that has a row `spent` of project_id, api_key_id and tokens.
# In the order of ids: two that end runs of the same key would else wait for each other.
SPEND = (
    "buckets AS (SELECT subject AS bucket FROM rate_buckets, spent WHERE kind = 'tokens'"
    " AND subject IN (project_id, api_key_id) ORDER BY subject FOR UPDATE OF rate_buckets),"
    " drawn AS (UPDATE rate_buckets SET full_at_ns ="
    f" greatest(full_at_ns, {_NOW_NS}) + spent.tokens * interval_ns FROM spent, buckets"
    " WHERE subject = bucket AND kind = 'tokens')"
)


async def spend_tokens(connection: Connection, caller: Caller, tokens: int) -> None:
    """For what is not a run: take the tokens that a call has used."""
    if not caller.token_bounds:
        return
    await query.execute(
        connection,
        "WITH spent AS (SELECT %(project_id)s::text AS project_id, %(key_id)s::text AS api_key_id,"
        f" %(tokens)s::bigint AS tokens), {SPEND} SELECT",
        {"project_id": caller.project_id, "key_id": caller.key_id, "tokens": tokens},
    )


def _values(bound: Bound, kind: str) -> dict[str, str | int]:
    return {"subject": bound.subject, "kind": kind, "interval_ns": interval_ns(bound)}


# --- stored bytes ---


@asynccontextmanager
async def write_with_room(
    database: Database, caller: Caller, bytes_more: int
) -> AsyncIterator[Connection]:
    """A connection on which to write down what stores so many bytes more. Raises InvalidRequest
    where they would be too many. Callers without such a limit need no transaction."""
    if not caller.storage_bounds:
        async with database.connection() as connection:
            yield connection
        return
    async with database.transaction() as connection:
        await check_storage(connection, caller, bytes_more)
        yield connection


async def check_storage(
    connection: Connection, caller: Caller, bytes_more: int, *, upload_id: str | None = None
) -> None:
    """Raises InvalidRequest where so many more bytes would be too many. Wants the transaction that
    writes them down: until it ends, nobody else of the project is let in here.

    Of an upload that is under way counts what it is to have, or what its parts have if that is
    more. `upload_id`: the upload that the bytes are a part of.
    """
    if not caller.storage_bounds:
        return
    await lock_project(connection, caller.project_id)
    for bound in caller.storage_bounds:
        used = await stored_bytes(
            connection, caller, bound, upload_id=upload_id, bytes_more=bytes_more
        )
        if used + (0 if upload_id else bytes_more) > bound.limit:
            raise InvalidRequest(
                f"You have exceeded your file storage quota. The {bound.told} is limited to"
                f" {bound.limit} bytes of files. Please delete old files or attempt with a smaller"
                " file size."
            )


async def stored_bytes(
    connection: Connection,
    caller: Caller,
    bound: Bound,
    *,
    upload_id: str | None = None,
    bytes_more: int = 0,
) -> int:
    """How many count towards this bound; with so many more in the upload."""
    of_key = " AND api_key_id = %(key_id)s" if bound.subject == caller.key_id else ""
    used = await query.value(
        connection,
        f"SELECT (coalesce((SELECT sum(bytes) FROM files WHERE {_OF_PROJECT}{of_key}), 0)"
        " + coalesce((SELECT sum(greatest(bytes, (SELECT coalesce(sum(upload_parts.bytes), 0)"
        " + CASE WHEN uploads.id = %(upload_id)s THEN %(more)s ELSE 0 END"
        " FROM upload_parts WHERE upload_id = uploads.id)))"
        f" FROM uploads WHERE {_OF_PROJECT}{of_key} AND status = 'pending'), 0))::bigint",
        {
            "project_id": caller.project_id,
            "key_id": caller.key_id,
            "upload_id": upload_id,
            "more": bytes_more,
        },
    )
    return int(used)


_OF_PROJECT = "project_id = %(project_id)s"


async def lock_project(connection: Connection, project_id: str) -> None:
    """Until the transaction ends, whoever else counts what the project has waits here."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 5))", [f"limits of {project_id}"]
    )
