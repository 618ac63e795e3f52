"""Chunks: windows over the tokens of a text, cut where a reader would cut."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from threadmill.search.formats.kinds import Passage, invalid

Split = Callable[[str], list[bytes]]  # a text into its tokens, as bytes that join to its UTF-8

# tiktoken is slower than linear in a long run of one character, and overflows its stack at a
# million: it never sees more than this at once. Texts are also gathered up to it: calls cost.
_PIECE_CHARACTERS = 20_000
# A chunk may end this part of its size early, and begin as much late, to keep lines, sentences
# and rows whole. An eighth costs about 6 % more chunks.
_SLACK = 8

_PARAGRAPH, _LINE, _SENTENCE, _WORD, _CHARACTER, _NOWHERE = 5, 4, 3, 2, 1, 0
_ESTIMATED_TOKEN = re.compile(
    r"(?:\r?\n)+|[ \t]{2,16}| ?[!-~]{1,3}| ?[\u0080-\u07ff]{1,2}|.", re.DOTALL
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # Postgres has no NUL, UTF-8 no surrogates


class Chunk(msgspec.Struct):
    text: str
    token_count: int
    page: int | None  # where it starts
    heading: str | None
    first_token: int  # its place among the document's tokens


def chunks(
    passages: Iterable[Passage],
    split: Split,
    *,
    max_tokens: int,
    overlap_tokens: int,
    file_max_tokens: int,
) -> Iterator[Chunk]:
    """The same passages and sizes give the same chunks: ingestion resumes by counting them.

    None is larger than `max_tokens`, none cuts a character, and without their overlaps they join
    to the text (but for those of nothing but white space, which are left out).
    """
    tokens: list[bytes] = []  # from the start of the next chunk on
    first = 0  # the index in the document of tokens[0]
    places: deque[tuple[int, Passage]] = deque()  # from which token on which page and heading hold

    def chunk(end: int) -> Chunk | None:
        while len(places) > 1 and places[1][0] <= first:
            places.popleft()
        text = b"".join(tokens[:end]).decode(errors="replace")
        place = places[0][1]
        return None if text.isspace() else Chunk(text, end, place.page, place.heading, first)

    for piece in _pieces(passages):
        if not places or piece[1:] != places[-1][1][1:]:
            places.append((first + len(tokens), piece))
        tokens += split(piece.text)
        if first + len(tokens) > file_max_tokens:
            raise too_long(file_max_tokens)
        while len(tokens) > max_tokens:
            end = _end(tokens, max_tokens)
            if cut := chunk(end):
                yield cut
            start = _start(tokens, end, overlap_tokens, max_tokens // _SLACK)
            del tokens[:start]
            first += start
    if tokens and (last := chunk(len(tokens))):
        yield last


def too_long(file_max_tokens: int) -> Exception:
    return invalid(f"it is too large: it has more than {file_max_tokens:,} tokens")


def estimated_split(text: str) -> list[bytes]:
    """Where the encoding's file cannot be had: about three bytes a token, as `llm.tokens` has it,
    and never across the end of a word or a line."""
    return [found.encode() for found in _ESTIMATED_TOKEN.findall(text)]


def _pieces(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Passages of one page and heading joined, and cut to what the tokenizer may see at once."""
    gathered: list[str] = []
    size = 0
    place = Passage("")
    for passage in passages:
        if passage[1:] != place[1:]:
            yield from _cut_up("".join(gathered), place, keep=False)
            gathered, size, place = [], 0, passage
        gathered.append(_UNSTORABLE.sub("\ufffd", passage.text))
        size += len(passage.text)
        if size > _PIECE_CHARACTERS:
            text = "".join(gathered)
            for piece in _cut_up(text, place, keep=True):
                yield piece
                size -= len(piece.text)
            gathered = [text[len(text) - size :]] if size else []
    yield from _cut_up("".join(gathered), place, keep=False)


def _cut_up(text: str, place: Passage, *, keep: bool) -> Iterator[Passage]:
    """`keep`: what is left at the end stays with the caller, for there is more to come."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = _seam(text, start, start + _PIECE_CHARACTERS)
        yield place._replace(text=text[start:end])
        start = end
    if not keep and start < len(text):
        yield place._replace(text=text[start:])


def _seam(text: str, start: int, end: int) -> int:
    """The last place where no token can reach across: before a space between two words."""
    space = text.rfind(" ", start + 1, end)
    for _ in range(100):
        if space < 0:
            break
        if text[space - 1].isalpha() and text[space + 1].isalpha():
            return space
        space = text.rfind(" ", start + 1, space)
    return end


def _end(tokens: list[bytes], max_tokens: int) -> int:
    """The best place to end at within the slack below the full size."""
    best, rank = 0, _NOWHERE
    for end in range(max_tokens, 0, -1):
        if rank and end < max_tokens - max_tokens // _SLACK:
            break
        found = _rank(tokens[end - 1], tokens[end])
        if found > rank:
            best, rank = end, found
            if rank == _PARAGRAPH:
                break
    # A window has a place for a cut unless it is shorter than a character, or built to have none.
    return best or max_tokens


def _start(tokens: list[bytes], end: int, overlap_tokens: int, slack: int) -> int:
    """Where the next chunk begins: the overlap is never longer than asked."""
    earliest = max(end - overlap_tokens, 1)
    best, rank = end, _NOWHERE
    for start in range(earliest, end):
        if rank and start > earliest + slack:
            break
        found = _rank(tokens[start - 1], tokens[start])
        if found > rank:
            best, rank = start, found
            if rank == _PARAGRAPH:
                break
    return best


def _rank(before: bytes, after: bytes) -> int:
    """How good a place for a cut the one between two tokens is."""
    first = after[0]
    if first & 0xC0 == 0x80:  # the inside of a character
        return _NOWHERE
    if b"\n" in before:
        ending = before.rstrip(b" \t\r")
        if ending.endswith(b"\n"):
            return _PARAGRAPH if ending.count(b"\n") > 1 else _LINE
    if first in b" \t\r\n":
        return _SENTENCE if before.endswith((b".", b"!", b"?")) else _WORD
    return (
        _SENTENCE if before.endswith(("。".encode(), "！".encode(), "？".encode())) else _CHARACTER
    )
