"""Who comes in, and how long they stay."""

import asyncio
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from conftest import Serve
from dashboard.conftest import COOKIE, OWN, Desk
from threadmill.store import projects, sign_ins

PAGES = ["/ui/", "/ui/threads", "/ui/threads/thread_x", "/ui/runs/run_x", "/ui/jump?id=run_x",
         "/ui/files/file-x", "/ui/runs/run_x/turns/1", "/ui/threads/thread_x/export"]  # fmt: skip


async def test_a_key_opens_the_pages(desk: Desk) -> None:
    answer = await desk.send("POST", "/ui/sign-in", {"key": f" {desk.key} "}, token="")
    assert answer.status == 303
    cookie = answer.cookies[COOKIE]
    assert cookie["httponly"]
    assert (cookie["path"], cookie["samesite"], cookie["secure"]) == ("/ui", "lax", "")
    assert desk.key not in str(answer.headers)
    assert (await desk.send("GET", "/ui/threads", token=cookie.value)).status == 200


async def test_behind_https_the_cookie_is_for_https_alone(desk: Desk) -> None:
    headers = OWN | {"X-Forwarded-Proto": "https"}
    answer = await desk.send("POST", "/ui/sign-in", {"key": desk.key}, headers=headers, token="")
    cookie = answer.cookies["__Secure-threadmill"]
    assert cookie["secure"]
    assert cookie["httponly"]


async def test_only_hashes_are_kept(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT token_hash, key_hash FROM sign_ins WHERE project_id = %s", [desk.project_id]
        )
        rows = await cursor.fetchall()
    hashes = [hashlib.sha256(text.encode()).digest() for text in (desk.token, desk.key)]
    assert rows == [tuple(hashes)]


async def test_nothing_is_shown_without_a_sign_in(desk: Desk) -> None:
    for page in PAGES:
        for token in ("", "nonsense"):
            answer = await desk.send("GET", page, token=token)
            assert answer.status == 303, page
            assert answer.headers["location"].startswith("/ui/sign-in?back=%2Fui%2F")
    for path in ("threads/thread_x/delete", "threads/thread_x/fork", "runs/run_x/cancel"):
        assert (await desk.send("POST", f"/ui/{path}", token="")).status == 303
    answer = await desk.send("GET", "/ui/threads", headers={"HX-Request": "true"}, token="")
    assert (answer.status, answer.headers["hx-redirect"]) == (204, "/ui/sign-in")


@pytest.mark.parametrize(
    ("back", "to"),
    [
        ("/ui/runs/run_x", "/ui/runs/run_x"),
        ("", "/ui/"),
        ("https://evil.example/", "/ui/"),
        ("//evil.example/", "/ui/"),
        ("/ui/\\evil", "/ui/"),
        ("/ui/\r\nSet-Cookie: a=b", "/ui/"),
        ("/v1/threads", "/ui/"),
    ],
)
async def test_one_comes_back_to_where_one_wanted_to_go(desk: Desk, back: str, to: str) -> None:
    answer = await desk.send("POST", "/ui/sign-in", {"key": desk.key, "back": back}, token="")
    assert answer.headers["location"] == to


async def test_signing_out_ends_it_on_the_server(desk: Desk) -> None:
    answer = await desk.send("POST", "/ui/sign-out")
    assert answer.cookies[COOKIE]["max-age"] == "0"
    assert (await desk.send("GET", "/ui/threads")).status == 303


async def test_a_sign_in_ends_with_its_key(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE api_keys SET revoked_at = 1 WHERE project_id = %s", [desk.project_id]
        )
    assert (await desk.send("GET", "/ui/threads")).status == 303


async def test_a_sign_in_ends_with_its_project(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        await projects.archive(connection, desk.project_id)
    assert (await desk.send("GET", "/ui/threads")).status == 303


@pytest.mark.parametrize(
    ("column", "lasts_s"),
    [("used_at", sign_ins.IDLE_MAX_S), ("created_at", sign_ins.LIFETIME_S)],
)
async def test_a_sign_in_lasts_so_long(desk: Desk, column: str, lasts_s: int) -> None:
    for age_s, status in ((lasts_s - 60, 200), (lasts_s + 60, 303)):
        async with desk.database.connection() as connection:
            await connection.execute(
                f"UPDATE sign_ins SET {column} = %s WHERE project_id = %s",
                [int(time.time()) - age_s, desk.project_id],
            )
        assert (await desk.send("GET", "/ui/threads")).status == status
    await desk.sign_in()  # clears away what is over
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM sign_ins WHERE project_id = %s", [desk.project_id]
        )
        assert await cursor.fetchone() == (1,)


async def test_using_it_keeps_it(desk: Desk) -> None:
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE sign_ins SET used_at = used_at - 3600 WHERE project_id = %s", [desk.project_id]
        )
    await desk.page("/ui/threads")
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT used_at FROM sign_ins WHERE project_id = %s", [desk.project_id]
        )
        [(used_at,)] = await cursor.fetchall()
    assert used_at >= time.time() - 60


async def test_the_api_takes_no_cookie(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    for headers in (OWN, OWN | {"Authorization": "Bearer "}):
        assert (await desk.send("GET", f"/v1/threads/{thread_id}", headers=headers)).status == 401
        answer = await desk.send("POST", f"/v1/threads/{thread_id}", headers=headers)
        assert answer.status == 401


# --- servers with other settings ---


async def test_guessing_is_slow_work(serve: Serve) -> None:
    async with (
        serve(api_keys=[SecretStr("the-right-one")]) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):

        async def attempt(key: str) -> int:
            address = f"{server.address}/ui/sign-in"
            async with session.post(
                address, data={"key": key}, headers=OWN, allow_redirects=False
            ) as answer:
                return answer.status

        assert [await attempt(f"wrong-{n}") for n in range(10)] == [401] * 10
        assert await attempt("wrong-10") == 429
        assert await attempt("the-right-one") == 429


async def test_a_static_key_opens_the_default_project_as_long_as_it_is_one(serve: Serve) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        async with serve(api_keys=[SecretStr("first")]) as server:
            form = {"key": "first"}
            async with session.post(
                f"{server.address}/ui/sign-in", data=form, headers=OWN
            ) as answer:
                assert answer.status == 200
                assert "sign-out" in await answer.text()
        async with (
            serve(api_keys=[SecretStr("second")]) as server,
            session.get(f"{server.address}/ui/threads") as answer,
        ):
            assert answer.url.path_qs == "/ui/sign-in?back=/ui/threads"


async def test_without_any_key_this_machine_may_look(serve: Serve) -> None:
    async with serve() as server, aiohttp.ClientSession() as session:
        for path in ("/", "/ui", "/ui/", "/ui/sign-in"):
            async with session.get(server.address + path) as answer:
                assert (answer.status, answer.url.path) == (200, "/ui/")
        async with session.get(
            f"{server.address}/ui/threads", headers={"Host": "rebind.example"}
        ) as answer:
            assert answer.status == 421
        async with server.runtime.database.connection() as connection:
            project = await projects.get_or_create(connection, "one")
            await projects.create_key(connection, project, "first")
        async with asyncio.timeout(20):  # soon a key is demanded
            while True:
                async with session.get(f"{server.address}/ui/threads") as answer:
                    if answer.url.path == "/ui/sign-in":
                        break
                await asyncio.sleep(0.1)


OFF = """
import asyncio, sys
from pathlib import Path
import aiohttp
from threadmill.app import served
from threadmill.settings import Settings

async def look():
    settings = Settings(
        database_url=sys.argv[1], data_dir=Path(sys.argv[2]), port=0, dashboard="off",
        docker_hosts=["unix:///nonexistent/docker.sock"], sandbox_warm_sessions=0,
    )
    async with served(settings) as server, aiohttp.ClientSession() as session:
        for path in ("/ui", "/ui/", "/ui/threads", "/"):
            async with session.get(server.address + path) as answer:
                assert answer.status == 404, path
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not {"jinja2", "markdown_it", "nh3", "markupsafe"} & loaded
    assert not [name for name in sys.modules if name.startswith("threadmill.dashboard")]

asyncio.run(look())
"""


def test_turned_off_nothing_of_it_is_there(database_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFF, database_url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
