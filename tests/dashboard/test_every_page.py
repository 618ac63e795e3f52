"""What holds for every page of the site. Who adds a page adds it to the list here, and with that
it is looked at in every one of these ways.

The project that they show is full of strings that would like to be scripts.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from dashboard import axe
from dashboard.conftest import COOKIE, Desk, Open, looking_at, new_desk
from dashboard.hostile import HOSTILE
from dashboard.test_thread import PNG, upload
from shelf import Archive
from threadmill.api.deps import Keys
from threadmill.app import create_app
from threadmill.demo.scripted_model import Gate, Reply, ToolCall
from threadmill.store import projects

pytestmark = pytest.mark.asyncio(loop_scope="session")

# By the route of each page, the addresses at which it is looked at.
PAGES: dict[str, list[str]] = {
    "/sign-in": ["/sign-in"],
    "/": ["/"],
    "/threads": ["/threads", "/threads?q=script", "/threads?q=status:failed", "/threads?q={0}"],
    "/threads/{}": ["/threads/{thread}", "/threads/{thread}?around={message}", "/threads/{empty}"],
    "/runs/{}": ["/runs/{cited}", "/runs/{called}", "/runs/{failed}", "/runs/{waiting}"],
    "/runs/{}/turns/{}": [
        "/runs/{cited}/turns/1", "/runs/{cited}/turns/2", "/runs/{called}/turns/2",
        "/runs/{failed}/turns/1",
    ],
    "/playground": ["/playground", "/playground?assistant={assistant}"],
    "/assistants": ["/assistants"],
    "/assistants/new": ["/assistants/new"],
    "/assistants/import": ["/assistants/import"],
    "/assistants/{}": ["/assistants/{assistant}"],
    "/assistants/{}/versions": ["/assistants/{assistant}/versions"],
    "/vector_stores": ["/vector_stores"],
    "/vector_stores/{}": ["/vector_stores/{store}"],
    "/vector_stores/{}/files/{}": [
        "/vector_stores/{store}/files/{file}", "/vector_stores/{store}/files/{broken}",
    ],
    "/vector_stores/{}/files/{}/chunks/{}": ["/vector_stores/{store}/files/{file}/chunks/0"],
    "/vector_stores/{}/search": [
        "/vector_stores/{store}/search", "/vector_stores/{store}/search?q=script",
    ],
    "/files": ["/files"],
    "/files/{}/about": ["/files/{file}/about", "/files/{broken}/about"],
    "/usage": ["/usage"],
    "/keys": ["/keys"],
    "/health": ["/health"],
}  # fmt: skip
# What GET gives that is no page of its own: files, ways to other pages, parts of pages, and what
# is for the administrator alone.
NO_PAGES = {
    "/jump", "/files/{}", "/static/{}", "/threads/export", "/threads/{}/export",
    "/assistants/{}/export", "/usage/csv", "/runs/{}/turns/{}/request", "/runs/{}/turns/{}/curl",
    "/live", "/runs/{}/live", "/health/rows", "/health/warnings", "/runs/{}/steps/{}",
    "/assistants/models", "/playground/calls/{}", "/threads/{}/messages/{}",
    "/projects", "/projects/{}",
}  # fmt: skip
# They need no sign-in.
OPEN_PAGES = {"/sign-in", "/static/{}"}

_FUNCTION: Any = {"type": "function", "function": {"name": "book", "description": HOSTILE[0]}}
_ALL = "\n\n".join(HOSTILE)
_TABS = 8


class Project(NamedTuple):
    desk: Desk
    ids: dict[str, str]
    addresses: list[str]  # of every page


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def project(archive: Archive) -> AsyncIterator[Project]:
    async with new_desk(archive) as desk:
        ids = await _fill(desk)
        queries = [text.replace("\n", " ")[:60] for text in HOSTILE]
        routes = {path for _, path in _routes(archive)}
        addresses = [
            f"/ui{address.format(*queries, **ids)}"
            for path, addresses in PAGES.items()
            if path in routes
            for address in addresses
        ]
        yield Project(desk, ids, addresses)


@pytest_asyncio.fixture(loop_scope="session")
async def look(browser: Browser, project: Project) -> Open:
    return looking_at(browser, project.desk)


# --- the list ---


async def test_every_page_is_in_the_list(archive: Archive) -> None:
    got = {path for method, path in _routes(archive) if method == "GET"}
    assert got == {*PAGES, *NO_PAGES}
    assert len(got & set(PAGES)) > 4


def _routes(archive: Archive) -> list[tuple[str, str]]:
    """Methods and paths, with {} for what is named in them."""
    keys = Keys(archive.server.runtime.settings, archive.database)
    app: Any = create_app(archive.server.runtime, archive.server.worker, keys)
    [mount] = [route for route in app._app.routes if getattr(route, "path", "") == "/ui" and
               hasattr(route, "app") and not hasattr(route, "methods")]  # fmt: skip
    found = [
        (method, re.sub(r"\{[^}]*\}", "{}", route.path))
        for included in mount.app._app.routes
        if hasattr(included, "effective_route_contexts")  # else it is the API
        for route in included.effective_route_contexts()
        for method in route.methods
    ]
    assert len(found) > 10
    return found


# --- who is let in ---


async def test_nobody_is_let_in_without_a_sign_in(project: Project, archive: Archive) -> None:
    for method, path in _routes(archive):
        if path in OPEN_PAGES or path == "/sign-out":
            continue
        address = f"/ui{path.replace('{}', 'x_x')}"
        for token in ("", "nonsense"):
            answer = await project.desk.send(method, address, token=token)
            assert answer.status == 303, (method, path)
            assert answer.headers["location"].startswith("/ui/sign-in"), (method, path)


async def test_no_form_is_taken_from_elsewhere(project: Project, archive: Archive) -> None:
    posts = [path for method, path in _routes(archive) if method == "POST"]
    assert not [route for route in _routes(archive) if route[0] not in ("GET", "HEAD", "POST")]
    for path in (*posts, "/api/v1/threads", "/api/v1/files"):
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Origin": "http://127.0.0.1:1"}
            address = f"/ui{path.replace('{}', 'x_x')}"
            answer = await project.desk.send("POST", address, {"a": "b"}, headers=headers)
            assert answer.status == 403, (path, site)


async def test_no_page_answers_to_a_strange_host(project: Project, archive: Archive) -> None:
    for method, path in _routes(archive):
        headers = {"Host": "rebind.example", "Sec-Fetch-Site": "same-origin"}
        address = f"/ui{path.replace('{}', 'x_x')}"
        answer = await project.desk.send(method, address, headers=headers)
        assert answer.status == 421, (method, path)


# --- each of them in a browser ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_runs_or_fetches_what_others_wrote(
    project: Project, look: Open, scheme: str
) -> None:
    """In messages of both, names, metadata, what functions are given and return, passages, and the
    words of an upstream."""
    async with look(color_scheme=scheme) as page:
        for address in project.addresses:
            await _go(page, address)
            await _open_everything(page)
            assert await page.evaluate("window.pwned") is None, address
            foreign = "iframe, base, object, embed, [hx-get^=http], [onerror], [onload]"
            assert await page.locator(f"{foreign}, main style, main script").count() == 0, address


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(project: Project, look: Open, scheme: str) -> None:
    fault = await asyncio.to_thread(axe.fetch)
    if fault is not None:
        if os.environ.get("CI"):
            pytest.fail(fault)
        pytest.skip(fault)
    found: dict[str, str] = {}  # the address of one page where it is, by what is wrong
    async with look(color_scheme=scheme, bypass_csp=True) as page:
        for address in project.addresses:
            await _go(page, address)
            await _open_everything(page)
            await page.add_script_tag(path=axe.SCRIPT)
            for violation in await page.evaluate("axe.run().then((result) => result.violations)"):
                for node in violation["nodes"]:
                    summary = node["failureSummary"].replace("\n", " ")
                    told = f"{violation['id']}: {summary} {node['html'][:160]}"
                    found.setdefault(told, address)
    assert not found, "\n".join(f"{where}: {told}" for told, where in found.items())


async def test_whatever_has_the_focus_is_seen(project: Project, look: Open) -> None:
    async with look() as page:
        for address in project.addresses:
            await _go(page, address)
            seen = 0
            for _ in range(40):
                await page.keyboard.press("Tab")
                focused = await page.evaluate(_FOCUSED)
                if focused is None:  # through, and out of the page
                    break
                assert focused["width"] > 0, (address, focused)
                assert focused["height"] > 0, (address, focused)
                assert focused["is_in_sight"], (address, focused)
                assert focused["outline"] != "none", (address, focused)
                seen += 1
            assert seen, address


async def _go(page: Page, address: str) -> None:
    """And wait for what the page fetches by itself. Where it is followed, the network is never
    idle."""
    await page.goto(address)
    await expect(page.locator(".htmx-request:not([hx-sse\\:connect])")).to_have_count(
        0, timeout=30_000
    )


_FOCUSED = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const box = one.getBoundingClientRect();
  const is_in_sight = box.bottom > 0 && box.right > 0
    && box.top < innerHeight && box.left < innerWidth;
  return {html: one.outerHTML.slice(0, 120), width: box.width, height: box.height, is_in_sight,
          outline: getComputedStyle(one).outlineStyle};
}"""


async def test_every_page_can_be_read_without_scripts(project: Project, look: Open) -> None:
    async with look(java_script_enabled=False) as page:
        for address in project.addresses:
            await page.goto(address)
            main = page.locator("main, form").first
            await expect(main, address).to_be_visible()
            assert len(await page.locator("body").inner_text()) > 40, address
            assert await page.locator("h1, label").first.is_visible(), address


async def test_eight_tabs_are_open_at_once(project: Project, browser: Browser) -> None:
    """A browser has six connections for one server. Tabs that are not seen give theirs back."""
    desk, gate = project.desk, Gate()
    desk.model.reply(Reply(text=["It", gate, " has ended."]))
    thread_id = await desk.thread("How long?")
    made = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create(thread_id=thread_id, assistant_id=made.id)
    context = await browser.new_context(base_url=desk.address)
    cookie: Any = {"name": COOKIE, "value": desk.token, "url": f"{desk.address}/ui/"}
    await context.add_cookies([cookie])
    tabs: list[Page] = []
    for _ in range(_TABS):
        for tab in tabs[-1:]:
            await tab.evaluate(_BECOME, "hidden")
        tabs.append(await context.new_page())
        await tabs[-1].goto(f"/ui/runs/{run.id}")
        await expect(tabs[-1].locator("h1 .status")).to_have_text("in progress", timeout=30_000)
    gate.set()
    for tab in (tabs[-1], tabs[0]):
        await tab.evaluate(_BECOME, "visible")
        await expect(tab.locator("h1 .status")).to_have_text("completed", timeout=30_000)
    await context.close()


# A browser without a screen takes every tab for visible.
_BECOME = """(state) => {
  Object.defineProperty(document, 'visibilityState', {get: () => state, configurable: true});
  Object.defineProperty(document, 'hidden', {get: () => state === 'hidden', configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


async def _open_everything(page: Page) -> None:
    for summary in await page.locator("summary:visible").all():
        await summary.evaluate("(one) => { one.parentElement.open = true; }")
    for mark in await page.locator(".mark").all():
        await mark.focus()


# --- what they show ---


async def _fill(desk: Desk) -> dict[str, str]:
    """The ids of what there is, by the names that stand in the addresses."""
    client = desk.client
    names = [text.replace("\n", " ")[:60] for text in HOSTILE]
    metadata: Any = {name: text[:500] for name, text in zip(names, HOSTILE, strict=True)}
    store = await client.vector_stores.create(name=HOSTILE[1], metadata=metadata)
    file = await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=('"><img src=x onerror=pwned=1>.md', _ALL.encode()),
        attributes={names[0]: HOSTILE[0]},
        poll_interval_ms=20,
    )
    broken = await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("<b>.pdf", b"%PDF-1.7 <b>"), poll_interval_ms=20
    )
    assert (file.status, broken.status) == ("completed", "failed")
    thread_id = await desk.thread(*HOSTILE)
    await client.beta.threads.update(thread_id, metadata=metadata)
    attachment: Any = {"file_id": await upload(desk, names[1], PNG), "tools": []}
    await client.beta.threads.messages.create(
        thread_id, role="user", content=HOSTILE[0], attachments=[attachment], metadata=metadata
    )
    cited = await _cited(desk, thread_id, store.id)
    called = await _called(desk, thread_id)
    desk.model.reply(Reply(status=400, body={"error": {"message": _ALL}}))
    failed = await desk.run(thread_id, name=HOSTILE[1], instructions=_ALL, metadata=metadata)
    desk.model.reply(Reply(tool_calls=[ToolCall("book", {"text": _ALL})]))
    waiting = await desk.run(await desk.thread(_ALL), name=HOSTILE[2], tools=[_FUNCTION])
    ended = [run.status for run in (cited, called, failed, waiting)]
    assert ended == ["completed", "completed", "failed", "requires_action"]
    async with desk.database.connection() as connection:
        own = await projects.get(connection, desk.project_id)
        key, _ = await projects.create_key(connection, own, HOSTILE[1])
    [message, *_] = (await client.beta.threads.messages.list(thread_id, order="asc")).data
    return {
        "thread": thread_id,
        "empty": (await client.beta.threads.create()).id,
        "message": message.id,
        "assistant": failed.assistant_id,
        "store": store.id,
        "file": file.id,
        "broken": broken.id,
        "key": key.id,
        "cited": cited.id,
        "called": called.id,
        "failed": failed.id,
        "waiting": waiting.id,
    }


async def _cited(desk: Desk, thread_id: str, store_id: str) -> Any:
    """A run that has found the passage, and has cited it."""

    def say(request: dict[str, Any]) -> Reply:
        found = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not found:
            return Reply(tool_calls=[ToolCall("file_search", {"queries": HOSTILE[:4]})])
        return Reply(text=[_ALL, found[0].partition("】")[0] + "】"])

    desk.model.answer = say
    run = await desk.run(
        thread_id,
        name=HOSTILE[0],
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store_id]}},
    )
    desk.model.answer = None
    return run


async def _called(desk: Desk, thread_id: str) -> Any:
    """A run whose function was asked and has answered with this."""
    call = ToolCall("book", {"text": _ALL}, id="c")
    desk.model.reply(Reply(tool_calls=[call]), Reply(text=[_ALL]))
    run = await desk.run(thread_id, tools=[_FUNCTION])
    outputs: Any = [{"tool_call_id": "c", "output": _ALL}]
    return await desk.client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread_id, tool_outputs=outputs, poll_interval_ms=20
    )
