"""Texts in pieces, of which some stand out."""

from itertools import pairwise

import msgspec

from threadmill.store.chunks import MARK, UNMARK, Stored


class Piece(msgspec.Struct):
    text: str
    stands_out: bool = False


def marked(text: str) -> list[Piece]:
    """Of a text in which words stand between MARK and UNMARK."""
    before, *rest = text.split(MARK)
    pieces = [Piece(before)]
    for part in rest:
        word, _, after = part.partition(UNMARK)
        pieces += [Piece(word, stands_out=True), Piece(after)]
    return [piece for piece in pieces if piece.text]


def overlapping(before: Stored | None, chunk: Stored, after: Stored | None) -> list[Piece]:
    """The chunk's text; what its neighbours hold as well stands out."""
    start = _overlap(before, chunk)
    end = max(len(chunk.text) - _overlap(chunk, after), start)
    places = [0, start, end, len(chunk.text)]
    pieces = [
        Piece(chunk.text[one:other], stands_out=at != 1)
        for at, (one, other) in enumerate(pairwise(places))
    ]
    return [piece for piece in pieces if piece.text]


def _overlap(before: Stored | None, after: Stored | None) -> int:
    """How many characters the one ends with that the other begins with."""
    if before is None or after is None or _is_apart(before, after):
        return 0
    for size in range(min(len(before.text), len(after.text)), 0, -1):
        if before.text.endswith(after.text[:size]):
            return size
    return 0


def _is_apart(before: Stored, after: Stored) -> bool:
    if before.first_token is None or after.first_token is None:
        return False  # from an earlier version: the texts must tell
    return before.first_token + before.token_count <= after.first_token
