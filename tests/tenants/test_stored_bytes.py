"""Stored bytes: files and uploads together, exact however many come at once."""

import asyncio
from pathlib import Path

from tenants.conftest import NewTenant
from threadmill.store.database import Database


def refusal(told: str, limit: int) -> dict[str, object]:
    return {
        "error": {
            "message": f"You have exceeded your file storage quota. The {told} is limited to"
            f" {limit} bytes of files. Please delete old files or attempt with a smaller file"
            " size.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


async def test_of_concurrent_files_as_many_are_taken_as_fit(
    tenant: NewTenant, tmp_path: Path
) -> None:
    one = await tenant(max_stored_bytes=1000)
    answers = await asyncio.gather(*(one.upload(150, server=number) for number in range(20)))
    taken = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 400]
    assert (len(taken), len(refused)) == (6, 14)
    assert refused[0].json == refusal(f"project {one.project_id}", 1000)
    # No bytes of those that were refused stay behind.
    blobs = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert len(blobs) == 6
    assert (await one.upload(100)).status == 200
    assert (await one.upload(1)).status == 400
    await one.send("DELETE", f"/files/{taken[0].json['id']}")
    assert (await one.upload(150)).status == 200


async def test_a_key_has_a_limit_of_its_own(tenant: NewTenant) -> None:
    one = await tenant("home", key={"max_stored_bytes": 100})
    other = await tenant("home")
    assert (await other.upload(500)).status == 200
    assert (await one.upload(100)).status == 200
    refused = await one.upload(1)
    assert refused.json == refusal(f"API key {one.key_id}", 100)


async def test_an_upload_counts_from_its_beginning_and_no_more_when_it_is_a_file(
    tenant: NewTenant,
) -> None:
    one = await tenant(max_stored_bytes=100)
    wanted = {"filename": "a.txt", "purpose": "assistants", "bytes": 60, "mime_type": "text/plain"}
    answers = await asyncio.gather(
        *(one.send("POST", "/uploads", wanted, server=number) for number in range(6))
    )
    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400, 400]
    [upload] = [answer.json for answer in answers if answer.status == 200]
    assert (await one.upload(41)).status == 400
    assert (await one.upload(40)).status == 200
    part = await one.client.uploads.parts.create(upload["id"], data=b"x" * 60)
    done = await one.client.uploads.complete(upload["id"], part_ids=[part.id])
    assert done.file is not None
    assert done.file.bytes == 60
    assert (await one.upload(1)).status == 400
    assert (await one.send("DELETE", f"/files/{done.file.id}")).status == 200
    assert (await one.upload(60)).status == 200


async def test_parts_beyond_what_an_upload_said_count_too(tenant: NewTenant) -> None:
    one = await tenant(max_stored_bytes=100)
    wanted = {"filename": "a.txt", "purpose": "assistants", "bytes": 10, "mime_type": "text/plain"}
    upload = (await one.send("POST", "/uploads", wanted)).json
    await one.client.uploads.parts.create(upload["id"], data=b"x" * 90)
    answer = await one.send("POST", "/uploads", wanted)
    assert answer.status == 200
    refused = await asyncio.gather(
        *(one.client.uploads.parts.create(upload["id"], data=b"x" * 11) for _ in range(3)),
        return_exceptions=True,
    )
    assert all("storage quota" in str(fault) for fault in refused)


async def test_without_a_limit_nothing_is_refused_nor_locked(
    tenant: NewTenant, database: Database
) -> None:
    one = await tenant()
    assert (await one.upload(5000)).status == 200
