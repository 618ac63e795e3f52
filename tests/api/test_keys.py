"""Who may come in: keys, static and of projects, revoked ones, none at all."""

import pytest
from pydantic import SecretStr

from api.conftest import ServeWire
from api.wire import Refusal, Wire
from threadmill.api.deps import Keys
from threadmill.settings import Settings
from threadmill.store import projects
from threadmill.store.database import Database

NO_KEY = Refusal(
    401,
    "You didn't provide an API key. You need to provide your API key in an Authorization header"
    " using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or in an api-key header.",
)
PATHS = [
    ("GET", "/assistants"),
    ("POST", "/assistants"),
    ("GET", "/threads/thread_a"),
    ("POST", "/threads/runs"),
    ("GET", "/threads/thread_a/messages/msg_a"),
    ("POST", "/threads/thread_a/runs/run_a/cancel"),
    ("GET", "/threads/thread_a/runs/run_a/steps"),
    ("GET", "/models"),
    ("GET", "/files"),
]


def wrong(shown: str) -> Refusal:
    return Refusal(
        401,
        f"Incorrect API key provided: {shown}. You can find the keys of this server by typing:"
        " threadmill keys list",
        None,
        "invalid_api_key",
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": "Basic YTpi"},
        {"api-key": ""},
    ],
)
async def test_a_key_is_needed(wire: Wire, headers: dict[str, str]) -> None:
    for method, path in PATHS:
        assert await wire.refused(method, path, headers=headers) == NO_KEY


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk-abcdefghijkl-wxyz", "sk-ab***yz"),
        ("short", "***"),
        ("x" * 5000, "xxxxx***xx"),
    ],
)
async def test_a_wrong_key_is_not_repeated_in_full(wire: Wire, key: str, shown: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"api-key": key}):
        refusal = await wire.refused("GET", "/assistants", headers=headers)
        assert refusal == wrong(shown)
    for method, path in PATHS:
        headers = {"Authorization": "Bearer sk-abcdefghijkl-wxyz"}
        assert await wire.refused(method, path, headers=headers) == wrong("sk-ab***yz")


async def test_a_key_comes_in_either_header(wire: Wire) -> None:
    for headers in (
        {"Authorization": f"Bearer {wire.key}"},
        {"authorization": f"bearer   {wire.key} "},
        {"api-key": wire.key},
        {"Authorization": "Basic YTpi", "api-key": wire.key},
    ):
        assert (await wire.send("GET", "/assistants", headers=headers)).status == 200


async def test_organization_and_project_headers_are_accepted(wire: Wire) -> None:
    headers = wire.headers | {"OpenAI-Organization": "org-x", "OpenAI-Project": "proj_x"}
    assert (await wire.send("GET", "/assistants", headers=headers)).status == 200


async def test_nothing_is_read_before_the_key_is_known(wire: Wire) -> None:
    for raw in (b"{", b"x" * 100_000):
        assert await wire.refused("POST", "/assistants", raw=raw, headers={}) == NO_KEY


async def test_an_unknown_path_needs_no_key(wire: Wire) -> None:
    assert (await wire.refused("GET", "/foo", headers={})).status == 404


async def test_without_any_keys_every_key_will_do(serve_wire: ServeWire) -> None:
    async with serve_wire() as wire:
        assert (await wire.send("GET", "/assistants")).status == 200
        assert (await wire.send("GET", "/assistants", headers={"api-key": "x"})).status == 200
        assert await wire.refused("GET", "/assistants", headers={}) == NO_KEY


async def test_static_keys_are_of_the_default_project(serve_wire: ServeWire) -> None:
    keys = [SecretStr("first-static-key"), SecretStr("other-static-key")]
    async with serve_wire(api_keys=keys) as wire:
        assert await wire.refused("GET", "/assistants") == wrong("***")
        made = []
        for key in keys:
            wire.headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
            made.append((await wire.post("/assistants", {"model": "m"}))["id"])
            assert await wire.ids("/assistants?order=asc") == made


async def project_of(keys: Keys, key: str) -> str | None:
    caller = await keys.caller_of(key)
    return caller.project_id if caller else None


async def test_a_revoked_key_is_refused(database: Database, settings: Settings) -> None:
    keys = Keys(settings, database, known_for_s=0)
    async with database.connection() as connection:
        assert await project_of(keys, "anything") == projects.DEFAULT_PROJECT_ID
        project = await projects.get_or_create(connection, "one")
        row, key = await projects.create_key(connection, project, "a")
        assert await project_of(keys, key) == project.id
        assert await project_of(keys, "anything") is None
        await projects.revoke_key(connection, row.id)
        assert await project_of(keys, key) is None
        # Though it was the last one: revoking a key must not open the server to all.
        assert await project_of(keys, "anything") is None


async def test_a_key_is_looked_up_again_after_a_while(
    database: Database, settings: Settings
) -> None:
    keys = Keys(settings, database, known_for_s=3600)
    async with database.connection() as connection:
        project = await projects.get_or_create(connection, "one")
        row, key = await projects.create_key(connection, project, "a")
        assert await project_of(keys, key) == project.id
        await projects.revoke_key(connection, row.id)
        assert await project_of(keys, key) == project.id  # until then
