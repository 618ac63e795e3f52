"""What a form of ours has sent."""

from urllib.parse import parse_qsl

from fastapi import Request

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


async def read_form(request: Request) -> Form:
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > _MAX_BYTES:
            raise TooLarge(f"The form is larger than {_MAX_BYTES} bytes.")
    try:
        pairs = parse_qsl(
            sent.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise InvalidRequest("That is not a form of this server.") from None
    # A browser sends line ends as CR LF.
    return Form([(name, value.replace("\r\n", "\n")) for name, value in pairs])
