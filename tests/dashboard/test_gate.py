"""The public API for our own pages, under /ui/api."""

import asyncio
import json
from typing import Any

from dashboard.conftest import COOKIE, OWN, Desk


async def _call(desk: Desk, method: str, path: str, body: Any = None, **headers: str) -> Any:
    answer = await desk.send(
        method,
        f"/ui/api/v1{path}",
        json.dumps(body) if body is not None else None,
        headers=OWN | {"Content-Type": "application/json"} | headers,
    )
    return answer.status, json.loads(await answer.text())


async def test_the_sign_in_opens_the_api_of_its_project(desk: Desk, other_desk: Desk) -> None:
    status, made = await _call(desk, "POST", "/threads", {"metadata": {"a": "b"}})
    assert status == 200
    assert (await desk.client.beta.threads.retrieve(made["id"])).metadata == {"a": "b"}
    status, refused = await _call(other_desk, "GET", f"/threads/{made['id']}")
    assert (status, refused["error"]["message"]) == (
        404,
        f"No thread found with id '{made['id']}'.",
    )


async def test_a_key_that_is_sent_is_not_looked_at(desk: Desk, other_desk: Desk) -> None:
    made = await other_desk.client.beta.threads.create()
    status, _ = await _call(
        desk, "GET", f"/threads/{made.id}", Authorization=f"Bearer {other_desk.key}"
    )
    assert status == 404


async def test_without_a_sign_in_it_is_closed(desk: Desk) -> None:
    for path in ("/threads", "/models"):
        answer = await desk.send("GET", f"/ui/api/v1{path}", token="")
        assert answer.status == 401
        error = json.loads(await answer.text())["error"]
        assert error["message"] == "You are signed out. Sign in again."
    assert (await desk.send("GET", "/ui/api/metrics")).status == 404
    assert (await desk.send("GET", "/ui/api/v1/organization/projects")).status in (401, 404)


async def test_other_sites_cannot_use_it_and_the_api_itself_takes_no_cookie(desk: Desk) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
    assert (await desk.send("POST", "/ui/api/v1/threads", headers=foreign)).status == 403
    answer = await desk.send("GET", "/v1/threads", headers={"Cookie": f"{COOKIE}={desk.token}"})
    assert answer.status == 401


async def test_what_pages_ask_for_is_counted_under_their_own_routes(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    await desk.page(f"/ui/threads/{thread_id}")
    await _call(desk, "GET", f"/threads/{thread_id}")
    theirs = {"/ui/threads/{thread_id}", "/ui/api/v1/threads/{thread_id}"}
    async with asyncio.timeout(30):  # a request is counted when it is over, which nobody is told
        while not theirs <= (routes := _routes(desk)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not {"/threads/{thread_id}", "/sign-in"} & routes


def _routes(desk: Desk) -> set[str]:
    return {
        labels["route"]
        for family in desk.runtime.metrics.families()
        for name, labels, _ in family.samples
        if name == "threadmill_http_requests_total"
    }


async def test_a_key_is_sent_again_under_its_name(desk: Desk) -> None:
    first = await _call(desk, "POST", "/threads", {}, **{"Idempotency-Key": "one"})
    assert await _call(desk, "POST", "/threads", {}, **{"Idempotency-Key": "one"}) == first


async def test_a_key_that_is_sent_does_not_say_whose_answer_is_kept(
    desk: Desk, other_desk: Desk
) -> None:
    headers = {"Idempotency-Key": "two", "Authorization": f"Bearer {other_desk.key}"}
    status, made = await _call(desk, "POST", "/threads", {}, **headers)
    assert status == 200
    assert await _call(desk, "POST", "/threads", {}, **headers) == (200, made)
    status, others = await _call(other_desk, "POST", "/threads", {}, **headers)
    assert status == 200
    assert others["id"] != made["id"]


async def test_no_page_is_kept_for_it_might_show_a_new_key(desk: Desk) -> None:
    headers = OWN | {"Idempotency-Key": "three", "Authorization": f"Bearer {desk.key}"}
    answer = await desk.send("POST", "/ui/keys", {"name": "mine"}, headers=headers)
    assert answer.status == 200
    assert "sk-tm-" in await answer.text()
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM idempotency_keys WHERE project_id = %s", [desk.project_id]
        )
        assert await cursor.fetchone() == (0,)
