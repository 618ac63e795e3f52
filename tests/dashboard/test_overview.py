"""The first page: what runs, waits and fails now, and what was used."""

import re
import time
from typing import Any

import aiohttp
from playwright.async_api import Page, expect

from conftest import Serve
from dashboard.conftest import Desk, Open
from dashboard.hostile import HOSTILE
from threadmill.demo.scripted_model import Gate, Reply, ToolCall
from threadmill.settings import Price
from threadmill.store import overview

PATIENCE_MS = 30_000
BOOK: Any = [{"type": "function", "function": {"name": "book_a_taxi"}}]


def tiles(html: str) -> dict[str, str]:
    """What each tile says, by its name."""
    found = re.findall(r"<dt[^>]*>(.*?)</dt><dd>(.*?)</dd>", html, re.S)
    return {name: re.sub("<[^>]*>", "", said).strip() for name, said in found}


async def asks(desk: Desk, text: str = "A taxi, please", **assistant: Any) -> Any:
    """A run that waits for its client."""
    desk.model.reply(Reply(tool_calls=[ToolCall("book_a_taxi", id="c")]))
    return await desk.run(await desk.thread(text), tools=BOOK, **assistant)


async def fails(desk: Desk, words: str, **assistant: Any) -> Any:
    desk.model.reply(Reply(status=400, body={"error": {"message": words}}))
    return await desk.run(await desk.thread("Hello"), **assistant)


async def test_an_empty_project_says_so(desk: Desk) -> None:
    html = await desk.page("/ui/")
    for words in ("Nothing runs, and nothing waits.", "Nothing has failed."):
        assert words in html
    told = tiles(html)
    assert told["running"] == told["wait for you"] == told["queued"] == told["tokens today"] == "0"
    assert int(told["processes"]) >= 1


async def test_what_waits_what_failed_and_what_was_used(desk: Desk) -> None:
    desk.model.say("Yes.")
    done = await desk.run(await desk.thread("Hello"), model="one")
    waiting = await asks(desk, name="Taxis & more", model="two")
    failed = await fails(desk, "no <such> thing")
    html = await desk.page("/ui/")
    told = tiles(html)
    assert (told["running"], told["wait for you"], told["queued"]) == ("0", "1", "0")
    assert told["went well, 2 days"] == "50 %"
    assert re.match(r"\d+ ms|\d\.\d s", told["first token"])
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT sum(prompt_tokens + completion_tokens) FROM runs WHERE project_id = %s",
            [desk.project_id],
        )
        [tokens] = await cursor.fetchone() or [0]
    assert told["tokens today"] == f"{tokens:,}"
    assert f'<a class="row" href="/ui/runs/{waiting.id}">A taxi, please</a>' in html
    for words in ("Taxis &amp; more", "waiting for its client", "no &lt;such&gt; thing"):
        assert words in html
    assert f'action="/ui/runs/{failed.id}/retry"' in html
    assert f'action="/ui/runs/{waiting.id}/cancel"' in html
    assert done.id not in html
    assert re.search(r"<b>\d+ %</b> one", html)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert re.search(rf'href="/ui/threads\?q=after:{day}\+before:', html)


async def test_a_run_is_told_by_what_it_does(desk: Desk) -> None:
    gate = Gate()
    desk.model.say("One", gate, " two")
    thread_id = await desk.thread("Slowly")
    assistant = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create(thread_id, assistant_id=assistant.id)
    while (await desk.client.beta.threads.runs.retrieve(run.id, thread_id=thread_id)).status == (
        "queued"
    ):
        pass
    html = await desk.page("/ui/")
    assert "asking m" in html or "writing" in html
    assert tiles(html)["running"] == "1"
    gate.set()
    await desk.client.beta.threads.runs.poll(run.id, thread_id=thread_id, poll_interval_ms=20)
    assert tiles(await desk.page("/ui/"))["running"] == "0"


async def test_two_projects_see_nothing_of_each_other(desk: Desk, other_desk: Desk) -> None:
    waiting = await asks(other_desk, "A secret taxi", name="Secret")
    failed = await fails(other_desk, "a secret fault")
    html = await desk.page("/ui/")
    for secret in ("ecret", waiting.id, failed.id):
        assert secret not in html
    told = tiles(html)
    assert (told["wait for you"], told["tokens today"]) == ("0", "0")
    assert told["went well, 2 days"] == "no runs"
    async with desk.database.connection() as connection:
        both = await overview.now(connection, [desk.project_id, other_desk.project_id])
    assert both[desk.project_id] == overview.Now()
    assert [run.id for run in both[other_desk.project_id].live] == [waiting.id]
    assert [run.id for run in both[other_desk.project_id].failed] == [failed.id]
    assert both[other_desk.project_id].counts == {"requires_action": 1}


async def test_only_so_many_are_shown(desk: Desk) -> None:
    run = await asks(desk)
    async with desk.database.connection() as connection:
        for table, column in (("threads", "id"), ("runs", "thread_id")):
            fields = await _columns(connection, table)
            shown = ", ".join(
                f"'run_' || n || {name}" if name == "id" and table == "runs"
                else f"'thread_' || n || {name}" if name == column else name
                for name in fields
            )  # fmt: skip
            of = run.thread_id if table == "threads" else run.id
            await connection.execute(
                f"INSERT INTO {table} ({', '.join(fields)}) SELECT {shown}"
                f" FROM {table}, generate_series(1, 30) AS n WHERE id = %s",
                [of],
            )
        now = (await overview.now(connection, [desk.project_id]))[desk.project_id]
        await connection.execute("DELETE FROM threads WHERE id LIKE 'thread_%thread_%'")
    assert now.counts == {"requires_action": 31}
    assert len(now.live) == 20


async def _columns(connection: Any, table: str) -> list[str]:
    cursor = await connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        " AND table_schema = 'public' AND column_name <> 'seq'",
        [table],
    )
    return [name for (name,) in await cursor.fetchall()]


async def test_what_has_a_price_has_a_cost(serve: Serve, model: Any, client: Any) -> None:
    prices = {
        "gpt-*": Price(input=1000, cached=500, output=2000),
        "gpt-free": Price(input=0, output=0),
    }
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    usage_with_cached: Any = usage | {"prompt_tokens_details": {"cached_tokens": 400}}
    async with serve(prices=prices) as server, aiohttp.ClientSession() as session:
        for name in ("gpt-dear", "gpt-free", "unknown"):
            model.reply(Reply(text=["Yes."], usage=usage_with_cached))
            made = await client.beta.assistants.create(model=name)
            thread = await client.beta.threads.create(messages=[{"role": "user", "content": "?"}])
            await client.beta.threads.runs.create_and_poll(
                thread_id=thread.id, assistant_id=made.id, poll_interval_ms=20
            )
        html = await (await session.get(f"{server.address}/ui/")).text()
        assert tiles(html)["tokens today"] == "4,500 $1.80"  # 600 + 400 / 2 + 500 * 2
        of_usage = await (await session.get(f"{server.address}/ui/usage")).text()
        assert "$1.80" in of_usage


# --- in the browser ---


async def test_an_open_page_follows_what_happens(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/")
        await expect(page.get_by_text("Nothing runs, and nothing waits.")).to_be_visible()
        waiting = await asks(desk, "<b>A taxi</b>, please")
        row = page.locator("#now a.row")
        await expect(row).to_have_text("<b>A taxi</b>, please", timeout=PATIENCE_MS)
        await expect(page.locator("#tiles .wait dd")).to_have_text("1")
        await fails(desk, "It was too much.")
        await expect(page.locator("#failed a.row")).to_contain_text(
            "It was too much.", timeout=PATIENCE_MS
        )
        await page.get_by_role("button", name="Cancel").click()
        await expect(page).to_have_url(re.compile(waiting.id))
        await page.go_back()
        await expect(page.get_by_text("Nothing runs, and nothing waits.")).to_be_visible(
            timeout=PATIENCE_MS
        )


async def test_signing_out_elsewhere_ends_the_page(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/")
        await expect(page.locator("#tiles")).to_be_visible()
        await desk.send("POST", "/ui/sign-out")
        await expect(page.get_by_text("You are signed out.")).to_be_visible(timeout=2 * PATIENCE_MS)
        await page.get_by_role("link", name="Sign in again").click()
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_eight_tabs_at_once(desk: Desk, look: Open) -> None:
    """A browser has six connections to a host: tabs that are not seen give theirs back."""
    await asks(desk)

    async def follows(tab: Page) -> None:
        """A run that waits does so for longer each second."""
        waits = tab.locator("#now td.number")
        await expect(waits).not_to_have_text(await waits.inner_text(), timeout=PATIENCE_MS)

    async with look() as page:
        tabs: list[Page] = []
        for number in range(8):
            tab = await page.context.new_page() if number else page
            await tab.goto("/ui/", timeout=PATIENCE_MS)
            await follows(tab)
            await tab.evaluate(_SEEN, False)
            tabs.append(tab)
        await page.evaluate(_SEEN, True)
        await follows(page)


# Headless, every tab counts as seen.
_SEEN = """(seen) => {
    Object.defineProperty(document, "hidden", { value: !seen, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_hostile_strings_do_nothing_here(desk: Desk, look: Open) -> None:
    for text in HOSTILE:
        await fails(desk, text, name=text.replace("\n", " ")[:200], model=text[:200])
        await asks(desk, text, name=text.replace("\n", " ")[:200])
    async with look() as page:
        for path in ("", "usage", "usage?by=assistant&by=model", f"usage?first={HOSTILE[0]}"):
            await page.goto(f"/ui/{path}")
            await expect(page.locator("main")).to_be_visible()
            assert await page.evaluate("window.pwned") is None, path
            assert await page.locator("[onerror], [onload], main style, main script").count() == 0
        await page.goto("/ui/")
        await fails(desk, HOSTILE[1])
        # As it comes through the stream.
        await expect(page.locator("#failed a.row").first).to_contain_text(
            HOSTILE[1], timeout=PATIENCE_MS
        )
        assert await page.evaluate("window.pwned") is None


async def test_it_can_be_read_without_scripts(desk: Desk, look: Open) -> None:
    failed = await fails(desk, "It was too much.")
    async with look(java_script_enabled=False) as page:
        await page.goto("/ui/")
        await page.locator("#failed a.row").click()
        await expect(page).to_have_url(re.compile(failed.id))
        await page.goto("/ui/health")
        await page.get_by_role("link", name="look now").click()
        await expect(page.get_by_role("rowheader", name="database")).to_be_visible()
