"""Links to files are found however the text is cut, and nothing else is changed or held back."""

import time
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.runs.citations import Source, Sources
from threadmill.runs.products import Products
from threadmill.runs.scanner import Scanner
from threadmill.store.rows import Message

PREFIX = "sandbox:/mnt/data/"
NAMES = ["out.csv", "out.csv.gz", "my file (2).csv", "Übersicht.pdf", "50%25.txt", "a/b.png", "a"]
LOOKALIKES = ["s", "sandbox", ":", "/mnt/data/", "(", ")", ".", ",", " ", "\n", "-", "%", "%2", "x"]

links = st.sampled_from(NAMES).flatmap(
    lambda name: st.sampled_from([name, quote(name), quote(name, safe="").lower()])
)
fragments = st.one_of(
    st.sampled_from([*LOOKALIKES, PREFIX, "【4:0†a.txt】", "【4"]),
    links.map(lambda link: PREFIX + link),
    st.text(max_size=4),
)
texts = st.lists(fragments, max_size=12).map("".join)
places = st.lists(st.integers(0, 10_000), max_size=12)


def known() -> tuple[Sources, Products]:
    sources, products = Sources(), Products()
    sources.add(4, [Source("file-a", "a.txt", "A")])
    for name in NAMES:
        products.add(name, f"file-{NAMES.index(name)}", is_made=True)
    return sources, products


def annotated(pieces: list[str]) -> tuple[str, list[tuple[int, int, str]]]:
    """The text, and of each annotation where it is and which file it names."""
    scanner = Scanner(list(known()))
    segments = [segment for piece in pieces for segment in scanner.feed(piece)]
    value, found = "", []
    for segment in [*segments, *scanner.rest()]:
        if segment.kind and (annotation := segment.kind.annotation(segment.text, len(value))):
            stored = annotation.stored
            assert stored["text"] == segment.text
            file = stored[stored["type"]]["file_id"]
            found.append((stored["start_index"], stored["end_index"], file))
        value += segment.text
    for start, end, _ in found:
        assert value[start:end].startswith((PREFIX, "【"))
    return value, found


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(texts, places)
def test_the_cuts_change_nothing(text: str, places: list[int]) -> None:
    value, found = annotated(cut(text, places))
    assert value == text
    assert (value, found) == annotated([text])


@given(st.text(max_size=10), links, st.sampled_from([")", ' "title")', ">", " ", "\n", "。", ""]))
def test_every_name_can_be_linked(before: str, link: str, after: str) -> None:
    text = f"{before} ({PREFIX}{link}{after}"
    _, found = annotated(list(text))
    start = len(before) + 2
    assert [where[:2] for where in found if where[0] >= start] == [
        (start, start + len(PREFIX + link))
    ]


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("sandbox:/mnt/data/out.csv", [(0, 25, "file-0")]),
        ("🦊sandbox:/mnt/data/out.csv.", [(1, 26, "file-0")]),
        ("sandbox:/mnt/data/out.csv.gz", [(0, 28, "file-1")]),
        ("sandbox:/mnt/data/out.csv. Then", [(0, 25, "file-0")]),
        ("sandbox:/mnt/data/out.csv - Then", [(0, 25, "file-0")]),
        ("sandbox:/mnt/data/out.csv.bz2", []),
        ("sandbox:/mnt/data/out.csv-old", []),
        ("sandbox:/mnt/data/out.csv2", []),
        ("sandbox:/mnt/data/OUT.csv", []),
        ("sandbox:/mnt/data/other.csv", []),
        ("sandbox:/mnt/data/", []),
        ("sandbox:/mnt/data/a/b.png", [(0, 25, "file-5")]),
        ("sandbox:/mnt/data/a", [(0, 19, "file-6")]),
        ("sandbox:/mnt/data/a/c.png", []),
        ("(sandbox:/mnt/data/my%20file%20%282%29.csv)", [(1, 42, "file-2")]),
        ("(sandbox:/mnt/data/my file (2).csv)", [(1, 34, "file-2")]),
        ("(sandbox:/mnt/data/my%20file (2).csv)", [(1, 36, "file-2")]),
        ("(sandbox:/mnt/data/%c3%9Cbersicht.pdf)", [(1, 37, "file-3")]),
        ("sandbox:/mnt/data/50%25.txt", [(0, 27, "file-4")]),
        ("sandbox:/mnt/data/50%2525.txt", [(0, 29, "file-4")]),
        ("【4:0†a.txt】sandbox:/mnt/data/a", [(0, 11, "file-a"), (11, 30, "file-6")]),
        ("sandbox:/mnt/data/out.csvsandbox:/mnt/data/a", [(25, 44, "file-6")]),
    ],
)
def test_what_is_a_link(text: str, linked: list[tuple[int, int, str]]) -> None:
    assert annotated([text]) == (text, linked)
    assert annotated(list(text)) == (text, linked)


@given(texts)
def test_only_what_may_become_a_link_is_held_back(text: str) -> None:
    scanner = Scanner([known()[1]])
    out = ""
    for at, char in enumerate(text, 1):
        out += "".join(segment.text for segment in scanner.feed(char))
        held = text[len(out) : at]
        assert PREFIX.startswith(held) or held.startswith(PREFIX)
        assert len(held) < len(PREFIX) + 3 * max(len(name.encode()) for name in NAMES) + 2


@pytest.mark.parametrize("text", [PREFIX * 20_000, "s" * 300_000, (PREFIX + "out.csv ") * 10_000])
def test_a_flood_of_links_takes_no_time(text: str) -> None:
    began = time.process_time()
    assert annotated([text])[0] == text
    assert time.process_time() - began < 5


def test_what_is_there_now_comes_before_what_was_linked_and_what_was_given() -> None:
    products = Products()
    products.give("a.csv", "file-given")
    products.give("b.csv", "file-b")

    def linked(name: str) -> str:
        annotation = products.annotation(PREFIX + name, 0)
        assert annotation is not None
        return str(annotation.stored["file_path"]["file_id"])

    assert linked("a.csv") == "file-given"
    products.recall(
        [
            answer_with("a.csv", "file-old"),
            answer_with("a.csv", "file-linked"),
            answer_with("c%20d", "file-c"),
            answer_with("b.csv", "file-b"),
        ]
    )
    assert (linked("a.csv"), linked("c d"), linked("b.csv")) == ("file-linked", "file-c", "file-b")
    assert products.made == {"file-linked", "file-c"}
    products.add("a.csv", "file-present", is_made=True)
    assert linked("a.csv") == "file-present"
    products.add("a.csv", "file-given", is_made=False)
    assert linked("a.csv") == "file-given"


def answer_with(link: str, file_id: str) -> Message:
    annotation = {
        "type": "file_path",
        "text": PREFIX + link,
        "file_path": {"file_id": file_id},
    }
    fields: dict[str, Any] = dict.fromkeys(Message.__struct_fields__)
    text = {"value": PREFIX + link, "annotations": [annotation]}
    fields |= {"role": "assistant", "content": [{"type": "text", "text": text}]}
    return Message(**fields)
