"""Spans, for whoever set the OTEL_... variables; to everybody else nothing happens, at no cost."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import structlog

log = structlog.get_logger()

Value = str | bool | int | float | Sequence[str]
Kind = Literal["server", "client", "internal"]


class Span:
    """Something that begins and ends. Without a tracer it is silent."""

    def __init__(self, tracer: Any = None, span: Any = None) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def is_recorded(self) -> bool:
        """Whether it is worth finding out what to say of it."""
        return self._span is not None and bool(self._span.is_recording())

    @property
    def traceparent(self) -> str | None:
        """How others name it who go on with the trace, be it a process or an endpoint."""
        return None if self._span is None else str(self._tracer.traceparent(self._span))

    @property
    def trace_id(self) -> str | None:
        return (
            None if self._span is None else format(self._span.get_span_context().trace_id, "032x")
        )

    def start(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> "Span":
        """A span within this one."""
        if self._span is None:
            return self
        return Span(self._tracer, self._tracer.start(name, kind, self._span, attributes))

    def note(self, attributes: Mapping[str, Value | None]) -> None:
        if self.is_recorded:
            said = {name: value for name, value in attributes.items() if value is not None}
            self._span.set_attributes(said)

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def end(self, error: str | None = None) -> None:
        """`error`: one of few words, for those who count them."""
        if self._span is None:
            return
        if error is not None:
            self._tracer.fail(self._span, error)
        self._span.end()


SILENT = Span()


class Traces:
    def __init__(self, process: str | None = None) -> None:
        """`process`: the name of the one whose spans are to be sent, if there is one."""
        self._tracer: Any = None
        self.shows_content = _says_true("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT")
        if process is not None and _are_asked_for():
            self._tracer = _open(process)

    @property
    def are_on(self) -> bool:
        return self._tracer is not None

    def start(
        self, name: str, kind: Kind, traceparent: str | None, attributes: Mapping[str, Value]
    ) -> Span:
        """A span that goes on with a trace from elsewhere, or begins one."""
        if self._tracer is None:
            return SILENT
        return Span(self._tracer, self._tracer.start(name, kind, traceparent, attributes))

    async def close(self) -> None:
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def _are_asked_for() -> bool:
    """As the standard says it, but for one thing: without any of its variables nothing is sent."""
    if _says_true("OTEL_SDK_DISABLED"):
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter == "otlp"
    return any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def _open(process: str) -> Any:
    try:
        from threadmill import otel  # an extra, and 0.2 s for those who do not want it
    except ImportError:
        log.error("traces_are_not_installed", install="pip install threadmill[otel]")
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", otel.PROTOCOL
    )
    if protocol != otel.PROTOCOL:
        log.warning("traces_go_by_http", wanted=protocol, used=otel.PROTOCOL)
    return otel.Tracer(process)


def _says_true(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() == "true"
