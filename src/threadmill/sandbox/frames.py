"""The host's side of what is said over a container's attach socket.

A frame is two lengths, a header (JSON) and a body (bytes). Without a terminal Docker cuts what the
container writes into pieces and puts eight bytes before each, to tell stdout from stderr. Nothing
here believes a length before it was held against its limit.
"""

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

PROTOCOL = "1"  # its version; the image has a label that says which its driver speaks
HEADER_MAX_BYTES = 64 * 1024
BODY_MAX_BYTES = 1024**2

_LENGTHS = struct.Struct(">II")
_PIECE_HEAD = struct.Struct(">BxxxI")
_STDOUT = 1


class Broken(Exception):
    """What came is no frame, or nothing comes any more: the container cannot be used."""


# --- what the host says ---


class _Request(msgspec.Struct, tag_field="op"):
    id: int


class Exec(_Request, tag="exec"):
    timeout_s: float


class Interrupt(msgspec.Struct, tag_field="op", tag="interrupt"):
    id: int | None  # the cell's; None: whatever runs
    grace_s: float  # between SIGINT and SIGKILL


class Put(_Request, tag="put"):
    name: str
    link: str | None
    at: int
    last: bool


class List(_Request, tag="list"):
    pass


class Get(_Request, tag="get"):
    name: str
    max_bytes: int


class Ping(_Request, tag="ping"):
    pass


Request = Exec | Interrupt | Put | List | Get | Ping


# --- what the driver says ---


class _Answer(msgspec.Struct, tag_field="op", frozen=True):
    id: int


class Ready(msgspec.Struct, tag_field="op", tag="ready", frozen=True):
    """The first worker stands."""

    id: None = None


class TextPiece(_Answer, tag="text", frozen=True):
    stream: Literal["stdout", "stderr", "result", "error"]


class ImagePiece(_Answer, tag="image", frozen=True):
    at: int
    last: bool
    image: int  # which of the cell's


class Done(_Answer, tag="done", frozen=True):
    status: Literal["ok", "error", "timeout", "interrupted", "died"]
    restarted: bool = False
    truncated: bool = False
    detail: str | None = None


class PutEnd(_Answer, tag="put", frozen=True):
    error: str | None = None


class Files(_Answer, tag="files", frozen=True):
    truncated: bool = False


class Data(_Answer, tag="data", frozen=True):
    last: bool
    at: int = 0
    error: str | None = None


class Pong(_Answer, tag="pong", frozen=True):
    pass


class Refusal(msgspec.Struct, tag_field="op", tag="error", frozen=True):
    """The request was not understood."""

    error: str
    id: int | None = None


Answer = Ready | TextPiece | ImagePiece | Done | PutEnd | Files | Data | Pong | Refusal


class Frame(msgspec.Struct, frozen=True):
    header: Answer
    body: bytes


_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def pack(header: Request, body: bytes = b"") -> bytes:
    encoded = _encode(header)
    assert len(encoded) <= HEADER_MAX_BYTES
    assert len(body) <= BODY_MAX_BYTES
    return _LENGTHS.pack(len(encoded), len(body)) + encoded + body


class Decoder:
    """Frames out of the bytes of an attach socket, however they are cut. It holds no more than one
    unfinished frame."""

    def __init__(self) -> None:
        self._piece_head = bytearray()
        self._piece_left_bytes = 0
        self._piece_is_stdout = False
        self._frames = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Raises Broken, after which the decoder is of no use."""
        for piece in self._stdout(received):
            self._frames += piece
            yield from self._complete()

    def _stdout(self, received: bytes) -> Iterator[bytes]:
        """What the container wrote to stdout, without Docker's heads."""
        at = 0
        while at < len(received):
            if self._piece_left_bytes == 0:
                head = received[at : at + _PIECE_HEAD.size - len(self._piece_head)]
                self._piece_head += head
                at += len(head)
                if len(self._piece_head) < _PIECE_HEAD.size:
                    return
                stream, self._piece_left_bytes = _PIECE_HEAD.unpack(self._piece_head)
                self._piece_is_stdout = stream == _STDOUT
                self._piece_head.clear()
            piece = received[at : at + self._piece_left_bytes]
            at += len(piece)
            self._piece_left_bytes -= len(piece)
            if self._piece_is_stdout:
                yield piece

    def _complete(self) -> Iterator[Frame]:
        at = 0
        while len(self._frames) - at >= _LENGTHS.size:
            header_bytes, body_bytes = _LENGTHS.unpack_from(self._frames, at)
            if header_bytes > HEADER_MAX_BYTES or body_bytes > BODY_MAX_BYTES:
                raise Broken("a frame is over its limit")
            body_at = at + _LENGTHS.size + header_bytes
            end = body_at + body_bytes
            if len(self._frames) < end:
                break
            header = _read(bytes(self._frames[at + _LENGTHS.size : body_at]))
            yield Frame(header, bytes(self._frames[body_at:end]))
            at = end
        del self._frames[:at]


def _read(header: bytes) -> Answer:
    try:
        return _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise Broken(f"a header is none: {fault}") from fault
