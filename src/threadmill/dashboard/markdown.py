"""What a model or a user wrote, as HTML that can do nothing: no markup of theirs is taken over, no
picture is fetched from elsewhere, no link leads anywhere but to the web or to a file of the
project.

Nothing in the text is believed. It becomes HTML by markdown-it (which passes no HTML on), and of
that only what is listed here is kept by nh3. Marks of citations come in as two private characters
around a number, which can be in no attribute that is kept, and become ours after the cleaning.
"""

import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

Json = dict[str, Any]

# What exceeds one of these is shown as it is. Rows of a table are filled up to its width, so that a
# text of 7 kB would become 65,000 cells, which take a second.
RENDERED_MAX_CHARACTERS = 32 * 1024
_CELLS_MAX = 5_000
_BEFORE_TABLES = "> \t0123456789.)*+-"  # in quotes and lists

# A scheme for links to files, until the cleaning is over. Nobody can write one: it is another in
# every process.
_FILE = f"file{secrets.token_hex(8)}"
_MARK = re.compile("\ue000([0-9]{1,4})\ue001")
_FILE_LINK = re.compile(rf"{_FILE}:(?=file-[A-Za-z0-9_-]{{1,80}}\")")

_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def _kept_attribute(tag: str, name: str, value: str) -> str | None:
    return None if "\ue000" in value else value


_cleaner = nh3.Cleaner(
    tags={
        *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre"),
        *("blockquote", "ul", "ol", "li", "a", "table", "thead", "tbody", "tr", "th", "td"),
    },
    attributes={"a": {"href"}, "ol": {"start"}},
    attribute_filter=_kept_attribute,
    url_schemes={"http", "https", "mailto", _FILE},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
)


def render(text: str, annotations: list[Json], mark: Callable[[int], Markup]) -> Markup:
    """The text with `mark(at)` in place of the citation that is `annotations[at]`."""
    if len(text) > RENDERED_MAX_CHARACTERS or _cells_at_most(text) > _CELLS_MAX:
        return Markup('<pre tabindex="0">{}</pre>').format(text)
    clean = _clean(_annotated(text, annotations))
    return Markup(_MARK.sub(lambda found: _marked(int(found[1]), annotations, mark), clean))


def _cells_at_most(text: str) -> int:
    """As many as if every line were a row of the widest table."""
    if "|" not in text:
        return 0
    lines = text.splitlines()
    rules = (line for line in lines if not line.lstrip(_BEFORE_TABLES).strip("|:- \t"))
    return len(lines) * max((rule.count("|") for rule in rules), default=0)


def _marked(at: int, annotations: list[Json], mark: Callable[[int], Markup]) -> str:
    return str(mark(at)) if at < len(annotations) else ""


@lru_cache(maxsize=512)
def _clean(text: str) -> str:
    return _FILE_LINK.sub("/ui/files/", _cleaner.clean(_markdown.render(text)))


def _annotated(text: str, annotations: list[Json]) -> str:
    """With the annotations' parts replaced by what is recognised after the cleaning."""
    text = text.replace("\ue000", "\ufffd").replace("\ue001", "\ufffd")
    pieces, end = [], 0
    for at, one in sorted(enumerate(annotations), key=lambda each: each[1]["start_index"]):
        start = one["start_index"]
        if not end <= start <= one["end_index"] <= len(text):
            continue  # they overlap, or the text is another one by now
        before = text[end:start]
        pieces += [before, _replacement(at, one, is_address=before.endswith("]("))]
        end = one["end_index"]
    return "".join([*pieces, text[end:]])


def _replacement(at: int, annotation: Json, *, is_address: bool) -> str:
    if annotation["type"] == "file_path":
        address = f"{_FILE}:{annotation['file_path']['file_id']}"
        return address if is_address else f"[{_name(annotation['text'])}]({address})"
    return f"\ue000{at}\ue001"


def _name(link: str) -> str:
    return re.sub(r"[\[\]\\`<>]", "_", link.rsplit("/", 1)[-1])
