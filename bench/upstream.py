"""A model endpoint that costs next to nothing, so that what is measured is the server.

The model's name says what it answers:

    words-10                the same ten words every time, each in a chunk of its own
    words-10-every-100ms    the same, with a pause before each chunk
    stamps-10-every-100ms   chunks that carry their stream, number, time of sending and checksum
    cells-2-words-10        two calls of code_interpreter, and the words once there are outputs

POST /v1/embeddings is answered at once, whatever the model, with vectors made before.

Run as a process: `python -m bench.upstream` prints its address and ends with its standard input.
"""

import asyncio
import itertools
import json
import re
import sys
import time
import zlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, cast

import httptools
import numpy as np
import orjson
import uvloop

FIRST_WORD = "Once"  # must not be in instructions: by it the first token is found

_MODEL = re.compile(rb'"model": ?"((?:cells-(\d+)-)?(words|stamps)-(\d+)(?:-every-(\d+)ms)?)"')
CELL = "total = sum(range(10))\nprint(total)"
_STREAMED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
_STREAMED += b"Transfer-Encoding: chunked\r\n\r\n"
_DIMENSIONS = 1536
_VECTORS = 4096  # that differ: an index over vectors that are all the same would be a strange one
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

_streams = itertools.count()


def word(number: int) -> str:
    return FIRST_WORD if number == 0 else f" word{number}"


def words(count: int) -> str:
    """What the model `words-<count>` says."""
    return "".join(word(number) for number in range(count))


def stamped(stream: int, number: int) -> str:
    text = f"{stream} {number} {time.monotonic():.6f}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n"


def read_stamps(text: str) -> tuple[int, list[float]]:
    """The stream and the times in the text of one `stamps` answer; raises ValueError unless every
    byte of it is as it was sent."""
    times = []
    streams = set()
    for number, line in enumerate(text.splitlines()):
        said, _, checksum = line.rpartition(" ")
        stream, sent_number, sent_at = said.split(" ")
        if int(checksum, 16) != zlib.crc32(said.encode()) or int(sent_number) != number:
            raise ValueError(f"chunk {number} is not what was sent: {line!r}")
        streams.add(int(stream))
        times.append(float(sent_at))
    if len(streams) != 1:
        raise ValueError(f"chunks of {len(streams)} streams are in one text")
    return streams.pop(), times


class _Request(asyncio.Protocol):
    """One connection; the next request on it comes when the last was answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._url = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # --- called by the parser ---

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        if self._url.endswith(b"/embeddings"):
            self._transport.write(_embeddings(len(orjson.loads(body)["input"])))
            return
        asked = _MODEL.search(body)
        if asked is None:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        name, cells, kind, count, every_ms = asked.groups()
        with_usage = b'"include_usage":true' in body
        if cells and orjson.loads(body)["messages"][-1]["role"] != "tool":
            self._transport.write(_STREAMED + _cells(name, int(cells), with_usage))
            return
        chunks = (
            _stamp_chunks(name, int(count)) if kind == b"stamps" else iter(_words(name, int(count)))
        )
        self._transport.write(_STREAMED + _opening(name))
        ending = _ending(name, int(count), with_usage)
        if every_ms:
            asyncio.get_running_loop().call_later(
                int(every_ms) / 1000, self._pace, chunks, ending, time.monotonic(), int(every_ms), 1
            )
        else:
            self._hurry(chunks, ending)

    # --- answers ---

    def _hurry(self, chunks: Iterator[bytes], ending: bytes) -> None:
        """One write for each chunk, the other streams' in between."""
        chunk = next(chunks, None)
        if chunk is None:
            self._transport.write(ending)
        elif not self._transport.is_closing():
            self._transport.write(chunk)
            asyncio.get_running_loop().call_soon(self._hurry, chunks, ending)

    def _pace(
        self, chunks: Iterator[bytes], ending: bytes, began: float, every_ms: int, number: int
    ) -> None:
        chunk = next(chunks, None)
        if chunk is None:
            self._transport.write(ending)
        elif not self._transport.is_closing():
            self._transport.write(chunk)
            due_s = began + (number + 1) * every_ms / 1000 - time.monotonic()
            again = partial(self._pace, chunks, ending, began, every_ms, number + 1)
            asyncio.get_running_loop().call_later(max(due_s, 0), again)


@cache
def _words(model: bytes, count: int) -> list[bytes]:
    return [_chunk(model, {"content": word(number)}) for number in range(count)]


def _stamp_chunks(model: bytes, count: int) -> Iterator[bytes]:
    head, tail = _around_content(model)
    stream = next(_streams)
    for number in range(count):
        event = head + stamped(stream, number).replace("\n", "\\n").encode() + tail
        yield b"%x\r\n%b\r\n" % (len(event), event)


@cache
def _around_content(model: bytes) -> tuple[bytes, bytes]:
    head, _, tail = _event(_payload(model, {"content": "TEXT"})).partition(b"TEXT")
    return head, tail


@cache
def _cells(model: bytes, count: int, with_usage: bool) -> bytes:
    """The whole answer at once: how fast a model writes its code is not what is measured."""
    calls = [
        {
            "index": number,
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "code_interpreter", "arguments": json.dumps({"code": CELL})},
        }
        for number in range(count)
    ]
    called = _chunk(model, {"role": "assistant", "content": None, "tool_calls": calls})
    return called + _ending(model, count, with_usage, finish_reason="tool_calls")


@cache
def _ending(model: bytes, count: int, with_usage: bool, finish_reason: str = "stop") -> bytes:
    ending = _chunk(model, {}, finish_reason)
    if with_usage:
        usage = {
            "prompt_tokens": 42,
            "completion_tokens": count,
            "total_tokens": 42 + count,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        event = _event(_payload(model, {}) | {"choices": [], "usage": usage})
        ending += b"%x\r\n%b\r\n" % (len(event), event)
    return ending + _END


@cache
def _opening(model: bytes) -> bytes:
    return _chunk(model, {"role": "assistant", "content": ""})


def _chunk(model: bytes, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    event = _event(_payload(model, delta, finish_reason))
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(payload: dict[str, object]) -> bytes:
    return b"data: %b\n\n" % json.dumps(payload, separators=(",", ":")).encode()


def _payload(
    model: bytes, delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, object]:
    """As OpenAI sends it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-BenchBenchBenchBenchBenchBench",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": model.decode(),
        "service_tier": "default",
        "system_fingerprint": "fp_1234567890",
        "choices": [choice],
        "usage": None,
    }


def _embeddings(count: int) -> bytes:
    rows = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, next(_vectors()))
        for index in range(count)
    )
    usage = b'"model":"bench","usage":{"prompt_tokens":0,"total_tokens":0}'
    body = b'{"object":"list","data":[%b],%b}' % (rows, usage)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@cache
def _vectors() -> Iterator[bytes]:
    """As JSON, in turns and without end."""
    vectors = np.random.default_rng(1).normal(size=(_VECTORS, _DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = [
        orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
        for vector in vectors.astype(np.float32)
    ]
    return itertools.cycle(made)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Request, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())
