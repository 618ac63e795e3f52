"""/ui/vector_stores/{store_id}/search: what is found in a store, and by which side of the search"""

import time
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill import ids
from threadmill.dashboard.attributes import parse_filter
from threadmill.dashboard.forms import number
from threadmill.dashboard.frame import show
from threadmill.dashboard.marks import Piece, marked
from threadmill.dashboard.pages.store import told
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest
from threadmill.llm.client import ModelError
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import SearchVectorStore
from threadmill.search.retrieve import DEFAULT_LANGUAGE, answer
from threadmill.store import chunks, vector_stores
from threadmill.store.chunks import Hit
from threadmill.store.rows import VectorStore

router = APIRouter(prefix="/vector_stores/{store_id}")

_FILTER_MAX_CHARACTERS = 2000


class Result(msgspec.Struct):
    hit: Hit
    pieces: list[Piece]


@router.get("/search")
async def search_store(request: Request, viewer: ViewerDep, store_id: str) -> Response:
    ids.check("vector_store_id", store_id, "vs")
    names = ("q", "n", "threshold", "vector", "text", "ranker", "where")
    asked = {name: request.query_params.get(name, "") for name in names}
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        store = await vector_stores.get(connection, viewer.project_id, store_id)
        values = await told(connection, store) | {"asked": asked, "took_s": None, "problem": None}
    results: list[Result] = []
    try:
        if vector_stores.has_expired(store):
            raise vector_stores.expired(store_id)
        if asked["q"].strip():
            started = time.perf_counter()
            results = await _search(runtime, store, _wanted(asked))
            values["took_s"] = time.perf_counter() - started
    except (InvalidRequest, ModelError) as error:
        values["problem"] = error.message
    return show(request, "store_search.html", results=results, **values)


async def _search(runtime: Runtime, store: VectorStore, wanted: SearchVectorStore) -> list[Result]:
    hits = await answer(runtime, store, wanted)
    language = store.search.get("language") or DEFAULT_LANGUAGE
    async with runtime.database.connection() as connection:
        texts = await chunks.marked(
            connection, [hit.text for hit in hits], wanted.queries(), language
        )
    return [Result(hit, marked(text)) for hit, text in zip(hits, texts, strict=True)]


def _wanted(asked: dict[str, str]) -> SearchVectorStore:
    """Checked as a search that came through the API."""
    if len(asked["where"]) > _FILTER_MAX_CHARACTERS:
        raise InvalidRequest(f"The filter is longer than {_FILTER_MAX_CHARACTERS} characters.")
    ranking: dict[str, Any] = {
        "ranker": asked["ranker"] or None,
        "score_threshold": number(asked["threshold"]),
    }
    if asked["vector"] or asked["text"]:
        ranking["hybrid_search"] = {
            "embedding_weight": number(asked["vector"] or "1"),
            "text_weight": number(asked["text"] or "1"),
        }
    body = {
        "query": asked["q"].replace("\0", " "),
        "max_num_results": number(asked["n"]),
        "ranking_options": ranking,
        "filters": parse_filter(asked["where"]),
    }
    return parse(SearchVectorStore, orjson.dumps(body))
