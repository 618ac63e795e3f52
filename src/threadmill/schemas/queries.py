"""Query strings of lists and of `include`, checked to the original's texts.

Parameters that are not known are passed over: proxies and SDKs add their own. An empty value is one
that was not given.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from threadmill import ids
from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import bad_choice, shown

RESULT_CONTENT = "step_details.tool_calls[*].file_search.results[*].content"

Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Page:
    """What a client asks of a list. `after` and `before` are ids, both exclusive."""

    limit: int = 20
    order: Order = "desc"
    after: str | None = None
    before: str | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str], prefix: str) -> "Page":
        """`prefix` is that of the ids in the list: "msg", "run", "file", ..."""
        return cls(
            limit=_limit(query, default=20, largest=100),
            order=_order(query),
            after=object_id(query, "after", prefix),
            before=object_id(query, "before", prefix),
        )


@dataclass(frozen=True)
class FilesPage(Page):
    """Files come in longer pages, and there is no `before`."""

    limit: int = 10_000
    purpose: str | None = None  # of any value: one that no file has gives an empty list

    @classmethod
    def parse(cls, query: Mapping[str, str], prefix: str = "file") -> "FilesPage":
        return cls(
            limit=_limit(query, default=10_000, largest=10_000),
            order=_order(query),
            after=object_id(query, "after", prefix),
            purpose=_purpose(query),
        )


def include(query: Iterable[tuple[str, str]]) -> frozenset[str]:
    """What an answer shall hold in addition. `query` has a pair for each repetition."""
    asked = [value for name, value in query if name in ("include[]", "include") and value]
    for index, value in enumerate(asked):
        if value != RESULT_CONTENT:
            raise InvalidRequest(
                bad_choice(value, [RESULT_CONTENT]), param=f"include[{index}]", code="invalid_value"
            )
    return frozenset(asked)


def event_number(query: Mapping[str, str], headers: Mapping[str, str]) -> int:
    """Behind which event a stream is picked up: `after`, or else the header that browsers send when
    they come back; -1 for the beginning."""
    for sent, name in ((query.get("after"), "after"), (headers.get("last-event-id"), None)):
        if sent:
            if not re.fullmatch(r"[0-9]{1,18}", sent):
                raise InvalidRequest(
                    f"Invalid '{name or 'Last-Event-ID'}': expected the number of an event, but got"
                    f" '{shown(sent)}' instead.",
                    param=name,
                    code="invalid_value",
                )
            return int(sent)
    return -1


def object_id(query: Mapping[str, str], name: str, prefix: str) -> str | None:
    value = query.get(name)
    return ids.check(name, value, prefix) if value else None


def choice(query: Mapping[str, str], name: str, supported: list[str]) -> str | None:
    value = query.get(name)
    if value and value not in supported:
        raise InvalidRequest(bad_choice(value, supported), param=name, code="invalid_value")
    return value or None


def _order(query: Mapping[str, str]) -> Order:
    return "asc" if choice(query, "order", ["asc", "desc"]) == "asc" else "desc"


def _purpose(query: Mapping[str, str]) -> str | None:
    purpose = query.get("purpose") or None
    if purpose and not purpose.isprintable():
        reason = f"Invalid 'purpose': '{shown(purpose)}' is not the purpose of a file."
        raise InvalidRequest(reason, param="purpose", code="invalid_value")
    return purpose


def _limit(query: Mapping[str, str], *, default: int, largest: int) -> int:
    return whole(query, "limit", default=default, largest=largest)


def whole(query: Mapping[str, str], name: str, *, default: int, largest: int) -> int:
    """A number from 1 to `largest`."""
    sent = query.get(name)
    if not sent:
        return default
    if not re.fullmatch(r"[+-]?[0-9]+", sent):
        raise InvalidRequest(
            f"Invalid type for '{name}': expected an integer, but got a string instead.",
            param=name,
            code="invalid_type",
        )
    # int() itself refuses thousands of digits.
    limit = int(sent) if len(sent) < 20 else int(sent[0] + "9" * 20)
    if limit > largest:
        raise _out_of_range(name, "above maximum", f"<= {largest}", "integer_above_max_value", sent)
    if limit < 1:
        raise _out_of_range(name, "below minimum", ">= 1", "integer_below_min_value", sent)
    return limit


def _out_of_range(name: str, side: str, bound: str, code: str, sent: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{name}': integer {side} value. Expected a value {bound}, but got {shown(sent)} "
        "instead.",
        param=name,
        code=code,
    )
