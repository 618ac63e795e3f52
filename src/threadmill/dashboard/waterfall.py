"""Where the time of a run went: a row for its queue, each turn of the model, each call of a tool.

Places are thousandths of the whole, so that the picture needs no styles and fits any width.
"""

import math
from typing import Any

import msgspec

from threadmill.store.rows import Run, Step, Turn

Json = dict[str, Any]

_NARROWEST = 2.0  # what took no time can be seen all the same
_TICKS_MAX = 6


class Bar(msgspec.Struct):
    kind: str  # queue, prompt, wait, generate, tool, client
    x: float
    width: float
    title: str


class Row(msgspec.Struct):
    label: str
    bars: list[Bar]
    took_s: float
    note: str = ""
    turn: int | None = None  # where it is the row of one
    is_call: bool = False


class Waterfall(msgspec.Struct):
    rows: list[Row]
    length_s: float
    ticks: list[tuple[float, float]]  # place, and seconds


class _Span(msgspec.Struct):
    kind: str
    start: float
    end: float


def draw(run: Run, turns: list[Turn], steps: list[Step]) -> Waterfall | None:
    """None where nothing was recorded yet."""
    named = _call_names(steps)
    rows: list[tuple[Row, list[_Span]]] = []
    for turn in turns:
        record = turn.record
        if turn.turn == 1:
            waited = _spans(("queue", record["queued_at"], record["claimed_at"]))
            rows.append((Row("queue", [], 0), waited))
        rows.append((_turn_row(turn), _turn_spans(record)))
        for tool in record.get("tools") or []:
            name, note = named.get(tool["call_id"], ("tool", ""))
            span = _spans(("tool", tool["started_at"], tool["ended_at"]))
            rows.append((Row(name, [], 0, note, is_call=True), span))
        if record.get("answered_at"):
            span = _spans(("client", record["ended_at"], record["answered_at"]))
            rows.append((Row("the client's functions", [], 0, is_call=True), span))
    spans = [span for _, of_row in rows for span in of_row]
    if not spans:
        return None
    start = min(span.start for span in spans)
    length_s = max(max(span.end for span in spans) - start, 0.001)
    return Waterfall(
        [_placed(row, of_row, start, length_s) for row, of_row in rows],
        length_s,
        _ticks(length_s),
    )


def _ticks(length_s: float) -> list[tuple[float, float]]:
    """At round figures: 1, 2 or 5 of some unit apart."""
    unit: float = 10 ** math.floor(math.log10(length_s / _TICKS_MAX))
    step = next(unit * by for by in (1, 2, 5, 10) if length_s / (unit * by) <= _TICKS_MAX)
    return [(at * step / length_s * 1000, at * step) for at in range(int(length_s / step) + 1)]


def _turn_row(turn: Turn) -> Row:
    usage = turn.record.get("usage") or {}
    note = f"{usage['prompt_tokens']:,} → {usage['completion_tokens']:,} tokens" if usage else ""
    return Row(f"turn {turn.turn}", [], 0, note, turn=turn.turn)


def _turn_spans(record: Json) -> list[_Span]:
    sent, first, end = record["sent_at"], record["first_chunk_at"], record["ended_at"]
    tries = [one["started_at"] for one in record.get("tries") or []]
    begun = min([at for at in [sent, *tries] if at is not None], default=None)
    if begun is None:
        return []
    return _spans(
        ("prompt", begun - record["prompt_s"], begun),
        ("wait", begun, first or end),
        ("generate", first, end),
    )


def _spans(*spans: tuple[str, float | None, float | None]) -> list[_Span]:
    """Those that took place."""
    return [
        _Span(kind, start, max(start, end))
        for kind, start, end in spans
        if start is not None and end is not None
    ]


def _placed(row: Row, spans: list[_Span], start: float, length_s: float) -> Row:
    for span in spans:
        took_s = span.end - span.start
        width = max(took_s / length_s * 1000, _NARROWEST)
        x = min((span.start - start) / length_s * 1000, 1000 - width)
        title = f"{_TITLES[span.kind]}: {took_s * 1000:,.0f} ms"
        row.bars.append(Bar(span.kind, round(x, 1), round(width, 1), title))
    row.took_s = spans[-1].end - spans[0].start if spans else 0
    return row


_TITLES = {
    "queue": "in the queue",
    "prompt": "making the prompt",
    "wait": "until the first token",
    "generate": "generating",
    "tool": "at work",
    "client": "until the client answered",
}


def _call_names(steps: list[Step]) -> dict[str, tuple[str, str]]:
    """Of the calls of our own tools: the name, and the first words of what they were given."""
    named = {}
    for step in steps:
        for call_id, given in (step.given or {}).items():
            about = given.get("queries") or []
            named[call_id] = given["name"], " · ".join(about)[:80]
    return named
