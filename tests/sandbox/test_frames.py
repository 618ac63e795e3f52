import json
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.sandbox.frames import (
    BODY_MAX_BYTES,
    HEADER_MAX_BYTES,
    Broken,
    Decoder,
    Done,
    Exec,
    Frame,
    Interrupt,
    Put,
    Ready,
    TextPiece,
    pack,
)

STDOUT, STDERR = 1, 2


def frame(header: object, body: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack(">II", len(encoded), len(body)) + encoded + body


def said(written: bytes, stream: int = STDOUT) -> bytes:
    """As Docker passes on what was written to a stream."""
    return struct.pack(">BxxxI", stream, len(written)) + written


def decode(received: bytes) -> list[Frame]:
    return list(Decoder().feed(received))


def text(number: int, body: bytes) -> bytes:
    return frame({"op": "text", "id": number, "stream": "stdout"}, body)


def test_what_the_host_says_is_two_lengths_a_header_and_a_body() -> None:
    packed = pack(Put(7, "file-abc", None, at=3, last=True), b"end")
    header_bytes, body_bytes = struct.unpack_from(">II", packed)
    header = json.loads(packed[8 : 8 + header_bytes])
    expected = {"op": "put", "id": 7, "name": "file-abc", "link": None, "at": 3, "last": True}
    assert header == expected
    assert packed[8 + header_bytes :] == b"end"
    assert body_bytes == 3
    assert json.loads(pack(Exec(1, 120))[8:]) == {"op": "exec", "id": 1, "timeout_s": 120}
    assert json.loads(pack(Interrupt(None, 0.8))[8:])["id"] is None


def test_what_the_driver_says_is_read() -> None:
    done = frame({"op": "done", "id": 2, "status": "ok", "restarted": False, "more": [1]})
    assert decode(said(frame({"op": "ready"}) + text(2, b"4\n")) + said(done)) == [
        Frame(Ready(), b""),
        Frame(TextPiece(2, "stdout"), b"4\n"),
        Frame(Done(2, "ok"), b""),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.binary(max_size=300)), max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=10),
    st.lists(st.integers(1, 90), min_size=1, max_size=10),
)
def test_however_it_is_cut_it_comes_out_whole(
    texts: list[tuple[int, bytes]], docker_cuts: list[int], socket_cuts: list[int]
) -> None:
    written = b"".join(text(number, body) for number, body in texts)
    received = b"".join(
        said(piece) + said(b"noise of a library", STDERR) for piece in cut(written, docker_cuts)
    )
    decoder = Decoder()
    frames = [found for piece in cut(received, socket_cuts) for found in decoder.feed(piece)]
    assert frames == [Frame(TextPiece(number, "stdout"), body) for number, body in texts]


def cut(whole: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = turn = 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        yield whole[at : at + size]
        at, turn = at + size, turn + 1


@pytest.mark.parametrize(
    "written",
    [
        struct.pack(">II", HEADER_MAX_BYTES + 1, 0),
        struct.pack(">II", 2, BODY_MAX_BYTES + 1),
        b"Traceback (most recent call last):\n",
        frame({"op": "text", "id": 1, "stream": "stdin"}),
        frame({"op": "text", "id": "1", "stream": "stdout"}),
        frame({"op": "text", "stream": "stdout"}),
        frame({"op": "format"}),
        frame({"id": 1}),
        frame(["op", "ready"]),
        frame({"op": "done", "id": 1, "status": "fine"}),
        frame({"op": "image", "id": 1, "image": 0, "at": 1e400, "last": True}),
        struct.pack(">II", 9, 0) + b'{"op":"re',
        struct.pack(">II", 2, 0) + b"\xff\xfe",
        struct.pack(">II", 60_000, 0) + b"[" * 60_000,
        struct.pack(">II", 60_019, 0) + b'{"op":"ready","x":' + b"[" * 60_001,
    ],
)
def test_what_is_no_frame_breaks_the_connection(written: bytes) -> None:
    with pytest.raises(Broken):
        decode(said(written))


@given(st.binary(max_size=2000))
def test_whatever_comes_it_is_frames_or_broken(received: bytes) -> None:
    try:
        decode(received)
        decode(said(received))
    except Broken:
        pass


def test_a_frame_that_never_ends_takes_no_more_than_one_frame_may() -> None:
    decoder = Decoder()
    piece = said(b"x" * 32_000)
    tracemalloc.start()
    try:
        started = struct.pack(">II", 20, BODY_MAX_BYTES) + b'{"op":"ready", "a":1}'
        assert list(decoder.feed(said(started))) == []
        with pytest.raises(Broken):
            feed(decoder, piece, times=3000)
        assert tracemalloc.get_traced_memory()[1] < 6 * BODY_MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_giant_piece_of_stderr_is_let_go_by() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        list(decoder.feed(struct.pack(">BxxxI", STDERR, 2**32 - 1)))
        assert feed(decoder, b"x" * 65_536, times=1000) == []
        assert tracemalloc.get_traced_memory()[1] < BODY_MAX_BYTES
    finally:
        tracemalloc.stop()


def feed(decoder: Decoder, piece: bytes, times: int) -> list[Frame]:
    return [found for _ in range(times) for found in decoder.feed(piece)]
