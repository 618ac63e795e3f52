"""Attributes of files, and filters over them, as people type them.

    region = eu
    pages >= 10
    language in ["de", "fr"]

A line for each condition, or `and` between them; or the filter as JSON, as the API takes it. A
number and true or false are meant as such, unless they stand in quotes.
"""

import re
from typing import Any

import orjson

from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import refuse_unstorable

Json = dict[str, Any]

_KINDS = {"=": "eq", "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_LISTS = {"in": "in", "not in": "nin"}
_CONDITION = re.compile(
    r"""\s* (?: "(?P<quoted>[^"]+)" | (?P<key>[^\s=!<>]+) ) \s*
    (?P<sign> [=!<>]=? | \bnot\s+in\b | \bin\b ) \s*
    (?P<value> "(?:[^"\\]|\\.)*" | \[.*?\] | (?:(?!\s+and\s)[^\n])* ) \s*
    (?: \band\s | \n | $ )""",
    re.VERBOSE | re.IGNORECASE,
)


def read(text: str) -> str | int | float | bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def write(value: str | int | float | bool) -> str:
    """What `read` makes that value of."""
    is_itself = isinstance(value, str) and read(value) == value and isinstance(read(value), str)
    return str(value) if is_itself else orjson.dumps(value).decode()


def parse_filter(text: str) -> Json | None:
    """None for an empty one. Raises InvalidRequest, in words for people."""
    text = text.strip()
    if not text:
        return None
    if text.startswith("{"):
        return _from_json(text)
    conditions = []
    at = 0
    while at < len(text):
        found = _CONDITION.match(text, at)
        if found is None:
            raise _unreadable(text[at:])
        conditions.append(_condition(found))
        at = found.end()
    return conditions[0] if len(conditions) == 1 else {"type": "and", "filters": conditions}


def _condition(found: re.Match[str]) -> Json:
    key = found["quoted"] or found["key"]
    sign = " ".join(found["sign"].lower().split())
    value = found["value"].strip()
    if sign in _KINDS:
        return {"type": _KINDS[sign], "key": key, "value": read(value)}
    try:
        several = orjson.loads(value) if sign in _LISTS else None
    except orjson.JSONDecodeError:
        several = None
    if not isinstance(several, list):
        raise _unreadable(found[0])
    return {"type": _LISTS[sign], "key": key, "value": several}


def _from_json(text: str) -> Json:
    try:
        sent: Json = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _unreadable(text) from None
    refuse_unstorable(text.encode(), sent)
    return sent


def _unreadable(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"The filter cannot be read from here on: {text.strip()[:60]} - write it as"
        ' region = eu, or as JSON: {"type": "eq", "key": "region", "value": "eu"}'
    )
