"""/ui/threads: the list, and what is searched for in it"""

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill import ids
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import InvalidRequest
from threadmill.lifecycle import RunStatus
from threadmill.runtime import Runtime
from threadmill.store import assistants, thread_search
from threadmill.store.thread_search import Wanted

router = APIRouter()

_PAGE = 50
_QUERY_MAX_CHARACTERS = 1000
_METADATA_MAX_PAIRS = 16
_FILTERS = ("q", "status", "assistant", "since", "until")
_DAY_S = 86400
_ASSISTANTS_MAX = 100
# key:value, key:"some value", "some words", word
_TERM = re.compile(r'([\w.-]{1,64}):(?:"([^"]*)"|(?!//)(\S+))|"([^"]*)"|(\S+)')


@router.get("/threads")
async def list_threads(request: Request, viewer: ViewerDep) -> Response:
    asked = request.query_params
    query = {name: asked.get(name, "").replace("\0", " ") for name in _FILTERS}
    after = asked.get("after") or None
    runtime: Runtime = request.app.state.runtime
    values: dict[str, Any] = {"found": [], "has_more": False, "problem": None, "older": ""}
    values["here"] = urlencode({name: value for name, value in query.items() if value})
    try:
        if after:
            ids.check("after", after, "thread")
        wanted = parse_search(**query)
        await _check_text(runtime, wanted)
        values["found"], values["has_more"] = await thread_search.search(
            runtime.database, viewer.project_id, wanted, after=after, limit=_PAGE
        )
    except InvalidRequest as error:
        values["problem"] = error.message
    if values["has_more"]:
        values["older"] = urlencode(query | {"after": values["found"][-1].id})
    is_filtered = any(query.values()) or after is not None
    if "hx-request" in request.headers:
        return show(request, "threads_found.html", is_filtered=is_filtered, **values)
    async with runtime.database.connection() as connection:
        known = await assistants.newest(connection, viewer.project_id, _ASSISTANTS_MAX)
    return show(
        request,
        "threads.html",
        query=query,
        statuses=[status.value for status in RunStatus],
        assistants=known,
        is_filtered=is_filtered,
        **values,
    )


def parse_search(
    q: str, status: str = "", assistant: str = "", since: str = "", until: str = ""
) -> Wanted:
    """From what people type and choose; both days are included. Raises InvalidRequest, in words
    for them."""
    words: list[str] = []
    metadata: dict[str, str] = {}
    named = {"status": status, "assistant": assistant, "before": "", "after": since, "id": ""}
    for found in _TERM.finditer(q[:_QUERY_MAX_CHARACTERS]):
        key, quoted, plain, phrase, word = found.groups()
        if key in named:
            named[key] = quoted or plain or ""
        elif key:
            metadata[key] = quoted if quoted is not None else plain
        elif word and word.startswith("thread_"):
            named["id"] = word
        else:
            words.append(phrase or word or "")
    if len(metadata) > _METADATA_MAX_PAIRS:
        raise InvalidRequest(f"At most {_METADATA_MAX_PAIRS} pairs of metadata can be searched.")
    if named["status"] and named["status"] not in list(RunStatus):
        raise InvalidRequest(f"No run has the status '{named['status'][:64]}'.")
    last_day = _day(until)
    return Wanted(
        text=" ".join(words).strip(),
        metadata=metadata,
        status=named["status"] or None,
        assistant_id=named["assistant"] or None,
        id_prefix=named["id"] or None,
        since=_day(named["after"]),
        until=_day(named["before"]) or (last_day + _DAY_S if last_day is not None else None),
    )


async def _check_text(runtime: Runtime, wanted: Wanted) -> None:
    if not wanted.text:
        return
    if not runtime.settings.thread_text_search:
        raise InvalidRequest(
            "Texts are not searched here: THREADMILL_THREAD_TEXT_SEARCH is off. Metadata, status,"
            " assistant, id and dates are."
        )
    async with runtime.database.connection() as connection:
        if not await thread_search.is_indexed(connection):
            raise InvalidRequest("The index of texts is being built. Try again in a few minutes.")


def _day(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise InvalidRequest(f"'{text[:64]}' is no date. Write it so: 2026-11-01") from None
