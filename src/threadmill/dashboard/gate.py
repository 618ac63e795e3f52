"""/ui/api/v1/...: the public API, as it is, for our own pages: whoever is signed in need not send a
key, which a script could lose. Outside of /ui the API knows no cookies."""

from fastapi import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from threadmill.dashboard.session import Keys, SignInNeeded, viewer
from threadmill.errors import ApiError, NotFound, Unauthorized

# Who asks is known from the sign-in alone.
_LEFT_OUT = frozenset({b"authorization", b"api-key", b"cookie"})
# Not what the routing so far has found.
_KEPT = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "query_string",
    "client",
    "server",
    "extensions",
    "state",
)


class Gate:
    """Plain ASGI, for answers are streamed through it."""

    def __init__(self, api: ASGIApp, keys: Keys) -> None:
        self._api = api
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope["root_path"])
        try:
            if not path.startswith("/v1/"):
                raise NotFound("There is no such path.")
            looks = await viewer(Request(scope))
            passed = {name: scope[name] for name in _KEPT if name in scope} | {
                "path": path,
                "raw_path": path.encode(),
                "root_path": "",
                "headers": [pair for pair in scope["headers"] if pair[0] not in _LEFT_OUT],
            }
            if not await self._keys.vouch(passed, looks.key_hash):
                raise SignInNeeded
        except (SignInNeeded, ApiError) as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._api(passed, receive, send)
        finally:
            scope["route"] = passed.get("route")  # for those who count what was asked for


async def _refuse(fault: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    signed_out = Unauthorized("You are signed out. Sign in again.")
    error = fault if isinstance(fault, ApiError) else signed_out
    await JSONResponse(error.body(), error.status)(scope, receive, send)
