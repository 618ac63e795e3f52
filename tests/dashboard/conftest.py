"""The pages over HTTP, and in a real Chromium. A server is shared; each test has a project of its
own on it, and whoever looks is signed in with a key of that project."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from shelf import Archive, new_project
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.store.database import Database

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
COOKIE = "threadmill"
_FIRST_MAX = 32  # messages that a thread may be made with
OWN = {"Sec-Fetch-Site": "same-origin"}  # as a browser says of a form of ours

Open = Callable[..., AbstractAsyncContextManager[Page]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who uses the shared server has to live in its loop."""
    for item in items:
        if "desk" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Desk:
    """What one project has on the server, and its pages."""

    def __init__(
        self,
        archive: Archive,
        session: aiohttp.ClientSession,
        client: openai.AsyncOpenAI,
        project_id: str,
        key: str,
    ) -> None:
        self.address = archive.server.address
        self.runtime = archive.server.runtime
        self.model: ScriptedModel = archive.model
        self.database: Database = archive.database
        self.client = client
        self.project_id = project_id
        self.key = key
        self.token = ""
        self._session = session

    async def sign_in(self) -> str:
        answer = await self.send("POST", "/ui/sign-in", {"key": self.key}, token="")
        assert answer.status == 303, answer.status
        self.token = answer.cookies[COOKIE].value
        return self.token

    async def send(
        self,
        method: str,
        path: str,
        form: dict[str, str] | list[tuple[str, str]] | aiohttp.FormData | str | None = None,
        *,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> aiohttp.ClientResponse:
        """Read to its end. Without `headers` as one of our own pages would send it."""
        token = self.token if token is None else token
        sent = {**(OWN if headers is None else headers)}
        if token:
            sent["Cookie"] = f"{COOKIE}={token}"
        answer = await self._session.request(
            method, self.address + path, data=form, headers=sent, allow_redirects=False
        )
        await answer.read()
        return answer

    def open(self, path: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """For what is read while it comes."""
        return self._session.get(
            self.address + path, headers={**OWN, "Cookie": f"{COOKIE}={self.token}"}
        )

    async def page(self, path: str) -> str:
        answer = await self.send("GET", path)
        assert answer.status == 200, (answer.status, path)
        return await answer.text()

    async def thread(self, *texts: str, **metadata: str) -> str:
        """The id of a thread in which the user says this."""
        said: Any = [{"role": "user", "content": text} for text in texts]
        first, rest = said[:_FIRST_MAX], said[_FIRST_MAX:]
        thread = await self.client.beta.threads.create(messages=first, metadata=metadata)
        for message in rest:
            await self.client.beta.threads.messages.create(thread.id, **message)
        return thread.id

    async def run(self, thread_id: str, **assistant: Any) -> Any:
        made = await self.client.beta.assistants.create(**{"model": "m"} | assistant)
        return await self.client.beta.threads.runs.create_and_poll(
            thread_id=thread_id, assistant_id=made.id, poll_interval_ms=20
        )


@pytest_asyncio.fixture(loop_scope="session")
async def desk(archive: Archive) -> AsyncIterator[Desk]:
    async with new_desk(archive) as desk:
        yield desk


@pytest_asyncio.fixture(loop_scope="session")
async def other_desk(archive: Archive) -> AsyncIterator[Desk]:
    """Of another project."""
    async with new_desk(archive) as desk:
        yield desk


@asynccontextmanager
async def new_desk(archive: Archive) -> AsyncIterator[Desk]:
    archive.model.answer = archive.model.before_embeddings = None
    archive.model._queue.clear()
    project_id, key = await new_project(archive.database)
    jar = aiohttp.DummyCookieJar()
    async with (
        aiohttp.ClientSession(cookie_jar=jar) as session,
        openai.AsyncOpenAI(
            api_key=key, base_url=f"{archive.server.address}/v1", max_retries=0
        ) as client,
    ):
        desk = Desk(archive, session, client, project_id, key)
        await desk.sign_in()
        yield desk


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("There is no Chromium here, and CI tests the pages in one.")
        pytest.skip("There is no Chromium here: apt-get install chromium")
    async with async_playwright() as playwright:
        # Without its sandbox, for root has none. Pages of our own are all it sees.
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def look(browser: Browser, desk: Desk) -> Open:
    return looking_at(browser, desk)


def looking_at(browser: Browser, desk: Desk) -> Open:
    """`async with look() as page`: signed in. Afterwards it is asserted that nothing was asked of
    others, no policy was violated and no script has failed."""

    @asynccontextmanager
    async def start(
        *, signed_in: bool = True, line_breaks: bool = False, **options: Any
    ) -> AsyncIterator[Page]:
        context = await browser.new_context(base_url=desk.address, **options)
        if signed_in:
            cookie: Any = {"name": COOKIE, "value": desk.token, "url": f"{desk.address}/ui/"}
            await context.add_cookies([cookie])
        page = await context.new_page()
        faults: list[str] = []
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        context.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((f"{desk.address}/ui", "data:"))
                else faults.append(asked.url)
            ),
        )
        try:
            yield page
            if line_breaks:  # which the browser tells too
                faults = [fault for fault in faults if "net::ERR_" not in fault]
            assert faults == []
        finally:
            await context.close()

    return start
