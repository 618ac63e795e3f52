"""Vector stores that assistants and threads name, and those that are made along with them."""

import asyncio
import time
from typing import Any

import pytest
import pytest_asyncio

from api.conftest import Shared
from api.stores import Stores
from api.wire import Refusal, Wire
from threadmill.demo.scripted_model import ScriptedModel

Json = dict[str, Any]

WEEK_S = 7 * 24 * 3600
WEEK = {"anchor": "last_active_at", "days": 7}
SEARCH = {"type": "file_search"}
CODE = {"type": "code_interpreter"}
GONE = Refusal(404, "No vector store found with id 'vs_gone'.")


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    stores = Stores(shared.database, wire.project_id)
    await stores.hold()
    return stores


def naming(store_id: str) -> Json:
    return {"tool_resources": {"file_search": {"vector_store_ids": [store_id]}}}


def asking(file_ids: list[str], **fields: Any) -> Json:
    new = {"file_ids": file_ids} | fields
    return {"tool_resources": {"file_search": {"vector_stores": [new]}}}


def with_document(*file_ids: str, tools: list[Json] | None = None) -> Json:
    attachments = [{"file_id": file_id, "tools": tools or [SEARCH]} for file_id in file_ids]
    return {"role": "user", "content": "x", "attachments": attachments}


def store_of(thing: Json) -> str:
    [store_id] = thing["tool_resources"]["file_search"]["vector_store_ids"]
    return str(store_id)


async def count(stores: Stores) -> int:
    return len((await stores.contents())["vector_stores"])


# --- named ---


async def test_a_store_that_is_named_must_be_there(
    wire: Wire, other_wire: Wire, stores: Stores
) -> None:
    store_id = (await wire.post("/vector_stores"))["id"]
    assistant = await wire.post("/assistants", {"model": "m"} | naming(store_id))
    thread = await wire.post("/threads", naming(store_id))
    for thing in (assistant, thread):
        assert thing["tool_resources"] == naming(store_id)["tool_resources"]
    run = {"assistant_id": assistant["id"]}
    for path, body in (
        ("/assistants", {"model": "m"}),
        (f"/assistants/{assistant['id']}", {}),
        ("/threads", {}),
        (f"/threads/{thread['id']}", {}),
        ("/threads/runs", run),
    ):
        assert await wire.refused("POST", path, body | naming("vs_gone")) == GONE
        refusal = await wire.refused("POST", path, body | naming("foo"))
        assert (refusal.status, refusal.code) == (400, "invalid_value")
    other = await other_wire.refused("POST", "/threads", naming(store_id))
    assert other == Refusal(404, f"No vector store found with id '{store_id}'.")


# --- asked for ---


async def test_an_assistant_gets_a_store_that_stays(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(2)
    static = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}
    chunking = {"type": "static", "static": static}
    body = asking(file_ids, metadata={"a": "b"}, chunking_strategy=chunking)
    assistant = await wire.post("/assistants", {"model": "m", "tools": [SEARCH]} | body)
    path = f"/vector_stores/{store_of(assistant)}"
    store = await wire.get(path)
    assert (store["expires_after"], store["expires_at"]) == (None, None)
    assert (store["metadata"], store["file_counts"]["in_progress"]) == ({"a": "b"}, 2)
    files = await wire.get(f"{path}/files?order=asc")
    assert [file["id"] for file in files["data"]] == file_ids
    assert files["data"][0]["chunking_strategy"] == chunking


async def test_a_thread_gets_a_store_for_a_week(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(2)
    thread = await wire.post(
        "/threads", asking(file_ids[:1]) | {"messages": [with_document(file_ids[1])]}
    )
    path = f"/vector_stores/{store_of(thread)}"
    store = await wire.get(path)
    assert store["expires_after"] == WEEK
    assert store["expires_at"] == store["last_active_at"] + WEEK_S
    assert await wire.ids(f"{path}/files?order=asc") == file_ids
    assert await count(stores) == 1


async def test_a_store_without_files_can_be_asked_for(wire: Wire, stores: Stores) -> None:
    for body in (asking([]), {"tool_resources": {"file_search": {"vector_stores": [{}]}}}):
        thread = await wire.post("/threads", body)
        store = await wire.get(f"/vector_stores/{store_of(thread)}")
        assert store["status"] == "completed"


async def test_a_store_that_cannot_be_made_stops_what_it_was_for(
    wire: Wire, stores: Stores
) -> None:
    good, bad = await stores.add_file(), await stores.add_file("a.zip")
    for path, body in (("/assistants", {"model": "m"}), ("/threads", {})):
        refusal = await wire.refused("POST", path, body | asking([good, bad]))
        assert (refusal.status, refusal.code) == (400, "unsupported_file")
        refusal = await wire.refused("POST", path, body | asking([good, "file-gone"]))
        assert refusal == Refusal(404, "No such File object: file-gone", "id")
        refusal = await wire.refused("POST", path, body | asking(["foo"]))
        assert refusal.param == "tool_resources.file_search.vector_stores[0].file_ids[0]"
        assert await wire.ids(path) == []
    assert await count(stores) == 0


async def test_a_thread_that_is_run_at_once_gets_its_store_too(
    wire: Wire, stores: Stores, script: ScriptedModel
) -> None:
    script.say("Hello")
    assistant = await wire.post("/assistants", {"model": "m"})
    file_ids = await stores.add_files(2)
    thread = asking(file_ids[:1]) | {"messages": [with_document(file_ids[1])]}
    run = await wire.post("/threads/runs", {"assistant_id": assistant["id"], "thread": thread})
    made = await wire.get(f"/threads/{run['thread_id']}")
    assert await wire.ids(f"/vector_stores/{store_of(made)}/files?order=asc") == file_ids
    # What stops the run stops its thread and store.
    before = await count(stores)
    body = {"assistant_id": assistant["id"], "model": "", "thread": thread}
    assert (await wire.refused("POST", "/threads/runs", body)).status == 400
    body = {"assistant_id": "asst_gone", "thread": thread}
    assert (await wire.refused("POST", "/threads/runs", body)).status == 404
    assert await count(stores) == before


# --- attached to messages ---


async def test_a_document_makes_the_store_of_its_thread(wire: Wire, stores: Stores) -> None:
    first, second, third = await stores.add_files(3)
    thread = await wire.post("/threads")
    path = f"/threads/{thread['id']}"
    await wire.post(f"{path}/messages", with_document(first))
    store_id = store_of(await wire.get(path))
    store = await wire.get(f"/vector_stores/{store_id}")
    assert (store["expires_after"], store["status"]) == (WEEK, "in_progress")
    await wire.post(f"{path}/messages", with_document(second, third, second))
    assert store_of(await wire.get(path)) == store_id
    files = f"/vector_stores/{store_id}/files?order=asc"
    assert await wire.ids(files) == [first, second, third]
    assert await count(stores) == 1


async def test_the_first_messages_of_a_thread_bring_documents(wire: Wire, stores: Stores) -> None:
    first, second = await stores.add_files(2)
    both = with_document(second, tools=[SEARCH, CODE])
    thread = await wire.post("/threads", {"messages": [with_document(first), both]})
    assert thread["tool_resources"]["code_interpreter"] == {"file_ids": [second]}
    files = f"/vector_stores/{store_of(thread)}/files?order=asc"
    assert await wire.ids(files) == [first, second]


async def test_a_document_goes_into_the_store_that_the_thread_has(
    wire: Wire, stores: Stores
) -> None:
    store_id = (await wire.post("/vector_stores"))["id"]
    file_id = await stores.add_file()
    thread = await wire.post("/threads", naming(store_id))
    await stores.pass_time(store_id, 1000)
    await wire.post(f"/threads/{thread['id']}/messages", with_document(file_id))
    store = await wire.get(f"/vector_stores/{store_id}")
    assert (store["expires_after"], store["file_counts"]["total"]) == (None, 1)
    assert abs(store["last_active_at"] - time.time()) < 60
    assert await count(stores) == 1


async def test_a_document_that_is_there_is_not_ingested_again(wire: Wire, stores: Stores) -> None:
    done, failed = await stores.add_files(2)
    thread = await wire.post("/threads", {"messages": [with_document(done, failed)]})
    store_id = store_of(thread)
    await stores.move(store_id, done, "completed", ("one",))
    await stores.move(store_id, failed, "failed")
    path = f"/threads/{thread['id']}/messages"
    await wire.post(path, with_document(done, failed))
    files = await wire.get(f"/vector_stores/{store_id}/files?order=asc")
    assert [file["status"] for file in files["data"]] == ["completed", "in_progress"]


async def test_a_store_that_was_deleted_is_made_anew(wire: Wire, stores: Stores) -> None:
    first, second = await stores.add_files(2)
    thread = await wire.post("/threads", {"messages": [with_document(first)]})
    await wire.delete(f"/vector_stores/{store_of(thread)}")
    path = f"/threads/{thread['id']}"
    await wire.post(f"{path}/messages", with_document(second))
    anew = store_of(await wire.get(path))
    assert anew != store_of(thread)
    assert await wire.ids(f"/vector_stores/{anew}/files") == [second]


async def test_an_expired_store_takes_no_document(wire: Wire, stores: Stores) -> None:
    first, second = await stores.add_files(2)
    thread = await wire.post("/threads", {"messages": [with_document(first)]})
    store_id = store_of(thread)
    await stores.pass_time(store_id, WEEK_S)
    path = f"/threads/{thread['id']}/messages"
    before = await wire.ids(path)
    refusal = await wire.refused("POST", path, with_document(second))
    assert refusal == Refusal(400, f"Vector store '{store_id}' has expired")
    assert await wire.ids(path) == before


@pytest.mark.parametrize("place", ["thread", "message", "run"])
async def test_a_message_whose_document_cannot_be_searched_is_refused(
    wire: Wire, stores: Stores, place: str
) -> None:
    bad = with_document(await stores.add_file("a.png"))
    thread = await wire.post("/threads", {"messages": [{"role": "user", "content": "x"}]})
    path = f"/threads/{thread['id']}"
    if place == "thread":
        refusal = await wire.refused("POST", "/threads", {"messages": [bad]})
    elif place == "message":
        refusal = await wire.refused("POST", f"{path}/messages", bad)
    else:
        assistant = await wire.post("/assistants", {"model": "m"})
        body = {"assistant_id": assistant["id"], "additional_messages": [bad]}
        refusal = await wire.refused("POST", f"{path}/runs", body)
    assert (refusal.status, refusal.code) == (400, "unsupported_file")
    assert await count(stores) == 0
    assert len(await wire.ids(f"{path}/messages")) == 1
    assert await wire.get(path) == thread


async def test_additional_messages_of_a_run_bring_documents(
    wire: Wire, stores: Stores, script: ScriptedModel
) -> None:
    script.say("Hello")
    file_id = await stores.add_file()
    assistant = await wire.post("/assistants", {"model": "m"})
    thread = await wire.post("/threads")
    path = f"/threads/{thread['id']}"
    body = {"assistant_id": assistant["id"], "additional_messages": [with_document(file_id)]}
    await wire.post(f"{path}/runs", body)
    store_id = store_of(await wire.get(path))
    assert await wire.ids(f"/vector_stores/{store_id}/files") == [file_id]


async def test_messages_that_come_at_once_share_one_store(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(6)
    thread = await wire.post("/threads")
    path = f"/threads/{thread['id']}"
    await asyncio.gather(
        *(wire.post(f"{path}/messages", with_document(file_id)) for file_id in file_ids)
    )
    files = f"/vector_stores/{store_of(await wire.get(path))}/files"
    assert sorted(await wire.ids(files)) == sorted(file_ids)
    assert await count(stores) == 1


async def test_a_document_that_is_deleted_while_a_message_brings_it(
    wire: Wire, stores: Stores
) -> None:
    thread = await wire.post("/threads")
    path = f"/threads/{thread['id']}"
    for _ in range(6):
        file_id = await stores.add_file()
        both = with_document(file_id, tools=[SEARCH, CODE])
        posted, deleted = await asyncio.gather(
            wire.send("POST", f"{path}/messages", both), wire.send("DELETE", f"/files/{file_id}")
        )
        assert deleted.status == 200
        gone = Refusal(404, f"No such File object: {file_id}", "id")
        assert posted.status == 200 or posted.refusal == gone
    assert (await stores.contents())["vector_store_files"] == []
