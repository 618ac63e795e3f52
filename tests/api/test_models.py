import pytest

from api.conftest import ServeWire
from api.wire import Refusal, Wire
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.settings import ModelRoute


async def test_the_models_of_the_endpoint_are_listed(wire: Wire) -> None:
    listed = await wire.get("/models")
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"]) == ("scripted", "model")
    assert await wire.get("/models/scripted") == model


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["x", "meta-llama/Llama-3.1-8B", ""])
async def test_a_model_must_exist(wire: Wire, method: str, name: str) -> None:
    assert await wire.refused(method, f"/models/{name}") == Refusal(
        404, f"The model '{name}' does not exist", "model", "model_not_found"
    )


async def test_a_model_belongs_to_its_endpoint(wire: Wire) -> None:
    assert await wire.refused("DELETE", "/models/scripted") == Refusal(
        403, "You have insufficient permissions for this operation."
    )


@pytest.mark.parametrize("path", ["meta-llama/Llama-3.1-8B", "meta-llama%2FLlama-3.1-8B"])
async def test_a_name_may_hold_slashes(
    serve_wire: ServeWire, model: ScriptedModel, path: str
) -> None:
    model.models = ["meta-llama/Llama-3.1-8B"]
    async with serve_wire() as wire:
        assert (await wire.get(f"/models/{path}"))["id"] == "meta-llama/Llama-3.1-8B"


async def test_models_of_the_settings_are_listed_where_the_endpoint_is_away(
    serve_wire: ServeWire,
) -> None:
    routes = {"known": ModelRoute(base_url="http://127.0.0.1:9/v1"), "gpt-*": ModelRoute()}
    async with serve_wire(model_base_url="http://127.0.0.1:9/v1", models=routes) as wire:
        assert await wire.ids("/models") == ["known"]
        assert (await wire.get("/models/known"))["object"] == "model"
