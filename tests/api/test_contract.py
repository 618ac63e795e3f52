"""Every operation once, its answers held against the original's own document."""

import re
from typing import Any

import jsonschema
import pydantic
import pytest

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
}
MESSAGE = {"role": "user", "content": "x", "metadata": {"a": "b"}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d"}}


class Walk:
    """Notes which operations were done."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.done: set[str] = set()

    async def do(self, method: str, path: str, body: Any = None) -> Answer:
        answer = await self._wire.send(method, path, body)
        assert answer.status in (200, 403), answer.body
        self.done.add(f"{method} {template(path)}")
        return answer


def template(path: str) -> str:
    """/threads/{thread_id}/runs of /threads/thread_abc/runs?limit=1"""
    path = re.sub(r"^/models/.*", "/models/{model}", path.split("?")[0])
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
