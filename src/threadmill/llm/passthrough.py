"""Requests that are a model's own: passed on to the endpoint that serves it, and the answer passed
back as it comes, byte for byte.

Tries and fallbacks are those of runs, and end with the first byte of an answer. One thing is added
on the way, where the client did not ask for it: a stream is asked to tell its usage, and the event
that tells it is taken out again.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec
import orjson

from threadmill.llm.client import INVALID, ModelClient, refusal
from threadmill.llm.routes import Route
from threadmill.llm.stream import UpstreamError

EMBEDDINGS = "embeddings"

_ANSWER_MAX_BYTES = 64 * 1024**2
_WORD_MAX_CHARACTERS = 256  # of an error's type, param and code
_SILENCE_MAX_S = 600.0  # before an answer that comes as a whole; the SDKs wait no longer either


class Refused(Exception):
    """No endpoint answered; this is what the last one that was asked said."""

    def __init__(self, client: ModelClient, failure: UpstreamError) -> None:
        super().__init__(failure.message)
        self.status = failure.status
        self.body = failure.body
        self.retry_after_s = failure.retry_after_s
        error = _error_object(failure.body)
        message = error.get("message")
        self.message = client.words(message if isinstance(message, str) else failure.message)
        refuses_request = failure.status is not None and failure.status < 500
        self.type = _text(error.get("type")) or (
            "invalid_request_error" if refuses_request else "server_error"
        )
        self.param = _text(error.get("param"))
        self.code = _text(error.get("code"))


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    @property
    def cached_tokens(self) -> int:
        return _count(self.prompt_tokens_details, "cached_tokens")

    @property
    def reasoning_tokens(self) -> int:
        return _count(self.completion_tokens_details, "reasoning_tokens")


class _Answer(msgspec.Struct):
    usage: Usage | None = None


class _Chunk(msgspec.Struct):
    usage: Usage | None = None
    choices: list[msgspec.Raw] = []


class Passage:
    """An answer on its way back."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        first: bytes,
        route: Route,
        *,
        takes_usage_out: bool,
    ) -> None:
        self.model = route.model
        self.content_type = response.headers.get("Content-Type", "application/json")
        self.usage: Usage | None = None  # known at the end, if it was told at all
        self.events = 0  # of a stream, so far
        self._response = response
        self._first = first
        self._takes_usage_out = takes_usage_out

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    async def whole(self) -> bytes:
        """Of an answer that is no stream. Raises UpstreamError."""
        body = bytearray(self._first)
        async for piece in self._rest():
            body += piece
            if len(body) > _ANSWER_MAX_BYTES:
                raise UpstreamError(f"The answer is larger than {_ANSWER_MAX_BYTES} bytes.")
        answer = bytes(body)
        with suppress(msgspec.MsgspecError):  # whatever it is, it is the client's
            self.usage = msgspec.json.decode(answer, type=_Answer).usage
        return answer

    async def pieces(self) -> AsyncIterator[bytes]:
        """Of a stream, whole events at a time. Raises UpstreamError."""
        tail = b""
        async for piece in self._all():
            block, end, tail = _cut(tail + piece)
            if block := self._read(block + end):
                yield block
        if tail := self._read(tail):
            yield tail

    def close(self) -> None:
        """Cuts the connection unless the answer was read to its end, and with it the model."""
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()

    async def _all(self) -> AsyncIterator[bytes]:
        yield self._first
        async for piece in self._rest():
            yield piece

    async def _rest(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError("The endpoint broke off in the middle of its answer.") from error

    def _read(self, block: bytes) -> bytes:
        """Count what passes; returns what the client is to have of it."""
        self.events += block.count(b"data:")
        if b'"usage"' not in block:
            return block
        kept = []
        for event in _events(block):
            told = _usage_event(event)
            if told is not None and told.usage is not None:
                self.usage = told.usage
                if self._takes_usage_out and not told.choices:
                    continue
            kept.append(event)
        return b"".join(kept)


async def pass_on(client: ModelClient, path: str, raw: bytes, sent: dict[str, Any]) -> Passage:
    """`sent` is what stands in `raw`. Raises Refused."""
    model: str = sent["model"]
    routes = client.routes_for_embeddings(model) if path == EMBEDDINGS else client.routes_for(model)
    last: Refused | None = None
    for route in routes:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await _begin(client, route, path, raw, sent)
            except UpstreamError as failure:
                last = Refused(client, failure)
                wait_s = client.wait_after(failure, attempt)
            if last.status in INVALID:
                raise last
            if wait_s is None:
                break
            await client.wait(wait_s)
    raise last or Refused(client, UpstreamError("", status=404))


async def _begin(
    client: ModelClient, route: Route, path: str, raw: bytes, sent: dict[str, Any]
) -> Passage:
    key = (str(route.endpoint), route.upstream_name)
    asks = _may_ask_for_usage(path, sent) and key not in client.without_stream_options
    try:
        return await _send(client, route, path, raw, sent, asks_for_usage=asks)
    except UpstreamError as failure:
        refused = failure.status in INVALID and "stream_options" in failure.message
        if not (asks and refused):
            raise
    client.without_stream_options.add(key)
    return await _send(client, route, path, raw, sent, asks_for_usage=False)


async def _send(
    client: ModelClient,
    route: Route,
    path: str,
    raw: bytes,
    sent: dict[str, Any],
    *,
    asks_for_usage: bool,
) -> Passage:
    changes: dict[str, Any] = {}
    if route.upstream_name != sent["model"]:
        changes["model"] = route.upstream_name
    if asks_for_usage:
        options = sent.get("stream_options")
        changes["stream_options"] = (options or {}) | {"include_usage": True}
    response = await client.request(
        "POST",
        route.endpoint,
        path,
        orjson.dumps(sent | changes) if changes else raw,
        {"Accept-Encoding": "identity"},
        silence_max_s=None if sent.get("stream") is True else _SILENCE_MAX_S,
    )
    try:
        if response.status >= 300:
            raise await refusal(response)
        first = await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        response.close()
        raise UpstreamError("The endpoint broke off before its answer.") from error
    except BaseException:
        response.close()
        raise
    return Passage(response, first, route, takes_usage_out=asks_for_usage)


def _may_ask_for_usage(path: str, sent: dict[str, Any]) -> bool:
    """Whether it is a stream of which the client did not say whether it wants to be told."""
    if path == EMBEDDINGS or sent.get("stream") is not True:
        return False
    options = sent.get("stream_options")
    return options is None or (isinstance(options, dict) and not options.get("include_usage"))


def _cut(data: bytes) -> tuple[bytes, bytes, bytes]:
    """At the end of the last whole event: what is before, that end, what is behind."""
    ends = [(data.rfind(end), end) for end in (b"\n\n", b"\r\n\r\n")]
    at, end = max(ends)
    return (data[:at], end, data[at + len(end) :]) if at >= 0 else (b"", b"", data)


def _events(block: bytes) -> list[bytes]:
    """The events in it, each with its end."""
    end = b"\r\n\r\n" if b"\r\n\r\n" in block else b"\n\n"
    return [event + end for event in block.split(end) if event] if end in block else [block]


def _usage_event(event: bytes) -> _Chunk | None:
    _, is_data, data = event.partition(b"data:")
    if not is_data or b'"usage"' not in data:
        return None
    try:
        return msgspec.json.decode(data.strip(), type=_Chunk)
    except msgspec.MsgspecError:
        return None


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:_WORD_MAX_CHARACTERS]


def _count(details: dict[str, Any] | None, name: str) -> int:
    value = (details or {}).get(name)
    return value if isinstance(value, int) else 0
