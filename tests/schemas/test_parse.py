from typing import Any

import orjson
import pytest

from threadmill.errors import UNPARSABLE_JSON, InvalidRequest
from threadmill.schemas.parse import MAX_NESTING_LEVELS, Shape, parse
from threadmill.schemas.requests import (
    CreateAssistant,
    CreateMessage,
    CreateRun,
    CreateThread,
    CreateThreadAndRun,
    ModifyAssistant,
    SubmitToolOutputs,
)


def refused(shape: type[Shape], raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(shape, raw)
    assert caught.value.status == 400
    return caught.value


def assistant(**fields: Any) -> dict[str, Any]:
    return {"model": "m"} | fields


def message(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": "hello"} | fields


def run(**fields: Any) -> dict[str, Any]:
    return {"assistant_id": "asst_a"} | fields


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": fields}


REFUSALS: list[tuple[type[Shape], Any, str, str, str]] = [
    # --- type ---
    (
        CreateThread,
        {"metadata": {"modified": True}},
        "metadata.modified",
        "invalid_type",
        "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
    ),
    (
        CreateThread,
        {"metadata": {"{path}{0}": 5}},
        "metadata.{path}{0}",
        "invalid_type",
        "Invalid type for 'metadata.{path}{0}': expected a string, but got an integer instead.",
    ),
    (
        CreateThread,
        {"metadata": []},
        "metadata",
        "invalid_type",
        "Invalid type for 'metadata': expected an object, but got an array instead.",
    ),
    (
        CreateAssistant,
        {"model": None},
        "model",
        "invalid_type",
        "Invalid type for 'model': expected a string, but got null instead.",
    ),
    (
        CreateAssistant,
        assistant(temperature="1"),
        "temperature",
        "invalid_type",
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
    ),
    (
        CreateAssistant,
        assistant(temperature=True),
        "temperature",
        "invalid_type",
        "Invalid type for 'temperature': expected a decimal, but got a boolean instead.",
    ),
    (
        CreateRun,
        run(max_prompt_tokens=1.5),
        "max_prompt_tokens",
        "invalid_type",
        "Invalid type for 'max_prompt_tokens': expected an integer, but got a decimal number "
        "instead.",
    ),
    (
        CreateRun,
        run(stream={}),
        "stream",
        "invalid_type",
        "Invalid type for 'stream': expected a boolean, but got an object instead.",
    ),
    (
        CreateAssistant,
        assistant(tools="none"),
        "tools",
        "invalid_type",
        "Invalid type for 'tools': expected an array of objects, but got a string instead.",
    ),
    (
        CreateAssistant,
        assistant(tools=[7]),
        "tools[0]",
        "invalid_type",
        "Invalid type for 'tools[0]': expected an object, but got an integer instead.",
    ),
    (
        CreateAssistant,
        assistant(tool_resources={"code_interpreter": {"file_ids": "file-a"}}),
        "tool_resources.code_interpreter.file_ids",
        "invalid_type",
        "Invalid type for 'tool_resources.code_interpreter.file_ids': expected an array of "
        "strings, but got a string instead.",
    ),
    (
        CreateThread,
        {"messages": [message(content=7)]},
        "messages[0].content",
        "invalid_type",
        "Invalid type for 'messages[0].content': expected one of a string or array of objects, "
        "but got an integer instead.",
    ),
    (
        CreateRun,
        run(tool_choice=7),
        "tool_choice",
        "invalid_type",
        "Invalid type for 'tool_choice': expected one of one of 'none', 'auto', or 'required' or "
        "object, but got an integer instead.",
    ),
    (
        CreateMessage,
        message(role=7),
        "role",
        "invalid_type",
        "Invalid type for 'role': expected one of 'user' or 'assistant', but got an integer "
        "instead.",
    ),
    # --- too long, too short ---
    (
        CreateAssistant,
        assistant(instructions="x" * 256_001),
        "instructions",
        "string_above_max_length",
        "Invalid 'instructions': string too long. Expected a string with maximum length 256000, "
        "but got a string with length 256001 instead.",
    ),
    (
        CreateMessage,
        message(content="𝔸" * 256_001),
        "content",
        "string_above_max_length",
        "Invalid 'content': string too long. Expected a string with maximum length 256000, "
        "but got a string with length 256001 instead.",
    ),
    (
        CreateMessage,
        message(content=""),
        "content",
        "empty_string",
        "Invalid 'content': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
    ),
    (
        CreateMessage,
        message(content=[]),
        "content",
        "empty_array",
        "Invalid 'content': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
    ),
    (
        CreateAssistant,
        assistant(tools=[{"type": "code_interpreter"}] * 129),
        "tools",
        "array_above_max_length",
        "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an "
        "array with length 129 instead.",
    ),
    (
        CreateRun,
        run(tools=[function(name="f")] * 21),
        "tools",
        "array_above_max_length",
        "Invalid 'tools': array too long. Expected an array with maximum length 20, but got an "
        "array with length 21 instead.",
    ),
    (
        CreateThread,
        {"metadata": {str(n): "" for n in range(17)}},
        "metadata",
        "object_above_max_properties",
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
        "but got an object with 17 properties instead.",
    ),
    (
        CreateThread,
        {"metadata": {"abc" + "k" * 64: ""}},
        "metadata.abc" + "k" * 61 + "...",
        "property_name_above_max_length",
        "Invalid property name in 'metadata': 'abc...kkk' is too long. Expected a string with "
        "maximum length 64, but got a string with length 67 instead.",
    ),
    (
        CreateThread,
        {"metadata": {"k": "v" * 513}},
        "metadata.k",
        "string_above_max_length",
        "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but "
        "got a string with length 513 instead.",
    ),
    # --- range ---
    (
        CreateAssistant,
        assistant(temperature=2.5),
        "temperature",
        "decimal_above_max_value",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5 "
        "instead.",
    ),
    (
        CreateAssistant,
        assistant(top_p=-1),
        "top_p",
        "decimal_below_min_value",
        "Invalid 'top_p': decimal below minimum value. Expected a value >= 0, but got -1 instead.",
    ),
    (
        CreateRun,
        run(max_completion_tokens=0),
        "max_completion_tokens",
        "integer_below_min_value",
        "Invalid 'max_completion_tokens': integer below minimum value. Expected a value >= 1, but "
        "got 0 instead.",
    ),
    (
        CreateRun,
        run(max_completion_tokens=2**31),
        "max_completion_tokens",
        "integer_above_max_value",
        "Invalid 'max_completion_tokens': integer above maximum value. Expected a value <= "
        "2147483647, but got 2147483648 instead.",
    ),
    # --- choice ---
    (
        CreateMessage,
        message(role="system"),
        "role",
        "invalid_value",
        "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.",
    ),
    (
        CreateAssistant,
        assistant(tools=[{"type": "retrieval"}]),
        "tools[0].type",
        "invalid_value",
        "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and "
        "'function'.",
    ),
    (
        CreateAssistant,
        assistant(response_format="json"),
        "response_format",
        "invalid_value",
        "Invalid value: 'json'. Value must be 'auto'.",
    ),
    (
        CreateMessage,
        message(role="\u202e" + "é" * 64),
        "role",
        "invalid_value",
        "Invalid value: '\ufffd" + "é" * 63 + "...'. Supported values are: 'user' and 'assistant'.",
    ),
    # --- missing ---
    (
        CreateAssistant,
        {},
        "model",
        "missing_required_parameter",
        "Missing required parameter: 'model'.",
    ),
    (
        SubmitToolOutputs,
        {"tool_outputs": [{"output": "x"}]},
        "tool_outputs[0].tool_call_id",
        "missing_required_parameter",
        "Missing required parameter: 'tool_outputs[0].tool_call_id'.",
    ),
    (
        CreateAssistant,
        assistant(tools=[{"type": "file_search"}, {"type": "function"}]),
        "tools[1].function",
        "missing_required_parameter",
        "Missing required parameter: 'tools[1].function'.",
    ),
    (
        CreateAssistant,
        assistant(tools=[function(parameters={})]),
        "tools[0].function.name",
        "missing_required_parameter",
        "Missing required parameter: 'tools[0].function.name'.",
    ),
    (
        CreateAssistant,
        assistant(response_format={"type": "json_schema", "json_schema": {}}),
        "response_format.json_schema.name",
        "missing_required_parameter",
        "Missing required parameter: 'response_format.json_schema.name'.",
    ),
    (
        CreateRun,
        run(truncation_strategy={"type": "last_messages"}),
        "truncation_strategy.last_messages",
        "missing_required_parameter",
        "Missing required parameter: 'truncation_strategy.last_messages'.",
    ),
    (
        CreateThreadAndRun,
        run(thread={"messages": [{"content": "x"}]}),
        "thread.messages[0].role",
        "missing_required_parameter",
        "Missing required parameter: 'thread.messages[0].role'.",
    ),
    # --- unknown ---
    (
        CreateAssistant,
        assistant(file_ids=[]),
        "file_ids",
        "unknown_parameter",
        "Unknown parameter: 'file_ids'.",
    ),
    (
        CreateMessage,
        message(content=[{"type": "text", "text": "x", "text2": None}]),
        "content[0].text2",
        "unknown_parameter",
        "Unknown parameter: 'content[0].text2'.",
    ),
    (
        CreateAssistant,
        assistant(tools=[{"type": "code_interpreter", "function": {"name": "f"}}]),
        "tools[0].function",
        "unknown_parameter",
        "Unknown parameter: 'tools[0].function'.",
    ),
    (
        ModifyAssistant,
        {"tool_resources": {"file_search": {"vector_stores": []}}},
        "tool_resources.file_search.vector_stores",
        "unknown_parameter",
        "Unknown parameter: 'tool_resources.file_search.vector_stores'.",
    ),
    (
        CreateThreadAndRun,
        run(reasoning_effort="low"),
        "reasoning_effort",
        "unknown_parameter",
        "Unknown parameter: 'reasoning_effort'.",
    ),
    # --- form ---
    (
        CreateAssistant,
        assistant(tools=[function(name="a b")]),
        "tools[0].function.name",
        "invalid_value",
        "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that "
        "matches the pattern '^[a-zA-Z0-9_-]+$'.",
    ),
    (
        CreateAssistant,
        assistant(tools=[function(name="f"), function(name="f")]),
        "tools[1].function.name",
        "invalid_value",
        "Invalid 'tools[1].function.name': another function has the name 'f'. Function names must "
        "be unique.",
    ),
    (
        CreateMessage,
        message(content=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]),
        "content[0].image_url.url",
        "invalid_value",
        "Invalid 'content[0].image_url.url'. Expected a valid URL, but got a value with an "
        "invalid format.",
    ),
    (
        CreateMessage,
        message(content=[{"type": "image_file", "image_file": {"file_id": "file-a"}}] * 11),
        "content",
        "array_above_max_length",
        "Invalid 'content': too many images. Expected an array with at most 10 images, but got an "
        "array with 11 images instead.",
    ),
    (
        CreateThread,
        {
            "tool_resources": {
                "file_search": {"vector_store_ids": ["vs_a"], "vector_stores": [{}]},
            }
        },
        "tool_resources.file_search",
        "invalid_value",
        "Invalid 'tool_resources.file_search': only one of 'vector_store_ids' and 'vector_stores' "
        "can be given.",
    ),
    (
        CreateMessage,
        message(metadata={"a": "b\0"}),
        "metadata.a",
        "invalid_value",
        "Invalid 'metadata.a': null characters (\\u0000) are not allowed.",
    ),
    (
        CreateAssistant,
        assistant(tools=[function(name="f", parameters={"a": [{"b\0": 1}]})]),
        "tools[0].function.parameters.a[0].b\ufffd",
        "invalid_value",
        "Invalid 'tools[0].function.parameters.a[0].b\ufffd': null characters (\\u0000) are not "
        "allowed.",
    ),
]


@pytest.mark.parametrize(("shape", "body", "param", "code", "text"), REFUSALS)
def test_a_fault_is_told_in_the_original_words(
    shape: type[Shape], body: Any, param: str, code: str, text: str
) -> None:
    error = refused(shape, orjson.dumps(body))
    assert (error.message, error.param, error.code) == (text, param, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"zzz": 1}, "assistant_id"),
        (run(zzz=1, stream="x"), "zzz"),
        (run(stream="x", additional_messages=[{}]), "stream"),
        (run(additional_messages=[{"zzz": 1, "role": "user"}]), "additional_messages[0].content"),
        (run(additional_messages=[message(zzz=1, role="x")]), "additional_messages[0].zzz"),
        (run(additional_messages=[message(), message(role="x"), 5]), "additional_messages[1].role"),
    ],
)
def test_of_several_faults_one_is_told_missing_before_unknown_before_wrong(
    body: Any, param: str
) -> None:
    assert refused(CreateRun, orjson.dumps(body)).param == param


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model"',
        b"\xff",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": NaN}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "m"} x',
        b"\xef\xbb\xbf{}",
        b"\0",
    ],
)
def test_what_is_not_json_is_refused_with_the_original_hint(raw: bytes) -> None:
    error = refused(CreateAssistant, raw)
    assert (error.message, error.param, error.code) == (UNPARSABLE_JSON, None, None)


@pytest.mark.parametrize(
    ("raw", "got"),
    [(b"[]", "an array"), (b"null", "null"), (b"1.5", "a decimal number"), (b'"x"', "a string")],
)
def test_a_body_that_is_no_object_is_refused(raw: bytes, got: str) -> None:
    error = refused(CreateThread, raw)
    assert error.message == (
        f"Invalid type for the request body: expected an object, but got {got} instead."
    )


@pytest.mark.parametrize("raw", [b"", b" \n", b"{}"])
def test_an_empty_body_is_an_empty_object(raw: bytes) -> None:
    assert parse(CreateThread, raw).model_fields_set == set()


def nested(levels: int) -> bytes:
    """A body with so many levels in all: its own, tools, tool, function, then parameters."""
    own = b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":%s}}]}'
    return own % (b'{"a":' * (levels - 4) + b"1" + b"}" * (levels - 4))


def test_nesting_has_a_limit() -> None:
    parse(CreateAssistant, nested(MAX_NESTING_LEVELS))
    for raw in (
        nested(MAX_NESTING_LEVELS + 1),
        nested(900),
        nested(100_000),
        b"[" * 10_000_000,
        b'{"metadata":' + b"[" * 1_000_000,
    ):
        assert "nested too deeply" in refused(CreateAssistant, raw).message


def with_maximum(value: str) -> bytes:
    function = b'{"name":"f","parameters":{"maximum":%s}}' % value.encode()
    return b'{"model":"m","tools":[{"type":"function","function":%s}]}' % function


@pytest.mark.parametrize("digits", [str(2**64), str(-(2**63) - 1), "1" + "0" * 300])
def test_an_integer_beyond_64_bits_is_refused_where_it_would_be_rounded(digits: str) -> None:
    error = refused(CreateAssistant, with_maximum(digits))
    assert "Integers must fit into 64 bits." in error.message


@pytest.mark.parametrize(
    "value",
    [
        str(2**64 - 1),
        str(-(2**63)),
        f'"{2**64}"',
        "1.7976931348623157e308",
        "0.12345678901234567890",
    ],
)
def test_other_long_numbers_are_taken(value: str) -> None:
    parse(CreateAssistant, with_maximum(value))


def test_a_backslash_before_u0000_is_text() -> None:
    assert parse(CreateMessage, rb'{"role":"user","content":"\\u0000"}').content == r"\u0000"


def test_a_hostile_number_of_faults_is_refused_at_the_first() -> None:
    names = orjson.dumps({f"n{n}": 1 for n in range(200_000)})
    items = orjson.dumps({"tool_outputs": [1] * 1_000_000})
    assert refused(CreateThread, names).param == "n0"
    assert refused(SubmitToolOutputs, items).param == "tool_outputs[0]"
