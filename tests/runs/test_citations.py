"""Markers are found however the text is cut, and nothing else is changed or held for long."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.runs import citations
from threadmill.runs.citations import Source, Sources
from threadmill.runs.scanner import Scanner

MARKER = re.compile(r"【\d{1,6}:\d{1,6}†[^【】\n]{0,512}】")

# Texts in which much looks like a marker, and little is one.
LOOKALIKES = """
【|】|†|:|4|0|123456|a|é|🦊|name.pdf| |【4:0†name.pdf】|【12:3†|【4:|【4:0†source】|【1:1†🦊】|【†】
"""
fragments = st.sampled_from([*LOOKALIKES.strip().split("|"), "\n", "x" * 300])
texts = st.lists(st.one_of(fragments, st.text(max_size=5)), max_size=20).map("".join)


def scanned(pieces: list[str]) -> list[str]:
    scanner = Scanner([Sources()])
    segments = [segment for piece in pieces for segment in scanner.feed(piece)]
    return [segment.text for segment in [*segments, *scanner.rest()]]


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(texts, st.lists(st.integers(0, 10_000), max_size=12))
def test_nothing_is_lost_and_every_marker_is_whole(text: str, places: list[int]) -> None:
    segments = scanned(cut(text, places))
    assert "".join(segments) == text
    markers = [segment for segment in segments if MARKER.fullmatch(segment)]
    assert markers == MARKER.findall(text)
    assert not any(MARKER.search(segment) for segment in segments if segment not in markers)
    assert all(segments)


@given(texts)
def test_only_what_may_become_a_marker_is_held_back(text: str) -> None:
    scanner = Scanner([Sources()])
    out = ""
    for at, char in enumerate(text, 1):
        out += "".join(segment.text for segment in scanner.feed(char))
        held = text[len(out) : at]
        assert re.fullmatch(r"(【(\d{0,6}|\d+:\d{0,6}|\d+:\d+†[^【】\n]{0,512}))?", held)


@pytest.mark.parametrize("text", ["【" * 200_000, "【4:0†" * 40_000, "【4:0†x】" * 40_000])
def test_a_flood_of_brackets_takes_no_time(text: str) -> None:
    began = time.process_time()
    assert "".join(scanned([text])) == text
    assert time.process_time() - began < 2


@given(st.integers(0, 999_999), st.integers(0, 999_999), st.text(max_size=600))
def test_every_filename_has_a_marker_that_is_found_again(m: int, n: int, filename: str) -> None:
    sources = Sources()
    sources.add(m, [Source("file-other", "other.txt", "")] * n if n < 5 else [])
    source = Source("file-a", filename, "text")
    n = n if n < 5 else 0
    sources.add(m, [Source("file-other", "other.txt", "")] * n + [source])
    marker = citations.marker(m, n, filename)
    assert MARKER.fullmatch(marker)
    assert sources.cited(marker) is source
    assert scanned(list(f"See {marker}.")) == ["S", "e", "e", " ", marker, "."]


def test_what_was_not_given_is_not_cited() -> None:
    sources = Sources()
    assert not sources.are_there
    sources.add(4, [Source("file-a", "a.txt", "A"), Source("file-b", "b.txt", "B")])
    assert sources.are_there
    for marker, file_id in (
        ("【4:0†a.txt】", "file-a"),
        ("【4:1†b.txt】", "file-b"),
        ("【4:1†source】", "file-b"),  # as the original wrote it at first
        ("【4:1†a.txt】", None),
        ("【4:2†a.txt】", None),
        ("【5:0†a.txt】", None),
        ("【4:0†】", None),
        ("【4:0†a.txt】 ", None),
        ("4:0†a.txt", None),
        ("", None),
    ):
        found = sources.cited(marker)
        assert (found and found.file_id) == file_id, marker


def test_first_numbers_are_given_out_once() -> None:
    sources = Sources()
    assert sources.next_m(4) == 4
    sources.add(4, [Source("file-a", "a.txt", "A")])
    assert sources.next_m(3) == 5
    assert sources.next_m(4) == 5
    assert sources.next_m(9) == 9


def test_an_annotation_counts_code_points_and_quotes_in_the_delta_only() -> None:
    sources = Sources()
    sources.add(4, [Source("file-a", "a.txt", "  " + "word " * 200)])
    annotation = sources.annotation("【4:0†a.txt】", 7)
    assert annotation is not None
    assert annotation.stored == {
        "type": "file_citation",
        "text": "【4:0†a.txt】",
        "start_index": 7,
        "end_index": 18,
        "file_citation": {"file_id": "file-a"},
    }
    quote = annotation.told["file_citation"].pop("quote")
    assert ("word " * 200).startswith(quote)
    assert len(quote) == 500
    assert annotation.told == annotation.stored
