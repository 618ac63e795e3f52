"""The connection to a container's stdin and stdout: an HTTP request that becomes a stream.

The `docker` package hands such a stream out as a blocking socket, from which its reader may have
taken the first bytes already. This is the same request in asyncio, for Unix sockets, TCP and TLS.
"""

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from urllib.parse import quote

import msgspec

from threadmill.sandbox.frames import Broken, Decoder, Frame

_READ_BYTES = 64 * 1024


class Address(msgspec.Struct, frozen=True):
    """Where an engine listens."""

    api_version: str
    path: str | None = None  # of a Unix socket; else host and port
    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None


class Attachment:
    """Frames to and from one container. Nothing is read that nobody waits for: a container that
    writes more is made to wait by the connection itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._received: deque[Frame] = deque()

    @classmethod
    async def open(cls, address: Address, container: str) -> "Attachment":
        """Raises OSError, or Broken if the engine does not attach."""
        if address.path is not None:
            streams = await asyncio.open_unix_connection(address.path, limit=_READ_BYTES)
        else:
            streams = await asyncio.open_connection(
                address.host, address.port, ssl=address.tls, limit=_READ_BYTES
            )
        attachment = cls(*streams)
        try:
            await attachment._begin(address.api_version, container)
        except BaseException:
            await attachment.close()
            raise
        return attachment

    async def send(self, frame: bytes) -> None:
        """Raises Broken."""
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except OSError as fault:
            raise Broken("the connection to the container is gone") from fault

    async def receive(self) -> Frame:
        """The next frame, whoever it is for. Raises Broken. Cancelled in its wait it loses
        nothing."""
        while not self._received:
            try:
                piece = await self._reader.read(_READ_BYTES)
            except OSError as fault:
                raise Broken("the connection to the container is gone") from fault
            if not piece:
                raise Broken("the container has ended")
            self._received.extend(self._decoder.feed(piece))
        return self._received.popleft()

    async def close(self) -> None:
        self._received.clear()
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _begin(self, api_version: str, container: str) -> None:
        path = f"/v{api_version}/containers/{quote(container, safe='')}/attach"
        self._writer.write(
            f"POST {path}?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
        )
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as fault:
            raise Broken("the engine does not attach to the container") from fault
        status = head.split(b" ", 2)[1]
        if status not in (b"101", b"200"):  # 200: an engine that has not heard of upgrades
            raise Broken(f"the engine does not attach to the container ({status.decode()})")
