"""Attribute filters of a search as a condition on `vector_store_files.attributes`.

    {"type": "eq" | "ne" | "gt" | "gte" | "lt" | "lte", "key": ..., "value": ...}
    {"type": "in" | "nin", "key": ..., "value": [...]}
    {"type": "and" | "or", "filters": [...]}

Numbers compare as numbers (1 is 1.0), strings by code points. A key that is missing and a value of
another type match nothing; `ne` and `nin` are the opposites of `eq` and `in`, so they match both.
Truth values are equal or not, but none is greater. What a client gave is in the parameters alone.
"""

import json
import math
from typing import Any

Condition = tuple[str, dict[str, Any]]

_ORDERS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_JOINS = {"and": " AND ", "or": " OR "}


def compiled(filters: dict[str, Any]) -> Condition:
    """The SQL, never null, and its parameters."""
    values: dict[str, Any] = {}
    return _condition(filters, values), values


def _condition(one: dict[str, Any], values: dict[str, Any]) -> str:
    kind = one["type"]
    if kind in _JOINS:
        parts = [_condition(part, values) for part in one["filters"]]
        return f"({_JOINS[kind].join(parts)})" if parts else str(kind == "and").lower()
    if kind in ("ne", "nin"):
        opposite = "eq" if kind == "ne" else "in"
        return f"NOT {_comparison(opposite, one['key'], one['value'], values)}"
    return _comparison(kind, one["key"], one["value"], values)


def _comparison(kind: str, key: str, value: Any, values: dict[str, Any]) -> str:
    if kind == "in":
        value = [item for item in value if _can_be_stored(item)]
    elif not _can_be_stored(value):
        return "false"
    if not _can_be_stored(key):
        return "false"
    attribute = f"vector_store_files.attributes -> {_parameter(key, values)}::text"
    if kind == "eq":
        given = _parameter(json.dumps(value), values)
        return f"coalesce({attribute} = {given}::jsonb, false)"
    if kind == "in":
        given = _parameter(json.dumps(value), values)
        return f"coalesce({given}::jsonb @> ({attribute}), false)"
    if isinstance(value, bool):
        return "false"
    return _order(_ORDERS[kind], attribute, value, values)


def _order(sign: str, attribute: str, value: str | float, values: dict[str, Any]) -> str:
    """CASE, for a string that is no number must not be cast to one."""
    raw = f"({attribute} #>> '{{}}')"
    if isinstance(value, str):
        kind, left = "string", f'{raw} COLLATE "C"'
        right = f"{_parameter(value, values)}::text"
    else:
        kind, left = "number", f"{raw}::numeric"
        right = f"{_parameter(json.dumps(value), values)}::numeric"
    return f"CASE jsonb_typeof({attribute}) WHEN '{kind}' THEN {left} {sign} {right} ELSE false END"


def _can_be_stored(value: Any) -> bool:
    """What JSON in Postgres cannot hold, no attribute can be equal to."""
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
    return not isinstance(value, float) or math.isfinite(value)


def _parameter(value: str, values: dict[str, Any]) -> str:
    name = f"filter_{len(values)}"
    values[name] = value
    return f"%({name})s"
