"""Functions of an assistant as people type them, choose them and answer for them."""

from contextlib import suppress
from typing import Any

import orjson

from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import CreateAssistant

Json = dict[str, Any]

_REPEATED_MAX_CHARACTERS = 1000
JSON_SCHEMA = '{"type":"json_schema"}'  # among the formats of an answer


def check(functions: str, response_format: str, schema: str) -> list[str]:
    """Their names. Raises InvalidRequest, as the API would of the assistant."""
    wanted: Json = {"model": "any", "tools": _tools(functions)}
    if response_format == JSON_SCHEMA:
        described = _json(schema, "The schema of the answer")
        wanted["response_format"] = {"type": "json_schema", "json_schema": described}
    parse(CreateAssistant, orjson.dumps(wanted))
    return [tool["function"]["name"] for tool in wanted["tools"]]


def shown(tools: list[Json]) -> str:
    functions = [tool["function"] for tool in tools if tool["type"] == "function"]
    return orjson.dumps(functions, option=orjson.OPT_INDENT_2).decode() if functions else ""


def choices(tools: list[Json]) -> list[tuple[str, str | Json]]:
    """What a run can be made to do with its tools, and how the API calls that."""
    names = [tool["function"]["name"] for tool in tools if tool["type"] == "function"]
    return [
        ("none", "none"),
        ("required", "required"),
        ("file_search", {"type": "file_search"}),
        ("code_interpreter", {"type": "code_interpreter"}),
        *((name, {"type": "function", "function": {"name": name}}) for name in names),
    ]


def example(arguments: str) -> str:
    """Of an output: what was asked, if that is short, and a result."""
    asked: Any = None
    if len(arguments) <= _REPEATED_MAX_CHARACTERS:
        with suppress(orjson.JSONDecodeError):
            asked = orjson.loads(arguments)
    told = asked if isinstance(asked, dict) else {}
    return orjson.dumps(told | {"result": "ok"}).decode()


def _tools(functions: str) -> list[Json]:
    """As the script makes them: alone or in a list, with or without the tool around each."""
    given = _json(functions.strip() or "[]", "The functions")
    return [
        one
        if isinstance(one, dict) and "function" in one
        else {"type": "function", "function": one}
        for one in (given if isinstance(given, list) else [given])
    ]


def _json(text: str, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{what}: no JSON, {error.msg} in line {error.lineno}.") from None
