"""Files that a form of ours brings: several at once, each stored as it arrives."""

from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
from fastapi import Request

from threadmill.dashboard.session import Viewer, caller
from threadmill.errors import InvalidRequest
from threadmill.file_bytes import Arrival
from threadmill.multipart import Multipart
from threadmill.runtime import Runtime
from threadmill.store.rows import File

_FILES_MAX = 20
_FIELDS_MAX = 12
_FIELDS_MAX_BYTES = 64 * 1024


class Arrived(msgspec.Struct):
    files: list[File]
    fields: dict[str, str]


async def receive(
    request: Request, viewer: Viewer, purpose_of: Callable[[str, dict[str, str]], str]
) -> Arrived:
    """`purpose_of` is given the name of each file and the fields that stand before it, and may
    refuse it before any of its bytes is read. Of files that are refused or cut off none is kept;
    where the room ends, those before it are."""
    runtime: Runtime = request.app.state.runtime
    form = Multipart(
        request,
        max_bytes=_FILES_MAX * runtime.settings.file_max_bytes + _FIELDS_MAX_BYTES,
        max_parts=_FILES_MAX + _FIELDS_MAX,
    )
    payer = await caller(request, viewer)
    fields: dict[str, str] = {}
    arrivals: list[tuple[Arrival, str]] = []
    async with AsyncExitStack() as open_arrivals:
        async for part in form.parts():
            if part.filename is None:
                fields[part.name] = await form.text()
                continue
            if len(arrivals) == _FILES_MAX:
                raise InvalidRequest(f"At most {_FILES_MAX} files can be sent at once.")
            if not part.filename:
                continue  # the field was left empty
            purpose = purpose_of(part.filename, fields)
            arrival = await open_arrivals.enter_async_context(Arrival(runtime))
            await arrival.receive(part.filename, form.pieces())
            arrivals.append((arrival, purpose))
        if not arrivals:
            raise InvalidRequest("Choose at least one file.")
        kept = [await arrival.keep(payer, purpose) for arrival, purpose in arrivals]
    return Arrived(kept, fields)
