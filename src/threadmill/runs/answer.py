"""Turning what a model streams into messages, steps and their events.

The order of the events is the original's, and the SDKs' helpers fail on any other: a step comes
before its message, a message before its deltas, one message is open at a time, and no message is
made before its first token.
"""

import copy
import time
from typing import Any

import msgspec

from threadmill import ids
from threadmill.lifecycle import MessageStatus, StepStatus
from threadmill.llm.stream import Chunk, ToolCallDelta, Usage
from threadmill.runs import citations
from threadmill.runs.citations import Scanner, Source, Sources
from threadmill.runs.events import Voice, frame
from threadmill.runs.tools import Toolbox
from threadmill.schemas import objects
from threadmill.store import rows
from threadmill.store.rows import Message, Run, Step

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode


class _Part(msgspec.Struct):
    kind: str  # text or refusal
    pieces: list[str] = []
    annotations: list[Json] = []
    length: int = 0  # in Unicode code points

    def content(self) -> Json:
        written = "".join(self.pieces)
        if self.kind == "text":
            return {"type": "text", "text": {"value": written, "annotations": self.annotations}}
        return {"type": "refusal", "refusal": written}


class Writing:
    """A message that is being written, with the step that stands for it."""

    def __init__(self, message: Message, step: Step, voice: Voice, sources: Sources) -> None:
        self.message = message
        self.step = step
        self._voice = voice
        self._sources = sources
        self._scanner = Scanner() if sources.are_there else None
        self._parts: list[_Part] = []
        self._delta_head = b'event: thread.message.delta\ndata: {"id":"%b",' % message.id.encode()
        self._delta_head += b'"object":"thread.message.delta","delta":{"content":['
        self.has_news = False  # since it was last saved as a draft

    def add(self, kind: str, piece: str) -> None:
        """Append to the text or the refusal, and say so."""
        self.has_news = True
        if kind == "text" and self._scanner is not None:
            for segment in self._scanner.feed(piece):
                self._append(kind, segment, self._sources.cited(segment))
        else:
            self._append(kind, piece, None)

    def finish(self) -> list[Json]:
        """Nothing more is written: the whole content, with what was held back until now."""
        if self._scanner is not None and (rest := self._scanner.rest()):
            self._append("text", rest, None)
        return self.content()

    def content(self) -> list[Json]:
        return [part.content() for part in self._parts]

    def _append(self, kind: str, piece: str, source: Source | None) -> None:
        index, part = self._part(kind)
        is_first = not part.pieces
        delta: Json | None = None
        if source is not None:
            annotation = citations.annotation(source, piece, part.length)
            delta = citations.annotation_delta(len(part.annotations), annotation, source)
            part.annotations.append(annotation)
        part.pieces.append(piece)
        part.length += len(piece)
        if self._voice.is_heard:
            self._voice.say_frame(self._delta_head + _delta(index, kind, piece, is_first, delta))

    def _part(self, kind: str) -> tuple[int, _Part]:
        for index, part in enumerate(self._parts):
            if part.kind == kind:
                return index, part
        self._parts.append(_Part(kind))
        return len(self._parts) - 1, self._parts[-1]


def _delta(index: int, kind: str, piece: str, is_first: bool, annotation: Json | None) -> bytes:
    """The rest of a delta's frame. Put together by hand: it is made for every piece of text."""
    if kind == "refusal":
        return b'{"index":%d,"type":"refusal","refusal":%b}]}}\n\n' % (index, _encode(piece))
    annotations = b""
    if annotation is not None:
        annotations = b',"annotations":[%b]' % _encode(annotation)
    elif is_first:
        annotations = b',"annotations":[]'  # in a part's first delta, and then no more
    return b'{"index":%d,"type":"text","text":{"value":%b%b}}]}}\n\n' % (
        index,
        _encode(piece),
        annotations,
    )


class Answer:
    """What one model turn has said so far."""

    def __init__(
        self, run: Run, turn: int, voice: Voice, toolbox: Toolbox, sources: Sources
    ) -> None:
        self._run = run
        self._turn = turn
        self._voice = voice
        self._toolbox = toolbox
        self._sources = sources
        self.writing: Writing | None = None  # the open message
        self.calling: Step | None = None  # the open step of tool calls
        self._names: list[str] = []  # of the called functions, as the model knows them
        self._arguments: list[list[str]] = []
        self._telling = 0  # the call whose deltas are told now; those of later ones are held
        self._held: list[Json] = []
        self.finish_reason: str | None = None
        self.usage: Usage | None = None

    def feed(self, chunk: Chunk) -> None:
        """Take the next piece. A message that is open must be closed before tool calls come."""
        if chunk.text:
            self._write("text", chunk.text)
        if chunk.refusal:
            self._write("refusal", chunk.refusal)
        for delta in chunk.tool_calls:
            self._call(delta)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
            self._tell_held(is_over=True)
        if chunk.usage is not None:
            self.usage = chunk.usage

    @property
    def calls(self) -> list[Json]:
        """The tool calls, with their arguments as far as they are written."""
        if self.calling is None:
            return []
        calls: list[Json] = self.calling.step_details["tool_calls"]
        for call, pieces in zip(calls, self._arguments, strict=True):
            if call["type"] == "function":
                call["function"]["arguments"] = "".join(pieces)
        return calls

    @property
    def function_calls(self) -> list[Json]:
        """Those that the client has to answer."""
        return [call for call in self.calls if call["type"] == "function"]

    @property
    def own_calls(self) -> list[tuple[Json, str, str]]:
        """Calls of the server's own tools, with the function's name and the arguments."""
        return [
            (call, name, "".join(pieces))
            for call, name, pieces in zip(self.calls, self._names, self._arguments, strict=True)
            if call["type"] != "function"
        ]

    @property
    def written(self) -> str:
        """All that the model wrote in this turn, to count its tokens by."""
        parts = self.writing.content() if self.writing else []
        texts = [part.get("refusal") or part["text"]["value"] for part in parts]
        calls = [
            "".join([name, *pieces])
            for name, pieces in zip(self._names, self._arguments, strict=True)
        ]
        return "\n".join(texts + calls)

    def _write(self, kind: str, piece: str) -> None:
        if self.writing is None:
            self.writing = self._open_message()
        self.writing.add(kind, piece)

    def _open_message(self) -> Writing:
        run, now = self._run, int(time.time())
        message = Message(
            id=ids.new("msg"),
            project_id=run.project_id,
            thread_id=run.thread_id,
            created_at=now,
            status=MessageStatus.IN_PROGRESS,
            incomplete_details=None,
            completed_at=None,
            incomplete_at=None,
            role="assistant",
            content=[],
            assistant_id=run.assistant_id,
            run_id=run.id,
            attachments=[],
            metadata={},
        )
        details = {
            "type": "message_creation",
            "message_creation": {"message_id": message.id},
        }
        step = self._open_step("message_creation", details, now)
        if self._voice.is_heard:
            seen = objects.shape(message, objects.Message)
            self._voice.say("thread.message.created", seen)
            self._voice.say("thread.message.in_progress", seen)
        return Writing(message, step, self._voice, self._sources)

    def _open_step(self, kind: str, details: Json, now: int) -> Step:
        run = self._run
        step = Step(
            id=ids.new("step"),
            project_id=run.project_id,
            thread_id=run.thread_id,
            run_id=run.id,
            assistant_id=run.assistant_id,
            created_at=now,
            type=kind,
            status=StepStatus.IN_PROGRESS,
            expires_at=run.expires_at,
            cancelled_at=None,
            completed_at=None,
            expired_at=None,
            failed_at=None,
            last_error=None,
            step_details=details,
            usage=None,
            turn=self._turn,
        )
        if self._voice.is_heard:
            seen = objects.shape(step, objects.Step)
            self._voice.say("thread.run.step.created", seen)
            self._voice.say("thread.run.step.in_progress", seen)
        return step

    def _call(self, delta: ToolCallDelta) -> None:
        if delta.index > 0 and not self._run.parallel_tool_calls:
            return  # one call a turn was asked for; not every server listens
        if self.calling is None:
            details: Json = {"type": "tool_calls", "tool_calls": []}
            self.calling = self._open_step("tool_calls", details, int(time.time()))
        calls = self.calling.step_details["tool_calls"]
        if delta.index == len(calls):
            calls.append(self._open_call(delta))
            self._say_call({"index": delta.index, **copy.deepcopy(calls[-1])})
        if delta.arguments:
            self._arguments[delta.index].append(delta.arguments)
            if calls[delta.index]["type"] == "function":
                written = {"arguments": delta.arguments}
                self._say_call({"index": delta.index, "type": "function", "function": written})

    def _open_call(self, delta: ToolCallDelta) -> Json:
        name = delta.name or ""
        self._names.append(name)
        self._arguments.append([])
        if self._toolbox.is_own(name):
            return self._toolbox.opened(name, delta.id or ids.new("call"))
        function: Json = {"name": name, "arguments": "", "output": None}
        return {"id": delta.id, "type": "function", "function": function}

    def _say_call(self, call: Json) -> None:
        """One call after the other: for the SDKs' helpers the next one's first delta ends a call,
        and some servers send the fragments of parallel calls in turns."""
        if self._held or call["index"] > self._telling:
            self._held.append(call)
            self._tell_held(is_over=False)
        else:
            self._tell_call(call)

    def _tell_held(self, *, is_over: bool) -> None:
        while self._held:
            for call in self._held:
                if call["index"] <= self._telling:
                    self._tell_call(call)
            self._held = [call for call in self._held if call["index"] > self._telling]
            if not (is_over or _is_whole(self._arguments[self._telling])):
                return
            self._telling += 1

    def _tell_call(self, call: Json) -> None:
        assert self.calling is not None
        if self._voice.is_heard:
            details = {"type": "tool_calls", "tool_calls": [call]}
            data = {
                "id": self.calling.id,
                "object": "thread.run.step.delta",
                "delta": {"step_details": details},
            }
            self._voice.say_frame(frame("thread.run.step.delta", data))


def _is_whole(arguments: list[str]) -> bool:
    if not arguments or not arguments[-1].rstrip().endswith("}"):
        return False
    try:
        msgspec.json.decode("".join(arguments))
    except msgspec.DecodeError:
        return False
    return True


def close_message(message: Message, content: list[Json], reason: str | None) -> None:
    """Complete it, or leave it `incomplete` for that reason with the text so far."""
    now = int(time.time())
    message.content = content
    is_whole = reason is None
    message.status = MessageStatus.COMPLETED if is_whole else MessageStatus.INCOMPLETE
    message.completed_at = now if is_whole else None
    message.incomplete_at = None if is_whole else now
    message.incomplete_details = None if is_whole else {"reason": reason}


def close_step(step: Step, status: StepStatus, last_error: Json | None = None) -> None:
    step.completed_at = step.failed_at = step.cancelled_at = step.expired_at = None
    setattr(step, f"{status.value}_at", int(time.time()))
    step.status = status
    step.last_error = last_error
    step.expires_at = None


def usage_of(usage: Usage) -> Json:
    return rows.usage(
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens
    )
