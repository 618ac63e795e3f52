"""Citations: the markers 【m:n†name】 that stand before each passage given to the model, and that
it repeats where it used one. What it made up is plain text.
"""

import re

import msgspec

from threadmill.runs.scanner import Annotation

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

    opening = "【"

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

    def end(self, text: str, start: int, *, is_over: bool) -> int | None:
        """Of a marker: whatever has its form reaches the client whole."""
        if found := _MARKER.match(text, start):
            return found.end()
        return None if not is_over and _BEGINNING.fullmatch(text, start) else 0

    def annotation(self, part: str, start: int) -> Annotation | None:
        source = self.cited(part)
        if source is None:
            return None
        stored = {
            "type": "file_citation",
            "text": part,
            "start_index": start,
            "end_index": start + len(part),
            "file_citation": {"file_id": source.file_id},
        }
        # In a delta with the passage it quotes.
        quoted = {"file_id": source.file_id, "quote": source.quote}
        return Annotation(stored, stored | {"file_citation": quoted})

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
