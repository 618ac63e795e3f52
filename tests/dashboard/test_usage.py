"""What was used, in which days, and how near the limits are."""

import csv
import io
import time
from datetime import timedelta
from typing import Any

import pytest
from playwright.async_api import expect

from dashboard.conftest import Desk, Open
from threadmill.store import projects, usage

FORMULA = '=HYPERLINK("http://evil.example", "a, b")'


def today() -> Any:
    return usage.day_of(int(time.time()))


async def used(desk: Desk, days_ago: int, assistant_id: str, model: str, tokens: int) -> None:
    async with desk.database.connection() as connection:
        await connection.execute(
            "INSERT INTO usage_days (project_id, day, assistant_id, model, shard, prompt_tokens,"
            " completion_tokens, model_requests, runs_completed, runs_failed)"
            " VALUES (%s, %s, %s, %s, 0, %s, 1, 2, 3, 1),"
            " (%s, %s, %s, %s, 1, %s, 1, 2, 3, 1)",
            [desk.project_id, today() - timedelta(days=days_ago), assistant_id, model, tokens] * 2,
        )


async def table(desk: Desk, query: str = "") -> list[dict[str, str]]:
    answer = await desk.send("GET", f"/ui/usage/csv{query}")
    assert answer.status == 200
    assert answer.content_type == "text/csv"
    assert answer.headers["content-disposition"].startswith("attachment;")
    return list(csv.DictReader(io.StringIO(await answer.text())))


async def test_days_models_and_assistants_are_told_apart(desk: Desk) -> None:
    bot = await desk.client.beta.assistants.create(model="m", name="Support <bot>")
    await used(desk, 0, bot.id, "one", 100)
    await used(desk, 0, "", "two", 7)
    await used(desk, 3, bot.id, "one", 1000)
    await used(desk, 40, bot.id, "one", 5000)
    html = await desk.page("/ui/usage")
    assert "2,220 tokens" in html
    rows = await table(desk)
    assert [(row["day"], row["model"], row["prompt_tokens"]) for row in rows] == [
        (str(today()), "one", "200"),
        (str(today()), "two", "14"),
        (str(today() - timedelta(days=3)), "one", "2000"),
    ]
    rows = await table(desk, "?by=assistant")
    assert [(row["assistant_name"], row["prompt_tokens"]) for row in rows] == [
        ("Support <bot>", "2200"),
        ("", "14"),
    ]
    assert {(row["day"], row["model"]) for row in rows} == {("", "")}
    assert rows[0]["runs_failed"] == "4"
    assert "Support &lt;bot&gt;" in await desk.page("/ui/usage?by=assistant&by=model")
    long_ago = str(today() - timedelta(days=60))
    rows = await table(desk, f"?first={long_ago}&by=model")
    assert [(row["model"], row["prompt_tokens"]) for row in rows] == [
        ("one", "12200"),
        ("two", "14"),
    ]


async def test_the_csv_holds_no_formulas(desk: Desk) -> None:
    names = [FORMULA, "+1", "-1", "@SUM(A1)", '"quoted", with commas', " =1", "a\nb"]
    for number, name in enumerate(names):
        bot = await desk.client.beta.assistants.create(model="m", name=name)
        await used(desk, 0, bot.id, f"={number}", 100 - number)
    rows = await table(desk, "?by=assistant&by=model")
    assert [row["assistant_name"] for row in rows] == [
        f"'{FORMULA}", "'+1", "'-1", "'@SUM(A1)", '"quoted", with commas', "' =1", "a\nb",
    ]  # fmt: skip
    assert [row["model"] for row in rows] == [f"'={number}" for number in range(len(names))]
    assert rows[0]["prompt_tokens"] == "200"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?first=tomorrow", "is no date"),
        ("?first=2026-01-01&last=2026-12-31", "1 to 92 days"),
        ("?first=2026-02-02&last=2026-02-01", "1 to 92 days"),
        ("?first=0001-01-01&last=0001-01-02", "Nothing was used here"),
        ("?last=9999-12-31", "Nothing was used here"),
        ("?first=<script>", "is no date"),
    ],
)
async def test_what_is_no_range_is_told(desk: Desk, query: str, words: str) -> None:
    assert words in await desk.page(f"/ui/usage{query}")
    assert (await desk.send("GET", f"/ui/usage/csv{query}")).status == 400


async def test_nothing_of_other_projects_is_in_it(desk: Desk, other_desk: Desk) -> None:
    bot = await other_desk.client.beta.assistants.create(model="m", name="Secret")
    await used(other_desk, 0, bot.id, "secret", 10)
    assert "ecret" not in await desk.page("/ui/usage?by=assistant&by=model&by=day")
    assert await table(desk, "?by=assistant&by=model") == []
    await used(desk, 0, bot.id, "m", 10)  # an id of theirs does not bring its name
    [row] = await table(desk, "?by=assistant")
    assert row["assistant_name"] == ""


async def test_limits_are_filled_as_far_as_they_are(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        key = await projects.key_behind(connection, projects.key_hash(desk.key))
        assert key is not None
        limits = {"max_stored_bytes": 1000, "max_requests_per_minute": 50}
        await projects.modify_key(connection, desk.project_id, key.id, limits)
        await projects.modify(connection, desk.project_id, {"max_concurrent_runs": 3,
                                                            "max_stored_bytes": 4000})  # fmt: skip
    await desk.client.files.create(file=("a.txt", b"x" * 400), purpose="assistants")
    html = await desk.page("/ui/usage")
    for words in (
        "400 of 1,000 stored bytes", "400 of 4,000 stored bytes", "0 of 3 runs at once",
        "of 50 requests in this minute", "40 % of the key's stored bytes", "400 B of files",
    ):  # fmt: skip
        assert words in html, words


async def test_the_days_are_chosen_in_the_page(desk: Desk, look: Open) -> None:
    await used(desk, 5, "", "old", 100)
    await used(desk, 0, "", "new", 100)
    async with look() as page:
        await page.goto("/ui/usage")
        await expect(page.locator("tbody tr")).to_have_count(2)
        await page.get_by_label("From").fill(str(today() - timedelta(days=1)))
        await page.get_by_label("by day").uncheck()
        await page.get_by_role("button", name="Show").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("tbody")).to_contain_text("new")
        async with page.expect_download() as download:
            await page.get_by_role("link", name="CSV").click()
        assert (await download.value).suggested_filename.startswith("usage-")
