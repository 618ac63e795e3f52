"""Plain text and what is nearly so: encodings, Markdown and TeX headings, rows of CSV."""

import codecs
import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import charset_normalizer

from threadmill.search.formats.kinds import Kind, Passage, invalid

_BLOCK_BYTES = 64 * 1024
_LINE_MAX_CHARACTERS = 64 * 1024  # a longer one is handed on in parts: some files are one line
_SAMPLE_BYTES = 64 * 1024
_FIELD_MAX_CHARACTERS = 1024 * 1024
_HEADING_MAX_CHARACTERS = 200

# What no text has, but for a stray one. Tab, line ends, form feed, backspace and escape are left
# out: logs have them.
_CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\r\f\b\x1b\x1a"))
_BINARY_SHARE = 0.01

# The longer one first: UTF-32's little-endian mark begins with UTF-16's.
_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(\S.*)")
_TEX_HEADING = re.compile(r"\s*\\(?:part|chapter|(?:sub){0,2}section)\*?\{([^{}]+)\}")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def text_passages(file: BinaryIO, kind: Kind, extension: str) -> Iterator[Passage]:
    blocks = decoded(file, encoding_of(file))
    match kind:
        case Kind.MARKDOWN:
            yield from _headed(blocks, _MARKDOWN_HEADING, fences=True)
        case Kind.TEX:
            yield from _headed(blocks, _TEX_HEADING, fences=False)
        case Kind.ROWS:
            yield from _csv(blocks, "\t" if extension == ".tsv" else None)
        case _:
            yield from map(Passage, blocks)


def decoded(file: BinaryIO, encoding: str) -> Iterator[str]:
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while block := file.read(_BLOCK_BYTES):
        yield decoder.decode(block)
    yield decoder.decode(b"", True)


def encoding_of(file: BinaryIO, declared: str | None = None) -> str:
    """UTF-8 if all of it is; else what the bytes look like. Raises if they look like no text."""
    file.seek(0)
    sample = file.read(_SAMPLE_BYTES)
    for mark, marked in _MARKS:
        if sample.startswith(mark):
            return marked
    if encoding := _utf_16_without_mark(sample):
        return encoding
    file.seek(0)
    is_utf_8, control_share = _survey(file)
    if control_share > _BINARY_SHARE:
        raise invalid("it is neither text nor a document of a known kind")
    if declared and (not is_utf_8 or declared.startswith("iso2022")):
        return declared
    return "utf-8" if is_utf_8 or _is_damaged_utf_8(sample) else _legacy(sample)


def known_encoding(name: str) -> str | None:
    """What Python calls it, if it knows it, and if it is one of text ("rot13" is not)."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError, UnicodeError):
        return None


def rows_text(rows: Iterable[list[str]]) -> Iterator[str]:
    """Each row with the names of its columns, so that a chunk of them can be understood alone."""
    header: list[str] | None = None
    for number, row in enumerate(rows):
        if number == 0 and _is_header(row):
            header = row
            yield _bare(row)
        elif header:
            yield _named(header, row)
        else:
            yield _bare(row)


def as_heading(text: str) -> str | None:
    return " ".join(text.split())[:_HEADING_MAX_CHARACTERS] or None


def _survey(file: BinaryIO) -> tuple[bool, float]:
    """Whether all of it is UTF-8, and which part of it is control characters."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    is_utf_8, size, controls = True, 0, 0
    while block := file.read(_BLOCK_BYTES):
        size += len(block)
        controls += len(block) - len(block.translate(None, _CONTROLS))
        if is_utf_8:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                is_utf_8 = False
    try:
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        is_utf_8 = False
    return is_utf_8, controls / max(size, 1)


def _utf_16_without_mark(sample: bytes) -> str | None:
    """Latin letters and spaces have their zero on one side, and none on the other; where there are
    few of them, the line ends still have theirs."""
    sample = sample[: len(sample) // 2 * 2]
    zeros = {"utf-16-be": sample[::2].count(0), "utf-16-le": sample[1::2].count(0)}
    encoding, other = sorted(zeros, key=lambda name: -zeros[name])
    if zeros[encoding] <= len(sample) // 200:
        return None
    text = sample.decode(encoding, "replace")
    lines = text.count("\n")
    if zeros[other] > zeros[encoding] // 50 and (not lines or lines < 0.9 * sample.count(b"\n")):
        return None
    odd = sum(unicodedata.category(character) in ("Cn", "Co", "Cs") for character in text)
    odd += text.count("\ufffd") + sum(text.count(chr(control)) for control in _CONTROLS)
    return encoding if odd <= len(text) // 50 + 1 else None


def _is_damaged_utf_8(sample: bytes) -> bool:
    """One bad byte among many good ones does not make it another encoding."""
    # A sample ends anywhere, also within a character.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(sample)
    bad = text.count("\ufffd")
    good = sum(character > "\x7f" for character in text) - bad
    return good >= 10 * bad


def _legacy(sample: bytes) -> str:
    # The surroundings of what is not ASCII say it all; the rest of a long file only takes time.
    telling = b"\n".join(line for line in sample.splitlines() if not line.isascii())[:8192]
    matches = charset_normalizer.from_bytes(telling or sample)
    best = matches.best()
    if best is None:
        return "cp1252"
    alike = {
        name for match in matches if match.chaos <= best.chaos + 0.01 for name in _names(match)
    }
    # Of what is equally likely, the most common one: Western Windows.
    return "cp1252" if "cp1252" in alike else best.encoding


def _names(match: charset_normalizer.CharsetMatch) -> list[str]:
    return [match.encoding, *match.could_be_from_charset]


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        lines = (rest + block).split("\n")
        rest = lines.pop()
        for line in lines:
            yield line + "\n"
        if len(rest) > _LINE_MAX_CHARACTERS:
            yield rest
            rest = ""
    if rest:
        yield rest


def _headed(blocks: Iterable[str], pattern: re.Pattern[str], *, fences: bool) -> Iterator[Passage]:
    heading: str | None = None
    fence: str | None = None  # inside of ``` a line that begins with # is a comment
    for line in _lines(blocks):
        if fences and (found := _FENCE.match(line)):
            fence = None if fence == found[1] else fence or found[1]
        elif not fence and (found := pattern.match(line[:1000])):
            heading = as_heading(found[1].rstrip("# \t\r\n")) or heading
        yield Passage(line, heading=heading)


def _csv(blocks: Iterable[str], delimiter: str | None) -> Iterator[Passage]:
    csv.field_size_limit(_FIELD_MAX_CHARACTERS)
    lines = (line.replace("\0", "\ufffd") for line in _lines(blocks))
    first = next(lines, "")
    if delimiter is None:
        delimiter = max(",;\t|", key=re.sub(r'"[^"]*"', "", first).count)
    try:
        for text in rows_text(csv.reader(_chain(first, lines), delimiter=delimiter)):
            yield Passage(text)
    except csv.Error as error:
        raise invalid(f"it is no proper CSV ({error})") from error


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _is_header(row: list[str]) -> bool:
    names = [cell.strip() for cell in row]
    return (
        all(names)
        and len(set(names)) == len(names)
        and not any(name.replace(".", "").replace(",", "").lstrip("-").isdigit() for name in names)
    )


def _named(header: list[str], row: list[str]) -> str:
    cells = [
        f"{header[n].strip()}: {cell.strip()}" if n < len(header) else cell.strip()
        for n, cell in enumerate(row)
        if cell.strip()
    ]
    return "; ".join(cells) + "\n" if cells else ""


def _bare(row: list[str]) -> str:
    cells = [cell.strip() for cell in row if cell.strip()]
    return " | ".join(cells) + "\n" if cells else ""
