"""Raw HTTP: the SDK hides bytes and headers. Every answer is held against the contract."""

import asyncio
import re
from typing import Any, NamedTuple

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from api import contract

Json = dict[str, Any]

TYPES = {500: "server_error", 503: "server_error"}


class Refusal(NamedTuple):
    status: int
    message: str
    param: str | None = None
    code: str | None = None


class Answer(NamedTuple):
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def refusal(self) -> Refusal:
        assert self.status >= 400, self.body
        error = self.json["error"]
        return Refusal(self.status, error["message"], error["param"], error["code"])


class Wire:
    def __init__(
        self, session: aiohttp.ClientSession, address: str, key: str, project_id: str
    ) -> None:
        self.session = session
        self.address = address
        self.key = key
        self.project_id = project_id
        self.headers = {"Authorization": f"Bearer {key}"}
        self.base = "/v1"

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`raw` is sent as it is, `body` as JSON. `headers` replace those that are usually sent."""
        data = orjson.dumps(body) if body is not None else raw
        url = URL(f"{self.address}{self.base}{path}", encoded=True)
        sent = self.headers if headers is None else headers
        async with self.session.request(method, url, data=data, headers=sent) as response:
            answer = Answer(response.status, response.headers, await response.read())
        check(answer)
        return answer

    async def get(self, path: str) -> Json:
        return _done(await self.send("GET", path))

    async def post(self, path: str, body: Json | None = None) -> Json:
        return _done(await self.send("POST", path, body))

    async def delete(self, path: str) -> Json:
        return _done(await self.send("DELETE", path))

    async def ids(self, path: str) -> list[str]:
        return [one["id"] for one in (await self.get(path))["data"]]

    async def refused(self, method: str, path: str, body: Any = None, **more: Any) -> Refusal:
        return (await self.send(method, path, body, **more)).refusal


def check(answer: Answer) -> None:
    """What is true of all answers."""
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["openai-processing-ms"].isdigit()
    assert answer.headers["openai-version"] == "2020-10-01"
    if answer.status == 200:
        if answer.headers["content-type"] == "application/json":
            contract.check(answer.json)
        return
    assert answer.status in (400, 401, 403, 404, 405, 413, 421, 503), answer
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == TYPES.get(answer.status, "invalid_request_error")
    assert error["message"]
    assert error["message"].isprintable()


def events(answer: Answer) -> list[tuple[str, Any]]:
    """The events of a stream, without `done`, each one's object checked."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    frames = answer.body.decode().removesuffix("\n\n").split("\n\n")
    lines = [frame.split("\n") for frame in frames if not frame.startswith(":")]
    assert lines.pop()[1:] == ["event: done", "data: [DONE]"]
    read = [(name[7:], orjson.loads(data[6:])) for _, name, data in lines]
    for _, told in read:
        contract.check(told)
    return read


async def send_bytes(address: str, sent: bytes) -> bytes:
    """What comes back on a connection of its own until the server closes it."""
    where = URL(address)
    assert where.host is not None
    reader, writer = await asyncio.open_connection(where.host, where.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


def _done(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json
