"""What the code of a thread has made and was given, as its answers show it: links to files
(sandbox:/mnt/data/...) and images.

A link to a file that is there gets an annotation; any other is plain text.
"""

import re
from collections import ChainMap
from typing import Any
from urllib.parse import quote, unquote

from threadmill.runs.scanner import Annotation
from threadmill.store.rows import Message

Json = dict[str, Any]

# What may not follow a link, or the name was meant to be a longer one. And what may turn out so.
_GOES_ON = re.compile(r"[A-Za-z0-9_/%]|[.-][A-Za-z0-9_]")
_MAY_GO_ON = re.compile(r"[.-]?\Z")


class Products:
    opening = "sandbox:/mnt/data/"

    def __init__(self) -> None:
        self.images: list[str] = []  # that no message has shown yet: the next one begins with them
        self.made: set[str] = set()  # the files that the code has made
        # By their path below /mnt/data; what earlier ones say of a path holds.
        self._present: dict[str, str] = {}
        self._recalled: dict[str, str] = {}
        self._given: dict[str, str] = {}
        self._files = ChainMap(self._present, self._recalled, self._given)

    def give(self, path: str, file_id: str) -> None:
        """A file that the code will find there."""
        self._given[path] = file_id

    def add(self, path: str, file_id: str, *, is_made: bool) -> None:
        """What is there now: the newest file at a path is what its link means."""
        self._present[path] = file_id
        if is_made:
            self.made.add(file_id)

    def recall(self, history: list[Message]) -> None:
        """What earlier messages linked can be linked again, though its session may be gone."""
        for message in history:
            for part in message.content if message.role == "assistant" else ():
                for annotation in part["text"]["annotations"] if part["type"] == "text" else ():
                    if annotation["type"] == "file_path":
                        path = unquote(annotation["text"].removeprefix(self.opening))
                        self._recalled[path] = annotation["file_path"]["file_id"]
        self.made |= set(self._recalled.values()) - set(self._given.values())

    def take_images(self) -> list[str]:
        images, self.images = self.images, []
        return images

    @property
    def are_there(self) -> bool:
        return bool(self._files)

    def end(self, text: str, start: int, *, is_over: bool) -> int | None:
        """Of a link: the longest path that is known."""
        begin = start + len(self.opening)
        ends = [_follow(path, text, begin) for path in self._files]
        if not is_over and None in ends:
            return None
        end = max(filter(None, ends), default=0)
        if not end or _GOES_ON.match(text, end):
            return 0
        return None if not is_over and _MAY_GO_ON.match(text, end) else end

    def annotation(self, part: str, start: int) -> Annotation | None:
        path = part.removeprefix(self.opening)
        file_id = self._files.get(path) or next(
            file_id
            for known, file_id in self._files.items()
            if _follow(known, path, 0) == len(path)
        )
        stored = {
            "type": "file_path",
            "text": part,
            "start_index": start,
            "end_index": start + len(part),
            "file_path": {"file_id": file_id},
        }
        return Annotation(stored, stored)


def _follow(path: str, text: str, at: int) -> int | None:
    """Where this path ends that begins at `at`, as it is or percent-encoded; 0 if another one does,
    None if the text ends before that is clear."""
    given = text[at : at + len(path)]
    if path.startswith(given):
        return at + len(path) if given == path else None
    for sign in path:
        encoded = quote(sign, safe="")
        given = text[at : at + len(encoded)]
        if len(encoded) > 1:
            given = given.upper()  # %c3 is %C3
        if given == encoded:
            at += len(encoded)
        elif text.startswith(sign, at):
            at += 1
        else:
            return None if encoded.startswith(given) else 0
    return at
