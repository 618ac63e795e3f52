"""`threadmill import`: the objects of an archive, into a project.

An archive is a folder with a file of JSON lines for each kind of object, as the original's lists
returned them, and a folder `files` with the bytes of each file under its id. It is gone through
twice: first everything is looked at and nothing is written, so that a fault in the last line is
known before the first is imported. Then the rows are written in batches, each only if it is not
there yet.

New ids are made from the old ones, always the same. So there is nothing to remember between two
calls: the second one goes on where the first was ended, and doubles nothing.
"""

import csv
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import msgspec
import orjson

from threadmill import ids
from threadmill.blobs import Blobs
from threadmill.errors import ApiError
from threadmill.schemas import exports
from threadmill.schemas.exports import Broken, Name
from threadmill.schemas.parse import refuse_unstorable
from threadmill.search.resources import FILES_WAIT
from threadmill.store import imports, notify
from threadmill.store.database import Connection

Json = dict[str, Any]
Say = Callable[[str], None]

_LINE_MAX_BYTES = 32 * 1024**2
_BATCH_LINES = 2000
_BATCH_BYTES = 8 * 1024**2
_NOTES_SHOWN = 20  # of each kind, for each file
_SAY_EVERY_LINES = 100_000
_PIECE_BYTES = 5 * 1024**2


class Kind(msgspec.Struct, frozen=True):
    """One of the archive's files of lines."""

    table: str
    object: str  # what its lines say they are
    prefix: str | None  # of the ids; None: rows are known by two ids
    row: Callable[[Json, Name], Json]
    parents: tuple[str, ...] = ()  # the kinds of ids without whose object there is no row
    # The index of words knows a vector store by its `seq`, so those cannot be made of times and
    # lines, which two archives may share. These few lines are put in order before.
    is_put_in_order: bool = False

    @property
    def filename(self) -> str:
        return f"{self.table}.jsonl"


# Each after those that it names.
KINDS = (
    Kind("files", "file", "file", exports.file),
    Kind("vector_stores", "vector_store", "vs", exports.vector_store, is_put_in_order=True),
    Kind(
        "vector_store_files",
        "vector_store.file",
        None,
        exports.vector_store_file,
        parents=("vs", "file"),
    ),
    Kind("assistants", "assistant", "asst", exports.assistant),
    Kind("threads", "thread", "thread", exports.thread),
    Kind("runs", "thread.run", "run", exports.run, parents=("thread",)),
    Kind("messages", "thread.message", "msg", exports.message, parents=("thread",)),
    Kind("steps", "thread.run.step", "step", exports.step, parents=("run",)),
)
_TABLES = {kind.prefix: kind.table for kind in KINDS if kind.prefix}
_NOUNS = ids.NOUNS | {"file": "file"}
_NAMED_LATER = "msg"  # by steps. Not looked up: there may be millions


class Reference(msgspec.Struct):
    prefix: str
    new: str
    old: str

    def __str__(self) -> str:
        return f"{_NOUNS[self.prefix]} {self.old}"


class Line(msgspec.Struct):
    number: int
    row: Json | None = None  # None: it is broken
    references: list[Reference] = []
    own_id: str | None = None  # the old one
    is_there: bool = False
    fault: str | None = None  # it cannot be imported
    lack: str | None = None  # it is left out, which keeps nothing else from being imported
    missing: list[Reference] = []  # what it names, and is not there

    @property
    def is_to_be_made(self) -> bool:
        return not (self.is_there or self.fault or self.lack)


class Count(msgspec.Struct):
    made: int = 0
    there: int = 0
    left_out: int = 0
    broken: int = 0

    def add(self, line: Line) -> None:
        if line.fault:
            self.broken += 1
        elif line.lack:
            self.left_out += 1
        elif line.is_there:
            self.there += 1
        else:
            self.made += 1


class Import:
    def __init__(
        self,
        connection: Connection,
        blobs: Blobs,
        folder: Path,
        project_id: str,
        *,
        keep_ids: bool,
        skip_broken: bool,
        rerank_urls: list[str],
        say: Say,
    ) -> None:
        self._connection = connection
        self._blobs = blobs
        self._folder = folder
        self._project_id = project_id
        self._names = _Names(project_id, keep_ids=keep_ids)
        self._skip_broken = skip_broken
        self._rerank_urls = rerank_urls
        self._say = say
        self._known: dict[str, set[str]] = {prefix: set() for prefix in _TABLES}  # new ids
        self._newest_first: set[str] = set()  # tables

    async def check(self, mapping: Path | None = None) -> bool:
        """Look at all of it and say what is wrong with which line, and what would be made. Whether
        that may be: if so, the old and new ids go to `mapping`."""
        if not any((self._folder / kind.filename).is_file() for kind in KINDS):
            expected = ", ".join(kind.filename for kind in KINDS)
            raise ValueError(f"{self._folder} holds none of {expected}.")
        with _Mapping(mapping) as mapped:
            counts = {kind.table: await self._check_kind(kind, mapped) for kind in KINDS}
            self._say(f"{'':20}{'to import':>12}{'there':>12}{'left out':>12}{'broken':>12}")
            for table, count in counts.items():
                numbers = (count.made, count.there, count.left_out, count.broken)
                self._say(f"{table:20}" + "".join(f"{number:12,}" for number in numbers))
            may_be = self._skip_broken or not any(count.broken for count in counts.values())
            if may_be:
                mapped.keep()
        return may_be

    async def write(self) -> None:
        """Import what is not broken. To be called after `check`, if that says that it may be."""
        for kind in KINDS:
            began = time.monotonic()
            written = 0
            async for batch in self._batches(kind):
                written += await self._write(kind, [line for line in batch if line.is_to_be_made])
                if batch[-1].number % _SAY_EVERY_LINES < len(batch):
                    self._say(f"{kind.filename}: {batch[-1].number:,} lines")
            rate = written / max(time.monotonic() - began, 1e-3)
            self._say(f"{kind.table}: {written:,} imported, {rate:,.0f} a second")
        threads = sorted(self._known["thread"])
        for start in range(0, len(threads), _BATCH_LINES):
            part = threads[start : start + _BATCH_LINES]
            await imports.settle_threads(self._connection, self._project_id, part)
        await notify.hint(self._connection, FILES_WAIT)

    # --- looking ---

    async def _check_kind(self, kind: Kind, mapping: "_Mapping") -> Count:
        count, notes, order = Count(), _Notes(kind.filename, self._say), _Order()
        async for batch in self._batches(kind):
            for line in batch:
                count.add(line)
                notes.add(line)
                if line.row is not None:
                    order.add(line)
                if line.own_id and kind.prefix and not line.fault and not line.lack:
                    mapping.add(kind.object, line.own_id, self._names.new(kind.prefix, line.own_id))
        notes.end()
        if order.is_newest_first:
            self._newest_first.add(kind.table)
        return count

    async def _batches(self, kind: Kind) -> AsyncIterator[list[Line]]:
        """All lines, each with its verdict."""
        batch: list[Line] = []
        size_bytes = 0
        for number, raw in _lines(self._folder / kind.filename):
            batch.append(self._read(kind, number, raw))
            size_bytes += len(raw or b"")
            is_full = len(batch) >= _BATCH_LINES or size_bytes >= _BATCH_BYTES
            if is_full and not kind.is_put_in_order:
                yield await self._judged(kind, batch)
                batch, size_bytes = [], 0
        if batch:
            yield await self._judged(kind, batch)

    def _read(self, kind: Kind, number: int, raw: bytes | None) -> Line:
        line = Line(number)
        self._names.references = []
        try:
            if number > imports.LINES_MAX:
                raise Broken(f"A file may have {imports.LINES_MAX:,} lines.")
            told = _decoded(raw)
            if told.get("object", kind.object) != kind.object:
                raise Broken(f"This is a {told['object']!r:.40}, and not a {kind.object}.")
            line.row = kind.row(told, self._names) | {"project_id": self._project_id}
            line.own_id = told["id"]
        except Broken as broken:
            line.fault = str(broken)
        except ApiError as error:
            line.fault = error.message
        except RecursionError:
            line.fault = "It is nested too deeply."
        line.references = [
            one for one in self._names.references if one.prefix not in (kind.prefix, _NAMED_LATER)
        ]
        return line

    async def _judged(self, kind: Kind, batch: list[Line]) -> list[Line]:
        sound = [line for line in batch if line.row is not None]
        await self._find_there(kind, sound)
        if kind.table == "files":
            self._find_content(sound)
        for line in sound:
            self._check_rerank_url(line)
        await self._find_named(sound)
        for line in sound:
            self._judge_references(kind, line)
            if kind.prefix and kind.prefix != _NAMED_LATER and not line.fault and not line.lack:
                assert line.row is not None
                self._known[kind.prefix].add(line.row["id"])
        return batch

    async def _find_there(self, kind: Kind, lines: list[Line]) -> None:
        rows = [line.row for line in lines if line.row is not None]
        own_ids = [row["id"] for row in rows]
        if kind.prefix is None:
            attached = await imports.attached(self._connection, own_ids)
            for line, row in zip(lines, rows, strict=True):
                line.is_there = (row["vector_store_id"], row["id"]) in attached
            return
        owners = await imports.owners(self._connection, kind.table, own_ids)
        for line, row in zip(lines, rows, strict=True):
            owner = owners.get(row["id"])
            line.is_there = owner == self._project_id
            if owner is not None and not line.is_there:
                line.fault = f"The id {row['id']} is taken by another project."

    def _find_content(self, lines: list[Line]) -> None:
        for line in lines:
            assert line.row is not None
            expires_at = line.row["expires_at"]
            if line.is_there:
                continue
            if expires_at is not None and expires_at <= time.time():
                line.lack = f"file {line.own_id} has expired"
            elif not self._content(line).is_file():
                line.lack = f"file {line.own_id} is not in {self._folder / 'files'}"
            elif self._content(line).stat().st_size == 0:
                line.lack = f"file {line.own_id} is empty"

    def _content(self, line: Line) -> Path:
        assert line.own_id is not None
        return self._folder / "files" / line.own_id

    def _check_rerank_url(self, line: Line) -> None:
        """As the API does: else an archive could have us call any address."""
        assert line.row is not None
        url = line.row.get("search", {}).get("rerank_url")
        if url and url not in self._rerank_urls:
            line.fault = f"search.rerank_url {url} is not among THREADMILL_RERANK_URLS."

    async def _find_named(self, lines: list[Line]) -> None:
        """What the archive does not have may be there from an earlier one."""
        asked: dict[str, set[str]] = {}
        for line in lines:
            for one in line.references:
                if one.new not in self._known[one.prefix]:
                    asked.setdefault(one.prefix, set()).add(one.new)
        for prefix, wanted in asked.items():
            owners = await imports.owners(self._connection, _TABLES[prefix], list(wanted))
            self._known[prefix] |= {one for one in owners if owners[one] == self._project_id}

    def _judge_references(self, kind: Kind, line: Line) -> None:
        assert line.row is not None
        missing = [one for one in line.references if one.new not in self._known[one.prefix]]
        for one in missing:
            if one.prefix not in kind.parents:
                line.missing = [*line.missing, one]
            elif kind.table == "vector_store_files":
                line.lack = f"{one} is not there"
            else:
                line.fault = line.fault or f"{one} is not there"
        _forget_code_files(line.row, {one.new for one in missing if one.prefix == "file"})

    # --- writing ---

    async def _write(self, kind: Kind, lines: list[Line]) -> int:
        newest_first = kind.table in self._newest_first
        rows = []
        for line in lines:
            assert line.row is not None
            seq = imports.place(line.row["created_at"], line.number, newest_first=newest_first)
            if kind.table == "files":
                await self._store_content(line)
            rows.append(line.row | {"seq": seq})
        if kind.is_put_in_order:
            rows.sort(key=lambda row: row.pop("seq"))
        return await imports.insert(self._connection, kind.table, rows)

    async def _store_content(self, line: Line) -> None:
        """Before the row: a row never lacks its bytes."""
        assert line.row is not None
        path, sha256, size_bytes = self._content(line), hashlib.sha256(), 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            with path.open("rb") as content:
                while piece := content.read(_PIECE_BYTES):
                    sha256.update(piece)
                    size_bytes += len(piece)
                    yield piece

        await self._blobs.write(line.row["id"], pieces())
        line.row |= {"bytes": size_bytes, "sha256": "\\x" + sha256.hexdigest()}


class _Names:
    """Gives every id its new one, and remembers which were asked for."""

    def __init__(self, project_id: str, *, keep_ids: bool) -> None:
        self.references: list[Reference] = []
        self.new: Name = _kept if keep_ids else lru_cache(100_000)(partial(_derived, project_id))

    def __call__(self, prefix: str, old: str) -> str:
        new = self.new(prefix, old)
        self.references.append(Reference(prefix, new, old))
        return new


def _kept(prefix: str, old: str) -> str:
    return ids.check("id", old, prefix)


def _derived(project_id: str, prefix: str, old: str) -> str:
    return ids.derived(prefix, "import", project_id, old)


class _Mapping:
    """The old and the new ids as CSV, in place only when it is whole."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._open = ExitStack()

    def __enter__(self) -> "_Mapping":
        if self._path is not None:
            part = self._open.enter_context(self._part().open("w", newline=""))
            self._rows = csv.writer(part)
            self._rows.writerow(["object", "old_id", "new_id"])
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self._path is not None:
            self._part().unlink(missing_ok=True)

    def add(self, kind: str, old: str, new: str) -> None:
        if self._path is not None:
            self._rows.writerow([kind, old, new])

    def keep(self) -> None:
        self._open.close()
        if self._path is not None:
            self._part().replace(self._path)

    def _part(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".part")


class _Notes:
    """What is said of the lines of one file: of each kind of fault the first few."""

    def __init__(self, filename: str, say: Say) -> None:
        self._filename = filename
        self._say = say
        self._counts: dict[str, int] = {}

    def add(self, line: Line) -> None:
        if line.fault:
            self._note(line, "broken", f"broken: {line.fault}")
        elif line.lack:
            self._note(line, "left out", f"left out: {line.lack}")
        else:
            for one in line.missing:
                fault = f"names of a missing {_NOUNS[one.prefix]}"
                self._note(line, fault, f"names {one}, which is not there")

    def end(self) -> None:
        for fault, count in self._counts.items():
            if count > _NOTES_SHOWN:
                self._say(f"{self._filename}: {fault}: {count:,} in all")

    def _note(self, line: Line, fault: str, text: str) -> None:
        self._counts[fault] = self._counts.get(fault, 0) + 1
        if self._counts[fault] <= _NOTES_SHOWN:
            printable = "".join(char if char.isprintable() else "\ufffd" for char in text)
            self._say(f"{self._filename}:{line.number}: {printable}")


class _Order:
    """In which order the lines of a file come. Among lines of the same second nothing else tells
    which was first; and where all are of one second, lists are newest first unless one asks."""

    def __init__(self) -> None:
        self._last: tuple[Any, int] | None = None
        self._rising = self._falling = 0

    def add(self, line: Line) -> None:
        assert line.row is not None
        of = line.row.get("run_id") if "step_details" in line.row else line.row.get("thread_id")
        created_at: int = line.row["created_at"]
        if self._last is not None and self._last[0] == of:
            self._rising += created_at > self._last[1]
            self._falling += created_at < self._last[1]
        self._last = (of, created_at)

    @property
    def is_newest_first(self) -> bool:
        return self._falling >= self._rising


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Those that are not empty, with their numbers; None for one that is too long to be read."""
    if not path.exists():
        return
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(_LINE_MAX_BYTES + 1):
            number += 1
            if len(raw) > _LINE_MAX_BYTES:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_LINE_MAX_BYTES)
                yield number, None
            elif raw := raw.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, raw


def _decoded(raw: bytes | None) -> Json:
    if raw is None:
        raise Broken(f"The line is longer than {_LINE_MAX_BYTES:,} bytes.")
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Broken(f"This is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise Broken("This is not a JSON object.")
    refuse_unstorable(raw, told)
    return told


def _forget_code_files(row: Json, missing: set[str]) -> None:
    """As if the files had been deleted here: nobody's code interpreter is given them."""
    code = row.get("tool_resources", {}).get("code_interpreter")
    if code and missing:
        code["file_ids"] = [one for one in code["file_ids"] if one not in missing]
