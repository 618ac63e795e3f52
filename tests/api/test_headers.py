"""What surrounds every answer: headers, the beta header, Azure's paths, hosts, unknown URLs."""

import asyncio

import pytest

from api.conftest import ServeWire
from api.wire import Refusal, Wire, check, events
from threadmill.demo.scripted_model import ScriptedModel

NO_BETA = Refusal(
    400,
    "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by"
    " setting the header 'OpenAI-Beta: assistants=v2'.",
    None,
    "invalid_beta",
)


async def test_every_request_has_an_id_of_its_own(wire: Wire) -> None:
    paths = ["/assistants", "/assistants/asst_gone", "/foo", "/models", "/threads/x"]
    # Wire.send looks at the headers of all answers, those of errors too.
    answers = [await wire.send("GET", path) for path in paths * 2]
    answers.append(await wire.send("GET", "/threads", headers={}))
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_a_stream_has_the_headers_too(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant = await wire.post("/assistants", {"model": "m", "instructions": "i"})
    body = {"assistant_id": assistant["id"], "stream": True}
    answer = await wire.send("POST", "/threads/runs", body)
    assert events(answer)
    assert answer.headers["cache-control"] == "no-cache"


# --- the beta header ---

ROOMS = ["/assistants", "/threads", "/threads/thread_a/messages", "/threads/thread_a/runs"]


async def test_the_beta_header_may_be_left_out(wire: Wire) -> None:
    for beta in (None, "assistants=v2", "other=v1", "assistants=v1, assistants=v2", ""):
        headers = wire.headers | ({} if beta is None else {"OpenAI-Beta": beta})
        assert (await wire.send("GET", "/assistants", headers=headers)).status == 200


@pytest.mark.parametrize("beta", ["assistants=v1", "other=v2,assistants=v1"])
async def test_the_first_version_is_refused(wire: Wire, beta: str) -> None:
    headers = wire.headers | {"OpenAI-Beta": beta}
    for path in ROOMS:
        assert await wire.refused("GET", path, headers=headers) == NO_BETA
    assert (await wire.send("GET", "/models", headers=headers)).status == 200
    assert (await wire.send("GET", "/files", headers=headers)).status == 200


async def test_the_beta_header_can_be_demanded(serve_wire: ServeWire) -> None:
    async with serve_wire(require_beta_header=True) as wire:
        for path in ROOMS:
            assert await wire.refused("GET", path) == NO_BETA
            assert await wire.refused("POST", path) == NO_BETA
        for beta in ("assistants=v2", "other=v1, assistants=v2", "assistants=v2,x"):
            headers = wire.headers | {"OpenAI-Beta": beta}
            assert (await wire.send("GET", "/assistants", headers=headers)).status == 200
        assert (await wire.send("GET", "/models")).status == 200
        assert (await wire.send("GET", "/files")).status == 200
        wire.base = "/openai"
        assert await wire.refused("GET", "/assistants") == NO_BETA


# --- Azure's paths ---


@pytest.mark.parametrize("base", ["/openai", "/openai/v1"])
async def test_azures_paths_lead_to_the_same_place(
    wire: Wire, script: ScriptedModel, base: str
) -> None:
    script.say("Hello")
    made = await wire.post("/assistants", {"model": "m", "instructions": "i"})
    wire.base = base
    wire.headers = {"api-key": wire.key}
    version = "?api-version=2024-05-01-preview"
    assert await wire.get(f"/assistants/{made['id']}{version}") == made
    assert await wire.ids(f"/assistants{version}&limit=1") == [made["id"]]
    run = {"assistant_id": made["id"], "stream": True}
    assert events(await wire.send("POST", f"/threads/runs{version}", run))
    assert (await wire.get(f"/models/scripted{version}"))["id"] == "scripted"
    assert (await wire.refused("GET", f"/deployments{version}")).status == 404


# --- unknown paths and methods ---


@pytest.mark.parametrize(
    "path", ["/foo", "/assistants/", "/threads/thread_a/", "/threads/thread_a/foo", "", "/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path(wire: Wire, method: str, path: str) -> None:
    assert await wire.refused(method, path) == Refusal(404, f"Invalid URL ({method} /v1{path})")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/assistants"),
        ("DELETE", "/assistants"),
        ("PATCH", "/assistants/asst_a"),
        ("DELETE", "/threads"),
        ("PUT", "/threads/thread_a"),
        ("PATCH", "/threads/thread_a/messages/msg_a"),
        ("DELETE", "/threads/thread_a/runs/run_a"),
        ("GET", "/threads/thread_a/runs/run_a/cancel"),
        ("GET", "/threads/thread_a/runs/run_a/submit_tool_outputs"),
        ("POST", "/threads/thread_a/runs/run_a/steps"),
        ("OPTIONS", "/assistants"),
        ("POST", "/models"),
    ],
)
async def test_an_unknown_method(wire: Wire, method: str, path: str) -> None:
    refusal = Refusal(405, f"Invalid method for URL ({method} /v1{path})")
    assert await wire.refused(method, path) == refusal


async def test_paths_outside(wire: Wire) -> None:
    wire.base = ""
    for path in ("/nowhere", "/assistants", "/v2/assistants", "/openai", "//v1/assistants"):
        assert await wire.refused("GET", path) == Refusal(404, f"Invalid URL (GET {path})")


# --- hosts ---


async def test_without_keys_only_the_names_of_this_machine_are_answered(
    serve_wire: ServeWire,
) -> None:
    """Or a web page could have a browser call us, by a name that it points at this machine."""
    async with serve_wire(allowed_hosts=["assistants.example"]) as wire:
        for host in (
            "127.0.0.1",
            "127.0.0.1:8000",
            "localhost",
            "LOCALHOST:1",
            "[::1]",
            "[::1]:8000",
            "assistants.example",
            "assistants.example:443",
        ):
            answer = await wire.send("GET", "/assistants", headers=wire.headers | {"Host": host})
            assert answer.status == 200, host
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]:1", "0"):
            for path in ("/assistants", "/threads", "/models", "/files"):
                headers = wire.headers | {"Host": host}
                name = host if host == "[::2]" else host.rsplit(":", 1)[0]
                assert await wire.refused("GET", path, headers=headers) == Refusal(
                    421,
                    f"This server does not answer to the host name '{name}'. Use 127.0.0.1 or"
                    " localhost, or name the host in THREADMILL_ALLOWED_HOSTS.",
                )


async def test_with_keys_any_name_will_do(wire: Wire) -> None:
    headers = wire.headers | {"Host": "assistants.example"}
    assert (await wire.send("GET", "/assistants", headers=headers)).status == 200


async def test_requests_at_the_same_time_do_not_mix(wire: Wire) -> None:
    made = await asyncio.gather(
        *(wire.post("/threads", {"metadata": {"n": str(n)}}) for n in range(40))
    )
    assert [thread["metadata"]["n"] for thread in made] == [str(n) for n in range(40)]
    assert len({thread["id"] for thread in made}) == 40
    again = await asyncio.gather(*(wire.send("GET", f"/threads/{t['id']}") for t in made))
    for answer in again:
        check(answer)
    assert [answer.json for answer in again] == made
