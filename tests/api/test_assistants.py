import time
from typing import Any

import pytest

from api.conftest import ServeWire
from api.rows import Rows
from api.wire import Refusal, Wire
from threadmill.settings import ModelRoute

FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
CODE = {"type": "code_interpreter"}
SEARCH = {"type": "file_search"}


async def test_of_all_fields_only_the_model_is_needed(wire: Wire) -> None:
    before = int(time.time())
    made = await wire.post("/assistants", {"model": "m"})
    assert made.pop("id").startswith("asst_")
    assert len(made) == 13
    assert before <= made.pop("created_at") <= time.time()
    assert made == {
        "object": "assistant",
        "model": "m",
        "name": None,
        "description": None,
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "response_format": "auto",
    }


async def test_what_is_sent_is_kept(wire: Wire, rows: Rows) -> None:
    file_id = await rows.add_file()
    sent: dict[str, Any] = {
        "model": "m",
        "name": "Näme 🧵",
        "description": "d",
        "instructions": "i",
        "tools": [CODE],
        "tool_resources": {"code_interpreter": {"file_ids": [file_id]}},
        "metadata": {"b": "1", "a": ""},
        "temperature": 0,
        "top_p": 0.25,
        "reasoning_effort": "xhigh",
        "response_format": {"type": "json_object"},
    }
    made = await wire.post("/assistants", sent)
    assert sent.items() <= made.items()
    assert await wire.get(f"/assistants/{made['id']}") == made


async def test_null_is_the_same_as_absent(wire: Wire) -> None:
    names = "name description instructions tools tool_resources metadata temperature top_p"
    nulls = dict.fromkeys([*names.split(), "reasoning_effort", "response_format"])
    with_nulls = await wire.post("/assistants", nulls | {"model": "m"})
    without = await wire.post("/assistants", {"model": "m"})
    assert {**with_nulls, "id": 0, "created_at": 0} == {**without, "id": 0, "created_at": 0}


async def test_tools_come_back_in_normal_form(wire: Wire) -> None:
    ranking = {"ranker": "auto", "score_threshold": 0.5}
    limited = {"max_num_results": 3, "ranking_options": ranking}
    described = {"name": "g", "description": "d", "parameters": {"z": 1, "a": 2}, "strict": True}
    sent = [
        SEARCH,
        {"type": "file_search", "file_search": limited},
        FUNCTION,
        {"type": "function", "function": described},
        CODE,
    ]
    made = await wire.post("/assistants", {"model": "m", "tools": sent})
    default = {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": None}
    assert made["tools"] == [
        {"type": "file_search", "file_search": {"ranking_options": default}},
        {
            "type": "file_search",
            "file_search": {
                "max_num_results": 3,
                "ranking_options": ranking | {"hybrid_search": None},
            },
        },
        {
            "type": "function",
            "function": {
                "name": "f",
                "parameters": {"type": "object", "properties": {}},
                "strict": False,
            },
        },
        {"type": "function", "function": described},
        CODE,
    ]
    parameters = made["tools"][3]["function"]["parameters"]
    assert list(parameters) == ["z", "a"]  # in the order of the client


@pytest.mark.parametrize(
    "response_format",
    [
        "auto",
        {"type": "text"},
        {"type": "json_object"},
        {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object", "z": 1, "a": 2}},
        },
    ],
)
async def test_a_response_format_is_kept_as_given(wire: Wire, response_format: Any) -> None:
    made = await wire.post("/assistants", {"model": "m", "response_format": response_format})
    assert made["response_format"] == response_format


async def test_code_interpreter_shows_its_list_of_files_though_it_is_empty(wire: Wire) -> None:
    made = await wire.post("/assistants", {"model": "m", "tools": [CODE]})
    assert made["tool_resources"] == {"code_interpreter": {"file_ids": []}}
    made = await wire.post("/assistants", {"model": "m", "tools": [SEARCH]})
    assert made["tool_resources"] == {}


async def test_an_update_changes_what_it_names(wire: Wire) -> None:
    made = await wire.post(
        "/assistants",
        {
            "model": "m",
            "name": "n",
            "temperature": 0.5,
            "tools": [FUNCTION],
            "metadata": {"a": "1"},
        },
    )
    path = f"/assistants/{made['id']}"
    assert await wire.post(path, {}) == made
    assert await wire.post(path) == made
    changed = await wire.post(path, {"instructions": "i", "model": "other"})
    assert changed == made | {"instructions": "i", "model": "other"}
    assert await wire.get(path) == changed


async def test_null_clears_in_an_update(wire: Wire) -> None:
    bare = await wire.post("/assistants", {"model": "m"})
    full = {
        "name": "n",
        "description": "d",
        "instructions": "i",
        "tools": [FUNCTION],
        "metadata": {"a": "1"},
        "temperature": 0.5,
        "top_p": 0.5,
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
    }
    path = f"/assistants/{bare['id']}"
    changed = await wire.post(path, full)
    assert all(changed[name] != bare[name] for name in full)
    assert await wire.post(path, dict.fromkeys(full)) == bare
    assert await wire.post(path, {"model": None}) == bare


async def test_metadata_and_tools_are_replaced_as_a_whole(wire: Wire) -> None:
    made = await wire.post(
        "/assistants", {"model": "m", "tools": [FUNCTION], "metadata": {"a": "1", "b": "2"}}
    )
    changed = await wire.post(
        f"/assistants/{made['id']}", {"metadata": {"c": "3"}, "tools": [CODE]}
    )
    assert (changed["metadata"], changed["tools"]) == ({"c": "3"}, [CODE])


async def test_tool_resources_are_merged_tool_by_tool(wire: Wire, rows: Rows) -> None:
    one, other = await rows.add_file(), await rows.add_file()

    def code(*file_ids: str) -> dict[str, Any]:
        return {"code_interpreter": {"file_ids": list(file_ids)}}

    made = await wire.post("/assistants", {"model": "m", "tool_resources": code(one)})
    path = f"/assistants/{made['id']}"
    changed = await wire.post(path, {"tool_resources": {"file_search": {}}})
    assert changed["tool_resources"] == code(one) | {"file_search": {"vector_store_ids": []}}
    changed = await wire.post(path, {"tool_resources": code(other)})
    assert changed["tool_resources"] == code(other) | {"file_search": {"vector_store_ids": []}}
    changed = await wire.post(path, {"tool_resources": None, "tools": [CODE]})
    assert changed["tool_resources"]["code_interpreter"] == {"file_ids": [other]}


async def test_a_deleted_assistant_is_gone_and_its_runs_stay(wire: Wire, rows: Rows) -> None:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    thread_id = (await wire.post("/threads"))["id"]
    run_id = await rows.add_run(thread_id, assistant_id)
    path = f"/assistants/{assistant_id}"
    deleted = {"id": assistant_id, "object": "assistant.deleted", "deleted": True}
    assert await wire.delete(path) == deleted
    gone = Refusal(404, f"No assistant found with id '{assistant_id}'.")
    assert await wire.refused("GET", path) == gone
    assert await wire.refused("POST", path, {"name": "n"}) == gone
    assert await wire.refused("DELETE", path) == gone
    run = {"assistant_id": assistant_id}
    assert await wire.refused("POST", f"/threads/{thread_id}/runs", run) == gone
    assert await wire.refused("POST", "/threads/runs", run) == gone
    assert await wire.ids("/assistants") == []
    assert (await wire.get(f"/threads/{thread_id}/runs/{run_id}"))["assistant_id"] == assistant_id


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_id_must_be_that_of_an_assistant(wire: Wire, method: str) -> None:
    assert await wire.refused(method, "/assistants/thread_abc") == Refusal(
        400,
        "Invalid 'assistant_id': 'thread_abc'. Expected an ID that begins with 'asst'.",
        "assistant_id",
        "invalid_value",
    )
    assert await wire.refused(method, "/assistants/asst_abc") == Refusal(
        404, "No assistant found with id 'asst_abc'."
    )


async def test_files_and_stores_must_exist(wire: Wire, rows: Rows) -> None:
    made = await wire.post("/assistants", {"model": "m"})
    before = await rows.contents()
    known = await rows.add_file()
    for resources, refusal in (
        (
            {"code_interpreter": {"file_ids": [known, "file-gone"]}},
            Refusal(404, "No such File object: file-gone", "id"),
        ),
        (
            {"code_interpreter": {"file_ids": [known, "vs_1"]}},
            Refusal(
                400,
                "Invalid 'tool_resources.code_interpreter.file_ids[1]': 'vs_1'. Expected an ID that"
                " begins with 'file'.",
                "tool_resources.code_interpreter.file_ids[1]",
                "invalid_value",
            ),
        ),
        (
            {"file_search": {"vector_store_ids": ["vs_gone"]}},
            Refusal(404, "No vector store found with id 'vs_gone'."),
        ),
    ):
        body = {"model": "other", "tool_resources": resources}
        assert await wire.refused("POST", "/assistants", body) == refusal
        assert await wire.refused("POST", f"/assistants/{made['id']}", body) == refusal
    assert (await rows.contents())["assistants"] == before["assistants"]


async def test_a_model_that_no_endpoint_serves_is_refused(serve_wire: ServeWire) -> None:
    routes = {"known": ModelRoute(base_url="http://127.0.0.1:9/v1")}
    async with serve_wire(model_base_url=None, models=routes) as wire:
        made = await wire.post("/assistants", {"model": "known"})
        refusal = Refusal(
            400, "The requested model 'x' does not exist.", "model", "model_not_found"
        )
        assert await wire.refused("POST", "/assistants", {"model": "x"}) == refusal
        path = f"/assistants/{made['id']}"
        assert await wire.refused("POST", path, {"model": "x"}) == refusal
        assert await wire.get(path) == made


def _string(length: int) -> str:
    return "x" * length


BAD = [
    ({}, "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
    (
        {"model": 1},
        "Invalid type for 'model': expected a string, but got an integer instead.",
        "model",
        "invalid_type",
    ),
    ({"model": "m", "colour": 1}, "Unknown parameter: 'colour'.", "colour", "unknown_parameter"),
    (
        {"model": "m", "name": _string(257)},
        "Invalid 'name': string too long. Expected a string with maximum length 256, but got a"
        " string with length 257 instead.",
        "name",
        "string_above_max_length",
    ),
    (
        {"model": "m", "description": _string(513)},
        "Invalid 'description': string too long. Expected a string with maximum length 512, but got"
        " a string with length 513 instead.",
        "description",
        "string_above_max_length",
    ),
    (
        {"model": "m", "instructions": _string(256_001)},
        "Invalid 'instructions': string too long. Expected a string with maximum length 256000, but"
        " got a string with length 256001 instead.",
        "instructions",
        "string_above_max_length",
    ),
    (
        {"model": "m", "tools": [CODE] * 129},
        "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an"
        " array with length 129 instead.",
        "tools",
        "array_above_max_length",
    ),
    (
        {"model": "m", "tools": [CODE, {"type": "retrieval"}]},
        "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and"
        " 'function'.",
        "tools[1].type",
        "invalid_value",
    ),
    (
        {"model": "m", "tools": [{"type": "function", "function": {}}]},
        "Missing required parameter: 'tools[0].function.name'.",
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    (
        {"model": "m", "metadata": {"modified": True}},
        "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
        "metadata.modified",
        "invalid_type",
    ),
    (
        {"model": "m", "metadata": {"a": _string(513)}},
        "Invalid 'metadata.a': string too long. Expected a string with maximum length 512, but got"
        " a string with length 513 instead.",
        "metadata.a",
        "string_above_max_length",
    ),
    (
        {"model": "m", "temperature": 2.1},
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.1"
        " instead.",
        "temperature",
        "decimal_above_max_value",
    ),
    (
        {"model": "m", "top_p": -0.5},
        "Invalid 'top_p': decimal below minimum value. Expected a value >= 0, but got -0.5"
        " instead.",
        "top_p",
        "decimal_below_min_value",
    ),
    (
        {"model": "m", "tool_resources": {"code_interpreter": {"file_ids": ["file-a"] * 21}}},
        "Invalid 'tool_resources.code_interpreter.file_ids': array too long. Expected an array with"
        " maximum length 20, but got an array with length 21 instead.",
        "tool_resources.code_interpreter.file_ids",
        "array_above_max_length",
    ),
    (
        {"model": "m", "tool_resources": {"file_search": {"vector_store_ids": ["vs_a", "vs_b"]}}},
        "Invalid 'tool_resources.file_search.vector_store_ids': array too long. Expected an array"
        " with maximum length 1, but got an array with length 2 instead.",
        "tool_resources.file_search.vector_store_ids",
        "array_above_max_length",
    ),
]


async def test_what_is_wrong_is_told_and_nothing_is_written(wire: Wire, rows: Rows) -> None:
    made = await wire.post("/assistants", {"model": "m", "name": "n"})
    before = await rows.contents()
    for body, message, param, code in BAD:
        refusal = Refusal(400, message, param, code)
        assert await wire.refused("POST", "/assistants", body) == refusal
        if code != "missing_required_parameter" or param != "model":
            assert await wire.refused("POST", f"/assistants/{made['id']}", body) == refusal
    assert await rows.contents() == before


async def test_limits_are_inclusive(wire: Wire) -> None:
    sent = {
        "model": "m",
        "name": _string(256),
        "description": _string(512),
        "instructions": "ü" * 256_000,
        "tools": [CODE] * 128,
        "metadata": {str(n).rjust(64, "k"): _string(512) for n in range(16)},
        "temperature": 2,
        "top_p": 1,
    }
    made = await wire.post("/assistants", sent)
    assert sent.items() <= made.items()


async def test_a_vector_store_can_be_asked_for_only_at_creation(wire: Wire) -> None:
    made = await wire.post("/assistants", {"model": "m"})
    body = {"tool_resources": {"file_search": {"vector_stores": [{}]}}}
    place = "tool_resources.file_search.vector_stores"
    assert await wire.refused("POST", f"/assistants/{made['id']}", body) == Refusal(
        400, f"Unknown parameter: '{place}'.", place, "unknown_parameter"
    )
