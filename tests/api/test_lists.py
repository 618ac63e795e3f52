"""What all lists of assistants, threads, messages, runs and steps have in common."""

from collections.abc import Awaitable, Callable
from itertools import product

import openai
import pytest

from api.rows import Rows
from api.wire import Refusal, Wire

EMPTY = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

# Makes some objects, and gives the path of the list with their ids, oldest first.
Make = Callable[[Wire, Rows, int], Awaitable[tuple[str, list[str]]]]


async def some_assistants(wire: Wire, rows: Rows, count: int) -> tuple[str, list[str]]:
    made = [(await wire.post("/assistants", {"model": "m"}))["id"] for _ in range(count)]
    return "/assistants", made


async def some_threads(wire: Wire, rows: Rows, count: int) -> tuple[str, list[str]]:
    return "/threads", [(await wire.post("/threads"))["id"] for _ in range(count)]


async def some_messages(wire: Wire, rows: Rows, count: int) -> tuple[str, list[str]]:
    first = [{"role": "user", "content": str(number)} for number in range(count)]
    path = f"/threads/{(await wire.post('/threads', {'messages': first}))['id']}/messages"
    listed = (await wire.get(f"{path}?order=asc&limit=100"))["data"]
    texts = [message["content"][0]["text"]["value"] for message in listed]
    assert texts == [str(number) for number in range(count)]
    return path, [message["id"] for message in listed]


async def some_runs(wire: Wire, rows: Rows, count: int) -> tuple[str, list[str]]:
    assistant_id = (await wire.post("/assistants", {"model": "m"}))["id"]
    thread_id = (await wire.post("/threads"))["id"]
    made = [await rows.add_run(thread_id, assistant_id) for _ in range(count)]
    return f"/threads/{thread_id}/runs", made


async def some_steps(wire: Wire, rows: Rows, count: int) -> tuple[str, list[str]]:
    path, [run_id] = await some_runs(wire, rows, 1)
    return f"{path}/{run_id}/steps", [await rows.add_step(run_id) for _ in range(count)]


LISTS: dict[str, Make] = {
    "assistant": some_assistants,
    "thread": some_threads,
    "message": some_messages,
    "run": some_runs,
    "run step": some_steps,
}
PREFIXES = {
    "assistant": "asst",
    "thread": "thread",
    "message": "msg",
    "run": "run",
    "run step": "step",
}
each_list = pytest.mark.parametrize("noun", LISTS)


def expected(
    made: list[str], limit: int | None, order: str | None, after: str | None, before: str | None
) -> tuple[list[str], bool]:
    """`made` as it must be listed, and whether there is more."""
    listing = made if order == "asc" else made[::-1]
    start = listing.index(after) + 1 if after else 0
    end = listing.index(before) if before else len(listing)
    window = listing[start:end]
    size = limit or 20
    # With `before` alone the page is the one that ends there.
    page = window[-size:] if before and not after else window[:size]
    return page, len(window) > size


def query(**parameters: str | int | None) -> str:
    return "&".join(f"{name}={value}" for name, value in parameters.items() if value is not None)


@each_list
async def test_every_combination_of_parameters(wire: Wire, rows: Rows, noun: str) -> None:
    path, made = await LISTS[noun](wire, rows, 5)
    ids = [None, *made]
    for limit, order, after, before in product([None, 1, 2, 4, 5], [None, "asc"], ids, ids):
        asked = query(limit=limit, order=order, after=after, before=before)
        answer = await wire.get(f"{path}?{asked}")  # which looks at first_id and last_id
        page = [one["id"] for one in answer["data"]]
        assert (page, answer["has_more"]) == expected(made, limit, order, after, before), asked


@each_list
async def test_a_page_has_20_objects_unless_asked_otherwise_and_at_most_100(
    wire: Wire, rows: Rows, noun: str
) -> None:
    path, made = await LISTS[noun](wire, rows, 32 if noun == "message" else 21)
    answer = await wire.get(path)
    assert [one["id"] for one in answer["data"]] == made[::-1][:20]
    assert answer["has_more"] is True
    answer = await wire.get(f"{path}?limit=100")
    assert [one["id"] for one in answer["data"]] == made[::-1]
    assert answer["has_more"] is False
    assert await wire.ids(f"{path}?limit=&order=&after=&before=&colour=red") == made[::-1][:20]


@each_list
async def test_a_list_may_be_empty(wire: Wire, rows: Rows, noun: str) -> None:
    path, _ = await LISTS[noun](wire, rows, 0)
    assert await wire.get(path) == EMPTY


@each_list
async def test_after_the_last_there_is_nothing(wire: Wire, rows: Rows, noun: str) -> None:
    path, made = await LISTS[noun](wire, rows, 2)
    assert await wire.get(f"{path}?after={made[0]}") == EMPTY
    assert await wire.get(f"{path}?before={made[1]}") == EMPTY


@each_list
async def test_what_is_wrong_with_a_query_is_told(wire: Wire, rows: Rows, noun: str) -> None:
    path, made = await LISTS[noun](wire, rows, 1)
    prefix = PREFIXES[noun]
    gone = f"{prefix}_gone"
    no_such = f"No {noun} found with id '{gone}'."
    for asked, refusal in (
        (f"after={gone}", Refusal(404, no_such, "after")),
        (f"before={gone}", Refusal(404, no_such, "before")),
        (f"before={made[0]}&after={gone}", Refusal(404, no_such, "after")),
        (f"after={made[0]}&before={gone}", Refusal(404, no_such, "before")),
        (
            "after=foo",
            Refusal(
                400,
                f"Invalid 'after': 'foo'. Expected an ID that begins with '{prefix}'.",
                "after",
                "invalid_value",
            ),
        ),
        (
            "limit=101",
            Refusal(
                400,
                "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101"
                " instead.",
                "limit",
                "integer_above_max_value",
            ),
        ),
        (
            "limit=0",
            Refusal(
                400,
                "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0"
                " instead.",
                "limit",
                "integer_below_min_value",
            ),
        ),
        (
            "limit=ten",
            Refusal(
                400,
                "Invalid type for 'limit': expected an integer, but got a string instead.",
                "limit",
                "invalid_type",
            ),
        ),
        (
            "order=up",
            Refusal(
                400,
                "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
                "order",
                "invalid_value",
            ),
        ),
    ):
        assert await wire.refused("GET", f"{path}?{asked}") == refusal, asked


@each_list
async def test_a_cursor_must_be_of_the_same_list(
    wire: Wire, rows: Rows, other_wire: Wire, noun: str
) -> None:
    """Of the same thread, run or project: what is elsewhere might as well not be."""
    path, _ = await LISTS[noun](wire, rows, 2)
    other_rows = Rows(rows.database, other_wire.project_id)
    elsewhere = [await LISTS[noun](other_wire, other_rows, 2)]
    if noun not in ("assistant", "thread"):
        elsewhere.append(await LISTS[noun](wire, rows, 2))
    for name, (_, cursors) in product(("after", "before"), elsewhere):
        assert await wire.refused("GET", f"{path}?{name}={cursors[0]}") == Refusal(
            404, f"No {noun} found with id '{cursors[0]}'.", name
        )


async def test_a_list_narrowed_to_one_run_has_pages_too(wire: Wire, rows: Rows) -> None:
    path, [run_id] = await some_runs(wire, rows, 1)
    thread_id = path.split("/")[2]
    await wire.post(f"/threads/{thread_id}/messages", {"role": "user", "content": "x"})
    made = await rows.add_messages_of(run_id, 3)
    path = f"/threads/{thread_id}/messages?run_id={run_id}"
    for limit, order, after, before in product(
        [None, 1, 2], [None, "asc"], [None, *made], [None, *made]
    ):
        asked = query(limit=limit, order=order, after=after, before=before)
        answer = await wire.get(f"{path}&{asked}")
        page = [one["id"] for one in answer["data"]]
        assert (page, answer["has_more"]) == expected(made, limit, order, after, before), asked


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_the_sdk_turns_the_pages_itself(
    wire: Wire, rows: Rows, sdk: openai.AsyncOpenAI, order: str
) -> None:
    beta = sdk.beta
    _, made = await some_assistants(wire, rows, 5)
    seen = [one.id async for one in beta.assistants.list(limit=2, order=order)]
    assert seen == (made if order == "asc" else made[::-1])

    path, made = await some_messages(wire, rows, 5)
    thread_id = path.split("/")[2]
    messages = beta.threads.messages.list(thread_id, limit=2, order=order)
    assert [one.id async for one in messages] == (made if order == "asc" else made[::-1])

    path, made = await some_runs(wire, rows, 4)
    thread_id = path.split("/")[2]
    runs = beta.threads.runs.list(thread_id, limit=2, order=order)
    assert [one.id async for one in runs] == (made if order == "asc" else made[::-1])

    path, made = await some_steps(wire, rows, 3)
    _, _, thread_id, _, run_id, _ = path.split("/")
    steps = beta.threads.runs.steps.list(run_id, thread_id=thread_id, limit=1, order=order)
    assert [one.id async for one in steps] == (made if order == "asc" else made[::-1])
