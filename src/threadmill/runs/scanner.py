"""Parts of an answer that stand for something: the markers of citations, links to files.

Such a part reaches the client whole and with its annotation, so text that may be the beginning of
one is held back until it is clear.
"""

import re
from typing import Any, Protocol

import msgspec

Json = dict[str, Any]


class Annotation(msgspec.Struct):
    stored: Json  # as it stands in the finished message
    told: Json  # as it stands in a delta, but for its index


class Kind(Protocol):
    """One kind of such parts."""

    opening: str  # what each begins with

    def end(self, text: str, start: int, *, is_over: bool) -> int | None:
        """Where the part ends that begins at `start`, 0 if there is none; None while that depends
        on what follows, which it must not if the text `is_over`."""

    def annotation(self, part: str, start: int) -> Annotation | None:
        """What a part stands for that is at this offset of the message, in Unicode code points;
        None for one that only looks like it."""


class Segment(msgspec.Struct):
    text: str
    kind: Kind | None = None  # of a part; None: there is none in the text


class Scanner:
    """Cuts a text that comes in pieces into such parts and what is between them."""

    def __init__(self, kinds: list[Kind]) -> None:
        self._kinds = {kind.opening: kind for kind in kinds}
        self._openings = re.compile("|".join(map(re.escape, self._kinds)))
        self._held = ""

    def feed(self, piece: str) -> list[Segment]:
        """The segments that are complete."""
        return self._cut(self._held + piece, is_over=False)

    def rest(self) -> list[Segment]:
        """What is still held back, once nothing more comes."""
        return self._cut(self._held, is_over=True)

    def _cut(self, text: str, *, is_over: bool) -> list[Segment]:
        segments: list[Segment] = []
        done, clear = 0, len(text)
        for found in self._openings.finditer(text):
            start = found.start()
            if start < done:
                continue
            kind = self._kinds[found[0]]
            end = kind.end(text, start, is_over=is_over)
            if end is None:
                clear = start
                break
            if end:
                segments += [Segment(text[done:start]), Segment(text[start:end], kind)]
                done = end
        else:
            if not is_over:
                clear = max(done, len(text) - self._begun_opening(text))
        segments.append(Segment(text[done:clear]))
        self._held = text[clear:]
        return [segment for segment in segments if segment.text]

    def _begun_opening(self, text: str) -> int:
        """How much of the end of the text may become an opening."""
        return max(
            length
            for opening in self._kinds
            for length in range(len(opening))
            if text.endswith(opening[:length])
        )
