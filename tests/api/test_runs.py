"""POST, GET /threads/{thread_id}/runs, GET, POST .../{run_id}, POST .../cancel"""

import asyncio
import time
from typing import Any

import pytest

from api.conftest import ServeWire
from api.rows import CALL, Rows
from api.wire import Refusal, Wire, events
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.lifecycle import ACTIVE, ENDED, RunStatus

FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
NORMAL_FUNCTION = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False},
}
MESSAGE = {"role": "user", "content": "x"}

WHEN = {
    "completed": ["completed_at"],
    "incomplete": ["completed_at"],
    "failed": ["failed_at"],
    "cancelled": ["cancelled_at"],
}

Scene = tuple[str, str]


async def scene(wire: Wire, **fields: Any) -> Scene:
    """The ids of an assistant and of a thread with one message."""
    assistant = await wire.post("/assistants", {"model": "m"} | fields)
    thread = await wire.post("/threads", {"messages": [MESSAGE]})
    return assistant["id"], thread["id"]


async def ended(wire: Wire, path: str) -> dict[str, Any]:
    """The run once it is over; the server says how soon to look again."""
    while (answer := await wire.send("GET", path)).json["status"] not in ENDED:
        assert 0 < int(answer.headers["openai-poll-after-ms"]) <= 1000
    assert "openai-poll-after-ms" not in answer.headers
    run: dict[str, Any] = answer.json
    return run


async def test_a_run_begins_queued_with_the_defaults(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire)
    before = int(time.time())
    body = {"assistant_id": assistant_id}
    answer = await wire.send("POST", f"/threads/{thread_id}/runs", body)
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    run = answer.json
    run_id = run.pop("id")
    assert run_id.startswith("run_")
    assert before <= run["created_at"] <= time.time()
    assert run.pop("expires_at") == run.pop("created_at") + 600
    assert run == {
        "object": "thread.run",
        "assistant_id": assistant_id,
        "thread_id": thread_id,
        "status": "queued",
        "started_at": None,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "required_action": None,
        "last_error": None,
        "model": "m",
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "incomplete_details": None,
        "usage": None,
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    over = await ended(wire, f"/threads/{thread_id}/runs/{run_id}")
    assert (over["status"], over["expires_at"], over["last_error"]) == ("completed", None, None)
    assert before <= over["started_at"] <= over["completed_at"] <= time.time()
    usage = over["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_token_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


FULL: dict[str, Any] = {
    "model": "other",
    "instructions": "be brief",
    "tools": [NORMAL_FUNCTION],
    "metadata": {"a": "b"},
    "temperature": 0,
    "top_p": 0.5,
    "reasoning_effort": "high",
    "max_prompt_tokens": 1000,
    "max_completion_tokens": 16,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
}


async def test_the_values_of_the_request_win_over_those_of_the_assistant(
    wire: Wire, script: ScriptedModel
) -> None:
    own = {
        "model": "m",
        "instructions": "i",
        "tools": [{"type": "code_interpreter"}],
        "temperature": 0.25,
        "top_p": 0.75,
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
        "metadata": {"of": "the assistant"},
    }
    assistant_id, thread_id = await scene(wire, **own)
    path = f"/threads/{thread_id}/runs"
    script.say("Hello")
    run = await wire.post(path, {"assistant_id": assistant_id} | FULL)
    assert run.items() >= FULL.items()
    await ended(wire, f"{path}/{run['id']}")
    script.say("Hello")
    run = await wire.post(path, {"assistant_id": assistant_id} | dict.fromkeys(FULL))
    assert run.items() >= (own | {"metadata": {}}).items()
    await ended(wire, f"{path}/{run['id']}")
    # What the assistant becomes later does not touch the run.
    await wire.post(f"/assistants/{assistant_id}", {"model": "newer", "instructions": "new"})
    assert (await wire.get(f"{path}/{run['id']}")).items() >= (own | {"metadata": {}}).items()


@pytest.mark.parametrize(
    ("own", "sent", "effective"),
    [
        ("base", {"additional_instructions": "more"}, "base\n\nmore"),
        ("base", {"instructions": "new", "additional_instructions": "more"}, "new\n\nmore"),
        (None, {"additional_instructions": "more"}, "more"),
        ("base", {"additional_instructions": None}, "base"),
        ("base", {"additional_instructions": ""}, "base"),
    ],
)
async def test_additional_instructions_are_appended(
    wire: Wire, script: ScriptedModel, own: str | None, sent: dict[str, Any], effective: str
) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire, instructions=own)
    run = await wire.post(f"/threads/{thread_id}/runs", {"assistant_id": assistant_id} | sent)
    assert run["instructions"] == effective
    await ended(wire, f"/threads/{thread_id}/runs/{run['id']}")


async def test_additional_messages_come_before_the_run(
    wire: Wire, rows: Rows, script: ScriptedModel
) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire)
    file_id = await rows.add_file()
    attachments = [{"file_id": file_id, "tools": [{"type": "code_interpreter"}]}]
    body = {
        "assistant_id": assistant_id,
        "additional_messages": [
            {"role": "assistant", "content": "y", "metadata": {"a": "b"}},
            {"role": "user", "content": "z", "attachments": attachments},
        ],
    }
    run = await wire.post(f"/threads/{thread_id}/runs", body)
    await ended(wire, f"/threads/{thread_id}/runs/{run['id']}")
    listed = (await wire.get(f"/threads/{thread_id}/messages?order=asc"))["data"]
    texts = [message["content"][0]["text"]["value"] for message in listed]
    assert texts == ["x", "y", "z", "Hello"]
    assert (listed[1]["role"], listed[1]["metadata"]) == ("assistant", {"a": "b"})
    assert listed[2]["attachments"] == attachments
    assert [message["run_id"] for message in listed] == [None, None, None, run["id"]]
    resources = (await wire.get(f"/threads/{thread_id}"))["tool_resources"]
    assert resources == {"code_interpreter": {"file_ids": [file_id]}}


async def test_files_that_come_at_the_same_time_are_all_kept(
    wire: Wire, rows: Rows, script: ScriptedModel
) -> None:
    script.answer = lambda body: ["ok"]
    file_ids = [await rows.add_file() for _ in range(4)]

    def message(file_id: str) -> dict[str, Any]:
        attachment = {"file_id": file_id, "tools": [{"type": "code_interpreter"}]}
        return MESSAGE | {"attachments": [attachment]}

    for _ in range(15):
        assistant_id, thread_id = await scene(wire)
        path = f"/threads/{thread_id}"
        run = {"assistant_id": assistant_id, "stream": True}
        answers = await asyncio.gather(
            *(wire.send("POST", f"{path}/messages", message(one)) for one in file_ids[:2]),
            *(
                wire.send("POST", f"{path}/runs", run | {"additional_messages": [message(one)]})
                for one in file_ids[2:]
            ),
        )
        taken = {one for one, answer in zip(file_ids, answers, strict=True) if answer.status == 200}
        kept = (await wire.get(path))["tool_resources"]["code_interpreter"]["file_ids"]
        assert set(kept) == taken


async def test_an_empty_list_of_additional_messages_is_legal(
    wire: Wire, script: ScriptedModel
) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire)
    body = {"assistant_id": assistant_id, "additional_messages": []}
    run = await wire.post(f"/threads/{thread_id}/runs", body)
    await ended(wire, f"/threads/{thread_id}/runs/{run['id']}")


async def test_a_run_can_be_streamed(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello", "!")
    assistant_id, thread_id = await scene(wire)
    content = "include[]=step_details.tool_calls[*].file_search.results[*].content"
    body = {"assistant_id": assistant_id, "stream": True}
    answer = await wire.send("POST", f"/threads/{thread_id}/runs?{content}", body)
    told = events(answer)
    assert told[0][0] == "thread.run.created"
    assert (told[0][1]["status"], told[0][1]["started_at"]) == ("queued", None)
    name, run = told[-1]
    assert name == "thread.run.completed"
    assert await wire.get(f"/threads/{thread_id}/runs/{run['id']}") == run


async def test_a_refusal_of_a_stream_is_no_stream(wire: Wire) -> None:
    assistant_id, _ = await scene(wire)
    body = {"assistant_id": assistant_id, "stream": True}
    refusal = Refusal(404, "No thread found with id 'thread_gone'.")
    assert await wire.refused("POST", "/threads/thread_gone/runs", body) == refusal


# --- what is refused ---


@pytest.mark.parametrize("status", sorted(ACTIVE))
async def test_a_thread_has_one_active_run(wire: Wire, rows: Rows, status: str) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, status)
    before = await rows.contents()
    for more in ({}, {"stream": True}, {"additional_messages": [MESSAGE]}):
        body = {"assistant_id": assistant_id} | more
        assert await wire.refused("POST", f"/threads/{thread_id}/runs", body) == Refusal(
            400, f"Thread {thread_id} already has an active run {run_id}."
        )
    assert await rows.contents() == before


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_a_run_that_is_over_leaves_room_for_another(
    wire: Wire, rows: Rows, script: ScriptedModel, status: str
) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire)
    await rows.add_run(thread_id, assistant_id, status)
    run = await wire.post(f"/threads/{thread_id}/runs", {"assistant_id": assistant_id})
    await ended(wire, f"/threads/{thread_id}/runs/{run['id']}")


async def test_a_run_needs_something_to_go_by(
    wire: Wire, rows: Rows, script: ScriptedModel
) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    thread_id = (await wire.post("/threads"))["id"]
    before = await rows.contents()
    path = f"/threads/{thread_id}/runs"
    refusal = Refusal(
        400,
        "Run creation requires a Thread with a user message or an assistant with instructions.",
        None,
        "invalid_thread",
    )
    bare = {"assistant_id": assistant_id}
    assert await wire.refused("POST", path, bare) == refusal
    assert await wire.refused("POST", "/threads/runs", bare) == refusal
    assert await wire.refused("POST", path, bare | {"additional_messages": []}) == refusal
    assert await rows.contents() == before
    for more in (
        {"instructions": "i"},
        {"additional_instructions": "i"},
        {"additional_messages": [MESSAGE]},
        {},  # now it has a message
    ):
        script.say("Hello")
        run = await wire.post(path, bare | more)
        await ended(wire, f"{path}/{run['id']}")


@pytest.mark.parametrize(
    "tool_choice",
    [
        {"type": "function", "function": {"name": "g"}},
        {"type": "code_interpreter"},
        {"type": "file_search"},
    ],
)
async def test_a_tool_that_the_run_has_not_cannot_be_forced(
    wire: Wire, rows: Rows, tool_choice: Any
) -> None:
    assistant_id, thread_id = await scene(wire, tools=[FUNCTION])
    before = await rows.contents()
    body = {"assistant_id": assistant_id, "tool_choice": tool_choice}
    refusal = Refusal(
        400,
        "Invalid 'tool_choice': the tool it names is not among the tools of the run.",
        "tool_choice",
        "invalid_value",
    )
    path = f"/threads/{thread_id}/runs"
    assert await wire.refused("POST", path, body) == refusal
    assert await wire.refused("POST", path, body | {"additional_messages": [MESSAGE]}) == refusal
    in_thread = body | {"thread": {"messages": [MESSAGE]}}
    assert await wire.refused("POST", "/threads/runs", in_thread) == refusal
    assert await rows.contents() == before


async def test_a_model_that_no_endpoint_serves_is_refused(serve_wire: ServeWire) -> None:
    async with serve_wire(model_base_url=None) as wire:
        assistant_id, thread_id = await scene(wire, model="x")
        body = {"assistant_id": assistant_id}
        refusal = Refusal(
            400, "The requested model 'x' does not exist.", "model", "model_not_found"
        )
        assert await wire.refused("POST", f"/threads/{thread_id}/runs", body) == refusal
        threads = await wire.get("/threads")
        body["thread"] = {"messages": [MESSAGE]}
        assert await wire.refused("POST", "/threads/runs", body) == refusal
        assert await wire.get("/threads") == threads


async def test_of_several_faults_the_first_is_told(wire: Wire, rows: Rows) -> None:
    """Assistant, thread, body's files, lock, tool choice."""
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "in_progress")
    body: dict[str, Any] = {
        "assistant_id": "asst_gone",
        "tool_choice": {"type": "file_search"},
        "additional_messages": [MESSAGE | {"attachments": [{"file_id": "file-gone", "tools": []}]}],
    }
    ask = "POST", "/threads/thread_gone/runs"
    assert (await wire.refused(*ask, body)).message == "No assistant found with id 'asst_gone'."
    body["assistant_id"] = assistant_id
    assert (await wire.refused(*ask, body)).message == "No thread found with id 'thread_gone'."
    ask = "POST", f"/threads/{thread_id}/runs"
    assert (await wire.refused(*ask, body)).message == "No such File object: file-gone"
    del body["additional_messages"]
    locked = f"Thread {thread_id} already has an active run {run_id}."
    assert (await wire.refused(*ask, body)).message == locked


BAD = [
    (
        {"assistant_id": None},
        "Invalid type for 'assistant_id': expected a string, but got null instead.",
        "assistant_id",
        "invalid_type",
    ),
    (
        {"assistant_id": "thread_a"},
        "Invalid 'assistant_id': 'thread_a'. Expected an ID that begins with 'asst'.",
        "assistant_id",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "code_interpreter"}] * 21},
        "Invalid 'tools': array too long. Expected an array with maximum length 20, but got an"
        " array with length 21 instead.",
        "tools",
        "array_above_max_length",
    ),
    (
        {"max_prompt_tokens": 0},
        "Invalid 'max_prompt_tokens': integer below minimum value. Expected a value >= 1, but got 0"
        " instead.",
        "max_prompt_tokens",
        "integer_below_min_value",
    ),
    (
        {"stream": "yes"},
        "Invalid type for 'stream': expected a boolean, but got a string instead.",
        "stream",
        "invalid_type",
    ),
    (
        {"truncation_strategy": {"type": "last_messages"}},
        "Missing required parameter: 'truncation_strategy.last_messages'.",
        "truncation_strategy.last_messages",
        "missing_required_parameter",
    ),
    (
        {"truncation_strategy": {"type": "first_messages"}},
        "Invalid value: 'first_messages'. Supported values are: 'auto' and 'last_messages'.",
        "truncation_strategy.type",
        "invalid_value",
    ),
    (
        {"tool_choice": "always"},
        "Invalid value: 'always'. Supported values are: 'none', 'auto', and 'required'.",
        "tool_choice",
        "invalid_value",
    ),
    ({"include": []}, "Unknown parameter: 'include'.", "include", "unknown_parameter"),
]


async def test_what_is_wrong_is_told_and_nothing_is_written(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    before = await rows.contents()
    good = {"assistant_id": assistant_id, "additional_messages": [MESSAGE]}
    path = f"/threads/{thread_id}/runs"
    for more, message, param, code in BAD:
        refusal = Refusal(400, message, param, code)
        assert await wire.refused("POST", path, good | more) == refusal
        in_thread = {"assistant_id": assistant_id, "thread": {"messages": [MESSAGE]}} | more
        assert await wire.refused("POST", "/threads/runs", in_thread) == refusal
    assert await wire.refused("POST", path) == Refusal(
        400,
        "Missing required parameter: 'assistant_id'.",
        "assistant_id",
        "missing_required_parameter",
    )
    assert await wire.refused("POST", f"{path}?include[]=everything", good) == Refusal(
        400,
        "Invalid value: 'everything'. Value must be"
        " 'step_details.tool_calls[*].file_search.results[*].content'.",
        "include[0]",
        "invalid_value",
    )
    bad_message = {"additional_messages": [MESSAGE, {"role": "user"}]}
    assert await wire.refused("POST", path, good | bad_message) == Refusal(
        400,
        "Missing required parameter: 'additional_messages[1].content'.",
        "additional_messages[1].content",
        "missing_required_parameter",
    )
    assert await rows.contents() == before


# --- a run that is there ---


async def test_its_metadata_can_be_changed_unless_it_is_being_worked_on(
    wire: Wire, rows: Rows
) -> None:
    for status in RunStatus:
        assistant_id, thread_id = await scene(wire)
        run_id = await rows.add_run(thread_id, assistant_id, status)
        path = f"/threads/{thread_id}/runs/{run_id}"
        before = await wire.get(path)
        if status in ("queued", "in_progress", "cancelling"):
            refusal = Refusal(400, f"Cannot update run with status '{status}'.")
            assert await wire.refused("POST", path, {"metadata": {"a": "b"}}) == refusal
            assert await wire.get(path) == before
            continue
        changed = await wire.post(path, {"metadata": {"a": "b"}})
        assert changed == before | {"metadata": {"a": "b"}}
        assert await wire.post(path, {}) == changed
        assert await wire.post(path, {"metadata": {"c": "d"}}) == before | {"metadata": {"c": "d"}}
        assert await wire.post(path, {"metadata": None}) == before


async def test_a_run_is_shown_as_it_stands(wire: Wire, rows: Rows) -> None:
    for status in RunStatus:
        assistant_id, thread_id = await scene(wire)
        run_id = await rows.add_run(thread_id, assistant_id, status)
        answer = await wire.send("GET", f"/threads/{thread_id}/runs/{run_id}")
        run = answer.json
        assert run["status"] == status
        assert (run["usage"] is not None) == (run["expires_at"] is None) == (status in ENDED)
        waits = status in ("queued", "in_progress", "cancelling")
        assert ("openai-poll-after-ms" in answer.headers) == waits
        assert (run["required_action"] is not None) == (status == "requires_action")
        times = [name for name in run if name.endswith("ed_at") and run[name] is not None]
        assert times == ["created_at", *WHEN.get(status, [])]


async def test_a_run_that_waits_for_its_client_says_for_what(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "requires_action")
    run = await wire.get(f"/threads/{thread_id}/runs/{run_id}")
    assert run["required_action"] == {
        "type": "submit_tool_outputs",
        "submit_tool_outputs": {"tool_calls": [CALL]},
    }


@pytest.mark.parametrize("raw", [None, b""])
async def test_cancelling_is_answered_at_once(wire: Wire, rows: Rows, raw: bytes | None) -> None:
    for status in ("queued", "in_progress", "requires_action"):
        assistant_id, thread_id = await scene(wire)
        run_id = await rows.add_run(thread_id, assistant_id, status)
        path = f"/threads/{thread_id}/runs/{run_id}"
        headers = wire.headers | {"Content-Type": "application/json"}
        answer = await wire.send("POST", f"{path}/cancel", raw=raw, headers=headers)
        assert int(answer.headers["openai-poll-after-ms"]) > 0
        run = answer.json
        assert (run["status"], run["cancelled_at"]) == ("cancelling", None)
        assert run["required_action"] is None
        again = Refusal(400, "Cannot cancel run with status 'cancelling'.")
        if status != "requires_action":  # nobody held that one: it may be over by now
            assert await wire.refused("POST", f"{path}/cancel") == again


async def test_a_run_that_waited_for_its_client_is_cancelled_and_frees_the_thread(
    wire: Wire, rows: Rows
) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "requires_action")
    path = f"/threads/{thread_id}/runs/{run_id}"
    await wire.post(f"{path}/cancel")
    run = await ended(wire, path)
    assert run["status"] == "cancelled"
    assert run["cancelled_at"] is not None
    [step] = (await wire.get(f"{path}/steps"))["data"]
    assert (step["status"], step["cancelled_at"]) == ("cancelled", run["cancelled_at"])
    await wire.post(f"/threads/{thread_id}/messages", MESSAGE)


@pytest.mark.parametrize("status", [*sorted(ENDED), "cancelling"])
async def test_what_is_over_cannot_be_cancelled(wire: Wire, rows: Rows, status: str) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, status)
    before = await rows.contents()
    path = f"/threads/{thread_id}/runs/{run_id}/cancel"
    refusal = Refusal(400, f"Cannot cancel run with status '{status}'.")
    assert await wire.refused("POST", path) == refusal
    assert await rows.contents() == before


@pytest.mark.parametrize(
    ("method", "below"),
    [("GET", ""), ("POST", ""), ("POST", "/cancel"), ("POST", "/submit_tool_outputs")],
)
async def test_ids_must_be_those_of_a_thread_and_a_run_in_it(
    wire: Wire, rows: Rows, method: str, below: str
) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "requires_action")
    other_id = (await wire.post("/threads"))["id"]
    before = await rows.contents()
    body = {"tool_outputs": []} if below == "/submit_tool_outputs" else {}
    for path, refusal in (
        (f"{thread_id}/runs/run_abc", Refusal(404, "No run found with id 'run_abc'.")),
        (f"{other_id}/runs/{run_id}", Refusal(404, f"No run found with id '{run_id}'.")),
        (f"thread_abc/runs/{run_id}", Refusal(404, f"No run found with id '{run_id}'.")),
        (
            f"{thread_id}/runs/step_abc",
            Refusal(
                400,
                "Invalid 'run_id': 'step_abc'. Expected an ID that begins with 'run'.",
                "run_id",
                "invalid_value",
            ),
        ),
        (
            f"x/runs/{run_id}",
            Refusal(
                400,
                "Invalid 'thread_id': 'x'. Expected an ID that begins with 'thread'.",
                "thread_id",
                "invalid_value",
            ),
        ),
    ):
        assert await wire.refused(method, f"/threads/{path}{below}", body) == refusal
    assert await rows.contents() == before


async def test_a_thread_must_exist_to_have_runs(wire: Wire) -> None:
    assistant_id, _ = await scene(wire)
    gone = Refusal(404, "No thread found with id 'thread_gone'.")
    body = {"assistant_id": assistant_id}
    assert await wire.refused("POST", "/threads/thread_gone/runs", body) == gone
    assert await wire.refused("GET", "/threads/thread_gone/runs") == gone
