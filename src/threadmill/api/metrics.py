"""/metrics: what Prometheus reads, outside of /v1.

Processes that share a port (`serve --workers`) cannot be told apart by whoever asks there. So each
of them answers on a socket in a folder of theirs, too, and the one that is asked asks the others:
every sample carries the number of its process. What the database knows is asked once, and belongs
to none of them.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import structlog
from fastapi import APIRouter, Request, Response

from threadmill.api.deps import Keys, check_host, sent_key
from threadmill.errors import Unauthorized
from threadmill.metrics import Family, Metrics, gauge, rendered
from threadmill.runtime import Runtime
from threadmill.store import sight
from threadmill.store.database import DatabaseError

router = APIRouter()
log = structlog.get_logger()

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_DATABASE_PATIENCE_S = 2.0
_BELIEVED_FOR_S = 4.0  # what the database said; scrapes come every 15 s, or several at once
_SIBLING_PATIENCE_S = 2.0

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Family]).decode


class Siblings:
    """The processes behind one port: a folder with a socket for each."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._me = str(number)

    @asynccontextmanager
    async def listening(self, metrics: Metrics) -> AsyncIterator[None]:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                writer.write(await asyncio.to_thread(lambda: _encode(metrics.families())))
                await writer.drain()
            writer.close()

        path = self._folder / self._me
        path.unlink(missing_ok=True)  # of the one that died with our number
        async with await asyncio.start_unix_server(answer, path):
            yield

    async def families(self, own: list[Family]) -> dict[str, list[Family]]:
        """Of all processes; of one that does not answer, only that."""
        others = sorted(path for path in self._folder.iterdir() if path.name != self._me)
        told = await asyncio.gather(*(_ask(path) for path in others))
        found = {self._me: own} | {
            path.name: families
            for path, families in zip(others, told, strict=True)
            if families is not None
        }
        up = [
            ({"process": name}, float(name in found))
            for name in sorted([self._me, *(path.name for path in others)])
        ]
        found[""] = [gauge("process_up", "Whether the process answers.", up)]
        return found


class Scrapes:
    def __init__(self, runtime: Runtime, siblings: Siblings | None = None) -> None:
        self._runtime = runtime
        self._siblings = siblings
        self._asking = asyncio.Lock()
        self._said: list[Family] = []
        self._believed_until = 0.0

    async def text(self) -> bytes:
        """In threads, all that takes milliseconds: streams go on meanwhile."""
        common, own = await asyncio.gather(
            self._of_database(), asyncio.to_thread(self._runtime.metrics.families)
        )
        together = {"": own}
        if self._siblings is not None:
            together = await self._siblings.families(own)
        together[""] = [*together[""], *common]
        return await asyncio.to_thread(rendered, together)

    async def _of_database(self) -> list[Family]:
        async with self._asking:
            if time.monotonic() >= self._believed_until:
                self._said = await self._ask_database()
                self._believed_until = time.monotonic() + _BELIEVED_FOR_S
        return self._said

    async def _ask_database(self) -> list[Family]:
        try:
            async with asyncio.timeout(_DATABASE_PATIENCE_S):
                async with self._runtime.database.connection() as connection:
                    found = await sight.under_way(connection)
        except (DatabaseError, OSError, TimeoutError):
            return [_database_up(False)]
        return [_database_up(True), *_of(found)]


@router.get("/metrics")
async def read_metrics(request: Request) -> Response:
    await _check_key(request)
    scrapes: Scrapes = request.app.state.scrapes
    return Response(await scrapes.text(), media_type=_CONTENT_TYPE)


async def _check_key(request: Request) -> None:
    wanted = request.app.state.runtime.settings.metrics_key
    if wanted is not None:
        key = (sent_key(request) or "").encode()
        if not hmac.compare_digest(key, wanted.get_secret_value().encode()):
            raise Unauthorized("Metrics want THREADMILL_METRICS_KEY as a bearer token.")
        return
    keys: Keys = request.app.state.keys
    if await keys.are_demanded():
        raise Unauthorized(
            "This server demands keys: set THREADMILL_METRICS_KEY, and send it as a bearer token."
        )
    check_host(request)


async def _ask(path: Path) -> list[Family] | None:
    try:
        async with asyncio.timeout(_SIBLING_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return _decode(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError, msgspec.MsgspecError) as fault:
        log.warning("process_does_not_answer", number=path.name, fault=repr(fault))
        return None


def _database_up(is_up: bool) -> Family:
    return gauge("database_up", "Whether the database answers.", [({}, float(is_up))])


def _of(found: sight.UnderWay) -> list[Family]:
    runs = {status: 0 for status in sight.STATUSES} | found.runs
    return [
        gauge(
            "runs",
            "Runs of the whole installation that have not ended, by status.",
            [({"status": status}, float(count)) for status, count in runs.items()],
        ),
        gauge(
            "runs_behind_limits",
            "Those queued runs that wait for others of their key or project to end.",
            [({}, float(found.runs_behind_limits))],
        ),
        gauge(
            "runs_oldest_queued_age_seconds",
            "How long the first of those queued runs has waited that may be taken up.",
            [({}, found.oldest_queued_age_s)],
        ),
        gauge(
            "ingestion_queue",
            "Files of vector stores that wait to be taken in, and that some process takes in.",
            [
                ({"state": "waiting"}, float(found.files_waiting)),
                ({"state": "held"}, float(found.files_held)),
            ],
        ),
    ]
