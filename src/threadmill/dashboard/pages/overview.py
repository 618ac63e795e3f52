"""/ui/: what runs, waits and fails right now, and what the last weeks have used"""

import time
from datetime import timedelta
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill.dashboard import bars, prices
from threadmill.dashboard.frame import Frame, show
from threadmill.dashboard.live import Live, Shown
from threadmill.dashboard.session import ViewerDep
from threadmill.runtime import Runtime
from threadmill.store import overview, usage
from threadmill.store.database import Connection
from threadmill.store.overview import FirstToken, Now
from threadmill.store.usage import Used

router = APIRouter()

_DAYS = 30
_FIGURES_HOLD_FOR_S = 30.0
_FIGURES_MAX = 200  # projects whose figures are remembered
_SAMPLED_FOR_S = 3600
_MODELS_MAX = 6


class Figures(msgspec.Struct):
    """What takes longer to find out, and changes slowly."""

    workers: int
    first_token: FirstToken
    ended: int  # runs of today and yesterday
    went_wrong: int
    tokens: int  # today
    cost: float | None
    bars: list[bars.Bar]
    models: list[tuple[str, int]]  # and their tokens, most first


class Seen(msgspec.Struct):
    now: Now
    figures: Figures
    minute: int  # in which "2 min ago" is true


class Overview:
    """As a topic: its subjects are projects."""

    def __init__(self, runtime: Runtime, frame: Frame) -> None:
        self._runtime = runtime
        self._frame = frame
        self._figures: dict[str, tuple[float, Figures]] = {}

    async def look(self, connection: Connection, subjects: list[str]) -> dict[str, Seen]:
        found = await overview.now(connection, subjects)
        minute = int(time.time()) // 60
        return {
            project_id: Seen(now, await self._figures_of(connection, project_id), minute)
            for project_id, now in found.items()
        }

    async def show(self, subject: str, seen: Seen) -> Shown:
        return Shown(
            {
                name: self._frame.part(f"overview_{name}.html", now=seen.now, figures=seen.figures)
                for name in ("tiles", "now", "failed")
            }
        )

    async def _figures_of(self, connection: Connection, project_id: str) -> Figures:
        until, figures = self._figures.get(project_id, (0.0, None))
        if figures is None or until < time.monotonic():
            figures = await self._find_out(connection, project_id)
            if len(self._figures) >= _FIGURES_MAX:
                self._figures.clear()
            self._figures[project_id] = time.monotonic() + _FIGURES_HOLD_FOR_S, figures
        return figures

    async def _find_out(self, connection: Connection, project_id: str) -> Figures:
        now = int(time.time())
        today = usage.day_of(now)
        first = today - timedelta(days=_DAYS - 1)
        used = await usage.by_day(
            connection,
            first,
            today,
            group_by=frozenset({"model"}),
            project_ids=[project_id],
        )
        costs = prices.by_day(self._runtime.settings.prices, used)
        newest = [one for one in used if one.day >= today - timedelta(days=1)]
        drawn = bars.bars(first, today, used, costs)
        return Figures(
            await overview.workers_alive(connection),
            await overview.first_token(connection, project_id, now - _SAMPLED_FOR_S),
            sum(map(bars.ended, newest)),
            sum(map(bars.went_wrong, newest)),
            drawn[-1].tokens,
            costs.get(today),
            drawn,
            _models(used),
        )


@router.get("/")
async def show_overview(request: Request, viewer: ViewerDep) -> Response:
    runtime: Runtime = request.app.state.runtime
    topic: Overview = request.app.state.overview
    async with runtime.database.connection() as connection:
        seen = await topic.look(connection, [viewer.project_id])
    of_project = seen[viewer.project_id]
    values: dict[str, Any] = {"now": of_project.now, "figures": of_project.figures}
    return show(request, "overview.html", **values)


@router.get("/live")
async def follow_overview(request: Request, viewer: ViewerDep) -> Response:
    live: Live = request.app.state.live
    return live.follow(viewer, request.app.state.overview, viewer.project_id)


def _models(used: list[Used]) -> list[tuple[str, int]]:
    """The largest; the others together."""
    sums: dict[str, int] = {}
    for one in used:
        model = one.model or ""
        sums[model] = sums.get(model, 0) + one.prompt_tokens + one.completion_tokens
    most = sorted(((name, tokens) for name, tokens in sums.items() if tokens), key=_tokens)
    rest = sum(tokens for _, tokens in most[_MODELS_MAX:])
    return most[:_MODELS_MAX] + ([("others", rest)] if rest else [])


def _tokens(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]
