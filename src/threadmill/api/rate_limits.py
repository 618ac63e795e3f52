"""Requests and tokens in a minute, as clients of the original know them: 429, and headers that say
how much is left. Callers without limits cost nothing here."""

from starlette.requests import Request

from threadmill.errors import RateLimited
from threadmill.store import limits
from threadmill.store.database import Database
from threadmill.store.limits import Caller, Level

_SHORT = {"requests": "RPM", "tokens": "TPM"}
_MS, _S = 10**6, 10**9


async def admit(request: Request, database: Database, caller: Caller) -> None:
    """Count the request. Raises RateLimited."""
    if not caller.request_bounds:
        return
    passes, levels = await limits.take_request(database, caller.request_bounds)
    tightest = min(levels, key=lambda level: level.left)
    _tell(request, "requests", tightest)
    if not passes:
        # One that came back since the refusal: it is there at once.
        raise _refusal(request, "requests", tightest)


async def check_tokens(request: Request, database: Database, caller: Caller) -> None:
    """Raises RateLimited where the minute's tokens are spent. What begins now may spend more than
    is left: that is known afterwards, and makes the next one wait for longer."""
    if not caller.token_bounds:
        return
    async with database.connection() as connection:
        levels = await limits.token_levels(connection, caller.token_bounds)
    tightest = min(levels, key=lambda level: (level.left, -level.wait_ns))
    _tell(request, "tokens", tightest)
    if tightest.left == 0:
        raise _refusal(request, "tokens", tightest)


def _refusal(request: Request, kind: str, level: Level) -> RateLimited:
    wait_ns = max(level.wait_ns, _MS)
    _add_headers(
        request,
        {
            "retry-after": str(-(-wait_ns // _S)),
            "retry-after-ms": str(-(-wait_ns // _MS)),
        },
    )
    return RateLimited(
        f"Rate limit reached for {level.bound.told} on {kind} per min ({_SHORT[kind]}): Limit"
        f" {level.bound.limit}, Used {level.used}, Requested 1. Please try again in"
        f" {shown_duration(wait_ns)}.",
        kind,
    )


def _tell(request: Request, kind: str, level: Level) -> None:
    _add_headers(
        request,
        {
            f"x-ratelimit-limit-{kind}": str(level.bound.limit),
            f"x-ratelimit-remaining-{kind}": str(level.left),
            f"x-ratelimit-reset-{kind}": shown_duration(max(level.ahead_ns, 0)),
        },
    )


def _add_headers(request: Request, headers: dict[str, str]) -> None:
    """`Envelope` puts them on the answer, whichever it will be."""
    known = request.scope["state"].setdefault("answer_headers", [])
    known += [(name.encode(), value.encode()) for name, value in headers.items()]


def shown_duration(duration_ns: int) -> str:
    """As the original writes it: 120ms, 8.64s, 20s, 6m0s."""
    ms = -(-duration_ns // _MS)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
