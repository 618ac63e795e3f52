"""What no page need think of: who may ask at all, and what a browser may do with the answer."""

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threadmill.settings import LOOPBACK_HOSTS, Settings

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Plain ASGI around all of /ui."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = LOOPBACK_HOSTS | set(settings.allowed_hosts) if settings.is_loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _headers(nonce).items():
                    headers.setdefault(name, value)  # files have a stricter policy of their own
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            # A page elsewhere can point a name of its own at this machine (DNS rebinding).
            return PlainTextResponse(
                "This server does not answer to that host name. Use 127.0.0.1 or localhost, or"
                " name the host in THREADMILL_ALLOWED_HOSTS.\n",
                421,
            )
        if scope["method"] not in _SAFE_METHODS and not _is_own(headers, Request(scope)):
            return PlainTextResponse("This was sent from a page of another site.\n", 403)
        return None


def _is_own(headers: Headers, request: Request) -> bool:
    """Whether one of our own pages sent it. Browsers say so themselves; SameSite would not do, for
    to it every port of this machine is the same site."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if (origin := headers.get("origin")) is not None:  # an older browser
        return urlsplit(origin).netloc == headers.get("host")
    return not request.cookies  # no browser: and nobody's sign-in to be abused


def _name(host: str) -> str:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.strip("[]").lower()


def _headers(nonce: str) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": f"'nonce-{nonce}'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        # Text becomes HTML in one place only, which is htmx reading an answer of ours.
        "require-trusted-types-for": "'script'",
        "trusted-types": "htmx",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        # Not no-referrer: then a browser calls the origin of our own forms null, and over plain
        # HTTP from another machine it says nothing else of where they come from.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
