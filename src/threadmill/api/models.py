"""/models"""

from typing import Any

from fastapi import APIRouter

from threadmill.api.deps import Json, ProjectId, RuntimeDep
from threadmill.errors import Forbidden, NotFound
from threadmill.runtime import Runtime

router = APIRouter(prefix="/models")


@router.get("")
async def list_models(project_id: ProjectId, runtime: RuntimeDep) -> Json:
    return Json({"object": "list", "data": await runtime.models.list_models()})


# Names of models hold slashes: "meta-llama/Llama-3.1-8B".
@router.get("/{model:path}")
async def retrieve_model(project_id: ProjectId, runtime: RuntimeDep, model: str) -> Json:
    return Json(await _find(runtime, model))


@router.delete("/{model:path}")
async def delete_model(project_id: ProjectId, runtime: RuntimeDep, model: str) -> Json:
    """Fine-tuned models could be deleted there; here they belong to the endpoint."""
    await _find(runtime, model)
    raise Forbidden("You have insufficient permissions for this operation.")


async def _find(runtime: Runtime, model: str) -> dict[str, Any]:
    for served in await runtime.models.list_models():
        if served["id"] == model:
            return served
    shown = "".join(char if char.isprintable() else "\ufffd" for char in model[:64])
    raise NotFound(f"The model '{shown}' does not exist", param="model", code="model_not_found")
