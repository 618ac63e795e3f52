import asyncio
import time
from typing import Any

import openai
import pytest
import pytest_asyncio

from api.conftest import Shared
from api.stores import Stores
from api.wire import Refusal, Wire

Json = dict[str, Any]

NO_FILES = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    stores = Stores(shared.database, wire.project_id)
    await stores.hold()
    return stores


@pytest_asyncio.fixture(loop_scope="session")
async def path(wire: Wire, stores: Stores) -> str:
    """Of a new store."""
    return f"/vector_stores/{(await wire.post('/vector_stores'))['id']}"


def counts(**some: int) -> Json:
    return NO_FILES | some | {"total": sum(some.values())}


def store_of(path: str) -> str:
    return path.split("/")[2]


# --- one batch ---


async def test_a_batch_counts_its_files_from_the_first_answer(
    wire: Wire, stores: Stores, path: str
) -> None:
    file_ids = await stores.add_files(3)
    other = await stores.add_file()
    await wire.post(f"{path}/files", {"file_id": other})
    answer = await wire.send("POST", f"{path}/file_batches", {"file_ids": file_ids})
    batch = answer.json
    assert abs(time.time() - batch["created_at"]) < 60
    assert batch == {
        "id": batch["id"],
        "object": "vector_store.file_batch",
        "created_at": batch["created_at"],
        "vector_store_id": store_of(path),
        "status": "in_progress",
        "file_counts": counts(in_progress=3),
    }
    assert batch["id"].startswith("vsfb_")
    here = f"{path}/file_batches/{batch['id']}"
    for file_id, status, seen, whole in (
        (file_ids[0], "completed", counts(in_progress=2, completed=1), "in_progress"),
        (file_ids[1], "failed", counts(in_progress=1, completed=1, failed=1), "in_progress"),
        (file_ids[2], "completed", counts(completed=2, failed=1), "completed"),
    ):
        await stores.move(store_of(path), file_id, status)
        answer = await wire.send("GET", here)
        assert answer.json == batch | {"file_counts": seen, "status": whole}
        assert ("openai-poll-after-ms" in answer.headers) == (whole == "in_progress")


async def test_files_of_a_batch_share_its_settings_or_have_their_own(
    wire: Wire, stores: Stores, path: str
) -> None:
    first, second = await stores.add_files(2)
    small, large = (
        {
            "type": "static",
            "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0},
        }
        for size in (100, 200)
    )
    common = {"attributes": {"a": 1}, "chunking_strategy": small}
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [first, second]} | common)
    files = await wire.get(f"{path}/file_batches/{batch['id']}/files?order=asc")
    assert [file["id"] for file in files["data"]] == [first, second]
    for file in files["data"]:
        assert (file["attributes"], file["chunking_strategy"]) == ({"a": 1}, small)
    own = [
        {"file_id": first, "attributes": {"b": True}, "chunking_strategy": large},
        {"file_id": second},
    ]
    batch = await wire.post(f"{path}/file_batches", {"files": own} | common)
    files = await wire.get(f"{path}/file_batches/{batch['id']}/files?order=asc")
    seen = [(file["attributes"], file["chunking_strategy"]) for file in files["data"]]
    auto = {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}
    assert seen == [({"b": True}, large), ({}, {"type": "static", "static": auto})]


async def test_a_file_named_twice_counts_once(wire: Wire, stores: Stores, path: str) -> None:
    file_id = await stores.add_file()
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [file_id, file_id]})
    assert batch["file_counts"] == counts(in_progress=1)
    own = [{"file_id": file_id, "attributes": {"n": n}} for n in range(2)]
    await wire.post(f"{path}/file_batches", {"files": own})
    assert (await wire.get(f"{path}/files/{file_id}"))["attributes"] == {"n": 1}


async def test_2000_files_go_in_at_once(wire: Wire, stores: Stores, path: str) -> None:
    await stores.execute(
        "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
        " SELECT 'file-' || md5(%s || n), %s, 1, 'a.txt', 'assistants', 1, ''"
        " FROM generate_series(1, 2001) AS n",
        path,
        stores.project_id,
    )
    rows = await stores.fetch("SELECT id FROM files WHERE project_id = %s", stores.project_id)
    file_ids = [row[0] for row in rows]
    refusal = await wire.refused("POST", f"{path}/file_batches", {"file_ids": file_ids})
    assert refusal == Refusal(
        400,
        "Invalid 'file_ids': array too long. Expected an array with maximum length 2000, but got an"
        " array with length 2001 instead.",
        "file_ids",
        "array_above_max_length",
    )
    batch = await wire.post(f"{path}/file_batches", {"file_ids": file_ids[:2000]})
    assert batch["file_counts"] == counts(in_progress=2000)


async def test_the_sdk_waits_for_a_batch(
    sdk: openai.AsyncOpenAI, stores: Stores, path: str
) -> None:
    batches = sdk.vector_stores.file_batches
    store_id = store_of(path)

    async def finish() -> None:
        moved = 0
        while moved < 3:
            await asyncio.sleep(0.05)
            found = await sdk.vector_stores.files.list(store_id, filter="in_progress")
            for file in found.data:
                await stores.move(store_id, file.id, "completed", (file.id,))
                moved += 1

    async with asyncio.timeout(30):
        batch, _ = await asyncio.gather(
            batches.upload_and_poll(
                store_id, files=[(f"{n}.txt", str(n).encode()) for n in range(3)]
            ),
            finish(),
        )
    assert (batch.status, batch.file_counts.completed) == ("completed", 3)
    listed = [file.id async for file in batches.list_files(batch.id, vector_store_id=store_id)]
    assert len(listed) == 3
    assert (await batches.cancel(batch.id, vector_store_id=store_id)).status == "completed"


# --- cancel ---


async def test_cancel_stops_what_is_not_done(wire: Wire, stores: Stores, path: str) -> None:
    done, half, waiting = await stores.add_files(3)
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [done, half, waiting]})
    store_id = store_of(path)
    await stores.move(store_id, done, "completed", ("one",))
    await stores.move(store_id, half, "in_progress", ("two",))
    here = f"{path}/file_batches/{batch['id']}"
    cancelled = await wire.post(f"{here}/cancel")
    seen = batch | {"status": "cancelled", "file_counts": counts(completed=1, cancelled=2)}
    assert cancelled == seen
    assert await wire.get(here) == seen
    assert await wire.post(f"{here}/cancel") == seen
    assert await stores.count_chunks(store_id) == 1
    assert (await wire.get(path))["status"] == "completed"
    assert await wire.ids(f"{here}/files?filter=cancelled&order=asc") == [half, waiting]


async def test_a_finished_batch_stays_as_it_is(wire: Wire, stores: Stores, path: str) -> None:
    file_id = await stores.add_file()
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [file_id]})
    await stores.move(store_of(path), file_id, "completed")
    seen = batch | {"status": "completed", "file_counts": counts(completed=1)}
    here = f"{path}/file_batches/{batch['id']}"
    assert await wire.post(f"{here}/cancel") == seen
    assert await wire.get(here) == seen


async def test_a_cancelled_file_can_be_attached_again(
    wire: Wire, stores: Stores, path: str
) -> None:
    file_id = await stores.add_file()
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [file_id]})
    await wire.post(f"{path}/file_batches/{batch['id']}/cancel")
    file = await wire.post(f"{path}/files", {"file_id": file_id})
    assert file["status"] == "in_progress"


async def test_a_store_that_is_deleted_while_its_batch_is_cancelled(
    wire: Wire, stores: Stores
) -> None:
    file_ids = await stores.add_files(3)
    for _ in range(5):
        store = await wire.post("/vector_stores")
        path = f"/vector_stores/{store['id']}"
        batches = [
            (await wire.post(f"{path}/file_batches", {"file_ids": file_ids}))["id"]
            for _ in range(3)
        ]
        *cancelled, deleted = await asyncio.gather(
            *(wire.send("POST", f"{path}/file_batches/{one}/cancel") for one in batches),
            wire.send("DELETE", path),
        )
        assert deleted.status == 200
        gone = Refusal(404, f"No vector store found with id '{store['id']}'.")
        for answer in cancelled:
            assert answer.status == 200 or answer.refusal == gone


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (
            {},
            "Missing required parameter: 'file_ids'.",
            "file_ids",
            "missing_required_parameter",
        ),
        (
            {"file_ids": []},
            "Invalid 'file_ids': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            "file_ids",
            "empty_array",
        ),
        (
            {"file_ids": ["file-a"], "files": [{"file_id": "file-a"}]},
            "Invalid 'files': only one of 'file_ids' and 'files' can be given.",
            "files",
            "invalid_value",
        ),
        (
            {"files": [{}]},
            "Missing required parameter: 'files[0].file_id'.",
            "files[0].file_id",
            "missing_required_parameter",
        ),
        (
            {"file_ids": [""]},
            "Invalid 'file_ids[0]': ''. Expected an ID that begins with 'file'.",
            "file_ids[0]",
            "invalid_value",
        ),
        (
            {"files": [{"file_id": "foo"}]},
            "Invalid 'files[0].file_id': 'foo'. Expected an ID that begins with 'file'.",
            "files[0].file_id",
            "invalid_value",
        ),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(
    wire: Wire, stores: Stores, path: str, body: Json, message: str, param: str, code: str
) -> None:
    refusal = await wire.refused("POST", f"{path}/file_batches", body)
    assert refusal == Refusal(400, message, param, code)
    assert (await stores.contents())["file_batches"] == []


async def test_one_bad_file_stops_the_whole_batch(wire: Wire, stores: Stores, path: str) -> None:
    good, pictures = await stores.add_file(), [await stores.add_file(n) for n in ("a.png", "b.gif")]
    before = await stores.contents()
    refusal = await wire.refused("POST", f"{path}/file_batches", {"file_ids": [good, *pictures]})
    assert (refusal.message[:38], refusal.code) == (
        "Files with extensions [.gif, .png] are",
        "unsupported_file",
    )
    body = {"files": [{"file_id": good}, {"file_id": "file-gone"}]}
    gone = Refusal(404, "No such File object: file-gone", "id")
    assert await wire.refused("POST", f"{path}/file_batches", body) == gone
    after = await stores.contents()
    assert before["vector_store_files"] == after["vector_store_files"] == []
    assert after["file_batches"] == []


async def test_ids_of_batches_are_looked_at(wire: Wire, stores: Stores, path: str) -> None:
    file_id = await stores.add_file()
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [file_id]})
    other = (await wire.post("/vector_stores"))["id"]
    for method, place in (("GET", ""), ("GET", "/files"), ("POST", "/cancel")):
        assert await wire.refused(method, f"{path}/file_batches/foo{place}") == Refusal(
            400,
            "Invalid 'batch_id': 'foo'. Expected an ID that begins with 'vsfb'.",
            "batch_id",
            "invalid_value",
        )
        for store_id, batch_id in ((store_of(path), "vsfb_gone"), (other, batch["id"])):
            here = f"/vector_stores/{store_id}/file_batches/{batch_id}{place}"
            assert await wire.refused(method, here) == Refusal(
                404, f"No file batch found with id '{batch_id}' in vector store '{store_id}'."
            )
        odd = await wire.refused(method, f"{path}/file_batches/vsfb_%00{place}")
        assert odd.status == 404


# --- lists ---


async def test_files_of_a_batch_come_in_pages(wire: Wire, stores: Stores, path: str) -> None:
    file_ids = await stores.add_files(5)
    other = await stores.add_file()
    await wire.post(f"{path}/files", {"file_id": other})
    batch = await wire.post(f"{path}/file_batches", {"file_ids": file_ids})
    here = f"{path}/file_batches/{batch['id']}/files"
    assert await wire.ids(here) == file_ids[::-1]
    assert await wire.ids(f"{here}?order=asc&limit=2&after={file_ids[1]}") == file_ids[2:4]
    assert await wire.ids(f"{here}?order=asc&limit=2&before={file_ids[3]}") == file_ids[1:3]
    await stores.move(store_of(path), file_ids[2], "completed")
    assert await wire.ids(f"{here}?filter=completed") == [file_ids[2]]
    in_progress = f"{here}?order=asc&filter=in_progress"
    assert await wire.ids(f"{in_progress}&after={file_ids[2]}") == file_ids[3:]
    assert await wire.refused("GET", f"{here}?after={other}") == Refusal(
        404, f"No file found with id '{other}'.", "after"
    )


async def test_a_file_that_has_left_the_store_has_left_the_batch(
    wire: Wire, stores: Stores, path: str
) -> None:
    first, second = await stores.add_files(2)
    batch = await wire.post(f"{path}/file_batches", {"file_ids": [first, second]})
    await wire.delete(f"{path}/files/{first}")
    here = f"{path}/file_batches/{batch['id']}"
    assert (await wire.get(here))["file_counts"] == counts(in_progress=1)
    assert await wire.ids(f"{here}/files") == [second]
