"""What the event log says was begun and not ended: after an executor's death its followers are to
hear the end of everything of which they have heard the beginning."""

from collections.abc import Iterable
from typing import Any

import msgspec

from threadmill.runs import seq
from threadmill.runs.events import DONE, frame, said, split
from threadmill.schemas import objects
from threadmill.store import run_events, runs
from threadmill.store.database import Connection
from threadmill.store.rows import Message, Run, Step
from threadmill.store.run_events import Row
from threadmill.store.runs import Progress

Json = dict[str, Any]


class Begun(msgspec.Struct):
    """Messages and steps as their events made them so far, by their ids."""

    messages: dict[str, Json] = {}
    steps: dict[str, Json] = {}

    @classmethod
    def read(cls, rows: Iterable[Row]) -> "Begun":
        begun = cls()
        for row in rows:
            for one in split(row.frames):
                begun._add(one)
        return begun

    def _add(self, one: bytes) -> None:
        head, _, line = one.partition(b"\ndata: ")
        name = head.rpartition(b"event: thread.")[2].decode()
        if not name.startswith(("message.", "run.step.")):
            return
        data = msgspec.json.decode(line)
        kind, _, what = name.rpartition(".")
        told = self.messages if kind == "message" else self.steps
        if what == "created":
            told[data["id"]] = data
        elif what == "delta" and data["id"] in told:
            _merge(told[data["id"]], data["delta"])
        elif what not in ("in_progress", "delta"):
            told.pop(data["id"], None)


class Left(msgspec.Struct):
    """By executors that ended before their time."""

    open: Progress  # to be closed, and then to be told
    untold: Progress  # ended already, but nobody has told it


def by_rows(messages: list[Message], steps: list[Step]) -> Left:
    return Left(
        Progress(
            [message for message in messages if message.status == "in_progress"],
            [step for step in steps if step.status == "in_progress"],
        ),
        Progress(),
    )


async def left(
    connection: Connection, run: Run, messages: list[Message], steps: list[Step]
) -> Left:
    """By the log and by the rows. What followers have read of a message and the last draft does not
    hold is in the log alone."""
    left = by_rows(messages, steps)
    last = await run_events.last(connection, run.id)
    if last is None or last.is_end or seq.is_opening(last.seq):
        return left
    begun = Begun.read(await run_events.of_run(connection, run.id))
    by_id = {message.id: message for message in messages}
    for message_id, told in begun.messages.items():
        message = by_id.get(message_id)
        if message is None:
            left.open.messages.append(_message(run, told))
        elif message.status != "in_progress":
            left.untold.messages.append(message)
        elif _length(told["content"]) > _length(message.content):
            message.content = _final(told["content"])
    known = {step.id: step for step in steps}
    for step_id, told in begun.steps.items():
        step = known.get(step_id)
        if step is None:
            left.open.steps.append(_step(run, told))
        elif step.status != "in_progress":
            left.untold.steps.append(step)
    return left


async def tell_end(connection: Connection, run: Run) -> None:
    """The run is over, or waits for its client, and who brought it there could not put that into
    the log: do it. Of several who do it at once one does."""
    messages, steps = await runs.open_work(connection, run.id)
    untold = (await left(connection, run, messages, steps)).untold
    frames = [
        *(
            frame(f"thread.message.{message.status}", objects.shape(message, objects.Message))
            for message in untold.messages
        ),
        *(
            frame(f"thread.run.step.{step.status}", objects.shape(step, objects.StepWithContent))
            for step in untold.steps
        ),
        frame(f"thread.run.{run.status}", objects.shape(run, objects.Run)),
        DONE,
    ]
    # All who do it use the same last number, by which one row is let in.
    end = said(seq.late_end(run.claims) - len(frames) + 1, frames)
    await run_events.append(
        connection, [Row(run.id, end.first_seq, end.last_seq, True, end.frames)]
    )


def _merge(told: Json, delta: Json) -> None:
    """As the SDKs' helpers do it: texts grow, lists are filled by index, all else is replaced."""
    for name, value in delta.items():
        known = told.get(name)
        if isinstance(known, str) and isinstance(value, str) and name not in ("type", "id"):
            told[name] = known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            for entry in value:
                if entry["index"] < len(known):
                    _merge(known[entry["index"]], entry)
                else:
                    known.append(entry)
        else:
            told[name] = value


def _message(run: Run, told: Json) -> Message:
    content = _final(told["content"])
    return msgspec.convert({**told, "project_id": run.project_id, "content": content}, Message)


def _step(run: Run, told: Json) -> Step:
    details = dict(told["step_details"])
    if "tool_calls" in details:
        details["tool_calls"] = [_call(call) for call in details["tool_calls"]]
    whole = {**told, "project_id": run.project_id, "turn": run.turns, "step_details": details}
    return msgspec.convert(whole, Step)


def _call(told: Json) -> Json:
    call = _without_index(told)
    if code := call.get("code_interpreter"):
        outputs = [_without_index(output) for output in code["outputs"]]
        call["code_interpreter"] = code | {"outputs": outputs}
    return call


def _final(content: list[Json]) -> list[Json]:
    """The content of deltas as that of a message: without what only deltas have."""
    final = []
    for told in content:
        part = _without_index(told)
        if part["type"] == "text":
            text = part["text"]
            annotations = [_annotation(one) for one in text.get("annotations", [])]
            part["text"] = {"value": text["value"], "annotations": annotations}
        final.append(part)
    return final


def _annotation(told: Json) -> Json:
    annotation = _without_index(told)
    if "file_citation" in annotation:
        annotation["file_citation"] = {"file_id": annotation["file_citation"]["file_id"]}
    return annotation


def _without_index(told: Json) -> Json:
    return {name: value for name, value in told.items() if name != "index"}


def _length(content: list[Json]) -> int:
    return sum(
        len(part["text"]["value"] if part["type"] == "text" else part.get("refusal", ""))
        for part in content
    )
