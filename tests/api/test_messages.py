import time
from typing import Any

import pytest

from api.rows import Rows
from api.wire import Refusal, Wire
from threadmill.demo.scripted_model import ScriptedModel

CODE = {"type": "code_interpreter"}
SEARCH = {"type": "file_search"}


async def test_a_message_of_a_client_is_complete_at_once(wire: Wire) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    before = int(time.time())
    made = await wire.post(f"/threads/{thread_id}/messages", {"role": "user", "content": "hi"})
    assert made.pop("id").startswith("msg_")
    assert before <= made["created_at"] <= time.time()
    assert made.pop("completed_at") == made.pop("created_at")
    assert made == {
        "object": "thread.message",
        "thread_id": thread_id,
        "status": "completed",
        "incomplete_details": None,
        "incomplete_at": None,
        "role": "user",
        "content": [{"type": "text", "text": {"value": "hi", "annotations": []}}],
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {},
    }


async def test_null_is_the_same_as_absent(wire: Wire) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    sent = {"role": "assistant", "content": "x", "attachments": None, "metadata": None}
    made = await wire.post(f"/threads/{thread_id}/messages", sent)
    assert (made["role"], made["attachments"], made["metadata"]) == ("assistant", [], {})


async def test_content_comes_back_in_the_form_of_the_answer(wire: Wire, rows: Rows) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    file_id = await rows.add_file()
    url = "https://example.org/a.png"
    sent = [
        {"type": "text", "text": "look 👀"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_file", "image_file": {"file_id": file_id, "detail": "low"}},
    ]
    path = f"/threads/{thread_id}/messages"
    made = await wire.post(path, {"role": "user", "content": sent, "metadata": {"a": "b"}})
    assert made["content"] == [
        {"type": "text", "text": {"value": "look 👀", "annotations": []}},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_file", "image_file": {"file_id": file_id, "detail": "low"}},
    ]
    assert made["metadata"] == {"a": "b"}
    assert await wire.get(f"{path}/{made['id']}") == made
    assert (await wire.get(path))["data"] == [made]


async def test_attachments_are_echoed_and_those_for_code_become_files_of_the_thread(
    wire: Wire, rows: Rows
) -> None:
    path = f"/threads/{(await wire.post('/threads'))['id']}"
    one, other = await rows.add_file(), await rows.add_file()
    sent = [
        {"file_id": one, "tools": [CODE]},
        {"file_id": one, "tools": [SEARCH]},
        {"file_id": other, "tools": [SEARCH, CODE]},
    ]
    message = {"role": "user", "content": "x", "attachments": sent}
    made = await wire.post(f"{path}/messages", message)
    assert made["attachments"] == sent
    resources = (await wire.get(path))["tool_resources"]
    assert resources["code_interpreter"] == {"file_ids": [one, other]}


async def test_an_update_changes_the_metadata(wire: Wire) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    path = f"/threads/{thread_id}/messages"
    sent = {"role": "user", "content": "x", "metadata": {"a": "1", "b": "2"}}
    made = await wire.post(path, sent)
    path = f"{path}/{made['id']}"
    assert await wire.post(path, {}) == made
    assert await wire.post(path, {"metadata": {"c": "3"}}) == made | {"metadata": {"c": "3"}}
    assert await wire.post(path, {"metadata": None}) == made | {"metadata": {}}
    assert await wire.get(path) == made | {"metadata": {}}
    refusal = Refusal(400, "Unknown parameter: 'content'.", "content", "unknown_parameter")
    assert await wire.refused("POST", path, {"content": "y"}) == refusal


async def test_a_deleted_message_is_gone(wire: Wire) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    messages = f"/threads/{thread_id}/messages"
    kept, deleted = [
        (await wire.post(messages, {"role": "user", "content": "x"}))["id"] for _ in range(2)
    ]
    path = f"{messages}/{deleted}"
    answer = {"id": deleted, "object": "thread.message.deleted", "deleted": True}
    assert await wire.delete(path) == answer
    gone = Refusal(404, f"No message found with id '{deleted}'.")
    for method in ("GET", "POST", "DELETE"):
        assert await wire.refused(method, path) == gone
    assert await wire.ids(messages) == [kept]


@pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action", "cancelling"])
async def test_while_a_run_is_active_messages_can_be_changed_but_not_added(
    wire: Wire, rows: Rows, status: str
) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    message = {"role": "user", "content": "x"}
    thread_id = (await wire.post("/threads", {"messages": [message, message]}))["id"]
    path = f"/threads/{thread_id}/messages"
    first, second = await wire.ids(path)
    file_id = await rows.add_file()
    run_id = await rows.add_run(thread_id, assistant_id, status)
    before = await rows.contents()
    with_file = message | {"attachments": [{"file_id": file_id, "tools": [CODE]}]}
    for body in (message, with_file):
        assert await wire.refused("POST", path, body) == Refusal(
            400, f"Can't add messages to {thread_id} while a run {run_id} is active."
        )
    assert await rows.contents() == before
    await wire.post(f"{path}/{first}", {"metadata": {"a": "b"}})
    await wire.delete(f"{path}/{second}")
    assert await wire.ids(path) == [first]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "expired", "incomplete"])
async def test_a_run_that_is_over_leaves_the_thread_free(
    wire: Wire, rows: Rows, status: str
) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    thread_id = (await wire.post("/threads"))["id"]
    await rows.add_run(thread_id, assistant_id, status)
    await wire.post(f"/threads/{thread_id}/messages", {"role": "user", "content": "x"})


async def test_a_list_can_be_narrowed_to_one_run(wire: Wire, script: ScriptedModel) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m", "instructions": "i"}))["id"]
    thread_id = (await wire.post("/threads"))["id"]
    path = f"/threads/{thread_id}"
    answers = []
    for text in ("one", "two"):
        script.say(text)
        await wire.post(f"{path}/messages", {"role": "user", "content": "x"})
        run = {"assistant_id": assistant_id, "stream": True}
        assert (await wire.send("POST", f"{path}/runs", run)).status == 200
        answers.append((await wire.get(f"{path}/messages?limit=1"))["data"][0])
    for answer in answers:
        assert answer["assistant_id"] == assistant_id
        listed = await wire.get(f"{path}/messages?run_id={answer['run_id']}")
        assert (listed["data"], listed["has_more"]) == ([answer], False)
    assert (await wire.get(f"{path}/messages?run_id=run_gone"))["data"] == []
    assert len(await wire.ids(f"{path}/messages?run_id=")) == 4
    assert await wire.refused("GET", f"{path}/messages?run_id=msg_1") == Refusal(
        400,
        "Invalid 'run_id': 'msg_1'. Expected an ID that begins with 'run'.",
        "run_id",
        "invalid_value",
    )


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_ids_must_be_those_of_a_thread_and_a_message_in_it(wire: Wire, method: str) -> None:
    thread_id = (await wire.post("/threads"))["id"]
    other = {"messages": [{"role": "user", "content": "x"}]}
    other_id = (await wire.post("/threads", other))["id"]
    [message_id] = await wire.ids(f"/threads/{other_id}/messages")
    for path, refusal in (
        (f"{thread_id}/messages/msg_abc", Refusal(404, "No message found with id 'msg_abc'.")),
        (
            f"{thread_id}/messages/{message_id}",
            Refusal(404, f"No message found with id '{message_id}'."),
        ),
        (
            f"{thread_id}/messages/run_abc",
            Refusal(
                400,
                "Invalid 'message_id': 'run_abc'. Expected an ID that begins with 'msg'.",
                "message_id",
                "invalid_value",
            ),
        ),
        (
            f"foo/messages/{message_id}",
            Refusal(
                400,
                "Invalid 'thread_id': 'foo'. Expected an ID that begins with 'thread'.",
                "thread_id",
                "invalid_value",
            ),
        ),
    ):
        assert await wire.refused(method, f"/threads/{path}") == refusal
    assert await wire.ids(f"/threads/{other_id}/messages") == [message_id]


def _image(number: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"https://example.org/{number}.png"}}


BAD: list[tuple[Any, Refusal]] = [
    (
        {"content": "x"},
        Refusal(400, "Missing required parameter: 'role'.", "role", "missing_required_parameter"),
    ),
    (
        {"role": "user"},
        Refusal(
            400, "Missing required parameter: 'content'.", "content", "missing_required_parameter"
        ),
    ),
    (
        {"role": "system", "content": "x"},
        Refusal(
            400,
            "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.",
            "role",
            "invalid_value",
        ),
    ),
    (
        {"role": "user", "content": ""},
        Refusal(
            400,
            "Invalid 'content': empty string. Expected a string with minimum length 1, but got an"
            " empty string instead.",
            "content",
            "empty_string",
        ),
    ),
    (
        {"role": "user", "content": []},
        Refusal(
            400,
            "Invalid 'content': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            "content",
            "empty_array",
        ),
    ),
    (
        {"role": "user", "content": "x" * 256_001},
        Refusal(
            400,
            "Invalid 'content': string too long. Expected a string with maximum length 256000, but"
            " got a string with length 256001 instead.",
            "content",
            "string_above_max_length",
        ),
    ),
    (
        {"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]},
        Refusal(
            400,
            "Invalid type for 'content[0].text': expected a string, but got an object instead.",
            "content[0].text",
            "invalid_type",
        ),
    ),
    (
        {"role": "user", "content": [{"type": "audio"}]},
        Refusal(
            400,
            "Invalid value: 'audio'. Supported values are: 'image_file', 'image_url', and 'text'.",
            "content[0].type",
            "invalid_value",
        ),
    ),
    (
        {"role": "user", "content": [_image(n) for n in range(11)]},
        Refusal(
            400,
            "Invalid 'content': too many images. Expected an array with at most 10 images, but got"
            " an array with 11 images instead.",
            "content",
            "array_above_max_length",
        ),
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
        Refusal(
            400,
            "Invalid 'content[0].image_url.url'. Expected a valid URL, but got a value with an"
            " invalid format.",
            "content[0].image_url.url",
            "invalid_value",
        ),
    ),
    (
        {"role": "user", "content": "x", "attachments": [{"file_id": "file-a"}]},
        Refusal(
            400,
            "Missing required parameter: 'attachments[0].tools'.",
            "attachments[0].tools",
            "missing_required_parameter",
        ),
    ),
    (
        {"role": "user", "content": "x", "attachments": [{"file_id": "file-a", "tools": [CODE]}]},
        Refusal(404, "No such File object: file-a", "id"),
    ),
    (
        {"role": "user", "content": "x", "attachments": [{"file_id": "asst_a", "tools": [CODE]}]},
        Refusal(
            400,
            "Invalid 'attachments[0].file_id': 'asst_a'. Expected an ID that begins with 'file'.",
            "attachments[0].file_id",
            "invalid_value",
        ),
    ),
    (
        {
            "role": "user",
            "content": [_image(1), {"type": "image_file", "image_file": {"file_id": "asst_a"}}],
        },
        Refusal(
            400,
            "Invalid 'content[1].image_file.file_id': 'asst_a'. Expected an ID that begins with"
            " 'file'.",
            "content[1].image_file.file_id",
            "invalid_value",
        ),
    ),
]


async def test_what_is_wrong_is_told_and_nothing_is_written(wire: Wire, rows: Rows) -> None:
    path = f"/threads/{(await wire.post('/threads'))['id']}/messages"
    before = await rows.contents()
    for body, refusal in BAD:
        assert await wire.refused("POST", path, body) == refusal
    gone = Refusal(404, "No thread found with id 'thread_gone'.")
    good = {"role": "user", "content": "x"}
    assert await wire.refused("POST", "/threads/thread_gone/messages", good) == gone
    assert await wire.refused("GET", "/threads/thread_gone/messages") == gone
    assert await rows.contents() == before
