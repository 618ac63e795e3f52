import asyncio
import time
from typing import Any

import pytest

from api.rows import Rows
from api.wire import Refusal, Wire
from threadmill.demo.scripted_model import ScriptedModel


@pytest.mark.parametrize("raw", [None, b"", b" \n", b"{}"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
async def test_a_thread_needs_nothing_at_all(
    wire: Wire, raw: bytes | None, content_type: str | None
) -> None:
    headers = wire.headers | ({"Content-Type": content_type} if content_type else {})
    before = int(time.time())
    answer = await wire.send("POST", "/threads", raw=raw, headers=headers)
    assert answer.status == 200
    made = answer.json
    assert made.pop("id").startswith("thread_")
    assert before <= made.pop("created_at") <= time.time()
    assert made == {"object": "thread", "metadata": {}, "tool_resources": {}}


async def test_null_is_the_same_as_absent(wire: Wire) -> None:
    made = await wire.post("/threads", {"messages": None, "metadata": None, "tool_resources": None})
    assert (made["metadata"], made["tool_resources"]) == ({}, {})


async def test_its_first_messages_keep_their_order(wire: Wire) -> None:
    texts = [str(number) for number in range(32)]
    sent = [{"role": "user", "content": text, "metadata": {"n": text}} for text in texts]
    thread = await wire.post("/threads", {"messages": sent, "metadata": {"a": "b"}})
    assert thread["metadata"] == {"a": "b"}
    listed = (await wire.get(f"/threads/{thread['id']}/messages?order=asc&limit=100"))["data"]
    assert [message["content"][0]["text"]["value"] for message in listed] == texts
    assert [message["metadata"]["n"] for message in listed] == texts
    assert {message["thread_id"] for message in listed} == {thread["id"]}
    assert len({message["created_at"] for message in listed}) == 1


async def test_attachments_of_first_messages_become_files_of_the_thread(
    wire: Wire, rows: Rows
) -> None:
    one, other, third = [await rows.add_file() for _ in range(3)]
    code = [{"type": "code_interpreter"}]

    def message(*file_ids: str) -> dict[str, Any]:
        attachments = [{"file_id": file_id, "tools": code} for file_id in file_ids]
        return {"role": "user", "content": "x", "attachments": attachments}

    resources = {"code_interpreter": {"file_ids": [third]}}
    thread = await wire.post(
        "/threads", {"messages": [message(one), message(other, one)], "tool_resources": resources}
    )
    assert thread["tool_resources"] == {"code_interpreter": {"file_ids": [third, one, other]}}


async def test_an_update_changes_what_it_names(wire: Wire, rows: Rows) -> None:
    file_id = await rows.add_file()
    made = await wire.post("/threads", {"metadata": {"a": "1", "b": "2"}})
    path = f"/threads/{made['id']}"
    assert await wire.post(path) == made
    assert await wire.post(path, {"tool_resources": None}) == made
    code = {"code_interpreter": {"file_ids": [file_id]}}
    changed = await wire.post(path, {"tool_resources": code})
    assert changed == made | {"tool_resources": code}
    store = {"file_search": {"vector_store_ids": []}}
    changed = await wire.post(path, {"tool_resources": store})
    assert changed["tool_resources"] == code | store
    changed = await wire.post(path, {"metadata": {"c": "3"}})
    assert (changed["metadata"], changed["tool_resources"]) == ({"c": "3"}, code | store)
    assert await wire.get(path) == changed
    assert (await wire.post(path, {"metadata": None}))["metadata"] == {}


async def test_a_deleted_thread_is_gone_with_all_that_was_in_it(wire: Wire, rows: Rows) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    first = [{"role": "user", "content": "x"}]
    thread_id = (await wire.post("/threads", {"messages": first}))["id"]
    path = f"/threads/{thread_id}"
    [message_id] = await wire.ids(f"{path}/messages")
    run_id = await rows.add_run(thread_id, assistant_id)
    step_id = await rows.add_step(run_id)
    deleted = {"id": thread_id, "object": "thread.deleted", "deleted": True}
    assert await wire.delete(path) == deleted

    gone = Refusal(404, f"No thread found with id '{thread_id}'.")
    message = {"role": "user", "content": "x"}
    for method, below, body in (
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", message),
        ("GET", "/runs", None),
        ("POST", "/runs", {"assistant_id": assistant_id}),
    ):
        assert await wire.refused(method, path + below, body) == gone
    run_path = f"/runs/{run_id}"
    for method, below, noun, body in (
        ("GET", f"/messages/{message_id}", "message", None),
        ("POST", f"/messages/{message_id}", "message", {"metadata": {}}),
        ("DELETE", f"/messages/{message_id}", "message", None),
        ("GET", run_path, "run", None),
        ("POST", run_path, "run", {"metadata": {}}),
        ("POST", f"{run_path}/cancel", "run", None),
        ("POST", f"{run_path}/submit_tool_outputs", "run", {"tool_outputs": []}),
        ("GET", f"{run_path}/steps", "run", None),
        ("GET", f"{run_path}/steps/{step_id}", "run step", None),
    ):
        refusal = await wire.refused(method, path + below, body)
        assert (refusal.status, refusal.message.split(" found")[0]) == (404, f"No {noun}")
    stored = await rows.contents()
    assert [stored[name] for name in ("threads", "messages", "runs", "steps")] == [[]] * 4


async def test_a_thread_can_be_deleted_while_a_run_is_active(wire: Wire, rows: Rows) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    for status in ("queued", "in_progress", "requires_action", "cancelling"):
        thread_id = (await wire.post("/threads"))["id"]
        await rows.add_run(thread_id, assistant_id, status)
        await wire.delete(f"/threads/{thread_id}")
        assert (await wire.refused("GET", f"/threads/{thread_id}")).status == 404
    assert (await rows.contents())["runs"] == []


async def test_a_thread_can_be_deleted_while_runs_begin_and_end(
    wire: Wire, rows: Rows, script: ScriptedModel
) -> None:
    """An executor that ends a run and a client that deletes the thread must not block each other:
    of two that do, Postgres throws one out."""
    script.answer = lambda body: ["ok"]
    assistant_id = (await wire.post("/assistants", {"model": "m", "instructions": "i"}))["id"]
    body = {"assistant_id": assistant_id, "stream": True}

    async def ask(delay_s: float, method: str, path: str, body: Any = None) -> int:
        await asyncio.sleep(delay_s)
        return (await wire.send(method, path, body)).status

    for number in range(25):
        path = f"/threads/{(await wire.post('/threads'))['id']}"
        statuses = await asyncio.gather(
            ask(0, "POST", f"{path}/runs", body),
            ask(0.001, "POST", f"{path}/runs", body),
            ask(number / 2500, "DELETE", path),
            ask(number / 2500, "DELETE", path),
        )
        assert set(statuses) <= {200, 400, 404}
        assert sorted(statuses[2:]) == [200, 404]
    stored = await rows.contents()
    assert stored["threads"] == stored["runs"] == stored["steps"] == stored["messages"] == []


# Not in the original.
async def test_threads_can_be_listed(wire: Wire) -> None:
    assert await wire.get("/threads") == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    made = [await wire.post("/threads", {"metadata": {"n": str(n)}}) for n in range(3)]
    assert (await wire.get("/threads"))["data"] == made[::-1]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_id_must_be_that_of_a_thread(wire: Wire, method: str) -> None:
    assert await wire.refused(method, "/threads/asst_abc") == Refusal(
        400,
        "Invalid 'thread_id': 'asst_abc'. Expected an ID that begins with 'thread'.",
        "thread_id",
        "invalid_value",
    )
    assert await wire.refused(method, "/threads/thread_abc") == Refusal(
        404, "No thread found with id 'thread_abc'."
    )


async def test_what_is_wrong_is_told_and_nothing_is_written(wire: Wire, rows: Rows) -> None:
    file_id = await rows.add_file()
    made = await wire.post("/threads")
    before = await rows.contents()
    good = {"role": "user", "content": "x"}
    attached = good | {"attachments": [{"file_id": file_id, "tools": []}]}
    for body, refusal in (
        (
            {"messages": [good] * 33},
            Refusal(
                400,
                "Invalid 'messages': array too long. Expected an array with maximum length 32, but"
                " got an array with length 33 instead.",
                "messages",
                "array_above_max_length",
            ),
        ),
        (
            {"messages": [good, {"role": "system", "content": "x"}]},
            Refusal(
                400,
                "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.",
                "messages[1].role",
                "invalid_value",
            ),
        ),
        (
            {"messages": [good, attached, image("file-gone")]},
            Refusal(404, "No such File object: file-gone", "id"),
        ),
        (
            {"messages": [attached, image("thread_1")]},
            Refusal(
                400,
                "Invalid 'messages[1].content[0].image_file.file_id': 'thread_1'. Expected an ID"
                " that begins with 'file'.",
                "messages[1].content[0].image_file.file_id",
                "invalid_value",
            ),
        ),
        (
            {"messages": [good, good | {"attachments": [{"file_id": "x", "tools": []}]}]},
            Refusal(
                400,
                "Invalid 'messages[1].attachments[0].file_id': 'x'. Expected an ID that begins with"
                " 'file'.",
                "messages[1].attachments[0].file_id",
                "invalid_value",
            ),
        ),
        (
            {"tool_resources": {"file_search": {"vector_store_ids": ["vs_gone"]}}},
            Refusal(404, "No vector store found with id 'vs_gone'."),
        ),
        (
            {"metadata": {str(n): "" for n in range(17)}},
            Refusal(
                400,
                "Invalid 'metadata': too many properties. Expected an object with at most 16"
                " properties, but got an object with 17 properties instead.",
                "metadata",
                "object_above_max_properties",
            ),
        ),
    ):
        assert await wire.refused("POST", "/threads", body) == refusal
        if "messages" not in body:
            assert await wire.refused("POST", f"/threads/{made['id']}", body) == refusal
    refusal = Refusal(400, "Unknown parameter: 'messages'.", "messages", "unknown_parameter")
    assert await wire.refused("POST", f"/threads/{made['id']}", {"messages": [good]}) == refusal
    assert await rows.contents() == before


async def test_a_thread_has_at_most_20_files_for_code_interpreter(wire: Wire, rows: Rows) -> None:
    file_ids = [await rows.add_file() for _ in range(21)]
    code = [{"type": "code_interpreter"}]
    attachments = [{"file_id": file_id, "tools": code} for file_id in file_ids]
    message = {"role": "user", "content": "x"}
    full = await wire.post("/threads", {"messages": [message | {"attachments": attachments[:20]}]})
    assert full["tool_resources"] == {"code_interpreter": {"file_ids": file_ids[:20]}}
    before = await rows.contents()
    refusal = Refusal(
        400,
        "Invalid 'attachments': the thread would have 21 files for code_interpreter. It can have"
        " 20.",
        "attachments",
        "array_above_max_length",
    )
    one_more = message | {"attachments": attachments}
    assert await wire.refused("POST", "/threads", {"messages": [one_more]}) == refusal
    path = f"/threads/{full['id']}/messages"
    last = message | {"attachments": attachments[20:]}
    assert await wire.refused("POST", path, last) == refusal
    assert await rows.contents() == before
    await wire.post(path, message | {"attachments": attachments[:1]})  # it has that one already


def image(file_id: str) -> dict[str, Any]:
    part = {"type": "image_file", "image_file": {"file_id": file_id}}
    return {"role": "user", "content": [part]}
