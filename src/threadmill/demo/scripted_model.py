"""A stand-in for a model endpoint, over real HTTP: it says what it was told to say.

For `threadmill demo`, for tests, and (as a process of its own) for benchmarks:

    python -m threadmill.demo.scripted_model --port 9000 --chunks 10 --delay-s 0.1
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import orjson
from aiohttp import web

_REQUEST_MAX_BYTES = 256 * 1024**2

# A gate in a script: the reply goes on when somebody sets it.
Gate = asyncio.Event


@dataclass
class ToolCall:
    name: str
    arguments: str | Sequence[str | Gate] | Mapping[str, Any] = "{}"  # a list is sent in fragments
    id: str | None = None  # made up when left out


@dataclass
class Reply:
    """What one request is answered with: text first, then a refusal, then tool calls."""

    text: str | Sequence[str | Gate] = ()  # a list is sent in chunks; a gate waits between them
    refusal: str | Sequence[str | Gate] = ()
    tool_calls: Sequence[ToolCall] = ()
    calls_take_turns: bool = True  # a fragment of each; else call after call, as OpenAI does
    finish_reason: str | None = None  # "stop", or "tool_calls" where there are some
    usage: Mapping[str, Any] | Literal["plausible"] | None = "plausible"

    delay_s: float = 0.0  # before each chunk
    gate: Gate | None = None  # waited for before the headers

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None  # of an error; default: an error object with the status in it

    drop_before_headers: bool = False
    drop_after_chunks: int | None = None  # then the connection is closed
    drop_in_line: bool = False  # with drop_after_chunks: half of the next chunk is sent before
    silent_after_chunks: int | None = None  # then nothing comes, and nothing ends
    raw: Sequence[bytes | Gate] | None = None  # the body, byte for byte, instead of all that
    plain: bool = False  # one JSON body although a stream was asked for


@dataclass
class Recorded:
    body: dict[str, Any]
    headers: Mapping[str, str]
    path: str


Answer = Callable[[dict[str, Any]], Reply | Sequence[str | Gate]]


class ScriptedModel:
    def __init__(self, *, keep_requests: bool = True) -> None:
        self.requests: list[Recorded] = []
        self.disconnects = 0  # clients that went away before the end of their reply
        self.answer: Answer | None = None  # decides by request, instead of the queue
        # For a request for embeddings: an error, a gate or a delay; None for the vectors at once.
        self.before_embeddings: Callable[[dict[str, Any]], Reply | None] | None = None
        self.embedding_dimensions = 64  # where the request names none
        self.models = ["scripted"]
        self.base_url = ""
        self._queue: deque[Reply] = deque()
        self._keep_requests = keep_requests
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._stopping = False
        self._ids = itertools.count(1)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        app = web.Application(client_max_size=_REQUEST_MAX_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)  # a prompt instead of messages
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        self._stopping = False
        # Cancelling the handler is how we hear of a client that went while we wait at a gate.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=4096)
        await site.start()
        self.base_url = f"http://{host}:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        self._stopping = True
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def say(self, *text: str | Gate) -> None:
        """Queue a reply of text, in these chunks."""
        self.reply(Reply(text=text))

    def reply(self, *replies: Reply) -> None:
        self._queue.extend(replies)

    async def received(self, count: int) -> None:
        """Wait until that many requests have come in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)

    async def disconnected(self, count: int = 1) -> None:
        """Wait until that many clients in all have gone before the end of their reply."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.disconnects >= count)

    # --- endpoints ---

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        reply = self._next_reply(body)
        try:
            return await self._send(request, body, reply)
        except (asyncio.CancelledError, ConnectionError):
            if not self._stopping:
                self.disconnects += 1
                await asyncio.shield(self._tell())
            raise

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        reply = self.before_embeddings(body) if self.before_embeddings else None
        if reply is not None:
            await asyncio.sleep(reply.delay_s)
            if reply.gate is not None:
                await reply.gate.wait()
            if reply.status != 200:
                return _json(_error_body(reply), status=reply.status, headers=reply.headers)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        dimensions = body.get("dimensions") or self.embedding_dimensions
        data = [
            {"object": "embedding", "index": index, "embedding": vector(str(text), dimensions)}
            for index, text in enumerate(texts)
        ]
        tokens = sum(_tokens(str(text)) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "model": body["model"], "data": data, "usage": usage})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "scripted"}
            for name in self.models
        ]
        return _json({"object": "list", "data": data})

    async def _record(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = orjson.loads(await request.read())
        if self._keep_requests:
            self.requests.append(Recorded(body, request.headers.copy(), request.path))
            await self._tell()
        return body

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _next_reply(self, body: dict[str, Any]) -> Reply:
        if self.answer is not None:
            answer = self.answer(body)
            return answer if isinstance(answer, Reply) else Reply(text=answer)
        if self._queue:
            return self._queue.popleft()
        return Reply(status=500, body={"error": {"message": "script is empty"}})

    # --- replies ---

    async def _send(
        self, request: web.Request, body: dict[str, Any], reply: Reply
    ) -> web.StreamResponse:
        if reply.gate is not None:
            await reply.gate.wait()
        if reply.drop_before_headers:
            return _drop(request)
        if reply.status != 200:
            return _json(_error_body(reply), status=reply.status, headers=reply.headers)
        if reply.raw is None and (reply.plain or not body.get("stream")):
            return _json(self._completion(body, reply), headers=reply.headers)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", **reply.headers}
        )
        await response.prepare(request)
        if reply.raw is not None:
            await _send_raw(response, reply.raw)
        else:
            await self._send_events(request, response, body, reply)
        return response

    async def _send_events(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: dict[str, Any],
        reply: Reply,
    ) -> None:
        sent = 0
        async for event in self._events(body, reply):
            if sent == reply.silent_after_chunks:
                await asyncio.Event().wait()
            if sent == reply.drop_after_chunks:
                if reply.drop_in_line:
                    await response.write(event[: len(event) // 2])
                _drop(request)
                return
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            await response.write(event)
            sent += 1
        await response.write(b"data: [DONE]\n\n")

    async def _events(self, body: dict[str, Any], reply: Reply) -> AsyncIterator[bytes]:
        head = self._head(body, "chat.completion.chunk")
        choice = _choice_of_text if "prompt" in body else _choice
        async for delta in _deltas(reply, self._call_id):
            yield _event({**head, "choices": [choice(delta)]})
        yield _event({**head, "choices": [choice({}, _finish_reason(reply))]})
        options = body.get("stream_options") or {}
        usage = _usage(body, reply)
        if usage is not None and options.get("include_usage"):
            yield _event({**head, "choices": [], "usage": usage})

    def _completion(self, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": _joined(reply.text) or None}
        if reply.refusal:
            message["refusal"] = _joined(reply.refusal)
        if reply.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id or self._call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(_strings(call))},
                }
                for call in reply.tool_calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(reply)}
        if "prompt" in body:
            choice = _choice_of_text(message, _finish_reason(reply))
        completion = {**self._head(body, "chat.completion"), "choices": [choice]}
        usage = _usage(body, reply)
        return completion if usage is None else {**completion, "usage": usage}

    def _head(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{next(self._ids)}",
            "object": "text_completion" if "prompt" in body else kind,
            "created": int(time.time()),
            "model": body.get("model", "scripted"),
        }

    def _call_id(self) -> str:
        return f"call_scripted{next(self._ids)}"


async def _deltas(reply: Reply, new_id: Callable[[], str]) -> AsyncIterator[dict[str, Any]]:
    first: dict[str, Any] = {"role": "assistant"}
    for name, pieces in (("content", reply.text), ("refusal", reply.refusal)):
        for piece in [pieces] if isinstance(pieces, str) else pieces:
            if isinstance(piece, Gate):
                await piece.wait()
            else:
                yield {**first, name: piece}
                first = {}
    calls = list(enumerate(reply.tool_calls))
    for group in [calls] if reply.calls_take_turns else [[call] for call in calls]:
        for index, call in group:
            function = {"name": call.name, "arguments": ""}
            opened = {"index": index, "id": call.id or new_id(), "type": "function"}
            yield {**first, "tool_calls": [{**opened, "function": function}]}
            first = {}
        for turn in itertools.zip_longest(*(_fragments(call) for _, call in group)):
            for (index, _), fragment in zip(group, turn, strict=True):
                if isinstance(fragment, Gate):
                    await fragment.wait()
                elif fragment is not None:
                    yield {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}


def _fragments(call: ToolCall) -> Sequence[str | Gate]:
    if isinstance(call.arguments, str):
        return [call.arguments]
    if isinstance(call.arguments, Mapping):
        return [json.dumps(call.arguments)]
    return call.arguments


def _strings(call: ToolCall) -> list[str]:
    return [piece for piece in _fragments(call) if isinstance(piece, str)]


def _joined(pieces: str | Sequence[str | Gate]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _choice_of_text(said: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    text = said.get("content") or ""
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _usage(body: dict[str, Any], reply: Reply) -> Mapping[str, Any] | None:
    if reply.usage != "plausible":
        return reply.usage
    said = _joined(reply.text) + _joined(reply.refusal)
    called = "".join(call.name + "".join(_strings(call)) for call in reply.tool_calls)
    prompt = _tokens(str(body.get("prompt") or body.get("messages", "")))
    completion = _tokens(said + called)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)


def _error_body(reply: Reply) -> Any:
    if reply.body is not None:
        return reply.body
    return {"error": {"message": f"scripted error {reply.status}", "code": None}}


def _json(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    if isinstance(value, bytes | str):
        body = value if isinstance(value, bytes) else value.encode()
    else:
        body = orjson.dumps(value)
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


async def _send_raw(response: web.StreamResponse, pieces: Sequence[bytes | Gate]) -> None:
    for piece in pieces:
        if isinstance(piece, Gate):
            await piece.wait()
        else:
            await response.write(piece)


def _drop(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()  # what was written still leaves; then the connection ends
    return web.Response()


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector in which texts that share words are near each other, always the same."""
    values = [0.0] * dimensions
    for word in text.lower().split() or [""]:
        digest = hashlib.blake2b(word.strip(".,;:!?()\"'").encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        values[number % dimensions] += 1.0 if number >> 63 else -1.0
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values] if length else [1.0] + [0.0] * (dimensions - 1)


async def _serve(options: argparse.Namespace) -> None:
    model = _Alike(options.chunks, options.delay_s, options.tool_calls)
    await model.start(options.host, options.port)
    print(model.base_url, flush=True)
    await asyncio.Event().wait()


class _Alike(ScriptedModel):
    """Answers every request with the same bytes, made once: a benchmark measures others."""

    def __init__(self, chunks: int, delay_s: float, tool_calls: int) -> None:
        super().__init__(keep_requests=False)
        words = [f"word{number} " for number in range(chunks)]
        calls = [ToolCall("get_weather", '{"city": "Paris"}') for _ in range(tool_calls)]
        self._calling = Reply(tool_calls=calls) if calls else None
        self._speaking = Reply(text=words)
        self._delay_s = delay_s
        self._made: dict[tuple[bool, bool], list[bytes]] = {}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = orjson.loads(await request.read())
        # Whoever has just sent outputs is given text, or a run would never end.
        answered = body["messages"][-1].get("role") == "tool"
        reply = self._speaking if answered or self._calling is None else self._calling
        if not body.get("stream"):
            return _json(self._completion(body, reply))
        events = await self._made_once(body, reply)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if not self._delay_s:
            await response.write(b"".join(events))
            return response
        for event in events:
            await asyncio.sleep(self._delay_s)
            await response.write(event)
        return response

    async def _made_once(self, body: dict[str, Any], reply: Reply) -> list[bytes]:
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        key = reply is self._calling, with_usage
        if key not in self._made:
            events = [event async for event in self._events(body, reply)]
            # What follows the last word comes with it, as from a server that is done.
            spoken = len(events) - 1 - with_usage
            last = b"".join(events[spoken - 1 :]) + b"data: [DONE]\n\n"
            self._made[key] = [*events[: spoken - 1], last]
        return self._made[key]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m threadmill.demo.scripted_model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=10, help="chunks of text in every answer")
    parser.add_argument("--delay-s", type=float, default=0.0, help="pause before every chunk")
    parser.add_argument("--tool-calls", type=int, default=0, help="asked for before the text")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
