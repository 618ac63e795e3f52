"""HTML, read as a stream of events: no tree is built, so neither size nor depth costs memory."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from threadmill.search.formats.kinds import Passage
from threadmill.search.formats.text import as_heading, decoded, encoding_of, known_encoding

_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_PASSAGE_CHARACTERS = 16 * 1024

# fmt: off
_SILENT = frozenset({
    "audio", "canvas", "iframe", "noscript", "object", "script", "style", "svg", "template",
    "video",
})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "title"})
_PARAGRAPHS = frozenset({
    "article", "blockquote", "dl", "figure", "ol", "p", "pre", "section", "table", "ul",
})
_LINES = frozenset({
    "address", "aside", "body", "br", "caption", "center", "dd", "details", "div", "dt", "fieldset",
    "figcaption", "footer", "form", "head", "header", "hr", "html", "legend", "li", "main", "nav",
    "option", "summary", "tbody", "tfoot", "thead", "tr",
})
# fmt: on


def html_passages(file: BinaryIO) -> Iterator[Passage]:
    file.seek(0)
    found = _CHARSET.search(file.read(4096))
    declared = known_encoding(found[1].decode("ascii", "replace")) if found else None
    page = _Page()
    # A parser that is only a source of events has no use for libxml2's limits on trees.
    parser = etree.HTMLParser(target=page, encoding="utf-8", huge_tree=True)
    for block in decoded(file, encoding_of(file, declared)):
        # libxml2 stops at a NUL.
        parser.feed(block.replace("\0", "\ufffd").encode("utf-8", "replace"))
        yield from page.take()
    parser.close()
    page.flush()
    yield from page.take()


class _Page:
    """What lxml calls while it parses."""

    def __init__(self) -> None:
        self._ready: list[Passage] = []
        self._text: list[str] = []
        self._size = 0
        self._began = False  # breaks before the first word are none
        self._breaks = 0  # line ends that are due before the next word
        self._space = False  # so is a space
        self._silent = 0
        self._preformatted = 0
        self._heading: str | None = None
        self._heading_words: list[str] | None = None  # while inside of one
        self._first_cell = True

    def take(self) -> list[Passage]:
        ready, self._ready = self._ready, []
        return ready

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag in _HEADINGS:
            self.flush()
            self._break(2)
            self._heading_words = []
        elif tag == "tr":
            self._break(1)
            self._first_cell = True
        elif tag in ("td", "th"):
            if not self._first_cell:
                self._write(" | ")
            self._first_cell = False
        else:
            self._edge(tag)
        if tag == "pre":
            self._preformatted += 1

    def end(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _HEADINGS:
            if self._heading_words is not None:
                self._heading = as_heading("".join(self._heading_words)) or self._heading
            self._heading_words = None
            self._break(2)
        else:
            self._edge(tag)
        if tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)

    def data(self, data: str) -> None:
        if self._silent:
            return
        if self._heading_words is not None:
            self._heading_words.append(data)
        if self._preformatted:
            self._write(data)
            return
        words = " ".join(data.split())
        if not words:
            self._space = True
            return
        if data[0].isspace():
            self._space = True
        self._write(words)
        self._space = data[-1].isspace()

    def close(self) -> None:
        pass

    def flush(self) -> None:
        if self._text:
            self._ready.append(Passage("".join(self._text), heading=self._heading))
            self._text, self._size = [], 0

    def _edge(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._break(2)
        elif tag in _LINES:
            self._break(1)

    def _break(self, lines: int) -> None:
        self._breaks = max(self._breaks, lines)

    def _write(self, text: str) -> None:
        if self._breaks and self._began:
            text = "\n" * self._breaks + text
        elif self._space and self._began:
            text = " " + text
        self._began, self._breaks, self._space = True, 0, False
        self._text.append(text)
        self._size += len(text)
        if self._size > _PASSAGE_CHARACTERS and self._heading_words is None:
            self.flush()
