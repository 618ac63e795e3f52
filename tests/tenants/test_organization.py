"""The administration API, through the official SDK where that knows it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from pydantic import SecretStr

from threadmill.api import organization
from threadmill.app import Served
from threadmill.store.database import Database

ADMIN_KEY = "sk-admin-of-the-house"
Serve = Callable[..., AbstractAsyncContextManager[Served]]


class Admin:
    def __init__(self, address: str) -> None:
        self.address = address
        self.sdk = openai.AsyncOpenAI(
            api_key="none",
            admin_api_key=ADMIN_KEY,
            base_url=f"{address}/v1",
            max_retries=0,
            _strict_response_validation=False,
        )
        self.projects = self.sdk.admin.organization.projects
        self.usage = self.sdk.admin.organization.usage

    def tenant(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=key, base_url=f"{self.address}/v1", max_retries=0)

    async def send(
        self, method: str, path: str, body: Any = None, key: str | None = ADMIN_KEY
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"{self.address}/v1/organization{path}", json=body, headers=headers
            ) as response,
        ):
            return response.status, await response.json()


@pytest_asyncio.fixture
async def admin(serve: Serve) -> AsyncIterator[Admin]:
    async with serve(admin_key=SecretStr(ADMIN_KEY)) as server:
        admin = Admin(server.address)
        async with admin.sdk:
            yield admin


async def new_key(admin: Admin, project_id: str, **more: Any) -> tuple[str, str]:
    status, made = await admin.send(
        "POST", f"/projects/{project_id}/api_keys", {"name": "laptop"} | more
    )
    assert status == 200, made
    return made["id"], made["value"]


async def test_a_project_from_its_making_to_its_archive(admin: Admin) -> None:
    made = await admin.projects.create(name="acme")
    assert (made.name, made.status, made.archived_at) == ("acme", "active", None)
    assert made.object == "organization.project"
    assert await admin.projects.retrieve(made.id) == made
    renamed = await admin.projects.update(made.id, name="acme ltd")
    assert renamed.name == "acme ltd"
    _, key = await new_key(admin, made.id)
    async with admin.tenant(key) as tenant:
        assert (await tenant.models.list()).data
    archived = await admin.projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    listed = [one.id async for one in admin.projects.list()]
    assert listed == ["proj_default"]
    everything = [one.id async for one in admin.projects.list(include_archived=True, limit=1)]
    assert everything == [made.id, "proj_default"]
    assert (await admin.send("POST", f"/projects/{made.id}", {"name": "x"}))[0] == 400
    assert (await admin.send("POST", f"/projects/{made.id}/api_keys", {"name": "x"}))[0] == 400


async def test_an_archived_projects_keys_are_refused_at_once(admin: Admin) -> None:
    project = await admin.projects.create(name="acme")
    _, key = await new_key(admin, project.id)
    async with admin.tenant(key) as tenant:
        assert (await tenant.beta.assistants.list()).data == []
        await admin.projects.archive(project.id)
        with pytest.raises(openai.AuthenticationError):
            await tenant.beta.assistants.list()
    status, refused = await admin.send("POST", f"/projects/{project.id}/api_keys", {"name": "x"})
    assert (status, refused["error"]["message"]) == (
        400,
        f"Project '{project.id}' is archived; it cannot be changed.",
    )


async def test_the_command_line_knows_whose_project_is_archived(
    admin: Admin, database_url: str
) -> None:
    project = await admin.projects.create(name="acme")
    key_ids = [(await new_key(admin, project.id))[0] for _ in range(2)]
    await admin.send("DELETE", f"/projects/{project.id}/api_keys/{key_ids[0]}")

    async def states() -> list[str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "threadmill", "keys", "list"),
            env=os.environ | {"THREADMILL_DATABASE_URL": database_url},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        return [line.split()[2] for line in said.decode().splitlines()]

    assert await states() == ["revoked", "valid"]
    await admin.projects.archive(project.id)
    assert await states() == ["revoked", "archived"]


async def test_a_project_can_hide_its_prompts(admin: Admin) -> None:
    made = await admin.projects.create(name="acme")
    assert (await admin.send("GET", f"/projects/{made.id}"))[1]["hide_prompts"] is False
    status, changed = await admin.send("POST", f"/projects/{made.id}", {"hide_prompts": True})
    assert (status, changed["hide_prompts"], changed["name"]) == (200, True, "acme")
    await admin.projects.update(made.id, name="acme ltd")  # takes nothing else along
    assert (await admin.send("GET", f"/projects/{made.id}"))[1]["hide_prompts"] is True
    for wrong in (None, "yes", 1):
        body = {"hide_prompts": wrong}
        assert (await admin.send("POST", f"/projects/{made.id}", body))[0] == 400


async def test_names_are_given_once_and_the_default_project_stays(admin: Admin) -> None:
    await admin.projects.create(name="acme")
    with pytest.raises(openai.BadRequestError, match="of the name 'acme' already"):
        await admin.projects.create(name="acme")
    other = await admin.projects.create(name="other")
    with pytest.raises(openai.BadRequestError, match="of the name 'acme' already"):
        await admin.projects.update(other.id, name="acme")
    assert (await admin.projects.update(other.id, name="other")).name == "other"
    with pytest.raises(openai.BadRequestError, match="default project"):
        await admin.projects.archive("proj_default")
    with pytest.raises(openai.NotFoundError, match="No project found with id 'proj_x'"):
        await admin.projects.retrieve("proj_x")


async def test_keys_are_made_listed_and_revoked(admin: Admin) -> None:
    project = await admin.projects.create(name="acme")
    other = await admin.projects.create(name="other")
    key_id, key = await new_key(admin, project.id)
    more_id, _ = await new_key(admin, project.id, max_concurrent_runs=4)
    shown = await admin.projects.api_keys.retrieve(key_id, project_id=project.id)
    assert shown.name == "laptop"
    assert shown.redacted_value.startswith(key[:9])
    assert key not in shown.model_dump_json()
    assert shown.owner.type == "service_account"
    assert [one.id async for one in admin.projects.api_keys.list(project.id)] == [more_id, key_id]
    assert [one.id async for one in admin.projects.api_keys.list(project.id, limit=1)] == [
        more_id,
        key_id,
    ]
    with pytest.raises(openai.NotFoundError):
        await admin.projects.api_keys.retrieve(key_id, project_id=other.id)
    with pytest.raises(openai.NotFoundError):
        await admin.projects.api_keys.delete(key_id, project_id=other.id)
    deleted = await admin.projects.api_keys.delete(key_id, project_id=project.id)
    assert (deleted.id, deleted.deleted) == (key_id, True)
    async with admin.tenant(key) as tenant:
        with pytest.raises(openai.AuthenticationError):
            await tenant.beta.assistants.list()
    assert [one.id async for one in admin.projects.api_keys.list(project.id)] == [more_id]


async def test_limits_are_set_and_taken_away(admin: Admin) -> None:
    project = await admin.projects.create(name="acme")
    [before] = [one async for one in admin.projects.rate_limits.list_rate_limits(project.id)]
    assert (before.max_requests_per_1_minute, before.max_tokens_per_1_minute) == (None, None)
    changed = await admin.projects.rate_limits.update_rate_limit(
        before.id,
        project_id=project.id,
        max_requests_per_1_minute=2,
        extra_body={"max_stored_bytes": 5, "max_concurrent_runs": 3},
    )
    assert changed.max_requests_per_1_minute == 2
    assert changed.model_extra is not None
    assert changed.model_extra["max_stored_bytes"] == 5
    key_id, key = await new_key(admin, project.id, max_requests_per_1_minute=1)
    async with admin.tenant(key) as tenant:
        await tenant.beta.assistants.list()
        with pytest.raises(openai.RateLimitError, match=key_id):
            await tenant.beta.assistants.list()
    path = f"/projects/{project.id}/api_keys/{key_id}"
    status, shown = await admin.send("POST", path, {"max_requests_per_1_minute": None})
    assert (status, shown["max_requests_per_1_minute"]) == (200, None)
    path = f"/projects/{project.id}/rate_limits/{before.id}"
    status, shown = await admin.send("POST", path, {"max_requests_per_1_minute": None})
    assert (status, shown["max_requests_per_1_minute"], shown["max_stored_bytes"]) == (200, None, 5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/projects", {}, "name"),
        ("/projects", {"name": ""}, "name"),
        ("/projects", {"name": "x", "geography": "EU"}, "geography"),
        ("/projects/proj_default/rate_limits/rl_all", {"max_stored_bytes": 0}, "max_stored_bytes"),
        (
            "/projects/proj_default/rate_limits/rl_all",
            {"max_requests_per_1_day": 5},
            "max_requests_per_1_day",
        ),
        (
            "/projects/proj_default/data_retention",
            {"threads_max_age_days": 1.5},
            "threads_max_age_days",
        ),
    ],
)
async def test_what_is_wrong_is_told(
    admin: Admin, path: str, body: dict[str, Any], param: str
) -> None:
    status, refused = await admin.send("POST", path, body)
    assert (status, refused["error"]["param"]) == (400, param)


async def test_the_admin_key_opens_nothing_else_and_no_other_key_opens_this(
    admin: Admin,
) -> None:
    project = await admin.projects.create(name="acme")
    _, key = await new_key(admin, project.id)
    for wrong in (key, "any", ADMIN_KEY[:-1], ADMIN_KEY + "x"):
        status, refused = await admin.send("GET", "/projects", key=wrong)
        assert (status, refused["error"]["code"]) == (401, "invalid_api_key")
    assert (await admin.send("GET", "/projects", key=None))[0] == 401
    async with admin.tenant(ADMIN_KEY) as tenant:
        with pytest.raises(openai.AuthenticationError):
            await tenant.beta.assistants.list()


async def test_no_route_of_it_is_open_to_tenants(admin: Admin) -> None:
    project = await admin.projects.create(name="acme")
    key_id, key = await new_key(admin, project.id)
    places = {"project_id": project.id, "key_id": key_id, "rate_limit_id": "rl_all"}
    tried = 0
    for route in organization.router.routes:
        assert isinstance(route, APIRoute)
        path = route.path.removeprefix("/organization").format_map(places)
        for method in route.methods:
            status, _ = await admin.send(method, path, {"name": "taken over"}, key=key)
            assert status == 401, f"{method} {path}"
            tried += 1
    assert tried > 15
    assert (await admin.projects.retrieve(project.id)).name == "acme"


async def test_the_admin_key_is_no_tenants_where_any_key_is_taken(admin: Admin) -> None:
    async with admin.tenant("any") as tenant:
        assert (await tenant.beta.assistants.list()).data == []
    async with admin.tenant(ADMIN_KEY) as tenant:
        with pytest.raises(openai.AuthenticationError):
            await tenant.beta.assistants.list()


async def test_without_an_admin_key_there_is_no_such_api(serve: Serve) -> None:
    async with serve() as server:
        admin = Admin(server.address)
        status, refused = await admin.send("GET", "/projects")
        assert (status, refused["error"]["message"]) == (
            404,
            "Invalid URL (GET /v1/organization/projects)",
        )
        await admin.sdk.close()


# --- Idempotency-Key ---


async def send_keyed(
    admin: Admin, key: str, path: str, body: Any, *, api_key: str = ADMIN_KEY
) -> tuple[int, Mapping[str, str], Any]:
    headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": key}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{admin.address}/v1{path}", json=body, headers=headers) as response,
    ):
        return response.status, response.headers, await response.json()


async def test_what_is_sent_again_is_not_done_again(admin: Admin) -> None:
    made = await admin.projects.create(name="acme")
    of_project = f"/organization/projects/{made.id}"
    for path, body in (
        ("/organization/projects", {"name": "other"}),
        (of_project, {"name": "acme ltd"}),
        (f"{of_project}/rate_limits/rl_all", {"max_requests_per_1_minute": 60}),
        (f"{of_project}/data_retention", {"threads_max_age_days": 9}),
        (f"{of_project}/archive", None),
    ):
        first = await send_keyed(admin, path, path, body)
        assert first[0] == 200
        again = await send_keyed(admin, path, path, body)
        assert again[1]["idempotent-replayed"] == "true"
        assert (again[0], again[2]) == (200, first[2])
        status, _, refusal = await send_keyed(admin, path, path, {"name": "something else"})
        assert (status, refusal["error"]["code"]) == (400, "idempotency_key_reused")


async def test_the_keys_of_the_administration_and_of_projects_are_different(admin: Admin) -> None:
    _, api_key = await new_key(admin, "proj_default")
    status, _, _ = await send_keyed(admin, "same", "/organization/projects", {"name": "acme"})
    assert status == 200
    status, _, thread = await send_keyed(admin, "same", "/threads", {}, api_key=api_key)
    assert (status, thread["object"]) == (200, "thread")
    # Nor does it open the administration to whoever knows it.
    status, _, refusal = await send_keyed(
        admin, "same", "/organization/projects", {"name": "acme"}, api_key=api_key
    )
    assert (status, refusal["error"]["code"]) == (401, "invalid_api_key")


async def test_the_value_of_an_api_key_is_neither_kept_nor_told_again(
    admin: Admin, database: Database
) -> None:
    path = "/organization/projects/proj_default/api_keys"
    refused = [await send_keyed(admin, "refused", path, {"name": 1}) for _ in range(2)]
    assert [answer[0] for answer in refused] == [400, 400]
    assert refused[1][1]["idempotent-replayed"] == "true"
    status, _, made = await send_keyed(admin, "key", path, {"name": "laptop"})
    assert status == 200
    async with database.connection() as connection:
        found = await connection.execute(
            "SELECT row_to_json(idempotency_keys)::text, body FROM idempotency_keys"
            " WHERE status = 200"
        )
        [(row, body)] = await found.fetchall()
    assert made["value"] not in row
    assert body is None
    for is_dead in (False, True):
        if is_dead:  # before it could write down what it had done
            async with database.connection() as connection:
                await connection.execute(
                    "UPDATE idempotency_keys SET status = NULL, found_at = NULL WHERE status = 200"
                )
        status, headers, refusal = await send_keyed(admin, "key", path, {"name": "laptop"})
        assert (status, headers["x-should-retry"]) == (409, "false")
        assert refusal["error"]["code"] == "idempotent_answer_not_kept"
        assert f"'{made['id']}'" in refusal["error"]["message"]
        assert made["value"] not in refusal["error"]["message"]
    _, listed = await admin.send("GET", "/projects/proj_default/api_keys")
    assert [one["id"] for one in listed["data"]] == [made["id"]]


async def test_a_project_that_a_dead_process_made_is_found(
    admin: Admin, database: Database
) -> None:
    path = "/organization/projects"
    _, _, made = await send_keyed(admin, "key", path, {"name": "acme"})
    async with database.connection() as connection:
        await connection.execute("UPDATE idempotency_keys SET status = NULL, body = NULL")
    status, headers, found = await send_keyed(admin, "key", path, {"name": "acme"})
    assert (status, headers["idempotent-replayed"], found) == (200, "true", made)
