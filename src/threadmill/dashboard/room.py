"""How much text a page has room for. Whatever is stored, a page stays one that a browser opens at
once; what is cut is behind a link."""

import msgspec
from markupsafe import Markup, escape


class Shown(msgspec.Struct):
    text: Markup
    left_out: int  # characters


class Room:
    """Of one page. What is shown first takes it first."""

    def __init__(self, characters: int, *, block_max_characters: int) -> None:
        self._left = characters
        self._block_max = block_max_characters

    def take(self, characters: int) -> bool:
        """Whether there was room for it."""
        self._left -= characters
        return self._left >= 0

    def cut(self, text: str, block_max_characters: int | None = None) -> Shown:
        """As much of the text as there is room for. Counted as it is written in HTML, where a
        quotation mark takes five characters."""
        block_max = block_max_characters or self._block_max
        taken = text[: max(min(self._left, block_max), 0)]
        shown = escape(taken)
        if len(shown) > self._left:
            taken = taken[: self._left * len(taken) // len(shown)]
            shown = escape(taken)
        self._left -= len(shown)
        return Shown(shown, len(text) - len(taken))
