"""Every operation once, its answers held against the original's own document."""

import asyncio
import re
from typing import Any

import aiohttp
import jsonschema
import pydantic
import pytest

import api.stores  # noqa: F401 - it tells the contract of its kinds of objects
from api import contract
from api.wire import Answer, Wire, events
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall

needs_document = pytest.mark.skipif(not contract.has_spec(), reason=contract.NO_SPEC)

NAMES = {
    "asst": "assistant_id",
    "thread": "thread_id",
    "msg": "message_id",
    "run": "run_id",
    "step": "step_id",
    "upload": "upload_id",
    "vs": "vector_store_id",
    "vsfb": "batch_id",
}
MESSAGE = {"role": "user", "content": "x", "metadata": {"a": "b"}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d"}}


class Walk:
    """Notes which operations were done."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.done: set[str] = set()

    async def do(self, method: str, path: str, body: Any = None) -> Answer:
        return self._noted(method, path, await self._wire.send(method, path, body))

    async def send_form(self, path: str, **parts: str | bytes) -> Answer:
        """Parts that are bytes are sent as files."""
        form = aiohttp.FormData()
        for name, part in parts.items():
            filename = "a.txt" if isinstance(part, bytes) else None
            form.add_field(name, part, filename=filename)
        return self._noted("POST", path, await self._wire.send("POST", path, raw=form))

    def _noted(self, method: str, path: str, answer: Answer) -> Answer:
        assert answer.status in (200, 403), answer.body
        self.done.add(f"{method} {template(path)}")
        return answer

    async def content(self, path: str) -> bytes:
        """What is not JSON."""
        url = f"{self._wire.address}/v1{path}"
        async with self._wire.session.get(url, headers=self._wire.headers) as response:
            assert response.status == 200
            self.done.add(f"GET {template(path)}")
            return await response.read()


def template(path: str) -> str:
    """/threads/{thread_id}/runs of /threads/thread_abc/runs?limit=1"""
    path = re.sub(r"^/models/.*", "/models/{model}", path.split("?")[0])
    path = re.sub(r"/file-[^/]+", "/{file_id}", path)
    ids = f"/({'|'.join(NAMES)})_[^/]+"
    return re.sub(ids, lambda found: f"/{{{NAMES[found[1]]}}}", path)


async def test_every_operation_answers_by_the_contract(wire: Wire, script: ScriptedModel) -> None:
    walk = Walk(wire)
    do = walk.do
    await do("GET", "/models")
    await do("GET", "/models/scripted")
    await do("DELETE", "/models/scripted")  # 403: it is not ours

    new = {"model": "m", "tools": [FUNCTION], "instructions": "i"}
    assistant = f"/assistants/{(await do('POST', '/assistants', new)).json['id']}"
    await do("GET", assistant)
    await do("POST", assistant, {"name": "n"})
    await do("GET", "/assistants")

    thread = f"/threads/{(await do('POST', '/threads', {'messages': [MESSAGE]})).json['id']}"
    await do("GET", thread)
    await do("POST", thread, {"metadata": {"a": "b"}})
    await do("GET", "/threads")
    message = (await do("POST", f"{thread}/messages", MESSAGE)).json["id"]
    await do("GET", f"{thread}/messages/{message}")
    await do("POST", f"{thread}/messages/{message}", {"metadata": {}})
    await do("GET", f"{thread}/messages")
    await do("DELETE", f"{thread}/messages/{message}")

    script.reply(Reply(tool_calls=[ToolCall("f", id="call_1")]))
    body = {"assistant_id": assistant.split("/")[-1], "stream": True}
    run = events(await do("POST", f"{thread}/runs", body))[-1][1]["id"]
    path = f"{thread}/runs/{run}"
    await do("GET", path)
    await do("POST", path, {"metadata": {"a": "b"}})
    script.say("done")
    outputs = [{"tool_call_id": "call_1", "output": "1"}]
    body = {"tool_outputs": outputs, "stream": True}
    events(await do("POST", f"{path}/submit_tool_outputs", body))
    await do("GET", path)
    await do("GET", f"{thread}/runs")
    steps = (await do("GET", f"{path}/steps")).json["data"]
    assert [step["type"] for step in steps] == ["message_creation", "tool_calls"]
    await do("GET", f"{path}/steps/{steps[0]['id']}")
    await do("GET", f"{path}/steps/{steps[1]['id']}")

    script.reply(Reply(tool_calls=[ToolCall("f", id="call_1")]))
    body = {
        "assistant_id": assistant.split("/")[-1],
        "thread": {"messages": [MESSAGE]},
        "stream": True,
    }
    run = events(await do("POST", "/threads/runs", body))[-1][1]
    await do("POST", f"/threads/{run['thread_id']}/runs/{run['id']}/cancel")
    await do("DELETE", thread)
    await do("DELETE", assistant)
    if contract.has_spec():
        original = contract.operations("assistants", "threads", "models")
        assert walk.done == original | {"GET /threads"}


async def test_every_operation_on_documents_answers_by_the_contract(wire: Wire) -> None:
    walk = Walk(wire)
    do = walk.do
    made = await walk.send_form("/files", purpose="batch", file=b"some words")
    file = f"/files/{made.json['id']}"
    await do("GET", "/files")
    await do("GET", file)
    assert (await walk.content(f"{file}/content")) == b"some words"

    new = {"filename": "b.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
    upload = f"/uploads/{(await do('POST', '/uploads', new)).json['id']}"
    part = (await walk.send_form(f"{upload}/parts", data=b"words")).json["id"]
    whole = (await do("POST", f"{upload}/complete", {"part_ids": [part]})).json["file"]["id"]
    spare = f"/uploads/{(await do('POST', '/uploads', new)).json['id']}"
    await do("POST", f"{spare}/cancel")

    store = f"/vector_stores/{(await do('POST', '/vector_stores', {'name': 'n'})).json['id']}"
    await do("GET", "/vector_stores")
    await do("GET", store)
    await do("POST", store, {"metadata": {"a": "b"}})
    await do("POST", f"{store}/files", {"file_id": whole})
    in_store = f"{store}/files/{whole}"
    await do("GET", f"{store}/files")
    async with asyncio.timeout(30):
        while (await do("GET", in_store)).json["status"] == "in_progress":  # noqa: ASYNC110 - as clients do
            await asyncio.sleep(0.05)
    await do("POST", in_store, {"attributes": {"a": 1}})
    assert (await do("GET", f"{in_store}/content")).json["data"][0]["text"] == "words"
    found = (await do("POST", f"{store}/search", {"query": "words"})).json["data"]
    assert [hit["file_id"] for hit in found] == [whole]
    batches = f"{store}/file_batches"
    batch = f"{batches}/{(await do('POST', batches, {'file_ids': [whole]})).json['id']}"
    await do("GET", batch)
    await do("GET", f"{batch}/files")
    await do("POST", f"{batch}/cancel")
    await do("DELETE", in_store)
    await do("DELETE", store)
    await do("DELETE", file)
    if contract.has_spec():
        assert walk.done == contract.operations("files", "uploads", "vector_stores")


@needs_document
async def test_answers_fit_the_original_schema(wire: Wire) -> None:
    """They are held against it in all of these tests; here it is shown that this finds things."""
    made = await wire.post("/assistants", {"model": "m"})
    contract.check(made)
    with pytest.raises(jsonschema.ValidationError):
        contract.validator("AssistantObject").validate(made | {"tools": None})
    with pytest.raises(jsonschema.ValidationError):
        contract.validator("ThreadObject").validate(made)


async def test_what_is_not_by_the_contract_is_found(wire: Wire) -> None:
    made = await wire.post("/assistants", {"model": "m"})
    with pytest.raises(AssertionError):
        contract.check(made | {"colour": "red"})
    with pytest.raises(AssertionError):
        contract.check({name: made[name] for name in made if name != "top_p"})
    with pytest.raises(pydantic.ValidationError):
        contract.check(made | {"created_at": "1"})
    with pytest.raises(pydantic.ValidationError):
        contract.check(made | {"tools": [{"type": "retrieval"}]})
