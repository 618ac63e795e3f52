"""Who looks at the pages: whoever has signed in with an API key, or, where no key is demanded,
anybody who sits at this machine."""

import time
from collections import deque
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Protocol

import msgspec
from fastapi import Depends, Request, Response
from starlette.types import Scope

from threadmill.runtime import Runtime
from threadmill.store import projects, sign_ins
from threadmill.store.limits import Caller

_FAILURES_MAX = 10  # from one address
_FAILURES_COUNT_FOR_S = 300.0
_ADDRESSES_MAX = 10_000


class Keys(Protocol):
    """What is asked about API keys. The API has the answers; it and these pages do not know each
    other."""

    async def caller_of(self, key: str) -> Any: ...
    async def caller_behind(self, key_hash: bytes | None) -> Caller | None: ...
    async def are_demanded(self) -> bool: ...
    async def vouch(self, scope: Scope, key_hash: bytes | None) -> bool: ...
    def is_admin(self, key: str) -> bool: ...
    def forget(self) -> None: ...


class Viewer(msgspec.Struct):
    """Whose things are shown."""

    project_id: str
    key_hash: bytes | None  # None: no key is demanded
    token_hash: bytes | None = None  # of the sign-in

    @property
    def is_signed_in(self) -> bool:
        return self.key_hash is not None


class Administrator(msgspec.Struct):
    """Whoever has signed in with the admin key: sees projects and their keys, and nothing that is
    in a project."""

    is_signed_in: bool = True


class SignInNeeded(Exception):
    """The page wants a sign-in first."""


async def viewer(request: Request) -> Viewer:
    keys: Keys = request.app.state.keys
    if not await keys.are_demanded():
        found = Viewer(projects.DEFAULT_PROJECT_ID, key_hash=None)
    else:
        token = request.cookies.get(_cookie(request))
        if not token:
            raise SignInNeeded
        runtime: Runtime = request.app.state.runtime
        async with runtime.database.connection() as connection:
            sign_in = await sign_ins.find(connection, token, _static_keys(runtime))
        if sign_in is None or sign_in.project_id is None:
            raise SignInNeeded
        found = Viewer(sign_in.project_id, sign_in.key_hash, sign_in.token_hash)
    request.state.viewer = found
    return found


async def administrator(request: Request) -> Administrator:
    runtime: Runtime = request.app.state.runtime
    token = request.cookies.get(_cookie(request))
    key = runtime.settings.admin_key
    if not token or key is None:
        raise SignInNeeded
    async with runtime.database.connection() as connection:
        hashed = projects.key_hash(key.get_secret_value())
        if await sign_ins.find_admin(connection, token, hashed) is None:
            raise SignInNeeded
    request.state.viewer = found = Administrator()
    return found


async def lasting(runtime: Runtime, keys: Keys, viewers: list[Viewer]) -> AbstractSet[bytes | None]:
    """The hashes of those sign-ins that have not ended; None among them where none is needed.
    That somebody's page is open does not make a sign-in last longer."""
    nobody: set[bytes | None] = set() if await keys.are_demanded() else {None}
    hashes = {one.token_hash for one in viewers if one.token_hash is not None}
    if not hashes:
        return nobody
    async with runtime.database.connection() as connection:
        return nobody | await sign_ins.lasting(connection, hashes, _static_keys(runtime))


async def caller(request: Request, viewer: Viewer) -> Caller:
    """For what counts against the limits of a key."""
    keys: Keys = request.app.state.keys
    found = await keys.caller_behind(viewer.key_hash)
    if found is None:
        raise SignInNeeded
    return found


async def sign_in(request: Request, key: str) -> str | None:
    """The token for the browser; None for a key that is not valid."""
    keys: Keys = request.app.state.keys
    caller = None if keys.is_admin(key) else await keys.caller_of(key)
    if caller is None and not keys.is_admin(key):
        return None
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        project_id = caller.project_id if caller else None
        return await sign_ins.create(connection, projects.key_hash(key), project_id)


async def sign_out(request: Request, response: Response) -> None:
    name = _cookie(request)
    if token := request.cookies.get(name):
        runtime: Runtime = request.app.state.runtime
        async with runtime.database.connection() as connection:
            await sign_ins.remove(connection, token)
    response.delete_cookie(name, path="/ui", secure=_is_secure(request), httponly=True)


def remember(request: Request, response: Response, token: str) -> None:
    response.set_cookie(
        _cookie(request),
        token,
        max_age=sign_ins.LIFETIME_S,
        path="/ui",
        secure=_is_secure(request),
        httponly=True,
        samesite="lax",
    )


class Attempts:
    """Keys that were wrong, by address: guessing is slow work then."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def may_try(self, address: str) -> bool:
        failures = self._failures.get(address, deque())
        while failures and failures[0] < time.monotonic() - _FAILURES_COUNT_FOR_S:
            failures.popleft()
        return len(failures) < _FAILURES_MAX

    def note_failure(self, address: str) -> None:
        if address not in self._failures and len(self._failures) >= _ADDRESSES_MAX:
            self._failures.pop(next(iter(self._failures)))
        self._failures.setdefault(address, deque(maxlen=_FAILURES_MAX)).append(time.monotonic())


def _cookie(request: Request) -> str:
    return "__Secure-threadmill" if _is_secure(request) else "threadmill"


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _static_keys(runtime: Runtime) -> list[bytes]:
    return [projects.key_hash(key.get_secret_value()) for key in runtime.settings.api_keys]


ViewerDep = Annotated[Viewer, Depends(viewer)]
AdminDep = Annotated[Administrator, Depends(administrator)]
