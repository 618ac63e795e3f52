"""multipart/form-data as it arrives: a part's bytes are handed on, never gathered.

async for part in form.parts():
    async for piece in form.pieces():
        ...
"""

import re
from binascii import Error as BadBase64
from binascii import a2b_base64, a2b_qp
from collections import deque
from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from threadmill.errors import InvalidRequest, TooLarge

_HEADERS_MAX = 8  # of one part
# A name of 512 characters outside of the Latin script takes 6 KB when it is percent-encoded, and
# some clients send it a second time as an encoded word.
_HEADER_MAX_BYTES = 16 * 1024
_FIELD_MAX_BYTES = 4 * 1024


class Part(msgspec.Struct):
    name: str
    filename: str | None  # None: a plain field


class Multipart:
    """The form in a request's body. Whatever is wrong with it raises InvalidRequest."""

    def __init__(self, request: Request, *, max_bytes: int, max_parts: int = 16) -> None:
        self._body = request.stream()
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self._size_bytes = 0
        self._check_size(int(request.headers.get("content-length", 0)))
        try:
            self._parser = MultipartParser(
                _boundary(request.headers.get("content-type", "")),
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
                max_header_count=_HEADERS_MAX,
                max_header_size=_HEADER_MAX_BYTES,
            )
        except FormParserError as error:
            raise _broken(str(error)) from None
        # What the parser has found and nobody has taken: a part, its bytes, None for the end.
        self._found: deque[Part | bytes | None] = deque()
        self._count = 0
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = b"", b""

    async def parts(self) -> AsyncIterator[Part]:
        """Each part in turn; what was not read of the last one is passed over."""
        while (found := await self._next()) is not None:
            if isinstance(found, Part):
                yield found

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the part that `parts` gave last."""
        while isinstance(found := await self._next(), bytes):
            yield found
        self._found.appendleft(found)

    async def text(self) -> str:
        """The value of the field that `parts` gave last."""
        value = b""
        async for piece in self.pieces():
            value += piece
            if len(value) > _FIELD_MAX_BYTES:
                raise _broken(f"a field is longer than {_FIELD_MAX_BYTES} bytes")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _broken("a field is not UTF-8") from None

    async def _next(self) -> Part | bytes | None:
        while not self._found:
            try:
                chunk = await anext(self._body)
            except (StopAsyncIteration, ClientDisconnect):
                raise _broken("it ends before its closing boundary") from None
            self._size_bytes += len(chunk)
            self._check_size(self._size_bytes)
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _broken(str(error)) from None
        return self._found.popleft()

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise TooLarge(f"The request body is larger than {self._max_bytes} bytes.")

    # --- what the parser calls ---

    def _on_part_begin(self) -> None:
        self._count += 1
        if self._count > self._max_parts:
            raise _broken(f"it has more than {self._max_parts} parts")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise _broken("a part has a Content-Transfer-Encoding, which forms may not use")
        self._found.append(_part(self._headers.get(b"content-disposition", b"")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])

    def _on_end(self) -> None:
        self._found.append(None)


def _boundary(content_type: str) -> bytes:
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise InvalidRequest(
            "Invalid Content-Type: this endpoint expects multipart/form-data, which your HTTP"
            " library makes when it is given a file to send."
        )
    if not (boundary := parameters.get(b"boundary")):
        raise _broken("its Content-Type names no boundary")
    return boundary


def _broken(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"We could not parse the multipart/form-data body of your request: {reason}."
    )


# --- names ---

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))')
_ENCODED_WORD = re.compile(r"=\?([^?\s]+)\?([BbQq])\?([^?\s]*)\?=\s*")
_CHARSETS = {"utf-8": "utf-8", "us-ascii": "ascii", "iso-8859-1": "latin-1"}


def _part(disposition: bytes) -> Part:
    """Bytes that are not of the encoding they should be in become U+FFFD."""
    parameters: dict[str, str] = {}
    for key, quoted, bare in _PARAMETER.findall(disposition.decode("utf-8", "replace")):
        parameters[key.lower()] = _unquoted(quoted) if quoted else bare.strip()
    if not (name := parameters.get("name")):
        raise _broken("a part has no name")
    filename = _extended(parameters.get("filename*", ""))
    if filename is None and "filename" in parameters:
        filename = _without_encoded_words(parameters["filename"])
    return Part(name, filename)


def _unquoted(quoted: str) -> str:
    # Browsers and SDKs write %22 for the quote and nothing else of ours; a backslash that stands
    # before any other character is one of a Windows path.
    return re.sub(r'\\(["\\])', r"\1", quoted).replace("%22", '"')


def _extended(value: str) -> str | None:
    """utf-8''%E4%BD%A0.txt, as .NET sends it (RFC 5987); None if it is not in that form."""
    charset, _, rest = value.partition("'")
    _, has_language, encoded = rest.partition("'")
    if not has_language or charset.lower() not in _CHARSETS:
        return None
    return unquote_to_bytes(encoded).decode(_CHARSETS[charset.lower()], "replace")


def _without_encoded_words(value: str) -> str:
    """=?utf-8?B?5L2g5aW9LnR4dA==?=, as .NET sends it (RFC 2047); the value may be nothing else."""
    decoded, at = "", 0
    while word := _ENCODED_WORD.match(value, at):
        charset, encoding, text = word.groups()
        if charset.lower() not in _CHARSETS:
            return value
        try:
            raw = a2b_base64(text) if encoding in "Bb" else a2b_qp(text, header=True)
        except BadBase64:
            return value
        decoded += raw.decode(_CHARSETS[charset.lower()], "replace")
        at = word.end()
    return decoded if at == len(value) else value
