"""Filters as SQL against the same filters in Python, on the same attributes."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import orjson
import psycopg
import pytest

from threadmill.store import filters

Json = dict[str, Any]

NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, 1.0, -2.0, 2.5, 1e300, 2**53 + 1, 0.1])
)
STRINGS = st.sampled_from(
    ["", "a", "b", "B", "ä", "z", "aa", "1", "true", "' OR 1=1 --", '"', "\\", "%s", "%(filter_0)s"]
)
VALUES = st.one_of(NUMBERS, STRINGS, st.booleans())
KEYS = st.sampled_from(["a", "b", "c'", 'd"}', "%", "1", "{}", "ключ"])
COMPARISONS = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]),
            "key": KEYS,
            "value": VALUES,
        }
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": KEYS, "value": st.lists(VALUES, max_size=3)}
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(inner, max_size=3)}
    ),
    max_leaves=6,
)


def matches(one: Json, attributes: Json) -> bool:
    kind = one["type"]
    if kind == "and":
        return all(matches(part, attributes) for part in one["filters"])
    if kind == "or":
        return any(matches(part, attributes) for part in one["filters"])
    if kind in ("ne", "nin"):
        return not matches(one | {"type": "eq" if kind == "ne" else "in"}, attributes)
    value, has = one["value"], attributes.get(one["key"])
    if kind == "in":
        return any(is_same(has, item) for item in value)
    if kind == "eq":
        return is_same(has, value)
    if kind_of(has) != kind_of(value) or kind_of(has) not in ("number", "string"):
        return False
    return {"gt": has > value, "gte": has >= value, "lt": has < value, "lte": has <= value}[kind]


def kind_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else "truth"
    return "string" if isinstance(value, str) else "number"


def is_same(one: object, other: object) -> bool:
    return kind_of(one) == kind_of(other) and one is not None and one == other


@pytest.fixture(scope="session")
def connection(postgres: str) -> Any:
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


def selected(connection: psycopg.Connection, attributes: Json, one: Json) -> bool | None:
    sql, values = filters.compiled(one)
    row = connection.execute(
        f"SELECT {sql} FROM (SELECT %(attributes)s::jsonb AS attributes) AS vector_store_files",
        {"attributes": orjson.dumps(attributes).decode(), **values},
    ).fetchone()
    assert row is not None
    found: bool | None = row[0]
    return found


@hypothesis.settings(max_examples=300)
@hypothesis.given(attributes=st.dictionaries(KEYS, VALUES, max_size=4), one=FILTERS)
def test_the_database_selects_what_python_does(
    connection: psycopg.Connection, attributes: Json, one: Json
) -> None:
    assert selected(connection, attributes, one) is matches(one, attributes)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ({"type": "eq", "key": "n", "value": 1.0}, True),
        ({"type": "eq", "key": "n", "value": "1"}, False),
        ({"type": "eq", "key": "n", "value": True}, False),
        ({"type": "gt", "key": "n", "value": 0.5}, True),
        ({"type": "gt", "key": "s", "value": 5}, False),
        ({"type": "lt", "key": "s", "value": 5}, False),
        ({"type": "gte", "key": "s", "value": "a"}, True),
        ({"type": "gt", "key": "t", "value": False}, False),
        ({"type": "eq", "key": "none", "value": 1}, False),
        ({"type": "gt", "key": "none", "value": 1}, False),
        ({"type": "in", "key": "none", "value": [1]}, False),
        ({"type": "ne", "key": "none", "value": 1}, True),
        ({"type": "nin", "key": "none", "value": [1]}, True),
        ({"type": "ne", "key": "n", "value": "1"}, True),
        ({"type": "in", "key": "s", "value": []}, False),
        ({"type": "nin", "key": "s", "value": []}, True),
        ({"type": "and", "filters": []}, True),
        ({"type": "or", "filters": []}, False),
    ],
)
def test_missing_keys_and_other_types(
    connection: psycopg.Connection, one: Json, expected: bool
) -> None:
    assert selected(connection, {"n": 1, "s": "a", "t": True}, one) is expected


@pytest.mark.parametrize("value", ["\x00", "\ud800", float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("kind", ["eq", "ne", "gt", "lte", "in", "nin"])
def test_what_no_attribute_can_be_equal_to_is_no_fault(
    connection: psycopg.Connection, kind: str, value: object
) -> None:
    given = [value] if kind in ("in", "nin") else value
    found = selected(connection, {"a": 1}, {"type": kind, "key": "a", "value": given})
    assert found is (kind in ("ne", "nin") or (kind == "lte" and value == 10**400))


def test_an_odd_key_is_a_missing_one(connection: psycopg.Connection) -> None:
    for key in ("\x00", "\ud800"):
        assert selected(connection, {}, {"type": "eq", "key": key, "value": 1}) is False
        assert selected(connection, {}, {"type": "ne", "key": key, "value": 1}) is True


def test_what_a_client_gave_is_nowhere_in_the_sql() -> None:
    evil = "x'); DROP TABLE chunks; --"
    for kind, value in (("eq", evil), ("gt", evil), ("in", [evil]), ("nin", [evil])):
        sql, _ = filters.compiled({"type": kind, "key": evil, "value": value})
        assert "DROP" not in sql
