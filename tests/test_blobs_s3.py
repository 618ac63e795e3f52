"""The blob store against an S3 server on this machine: what a directory does not show, such as
uploads in parts that stay open."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import openai
import pytest
from moto.server import ThreadedMotoServer

from conftest import Serve
from test_blobs import MEGABYTE, Interrupted, all_of, pieces
from threadmill import doctor
from threadmill.blobs import Blobs
from threadmill.errors import NotFound
from threadmill.settings import Settings

REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": REGION}


class Bucket:
    """What lies in the bucket, asked of the server itself."""

    name = "files"

    def __init__(self, address: str) -> None:
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=address,
            region_name=REGION,
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        self._s3.create_bucket(Bucket=self.name)

    def close(self) -> None:
        for key in self.keys():
            self._s3.delete_object(Bucket=self.name, Key=key)
        self._s3.delete_bucket(Bucket=self.name)
        self._s3.close()

    def put(self, key: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self.name, Key=key, Body=content)

    def keys(self) -> list[str]:
        found = self._s3.list_objects_v2(Bucket=self.name)
        return [each["Key"] for each in found.get("Contents", [])]

    def open_uploads(self) -> list[str]:
        found = self._s3.list_multipart_uploads(Bucket=self.name)
        return [each["Key"] for each in found.get("Uploads", [])]

    def count_parts(self, key: str) -> int:
        found = self._s3.head_object(Bucket=self.name, Key=key, PartNumber=1)
        return int(found.get("PartsCount", 1))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty one, and the environment through which the blob store finds its server."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    bucket = Bucket(address)
    yield bucket
    bucket.close()


@pytest.fixture
def blobs(bucket: Bucket) -> Blobs:
    return Blobs(f"s3://{bucket.name}/some/prefix")


def some_bytes(size: int) -> bytes:
    return (b"threadmill" * (size // 10 + 1))[:size]


async def megabytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(MEGABYTE)


@pytest.mark.parametrize("size", [0, 1, 5 * MEGABYTE, 5 * MEGABYTE + 1, 13 * MEGABYTE])
async def test_what_was_written_is_read(blobs: Blobs, bucket: Bucket, size: int) -> None:
    content = some_bytes(size)
    await blobs.write("file-a", pieces(content[: size // 3], b"", content[size // 3 :]))
    assert await all_of(blobs, "file-a") == content
    assert await blobs.read("file-a") == content
    assert bucket.keys() == ["some/prefix/file-a"]
    assert bucket.open_uploads() == []


async def test_a_large_blob_goes_up_in_parts_and_comes_down_in_pieces(
    blobs: Blobs, bucket: Bucket
) -> None:
    await blobs.write("file-a", megabytes(13))
    assert bucket.count_parts("some/prefix/file-a") == 3
    sizes = [len(piece) async for piece in await blobs.open("file-a")]
    assert sizes == [5 * MEGABYTE, 5 * MEGABYTE, 3 * MEGABYTE]


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
async def test_either_name_of_the_endpoint_will_do(
    bucket: Bucket, address: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, address)
    await Blobs(f"s3://{bucket.name}").write("file-a", pieces(b"x"))
    assert bucket.keys() == ["file-a"]


@pytest.mark.parametrize("before", [0, 1, 6, 13])
async def test_nothing_is_left_when_a_piece_raises(
    blobs: Blobs, bucket: Bucket, before: int
) -> None:
    with pytest.raises(Interrupted):
        await blobs.write("file-a", pieces(*[bytes(MEGABYTE)] * before, Interrupted()))
    assert bucket.keys() == []
    assert bucket.open_uploads() == []


@pytest.mark.parametrize("before", [1, 6, 13])
async def test_nothing_is_left_when_the_writing_task_is_cancelled_between_pieces(
    blobs: Blobs, bucket: Bucket, before: int
) -> None:
    is_half_way = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for piece in megabytes(before):
            yield piece
        is_half_way.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(blobs.write("file-a", endless()))
    await is_half_way.wait()
    assert bucket.open_uploads() == (["some/prefix/file-a"] if before > 5 else [])
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert bucket.keys() == []
    assert bucket.open_uploads() == []


@pytest.mark.parametrize("size_megabytes", [1, 7])
async def test_nothing_is_left_when_a_request_to_the_store_is_cancelled(
    blobs: Blobs, bucket: Bucket, size_megabytes: int
) -> None:
    """At many moments, as each request is another one to be cut off at: the beginning of an upload,
    a part, its completion."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await blobs.write("file-a", megabytes(size_megabytes))
    whole_s = loop.time() - begun
    await blobs.delete("file-a")
    cancelled = 0
    for step in range(20):
        writing = asyncio.create_task(blobs.write("file-a", megabytes(size_megabytes)))
        await asyncio.wait([writing], timeout=whole_s * step / 20)
        writing.cancel()
        await asyncio.wait([writing])
        if not writing.cancelled():  # it was faster
            await writing
            await blobs.delete("file-a")
            continue
        cancelled += 1
        assert bucket.keys() == []
        assert bucket.open_uploads() == []
    assert cancelled


async def test_a_blob_that_is_missing_is_told_before_its_first_piece(blobs: Blobs) -> None:
    with pytest.raises(NotFound, match="No such File object: file-a"):
        await blobs.open("file-a")
    with pytest.raises(NotFound, match="No such File object: file-a"):
        await blobs.read("file-a")


async def test_a_blob_deleted_while_it_is_read_is_told_as_missing(blobs: Blobs) -> None:
    await blobs.write("file-a", megabytes(6))
    opened = await blobs.open("file-a")
    await anext(opened)
    await blobs.delete("file-a")
    with pytest.raises(NotFound, match="No such File object: file-a"):
        await anext(opened)


async def test_deleting_twice_is_deleting(blobs: Blobs, bucket: Bucket) -> None:
    await blobs.write("file-a", pieces(b"x"))
    await blobs.delete("file-a")
    await blobs.delete("file-a")
    assert bucket.keys() == []


async def test_what_lies_outside_the_prefix_is_not_ours(blobs: Blobs, bucket: Bucket) -> None:
    theirs = ["file-a", "some/file-a", "some/prefix-too/file-a"]
    for key in theirs:
        bucket.put(key, b"theirs")
    with pytest.raises(NotFound):
        await blobs.read("file-a")
    await blobs.delete("file-a")
    assert bucket.keys() == theirs


async def test_a_bucket_that_is_missing_is_not_taken_for_a_missing_file_on_writing(
    bucket: Bucket,
) -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        await Blobs("s3://no-such-bucket").write("file-a", pieces(b"x"))


async def test_a_file_goes_through_the_whole_server(serve: Serve, bucket: Bucket) -> None:
    content = some_bytes(11 * MEGABYTE)
    async with (
        serve(blob_url=f"s3://{bucket.name}/threadmill") as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        file = await client.files.create(file=("big.jsonl", content), purpose="batch")
        assert file.bytes == len(content)
        assert bucket.keys() == [f"threadmill/{file.id}"]
        assert (await client.files.content(file.id)).content == content
        await client.files.delete(file.id)
        assert bucket.keys() == []
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)


async def test_doctor_tries_the_bucket(settings: Settings, bucket: Bucket) -> None:
    async def look(name: str) -> str:
        lines: list[str] = []
        url = f"s3://{name}/threadmill"
        await doctor.examine(settings.model_copy(update={"blob_url": url}), lines.append)
        [line] = [line for line in lines if line[6:].startswith("files ")]
        return line

    assert (await look(bucket.name)).startswith("ok ")
    assert bucket.keys() == []
    line = await look("no-such-bucket")
    assert line.startswith("FAIL ")
    assert "NoSuchBucket" in line
    assert "AWS_ACCESS_KEY_ID" in line
