"""/healthz and /readyz: what balancers and orchestrators ask, outside of /v1 and without a key."""

import asyncio
import time

from fastapi import APIRouter, Request

from threadmill.api.deps import Json
from threadmill.runtime import Runtime
from threadmill.store import migrate, server
from threadmill.store.database import DatabaseError

router = APIRouter()

_PATIENCE_S = 2.0
_BELIEVED_FOR_S = 1.0


class Readiness:
    """What keeps this process from answering requests. However many ask, the database is asked
    once a second."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._asking = asyncio.Lock()
        self._faults: list[str] = []
        self._believed_until = 0.0

    async def faults(self) -> list[str]:
        """Empty: it is ready."""
        ending = ["The server is shutting down."] if self._runtime.is_ending else []
        async with self._asking:
            if time.monotonic() >= self._believed_until:
                self._faults = await self._faults_of_database()
                self._believed_until = time.monotonic() + _BELIEVED_FOR_S
        return ending + self._faults

    async def _faults_of_database(self) -> list[str]:
        # Not from the pool: that all its connections are at work is no reason to send clients to
        # the other servers, which have as much to do.
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = (await server.look(self._runtime.database.url, _PATIENCE_S)).revision
        except (DatabaseError, OSError, TimeoutError):  # whose words are not for everybody
            return ["The database cannot be reached."]
        # A newer schema is no fault: it comes first in an upgrade, and suits both versions.
        if found is None or found < migrate.HEAD:
            return [f"The database is at revision {found or 'none'}, {migrate.HEAD} is needed."]
        return []


@router.get("/healthz")
async def healthz() -> Json:
    """The process answers. Whether it can do anything is for /readyz: no restart heals a database
    that is away."""
    return Json({"status": "alive"})


@router.get("/readyz")
async def readyz(request: Request) -> Json:
    readiness: Readiness = request.app.state.readiness
    faults = await readiness.faults()
    if faults:
        return Json({"status": "not ready", "faults": faults}, status_code=503)
    return Json({"status": "ready"})
