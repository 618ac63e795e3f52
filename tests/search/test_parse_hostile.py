"""Documents that are broken, or built to do harm: each fails with a reason, the reader lives."""

import asyncio
import re
import resource
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from search import documents
from threadmill.search.parse import Chunk, DocumentReader, Unreadable
from threadmill.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")
Read = Callable[[bytes | str, str], Coroutine[Any, Any, list[Chunk]]]

MB = 1024**2
MEMORY_MAX_BYTES = 200 * MB
W = f'xmlns:w="{documents.W}"'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DocumentReader]:
    reader = DocumentReader(
        Settings(
            data_dir=tmp_path_factory.mktemp("data"),
            tokenizer_download_timeout_s=2,
            parse_memory_max_bytes=MEMORY_MAX_BYTES,
            parse_cpu_max_s=4,
            parse_output_max_bytes=20 * MB,
            file_max_tokens=1_000_000,
        )
    )
    yield reader
    await reader.close()


@pytest.fixture
def read(reader: DocumentReader, tmp_path: Path) -> Read:
    async def read(content: bytes | str, name: str) -> list[Chunk]:
        path = tmp_path / "blob"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        batches = reader.read(path, name, max_chunk_size_tokens=800, chunk_overlap_tokens=400)
        return [chunk async for batch in batches for chunk in batch]

    return read


@pytest.fixture
def refuse(read: Read) -> Callable[..., Coroutine[Any, Any, None]]:
    async def refuse(
        content: bytes | str, name: str, reason: str, code: str = "invalid_file"
    ) -> None:
        with pytest.raises(Unreadable) as raised:
            await read(content, name)
        assert raised.value.code == code
        assert re.search(reason, raised.value.message), raised.value.message
        (chunk,) = await read("still there", "next.txt")
        assert chunk.text == "still there"

    return refuse


async def reason_of(reading: Coroutine[Any, Any, list[Chunk]]) -> str | None:
    """Why it failed, if it did: some of the damaged can be read, and either is right."""
    try:
        chunks = await reading
    except Unreadable as error:
        return error.message if error.code != "server_error" else f"server_error: {error.message}"
    assert chunks
    assert all(chunk.token_count <= 800 for chunk in chunks)
    return None


Refuse = Callable[..., Coroutine[Any, Any, None]]
JUNK = bytes(range(256)) * 40
PDF = documents.pdf([["some text"] * 20] * 3)
ANY_DOCUMENT = ["a.txt", "a.md", "a.html", "a.csv", "a.pdf", "a.doc", "a.docx", "a.pptx", "a.xlsx"]


@pytest.mark.parametrize("name", ANY_DOCUMENT)
async def test_empty(refuse: Refuse, name: str) -> None:
    await refuse(b"", name, "because it is empty")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv", "a.py"])
async def test_nothing_but_white_space(refuse: Refuse, name: str) -> None:
    await refuse(b" \n\t\r\n " * 10_000, name, "no text was found")


@pytest.mark.parametrize("name", ANY_DOCUMENT)
async def test_junk(refuse: Refuse, name: str) -> None:
    await refuse(JUNK, name, "neither text nor a document|is not a (PDF|Word|PowerPoint|Excel)")


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x08\0"])
async def test_other_files_named_text(refuse: Refuse, head: bytes) -> None:
    await refuse(head + zlib.compress(JUNK * 9), "a.txt", "neither text nor a document")


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx"])
async def test_text_named_document(refuse: Refuse, name: str) -> None:
    await refuse("plain words", name, "it is not a .* document, as its name says")


async def test_rtf_named_doc(refuse: Refuse) -> None:
    await refuse(r"{\rtf1 words}", "a.doc", "RTF", "unsupported_file")


async def test_other_archives(refuse: Refuse) -> None:
    await refuse(documents.archive({"a": "b"}), "a.docx", "ZIP archive without", "unsupported_file")


@pytest.mark.parametrize("stream", ["Workbook", "PowerPoint Document"])
async def test_older_office(refuse: Refuse, stream: str) -> None:
    content = documents.compound_file({stream: b"x"})
    await refuse(content, "a.doc", "before 2007", "unsupported_file")


async def test_word_95(refuse: Refuse) -> None:
    content = documents.old_word([("x", True)], magic=0xA5DC)
    await refuse(content, "a.doc", "Word 95", "unsupported_file")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (documents.encrypted_pdf(), "a.pdf"),
        (documents.compound_file({"EncryptedPackage": b"x"}), "a.docx"),
        (documents.old_word([("x", True)], flags=0x0100), "a.doc"),
    ],
)
async def test_encrypted(refuse: Refuse, content: bytes, name: str) -> None:
    await refuse(content, name, "because it is encrypted")


async def test_pages_without_text(refuse: Refuse) -> None:
    content = documents.pdf([[], []])
    await refuse(content, "a.pdf", "no text was found in 2 pages; scanned documents have to be OCR")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PDF, "a.pdf"),
        (documents.word(), "a.docx"),
        (documents.slides(), "a.pptx"),
        (documents.sheets({"a": [["b", 1]]}), "a.xlsx"),
        (documents.old_word([("some text", True)]), "a.doc"),
    ],
    ids=["pdf", "docx", "pptx", "xlsx", "doc"],
)
async def test_truncated(read: Read, content: bytes, name: str, part: float) -> None:
    reason = await reason_of(read(content[: int(len(content) * part)], name))
    assert reason is None or reason.startswith("The file could not be parsed because ")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PDF, "a.pdf"),
        (documents.word(), "a.docx"),
        (documents.slides(), "a.pptx"),
        (documents.sheets({"a": [["b", 1]]}), "a.xlsx"),
        (documents.old_word([("some text", True)]), "a.doc"),
    ],
    ids=["pdf", "docx", "pptx", "xlsx", "doc"],
)
async def test_flipped_bytes(read: Read, content: bytes, name: str) -> None:
    for at in range(7, len(content), len(content) // 20):
        damaged = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        assert "server_error" not in str(await reason_of(read(damaged, name)))


# --- bombs ---


async def test_word_that_says_how_large_it_is(refuse: Refuse) -> None:
    content = documents.word_of(b" " * 300 * MB)
    assert len(content) < MB
    await refuse(content, "a.docx", "unpacked it is too large")


async def test_word_that_lies_about_its_size(refuse: Refuse) -> None:
    content = documents.large_word(300_000)
    size = 300_000 * len("<w:p><w:r><w:t>All work and no play makes a dull text.</w:t></w:r></w:p>")
    whole = size + len(f"<w:document {W}><w:body></w:body></w:document>")
    lie = content.replace(whole.to_bytes(4, "little"), (2000).to_bytes(4, "little"))
    assert lie != content
    await refuse(lie, "a.docx", "ZIP container is damaged|XML is damaged")


async def test_word_with_much_text_costs_little_memory(read: Read) -> None:
    content = documents.large_word(60_000)
    assert len(await read(content, "a.docx")) > 1000


async def test_word_with_too_much_text(refuse: Refuse) -> None:
    await refuse(documents.large_word(500_000), "a.docx", "too large|MB of text")


async def test_one_huge_paragraph(refuse: Refuse) -> None:
    run = "<w:r><w:t>text </w:t></w:r>" * 4_000_000
    content = documents.word_of(f"<w:document {W}><w:body><w:p>{run}</w:p></w:body></w:document>")
    await refuse(content, "a.docx", "memory|processor time|too large")


async def test_deep_xml(refuse: Refuse) -> None:
    content = documents.word_of(
        f"<w:document {W}><w:body>"
        + "<w:p>" * 100_000
        + "</w:p>" * 100_000
        + "</w:body></w:document>"
    )
    await refuse(content, "a.docx", "XML is damaged")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_entities_in_word(refuse: Refuse, encoding: str) -> None:
    root = f"<w:document {W}><w:body><w:p><w:r><w:t>TEXT</w:t></w:r></w:p></w:body></w:document>"
    content = documents.word_of(documents.entity_bomb(root).encode(encoding))
    await refuse(content, "a.docx", "document type|XML is damaged")


async def test_a_file_of_ours_named_in_word(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden words")
    content = documents.word_of(
        f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>'
        f"<w:document {W}><w:body><w:p><w:r><w:t>&e;</w:t></w:r></w:p></w:body></w:document>"
    )
    await refuse(content, "a.docx", "document type")


@pytest.mark.parametrize(
    "part", ["xl/workbook.xml", "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/styles.xml"]
)
async def test_entities_in_excel(refuse: Refuse, part: str) -> None:
    names = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    root = {
        "xl/workbook.xml": f"<workbook {names}><x>TEXT</x></workbook>",
        "xl/worksheets/sheet1.xml": f'<worksheet {names}><sheetData><row r="1">'
        '<c t="inlineStr" r="A1">'
        "<is><t>TEXT</t></is></c></row></sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {names}><si><t>TEXT</t></si></sst>",
        "xl/styles.xml": f"<styleSheet {names}><x>TEXT</x></styleSheet>",
    }[part]
    content = documents.with_parts(
        documents.shared_strings_sheet(), {part: documents.entity_bomb(root)}
    )
    await refuse(content, "a.xlsx", "could not be parsed because")


async def test_strings_bomb_in_excel(refuse: Refuse) -> None:
    strings = "<si><t>" + "x" * 10_000 + "</t></si>"
    names = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    content = documents.with_parts(
        documents.shared_strings_sheet(),
        {"xl/sharedStrings.xml": f"<sst {names}>{strings * 24_000}</sst>"},
    )
    assert len(content) < 2 * MB
    await refuse(content, "a.xlsx", "memory|processor time")


async def test_far_cells_in_excel(read: Read, refuse: Refuse) -> None:
    names = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    cells = "".join(
        f'<row r="{row}"><c r="XFD{row}"><v>1</v></c></row>' for row in range(1, 1_048_576, 7)
    )
    content = documents.with_parts(
        documents.sheets({"a": [["text"]]}),
        {
            "xl/worksheets/sheet1.xml": f'<worksheet {names}><dimension ref="A1:XFD1048576"/>'
            f"<sheetData>{cells}</sheetData></worksheet>"
        },
    )
    await refuse(content, "a.xlsx", "processor time")


async def test_pdf_bomb(refuse: Refuse) -> None:
    content = documents.pdf_bomb(1024 * MB)
    assert len(content) < 100_000
    await refuse(content, "a.pdf", "crashed|processor time|no text|memory")


async def test_pdf_that_says_it_has_a_billion_pages(read: Read) -> None:
    content = re.sub(rb"/Count \d+", b"/Count 1000000000", PDF)
    reason = await reason_of(read(content, "a.pdf"))
    assert reason is None or "processor time" in reason or "memory" in reason


async def test_deep_html(read: Read) -> None:
    (chunk,) = await read("<div>" * 300_000 + "deep" + "</div>" * 300_000, "a.html")
    assert chunk.text.strip() == "deep"


@pytest.mark.parametrize(
    "trap",
    ["<", "<a ", "<!--", "<![CDATA[", "&", "&#", "<a b='", "<script>", "</", "<p a=b ", "<title>"],
)
async def test_html_traps(read: Read, trap: str) -> None:
    assert "server_error" not in str(
        await reason_of(read("<p>word</p>" + trap * (4 * MB // len(trap)), "a.html"))
    )


@pytest.mark.parametrize(
    ("trap", "name"),
    [
        ("# " + " " * 200_000 + "x\n", "a.md"),
        ("#" * 200_000, "a.md"),
        ("# " + "#" * 500_000, "a.md"),
        ("\\section{" * 100_000, "a.tex"),
        ("\\" + "sub" * 300_000, "a.tex"),
        ('"' * 500_001, "a.csv"),
        ('a,"' + "b\n" * 900_000, "a.csv"),
        ("," * 2_000_000, "a.csv"),
        ("[" * 1_000_000, "a.json"),
        ("a" * 3_000_000, "a.txt"),
        ("\U0001f642" * 500_000, "a.txt"),
        ("\u0301" * 500_000, "a.txt"),
        ("\u202e\u200b" * 500_000, "a.txt"),
    ],
    ids=range(13),
)
async def test_text_traps(read: Read, trap: str, name: str) -> None:
    assert "server_error" not in str(await reason_of(read("word\n" + trap, name)))


async def test_a_text_of_too_many_tokens_is_refused_before_anything_of_it_is_given(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_text("".join(f"Some words, {n} of them.\n" for n in range(500_000)))
    reading = reader.read(path, "a.txt", max_chunk_size_tokens=800, chunk_overlap_tokens=400)
    with pytest.raises(Unreadable, match="too large: it has more than 1,000,000 tokens"):
        await anext(reading)


async def test_a_bomb_stays_within_its_memory(reader: DocumentReader, tmp_path: Path) -> None:
    path = tmp_path / "a"
    run = "<w:r><w:t>text </w:t></w:r>" * 4_000_000
    path.write_bytes(
        documents.word_of(f"<w:document {W}><w:body><w:p>{run}</w:p></w:body></w:document>")
    )
    del run
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def read_all() -> None:
        async for _ in reader.read(
            path, "a.docx", max_chunk_size_tokens=800, chunk_overlap_tokens=400
        ):
            pass

    reading = asyncio.create_task(read_all())
    peak = shared = 0
    while not reading.done():
        await asyncio.sleep(0.01)
        for process in psutil.Process().children():
            try:
                if "threadmill.search.extract" not in process.cmdline():
                    continue  # Postgres, say
                for child in process.children():
                    shared = max(shared, process.memory_info().rss)
                    peak = max(peak, child.memory_info().rss)
            except psutil.NoSuchProcess:
                pass
    with pytest.raises(Unreadable, match=r"memory|processor time"):
        await reading
    assert peak < shared + MEMORY_MAX_BYTES + 40 * MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


async def test_a_text_of_endless_time_is_cut_off(tmp_path: Path) -> None:
    reader = DocumentReader(
        Settings(data_dir=tmp_path, tokenizer_download_timeout_s=2, parse_wall_max_s=0.5)
    )
    path = tmp_path / "a"
    path.write_text("<p>" * 8_000_000)
    with pytest.raises(Unreadable, match=r"more than 0\.5 seconds"):
        async for _ in reader.read(
            path, "a.html", max_chunk_size_tokens=800, chunk_overlap_tokens=400
        ):
            pass
    await reader.close()
