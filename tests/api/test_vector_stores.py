import asyncio
import time
from typing import Any

import openai
import pytest
import pytest_asyncio

from api.conftest import RERANK_URL, Shared
from api.stores import Stores
from api.wire import Refusal, Wire
from threadmill.search import expiry

Json = dict[str, Any]

DAY_S = 24 * 3600
POLICY = {"anchor": "last_active_at", "days": 2}
NO_FILES = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    stores = Stores(shared.database, wire.project_id)
    await stores.hold()
    return stores


def but_for_its_use(store: Json) -> Json:
    """A change counts as use, and may be made in another second than the store."""
    return {name: value for name, value in store.items() if name != "last_active_at"}


def gone(store_id: str) -> Refusal:
    return Refusal(404, f"No vector store found with id '{store_id}'.")


def expired(store_id: str) -> Refusal:
    return Refusal(400, f"Vector store '{store_id}' has expired")


# --- one store ---


async def test_an_empty_store_is_complete_at_once(wire: Wire, stores: Stores) -> None:
    store = await wire.post("/vector_stores")
    created_at = store["created_at"]
    assert abs(time.time() - created_at) < 60
    assert store == {
        "id": store["id"],
        "object": "vector_store",
        "created_at": created_at,
        "name": None,
        "description": None,
        "usage_bytes": 0,
        "file_counts": NO_FILES,
        "status": "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": created_at,
        "metadata": {},
    }
    assert store["id"].startswith("vs_")
    assert await wire.get(f"/vector_stores/{store['id']}") == store


async def test_a_store_is_made_with_all_that_it_was_given(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(3)
    chunking = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}
    store = await wire.post(
        "/vector_stores",
        {
            "name": "Laws",
            "description": "All of them",
            "file_ids": [*file_ids, file_ids[0]],
            "expires_after": POLICY,
            "chunking_strategy": {"type": "static", "static": chunking},
            "metadata": {"a": "b"},
        },
    )
    assert (store["name"], store["description"]) == ("Laws", "All of them")
    assert store["metadata"] == {"a": "b"}
    assert store["status"] == "in_progress"
    assert store["file_counts"] == NO_FILES | {"in_progress": 3, "total": 3}
    assert store["expires_after"] == POLICY
    assert store["expires_at"] == store["last_active_at"] + 2 * DAY_S
    files = await wire.get(f"/vector_stores/{store['id']}/files?order=asc")
    assert [file["id"] for file in files["data"]] == file_ids
    for file in files["data"]:
        assert file["chunking_strategy"] == {"type": "static", "static": chunking}


async def test_a_store_counts_its_files_and_their_bytes(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(4)
    store = await wire.post("/vector_stores", {"file_ids": file_ids})
    path = f"/vector_stores/{store['id']}"
    for file_id, status in zip(file_ids, ("completed", "failed", "cancelled"), strict=False):
        await stores.move(
            store["id"], file_id, status, ("one", "two") if status == "completed" else ()
        )
    seen = await wire.get(path)
    assert seen["file_counts"] == dict.fromkeys(NO_FILES, 1) | {"total": 4}
    assert (seen["usage_bytes"], seen["status"]) == (6, "in_progress")
    await stores.move(store["id"], file_ids[3], "completed", ("four",))
    seen = await wire.get(path)
    assert (seen["usage_bytes"], seen["status"]) == (10, "completed")
    assert (await wire.get("/vector_stores"))["data"] == [seen]


async def test_a_store_is_changed_field_by_field(wire: Wire, stores: Stores) -> None:
    store = await wire.post("/vector_stores", {"name": "a", "metadata": {"a": "b"}})
    path = f"/vector_stores/{store['id']}"
    assert but_for_its_use(await wire.post(path)) == but_for_its_use(store)
    changed = await wire.post(path, {"name": "b"})
    assert but_for_its_use(changed) == but_for_its_use(store) | {"name": "b"}
    changed = await wire.post(path, {"expires_after": POLICY, "description": "c"})
    assert (changed["name"], changed["description"]) == ("b", "c")
    assert changed["expires_at"] == changed["last_active_at"] + 2 * DAY_S
    changed = await wire.post(
        path, {"expires_after": None, "name": None, "metadata": None, "description": None}
    )
    assert but_for_its_use(changed) == but_for_its_use(store) | {"name": None, "metadata": {}}
    assert await wire.get(path) == changed


async def test_a_deleted_store_takes_its_chunks_and_leaves_the_files(
    wire: Wire, stores: Stores
) -> None:
    file_id = await stores.add_file()
    store = await wire.post("/vector_stores", {"file_ids": [file_id]})
    await stores.move(store["id"], file_id, "completed", ("one",))
    path = f"/vector_stores/{store['id']}"
    await wire.post(f"{path}/file_batches", {"file_ids": [await stores.add_file()]})
    assert await wire.delete(path) == {
        "id": store["id"],
        "object": "vector_store.deleted",
        "deleted": True,
    }
    assert await stores.count_chunks(store["id"]) == 0
    assert await wire.get(f"/files/{file_id}")
    for method in ("GET", "POST", "DELETE"):
        assert await wire.refused(method, path) == gone(store["id"])
    assert (await stores.contents())["vector_store_files"] == []


async def test_stores_come_in_pages(wire: Wire, sdk: openai.AsyncOpenAI, stores: Stores) -> None:
    made = [(await wire.post("/vector_stores"))["id"] for _ in range(5)]
    assert [store.id async for store in sdk.vector_stores.list(limit=2, order="asc")] == made
    assert await wire.ids(f"/vector_stores?before={made[3]}&order=asc&limit=2") == made[1:3]
    assert await wire.ids(f"/vector_stores?after={made[1]}") == made[:1]
    assert await wire.refused("GET", "/vector_stores?after=vs_gone") == Refusal(
        404, "No vector store found with id 'vs_gone'.", "after"
    )


async def test_the_sdk_knows_stores(sdk: openai.AsyncOpenAI, stores: Stores) -> None:
    store = await sdk.vector_stores.create(name="a", description="b", expires_after=POLICY)  # type: ignore[arg-type]
    assert await sdk.vector_stores.retrieve(store.id) == store
    changed = await sdk.vector_stores.update(store.id, name="c", metadata={"d": "e"})
    assert (changed.name, changed.metadata) == ("c", {"d": "e"})
    assert (await sdk.vector_stores.delete(store.id)).deleted
    with pytest.raises(openai.NotFoundError, match="No vector store found with id"):
        await sdk.vector_stores.retrieve(store.id)


# --- how it is searched: ours ---


async def test_search_settings_are_shown_where_they_were_made(wire: Wire, stores: Stores) -> None:
    search = {
        "mode": "text",
        "language": "german",
        "embedding_model": "d",
        "rerank_url": RERANK_URL,
        "rerank_model": "c",
    }
    store = await wire.post("/vector_stores", {"search": search})
    path = f"/vector_stores/{store['id']}"
    assert (await wire.get(path))["search"] == search
    less = {"mode": "hybrid", "embedding_model": None, "rerank_url": None}
    changed = await wire.post(path, {"search": less})
    assert changed["search"] == {"mode": "hybrid", "language": "german", "rerank_model": "c"}
    assert "search" not in await wire.post(path, {"search": None})


async def test_the_embedding_model_is_settled_with_the_first_file(
    wire: Wire, stores: Stores
) -> None:
    store = await wire.post("/vector_stores", {"search": {"embedding_model": "small"}})
    path = f"/vector_stores/{store['id']}"
    await wire.post(path, {"search": {"embedding_model": "large"}})
    await wire.post(f"{path}/files", {"file_id": await stores.add_file()})
    assert await wire.refused("POST", path, {"search": {"embedding_model": "small"}}) == Refusal(
        400,
        f"Invalid 'search.embedding_model': vector store '{store['id']}' has files already, which"
        " are indexed with 'large'.",
        "search.embedding_model",
        "invalid_value",
    )


async def test_the_language_is_settled_with_the_first_file(wire: Wire, stores: Stores) -> None:
    store = await wire.post("/vector_stores")
    path = f"/vector_stores/{store['id']}"
    await wire.post(path, {"search": {"language": "french"}})
    await wire.post(f"{path}/files", {"file_id": await stores.add_file()})
    for search in ({"language": "german"}, {"language": None}, None):
        assert await wire.refused("POST", path, {"search": search, "name": "x"}) == Refusal(
            400,
            f"Invalid 'search.language': vector store '{store['id']}' has files already, which are"
            " indexed in 'french'.",
            "search.language",
            "invalid_value",
        )
    assert (await wire.get(path))["name"] is None
    changed = await wire.post(path, {"search": {"language": "french", "mode": "text"}})
    assert changed["search"] == {"language": "french", "mode": "text"}


# --- activity and expiry ---


async def test_use_puts_off_the_end(wire: Wire, stores: Stores) -> None:
    store = await wire.post("/vector_stores", {"expires_after": POLICY})
    path = f"/vector_stores/{store['id']}"
    file_id = await stores.add_file()
    for use in (
        wire.post(f"{path}/files", {"file_id": file_id}),
        wire.post(f"{path}/search", {"query": "a"}),
        wire.post(f"{path}/file_batches", {"file_ids": [file_id]}),
        wire.post(path, {"name": "a"}),
    ):
        await stores.pass_time(store["id"], DAY_S)
        idle = await wire.get(path)
        assert idle["last_active_at"] < time.time() - DAY_S + 60
        await use
        active = await wire.get(path)
        assert abs(active["last_active_at"] - time.time()) < 60
        assert active["expires_at"] == active["last_active_at"] + 2 * DAY_S


async def test_a_policy_does_not_end_a_store_long_unused_on_the_spot(
    wire: Wire, stores: Stores
) -> None:
    store = await wire.post("/vector_stores")
    await stores.pass_time(store["id"], 10 * DAY_S)
    changed = await wire.post(f"/vector_stores/{store['id']}", {"expires_after": POLICY})
    assert (changed["status"], changed["expires_at"] > time.time()) == ("completed", True)


async def test_an_expired_store_is_seen_and_not_used(
    wire: Wire, stores: Stores, shared: Shared
) -> None:
    file_id, waiting = await stores.add_files(2)
    body = {"expires_after": POLICY, "file_ids": [file_id, waiting]}
    store = await wire.post("/vector_stores", body)
    path = f"/vector_stores/{store['id']}"
    await stores.move(store["id"], file_id, "completed", ("one",))
    await stores.pass_time(store["id"], 2 * DAY_S)
    seen = await wire.get(path)
    assert seen["status"] == "expired"
    assert (await wire.get("/vector_stores"))["data"] == [seen]
    for place, sent in (
        ("", {"name": "a"}),
        ("", {"expires_after": None}),
        ("/search", {"query": "a"}),
        ("/files", {"file_id": file_id}),
        ("/file_batches", {"file_ids": [file_id]}),
        (f"/files/{file_id}", {"attributes": {}}),
    ):
        assert await wire.refused("POST", path + place, sent) == expired(store["id"]), place
    assert await wire.get(path) == seen
    # What is searched goes; the names stay, so that a new store can be made of the same files.
    while await expiry.clear_expired_stores(shared.server.runtime):
        pass
    assert await stores.count_chunks(store["id"]) == 0
    files = await wire.get(f"{path}/files?order=asc")
    assert [(file["id"], file["status"]) for file in files["data"]] == [
        (file_id, "completed"),
        (waiting, "failed"),
    ]
    assert files["data"][1]["last_error"] == {
        "code": "server_error",
        "message": "The vector store has expired.",
    }
    await wire.delete(f"{path}/files/{file_id}")
    await wire.delete(path)


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (
            {"file_ids": ["file-a"] * 501},
            "Invalid 'file_ids': array too long. Expected an array with maximum length 500, but got"
            " an array with length 501 instead.",
            "file_ids",
            "array_above_max_length",
        ),
        (
            {"file_ids": ["foo"]},
            "Invalid 'file_ids[0]': 'foo'. Expected an ID that begins with 'file'.",
            "file_ids[0]",
            "invalid_value",
        ),
        (
            {"expires_after": {"anchor": "created_at", "days": 1}},
            "Invalid value: 'created_at'. Value must be 'last_active_at'.",
            "expires_after.anchor",
            "invalid_value",
        ),
        (
            {"expires_after": {"anchor": "last_active_at", "days": 366}},
            "Invalid 'expires_after.days': integer above maximum value. Expected a value <= 365,"
            " but got 366 instead.",
            "expires_after.days",
            "integer_above_max_value",
        ),
        (
            {"expires_after": {"anchor": "last_active_at", "days": 0}},
            "Invalid 'expires_after.days': integer below minimum value. Expected a value >= 1, but"
            " got 0 instead.",
            "expires_after.days",
            "integer_below_min_value",
        ),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 99, "chunk_overlap_tokens": 0},
                }
            },
            "Invalid 'chunking_strategy.static.max_chunk_size_tokens': integer below minimum value."
            " Expected a value >= 100, but got 99 instead.",
            "chunking_strategy.static.max_chunk_size_tokens",
            "integer_below_min_value",
        ),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 2049},
                }
            },
            "Invalid 'chunking_strategy.static.chunk_overlap_tokens': integer above maximum value."
            " Expected a value <= 2048, but got 2049 instead.",
            "chunking_strategy.static.chunk_overlap_tokens",
            "integer_above_max_value",
        ),
        (
            {"chunking_strategy": {"type": "static"}},
            "Missing required parameter: 'chunking_strategy.static'.",
            "chunking_strategy.static",
            "missing_required_parameter",
        ),
        (
            {"metadata": {str(n): "" for n in range(17)}},
            "Invalid 'metadata': too many properties. Expected an object with at most 16"
            " properties, but got an object with 17 properties instead.",
            "metadata",
            "object_above_max_properties",
        ),
        (
            {"search": {"language": "klingon"}},
            "Invalid 'search.language': the database has no text search configuration 'klingon'.",
            "search.language",
            "invalid_value",
        ),
        (
            {"search": {"mode": "guess"}},
            "Invalid value: 'guess'. Supported values are: 'hybrid', 'vector', and 'text'.",
            "search.mode",
            "invalid_value",
        ),
        (
            {"search": {"rerank_url": "http://169.254.169.254/"}},
            "Invalid 'search.rerank_url': it is not among the endpoints that this server may call"
            " (THREADMILL_RERANK_URLS).",
            "search.rerank_url",
            "invalid_value",
        ),
        (
            {"search": {"rerank_url": "ftp://a"}},
            "Invalid 'search.rerank_url'. Expected a valid URL, but got a value with an invalid"
            " format.",
            "search.rerank_url",
            "invalid_value",
        ),
        ({"colour": 1}, "Unknown parameter: 'colour'.", "colour", "unknown_parameter"),
    ],
)
async def test_a_store_that_cannot_be_is_refused(
    wire: Wire, stores: Stores, body: Json, message: str, param: str, code: str
) -> None:
    refusal = await wire.refused("POST", "/vector_stores", body)
    assert refusal == Refusal(400, message, param, code)
    assert (await stores.contents())["vector_stores"] == []


async def test_nothing_is_left_of_a_store_that_one_file_stopped(wire: Wire, stores: Stores) -> None:
    good, bad = await stores.add_file(), await stores.add_file("a.zip")
    refusal = await wire.refused("POST", "/vector_stores", {"file_ids": [good, "file-gone"]})
    assert refusal == Refusal(404, "No such File object: file-gone", "id")
    refusal = await wire.refused("POST", "/vector_stores", {"file_ids": [good, bad]})
    assert refusal == Refusal(
        400,
        "Files with extensions [.zip] are not supported for retrieval. See"
        " https://platform.openai.com/docs/assistants/tools/file-search/supported-files",
        "file_ids",
        "unsupported_file",
    )
    contents = await stores.contents()
    assert contents["vector_stores"] == contents["vector_store_files"] == []


async def test_ids_are_looked_at(wire: Wire, stores: Stores) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert await wire.refused(method, "/vector_stores/foo") == Refusal(
            400,
            "Invalid 'vector_store_id': 'foo'. Expected an ID that begins with 'vs'.",
            "vector_store_id",
            "invalid_value",
        )
        assert await wire.refused(method, "/vector_stores/vs_gone") == gone("vs_gone")


async def test_stores_of_others_are_not_there(wire: Wire, other_wire: Wire, stores: Stores) -> None:
    file_id, other_file = await stores.add_files(2)
    store = await wire.post("/vector_stores", {"file_ids": [file_id]})
    await stores.move(store["id"], file_id, "completed", ("one",))
    path = f"/vector_stores/{store['id']}"
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [other_file]})
    before = await stores.contents()
    for method, place, body in (
        ("GET", "", None),
        ("POST", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/search", {"query": "one"}),
        ("GET", "/files", None),
        ("POST", "/files", {"file_id": other_file}),
        ("GET", f"/files/{file_id}", None),
        ("POST", f"/files/{file_id}", {"attributes": {}}),
        ("DELETE", f"/files/{file_id}", None),
        ("GET", f"/files/{file_id}/content", None),
        ("POST", "/file_batches", {"file_ids": [other_file]}),
        ("GET", f"/file_batches/{batch['id']}", None),
        ("GET", f"/file_batches/{batch['id']}/files", None),
        ("POST", f"/file_batches/{batch['id']}/cancel", None),
    ):
        assert await other_wire.refused(method, path + place, body) == gone(store["id"]), place
    assert await other_wire.ids("/vector_stores") == []
    assert await stores.contents() == before
    own = await other_wire.post("/vector_stores")
    body = {"file_id": file_id}
    assert await other_wire.refused("POST", f"/vector_stores/{own['id']}/files", body) == Refusal(
        404, f"No such File object: {file_id}", "id"
    )


# --- races ---


async def test_a_store_that_is_deleted_while_files_are_attached(wire: Wire, stores: Stores) -> None:
    file_ids = await stores.add_files(5)
    for _ in range(5):
        store = await wire.post("/vector_stores", {"file_ids": file_ids[:2]})
        path = f"/vector_stores/{store['id']}"
        answers = await asyncio.gather(
            *(wire.send("POST", f"{path}/files", {"file_id": file_id}) for file_id in file_ids),
            wire.send("DELETE", path),
            wire.send("POST", f"{path}/file_batches", {"file_ids": file_ids}),
        )
        assert answers[5].status == 200
        for answer in answers:
            assert answer.status == 200 or answer.refusal == gone(store["id"])
    assert (await stores.contents())["vector_store_files"] == []
