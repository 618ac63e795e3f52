"""OpenTelemetry, imported only where traces are asked for: it is an extra, and takes 0.2 s."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from threadmill import __version__

PROTOCOL = "http/protobuf"

Value = str | bool | int | float | Sequence[str]
Kind = Literal["server", "client", "internal"]

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_FLUSH_MAX_MS = 5000


class Tracer:
    """Where to, how much of it and under which name is read from the OTEL_... variables."""

    def __init__(self, process: str) -> None:
        own: dict[str, Value] = {"service.version": __version__, "service.instance.id": process}
        named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
            own["service.name"] = "threadmill"
        self._exporter = OTLPSpanExporter()
        # Not the global one: a process may hold several of us, one after the other.
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("threadmill", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self, name: str, kind: Kind, parent: Span | str | None, attributes: Mapping[str, Value]
    ) -> Span:
        """`parent`: one of ours, or a `traceparent` from elsewhere."""
        if isinstance(parent, str):
            context = self._propagator.extract({"traceparent": parent})
        else:
            # An empty context, not none: that would be whatever happens to be current.
            context = set_span_in_context(parent, Context()) if parent else Context()
        return self._tracer.start_span(name, context, _KINDS[kind], attributes)

    def traceparent(self, span: Span) -> str:
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def fail(self, span: Span, error: str) -> None:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """Sends what is left, for some seconds; blocks meanwhile."""
        self._provider.force_flush(_FLUSH_MAX_MS)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # first, or it tries on and on
        self._provider.shutdown()
