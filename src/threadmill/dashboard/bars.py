"""Bars of days, drawn in thousandths of the picture's width."""

from datetime import date, timedelta

import msgspec

from threadmill.store.usage import Used

HEIGHT = 100.0
_GAP = 0.15  # of a day's place


class Bar(msgspec.Struct):
    day: date
    next_day: date
    tokens: int
    runs: int
    cost: float | None
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0


def bars(first: date, last: date, used: list[Used], costs: dict[date, float | None]) -> list[Bar]:
    """One for each day, be nothing used in it."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    found = [_bar(day, [one for one in used if one.day == day], costs.get(day)) for day in days]
    most = max((bar.tokens for bar in found), default=0)
    place = 1000 / len(days)
    for number, bar in enumerate(found):
        bar.x = round((number + _GAP / 2) * place, 1)
        bar.width = round(place * (1 - _GAP), 1)
        if bar.tokens:  # what is there can be seen
            bar.height = round(max(bar.tokens / most * HEIGHT, 1.5), 1)
        bar.y = round(HEIGHT - bar.height, 1)
    return found


def _bar(day: date, used: list[Used], cost: float | None) -> Bar:
    tokens = sum(one.prompt_tokens + one.completion_tokens for one in used)
    return Bar(day, day + timedelta(days=1), tokens, sum(map(ended, used)), cost)


def ended(used: Used) -> int:
    """How many runs have come to an end."""
    return went_wrong(used) + used.runs_completed + used.runs_incomplete + used.runs_cancelled


def went_wrong(used: Used) -> int:
    return used.runs_failed + used.runs_expired
