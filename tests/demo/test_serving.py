"""`threadmill demo --serve`, as one types it, and the stand-in that answers there."""

import asyncio
import itertools
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from threadmill.demo import company, documents
from threadmill.demo.company import GET_ORDER, OPEN_RETURN
from threadmill.demo.scripted_model import Reply
from threadmill.demo.stand_in import StandIn, example
from threadmill.lifecycle import RunStatus

COMMAND = [sys.executable, "-W", "error", "-m", "threadmill", "demo", "--serve", "--port", "0"]
OWN = {"Sec-Fetch-Site": "same-origin"}  # as a browser says of a form of ours
_WITHIN_S = 120


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Demo:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def hear(self, pattern: str) -> str:
        """The group of the pattern, once it was printed."""
        assert self.process.stdout
        async with asyncio.timeout(_WITHIN_S):
            while not (found := re.search(pattern, self.said)):
                line = await self.process.stdout.readline()
                assert line, f"It ended. It had said:\n{self.said}"
                self.said += line.decode()
        return found[1]


@asynccontextmanager
async def started(environment: dict[str, str]) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Demo(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_the_pages_show_a_month_and_nothing_is_left_behind(
    environment: dict[str, str], temporary: Path
) -> None:
    async with started(environment) as demo:
        address = await demo.hear(r"(http://\S+)/ui/")
        key = await demo.hear(r"sign in with +(\S+)")
        await demo.hear("(It is all there)")
        assert "is no language model" in demo.said
        async with aiohttp.ClientSession(
            address, cookie_jar=aiohttp.CookieJar(unsafe=True), headers=OWN
        ) as browser:
            await browser.post("/ui/sign-in", data={"key": key})
            await _look_at_threads(browser)
        async with openai.AsyncOpenAI(api_key=key, base_url=f"{address}/v1") as client:
            await _look_at_stores(client)
            await _try_the_playground(client)
        for _ in range(3):
            demo.process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(demo.process.communicate(), _WITHIN_S)
        assert (demo.process.returncode, errors.decode()) == (0, "")
    assert left_in(temporary) == []


async def _look_at_threads(browser: aiohttp.ClientSession) -> None:
    async def found(query: str) -> list[str]:
        answer = await browser.get("/ui/threads", params={"q": query})
        assert answer.status == 200
        return re.findall(r'href="/ui/threads/(thread_\w+)"', await answer.text())

    for end in ("completed", "failed", "incomplete", "expired", "cancelled", "requires_action"):
        is_last = [one for one in company.CONVERSATIONS if one.exchanges[-1].end == RunStatus(end)]
        if end not in ("completed", "failed", "cancelled"):
            assert len(await found(f"status:{end}")) == len(is_last) == 1, end
    assert len(await found("status:failed")) == 2
    assert len(await found("status:in_progress")) == 1
    assert await found("before:2026-01-01") == []
    [torque] = await found("torque sensors")
    page = await (await browser.get(f"/ui/threads/{torque}")).text()
    assert "drawer C12" in page
    [chart] = await found('"orders per week"')
    page = await (await browser.get(f"/ui/threads/{chart}")).text()
    assert company.CHART_ANSWER in page
    assert '<img src="/ui/files/file-' in page


async def _look_at_stores(client: openai.AsyncOpenAI) -> None:
    stores = {store.name: store async for store in client.vector_stores.list()}
    assert {name: store.status for name, store in stores.items()} == {
        company.HELP_CENTRE: "completed",
        company.MANUALS: "completed",
        company.PLAYBOOK: "completed",
    }
    assert stores[company.HELP_CENTRE].file_counts.completed == 4
    counts = stores[company.MANUALS].file_counts
    assert (counts.completed, counts.failed) == (1, 1)
    found = await client.vector_stores.search(stores[company.MANUALS].id, query="E07 firmware")
    assert "4.2" in "".join(part.text for one in found.data for part in one.content)


async def _try_the_playground(client: openai.AsyncOpenAI) -> None:
    """It answers what nobody has foreseen, and calls, searches and cites."""
    assistants = {one.name: one async for one in client.beta.assistants.list()}
    support = assistants[company.SUPPORT]
    assert len(support.tools) == 3
    thread = await client.beta.threads.create(
        messages=[{"role": "user", "content": "What about parcels to Switzerland, please?"}]
    )
    run = await client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=support.id, poll_interval_ms=50
    )
    assert run.status == "completed", run.last_error
    [answer, _] = (await client.beta.threads.messages.list(thread.id)).data
    text: Any = answer.content[0]
    assert "To Switzerland we do not deliver bicycles" in text.text.value
    assert "no language model" in text.text.value
    assert len(text.text.annotations) == 1
    await client.beta.threads.messages.create(thread.id, role="user", content="And order 9999?")
    run = await client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=support.id, poll_interval_ms=50
    )
    assert run.required_action
    [call] = run.required_action.submit_tool_outputs.tool_calls
    assert (call.function.name, call.function.arguments) == (
        "get_order",
        '{"order_number": "9999"}',
    )


@pytest.mark.parametrize("line", ["(/ui/)", "(It is all there)"])
async def test_it_can_be_ended_at_any_time(
    environment: dict[str, str], temporary: Path, line: str
) -> None:
    async with started(environment) as demo:
        await demo.hear(line)
        demo.process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(demo.process.communicate(), _WITHIN_S)
        assert demo.process.returncode in (0, 130)
        assert errors.decode() == ""
    assert left_in(temporary) == []


# --- the stand-in ---


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn(company.EXCHANGES)


def request(question: str, *tools: Any, **more: Any) -> dict[str, Any]:
    named = [{"type": "function", "function": tool.get("function", tool)} for tool in tools]
    return {"messages": [{"role": "user", "content": question}], "tools": named} | more


CODE = {"name": "code_interpreter", "parameters": {}}
SEARCH = {"name": "file_search", "parameters": {}}


def called(reply: Reply) -> list[str]:
    return [call.name for call in reply.tool_calls]


@pytest.mark.parametrize(
    ("question", "tools", "calls"),
    [
        ("Hello!", [GET_ORDER, SEARCH], []),
        ("Where is order 12?", [GET_ORDER, OPEN_RETURN, SEARCH], ["get_order"]),
        ("Open a return", [GET_ORDER, OPEN_RETURN, SEARCH], ["open_return"]),
        ("How warm is a sleeping bag?", [GET_ORDER, SEARCH], ["file_search"]),
        ("How warm is a sleeping bag?", [GET_ORDER], ["get_order"]),
        ("Draw 1, 2 and 3", [GET_ORDER, SEARCH, CODE], ["code_interpreter"]),
        ("How warm is it?", [CODE], []),
        ("How warm is it?", [], []),
    ],
)
def test_it_takes_the_tool_that_fits(
    stand_in: StandIn, question: str, tools: list[Any], calls: list[str]
) -> None:
    reply = stand_in.reply_to(request(question, *tools))
    assert called(reply) == calls
    if not calls:
        assert "no language model" in "".join(map(str, reply.text))


def test_files_that_are_attached_are_no_part_of_the_question(stand_in: StandIn) -> None:
    question = f"{company.CHART_QUESTION}\n\nAttached files: file-1 (a.csv) for code_interpreter"
    [call] = stand_in.reply_to(request(question, CODE)).tool_calls
    assert "orders.csv" in str(call.arguments)


def test_what_a_run_demands_is_done(stand_in: StandIn) -> None:
    for choice, calls in (
        ("none", []),
        ("required", ["get_order"]),
        ({"type": "function", "function": {"name": "open_return"}}, ["open_return"]),
    ):
        asked = request("Hello", GET_ORDER, OPEN_RETURN, tool_choice=choice)
        assert called(stand_in.reply_to(asked)) == calls
    reply = stand_in.reply_to(request("Hello", response_format={"type": "json_object"}))
    assert '"is_stand_in": true' in "".join(map(str, reply.text))


def test_arguments_fit_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["celsius", "kelvin"]},
            "hours": {"type": "array", "items": {"type": "number"}},
            "detailed": {"type": "boolean"},
            "more": {"type": ["object", "null"], "properties": {"a": {"const": 1}}},
        },
    }
    assert example(schema, "How is Lisbon in 3 days, in Kelvin?") == {
        "city": "Kelvin",
        "days": 3,
        "unit": "kelvin",
        "hours": [3.0],
        "detailed": True,
        "more": {"a": 1},
    }
    assert example({}, "") == "example"


def test_no_question_is_asked_twice() -> None:
    """By its question the stand-in knows what to answer."""
    questions = [exchange.question for exchange in company.EXCHANGES]
    assert len(questions) == len(set(questions))
    ages = [one.days_ago for one in company.CONVERSATIONS]
    assert all(older > newer for older, newer in itertools.pairwise(ages))
    assert 35 <= len(ages) <= 50
    assert max(ages) < 31


def test_documents_are_what_their_names_say() -> None:
    assert documents.workshop_pdf().startswith(b"%PDF-1.4")
    assert documents.staff_docx().startswith(b"PK")
