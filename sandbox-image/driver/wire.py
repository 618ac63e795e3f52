"""What travels: frames to and from the host, messages to and from the worker.

The host is believed. A message comes from a process that runs anybody's code: it can at most be
wrong about its own cell.
"""

import json
import os
import struct
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any

Header = dict[str, Any]
Frame = tuple[Header, bytes]
Message = tuple[bytes, bool, bytes]  # kind, whether the worker waits until it was seen, body

FRAME_HEADER_MAX_BYTES = 64 * 1024
FRAME_BODY_MAX_BYTES = 1024 * 1024
MESSAGE_MAX_BYTES = 16 * 1024 * 1024
READ_MAX_BYTES = 64 * 1024

FRAME_HEAD = struct.Struct(">II")
MESSAGE_HEAD = struct.Struct(">c?I")


class Kind(bytes, Enum):
    # From the worker
    RESULT = b"r"  # text: the value of the last expression, or displayed
    ERROR = b"e"  # text: a traceback
    IMAGE = b"i"  # a png; empty: one that was too large to send
    DONE = b"d"  # the cell ended: b"ok" or b"error"
    # To the worker
    CODE = b"c"  # a cell to run
    SEEN = b"s"  # what was sent has been passed on


class Unreadable(Exception):
    """What came in is not made as agreed; nobody can tell where the next piece starts."""


def pack_frame(header: Header, body: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return FRAME_HEAD.pack(len(encoded), len(body)) + encoded + body


def take_frames(arrived: bytearray) -> Iterator[Frame]:
    """Cut what is complete off the front of `arrived`."""
    while len(arrived) >= FRAME_HEAD.size:
        header_bytes, body_bytes = FRAME_HEAD.unpack_from(arrived)
        if header_bytes > FRAME_HEADER_MAX_BYTES or body_bytes > FRAME_BODY_MAX_BYTES:
            raise Unreadable("a frame is too large")
        body_at = FRAME_HEAD.size + header_bytes
        end = body_at + body_bytes
        if len(arrived) < end:
            return
        try:
            header = json.loads(arrived[FRAME_HEAD.size : body_at])
        except (ValueError, RecursionError) as error:
            raise Unreadable("a header is not JSON") from error
        if not isinstance(header, dict):
            raise Unreadable("a header is not an object")
        body = bytes(arrived[body_at:end])
        del arrived[:end]
        yield header, body


def pack_message(kind: Kind, body: bytes = b"", *, waits: bool = False) -> bytes:
    return MESSAGE_HEAD.pack(kind, waits, len(body)) + body


def take_messages(arrived: bytearray) -> Iterator[Message]:
    """Cut what is complete off the front of `arrived`."""
    while len(arrived) >= MESSAGE_HEAD.size:
        kind, waits, body_bytes = MESSAGE_HEAD.unpack_from(arrived)
        if body_bytes > MESSAGE_MAX_BYTES:
            raise Unreadable("a message is too large")
        end = MESSAGE_HEAD.size + body_bytes
        if len(arrived) < end:
            return
        body = bytes(arrived[MESSAGE_HEAD.size : end])
        del arrived[:end]
        yield kind, waits, body


class Outlet:
    """Bytes on their way into a descriptor that does not always take them at once."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.waiting_bytes = 0
        self._waiting: deque[memoryview] = deque()

    def put(self, piece: bytes) -> None:
        self._waiting.append(memoryview(piece))
        self.waiting_bytes += len(piece)
        self.flush()

    def flush(self) -> None:
        """Write what is taken without waiting. Raises OSError when nobody reads any more."""
        while self._waiting:
            piece = self._waiting[0]
            try:
                written = os.write(self.descriptor, piece)
            except BlockingIOError:
                return
            self.waiting_bytes -= written
            if written < len(piece):
                self._waiting[0] = piece[written:]
            else:
                self._waiting.popleft()


def read_some(descriptor: int, max_bytes: int = READ_MAX_BYTES) -> bytes | None:
    """What is there: None if nothing is yet, empty if nothing will come any more."""
    try:
        return os.read(descriptor, max_bytes)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""
