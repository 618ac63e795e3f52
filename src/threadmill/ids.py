"""Object ids: a prefix that names the kind, then random letters and digits, as OpenAI made them."""

import hashlib
import os
import re

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
}


def new(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits: 24 make 142 bits.

    Files are "file-" with a hyphen; all others carry an underscore.
    """
    letters = b""
    while len(letters) < length:
        letters += os.urandom(length + 8).translate(_LETTER_OF_BYTE, _UNEVEN)
    return prefix + _separator(prefix) + letters[:length].decode()


def derived(prefix: str, *names: str) -> str:
    """An id that is always the same for these names, and no other names'."""
    digest = hashlib.sha512("\0".join(names).encode()).digest()
    letters = digest.translate(_LETTER_OF_BYTE, _UNEVEN)[:24]
    return prefix + _separator(prefix) + letters.decode()


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
