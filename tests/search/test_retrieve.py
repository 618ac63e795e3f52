import asyncio
import json
from itertools import pairwise
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import structlog

from llm.raw_server import RawServer
from search.library import Library
from threadmill.llm.client import ModelError
from threadmill.search.retrieve import falling
from threadmill.store import chunks
from threadmill.store.chunks import Hit
from threadmill.store.database import Database

FRUIT = [
    "Apples are picked in September and kept in the cellar until spring.",
    "Pears bruise easily; they are wrapped in paper one by one.",
    "Plums are dried on racks above the stove.",
    "The orchard has a fence against deer and a gate on the north side.",
    "Cider is pressed from the apples that fell.",
]


@pytest.fixture
def library(database: Database) -> Library:
    return Library(database)


def texts(hits: list[Hit]) -> list[str]:
    return [hit.text for hit in hits]


async def test_a_hit_says_where_it_comes_from(library: Library) -> None:
    store = await library.store()
    file_id = await library.file(store, FRUIT, season=3)
    hits = await library.search([store], "how are pears wrapped", max_num_results=2)
    assert len(hits) == 2
    hit = hits[0]
    assert (hit.vector_store_id, hit.file_id, hit.filename) == (
        store.id,
        file_id,
        f"{file_id}.txt",
    )
    assert (hit.ordinal, hit.text, hit.attributes) == (1, FRUIT[1], {"season": 3})
    assert (hit.vector_rank, hit.text_rank) == (1, 1)
    assert hit.vector_score is not None
    assert hit.text_score is not None
    assert hit.score == max(hit.vector_score, hit.text_score) > 0.5


async def test_what_one_side_alone_finds_has_no_place_on_the_other(library: Library) -> None:
    store = await library.store()
    await library.file(store, FRUIT)
    hits = await library.search([store], "plums")
    assert hits[0].text == FRUIT[2]
    others = [hit for hit in hits if hit.text_rank is None]
    assert len(others) == 4  # the vectors rank every chunk
    assert all(hit.text_score is None and hit.vector_rank for hit in others)


async def test_without_vectors_the_text_is_searched(library: Library) -> None:
    store = await library.store(vectors=False)
    await library.file(store, FRUIT)
    hits = await library.search([store], "apples in the cellar")
    assert texts(hits) == [FRUIT[0], FRUIT[4]]
    assert library.embedder.asked == []
    assert hits[0].vector_score is None


@pytest.mark.parametrize(
    ("search", "wanted", "sides"),
    [
        ({}, {}, (True, True)),
        ({"mode": "hybrid"}, {"embedding_weight": 0.2}, (True, True)),
        ({"mode": "text"}, {}, (False, True)),
        ({"mode": "vector"}, {}, (True, False)),
        ({}, {"embedding_weight": 0.0, "text_weight": 1.0}, (False, True)),
        ({}, {"embedding_weight": 1.0, "text_weight": 0.0}, (True, False)),
    ],
)
async def test_mode_and_weights_choose_the_sides(
    library: Library, search: Any, wanted: Any, sides: tuple[bool, bool]
) -> None:
    store = await library.store(**search)
    await library.file(store, FRUIT)
    hits = await library.search([store], "pears", **wanted)
    assert hits[0].text == FRUIT[1]
    assert (hits[0].vector_rank is not None, hits[0].text_rank is not None) == sides
    assert bool(library.embedder.asked) == sides[0]


async def test_weights_move_the_order(library: Library) -> None:
    store = await library.store()
    vectors = [[1.0] + [0.0] * 255, [0.0, 1.0] + [0.0] * 254]
    await library.file(store, ["nothing", "pears"], vectors=vectors)

    async def embed(texts: list[str], **_: Any) -> list[list[float]]:
        return [vectors[0]] * len(texts)

    library.embedder.embed = embed  # type: ignore[method-assign]
    by_vector = await library.search([store], "pears", embedding_weight=0.9, text_weight=0.1)
    by_text = await library.search([store], "pears", embedding_weight=0.1, text_weight=0.9)
    assert texts(by_text) == ["pears", "nothing"]
    assert by_vector[0].vector_rank == 1 or by_vector[0].text_rank == 1
    assert by_text[0].score >= by_text[1].score


async def test_the_endpoint_down_leaves_the_text(library: Library) -> None:
    store = await library.store()
    await library.file(store, FRUIT)
    library.embedder.is_down = True
    with structlog.testing.capture_logs() as logs:
        hits = await library.search([store], "pears")
    assert texts(hits) == [FRUIT[1]]
    assert [line["event"] for line in logs] == ["searched_by_text_alone"]


async def test_the_endpoint_down_is_told_where_only_vectors_are_wanted(library: Library) -> None:
    store = await library.store(mode="vector")
    await library.file(store, FRUIT)
    library.embedder.is_down = True
    with pytest.raises(ModelError):
        await library.search([store], "pears")


async def test_each_store_is_asked_in_the_words_of_its_model(library: Library) -> None:
    one, other = await library.store(), await library.store(dimensions=64)
    same = await library.store()
    for store in (one, other, same):
        await library.file(
            store, [f"pears {store.id}"], vectors=None if store is not other else [[1.0] * 64]
        )
    hits = await library.search([one, other, same], "pears", "plums")
    assert len(hits) == 3
    assert sorted(library.embedder.asked) == [
        (["pears", "plums"], "hashing", 64),
        (["pears", "plums"], "hashing", 256),
    ]


async def test_vectors_of_a_wrong_size_are_no_vectors(library: Library) -> None:
    store = await library.store()
    await library.file(store, FRUIT)

    async def embed(texts: list[str], **_: Any) -> list[list[float]]:
        return [[1.0, 2.0] for _ in texts]

    library.embedder.embed = embed  # type: ignore[method-assign]
    assert texts(await library.search([store], "pears")) == [FRUIT[1]]


async def test_several_queries_and_stores_give_each_chunk_once(library: Library) -> None:
    one, other = await library.store(), await library.store()
    await library.file(one, FRUIT[:3])
    await library.file(other, FRUIT[3:])
    hits = await library.search([one, other], "apples", "apples from the cellar", "deer fence")
    assert sorted(texts(hits)) == sorted(FRUIT)
    assert set(texts(hits)[:3]) == {FRUIT[0], FRUIT[3], FRUIT[4]}


async def test_filters_hold_on_both_sides(library: Library) -> None:
    store = await library.store()
    await library.file(store, FRUIT, year=2020, kind="draft")
    kept = await library.file(store, ["Pears of 2021", "Nothing of the kind"], year=2021)
    filters = {
        "type": "and",
        "filters": [
            {"type": "gt", "key": "year", "value": 2020.5},
            {"type": "ne", "key": "kind", "value": "draft"},
        ],
    }
    for mode in ({}, {"embedding_weight": 0.0}, {"text_weight": 0.0}):
        hits = await library.search([store], "pears", filters=filters, **mode)
        assert {hit.file_id for hit in hits} == {kept}
        assert hits[0].text == "Pears of 2021"
    nothing = {"type": "eq", "key": "year", "value": "2021"}
    assert await library.search([store], "pears", filters=nothing) == []


async def test_scores_fall_from_1_to_0_and_the_threshold_cuts(library: Library) -> None:
    store = await library.store()
    await library.file(store, FRUIT)
    hits = await library.search([store], "apples and pears in the orchard")
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert scores[0] > scores[-1]
    threshold = scores[1]
    cut = await library.search(
        [store], "apples and pears in the orchard", score_threshold=threshold
    )
    assert texts(cut) == [hit.text for hit in hits if hit.score >= threshold]


async def test_what_fits_well_passes_a_threshold_of_a_half(library: Library) -> None:
    for vectors in (True, False):
        store = await library.store(vectors=vectors)
        await library.file(store, FRUIT)
        hits = await library.search([store], "how are pears wrapped", score_threshold=0.5)
        assert texts(hits)[:1] == [FRUIT[1]]


async def test_no_more_than_wanted(library: Library) -> None:
    store = await library.store()
    await library.file(store, [f"pears {at}" for at in range(120)])
    for wanted in (1, 7, 50):
        hits = await library.search([store], "pears", max_num_results=wanted)
        assert len({hit.chunk_id for hit in hits}) == len(hits) == wanted


@pytest.mark.parametrize("query", ["", " ", "\x00", "\ud800", "' OR 1=1", "%s %(x)s", "the"])
async def test_any_query_can_be_asked(library: Library, query: str) -> None:
    store = await library.store()
    await library.file(store, FRUIT)
    await library.search([store], query)


async def test_an_empty_and_a_deleted_store_hold_nothing(
    library: Library, database: Database
) -> None:
    store = await library.store()
    assert await library.search([store], "pears") == []
    async with database.connection() as connection:
        await connection.execute("DELETE FROM vector_stores")
    assert await library.search([store], "pears") == []


async def test_files_removed_meanwhile_are_left_out(library: Library, database: Database) -> None:
    store = await library.store()
    file_ids = [await library.file(store, ["pears"] * 20) for _ in range(5)]

    async def remove() -> None:
        for file_id in file_ids:
            async with database.transaction() as connection:
                await chunks.remove_file(connection, store.id, file_id)

    await asyncio.gather(remove(), *(library.search([store], "pears") for _ in range(10)))
    assert await library.search([store], "pears") == []


# --- scores ---


@hypothesis.given(st.lists(st.floats(0, 1), max_size=30))
def test_falling_scores_keep_their_mean(scores: list[float]) -> None:
    fallen = falling(scores)
    assert all(one >= other for one, other in pairwise(fallen))
    assert sum(fallen) == pytest.approx(sum(scores))
    if scores == sorted(scores, reverse=True):
        assert fallen == scores


# --- reranking ---


@pytest.fixture
async def reranker() -> Any:
    reranker = RawServer()
    server = await asyncio.start_server(reranker.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reranker.base_url = f"http://127.0.0.1:{port}"
    yield reranker
    server.close()


def answered(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def ranked(*scores: float) -> bytes:
    results = [{"index": at, "relevance_score": score} for at, score in enumerate(scores)]
    return answered(json.dumps({"results": results}).encode())


async def test_a_rerank_endpoint_has_the_last_word(library: Library, reranker: RawServer) -> None:
    store = await library.store(rerank_url=f"{reranker.base_url}/rerank", rerank_model="judge")
    await library.file(store, FRUIT)
    reranker.answer(ranked(0.1, 0.2, 0.9, 0.3))
    hits = await library.search([store], "apples", max_num_results=3, score_threshold=0.15)
    sent = json.loads(reranker.requests[0].split(b"\r\n\r\n")[1])
    assert (sent["model"], sent["query"], sent["top_n"]) == ("judge", "apples", 5)
    assert [hit.score for hit in hits] == [0.9, 0.3, 0.2]
    assert texts(hits) == [sent["documents"][2], sent["documents"][3], sent["documents"][1]]


async def test_logits_become_scores(library: Library, reranker: RawServer) -> None:
    store = await library.store(rerank_url=reranker.base_url)
    await library.file(store, FRUIT[:3])
    reranker.answer(ranked(-2.0, 0.0, 7.5))
    hits = await library.search([store], "apples")
    assert [round(hit.score, 2) for hit in hits] == [1.0, 0.5, 0.12]


@pytest.mark.parametrize(
    "answer",
    [
        answered(b"{}"),
        answered(b"no json"),
        answered(b'{"results": [{"index": 77, "relevance_score": 1}]}'),
        answered(b'{"results": []}', "500 Oh"),
        answered(b"", "302 Found\r\nLocation: http://127.0.0.1:1/"),
        b"",
    ],
)
async def test_a_reranker_that_fails_leaves_the_order(
    library: Library, reranker: RawServer, answer: bytes
) -> None:
    plain, store = await library.store(), await library.store(rerank_url=reranker.base_url)
    await library.file(plain, FRUIT)
    await library.file(store, FRUIT)
    reranker.answer(answer)
    with structlog.testing.capture_logs() as logs:
        hits = await library.search([store], "apples")
    assert [line["event"] for line in logs] == ["not_reranked"]
    assert texts(hits) == texts(await library.search([plain], "apples"))
