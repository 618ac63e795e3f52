"""What can be read, and what reading gives. The server imports this, but none of the readers."""

from enum import StrEnum
from typing import Literal, NamedTuple


class Kind(StrEnum):
    TEXT = "text"
    MARKDOWN = "Markdown"
    TEX = "TeX"
    ROWS = "CSV"
    HTML = "HTML"
    PDF = "PDF"
    DOCX = "Word"
    DOC = "Word 97"
    PPTX = "PowerPoint"
    XLSX = "Excel"


# fmt: off
_TEXTS = [
    # What the original took as text,
    ".c", ".cpp", ".cs", ".css", ".go", ".java", ".js", ".json", ".php", ".py", ".rb", ".sh",
    ".ts", ".txt",
    # and its neighbours, which cost nothing.
    ".h", ".hpp", ".jsx", ".kt", ".log", ".rs", ".rst", ".sql", ".swift", ".toml", ".tsx",
    ".xml", ".yaml", ".yml",
]
# fmt: on
KINDS: dict[str, Kind] = {
    **dict.fromkeys(_TEXTS, Kind.TEXT),
    **dict.fromkeys([".md", ".markdown"], Kind.MARKDOWN),
    **dict.fromkeys([".htm", ".html"], Kind.HTML),
    **dict.fromkeys([".csv", ".tsv"], Kind.ROWS),
    ".tex": Kind.TEX,
    ".pdf": Kind.PDF,
    ".doc": Kind.DOC,
    ".docx": Kind.DOCX,
    ".pptx": Kind.PPTX,
    ".xlsx": Kind.XLSX,
}
SUPPORTED_EXTENSIONS = frozenset(KINDS)


class Passage(NamedTuple):
    """A piece of a document's text. Joined, the pieces are the text: breaks are part of them."""

    text: str
    page: int | None = None
    heading: str | None = None


class Unreadable(Exception):
    """Why a file's status is `failed`: this becomes its `last_error`."""

    code: Literal["unsupported_file", "invalid_file", "server_error"]

    def __init__(
        self, code: Literal["unsupported_file", "invalid_file", "server_error"], message: str
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(reason: str) -> Unreadable:
    """The beginning is the original's."""
    return Unreadable("invalid_file", f"The file could not be parsed because {reason}.")


def unsupported(reason: str) -> Unreadable:
    return Unreadable("unsupported_file", f"The file type is not supported: {reason}.")
