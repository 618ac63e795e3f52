"""The folder that files go into and come out of, while code that means harm may work in it.

Every name is looked up from a descriptor of its folder and no link is followed: what the code put
in the way is replaced or refused. Nothing here waits for anybody.
"""

import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

NAME_MAX_BYTES = 255
PIECE_BYTES = 256 * 1024
LISTED_MAX_ENTRIES = 1000
LISTED_MAX_NAME_BYTES = 256 * 1024  # of all names together: the list has to fit into one frame
SEEN_MAX_ENTRIES = 20_000
MAX_DEPTH = 8

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a fifo would keep us for ever, and so would a file that somebody holds a lease on.
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """A file is not put or fetched, in words that the host may show."""


@dataclass
class Incoming:
    request_id: Any
    descriptor: int
    temporary: str
    size_bytes: int = 0


class Folder:
    def __init__(self, path: str) -> None:
        self.path = path
        self._root = os.open(path, OPEN_FOLDER)
        self._incoming: Incoming | None = None
        self._left_out = False  # of the list being made

    def put(
        self, request_id: Any, name: str, link: str | None, at: int, last: bool, piece: bytes
    ) -> bool:
        """Take a piece; True when the file is there. Pieces of a file that has been given up are
        let go by."""
        if at == 0:
            self._give_up()
            check_name(name)
            if link is not None:
                check_name(link)
            temporary = f".{secrets.token_hex(8)}.part"
            descriptor = os.open(temporary, OPEN_NEW, 0o644, dir_fd=self._root)
            self._incoming = Incoming(request_id, descriptor, temporary)
        incoming = self._incoming
        if incoming is None or incoming.request_id != request_id:
            return False
        try:
            if at != incoming.size_bytes:
                raise Refused(f"A piece at {at} came after {incoming.size_bytes} bytes.")
            write_all(incoming.descriptor, piece)
            incoming.size_bytes += len(piece)
            if last:
                self._finish(incoming, name, link)
        except BaseException:
            self._give_up()
            raise
        return last

    def _finish(self, incoming: Incoming, name: str, link: str | None) -> None:
        os.replace(incoming.temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)
        os.close(incoming.descriptor)
        self._incoming = None
        if link is not None and link != name:
            os.symlink(name, incoming.temporary, dir_fd=self._root)
            try:
                os.replace(incoming.temporary, link, src_dir_fd=self._root, dst_dir_fd=self._root)
            except OSError:
                os.unlink(incoming.temporary, dir_fd=self._root)
                raise

    def _give_up(self) -> None:
        if self._incoming is not None:
            os.close(self._incoming.descriptor)
            with suppress(OSError):
                os.unlink(self._incoming.temporary, dir_fd=self._root)
            self._incoming = None

    def list(self) -> tuple[list[dict[str, Any]], bool]:
        """Regular files, the upper folders first, and whether something was left out: what is too
        deep or too much, folders that do not open, and names that are not UTF-8."""
        files: list[dict[str, Any]] = []
        self._left_out = False
        name_bytes = 0
        for name, entry in self._walk():
            if not entry.is_file(follow_symlinks=False):
                continue
            name_bytes += len(name.encode())
            if len(files) == LISTED_MAX_ENTRIES or name_bytes > LISTED_MAX_NAME_BYTES:
                return files, True
            with suppress(FileNotFoundError):  # gone since
                files.append(described(name, entry.stat(follow_symlinks=False)))
        return files, self._left_out

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        seen = 0
        folders = deque([""])
        while folders:
            folder = folders.popleft()
            try:
                with self._opened(folder, OPEN_FOLDER) as descriptor:
                    for entry in os.scandir(descriptor):
                        seen += 1
                        if seen > SEEN_MAX_ENTRIES:
                            self._left_out = True
                            return
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        if not is_utf8(name):
                            self._left_out = True
                        elif not entry.is_dir(follow_symlinks=False):
                            yield name, entry
                        elif name.count("/") < MAX_DEPTH - 1:
                            folders.append(name)
                        else:
                            self._left_out = True
            except OSError:
                self._left_out = True

    def get(self, name: str, max_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
        """The file in pieces: where each starts, its bytes, and whether it is the last."""
        parts = name.split("/")
        if len(parts) > MAX_DEPTH:
            raise Refused("The file lies too deep.")
        for part in parts:
            check_name(part)
        with self._opened(name, OPEN_FILE) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refused("It is not a regular file.")
            if os.fstat(descriptor).st_size > max_bytes:
                raise Refused(f"The file is larger than {max_bytes} bytes.")
            at = 0
            piece = os.read(descriptor, PIECE_BYTES)
            while True:
                # One ahead, to know the last. It may grow meanwhile: what counts is what was read.
                if at + len(piece) > max_bytes:
                    raise Refused(f"The file is larger than {max_bytes} bytes.")
                following = os.read(descriptor, PIECE_BYTES)
                yield at, piece, not following
                if not following:
                    return
                at += len(piece)
                piece = following

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        """Step by step from the root, for O_NOFOLLOW looks at the last step only."""
        *way, last = name.split("/") if name else ["."]
        descriptor = os.open(".", OPEN_FOLDER, dir_fd=self._root)
        try:
            for step, step_flags in [*((step, OPEN_FOLDER) for step in way), (last, flags)]:
                deeper = os.open(step, step_flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = deeper
            yield descriptor
        finally:
            os.close(descriptor)


def check_name(name: str) -> None:
    """One step of a path, and not the way up."""
    if name in ("", ".", ".."):
        raise Refused(f"'{name}' is not a name for a file.")
    if "/" in name or "\0" in name:
        raise Refused("The name of a file has no '/' and no NUL in it.")
    if not is_utf8(name):
        raise Refused("The name is not valid Unicode.")
    if len(name.encode()) > NAME_MAX_BYTES:
        raise Refused(f"The name is longer than {NAME_MAX_BYTES} bytes.")


def is_utf8(name: str) -> bool:
    """Names from the system that are not UTF-8 hold lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def described(name: str, status: os.stat_result) -> dict[str, Any]:
    return {
        "name": name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


def write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
