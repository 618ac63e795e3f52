"""/usage: what the caller's project has used, by day; the same for all projects is under
/organization."""

import re
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams

from threadmill.api.deps import Json, ProjectId, RuntimeDep
from threadmill.errors import InvalidRequest
from threadmill.schemas import objects
from threadmill.schemas.queries import choice, whole
from threadmill.store import usage
from threadmill.store.database import Connection
from threadmill.store.retention import DAY_S

router = APIRouter()

_DAYS_DEFAULT, _DAYS_MAX = 7, 31
_TIME_MAX = 4_102_444_800  # the year 2100
# Filters of the original by which we could not tell anything apart: passing over them would
# answer another question than was asked.
_UNKNOWN = ("api_key_ids", "user_ids", "batch")


class Asked(msgspec.Struct):
    first_s: int  # midnight UTC
    days: int
    has_more: bool
    group_by: frozenset[str]
    project_ids: list[str] | None
    assistant_ids: list[str] | None
    models: list[str] | None


@router.get("/usage")
async def retrieve_usage(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    """By assistant and model, and how much the project stores now."""
    wanted = asked(request.query_params, default_groups=frozenset({"assistant_id", "model"}))
    wanted.project_ids = [project_id]
    async with runtime.database.connection() as connection:
        stored = await usage.stored(connection, project_id)
        return Json(await answer(connection, wanted) | {"storage": objects.plain(stored)})


def asked(query: QueryParams, *, default_groups: frozenset[str]) -> Asked:
    """The last days, unless the query says others; `page` is the first second of a later day."""
    for name in _UNKNOWN:
        if name in query or f"{name}[]" in query:
            raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name)
    choice(query, "bucket_width", ["1d"])
    limit = whole(query, "limit", default=_DAYS_DEFAULT, largest=_DAYS_MAX)
    now = int(time.time())
    start_s = whole(query, "start_time", default=now - (limit - 1) * DAY_S, largest=_TIME_MAX)
    end_s = whole(query, "end_time", default=now + 1, largest=_TIME_MAX)
    first_s = _page(query) or start_s - start_s % DAY_S
    days = max(-(-(end_s - first_s) // DAY_S), 0)
    groups = _all(query, "group_by")
    for group in groups or []:
        choice({"group_by": group}, "group_by", list(usage.GROUPS))
    return Asked(
        first_s,
        min(days, limit),
        days > limit,
        frozenset(groups) if groups else default_groups,
        _all(query, "project_ids"),
        _all(query, "assistant_ids"),
        _all(query, "models"),
    )


async def answer(connection: Connection, wanted: Asked) -> dict[str, Any]:
    """A bucket for each day, be it empty."""
    first = usage.day_of(wanted.first_s)
    found = await usage.by_day(
        connection,
        first,
        first + timedelta(days=wanted.days - 1),
        group_by=wanted.group_by,
        project_ids=wanted.project_ids,
        assistant_ids=wanted.assistant_ids,
        models=wanted.models,
    )
    buckets = []
    for number in range(wanted.days):
        start_s = wanted.first_s + number * DAY_S
        day = first + timedelta(days=number)
        buckets.append(
            {
                "object": "bucket",
                "start_time": start_s,
                "end_time": start_s + DAY_S,
                "results": [_result(used) for used in found if used.day == day],
            }
        )
    more = str(wanted.first_s + wanted.days * DAY_S) if wanted.has_more else None
    return {
        "object": "page",
        "data": buckets,
        "has_more": wanted.has_more,
        "next_page": more,
    }


def _result(used: usage.Used) -> dict[str, Any]:
    """The original's fields, then ours."""
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": used.prompt_tokens,
        "output_tokens": used.completion_tokens,
        "input_cached_tokens": used.cached_tokens,
        "num_model_requests": used.model_requests,
        "project_id": used.project_id,
        "model": used.model,
        "assistant_id": used.assistant_id,
        "output_reasoning_tokens": used.reasoning_tokens,
        "num_file_search_calls": used.file_search_calls,
        "num_code_interpreter_calls": used.code_interpreter_calls,
        "runs": {
            "completed": used.runs_completed,
            "incomplete": used.runs_incomplete,
            "failed": used.runs_failed,
            "cancelled": used.runs_cancelled,
            "expired": used.runs_expired,
        },
    }


def _page(query: Mapping[str, str]) -> int | None:
    page = query.get("page")
    if not page:
        return None
    if not re.fullmatch("[0-9]{1,10}", page) or int(page) % DAY_S:
        raise InvalidRequest(
            "Invalid 'page': expected the 'next_page' of an earlier answer.",
            param="page",
            code="invalid_value",
        )
    return int(page)


def _all(query: QueryParams, name: str) -> list[str] | None:
    """Values that are repeated, with brackets or without; None if there are none."""
    return [*query.getlist(f"{name}[]"), *query.getlist(name)] or None
