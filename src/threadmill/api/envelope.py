"""What surrounds every answer: ids and timings in its headers, Azure's paths, faults as errors."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threadmill import ids

log = structlog.get_logger()


class Envelope:
    """Plain ASGI, for it surrounds the streams too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.new_request_id()
        scope["path"] = _without_azure(scope["path"])
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = time.perf_counter()
        has_begun = has_ended = False

        async def send_in_envelope(message: Message) -> None:
            nonlocal has_begun, has_ended
            if message["type"] == "http.response.start":
                has_begun = True
                took_ms = int((time.perf_counter() - started) * 1000)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(took_ms).encode()),
                    (b"openai-version", b"2020-10-01"),
                    *state.get("answer_headers", ()),
                ]
            elif not message.get("more_body", False):
                has_ended = True
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_in_envelope)
        except Exception:
            # Starlette raises faults again after it has answered them. Where half an answer is out,
            # the connection must be cut: it must not look like a whole one.
            if not has_ended:
                if has_begun:
                    log.exception("answer_broke_off", path=scope["path"])
                raise
        finally:
            structlog.contextvars.unbind_contextvars("request_id")


def _without_azure(path: str) -> str:
    """Azure's clients ask for /openai/threads or /openai/v1/threads where others ask for /v1/..."""
    if path.startswith("/openai/"):
        return "/v1/" + path.removeprefix("/openai/").removeprefix("v1/")
    return path
