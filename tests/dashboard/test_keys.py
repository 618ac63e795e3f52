"""Keys and projects: made, shown once, limited, revoked; by those who may."""

import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from playwright.async_api import expect
from pydantic import SecretStr

from conftest import Serve
from dashboard.conftest import COOKIE, OWN, Desk, Open
from dashboard.hostile import HOSTILE
from threadmill.store import projects

ADMIN_KEY = "sk-admin-of-the-house"
LIMITS = ("max_requests_per_1_minute", "max_tokens_per_1_minute", "max_concurrent_runs",
          "max_stored_bytes")  # fmt: skip


def made_key(html: str) -> str:
    found = re.search(r'<pre tabindex="0" id="made">(sk-tm-[\w-]+)</pre>', html)
    assert found, "No key is shown."
    return found[1]


async def own_key(desk: Desk) -> Any:
    async with desk.database.connection() as connection:
        return await projects.key_behind(connection, projects.key_hash(desk.key))


async def works(desk: Desk, key: str) -> bool:
    async with openai.AsyncOpenAI(
        api_key=key, base_url=f"{desk.address}/v1", max_retries=0
    ) as client:
        try:
            await client.beta.assistants.list()
        except openai.AuthenticationError:
            return False
        return True


async def test_a_key_is_made_shown_once_and_revoked(desk: Desk) -> None:
    form = {"name": "laptop", "max_tokens_per_1_minute": "10,000"}
    answer = await desk.send("POST", "/ui/keys", form)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    key = made_key(await answer.text())
    assert await works(desk, key)
    html = await desk.page("/ui/keys")
    assert key not in html
    assert f"{key[:9]}...{key[-4:]}" in html
    assert "<b>10,000</b> tokens a minute" in html
    async with desk.database.connection() as connection:
        row = await projects.key_behind(connection, projects.key_hash(key))
    assert row is not None
    assert (row.name, row.project_id, row.max_tokens_per_minute) == (
        "laptop",
        desk.project_id,
        10_000,
    )
    answer = await desk.send("POST", f"/ui/keys/{row.id}/revoke")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/keys")
    assert not await works(desk, key)
    assert row.id not in await desk.page("/ui/keys")
    assert (await desk.send("POST", f"/ui/keys/{row.id}/revoke")).status == 404


async def test_who_revokes_his_own_key_is_signed_out(desk: Desk) -> None:
    own = await own_key(desk)
    assert "You are signed in with it" in await desk.page("/ui/keys")
    await desk.send("POST", f"/ui/keys/{own.id}/revoke")
    answer = await desk.send("GET", "/ui/keys")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/sign-in?back=%2Fui%2Fkeys")


@pytest.mark.parametrize(
    "form",
    [
        {"name": ""},
        {"name": "x" * 257},
        {"name": "x", "max_stored_bytes": "0"},
        {"name": "x", "max_stored_bytes": "-1"},
        {"name": "x", "max_concurrent_runs": "many"},
        {"name": "x", "max_concurrent_runs": "9" * 400},
        {"name": "\0"},
    ],
)
async def test_what_cannot_be_is_refused(desk: Desk, form: dict[str, str]) -> None:
    assert (await desk.send("POST", "/ui/keys", form)).status == 400
    assert (await desk.page("/ui/keys")).count('<button type="button" class="danger quiet"') == 1


async def test_keys_of_others_are_not_there(desk: Desk, other_desk: Desk) -> None:
    theirs = await own_key(other_desk)
    assert theirs.id not in await desk.page("/ui/keys")
    for method, path in (("POST", f"/ui/keys/{theirs.id}/revoke"), ("GET", f"/ui/keys?after={theirs.id}")):  # fmt: skip  # noqa: E501
        assert (await desk.send(method, path)).status == 404
    assert await works(desk, other_desk.key)


async def test_a_limited_key_cannot_make_one_without_limits(desk: Desk) -> None:
    own = await own_key(desk)
    async with desk.database.connection() as connection:
        await projects.modify_key(connection, desk.project_id, own.id, {"max_concurrent_runs": 2})
    html = await desk.page("/ui/keys")
    assert "your key has limits of its own" in html
    assert "<form" not in html.partition("<main")[2]
    for path in ("keys", f"keys/{own.id}/revoke", "keys/prompts"):
        assert (await desk.send("POST", f"/ui/{path}", {"name": "x", "hide": "yes"})).status == 403
    assert await works(desk, desk.key)


async def test_prompts_are_hidden_where_the_project_says_so(desk: Desk) -> None:
    desk.model.say("Yes.")
    run = await desk.run(await desk.thread("Hello"), instructions="The password is xyzzy.")
    turn = f"/ui/runs/{run.id}/turns/1"
    [step] = (await desk.client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)).data
    of_step = f"/ui/api/v1/threads/{run.thread_id}/runs/{run.id}/steps/{step.id}/request"
    reads = (turn, f"{turn}/request", of_step)
    for path in reads:
        assert "xyzzy" in await desk.page(path), path
    answer = await desk.send("POST", "/ui/keys/prompts", {"hide": "yes"})
    assert answer.status == 303
    assert "are hidden" in await desk.page("/ui/keys")
    assert "This project does not show what models were sent" in await desk.page(turn)
    for path, status in zip(reads, (200, 403, 200), strict=True):
        answer = await desk.send("GET", path)
        assert answer.status == status
        assert "xyzzy" not in await answer.text()
    await desk.send("POST", "/ui/keys/prompts", {"hide": "no"})
    assert "xyzzy" in await desk.page(turn)


async def test_the_page_shows_what_holds_for_the_project(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        fields = {"max_tokens_per_minute": 5000, "threads_max_age_days": 90}
        await projects.modify(connection, desk.project_id, fields)
    html = await desk.page("/ui/keys")
    assert "<dd>5,000</dd>" in html
    assert "<dd>for 90 days</dd>" in html
    assert desk.project_id in html


async def test_many_keys_come_in_pages(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        project = await projects.get(connection, desk.project_id)
        for number in range(110):
            await projects.create_key(connection, project, f"key {number}")
    html = await desk.page("/ui/keys")
    older = re.search(r'href="(\?after=key_\w+)"', html)
    assert older
    assert "key 109" in html
    assert "key 9 " not in html
    assert "key 9 " in await desk.page(f"/ui/keys{older[1]}")


# --- the administrator ---


class Office:
    """A server with an admin key, looked at by an administrator."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self.address = address
        self._session = session
        self.token = ""

    async def send(
        self, method: str, path: str, form: Any = None, *, token: str | None = None
    ) -> tuple[int, str, Any]:
        headers = OWN | {"Cookie": f"{COOKIE}={self.token if token is None else token}"}
        answer = await self._session.request(
            method, self.address + path, data=form, headers=headers, allow_redirects=False
        )
        return answer.status, await answer.text(), answer.headers

    async def sign_in(self, key: str) -> tuple[str, str]:
        """The token, and where one is sent."""
        answer = await self._session.post(
            f"{self.address}/ui/sign-in", data={"key": key}, headers=OWN, allow_redirects=False
        )
        assert answer.status == 303
        return answer.cookies[COOKIE].value, answer.headers["location"]


@pytest_asyncio.fixture
async def office(serve: Serve) -> AsyncIterator[Office]:
    jar = aiohttp.DummyCookieJar()
    async with (
        serve(admin_key=SecretStr(ADMIN_KEY), api_keys=[SecretStr("sk-static")]) as server,
        aiohttp.ClientSession(cookie_jar=jar) as session,
    ):
        office = Office(server.address, session)
        office.token, to = await office.sign_in(ADMIN_KEY)
        assert to == "/ui/projects"
        yield office


async def test_a_project_from_its_making_to_its_archive(office: Office) -> None:
    status, _, headers = await office.send("POST", "/ui/projects", {"name": "acme <b>"})
    page = headers["location"]
    assert status == 303
    _, html, _ = await office.send("GET", "/ui/projects")
    assert f'href="{page}">acme &lt;b&gt;</a>' in html
    status, html, _ = await office.send("POST", f"{page}/keys", {"name": "first"})
    key = made_key(html)
    settings = {name: "" for name in LIMITS} | {"max_concurrent_runs": "7",
               "threads_max_age_days": "30", "hide": "yes"}  # fmt: skip
    status, _, _ = await office.send("POST", f"{page}/settings", settings)
    assert status == 303
    _, html, _ = await office.send("GET", page)
    assert key not in html
    assert 'name="max_concurrent_runs" value="7"' in html
    assert 'name="threads_max_age_days" value="30"' in html
    assert 'value="yes" checked' in html
    token, _ = await office.sign_in(key)
    _, html, _ = await office.send("GET", "/ui/keys", token=token)
    assert "acme &lt;b&gt;" in html
    assert "are hidden" in html
    [row] = re.findall(r"<code>(key_\w+)</code>", html)
    status, _, _ = await office.send("POST", f"{page}/keys/{row}/revoke")
    assert status == 303
    assert (await office.send("GET", "/ui/keys", token=token))[0] == 303
    _, html, _ = await office.send("POST", f"{page}/keys", {"name": "second"})
    second, _ = await office.sign_in(made_key(html))
    assert (await office.send("POST", f"{page}/archive"))[0] == 303
    assert (await office.send("GET", "/ui/keys", token=second))[0] == 303
    _, html, _ = await office.send("GET", page)
    assert "its keys are refused" in html
    assert "<form" not in html.partition("<main")[2]
    assert (await office.send("POST", f"{page}/keys", {"name": "third"}))[0] == 400
    assert (await office.send("POST", f"{page}/settings", {}))[0] == 400


async def test_the_admin_sees_no_projects_data_and_no_key_opens_administration(
    office: Office,
) -> None:
    own, _ = await office.sign_in("sk-static")
    _, thread, _ = await office.send("POST", "/ui/api/v1/threads", token=own)
    thread_id = re.findall(r"thread_\w+", thread)[0]
    reads = ["", "threads", f"threads/{thread_id}", f"threads/{thread_id}/export", "usage",
             "usage/csv", "keys", "health", "health/rows", "health/warnings",
             f"jump?id={thread_id}"]  # fmt: skip
    for path in reads:
        assert (await office.send("GET", f"/ui/{path}", token=own))[0] in (200, 303), path
        status, html, headers = await office.send("GET", f"/ui/{path}")
        assert (status, thread_id in html) == (303, False), path
        assert headers["location"].startswith("/ui/sign-in")
    assert (await office.send("GET", "/ui/live"))[0] == 303
    assert (await office.send("GET", f"/ui/api/v1/threads/{thread_id}"))[0] == 401
    for path in ("keys", f"threads/{thread_id}/delete", "keys/prompts"):
        status, _, headers = await office.send("POST", f"/ui/{path}", {"name": "x"})
        assert (status, headers["location"][:11]) == (303, "/ui/sign-in")
    project = "/ui/projects/proj_default"
    for method, path in (
        *(("GET", path) for path in ("/ui/projects", project)),
        *(("POST", path) for path in ("/ui/projects", f"{project}/settings", f"{project}/archive",
          f"{project}/keys", f"{project}/keys/key_x/revoke")),
    ):  # fmt: skip
        for token in (own, "", "nonsense"):
            status, html, headers = await office.send(method, path, {"name": "x"}, token=token)
            assert (status, headers["location"][:11]) == (303, "/ui/sign-in"), path
            assert "Threadmill" not in html
    assert (await office.send("GET", f"/ui/threads/{thread_id}", token=own))[0] == 200


async def test_without_an_admin_key_nobody_is_the_administrator(desk: Desk) -> None:
    answer = await desk.send("GET", "/ui/projects")
    assert answer.status == 303
    answer = await desk.send("POST", "/ui/sign-in", {"key": ADMIN_KEY}, token="")
    assert answer.status == 401


async def test_another_admin_key_ends_the_sign_ins_of_the_old_one(
    serve: Serve, office: Office
) -> None:
    changes = {"admin_key": SecretStr("sk-another-admin"), "api_keys": [SecretStr("sk")]}
    async with serve(**changes) as other, aiohttp.ClientSession() as session:
        headers = OWN | {"Cookie": f"{COOKIE}={office.token}"}
        answer = await session.get(
            f"{other.address}/ui/projects", headers=headers, allow_redirects=False
        )
        assert answer.status == 303


async def test_the_first_key_of_a_server_shuts_out_who_has_none(serve: Serve) -> None:
    async with serve() as server, aiohttp.ClientSession() as session:
        answer = await session.post(f"{server.address}/ui/keys", data={"name": "first"})
        html = await answer.text()
        assert "from now on it wants one" in html
        key = made_key(html)
        answer = await session.get(f"{server.address}/ui/keys", allow_redirects=False)
        assert (answer.status, answer.headers["location"][:11]) == (303, "/ui/sign-in")
        answer = await session.post(
            f"{server.address}/ui/sign-in", data={"key": key}, headers=OWN, allow_redirects=False
        )
        assert answer.status == 303


# --- in the browser ---


async def test_a_key_is_made_and_revoked_in_the_page(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/keys")
        await page.get_by_label("Name").fill(HOSTILE[1])
        await page.get_by_label("Runs at once").fill("3")
        await page.get_by_role("button", name="Make it").click()
        key = await page.locator("#made").inner_text()
        assert await works(desk, key)
        await page.goto("/ui/keys")
        await expect(page.locator("tbody tr")).to_have_count(2)
        assert key not in await page.content()
        row = page.locator("tbody tr", has_text=HOSTILE[1])
        await row.get_by_role("button", name="Revoke", exact=True).click()
        await row.get_by_role("button", name="Revoke it").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        assert not await works(desk, key)


async def test_hostile_names_do_nothing(desk: Desk, look: Open) -> None:
    async with desk.database.connection() as connection:
        project = await projects.get(connection, desk.project_id)
        for text in HOSTILE:
            await projects.create_key(connection, project, text)
        await projects.modify(connection, desk.project_id, {"name": HOSTILE[1] + desk.project_id})
    async with look() as page:
        await page.goto("/ui/keys")
        await expect(page.locator("tbody tr")).to_have_count(len(HOSTILE) + 1)
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("[onerror], [onload], main style, main script").count() == 0
