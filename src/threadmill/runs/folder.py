"""The folder /mnt/data of a session: what we put there, and what the code has made of it.

A file lies there under its id, and its own name is a link to it. Files that the code made or
changed become files of the API, bytes first, so that no row lacks them.
"""

import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from threadmill import ids
from threadmill.errors import NotFound
from threadmill.runs.products import Products
from threadmill.runtime import Runtime
from threadmill.sandbox.session import FileEntry, FileRefused, KnownFile, Session
from threadmill.store import files, threads
from threadmill.store.rows import File, Run

Json = dict[str, Any]

_PURPOSE = "assistants_output"
_NAME_MAX_BYTES = 255  # of one file, in Linux
_KNOWN_MAX_FILES = 2000  # that a session remembers
_TOLD_MAX_FILES = 20  # by name, after one cell
_UNFIT = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
_UNKEPT_PARTS = re.compile(r"\.|~\$|__pycache__$")  # what hidden and temporary ones begin with
_UNKEPT_ENDS = ("~", ".tmp", ".temp", ".part", ".swp", ".pyc", ".lock")


class Folder:
    def __init__(self, runtime: Runtime, run: Run, products: Products) -> None:
        self._runtime = runtime
        self._run = run
        self._products = products
        self._given: list[File] = []  # by the assistant, the run and the thread
        self._links: dict[str, str] = {}  # their names in the folder, by id
        self._refused: set[str] = set()  # the model was told why

    # --- files in ---

    async def find(self) -> str:
        """Learn which files the code is given; what the model is told of them."""
        run = self._run
        async with self._runtime.database.connection() as connection:
            thread = await threads.get(connection, run.project_id, run.thread_id)
            file_ids = list(dict.fromkeys(_ids(run.tool_resources) + _ids(thread.tool_resources)))
            found = await files.find(connection, run.project_id, file_ids) if file_ids else []
        by_id = {file.id: file for file in found}
        self._given = [by_id[file_id] for file_id in file_ids if file_id in by_id]
        self._links = links(self._given)
        told = []
        for file in self._given:
            self._products.give(file.id, file.id)
            told.append(f"/mnt/data/{file.id}")
            if link := self._links.get(file.id):
                self._products.give(link, file.id)
                told[-1] += f" = /mnt/data/{link}"
        there = f" Files that are there: {'; '.join(told)}." if told else ""
        gone = [file_id for file_id in file_ids if file_id not in by_id]
        return there + (f" Files that were deleted: {', '.join(gone)}." if gone else "")

    def recall(self, session: Session) -> None:
        """What the code of earlier runs has made and is still there can be linked."""
        put = {name for name, known in session.files.items() if known.file_id == name}
        for name, known in session.files.items():
            if known.file_id is not None:
                self._products.add(name, known.file_id, is_made=known.file_id not in put)

    async def put_missing(self, session: Session) -> list[str]:
        """Put what is not there yet; what the model is told of files that it cannot have, or that
        lie elsewhere than it was told. Raises SandboxAway."""
        missing = [
            file
            for file in self._given
            if file.id not in session.files and file.id not in self._refused
        ]
        if not missing:
            return []
        notes = []
        taken = {entry.name for entry in await session.list()} | session.files.keys()
        put: dict[str, str | None] = {}
        for file in missing:
            wanted = self._links.get(file.id)
            link = wanted and _free(wanted, taken)
            if refusal := await self._put(session, file, link):
                self._refused.add(file.id)
                notes.append(f"/mnt/data/{file.id} ({_UNFIT.sub('?', file.filename)}): {refusal}")
                continue
            put[file.id] = link
            taken |= {file.id, link or file.id}
            if link != wanted:
                notes.append(f"/mnt/data/{file.id} is also /mnt/data/{link}: the name was taken.")
        for entry in await session.list():
            if entry.name in put:
                self._remember_put(session, entry, put[entry.name])
        await self._runtime.sandboxes.save_files(session)
        return notes

    async def _put(self, session: Session, file: File, link: str | None) -> str | None:
        """Why it could not be put, if so."""
        limit = self._runtime.settings.sandbox_file_max_bytes
        if file.bytes > limit:
            return f"it is larger than {limit} bytes and was left out."
        try:
            await session.put(file.id, link, await self._runtime.blobs.open(file.id))
        except NotFound:
            return "it was deleted."
        except FileRefused as refused:
            return f"it could not be put there: {refused}"
        return None

    def _remember_put(self, session: Session, entry: FileEntry, link: str | None) -> None:
        known = KnownFile(entry.name, entry.size, entry.mtime_ns, entry.inode, is_put=True)
        session.files[entry.name] = known
        self._products.add(entry.name, entry.name, is_made=False)
        if link is not None:
            # A link is no regular file: whatever is found under its name has replaced it.
            session.files[link] = KnownFile(entry.name, 0, 0, 0, is_put=True)
            self._products.add(link, entry.name, is_made=False)

    # --- files out ---

    async def collect(self, session: Session) -> tuple[Json, list[str]]:
        """Keep what is new or was changed: ids by path, and what the model is told. Raises
        SandboxAway."""
        entries = [entry for entry in await session.list() if _is_kept(entry.name)]
        changed = [entry for entry in entries if _has_changed(entry, session.files)]
        if not changed:
            return {}, []
        made: Json = {}
        refused: list[str] = []
        for entry in changed:
            file_id, refusal = await self._keep(session, entry, len(made))
            if refusal is not None:
                refused.append(f"{_shown(entry.name)} ({refusal})")
            for name in self._remember_made(session, entry, file_id):
                if file_id is not None:
                    made[name] = file_id
                    self._products.add(name, file_id, is_made=True)
        _forget(session, {entry.name for entry in entries})
        await self._runtime.sandboxes.save_files(session)
        return made, _told(list(made), refused)

    async def _keep(
        self, session: Session, entry: FileEntry, kept: int
    ) -> tuple[str | None, str | None]:
        """The id of the new file, or why there is none."""
        settings = self._runtime.settings
        limit = min(settings.sandbox_file_max_bytes, settings.file_max_bytes)
        if kept >= settings.sandbox_output_max_files:
            return None, f"more than {settings.sandbox_output_max_files} files at once"
        if entry.size > limit:
            return None, f"larger than {limit} bytes"
        name = self._filename(session, entry)
        try:
            async with aclosing(session.get(entry.name, limit)) as pieces:
                return await self._store(name, pieces), None
        except FileRefused as refusal:
            return None, str(refusal)

    def _filename(self, session: Session, entry: FileEntry) -> str:
        """A file that was given and then changed keeps its own name, not that of its id."""
        name = next(iter(_links_to(session, entry.name)), entry.name)
        return _UNFIT.sub("_", PurePosixPath(name).name)

    def _remember_made(self, session: Session, entry: FileEntry, file_id: str | None) -> list[str]:
        """All names of the file."""
        names = [entry.name, *_links_to(session, entry.name)]
        for name in names[1:]:
            session.files[name].file_id = file_id
        known = KnownFile(file_id, entry.size, entry.mtime_ns, entry.inode, is_put=False)
        session.files[entry.name] = known
        return names

    async def store_image(self, png: bytes) -> str:
        async def pieces() -> AsyncIterator[bytes]:
            yield png

        return await self._store(None, pieces())

    async def _store(self, filename: str | None, pieces: AsyncIterator[bytes]) -> str:
        """The id of the new file; an image is named by it, as the original did."""
        file_id = ids.new("file")
        runtime, sha256, size_bytes = self._runtime, hashlib.sha256(), 0

        async def measured() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            async for piece in pieces:
                size_bytes += len(piece)
                sha256.update(piece)
                yield piece

        async with AsyncExitStack() as undo:
            undo.push_async_callback(runtime.blobs.delete, file_id)
            await runtime.blobs.write(file_id, measured())
            row = File(
                id=file_id,
                project_id=self._run.project_id,
                created_at=int(time.time()),
                expires_at=None,
                filename=filename or f"{file_id}.png",
                purpose=_PURPOSE,
                bytes=size_bytes,
                sha256=sha256.digest(),
            )
            async with runtime.database.connection() as connection:
                # An INSERT may have taken effect though its answer was lost: see api/files.
                undo.pop_all()
                await files.create(connection, row)
        return file_id


def links(given: list[File]) -> dict[str, str]:
    """The name in the folder of each file by its id: its own without folders, numbered where
    several have the same. Earlier ones keep theirs when others follow."""
    taken = {file.id for file in given}
    found = {}
    for file in given:
        name = _UNFIT.sub("_", re.split(r"[/\\]", file.filename)[-1])
        if name.strip(". "):
            found[file.id] = _free(name, taken)
            taken.add(found[file.id])
    return found


def _free(name: str, taken: set[str]) -> str:
    """This name, or the next that is not taken: data.csv, data (2).csv, ..."""
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix.encode()) <= 32 else ""
    stem, number, free = name.removesuffix(suffix), 1, _fitting(name, "")
    while free in taken:
        number += 1
        free = _fitting(stem, f" ({number}){suffix}")
    return free


def _fitting(stem: str, ending: str) -> str:
    room_bytes = _NAME_MAX_BYTES - len(ending.encode())
    return stem.encode()[:room_bytes].decode(errors="ignore") + ending


def _ids(resources: Json) -> list[str]:
    return list((resources.get("code_interpreter") or {}).get("file_ids") or [])


def _is_kept(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not (any(map(_UNKEPT_PARTS.match, parts)) or name.endswith(_UNKEPT_ENDS))


def _has_changed(entry: FileEntry, known_files: dict[str, KnownFile]) -> bool:
    known = known_files.get(entry.name)
    return known is None or (known.size, known.mtime_ns, known.inode) != (
        entry.size,
        entry.mtime_ns,
        entry.inode,
    )


def _links_to(session: Session, name: str) -> list[str]:
    known = session.files.get(name)
    if known is None or known.file_id is None:
        return []
    return [
        link
        for link, other in session.files.items()
        if other.file_id == known.file_id and not other.inode and link != name
    ]


def _forget(session: Session, there: set[str]) -> None:
    """A session remembers only so many: first it forgets what is there no more."""
    for name in list(session.files):
        if len(session.files) <= _KNOWN_MAX_FILES:
            return
        if name not in there and not session.files[name].is_put:
            del session.files[name]


def _told(made: list[str], refused: list[str]) -> list[str]:
    links = [f"[{_shown(name)}](sandbox:/mnt/data/{quote(name)})" for name in made]
    notes = [f"Files for the user: {_some(links)}."] if links else []
    return notes + ([f"Not kept for the user: {_some(refused)}"] if refused else [])


def _some(told: list[str]) -> str:
    more = len(told) - _TOLD_MAX_FILES
    return "; ".join(told[:_TOLD_MAX_FILES]) + (f"; and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    return _UNFIT.sub("?", name)
