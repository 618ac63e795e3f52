"""How many tokens a text has. Works without internet, and says how far it can be believed.

tiktoken fetches an encoding at its first use; loading it takes half a second and 80 MB. So that
happens in a thread when the first count is asked for, and until then counts are estimates.
"""

import asyncio
import os
import threading
import time
from pathlib import Path

import msgspec
import structlog
import tiktoken

_DEFAULT_ENCODING = "o200k_base"
_ESTIMATED_BYTES_PER_TOKEN = 3  # English has 4-5, program text 3.7, Chinese 3; numbers only 1.6
_INLINE_MAX_CHARACTERS = 100_000  # about 20 ms; more is counted in a thread
# One long run of a letter or a space overflows tiktoken's stack at a million characters, and is
# slower than linear from 50,000 on. Pieces also let other threads in between.
_PIECE_CHARACTERS = 20_000

log = structlog.get_logger(__name__)


class EncodingState(msgspec.Struct):
    encoding: str
    exact: bool
    error: str | None = None  # why it is not there; None while nobody asked or it is loading


class TokenCounter:
    def __init__(
        self, cache_dir: Path, download_timeout_s: float, *, retry_after_s: float = 300
    ) -> None:
        self._cache_dir = cache_dir
        self._download_timeout_s = download_timeout_s
        self._retry_after_s = retry_after_s
        self._encodings: dict[str, _LazyEncoding] = {}

    def count(self, text: str, model: str) -> int:
        """Exact once the model's encoding is loaded; before, an estimate that is rather too high.

        Blocks for about 0.2 µs a character: use `count_many` for what may be long.
        """
        encoding = self._lazy(model).get()
        if encoding is None:
            return estimate(text)
        return sum(len(encoding.encode_ordinary(piece)) for piece in _pieces(text))

    async def count_many(self, texts: list[str], model: str) -> list[int]:
        if sum(map(len, texts)) <= _INLINE_MAX_CHARACTERS:
            return [self.count(text, model) for text in texts]
        return await asyncio.to_thread(lambda: [self.count(text, model) for text in texts])

    async def load(self, model: str) -> EncodingState:
        """Wait for the encoding, but no longer than a download may take."""
        return await asyncio.to_thread(self._lazy(model).wait)

    def encoding(self, model: str) -> tiktoken.Encoding | None:
        """The encoding itself, waited for no longer than a download may take. Blocks."""
        lazy = self._lazy(model)
        lazy.wait()
        return lazy.get()

    def state(self, model: str) -> EncodingState:
        return self._lazy(model).state()

    def _lazy(self, model: str) -> "_LazyEncoding":
        name = _encoding_name(model)
        if name not in self._encodings:
            self._encodings[name] = _LazyEncoding(
                name, self._cache_dir, self._download_timeout_s, self._retry_after_s
            )
        return self._encodings[name]


def estimate(text: str) -> int:
    return -(-upper_bound(text) // _ESTIMATED_BYTES_PER_TOKEN)


def upper_bound(text: str) -> int:
    """The UTF-8 length: a token stands for at least one byte, in every encoding."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


class _LazyEncoding:
    """One encoding, loaded by a daemon thread: a download that hangs holds up nobody."""

    def __init__(self, name: str, cache_dir: Path, timeout_s: float, retry_after_s: float) -> None:
        self._name = name
        self._cache_dir = cache_dir
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._encoding: tiktoken.Encoding | None = None
        self._error: str | None = None
        self._started_at: float | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def get(self) -> tiktoken.Encoding | None:
        if self._encoding is None:
            self._start()
        return self._encoding

    def wait(self) -> EncodingState:
        if self._encoding is None:
            self._start()
            if self._thread is not None:
                self._thread.join(self._timeout_s)
        return self.state()

    def state(self) -> EncodingState:
        return EncodingState(self._name, self._encoding is not None, self._error or self._overdue())

    def _overdue(self) -> str | None:
        loading = self._thread is not None and self._thread.is_alive()
        if not loading or self._started_at is None:
            return None
        if time.monotonic() - self._started_at < self._timeout_s:
            return None
        return f"The download did not end within {self._timeout_s:g} seconds."

    def _start(self) -> None:
        if not self._timeout_s:
            self._error = "The settings say that it is not to be downloaded."
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            now = time.monotonic()
            if self._started_at is not None and now - self._started_at < self._retry_after_s:
                return
            self._started_at = now
            self._thread = threading.Thread(
                target=self._load, name=f"load {self._name}", daemon=True
            )
            self._thread.start()

    def _load(self) -> None:
        # tiktoken asks the environment where its files are; what the user says there wins.
        if "DATA_GYM_CACHE_DIR" not in os.environ:
            os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(self._cache_dir))
        try:
            self._encoding = tiktoken.get_encoding(self._name)
            self._error = None
        except Exception as error:  # whatever requests, the disk or the file's hash may raise
            self._error = f"{type(error).__name__}: {error}"
            log.warning("token counts are estimates", encoding=self._name, error=self._error[:300])


def _encoding_name(model: str) -> str:
    try:
        # Routers name models "openai/gpt-4o".
        return tiktoken.encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return _DEFAULT_ENCODING


def _pieces(text: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = _cut(text, start, start + _PIECE_CHARACTERS)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _cut(text: str, start: int, end: int) -> int:
    """The last place before `end` where no token can reach across: before the space between words.

    A text without any is cut at `end`, and may count a token more for it.
    """
    space = text.rfind(" ", start + 1, end)
    for _ in range(100):
        if space < 0:
            break
        if text[space - 1].isalpha() and text[space + 1].isalpha():
            return space
        space = text.rfind(" ", start + 1, space)
    return end
