"""A file of any kind into passages: what its name says is checked against its content."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

import olefile

from threadmill.search.formats.html import html_passages
from threadmill.search.formats.kinds import KINDS, Kind, Passage, invalid, unsupported
from threadmill.search.formats.office import Package, kind_of_ole
from threadmill.search.formats.pdf import pdf_passages
from threadmill.search.formats.text import text_passages
from threadmill.search.formats.word97 import word97_passages

_HEAD_BYTES = 1024
_TEXT_KINDS = frozenset({Kind.TEXT, Kind.MARKDOWN, Kind.TEX, Kind.ROWS, Kind.HTML})


def passages(file: BinaryIO, filename: str) -> Iterator[Passage]:
    """A document under a wrong name is read as what it is; junk under a good one is refused."""
    extension = PurePath(filename).suffix.lower()
    kind = KINDS.get(extension)
    if kind is None:
        raise unsupported(f"{extension[:20] or 'a name without extension'}")
    head = file.read(_HEAD_BYTES)
    if not head:
        raise invalid("it is empty")
    if _is_pdf(head, kind):
        return pdf_passages(file)
    if head.startswith(b"PK\x03\x04"):
        return Package(file).passages()
    if head.startswith(olefile.MAGIC):
        return _old_office(file)
    if kind == Kind.DOC:
        kind = _text_named_doc(head)
    if kind == Kind.HTML:
        return html_passages(file)
    if kind in _TEXT_KINDS:
        return text_passages(file, kind, extension)
    raise invalid(f"it is not a {kind} document, as its name says")


def is_plain_text(filename: str) -> bool:
    return KINDS.get(PurePath(filename).suffix.lower()) in _TEXT_KINDS - {Kind.HTML, Kind.ROWS}


def _is_pdf(head: bytes, kind: Kind) -> bool:
    # Some PDFs have a few bytes before their mark; a text may well speak of the mark.
    return b"%PDF-" in head if kind == Kind.PDF else head.lstrip().startswith(b"%PDF-")


def _old_office(file: BinaryIO) -> Iterator[Passage]:
    file.seek(0)
    try:
        ole = olefile.OleFileIO(file)
        kind_of_ole({entry[0] for entry in ole.listdir() if len(entry) == 1})
    except OSError as error:  # olefile's own errors are OSErrors
        raise invalid(f"its compound file is damaged ({error})") from error
    return word97_passages(ole)


def _text_named_doc(head: bytes) -> Kind:
    """Programs that "export to Word" write HTML; Word itself opens anything."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"{\\rtf"):
        raise unsupported("it is an RTF document; save it as .docx")
    return Kind.HTML if start.startswith((b"<html", b"<!doctype html")) else Kind.TEXT
