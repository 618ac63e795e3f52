"""An assistant as it stands in the form: all of it text, right or wrong, as somebody typed it."""

from typing import Any

import msgspec
import orjson

from threadmill.dashboard.forms import Form, number
from threadmill.dashboard.functions import definition, read
from threadmill.errors import InvalidRequest
from threadmill.schemas.parse import parse
from threadmill.schemas.requests import Function, ModifyAssistant
from threadmill.store.rows import Assistant, AssistantContent

Json = dict[str, Any]

_FIELDS_OF_PARAMS = {
    "tool_resources.file_search": "vector_store",
    "tool_resources.code_interpreter": "files",
}


class Draft(msgspec.Struct, kw_only=True):
    name: str = ""
    description: str = ""
    instructions: str = ""
    model: str = ""
    temperature: str = ""
    top_p: str = ""
    reasoning_effort: str = ""
    response_format: str = ""
    code_interpreter: bool = False
    files: str = ""  # ids, one a line
    file_search: bool = False
    vector_store: str = ""
    max_num_results: str = ""
    ranker: str = ""
    score_threshold: str = ""
    embedding_weight: str = ""
    text_weight: str = ""
    functions: list[str] = []
    pairs: list[tuple[str, str]] = []


_TEXTS = [field.name for field in msgspec.structs.fields(Draft) if field.type is str]
_OF_SEARCH = ("max_num_results", "ranker", "score_threshold", "embedding_weight", "text_weight")
_OF_TOOLS = ("code_interpreter", "file_search", "functions", *_OF_SEARCH)
_PLAIN = ("name", "description", "instructions", "reasoning_effort")
_NUMBERS = ("temperature", "top_p")


class Faults(Exception):
    """What is wrong with a draft, in words, by the field where it stands ('' for the whole)."""

    def __init__(self, by_field: dict[str, str]) -> None:
        super().__init__(by_field)
        self.by_field = by_field


def typed(form: Form) -> Draft:
    draft = Draft()
    for name in _TEXTS:
        setattr(draft, name, form.get(name))
    draft.code_interpreter = bool(form.get("code_interpreter"))
    draft.file_search = bool(form.get("file_search"))
    draft.functions = [text for text in form.all("function") if text.strip()]
    pairs = zip(form.all("key"), form.all("value"), strict=False)
    # A line without a key is one that was not filled in, or was emptied to remove it.
    draft.pairs = [(key, value) for key, value in pairs if key.strip()]
    return draft


def drafted(content: Assistant | AssistantContent) -> Draft:
    search: Json = next((t["file_search"] for t in content.tools if t["type"] == "file_search"), {})
    ranking = search.get("ranking_options") or {}
    hybrid = ranking.get("hybrid_search") or {}
    resources = content.tool_resources
    draft = Draft(
        name=content.name or "",
        description=content.description or "",
        instructions=content.instructions or "",
        model=content.model,
        temperature=_number_text(content.temperature),
        top_p=_number_text(content.top_p),
        reasoning_effort=content.reasoning_effort or "",
        response_format=_format_text(content.response_format),
        code_interpreter=any(tool["type"] == "code_interpreter" for tool in content.tools),
        files="\n".join(resources.get("code_interpreter", {}).get("file_ids", [])),
        file_search=any(tool["type"] == "file_search" for tool in content.tools),
        vector_store="".join(resources.get("file_search", {}).get("vector_store_ids", [])),
        max_num_results=_number_text(search.get("max_num_results")),
        ranker=ranking.get("ranker") or "",
        score_threshold=_number_text(ranking.get("score_threshold")),
        embedding_weight=_number_text(hybrid.get("embedding_weight")),
        text_weight=_number_text(hybrid.get("text_weight")),
        functions=[_indented(t["function"]) for t in content.tools if t["type"] == "function"],
        pairs=[(key, value) for key, value in content.metadata.items() if key.strip()],
    )
    for name in _TEXTS:  # as a browser gives them back
        setattr(draft, name, _with_our_line_ends(getattr(draft, name)))
    draft.pairs = [(key, _with_our_line_ends(value)) for key, value in draft.pairs]
    return draft


def body(draft: Draft, shown: Draft) -> Json:
    """What the API would be sent to make of what was shown what was typed: no more than that, so
    that nothing is changed by having stood in a form. Raises Faults.
    """
    sent: Json = {}
    changed = {n for n in Draft.__struct_fields__ if getattr(draft, n) != getattr(shown, n)}
    for name in _PLAIN:
        if name in changed:
            sent[name] = getattr(draft, name) or None
    for name in _NUMBERS:
        if name in changed:
            sent[name] = number(getattr(draft, name))
    if "model" in changed or not shown.model:
        sent["model"] = draft.model.strip()
    if "pairs" in changed:
        sent["metadata"] = dict(draft.pairs)
    resources: Json = {}
    if "files" in changed:
        resources["code_interpreter"] = {"file_ids": draft.files.split()}
    if "vector_store" in changed:
        resources["file_search"] = {"vector_store_ids": draft.vector_store.split()}
    if resources:
        sent["tool_resources"] = resources
    if faults := _faults(draft, changed):
        # Of what is right as JSON, the API tells one fault: it is told along with these.
        try:
            parse(ModifyAssistant, orjson.dumps(sent))
        except InvalidRequest as error:
            faults |= place(error, draft)
        raise Faults(faults)
    if "response_format" in changed:
        sent["response_format"] = _format(draft.response_format)
    if changed & set(_OF_TOOLS):
        sent["tools"] = _tools(draft)
    return sent


def restoring(content: AssistantContent) -> Json:
    """What the API would be sent to make it so again."""
    sent: Json = msgspec.to_builtins(content)
    nothing: Json = {
        "code_interpreter": {"file_ids": []},
        "file_search": {"vector_store_ids": []},
    }
    return sent | {"tool_resources": nothing | content.tool_resources}


def place(error: InvalidRequest, draft: Draft) -> dict[str, str]:
    """The field at which the API's refusal is shown."""
    param = error.param or ""
    for beginning, field in _FIELDS_OF_PARAMS.items():
        if param.startswith(beginning):
            return {field: error.message}
    if error.message.startswith("No vector store"):  # it has no param, as the original's had none
        return {"vector_store": error.message}
    if error.message.startswith("No such File"):
        return {"files": error.message}
    if param.startswith("metadata"):
        return {"metadata": error.message}
    if param.startswith("response_format"):
        return {"response_format": error.message}
    if param.startswith("tools["):
        before = draft.code_interpreter + draft.file_search
        at = int(param[len("tools[") : param.index("]")]) - before
        if at >= 0:
            return {f"function-{at}": error.message}
        name = param.rpartition(".")[2]
        return {name if name in _OF_SEARCH else "file_search": error.message}
    return {param if param in _TEXTS else "": error.message}


def fault_of_function(text: str) -> str | None:
    """What the API would say of it."""
    try:
        function = definition(read(text))
        if not isinstance(function, dict):
            return 'A function is an object that begins so: {"name": ...'
        parse(Function, orjson.dumps(function))
    except InvalidRequest as error:
        return error.message
    return None


def _faults(draft: Draft, changed: set[str]) -> dict[str, str]:
    faults = {
        f"function-{at}": fault
        for at, text in enumerate(draft.functions)
        if (fault := fault_of_function(text))
    }
    if len(dict(draft.pairs)) < len(draft.pairs):
        faults["metadata"] = "One key is there twice."
    if "response_format" in changed:
        try:
            _format(draft.response_format)
        except InvalidRequest as error:
            faults["response_format"] = error.message
    return faults


def _tools(draft: Draft) -> list[Json]:
    tools: list[Json] = []
    if draft.code_interpreter:
        tools.append({"type": "code_interpreter"})
    if draft.file_search:
        tools.append({"type": "file_search", "file_search": _search(draft)})
    functions = (definition(read(text)) for text in draft.functions)
    return [*tools, *({"type": "function", "function": one} for one in functions)]


def _search(draft: Draft) -> Json:
    weights = {"embedding_weight": draft.embedding_weight, "text_weight": draft.text_weight}
    given = {name: number(text) for name, text in weights.items() if text.strip()}
    return {
        "max_num_results": number(draft.max_num_results),
        "ranking_options": {
            "ranker": draft.ranker or None,
            "score_threshold": number(draft.score_threshold),
            "hybrid_search": given or None,
        },
    }


def _format(text: str) -> Any:
    if text.strip() in ("", "auto"):
        return "auto"
    return read(text)


def _number_text(value: float | None) -> str:
    if value is None:
        return ""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _format_text(stored: Any) -> str:
    return stored if isinstance(stored, str) else _indented(stored)


def _indented(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _with_our_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
