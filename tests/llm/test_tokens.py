import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
import tiktoken

from threadmill.llm.tokens import TokenCounter, estimate, upper_bound

# The encodings, where the machine has them; the other tests do without.
CACHE = os.environ.get("TIKTOKEN_CACHE_DIR")
needs_encodings = pytest.mark.skipif(CACHE is None, reason="TIKTOKEN_CACHE_DIR is not set")

TEXTS = [
    "",
    "Hello, world!",
    "Zoë isst 🎉 in 東京, Быстрая лиса.",
    "numbers 3.14159 and 1234567890",
    "<|endoftext|> is plain text <|im_start|>",
    "def f(x):\n    return x\n" * 50,
    "\x00\ud83d",
]


@pytest.fixture
def counter(tmp_path: Path) -> TokenCounter:
    return TokenCounter(tmp_path, download_timeout_s=30)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """tiktoken without internet: the names of the encodings it was asked for."""
    asked: list[str] = []

    def fail(name: str) -> tiktoken.Encoding:
        asked.append(name)
        raise ConnectionError("no internet")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    return asked


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    assert upper_bound(text) == len(text.encode("utf-8", "replace"))
    assert estimate(text) <= upper_bound(text)


@needs_encodings
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-3.5-turbo", "openai/gpt-4", "llama-3"])
async def test_counts_are_tiktokens_once_it_is_loaded(counter: TokenCounter, model: str) -> None:
    state = await counter.load(model)
    assert state.exact
    assert state == counter.state(model)
    encoding = tiktoken.get_encoding(state.encoding)
    for text in TEXTS:
        assert counter.count(text, model) == len(encoding.encode(text, disallowed_special=()))
        assert counter.count(text, model) <= upper_bound(text)


@needs_encodings
async def test_the_model_decides_the_encoding(counter: TokenCounter) -> None:
    names = {model: counter.state(model).encoding for model in ("gpt-4o", "gpt-4", "x", "a/gpt-4")}
    assert names == {
        "gpt-4o": "o200k_base",
        "gpt-4": "cl100k_base",
        "x": "o200k_base",
        "a/gpt-4": "cl100k_base",
    }


@needs_encodings
async def test_prose_is_counted_exactly_although_in_pieces(counter: TokenCounter) -> None:
    await counter.load("gpt-4o")
    text = "It isn't the 1st time, she'd said: 'no' (twice).\n\nÉtait-ce vrai?  Ja.\n" * 3000
    whole = len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))
    assert counter.count(text, "gpt-4o") == whole


@needs_encodings
@pytest.mark.parametrize("run", ["a", " ", "\n", "=", "あ", "1", "$a", " a"])
async def test_long_runs_of_one_character_neither_crash_nor_take_long(
    counter: TokenCounter, run: str
) -> None:
    await counter.load("gpt-4o")
    before = time.process_time()
    counted = counter.count(run * (1_000_000 // len(run)), "gpt-4o")
    assert time.process_time() - before < 5
    assert 0 < counted <= 3_000_000


@needs_encodings
async def test_large_texts_are_counted_in_a_thread(counter: TokenCounter) -> None:
    await counter.load("gpt-4o")
    texts = ["the quick brown fox " * 100_000, "Hello"]
    counting = asyncio.create_task(counter.count_many(texts, "gpt-4o"))
    beats = 0
    while not counting.done():
        await asyncio.sleep(0)
        beats += 1
    assert beats > 10
    assert await counting == [counter.count(text, "gpt-4o") for text in texts]


async def test_without_the_encoding_counts_are_estimates(
    counter: TokenCounter, offline: list[str]
) -> None:
    assert await counter.count_many(["abcdefg", ""], "gpt-4o") == [3, 0]
    state = await counter.load("gpt-4o")
    assert not state.exact
    assert state.error == "ConnectionError: no internet"


async def test_a_failed_download_is_not_repeated_at_once(
    counter: TokenCounter, offline: list[str], tmp_path: Path
) -> None:
    for _ in range(3):
        await counter.load("gpt-4o")
        counter.count("a", "gpt-4o")
    assert offline == ["o200k_base"]
    impatient = TokenCounter(tmp_path, 30, retry_after_s=0)
    await impatient.load("gpt-4o")
    await impatient.load("gpt-4o")
    assert offline == ["o200k_base"] * 3


async def test_a_download_that_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, started = threading.Event(), threading.Event()

    def get_encoding(name: str) -> tiktoken.Encoding:
        started.set()
        hang.wait()
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    counter = TokenCounter(tmp_path, download_timeout_s=0.05)
    assert counter.state("x").error is None  # nobody asked yet
    try:
        assert counter.count("abc", "x") == 1
        started.wait()
        state = await counter.load("x")
        assert not state.exact
        assert state.error == "The download did not end within 0.05 seconds."
        assert counter.count("abc", "x") == 1
    finally:
        hang.set()


async def test_encodings_live_in_the_given_folder_unless_the_user_says_otherwise(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "of the user")
    await TokenCounter(tmp_path, 1).load("x")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "of the user"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    await TokenCounter(tmp_path, 1).load("x")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path)


async def test_what_may_not_be_downloaded_is_not_asked_for(
    tmp_path: Path, offline: list[str]
) -> None:
    counter = TokenCounter(tmp_path, download_timeout_s=0)
    state = await counter.load("gpt-4o")
    assert (state.exact, state.error) == (
        False,
        "The settings say that it is not to be downloaded.",
    )
    assert counter.count("Hello, world!", "gpt-4o") == estimate("Hello, world!")
    assert counter.encoding("gpt-4o") is None
    assert offline == []
