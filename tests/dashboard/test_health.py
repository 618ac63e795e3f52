"""What the server says of itself, and what it does not say."""

import asyncio
import time

import aiohttp
import pytest
from playwright.async_api import expect
from pydantic import SecretStr

from conftest import Serve
from dashboard.conftest import Desk, Open
from threadmill import doctor

PATIENCE_MS = 30_000
KEY = "sk-upstream-open-sesame"


async def test_the_page_is_there_before_anything_was_looked_at(desk: Desk) -> None:
    html = await desk.page("/ui/health")
    assert 'hx-get="/ui/health/rows"' in html
    assert "<table" not in html


async def test_every_check_has_its_row(desk: Desk) -> None:
    html = await desk.page("/ui/health/rows")
    for subject in (*doctor.SUBJECTS, "migrations", "pgvector", "processes"):
        assert f'<th scope="row">{subject}</th>' in html
    assert "no Docker engine at" in html  # and so what to do
    assert "set THREADMILL_DOCKER_HOSTS" in html
    answer = await desk.send("GET", "/ui/health/rows", headers={"HX-Request": "true"})
    part = await answer.text()
    assert part.startswith('<table id="rows"')


async def test_a_broken_endpoint_is_told_with_its_remedy_and_without_its_key(
    serve: Serve, unused_tcp_port: int
) -> None:
    async with (
        serve(
            model_base_url=f"http://user:hidden-word@127.0.0.1:{unused_tcp_port}/v1",
            model_api_key=SecretStr(KEY),
            admin_key=SecretStr("sk-admin-of-the-house"),
        ) as server,
        aiohttp.ClientSession() as session,
    ):
        warnings = await (await session.get(f"{server.address}/ui/health/warnings")).text()
        assert "Broken: model" in warnings
        assert 'href="/ui/health"' in warnings
        html = await (await session.get(f"{server.address}/ui/health/rows")).text()
        assert "Is it running, and is its URL right?" in html
        for secret in (KEY, "hidden-word", "sk-admin-of-the-house"):
            assert secret not in html + warnings


async def test_however_many_look_each_thing_is_looked_at_once(desk: Desk) -> None:
    await desk.page("/ui/health/rows")
    asked = len(desk.model.requests)
    await asyncio.gather(*(desk.page("/ui/health/rows") for _ in range(20)))
    assert len(desk.model.requests) == asked


async def test_it_takes_no_longer_than_its_slowest_check(serve: Serve) -> None:
    """An endpoint that never answers."""

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(be_silent, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent, serve(
        model_base_url=f"http://127.0.0.1:{port}/v1", model_idle_timeout_s=0.5
    ) as server, aiohttp.ClientSession() as session:  # fmt: skip
        began = time.monotonic()
        html = await (await session.get(f"{server.address}/ui/")).text()
        assert "<table" not in html or "Now" in html
        rows = await (await session.get(f"{server.address}/ui/health/rows")).text()
        assert ">broken<" in rows
        assert time.monotonic() - began < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_rows_come_into_the_page(desk: Desk, look: Open, scheme: str) -> None:
    async with look(color_scheme=scheme) as page:
        await page.goto("/ui/health")
        await expect(page.get_by_role("rowheader", name="database")).to_be_visible(
            timeout=PATIENCE_MS
        )
        await page.goto("/ui/")
        await expect(page.locator("#warnings")).to_contain_text("docker", timeout=PATIENCE_MS)
        await page.get_by_role("link", name="What to do").click()
        await expect(page.get_by_role("heading", name="Health")).to_be_visible()
