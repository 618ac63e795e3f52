"""The pages in a real browser. After each of these tests `look` asserts that nothing was asked of
anybody else, that no policy was violated, and that no script has failed."""

import asyncio
import re
from typing import Any

from playwright.async_api import Page, Request, Route, expect

from dashboard.conftest import Desk, Open
from dashboard.hostile import HOSTILE
from dashboard.test_thread import PNG, upload
from threadmill.demo.scripted_model import Gate, Reply, ToolCall

PATIENCE_MS = 30_000
_HIDE = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});"
_SHOW = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => false});"
_CHANGED = "document.dispatchEvent(new Event('visibilitychange'))"


async def test_signing_in_and_out(desk: Desk, look: Open) -> None:
    thread_id = await desk.thread("Hello")
    async with look(signed_in=False) as page:
        await page.goto(f"/ui/threads/{thread_id}")
        await page.keyboard.type(desk.key)  # the field has the focus
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(f"/ui/threads/{thread_id}$"))
        assert desk.key not in await page.content()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_focused()


async def test_the_list_follows_what_is_typed(desk: Desk, look: Open) -> None:
    await desk.thread("Refund for order 17?", user="u1")
    await desk.thread("Where is my parcel?", user="u2")
    async with look() as page:
        await page.goto("/ui/threads")
        await expect(page.locator("a.row")).to_have_count(2)
        await page.keyboard.press("/")
        await page.keyboard.type("refund")
        await expect(page.locator("a.row")).to_have_text(["Refund for order 17?"])
        await expect(page).to_have_url(re.compile(r"/ui/threads\?q=refund"))
        await page.keyboard.press("Control+A")
        await page.keyboard.type("user:u2")
        await expect(page.locator("a.row")).to_have_text(["Where is my parcel?"])
        await page.get_by_label("Status").select_option("failed")
        await expect(page.get_by_text("Nothing was found.")).to_be_visible()
        await page.reload()  # the address says what is shown
        await expect(page.get_by_text("Nothing was found.")).to_be_visible()


async def test_the_keyboard_is_enough(desk: Desk, look: Open) -> None:
    first = await desk.thread("First")
    second = await desk.thread("Second")
    async with look() as page:
        await page.goto("/ui/threads")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await expect(page.locator("a.row", has_text="First")).to_be_focused()
        await page.keyboard.press("k")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(second))
        await page.keyboard.press("?")
        await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("heading", name="Keys")).to_be_hidden()
        await page.keyboard.press("/")  # no list here: to any id
        await page.keyboard.type(first)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(first))
        await page.keyboard.press("g")
        await page.keyboard.press("t")
        await expect(page).to_have_url(re.compile("/ui/threads$"))


async def test_metadata_is_edited_and_a_thread_deleted(desk: Desk, look: Open) -> None:
    thread_id = await desk.thread("Hello", user="u1")
    async with look() as page:
        await page.goto(f"/ui/threads/{thread_id}")
        await page.get_by_role("button", name="Edit metadata").click()
        await page.get_by_label("Value").first.fill("u2")
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".facts .tag")).to_have_text(["user u2"])
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Keep it").click()
        await expect(page.get_by_role("button", name="Delete it")).to_be_hidden()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Delete it").click()
        await expect(page).to_have_url(re.compile("/ui/threads$"))
        await expect(page.locator("a.row")).to_have_count(0)


async def test_the_passage_behind_a_citation_is_shown(desk: Desk, look: Open) -> None:
    run = await _cited(desk, "Within 30 days.", "Yes")
    async with look() as page:
        await page.goto(f"/ui/threads/{run.thread_id}")
        mark = page.locator(".mark")
        await mark.hover()
        await expect(page.locator(".card")).to_contain_text("Within 30 days.")
        await page.mouse.move(0, 0)
        await expect(page.locator(".card")).to_be_hidden()
        await mark.focus()
        await expect(page.locator(".card")).to_be_visible()
        await page.keyboard.press("Enter")
        await expect(page.locator(".citations blockquote")).to_be_visible()


async def test_a_prompt_is_opened_in_the_page(desk: Desk, look: Open) -> None:
    run = await _cited(desk, "Within 30 days.", "Yes")
    async with look() as page:
        await page.goto(f"/ui/runs/{run.id}")
        await page.get_by_role("link", name="What was sent").nth(1).click()
        piece = page.locator(".piece", has_text="chunks")
        await piece.locator("summary").click()
        await expect(piece.locator("pre")).to_contain_text("Within 30 days.")
        await expect(page).to_have_url(re.compile(f"{run.id}$"))


async def test_hostile_strings_do_nothing_wherever_they_stand(desk: Desk, look: Open) -> None:
    """In messages of both, names of files and assistants, metadata, what functions gave, passages
    of documents, and the words of an upstream."""
    all_of_them = "\n\n".join(HOSTILE)
    names = [text.replace("\n", " ")[:60] for text in HOSTILE]
    run = await _cited(desk, all_of_them, all_of_them, name='"><img src=x onerror=pwned=1>.md')
    thread_id = run.thread_id
    for text in HOSTILE:
        await desk.client.beta.threads.messages.create(
            thread_id, role="user", content=text, metadata={names[0][:50]: text}
        )
    metadata: Any = {name: text[:500] for name, text in zip(names, HOSTILE, strict=True)}
    await desk.client.beta.threads.update(thread_id, metadata=metadata)
    attachment: Any = {"file_id": await upload(desk, names[1], PNG), "tools": []}
    await desk.client.beta.threads.messages.create(
        thread_id, role="user", content=HOSTILE[0], attachments=[attachment]
    )
    called = await _called(desk, thread_id, all_of_them)
    desk.model.reply(Reply(status=400, body={"error": {"message": all_of_them}}))
    failed = await desk.run(thread_id, name=HOSTILE[1], instructions=all_of_them)
    assert (run.status, failed.status) == ("completed", "failed")
    waiting = await _waiting(desk, all_of_them)
    steps = (await desk.client.beta.threads.runs.steps.list(called.id, thread_id=thread_id)).data
    [message, *_] = (await desk.client.beta.threads.messages.list(thread_id, order="asc")).data
    for options in ({}, {"color_scheme": "dark"}):
        async with look(**options) as page:
            for path in (
                "threads", "threads?q=script", f"threads/{thread_id}",
                f"threads/{thread_id}?around={message.id}",
                *(f"runs/{one.id}" for one in (run, called, failed, waiting)),
                *(f"runs/{called.id}/steps/{one.id}" for one in steps),
                *(f"runs/{one.id}/turns/1" for one in (run, called, failed)),
                f"runs/{run.id}/turns/2", f"threads?q=status:{names[1]}", f"threads?q={names[4]}",
            ):  # fmt: skip
                # A page that is followed is never idle.
                state: Any = "load" if waiting.id in path else "networkidle"
                await page.goto(f"/ui/{path}", wait_until=state)
                await _open_everything(page)
                assert await page.evaluate("window.pwned") is None, path
                assert (
                    await page.locator("iframe, base, object, embed, [hx-get^=http]").count() == 0
                )
                assert (
                    await page.locator("[onerror], [onload], main style, main script").count() == 0
                )


async def test_everything_can_be_read_without_scripts(desk: Desk, look: Open) -> None:
    run = await _cited(desk, "Within 30 days.", "Yes")
    async with look(java_script_enabled=False) as page:
        await page.goto("/ui/threads")
        await page.get_by_role("searchbox").fill("when")
        await page.get_by_role("button", name="Search").click()
        await page.locator("a.row").click()
        await page.locator(".citations summary").click()
        await expect(page.locator(".citations blockquote")).to_contain_text("Within 30 days.")
        await page.locator(".mark").click()
        await page.locator(".beside a.status").click()
        await expect(page.locator(".waterfall rect.generate")).to_have_count(2)
        await page.get_by_role("link", name="What was sent").first.click()
        await expect(page).to_have_url(re.compile(f"{run.id}/turns/1$"))
        await page.locator(".piece summary").first.click()
        await expect(page.locator(".piece pre").first).to_be_visible()


async def test_a_run_is_followed_to_its_end(desk: Desk, look: Open) -> None:
    desk.model.reply(Reply(tool_calls=[ToolCall("book", id="call_1")]), Reply(text=["Booked."]))
    thread_id = await desk.thread("A taxi, please")
    run = await desk.run(thread_id, tools=[{"type": "function", "function": {"name": "book"}}])
    async with look() as page:
        await page.goto(f"/ui/runs/{run.id}")
        await expect(page.locator("h1 .status")).to_have_text("requires action")
        outputs: Any = [{"tool_call_id": "call_1", "output": "done"}]
        await desk.client.beta.threads.runs.submit_tool_outputs(
            run_id=run.id, thread_id=thread_id, tool_outputs=outputs
        )
        await expect(page.locator("h1 .status")).to_have_text("completed", timeout=10_000)
        await expect(page.get_by_text("Booked.")).to_be_visible()


async def test_a_run_moves_in_an_open_page_until_it_ends(desk: Desk, look: Open) -> None:
    gate = Gate()
    desk.model.reply(
        Reply(tool_calls=[ToolCall("book", id="call_1")]), Reply(text=["So", gate, " it is."])
    )
    thread_id = await desk.thread("A taxi, please")
    run = await desk.run(thread_id, tools=[{"type": "function", "function": {"name": "book"}}])
    async with look() as page:
        streams = Streams(page)
        await page.goto(f"/ui/runs/{run.id}")
        await page.get_by_text("What happened, in order").click()
        await page.evaluate("window.isTheSame = true")
        await page.get_by_role("link", name="What was sent").click()
        await expect(page.locator("#prompt-1 .piece").first).to_be_visible()
        outputs: Any = [{"tool_call_id": "call_1", "output": "done"}]
        await desk.client.beta.threads.runs.submit_tool_outputs(
            run_id=run.id, thread_id=thread_id, tool_outputs=outputs
        )
        await expect(page.locator("h1 .status")).to_have_text("in progress", timeout=PATIENCE_MS)
        await expect(page.get_by_text("under way")).to_be_visible(timeout=PATIENCE_MS)
        gate.set()
        await expect(page.locator("h1 .status")).to_have_text("completed", timeout=PATIENCE_MS)
        await expect(page.get_by_text("So it is.")).to_be_visible()
        await expect(page.locator(".history table")).to_be_visible()  # what was opened stays open
        await expect(page.locator("#prompt-1 .piece").first).to_be_visible()
        assert await page.evaluate("window.isTheSame")
        await streams.number(0)
        await asyncio.sleep(1.5)  # longer than a page waits before it asks for a stream again
        assert streams.asked_for == 1
        await page.reload(wait_until="networkidle")
        assert streams.asked_for == 1  # one that has ended has none


async def test_eight_pages_of_runs_that_go_on(desk: Desk, look: Open) -> None:
    """A browser opens six connections to a server: pages that nobody sees must let go of theirs.
    A headless one takes every page for visible, so they are told by hand."""
    gate = Gate()
    desk.model.answer = lambda _: Reply(text=["So", gate, " it is."])
    made = await desk.client.beta.assistants.create(model="m")
    runs = [
        await desk.client.beta.threads.runs.create(
            thread_id=await desk.thread("Hello"), assistant_id=made.id
        )
        for _ in range(8)
    ]
    async with look() as first:
        pages, streams = [], Streams(first)
        for at, run in enumerate(runs):
            page = first if at == 0 else await first.context.new_page()
            if at % 2:  # opened in the background
                await page.add_init_script(_HIDE)
            async with page.expect_response("**/live", timeout=PATIENCE_MS):
                await page.goto(f"/ui/runs/{run.id}", timeout=PATIENCE_MS)
            await expect(page.locator("h1 .status")).to_have_text("in progress")
            if not at % 2:
                await page.evaluate(_HIDE + _CHANGED)
            await streams.number(0)
            assert streams.asked_for == at + 1
            pages.append(page)
        await first.evaluate(_SHOW + _CHANGED)
        await streams.number(1)
        gate.set()
        await expect(first.locator("h1 .status")).to_have_text("completed", timeout=PATIENCE_MS)
        await expect(pages[-1].locator("h1 .status")).to_have_text("in progress")
        await pages[-1].evaluate(_SHOW + _CHANGED)
        await expect(pages[-1].locator("h1 .status")).to_have_text("completed", timeout=PATIENCE_MS)
        await streams.number(0)
    desk.model.answer = None


async def test_a_function_is_answered_in_the_page(desk: Desk, look: Open) -> None:
    desk.model.reply(Reply(tool_calls=[ToolCall("book", {"at": 8})]), Reply(text=["Booked."]))
    tools = [{"type": "function", "function": {"name": "book"}}]
    run = await desk.run(await desk.thread("A taxi, please"), tools=tools)
    for with_scripts in (False, True):
        async with look(java_script_enabled=with_scripts) as page:
            await page.goto(f"/ui/runs/{run.id}")
            await expect(page.locator(".answer pre")).to_have_text('{"at": 8}')
            await page.get_by_label("book").fill("at eight")
            if with_scripts:
                await page.get_by_role("button", name="Submit").click()
                await expect(page.get_by_text("Booked.")).to_be_visible(timeout=PATIENCE_MS)
    assert desk.model.requests[-1].body["messages"][-1]["content"] == "at eight"


async def test_a_run_is_retried_from_its_page(desk: Desk, look: Open) -> None:
    desk.model.say("Once")
    run = await desk.run(await desk.thread("Hello"))
    desk.model.say("And once more")
    async with look() as page:
        await page.goto(f"/ui/runs/{run.id}")
        await page.get_by_role("button", name="Retry on a copy").click()
        await page.get_by_role("button", name="Leave it").click()
        await page.get_by_role("button", name="Retry on a copy").click()
        await page.get_by_role("button", name="Run it again").click()
        await expect(page.get_by_text("And once more")).to_be_visible(timeout=PATIENCE_MS)
        assert run.id not in page.url


async def test_threads_are_selected_and_deleted(desk: Desk, look: Open) -> None:
    kept = await desk.thread("Keep this")
    for n in range(3):
        await desk.thread(f"Question {n}")
    async with look() as page:
        await page.goto("/ui/threads?q=question")
        delete = page.get_by_role("button", name="Delete selected")
        await expect(delete).to_be_hidden()
        await page.get_by_label("Select all").check()
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Export selected").click()
        assert (await download.value).suggested_filename == "threads.jsonl"
        await delete.click()
        await page.get_by_role("button", name="Keep them").click()
        await delete.click()
        await page.get_by_role("button", name="Delete them").click()
        await expect(page).to_have_url(re.compile(r"/ui/threads\?q=question$"))
        await expect(page.get_by_text("Nothing was found.")).to_be_visible()
        await page.goto("/ui/threads")
        await expect(page.locator("a.row")).to_have_text(["Keep this"])
        assert kept in await page.content()


async def test_a_second_visit_asks_for_the_page_alone(desk: Desk, look: Open) -> None:
    async with look() as page:
        fetched = "performance.getEntriesByType('resource').map((one) => one.transferSize)"
        await page.goto("/ui/threads", wait_until="networkidle")
        assert len(await page.evaluate(fetched)) <= 5
        await page.goto("/ui/threads?q=x", wait_until="networkidle")
        assert sum(await page.evaluate(fetched)) == 0


async def _cited(desk: Desk, passage: str, answer: str, name: str = "refunds.md") -> Any:
    """A run that has found the passage, and has cited it."""
    store = await desk.client.vector_stores.create()
    await desk.client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=(name, passage.encode()), poll_interval_ms=20
    )

    def say(request: dict[str, Any]) -> Reply:
        found = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not found:
            return Reply(tool_calls=[ToolCall("file_search", {"queries": [passage[:200]]})])
        return Reply(text=[answer, found[0].partition("】")[0] + "】"])

    desk.model.answer = say
    thread_id = await desk.thread("When?")
    run = await desk.run(
        thread_id,
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    assert run.status == "completed", run.last_error
    desk.model.answer = None
    return run


async def _called(desk: Desk, thread_id: str, text: str) -> Any:
    """A run whose function was asked and has answered with this."""
    arguments = {"text": text}
    desk.model.reply(Reply(tool_calls=[ToolCall("book", arguments, id="c")]), Reply(text=[text]))
    run = await desk.run(thread_id, tools=[{"type": "function", "function": {"name": "book"}}])
    outputs: Any = [{"tool_call_id": "c", "output": text}]
    return await desk.client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread_id, tool_outputs=outputs, poll_interval_ms=20
    )


async def _waiting(desk: Desk, text: str) -> Any:
    """A run that waits for the output of a function, called with this."""
    desk.model.reply(Reply(tool_calls=[ToolCall("book", {"text": text})]))
    tools = [{"type": "function", "function": {"name": "book"}}]
    return await desk.run(await desk.thread(text[:200]), tools=tools)


class Streams:
    """By which the pages of a browser are told what is new."""

    def __init__(self, page: Page) -> None:
        self.asked_for = 0
        self._open: set[Request] = set()
        self._changed = asyncio.Event()
        context = page.context
        context.on("request", self._begin)
        context.on("requestfinished", self._end)
        context.on("requestfailed", self._end)

    async def number(self, expected: int) -> None:
        """Wait until so many are open."""
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while len(self._open) != expected:
                self._changed.clear()
                await self._changed.wait()

    def _begin(self, request: Request) -> None:
        if request.url.endswith("/live"):
            self.asked_for += 1
            self._open.add(request)
            self._changed.set()

    def _end(self, request: Request) -> None:
        self._open.discard(request)
        self._changed.set()


async def _open_everything(page: Page) -> None:
    for summary in await page.locator("summary:visible").all():
        await summary.evaluate("(one) => { one.parentElement.open = true; }")
    for mark in await page.locator(".mark").all():
        await mark.focus()


async def test_scripts_may_come_late_one_after_the_other(desk: Desk, look: Open) -> None:
    """htmx must not begin before the others are there: it would follow nothing."""
    gate = Gate()
    desk.model.reply(Reply(text=["So", gate, " it is."]))
    made = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create(
        thread_id=await desk.thread("Hello"), assistant_id=made.id
    )

    async def hold_up(route: Route) -> None:
        await asyncio.sleep(0.5)
        await route.continue_()

    async with look() as page:
        for name in ("hx-sse", "app"):
            await page.route(f"**/static/{name}.*.js", hold_up)
        async with page.expect_response("**/live", timeout=PATIENCE_MS):
            await page.goto(f"/ui/runs/{run.id}", timeout=PATIENCE_MS)
        gate.set()
        await expect(page.locator("h1 .status")).to_have_text("completed", timeout=PATIENCE_MS)
