"""PDF: pdfium, which is fast and forgiving; pypdf where pdfium cannot open a file."""

import re
from collections.abc import Iterator
from typing import BinaryIO

import pypdfium2

from threadmill.search.formats.kinds import Passage, invalid

_ENCRYPTED = (4, 5)  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
# pdfium's sign for a hyphen at the end of a line, where one word was broken in two.
_BROKEN_WORD = re.compile("[\x02\ufffe](?:\r?\n)?")


def pdf_passages(file: BinaryIO) -> Iterator[Passage]:
    pages = 0
    found = False
    for number, text in _texts(file):
        pages = number
        if text and not text.isspace():
            found = True
            yield Passage(text + "\n\n", page=number)
    if not found:
        raise invalid(
            f"no text was found in {pages} page{'s' * (pages != 1)}; "
            "scanned documents have to be OCRed first"
        )


def _texts(file: BinaryIO) -> Iterator[tuple[int, str]]:
    try:
        document = pypdfium2.PdfDocument(file)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        if error.err_code in _ENCRYPTED:
            raise invalid("it is encrypted; remove its password first") from error
        yield from _texts_by_pypdf(file)
        return
    for index in range(count):
        yield index + 1, _page_text(document, index)


def _page_text(document: pypdfium2.PdfDocument, index: int) -> str:
    try:
        page = document[index]
        text = page.get_textpage()
    except pypdfium2.PdfiumError:  # one bad page; the others are worth having
        return ""
    try:
        read: str = text.get_text_range()
        return _BROKEN_WORD.sub("", read).replace("\r\n", "\n")
    finally:
        text.close()
        page.close()


def _texts_by_pypdf(file: BinaryIO) -> Iterator[tuple[int, str]]:
    import pypdf  # takes most of a second to import, and is hardly ever needed

    file.seek(0)
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted:
            raise invalid("it is encrypted; remove its password first")
        count = len(reader.pages)
    except pypdf.errors.PyPdfError as error:
        raise invalid(f"it is a damaged PDF ({error})") from error
    for index in range(count):
        try:
            yield index + 1, reader.pages[index].extract_text()
        except pypdf.errors.PyPdfError:
            yield index + 1, ""
