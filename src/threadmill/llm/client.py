"""The model endpoint: requests out, answers back as they are written, tries and fallbacks between.

aiohttp is used as it is: a streamed chunk costs 48-66 µs of CPU with it and 185-244 with httpx.
"""

import asyncio
import io
import itertools
import json
import random
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aiohttp
import msgspec
import orjson

from threadmill.errors import Unavailable
from threadmill.llm.routes import Endpoint, Route, Routes, embedding_endpoint
from threadmill.llm.stream import AnswerReader, Chunk, UpstreamError, Usage, error_in
from threadmill.settings import Settings

_PIECEWISE_ABOVE_BYTES = 256 * 1024
_ERROR_BODY_MAX_BYTES = 64 * 1024
_ANSWER_MAX_BYTES = 64 * 1024**2  # of a model list or of embeddings, which are read whole
_MESSAGE_MAX_CHARACTERS = 2000
_FIRST_WAIT_S = 0.5  # before the second try; doubles from try to try
_LINGER_S = 1.0  # for usage and [DONE] after the finish reason, and for the end of a body
_MODEL_LIST_KEPT_S = 10.0

INVALID = frozenset({400, 413, 422})  # another try or another model would hear the same
_REPEATABLE = frozenset({408, 409, 425, 429})

ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ModelError(Exception):
    """No model could answer. Code and message are what the client reads in `last_error`."""

    def __init__(self, code: ErrorCode, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.status = status  # the endpoint's, if it answered


class Try(msgspec.Struct):
    model: str
    upstream_name: str
    base_url: str
    started_at: float
    status: int | None = None
    error: str | None = None
    waited_s: float = 0.0  # after this try, before the next one


class TurnRecord(msgspec.Struct):
    """What is kept of one model turn for those who look at it later. Times are unix times."""

    tries: list[Try] = []
    request: bytes = b""  # as sent, in the latest try
    sent_at: float | None = None
    headers_at: float | None = None
    first_chunk_at: float | None = None
    ended_at: float | None = None
    model: str | None = None  # the upstream's name for it
    base_url: str | None = None
    finish_reason: str | None = None  # in the upstream's own word
    usage: Usage | None = None  # known so far, even of an answer that broke off
    traceparent: str | None = None  # sent along: the endpoint's spans are part of our trace


class ModelClient:
    """Holds one connection pool for the process: open it, use it from many runs, close it."""

    def __init__(
        self, settings: Settings, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._routes = Routes(settings)
        self._embedding_endpoint = embedding_endpoint(settings)
        self._secrets = self._routes.secrets.union(
            self._embedding_endpoint.secrets if self._embedding_endpoint else ()
        )
        self._embedding_slots = asyncio.Semaphore(settings.embedding_max_concurrent_requests)
        self._usual_timeout = self._timeout(settings.model_idle_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.without_stream_options: set[tuple[str, str]] = set()
        self._listed: tuple[float, list[dict[str, Any]]] | None = None
        self._started_at = int(time.time())

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),  # one tenant's cookies are nobody else's
            max_line_size=32 * 1024,
            max_field_size=32 * 1024,
        )

    async def close(self) -> None:
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> "ModelClient":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def route(self, model: str) -> Route | None:
        return self._routes.find(model)

    async def stream(
        self, model: str, body: dict[str, Any], *, record: TurnRecord
    ) -> AsyncGenerator[list[Chunk]]:
        """The answer, one list of chunks for each read from the network.

        Whoever leaves before the end does so through `contextlib.aclosing` (or by being
        cancelled): that is what cuts the connection and stops the model.
        """
        answer: _Answer | None = None
        try:
            answer, chunks = await self._first_chunks(model, body, record)
            while chunks:
                yield chunks
                chunks = await answer.read()
        except UpstreamError as failure:
            record.tries[-1].error = self.words(failure.message)
            raise self._model_error(failure, record.tries[-1].model) from failure
        finally:
            record.ended_at = time.time()
            if answer is not None:
                record.finish_reason = answer.reader.finish_reason
                record.usage = answer.reader.usage
                self._let_go(answer)

    async def list_models(self) -> list[dict[str, Any]]:
        if self._listed is not None and time.monotonic() - self._listed[0] < _MODEL_LIST_KEPT_S:
            return self._listed[1]
        named = [
            _model(name, self._started_at, owned_by="threadmill") for name in self._routes.names
        ]
        try:
            served = await self._served_models()
        except UpstreamError as failure:
            if not named:
                raise Unavailable(self.words(failure.message)) from failure
            served = []
        names = set(self._routes.names)
        models = named + [model for model in served if model["id"] not in names]
        self._listed = time.monotonic(), models
        return models

    async def models_of(self, endpoint: Endpoint) -> list[dict[str, Any]]:
        """What one endpoint serves, asked anew. Raises UpstreamError."""
        try:
            async with asyncio.timeout(self._settings.model_connect_timeout_s):
                answer = await self._fetch("GET", endpoint, "models", None)
        except TimeoutError as error:
            raise self._unreachable(endpoint, error) from error
        except UpstreamError as failure:
            failure.message = self.words(failure.message)
            raise
        return _read_models(answer, self._started_at)

    async def embed(
        self, texts: list[str], *, model: str | None = None, dimensions: int | None = None
    ) -> list[list[float]]:
        """A vector for each text, by the configured embedding model unless another is named. Long
        lists go out in several requests at once. Raises ModelError."""
        size = self._settings.embedding_batch_max_texts
        try:
            async with asyncio.TaskGroup() as group:
                batches = [
                    group.create_task(self._embed(texts[at : at + size], model, dimensions))
                    for at in range(0, len(texts), size)
                ]
        except* ModelError as failures:
            raise failures.exceptions[0] from None
        return [vector for batch in batches for vector in batch.result()]

    async def _embed(
        self, texts: list[str], model: str | None, dimensions: int | None
    ) -> list[list[float]]:
        endpoint, model = self._embedding_endpoint, model or self._settings.embedding_model
        if endpoint is None or model is None:
            raise ModelError("server_error", "No endpoint and model for embeddings are configured.")
        body: dict[str, Any] = {"model": model, "input": texts}
        dimensions = dimensions or self._settings.embedding_dimensions
        if dimensions is not None and self._settings.embedding_dimensions is not None:
            body["dimensions"] = dimensions  # only where it was asked for: not every model shortens
        data = _json(body)
        for attempt in itertools.count(1):
            try:
                async with self._embedding_slots:
                    answer = await self._fetch("POST", endpoint, "embeddings", data)
                return _read_embeddings(answer, expected=len(texts), dimensions=dimensions)
            except UpstreamError as failure:
                wait_s = self.wait_after(failure, attempt)
                if wait_s is None:
                    raise self._model_error(failure, model) from failure
            await self._sleep(wait_s)
        raise AssertionError("unreachable")

    # --- tries ---

    async def _first_chunks(
        self, model: str, body: dict[str, Any], record: TurnRecord
    ) -> tuple["_Answer", list[Chunk]]:
        """Try until something of an answer is there: from then on nothing can be repeated."""
        last: ModelError | None = None
        for route in self.routes_for(model):
            for attempt in range(1, self._settings.model_max_attempts + 1):
                try:
                    return await self._begin(route, body, record)
                except UpstreamError as failure:
                    last = self._model_error(failure, route.model)
                    wait_s = self.wait_after(failure, attempt)
                if last.code == "invalid_prompt":
                    raise last
                if wait_s is None:
                    break
                record.tries[-1].waited_s = wait_s
                await self._sleep(wait_s)
        raise last or ModelError("server_error", f"No endpoint serves the model '{model}'.")

    def routes_for_embeddings(self, model: str) -> list[Route]:
        """A model that is named in [models] is there; any other is where ours are made."""
        if self._routes.is_named(model) or self._embedding_endpoint is None:
            return self.routes_for(model)
        return [
            Route(
                model=model,
                upstream_name=model,
                endpoint=self._embedding_endpoint,
                max_tokens_parameter="max_tokens",
                context_window_tokens=self._settings.context_window_tokens,
                fallbacks=(),
            )
        ]

    def routes_for(self, model: str) -> list[Route]:
        first = self.route(model)
        if first is None:
            return []
        routes = [first, *(self.route(name) for name in first.fallbacks)]
        return [route for route in routes if route is not None]

    async def wait(self, wait_s: float) -> None:
        await self._sleep(wait_s)

    def wait_after(self, failure: UpstreamError, attempt: int) -> float | None:
        """How long to wait before the next try; None if there is to be none on this model."""
        status, longest_s = failure.status, self._settings.model_max_retry_wait_s
        if attempt >= self._settings.model_max_attempts or failure.code == "insufficient_quota":
            return None
        if status is not None and status < 500 and status not in _REPEATABLE:
            return None
        if failure.retry_after_s is not None:
            return failure.retry_after_s if failure.retry_after_s <= longest_s else None
        backoff_s: float = _FIRST_WAIT_S * 2 ** (attempt - 1)
        # Spread, so that a thousand streams cut at once do not come back at once.
        return min(backoff_s * random.uniform(0.5, 1.5), longest_s)

    async def _begin(
        self, route: Route, body: dict[str, Any], record: TurnRecord
    ) -> tuple["_Answer", list[Chunk]]:
        """One try: up to the first chunks, which are never empty."""
        key = (str(route.endpoint), route.upstream_name)
        with_options = key not in self.without_stream_options
        try:
            return await self._send(route, body, record, with_options=with_options)
        except UpstreamError as failure:
            refused = failure.status in INVALID and "stream_options" in failure.message
            if not (with_options and refused):
                raise
        self.without_stream_options.add(key)
        return await self._send(route, body, record, with_options=False)

    async def _send(
        self, route: Route, body: dict[str, Any], record: TurnRecord, *, with_options: bool
    ) -> tuple["_Answer", list[Chunk]]:
        request = _request_bytes(route, body, with_options=with_options)
        this = Try(route.model, route.upstream_name, str(route.endpoint), time.time())
        record.tries.append(this)
        record.request, record.sent_at, record.headers_at = request, this.started_at, None
        record.model, record.base_url = route.upstream_name, this.base_url
        answer: _Answer | None = None
        headers = {"Accept-Encoding": "identity"}
        if record.traceparent is not None:
            headers["traceparent"] = record.traceparent
        try:
            # A compressed stream arrives when the server's buffer is full, not when it is written.
            response = await self.request(
                "POST",
                route.endpoint,
                "chat/completions",
                request,
                headers,
            )
            answer = _Answer(response, self._settings.model_idle_timeout_s)
            record.headers_at = time.time()
            this.status = response.status
            if response.status >= 300:
                raise await refusal(response)
            chunks = await answer.read()
            record.first_chunk_at = time.time()
            return answer, chunks
        except BaseException as failure:
            if answer is not None:
                answer.response.close()
            if isinstance(failure, UpstreamError):
                this.error = self.words(failure.message)
            raise

    # --- requests ---

    async def request(
        self,
        method: str,
        endpoint: Endpoint,
        path: str,
        data: bytes | None,
        headers: dict[str, str],
        *,
        silence_max_s: float | None = None,
    ) -> aiohttp.ClientResponse:
        """`silence_max_s` where it is to be another than for streams. Raises UpstreamError."""
        assert self._session is not None, "the client is not open"
        try:
            return await self._session.request(
                method,
                endpoint.url(path),
                # What is large goes out piece by piece, or it would hold up the event loop.
                data=io.BytesIO(data) if data and len(data) > _PIECEWISE_ABOVE_BYTES else data,
                headers={"Content-Type": "application/json", **headers, **endpoint.headers},
                allow_redirects=False,
                proxy=endpoint.proxy,
                proxy_headers=endpoint.proxy_headers,
                timeout=self._timeout(silence_max_s) if silence_max_s else self._usual_timeout,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(endpoint, error) from error

    def _timeout(self, silence_max_s: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None,
            connect=self._settings.model_connect_timeout_s,
            sock_read=silence_max_s,
        )

    def _unreachable(self, endpoint: Endpoint, error: Exception) -> UpstreamError:
        if isinstance(error, aiohttp.SocketTimeoutError):
            return _silent(self._settings.model_idle_timeout_s)
        if isinstance(error, TimeoutError):
            seconds = self._settings.model_connect_timeout_s
            return UpstreamError(f"No connection to {endpoint} within {seconds:g} seconds.")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return UpstreamError("The endpoint closed the connection without an answer.")
        return UpstreamError(f"No connection to {endpoint}: {error or type(error).__name__}")

    async def _fetch(self, method: str, endpoint: Endpoint, path: str, data: bytes | None) -> Any:
        """The JSON of an answer that is not streamed."""
        response = await self.request(method, endpoint, path, data, {})
        try:
            if response.status >= 300:
                raise await refusal(response)
            body = await _read_at_most(response, _ANSWER_MAX_BYTES)
            return orjson.loads(body)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(endpoint, error) from error
        except orjson.JSONDecodeError as error:
            raise UpstreamError(f"The answer of {endpoint} to {path} is not JSON.") from error
        finally:
            response.release()

    async def _served_models(self) -> list[dict[str, Any]]:
        endpoint = self._routes.default
        if endpoint is None:
            raise UpstreamError("No model endpoint is configured: set THREADMILL_MODEL_BASE_URL.")
        try:
            return await self.models_of(endpoint)
        except UpstreamError as failure:
            message = f"The models of {endpoint} could not be listed: {failure.message}"
            raise UpstreamError(message) from failure

    # --- ends ---

    def _let_go(self, answer: "_Answer") -> None:
        """Keep the connection if its answer was read to the end, else cut it."""
        if answer.response.content.is_eof():
            answer.response.release()
        elif answer.reader.done:
            # The end of the body is on its way. Nobody waits for it, but a connection that saw it
            # can be used again.
            task = asyncio.create_task(answer.finish())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        else:
            answer.response.close()

    def _model_error(self, failure: UpstreamError, model: str) -> ModelError:
        code: ErrorCode = "server_error"
        if failure.status == 429:
            code = "rate_limit_exceeded"
        elif failure.status in INVALID:
            code = "invalid_prompt"
        words = self.words(f"Model '{model}': {failure.message}")
        return ModelError(code, words, status=failure.status)

    def words(self, message: str) -> str:
        """An upstream's words as clients may read them: without our keys, and not endless."""
        for secret in self._secrets:
            message = message.replace(secret, "[key]")
        message = message.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
        if len(message) <= _MESSAGE_MAX_CHARACTERS:
            return message
        return message[: _MESSAGE_MAX_CHARACTERS - 3] + "..."


class _Answer:
    """An answer on its way."""

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float) -> None:
        self.response = response
        self.reader = AnswerReader()
        self._idle_timeout_s = idle_timeout_s
        self._ended = False

    async def read(self) -> list[Chunk]:
        """The next chunks; empty only after the end."""
        while not self._ended:
            data = await self._read_bytes()
            chunks = self.reader.feed(data) if data else []
            if not data or self.reader.done:
                self._ended = True
                chunks += self.reader.end()
            if chunks:
                return chunks
        return []

    async def finish(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while await self.response.content.readany():
                    pass
        except (aiohttp.ClientError, OSError):
            pass
        finally:
            self.response.close()

    async def _read_bytes(self) -> bytes:
        content = self.response.content
        try:
            if self.reader.finish_reason is None:
                return await content.readany()
            async with asyncio.timeout(_LINGER_S):
                return await content.readany()
        except (aiohttp.ClientError, OSError) as error:
            if self.reader.finish_reason is not None:
                return b""  # all that matters was said
            if isinstance(error, TimeoutError):
                raise _silent(self._idle_timeout_s) from error
            raise UpstreamError(
                "The connection was dropped in the middle of the answer."
            ) from error


def _request_bytes(route: Route, body: dict[str, Any], *, with_options: bool) -> bytes:
    request: dict[str, Any] = {"model": route.upstream_name, **body, "stream": True}
    if with_options:
        request["stream_options"] = {"include_usage": True}
    if (limit := request.pop("max_tokens", None)) is not None:
        request[route.max_tokens_parameter] = limit
    return _json(request)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, or a number of more than 64 bits in a tool's schema
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _silent(seconds: float) -> UpstreamError:
    return UpstreamError(f"The endpoint sent nothing for {seconds:g} seconds.")


async def refusal(response: aiohttp.ClientResponse) -> UpstreamError:
    """What a status of 300 and above means, in the endpoint's own words."""
    status = response.status
    if 300 <= status < 400:
        place = response.headers.get("Location", "nowhere")
        return UpstreamError(f"The endpoint answered {status} and points to {place}", status=status)
    try:
        async with asyncio.timeout(_LINGER_S):
            text = await _read_at_most(response, _ERROR_BODY_MAX_BYTES)
    except (aiohttp.ClientError, OSError):
        text = b""
    message, code = _words_in(text)
    return UpstreamError(
        f"The endpoint answered {status}: {message or response.reason}",
        status=status,
        code=code,
        retry_after_s=_retry_after_s(response),
        body=text,
    )


def _words_in(body: bytes) -> tuple[str, str | None]:
    try:
        return error_in(orjson.loads(body))
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip(), None


async def _read_at_most(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > max_bytes:
            break
    return bytes(body[:max_bytes])


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    milliseconds = _number(response.headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = response.headers.get("retry-after")
    seconds = _number(value)
    if seconds is None and value:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else max(0.0, seconds)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number == number else None  # "nan" parses too


def _model(model_id: str, created: int, *, owned_by: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": created, "owned_by": owned_by}


def _read_models(answer: Any, created: int) -> list[dict[str, Any]]:
    """Models in OpenAI's form ({"data": [{"id"}]}), or Ollama's, or as a bare list of names."""
    listed = answer
    if isinstance(answer, dict):
        listed = answer.get("data") or answer.get("models")
    models: dict[str, dict[str, Any]] = {}
    for one in listed if isinstance(listed, list) else []:
        fields = one if isinstance(one, dict) else {"id": one}
        model_id = fields.get("id") or fields.get("name")
        if not isinstance(model_id, str):
            continue
        since, owner = fields.get("created"), fields.get("owned_by")
        models[model_id] = _model(
            model_id,
            int(since) if isinstance(since, int | float) else created,
            owned_by=owner if isinstance(owner, str) else "system",
        )
    return list(models.values())


def _read_embeddings(answer: Any, *, expected: int, dimensions: int | None) -> list[list[float]]:
    try:
        rows = sorted(answer["data"], key=lambda row: row.get("index", 0))
        vectors: list[list[float]] = [row["embedding"] for row in rows]
        lengths = {len(array("d", vector)) for vector in vectors}  # an array takes numbers only
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UpstreamError("The endpoint's answer holds no embeddings.") from error
    if len(vectors) != expected:
        raise UpstreamError(f"{expected} texts were sent, {len(vectors)} embeddings came back.")
    if len(lengths) > 1 or (dimensions is not None and lengths - {dimensions}):
        raise UpstreamError(
            f"Embeddings of {sorted(lengths)} dimensions came back, {dimensions} were expected.",
            status=400,
        )
    return vectors
