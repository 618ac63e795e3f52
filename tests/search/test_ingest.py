"""Files on their way into vector stores, on live servers: what a client sees meanwhile, and what is
there in the end, whoever is cancelled, deleted, killed or down."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from conftest import Serve
from processes import FAST, Launch, Process, launcher
from runs.wire import eventually
from search import documents
from shelf import POLL_EVERY_MS, SMALL_CHUNKS, Shelf
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel
from threadmill.store.database import Database

shared = pytest.mark.asyncio(loop_scope="session")

FOODS = "Anna likes pizza with olives."
PETS = "Ben has a parrot called Otto."
BAD_PDF = b"%PDF-1.7\nnothing of a PDF follows"
# About 300 chunks, and no two alike.
DAYS = range(300)
NOVEL = "".join(f"Chapter {n}. " + f"It was day {n} of the journey. " * 12 for n in DAYS)


def counts(thing: Any) -> dict[str, int]:
    """Those that are not zero."""
    return {name: count for name, count in thing.file_counts.to_dict().items() if count}


def embeddings(model: ScriptedModel) -> list[dict[str, Any]]:
    return [one.body for one in model.requests if one.path.endswith("/embeddings")]


async def polled(client: openai.AsyncOpenAI, store_id: str, file_id: str) -> VectorStoreFile:
    async with asyncio.timeout(30):
        return await client.vector_stores.files.poll(
            file_id, vector_store_id=store_id, poll_interval_ms=POLL_EVERY_MS
        )


async def put(
    client: openai.AsyncOpenAI, store: VectorStore, text: str, name: str = "text.txt", **more: Any
) -> VectorStoreFile:
    return await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=(name, text.encode()),
        poll_interval_ms=POLL_EVERY_MS,
        **more,
    )


async def found(client: openai.AsyncOpenAI, store: VectorStore, query: str) -> list[str]:
    page = await client.vector_stores.search(store.id, query=query)
    return [result.content[0].text for result in page.data]


async def chunk_rows(database: Database, file_id: str) -> list[tuple[Any, ...]]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT ordinal, text, token_count, page, heading, embedding::text FROM chunks"
            " WHERE file_id = %s ORDER BY ordinal",
            [file_id],
        )
        return await cursor.fetchall()


async def posting_count(database: Database, file_id: str) -> int:
    """How many chunks the text index counts for the file."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT coalesce(sum(chunk_count), 0) FROM text_segments WHERE file_id = %s", [file_id]
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


# --- formats and outcomes ---


def _book() -> bytes:
    return documents.pdf([["Anna likes pizza with olives."], ["Ben has a parrot called Otto."]])


@shared
@pytest.mark.parametrize(
    ("name", "content", "query"),
    [
        ("notes.md", f"# Tastes\n\n{FOODS}\n\n# Pets\n\n{PETS}".encode(), "parrot"),
        ("notes.txt", PETS.encode("utf-16"), "parrot"),
        ("page.html", f"<html><body><p>{PETS}</p></body></html>".encode(), "parrot"),
        ("book.pdf", _book(), "parrot"),
        ("letter.docx", documents.word(), None),
        ("slides.pptx", documents.slides(), None),
        ("data.json", b'{"pets": [{"name": "Otto", "kind": "parrot"}]}', "parrot"),
        ("pets.py", b'def otto():\n    return "parrot"\n', "parrot"),
        ("pets.csv", b"name,kind\nOtto,parrot\n", "parrot"),
        ("pets.xlsx", documents.sheets({"Pets": [["name", "kind"], ["Otto", "parrot"]]}), "parrot"),
    ],
)
async def test_documents_are_found_by_what_they_say(
    shelf: Shelf, name: str, content: bytes, query: str | None
) -> None:
    store = await shelf.client.vector_stores.create()
    file = await shelf.put(store.id, name, content)
    assert (file.status, file.last_error) == ("completed", None)
    assert file.usage_bytes > 0
    read = await shelf.client.vector_stores.files.content(file.id, vector_store_id=store.id)
    text = "".join(part.text or "" for part in read.data)
    assert text.strip()
    wanted = query or " ".join(text.split()[:5])
    assert await found(shelf.client, store, wanted) != []
    done = await shelf.client.vector_stores.retrieve(store.id)
    assert (done.status, counts(done)) == ("completed", {"completed": 1, "total": 1})
    assert done.usage_bytes == file.usage_bytes


@shared
async def test_what_a_client_sees_from_the_first_answer_on(shelf: Shelf) -> None:
    gate = Gate()
    shelf.model.before_embeddings = lambda body: (
        Reply(gate=gate) if body["input"] == [FOODS] else None
    )
    stores = shelf.client.vector_stores
    file_id = await shelf.upload("foods.txt", FOODS)
    store = await stores.create(file_ids=[file_id])
    assert (store.status, counts(store)) == ("in_progress", {"in_progress": 1, "total": 1})
    file = await stores.files.retrieve(file_id, vector_store_id=store.id)
    assert (file.status, file.last_error, file.usage_bytes) == ("in_progress", None, 0)
    assert await found(shelf.client, store, "pizza") == []
    gate.set()
    file = await polled(shelf.client, store.id, file_id)
    assert file.status == "completed"
    assert file.usage_bytes == len(FOODS) + 2 * 64
    store = await stores.retrieve(store.id)
    assert (store.status, counts(store)) == ("completed", {"completed": 1, "total": 1})
    assert await found(shelf.client, store, "pizza") == [FOODS]


@shared
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("bad.pdf", BAD_PDF, "invalid_file"),
        ("secret.pdf", documents.encrypted_pdf(), "invalid_file"),
        ("bad.docx", b"PK\x03\x04 no archive", "invalid_file"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, None),
    ],
)
async def test_a_document_that_cannot_be_read_says_why(
    shelf: Shelf, name: str, content: bytes, code: str | None
) -> None:
    store = await shelf.store({"pets.txt": PETS})
    file = await shelf.put(store.id, name, content)
    assert file.status == "failed"
    assert file.last_error is not None
    assert code in (file.last_error.code, None)
    assert file.last_error.message
    assert "internal error" not in file.last_error.message.lower()
    assert file.usage_bytes == 0
    after = await shelf.client.vector_stores.retrieve(store.id)
    assert after.status == "completed"
    assert counts(after) == {"completed": 1, "failed": 1, "total": 2}
    assert await found(shelf.client, store, "parrot") == [PETS]


@shared
async def test_a_batch_with_a_failing_file_is_completed(shelf: Shelf) -> None:
    store = await shelf.client.vector_stores.create()
    batch = await shelf.client.vector_stores.file_batches.upload_and_poll(
        store.id,
        files=[("a.txt", FOODS.encode()), ("b.pdf", BAD_PDF), ("c.txt", PETS.encode())],
        poll_interval_ms=POLL_EVERY_MS,
    )
    assert batch.status == "completed"
    assert counts(batch) == {"completed": 2, "failed": 1, "total": 3}
    failed = await shelf.client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="failed"
    )
    [file] = failed.data
    assert (await shelf.client.files.retrieve(file.id)).filename == "b.pdf"
    assert file.last_error is not None


# --- in the middle of it ---


@shared
async def test_a_batch_is_cancelled_in_the_middle(shelf: Shelf) -> None:
    gate, waits = Gate(), Gate()

    def before(body: dict[str, Any]) -> Reply | None:
        if body["input"] in ([PETS], ["Cara reads."], ["parrot reads Anna"]):
            return None
        waits.set()
        return Reply(gate=gate)

    shelf.model.before_embeddings = before
    batches = shelf.client.vector_stores.file_batches
    store = await shelf.client.vector_stores.create()
    texts = [PETS, NOVEL, FOODS, FOODS + " Really."]
    file_ids = [await shelf.upload("text.txt", text) for text in texts]
    batch = await batches.create(store.id, file_ids=file_ids)
    assert (batch.status, counts(batch)) == ("in_progress", {"in_progress": 4, "total": 4})
    assert (await polled(shelf.client, store.id, file_ids[0])).status == "completed"
    await waits.wait()
    cancelled = await batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.status == "cancelled"
    assert counts(cancelled) == {"cancelled": 3, "completed": 1, "total": 4}
    # There is room again, although the endpoint still keeps us waiting.
    last = await shelf.put(store.id, "last.txt", "Cara reads.")
    assert last.status == "completed"
    gate.set()
    after = await batches.retrieve(batch.id, vector_store_id=store.id)
    assert after == cancelled
    for file_id in file_ids[1:]:
        assert await chunk_rows(shelf.database, file_id) == []
        assert await posting_count(shelf.database, file_id) == 0
    assert sorted(await found(shelf.client, store, "parrot reads Anna")) == [PETS, "Cara reads."]


@shared
@pytest.mark.parametrize("what", ["entry", "file", "store"])
async def test_something_is_deleted_in_the_middle(shelf: Shelf, what: str) -> None:
    first, gate = Gate(), Gate()

    def before(body: dict[str, Any]) -> Reply | None:
        if "Chapter 250" not in "".join(body["input"]):
            return None
        first.set()
        return Reply(gate=gate)

    shelf.model.before_embeddings = before
    store = await shelf.client.vector_stores.create()
    file_id = await shelf.upload("novel.txt", NOVEL)
    await shelf.client.vector_stores.files.create(
        store.id, file_id=file_id, chunking_strategy=SMALL_CHUNKS
    )
    await first.wait()

    async def has_chunks() -> bool:
        return bool(await chunk_rows(shelf.database, file_id))

    await eventually(has_chunks)
    if what == "entry":
        await shelf.client.vector_stores.files.delete(file_id, vector_store_id=store.id)
    elif what == "file":
        await shelf.client.files.delete(file_id)
    else:
        await shelf.client.vector_stores.delete(store.id)
    gate.set()
    other = await shelf.store({"pets.txt": PETS})
    assert await found(shelf.client, other, "parrot") == [PETS]
    assert await chunk_rows(shelf.database, file_id) == []
    assert await posting_count(shelf.database, file_id) == 0
    if what != "store":
        after = await shelf.client.vector_stores.retrieve(store.id)
        assert (after.status, counts(after)) == ("completed", {})


@shared
async def test_a_file_that_is_attached_again_in_the_middle_is_there_once(shelf: Shelf) -> None:
    first, gate = Gate(), Gate()

    def before(body: dict[str, Any]) -> Reply | None:
        if first.is_set() or "Chapter 100" not in "".join(body["input"]):
            return None
        first.set()
        return Reply(gate=gate)

    shelf.model.before_embeddings = before
    files = shelf.client.vector_stores.files
    store = await shelf.client.vector_stores.create()
    file_id = await shelf.upload("novel.txt", NOVEL)
    await files.create(store.id, file_id=file_id, chunking_strategy=SMALL_CHUNKS)
    await first.wait()
    larger: Any = {
        "type": "static",
        "static": {"max_chunk_size_tokens": 400, "chunk_overlap_tokens": 0},
    }
    await files.create(store.id, file_id=file_id, chunking_strategy=larger)
    file = await polled(shelf.client, store.id, file_id)
    gate.set()
    assert file.status == "completed"
    rows = await chunk_rows(shelf.database, file_id)
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert "".join(row[1] for row in rows) == NOVEL
    assert await posting_count(shelf.database, file_id) == len(rows)
    done = await shelf.client.vector_stores.retrieve(store.id)
    assert counts(done) == {"completed": 1, "total": 1}


# --- processes that end ---


@pytest.fixture
async def launch(database_url: str, model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Launch]:
    async with launcher(database_url, model, tmp_path) as launch:
        yield launch


class SlowEmbedder:
    """Has vectors for the novel up to a day, and keeps whoever asks for later ones waiting.

    It does not count requests: a batch may come before the one that is to be written first, and
    comes again from whoever takes over.
    """

    def __init__(self, model: ScriptedModel) -> None:
        self._allowed = len(DAYS)
        self._kept_waiting: list[tuple[int, Gate]] = []
        model.before_embeddings = self._before

    def allow(self, days: int) -> None:
        self._allowed = days
        for wanted, gate in self._kept_waiting:
            if wanted <= days:
                gate.set()

    def _before(self, body: dict[str, Any]) -> Reply | None:
        wanted = max(int(day) for day in re.findall(r"day (\d+)", " ".join(body["input"])))
        if wanted <= self._allowed:
            return None
        gate = Gate()
        self._kept_waiting.append((wanted, gate))
        return Reply(gate=gate)


async def test_who_takes_over_from_the_killed_loses_and_doubles_nothing(
    launch: Launch, database: Database, model: ScriptedModel
) -> None:
    searching = {**FAST, "THREADMILL_EMBEDDING_MODEL": "hashing"}
    embedder = SlowEmbedder(model)
    first, second = await asyncio.gather(launch(**searching), launch("worker", **searching))
    store = await first.client.vector_stores.create()
    calm = await put(first.client, store, NOVEL, chunking_strategy=SMALL_CHUNKS)
    undisturbed = await chunk_rows(database, calm.id)
    assert len(undisturbed) > 250

    embedder.allow(len(DAYS) // 3)
    uploaded = await first.client.files.create(
        file=("text.txt", NOVEL.encode()), purpose="assistants"
    )
    await first.client.vector_stores.files.create(
        store.id, file_id=uploaded.id, chunking_strategy=SMALL_CHUNKS
    )
    alive = [first, second]
    reached = await _killed(database, uploaded.id, alive)
    embedder.allow(2 * len(DAYS) // 3)
    await _killed(database, uploaded.id, alive, later_than=reached)
    assert alive == []
    third = await launch(**searching)
    embedder.allow(len(DAYS))
    file = await polled(third.client, store.id, uploaded.id)
    assert file.status == "completed", file.last_error
    assert await chunk_rows(database, uploaded.id) == undisturbed
    assert await posting_count(database, uploaded.id) == len(undisturbed)
    assert file.usage_bytes == calm.usage_bytes
    done = await third.client.vector_stores.retrieve(store.id)
    assert counts(done) == {"completed": 2, "total": 2}


async def test_chunks_that_another_process_made_otherwise_are_made_again(
    launch: Launch, database: Database, model: ScriptedModel
) -> None:
    """One counts tokens, the other has to estimate them: their chunks do not follow each other."""
    searching = {**FAST, "THREADMILL_EMBEDDING_MODEL": "hashing"}
    embedder = SlowEmbedder(model)
    first = await launch(**searching)
    store = await first.client.vector_stores.create()
    calm = await put(first.client, store, NOVEL, chunking_strategy=SMALL_CHUNKS)
    embedder.allow(len(DAYS) // 3)
    uploaded = await first.client.files.create(
        file=("text.txt", NOVEL.encode()), purpose="assistants"
    )
    await first.client.vector_stores.files.create(
        store.id, file_id=uploaded.id, chunking_strategy=SMALL_CHUNKS
    )
    await _killed(database, uploaded.id, [first])
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE chunks SET text = left(text, -1) WHERE file_id = %s", [uploaded.id]
        )
    second = await launch(**searching)
    embedder.allow(len(DAYS))
    file = await polled(second.client, store.id, uploaded.id)
    assert file.status == "completed", file.last_error
    assert await chunk_rows(database, uploaded.id) == await chunk_rows(database, calm.id)


async def _killed(
    database: Database, file_id: str, alive: list[Process], *, later_than: int = 0
) -> int:
    """Kill that one of them which has brought the file further; returns how far it is then."""
    holders: list[Process] = []

    async def who_and_how_far() -> tuple[str | None, int]:
        async with database.connection() as connection:
            cursor = await connection.execute(
                "SELECT worker, chunk_count FROM vector_store_files WHERE id = %s", [file_id]
            )
            [(worker, count)] = await cursor.fetchall()
        return worker, count

    async def got_further() -> bool:
        worker, count = await who_and_how_far()
        holders[:] = [one for one in alive if worker and f":{one.pid}:" in worker]
        return bool(holders) and count > later_than

    await eventually(got_further, 60)
    [holder] = holders
    await holder.dies()
    alive.remove(holder)
    _, count = await who_and_how_far()
    return count


async def test_a_database_that_goes_away_for_a_moment_costs_nothing(
    serve: Serve, database_url: str, model: ScriptedModel
) -> None:
    """All connections are cut while vectors are waited for, and again and again."""
    gates = [Gate(), Gate()]
    waiting = asyncio.Queue[Gate]()

    def before(body: dict[str, Any]) -> Reply | None:
        if not gates:
            return None
        waiting.put_nowait(gates[0])
        return Reply(gate=gates.pop(0))

    model.before_embeddings = before
    async with serve(embedding_model="hashing") as server, _client(server) as client:
        store = await client.vector_stores.create()
        uploaded = await client.files.create(
            file=("text.txt", NOVEL.encode()), purpose="assistants"
        )
        await client.vector_stores.files.create(
            store.id, file_id=uploaded.id, chunking_strategy=SMALL_CHUNKS
        )
        for _ in range(2):
            gate = await waiting.get()
            async with await psycopg.AsyncConnection.connect(database_url) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            gate.set()

        async def is_completed() -> bool:
            try:
                file = await client.vector_stores.files.retrieve(
                    uploaded.id, vector_store_id=store.id
                )
            except openai.APIError:
                return False  # its connection was among them
            assert file.status in ("in_progress", "completed"), file.last_error
            return file.status == "completed"

        await eventually(is_completed, 30)
    database = Database(database_url)
    await database.open()
    rows = await chunk_rows(database, uploaded.id)
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert "".join(row[1] for row in rows) == NOVEL
    assert await posting_count(database, uploaded.id) == len(rows)
    await database.close()


async def test_a_server_that_stops_hands_back_what_it_has_begun(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    embedder = SlowEmbedder(model)
    async with serve(embedding_model="hashing") as server, _client(server) as client:
        store = await client.vector_stores.create()
        calm = await put(client, store, NOVEL, chunking_strategy=SMALL_CHUNKS)
        undisturbed = await chunk_rows(database, calm.id)
        embedder.allow(len(DAYS) // 3)
        uploaded = await client.files.create(
            file=("text.txt", NOVEL.encode()), purpose="assistants"
        )
        await client.vector_stores.files.create(
            store.id, file_id=uploaded.id, chunking_strategy=SMALL_CHUNKS
        )

        async def has_begun() -> bool:
            return len(await chunk_rows(database, uploaded.id)) > 0

        await eventually(has_begun)
    begun = await chunk_rows(database, uploaded.id)
    assert 0 < len(begun) < len(undisturbed)
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT DISTINCT worker FROM vector_store_files")
        assert await cursor.fetchall() == [(None,)]
    embedder.allow(len(DAYS))
    before = len(embeddings(model))
    async with serve(embedding_model="hashing") as server, _client(server) as client:
        file = await polled(client, store.id, uploaded.id)
        assert file.status == "completed", file.last_error
    assert await chunk_rows(database, uploaded.id) == undisturbed
    embedded = sum(len(body["input"]) for body in embeddings(model)[before:])
    assert embedded == len(undisturbed) - len(begun)  # what was done is not paid for again


# --- embeddings ---


def _client(server: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)


@shared
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_embeddings_that_fail_for_a_while_are_asked_for_again(
    shelf: Shelf, status: int
) -> None:
    failures = [Reply(status=status)] * 3
    shelf.model.before_embeddings = lambda body: failures.pop() if failures else None
    store = await shelf.store({"pets.txt": PETS})
    assert failures == []
    assert await found(shelf.client, store, "parrot") == [PETS]


@shared
async def test_embeddings_that_fail_for_good_fail_the_file(shelf: Shelf) -> None:
    shelf.model.before_embeddings = lambda body: Reply(status=401)
    store = await shelf.client.vector_stores.create()
    file = await shelf.put(store.id, "pets.txt", PETS)
    assert file.status == "failed"
    assert file.last_error is not None
    assert file.last_error.code == "server_error"
    assert file.last_error.message == (
        "The embeddings failed: Model 'hashing': The endpoint answered 401: scripted error 401"
    )
    shelf.model.before_embeddings = None
    await shelf.client.vector_stores.files.create(store.id, file_id=file.id)
    again = await polled(shelf.client, store.id, file.id)
    assert (again.status, again.last_error) == ("completed", None)
    assert await found(shelf.client, store, "parrot") == [PETS]


@shared
async def test_vectors_of_another_length_are_refused(shelf: Shelf) -> None:
    store = await shelf.store({"pets.txt": PETS})
    shelf.model.embedding_dimensions = 32
    try:
        file = await shelf.put(store.id, "foods.txt", FOODS)
    finally:
        shelf.model.embedding_dimensions = 64
    assert file.status == "failed"
    assert file.last_error is not None
    assert "32" in file.last_error.message
    assert "64" in file.last_error.message
    assert await found(shelf.client, store, "parrot pizza") == [PETS]


async def test_a_store_keeps_the_model_that_it_began_with(
    serve: Serve, model: ScriptedModel
) -> None:
    async with serve(embedding_model="first") as server, _client(server) as client:
        store = await client.vector_stores.create()
        assert (await put(client, store, PETS)).status == "completed"
    model.requests.clear()
    async with serve(embedding_model="second") as server, _client(server) as client:
        assert (await put(client, store, FOODS)).status == "completed"
        assert sorted(await found(client, store, "parrot pizza")) == [FOODS, PETS]
        assert {body["model"] for body in embeddings(model)} == {"first"}
        model.requests.clear()
        new = await client.vector_stores.create()
        assert (await put(client, new, FOODS)).status == "completed"
        assert {body["model"] for body in embeddings(model)} == {"second"}


async def test_a_store_may_have_a_model_of_its_own(serve: Serve, model: ScriptedModel) -> None:
    async with serve(embedding_model="usual") as server, _client(server) as client:
        own = {"search": {"embedding_model": "special"}}
        store = await client.vector_stores.create(extra_body=own)
        assert (await put(client, store, PETS)).status == "completed"
        assert await found(client, store, "parrot") == [PETS]
        assert {body["model"] for body in embeddings(model)} == {"special"}


async def test_without_embeddings_words_are_enough(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    async with serve() as server, _client(server) as client:
        store = await client.vector_stores.create()
        file = await put(client, store, PETS)
        assert (file.status, file.usage_bytes) == ("completed", len(PETS))
        assert await found(client, store, "parrots") == [PETS]
        assert await found(client, store, "pizza") == []
        assert embeddings(model) == []
    # Embeddings come later: what is put in from then on has vectors, and all is found.
    async with serve(embedding_model="hashing") as server, _client(server) as client:
        assert (await put(client, store, FOODS)).status == "completed"
        assert sorted(await found(client, store, "parrot pizza")) == [FOODS, PETS]
    # And they go again: the store has vectors of a model that nobody knows any more.
    async with serve(model_base_url=None) as server, _client(server) as client:
        assert sorted(await found(client, store, "parrot pizza")) == [FOODS, PETS]
        [row] = await chunk_rows(database, file.id)
        assert row[5] is None


@shared
async def test_a_store_of_words_alone_asks_for_no_vectors(shelf: Shelf) -> None:
    store = await shelf.store({"pets.txt": PETS}, extra_body={"search": {"mode": "text"}})
    [file] = (await shelf.client.vector_stores.files.list(store.id)).data
    assert file.usage_bytes == len(PETS)
    assert await found(shelf.client, store, "parrot") == [PETS]
    assert embeddings(shelf.model) == []


@shared
async def test_an_upload_in_pieces_is_ingested_like_any_file(shelf: Shelf) -> None:
    store = await shelf.client.vector_stores.create()
    data = NOVEL.encode()
    upload = await shelf.client.uploads.upload_file_chunked(
        file=io.BytesIO(data).getvalue(),
        filename="novel.md",
        bytes=len(data),
        mime_type="text/markdown",
        purpose="assistants",
        part_size=50_000,
    )
    assert upload.file is not None
    await shelf.client.vector_stores.files.create(store.id, file_id=upload.file.id)
    file = await polled(shelf.client, store.id, upload.file.id)
    assert file.status == "completed"
    assert await found(shelf.client, store, "day 217 of the journey") != []
