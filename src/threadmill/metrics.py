"""Everything that is counted and measured, under the names by which Prometheus knows it.

One `Metrics` for a process. Nothing is counted for a piece of text: a stream adds what it was when
it ends. Labels hold only words of ours, and names of models, of which there is a limit: what a
client may invent must not grow the process.
"""

import asyncio
import platform
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from threadmill import __version__

_MODELS_MAX = 50  # that are told apart, beyond those that the settings name
_OTHER = "other"
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_LAG_EVERY_S = 0.5

_ANSWER_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WORK_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Family(msgspec.Struct):
    """One metric as a process reports it to the one that was asked for all of them."""

    name: str
    kind: str
    about: str
    samples: list[tuple[str, dict[str, str], float]]


M = TypeVar("M", Counter, Gauge, Histogram)


class _Labelled(Generic[M]):
    """A metric with its children by their labels: to find one costs more than to count."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._children: dict[tuple[str, ...], M] = {}

    def of(self, *labels: str) -> M:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = (
                self._metric.labels(*labels) if labels else self._metric
            )
        return child


class Metrics:
    def __init__(self, model_names: Iterable[str] = ()) -> None:
        """`model_names`: those of the settings, which are always told apart."""
        self._registry = CollectorRegistry()
        self._models = set(model_names)
        self._models_max = len(self._models) + _MODELS_MAX
        self._define_runs()
        self._define_models()
        self._define_rest()
        ProcessCollector(registry=self._registry)
        build = Info("threadmill_build", "Which program this is.", registry=self._registry)
        build.info({"version": __version__, "python": platform.python_version()})

    # --- what happens ---

    def request_answered(self, method: str, route: str, status: int, began_s: float) -> None:
        """`route`: the template of the path. `began_s`: until the head of the answer, so that a
        stream counts like any other."""
        method = method if method in _METHODS else _OTHER
        self._http_requests.of(method, route, str(status)).inc()
        self._http_request_s.of(method, route).observe(began_s)

    def stream_opened(self) -> None:
        self._streams_open.of().inc()

    def stream_closed(self) -> None:
        self._streams_open.of().dec()

    def run_taken_up(self, waited_s: float) -> None:
        self._run_queue_s.of().observe(waited_s)

    def run_spoke(self, after_s: float) -> None:
        """The first piece of an answer has come, so long after the run was put into the queue."""
        self._run_first_token_s.of().observe(after_s)

    def run_ended(self, status: str, error: str, took_s: float) -> None:
        self._runs_ended.of(status, error).inc()
        self._run_s.of(status).observe(took_s)

    def model_tried(self, model: str, status: int | None, *, answered: bool) -> None:
        """One request to an endpoint; without a status it never answered, or broke off."""
        if answered:
            outcome = "ok"
        elif status is None:
            outcome = "unreachable"
        elif status < 300:
            outcome = "broken"
        else:
            outcome = "429" if status == 429 else f"{status // 100}xx"
        self._model_tries.of(self._model(model, is_known=answered), outcome).inc()

    def model_answered(
        self, model: str, outcome: str, first_chunk_s: float | None, took_s: float
    ) -> None:
        """A turn is over, all its tries included."""
        label = self._model(model, is_known=first_chunk_s is not None)
        self._model_turns.of(label, outcome).inc()
        self._model_turn_s.of(label).observe(took_s)
        if first_chunk_s is not None:
            self._model_first_chunk_s.of(label).observe(first_chunk_s)

    def tokens_used(
        self, model: str, *, prompt: int, completion: int, cached: int, reasoning: int
    ) -> None:
        """`cached` are among those of the prompt, `reasoning` among those of the completion."""
        label = self._model(model, is_known=True)
        counts = {
            "prompt": prompt,
            "completion": completion,
            "cached": cached,
            "reasoning": reasoning,
        }
        for kind, count in counts.items():
            if count:
                self._tokens.of(kind, label).inc(count)

    def tool_used(self, tool: str, outcome: str, took_s: float) -> None:
        self._tool_s.of(tool, outcome).observe(took_s)

    def sandbox_started(self, outcome: str) -> None:
        self._sandbox_starts.of(outcome).inc()

    def file_ingested(self, outcome: str, chunks: int, took_s: float) -> None:
        self._ingested_files.of(outcome).inc()
        self._ingested_chunks.of().inc(chunks)
        self._ingestion_s.of().observe(took_s)

    def webhook_tried(self, outcome: str) -> None:
        self._webhook_tries.of(outcome).inc()

    async def watch_event_loop(self) -> None:
        """Runs until it is cancelled: how much later than wished this process does what is due."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._loop_lag_s.of().observe(max(loop.time() - due, 0.0))

    # --- what is there: asked for when somebody looks ---

    def watch_database(self, look: Callable[[], dict[str, int]]) -> None:
        """`look` says how many connections are `open`, `in_use`, `max`, and who is `waiting`."""
        for state in ("open", "in_use", "max"):
            self._database_connections.of(state).set_function(partial(_at, look, state))
        self._database_waiting.of().set_function(lambda: look()["waiting"])

    def watch_runs(self, count: Callable[[], int]) -> None:
        self._runs_held.of().set_function(count)

    def watch_ingestion(self, count: Callable[[], int]) -> None:
        self._ingestion_held.of().set_function(count)

    def watch_sandboxes(
        self, held: Callable[[], int], warm: Callable[[], int], waiting: Callable[[], int]
    ) -> None:
        self._sandbox_sessions.of("held").set_function(held)
        self._sandbox_sessions.of("warm").set_function(warm)
        self._sandbox_waiting.of().set_function(waiting)

    def families(self) -> list[Family]:
        """All that this process knows. Takes milliseconds, and may be called in a thread."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                [
                    (sample.name, dict(sample.labels), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ],
            )
            for metric in self._registry.collect()
        ]

    # --- their names ---

    def _define_runs(self) -> None:
        self._runs_held = self._gauge("runs_held", "Runs that this process executes.")
        self._runs_ended = self._counter(
            "runs_ended",
            "Runs that ended here, by status; failed ones with the code of their last_error.",
            "status",
            "error",
        )
        self._run_s = self._histogram(
            "run_duration_seconds",
            "From the creation of a run to its end, the time of its client included.",
            _WORK_S,
            "status",
        )
        self._run_queue_s = self._histogram(
            "run_queue_seconds", "How long runs were queued before they were taken up.", _WAIT_S
        )
        self._run_first_token_s = self._histogram(
            "run_first_token_seconds",
            "From the queueing of a run to the first piece of its model's answer.",
            _WAIT_S,
        )
        self._tool_s = self._histogram(
            "tool_seconds",
            "How long calls of the tools took, waiting included.",
            _WORK_S,
            "tool",
            "outcome",
        )

    def _define_models(self) -> None:
        self._model_turns = self._counter(
            "model_turns",
            "Model turns by how they ended: a finish reason, `error`, or `interrupted`.",
            "model",
            "outcome",
        )
        self._model_tries = self._counter(
            "model_tries",
            "Requests to model endpoints: `ok`, a status (429, 4xx, 5xx), `broken`, `unreachable`.",
            "model",
            "outcome",
        )
        self._model_turn_s = self._histogram(
            "model_turn_seconds", "How long model turns took, all tries included.", _WORK_S, "model"
        )
        self._model_first_chunk_s = self._histogram(
            "model_first_chunk_seconds",
            "From a request to the first piece of its answer.",
            _WAIT_S,
            "model",
        )
        self._tokens = self._counter(
            "tokens",
            "Tokens by kind; cached ones are also among those of prompts, reasoning ones among"
            " those of completions.",
            "kind",
            "model",
        )

    def _define_rest(self) -> None:
        self._http_requests = self._counter(
            "http_requests", "Requests that were answered.", "method", "route", "status"
        )
        self._http_request_s = self._histogram(
            "http_request_seconds",
            "From a request to the head of its answer.",
            _ANSWER_S,
            "method",
            "route",
        )
        self._streams_open = self._gauge("streams_open", "Event streams that clients read.")
        self._sandbox_sessions = self._gauge(
            "sandbox_sessions", "Sandboxes that runs hold here, and that are warm.", "state"
        )
        self._sandbox_waiting = self._gauge("sandbox_waiting", "Runs that wait for a sandbox here.")
        self._sandbox_starts = self._counter(
            "sandbox_starts", "Containers that were started, or failed to.", "outcome"
        )
        self._ingested_files = self._counter(
            "ingestion_files", "Files of vector stores that were taken in.", "outcome"
        )
        self._ingested_chunks = self._counter("ingestion_chunks", "Chunks that were written.")
        self._ingestion_s = self._histogram(
            "ingestion_seconds", "How long files took to be read, embedded and written.", _WORK_S
        )
        self._ingestion_held = self._gauge("ingestion_held", "Files that are being taken in here.")
        self._webhook_tries = self._counter(
            "webhook_tries", "Deliveries to webhooks that were tried.", "outcome"
        )
        self._database_connections = self._gauge(
            "database_connections", "Connections of the pool.", "state"
        )
        self._database_waiting = self._gauge(
            "database_waiting", "Who waits for a connection of the pool."
        )
        self._loop_lag_s = self._histogram(
            "event_loop_lag_seconds",
            "How much later than wished the event loop does what is due.",
            _LAG_S,
        )

    def _counter(self, name: str, about: str, *labels: str) -> _Labelled[Counter]:
        counter = Counter(f"threadmill_{name}", about, labels, registry=self._registry)
        return _Labelled(counter)

    def _gauge(self, name: str, about: str, *labels: str) -> _Labelled[Gauge]:
        return _Labelled(Gauge(f"threadmill_{name}", about, labels, registry=self._registry))

    def _histogram(
        self, name: str, about: str, buckets: tuple[float, ...], *labels: str
    ) -> _Labelled[Histogram]:
        histogram = Histogram(
            f"threadmill_{name}", about, labels, buckets=buckets, registry=self._registry
        )
        return _Labelled(histogram)

    def _model(self, name: str, *, is_known: bool) -> str:
        """The name as a label. One that no endpoint has answered for may be anybody's invention."""
        if name in self._models:
            return name
        if is_known and len(self._models) < self._models_max:
            self._models.add(name)
            return name
        return _OTHER


def _at(look: Callable[[], dict[str, int]], name: str) -> int:
    return look()[name]


def gauge(name: str, about: str, samples: list[tuple[dict[str, str], float]]) -> Family:
    """A gauge that belongs to no process."""
    name = f"threadmill_{name}"
    return Family(name, "gauge", about, [(name, labels, value) for labels, value in samples])


def rendered(by_process: dict[str, list[Family]]) -> bytes:
    """In Prometheus' text format, the families of all processes put together. The samples of a
    process are marked with its name, unless that is empty."""
    together: dict[str, Metric] = {}
    for process, families in by_process.items():
        mark = {"process": process} if process else {}
        for family in families:
            metric = together.get(family.name)
            if metric is None:
                metric = together[family.name] = Metric(family.name, family.about, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels | mark, value)
    return generate_latest(_Collected(together.values()))


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Any]:
        return self._metrics
