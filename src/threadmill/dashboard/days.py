"""Which days are looked at, and by what they are told apart."""

import time
from datetime import date, timedelta
from urllib.parse import urlencode

import msgspec
from starlette.datastructures import QueryParams

from threadmill.errors import InvalidRequest
from threadmill.store import usage

_DAYS_DEFAULT, _DAYS_MAX = 30, 92
# As an address names them, and the columns of the roll-up.
GROUPS = {"day": "day", "model": "model", "assistant": "assistant_id"}


class Range(msgspec.Struct):
    first: date
    last: date  # included
    by: list[str]  # of GROUPS

    @property
    def query(self) -> str:
        pairs = [("first", str(self.first)), ("last", str(self.last))]
        return urlencode(pairs + [("by", one) for one in self.by])


def asked_for(query: QueryParams) -> Range:
    """The last thirty days by day and model, unless it says otherwise. Raises InvalidRequest, in
    words for people."""
    last = _day(query.get("last")) or usage.day_of(int(time.time()))
    first = _day(query.get("first")) or last - timedelta(days=_DAYS_DEFAULT - 1)
    if not 0 < (last - first).days + 1 <= _DAYS_MAX:
        raise InvalidRequest(f"From the first day to the last are 1 to {_DAYS_MAX} days.")
    by = [name for name in GROUPS if name in query.getlist("by")]
    return Range(first, last, by or ["day", "model"])


def _day(text: str | None) -> date | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"'{text[:64]}' is no date. Write it so: 2026-11-01") from None
    if not 2000 <= day.year < 2100:
        raise InvalidRequest(f"Nothing was used here in {day.year}.")
    return day
