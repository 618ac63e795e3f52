import asyncio
import hashlib
import io
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from threadmill.app import Served
from threadmill.store import files, projects
from threadmill.store.database import Database

MEGABYTE = 1024**2
BOUNDARY = "8f2c"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def field(name: str, value: str) -> bytes:
    return part(f'form-data; name="{name}"', value.encode())


def file(content: bytes = b"hello", disposition: str = 'filename="a.txt"') -> bytes:
    return part(f'form-data; name="file"; {disposition}', content)


def part(disposition: str, content: bytes, further: str = "") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{further}\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


PURPOSE = field("purpose", "vision")


class Http:
    """Requests that no SDK would make."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address

    async def post(self, body: Any, content_type: str = FORM) -> tuple[int, Any]:
        headers = {"authorization": "Bearer any", "content-type": content_type}
        url = f"{self._address}/v1/files"
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        async with self._session.post(url, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def call(self, method: str, path: str, key: str = "any") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key}"}
        async with self._session.request(
            method, f"{self._address}/v1{path}", headers=headers
        ) as response:
            return response.status, await response.json()


@pytest_asyncio.fixture
async def http(server: Served) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession() as session:
        yield Http(session, server.address)


@pytest.fixture
def database(server: Served) -> Database:
    return server.runtime.database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server of the test keeps the bytes."""
    return tmp_path / "files"


async def is_bare(database: Database, folder: Path) -> bool:
    """No row and no bytes, not even half of them."""
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM files")
        return await cursor.fetchone() == (0,) and not names_in(folder)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await is_so():  # noqa: ASYNC110 - a folder sends no events
            await asyncio.sleep(0.01)


async def expire(database: Database, *file_ids: str) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE files SET expires_at = %s WHERE id = ANY(%s)",
            (int(time.time()) - 1, list(file_ids)),
        )


def refusal(answer: tuple[int, Any]) -> tuple[int, str, str | None, str | None]:
    status, body = answer
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    return status, body["error"]["message"], body["error"]["param"], body["error"]["code"]


# --- the way of a file ---


async def test_the_sdk_gets_back_what_it_uploaded(
    client: openai.AsyncOpenAI, database: Database, folder: Path
) -> None:
    content = bytes(range(256)) * 50_000  # 12.8 MB: several pieces, a multipart blob
    created = await client.files.create(file=("a b.bin", content), purpose="vision")
    assert created.filename == "a b.bin"
    assert created.bytes == len(content)
    assert await client.files.retrieve(created.id) == created
    assert [file async for file in client.files.list()] == [created]
    answer = await client.files.content(created.id)
    assert answer.content == content
    assert answer.response.headers["content-type"] == "application/octet-stream"
    assert answer.response.headers["content-length"] == str(len(content))
    deleted = await client.files.delete(created.id)
    assert deleted.model_dump() == {"id": created.id, "object": "file", "deleted": True}
    assert await is_bare(database, folder)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {created.id}"):
            await call(created.id)


async def test_a_file_is_on_the_wire_what_it_was_there(http: Http, database: Database) -> None:
    status, created = await http.post(form(PURPOSE, file()))
    assert status == 200
    file_id, created_at = created["id"], created["created_at"]
    assert created == {
        "object": "file",
        "id": file_id,
        "purpose": "vision",
        "filename": "a.txt",
        "bytes": 5,
        "created_at": created_at,
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }
    assert file_id.startswith("file-")
    assert abs(time.time() - created_at) < 60
    assert await http.call("GET", f"/files/{file_id}") == (200, created)
    async with database.connection() as connection:
        row = await files.get(connection, projects.DEFAULT_PROJECT_ID, file_id)
    assert row.sha256 == hashlib.sha256(b"hello").digest()


async def test_the_parts_of_the_form_come_in_any_order(http: Http) -> None:
    anchor = field("expires_after[anchor]", "created_at")
    seconds = field("expires_after[seconds]", "3600")
    for parts in (
        [PURPOSE, anchor, seconds, file()],
        [file(), seconds, PURPOSE, anchor],
        [seconds, file(), anchor, PURPOSE],
    ):
        status, created = await http.post(form(*parts))
        assert status == 200
        assert created["bytes"] == 5
        assert created["expires_at"] == created["created_at"] + 3600


async def test_a_body_may_arrive_byte_by_byte(http: Http, client: openai.AsyncOpenAI) -> None:
    content = b"\r\n--8f2\r\n--8f2cx\r\r\n-" * 3  # almost boundaries

    async def slowly() -> AsyncIterator[bytes]:
        for byte in form(file(content), PURPOSE):
            yield bytes([byte])

    status, created = await http.post(slowly())
    assert status == 200
    assert (await client.files.content(created["id"])).content == content


async def test_a_file_is_never_whole_in_memory(server: Served, client: openai.AsyncOpenAI) -> None:
    size = 200 * MEGABYTE

    async def body() -> AsyncIterator[bytes]:
        yield file(b"").removesuffix(b"\r\n")
        for _ in range(size // MEGABYTE):
            yield bytes(MEGABYTE)
        yield b"\r\n" + form(PURPOSE)

    before = peak_bytes(forget=True)
    async with aiohttp.ClientSession() as session:
        status, created = await Http(session, server.address).post(body())
        assert (status, created["bytes"]) == (200, size)
    async with client.files.with_streaming_response.content(created["id"]) as answer:
        assert sum([len(piece) async for piece in answer.iter_bytes()]) == size
    assert peak_bytes() - before < 60 * MEGABYTE


def peak_bytes(*, forget: bool = False) -> int:
    """The most memory that this process, with the server in it, has had since it last forgot."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# --- what is refused ---

MISSING = "Missing required parameter: "
UNPARSABLE = "We could not parse the multipart/form-data body of your request: "
NOT_A_PURPOSE = (
    "'x' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals']"
    " - 'purpose'"
)
ANCHOR = "expires_after[anchor]"
SECONDS = "expires_after[seconds]"


WRONG_FORMS: list[tuple[list[bytes], str, str | None, str | None]] = [
    ([], f"{MISSING}'file'.", "file", "missing_required_parameter"),
    ([PURPOSE], f"{MISSING}'file'.", "file", "missing_required_parameter"),
    ([file()], f"{MISSING}'purpose'.", "purpose", "missing_required_parameter"),
    ([field("purpose", "x"), file()], NOT_A_PURPOSE, "purpose", None),
    ([file(), field("purpose", "x")], NOT_A_PURPOSE, "purpose", None),
    ([PURPOSE, file(b"")], "File is empty.", "file", None),
    (
        [PURPOSE, field("file", "a.txt")],
        "Invalid 'file': expected a file with a name, but got a plain field.",
        "file",
        "invalid_value",
    ),
    (
        [PURPOSE, file(disposition='filename=""')],
        "Invalid 'file': expected a file with a name, but got a plain field.",
        "file",
        "invalid_value",
    ),
    (
        [PURPOSE, file(), file()],
        "Invalid 'file': it was sent more than once.",
        "file",
        "invalid_value",
    ),
    (
        [file(), PURPOSE, PURPOSE],
        "Invalid 'purpose': it was sent more than once.",
        "purpose",
        "invalid_value",
    ),
    (
        [PURPOSE, file(), field("colour", "red")],
        "Unknown parameter: 'colour'.",
        "colour",
        "unknown_parameter",
    ),
    (
        [PURPOSE, field(SECONDS, "3600"), file()],
        f"{MISSING}'{ANCHOR}'.",
        ANCHOR,
        "missing_required_parameter",
    ),
    (
        [PURPOSE, field(ANCHOR, "created_at"), file()],
        f"{MISSING}'{SECONDS}'.",
        SECONDS,
        "missing_required_parameter",
    ),
    (
        [file(), PURPOSE, field(ANCHOR, "now")],
        "Invalid value: 'now'. Value must be 'created_at'.",
        ANCHOR,
        "invalid_value",
    ),
    (
        [file(), PURPOSE, field(SECONDS, "3599")],
        f"Invalid '{SECONDS}': integer below minimum value. Expected a value >= 3600, but got"
        " 3599 instead.",
        SECONDS,
        "integer_below_min_value",
    ),
    (
        [file(), PURPOSE, field(SECONDS, "2592001")],
        f"Invalid '{SECONDS}': integer above maximum value. Expected a value <= 2592000, but"
        " got 2592001 instead.",
        SECONDS,
        "integer_above_max_value",
    ),
    (
        [file(), PURPOSE, field(SECONDS, "1e4")],
        f"Invalid type for '{SECONDS}': expected an integer, but got a string instead.",
        SECONDS,
        "invalid_type",
    ),
    (
        [PURPOSE, file(disposition=f'filename="{"x" * 513}"')],
        "Invalid 'file': file name too long. Expected a string with maximum length 512, but"
        " got a string with length 513 instead.",
        "file",
        "string_above_max_length",
    ),
    *(
        (
            [PURPOSE, file(disposition=disposition)],
            "Invalid 'file': the file name contains control characters.",
            "file",
            "invalid_value",
        )
        for disposition in (
            'filename="a\0b"',
            'filename="a\x1b[2Jb"',
            "filename*=utf-8''a%00b",
            'filename="=?utf-8?B?YQBi?="',
        )
    ),
    (
        [file(), field("purpose", "x" * 5000)],
        f"{UNPARSABLE}a field is longer than 4096 bytes.",
        None,
        None,
    ),
    (
        [file(), part('form-data; name="purpose"', b"\xff")],
        f"{UNPARSABLE}a field is not UTF-8.",
        None,
        None,
    ),
    ([file(), part("form-data", b"x")], f"{UNPARSABLE}a part has no name.", None, None),
    (
        [part('form-data; name="file"; filename="a"', b"aGk=", further)]
        if (further := "Content-Transfer-Encoding: base64\r\n")
        else [],
        f"{UNPARSABLE}a part has a Content-Transfer-Encoding, which forms may not use.",
        None,
        None,
    ),
]


async def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    http: Http, database: Database, folder: Path
) -> None:
    for parts, *told in WRONG_FORMS:
        assert refusal(await http.post(form(*parts))) == (400, *told)
    assert await is_bare(database, folder)


async def test_a_body_that_is_no_form_is_refused_and_leaves_nothing(
    http: Http, database: Database, folder: Path
) -> None:
    whole = form(PURPOSE, file())
    endless_header = f"--{BOUNDARY}\r\nX: ".encode() + b"x" * 20_000
    many_headers = part('form-data; name="file"', b"", "X: y\r\n" * 20)
    for body, content_type, told in (
        (b'{"purpose": "vision"}', "application/json", "expects multipart/form-data"),
        (b"purpose=vision", "application/x-www-form-urlencoded", "expects multipart/form-data"),
        (whole, "", "expects multipart/form-data"),
        (whole, "multipart/form-data", "names no boundary"),
        (whole, f"multipart/form-data; boundary={'x' * 300}", "Boundary length"),
        (whole, "multipart/form-data; boundary=other", UNPARSABLE),
        (b"", FORM, "it ends before its closing boundary"),
        (b"nonsense", FORM, UNPARSABLE),
        (whole[:-6], FORM, "it ends before its closing boundary"),
        (whole[:100], FORM, "it ends before its closing boundary"),
        (form(*[field(f"a{n}", "") for n in range(20)]), FORM, "more than 16 parts"),
        (endless_header, FORM, "Maximum header size exceeded"),
        (form(many_headers), FORM, "Maximum header count exceeded"),
        (f"--{BOUNDARY}\r\n: x\r\n\r\n".encode(), FORM, UNPARSABLE),
    ):
        status, message, _, _ = refusal(await http.post(body, content_type))
        assert told in message
        assert status == 400
    assert await is_bare(database, folder)


async def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(
    serve: Any, folder: Path
) -> None:
    limit = 7 * MEGABYTE

    async def unannounced(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), MEGABYTE):
            yield body[at : at + MEGABYTE]

    async with serve(file_max_bytes=limit) as server, aiohttp.ClientSession() as session:
        http = Http(session, server.address)
        for body in (
            form(file(bytes(limit + 1)), PURPOSE),
            form(PURPOSE, file(bytes(limit + 2 * MEGABYTE))),
            unannounced(form(file(bytes(limit + 1)), PURPOSE)),
            unannounced(form(PURPOSE, file(bytes(4 * limit)))),
        ):
            status, message, _, _ = refusal(await http.post(body))
            assert status == 413
            assert "larger than" in message
            assert await is_bare(server.runtime.database, folder)
        status, created = await http.post(form(file(bytes(limit)), PURPOSE))
        assert (status, created["bytes"]) == (200, limit)


async def test_a_client_that_hangs_up_leaves_nothing(
    server: Served, database: Database, folder: Path
) -> None:
    async def has_begun_to_write() -> bool:
        return bool(names_in(folder))

    body = form(PURPOSE, file(bytes(20 * MEGABYTE)))
    host, _, port = server.address.removeprefix("http://").partition(":")
    for sent in (100, 3 * MEGABYTE, 12 * MEGABYTE, len(body) - 3):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer any\r\n"
            f"Content-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body[:sent])
        await writer.drain()
        if sent > 10 * MEGABYTE:
            await until(has_begun_to_write)
        writer.close()
        await writer.wait_closed()
        await until(lambda: is_bare(database, folder))


# --- names ---


NAMES = [
    ('filename="你好.txt"', "你好.txt"),
    ("filename=\"=?utf-8?B?5L2g5aW9LnR4dA==?=\"; filename*=utf-8''x%C3%A4.txt", "xä.txt"),
    ("filename*=UTF-8'en'x%20y.txt; filename=\"z.txt\"", "x y.txt"),
    ("filename*=iso-8859-1''f%FCr.txt", "für.txt"),
    ("filename=\"a.txt\"; filename*=klingon''x", "a.txt"),
    ('filename="=?utf-8?B?5L2g5aW9LnR4dA==?="', "你好.txt"),
    ('filename="=?UTF-8?Q?f=C3=BCr_dich?="', "für dich"),
    ('filename="=?utf-8?B?5L2g?= =?utf-8?B?5aW9?="', "你好"),
    ('filename="=?utf-8?B?x?="', "=?utf-8?B?x?="),
    ('filename="=?utf-16?B?5L2g?="', "=?utf-16?B?5L2g?="),
    ('filename="is =?utf-8?B?5L2g?="', "is =?utf-8?B?5L2g?="),
    ('filename="text/csv"', "text/csv"),
    ('filename="../../etc/passwd"', "../../etc/passwd"),
    ('filename="C:\\new\\a.txt"', "C:\\new\\a.txt"),
    ('filename="a\\\\b\\"c.txt"', 'a\\b"c.txt'),
    ('filename="a%22b%20.txt"', 'a"b%20.txt'),
    ('filename="a; filename=b.txt"', "a; filename=b.txt"),
    ("filename=plain.txt", "plain.txt"),
    ('FileName = "a.txt" ; x=y', "a.txt"),
    ("filename*=utf-8''%ED%A0%80.txt", "\ufffd\ufffd\ufffd.txt"),  # half of a surrogate pair
    (f'filename="{"名" * 512}"', "名" * 512),
    (f"filename*=utf-8''{urllib.parse.quote('😀' * 512)}", "😀" * 512),
]


async def test_a_file_keeps_its_name(http: Http) -> None:
    for disposition, filename in NAMES:
        status, created = await http.post(form(PURPOSE, file(disposition=disposition)))
        assert (status, created["filename"]) == (200, filename)


async def test_a_name_goes_through_the_sdk_and_comes_back_with_the_download(
    client: openai.AsyncOpenAI,
) -> None:
    for name in ("你好 wörld.txt", 'say "hi".txt', "a/b%20;c.txt", "a\\b.txt"):
        created = await client.files.create(file=(name, b"x"), purpose="batch")
        assert created.filename == name
        answer = await client.files.content(created.id)
        kind, _, coded = answer.response.headers["content-disposition"].partition("; ")
        assert kind == "attachment"
        assert urllib.parse.unquote(coded.removeprefix("filename*=utf-8''")) == name


async def test_a_name_that_is_not_utf8_shows_so(http: Http) -> None:
    body = form(PURPOSE, file(disposition='filename="?.txt"')).replace(b"?", b"\xfc")
    status, created = await http.post(body)
    assert (status, created["filename"]) == (200, "\ufffd.txt")


# --- lists ---


async def test_files_are_listed_newest_first_and_by_page(client: openai.AsyncOpenAI) -> None:
    purposes: list[Any] = ["vision", "batch", "vision", "vision"]
    made = [
        (await client.files.create(file=(f"{n}", b"x"), purpose=purpose)).id
        for n, purpose in enumerate(purposes)
    ]
    page = await client.files.list()
    assert [file.id for file in page.data] == made[::-1]
    assert not page.has_more
    page = await client.files.list(order="asc", limit=3)
    assert [file.id for file in page.data] == made[:3]
    assert page.has_more
    assert [file.id async for file in client.files.list(limit=1)] == made[::-1]
    page = await client.files.list(after=made[3], limit=10_000)
    assert [file.id for file in page.data] == [made[2], made[1], made[0]]
    page = await client.files.list(purpose="vision", after=made[3])
    assert [file.id for file in page.data] == [made[2], made[0]]
    assert (await client.files.list(purpose="evals")).data == []


async def test_a_list_is_refused_what_it_cannot_give(http: Http) -> None:
    for query, status, told in (
        ("limit=10001", 400, "Expected a value <= 10000, but got 10001 instead."),
        ("limit=0", 400, "Expected a value >= 1, but got 0 instead."),
        ("order=up", 400, "Supported values are: 'asc' and 'desc'."),
        ("after=asst_x", 400, "Expected an ID that begins with 'file'."),
        ("after=file-x", 404, "No file found with id 'file-x'."),
    ):
        found, message, _, _ = refusal(await http.call("GET", f"/files?{query}"))
        assert found == status
        assert message.endswith(told)
    empty: Any = {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert await http.call("GET", "/files") == (200, empty)


# --- who may see what ---


async def test_an_id_that_names_no_file_is_not_found(http: Http) -> None:
    for file_id in ("file-x", "asst_x", "x", "file-", "file-%00", "file-%ed%a0"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            answer = await http.call(method, f"/files/{file_id}{path}")
            status, message, param, code = refusal(answer)
            assert message.startswith("No such File object: ")
            assert (status, param, code) == (404, "id", None)


@pytest.mark.parametrize("purpose", ["assistants", "user_data"])
async def test_some_purposes_are_not_for_download(
    http: Http, client: openai.AsyncOpenAI, serve: Any, settings: Any, purpose: Any
) -> None:
    created = await client.files.create(file=("a.txt", b"x"), purpose=purpose)
    assert refusal(await http.call("GET", f"/files/{created.id}/content")) == (
        400,
        f"Not allowed to download files of purpose: {purpose}",
        None,
        None,
    )
    async with serve(allow_assistants_file_download=True) as lenient:
        answer = await client.with_options(base_url=f"{lenient.address}/v1").files.content(
            created.id
        )
        assert answer.content == b"x"


async def test_files_of_another_project_do_not_exist(
    server: Served, database: Database, client: openai.AsyncOpenAI
) -> None:
    mine = await client.files.create(file=("a.txt", b"x"), purpose="vision")
    async with database.connection() as connection:
        project = await projects.get_or_create(connection, "other")
        _, key = await projects.create_key(connection, project, "test")
    other = client.with_options(api_key=key)
    assert (await other.files.list()).data == []
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(mine.id)
    theirs = await other.files.create(file=("b.txt", b"x"), purpose="vision")
    with pytest.raises(openai.NotFoundError, match="No file found with id"):
        await other.files.list(after=mine.id)
    assert [file.id for file in (await other.files.list()).data] == [theirs.id]


async def test_bytes_that_are_lost_are_not_found(client: openai.AsyncOpenAI, folder: Path) -> None:
    created = await client.files.create(file=("a.txt", b"x"), purpose="vision")
    (folder / created.id).unlink()
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        await client.files.content(created.id)
    await client.files.delete(created.id)


# --- what happens to those that use a file ---


async def test_a_deleted_file_is_gone_from_assistants_and_threads(
    client: openai.AsyncOpenAI, database: Database
) -> None:
    kept, gone = [
        (await client.files.create(file=(name, b"x"), purpose="assistants")).id for name in "ab"
    ]
    both: Any = {"code_interpreter": {"file_ids": [gone, kept]}}
    assistant = await client.beta.assistants.create(
        model="m", tools=[{"type": "code_interpreter"}], tool_resources=both
    )
    thread = await client.beta.threads.create(tool_resources=both)
    other = await client.beta.threads.create(
        tool_resources={"code_interpreter": {"file_ids": [kept]}}
    )
    async with database.connection() as connection:
        await connection.execute(
            'UPDATE threads SET tool_resources = \'{"code_interpreter": {"file_ids":'
            f' ["{gone}"]}}, "file_search": {{"vector_store_ids": []}}}}\' WHERE id = %s',
            (thread.id,),
        )

    await client.files.delete(gone)

    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT id, tool_resources::text FROM threads UNION"
            " SELECT id, tool_resources::text FROM assistants"
        )
        found = {row[0]: row[1].replace(" ", "") for row in await cursor.fetchall()}
    only_kept = f'{{"code_interpreter":{{"file_ids":["{kept}"]}}}}'
    assert found == {
        assistant.id: only_kept,
        thread.id: '{"code_interpreter":{"file_ids":[]},"file_search":{"vector_store_ids":[]}}',
        other.id: only_kept,
    }


async def test_files_that_are_deleted_together_are_all_detached(
    client: openai.AsyncOpenAI,
) -> None:
    made = [
        (await client.files.create(file=(f"{n}", b"x"), purpose="assistants")).id for n in range(8)
    ]
    threads = [
        await client.beta.threads.create(
            tool_resources={"code_interpreter": {"file_ids": made[n:] + made[:n]}}
        )
        for n in range(4)
    ]
    await asyncio.gather(*(client.files.delete(file_id) for file_id in made))
    for thread in threads:
        resources = (await client.beta.threads.retrieve(thread.id)).tool_resources
        assert resources
        assert resources.code_interpreter
        assert resources.code_interpreter.file_ids == []


async def test_a_file_that_has_expired_is_gone_before_it_is_swept(
    client: openai.AsyncOpenAI, database: Database
) -> None:
    expires_after: Any = {"anchor": "created_at", "seconds": 3600}
    expired, living = [
        await client.files.create(file=("a", b"x"), purpose="vision", expires_after=expires_after)
        for _ in range(2)
    ]
    assert living.expires_at == living.created_at + 3600
    await expire(database, expired.id)
    assert [file.id for file in (await client.files.list()).data] == [living.id]
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(expired.id)
    with pytest.raises(openai.NotFoundError):
        await client.beta.threads.create(
            tool_resources={"code_interpreter": {"file_ids": [expired.id]}}
        )


async def test_a_sweep_removes_what_has_expired_and_nothing_else(
    client: openai.AsyncOpenAI, database: Database
) -> None:
    made = [
        (await client.files.create(file=(f"{n}", b"x"), purpose="assistants")).id for n in range(4)
    ]
    thread = await client.beta.threads.create(
        tool_resources={"code_interpreter": {"file_ids": made}}
    )
    await expire(database, *made[:3])

    async def sweep(limit: int) -> list[str]:
        async with database.transaction() as connection:
            return await files.remove_expired(connection, limit)

    first = await sweep(2)
    assert len(first) == 2
    assert set(first + await sweep(2)) == set(made[:3])
    assert await sweep(2) == []
    resources = (await client.beta.threads.retrieve(thread.id)).tool_resources
    assert resources
    assert resources.code_interpreter
    assert resources.code_interpreter.file_ids == made[3:]
