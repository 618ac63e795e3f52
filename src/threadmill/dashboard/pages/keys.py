"""/ui/keys: the keys of one's project, and what holds for the project"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard import tenancy
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import Keys, Viewer, ViewerDep
from threadmill.dashboard.tenancy import Made
from threadmill.errors import Forbidden
from threadmill.runtime import Runtime
from threadmill.schemas.queries import object_id
from threadmill.store import projects
from threadmill.store.database import Connection
from threadmill.store.rows import ApiKey

router = APIRouter(prefix="/keys")


@router.get("")
async def show_keys(request: Request, viewer: ViewerDep) -> Response:
    return await _page(request, viewer, None)


@router.post("")
async def make_key(request: Request, viewer: ViewerDep) -> Response:
    """Answered by the page itself: the key is kept nowhere that another page could read it."""
    runtime: Runtime = request.app.state.runtime
    form = await read_form(request)
    async with runtime.database.connection() as connection:
        await _check_may_change(connection, viewer)
        project = await projects.get_active(connection, viewer.project_id)
        made = await tenancy.make_key(connection, project, form)
    answer = await _page(request, viewer, made)
    _forget(request)  # not before: a first key shuts out who has none
    return answer


@router.post("/{key_id}/revoke")
async def revoke_key(request: Request, viewer: ViewerDep, key_id: str) -> Response:
    ids.check("key_id", key_id, "key")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        await projects.get_key(connection, viewer.project_id, key_id)
        await _check_may_change(connection, viewer)
        await projects.revoke_key(connection, key_id)
    _forget(request)
    return RedirectResponse("/ui/keys", 303)


@router.post("/prompts")
async def hide_prompts(request: Request, viewer: ViewerDep) -> Response:
    runtime: Runtime = request.app.state.runtime
    hide = (await read_form(request)).get("hide") == "yes"
    async with runtime.database.connection() as connection:
        await _check_may_change(connection, viewer)
        await projects.modify(connection, viewer.project_id, {"hide_prompts": hide})
    return RedirectResponse("/ui/keys", 303)


async def _page(request: Request, viewer: Viewer, made: Made | None) -> Response:
    runtime: Runtime = request.app.state.runtime
    after = object_id(request.query_params, "after", "key")
    async with runtime.database.connection() as connection:
        project = await projects.get(connection, viewer.project_id)
        keys = await tenancy.keys_page(connection, viewer.project_id, after)
        own = await _own_key(connection, viewer)
    values: dict[str, Any] = {
        "project": project,
        "keys": keys,
        "own": own,
        "may_change": not _is_limited(own),
        "made": made,
        "place": "/ui/keys",
        "limits": tenancy.LIMITS,
        "ages": tenancy.AGES,
    }
    return show(request, "keys.html", **values)


async def _check_may_change(connection: Connection, viewer: Viewer) -> None:
    """A key with limits of its own that could make others would have none."""
    if _is_limited(await _own_key(connection, viewer)):
        raise Forbidden("Your key has limits of its own: it cannot change keys or the project.")


async def _own_key(connection: Connection, viewer: Viewer) -> ApiKey | None:
    """None for a static key, and where none is demanded."""
    if viewer.key_hash is None:
        return None
    return await projects.key_behind(connection, viewer.key_hash)


def _is_limited(own: ApiKey | None) -> bool:
    return own is not None and any(
        getattr(own, column) is not None for _, column, _ in tenancy.LIMITS
    )


def _forget(request: Request) -> None:
    """What is changed here holds at once in this process; in others within seconds."""
    keys: Keys = request.app.state.keys
    keys.forget()
