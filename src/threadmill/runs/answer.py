"""Turning what a model streams into messages, steps and their events.

The order of the events is the original's, and the SDKs' helpers fail on any other: a step comes
before its message, a message before its deltas, one message is open at a time, and no message is
made before its first token.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from threadmill import ids
from threadmill.lifecycle import MessageStatus, StepStatus
from threadmill.llm.stream import Chunk, ToolCallDelta, Usage
from threadmill.runs import code
from threadmill.runs.calls import Call, CodeCall, FunctionCall
from threadmill.runs.context import Context
from threadmill.runs.events import Voice, frame
from threadmill.runs.scanner import Annotation, Scanner, Segment
from threadmill.schemas import objects
from threadmill.store import rows
from threadmill.store.rows import Message, Run, Step

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode


class _Part(msgspec.Struct):
    kind: str  # text, refusal or image_file
    pieces: list[str] = []
    annotations: list[Json] = []
    length: int = 0  # in Unicode code points

    def content(self) -> Json:
        written = "".join(self.pieces)
        if self.kind == "image_file":
            return {"type": "image_file", "image_file": {"file_id": written}}
        if self.kind == "text":
            return {"type": "text", "text": {"value": written, "annotations": self.annotations}}
        return {"type": "refusal", "refusal": written}


class Writing:
    """A message that is being written, with the step that stands for it."""

    def __init__(self, message: Message, step: Step, voice: Voice, context: Context) -> None:
        self.message = message
        self.step = step
        self._voice = voice
        self._made = context.products.made
        kinds = context.kinds_of_parts()
        self._scanner = Scanner(kinds) if kinds else None
        self._parts: list[_Part] = []
        self._delta_head = b'event: thread.message.delta\ndata: {"id":"%b",' % message.id.encode()
        self._delta_head += b'"object":"thread.message.delta","delta":{"content":['
        self._delta_of: dict[str, Callable[..., bytes]] = {}  # a piece's event, by the part's kind
        self.has_news = False  # since it was last saved as a draft

    def add_images(self, file_ids: list[str]) -> None:
        """Before anything else: clients expect a chart above the text that speaks of it."""
        for file_id in file_ids:
            self._parts.append(_Part("image_file", [file_id]))
            shown = {"index": len(self._parts) - 1} | self._parts[-1].content()
            self._voice.say_frame(self._delta_head + _encode(shown) + _DELTA_TAIL)

    def add(self, kind: str, piece: str) -> None:
        """Append to the text or the refusal, and say so."""
        self.has_news = True
        if kind == "text" and self._scanner is not None:
            for segment in self._scanner.feed(piece):
                self._append_segment(segment)
        else:
            self._append(kind, piece, None)

    def finish(self) -> list[Json]:
        """Nothing more is written: the whole content, with what was held back until now. Files that
        were made for the user and are linked are attached to the message, too."""
        for segment in self._scanner.rest() if self._scanner else ():
            self._append_segment(segment)
        linked = [
            annotation["file_path"]["file_id"]
            for part in self._parts
            for annotation in part.annotations
            if annotation["type"] == "file_path"
        ]
        self.message.attachments = [
            {"file_id": file_id, "tools": [{"type": code.NAME}]}
            for file_id in dict.fromkeys(linked)
            if file_id in self._made
        ]
        return self.content()

    def content(self) -> list[Json]:
        return [part.content() for part in self._parts]

    def _append_segment(self, segment: Segment) -> None:
        annotation = None
        if segment.kind is not None:
            _, part = self._part("text")
            annotation = segment.kind.annotation(segment.text, part.length)
        self._append("text", segment.text, annotation)

    def _append(self, kind: str, piece: str, annotation: Annotation | None) -> None:
        _, part = self._part(kind)
        is_first = not part.pieces
        told: Json | None = None
        if annotation is not None:
            told = {"index": len(part.annotations)} | annotation.told
            part.annotations.append(annotation.stored)
        part.pieces.append(piece)
        part.length += len(piece)
        make = self._delta_of[kind]
        if told is None:
            self._voice.say_piece(make, piece, is_first)
        elif self._voice.is_heard:
            self._voice.say_frame(make(piece, is_first, told))

    def _part(self, kind: str) -> tuple[int, _Part]:
        for index, part in enumerate(self._parts):
            if part.kind == kind:
                return index, part
        index = len(self._parts)
        self._parts.append(_Part(kind))
        self._delta_of[kind] = partial(_delta, self._delta_head, index, kind)
        return index, self._parts[-1]


_DELTA_TAIL = b"]}}\n\n"


def _delta(
    head: bytes, index: int, kind: str, piece: str, is_first: bool, annotation: Json | None = None
) -> bytes:
    """A delta's frame. Put together by hand: it is made for every piece of text."""
    if kind == "refusal":
        return b'%b{"index":%d,"type":"refusal","refusal":%b}]}}\n\n' % (
            head,
            index,
            _encode(piece),
        )
    annotations = b""
    if annotation is not None:
        annotations = b',"annotations":[%b]' % _encode(annotation)
    elif is_first:
        annotations = b',"annotations":[]'  # in a part's first delta, and then no more
    return b'%b{"index":%d,"type":"text","text":{"value":%b%b}}]}}\n\n' % (
        head,
        index,
        _encode(piece),
        annotations,
    )


class Answer:
    """What one model turn has said so far."""

    def __init__(self, run: Run, turn: int, voice: Voice, context: Context) -> None:
        self._run = run
        self._turn = turn
        self._voice = voice
        self._context = context
        self.writing: Writing | None = None  # the open message
        self.calling: Step | None = None  # the open step of tool calls
        self.calls: list[Call] = []
        self._telling = 0  # the call whose deltas are told now; those of later ones are held
        self._held: list[tuple[Call, Json]] = []
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
            self._finish_calls()
        if chunk.usage is not None:
            self.usage = chunk.usage

    @property
    def function_calls(self) -> list[Call]:
        """Those that the client has to answer."""
        return [call for call in self.calls if isinstance(call, FunctionCall)]

    @property
    def own_calls(self) -> list[Call]:
        """Calls of the server's own tools."""
        return [call for call in self.calls if not isinstance(call, FunctionCall)]

    @property
    def written(self) -> str:
        """All that the model wrote in this turn, to count its tokens by."""
        return "\n".join([*self.said, *(call.name + call.arguments for call in self.calls)])

    @property
    def said(self) -> list[str]:
        """The texts of the message that is open."""
        parts = self.writing.content() if self.writing else []
        return [
            part["text"]["value"] if part["type"] == "text" else part["refusal"]
            for part in parts
            if part["type"] != "image_file"
        ]

    def show_calls(self) -> Step:
        """The step with its calls as they stand now."""
        assert self.calling is not None
        shown = [call.shown() for call in self.calls]
        self.calling.step_details = {"type": "tool_calls", "tool_calls": shown}
        return self.calling

    def say_output(self, call: CodeCall, output: Json) -> None:
        self._say_call(call, output)
        self._voice.send()

    def end_call(self, call: CodeCall) -> None:
        """It was run: the next one may be told."""
        call.is_over = True
        self._tell_held()
        self._voice.send()

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
        writing = Writing(message, step, self._voice, self._context)
        writing.add_images(self._context.products.take_images())
        return writing

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
        if delta.index == len(self.calls):
            call = self._open_call(delta)
            self.calls.append(call)
            self._say_call(call, call.details, is_first=True)
        if delta.arguments:
            call = self.calls[delta.index]
            if written := call.write(delta.arguments):
                self._say_call(call, written)

    def _open_call(self, delta: ToolCallDelta) -> Call:
        name = delta.name or ""
        toolbox = self._context.toolbox
        kind = toolbox.kind(name)
        kinds: dict[str, type[Call]] = {"function": FunctionCall, code.NAME: CodeCall}
        made = kinds.get(kind, Call)
        return made(len(self.calls), delta.id or ids.new("call"), name, kind, toolbox.opened(name))

    def _finish_calls(self) -> None:
        for call in self.calls:
            if written := call.finish():
                self._say_call(call, written)
        self._tell_held()

    def _say_call(self, call: Call, written: Json, *, is_first: bool = False) -> None:
        """One call after the other: for the SDKs' helpers the next one's first delta ends a call,
        and some servers send the fragments of parallel calls in turns."""
        told: Json = {"index": call.index}
        if is_first:
            told["id"] = call.id
        told |= {"type": call.kind, call.kind: dict(written)}
        if self._held or call.index > self._telling:
            self._held.append((call, told))
            self._tell_held()
        else:
            self._tell_call(told)

    def _tell_held(self) -> None:
        while self._held:
            for call, told in self._held:
                if call.index <= self._telling:
                    self._tell_call(told)
            self._held = [held for held in self._held if held[0].index > self._telling]
            if not self._is_told(self.calls[self._telling]):
                return
            self._telling += 1

    def _is_told(self, call: Call) -> bool:
        """Whether nothing more is told of it. Code puts something out when it is run, and that is
        after all of the model's turn."""
        if isinstance(call, CodeCall):
            return call.is_over
        return self.finish_reason is not None or call.is_whole

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
