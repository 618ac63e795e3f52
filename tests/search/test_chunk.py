import itertools

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from threadmill.search.chunk import Chunk, Split, chunks, estimated_split
from threadmill.search.formats.kinds import Passage, Unreadable

ANY_TEXT = st.text(max_size=300) | st.text("ab \n.🙂é漢", max_size=300)
PASSAGES = st.lists(
    st.builds(Passage, ANY_TEXT, st.none() | st.integers(1, 3), st.none() | st.just("A heading")),
    max_size=8,
)


def letters(text: str) -> list[bytes]:
    """The worst tokenizer: a token for every byte."""
    return [bytes([byte]) for byte in text.encode()]


def cut(
    passages: list[Passage], size: int, overlap: int, split: Split = estimated_split
) -> list[Chunk]:
    return list(
        chunks(passages, split, max_tokens=size, overlap_tokens=overlap, file_max_tokens=10_000_000)
    )


def without_overlaps(found: list[Chunk], split: Split, overlap: int) -> str:
    """Each chunk joined where it fits, with the overlap that was asked for or less."""
    text = found[0].text if found else ""
    for chunk in found[1:]:
        most = len(b"".join(split(chunk.text)[:overlap]).decode(errors="ignore")) if overlap else 0
        for length in range(min(most, len(chunk.text)), -1, -1):
            if text.endswith(chunk.text[:length]):
                text += chunk.text[length:]
                break
    return text


@given(PASSAGES, st.integers(4, 60), st.integers(0, 30))
def test_without_overlap_chunks_join_to_the_text(
    passages: list[Passage], size: int, ignored: int
) -> None:
    for split in (letters, estimated_split):
        found = cut(passages, size, 0, split)
        joined = "".join(chunk.text for chunk in found)
        source = "".join(passage.text for passage in passages).replace("\0", "\ufffd")
        # What is only white space is left out, so compare the rest.
        assert "".join(joined.split()) == "".join(source.split())
        if all(not chunk.isspace() for chunk in itertools.chain(source)):
            assert joined == source


@given(st.integers(8, 120), st.data())
def test_overlaps_are_as_asked_or_smaller_and_all_text_is_there(
    size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    # Every word is another, so that there is one way to put the chunks together.
    source = " ".join(f"{number}é🙂." for number in range(400))
    found = cut([Passage(source)], size, overlap, letters)
    assert without_overlaps(found, letters, overlap) == source


@given(PASSAGES, st.integers(4, 60), st.data())
def test_no_chunk_is_too_large_or_empty(
    passages: list[Passage], size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    for chunk in cut(passages, size, overlap, letters):
        assert 0 < chunk.token_count <= size
        assert len(chunk.text.encode()) == chunk.token_count
        assert chunk.text.strip()


@given(PASSAGES, st.integers(4, 60), st.data())
def test_the_same_text_gives_the_same_chunks(
    passages: list[Passage], size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    assert cut(passages, size, overlap) == cut(passages, size, overlap)


def test_nul_and_lone_surrogates_are_replaced() -> None:
    (chunk,) = cut([Passage("a\0b\ud800c")], 100, 0)
    assert chunk.text == "a\ufffdb\ufffdc"


def test_a_chunk_says_where_it_starts() -> None:
    passages = [Passage("one " * 30, 1, "A"), Passage("two " * 30, 2, "B")]
    found = cut(passages, 100, 0)
    assert [(chunk.page, chunk.heading) for chunk in found] == [(1, "A"), (2, "B"), (2, "B")][
        : len(found)
    ]
    assert found[0].text.startswith("one")
    assert all(chunk.page == (1 if chunk.text.startswith("one") else 2) for chunk in found)


def test_lines_are_kept_whole_where_they_fit() -> None:
    source = "".join(f"line {number} of the text\n" for number in range(500))
    found = cut([Passage(source)], 200, 100)
    assert all(chunk.text.startswith("line ") for chunk in found)
    assert all(chunk.text.endswith("text\n") for chunk in found)
    assert all(chunk.token_count > 200 * 3 / 4 for chunk in found[:-1])


def test_a_file_has_a_most_of_tokens() -> None:
    cutting = chunks(
        [Passage("word " * 1000)],
        estimated_split,
        max_tokens=100,
        overlap_tokens=0,
        file_max_tokens=500,
    )
    with pytest.raises(Unreadable, match="too large") as raised:
        list(cutting)
    assert raised.value.code == "invalid_file"


@pytest.mark.parametrize("run", ["a", " ", "\n", "=-", "é", "\U0001f642", "1"])
def test_long_runs_of_a_character_are_cut_in_time(run: str) -> None:
    source = "x" + run * 100_000 + "y"
    found = cut([Passage(source)], 800, 400, exact_split())
    assert max(chunk.token_count for chunk in found) <= 800
    assert found[0].text.startswith("x")
    assert found[-1].text.endswith("y")


def test_special_tokens_are_plain_text() -> None:
    (chunk,) = cut([Passage("before <|endoftext|> after")], 100, 0, exact_split())
    assert chunk.text == "before <|endoftext|> after"
    assert chunk.token_count > 3


@given(st.lists(ANY_TEXT, min_size=1, max_size=5), st.integers(8, 40), st.data())
@settings(max_examples=50)
def test_real_tokens_never_cut_a_character(
    texts: list[str], size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    found = cut([Passage(text) for text in texts], size, overlap, exact_split())
    assert all(chunk.token_count <= size for chunk in found)
    source = "".join(texts).replace("\0", "\ufffd")
    assert all(chunk.text in source for chunk in found)


def exact_split() -> Split:
    """The real one where its file can be had; else the tests hold for the estimate."""
    try:
        encoding = tiktoken.get_encoding("o200k_base")
    except OSError:
        return estimated_split
    return lambda text: encoding.decode_tokens_bytes(encoding.encode_ordinary(text))
