"""How well it finds, on the handbook of a ferry company that was written for this test.

The vectors here hash words, and take words of one subject for related. They are as good as that
list of words is: that they find the right passage says nothing about the vectors of a model. It
says that the fusion of two sides, which go wrong on different questions, is better than either.
"""

import hashlib
import json
import math
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import mean

import bm25s
import pytest

from search.library import Library
from threadmill.store import postings
from threadmill.store.database import Connection, Database
from threadmill.store.rows import VectorStore

HANDBOOK = json.loads(Path(__file__).with_name("handbook.json").read_text())
PASSAGES = [passage["text"] for passage in HANDBOOK["passages"]]
ANSWERS = {
    question["query"]: [passage["id"] for passage in HANDBOOK["passages"]].index(question["answer"])
    for question in HANDBOOK["questions"]
}
K1, B = 1.2, 0.75
DIMENSIONS = 1024

SUBJECTS = [
    "ticket tickets window clerk office opens open morning staffed shutters buy hours begins",
    "master manager charge report reports answers person pilots pilot complaints",
    "cargo freight quay ships loaded load storage tons ton wagons consignment lots handles",
    "sails vessel lies lie passengers people fit carries room boat",
    "fire burning smoke blasts bell extinguishers brigade warden gather gathers crane drills",
    "earn earns wage wages paid pay weekly week crowns overtime dockers",
    "lost forgotten left behind finds find found property things kept keep cupboard",
    "wind gale force cancel cancels cancelled sailings ferries stop port ice",
    "canteen meal serves serve eat friday fridays staff cook sittings",
    "keys key ring cabinet lock watch door",
    "year company took bought became history season",
]
SUBJECT_OF = {word: str(at) for at, words in enumerate(SUBJECTS) for word in words.split()}

Search = Callable[[str], Awaitable[list[int]]]


def by_subject(text: str, dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in re.findall(r"\w{4,}", text.lower()):
        digest = hashlib.md5(SUBJECT_OF.get(word, word).encode()).digest()
        weight = 0.5 if word in SUBJECT_OF else 1.0
        place = int.from_bytes(digest[:4], "big") % dimensions
        vector[place] += weight if digest[4] & 1 else -weight
    length = math.hypot(*vector)
    return [number / length for number in vector]


@pytest.fixture
async def library(database: Database) -> Library:
    return Library(database, by_subject)


@pytest.fixture
async def store(library: Library) -> VectorStore:
    store = await library.store(dimensions=DIMENSIONS)
    for at in range(0, len(PASSAGES), 55):
        await library.file(store, PASSAGES[at : at + 55])
    return store


async def ndcg(search: Search) -> float:
    """At 10, with one right passage for each question."""
    gains = []
    for question, answer in ANSWERS.items():
        found = (await search(question))[:10]
        gains.append(1 / math.log2(found.index(answer) + 2) if answer in found else 0.0)
    return mean(gains)


def ours(library: Library, store: VectorStore, **wanted: float) -> Search:
    async def search(question: str) -> list[int]:
        hits = await library.search([store], question, **wanted)
        return [PASSAGES.index(hit.text) for hit in hits]

    return search


def reference(corpus: list[list[str]], tokens: dict[str, list[str]]) -> Search:
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(corpus, show_progress=False)

    async def search(question: str) -> list[int]:
        known = [token for token in tokens[question] if token in index.vocab_dict]
        if not known:
            return []
        found, _ = index.retrieve([known], k=10, show_progress=False)
        return [int(at) for at in found[0]]

    return search


def plain_tokens(texts: list[str]) -> list[list[str]]:
    tokenized = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    return [list(tokens) for tokens in tokenized]


async def lexemes(connection: Connection, texts: list[str]) -> list[list[str]]:
    """The words as Postgres takes them, each as often as the text says it."""
    found = []
    for text in texts:
        cursor = await connection.execute(
            "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', %s))", [text]
        )
        found.append([word for word, times in await cursor.fetchall() for _ in range(times)])
    return found


def test_the_set_is_large_enough() -> None:
    assert len(set(PASSAGES)) >= 200
    assert len(ANSWERS) >= 50


async def test_text_search_is_no_worse_than_a_reference(
    library: Library, store: VectorStore
) -> None:
    tokens = dict(zip(ANSWERS, plain_tokens(list(ANSWERS)), strict=True))
    by_reference = await ndcg(reference(plain_tokens(PASSAGES), tokens))
    by_us = await ndcg(ours(library, store, embedding_weight=0.0))
    assert by_us >= by_reference > 0.5


async def test_text_search_weighs_as_the_reference_does(
    database: Database, library: Library, store: VectorStore
) -> None:
    """On the same words the same BM25: of every question the same ten, but for what ties."""
    async with database.connection() as connection:
        corpus = await lexemes(connection, PASSAGES)
        asked = await lexemes(connection, list(ANSWERS))
        index = bm25s.BM25(method="lucene", k1=K1, b=B)
        index.index(corpus, show_progress=False)
        cursor = await connection.execute("SELECT id, text FROM chunks")
        passages = {chunk_id: PASSAGES.index(text) for chunk_id, text in await cursor.fetchall()}
        extent = await postings.extent(connection, store.id)
        assert extent is not None
        for question, words in zip(ANSWERS, asked, strict=True):
            known = [word for word in words if word in index.vocab_dict]
            scores = index.get_scores(known)
            found = await postings.best(connection, store.id, extent, question, "english", 10, None)
            best = sorted(scores, reverse=True)[: len(found)]
            assert [float(scores[passages[one.chunk_id]]) for one in found] == pytest.approx(
                [float(score) for score in best], rel=1e-4
            )


async def test_fusion_is_no_worse_than_the_better_of_its_sides(
    library: Library, store: VectorStore
) -> None:
    by_text = await ndcg(ours(library, store, embedding_weight=0.0))
    by_vector = await ndcg(ours(library, store, text_weight=0.0))
    fused = await ndcg(ours(library, store))
    assert fused >= max(by_text, by_vector)
    assert min(by_text, by_vector) > 0.5
