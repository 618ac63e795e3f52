"""What endpoints are handed: who asks, what was sent, and the process's own things."""

import hmac
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request, Response
from pydantic import SecretStr
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from threadmill.api.rate_limits import admit
from threadmill.api.sse import Streams
from threadmill.errors import InvalidRequest, TooLarge, Unauthorized, WrongHost
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.schemas.parse import Shape, parse
from threadmill.settings import LOOPBACK_HOSTS, Settings
from threadmill.store import projects
from threadmill.store.database import Database
from threadmill.store.limits import Caller

S = TypeVar("S", bound=Shape)

_KEY_KNOWN_FOR_S = 5.0  # so soon a revoked key is refused by every process
_KEYS_KNOWN_MAX = 10_000
_VOUCHED = "threadmill.caller"  # no client can put anything there


class Json(Response):
    """An answer encoded by msgspec, without FastAPI's own way round through pydantic."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


# --- the process's own things ---


async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


async def _executor(request: Request) -> Executor:
    executor: Executor = request.app.state.worker.executor
    return executor


async def _streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


# --- who asks ---


class Keys:
    """Who asks by a key. What the database said is believed for a few seconds."""

    def __init__(
        self, settings: Settings, database: Database, *, known_for_s: float = _KEY_KNOWN_FOR_S
    ) -> None:
        self._settings = settings
        self._database = database
        self._known_for_s = known_for_s
        self._static = [_digest(key) for key in settings.api_keys]
        self._admin = _digest(settings.admin_key) if settings.admin_key else None
        self._known: dict[bytes, tuple[float, Caller | None]] = {}
        self._demanded: tuple[float, bool] = (0.0, True)

    async def caller_of(self, key: str) -> Caller | None:
        """None for a key that is not valid."""
        return await self._caller_behind(projects.key_hash(key))

    async def vouch(self, scope: Scope, key_hash: bytes | None) -> bool:
        """Let this request count as sent with the key that has this hash (None: where none is
        demanded), whatever its headers say. Whether the key is valid."""
        caller = await self.caller_behind(key_hash)
        scope[_VOUCHED] = caller
        return caller is not None

    async def caller_behind(self, key_hash: bytes | None) -> Caller | None:
        """Who has the key with this hash (None: where none is demanded)."""
        return await (self._caller_behind(key_hash) if key_hash else self._anybody())

    async def _caller_behind(self, hashed: bytes) -> Caller | None:
        if self._is_admin(hashed):
            return None
        if any([hmac.compare_digest(hashed, static) for static in self._static]):
            return await self._anybody()
        caller = await self._remembered(hashed, partial(self._find, hashed))
        if caller is None and not await self.are_demanded():
            return await self._anybody()
        return caller

    def forget(self) -> None:
        """Something about keys has changed: ask the database again."""
        self._known.clear()
        self._demanded = (0.0, True)

    def is_admin(self, key: str) -> bool:
        return self._is_admin(projects.key_hash(key))

    def _is_admin(self, hashed: bytes) -> bool:
        return self._admin is not None and hmac.compare_digest(hashed, self._admin)

    async def _find(self, hashed: bytes) -> Caller | None:
        async with self._database.connection() as connection:
            found = await projects.find_key(connection, hashed)
        return Caller(found[1], found[0]) if found else None

    async def _anybody(self) -> Caller | None:
        """Whoever comes with a static key, or with any where none is demanded."""
        return await self._remembered(b"", self._find_default)

    async def _find_default(self) -> Caller:
        async with self._database.connection() as connection:
            return Caller(await projects.get(connection, projects.DEFAULT_PROJECT_ID), None)

    async def _remembered(
        self, name: bytes, find: Callable[[], Awaitable[Caller | None]]
    ) -> Caller | None:
        known_until, caller = self._known.get(name, (0.0, None))
        if known_until < time.monotonic():
            caller = await find()
            if len(self._known) >= _KEYS_KNOWN_MAX:
                self._known.clear()
            self._known[name] = (time.monotonic() + self._known_for_s, caller)
        return caller

    async def are_demanded(self) -> bool:
        """Whether a key must be a known one: not on loopback where no key was ever made. That all
        were revoked does not open the server again."""
        if self._static or not self._settings.is_loopback:
            return True
        until, demanded = self._demanded
        if until < time.monotonic():
            demanded = await self.any_exists()
            self._demanded = (time.monotonic() + self._known_for_s, demanded)
        return demanded

    async def any_exists(self) -> bool:
        if self._static:
            return True
        async with self._database.connection() as connection:
            return await projects.any_key(connection)


def _digest(key: SecretStr) -> bytes:
    return projects.key_hash(key.get_secret_value())


async def _project(request: Request) -> str:
    """The id of the caller's project."""
    return (await _caller(request)).project_id


async def _caller(request: Request) -> Caller:
    caller = await authenticated(request)
    await admit(request, request.app.state.runtime.database, caller)
    return caller


async def authenticated(request: Request) -> Caller:
    """Who asks, before the request is counted. Raises Unauthorized, and what else is wrong with
    the headers."""
    keys: Keys = request.app.state.keys
    vouched: Caller | None = request.scope.get(_VOUCHED)
    if vouched is not None:
        return vouched
    key = sent_key(request)
    if not key:
        raise _no_key()
    if not await keys.are_demanded():
        check_host(request)
    caller = await keys.caller_of(key)
    if caller is None:
        raise _wrong_key(key)
    _check_beta_header(request)
    return caller


async def authenticated_admin(request: Request) -> None:
    """Whoever asks must have the admin key, which opens nothing else; other keys open nothing
    here."""
    keys: Keys = request.app.state.keys
    key = sent_key(request)
    if not key:
        raise _no_key()
    if not keys.is_admin(key):
        raise _wrong_key(key)


def _no_key() -> Unauthorized:
    return Unauthorized(
        "You didn't provide an API key. You need to provide your API key in an Authorization"
        " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or in an api-key"
        " header."
    )


def _wrong_key(key: str) -> Unauthorized:
    return Unauthorized(
        f"Incorrect API key provided: {_masked(key)}. You can find the keys of this server by"
        " typing: threadmill keys list",
        code="invalid_api_key",
    )


def sent_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("api-key")  # as Azure's clients send it


def _masked(key: str) -> str:
    shown = "".join(char if char.isascii() and char.isprintable() else "*" for char in key)
    return f"{shown[:5]}***{shown[-2:]}" if len(shown) > 12 else "***"


def check_host(request: Request) -> None:
    """Without keys any web page could drive the server through a host name that it points at
    this machine (DNS rebinding), were it not for its Host header."""
    settings: Settings = request.app.state.runtime.settings
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.strip("[]").lower() not in LOOPBACK_HOSTS | set(settings.allowed_hosts):
        raise WrongHost(
            f"This server does not answer to the host name '{name[:64]}'. Use 127.0.0.1 or"
            " localhost, or name the host in THREADMILL_ALLOWED_HOSTS."
        )


def _check_beta_header(request: Request) -> None:
    path = request.url.path
    if not path.startswith(("/v1/assistants", "/v1/threads")):
        return
    asked = [part.strip() for part in request.headers.get("openai-beta", "").split(",")]
    settings: Settings = request.app.state.runtime.settings
    is_missing = settings.require_beta_header and "assistants=v2" not in asked
    if is_missing or ("assistants=v1" in asked and "assistants=v2" not in asked):
        raise InvalidRequest(
            "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try"
            " again by setting the header 'OpenAI-Beta: assistants=v2'.",
            code="invalid_beta",
        )


# --- what was sent ---


def body(shape: type[S]) -> Any:
    """The request's body as `shape`; an empty one counts as {}. The content type is not looked at:
    clients send all kinds of it."""

    async def read(request: Request) -> S:
        return parse(shape, await raw_body(request))

    return Depends(read)


async def raw_body(request: Request) -> bytes:
    settings: Settings = request.app.state.runtime.settings
    return await _read(request, settings.request_body_max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise TooLarge(f"The request body is larger than {max_bytes} bytes.")
            pieces.append(piece)
    except ClientDisconnect:
        raise InvalidRequest("The request body ended too soon.") from None  # nobody reads this
    return b"".join(pieces)


RuntimeDep = Annotated[Runtime, Depends(_runtime)]
ExecutorDep = Annotated[Executor, Depends(_executor)]
CallerDep = Annotated[Caller, Depends(_caller)]
StreamsDep = Annotated[Streams, Depends(_streams)]
AdminOnly = Depends(authenticated_admin)
ProjectId = Annotated[str, Depends(_project)]
