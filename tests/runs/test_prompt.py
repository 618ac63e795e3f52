"""What a run has done so far, told to the model again: well formed, whatever became of it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from threadmill.runs import prompt
from threadmill.store.rows import Message, Run, Step


def _empty(row: Any, **fields: Any) -> Any:
    return row(**{name: None for name in row.__struct_fields__} | fields)


def step_of(number: int, kind: str, turn: int, status: str, calls: int) -> Step:
    details: dict[str, Any] = {"message_creation": {"message_id": f"msg_{number}"}}
    if kind == "tool_calls":
        function = {"name": "f", "arguments": "{}", "output": f"output {number}"}
        details = {
            "tool_calls": [
                {"id": f"call_{number}_{n}", "type": "function", "function": dict(function)}
                for n in range(calls)
            ]
        }
    done: Step = _empty(Step, type=kind, turn=turn, status=status, step_details=details)
    return done


def message_of(number: int) -> Message:
    text = {"type": "text", "text": {"value": f"text {number}", "annotations": []}}
    written: Message = _empty(
        Message,
        id=f"msg_{number}",
        run_id="run_1",
        role="assistant",
        status="completed",
        content=[text],
        attachments=[],
    )
    return written


steps = st.lists(
    st.tuples(
        st.sampled_from(["message_creation", "tool_calls"]),
        st.sampled_from(["completed", "completed", "failed", "in_progress"]),
        st.integers(1, 3),  # calls
        st.booleans(),  # the next step is of the same turn
        st.booleans(),  # the client has deleted the message
    ),
    max_size=8,
)


async def _no_image(file_id: str) -> bytes:
    raise AssertionError


@given(steps)
async def test_calls_are_followed_by_their_results(drawn: list[Any]) -> None:
    made, history, turn = [], [], 1
    for number, (kind, status, calls, is_same_turn, is_deleted) in enumerate(drawn):
        made.append(step_of(number, kind, turn, status, calls))
        if kind == "message_creation" and not is_deleted:
            history.append(message_of(number))
        turn += not is_same_turn
    run: Run = _empty(Run, id="run_1")
    entries = await prompt.entries(run, history, made, {}, _no_image)
    assert all(entry.is_needed for entry in entries)
    told = [message for entry in entries for message in entry.messages]

    open_calls: list[str] = []
    for message in told:
        if message["role"] == "tool":
            assert message["tool_call_id"] == open_calls.pop(0)
        else:
            assert open_calls == [], "a call without its result"
            assert message["role"] == "assistant"
            assert message["content"] or message.get("tool_calls")
            open_calls = [call["id"] for call in message.get("tool_calls", [])]
    assert open_calls == []

    done = [step for step in made if step.status == "completed"]
    outputs = [message["content"] for message in told if message["role"] == "tool"]
    assert sorted(outputs) == sorted(
        call["function"]["output"]
        for step in done
        for call in step.step_details.get("tool_calls", [])
    )
    said = "\n".join(message["content"] or "" for message in told if message["role"] != "tool")
    kept = {message.id for message in history}
    for step in done:
        message_id = step.step_details.get("message_creation", {}).get("message_id")
        if message_id in kept:
            assert f"text {message_id.removeprefix('msg_')}" in said
