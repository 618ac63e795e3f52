import os
from typing import Any, TypeVar

import orjson
import pytest
import yaml
from jsonschema import Draft202012Validator

from schemas.bodies import MESSAGE, RESOURCES, RESPONSE_FORMAT, TAKEN
from threadmill.schemas.parse import Shape, parse
from threadmill.schemas.requests import (
    ChunkingStrategy,
    CreateAssistant,
    CreateMessage,
    CreateRun,
    CreateThread,
    ModifyAssistant,
    names_missing_tool,
)

S = TypeVar("S", bound=Shape)


def taken(shape: type[S], **body: Any) -> S:
    return parse(shape, orjson.dumps(body))


def tools(*sent: Any) -> list[dict[str, Any]]:
    return taken(CreateAssistant, model="m", tools=sent).normal_tools()


@pytest.mark.parametrize("shape", TAKEN)
def test_null_is_the_same_as_absent_for_every_optional_field(shape: type[Shape]) -> None:
    _, body = TAKEN[shape]
    optional = {name for name, field in shape.model_fields.items() if not field.is_required()}
    nulls = body | dict.fromkeys(optional)
    parsed = parse(shape, orjson.dumps(nulls))
    assert all(getattr(parsed, name) is None for name in optional)


def test_an_update_tells_null_from_absent() -> None:
    update = taken(ModifyAssistant, name=None, tools=None)
    assert update.model_fields_set == {"name", "tools"}
    assert update.normal_tools() == []


def test_file_search_gets_the_default_ranking() -> None:
    ranking = {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": None}
    normal = {"type": "file_search", "file_search": {"ranking_options": ranking}}
    assert tools({"type": "file_search"}) == [normal]
    assert tools({"type": "file_search", "file_search": {}}) == [normal]
    assert tools(normal) == [normal]  # what we answer can be sent back


def test_file_search_keeps_what_was_given() -> None:
    sent = {"max_num_results": 5, "ranking_options": {"ranker": "auto", "score_threshold": 1}}
    [tool] = tools({"type": "file_search", "file_search": sent})
    assert tool["file_search"] == {
        "max_num_results": 5,
        "ranking_options": {"ranker": "auto", "score_threshold": 1.0, "hybrid_search": None},
    }


def test_a_function_gets_parameters_and_strict_but_no_description() -> None:
    [tool] = tools({"type": "function", "function": {"name": "f", "description": None}})
    assert tool["function"] == {
        "name": "f",
        "parameters": {"type": "object", "properties": {}},
        "strict": False,
    }


def test_parameters_keep_their_order() -> None:
    parameters = {"z": {"b": 1, "a": [{"y": 1, "x": 2}]}, "a": None}
    [tool] = tools({"type": "function", "function": {"name": "f", "parameters": parameters}})
    assert orjson.dumps(tool["function"]["parameters"]) == orjson.dumps(parameters)


def test_text_becomes_one_part() -> None:
    sent = taken(CreateMessage, role="user", content="hi")
    part = {"type": "text", "text": {"value": "hi", "annotations": []}}
    assert sent.normal_content() == [part]
    assert sent.normal_attachments() == []


def test_parts_take_the_form_of_the_response() -> None:
    sent = taken(CreateMessage, **MESSAGE)
    image_url = {"url": "https://example.org/a.png", "detail": "auto"}
    assert sent.normal_content() == [
        {"type": "text", "text": {"value": "look", "annotations": []}},
        {"type": "image_url", "image_url": image_url},
        {"type": "image_file", "image_file": {"file_id": "file-a", "detail": "low"}},
    ]
    assert sent.normal_attachments() == MESSAGE["attachments"]


def test_a_run_gets_the_defaults() -> None:
    run = taken(CreateRun, assistant_id="asst_a", additional_messages=[], tool_choice=None)
    assert run.normal_tools() is None
    assert run.normal_tool_choice() == "auto"
    assert run.normal_truncation_strategy() == {"type": "auto", "last_messages": None}
    assert run.normal_parallel_tool_calls() is True
    assert run.normal_response_format() is None


@pytest.mark.parametrize(
    "response_format", ["auto", {"type": "text"}, {"type": "json_object"}, RESPONSE_FORMAT]
)
def test_a_response_format_stays_as_given(response_format: Any) -> None:
    sent = taken(CreateAssistant, model="m", response_format=response_format)
    assert sent.normal_response_format() == response_format


def test_whole_decimals_are_integers_and_integers_are_decimals() -> None:
    run = taken(CreateRun, assistant_id="asst_a", max_prompt_tokens=300.0, temperature=1)
    assert (run.max_prompt_tokens, type(run.max_prompt_tokens)) == (300, int)
    assert (run.temperature, type(run.temperature)) == (1.0, float)


def test_resources_name_the_tools_that_were_given() -> None:
    sent = taken(ModifyAssistant, tool_resources={"code_interpreter": {"file_ids": ["file-a"]}})
    assert sent.normal_tool_resources() == {"code_interpreter": {"file_ids": ["file-a"]}}
    assert taken(ModifyAssistant, tool_resources=RESOURCES).normal_tool_resources() == RESOURCES
    assert taken(ModifyAssistant).normal_tool_resources() == {}


def test_a_vector_store_can_be_asked_for() -> None:
    sent = taken(CreateThread, tool_resources={"file_search": {"vector_stores": [{}]}})
    assert sent.tool_resources is not None
    assert sent.tool_resources.new_vector_store is not None
    assert sent.normal_tool_resources() == {"file_search": {"vector_store_ids": []}}


def test_automatic_chunking_is_static_with_the_default_sizes() -> None:
    static = {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}
    assert ChunkingStrategy(type="auto").normal() == {"type": "static", "static": static}


@pytest.mark.parametrize(
    ("choice", "missing"),
    [
        ("required", False),
        ({"type": "file_search"}, False),
        ({"type": "code_interpreter"}, True),
        ({"type": "function", "function": {"name": "f"}}, False),
        ({"type": "function", "function": {"name": "g"}}, True),
    ],
)
def test_a_choice_may_name_a_tool_that_is_missing(choice: Any, missing: bool) -> None:
    has = tools({"type": "file_search"}, {"type": "function", "function": {"name": "f"}})
    sent = taken(CreateRun, assistant_id="asst_a", tool_choice=choice)
    assert names_missing_tool(sent.normal_tool_choice(), has) is missing


@pytest.mark.skipif("THREADMILL_SPEC" not in os.environ, reason="THREADMILL_SPEC names no document")
@pytest.mark.parametrize("shape", TAKEN)
def test_what_is_taken_fits_the_original_schema_and_has_all_of_its_fields(
    shape: type[Shape],
) -> None:
    with open(os.environ["THREADMILL_SPEC"]) as file:
        schemas = yaml.load(file, yaml.CSafeLoader)["components"]["schemas"]
    name, body = TAKEN[shape]
    parse(shape, orjson.dumps(body))
    here = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    Draft202012Validator(here).validate(body)
    assert set(schemas[name]["properties"]) == set(shape.model_fields)
