"""Token budgets: what a prompt may hold, and which messages are left out when it would hold more.

`auto` truncation drops messages from the middle of the thread: the first one, which often sets the
scene, and the newest ones stay. Counting is avoided where it cannot matter: a text never has more
tokens than bytes.
"""

from collections.abc import Awaitable, Callable

import msgspec

from threadmill.runs import prompt
from threadmill.runs.prompt import MESSAGE_OVERHEAD_TOKENS, Entry
from threadmill.store.rows import Run

_RESERVED_FOR_THE_ANSWER_TOKENS = 4096

CountMany = Callable[[list[str], str], Awaitable[list[int]]]


class OverBudget(Exception):
    """Not even the newest message fits."""


class Fitted(msgspec.Struct):
    entries: list[Entry]
    dropped: list[str]  # ids of messages that were left out
    counted: dict[str, int]  # counts by message id that were not known before


def prompt_limit(run: Run, context_window_tokens: int) -> int:
    """How many tokens the prompt of the next turn may have."""
    wanted = run.max_completion_tokens or _RESERVED_FOR_THE_ANSWER_TOKENS
    limit = context_window_tokens - min(wanted, context_window_tokens // 4)
    if run.max_prompt_tokens is not None:
        limit = min(limit, run.max_prompt_tokens - run.prompt_tokens)
    return limit


async def fit(
    run: Run, entries: list[Entry], frame: str, limit_tokens: int, count_many: CountMany
) -> Fitted:
    """Choose what fits into `limit_tokens`; raises OverBudget if what is needed does not.

    `frame`: what is in every prompt of the run and never dropped: instructions and tools.
    """
    texts = [prompt.text_of(entry.messages) for entry in entries]
    overhead = sum(entry.image_tokens + _overhead(entry) for entry in entries)
    most = sum(_byte_length(text) for text in texts) + _byte_length(frame) + overhead
    if most <= limit_tokens:
        return Fitted(entries, [], {})
    unknown = [at for at, entry in enumerate(entries) if entry.token_count is None]
    counts = await count_many([texts[at] for at in unknown] + [frame], run.model)
    frame_tokens = counts.pop()
    counted = {}
    for at, tokens in zip(unknown, counts, strict=True):
        entries[at].token_count = tokens
        message_id = entries[at].message_id
        if message_id is not None:
            counted[message_id] = tokens
    kept = _choose(entries, limit_tokens - frame_tokens)
    dropped = [
        entry.message_id
        for at, entry in enumerate(entries)
        if at not in kept and entry.message_id is not None
    ]
    return Fitted([entries[at] for at in sorted(kept)], dropped, counted)


def _choose(entries: list[Entry], room: int) -> set[int]:
    """Which entries stay: those of this run, the newest message, the first one, then from the
    newest backwards while there is room."""
    kept = {at for at, entry in enumerate(entries) if entry.is_needed}
    told = [at for at, entry in enumerate(entries) if not entry.is_needed]
    kept.update(told[-1:])
    room -= sum(_tokens(entries[at]) for at in kept)
    if room < 0:
        raise OverBudget
    for at in [*told[:1], *reversed(told[1:-1])]:
        if at in kept:
            continue
        room -= _tokens(entries[at])
        if room < 0:
            if at == told[0]:  # the first message alone is too long: do without it
                room += _tokens(entries[at])
                continue
            break
        kept.add(at)
    return kept


def _tokens(entry: Entry) -> int:
    return (entry.token_count or 0) + entry.image_tokens + _overhead(entry)


def _overhead(entry: Entry) -> int:
    return MESSAGE_OVERHEAD_TOKENS * len(entry.messages)


def _byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
