import asyncio
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from api.conftest import Shared
from api.stores import Stores
from api.wire import Answer, Refusal, Wire
from threadmill.errors import NotFound
from threadmill.search import expiry

Json = dict[str, Any]

MEGABYTE = 1024**2
BOUNDARY = "8f2c"


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    return Stores(shared.database, wire.project_id)


def wanted(content: bytes = b"hello", **changes: Any) -> Json:
    body = {
        "filename": "a.txt",
        "purpose": "assistants",
        "bytes": len(content),
        "mime_type": "text/plain",
    }
    return body | changes


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = []
    for name, content in fields:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="upload"'
        parts.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def send_part(wire: Wire, upload_id: str, raw: bytes | AsyncIterator[bytes]) -> Answer:
    headers = wire.headers | {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    data = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    return await wire.send("POST", f"/uploads/{upload_id}/parts", raw=data, headers=headers)


async def add(wire: Wire, upload_id: str, content: bytes) -> str:
    answer = await send_part(wire, upload_id, form(("data", content)))
    assert answer.status == 200, answer.body
    part_id: str = answer.json["id"]
    return part_id


async def is_gone(shared: Shared, blob_id: str) -> bool:
    try:
        await shared.server.runtime.blobs.read(blob_id)
    except NotFound:
        return True
    return False


# --- the way of an upload ---


async def test_the_sdk_sends_a_file_in_parts(sdk: openai.AsyncOpenAI, shared: Shared) -> None:
    content = os.urandom(3 * MEGABYTE + 1)
    upload = await sdk.uploads.upload_file_chunked(
        file=content,
        filename="a b.bin",
        bytes=len(content),
        mime_type="application/octet-stream",
        purpose="vision",
        part_size=MEGABYTE,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert (upload.file.filename, upload.file.bytes) == ("a b.bin", len(content))
    assert await sdk.files.retrieve(upload.file.id) == upload.file
    assert (await sdk.files.content(upload.file.id)).content == content


async def test_an_upload_is_on_the_wire_what_it_was_there(wire: Wire, shared: Shared) -> None:
    upload = await wire.post("/uploads", wanted())
    created_at = upload["created_at"]
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 5,
        "created_at": created_at,
        "filename": "a.txt",
        "purpose": "assistants",
        "status": "pending",
        "expires_at": created_at + 3600,
        "file": None,
    }
    assert upload["id"].startswith("upload_")
    assert abs(time.time() - created_at) < 60
    answer = await send_part(wire, upload["id"], form(("data", b"hello")))
    part = answer.json
    assert part == {
        "id": part["id"],
        "object": "upload.part",
        "created_at": part["created_at"],
        "upload_id": upload["id"],
    }
    assert part["id"].startswith("part_")
    done = await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": [part["id"]]})
    file = await wire.get(f"/files/{done['file']['id']}")
    assert done == upload | {"status": "completed", "file": file}
    assert (file["bytes"], file["expires_at"], file["status"]) == (5, None, "processed")
    assert await is_gone(shared, part["id"])


async def test_parts_come_at_once_and_are_put_together_as_told(
    wire: Wire, shared: Shared, stores: Stores
) -> None:
    pieces = [os.urandom(200_000) for _ in range(8)]
    whole = b"".join(pieces)
    upload = await wire.post("/uploads", wanted(whole))
    backwards = [add(wire, upload["id"], piece) for piece in reversed(pieces)]
    part_ids = (await asyncio.gather(*backwards))[::-1]
    done = await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": part_ids})
    file_id = done["file"]["id"]
    assert await shared.server.runtime.blobs.read(file_id) == whole
    [(sha256,)] = await stores.fetch("SELECT sha256 FROM files WHERE id = %s", file_id)
    assert sha256 == hashlib.sha256(whole).digest()


async def test_a_part_that_is_not_named_is_dropped(wire: Wire, shared: Shared) -> None:
    upload = await wire.post("/uploads", wanted())
    lost, kept = [await add(wire, upload["id"], content) for content in (b"olleh", b"hello")]
    done = await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": [kept]})
    assert await shared.server.runtime.blobs.read(done["file"]["id"]) == b"hello"
    assert await is_gone(shared, lost)


async def test_the_file_expires_when_it_was_told_to(wire: Wire) -> None:
    policy = {"anchor": "created_at", "seconds": 3600}
    upload = await wire.post("/uploads", wanted(expires_after=policy))
    part_id = await add(wire, upload["id"], b"hello")
    done = await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": [part_id]})
    assert done["file"]["expires_at"] == done["file"]["created_at"] + 3600


async def test_a_part_of_64_megabytes_is_taken_and_no_larger_one(wire: Wire) -> None:
    upload = await wire.post("/uploads", wanted(bytes=64 * MEGABYTE))
    part_id = await add(wire, upload["id"], bytes(64 * MEGABYTE))
    answer = await send_part(wire, upload["id"], form(("data", bytes(64 * MEGABYTE + 1))))
    assert answer.refusal == Refusal(
        413, f"Invalid 'data': it is larger than {64 * MEGABYTE} bytes.", "data"
    )
    await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": [part_id]})


async def test_an_upload_is_never_whole_in_memory(wire: Wire) -> None:
    upload = await wire.post("/uploads", wanted(bytes=200 * MEGABYTE))
    head, tail = form(("data", b"|")).split(b"|")

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(50):
            yield bytes(MEGABYTE)
        yield tail

    before = peak_bytes(forget=True)
    part_ids = []
    for _ in range(4):
        answer = await send_part(wire, upload["id"], body())
        assert answer.status == 200
        part_ids.append(answer.json["id"])
    done = await wire.post(f"/uploads/{upload['id']}/complete", {"part_ids": part_ids})
    assert done["file"]["bytes"] == 200 * MEGABYTE
    assert peak_bytes() - before < 60 * MEGABYTE
    await wire.delete(f"/files/{done['file']['id']}")


def peak_bytes(*, forget: bool = False) -> int:
    """The most memory that this process, with the server in it, has had since it last forgot."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message", "param", "code"),
    [
        (
            {"bytes": 8 * 1024**3 + 1},
            "Invalid 'bytes': integer above maximum value. Expected a value <= 8589934592, but got"
            " 8589934593 instead.",
            "bytes",
            "integer_above_max_value",
        ),
        (
            {"bytes": 0},
            "Invalid 'bytes': integer below minimum value. Expected a value >= 1, but got 0"
            " instead.",
            "bytes",
            "integer_below_min_value",
        ),
        (
            {"purpose": "x"},
            "Invalid value: 'x'. Supported values are: 'fine-tune', 'assistants', 'batch',"
            " 'user_data', 'vision', and 'evals'.",
            "purpose",
            "invalid_value",
        ),
        (
            {"filename": "a\nb"},
            "Invalid 'filename': the file name contains control characters.",
            "filename",
            "invalid_value",
        ),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >="
            " 3600, but got 3599 instead.",
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"mime_type": None},
            "Invalid type for 'mime_type': expected a string, but got null instead.",
            "mime_type",
            "invalid_type",
        ),
        ({"colour": 1}, "Unknown parameter: 'colour'.", "colour", "unknown_parameter"),
    ],
)
async def test_an_upload_that_cannot_be_is_refused(
    wire: Wire, stores: Stores, changes: Json, message: str, param: str, code: str
) -> None:
    refusal = await wire.refused("POST", "/uploads", wanted(**changes))
    assert refusal == Refusal(400, message, param, code)
    assert (await stores.contents())["uploads"] == []


@pytest.mark.parametrize("name", ["filename", "purpose", "bytes", "mime_type"])
async def test_what_an_upload_needs(wire: Wire, name: str) -> None:
    body = wanted()
    del body[name]
    assert await wire.refused("POST", "/uploads", body) == Refusal(
        400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter"
    )


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (
            form(),
            Refusal(
                400,
                "Missing required parameter: 'data'.",
                "data",
                "missing_required_parameter",
            ),
        ),
        (
            form(("data", b"")),
            Refusal(400, "Invalid 'data': it is empty.", "data", "invalid_value"),
        ),
        (
            form(("data", b"a"), ("data", b"b")),
            Refusal(400, "Invalid 'data': it was sent more than once.", "data", "invalid_value"),
        ),
        (
            form(("data", b"a"), ("x", b"b")),
            Refusal(400, "Unknown parameter: 'x'.", "x", "unknown_parameter"),
        ),
        (
            form(("data", b"a"))[:-4],
            Refusal(
                400,
                "We could not parse the multipart/form-data body of your request: it ends before"
                " its closing boundary.",
            ),
        ),
    ],
    ids=["none", "empty", "twice", "another", "cut"],
)
async def test_a_part_that_cannot_be_is_refused(
    wire: Wire, shared: Shared, stores: Stores, raw: bytes, refusal: Refusal
) -> None:
    upload = await wire.post("/uploads", wanted())
    assert (await send_part(wire, upload["id"], raw)).refusal == refusal
    assert await stores.fetch("SELECT FROM upload_parts WHERE upload_id = %s", upload["id"]) == []


async def test_parts_must_be_those_of_the_upload(wire: Wire) -> None:
    upload, other = [await wire.post("/uploads", wanted()) for _ in range(2)]
    part_id = await add(wire, upload["id"], b"hello")
    strange = await add(wire, other["id"], b"hello")
    short = await add(wire, upload["id"], b"hell")
    path = f"/uploads/{upload['id']}/complete"
    for body, refusal in (
        (
            {"part_ids": [strange]},
            f"Invalid 'part_ids[0]': upload '{upload['id']}' has no part '{strange}'.",
        ),
        (
            {"part_ids": [part_id, part_id]},
            f"Invalid 'part_ids[1]': part '{part_id}' is named more than once.",
        ),
        (
            {"part_ids": [short]},
            f"Invalid 'part_ids': the parts have 4 bytes, and upload '{upload['id']}' was to have"
            " 5.",
        ),
        (
            {"part_ids": [part_id], "md5": "0" * 32},
            f"Invalid 'md5': the bytes of upload '{upload['id']}' have the checksum"
            " 5d41402abc4b2a76b9719d911017c592.",
        ),
        (
            {"part_ids": [part_id], "md5": "x"},
            "Invalid 'md5': string does not match pattern. Expected a string that matches the"
            " pattern '^[0-9a-fA-F]{32}$'.",
        ),
    ):
        refused = await wire.refused("POST", path, body)
        assert (refused.status, refused.message) == (400, refusal)
        assert refused.code == "invalid_value"
    # None of it did any harm.
    body = {"part_ids": [part_id], "md5": "5D41402ABC4B2A76B9719D911017C592"}
    assert (await wire.post(path, body))["status"] == "completed"


async def test_what_is_over_takes_nothing_more(wire: Wire, shared: Shared) -> None:
    completed, cancelled, expired = [await wire.post("/uploads", wanted()) for _ in range(3)]
    part_id = await add(wire, completed["id"], b"hello")
    await wire.post(f"/uploads/{completed['id']}/complete", {"part_ids": [part_id]})
    dropped = await add(wire, cancelled["id"], b"hello")
    answer = await wire.post(f"/uploads/{cancelled['id']}/cancel")
    assert answer == cancelled | {"status": "cancelled"}
    assert await is_gone(shared, dropped)
    async with shared.database.connection() as connection:
        await connection.execute(
            "UPDATE uploads SET expires_at = expires_at - 3601 WHERE id = %s", [expired["id"]]
        )
    for upload, status in (
        (completed, "completed"),
        (cancelled, "cancelled"),
        (expired, "expired"),
    ):
        refusal = Refusal(
            400, f"Upload '{upload['id']}' is {status}; only a pending one can change."
        )
        path = f"/uploads/{upload['id']}"
        assert (await send_part(wire, upload["id"], form(("data", b"x")))).refusal == refusal
        body = {"part_ids": ["part_a"]}
        assert await wire.refused("POST", f"{path}/complete", body) == refusal
        assert await wire.refused("POST", f"{path}/cancel") == refusal


async def test_an_expired_upload_leaves_no_bytes(wire: Wire, shared: Shared) -> None:
    upload = await wire.post("/uploads", wanted())
    part_id = await add(wire, upload["id"], b"hello")
    async with shared.database.connection() as connection:
        await connection.execute(
            "UPDATE uploads SET expires_at = expires_at - 3601 WHERE id = %s", [upload["id"]]
        )
    runtime = shared.server.runtime
    await expiry.expire_uploads(runtime)
    await expiry.remove_spent_parts(runtime)
    assert await is_gone(shared, part_id)
    assert await expiry.remove_spent_parts(runtime) == 0


async def test_uploads_of_others_are_not_there(wire: Wire, other_wire: Wire) -> None:
    upload = await wire.post("/uploads", wanted())
    part_id = await add(wire, upload["id"], b"hello")
    gone = Refusal(404, f"No upload found with id '{upload['id']}'.")
    path = f"/uploads/{upload['id']}"
    raw = form(("data", b"x"))
    assert (await send_part(other_wire, upload["id"], raw)).refusal == gone
    body = {"part_ids": [part_id]}
    assert await other_wire.refused("POST", f"{path}/complete", body) == gone
    assert await other_wire.refused("POST", f"{path}/cancel") == gone
    for odd in ("upload_gone", "upload_%00", "upload_a-b"):
        refusal = await wire.refused("POST", f"/uploads/{odd}/cancel")
        assert (refusal.status, refusal.message[:24]) == (404, "No upload found with id ")
    assert await wire.refused("POST", "/uploads/foo/cancel") == Refusal(
        400,
        "Invalid 'upload_id': 'foo'. Expected an ID that begins with 'upload'.",
        "upload_id",
        "invalid_value",
    )


# --- races ---


async def test_of_those_who_complete_or_cancel_one_wins(
    wire: Wire, shared: Shared, stores: Stores
) -> None:
    content = os.urandom(MEGABYTE)
    for _ in range(5):
        upload = await wire.post("/uploads", wanted(content))
        part_id = await add(wire, upload["id"], content)
        path = f"/uploads/{upload['id']}"
        before = set(os.listdir(shared.server.runtime.settings.data_dir / "files")) - {part_id}
        answers = await asyncio.gather(
            *(wire.send("POST", f"{path}/complete", {"part_ids": [part_id]}) for _ in range(4)),
            wire.send("POST", f"{path}/cancel"),
        )
        [winner] = [answer for answer in answers if answer.status == 200]
        status = winner.json["status"]
        told = f"Upload '{upload['id']}' is {status}; only a pending one can change."
        for answer in answers:
            assert answer is winner or answer.refusal == Refusal(400, told)
        after = set(os.listdir(shared.server.runtime.settings.data_dir / "files"))
        file = winner.json["file"]
        assert after - before == ({file["id"]} if file else set())


async def test_a_part_that_comes_while_the_upload_ends_leaves_nothing(
    wire: Wire, shared: Shared
) -> None:
    upload = await wire.post("/uploads", wanted())
    answers = await asyncio.gather(
        *(send_part(wire, upload["id"], form(("data", b"x"))) for _ in range(6)),
        wire.send("POST", f"/uploads/{upload['id']}/cancel"),
    )
    await expiry.remove_spent_parts(shared.server.runtime)
    for answer in answers[:-1]:
        if answer.status == 200:
            assert await is_gone(shared, answer.json["id"])
        else:
            assert answer.status == 400
