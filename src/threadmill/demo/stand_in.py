"""A stand-in for a language model that has something sensible to say to anything.

It knows the exchanges of the company that the demo is about word by word, whoever asks. To all else
it answers by rule: it calls a function that fits, searches where there are files, draws where code
can be run, and never pretends to have understood.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.lifecycle import RunStatus

Json = dict[str, Any]

LARGE, SMALL = "stand-in-large", "stand-in-small"

NOT_A_MODEL = "*(The demo's stand-in has put this together by rule: it is no language model.)*"
_INTRODUCTION = """\
I am the **stand-in** of this demo: no language model, so I cannot think about “{said}”. All \
around me is real: the server, its Postgres, the tools, every event on the wire.

What I can do with the tools that an assistant has:

| tool | try |
|---|---|
| `file_search` | *How long may I take to send something back?* |
| a function | *Where is order 4711?* |
| `code_interpreter` | *Draw a chart of 3, 5, 8 and 13* |

With a model of yours (`THREADMILL_MODEL_BASE_URL`) this place is taken by its answer.\
"""
_CODE = """\
import matplotlib.pyplot as plt

values = {values}
labels = {labels}
plt.figure(figsize=(7, 4))
plt.bar(labels, values, color="#2f6f6a")
plt.title({title})
plt.tight_layout()
plt.show()
print(f"{{len(values)}} values, {{sum(values):g}} in all, {{max(values):g}} at most")
"""
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"]
_SMALL_TALK = re.compile(
    r"\W*(hi|hello|hey|thanks?|thank you|bye|ok(ay)?|test)\b[\W\w]{0,20}$", re.I
)
_DRAWING = re.compile(r"\b(draw|chart|plot|graph|diagram|histogram|calculate|compute|code)", re.I)
_ATTACHED = re.compile(r"\s*^Attached files: file-.*\Z", re.M)  # the server tells the model
_NOTES = re.compile(r"\s*^Images that the user is shown.*\Z", re.M | re.S)  # and of its code
_CITED = re.compile(r"\{cite:([^}]+)\}")
_MARKER = re.compile(r"【\d+:\d+†([^】]*)】")
_DULL = re.compile(
    r"an?|and|are|can|do|does|for|how|i[nst]?|it|me|my|o[fn]|the|to|wh(at|en|ere|o)|with|you|your"
)
_WORDS_IN_CHUNK = 2


@dataclass(frozen=True)
class Exchange:
    """A question, and what becomes of the run that answers it."""

    question: str
    answer: str = ""  # {cite:returns.md} becomes the marker of a passage of that file
    calls: Sequence[Sequence[ToolCall]] = ()  # of each turn before the answer
    outputs: Mapping[str, Json] = field(default_factory=dict)  # of the client's functions
    end: RunStatus = RunStatus.COMPLETED
    refused: Reply | None = None  # instead of an answer, `refusals` times
    refusals: int = 1_000_000
    options: Mapping[str, Any] = field(default_factory=dict)  # of the run
    pace_s: float | None = None  # between two pieces of the answer; the stand-in's own if not given


class StandIn(ScriptedModel):
    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        super().__init__(keep_requests=False)
        self.models = [LARGE, SMALL]
        self.answer = self.reply_to
        self.runs_code = True
        self.pace_s = 0.03  # that of a model of middling speed
        self._exchanges = {one.question: one for one in exchanges}
        self._refused: dict[str, int] = {}

    def reply_to(self, request: Json) -> Reply:
        messages = request["messages"]
        asked = max((at for at, one in enumerate(messages) if one["role"] == "user"), default=-1)
        question = _ATTACHED.sub("", _text(messages[asked])) if asked >= 0 else ""
        exchange = self._exchanges.get(question)
        if exchange is None:
            reply = _reply_by_rule(request, question, messages[asked + 1 :])
        else:
            reply = self._reply_from_script(request, exchange, messages[asked + 1 :])
        reply.delay_s = reply.delay_s or self.pace_s
        return reply

    def _reply_from_script(self, request: Json, exchange: Exchange, since: list[Json]) -> Reply:
        if exchange.refused is not None:
            count = self._refused[exchange.question] = self._refused.get(exchange.question, 0) + 1
            if count <= exchange.refusals:
                return Reply(status=exchange.refused.status, body=exchange.refused.body)
        turn = sum(bool(message.get("tool_calls")) for message in since)
        if turn < len(exchange.calls):
            calls = [call for call in exchange.calls[turn] if self._has(request, call.name)]
            if calls:
                return Reply(tool_calls=calls)
        text = _CITED.sub(lambda found: _marker_of(found[1], since), exchange.answer)
        reply = Reply(text=_pieces(text), delay_s=exchange.pace_s or 0.0)
        if exchange.end is RunStatus.INCOMPLETE:
            reply.text, reply.finish_reason = reply.text[: len(reply.text) // 2], "length"
        return reply

    def _has(self, request: Json, name: str) -> bool:
        return name in _tools(request) and (self.runs_code or name != "code_interpreter")


def _reply_by_rule(request: Json, question: str, since: list[Json]) -> Reply:
    wanted = request.get("response_format") or {}
    if wanted.get("type") in ("json_object", "json_schema"):
        schema = (wanted.get("json_schema") or {}).get("schema") or _ANSWER_SCHEMA
        return Reply(text=_pieces(json.dumps(example(schema, question), indent=2)))
    outputs = [_text(message) for message in since if message["role"] == "tool"]
    if outputs:
        called = [call["function"]["name"] for one in since for call in one.get("tool_calls") or ()]
        return Reply(text=_pieces(_told(called, outputs, question)))
    call = _call(request, question)
    if call is not None:
        return Reply(tool_calls=[call])
    return Reply(text=_pieces(_INTRODUCTION.format(said=" ".join(question.split())[:80])))


_ANSWER_SCHEMA: Json = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "is_stand_in": {"type": "boolean"}},
}


# --- which tool ---


def _call(request: Json, question: str) -> ToolCall | None:
    tools, choice = _tools(request), request.get("tool_choice")
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        return _call_of(tools.get(choice["function"]["name"], {}), question)
    if choice != "required" and _SMALL_TALK.match(question):
        return None
    kinds = {_kind(name): name for name in tools}
    if "code_interpreter" in kinds and _DRAWING.search(question):
        return _call_of(tools[kinds["code_interpreter"]], question)
    functions = [tool for name, tool in tools.items() if _kind(name) == "function"]
    asked = _words(question)
    best = max(functions, key=lambda tool: len(asked & _words(_about(tool))), default=None)
    if best is not None and ("file_search" not in kinds or asked & _words(_about(best))):
        return _call_of(best, question)
    if "file_search" in kinds:
        return _call_of(tools[kinds["file_search"]], question)
    return _call_of(next(iter(tools.values())), question) if choice == "required" else None


def _tools(request: Json) -> dict[str, Json]:
    return {tool["function"]["name"]: tool["function"] for tool in request.get("tools") or ()}


def _kind(name: str) -> str:
    # A tool of the server has a longer name where the assistant has a function of that one.
    name = name.removeprefix("threadmill_")
    return name if name in ("file_search", "code_interpreter") else "function"


def _about(function: Json) -> str:
    return f"{function['name'].replace('_', ' ')} {function.get('description', '')}"


def _call_of(function: Json, question: str) -> ToolCall | None:
    if not function:
        return None
    kind = _kind(function["name"])
    if kind == "file_search":
        arguments: Json = {"queries": [" ".join(question.split())[:200]]}
    elif kind == "code_interpreter":
        arguments = {"code": _code(question)}
    else:
        arguments = example(function.get("parameters") or {}, question)
    written = json.dumps(arguments)
    return ToolCall(function["name"], [written[at : at + 12] for at in range(0, len(written), 12)])


def _code(question: str) -> str:
    values = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", question)][:24]
    labels = [str(at + 1) for at in range(len(values))]
    if len(values) < 2:
        values, labels = [12, 15, 11, 18, 22, 25, 24, 29], _MONTHS
    title = json.dumps(" ".join(question.split())[:60])
    return _CODE.format(values=[round(value, 6) for value in values], labels=labels, title=title)


def example(schema: Json, question: str, name: str = "") -> Any:
    """A value that fits the schema, with what the question holds where it can be guessed."""
    if "const" in schema or schema.get("enum"):
        allowed = schema.get("enum") or [schema["const"]]
        said = question.lower()
        return next((one for one in allowed if str(one).lower() in said), allowed[0])
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object":
        properties = schema.get("properties") or {}
        return {key: example(of_key, question, key) for key, of_key in properties.items()}
    if kind == "array":
        return [example(schema.get("items") or {}, question, name)]
    numbers = re.findall(r"\d+(?:\.\d+)?", question)
    if kind in ("integer", "number"):
        found = float(numbers[0]) if numbers else schema.get("minimum", 1)
        return int(found) if kind == "integer" else found
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    if numbers and re.search(r"number|order|id$|code|date", name):
        return numbers[0]
    names = re.findall(r"(?<!^)(?<![.?!] )\b[A-ZÀ-Þ][\w’-]+", question)
    return names[-1] if names else " ".join(question.split())[:60] or "example"


# --- what is said of their outputs ---


def _told(called: list[str], outputs: list[str], question: str) -> str:
    said = []
    for name, output in zip(called, outputs, strict=False):
        kind = _kind(name)
        if kind == "file_search":
            said.append(_told_of_passages(output, question))
        elif kind == "code_interpreter":
            printed = _NOTES.sub("", output).strip()[:1500]
            said.append(f"The code has run. It printed:\n\n```\n{printed}\n```")
        else:
            said.append(_told_of_function(name, output))
    return "\n\n".join([*said, NOT_A_MODEL])


def _told_of_passages(output: str, question: str) -> str:
    """The sentence that shares most words with the question, long ones before all, and where it
    stands."""
    asked = _words(question)
    best, best_score = "", 0
    for found in re.finditer(r"(【\d+:\d+†[^】]*】)[^\n]*\n(.*?)(?=\n\n【|\Z)", output, re.S):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(found[2].split())):
            if (score := sum(map(len, asked & _words(sentence)))) > best_score:
                best, best_score = f"{sentence.strip('# ')} {found[1]}", score
    if not best:
        return "I have searched the files, and found nothing that shares a word with the question."
    return f"The files say:\n\n> {best}"


def _told_of_function(name: str, output: str) -> str:
    try:
        facts = json.loads(output)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or not facts:
        return f"`{name}` returned:\n\n```\n{output[:1500]}\n```"
    lines = [f"- **{key.replace('_', ' ')}**: {value}" for key, value in facts.items()]
    return f"This is what `{name}` knows:\n\n" + "\n".join(lines[:40])


def _marker_of(filename: str, since: list[Json]) -> str:
    for message in since:
        for found in _MARKER.finditer(_text(message)) if message["role"] == "tool" else ():
            if found[1] == filename:
                return found[0]
    return ""


def _text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def _words(text: str) -> set[str]:
    """Without their endings, near enough."""
    words = re.findall(r"[^\W_]{2,}", text.lower())
    return {word.rstrip("s") for word in words if not _DULL.fullmatch(word)}


def _pieces(text: str) -> list[str]:
    words = re.findall(r"\S*\s*", text)
    return [
        "".join(words[at : at + _WORDS_IN_CHUNK])
        for at in range(0, len(words), _WORDS_IN_CHUNK)
        if words[at]
    ]
