"""What is in another project might as well not be: each operation with each id of the other."""

import re
from itertools import product
from string import Formatter
from typing import Any

import pytest

from api.conftest import Shared, new_key
from api.rows import Rows
from api.stores import Stores
from api.wire import Refusal, Wire
from threadmill.api.deps import Keys
from threadmill.app import create_app

Ids = dict[str, str]

# Of an update or an action, so that it would show if it were done.
CHANGE = {"metadata": {"taken": "over"}}
MESSAGE = {"role": "user", "content": "x"}
CODE = [{"type": "code_interpreter"}]
RUN_STEPS = "/threads/{thread}/runs/{run}/steps"

OPERATIONS: list[tuple[str, str, Any]] = [
    ("GET", "/assistants/{assistant}", None),
    ("POST", "/assistants/{assistant}", CHANGE),
    ("DELETE", "/assistants/{assistant}", None),
    ("GET", "/assistants?after={assistant}", None),
    ("GET", "/assistants?before={assistant}", None),
    (
        "POST",
        "/assistants",
        {"model": "m", "tool_resources": {"code_interpreter": {"file_ids": ["{file}"]}}},
    ),
    (
        "POST",
        "/assistants/{assistant}",
        CHANGE | {"tool_resources": {"code_interpreter": {"file_ids": ["{file}"]}}},
    ),
    ("GET", "/threads/{thread}", None),
    ("POST", "/threads/{thread}", CHANGE),
    ("DELETE", "/threads/{thread}", None),
    ("GET", "/threads?after={thread}", None),
    (
        "POST",
        "/threads",
        {"messages": [MESSAGE | {"attachments": [{"file_id": "{file}", "tools": CODE}]}]},
    ),
    ("POST", "/threads", {"tool_resources": {"code_interpreter": {"file_ids": ["{file}"]}}}),
    (
        "POST",
        "/threads/{thread}",
        {"tool_resources": {"code_interpreter": {"file_ids": ["{file}"]}}},
    ),
    ("GET", "/threads/{thread}/messages", None),
    ("POST", "/threads/{thread}/messages", MESSAGE),
    (
        "POST",
        "/threads/{thread}/messages",
        MESSAGE | {"attachments": [{"file_id": "{file}", "tools": CODE}]},
    ),
    (
        "POST",
        "/threads/{thread}/messages",
        MESSAGE | {"content": [{"type": "image_file", "image_file": {"file_id": "{file}"}}]},
    ),
    ("GET", "/threads/{thread}/messages?after={message}", None),
    ("GET", "/threads/{thread}/messages/{message}", None),
    ("POST", "/threads/{thread}/messages/{message}", CHANGE),
    ("DELETE", "/threads/{thread}/messages/{message}", None),
    ("GET", "/threads/{thread}/runs", None),
    ("GET", "/threads/{thread}/runs?after={run}", None),
    ("POST", "/threads/{thread}/runs", {"assistant_id": "{assistant}"}),
    ("POST", "/threads/{thread}/runs", {"assistant_id": "{assistant}", "stream": True}),
    ("POST", "/threads/runs", {"assistant_id": "{assistant}", "thread": {"messages": [MESSAGE]}}),
    (
        "POST",
        "/threads/runs",
        {
            "assistant_id": "{assistant}",
            "thread": {"messages": [MESSAGE]},
            "tool_resources": {"code_interpreter": {"file_ids": ["{file}"]}},
        },
    ),
    ("GET", "/threads/{thread}/runs/{run}", None),
    ("POST", "/threads/{thread}/runs/{run}", CHANGE),
    ("POST", "/threads/{thread}/runs/{run}/cancel", None),
    ("GET", "/threads/{thread}/runs/{run}/events", None),
    (
        "POST",
        "/threads/{thread}/runs/{run}/submit_tool_outputs",
        {"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}]},
    ),
    (
        "POST",
        "/threads/{thread}/runs/{run}/submit_tool_outputs",
        {"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}], "stream": True},
    ),
    ("GET", RUN_STEPS, None),
    ("GET", RUN_STEPS + "?after={step}", None),
    ("GET", RUN_STEPS + "/{step}", None),
    ("GET", RUN_STEPS + "/{step}/request", None),
    ("GET", "/files/{file}", None),
    ("DELETE", "/files/{file}", None),
    ("GET", "/files/{file}/content", None),
    ("GET", "/files?after={file}", None),
    ("POST", "/uploads/{upload}/parts", None),
    ("POST", "/uploads/{upload}/complete", {"part_ids": ["part_x"]}),
    ("POST", "/uploads/{upload}/cancel", None),
    ("POST", "/vector_stores", {"file_ids": ["{file}"]}),
    ("GET", "/vector_stores?after={store}", None),
    ("GET", "/vector_stores/{store}", None),
    ("POST", "/vector_stores/{store}", CHANGE),
    ("DELETE", "/vector_stores/{store}", None),
    ("POST", "/vector_stores/{store}/search", {"query": "x"}),
    ("POST", "/vector_stores/{store}/files", {"file_id": "{file}"}),
    ("GET", "/vector_stores/{store}/files", None),
    ("GET", "/vector_stores/{store}/files?after={stored}", None),
    ("GET", "/vector_stores/{store}/files/{stored}", None),
    ("POST", "/vector_stores/{store}/files/{stored}", {"attributes": {"taken": "over"}}),
    ("DELETE", "/vector_stores/{store}/files/{stored}", None),
    ("GET", "/vector_stores/{store}/files/{stored}/content", None),
    ("POST", "/vector_stores/{store}/file_batches", {"file_ids": ["{file}"]}),
    ("GET", "/vector_stores/{store}/file_batches/{batch}", None),
    ("GET", "/vector_stores/{store}/file_batches/{batch}/files", None),
    ("GET", "/vector_stores/{store}/file_batches/{batch}/files?after={stored}", None),
    ("POST", "/vector_stores/{store}/file_batches/{batch}/cancel", None),
    (
        "POST",
        "/threads",
        {"tool_resources": {"file_search": {"vector_store_ids": ["{store}"]}}},
    ),
    (
        "POST",
        "/assistants/{assistant}",
        CHANGE | {"tool_resources": {"file_search": {"vector_store_ids": ["{store}"]}}},
    ),
    ("GET", "/webhook_endpoints/{hook}", None),
    ("GET", "/webhook_endpoints?after={hook}", None),
    ("POST", "/webhook_endpoints/{hook}", {"name": "taken over"}),
    ("DELETE", "/webhook_endpoints/{hook}", None),
    ("POST", "/webhook_endpoints/{hook}/rotate_secret", None),
    ("POST", "/webhook_endpoints/{hook}/test", {"event_type": "thread.run.completed"}),
    ("GET", "/webhook_endpoints/{hook}/deliveries", None),
]

# Without the id of anything: what they list is tried below.
LISTS = {"/assistants", "/threads", "/files", "/vector_stores", "/webhook_endpoints"}
# What needs no id to do its work, and shows nothing that was there before.
HARMLESS = {
    ("POST", "/files"),
    ("POST", "/uploads"),
    ("GET", "/models"),  # those of the endpoint, the same for all
    ("GET", "/models/{}"),
    ("DELETE", "/models/{}"),
    ("GET", "/usage"),  # tests/tenants/test_usage.py
    ("POST", "/webhook_endpoints"),
    ("GET", "/webhook_event_types"),
    ("POST", "/chat/completions"),
    ("POST", "/completions"),
    ("POST", "/embeddings"),
    ("POST", "/deployments/{}/{}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),  # tests/test_metrics.py
}

NOUNS = {
    "asst": "No assistant found with id '{}'.",
    "thread": "No thread found with id '{}'.",
    "msg": "No message found with id '{}'.",
    "run": "No run found with id '{}'.",
    "step": "No run step found with id '{}'.",
    "file": "No such File object: {}",
    "upload": "No upload found with id '{}'.",
    "vs": "No vector store found with id '{}'.",
    "wh": "No webhook endpoint found with id '{}'.",
}


async def things(wire: Wire, rows: Rows) -> Ids:
    """One of each kind. The run waits for its client, so that a wrong hand could do the most."""
    assistant = (await wire.post("/assistants", {"model": "m"}))["id"]
    thread = (await wire.post("/threads", {"messages": [MESSAGE]}))["id"]
    [message] = await wire.ids(f"/threads/{thread}/messages")
    run = await rows.add_run(thread, assistant, "requires_action")
    stores = Stores(rows.database, wire.project_id)
    await stores.hold()
    stored = await stores.add_file()
    store = (await wire.post("/vector_stores", {"file_ids": [stored]}))["id"]
    await stores.move(store, stored, "completed", ("one",))
    batch = await wire.post(f"/vector_stores/{store}/file_batches", {"file_ids": [stored]})
    upload = {"filename": "a", "purpose": "assistants", "bytes": 3, "mime_type": "text/plain"}
    hook = {"name": "x", "url": "https://example.com/", "event_types": ["thread.run.failed"]}
    return {
        "hook": (await wire.post("/webhook_endpoints", hook))["id"],
        "store": store,
        "stored": stored,
        "batch": batch["id"],
        "upload": (await wire.post("/uploads", upload))["id"],
        "assistant": assistant,
        "thread": thread,
        "message": message,
        "run": run,
        "step": await rows.add_step(run),
        "file": await rows.add_file(),
    }


def filled(template: Any, ids: Ids) -> Any:
    if isinstance(template, str):
        return template.format_map(ids)
    if isinstance(template, list):
        return [filled(one, ids) for one in template]
    if isinstance(template, dict):
        return {name: filled(one, ids) for name, one in template.items()}
    return template


def names_in(template: Any) -> set[str]:
    if isinstance(template, str):
        return {name for _, name, _, _ in Formatter().parse(template) if name}
    inner = template.values() if isinstance(template, dict) else template
    return set().union(*map(names_in, inner)) if isinstance(template, dict | list) else set()


async def test_each_operation_with_each_id_of_another_project_finds_and_changes_nothing(
    wire: Wire, rows: Rows, other_wire: Wire
) -> None:
    other_rows = Rows(rows.database, other_wire.project_id)
    own, other = await things(wire, rows), await things(other_wire, other_rows)
    before = await rows.contents(), await other_rows.contents()
    for method, path, body in OPERATIONS:
        names = sorted(names_in(path) | names_in(body))
        for of_the_other in product([True, False], repeat=len(names)):
            if not any(of_the_other):
                continue
            chosen = dict(zip(names, of_the_other, strict=True))
            mixed = {name: (other if chosen[name] else own)[name] for name in names}
            told = f"{method} {path} {chosen}"
            answer = await wire.send(method, filled(path, mixed), filled(body, mixed))
            assert answer.status == 404, told
            assert answer.refusal.message in {*known(mixed)}, told
    assert (await rows.contents(), await other_rows.contents()) == before


def known(mixed: Ids) -> list[str]:
    """What may be told, of whichever of them is looked at first."""
    texts = [
        NOUNS[one.replace("-", "_").split("_")[0]].format(one)
        for name, one in mixed.items()
        if name != "batch"
    ]
    store = mixed.get("store")
    if "file" in mixed:
        texts.append(f"No file found with id '{mixed['file']}'.")  # a cursor
    for name, noun in (("stored", "file"), ("batch", "file batch")):
        if name in mixed:
            texts.append(f"No {noun} found with id '{mixed[name]}' in vector store '{store}'.")
            texts.append(f"No {noun} found with id '{mixed[name]}'.")
    return texts


def test_no_route_is_left_out(shared: Shared) -> None:
    """A new one has to be added to the operations above, or to say why it needs no trying."""
    keys = Keys(shared.server.runtime.settings, shared.database)
    app: Any = create_app(shared.server.runtime, shared.server.worker, keys)
    routes = {
        (method, bare(route.path.removeprefix("/v1")))
        for included in app._app.routes
        if hasattr(included, "effective_route_contexts")  # the dashboard has a test of its own
        for route in included.effective_route_contexts()
        for method in route.methods
    }
    assert len(routes) > 50
    tried = {(method, bare(path.partition("?")[0])) for method, path, _ in OPERATIONS}
    assert tried <= routes
    assert routes - tried == HARMLESS
    without_id = {path for method, path in routes if method == "GET" and "{}" not in path}
    assert without_id - {path for method, path in HARMLESS if method == "GET"} == LISTS


def bare(path: str) -> str:
    """With the names of its parameters left out."""
    return re.sub(r"\{[^}]*\}", "{}", path)


async def test_lists_hold_only_what_is_in_the_project(
    wire: Wire, rows: Rows, other_wire: Wire
) -> None:
    other_rows = Rows(rows.database, other_wire.project_id)
    own, other = await things(wire, rows), await things(other_wire, other_rows)
    kinds = {
        "/assistants": ["assistant"],
        "/threads": ["thread"],
        "/files": ["stored", "file"],
        "/vector_stores": ["store"],
        "/webhook_endpoints": ["hook"],
    }
    assert set(kinds) == LISTS
    for path, names in kinds.items():
        assert set(await wire.ids(path)) == {own[name] for name in names}
        assert set(await other_wire.ids(path)) == {other[name] for name in names}
    assert await wire.refused("GET", f"/files?after={other['file']}") == Refusal(
        404, f"No file found with id '{other['file']}'.", "after"
    )


async def test_the_keys_of_one_project_open_the_same_things(
    wire: Wire, rows: Rows, shared: Shared
) -> None:
    project_id, one = await new_key(shared.database, "two keys")
    again, other = await new_key(shared.database, "two keys")
    assert (project_id, one) != (again, other)
    assert project_id == again
    wire.headers = {"Authorization": f"Bearer {one}"}
    made = await wire.post("/assistants", {"model": "m"})
    wire.headers = {"Authorization": f"Bearer {other}"}
    assert await wire.get(f"/assistants/{made['id']}") == made


@pytest.mark.parametrize("name", ["assistant", "thread", "file"])
async def test_a_wrong_key_finds_nothing_at_all(wire: Wire, rows: Rows, name: str) -> None:
    own = await things(wire, rows)
    headers = {"Authorization": "Bearer sk-abcdefghijkl-wxyz"}
    refusal = await wire.refused("GET", f"/{name}s/{own[name]}", headers=headers)
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
