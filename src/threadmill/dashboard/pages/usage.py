"""/ui/usage: what the project has used, by day, model and assistant, and how near its limits are"""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response

from threadmill.dashboard import bars, prices, quotas
from threadmill.dashboard.days import GROUPS, Range, asked_for
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import Viewer, ViewerDep
from threadmill.dashboard.table import to_csv
from threadmill.errors import InvalidRequest
from threadmill.runtime import Runtime
from threadmill.store import projects, usage
from threadmill.store.database import Connection
from threadmill.store.limits import Caller
from threadmill.store.usage import Used

router = APIRouter(prefix="/usage")

_ROWS_MAX = 500  # shown; the download has all


class Line(msgspec.Struct):
    used: Used
    assistant: str | None
    cost: float | None


@router.get("")
async def show_usage(request: Request, viewer: ViewerDep) -> Response:
    values: dict[str, Any] = {"problem": None}
    try:
        asked = asked_for(request.query_params)
    except InvalidRequest as error:
        values["problem"] = error.message
        asked = asked_for(QueryParams())
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        used = await _used(connection, viewer, asked)
        lines = await _lines(connection, runtime, viewer, asked, used)
        held = await quotas.held(connection, await _caller(connection, viewer))
        stored = await usage.stored(connection, viewer.project_id)
    by_model = _added_by(used, "day", "model")
    costs = prices.by_day(runtime.settings.prices, by_model)
    return show(
        request,
        "usage.html",
        asked=asked,
        groups=list(GROUPS),
        lines=lines[:_ROWS_MAX],
        left_out=max(len(lines) - _ROWS_MAX, 0),
        bars=bars.bars(asked.first, asked.last, by_model, costs),
        cost=prices.cost(runtime.settings.prices, by_model),
        tokens=sum(one.prompt_tokens + one.completion_tokens for one in by_model),
        runs=sum(map(bars.ended, by_model)),
        quotas=held,
        stored=stored,
        today=usage.day_of(int(time.time())),
        **values,
    )


@router.get("/csv")
async def download(request: Request, viewer: ViewerDep) -> Response:
    asked = asked_for(request.query_params)
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        used = await _used(connection, viewer, asked)
        lines = await _lines(connection, runtime, viewer, asked, used)
    fields = [name for name in Used.__struct_fields__ if name not in ("day", *usage.GROUPS)]
    header = ["day", "model", "assistant_id", "assistant_name", *fields, "cost_dollars"]
    rows = (
        [
            *(line.used.day if "day" in asked.by else "", line.used.model or ""),
            *(line.used.assistant_id or "", line.assistant or ""),
            *(getattr(line.used, name) for name in fields),
            "" if line.cost is None else round(line.cost, 6),
        ]
        for line in lines
    )
    name = f"usage-{asked.first}-{asked.last}.csv"
    return Response(
        to_csv(header, rows),
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


async def _used(connection: Connection, viewer: Viewer, asked: Range) -> list[Used]:
    """By all that the lines are told apart by; and by models, for prices are of them."""
    return await usage.by_day(
        connection,
        asked.first,
        asked.last,
        group_by=frozenset({"model"} | {GROUPS[name] for name in asked.by if name != "day"}),
        project_ids=[viewer.project_id],
    )


def _added_by(used: list[Used], *names: str) -> list[Used]:
    return [usage.added(share) for share in _shares(used, *names)]


def _shares(used: list[Used], *names: str) -> Iterable[list[Used]]:
    shares: dict[tuple[object, ...], list[Used]] = {}
    for one in used:
        shares.setdefault(tuple(getattr(one, name) for name in names), []).append(one)
    return shares.values()


async def _lines(
    connection: Connection, runtime: Runtime, viewer: Viewer, asked: Range, used: list[Used]
) -> list[Line]:
    """Newest day first, in it what has most tokens."""
    shares = _shares(used, *(GROUPS[name] for name in asked.by))
    ids = sorted({one.assistant_id for one in used if one.assistant_id})
    names = await usage.assistant_names(connection, viewer.project_id, ids) if ids else {}
    lines = [_line(runtime, share, names, asked) for share in shares]
    lines.sort(key=lambda line: line.used.prompt_tokens + line.used.completion_tokens, reverse=True)
    if "day" in asked.by:
        lines.sort(key=lambda line: line.used.day, reverse=True)
    return lines


def _line(runtime: Runtime, share: list[Used], names: dict[str, str], asked: Range) -> Line:
    whole = usage.added(share)
    if "model" not in asked.by:
        whole.model = None
    cost = prices.cost(runtime.settings.prices, share)
    return Line(whole, names.get(whole.assistant_id or ""), cost)


async def _caller(connection: Connection, viewer: Viewer) -> Caller:
    project = await projects.get(connection, viewer.project_id)
    if viewer.key_hash is None:
        return Caller(project, None)
    return Caller(project, await projects.key_behind(connection, viewer.key_hash))
