"""What a model was sent in one turn, taken apart: which part of it took which tokens."""

from typing import Any

import msgspec
import orjson

from threadmill.llm.tokens import TokenCounter
from threadmill.runs import prompt
from threadmill.store.rows import Step

Json = dict[str, Any]

KINDS = ("instructions", "tools", "history", "calls", "chunks", "code output", "function output")
_OUTPUTS = {"file_search": "chunks", "code_interpreter": "code output"}


class Piece(msgspec.Struct):
    kind: str
    role: str
    text: str
    tokens: int = 0
    images: int = 0


class Anatomy(msgspec.Struct):
    pieces: list[Piece]
    totals: list[tuple[str, int]]  # of the kinds that are there
    tokens: int  # counted here: the endpoint's own count is in the turn's usage
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
    counts = await counter.count_many([piece.text for piece in pieces], model)
    for piece, tokens in zip(pieces, counts, strict=True):
        piece.tokens = tokens
    totals = {kind: sum(piece.tokens for piece in pieces if piece.kind == kind) for kind in KINDS}
    return Anatomy(
        pieces,
        [(kind, tokens) for kind, tokens in totals.items() if tokens],
        sum(counts),
        {name: value for name, value in request.items() if name not in ("messages", "tools")},
    )


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
