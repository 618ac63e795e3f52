"""Citations: the markers 【m:n†name】 that stand before each passage given to the model, and that
it repeats where it used one.

A marker reaches the client whole and with its annotation, so text that may be the beginning of one
is held back until it is clear. What the model made up is plain text.
"""

import re
from typing import Any

import msgspec

Json = dict[str, Any]

_OPENING = "【"
_MARKER = re.compile(r"【(\d{1,6}):(\d{1,6})†([^【】\n]{0,512})】")
# What the beginning of a marker can look like.
_BEGINNING = re.compile(r"【(\d{0,6}|\d{1,6}:\d{0,6}|\d{1,6}:\d{1,6}†[^【】\n]{0,512})")
_QUOTE_MAX_CHARACTERS = 500


class Source(msgspec.Struct):
    """A passage that was given to the model."""

    file_id: str
    filename: str
    text: str

    @property
    def quote(self) -> str:
        return self.text.strip()[:_QUOTE_MAX_CHARACTERS]


class Sources:
    """All passages given in one run, by the two numbers of their markers."""

    def __init__(self) -> None:
        self._sources: dict[tuple[int, int], Source] = {}

    def add(self, m: int, passages: list[Source]) -> None:
        for n, passage in enumerate(passages):
            self._sources[m, n] = passage

    def cited(self, marker: str) -> Source | None:
        """The passage that a marker stands for; None for one that was never given out.

        The name must fit: the thread may hold markers of earlier runs with the same numbers.
        """
        found = _MARKER.fullmatch(marker)
        if found is None:
            return None
        source = self._sources.get((int(found[1]), int(found[2])))
        if source is None or found[3] not in (marker_name(source.filename), "source"):
            return None
        return source

    @property
    def are_there(self) -> bool:
        return bool(self._sources)

    def next_m(self, wanted: int) -> int:
        """A first number that no marker of this run has yet."""
        return max([wanted - 1, *(m for m, _ in self._sources)]) + 1


def marker(m: int, n: int, filename: str) -> str:
    return f"【{m}:{n}†{marker_name(filename)}】"


def marker_name(filename: str) -> str:
    """The file's name as a marker can hold it."""
    return re.sub(r"[【】\n]", " ", filename)[:512]


class Scanner:
    """Cuts a text that comes in pieces into markers and what is between them."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> list[str]:
        """Segments that are complete: each is either one whole marker or holds none."""
        text, self._held = self._held + piece, ""
        last = text.rfind(_OPENING)
        if last >= 0 and _BEGINNING.fullmatch(text, last):
            text, self._held = text[:last], text[last:]
        segments: list[str] = []
        start = 0
        for found in _MARKER.finditer(text):
            segments += [text[start : found.start()], found[0]]
            start = found.end()
        segments.append(text[start:])
        return [segment for segment in segments if segment]

    def rest(self) -> str:
        """What is still held back, once nothing more comes: it was no marker."""
        held, self._held = self._held, ""
        return held


def annotation(source: Source, text: str, start: int) -> Json:
    """As it stands in the finished message. Offsets count Unicode code points; the end is
    exclusive."""
    return {
        "type": "file_citation",
        "text": text,
        "start_index": start,
        "end_index": start + len(text),
        "file_citation": {"file_id": source.file_id},
    }


def annotation_delta(index: int, annotation: Json, source: Source) -> Json:
    """As it stands in a delta: with its index, and with the passage it quotes."""
    citation = {"file_id": source.file_id, "quote": source.quote}
    return {"index": index} | annotation | {"file_citation": citation}
