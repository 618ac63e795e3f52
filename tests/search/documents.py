"""Documents for the tests, made by the libraries that people make them with, and by hand where a
library would not make them so bad."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable

import docx
import openpyxl
import pptx
import pypdf
import xlsxwriter
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from reportlab.pdfgen import canvas

DOCX_TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="xml" ContentType="application/xml"/></Types>'
)
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(pages: Iterable[list[str]]) -> bytes:
    buffer = io.BytesIO()
    page = canvas.Canvas(buffer)
    for lines in pages:
        text = page.beginText(50, 780)
        for line in lines:
            text.textLine(line)
        page.drawText(text)
        page.showPage()
    page.save()
    return buffer.getvalue()


def encrypted_pdf() -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf([["secret"]])))
    writer.encrypt("password", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def pdf_bomb(unpacked_bytes: int) -> bytes:
    """A page whose content is a gigabyte of spaces, deflated twice."""
    packer = zlib.compressobj(9)
    once = b"".join(packer.compress(b" " * 2**20) for _ in range(unpacked_bytes >> 20))
    twice = zlib.compress(once + packer.flush(), 9)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>",
        b"<</Length %d/Filter[/FlateDecode/FlateDecode]>>stream\n" % len(twice)
        + twice
        + b"\nendstream",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj" % number + body + b"endobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        data
        + b"xref\n0 5\n0000000000 65535 f \n"
        + table
        + b"trailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(data)
    )


def word() -> bytes:
    document = docx.Document()
    document.add_heading("Installation", 1)
    document.add_paragraph("Type make serve.")
    table = document.add_table(rows=2, cols=2)
    for row, cells in enumerate([["Port", "8000"], ["Host", "localhost"]]):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    document.add_paragraph("Behind the table.")
    document.add_heading("Further reading", 2)
    paragraph = document.add_paragraph("One\tTwo")
    paragraph.add_run().add_break()
    paragraph.add_run("Three")
    names = nsdecls("w")
    body = document.element.body
    body.insert_element_before(
        parse_xml(
            f"<w:sdt {names}><w:sdtContent><w:p><w:r><w:t>In a content control.</w:t></w:r></w:p>"
            "</w:sdtContent></w:sdt>"
        ),
        "w:sectPr",
    )
    body.insert_element_before(
        parse_xml(
            f"<w:p {names}><w:ins><w:r><w:t>Inserted.</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText>Deleted.</w:delText></w:r></w:del></w:p>"
        ),
        "w:sectPr",
    )
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def large_word(paragraphs: int) -> bytes:
    body = "<w:p><w:r><w:t>All work and no play makes a dull text.</w:t></w:r></w:p>" * paragraphs
    return word_of(f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>')


def word_of(document_xml: str | bytes, **more: str) -> bytes:
    return archive({"[Content_Types].xml": DOCX_TYPES, "word/document.xml": document_xml, **more})


def archive(parts: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in parts.items():
            made.writestr(name, content)
    return buffer.getvalue()


def with_parts(document: bytes, changes: dict[str, str | bytes]) -> bytes:
    """The same archive with some parts replaced."""
    with zipfile.ZipFile(io.BytesIO(document)) as old:
        parts: dict[str, str | bytes] = {name: old.read(name) for name in old.namelist()}
    return archive(parts | changes)


def slides() -> bytes:
    presentation = pptx.Presentation()
    for number, title in enumerate(["Plans", "Figures"], 1):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = f"Point {number}"
        slide.notes_slide.notes_text_frame.text = f"Say this at {number}"
    table = slide.shapes.add_table(1, 2, 0, 0, 10, 10).table
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def sheets(tables: dict[str, list[list[object]]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in tables.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def shared_strings_sheet() -> bytes:
    """openpyxl writes strings into the cells, Excel into a part of their own; XlsxWriter too."""
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        sheet = book.add_worksheet("a")
        sheet.write_row(0, 0, ["Name", "Size"])
        sheet.write_row(1, 0, ["Mouse", 5])
    return buffer.getvalue()


def entity_bomb(root: str) -> str:
    """A billion laughs."""
    entities = ['<!ENTITY e0 "laugh ">'] + [
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)
    ]
    return f'<?xml version="1.0"?><!DOCTYPE x [{"".join(entities)}]>{root.replace("TEXT", "&e9;")}'


def old_word(pieces: list[tuple[str, bool]], *, flags: int = 0, magic: int = 0xA5EC) -> bytes:
    """A Word 97 file; a piece is a text and whether it is stored in eight bits."""
    text_at = 0x400
    bounds, places, stored = [0], [], b""
    for text, is_8_bit in pieces:
        offset = text_at + len(stored)
        places.append(offset * 2 | 0x4000_0000 if is_8_bit else offset)
        stored += text.encode("cp1252" if is_8_bit else "utf-16-le")
        bounds.append(bounds[-1] + len(text))
    plc = struct.pack(f"<{len(bounds)}I", *bounds)
    plc += b"".join(struct.pack("<2xI2x", place) for place in places)
    clx = b"\x01\x02\x00zz" + b"\x02" + struct.pack("<I", len(plc)) + plc
    main = bytearray(text_at)
    struct.pack_into("<H8xH", main, 0, magic, flags)
    struct.pack_into("<I", main, 0x4C, bounds[-1])
    struct.pack_into("<II", main, 0x01A2, 0, len(clx))
    return compound_file({"WordDocument": bytes(main) + stored, "0Table": clx})


def compound_file(streams: dict[str, bytes]) -> bytes:
    """The container of Office before 2007, with streams large enough to need no small sectors."""
    sectors: list[bytes] = []
    table: list[int] = []

    def add(content: bytes) -> int:
        first = len(sectors)
        content = content.ljust(-(-len(content) // 512) * 512, b"\0")
        for start in range(0, len(content), 512):
            sectors.append(content[start : start + 512])
            table.append(len(sectors))
        table[-1] = 0xFFFFFFFE
        return first

    def entry(name: str, kind: int, child: int, right: int, first: int, size: int) -> bytes:
        wide = (name + "\0").encode("utf-16-le")
        return struct.pack(
            "<64sHBBIII16xI8x8xIQ",
            wide, len(wide) if name else 0, kind, 1, 0xFFFFFFFF, right, child, 0, first, size,
        )  # fmt: skip

    entries = [entry("Root Entry", 5, 1, 0xFFFFFFFF, 0xFFFFFFFE, 0)]
    for number, (name, content) in enumerate(streams.items(), 1):
        content = content.ljust(4096, b"\0")
        right = number + 1 if number < len(streams) else 0xFFFFFFFF
        entries.append(entry(name, 2, 0xFFFFFFFF, right, add(content), len(content)))
    directory = add(b"".join(entries).ljust(512, b"\0"))
    fat_at = len(sectors)
    fat = [*table, 0xFFFFFFFD]
    assert len(fat) <= 128, "one sector of table is enough for a test"
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIII",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        0x3E, 3, 0xFFFE, 9, 6, 0, 1, directory, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0,
    )  # fmt: skip
    header += struct.pack("<109I", fat_at, *[0xFFFFFFFF] * 108)
    sectors.append(struct.pack("<128I", *fat, *[0xFFFFFFFF] * (128 - len(fat))))
    return header + b"".join(sectors)
