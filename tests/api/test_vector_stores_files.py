import asyncio
import time
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.vector_stores import VectorStoreFile

from api.conftest import Shared
from api.stores import Stores
from api.wire import Refusal, Wire
from threadmill.search import expiry
from threadmill.search.resources import FILES_WAIT
from threadmill.store.notify import Hints

Json = dict[str, Any]

AUTO = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
}
SUPPORTED = "https://platform.openai.com/docs/assistants/tools/file-search/supported-files"


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    stores = Stores(shared.database, wire.project_id)
    await stores.hold()
    return stores


async def new_store(wire: Wire, file_ids: list[str] | None = None) -> str:
    store_id: str = (await wire.post("/vector_stores", {"file_ids": file_ids}))["id"]
    return store_id


def no_file(store_id: str, file_id: str) -> Refusal:
    return Refusal(404, f"No file found with id '{file_id}' in vector store '{store_id}'.")


# --- one file ---


async def test_an_attached_file_is_in_progress_at_once(wire: Wire, stores: Stores) -> None:
    store_id, file_id = await new_store(wire), await stores.add_file()
    path = f"/vector_stores/{store_id}/files"
    answer = await wire.send("POST", path, {"file_id": file_id, "attributes": {"a": "b"}})
    file = answer.json
    assert abs(time.time() - file["created_at"]) < 60
    assert file == {
        "id": file_id,
        "object": "vector_store.file",
        "created_at": file["created_at"],
        "vector_store_id": store_id,
        "usage_bytes": 0,
        "status": "in_progress",
        "last_error": None,
        "chunking_strategy": AUTO,
        "attributes": {"a": "b"},
    }
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    answer = await wire.send("GET", f"{path}/{file_id}")
    assert answer.json == file
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    await stores.move(store_id, file_id, "completed", ("one",))
    answer = await wire.send("GET", f"{path}/{file_id}")
    assert answer.json == file | {"status": "completed", "usage_bytes": 3}
    assert "openai-poll-after-ms" not in answer.headers


async def test_a_failed_file_says_why(wire: Wire, stores: Stores) -> None:
    file_id = await stores.add_file()
    store_id = await new_store(wire, [file_id])
    await stores.move(store_id, file_id, "failed")
    file = await wire.get(f"/vector_stores/{store_id}/files/{file_id}")
    assert file["last_error"] == {"code": "invalid_file", "message": "No."}


async def test_the_sdk_waits_for_a_file(sdk: openai.AsyncOpenAI, stores: Stores) -> None:
    store = await sdk.vector_stores.create()
    files = sdk.vector_stores.files

    async def finish(file_id: str) -> None:
        await asyncio.sleep(0.1)
        await stores.move(store.id, file_id, "completed", ("one",))

    upload = await sdk.files.create(file=("a.md", b"one"), purpose="assistants")
    attached = await files.create(store.id, file_id=upload.id)
    assert attached.status == "in_progress"
    polled, _ = await asyncio.gather(
        files.poll(upload.id, vector_store_id=store.id), finish(upload.id)
    )
    assert (polled.status, polled.usage_bytes) == ("completed", 3)
    changed = await files.update(upload.id, vector_store_id=store.id, attributes={"n": 1})
    assert changed.attributes == {"n": 1}
    contents = [part.text async for part in files.content(upload.id, vector_store_id=store.id)]  # type: ignore[attr-defined]
    assert contents == ["one"]
    assert (await files.delete(upload.id, vector_store_id=store.id)).deleted
    with pytest.raises(openai.NotFoundError, match="in vector store"):
        await files.retrieve(upload.id, vector_store_id=store.id)


async def test_an_attribute_is_a_text_a_number_or_a_truth(wire: Wire, stores: Stores) -> None:
    file_id = await stores.add_file()
    store_id = await new_store(wire, [file_id])
    path = f"/vector_stores/{store_id}/files/{file_id}"
    attributes = {"text": "é" * 512, "whole": 2**53, "half": 0.5, "true": True, "k" * 64: ""}
    changed = await wire.post(path, {"attributes": attributes})
    assert changed["attributes"] == attributes
    assert await wire.get(path) == changed
    for nothing in ({}, None):
        assert (await wire.post(path, {"attributes": nothing}))["attributes"] == {}


@pytest.mark.parametrize(
    ("attributes", "message", "param", "code"),
    [
        (
            {"a": []},
            "Invalid type for 'attributes.a': expected one of a string, number or boolean, but got"
            " an array instead.",
            "attributes.a",
            "invalid_type",
        ),
        (
            {"a": None},
            "Invalid type for 'attributes.a': expected one of a string, number or boolean, but got"
            " null instead.",
            "attributes.a",
            "invalid_type",
        ),
        (
            {"a": "x" * 513},
            "Invalid 'attributes.a': string too long. Expected a string with maximum length 512,"
            " but got a string with length 513 instead.",
            "attributes.a",
            "string_above_max_length",
        ),
        (
            {str(n): n for n in range(17)},
            "Invalid 'attributes': too many properties. Expected an object with at most 16"
            " properties, but got an object with 17 properties instead.",
            "attributes",
            "object_above_max_properties",
        ),
        (
            [],
            "Invalid type for 'attributes': expected an object, but got an array instead.",
            "attributes",
            "invalid_type",
        ),
    ],
)
async def test_attributes_that_cannot_be_are_refused(
    wire: Wire, stores: Stores, attributes: Any, message: str, param: str, code: str
) -> None:
    file_id, other = await stores.add_files(2)
    store_id = await new_store(wire, [file_id])
    path = f"/vector_stores/{store_id}/files"
    before = await stores.contents()
    refusal = Refusal(400, message, param, code)
    body = {"attributes": attributes}
    assert await wire.refused("POST", f"{path}/{file_id}", body) == refusal
    assert await wire.refused("POST", path, {"file_id": other} | body) == refusal
    assert await stores.contents() == before


async def test_what_must_be_sent_with_files(wire: Wire, stores: Stores) -> None:
    store_id = await new_store(wire, [await stores.add_file()])
    path = f"/vector_stores/{store_id}/files"
    for place, name in (("", "file_id"), ("/file-a", "attributes")):
        assert await wire.refused("POST", path + place, {}) == Refusal(
            400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter"
        )


async def test_the_content_is_what_is_searched(wire: Wire, stores: Stores) -> None:
    file_id = await stores.add_file()
    store_id = await new_store(wire, [file_id])
    path = f"/vector_stores/{store_id}/files/{file_id}/content"
    empty = {
        "object": "vector_store.file_content.page",
        "data": [],
        "has_more": False,
        "next_page": None,
    }
    assert await wire.get(path) == empty
    await stores.move(store_id, file_id, "completed", ("one", "two"))
    assert await wire.get(path) == empty | {
        "data": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    }


# --- again, and away ---


async def test_a_file_that_is_attached_again_is_ingested_anew(wire: Wire, stores: Stores) -> None:
    file_id, other = await stores.add_files(2)
    store_id = await new_store(wire, [file_id, other])
    path = f"/vector_stores/{store_id}/files"
    await wire.post(f"{path}/{file_id}", {"attributes": {"a": "b"}})
    await stores.move(store_id, file_id, "completed", ("one", "two"))
    chunking = {
        "type": "static",
        "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0},
    }
    again = await wire.post(path, {"file_id": file_id, "chunking_strategy": chunking})
    assert (again["status"], again["usage_bytes"]) == ("in_progress", 0)
    assert (again["chunking_strategy"], again["attributes"]) == (chunking, {})
    assert await stores.count_chunks(store_id) == 0
    assert await wire.ids(f"{path}?order=asc") == [other, file_id]


async def test_a_detached_file_is_out_of_the_store_only(wire: Wire, stores: Stores) -> None:
    file_id = await stores.add_file()
    store_id = await new_store(wire, [file_id])
    await stores.move(store_id, file_id, "completed", ("one",))
    path = f"/vector_stores/{store_id}/files/{file_id}"
    assert await wire.delete(path) == {
        "id": file_id,
        "object": "vector_store.file.deleted",
        "deleted": True,
    }
    assert await stores.count_chunks(store_id) == 0
    assert await wire.get(f"/files/{file_id}")
    assert (await wire.get(f"/vector_stores/{store_id}"))["file_counts"]["total"] == 0
    for method, place, body in (
        ("GET", "", None),
        ("POST", "", {"attributes": {}}),
        ("DELETE", "", None),
        ("GET", "/content", None),
    ):
        assert await wire.refused(method, path + place, body) == no_file(store_id, file_id)


async def test_a_deleted_file_is_out_of_every_store(
    wire: Wire, stores: Stores, shared: Shared
) -> None:
    file_id, other, expiring = await stores.add_files(3)
    first, second = [await new_store(wire, [file_id, other, expiring]) for _ in range(2)]
    for store_id in (first, second):
        for one in (file_id, other, expiring):
            await stores.move(store_id, one, "completed", ("one",))
    await wire.delete(f"/files/{file_id}")
    await stores.execute("UPDATE files SET expires_at = 1 WHERE id = %s", expiring)
    while await expiry.remove_expired_files(shared.server.runtime):
        pass
    for store_id in (first, second):
        assert await wire.ids(f"/vector_stores/{store_id}/files") == [other]
        assert await stores.count_chunks(store_id) == 1
        store = await wire.get(f"/vector_stores/{store_id}")
        assert (store["file_counts"]["total"], store["usage_bytes"]) == (1, 3)


async def test_every_process_hears_that_files_wait(
    wire: Wire, stores: Stores, shared: Shared
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    hints = Hints(shared.database.url, heard.put_nowait)
    listening = asyncio.create_task(hints.run())
    await hints.listening.wait()
    thread = {"file_ids": [await stores.add_file()]}
    attached = {"file_id": await stores.add_file(), "tools": [{"type": "file_search"}]}
    message = {"role": "user", "content": "x", "attachments": [attached]}
    store_id = await new_store(wire)
    for path, body in (
        ("/vector_stores", {"file_ids": [await stores.add_file()]}),
        (f"/vector_stores/{store_id}/files", {"file_id": await stores.add_file()}),
        (f"/vector_stores/{store_id}/file_batches", {"file_ids": [await stores.add_file()]}),
        ("/threads", {"tool_resources": {"file_search": {"vector_stores": [thread]}}}),
        ("/threads", {"messages": [message]}),
        (f"/threads/{(await wire.post('/threads'))['id']}/messages", message),
    ):
        while not heard.empty():
            heard.get_nowait()
        await wire.post(path, body)
        async with asyncio.timeout(30):
            while await heard.get() != FILES_WAIT:
                pass
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


# --- what is not taken ---


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.zip", ".zip"),
        ("A.PNG", ".png"),
        ("archive.tar.gz", ".gz"),
        ("Makefile", "none"),
        (".pdf", "none"),
        ("a.", "none"),
        ("a/b.c/d", "none"),
        ("notes.p\u200edf", ".p\ufffddf"),
    ],
)
async def test_a_file_of_an_unknown_kind_is_refused(
    wire: Wire, stores: Stores, name: str, shown: str
) -> None:
    store_id, file_id = await new_store(wire), await stores.add_file(name)
    path = f"/vector_stores/{store_id}/files"
    assert await wire.refused("POST", path, {"file_id": file_id}) == Refusal(
        400,
        f"Files with extensions [{shown}] are not supported for retrieval. See {SUPPORTED}",
        "file_ids",
        "unsupported_file",
    )
    assert (await stores.contents())["vector_store_files"] == []


@pytest.mark.parametrize("name", ["a.PDF", "b/c.Md", "x.tar.json", "你好.docx", "sheet.xlsx"])
async def test_a_file_of_a_known_kind_is_taken(wire: Wire, stores: Stores, name: str) -> None:
    store_id, file_id = await new_store(wire), await stores.add_file(name)
    file = await wire.post(f"/vector_stores/{store_id}/files", {"file_id": file_id})
    assert file["status"] == "in_progress"


async def test_ids_of_files_are_looked_at(wire: Wire, stores: Stores) -> None:
    store_id = await new_store(wire)
    path = f"/vector_stores/{store_id}/files"
    wrong = Refusal(
        400,
        "Invalid 'file_id': 'foo'. Expected an ID that begins with 'file'.",
        "file_id",
        "invalid_value",
    )
    assert await wire.refused("GET", f"{path}/foo") == wrong
    assert await wire.refused("POST", path, {"file_id": "foo"}) == wrong
    assert await wire.refused("GET", f"{path}/file-gone") == no_file(store_id, "file-gone")
    gone = Refusal(404, "No such File object: file-gone", "id")
    assert await wire.refused("POST", path, {"file_id": "file-gone"}) == gone


# --- lists ---


async def test_files_come_in_pages(wire: Wire, sdk: openai.AsyncOpenAI, stores: Stores) -> None:
    file_ids = await stores.add_files(5)
    store_id = await new_store(wire, file_ids)
    files: list[VectorStoreFile] = [
        file
        async for file in sdk.vector_stores.files.list(
            vector_store_id=store_id, limit=2, order="asc"
        )
    ]
    assert [file.id for file in files] == file_ids
    path = f"/vector_stores/{store_id}/files"
    assert await wire.ids(path) == file_ids[::-1]
    assert await wire.ids(f"{path}?before={file_ids[3]}&order=asc&limit=2") == file_ids[1:3]
    elsewhere = await stores.add_file()
    await new_store(wire, [elsewhere])
    assert await wire.refused("GET", f"{path}?after={elsewhere}") == Refusal(
        404, f"No file found with id '{elsewhere}'.", "after"
    )


async def test_files_can_be_listed_by_status(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(6)
    store_id = await new_store(wire, file_ids)
    path = f"/vector_stores/{store_id}/files?order=asc"
    await stores.move(store_id, file_ids[0], "completed")
    await stores.move(store_id, file_ids[1], "failed")
    await stores.move(store_id, file_ids[2], "cancelled")
    for status, wanted in (
        ("completed", file_ids[:1]),
        ("failed", file_ids[1:2]),
        ("cancelled", file_ids[2:3]),
        ("in_progress", file_ids[3:]),
    ):
        assert await wire.ids(f"{path}&filter={status}") == wanted
    assert await wire.refused("GET", f"{path}&filter=x") == Refusal(
        400,
        "Invalid value: 'x'. Supported values are: 'in_progress', 'completed', 'failed', and"
        " 'cancelled'.",
        "filter",
        "invalid_value",
    )


async def test_a_reader_goes_on_though_the_file_it_stands_at_is_done(
    wire: Wire, stores: Stores
) -> None:
    file_ids = await stores.add_files(4)
    store_id = await new_store(wire, file_ids)
    path = f"/vector_stores/{store_id}/files?order=asc&filter=in_progress"
    assert await wire.ids(f"{path}&limit=2") == file_ids[:2]
    await stores.move(store_id, file_ids[1], "completed")
    assert await wire.ids(f"{path}&limit=2&after={file_ids[1]}") == file_ids[2:]
    assert await wire.ids(f"{path}&before={file_ids[1]}") == file_ids[:1]


# --- races ---


async def test_a_file_that_is_deleted_while_it_is_attached(wire: Wire, stores: Stores) -> None:
    first, second = await new_store(wire), await new_store(wire)
    for _ in range(8):
        file_id = await stores.add_file()
        attach = {"file_id": file_id}
        answers = await asyncio.gather(
            wire.send("POST", f"/vector_stores/{first}/files", attach),
            wire.send("POST", f"/vector_stores/{second}/files", attach),
            wire.send("DELETE", f"/files/{file_id}"),
            wire.send("POST", f"/vector_stores/{first}/files", attach),
        )
        assert answers[2].status == 200
        gone = Refusal(404, f"No such File object: {file_id}", "id")
        for answer in answers:
            assert answer.status == 200 or answer.refusal == gone
    assert (await stores.contents())["vector_store_files"] == []


async def test_a_file_that_is_attached_by_many_is_there_once(wire: Wire, stores: Stores) -> None:
    store_id, file_ids = await new_store(wire), await stores.add_files(4)
    path = f"/vector_stores/{store_id}"
    await asyncio.gather(
        *(
            wire.post(f"{path}/file_batches", {"file_ids": listed})
            for listed in (file_ids, file_ids[::-1])
            for _ in range(3)
        ),
        *(wire.post(f"{path}/files", {"file_id": file_id}) for file_id in file_ids),
    )
    assert sorted(await wire.ids(f"{path}/files")) == sorted(file_ids)
