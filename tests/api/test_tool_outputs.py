"""POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs"""

from typing import Any

import pytest

from api.rows import Rows
from api.test_runs import ended, scene
from api.wire import Refusal, Wire, events
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.lifecycle import RunStatus

FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


async def waiting(wire: Wire, script: ScriptedModel, *call_ids: str) -> str:
    """The path of a run that waits for the outputs of these calls."""
    script.reply(Reply(tool_calls=[ToolCall("f", id=call_id) for call_id in call_ids]))
    assistant_id, thread_id = await scene(wire, tools=[FUNCTION])
    body = {"assistant_id": assistant_id, "stream": True}
    name, run = events(await wire.send("POST", f"/threads/{thread_id}/runs", body))[-1]
    assert (name, run["status"]) == ("thread.run.requires_action", "requires_action")
    return f"/threads/{thread_id}/runs/{run['id']}"


def outputs(*call_ids: str, **more: Any) -> dict[str, Any]:
    sent = [{"tool_call_id": call_id, "output": f"of {call_id}"} for call_id in call_ids]
    return {"tool_outputs": sent, **more}


async def test_with_all_outputs_the_run_goes_on(wire: Wire, script: ScriptedModel) -> None:
    path = await waiting(wire, script, "call_a", "call_b")
    waits = await wire.get(path)
    calls = waits["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["id"] for call in calls] == ["call_a", "call_b"]
    assert waits["usage"] is None
    script.say("done")
    # In any order.
    answer = await wire.send("POST", f"{path}/submit_tool_outputs", outputs("call_b", "call_a"))
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    assert (answer.json["status"], answer.json["required_action"]) == ("queued", None)
    run = await ended(wire, path)
    assert (run["status"], run["required_action"]) == ("completed", None)
    message, tools = (await wire.get(f"{path}/steps"))["data"]
    assert (message["type"], tools["type"]) == ("message_creation", "tool_calls")
    shown = [
        (call["id"], call["function"]["output"]) for call in tools["step_details"]["tool_calls"]
    ]
    assert shown == [("call_a", "of call_a"), ("call_b", "of call_b")]
    again = Refusal(400, 'Runs in status "completed" do not accept tool outputs.')
    sent = outputs("call_a", "call_b")
    assert await wire.refused("POST", f"{path}/submit_tool_outputs", sent) == again


@pytest.mark.parametrize("output", [{}, {"output": None}, {"output": ""}])
async def test_an_output_may_be_empty(wire: Wire, script: ScriptedModel, output: Any) -> None:
    path = await waiting(wire, script, "call_a")
    script.say("done")
    body = {"tool_outputs": [{"tool_call_id": "call_a"} | output], "stream": None}
    await wire.post(f"{path}/submit_tool_outputs", body)
    assert (await ended(wire, path))["status"] == "completed"
    tools = (await wire.get(f"{path}/steps"))["data"][-1]
    assert tools["step_details"]["tool_calls"][0]["function"]["output"] == ""


async def test_the_rest_of_the_run_can_be_streamed(wire: Wire, script: ScriptedModel) -> None:
    path = await waiting(wire, script, "call_a")
    script.say("done")
    body = outputs("call_a", stream=True)
    told = events(await wire.send("POST", f"{path}/submit_tool_outputs", body))
    names = [name for name, _ in told]
    assert names[:3] == ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
    assert names[-1] == "thread.run.completed"
    assert told[-1][1] == await wire.get(path)


@pytest.mark.parametrize(
    "call_ids",
    [[], ["call_a"], ["call_a", "call_x"], ["call_a", "call_b", "call_c"], ["call_a", "call_a"]],
)
async def test_there_must_be_one_output_for_each_call(
    wire: Wire, rows: Rows, script: ScriptedModel, call_ids: list[str]
) -> None:
    path = await waiting(wire, script, "call_a", "call_b")
    before = await rows.contents()
    for stream in (False, True):
        sent = outputs(*call_ids, stream=stream)
        assert await wire.refused("POST", f"{path}/submit_tool_outputs", sent) == Refusal(
            400, f"Expected tool outputs for call_ids ['call_a', 'call_b'], got {call_ids}"
        )
    assert (await wire.get(path))["status"] == "requires_action"
    assert await rows.contents() == before


@pytest.mark.parametrize("status", sorted(set(RunStatus) - {RunStatus.REQUIRES_ACTION}))
async def test_only_a_run_that_waits_takes_outputs(wire: Wire, rows: Rows, status: str) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, status)
    before = await rows.contents()
    path = f"/threads/{thread_id}/runs/{run_id}/submit_tool_outputs"
    refusal = Refusal(400, f'Runs in status "{status}" do not accept tool outputs.')
    assert await wire.refused("POST", path, outputs("call_1")) == refusal
    assert await wire.refused("POST", path, outputs("call_1", stream=True)) == refusal
    assert await rows.contents() == before


async def test_what_is_wrong_is_told_and_the_run_waits_on(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "requires_action")
    before = await rows.contents()
    path = f"/threads/{thread_id}/runs/{run_id}/submit_tool_outputs"
    for body, message, param, code in (
        (
            {},
            "Missing required parameter: 'tool_outputs'.",
            "tool_outputs",
            "missing_required_parameter",
        ),
        (
            {"tool_outputs": [{"output": "x"}]},
            "Missing required parameter: 'tool_outputs[0].tool_call_id'.",
            "tool_outputs[0].tool_call_id",
            "missing_required_parameter",
        ),
        (
            {"tool_outputs": [{"tool_call_id": "call_1", "output": {"a": 1}}]},
            "Invalid type for 'tool_outputs[0].output': expected a string, but got an object"
            " instead.",
            "tool_outputs[0].output",
            "invalid_type",
        ),
        (
            {"tool_outputs": [{"tool_call_id": "call_1", "output": "x" * (512 * 1024 + 1)}]},
            "Invalid 'tool_outputs[0].output': string too long. Expected a string with maximum"
            " length 524288, but got a string with length 524289 instead.",
            "tool_outputs[0].output",
            "string_above_max_length",
        ),
    ):
        assert await wire.refused("POST", path, body) == Refusal(400, message, param, code)
    assert await rows.contents() == before
