"""The tools that the server runs itself. The model sees them as functions of ours."""

import asyncio
import time
from typing import Any

import msgspec
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

FILE_SEARCH = "file_search"

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

_DESCRIPTION = (
    "Search the files of this conversation. Give one or several short queries, each about one thing"
    " and understandable by itself. The result holds passages, each behind its marker, such as"
    " 【4:0†name.pdf】. Where your answer uses a passage, repeat its marker exactly, right behind"
    " what it supports. Never write a marker that was not in a result."
)
_PARAMETERS: Json = {
    "type": "object",
    "properties": {
        "queries": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What to look for.",
        }
    },
    "required": ["queries"],
}


class Use(msgspec.Struct):
    """What came of one call: the output for the model, and what is kept of it."""

    output: str
    given: Json
    results: list[Json]


class Toolbox:
    """The tools of one run: which functions the model is shown, and which of them are ours."""

    def __init__(self, run: Run) -> None:
        self._run = run
        theirs = {tool["function"]["name"] for tool in run.tools if tool["type"] == "function"}
        self._own: dict[str, Json] = {}  # by the name under which the model sees it
        for tool in run.tools:
            if tool["type"] == FILE_SEARCH:
                name = FILE_SEARCH if FILE_SEARCH not in theirs else "threadmill_file_search"
                self._own[name] = tool

    @property
    def searches_files(self) -> bool:
        return any(tool["type"] == FILE_SEARCH for tool in self._own.values())

    def functions(self) -> list[Json]:
        """As the model is sent them."""
        shown = []
        for tool in self._run.tools:
            if tool["type"] == "function":
                function = {
                    name: value for name, value in tool["function"].items() if value is not None
                }
                if not function.get("strict"):
                    function.pop("strict", None)  # some servers refuse what they do not know
                shown.append({"type": "function", "function": function})
        for name in self._own:
            function = {"name": name, "description": _DESCRIPTION, "parameters": _PARAMETERS}
            shown.append({"type": "function", "function": function})
        return shown

    def choice(self, *, is_first_turn: bool) -> Any:
        """A forced tool holds for the first turn only, or the run would never come to an answer."""
        choice = self._run.tool_choice
        if choice in ("auto", "none"):
            return choice
        if not is_first_turn:
            return "auto"
        if choice == "required" or choice["type"] == "function":
            return choice
        [name] = [name for name, tool in self._own.items() if tool["type"] == choice["type"]]
        return {"type": "function", "function": {"name": name}}

    def is_own(self, name: str) -> bool:
        return name in self._own

    def opened(self, name: str, call_id: str) -> Json:
        """A call of ours as step details show it before it has results."""
        tool = self._own[name]
        return {
            "id": call_id,
            "type": FILE_SEARCH,
            FILE_SEARCH: {"ranking_options": _ranking_shown(tool), "results": []},
        }

    def options(self, name: str) -> Json:
        options: Json = self._own[name].get(FILE_SEARCH) or {}
        return options

    def text(self) -> str:
        """All that the definitions add to a prompt, to count its tokens by."""
        functions = self.functions()
        return orjson.dumps(functions).decode() if functions else ""


def _ranking_shown(tool: Json) -> Json:
    ranking = (tool.get(FILE_SEARCH) or {}).get("ranking_options") or {}
    return {
        "ranker": ranking.get("ranker") or "default_2024_08_21",
        "score_threshold": ranking.get("score_threshold") or 0.0,
    }


async def search_files(
    runtime: Runtime,
    run: Run,
    stores: list[VectorStore],
    options: Json,
    arguments: str,
    sources: Sources,
    *,
    wanted_m: int,
) -> Use:
    """Run one call of file_search. Whatever the model did wrong, it is told as the output.

    `wanted_m`: the first number of the markers, if none of the run has it yet. Raises ModelError.
    """
    queries = _queries(arguments)
    if not queries:
        return _said(arguments, 'Say what to look for: {"queries": ["..."]}.')
    if not stores:
        return _said(arguments, "There are no files to search.")
    is_small = run.model.startswith("gpt-3.5")
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
        hits = await retrieve(runtime, stores, queries, wanted)
    except ModelError as fault:  # of the embeddings: nothing is wrong with the prompt
        is_limit = fault.code == "rate_limit_exceeded"
        code: ErrorCode = "rate_limit_exceeded" if is_limit else "server_error"
        raise ModelError(code, f"The search failed: {fault.message}") from fault
    hits = _within(hits, _budget_tokens(runtime, run, is_small=is_small))
    if not hits:
        return _said(arguments, "Nothing was found.")
    m = sources.next_m(wanted_m)
    sources.add(m, [Source(hit.file_id, hit.filename, hit.text) for hit in hits])
    passages = [
        f"{citations.marker(m, n, hit.filename)}{_where(hit)}\n{hit.text.strip()}"
        for n, hit in enumerate(hits)
    ]
    output = "\n\n".join(passages)
    given = {"arguments": arguments, "output": output, "queries": queries, "m": m}
    given["hits"] = [_kept(hit) for hit in hits]
    return Use(output, given, [_result(hit) for hit in hits])


async def stores_of(runtime: Runtime, run: Run) -> tuple[list[VectorStore], list[str]]:
    """The vector stores that the run searches, and the ids of those that are the thread's.

    Stores that are gone are passed over, as is one of the assistant's that has expired. Raises
    InvalidRequest if the thread's has.
    """
    async with runtime.database.connection() as connection:
        thread = await threads.get(connection, run.project_id, run.thread_id)
        of_thread, of_run = _store_ids(thread.tool_resources), _store_ids(run.tool_resources)
        named = list(dict.fromkeys(of_run + of_thread))
        stores = await vector_stores.find(connection, run.project_id, named) if named else []
        for store in stores:
            if store.id in of_thread and vector_stores.has_expired(store):
                raise vector_stores.expired(store.id)
        stores = [store for store in stores if not vector_stores.has_expired(store)]
        await vector_stores.touch(connection, stores)
    return stores, of_thread


async def indexed(runtime: Runtime, store_ids: list[str]) -> None:
    """Wait until the files of these stores are indexed, at most `_INDEXING_MAX_S`."""
    deadline = time.monotonic() + _INDEXING_MAX_S
    while store_ids and time.monotonic() < deadline:
        async with runtime.database.connection() as connection:
            counts = await vector_stores.counts(connection, store_ids)
        if not any(count.in_progress for count in counts.values()):
            return
        await asyncio.sleep(_INDEXING_LOOK_EVERY_S)


def _store_ids(resources: Json) -> list[str]:
    return list((resources.get(FILE_SEARCH) or {}).get("vector_store_ids") or [])


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


def _budget_tokens(runtime: Runtime, run: Run, *, is_small: bool) -> int:
    budget_tokens = _RESULT_TOKENS_SMALL if is_small else _RESULT_TOKENS
    route = runtime.models.route(run.model)
    if route is None:
        return budget_tokens
    return min(budget_tokens, route.context_window_tokens // _WINDOW_SHARE)


def _within(hits: list[Hit], budget_tokens: int) -> list[Hit]:
    """The best of them, as many as the model is to read; at least one."""
    kept: list[Hit] = []
    for hit in hits:
        budget_tokens -= hit.token_count
        if budget_tokens < 0 and kept:
            break
        kept.append(hit)
    return kept


def _said(arguments: str, text: str) -> Use:
    return Use(text, {"arguments": arguments, "output": text}, [])


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
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": hit.score,
        "vector_rank": hit.vector_rank,
        "text_rank": hit.text_rank,
        "text": hit.text,
    }
