"""Requests and answers at the least cost: a load generator shares the machine with the server."""

import asyncio
import json
import time
from typing import Any, Self, cast

import httptools


class Answer:
    def __init__(self) -> None:
        self.sent_at = time.monotonic()
        self.ended_at = 0.0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[tuple[float, bytes]] = []  # of the body, with the time of each

    @property
    def took_s(self) -> float:
        return self.ended_at - self.sent_at

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def first_s(self, marker: bytes) -> float:
        """From the request to the piece in which `marker` first stood whole."""
        end = self.body.index(marker) + len(marker)
        for arrived_at, piece in self.pieces:
            end -= len(piece)
            if end <= 0:
                return arrived_at - self.sent_at
        raise AssertionError("the marker is in the body and in no piece of it")


class Refused(Exception):
    """An answer that is no success: nothing can be measured then."""


class Connection(asyncio.Protocol):
    """One connection that is kept, with one request on it at a time."""

    _ended: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, address: str) -> Self:
        loop = asyncio.get_running_loop()
        host, _, port = address.removeprefix("http://").partition(":")
        _, connection = await loop.create_connection(cls, host, int(port))
        return connection

    def close(self) -> None:
        self._transport.close()

    async def send(self, request: bytes) -> Answer:
        self._answer = answer = Answer()
        self._ended = ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await ended
        if answer.status != 200:
            raise Refused(f"{answer.status}: {answer.body[:500].decode()}")
        return answer

    @property
    def latest(self) -> Answer:
        """What has come so far of the answer to the last request."""
        return self._answer

    # --- called by the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._now = 0.0

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        self._parser.feed_data(data)

    def connection_lost(self, lost: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(lost or ConnectionError("The answer broke off."))

    # --- called by the parser ---

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self._answer.pieces.append((self._now, piece))

    def on_message_complete(self) -> None:
        self._answer.ended_at = self._now
        assert self._ended is not None
        self._ended.set_result(None)


def request(method: str, path: str, body: Any = None) -> bytes:
    sent = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer bench\r\n"
        "OpenAI-Beta: assistants=v2\r\nAccept: application/json\r\nUser-Agent: bench\r\n"
    )
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
    return head.encode() + b"\r\n" + sent


def streamed_text(answer: Answer) -> str:
    """All that the deltas of a run's stream say; raises Refused unless the run was completed."""
    body = answer.body
    if not body.endswith(b"event: done\ndata: [DONE]\n\n") or body.count(b"run.completed\n") != 1:
        raise Refused(f"A stream did not end as it should: {body[-500:].decode()}")
    begin = b"event: thread.message.delta\ndata: "
    return "".join(
        json.loads(event.partition(begin)[2])["delta"]["content"][0]["text"]["value"]
        for event in body.split(b"\n\n")
        if begin in event
    )
