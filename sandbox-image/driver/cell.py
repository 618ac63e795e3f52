"""One cell while it runs: what it has said so far, cut to its caps and framed for the host."""

import codecs
from collections.abc import Iterator

from .wire import FRAME_BODY_MAX_BYTES, Header, pack_frame

TEXT_MAX_BYTES = 1024 * 1024
TEXT_KEPT_FOR_ERRORS_BYTES = 64 * 1024  # so that a traceback arrives after any flood
IMAGE_MAX_BYTES = 16 * 1024 * 1024
MAX_IMAGES = 20

PNG_START = b"\x89PNG\r\n\x1a\n"
NUDGE_EVERY_S = 0.5


class Cell:
    def __init__(self, cell_id: int, deadline: float) -> None:
        self.id = cell_id
        self.deadline = deadline
        self.ending: str | None = None  # why it is being stopped, once it is
        self.kill_at = float("inf")
        self.nudge_at = float("inf")
        self.truncated = False
        self._text_bytes = 0
        self._images = 0
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in ("stdout", "stderr")}

    def stop(self, why: str, now: float, grace_s: float) -> None:
        """Nudge it from now on, and kill it when the grace is over. The first reason stays."""
        if self.ending is None:
            self.ending = why
            self.nudge_at = now
        self.kill_at = min(self.kill_at, now + grace_s)

    def nudged(self, now: float) -> None:
        """A single SIGINT may meet a cell that swallows it, or one that has not quite started."""
        self.nudge_at = now + NUDGE_EVERY_S

    def wakes_at(self) -> float:
        return self.deadline if self.ending is None else min(self.kill_at, self.nudge_at)

    def written(self, stream: str, piece: bytes) -> Iterator[bytes]:
        """A piece of stdout or stderr, which may end in the middle of a character."""
        if self._room(stream):
            yield from self.said(stream, self._decoders[stream].decode(piece))
        else:
            self.truncated = True

    def said(self, stream: str, text: str) -> Iterator[bytes]:
        encoded = text.encode()
        room = self._room(stream)
        if len(encoded) > room:
            self.truncated = True
            encoded = encoded[:room].decode(errors="ignore").encode()
        if encoded:
            self._text_bytes += len(encoded)
            yield pack_frame({"op": "text", "id": self.id, "stream": stream}, encoded)

    def _room(self, stream: str) -> int:
        kept = 0 if stream == "error" else TEXT_KEPT_FOR_ERRORS_BYTES
        return max(0, TEXT_MAX_BYTES - kept - self._text_bytes)

    def drew(self, png: bytes) -> Iterator[bytes]:
        is_sound = png.startswith(PNG_START) and len(png) <= IMAGE_MAX_BYTES
        if not is_sound or self._images == MAX_IMAGES:
            self.truncated = True
            return
        header: Header = {"op": "image", "id": self.id, "format": "png", "image": self._images}
        self._images += 1
        for at in range(0, len(png), FRAME_BODY_MAX_BYTES):
            end = at + FRAME_BODY_MAX_BYTES
            yield pack_frame({**header, "at": at, "last": end >= len(png)}, png[at:end])

    def done(self, status: str, *, restarted: bool, detail: str | None) -> Iterator[bytes]:
        for stream, decoder in self._decoders.items():
            yield from self.said(stream, decoder.decode(b"", final=True))
        header = {"op": "done", "id": self.id, "status": status, "restarted": restarted}
        yield pack_frame({**header, "truncated": self.truncated, "detail": detail})
