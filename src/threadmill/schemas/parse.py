"""From the bytes of a request body to a shape, or to the refusal OpenAI would have sent.

Everything a client may send wrong ends here, in the original's words. Of several faults one is
told: within an object what is missing, then what is unknown, then the first field that is wrong.
That is the order in which the original looked.
"""

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from threadmill.errors import UNPARSABLE_JSON, InvalidRequest

M = TypeVar("M", bound=BaseModel)

# orjson writes at most 254 levels; what we take must still fit into the objects that carry it out.
MAX_NESTING_LEVELS = 128
SHOWN_CHARACTERS = 64

# Begins the names of union branches, which pydantic puts into an error's path. No key of a client
# can begin so, for NUL is refused.
BRANCH = "\0"


class Shape(BaseModel):
    """An object on the wire: strict about types, closed to unknown names."""

    model_config = ConfigDict(strict=True, validate_by_name=False)

    _names: ClassVar[frozenset[str]]
    _required: ClassVar[tuple[str, ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        wire_names = {field.alias or name: field for name, field in cls.model_fields.items()}
        cls._names = frozenset(wire_names)
        cls._required = tuple(name for name, field in wire_names.items() if field.is_required())

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, sent: Any) -> Any:
        """Missing and unknown names, before any field is looked at.

        pydantic's own `extra="forbid"` comes last and makes an error per name: gigabytes of them
        for a hostile body.
        """
        if not isinstance(sent, dict):
            return sent
        for name in cls._required:
            if name not in sent:
                raise missing(name)
        if not cls._names.issuperset(sent):
            unknown = next(name for name in sent if name not in cls._names)
            raise refusal("unknown_parameter", "Unknown parameter: '{path}'.", at=(unknown,))
        return sent


def parse(shape: type[M], raw: bytes) -> M:
    """Check a request body. Raises InvalidRequest and nothing else."""
    body = decode(raw)
    try:
        parsed = shape.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    else:
        refuse_unstorable(raw, body)
        return parsed
    raise _in_the_original_words(first)


def refusal(
    code: str, text: str, *, at: tuple[str | int, ...] = (), **values: Any
) -> PydanticCustomError:
    """A fault that a validator of ours found. `text` is filled in with `values` and {path}, the
    place where the validator stands followed by `at`; {parent} is that place alone."""
    return PydanticCustomError(
        "refusal", "refused", {"code": code, "text": text, "at": at} | values
    )


def missing(*at: str | int) -> PydanticCustomError:
    text = "Missing required parameter: '{path}'."
    return refusal("missing_required_parameter", text, at=at)


def wrong_type(expected: str, sent: Any, *at: str | int) -> PydanticCustomError:
    return refusal("invalid_type", _WRONG_TYPE, at=at, expected=expected, got=_json_type(sent))


def invalid(reason: str, *at: str | int, **values: Any) -> PydanticCustomError:
    """A fault for which the original's words are not known: `reason` says it in ours."""
    return refusal("invalid_value", "Invalid '{path}': " + reason, at=at, **values)


def shown(value: object) -> str:
    """The value as an error message may repeat it: printable and short."""
    text = str(value)
    cut = text[:SHOWN_CHARACTERS]
    printable = "".join(char if char.isprintable() else "\ufffd" for char in cut)
    return printable if cut == text else printable + "..."


def listed(values: list[str], conjunction: str) -> str:
    """'a' / 'a' and 'b' / 'a', 'b', and 'c'"""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return f" {conjunction} ".join(quoted)
    return ", ".join(quoted[:-1]) + f", {conjunction} {quoted[-1]}"


def bad_choice(value: object, supported: list[str]) -> str:
    """The text for a value that is not one of those supported."""
    if len(supported) == 1:
        return f"Invalid value: '{shown(value)}'. Value must be '{supported[0]}'."
    return f"Invalid value: '{shown(value)}'. Supported values are: {listed(supported, 'and')}."


# --- the body ---


def decode(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest for what is no JSON object."""
    if not raw.strip():
        return {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit exceeded"):
            raise _too_deep() from None
        raise InvalidRequest(UNPARSABLE_JSON) from None
    if not isinstance(body, dict):
        raise InvalidRequest(
            f"Invalid type for the request body: expected an object, but got {_json_type(body)} "
            "instead.",
            code="invalid_type",
        )
    return body


def refuse_unstorable(raw: bytes, body: dict[str, Any]) -> None:
    """Raise InvalidRequest for what is JSON and fits the shape, and still cannot be kept as it was
    sent.

    The bytes tell cheaply whether a closer look is needed; usually none is.
    """
    if raw.count(b"{") + raw.count(b"[") > MAX_NESTING_LEVELS and _is_too_deep(body):
        raise _too_deep()
    if b"\\u0000" in raw and (path := _path_to_nul(body)) is not None:
        place = _written(path)
        raise InvalidRequest(
            f"Invalid '{place}': null characters (\\u0000) are not allowed.",
            param=place,
            code="invalid_value",
        )
    if b"0" * 19 in raw.translate(_ALL_DIGITS_ZERO):
        json.loads(raw, parse_int=_check_64_bit)


# A run of 19 digits may be an integer beyond 64 bits, which orjson turns into a float in silence.
_ALL_DIGITS_ZERO = bytes(ord("0") if chr(byte).isdecimal() else ord(" ") for byte in range(256))


def _check_64_bit(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise InvalidRequest(
            f"Invalid value: {shown(digits)}. Integers must fit into 64 bits.", code="invalid_value"
        )
    return 0


def _is_too_deep(body: dict[str, Any]) -> bool:
    level: list[Any] = [body]
    for _ in range(MAX_NESTING_LEVELS):
        children = (c for node in level for c in (node.values() if type(node) is dict else node))
        level = [child for child in children if type(child) is dict or type(child) is list]
        if not level:
            return False
    return True


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"Invalid request body: nested too deeply. Expected at most {MAX_NESTING_LEVELS} levels.",
        code="invalid_value",
    )


def _path_to_nul(node: Any) -> tuple[str | int, ...] | None:
    """Where the first NUL is: Postgres can keep it neither in text nor in jsonb."""
    if type(node) is str:
        return () if "\0" in node else None
    if type(node) is not dict and type(node) is not list:
        return None
    for name, child in node.items() if type(node) is dict else enumerate(node):
        if type(name) is str and "\0" in name:
            return (name,)
        if (below := _path_to_nul(child)) is not None:
            return (name, *below)
    return None


# --- the words ---


def _in_the_original_words(error: ErrorDetails) -> InvalidRequest:
    context = error.get("ctx", {})
    path = tuple(part for part in error["loc"] if not str(part).startswith(BRANCH))
    if error["type"] == "refusal":
        place = _written((*path, *context["at"]))
        message = context["text"].format(path=place, parent=_written(path), **context)
        return InvalidRequest(message, param=place, code=context["code"])
    place = _written(path)
    code, message = _WORDS[error["type"]](place, error["input"], context)
    return InvalidRequest(message, param=place, code=code)


def _written(path: tuple[str | int, ...]) -> str:
    """tools[2].function.name"""
    steps = (f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in path)
    return "".join(steps).removeprefix(".")


def _json_type(value: Any) -> str:
    return _JSON_TYPES[type(value)]


_JSON_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}

_WRONG_TYPE = "Invalid type for '{path}': expected {expected}, but got {got} instead."

# Code and message for a place, the value sent and what pydantic knows of the rule.
_Words = Callable[[str, Any, dict[str, Any]], tuple[str, str]]


def _expected(expected: str) -> _Words:
    def words(place: str, sent: Any, _: dict[str, Any]) -> tuple[str, str]:
        message = _WRONG_TYPE.format(path=place, expected=expected, got=_json_type(sent))
        return "invalid_type", message

    return words


def _not_supported(place: str, sent: Any, context: dict[str, Any]) -> tuple[str, str]:
    supported = re.findall(r"'([^']*)'", context["expected"])
    if isinstance(sent, str):
        return "invalid_value", bad_choice(sent, supported)
    if len(supported) == 1:
        return _expected(listed(supported, "or"))(place, sent, context)
    return _expected("one of " + listed(supported, "or"))(place, sent, context)


def _string_too_long(place: str, sent: str, context: dict[str, Any]) -> tuple[str, str]:
    return "string_above_max_length", (
        f"Invalid '{place}': string too long. Expected a string with maximum length "
        f"{context['max_length']}, but got a string with length {len(sent)} instead."
    )


def _string_empty(place: str, _: str, context: dict[str, Any]) -> tuple[str, str]:
    # Every minimum length in this API is 1.
    return "empty_string", (
        f"Invalid '{place}': empty string. Expected a string with minimum length "
        f"{context['min_length']}, but got an empty string instead."
    )


def _off_pattern(place: str, _: str, context: dict[str, Any]) -> tuple[str, str]:
    return "invalid_value", (
        f"Invalid '{place}': string does not match pattern. Expected a string that matches the "
        f"pattern '{context['pattern']}'."
    )


def _array_too_long(place: str, sent: list[Any], context: dict[str, Any]) -> tuple[str, str]:
    return "array_above_max_length", (
        f"Invalid '{place}': array too long. Expected an array with maximum length "
        f"{context['max_length']}, but got an array with length {len(sent)} instead."
    )


def _array_empty(place: str, _: list[Any], context: dict[str, Any]) -> tuple[str, str]:
    return "empty_array", (
        f"Invalid '{place}': empty array. Expected an array with minimum length "
        f"{context['min_length']}, but got an empty array instead."
    )


def _too_small(place: str, sent: float, context: dict[str, Any]) -> tuple[str, str]:
    kind = "integer" if isinstance(context["ge"], int) else "decimal"
    return f"{kind}_below_min_value", (
        f"Invalid '{place}': {kind} below minimum value. Expected a value >= {context['ge']:g}, "
        f"but got {shown(sent)} instead."
    )


def _too_large(place: str, sent: float, context: dict[str, Any]) -> tuple[str, str]:
    kind = "integer" if isinstance(context["le"], int) else "decimal"
    bound = context["le"] if kind == "integer" else f"{context['le']:g}"
    return f"{kind}_above_max_value", (
        f"Invalid '{place}': {kind} above maximum value. Expected a value <= {bound}, "
        f"but got {shown(sent)} instead."
    )


_WORDS: dict[str, _Words] = {
    "string_type": _expected("a string"),
    "int_type": _expected("an integer"),
    "float_type": _expected("a decimal"),
    "bool_type": _expected("a boolean"),
    "dict_type": _expected("an object"),
    "model_type": _expected("an object"),
    "list_type": _expected("an array"),
    "literal_error": _not_supported,
    "string_too_long": _string_too_long,
    "string_too_short": _string_empty,
    "string_pattern_mismatch": _off_pattern,
    "too_long": _array_too_long,
    "too_short": _array_empty,
    "greater_than_equal": _too_small,
    "less_than_equal": _too_large,
}
