"""Two versions of an assistant, line by line."""

from difflib import unified_diff
from typing import Any

import msgspec
import orjson

from threadmill.store.rows import AssistantContent

# Of either side; comparing takes longer than in proportion.
_COMPARED_MAX_LINES = 2000
_SHOWN_MAX_CHARACTERS = 2000  # of a line
_CONTEXT_LINES = 3


class Line(msgspec.Struct):
    sign: str  # "+" was added, "−" was taken away, " " stands in both, "…" lines are left out
    text: str = ""


class Comparison(msgspec.Struct):
    lines: list[Line]
    is_cut: bool


def compare(old: AssistantContent, new: AssistantContent) -> Comparison:
    """Takes a second at worst: not for the loop of a server."""
    before, after = _written(old), _written(new)
    told = unified_diff(
        before[:_COMPARED_MAX_LINES],
        after[:_COMPARED_MAX_LINES],
        lineterm="",
        n=_CONTEXT_LINES,
    )
    return Comparison(
        [_line(line) for at, line in enumerate(told) if at > 1],  # behind the names of the files
        is_cut=max(len(before), len(after)) > _COMPARED_MAX_LINES,
    )


def _line(told: str) -> Line:
    if told.startswith("@@"):
        return Line("…")
    return Line("−" if told[0] == "-" else told[0], told[1 : _SHOWN_MAX_CHARACTERS + 1])


def _written(content: AssistantContent) -> list[str]:
    """For people to read: what is not set is left out, and texts keep their lines."""
    lines: list[str] = []
    for name in content.__struct_fields__:
        value = getattr(content, name)
        if name == "tool_resources":
            value = {tool: held for tool, held in value.items() if any(held.values())}
        if value in (None, "", [], {}):
            continue
        if name == "instructions":
            lines += [f"{name}:", *(f"  {line}" for line in value.split("\n"))]
        elif name == "tools":
            lines += ["tools:", *(line for tool in value for line in _indented(tool))]
        elif isinstance(value, dict):
            lines += [f"{name}:", *_indented(value)]
        else:
            lines.append(f"{name}: {value}")
    return lines


def _indented(value: Any) -> list[str]:
    written = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return [f"  {line}" for line in written.split("\n")]
