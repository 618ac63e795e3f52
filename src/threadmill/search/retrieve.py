"""Finding the chunks that answer a question.

Each query is searched by vectors and by words, and the rankings are fused by the places in them
(reciprocal rank fusion, Cormack, Clarke and Büttcher, SIGIR 2009): how good the twentieth is by
cosine cannot be compared with how good it is by BM25, that both have it among their first can.

Such a sum means nothing to a client, and clients send thresholds such as 0.5, written for
similarities. So what leaves is a similarity from 0 to 1, the greater of these two:

- by vectors (1 + cosine) / 2, which is what most search engines make of a cosine;
- by words 1 - 4^-x, where x is BM25 in proportion to a chunk of mean length that says every word of
  the query once. Such a chunk has 0.75, one that has half of what there is to get has 0.5.

The order stays that of the fusion: where a better place has a smaller similarity, all concerned get
their mean (isotonic regression). With a rerank endpoint, order and score are that one's.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import orjson
import structlog

from threadmill.llm.client import ModelError
from threadmill.llm.rerank import RerankError, rerank
from threadmill.runtime import Runtime
from threadmill.schemas.requests import SearchRankingOptions, SearchVectorStore
from threadmill.store import chunks, filters, postings, vectors
from threadmill.store.chunks import Hit
from threadmill.store.database import Database
from threadmill.store.filters import Condition
from threadmill.store.rows import VectorStore

log = structlog.get_logger()

_RANK_CONSTANT = 60  # of the fusion: how little the first places stand out
_DEPTH_MIN = 20
_DEPTH_OF_WANTED = 4
_RERANKED_MAX = 50
DEFAULT_LANGUAGE = "english"


class Wanted(msgspec.Struct):
    max_num_results: int = 10
    score_threshold: float = 0.0
    filters: dict[str, object] | None = None
    embedding_weight: float | None = None
    text_weight: float | None = None

    @property
    def depth(self) -> int:
        return max(_DEPTH_MIN, _DEPTH_OF_WANTED * self.max_num_results)


async def answer(runtime: Runtime, store: VectorStore, asked: SearchVectorStore) -> list[Hit]:
    """What a search of one store asks for. Raises ModelError."""
    ranking = asked.ranking_options or SearchRankingOptions()
    if ranking.ranker == "none":
        store = msgspec.structs.replace(store, search={**store.search, "rerank_url": None})
    weights = ranking.hybrid_search
    wanted = Wanted(
        max_num_results=asked.max_num_results or 10,
        score_threshold=ranking.score_threshold or 0.0,
        filters=asked.normal_filters(),
        embedding_weight=weights.embedding_weight if weights else None,
        text_weight=weights.text_weight if weights else None,
    )
    return await retrieve(runtime, [store], asked.queries(), wanted)


async def retrieve(
    runtime: Runtime, stores: list[VectorStore], queries: list[str], wanted: Wanted
) -> list[Hit]:
    """The best chunks of all these stores for any of the queries, best first.

    Raises ModelError when the vectors that the search depends on cannot be had.
    """
    queries = [query.encode("utf-8", "replace").decode() for query in queries]
    condition = filters.compiled(wanted.filters) if wanted.filters else None
    embedding = _Embedding(runtime, queries)
    found = await asyncio.gather(
        *(_search(runtime, store, queries, wanted, condition, embedding) for store in stores)
    )
    candidates = _fused(list(found), len(queries), wanted)
    reranker = next((store for store in stores if store.search.get("rerank_url")), None)
    count = wanted.max_num_results
    hits = await _hits(
        runtime.database, candidates[: max(count, _RERANKED_MAX) if reranker else count], found
    )
    _score(hits)
    if reranker is not None and hits:
        hits = await _reranked(reranker, queries, hits)
    return [hit for hit in hits if hit.score >= wanted.score_threshold][:count]


# --- both sides of one store ---


class _Near(NamedTuple):
    score: float
    chunk_id: int


class _Found(msgspec.Struct):
    """Of one store, for each query in turn; a similarity from 0 to 1 for each chunk."""

    store_id: str
    by_text: list[list[_Near]]
    by_vector: list[list[_Near]]
    vectors: list[str]  # of the queries, in this store's model


class _Embedding:
    """The queries' vectors, asked for once by every model that a store needs."""

    def __init__(self, runtime: Runtime, queries: list[str]) -> None:
        self._runtime = runtime
        self._queries = queries
        self._asked: dict[tuple[str | None, int | None], asyncio.Task[list[list[float]]]] = {}

    async def vectors(self, store: VectorStore) -> list[str]:
        """As Postgres reads them. Raises ModelError."""
        key = store.embedding_model, store.embedding_dimensions
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(
                self._runtime.models.embed(self._queries, model=key[0], dimensions=key[1])
            )
        embedded = await self._asked[key]
        if any(len(vector) != store.embedding_dimensions for vector in embedded):
            raise ModelError(
                "server_error",
                f"The embedding model gave {len(embedded[0])} dimensions; those of vector store"
                f" '{store.id}' have {store.embedding_dimensions}.",
            )
        return [orjson.dumps(vector).decode() for vector in embedded]


async def _search(
    runtime: Runtime,
    store: VectorStore,
    queries: list[str],
    wanted: Wanted,
    condition: Condition | None,
    embedding: _Embedding,
) -> _Found:
    mode = store.search.get("mode") or "hybrid"
    with_vectors = store.embedding_model is not None and mode != "text"
    with_vectors = with_vectors and (wanted.embedding_weight != 0 or wanted.text_weight == 0)
    with_text = not with_vectors or (mode != "vector" and wanted.text_weight != 0)
    found = _Found(store.id, [], [], [])

    async def by_text() -> None:
        found.by_text = await _by_text(runtime.database, store, queries, wanted.depth, condition)

    async def by_vector() -> None:
        try:
            found.vectors = await embedding.vectors(store)
        except ModelError as error:
            if not with_text:
                raise
            log.warning("searched_by_text_alone", vector_store=store.id, error=error.message)
            return
        found.by_vector = await _by_vector(
            runtime.database, store, found.vectors, wanted.depth, condition
        )

    # The text is searched while the endpoint makes vectors.
    sides = [side for side, on in ((by_text, with_text), (by_vector, with_vectors)) if on]
    await asyncio.gather(*(side() for side in sides))
    return found


async def _by_text(
    database: Database,
    store: VectorStore,
    queries: list[str],
    depth: int,
    condition: Condition | None,
) -> list[list[_Near]]:
    language = store.search.get("language") or DEFAULT_LANGUAGE
    async with database.connection() as connection:
        extent = await postings.extent(connection, store.id)
        if extent is None:
            return []
        return [
            [
                _Near(1 - 4**-found.proportion, found.chunk_id)
                for found in await postings.best(
                    connection, store.id, extent, query, language, depth, condition
                )
            ]
            for query in queries
        ]


async def _by_vector(
    database: Database,
    store: VectorStore,
    embedded: list[str],
    depth: int,
    condition: Condition | None,
) -> list[list[_Near]]:
    assert store.embedding_dimensions is not None
    async with database.transaction() as connection:
        return [
            [
                _Near(_similarity(1 - near.distance), near.chunk_id)
                for near in await vectors.nearest(
                    connection, store.id, store.embedding_dimensions, vector, depth, condition
                )
            ]
            for vector in embedded
        ]


def _similarity(cosine: float) -> float:
    return min(max((1 + cosine) / 2, 0.0), 1.0)


# --- putting together ---


class _Candidate(msgspec.Struct):
    chunk_id: int
    store_id: str
    fused: float = 0.0
    vector_rank: int | None = None
    text_rank: int | None = None
    text_score: float | None = None


def _fused(found: list[_Found], queries: int, wanted: Wanted) -> list[_Candidate]:
    """The stores' rankings by one side for one query become one; all of those are then fused."""
    # A side whose weight is 0 but which was searched is the only one there is.
    vector_weight, text_weight = wanted.embedding_weight or 1.0, wanted.text_weight or 1.0
    candidates: dict[int, _Candidate] = {}
    for at in range(queries):
        for rank, near, store_id in _ranked(found, "by_vector", at, wanted.depth):
            candidate = candidates.setdefault(near.chunk_id, _Candidate(near.chunk_id, store_id))
            candidate.fused += vector_weight / (_RANK_CONSTANT + rank)
            candidate.vector_rank = min(rank, candidate.vector_rank or rank)
        for rank, near, store_id in _ranked(found, "by_text", at, wanted.depth):
            candidate = candidates.setdefault(near.chunk_id, _Candidate(near.chunk_id, store_id))
            candidate.fused += text_weight / (_RANK_CONSTANT + rank)
            candidate.text_rank = min(rank, candidate.text_rank or rank)
            candidate.text_score = max(near.score, candidate.text_score or 0.0)
    return sorted(candidates.values(), key=lambda each: (-each.fused, each.chunk_id))


def _ranked(
    found: list[_Found], side: str, at: int, depth: int
) -> Iterable[tuple[int, _Near, str]]:
    """Place, chunk and store, by one side for one query."""
    together = [
        (near, one.store_id)
        for one in found
        if getattr(one, side)
        for near in getattr(one, side)[at]
    ]
    together.sort(key=lambda pair: (-pair[0].score, pair[0].chunk_id))
    return ((rank, *pair) for rank, pair in enumerate(together[:depth], 1))


async def _hits(
    database: Database, candidates: list[_Candidate], found: Iterable[_Found]
) -> list[Hit]:
    """In the candidates' order. A chunk that only its words brought has its cosine too."""
    if not candidates:
        return []
    by_id: dict[int, Hit] = {}
    async with database.connection() as connection:
        for one in found:
            chunk_ids = [each.chunk_id for each in candidates if each.store_id == one.store_id]
            if chunk_ids:
                hits = await chunks.hits(connection, one.store_id, chunk_ids, one.vectors)
                by_id |= {hit.chunk_id: hit for hit in hits}
    ordered = []
    for candidate in candidates:
        hit = by_id.get(candidate.chunk_id)
        if hit is None:
            continue  # deleted since
        if hit.vector_score is not None:
            hit.vector_score = _similarity(hit.vector_score)
        hit.vector_rank, hit.text_rank = candidate.vector_rank, candidate.text_rank
        hit.text_score = candidate.text_score
        ordered.append(hit)
    return ordered


def _score(hits: list[Hit]) -> None:
    scores = [max(hit.vector_score or 0.0, hit.text_score or 0.0) for hit in hits]
    for hit, score in zip(hits, falling(scores), strict=True):
        hit.score = score


def falling(scores: list[float]) -> list[float]:
    """The nearest scores that never rise: pool adjacent violators."""
    blocks: list[tuple[float, int]] = []  # mean and length
    for score in scores:
        mean, length = score, 1
        while blocks and blocks[-1][0] < mean:
            before, count = blocks.pop()
            mean = (mean * length + before * count) / (length + count)
            length += count
        blocks.append((mean, length))
    return [mean for mean, length in blocks for _ in range(length)]


# --- reranking ---


async def _reranked(store: VectorStore, queries: list[str], hits: list[Hit]) -> list[Hit]:
    url, model = store.search["rerank_url"], store.search.get("rerank_model")
    texts = [hit.text for hit in hits]
    try:
        answers = await asyncio.gather(*(rerank(url, model, query, texts) for query in queries))
    except RerankError as error:
        log.warning("not_reranked", vector_store=store.id, error=str(error))
        return hits
    relevances = [-math.inf] * len(hits)
    for answer in answers:
        for index, relevance in answer:
            relevances[index] = max(relevances[index], relevance)
    for hit, relevance in zip(hits, _on_scale(relevances), strict=True):
        hit.score = relevance
    return sorted(hits, key=lambda hit: -hit.score)


def _on_scale(relevances: list[float]) -> list[float]:
    """From 0 to 1. Some models give logits, which may be any number."""
    known = [relevance for relevance in relevances if relevance != -math.inf]
    if all(0 <= relevance <= 1 for relevance in known):
        return [max(relevance, 0.0) for relevance in relevances]
    return [1 / (1 + math.exp(min(-relevance, 700.0))) for relevance in relevances]
