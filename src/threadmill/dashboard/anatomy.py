"""What a model was sent in one turn, taken apart: which part of it took which tokens."""

from typing import Any

import msgspec
import orjson

from threadmill.llm.tokens import TokenCounter, estimate
from threadmill.runs import prompt
from threadmill.store.rows import Step

Json = dict[str, Any]

KINDS = ("instructions", "tools", "history", "calls", "chunks", "code output", "function output")
PIECES_MAX = 500  # shown: the first and the last
_COUNTED_MAX_CHARACTERS = 2_000_000  # 0.4 s of a thread; what is behind them is estimated
_OUTPUTS = {"file_search": "chunks", "code_interpreter": "code output"}


class Piece(msgspec.Struct):
    kind: str
    role: str
    text: str
    tokens: int = 0
    images: int = 0


class Anatomy(msgspec.Struct):
    pieces: list[Piece]
    left_out: int  # pieces in the middle
    totals: list[tuple[str, int]]  # of the kinds that are there
    tokens: int  # counted here: the endpoint's own count is in the turn's usage
    is_exact: bool
    options: Json  # of the request, beside messages and tools


async def dissect(request: Json, steps: list[Step], counter: TokenCounter, model: str) -> Anatomy:
    outputs = _outputs(steps)
    own = _own_calls(steps)
    pieces = []
    is_own = False
    for message in request.get("messages", []):
        calls = {call["id"] for call in message.get("tool_calls") or ()}
        is_own = is_own or bool(calls & own)
        pieces.append(_piece(message, outputs, is_own=is_own))
    if tools := request.get("tools"):
        names = ", ".join(tool["function"]["name"] for tool in tools)
        pieces.insert(_first_said(pieces), Piece("tools", names, orjson.dumps(tools).decode()))
    is_exact = await _count(pieces, counter, model)
    totals = {kind: sum(piece.tokens for piece in pieces if piece.kind == kind) for kind in KINDS}
    left_out = max(len(pieces) - PIECES_MAX, 0)
    if left_out:
        half = PIECES_MAX // 2
        pieces = pieces[:half] + pieces[-half:]
    return Anatomy(
        pieces,
        left_out,
        [(kind, tokens) for kind, tokens in totals.items() if tokens],
        sum(totals.values()),
        is_exact,
        {name: value for name, value in request.items() if name not in ("messages", "tools")},
    )


async def _count(pieces: list[Piece], counter: TokenCounter, model: str) -> bool:
    """Whether each count is exact."""
    room, counted = _COUNTED_MAX_CHARACTERS, []
    for piece in pieces:
        if len(piece.text) <= room:
            room -= len(piece.text)
            counted.append(piece)
        else:
            piece.tokens = estimate(piece.text)
    counts = await counter.count_many([piece.text for piece in counted], model)
    for piece, tokens in zip(counted, counts, strict=True):
        piece.tokens = tokens
    return len(counted) == len(pieces) and counter.state(model).exact


def _piece(message: Json, outputs: dict[str, str], *, is_own: bool) -> Piece:
    role, content = message["role"], message.get("content")
    images = 0
    if isinstance(content, list):
        images = sum(part["type"] == "image_url" for part in content)
    piece = Piece("history", role, prompt.text_of([message]), images=images)
    if role == "system":
        piece.kind = "instructions"
    elif role == "tool":
        piece.kind = outputs.get(message.get("tool_call_id", ""), "function output")
    elif is_own and role == "assistant":
        piece.kind = "calls"
    return piece


def _first_said(pieces: list[Piece]) -> int:
    return next((at for at, one in enumerate(pieces) if one.role != "system"), len(pieces))


def _outputs(steps: list[Step]) -> dict[str, str]:
    """By the id of a call, the kind of its output."""
    named = {
        call_id: call["name"] for step in steps for call_id, call in (step.given or {}).items()
    }
    return {call_id: _kind(name) for call_id, name in named.items()}


def _kind(name: str) -> str:
    # A tool of ours has another name where the assistant has a function of that one.
    return _OUTPUTS.get(name.removeprefix("threadmill_"), "function output")


def _own_calls(steps: list[Step]) -> set[str]:
    return {
        call["id"]
        for step in steps
        if step.type == "tool_calls"
        for call in step.step_details["tool_calls"]
    }
