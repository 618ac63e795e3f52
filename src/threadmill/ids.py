"""Object ids: a prefix that names the kind, then random letters and digits, as OpenAI made them."""

import asyncio
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from threadmill.errors import InvalidRequest, NotFound, not_found

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62 does not divide 256: bytes of 248 and above are thrown away, or some letters come oftener.
_UNEVEN = bytes(range(248, 256))
_LETTER_OF_BYTE = bytes(ord(_ALPHABET[byte % 62]) for byte in range(256))
_WELL_FORMED = re.compile(r"[A-Za-z]+[_-][A-Za-z0-9_-]{1,80}")

# How OpenAI's error texts name the things that ids stand for.
NOUNS = {
    "asst": "assistant",
    "thread": "thread",
    "msg": "message",
    "run": "run",
    "step": "run step",
    "vs": "vector store",
    "proj": "project",
    "key": "API key",
    "wh": "webhook endpoint",
}


def new(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits: 24 make 142 bits.

    Files are "file-" with a hyphen; all others carry an underscore.
    """
    series = _series.get()
    if series is None or series.task is not asyncio.current_task():
        return _written(prefix, length, os.urandom)
    series.given[prefix] += 1
    return _written(prefix, length, _Stream(series.seed, prefix, series.given[prefix]).read)


class _Series:
    """Ids that come in the same order out of the same seed, for one task alone: what it leaves
    running behind it has a life of its own."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.given: Counter[str] = Counter()


_series: ContextVar[_Series | None] = ContextVar("series", default=None)


@contextmanager
def seeded(seed: bytes) -> Iterator[None]:
    """The ids that this task makes in the block follow from the seed, which has to be as random as
    they are to be: whoever does the same again makes the same ones."""
    token = _series.set(_Series(seed))
    try:
        yield
    finally:
        _series.reset(token)


def first(seed: bytes, prefix: str) -> str:
    """The first one of that kind in a block under the seed."""
    return _written(prefix, 24, _Stream(seed, prefix, 1).read)


class _Stream:
    """Bytes without end, which nobody can guess who does not know the seed."""

    def __init__(self, seed: bytes, prefix: str, number: int) -> None:
        self._shake = hashlib.shake_256(b"%b/%b/%d" % (seed, prefix.encode(), number))
        self._at = 0

    def read(self, count: int) -> bytes:
        self._at += count
        return self._shake.digest(self._at)[-count:]


def derived(prefix: str, *names: str) -> str:
    """An id that is always the same for these names, and no other names'."""
    digest = hashlib.sha512("\0".join(names).encode()).digest()
    letters = digest.translate(_LETTER_OF_BYTE, _UNEVEN)[:24]
    return prefix + _separator(prefix) + letters.decode()


def _written(prefix: str, length: int, read: Callable[[int], bytes]) -> str:
    letters = b""
    while len(letters) < length:
        letters += read(length + 8).translate(_LETTER_OF_BYTE, _UNEVEN)
    return prefix + _separator(prefix) + letters[:length].decode()


def new_request_id() -> str:
    return "req_" + os.urandom(16).hex()


def check(param: str, value: str, prefix: str) -> str:
    """Return `value` if it can be an id of that kind.

    Raises InvalidRequest for another prefix, NotFound for one that could never have been given out
    (so that no odd character reaches the database).
    """
    if not value.startswith(prefix + _separator(prefix)):
        raise InvalidRequest(
            f"Invalid '{param}': '{_shown(value)}'. Expected an ID that begins with '{prefix}'.",
            param=param,
            code="invalid_value",
        )
    if not _WELL_FORMED.fullmatch(value):
        raise _missing(prefix, _shown(value))
    return value


def _separator(prefix: str) -> str:
    return "-" if prefix == "file" else "_"


def _missing(prefix: str, value: str) -> NotFound:
    if prefix == "file":
        return NotFound(f"No such File object: {value}", param="id")
    return not_found(NOUNS[prefix], value)


def _shown(value: str) -> str:
    """The value as an error message may repeat it: printable and short."""
    printable = "".join(char if char.isprintable() else "\ufffd" for char in value)
    return printable if len(printable) <= 64 else printable[:64] + "..."
