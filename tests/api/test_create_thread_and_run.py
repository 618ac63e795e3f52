from typing import Any

from api.rows import Rows
from api.test_runs import FULL, MESSAGE, ended
from api.wire import Refusal, Wire, events
from threadmill.demo.scripted_model import ScriptedModel


async def test_it_makes_both(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    new = {"messages": [MESSAGE], "metadata": {"a": "b"}}
    body = {"assistant_id": assistant_id, "thread": new, "metadata": {"c": "d"}}
    answer = await wire.send("POST", "/threads/runs", body)
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    run = answer.json
    assert (run["status"], run["metadata"]) == ("queued", {"c": "d"})
    path = f"/threads/{run['thread_id']}"
    await ended(wire, f"{path}/runs/{run['id']}")
    assert (await wire.get(path))["metadata"] == {"a": "b"}
    listed = (await wire.get(f"{path}/messages?order=asc"))["data"]
    texts = [message["content"][0]["text"]["value"] for message in listed]
    assert texts == ["x", "Hello"]


async def test_it_takes_what_a_run_takes(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    sent = {name: value for name, value in FULL.items() if name != "reasoning_effort"}
    body = {"assistant_id": assistant_id, "thread": {"messages": [MESSAGE]}}
    run = await wire.post("/threads/runs", sent | body)
    assert sent.items() <= run.items()
    await ended(wire, f"/threads/{run['thread_id']}/runs/{run['id']}")


async def test_without_a_thread_it_is_an_empty_one(wire: Wire, script: ScriptedModel) -> None:
    assistant = await wire.post("/assistants", {"model": "m", "instructions": "i"})
    for more in ({}, {"thread": None}, {"thread": {}}):
        script.say("Hello")
        run = await wire.post("/threads/runs", {"assistant_id": assistant["id"]} | more)
        path = f"/threads/{run['thread_id']}"
        await ended(wire, f"{path}/runs/{run['id']}")
        assert len(await wire.ids(f"{path}/messages")) == 1
        assert (await wire.get(path))["metadata"] == {}


async def test_tool_resources_are_those_of_the_run(
    wire: Wire, rows: Rows, script: ScriptedModel
) -> None:
    script.say("Hello")
    assistant = await wire.post("/assistants", {"model": "m", "instructions": "i"})
    for_run, for_thread = await rows.add_file(), await rows.add_file()

    def code(file_id: str) -> dict[str, Any]:
        return {"code_interpreter": {"file_ids": [file_id]}}

    body = {
        "assistant_id": assistant["id"],
        "thread": {"tool_resources": code(for_thread)},
        "tool_resources": code(for_run),
    }
    run = await wire.post("/threads/runs", body)
    assert run["tool_resources"] == code(for_run)
    path = f"/threads/{run['thread_id']}"
    assert (await wire.get(path))["tool_resources"] == code(for_thread)
    await ended(wire, f"{path}/runs/{run['id']}")


async def test_a_stream_begins_with_the_thread(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    new = {"messages": [MESSAGE], "metadata": {"a": "b"}}
    body = {"assistant_id": assistant_id, "thread": new, "stream": True}
    told = events(await wire.send("POST", "/threads/runs", body))
    assert [name for name, _ in told[:3]] == [
        "thread.created",
        "thread.run.created",
        "thread.run.queued",
    ]
    thread = told[0][1]
    assert thread["metadata"] == {"a": "b"}
    assert {run["thread_id"] for _, run in told[1:3]} == {thread["id"]}
    assert await wire.get(f"/threads/{thread['id']}") == thread


async def test_what_is_wrong_is_told_and_no_thread_is_left_behind(wire: Wire, rows: Rows) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    before = await rows.contents()
    new = {"messages": [MESSAGE]}
    gone = {"code_interpreter": {"file_ids": ["file-gone"]}}
    no_file = Refusal(404, "No such File object: file-gone", "id")
    for body, refusal in (
        (
            {"assistant_id": "asst_gone", "thread": new},
            Refusal(404, "No assistant found with id 'asst_gone'."),
        ),
        ({"assistant_id": assistant_id, "thread": new, "tool_resources": gone}, no_file),
        ({"assistant_id": assistant_id, "thread": new | {"tool_resources": gone}}, no_file),
        (
            {"assistant_id": assistant_id, "thread": {"messages": [MESSAGE, {"role": "user"}]}},
            Refusal(
                400,
                "Missing required parameter: 'thread.messages[1].content'.",
                "thread.messages[1].content",
                "missing_required_parameter",
            ),
        ),
        (
            {
                "assistant_id": assistant_id,
                "thread": {
                    "messages": [MESSAGE | {"attachments": [{"file_id": "x", "tools": []}]}]
                },
            },
            Refusal(
                400,
                "Invalid 'thread.messages[0].attachments[0].file_id': 'x'. Expected an ID that"
                " begins with 'file'.",
                "thread.messages[0].attachments[0].file_id",
                "invalid_value",
            ),
        ),
        (
            {"assistant_id": assistant_id, "additional_messages": [MESSAGE]},
            Refusal(
                400,
                "Unknown parameter: 'additional_messages'.",
                "additional_messages",
                "unknown_parameter",
            ),
        ),
    ):
        assert await wire.refused("POST", "/threads/runs", body) == refusal
    assert await rows.contents() == before
