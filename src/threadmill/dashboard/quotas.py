"""How near a project and a key are to their limits."""

import msgspec

from threadmill.store import limits, slots
from threadmill.store.database import Connection
from threadmill.store.limits import Bound, Caller


class Quota(msgspec.Struct):
    whose: str  # project, key
    what: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        return min(self.used / self.limit, 1.0)


async def held(connection: Connection, caller: Caller) -> list[Quota]:
    """Of the limits that there are."""
    found: list[Quota] = []

    def add(bound: Bound, what: str, used: int) -> None:
        whose = "key" if bound.subject == caller.key_id else "project"
        found.append(Quota(whose, what, used, bound.limit))

    for level in await limits.look(connection, caller.request_bounds, "requests"):
        add(level.bound, "requests in this minute", level.used)
    for level in await limits.look(connection, caller.token_bounds, "tokens"):
        add(level.bound, "tokens in this minute", level.used)
    for bound, count in await slots.going_on(connection, caller):
        add(bound, "runs at once", count)
    for bound in caller.storage_bounds:
        add(bound, "stored bytes", await limits.stored_bytes(connection, caller, bound))
    return found
