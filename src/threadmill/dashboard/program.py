"""What was done in the playground, as a program for the official SDKs or for curl.

The script tells what it has sent. It is checked as the API has checked it, so the names in it are
names of the API's fields; every value is written as a literal of the language.
"""

import shlex
from typing import Any

import msgspec
import orjson

from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import CreateAssistant, CreateMessage, CreateRun

Json = dict[str, Any]

_WIDTH = 84


class Done(msgspec.Struct):
    """The last exchange. What was made for it is made again, what was there is named."""

    assistant_id: str
    run: Json
    assistant: Json | None = None  # it was made for this
    thread_id: str | None = None  # None: it was made for this
    message: Json | None = None
    outputs: dict[str, str] = {}  # of functions, by their names


def read(sent: bytes) -> Done:
    try:
        done = msgspec.json.decode(sent, type=Done)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"That was not done in the playground: {error}") from None
    for shape, body in (
        (CreateAssistant, done.assistant),
        (CreateMessage, done.message),
        (CreateRun, done.run),
    ):
        if body is not None:
            parse(shape, orjson.dumps(body))
            for name in [name for name, value in body.items() if value in (None, [])]:
                del body[name]  # not given
    return done


def python(value: Any, indent: int = 0) -> str:
    """A literal of Python."""
    flat = repr(value)
    if not isinstance(value, dict | list) or indent + len(flat) <= _WIDTH:
        return flat
    inner = " " * (indent + 4)
    if isinstance(value, dict):
        items = [f"{key!r}: {python(item, indent + 4)}" for key, item in value.items()]
    else:
        items = [python(item, indent + 4) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = "".join(f"{inner}{item},\n" for item in items)
    return f"{opening}\n{lines}{' ' * indent}{closing}"


def javascript(value: Any, indent: int = 0) -> str:
    """A literal of JavaScript. JSON is one."""
    written = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return written.replace("\n", "\n" + " " * indent)


def shell(value: Any) -> str:
    """One word for a shell."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return shlex.quote(text)
