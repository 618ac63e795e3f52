import asyncio
from collections.abc import Sequence


class RawServer:
    """Answers each connection with exactly these bytes: a list is sent piece by piece."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.base_url = ""
        self._answers: list[Sequence[bytes | asyncio.Event]] = []

    def answer(self, *pieces: bytes | asyncio.Event) -> None:
        self._answers.append(pieces)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-l")]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            self.requests.append(head + body)
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            for piece in answer:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await piece.wait()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
