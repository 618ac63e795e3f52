"""The tool file_search: the model asks, passages of the run's vector stores are the answer."""

import asyncio
import time
from typing import Any

import orjson

from threadmill.llm.client import ErrorCode, ModelError
from threadmill.runs import citations
from threadmill.runs.citations import Source, Sources
from threadmill.runtime import Runtime
from threadmill.search.retrieve import Wanted, retrieve
from threadmill.store import threads, vector_stores
from threadmill.store.chunks import Hit
from threadmill.store.rows import Run, VectorStore

Json = dict[str, Any]

NAME = "file_search"
FUNCTION: Json = {
    "description": "Search the files of this conversation. Give one or several short queries, each"
    " about one thing and understandable by itself. The result holds passages, each behind its"
    " marker, such as 【4:0†name.pdf】. Where your answer uses a passage, repeat its marker"
    " exactly, right behind what it supports. Never write a marker that was not in a result.",
    "parameters": {
        "type": "object",
        "properties": {
            "queries": {
                "type": "array",
                "items": {"type": "string"},
                "description": "What to look for.",
            }
        },
        "required": ["queries"],
    },
}

# Defaults of the original; the smaller ones are those of gpt-3.5-turbo.
_RESULTS = 20
_RESULTS_SMALL = 5
_RESULT_TOKENS = 16_000
_RESULT_TOKENS_SMALL = 4_000
_WINDOW_SHARE = 4  # at most so much of the model's window is for one search: local ones are small
_INDEXING_MAX_S = 60.0  # that a run waits for files just attached to its thread
_INDEXING_LOOK_EVERY_S = 0.1
_QUERIES_MAX = 8
_QUERY_MAX_CHARACTERS = 4_000


class FileSearch:
    """The tool in one execution of a run."""

    def __init__(self, runtime: Runtime, run: Run, sources: Sources) -> None:
        self._runtime = runtime
        self._run = run
        self._sources = sources
        self._stores: list[VectorStore] = []

    async def find_stores(self) -> list[str]:
        """Find the stores to search: the assistant's and the thread's. The ids of the thread's.

        Stores that are gone are passed over, as is one of the assistant's that has expired. Raises
        InvalidRequest if the thread's has.
        """
        run = self._run
        async with self._runtime.database.connection() as connection:
            thread = await threads.get(connection, run.project_id, run.thread_id)
            of_thread, of_run = _store_ids(thread.tool_resources), _store_ids(run.tool_resources)
            named = list(dict.fromkeys(of_run + of_thread))
            stores = await vector_stores.find(connection, run.project_id, named) if named else []
            for store in stores:
                if store.id in of_thread and vector_stores.has_expired(store):
                    raise vector_stores.expired(store.id)
            self._stores = [store for store in stores if not vector_stores.has_expired(store)]
            await vector_stores.touch(connection, self._stores)
        return of_thread

    async def wait_for_files(self, store_ids: list[str]) -> None:
        """Until the files of these stores are indexed, at most `_INDEXING_MAX_S`."""
        deadline = time.monotonic() + _INDEXING_MAX_S
        while store_ids and time.monotonic() < deadline:
            async with self._runtime.database.connection() as connection:
                counts = await vector_stores.counts(connection, store_ids)
            if not any(count.in_progress for count in counts.values()):
                return
            await asyncio.sleep(_INDEXING_LOOK_EVERY_S)

    async def use(self, shown: Json, options: Json, arguments: str, *, wanted_m: int) -> Json:
        """Run one call and put its results into what the step shows of it; what is kept of the
        call. Whatever the model did wrong, it is told as the output.

        `wanted_m`: the first number of the markers, if none of the run has it yet. Raises
        ModelError.
        """
        queries = _queries(arguments)
        if not queries:
            return _said(arguments, 'Say what to look for: {"queries": ["..."]}.')
        if not self._stores:
            return _said(arguments, "There are no files to search.")
        hits = await self._search(queries, options)
        if not hits:
            return _said(arguments, "Nothing was found.")
        shown["results"] = [_result(hit) for hit in hits]
        m = self._sources.next_m(wanted_m)
        self._sources.add(m, [Source(hit.file_id, hit.filename, hit.text) for hit in hits])
        passages = [
            f"{citations.marker(m, n, hit.filename)}{_where(hit)}\n{hit.text.strip()}"
            for n, hit in enumerate(hits)
        ]
        given = {
            "arguments": arguments,
            "output": "\n\n".join(passages),
            "queries": queries,
            "m": m,
        }
        given["hits"] = [_kept(hit) for hit in hits]
        return given

    async def _search(self, queries: list[str], options: Json) -> list[Hit]:
        is_small = self._run.model.startswith("gpt-3.5")
        ranking = options.get("ranking_options") or {}
        hybrid = ranking.get("hybrid_search") or {}
        wanted = Wanted(
            max_num_results=options.get("max_num_results")
            or (_RESULTS_SMALL if is_small else _RESULTS),
            score_threshold=ranking.get("score_threshold") or 0.0,
            embedding_weight=hybrid.get("embedding_weight"),
            text_weight=hybrid.get("text_weight"),
        )
        try:
            hits = await retrieve(self._runtime, self._stores, queries, wanted)
        except ModelError as fault:  # of the embeddings: nothing is wrong with the prompt
            is_limit = fault.code == "rate_limit_exceeded"
            code: ErrorCode = "rate_limit_exceeded" if is_limit else "server_error"
            raise ModelError(code, f"The search failed: {fault.message}") from fault
        return _within(hits, self._budget_tokens(is_small=is_small))

    def _budget_tokens(self, *, is_small: bool) -> int:
        budget_tokens = _RESULT_TOKENS_SMALL if is_small else _RESULT_TOKENS
        route = self._runtime.models.route(self._run.model)
        if route is None:
            return budget_tokens
        return min(budget_tokens, route.context_window_tokens // _WINDOW_SHARE)


def opened(tool: Json) -> Json:
    """A call as its step shows it before it has results."""
    ranking = (tool.get(NAME) or {}).get("ranking_options") or {}
    return {
        "ranking_options": {
            "ranker": ranking.get("ranker") or "default_2024_08_21",
            "score_threshold": ranking.get("score_threshold") or 0.0,
        },
        "results": [],
    }


def _store_ids(resources: Json) -> list[str]:
    return list((resources.get(NAME) or {}).get("vector_store_ids") or [])


def _queries(arguments: str) -> list[str]:
    """Models write all kinds of things: a list, one string, another name."""
    try:
        sent = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return []
    if isinstance(sent, dict):
        sent = sent.get("queries") or sent.get("query") or []
    if isinstance(sent, str):
        sent = [sent]
    if not isinstance(sent, list):
        return []
    texts = [one.replace("\0", " ") for one in sent if isinstance(one, str)]  # Postgres has no NUL
    return [text[:_QUERY_MAX_CHARACTERS] for text in texts if text.strip()][:_QUERIES_MAX]


def _within(hits: list[Hit], budget_tokens: int) -> list[Hit]:
    """The best of them, as many as the model is to read; at least one."""
    kept: list[Hit] = []
    for hit in hits:
        budget_tokens -= hit.token_count
        if budget_tokens < 0 and kept:
            break
        kept.append(hit)
    return kept


def _said(arguments: str, text: str) -> Json:
    return {"arguments": arguments, "output": text}


def _where(hit: Hit) -> str:
    if hit.page is not None:
        return f" (page {hit.page})"
    return f" ({hit.heading})" if hit.heading else ""


def _result(hit: Hit) -> Json:
    return {
        "file_id": hit.file_id,
        "file_name": hit.filename,
        "score": hit.score,
        "attributes": hit.attributes,
        "content": [{"type": "text", "text": hit.text}],
    }


def _kept(hit: Hit) -> Json:
    """For whoever looks at the run later; the store may have changed by then."""
    return {
        "chunk_id": hit.chunk_id,
        "vector_store_id": hit.vector_store_id,
        "ordinal": hit.ordinal,
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": hit.score,
        "vector_rank": hit.vector_rank,
        "text_rank": hit.text_rank,
        "text": hit.text,
    }
