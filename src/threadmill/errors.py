"""Everything a client can be told that went wrong.

    ApiError                     500  server_error
    ├── InvalidRequest           400  invalid_request_error
    │   ├── Unauthorized         401
    │   ├── Forbidden            403
    │   ├── NotFound             404
    │   ├── MethodNotAllowed     405
    │   ├── Conflict             409
    │   ├── TooLarge             413
    │   └── WrongHost            421
    ├── RateLimited              429  requests or tokens
    ├── Relayed                       an endpoint's own refusal
    ├── UpstreamFault            502  server_error
    └── Unavailable              503  server_error

One handler in `app` renders them all as OpenAI did: {"error": {message, type, param, code}}.
The messages are OpenAI's own wherever they are known, for client code matches on them.
"""

from typing import Any

SERVER_FAULT = (
    "The server had an error processing your request. Sorry about that! You can retry your "
    "request, or contact us through our help center at help.openai.com if you keep seeing this "
    "error. (Please include the request ID {request_id} in your email.)"
)
UNPARSABLE_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON. If you have trouble figuring out how to fix this, please contact us through our help "
    "center at help.openai.com.)"
)


class ApiError(Exception):
    """Ends the request (or, raised inside a run, the run) with a message for the client."""

    status = 500
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(InvalidRequest):
    status = 401


class Forbidden(InvalidRequest):
    status = 403


class NotFound(InvalidRequest):
    status = 404


class MethodNotAllowed(InvalidRequest):
    status = 405


class Conflict(InvalidRequest):
    """For what may be tried again soon: SDKs do so of themselves, up to two times."""

    status = 409


class TooLarge(InvalidRequest):
    status = 413


class WrongHost(InvalidRequest):
    status = 421


class RateLimited(ApiError):
    status = 429

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.type = kind  # "requests" or "tokens"


class Relayed(ApiError):
    """What a model's endpoint refused, in its own words."""

    def __init__(
        self, status: int, message: str, kind: str, param: str | None, code: str | None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = kind


class UpstreamFault(ApiError):
    """A model's endpoint did not do its part."""

    status = 502


class Unavailable(ApiError):
    status = 503


def not_found(noun: str, object_id: str) -> NotFound:
    """`noun` as OpenAI's messages name it: assistant, thread, message, run, run step, ..."""
    return NotFound(f"No {noun} found with id '{object_id}'.")
