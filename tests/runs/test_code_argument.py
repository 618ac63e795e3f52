"""The code in the arguments of a call is read while they come, cut anywhere."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.runs.code_argument import CodeArgument

SIGNS = st.sampled_from(
    ['"', "\\", "\n", "\t", "/", "é", "🦊", "\u2028", "{", "}", ":", ",", "\\u"]
)
codes = st.lists(st.one_of(SIGNS, st.text(max_size=4)), max_size=12).map("".join)
others: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), codes),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
places = st.lists(st.integers(0, 10_000), max_size=12)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def read(pieces: list[str]) -> str:
    argument = CodeArgument()
    told = "".join(argument.feed(piece) for piece in pieces) + argument.end()
    assert told == argument.code
    return told


@given(
    codes,
    st.dictionaries(st.text(max_size=5).filter(lambda name: name != "code"), others, max_size=3),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([None, 2]),
    places,
)
def test_it_is_found_however_the_json_is_written_and_cut(
    code: str, more: Any, at: int, ascii_only: bool, indent: int | None, places: list[int]
) -> None:
    pairs = list(more.items())
    pairs.insert(at, ("code", code))
    written = json.dumps(dict(pairs), ensure_ascii=ascii_only, indent=indent)
    assert read(cut(written, places)) == code.replace("\0", "\ufffd")


@given(codes.map(lambda code: code.replace("\0", "")), st.booleans())
def test_nothing_is_held_back_but_an_escape(code: str, ascii_only: bool) -> None:
    written = json.dumps({"code": code}, ensure_ascii=ascii_only)
    argument = CodeArgument()
    for at, char in enumerate(written, 1):
        argument.feed(char)
        so_far = written[len('{"code": "') : at]
        told = json.dumps(argument.code, ensure_ascii=ascii_only)[1:-1]
        assert len(so_far) - len(told) <= len("\\ud83d\\udd8a")


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ('{"code": "a\nb"}', "a\nb"),  # a newline that nobody escaped
        (r'{"code": "re.match(\"\d\\d\")"}', 're.match("\\d\\d")'),
        (r'{"code": "\u00"}', r"\u00"),
        (r'{"code": "\ud83d\ude00"}', "😀"),
        (r'{"code": "\ud83d!"}', "\ufffd!"),
        (r'{"code": "\ud83d\ud83d\ude00"}', "\ufffd😀"),
        (r'{"code": "\udE00"}', "\ufffd"),
        (r'{"code": "\u0000"}', "\ufffd"),
        (r'{"code": "1', "1"),
        ('{"code": "1"} and more', "1"),
        ('{"code": "1", "code": "2"}', "1"),
        ('{"other": {"code": "1"}, "code": "2"}', "2"),
        ('{"other": "code", "co\\u0064e": "2"}', "2"),
        ('{"python": "print(1)"}', "print(1)"),
        ('{"timeout": 3, "source": "print(1)"}', "print(1)"),
        ('"print(1)"', "print(1)"),
        ("print(1)\n", "print(1)"),
        ("{1: 2}[1]", "{1: 2}[1]"),
        ("", ""),
        ("{}", ""),
        ("null", ""),
        ('["print(1)"]', ""),
        ('{"code": 1}', ""),
        ('{"one": "a", "other": "b"}', ""),
        ('{"co', ""),
    ],
)
def test_what_models_write(written: str, code: str) -> None:
    assert read([written]) == code
    assert read(list(written)) == code


@pytest.mark.parametrize("code", ["x" * 1_000_000, "\\" * 300_000, "é\n" * 200_000])
def test_long_code_takes_no_time(code: str) -> None:
    began = time.process_time()
    written = json.dumps({"code": code})
    assert read([written[at : at + 50] for at in range(0, len(written), 50)]) == code
    assert time.process_time() - began < 5
