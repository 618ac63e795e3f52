"""The pages in a real browser. After each of these tests `look` asserts that nothing was asked of
anybody else, that no policy was violated, and that no script has failed."""

import re
from typing import Any

from playwright.async_api import expect

from dashboard.conftest import Desk, Open
from threadmill.demo.scripted_model import Reply, ToolCall


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
        await expect(page.locator("[hx-trigger]")).to_have_count(0)


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
