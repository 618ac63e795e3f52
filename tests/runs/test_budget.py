"""Which messages stay when not all of them fit."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.runs import budget
from threadmill.runs.budget import OverBudget, fit, prompt_limit
from threadmill.runs.prompt import MESSAGE_OVERHEAD_TOKENS, Entry
from threadmill.store.rows import Run


def run(**fields: Any) -> Run:
    empty = {name: None for name in Run.__struct_fields__}
    values: dict[str, Any] = {**empty, "model": "scripted", "tools": [], "tool_choice": "auto"}
    values |= {"prompt_tokens": 0, "completion_tokens": 0, "truncation_strategy": {"type": "auto"}}
    return Run(**values | fields)


async def count_letters(texts: list[str], model: str) -> list[int]:
    return [len(text) for text in texts]


def entry(tokens: int, number: int, *, needed: bool = False, images: int = 0) -> Entry:
    message = {"role": "user", "content": "x" * tokens}
    message_id = None if needed else f"msg_{number}"
    return Entry([message], message_id, is_needed=needed, image_tokens=images)


sizes = st.lists(
    st.tuples(st.integers(0, 40), st.booleans(), st.sampled_from([0, 0, 0, 25])),
    min_size=1,
    max_size=12,
)


@given(sizes, st.integers(0, 400), st.integers(0, 30))
def test_what_is_chosen(drawn: list[tuple[int, bool, int]], limit: int, frame: int) -> None:
    # Those of the run come last.
    drawn.sort(key=lambda one: one[1])
    entries = [
        entry(size, number, needed=needed, images=images)
        for number, (size, needed, images) in enumerate(drawn)
    ]

    def cost(of: list[Entry]) -> int:
        return frame + sum(
            len(one.messages[0]["content"]) + MESSAGE_OVERHEAD_TOKENS + one.image_tokens
            for one in of
        )

    thread = [one for one in entries if not one.is_needed]
    own = [one for one in entries if one.is_needed]
    needed = thread[-1:] + own
    instructions = run(instructions="i" * frame)
    try:
        fitted = asyncio.run(fit(instructions, entries, "i" * frame, limit, count_letters))
    except OverBudget:
        assert cost(needed) > limit
        return
    kept = fitted.entries
    assert cost(kept) <= limit
    assert all(one in kept for one in needed)
    assert kept == [one for one in entries if one in kept], "in their order"
    told = [entries.index(one) for one in kept if not one.is_needed]
    # The first one may stay alone; behind it there is no gap.
    tail = [at for at in told if at != 0]
    assert tail == list(range(len(thread) - len(tail), len(thread))) or told == [0]
    assert set(fitted.dropped) == {one.message_id for one in entries if one not in kept}
    if fitted.dropped and 0 in told:
        missing = entries[tail[0] - 1] if tail else entries[len(thread) - 1]
        assert cost([*kept, missing]) > limit, "one more would have fitted"


async def test_nothing_is_counted_where_it_cannot_matter() -> None:
    async def count(texts: list[str], model: str) -> list[int]:
        pytest.fail("counted")

    entries = [entry(10, 1), entry(10, 2)]
    fitted = await fit(run(), entries, "", 1000, count)
    assert (fitted.entries, fitted.dropped, fitted.counted) == (entries, [], {})


async def test_known_counts_are_not_counted_again() -> None:
    asked: list[str] = []

    async def count(texts: list[str], model: str) -> list[int]:
        asked.extend(texts)
        return [len(text) for text in texts]

    known, new = entry(30, 1), entry(31, 2)
    known.token_count = 5
    fitted = await fit(run(), [known, new], "", 50, count)
    assert asked == ["x" * 31, ""]
    assert fitted.counted == {"msg_2": 31}
    assert fitted.entries == [known, new]  # by its known count the first one fits


async def test_a_first_message_that_is_too_long_alone_is_left_out() -> None:
    entries = [entry(90, 1), entry(20, 2), entry(20, 3)]
    fitted = await fit(run(), entries, "", 60, count_letters)
    assert fitted.dropped == ["msg_1"]


@pytest.mark.parametrize(
    ("fields", "window", "limit"),
    [
        ({}, 128_000, 128_000 - 4096),
        ({}, 4000, 3000),  # a quarter of a small window is for the answer
        ({"max_completion_tokens": 100}, 4000, 3900),
        ({"max_completion_tokens": 9000}, 4000, 3000),
        ({"max_prompt_tokens": 500}, 4000, 500),
        ({"max_prompt_tokens": 500, "prompt_tokens": 200}, 4000, 300),
        ({"max_prompt_tokens": 500, "prompt_tokens": 600}, 4000, -100),
    ],
)
def test_how_many_tokens_a_prompt_may_have(fields: dict[str, int], window: int, limit: int) -> None:
    assert prompt_limit(run(**fields), window) == limit


async def test_a_budget_that_is_spent_lets_nothing_through() -> None:
    with pytest.raises(budget.OverBudget):
        await fit(run(), [entry(1, 1)], "", -1, count_letters)
