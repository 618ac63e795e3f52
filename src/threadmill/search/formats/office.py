"""Word, PowerPoint and Excel since 2007: XML in a ZIP.

Word and PowerPoint are read as a stream of XML events. python-docx and python-pptx build the whole
tree (ten times the file, a gigabyte for a bomb), and pass over what people do have in documents:
content controls, text boxes, footnotes, accepted insertions, diagrams. Excel has number formats and
dates, and a library that streams.
"""

import datetime
import posixpath
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import openpyxl
from lxml import etree

from threadmill.search.formats.kinds import Kind, Passage, invalid, unsupported
from threadmill.search.formats.text import as_heading, rows_text

# Deflate packs up to 1:1000, so a ZIP of a megabyte can hold a gigabyte. No document is near this.
_PART_MAX_BYTES = 256 * 1024**2
_PARTS_MAX = 100_000
_RELATIONS_MAX_BYTES = 16 * 1024**2

_MAIN_PARTS = {
    "word/document.xml": Kind.DOCX,
    "ppt/presentation.xml": Kind.PPTX,
    "xl/workbook.xml": Kind.XLSX,
}
_HEADING_STYLE = re.compile(r"heading \d|title", re.IGNORECASE)
# What stands a second time for old readers, was moved away, or is a page's number.
_SKIPPED = frozenset({"Fallback", "moveFrom", "del", "fld"})
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class Package:
    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise invalid(f"its ZIP container is damaged ({error})") from error
        self._file = file
        infos = self._zip.infolist()
        self._sizes = {info.filename: info.file_size for info in infos}
        # zipfile gives no more than the size that is declared, so that the declared one counts.
        if len(infos) > _PARTS_MAX or max(self._sizes.values(), default=0) > _PART_MAX_BYTES:
            raise invalid("unpacked it is too large")
        if any(info.flag_bits & 1 for info in infos):
            raise invalid("it is encrypted; remove its password first")

    @property
    def kind(self) -> Kind:
        for name, kind in _MAIN_PARTS.items():
            if name in self._sizes:
                return kind
        main = self.related("", "officeDocument")
        folder = main[0].partition("/")[0] if main else None
        for name, kind in _MAIN_PARTS.items():
            if folder == name.partition("/")[0]:
                return kind
        raise unsupported("it is a ZIP archive without a Word, PowerPoint or Excel document")

    def passages(self) -> Iterator[Passage]:
        match self.kind:
            case Kind.DOCX:
                return self._word()
            case Kind.PPTX:
                return self._slides()
            case _:
                return self._sheets()

    def related(self, part: str, kind: str) -> list[str]:
        """The parts that a part refers to as `kind`, in the order of the file."""
        return [target for _, target in self._relations(part, kind)]

    def _relations(self, part: str, kind: str) -> list[tuple[str, str]]:
        folder, name = posixpath.split(part)
        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        if self._sizes.get(relations, _RELATIONS_MAX_BYTES) >= _RELATIONS_MAX_BYTES:
            return []
        found = []
        for event, element in self._events(relations):
            if event == "start" and element.get("Type", "").rpartition("/")[2] == kind:
                target = posixpath.normpath(posixpath.join("/", folder, element.get("Target", "")))
                if (name := target.lstrip("/")) in self._sizes:
                    found.append((element.get("Id", ""), name))
        return found

    def _word(self) -> Iterator[Passage]:
        main = next(iter(self.related("", "officeDocument")), "word/document.xml")
        styles = [self._heading_styles(part) for part in self.related(main, "styles")]
        headings = frozenset().union(*styles)
        heading: str | None = None
        for paragraph in self._paragraphs(main):
            if paragraph.style in headings or paragraph.is_title:
                heading = as_heading(paragraph.text) or heading
            yield Passage(paragraph.text + "\n", heading=heading)
        for kind in ("footnotes", "endnotes"):
            for part in self.related(main, kind):
                for paragraph in self._paragraphs(part):
                    yield Passage(paragraph.text + "\n", heading=heading)

    def _heading_styles(self, part: str) -> frozenset[str]:
        """The ids of the styles that are headings, or are based on one. Their names are English
        in every language of Word; the ids are not."""
        headings: set[str] = set()
        based_on: dict[str, str] = {}
        style = ""
        for event, element in self._events(part):
            if event == "end":
                continue
            value = _value(element, "val")
            match _local(element):
                case "style":
                    style = _value(element, "styleId")
                case "name" if _HEADING_STYLE.fullmatch(value):
                    headings.add(style)
                case "outlineLvl" if value < "9":
                    headings.add(style)
                case "basedOn":
                    based_on[style] = value
        for style in based_on:
            ancestor = style
            for _ in range(20):
                if ancestor in headings:
                    headings.add(style)
                    break
                ancestor = based_on.get(ancestor, "")
        return frozenset(headings)

    def _slides(self) -> Iterator[Passage]:
        main = next(iter(self.related("", "officeDocument")), "ppt/presentation.xml")
        parts = dict(self._relations(main, "slide"))
        order = [
            parts[target]
            for event, element in self._events(main)
            if event == "start" and _local(element) == "sldId"
            for target in element.attrib.values()
            if target in parts
        ]
        for page, part in enumerate(order, 1):
            paragraphs = list(self._paragraphs(part))
            for diagram in self.related(part, "diagramData"):
                paragraphs += self._paragraphs(diagram)
            titles = [paragraph.text for paragraph in paragraphs if paragraph.is_title]
            notes = [
                paragraph
                for notes in self.related(part, "notesSlide")
                for paragraph in self._paragraphs(notes)
            ]
            lines = [paragraph.text for paragraph in paragraphs]
            if any(note.text for note in notes):
                lines += ["", "Notes:", *(note.text for note in notes)]
            text = "\n".join(lines) + "\n\n"
            yield Passage(text, page=page, heading=as_heading(" ".join(titles)))

    def _sheets(self) -> Iterator[Passage]:
        self._file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about drawings and validations that are not kept
            book = openpyxl.load_workbook(
                self._file, read_only=True, data_only=True, keep_links=False
            )
            for sheet in book.worksheets:
                # What a sheet says of its size is often wrong, and could be a trap.
                sheet.reset_dimensions()
                rows = (
                    [_cell_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)
                )
                filled = (row for row in map(_trimmed, rows) if row)
                for text in rows_text(filled):
                    yield Passage(text, heading=as_heading(sheet.title))

    def _paragraphs(self, part: str) -> Iterator["_Paragraph"]:
        """The paragraphs and table rows of WordprocessingML and DrawingML, which share names."""
        open_paragraphs: list[list[str]] = []  # a text box lies inside of a paragraph
        cells: list[list[str]] = []  # and a table inside of a cell
        rows: list[list[str]] = []
        style, is_title, in_title, in_run, skipped = "", False, False, 0, 0
        for event, element in self._events(part):
            name = _local(element)
            if name in _SKIPPED:
                skipped += 1 if event == "start" else -1
            if skipped:
                continue
            if event == "start":
                match name:
                    case "p":
                        open_paragraphs.append([])
                        style, is_title = "", False
                    case "pStyle":
                        style = _value(element, "val")
                    case "outlineLvl":
                        is_title = _value(element, "val") < "9"
                    case "ph":
                        in_title = element.get("type") in ("title", "ctrTitle")
                    case "r":
                        in_run += 1
                    case "tr":
                        rows.append([])
                    case "tc":
                        cells.append([])
                continue
            match name:
                case "t" if open_paragraphs and element.text:
                    open_paragraphs[-1].append(element.text)
                # Outside of a run a "tab" is a tab stop; a line break of a slide stands alone.
                case "tab" | "br" | "cr" | "noBreakHyphen" if open_paragraphs and (
                    in_run or name == "br"
                ):
                    open_paragraphs[-1].append(_BREAKS[name])
                case "r":
                    in_run -= 1
                case "sp":
                    in_title = False
                case "p" if open_paragraphs:
                    text = "".join(open_paragraphs.pop())
                    if cells:
                        cells[-1].append(text)
                    else:
                        yield _Paragraph(text, style, is_title or in_title)
                    style, is_title = "", False
                    _drop(element)
                case "tc" if cells and rows:
                    rows[-1].append(" ".join(filter(None, cells.pop())))
                case "tr" if rows:
                    text = " | ".join(rows.pop())
                    if cells:
                        cells[-1].append(text)
                    else:
                        yield _Paragraph(text, "", False)
                    _drop(element)
                case "tbl" | "sdt":
                    _drop(element)

    def _events(self, part: str) -> Iterator[tuple[str, Any]]:
        if self._sizes.get(part) is None:
            raise invalid(f"it has no part {part[:100]!r}")
        try:
            with self._zip.open(part) as file:
                events = etree.iterparse(
                    file, events=("start", "end"), resolve_entities=False, no_network=True,
                    load_dtd=False, remove_comments=True, remove_pis=True, huge_tree=False,
                )  # fmt: skip
                for number, (event, element) in enumerate(events):
                    if number == 0 and element.getroottree().docinfo.doctype:
                        raise invalid("its XML has a document type, as only bombs have")
                    yield event, element
        except etree.XMLSyntaxError as error:
            # lxml has no words for libxml2 being out of memory.
            if "memory" in str(error).lower() or "unknown error" in str(error):
                raise MemoryError from error
            raise invalid(f"its XML is damaged ({error})") from error
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise invalid(f"its ZIP container is damaged ({error})") from error


class _Paragraph(NamedTuple):
    text: str
    style: str
    is_title: bool


def kind_of_ole(names: set[str]) -> Kind:
    """What a compound file (Office before 2007, or a locked one since) is, by its streams."""
    if "EncryptedPackage" in names:
        raise invalid("it is encrypted; remove its password first")
    if "WordDocument" in names:
        return Kind.DOC
    for stream, program in (
        ("Workbook", "Excel"),
        ("Book", "Excel"),
        ("PowerPoint Document", "PowerPoint"),
    ):
        if stream in names:
            raise unsupported(f"{program} files of before 2007 have to be saved in the new format")
    raise unsupported("it is a compound file without a Word document")


def _local(element: Any) -> str:
    tag: str = element.tag
    return tag.rpartition("}")[2]


def _value(element: Any, name: str) -> str:
    """An attribute by its local name: the namespaces of "strict" files are others."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return ""


def _drop(element: Any) -> None:
    """Free what has been read: the element, and all before it."""
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _cell_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case datetime.datetime() if value.time() == datetime.time():
            return value.date().isoformat()
        case datetime.datetime():
            return value.isoformat(" ")
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case _:
            return str(value)


def _trimmed(row: list[str]) -> list[str]:
    while row and not row[-1]:
        row.pop()
    return row
