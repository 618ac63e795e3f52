"""Functions of an assistant as people type them, choose them and answer for them."""

from contextlib import suppress
from typing import Any

import orjson

from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import parse, refuse_unstorable
from threadmill.schemas.requests import CreateAssistant

Json = dict[str, Any]

_OF_A_TOOL = {"type", "function"}
_REPEATED_MAX_CHARACTERS = 1000
JSON_SCHEMA = '{"type":"json_schema"}'  # among the formats of an answer


def check(functions: str, response_format: str, schema: str) -> list[str]:
    """Their names. Raises InvalidRequest, as the API would of the assistant."""
    wanted: Json = {"model": "any", "tools": _tools(functions)}
    if response_format == JSON_SCHEMA:
        described = read(schema, "The schema of the answer")
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


def read(text: str, what: str = "That") -> Any:
    """JSON as somebody typed it. Raises InvalidRequest."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"{what} is not JSON. Line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    refuse_unstorable(text.encode(), value)  # before it is written: more levels are read than that
    return value


def definition(sent: Any) -> Any:
    """Of a function that may stand there as a whole tool, as it does in somebody's code."""
    if isinstance(sent, dict) and sent.get("type") == "function" and set(sent) <= _OF_A_TOOL:
        return sent.get("function")
    return sent


def _tools(functions: str) -> list[Json]:
    """Of one function or a list of them."""
    given = read(functions.strip() or "[]", "What stands here")
    return [
        {"type": "function", "function": definition(one)}
        for one in (given if isinstance(given, list) else [given])
    ]
