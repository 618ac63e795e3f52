"""A run as people look at it: what its page is made of, and what of that moves."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from threadmill.dashboard import history, waterfall
from threadmill.dashboard.frame import Frame
from threadmill.dashboard.live import Shown
from threadmill.dashboard.room import Room
from threadmill.errors import NotFound
from threadmill.lifecycle import RunStatus, sources
from threadmill.runtime import Runtime
from threadmill.store import assistants, runs, steps
from threadmill.store.database import Connection
from threadmill.store.rows import Message, Run

Json = dict[str, Any]

_TURNS_MAX = 100
# Of texts. All of them are on the pages of the steps.
_CHARACTERS = 80_000
_BLOCK_CHARACTERS = 2_000
_PASSAGES_MAX = 5
# Each has an element of the same name, which takes its place when it has changed.
_PARTS = ("run-head", "run-time", "run-turns", "run-now")


class Written(msgspec.Struct):
    """What a message says."""

    text: str
    files: dict[str, str]  # that code has made, and the text leads to: names, by their ids


async def look_at(connection: Connection, run: Run, *, before: int | None = None) -> Json:
    """All that the parts of the page are made of; of very many turns the newest, or those `before`
    one."""
    made, done = await runs.open_work(connection, run.id)
    every_turn = await steps.turns_of(connection, run.id)
    turns = [turn for turn in every_turn if before is None or turn.turn < before][-_TURNS_MAX:]
    shown = {turn.turn for turn in turns}
    assistant = None
    with suppress(NotFound):  # it may be deleted; the run stays
        assistant = await assistants.get(connection, run.project_id, run.assistant_id)
    last = every_turn[-1].turn if every_turn else 0
    return {
        "run": run,
        "assistant": assistant,
        "turns": turns,
        "has_earlier": bool(turns) and turns[0].turn > every_turn[0].turn,
        "is_newest": before is None,
        "steps": [step for step in done if step.turn in shown],
        "open_steps": [step for step in done if step.turn > last],
        "written": written_by(made),
        "tools_used": tools_used([turn.record for turn in turns]),
        "waterfall": waterfall.draw(run, turns, done),
        "history": history.tell(run, turns, done),
        "can_cancel": run.status in sources(RunStatus.CANCELLING),
        "room": Room(_CHARACTERS, block_max_characters=_BLOCK_CHARACTERS),
        "passages_max": _PASSAGES_MAX,
    }


class RunTopic:
    """Runs whose pages are open."""

    def __init__(self, runtime: Runtime, frame: Frame) -> None:
        self._runtime = runtime
        self._frame = frame

    async def look(self, connection: Connection, subjects: list[str]) -> Mapping[str, Any]:
        return await runs.marks(connection, subjects)

    async def show(self, subject: str, seen: Any) -> Shown:
        async with self._runtime.database.connection() as connection:
            run = (await runs.standing(connection, [subject])).get(subject)
            if run is None:
                return Shown({}, is_over=True)
            values = await look_at(connection, run)
        parts = {name: self._frame.part(f"{name.replace('-', '_')}.html", **values)
                 for name in _PARTS}  # fmt: skip
        return Shown(parts, is_over=run.has_ended)


def tools_used(records: list[Json]) -> Json:
    """By the id of a call of one of our own tools, when it began and ended."""
    return {tool["call_id"]: tool for record in records for tool in record.get("tools") or []}


def written_by(made: list[Message]) -> dict[str, Written]:
    """By the id of a message."""
    written = {}
    for message in made:
        texts = [part["text"] for part in message.content if part["type"] == "text"]
        files = {
            one["file_path"]["file_id"]: one["text"].rpartition("/")[2]
            for text in texts
            for one in text.get("annotations") or []
            if one["type"] == "file_path"
        }
        written[message.id] = Written("\n".join(text["value"] for text in texts), files)
    return written
