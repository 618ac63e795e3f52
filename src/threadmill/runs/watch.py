"""What is told of a run to those who run the server: numbers, spans, a line in the log.

Spans are named as OpenTelemetry does it for generative AI: a run is `invoke_agent`, a model turn
`chat`, a call of a tool of ours `execute_tool`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from threadmill.llm.client import ModelError, TurnRecord
from threadmill.llm.stream import Usage
from threadmill.runs.answer import Answer
from threadmill.runs.calls import Call
from threadmill.runs.interrupt import Interrupted
from threadmill.runtime import Runtime
from threadmill.store.rows import Run
from threadmill.traces import SILENT

Json = dict[str, Any]
log = structlog.get_logger()


class Watch:
    """Of one execution. A run that waits for its client in between has several."""

    def __init__(self, runtime: Runtime, run: Run) -> None:
        self._run = run
        self._metrics = runtime.metrics
        self._traces = runtime.traces
        self._span = SILENT
        self._model = run.model  # that has answered: a fallback, perhaps
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._began_at = time.time()

    @contextmanager
    def execution(self) -> Iterator[None]:
        run = self._run
        self._span = self._traces.start(
            "invoke_agent",
            "internal",
            run.traceparent,
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "threadmill",
                "gen_ai.agent.id": run.assistant_id,
                "gen_ai.conversation.id": run.thread_id,
                "gen_ai.request.model": run.model,
                "threadmill.run.id": run.id,
                "threadmill.project.id": run.project_id,
            },
        )
        # For all that is logged in this task from here on.
        structlog.contextvars.bind_contextvars(run_id=run.id, thread_id=run.thread_id)
        if trace_id := self._span.trace_id:
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        log.debug("run_taken_up", claims=run.claims, turns=run.turns)
        try:
            yield
        finally:
            self._end()

    def begin(self) -> None:
        """It waits no longer: the run has its place here."""
        self._queue_s = max(time.time() - self._run.queued_at, 0.0)
        self._metrics.run_taken_up(self._queue_s)
        self._span.note({"threadmill.run.queue_s": self._queue_s})

    @contextmanager
    def turn(self, answer: Answer, record: TurnRecord) -> Iterator[None]:
        run = self._run
        span = self._span.start(
            f"chat {run.model}",
            "client",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",  # whose API it is, whoever answers
                "gen_ai.request.model": run.model,
                "gen_ai.request.stream": True,
                "gen_ai.conversation.id": run.thread_id,
            },
        )
        record.traceparent = span.traceparent
        error = None
        outcome = "interrupted"
        started = time.perf_counter()
        try:
            yield
            outcome = answer.finish_reason or "stop"
        except ModelError as failed:
            outcome, error = "error", str(failed.status or failed.code)
            raise
        except Interrupted as interrupted:
            error = interrupted.reason.value
            raise
        finally:
            self._count_turn(record, outcome, time.perf_counter() - started)
            if span.is_recorded:
                span.note(self._request_facts() | _answer_facts(answer, record))
                if self._traces.shows_content:
                    span.note(_contents(answer, record))
            span.end(error)

    def count(self, usage: Usage) -> None:
        """What a turn took."""
        self._metrics.tokens_used(
            self._model,
            prompt=usage.prompt_tokens,
            completion=usage.completion_tokens,
            cached=usage.cached_tokens,
            reasoning=usage.reasoning_tokens,
        )

    @contextmanager
    def tool(self, call: Call) -> Iterator[Json]:
        """To be given what is kept of the call."""
        span = self._span.start(
            f"execute_tool {call.kind}",
            "internal",
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": call.kind,
                "gen_ai.tool.type": "datastore" if call.kind == "file_search" else "extension",
                "gen_ai.tool.call.id": call.id,
            },
        )
        given: Json = {}
        error: str | None = None
        outcome = "ok"
        started = time.perf_counter()
        try:
            yield given
        except Interrupted as interrupted:
            outcome, error = "interrupted", interrupted.reason.value
            raise
        except BaseException as fault:
            outcome, error = "error", type(fault).__name__
            raise
        finally:
            self._metrics.tool_used(call.kind, outcome, time.perf_counter() - started)
            if span.is_recorded and self._traces.shows_content:
                span.note(
                    {
                        "gen_ai.tool.call.arguments": call.arguments,
                        "gen_ai.tool.call.result": given.get("output"),
                    }
                )
            span.end(error)

    def _count_turn(self, record: TurnRecord, outcome: str, took_s: float) -> None:
        first_chunk_s = None
        if record.tries:
            self._model = record.tries[-1].model
            if record.first_chunk_at is not None and record.sent_at is not None:
                first_chunk_s = record.first_chunk_at - record.sent_at
                if self._first_token_s is None and self._queue_s is not None:
                    self._first_token_s = record.first_chunk_at - self._run.queued_at
                    self._metrics.run_spoke(self._first_token_s)
        self._metrics.model_answered(self._model, outcome, first_chunk_s, took_s)
        for one in record.tries:
            if one.status is not None or one.error is not None:  # else it was interrupted
                self._metrics.model_tried(one.model, one.status, answered=one.error is None)

    def _end(self) -> None:
        run = self._run
        error = run.last_error["code"] if run.last_error else ""
        now = time.time()
        # To the second, but for a run that has never waited for its client.
        created_at = run.queued_at if int(run.queued_at) == run.created_at else run.created_at
        if run.has_ended:
            self._metrics.run_ended(run.status, error, max(now - created_at, 0.0))
        self._span.note(
            {
                "threadmill.run.status": str(run.status),
                "threadmill.run.turns": run.turns,
                "gen_ai.usage.input_tokens": run.prompt_tokens,
                "gen_ai.usage.output_tokens": run.completion_tokens,
            }
        )
        self._span.end(error or None)
        log.info(
            "run_executed",
            status=str(run.status),
            error=error or None,
            assistant_id=run.assistant_id,
            model=self._model,
            turns=run.turns,
            prompt_tokens=run.prompt_tokens,
            completion_tokens=run.completion_tokens,
            queue_ms=_ms(self._queue_s),
            first_token_ms=_ms(self._first_token_s),
            took_ms=_ms(now - self._began_at),
        )

    def _request_facts(self) -> Json:
        run = self._run
        return {
            "gen_ai.request.temperature": run.temperature,
            "gen_ai.request.top_p": run.top_p,
            "gen_ai.request.max_tokens": run.max_completion_tokens,
        }


def _answer_facts(answer: Answer, record: TurnRecord) -> Json:
    facts: Json = {"gen_ai.response.model": record.model, "threadmill.tries": len(record.tries)}
    if record.base_url is not None:
        endpoint = urlsplit(record.base_url)
        facts |= {"server.address": endpoint.hostname, "server.port": endpoint.port}
    if answer.finish_reason is not None:
        facts["gen_ai.response.finish_reasons"] = [answer.finish_reason]
    if record.first_chunk_at is not None and record.sent_at is not None:
        facts["gen_ai.response.time_to_first_chunk"] = record.first_chunk_at - record.sent_at
    if (usage := record.usage) is not None:
        facts |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
    return facts


# --- what was said, for those who asked for it ---


def _contents(answer: Answer, record: TurnRecord) -> Json:
    sent = orjson.loads(record.request or b"{}").get("messages", [])
    said: list[Json] = [{"type": "text", "content": text} for text in answer.said]
    said += [_call_part(call.id, call.name, call.arguments) for call in answer.calls]
    return {
        "gen_ai.input.messages": orjson.dumps([_message(one) for one in sent]).decode(),
        "gen_ai.output.messages": orjson.dumps(
            [{"role": "assistant", "parts": said, "finish_reason": answer.finish_reason or ""}]
        ).decode(),
    }


def _message(sent: Json) -> Json:
    content = sent.get("content")
    if sent["role"] == "tool":
        part = {"type": "tool_call_response", "id": sent["tool_call_id"], "response": content}
        return {"role": "tool", "parts": [part]}
    pieces = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    parts = [
        {"type": "text", "content": piece["text"]}
        if piece["type"] == "text"
        else {"type": piece["type"]}  # images would make a span of megabytes
        for piece in pieces
    ]
    for call in sent.get("tool_calls") or []:
        function = call["function"]
        parts.append(_call_part(call["id"], function["name"], function["arguments"]))
    return {"role": sent["role"], "parts": parts}


def _call_part(call_id: str, name: str, arguments: str) -> Json:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
