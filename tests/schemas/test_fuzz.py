"""Whatever is sent: a valid shape or a refusal that can be sent back, and nothing else."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.bodies import TAKEN
from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import Shape, parse

NAMES = st.text(max_size=80) | st.sampled_from(
    ["type", "function", "name", "text", "metadata", "tools", "\0text", "\0", "{path}", "schema"]
)
NUMBERS = (
    st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**53, 2**63, 2**64 - 1, 1e300, -0.0, 1e-320])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
SHAPES = list(TAKEN)


def survive(shape: type[Shape], raw: bytes) -> None:
    try:
        answer = stored(parse(shape, raw))
    except InvalidRequest as refusal:
        answer = [refusal.body()]
    assert b"\\u0000" not in orjson.dumps(answer).replace(rb"\\", b"")


def stored(parsed: Shape) -> list[Any]:
    return [getattr(parsed, name)() for name in dir(type(parsed)) if name.startswith("normal_")]


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `node`."""
    if not isinstance(node, dict | list):
        return []
    found = list(node.items() if isinstance(node, dict) else enumerate(node))
    return [(node, key) for key, _ in found] + [p for _, child in found for p in places(child)]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60)
@given(raw=st.binary() | JSON.map(orjson.dumps))
@example(raw=b"[" * 2000)
@example(raw=b'{"":1}')
def test_any_bytes(shape: type[Shape], raw: bytes) -> None:
    survive(shape, raw)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=150)
@given(data=st.data())
def test_a_good_body_with_something_put_into_it(shape: type[Shape], data: st.DataObject) -> None:
    body = copy.deepcopy(TAKEN[shape][1])
    for _ in range(data.draw(st.integers(1, 3))):
        options = places(body)
        if not options:
            break
        container, key = options[data.draw(st.integers(0, len(options) - 1))]
        if isinstance(container, dict):
            match data.draw(st.sampled_from(["replace", "remove", "add"])):
                case "replace":
                    container[key] = data.draw(JSON)
                case "remove":
                    del container[key]
                case "add":
                    container[data.draw(NAMES)] = data.draw(JSON)
        else:
            container[key] = data.draw(JSON)
    survive(shape, orjson.dumps(body))
