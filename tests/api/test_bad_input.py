"""Bytes that no good client sends: each gets an answer in the API's own form, and none a 500."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from api.conftest import ServeWire
from api.rows import Rows
from api.wire import Answer, Refusal, Wire, send_bytes
from threadmill.errors import UNPARSABLE_JSON

BODIES = [
    ("POST", "/assistants"),
    ("POST", "/assistants/asst_a"),
    ("POST", "/threads"),
    ("POST", "/threads/thread_a"),
    ("POST", "/threads/runs"),
    ("POST", "/threads/thread_a/messages"),
    ("POST", "/threads/thread_a/messages/msg_a"),
    ("POST", "/threads/thread_a/runs"),
    ("POST", "/threads/thread_a/runs/run_a"),
    ("POST", "/threads/thread_a/runs/run_a/submit_tool_outputs"),
]
NOT_JSON = Refusal(400, UNPARSABLE_JSON)
DEEP = Refusal(
    400,
    "Invalid request body: nested too deeply. Expected at most 128 levels.",
    None,
    "invalid_value",
)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"hello",
        b"{'metadata': {}}",
        b'{"metadata": {}} x',
        b'{"metadata": {},}',
        b'{"metadata": NaN}',
        b'{"metadata": 1e400}',
        b"\xff\xfe{\x00}\x00",
        b'{"metadata": {"a": "\xff"}}',
        b'{"metadata": {"a": "\xed\xa0\x80"}}',  # half of a surrogate pair in UTF-8
        b'{"metadata": {"a": "\\ud800"}}',
        b'{"metadata": {"a": "\\udc00\\ud800"}}',
        b'{"metadata": {"a": "\x00"}}',
        b"\x00",
        b"\xef\xbb\xbf{}",
        b"a=b&c=d",
    ],
    ids=repr,
)
async def test_what_is_not_json(wire: Wire, rows: Rows, raw: bytes) -> None:
    before = await rows.contents()
    for method, path in BODIES:
        assert await wire.refused(method, path, raw=raw) == NOT_JSON
    assert await rows.contents() == before


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"[]", "an array"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"1", "an integer"),
        (b"1.5", "a decimal number"),
        (b"true", "a boolean"),
        (b" [{}] ", "an array"),
    ],
)
async def test_what_is_not_an_object(wire: Wire, raw: bytes, kind: str) -> None:
    refusal = Refusal(
        400,
        f"Invalid type for the request body: expected an object, but got {kind} instead.",
        None,
        "invalid_type",
    )
    for method, path in BODIES:
        assert await wire.refused(method, path, raw=raw) == refusal


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "nonsense", "a/b; c=d"])
async def test_the_content_type_does_not_matter(wire: Wire, content_type: str) -> None:
    headers = wire.headers | {"Content-Type": content_type}
    answer = await wire.send("POST", "/assistants", raw=b'{"model": "m"}', headers=headers)
    assert answer.status == 200
    empty = await wire.send("POST", "/threads", raw=b"", headers=headers)
    assert empty.status == 200
    refusal = await wire.refused("POST", "/assistants", raw=b"", headers=headers)
    assert refusal.message == "Missing required parameter: 'model'."


async def test_a_form_is_not_json(wire: Wire) -> None:
    kind = "application/x-www-form-urlencoded"
    headers = wire.headers | {"Content-Type": kind}
    assert await wire.refused("POST", "/assistants", raw=b"model=m", headers=headers) == NOT_JSON
    headers["Content-Type"] = "multipart/form-data; boundary=x"
    raw = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
    assert await wire.refused("POST", "/assistants", raw=raw, headers=headers) == NOT_JSON


async def test_a_get_may_carry_a_body(wire: Wire) -> None:
    headers = wire.headers | {"Content-Type": "application/json"}
    for raw in (b"", b"{}", b"{"):
        assert (await wire.send("GET", "/assistants", raw=raw, headers=headers)).status == 200


async def test_nul_can_stand_nowhere(wire: Wire, rows: Rows) -> None:
    """Postgres cannot keep it."""
    made = await wire.post("/assistants", {"model": "m"})
    thread = await wire.post("/threads")
    before = await rows.contents()
    function = {"name": "f", "parameters": {"a": [{"b\0": 1}]}}
    tools = [{"type": "function", "function": function}]
    for path, body, place in (
        ("/assistants", {"model": "m\0"}, "model"),
        ("/assistants", {"model": "m", "metadata": {"a": "\0"}}, "metadata.a"),
        ("/assistants", {"model": "m", "metadata": {"\0a": "b"}}, "metadata.\ufffda"),
        (
            "/assistants",
            {"model": "m", "tools": tools},
            "tools[0].function.parameters.a[0].b\ufffd",
        ),
        (f"/assistants/{made['id']}", {"instructions": "\0"}, "instructions"),
        (f"/threads/{thread['id']}", {"metadata": {"a": "x\0"}}, "metadata.a"),
        (f"/threads/{thread['id']}/messages", {"role": "user", "content": "a\0b"}, "content"),
        (
            "/threads",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\0"}]}]},
            "messages[0].content[0].text",
        ),
    ):
        assert await wire.refused("POST", path, body) == Refusal(
            400,
            f"Invalid '{place}': null characters (\\u0000) are not allowed.",
            place,
            "invalid_value",
        )
    assert await rows.contents() == before


def nested(levels: int) -> bytes:
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


async def test_deep_nesting(wire: Wire, rows: Rows) -> None:
    before = await rows.contents()
    for levels in (200, 1025, 100_000):
        function = b'{"name": "f", "parameters": ' + nested(levels) + b"}"
        tools = b'[{"type": "function", "function": ' + function + b"}]"
        raw = b'{"model": "m", "tools": ' + tools + b"}"
        assert await wire.refused("POST", "/assistants", raw=raw) == DEEP
    assert await wire.refused("POST", "/threads", raw=b"[" * 100_000) in (DEEP, NOT_JSON)
    assert await rows.contents() == before


async def test_what_is_deep_but_not_too_deep_comes_back(wire: Wire) -> None:
    parameters = json.loads(nested(100))
    function = {"name": "f", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    made = await wire.post("/assistants", {"model": "m", "tools": tools})
    again = await wire.get(f"/assistants/{made['id']}")
    assert again["tools"][0]["function"]["parameters"] == parameters


@pytest.mark.parametrize("number", [10**25, -(2**63) - 1, 2**64])
async def test_numbers_that_would_lose_digits(wire: Wire, number: int) -> None:
    function = {"name": "f", "parameters": {"maximum": number}}
    raw = json.dumps({"model": "m", "tools": [{"type": "function", "function": function}]})
    assert await wire.refused("POST", "/assistants", raw=raw) == Refusal(
        400,
        f"Invalid value: {number}. Integers must fit into 64 bits.",
        None,
        "invalid_value",
    )


async def test_text_of_all_kinds_comes_back_as_it_was(wire: Wire) -> None:
    text = '\u0001\t\n\r\u001f"\\/\u007f\u0085\u2028\ufeff\ufffe\ufffd\U0001f9f5\U0010ffff e\u0301'
    thread = await wire.post("/threads", {"metadata": {text[:60]: text}})
    assert thread["metadata"] == {text[:60]: text}
    message = {"role": "user", "content": text}
    made = await wire.post(f"/threads/{thread['id']}/messages", message)
    assert made["content"][0]["text"]["value"] == text
    assert await wire.get(f"/threads/{thread['id']}") == thread


async def test_of_a_name_that_comes_twice_the_last_counts(wire: Wire) -> None:
    answer = await wire.send("POST", "/assistants", raw=b'{"model": "m", "model": "n"}')
    assert answer.json["model"] == "n"


# --- sizes ---


async def test_a_body_above_the_limit_is_refused(serve_wire: ServeWire) -> None:
    too_large = Refusal(413, "The request body is larger than 2048 bytes.")

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 1024

    async with serve_wire(request_body_max_bytes=2048) as wire:
        for method, path in BODIES:
            assert await wire.refused(method, path, raw=b" " * 2049) == too_large
            assert await wire.refused(method, path, raw=pieces(3)) == too_large
        fits = b'{"model": "m"}'.ljust(2048)
        assert (await wire.send("POST", "/assistants", raw=fits)).status == 200
        assert (await wire.send("POST", "/threads", raw=pieces(2))).status == 200
        # Much more than any buffer on the way: the answer is read all the same.
        headers = wire.headers | {"Content-Length": "20480000"}
        ask = "POST", "/threads"
        assert await wire.refused(*ask, raw=pieces(20_000), headers=headers) == too_large
        assert await wire.refused(*ask, raw=pieces(20_000)) == too_large


async def test_a_large_header_does_no_harm(wire: Wire) -> None:
    headers = wire.headers | {"X-Large": "x" * 60_000}
    assert (await wire.send("GET", "/assistants", headers=headers)).status == 200
    headers = {"Authorization": "Bearer " + "x" * 60_000}
    assert (await wire.refused("GET", "/assistants", headers=headers)).status == 401


# --- paths and queries ---


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/assistants/asst_%00", Refusal(404, "No assistant found with id 'asst_\ufffd'.")),
        (
            "/assistants/asst_%ff%fe",
            Refusal(404, "No assistant found with id 'asst_\ufffd\ufffd'."),
        ),
        (
            "/assistants/asst_%0d%0aa",
            Refusal(404, "No assistant found with id 'asst_\ufffd\ufffda'."),
        ),
        ("/assistants/asst_%C3%A4", Refusal(404, "No assistant found with id 'asst_ä'.")),
        (
            "/assistants/asst_'%20or%201=1",
            Refusal(404, "No assistant found with id 'asst_' or 1=1'."),
        ),
        ("/assistants/asst_", Refusal(404, "No assistant found with id 'asst_'.")),
        (
            "/assistants/asst_" + "a" * 5000,
            Refusal(404, f"No assistant found with id 'asst_{'a' * 59}...'."),
        ),
        (
            "/assistants/%zz",
            Refusal(
                400,
                "Invalid 'assistant_id': '%zz'. Expected an ID that begins with 'asst'.",
                "assistant_id",
                "invalid_value",
            ),
        ),
        ("/assistants/asst_a%2Fb", Refusal(404, "Invalid URL (GET /v1/assistants/asst_a/b)")),
        ("/a%00b", Refusal(404, "Invalid URL (GET /v1/a\ufffdb)")),
        ("/assistants?after=asst_%00", Refusal(404, "No assistant found with id 'asst_\ufffd'.")),
        (
            "/assistants?limit=%00",
            Refusal(
                400,
                "Invalid type for 'limit': expected an integer, but got a string instead.",
                "limit",
                "invalid_type",
            ),
        ),
        (
            "/assistants?order=%00%ff",
            Refusal(
                400,
                "Invalid value: '\ufffd\ufffd'. Supported values are: 'asc' and 'desc'.",
                "order",
                "invalid_value",
            ),
        ),
        (
            "/models/%00%07",
            Refusal(404, "The model '\ufffd\ufffd' does not exist", "model", "model_not_found"),
        ),
        (
            "/models/" + "m" * 300,
            Refusal(404, f"The model '{'m' * 64}' does not exist", "model", "model_not_found"),
        ),
    ],
)
async def test_odd_paths_and_queries(wire: Wire, path: str, refusal: Refusal) -> None:
    assert await wire.refused("GET", path) == refusal


async def test_unknown_and_repeated_queries_are_passed_over(wire: Wire) -> None:
    for asked in ("%00=%00", "&&&", "=", "a=b;c=d", "limit=5&limit=6", "x" * 10_000, "%"):
        assert (await wire.get(f"/assistants?{asked}"))["data"] == []


HEAD = b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer "


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/assistants/asst_\xc3\xa4",
        b"GET /v1/assistants?order=\xff",
        b"GET /v1/assistants with spaces",
        b"NONSENSE /v1/assistants",
        b"GET v1/assistants",
        b"GET /v1/" + b"a" * 70_000,
        b"GET /v1/assistants/../assistants",
        b"GET /v1/assistants#there",
        b"OPTIONS *",
        b"HEAD /v1/assistants",
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
@pytest.mark.filterwarnings("ignore:Invalid HTTP request")
async def test_bytes_that_are_hardly_http(wire: Wire, line: bytes) -> None:
    answer = await send_bytes(wire.address, line + HEAD + wire.key.encode() + b"\r\n\r\n")
    status = int(answer.split(b" ")[1])
    assert status in (200, 400, 404, 405)


async def test_a_client_that_hangs_up_in_its_body_is_no_fault_of_ours(
    wire: Wire, rows: Rows
) -> None:
    before = await rows.contents()
    host, port = wire.address.removeprefix("http://").split(":")
    with capture_logs() as logs:
        for method, path in BODIES:
            _, writer = await asyncio.open_connection(host, int(port))
            line = f"{method} /v1{path}".encode()
            writer.write(line + HEAD + wire.key.encode() + b"\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        await wire.get("/assistants")  # by then it has noticed
    assert logs == []
    assert await rows.contents() == before


async def test_answers_name_no_internals(wire: Wire) -> None:
    answers: list[Answer] = [
        await wire.send("POST", "/assistants", raw=b"{"),
        await wire.send("GET", "/assistants/asst_%00"),
        await wire.send("PUT", "/assistants"),
    ]
    for answer in answers:
        text = answer.body.decode() + str(answer.headers)
        for word in ("Traceback", "psycopg", "starlette", "pydantic", "uvicorn", "detail"):
            assert word not in text
