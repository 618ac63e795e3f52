"""What surrounds every answer: ids and timings in its headers, Azure's paths, faults as errors, and
what is counted, traced and logged of it."""

import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threadmill import ids
from threadmill.metrics import Metrics
from threadmill.traces import SILENT, Span, Traces

log = structlog.get_logger()

_UNKNOWN_ROUTE = "unknown"
_STATUS_GONE = 499  # what others call it when a client leaves before there is an answer


class Envelope:
    """Plain ASGI, for it surrounds the streams too."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, traces: Traces, *, logs_requests: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces
        self._logs_requests = logs_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.new_request_id()
        scope["path"] = _without_azure(scope["path"])
        span = self._span(scope, request_id)
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, span=span)
        started = time.perf_counter()
        status = 0
        began_s: float | None = None
        is_stream = has_ended = False

        async def send_in_envelope(message: Message) -> None:
            nonlocal status, began_s, is_stream, has_ended
            if message["type"] == "http.response.start":
                status = message["status"]
                began_s = time.perf_counter() - started
                if _is_event_stream(message):
                    is_stream = True
                    self._metrics.stream_opened()
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(int(began_s * 1000)).encode()),
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
                if began_s is not None:
                    log.exception("answer_broke_off", path=scope["path"])
                raise
        finally:
            if is_stream:
                self._metrics.stream_closed()
            took_s = time.perf_counter() - started
            self._tell(
                scope, status or _STATUS_GONE, took_s if began_s is None else began_s, took_s
            )
            structlog.contextvars.unbind_contextvars("request_id")

    def _tell(self, scope: Scope, status: int, began_s: float, took_s: float) -> None:
        method, route = scope["method"], _route(scope)
        self._metrics.request_answered(method, route, status, began_s)
        span: Span = scope["state"]["span"]
        if span.is_recorded:
            span.rename(f"{method} {route}")
            span.note({"http.route": route, "http.response.status_code": status})
        span.end(str(status) if status >= 500 else None)
        if self._logs_requests:
            log.info(
                "request",
                method=method,
                route=route,
                status=status,
                began_ms=round(began_s * 1000, 1),
                took_ms=round(took_s * 1000, 1),
            )

    def _span(self, scope: Scope, request_id: str) -> Span:
        if not self._traces.are_on or not scope["path"].startswith("/v1/"):
            return SILENT
        headers = dict(scope["headers"])
        attributes = {
            "http.request.method": scope["method"],
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "threadmill.request.id": request_id,
        }
        agent = headers.get(b"user-agent")
        if agent is not None:
            attributes["user_agent.original"] = agent.decode("latin-1")
        parent = headers.get(b"traceparent")
        traceparent = None if parent is None else parent.decode("latin-1")
        return self._traces.start(scope["method"], "server", traceparent, attributes)


def _is_event_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start["headers"]
    )


def _route(scope: Scope) -> str:
    """The template of the path. Never the path: there is no end to those."""
    route: Any = scope.get("route")
    template = getattr(route, "path", None)
    if not template:
        return _UNKNOWN_ROUTE
    # The router knows it without the prefix under which it was included, and without the place of
    # the application that it is in: pages must not pass for the API.
    place = scope.get("root_path", "")
    is_inside = scope["path"].removeprefix(place).startswith("/v1/")
    prefix = "/v1" if is_inside and not template.startswith("/v1/") else ""
    return f"{place}{prefix}{template}"


def _without_azure(path: str) -> str:
    """Azure's clients ask for /openai/threads or /openai/v1/threads where others ask for /v1/..."""
    if path.startswith("/openai/"):
        return "/v1/" + path.removeprefix("/openai/").removeprefix("v1/")
    return path
