"""/ui/vector_stores: the list, and what is done with a store as a whole"""

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill import ids
from threadmill.dashboard.forms import Form, number, read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import ViewerDep
from threadmill.runtime import Runtime
from threadmill.schemas.parse import parse
from threadmill.schemas.queries import Page, object_id
from threadmill.schemas.requests import CreateVectorStore, ModifyVectorStore
from threadmill.store import vector_stores

router = APIRouter()

_PAGE = 25
_TALLIED_MAX_FILES = 100  # of each store in the list


@router.get("/vector_stores")
async def list_stores(request: Request, viewer: ViewerDep) -> Response:
    page = Page(limit=_PAGE, after=object_id(request.query_params, "after", "vs"))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        stores, has_more = await vector_stores.list_page(connection, viewer.project_id, page)
        tallied = await vector_stores.tally(
            connection, [store.id for store in stores], _TALLIED_MAX_FILES
        )
    return show(
        request,
        "stores.html",
        stores=stores,
        tallied=tallied,
        has_expired=vector_stores.has_expired,
        has_more=has_more,
        is_first=page.after is None,
    )


@router.post("/vector_stores")
async def create_store(request: Request, viewer: ViewerDep) -> Response:
    form = await read_form(request)
    wanted = parse(
        CreateVectorStore,
        orjson.dumps({"name": form.get("name") or None, "expires_after": _policy(form)}),
    )
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.connection() as connection:
        store = await vector_stores.create(
            connection,
            viewer.project_id,
            name=wanted.name,
            metadata={},
            expires_after=wanted.expires_after.model_dump() if wanted.expires_after else None,
        )
    return RedirectResponse(f"/ui/vector_stores/{store.id}", 303)


@router.post("/vector_stores/{store_id}/edit")
async def edit_store(request: Request, viewer: ViewerDep, store_id: str) -> Response:
    ids.check("vector_store_id", store_id, "vs")
    form = await read_form(request)
    told: dict[str, Any] = {name: form.get(name) or None for name in ("name", "description")}
    told |= {"metadata": form.pairs(), "expires_after": _policy(form)}
    wanted = parse(ModifyVectorStore, orjson.dumps(told))
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        await vector_stores.modify(
            connection,
            viewer.project_id,
            store_id,
            name=wanted.name,
            description=wanted.description,
            metadata=wanted.metadata or {},
            expires_after=wanted.expires_after.model_dump() if wanted.expires_after else None,
        )
    return RedirectResponse(f"/ui/vector_stores/{store_id}", 303)


@router.post("/vector_stores/{store_id}/delete")
async def delete_store(request: Request, viewer: ViewerDep, store_id: str) -> Response:
    ids.check("vector_store_id", store_id, "vs")
    runtime: Runtime = request.app.state.runtime
    async with runtime.database.transaction() as connection:
        await vector_stores.remove(connection, viewer.project_id, store_id)
    return RedirectResponse("/ui/vector_stores", 303)


def _policy(form: Form) -> dict[str, Any] | None:
    """An empty field is no end."""
    days = number(form.get("days"))
    return None if days is None else {"anchor": "last_active_at", "days": days}
