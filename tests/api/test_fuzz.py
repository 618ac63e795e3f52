"""Junk for every operation: bodies, ids and queries. `Wire` holds every answer against the
contract, which knows no 422, no 500 and no {"detail"}."""

import copy
import random
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from api.rows import Rows
from api.test_projects import OPERATIONS, filled, things
from api.wire import Wire
from schemas.bodies import TAKEN
from threadmill.demo.scripted_model import ScriptedModel

SECONDS = 4.0
BODIES = [body for _, body in TAKEN.values()]
SCALARS = [
    None, True, False, 0, 1, -1, 0.5, 1e300, 2**63, "", "x", "auto", "\0", "\ufffd", "{path}",
    "asst_a", "file-a", "user", "x" * 600, "äöü🧵", "' OR 1=1 --", "%00", "\u202e", "\\ud800",
]  # fmt: skip
RAW = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 3000, b'{"a":"\\ud800"}', b"0", b"{}{}"]
IDS = ["", "x", "asst_a", "thread_", "run_%00", "%2F", "..", "msg_%ff", "step_a%0ab", "a" * 300]
QUERIES = [
    "limit=%00", "limit=-1", "limit=1e9", "order=", "order[]=asc", "after=", "after=%ff",
    "before=run_%00", "run_id=x", "include[]=", "include%5B%5D=%00", "=", "&", "%", "limit=5",
]  # fmt: skip
# Not those that wait: here are runs that will never say anything.
TRIED = [one for one in OPERATIONS if not one[1].endswith("/events")]


@pytest.mark.parametrize("seed", range(3))
async def test_junk_is_answered_like_everything_else(
    wire: Wire, rows: Rows, script: ScriptedModel, seed: int
) -> None:
    chance = random.Random(seed)
    script.answer = lambda body: ["ok"]
    ids = await things(wire, rows)
    deadline = time.monotonic() + SECONDS
    statuses: set[int] = set()
    with capture_logs() as logs:
        while time.monotonic() < deadline:
            method, path, body = chance.choice(TRIED)
            if chance.random() < 0.3:
                junk = {name: chance.choice(IDS) for name in ids if chance.random() < 0.5}
                path = filled(path, ids | junk)
            path = filled(path, ids)
            if chance.random() < 0.2:
                path += ("&" if "?" in path else "?") + chance.choice(QUERIES)
            if chance.random() < 0.05:
                method = chance.choice(["GET", "POST", "DELETE", "PUT", "PATCH"])
            if chance.random() < 0.15:
                answer = await wire.send(method, path, raw=chance.choice(RAW))
            else:
                sent = body if body and chance.random() < 0.5 else chance.choice(BODIES)
                answer = await wire.send(method, path, spoilt(filled(sent, ids), chance))
            statuses.add(answer.status)
            if method == "DELETE" and answer.status == 200:
                await wire.send("DELETE", f"/webhook_endpoints/{ids['hook']}")  # few are allowed
                ids = await things(wire, rows)
    assert {200, 400, 404} <= statuses
    faults = [log for log in logs if log["event"] in ("request_failed", "answer_broke_off")]
    assert faults == []


def spoilt(body: Any, chance: random.Random) -> Any:
    """The body with up to three things in it replaced, added or taken out."""
    body = copy.deepcopy(body)
    for _ in range(chance.randrange(4)):
        places = containers(body)
        if not places:
            return chance.choice(SCALARS)
        node = chance.choice(places)
        junk = chance.choice([*SCALARS, [], {}, [chance.choice(SCALARS)], {"type": "x"}])
        if isinstance(node, list):
            node.insert(0, junk)
        elif node and chance.random() < 0.8:
            name = chance.choice(list(node))
            if chance.random() < 0.3:
                del node[name]
            else:
                node[name] = junk
        else:
            node[str(chance.choice(SCALARS))] = junk
    return body


def containers(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [node, *(found for child in node.values() for found in containers(child))]
    if isinstance(node, list):
        return [node, *(found for child in node for found in containers(child))]
    return []
