"""/ui/jump: from any id to the page that shows it"""

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard.session import ViewerDep
from threadmill.errors import ApiError, NotFound
from threadmill.runtime import Runtime
from threadmill.store import lookup
from threadmill.store.database import Connection

router = APIRouter()

_PREFIXES = ("thread", "msg", "run", "step", "asst", "file", "vs")


@router.get("/jump")
async def jump(request: Request, viewer: ViewerDep, id: str = "") -> Response:
    wanted = id.strip()
    runtime: Runtime = request.app.state.runtime
    try:
        prefix = wanted.partition("-" if wanted.startswith("file-") else "_")[0]
        if prefix not in _PREFIXES:
            raise NotFound("")
        ids.check("id", wanted, prefix)
        async with runtime.database.connection() as connection:
            address = await _address(connection, viewer.project_id, prefix, wanted)
    except ApiError:
        raise NotFound(f"Nothing here has the id '{_shown(wanted)}'.") from None
    return RedirectResponse(address, 303)


async def _address(connection: Connection, project_id: str, prefix: str, wanted: str) -> str:
    if prefix in ("msg", "step"):
        holder = await lookup.holder(connection, project_id, prefix, wanted)
        if holder is None:
            raise NotFound("")
        kind = "threads" if prefix == "msg" else "runs"
        around = f"?around={wanted}" if prefix == "msg" else ""
        return f"/ui/{kind}/{holder}{around}#{wanted}"
    if not await lookup.exists(connection, project_id, prefix, wanted):
        raise NotFound("")
    return {
        "thread": f"/ui/threads/{wanted}",
        "run": f"/ui/runs/{wanted}",
        "asst": f"/ui/assistants/{wanted}",
        "file": f"/ui/files/{wanted}/about",
        "vs": f"/ui/vector_stores/{wanted}",
    }[prefix]


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)[:64]
