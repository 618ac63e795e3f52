"""What a form of ours has sent."""

from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from threadmill.errors import InvalidRequest, TooLarge

_MAX_BYTES = 256 * 1024
_MAX_FIELDS = 500


class Form:
    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def get(self, name: str) -> str:
        """The empty string where there is none."""
        return next((value for key, value in self._pairs if key == name), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def pairs(self) -> dict[str, str]:
        """Of metadata. One without a key was not filled in, or was emptied to remove it."""
        pairs = zip(self.all("key"), self.all("value"), strict=False)
        return {key: value for key, value in pairs if key.strip()}


async def read_form(request: Request, *, max_bytes: int = _MAX_BYTES) -> Form:
    """A file that was chosen is a field like any other, and has to be text."""
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > max_bytes:
            raise TooLarge(f"The form is larger than {max_bytes} bytes.")
    try:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            pairs = await _parts(request, bytes(sent))
        else:
            pairs = parse_qsl(
                sent.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
            )
    except (ValueError, MultiPartException):
        raise InvalidRequest("That is not a form of this server.") from None
    # A browser sends line ends as CR LF.
    return Form([(name, value.replace("\r\n", "\n")) for name, value in pairs])


async def _parts(request: Request, sent: bytes) -> list[tuple[str, str]]:
    # A browser names no charset. The parser would take any codec of Python, and with one of them a
    # small form, which nobody need be signed in for, stops the server for many seconds.
    if "charset" in request.headers["content-type"].lower():
        raise MultiPartException("Forms are UTF-8.")

    async def stream() -> AsyncGenerator[bytes]:
        yield sent

    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=_MAX_FIELDS, max_part_size=len(sent)
    )
    form = await parser.parse()
    try:
        return [
            (name, value if isinstance(value, str) else (await value.read()).decode())
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()


def number(text: str) -> Any:
    """What is none goes on as it is: the check of the API tells what is wrong."""
    try:
        value = orjson.loads(text.strip()) if text.strip() else None
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) or value is None else text
