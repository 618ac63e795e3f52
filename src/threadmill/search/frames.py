"""What the server and the process that reads documents say to each other.

Over the control socket go jobs (with two file descriptors each: the document and the job's own
stream) and their ends; over a job's stream, whose writer is not to be trusted, come its chunks.
A frame is its length in four bytes and a msgpack map.
"""

import struct
from typing import Literal

import msgspec

from threadmill.search.chunk import Chunk

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size
FRAME_MAX_BYTES = 32 * 1024**2  # the reader's own frames are far below


class Limits(msgspec.Struct):
    memory_max_bytes: int
    cpu_max_s: int
    output_max_bytes: int
    file_max_tokens: int


class Begin(msgspec.Struct, tag="begin"):
    """To the zygote: load what is needed."""

    encoding_of: str  # a model's name
    cache_dir: str
    load_timeout_s: float
    exact: bool  # the encoding's file is there


class Ready(msgspec.Struct, tag="ready"):
    """From the zygote."""

    exact: bool


class Job(msgspec.Struct, tag="job"):
    id: int
    filename: str
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int
    skip: int
    limits: Limits


class Stop(msgspec.Struct, tag="stop"):
    id: int


class Ended(msgspec.Struct, tag="ended"):
    id: int
    status: int  # as `waitpid` gives it


class Batch(msgspec.Struct, tag="batch"):
    chunks: list[Chunk]


class Done(msgspec.Struct, tag="done"):
    pass


class Failed(msgspec.Struct, tag="failed"):
    code: Literal["unsupported_file", "invalid_file", "server_error"]
    message: str


Order = Begin | Job | Stop
Report = Ready | Ended
Result = Batch | Done | Failed


def pack(frame: Order | Report | Result) -> bytes:
    data = msgspec.msgpack.encode(frame)
    return _LENGTH.pack(len(data)) + data


def unpack_length(data: bytes | bytearray) -> int:
    return int(_LENGTH.unpack_from(data)[0])


def take_frames(buffer: bytearray) -> list[bytes]:
    """The whole frames at the beginning of a buffer, which is left with the rest."""
    frames = []
    while len(buffer) >= LENGTH_BYTES and len(buffer) - LENGTH_BYTES >= unpack_length(buffer):
        end = LENGTH_BYTES + unpack_length(buffer)
        frames.append(bytes(buffer[LENGTH_BYTES:end]))
        del buffer[:end]
    return frames
