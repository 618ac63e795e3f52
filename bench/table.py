"""The table of figures, for a terminal and for README.md."""

import os
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import Figure

_README = Path(__file__).with_name("README.md")
_BEGIN = "<!-- {}: written by the command -->"
_END = "<!-- end of {} -->"
_HEAD = ("figure", "limit", "measured", "of the limit", "waited", "beside it")


def rendered(figures: list[Figure]) -> str:
    """As Markdown, in columns."""
    rows = [_HEAD, *map(_cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write(table: str, machine: str, name: str = "figures") -> None:
    """Put it in its place in README.md, between the comments of that name."""
    begin, end = _BEGIN.format(name), _END.format(name)
    before, found, rest = _README.read_text().partition(begin)
    _, _, after = rest.partition(end)
    assert found, f"README.md has no {begin}"
    _README.write_text(f"{before}{begin}\n\n{machine}\n\n{table}\n\n{end}{after}")


def machine(load_before: float) -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({_processor()}), load"
        f" {load_before:.1f} before."
    )


def _cells(figure: Figure) -> tuple[str, ...]:
    limit = "–"
    if figure.limit is not None:
        limit = f"{'≥' if figure.at_least else '≤'} {figure.limit:,g} {figure.unit}"
    share = "–" if figure.share is None else f"{figure.share:.2f}"
    if figure.share is not None and figure.share > 1:
        share += " OVER"
    measured, waited = f"{_number(figure.measured)} {figure.unit}", f"{figure.waited_share:.0%}"
    return figure.what, limit, measured, share, waited, figure.beside


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
