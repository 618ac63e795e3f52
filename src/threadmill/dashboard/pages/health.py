"""/ui/health: what `threadmill doctor` says of this server, and what to type where it fails"""

import asyncio
import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from threadmill import doctor
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.doctor import Finding
from threadmill.runtime import Runtime
from threadmill.store import overview
from threadmill.store.database import DatabaseError

router = APIRouter(prefix="/health")

_BELIEVED_FOR_S = 60.0
# What costs nobody anything to look at: no tokens, no download.
_CHEAP = ("database", "model", "docker", "disk")


class Health:
    """However many ask, each thing is looked at once a minute."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # The embedded database is up: it is this process's own, so look at it as at any other.
        self._settings = runtime.settings.model_copy(update={"database_url": runtime.database.url})
        self._found: dict[str, tuple[float, list[Finding]]] = {}
        self._looking = asyncio.Lock()

    async def findings(self, subjects: tuple[str, ...] = doctor.SUBJECTS) -> list[Finding]:
        async with self._looking:
            now = time.monotonic()
            old = [one for one in subjects if self._found.get(one, (0.0, []))[0] <= now]
            fresh = await asyncio.gather(*(doctor.findings_of(one, self._settings) for one in old))
            for subject, found in zip(old, fresh, strict=True):
                self._found[subject] = time.monotonic() + _BELIEVED_FOR_S, found
        return [one for subject in subjects for one in self._found[subject][1]] + [
            await self._workers()
        ]

    async def _workers(self) -> Finding:
        try:
            async with self._runtime.database.connection() as connection:
                count = await overview.workers_alive(connection)
        except DatabaseError:
            return Finding("processes", "-", "Not looked at, as there is no database.")
        if not count:
            text = "Nobody executes runs: they wait. Type: threadmill worker"
            return Finding("processes", "FAIL", text)
        return Finding("processes", "ok", f"{count} execute{'' if count > 1 else 's'} runs")


@router.get("")
async def show_health(request: Request, viewer: ViewerDep) -> Response:
    """At once: looking takes as long as what is looked at."""
    return show(request, "health.html", findings=None)


@router.get("/rows")
async def show_rows(request: Request, viewer: ViewerDep) -> Response:
    health: Health = request.app.state.health
    is_part = "hx-request" in request.headers
    findings = await health.findings()
    return show(request, "health_rows.html" if is_part else "health.html", findings=findings)


@router.get("/warnings")
async def show_warnings(request: Request, viewer: ViewerDep) -> Response:
    """For the overview: what is wrong, as far as that can be seen in passing."""
    health: Health = request.app.state.health
    findings = await health.findings(_CHEAP)
    return show(
        request,
        "health_warnings.html",
        failed=[one.subject for one in findings if one.mark == "FAIL"],
        warned=[one.subject for one in findings if one.mark == "warn"],
    )
