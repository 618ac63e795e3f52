"""Reading an answer of Chat Completions as it arrives: bytes in, text and tool call deltas out.

Servers that call themselves compatible differ in nearly everything but the happy path. What they
do differently is straightened here, so that everyone above sees one form:

1. a tool call has its id and name exactly once, in its first delta; indices are dense from 0;
2. the last chunk, and no other, carries the finish reason and the usage (None if it was not told);
3. no chunk is empty, and no text holds what Postgres cannot store.
"""

import json
import re
from typing import Any

import msgspec
import orjson

from threadmill import ids

_LINE_MAX_BYTES = 8 * 1024**2

_SURROGATE = re.compile("[\ud800-\udfff]")
_DROPPED = "The connection was dropped in the middle of the answer."
# Everything else ("eos", "end_turn", "STOP", ...) says that the model was done.
_FINISH_REASONS = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
}


class ToolCallDelta(msgspec.Struct):
    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Chunk(msgspec.Struct):
    text: str = ""
    refusal: str = ""
    tool_calls: list[ToolCallDelta] = []
    finish_reason: str | None = None  # stop, length, content_filter or tool_calls
    usage: Usage | None = None


class UpstreamError(Exception):
    """An endpoint could not be reached, refused, or broke off. `status` is HTTP's, if known."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.body = body  # as it was sent, if anything was
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class AnswerReader:
    """Takes the body of one answer in pieces cut anywhere; a plain JSON body will do as well."""

    def __init__(self) -> None:
        self.done = False  # [DONE] was read: whatever follows is not looked at
        self.finish_reason: str | None = None  # in the server's own word
        self.usage: Usage | None = None  # the latest; some servers send a running count
        self._tail = bytearray()  # the line that has not ended yet
        self._event = bytearray()  # data lines that are not JSON on their own
        self._event_is_error = False
        self._plain: bool | None = None  # a JSON body instead of events; None until the first byte
        self._opening = b""
        self._has_events = False
        self._calls = _ToolCalls()
        self._has_spoken = False

    def feed(self, data: bytes) -> list[Chunk]:
        if self.done:
            return []
        if self._plain is None:
            data = data.lstrip()
            if not data:
                return []
            self._plain = data[0] in b"{["  # no event stream can begin so
            self._opening = data[:200]
        cut = -1 if self._plain else data.rfind(b"\n")
        if cut < 0:
            self._keep(data)
            return []
        lines = data[:cut]
        if self._tail:
            lines = bytes(self._tail) + lines
            self._tail.clear()
        self._keep(data[cut + 1 :])
        chunks: list[Chunk] = []
        for line in lines.split(b"\n"):
            self._read_line(line, chunks)
            if self.done:
                break
        return chunks

    def end(self) -> list[Chunk]:
        """What is left at the end of the body; raises UpstreamError if that came too early."""
        chunks: list[Chunk] = []
        if not self.done:
            self._read_rest(chunks)
        if not self.done and self.finish_reason is None:
            raise self._too_early()
        self._calls.check()
        chunks.append(Chunk(finish_reason=self._final_reason(), usage=self.usage))
        return chunks

    def _final_reason(self) -> str:
        told = _FINISH_REASONS.get((self.finish_reason or "").lower())
        return told or ("tool_calls" if self._calls.count else "stop")

    def _too_early(self) -> UpstreamError:
        if self._has_events or not self._opening.strip():
            return UpstreamError(_DROPPED)
        opening = self._opening.decode("utf-8", "replace")
        return UpstreamError(f"The endpoint's answer is not an event stream: {opening}")

    def _keep(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > _LINE_MAX_BYTES:
            raise UpstreamError(f"The endpoint sent a line of more than {_LINE_MAX_BYTES} bytes.")

    def _read_rest(self, chunks: list[Chunk]) -> None:
        rest = bytes(self._tail)
        self._tail.clear()
        if not self._plain:
            self._read_line(rest, chunks)
            return
        event = _parse(rest)
        if event is None:
            raise UpstreamError(_DROPPED)
        if not isinstance(event, dict) or not event.get("choices"):
            raise _told_error(event)
        self._read_event(event, chunks)
        self.done = True

    def _read_line(self, line: bytes, chunks: list[Chunk]) -> None:
        if line.startswith(b"data:"):
            self._read_data(line[5:].strip(), chunks)
        elif not line or line == b"\r":
            self._end_event(chunks)
        elif line.startswith(b"event:"):
            self._event_is_error = line[6:].strip() == b"error"
        elif line.startswith((b"error:", b"{")):
            # llama.cpp has a field of that name; others write the bare object between events.
            error = _parse(line.removeprefix(b"error:"))
            if error is not None:
                raise _told_error(error)

    def _read_data(self, data: bytes, chunks: list[Chunk]) -> None:
        # A data line that is JSON by itself is an event by itself. Not waiting for the empty line
        # also reads servers that leave it out.
        if data == b"[DONE]":
            self.done = True
            return
        event = None if self._event else _parse(data)
        if event is not None:
            self._read_event(event, chunks)
            return
        self._event += data + b"\n"
        if len(self._event) > _LINE_MAX_BYTES:
            raise UpstreamError(f"The endpoint sent an event of over {_LINE_MAX_BYTES} bytes.")

    def _end_event(self, chunks: list[Chunk]) -> None:
        data = bytes(self._event).strip()
        self._event.clear()
        if data:
            event = _parse(data)
            if event is None:
                shown = data[:200].decode("utf-8", "replace")
                raise UpstreamError(f"The endpoint sent an event that is not JSON: {shown}")
            self._read_event(event, chunks)
        self._event_is_error = False

    def _read_event(self, event: Any, chunks: list[Chunk]) -> None:
        if not isinstance(event, dict):
            return
        self._has_events = True
        if self._event_is_error or event.get("error") or event.get("object") == "error":
            raise _told_error(event)
        usage = event.get("usage")
        if usage:
            self.usage = _read_usage(usage) or self.usage
        choice = _first_choice(event.get("choices"))
        if choice is None:
            return
        if finish_reason := choice.get("finish_reason"):
            self._finish(str(finish_reason), choice)
        chunk = self._read_delta(choice)
        if chunk is not None:
            self._has_spoken = True
            chunks.append(chunk)

    def _finish(self, reason: str, choice: dict[str, Any]) -> None:
        if reason == "error":  # OpenRouter's way to end a stream that failed
            raise _told_error(choice)
        self.finish_reason = self.finish_reason or reason

    def _read_delta(self, choice: dict[str, Any]) -> Chunk | None:
        delta = choice.get("delta")
        if not delta and not self._has_spoken:
            # Some send a whole message instead, others also repeat it whole at the end.
            delta = choice.get("message")
        if not isinstance(delta, dict):
            return None
        content = delta.get("content")
        text = _text(content) if content else ""
        refusal = delta.get("refusal")
        refusal = _text(refusal) if refusal else ""
        if isinstance(content, list):
            refusal += _text(content, field="refusal")
        fragments = delta.get("tool_calls")
        if not fragments and isinstance(delta.get("function_call"), dict):
            fragments = [{"index": 0, "function": delta["function_call"]}]
        calls = self._calls.read(fragments) if fragments else []
        if text or refusal or calls:
            return Chunk(text, refusal, calls)
        return None


class _ToolCall:
    def __init__(self, index: int) -> None:
        self.index = index
        self.upstream_id: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []

    def is_whole(self) -> bool:
        """Whether its arguments are complete, so that no further ones can belong to it."""
        if not self.arguments or not self.arguments[-1].rstrip().endswith("}"):
            return False
        return _parse("".join(self.arguments).encode("utf-8", "replace")) is not None


class _ToolCalls:
    """Puts fragments to their calls and gives out the deltas of those whose name is known."""

    def __init__(self) -> None:
        self.count = 0  # given out
        self._all: list[_ToolCall] = []
        self._by_upstream_index: dict[int, _ToolCall] = {}
        self._ids: set[str] = set()

    def read(self, fragments: Any) -> list[ToolCallDelta]:
        if isinstance(fragments, dict):
            fragments = [fragments]
        if not isinstance(fragments, list):
            return []
        read = (self._read_one(one) for one in fragments if isinstance(one, dict))
        return [delta for delta in read if delta is not None]

    def check(self) -> None:
        if any(call.name is None and "".join(call.arguments).strip() for call in self._all):
            raise UpstreamError("The model called a function without naming it.")

    def _read_one(self, fragment: dict[str, Any]) -> ToolCallDelta | None:
        function = fragment.get("function")
        if not isinstance(function, dict):
            function = fragment
        name = _string(function.get("name"))
        arguments = _arguments(function.get("arguments"))
        call = self._call_of(fragment, name, arguments)
        call.arguments.append(arguments)
        if call.name is not None:
            return ToolCallDelta(call.index, arguments=arguments) if arguments else None
        if name is None:
            return None  # held back: the client learns a call's name before its arguments
        call.name = name
        call.index = self.count
        self.count += 1
        return ToolCallDelta(call.index, self._new_id(call), name, "".join(call.arguments))

    def _call_of(self, fragment: dict[str, Any], name: str | None, arguments: str) -> _ToolCall:
        index = fragment.get("index")
        call_id = _string(fragment.get("id"))
        if isinstance(index, int):
            call = self._by_upstream_index.get(index)
        else:
            index = None
            same_id = (one for one in self._all if call_id and one.upstream_id == call_id)
            call = next(same_id, self._all[-1] if self._all else None)
        if call is None or _begins_another(call, call_id, name, arguments):
            call = _ToolCall(-1)
            self._all.append(call)
        if index is not None:
            self._by_upstream_index[index] = call
        call.upstream_id = call.upstream_id or call_id
        return call

    def _new_id(self, call: _ToolCall) -> str:
        given = call.upstream_id
        # An id that stands for two calls would make their outputs indistinguishable.
        if given is None or given in self._ids:
            given = ids.new("call")
        self._ids.add(given)
        return given


def _begins_another(call: _ToolCall, call_id: str | None, name: str | None, arguments: str) -> bool:
    """Whether a fragment that looks like part of `call` (same index, or none) is a new call.

    Some servers give all calls the index 0, some none; some repeat id and name in every fragment,
    some make up a new id for each fragment. Only where a name comes can a call begin.
    """
    if name is None:
        return False
    if call_id and call.upstream_id and call_id != call.upstream_id:
        return True
    if call.name is None:
        return False
    if name != call.name:
        return True
    return not call_id and bool(arguments.strip()) and call.is_whole()


def _first_choice(choices: Any) -> dict[str, Any] | None:
    if not isinstance(choices, list):
        return None
    for choice in choices:
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return None


def _text(content: Any, *, field: str = "text") -> str:
    if isinstance(content, str):
        return content.replace("\0", "\ufffd") if "\0" in content else content
    if isinstance(content, list):
        parts = (part.get(field) if isinstance(part, dict) else None for part in content)
        return "".join(_text(part) for part in parts if isinstance(part, str))
    return ""


def _string(value: Any) -> str | None:
    return _text(value) if isinstance(value, str) and value else None


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    return "" if value is None else orjson.dumps(value).decode()


def _read_usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    return Usage(
        prompt,
        completion,
        _count(usage, "total_tokens") or prompt + completion,
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _parse(data: bytes) -> Any:
    """The JSON value, {} for an empty one; None if it is no JSON."""
    try:
        return orjson.loads(data) or {}
    except orjson.JSONDecodeError:
        pass
    # orjson refuses lone surrogates and bytes that are not UTF-8, which models do produce when
    # they are cut inside an emoji.
    try:
        value = json.loads(data.decode("utf-8", "replace"))
        return json.loads(_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False))) or {}
    except (ValueError, RecursionError):
        return None


def _told_error(payload: Any) -> UpstreamError:
    message, code = error_in(payload)
    return UpstreamError(message, status=_status_of(code), code=code)


def error_in(payload: Any) -> tuple[str, str | None]:
    """The message and the code of an error object in any of the shapes servers give it."""
    if isinstance(payload, list) and payload:
        return error_in(payload[0])
    if not isinstance(payload, dict):
        return _written(payload), None
    inner = payload.get("error")
    if isinstance(inner, dict):
        return error_in(inner)
    message = payload.get("message") or inner or payload.get("detail") or payload
    code = payload.get("code") or payload.get("type")
    return _written(message), None if code is None else str(code)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _status_of(code: str | None) -> int | None:
    """The HTTP status that an error inside a stream would have had outside of it."""
    if code is None:
        return None
    if code.isdecimal() and 400 <= int(code) < 600:
        return int(code)
    if "rate_limit" in code or code == "insufficient_quota":
        return 429
    if code in ("invalid_request_error", "invalid_prompt", "context_length_exceeded"):
        return 400
    return None
