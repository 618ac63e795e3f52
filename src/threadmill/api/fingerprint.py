"""What tells one request body from another, taken while it passes."""

import hashlib

from python_multipart.multipart import parse_options_header


def boundary_in(content_type: str) -> bytes | None:
    """What stands between the parts of a form; None where the body is none."""
    kind, parameters = parse_options_header(content_type)
    return parameters.get(b"boundary") or None if kind == b"multipart/form-data" else None


class Fingerprint:
    """SHA-256 of a body in pieces cut anywhere. A form's boundary does not count, for clients make
    up another one when they send the same form again."""

    def __init__(self, boundary: bytes | None = None) -> None:
        self._hash = hashlib.sha256()
        self._boundary = boundary
        self._tail = b""  # may be the beginning of a boundary

    def feed(self, piece: bytes) -> None:
        if self._boundary is None:
            self._hash.update(piece)
            return
        *whole, rest = (self._tail + piece).split(self._boundary)
        for part in whole:
            self._hash.update(part)
        cut = max(len(rest) - len(self._boundary) + 1, 0)
        self._hash.update(rest[:cut])
        self._tail = rest[cut:]

    def digest(self) -> bytes:
        whole = self._hash.copy()
        whole.update(self._tail)
        return whole.digest()
