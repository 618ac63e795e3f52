"""A thread as people read it: what was said, by which run, standing on what."""

import re
from typing import Any

import msgspec
from markupsafe import Markup

from threadmill.dashboard import markdown
from threadmill.file_bytes import may_go_out
from threadmill.settings import Settings
from threadmill.store import files, runs, steps
from threadmill.store.database import Connection
from threadmill.store.rows import Message, Run

Json = dict[str, Any]

# On one page. What comes after is cut: a short beginning of each text is shown.
_RENDERED_MAX_CHARACTERS = 200_000
_BLOCK_MAX_CHARACTERS = 64 * 1024
_BEGINNING_CHARACTERS = 2_000
_MARKER = re.compile(r"【(\d+):(\d+)†")


class Citation(msgspec.Struct):
    """A passage that a message stands on. None of it is known where its run was not recorded."""

    number: int
    address: str  # in the page
    file_id: str
    filename: str
    score: float | None = None
    text: str | None = None
    place: str | None = None  # the page that shows it among its neighbours


class Part(msgspec.Struct):
    """Of a message: either HTML, or a picture of the project, or the address of one elsewhere."""

    html: Markup | None = None
    image_id: str | None = None
    is_withheld: bool = False  # the picture is not handed out
    image_url: str | None = None
    left_out: int = 0  # characters that were cut off


class Attachment(msgspec.Struct):
    file_id: str
    filename: str | None  # None: it is deleted
    tools: list[str]


class Line(msgspec.Struct):
    """A message, or a run that has written none."""

    at: int
    message: Message | None = None
    parts: list[Part] = []
    citations: list[Citation] = []
    attachments: list[Attachment] = []
    run: Run | None = None


async def lines(
    connection: Connection,
    project_id: str,
    shown: list[Message],
    silent: list[Run],
    settings: Settings,
) -> list[Line]:
    """Of messages in their order; `silent` are runs of which some may have written nothing."""
    written = sorted({message.run_id for message in shown if message.run_id})
    known = {run.id: run for run in await runs.find(connection, project_id, written)}
    cited = sorted({m.run_id for m in shown if m.run_id and _annotations(m, "file_citation")})
    hits = await _hits(connection, cited)
    named = await files.find(connection, project_id, sorted(_named(shown)))
    names = {file.id: file.filename for file in named}
    withheld = {file.id for file in named if not may_go_out(file, settings)}
    told: list[Line] = []
    room = _RENDERED_MAX_CHARACTERS
    for message in shown:
        line = Line(message.created_at, message, run=known.get(message.run_id or ""))
        line.citations = _citations(message, hits, names)
        for at, part in enumerate(message.content):
            shown_max = _BLOCK_MAX_CHARACTERS if room > 0 else _BEGINNING_CHARACTERS
            line.parts.append(_part(part, message, at, line.citations, withheld, shown_max))
            room -= min(len(_text(part)), shown_max)
        line.attachments = [
            Attachment(
                one["file_id"],
                names.get(one["file_id"]),
                [tool["type"] for tool in one.get("tools") or []],
            )
            for one in message.attachments
        ]
        told.append(line)
    for run in sorted(silent, key=lambda one: one.created_at):
        if run.id not in known:
            earlier = [at for at, line in enumerate(told) if line.at <= run.created_at]
            told.insert(earlier[-1] + 1 if earlier else 0, Line(run.created_at, run=run))
    return told


async def _hits(connection: Connection, run_ids: list[str]) -> dict[tuple[str, int, int], Json]:
    """The passages that runs were given, by run and the two numbers of their markers."""
    found = {}
    for run_id, given in await steps.given_in(connection, run_ids) if run_ids else []:
        for call in given.values():
            for n, hit in enumerate(call.get("hits") or []):
                found[run_id, call["m"], n] = hit
    return found


def _citations(
    message: Message, hits: dict[tuple[str, int, int], Json], names: dict[str, str]
) -> list[Citation]:
    told = []
    for number, one in enumerate(_annotations(message, "file_citation"), 1):
        file_id = one["file_citation"]["file_id"]
        marker = _MARKER.match(one["text"])
        place = (message.run_id or "", int(marker[1]), int(marker[2])) if marker else ("", 0, 0)
        hit = hits.get(place)
        told.append(
            Citation(
                number,
                f"{message.id}-{number}",
                file_id,
                hit["filename"] if hit else names.get(file_id, file_id),
                hit["score"] if hit else None,
                hit["text"] if hit else None,
                _place(hit) if hit else None,
            )
        )
    return told


def _place(hit: Json) -> str | None:
    if "ordinal" not in hit:  # of a run before these were kept
        return None
    store_id, file_id = hit["vector_store_id"], hit["file_id"]
    return f"/ui/vector_stores/{store_id}/files/{file_id}/chunks/{hit['ordinal']}"


def _part(
    part: Json,
    message: Message,
    at: int,
    citations: list[Citation],
    withheld: set[str],
    shown_max: int,
) -> Part:
    if part["type"] == "image_file":
        file_id = part["image_file"]["file_id"]
        return Part(image_id=file_id, is_withheld=file_id in withheld)
    if part["type"] == "image_url":
        return Part(image_url=part["image_url"]["url"])
    text = _text(part)
    if len(text) > shown_max:
        cut = Markup('<pre tabindex="0">{}</pre>').format(text[:shown_max])
        return Part(html=cut, left_out=len(text) - shown_max)
    annotations = part["text"].get("annotations") or [] if part["type"] == "text" else []
    before = sum(_is_citation(one) for one in _annotations_before(message, at))

    def mark(index: int) -> Markup:
        number = before + sum(_is_citation(one) for one in annotations[: index + 1])
        return Markup('<a class="mark" href="#{0}" data-chunk="{0}">{1}</a>').format(
            citations[number - 1].address, number
        )

    return Part(html=markdown.render(text, annotations, mark))


def _annotations_before(message: Message, at: int) -> list[Json]:
    return [
        one
        for part in message.content[:at]
        if part["type"] == "text"
        for one in part["text"].get("annotations") or []
    ]


def _annotations(message: Message, kind: str) -> list[Json]:
    everything = _annotations_before(message, len(message.content))
    return [one for one in everything if one["type"] == kind]


def _is_citation(annotation: Json) -> bool:
    return bool(annotation["type"] == "file_citation")


def _text(part: Json) -> str:
    if part["type"] == "text":
        return str(part["text"]["value"])
    return str(part.get("refusal") or "")


def _named(shown: list[Message]) -> set[str]:
    attached = {one["file_id"] for message in shown for one in message.attachments}
    cited = {
        one["file_citation"]["file_id"]
        for message in shown
        for one in _annotations(message, "file_citation")
    }
    pictures = {
        part["image_file"]["file_id"]
        for message in shown
        for part in message.content
        if part["type"] == "image_file"
    }
    return attached | cited | pictures
