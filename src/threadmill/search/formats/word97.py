"""Binary .doc, Word 97 to 2003: the text by its piece table (MS-DOC 2.4.1)."""

import struct
from collections.abc import Iterator
from typing import Any

import olefile

from threadmill.search.formats.kinds import Passage, invalid, unsupported

_WORD_95 = 0xA5DC
_WORD_97 = 0xA5EC
_ENCRYPTED = 0x0100
_TABLE_IS_1 = 0x0200
_FIRST_COUNT = 0x4C  # the lengths of the main text and, behind it, of the other texts
_CLX = 0x01A2
_FORMATTING, _PIECES = 1, 2
_IS_8_BIT = 0x4000_0000
_BLOCK_CHARACTERS = 64 * 1024

_FIELD_BEGINS, _FIELD_SHOWS, _FIELD_ENDS = "\x13", "\x14", "\x15"
_SIGNS = str.maketrans(
    {
        "\r": "\n",  # the end of a paragraph
        "\x07": " | ",  # of a cell, and once more of its row
        "\x0b": "\n",
        "\x0c": "\n\n",
        "\x0e": "\n",
        "\x1e": "-",
        "\xa0": " ",
        # Soft hyphens, and the places of pictures, drawings, notes and comments.
        **dict.fromkeys("\x1f\x01\x02\x03\x04\x05\x06\x08"),
    }
)


def word97_passages(ole: "olefile.OleFileIO[Any]") -> Iterator[Passage]:
    main = ole.openstream("WordDocument").read()
    try:
        magic, flags = struct.unpack_from("<H8xH", main)
        if magic == _WORD_95:
            raise unsupported("it was saved by Word 95 or older; save it as .docx")
        if magic != _WORD_97:
            raise invalid("it is a damaged Word document")
        if flags & _ENCRYPTED:
            raise invalid("it is encrypted; remove its password first")
        table = ole.openstream("1Table" if flags & _TABLE_IS_1 else "0Table").read()
        offset, size = struct.unpack_from("<II", main, _CLX)
        pieces = list(_pieces(table[offset : offset + size]))
        wanted = _wanted(struct.unpack_from("<8I", main, _FIRST_COUNT))
    except (struct.error, OSError) as error:
        raise invalid("it is a damaged Word document") from error
    fields = _Fields()
    for begin, end in wanted:
        for text in _texts(main, pieces, begin, end):
            yield Passage(fields.shown(text).replace("\x07\x07", "\n").translate(_SIGNS))
        yield Passage("\n")


def _wanted(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Main text, footnotes, endnotes and text boxes; not page headers, macros and comments."""
    ranges, begin = [], 0
    for number, count in enumerate(counts):
        if count and number in (0, 1, 5, 6):
            ranges.append((begin, begin + count))
        begin += count
    return ranges


def _pieces(clx: bytes) -> Iterator[tuple[int, int, int]]:
    """(first character, the one after the last, where in the file), in the order of the text."""
    at = 0
    while clx[at] == _FORMATTING:
        at += 3 + int(struct.unpack_from("<H", clx, at + 1)[0])
    kind, size = struct.unpack_from("<BI", clx, at)
    if kind != _PIECES:
        raise struct.error
    count = (size - 4) // 12
    bounds = struct.unpack_from(f"<{count + 1}I", clx, at + 5)
    for number in range(count):
        (where,) = struct.unpack_from("<2xI2x", clx, at + 5 + 4 * (count + 1) + 8 * number)
        yield bounds[number], bounds[number + 1], where


def _texts(main: bytes, pieces: list[tuple[int, int, int]], begin: int, end: int) -> Iterator[str]:
    for first, behind, where in pieces:
        first_wanted, behind_wanted = max(first, begin), min(behind, end)
        for start in range(first_wanted, behind_wanted, _BLOCK_CHARACTERS):
            length = min(_BLOCK_CHARACTERS, behind_wanted - start)
            if where & _IS_8_BIT:
                offset = (where & ~_IS_8_BIT) // 2 + start - first
                yield main[offset : offset + length].decode("cp1252", "replace")
            else:
                offset = where + 2 * (start - first)
                yield main[offset : offset + 2 * length].decode("utf-16-le", "replace")


class _Fields:
    """A field is its code, a sign, what it shows, and an end: `HYPERLINK "…"` is not text."""

    def __init__(self) -> None:
        self._hidden: list[bool] = []

    def shown(self, text: str) -> str:
        if not self._hidden and _FIELD_BEGINS not in text:
            return text
        kept = []
        for character in text:
            if character == _FIELD_BEGINS:
                self._hidden.append(True)
            elif character == _FIELD_SHOWS and self._hidden:
                self._hidden[-1] = False
            elif character == _FIELD_ENDS and self._hidden:
                self._hidden.pop()
            elif not any(self._hidden):
                kept.append(character)
        return "".join(kept)
