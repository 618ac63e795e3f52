"""What each kind of document gives."""

import datetime
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from search import documents
from threadmill.search.parse import SUPPORTED_EXTENSIONS, Chunk, DocumentReader, Unreadable
from threadmill.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")
Read = Callable[..., Coroutine[Any, Any, list[Chunk]]]

ORIGINAL = (
    ".c .cpp .cs .css .doc .docx .go .html .java .js .json .md .pdf .php .pptx .py .rb .sh .tex "
    ".ts .txt"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DocumentReader]:
    reader = DocumentReader(
        Settings(data_dir=tmp_path_factory.mktemp("data"), tokenizer_download_timeout_s=2)
    )
    yield reader
    await reader.close()


@pytest.fixture
def read(reader: DocumentReader, tmp_path: Path) -> Read:
    async def read(content: bytes | str, name: str, size: int = 800) -> list[Chunk]:
        path = tmp_path / "blob"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        batches = reader.read(path, name, max_chunk_size_tokens=size, chunk_overlap_tokens=0)
        return [chunk async for batch in batches for chunk in batch]

    return read


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_all_that_the_original_took_is_taken() -> None:
    assert set(ORIGINAL.split()) | {".csv", ".xlsx"} <= SUPPORTED_EXTENSIONS


@pytest.mark.parametrize(
    "extension", sorted(SUPPORTED_EXTENSIONS - {".doc", ".docx", ".pdf", ".pptx", ".xlsx"})
)
async def test_text_is_read_under_every_name_of_text(read: Read, extension: str) -> None:
    (chunk,) = await read("just some words\n", f"file{extension.upper()}")
    assert chunk.text.strip() == "just some words"


@pytest.mark.parametrize("name", ["image.png", "noextension", ".txt.exe", "a.xls", "dir.txt/a"])
async def test_other_names_are_not_supported(read: Read, name: str) -> None:
    with pytest.raises(Unreadable, match=r"^The file type is not supported") as raised:
        await read("words", name)
    assert raised.value.code == "unsupported_file"


@pytest.mark.parametrize("name", ["a/b\n\"'.txt", "你好🙂.txt", "x" * 300 + ".txt", "a\0b.txt"])
async def test_any_name_will_do(read: Read, name: str) -> None:
    (chunk,) = await read("words", name)
    assert chunk.text == "words"


GERMAN = "Über den Wolken muß die Freiheit wohl grenzenlos sein. Größe, Äpfel, Öl.\r\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
CHINESE = "你好，世界。这是一个用来测试的文本，里面有很多汉字。\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", GERMAN + RUSSIAN + JAPANESE),
        ("utf-8-sig", GERMAN),
        ("utf-16", RUSSIAN),
        ("utf-16-le", GERMAN),
        ("utf-16-be", GERMAN),
        ("utf-16-le", RUSSIAN),
        ("utf-16-be", CHINESE * 5 + "\n"),
        ("utf-32", CHINESE),
        ("cp1252", GERMAN),
        (
            "cp1252",
            "Caf\xe9 cr\xe8me \x96 \x93quoted\x94 10 \x80".encode("latin-1").decode("cp1252"),
        ),
        ("cp1251", RUSSIAN * 3),
        ("shift_jis", JAPANESE * 3),
        ("gb18030", CHINESE * 3),
    ],
)
async def test_encodings_are_recognized(read: Read, encoding: str, text: str) -> None:
    assert text_of(await read(text.encode(encoding), "a.txt")) == text


async def test_a_character_over_the_border_of_two_blocks_stays_whole(read: Read) -> None:
    text = "x" + "é" * 70_000 + " end"
    assert text_of(await read(text, "a.txt")) == text


async def test_a_few_bad_bytes_do_not_make_it_another_encoding(read: Read) -> None:
    content = (RUSSIAN * 20).encode()
    damaged = content[:51] + b"\xff" + content[51:]
    text = text_of(await read(damaged, "a.txt"))
    assert text.count("\ufffd") in (1, 2, 3)
    assert "каждая несчастливая семья" in text


async def test_nul_is_replaced(read: Read) -> None:
    (chunk,) = await read("words " * 100 + "\0 more words", "a.txt")
    assert "\ufffd more" in chunk.text
    assert "\0" not in chunk.text


async def test_markdown_headings(read: Read) -> None:
    content = (
        "# First\n"
        + "a word " * 120
        + "\n```sh\n# no heading\n```\n## Second ##\n"
        + "b word " * 120
    )
    chunks = await read(content, "a.md", 100)
    assert {chunk.heading for chunk in chunks} == {"First", "Second"}
    assert text_of(chunks) == content


async def test_tex_headings(read: Read) -> None:
    chunks = await read("\\section{One}\n" + "w " * 150 + "\n\\subsection*{Two}\nx", "a.tex", 100)
    assert chunks[0].heading == "One"
    assert chunks[-1].text.endswith("x")


async def test_html(read: Read) -> None:
    content = (
        "<!doctype html><html><head><title>The page</title><style>p {}</style>"
        "<script>if (a < b) alert('<p>no')</script></head><body><p>Before &amp; <b>af</b>ter</p>"
        "<h2>Sizes <i>of</i> things</h2><ul><li>one<li>two</ul>"
        "<table><tr><th>Name</th><th>Size</th></tr><tr><td>Mouse</td><td>5 cm</td></tr></table>"
        "<pre>  kept\n   as is</pre>a<br>b<template>no</template><!-- no --></body></html>"
    )
    (chunk,) = await read(content, "a.html")
    assert chunk.heading == "The page"
    assert chunk.text.split("\n") == [
        "The page", "", "Before & after", "", "Sizes of things", "", "one", "two", "",
        "Name | Size", "Mouse | 5 cm", "", "  kept", "   as is", "", "a", "b",
    ]  # fmt: skip


async def test_html_headings_are_kept(read: Read) -> None:
    content = "".join(f"<h1>Part {n}</h1><p>{f'word{n} ' * 150}</p>" for n in range(3))
    chunks = await read(content, "a.htm", 100)
    assert all(f"word{(chunk.heading or '')[-1]}" in chunk.text for chunk in chunks)
    assert {chunk.heading for chunk in chunks} == {"Part 0", "Part 1", "Part 2"}


@pytest.mark.parametrize("encoding", ["utf-8", "shift_jis", "iso2022_jp", "euc_jp"])
async def test_html_says_its_encoding(read: Read, encoding: str) -> None:
    content = f'<html><meta charset="{encoding}"><body>{JAPANESE.strip()}'
    (chunk,) = await read(content.encode(encoding), "a.html")
    assert chunk.text == JAPANESE.strip()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
async def test_rows_of_csv_can_be_understood_alone(read: Read, delimiter: str) -> None:
    rows = [
        ["Name", "Capital", "People"],
        ["France", "Paris", "68000000"],
        ["Peru", '"Li""ma"', ""],
    ]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    (chunk,) = await read(content, "a.csv")
    assert chunk.text == (
        "Name | Capital | People\n"
        "Name: France; Capital: Paris; People: 68000000\n"
        'Name: Peru; Capital: Li"ma\n'
    )


async def test_csv_without_header(read: Read) -> None:
    (chunk,) = await read("1,2,3\n4,5,6\n", "a.csv")
    assert chunk.text == "1 | 2 | 3\n4 | 5 | 6\n"


async def test_a_row_is_not_cut_where_it_fits(read: Read) -> None:
    rows = "".join(f"row {n},some text,more of it\n" for n in range(300))
    chunks = await read("Name,First,Second\n" + rows, "a.csv", 200)
    assert len(chunks) > 10
    assert all(chunk.text.startswith("Name") for chunk in chunks)


async def test_word(read: Read) -> None:
    (chunk,) = await read(documents.word(), "a.docx")
    assert chunk.heading == "Installation"
    assert chunk.text.split("\n") == [
        "Installation", "Type make serve.", "Port | 8000", "Host | localhost", "Behind the table.",
        "Further reading", "One\tTwo", "Three", "In a content control.", "Inserted.", "",
    ]  # fmt: skip


async def test_headings_of_word(read: Read) -> None:
    chunks = await read(documents.word(), "a.docx", 12)
    assert chunks[0].heading == "Installation"
    assert chunks[-1].heading == "Further reading"


async def test_slides(read: Read) -> None:
    chunks = await read(documents.slides(), "a.pptx", 8)
    assert (chunks[0].page, chunks[0].heading) == (1, "Plans")
    assert (chunks[-1].page, chunks[-1].heading) == (2, "Figures")
    assert text_of(chunks).rstrip() == (
        "Plans\nPoint 1\n\nNotes:\nSay this at 1\n\n"
        "Figures\nPoint 2\nleft | right\n\nNotes:\nSay this at 2"
    )


async def test_sheets(read: Read) -> None:
    content = documents.sheets(
        {
            "People": [
                ["Name", "Born"],
                ["Ada", datetime.date(1815, 12, 10)],
                [],
                ["Alan", 1912.0],
            ],
            "Sums": [[1, 2.5], [None, "=1+1"]],
        }
    )
    chunks = await read(content, "a.xlsx")
    assert chunks[0].heading == "People"
    assert text_of(chunks) == (
        "Name | Born\nName: Ada; Born: 1815-12-10\nName: Alan; Born: 1912\n1 | 2.5\n"
    )


async def test_sheets_with_shared_strings(read: Read) -> None:
    (chunk,) = await read(documents.shared_strings_sheet(), "a.xlsx")
    assert chunk.text == "Name | Size\nName: Mouse; Size: 5\n"


async def test_pages_of_pdf(read: Read) -> None:
    content = documents.pdf(
        [[f"Line {line} of page {page}" for line in range(30)] for page in "123"]
    )
    chunks = await read(content, "a.pdf", 100)
    assert [chunks[0].page, chunks[-1].page] == [1, 3]
    assert "Line 29 of page 1\n\nLine 0 of page 2" in text_of(chunks)


async def test_pdf_that_pdfium_cannot_open(read: Read) -> None:
    content = documents.pdf([["Found all the same"]]).replace(b"/Root", b"/Rood")
    (chunk,) = await read(content, "a.pdf")
    assert (chunk.text.strip(), chunk.page) == ("Found all the same", 1)


@pytest.mark.parametrize("is_8_bit", [True, False])
async def test_old_word(read: Read, is_8_bit: bool) -> None:
    text = 'Title\rSee \x13 HYPERLINK "http://x" \x14the page\x15 – é\ra\x07b\x07\x07End\r'
    content = documents.old_word(
        [(text[:9], is_8_bit), (text[9:20], not is_8_bit), (text[20:], is_8_bit)]
    )
    (chunk,) = await read(content, "a.doc")
    assert chunk.text.rstrip("\n") == "Title\nSee the page – é\na | b\nEnd"


async def test_html_named_doc(read: Read) -> None:
    (chunk,) = await read("<html><body><p>Exported</p></body></html>", "a.doc")
    assert chunk.text == "Exported"


@pytest.mark.parametrize("name", ["a.txt", "a.docx", "a.md", "a.xlsx"])
async def test_pdf_under_another_name(read: Read, name: str) -> None:
    (chunk,) = await read(documents.pdf([["Hello"]]), name)
    assert chunk.text.strip() == "Hello"
    assert chunk.page == 1


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.pptx", "a.doc"])
async def test_word_under_another_name(read: Read, name: str) -> None:
    (chunk,) = await read(documents.word(), name)
    assert chunk.heading == "Installation"


async def test_a_text_that_speaks_of_pdf_is_text(read: Read) -> None:
    (chunk,) = await read("A PDF begins with %PDF-1.7.", "a.txt")
    assert chunk.text == "A PDF begins with %PDF-1.7."


async def test_going_on_after_some_chunks(reader: DocumentReader, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("".join(f"Sentence number {n} of a text.\n" for n in range(5000)))

    async def chunks(skip: int) -> list[Chunk]:
        batches = reader.read(
            path, "a.txt", max_chunk_size_tokens=100, chunk_overlap_tokens=50, skip=skip
        )
        return [chunk async for batch in batches for chunk in batch]

    whole = await chunks(0)
    assert len(whole) > 100
    for skip in (1, 33, len(whole) - 1, len(whole), len(whole) + 5):
        assert await chunks(skip) == whole[skip:]


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="TIKTOKEN_CACHE_DIR is not set")
async def test_tokens_are_exact_where_the_encoding_is_there(read: Read) -> None:
    (chunk,) = await read("hello world", "a.txt")
    assert chunk.token_count == 2
