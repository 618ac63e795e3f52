"""From the objects of an archive, as the original's lists returned them, to rows.

What the original left out at times is filled in, what nobody can go on with is brought to an end (a
run that was queued at the export would else be executed here), and every id goes through `name`,
which gives the new one.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from threadmill.errors import ApiError
from threadmill.lifecycle import ENDED, MessageStatus, RunStatus, StepStatus
from threadmill.schemas.parse import Shape, parse
from threadmill.schemas.requests import (
    CreateAssistant,
    CreateThread,
    CreateVectorStore,
    CreateVectorStoreFile,
    ExpiresAfter,
    normal_chunking,
)

Json = dict[str, Any]
Row = dict[str, Any]
Name = Callable[[str, str], str]  # the kind ("asst", "file", ...) and the old id to the new id
S = TypeVar("S", bound=Shape)
T = TypeVar("T", bound="Object")

_DAY_S = 24 * 3600
_RUN_EXPIRES_AFTER_S = 600
_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"  # also safe as the name of a file

# Postgres keeps more, but what lies beyond is no time at all.
Time = Annotated[int, Meta(ge=0, lt=2**33)]
Id = Annotated[str, Meta(pattern=_ID_PATTERN)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class Broken(Exception):
    """A line that cannot be imported; says why."""


class Object(msgspec.Struct, kw_only=True):
    """What all of them have. Fields that are not named here are left out."""

    id: Id
    created_at: Time


def read(line: Json, wanted: type[T]) -> T:
    try:
        return msgspec.convert(line, wanted)
    except msgspec.ValidationError as error:
        raise Broken(str(error)) from None


def _checked(shape: type[S], line: Json, *names: str) -> S:
    """Those fields of the line, checked as those of a request are. What an endpoint writes from
    them, we write."""
    given = {name: line[name] for name in names if line.get(name) is not None}
    try:
        return parse(shape, orjson.dumps(given))
    except ApiError as error:
        raise Broken(error.message) from None


# --- files and vector stores ---


class ExportedFile(Object):
    filename: Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
    purpose: Literal[
        "assistants",
        "assistants_output",
        "batch",
        "batch_output",
        "evals",
        "fine-tune",
        "fine-tune-results",
        "user_data",
        "vision",
    ]
    expires_at: Time | None = None


def file(line: Json, name: Name) -> Row:
    """Without size and hash, which are those of the bytes that are found."""
    given = read(line, ExportedFile)
    return {
        "id": name("file", given.id),
        "created_at": given.created_at,
        "expires_at": given.expires_at,
        "filename": given.filename,
        "purpose": given.purpose,
    }


class ExportedVectorStore(Object):
    status: Literal["expired", "in_progress", "completed"] = "completed"
    last_active_at: Time | None = None
    expires_at: Time | None = None


def vector_store(line: Json, name: Name) -> Row:
    """A store that was alive lives on: being imported is activity, or one that expires after days
    without any would be thrown away at once."""
    given = read(line, ExportedVectorStore)
    checked = _checked(
        CreateVectorStore, line, "name", "description", "expires_after", "metadata", "search"
    )
    expires_after = checked.expires_after
    last_active_at = given.last_active_at or given.created_at
    expires_at = given.expires_at or given.created_at if given.status == "expired" else None
    if expires_after is not None and expires_at is None:
        last_active_at = int(time.time())
        expires_at = last_active_at + expires_after.days * _DAY_S
    return {
        "id": name("vs", given.id),
        "created_at": given.created_at,
        "name": checked.name,
        "description": checked.description,
        "metadata": checked.metadata or {},
        "expires_after": _plain(expires_after),
        "last_active_at": last_active_at,
        "expires_at": expires_at,
        "search": checked.search.model_dump(exclude_unset=True) if checked.search else {},
    }


def _plain(expires_after: ExpiresAfter | None) -> Json | None:
    return None if expires_after is None else expires_after.model_dump()


class ExportedVectorStoreFile(Object):
    vector_store_id: Id
    status: Literal["in_progress", "completed", "failed", "cancelled"] = "completed"
    last_error: Json | None = None
    chunking_strategy: Json | None = None


def vector_store_file(line: Json, name: Name) -> Row:
    """What was completed waits here to be ingested: an archive has no chunks and no vectors."""
    given = read(line, ExportedVectorStoreFile)
    strategy = given.chunking_strategy
    if strategy is not None and strategy.get("type") == "other":  # of before there were any
        line = line | {"chunking_strategy": None}
    checked = _checked(
        CreateVectorStoreFile, line | {"file_id": given.id}, "file_id", "chunking_strategy",
        "attributes",
    )  # fmt: skip
    has_failed = given.status in ("failed", "cancelled")
    return {
        "vector_store_id": name("vs", given.vector_store_id),
        "id": name("file", given.id),
        "created_at": given.created_at,
        "status": given.status if has_failed else "in_progress",
        "last_error": given.last_error if given.status == "failed" else None,
        "chunking_strategy": normal_chunking(checked.chunking_strategy),
        "attributes": checked.attributes or {},
    }


# --- assistants and threads ---


def assistant(line: Json, name: Name) -> Row:
    given = read(line, Object)
    line = line | {"response_format": _by_api_names(line.get("response_format"))}
    checked = _checked(
        CreateAssistant, line, "model", "name", "description", "instructions", "tools",
        "tool_resources", "metadata", "temperature", "top_p", "reasoning_effort",
        "response_format",
    )  # fmt: skip
    return {
        "id": name("asst", given.id),
        "created_at": given.created_at,
        "name": checked.name,
        "description": checked.description,
        "model": checked.model,
        "instructions": checked.instructions,
        "tools": checked.normal_tools(),
        "tool_resources": _named_resources(checked.normal_tool_resources(), name),
        "metadata": checked.metadata or {},
        "temperature": _chosen(checked.temperature),
        "top_p": _chosen(checked.top_p),
        "reasoning_effort": checked.reasoning_effort,
        "response_format": checked.normal_response_format(),
    }


def _by_api_names(response_format: Any) -> Any:
    """The Python SDK calls the field `schema_`, and so do dumps that were made with its names."""
    json_schema = isinstance(response_format, dict) and response_format.get("json_schema")
    if not isinstance(json_schema, dict) or "schema_" not in json_schema:
        return response_format
    renamed = {name.removesuffix("_"): value for name, value in json_schema.items()}
    return response_format | {"json_schema": renamed}


def _chosen(value: float | None) -> float | None:
    """The original showed 1.0 where nothing was chosen. Sending that along would not be the same:
    some models refuse the parameter."""
    return None if value == 1.0 else value


def thread(line: Json, name: Name) -> Row:
    given = read(line, Object)
    checked = _checked(CreateThread, line, "metadata", "tool_resources")
    return {
        "id": name("thread", given.id),
        "created_at": given.created_at,
        "metadata": checked.metadata or {},
        "tool_resources": _named_resources(checked.normal_tool_resources(), name),
        "active_at": given.created_at,
    }


def _named_resources(resources: Json, name: Name) -> Json:
    """Of the normal form."""
    named: Json = {}
    if "code_interpreter" in resources:
        file_ids = resources["code_interpreter"]["file_ids"]
        named["code_interpreter"] = {"file_ids": [name("file", one) for one in file_ids]}
    if "file_search" in resources:
        store_ids = resources["file_search"]["vector_store_ids"]
        named["file_search"] = {"vector_store_ids": [name("vs", one) for one in store_ids]}
    return named


# --- messages ---


class Text(msgspec.Struct):
    value: str
    annotations: list[Json] = []


class ImageFile(msgspec.Struct):
    file_id: Id
    detail: Literal["auto", "low", "high"] | None = None


class ImageUrl(msgspec.Struct):
    url: Annotated[str, Meta(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: Text

    def plain(self, name: Name) -> Json:
        annotations = [_annotation(one, name) for one in self.text.annotations]
        return {"type": "text", "text": {"value": self.text.value, "annotations": annotations}}


class ImageFilePart(msgspec.Struct, tag_field="type", tag="image_file"):
    image_file: ImageFile

    def plain(self, name: Name) -> Json:
        image = {"file_id": name("file", self.image_file.file_id)}
        return {"type": "image_file", "image_file": image | _detail(self.image_file)}


class ImageUrlPart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl

    def plain(self, name: Name) -> Json:
        image = {"url": self.image_url.url}
        return {"type": "image_url", "image_url": image | _detail(self.image_url)}


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str

    def plain(self, name: Name) -> Json:
        return {"type": "refusal", "refusal": self.refusal}


class AttachmentTool(msgspec.Struct):
    type: Literal["code_interpreter", "file_search"]


class Attachment(msgspec.Struct):
    file_id: Id
    tools: list[AttachmentTool] | None = None


class ExportedMessage(Object):
    thread_id: Id
    role: Literal["user", "assistant"]
    content: list[TextPart | ImageFilePart | ImageUrlPart | RefusalPart]
    status: MessageStatus | None = None  # lists left these four out
    incomplete_details: Json | None = None
    completed_at: Time | None = None
    incomplete_at: Time | None = None
    assistant_id: Id | None = None
    run_id: Id | None = None
    attachments: list[Attachment] | None = None
    metadata: Metadata | None = None


def message(line: Json, name: Name) -> Row:
    given = read(line, ExportedMessage)
    status = given.status or MessageStatus.COMPLETED
    incomplete_details = given.incomplete_details
    if status == MessageStatus.IN_PROGRESS:  # and nobody writes on
        status, incomplete_details = MessageStatus.INCOMPLETE, {"reason": "run_expired"}
    is_complete = status == MessageStatus.COMPLETED
    return {
        "thread_id": name("thread", given.thread_id),
        "id": name("msg", given.id),
        "created_at": given.created_at,
        "status": status.value,
        "incomplete_details": None if is_complete else incomplete_details,
        "completed_at": (given.completed_at or given.created_at) if is_complete else None,
        "incomplete_at": None if is_complete else given.incomplete_at or given.created_at,
        "role": given.role,
        "content": [part.plain(name) for part in given.content],
        "assistant_id": given.assistant_id and name("asst", given.assistant_id),
        "run_id": given.run_id and name("run", given.run_id),
        "attachments": [_attachment(one, name) for one in given.attachments or []],
        "metadata": given.metadata or {},
    }


def _detail(image: ImageFile | ImageUrl) -> Json:
    return {"detail": image.detail or "auto"}


def _attachment(attachment: Attachment, name: Name) -> Json:
    tools = [{"type": tool.type} for tool in attachment.tools or []]
    return {"file_id": name("file", attachment.file_id), "tools": tools}


def _annotation(annotation: Json, name: Name) -> Json:
    """As it is, but for the file's id: {"type": "file_citation", "file_citation": {"file_id"}}."""
    kind = annotation.get("type")
    if kind not in ("file_citation", "file_path"):
        raise Broken(f"The annotation type {kind!r:.40} is not known.")
    return annotation | {kind: _with_named_file(annotation.get(kind), name)}


def _with_named_file(holder: Any, name: Name) -> Json:
    if not isinstance(holder, dict) or not isinstance(holder.get("file_id"), str):
        raise Broken("An annotation, an image or a search result lacks its file_id.")
    return holder | {"file_id": name("file", holder["file_id"])}


# --- runs and steps ---


class CachedTokens(msgspec.Struct):
    cached_tokens: Annotated[int, Meta(ge=0)] = 0


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: Annotated[int, Meta(ge=0)] = 0


class Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    completion_tokens: Annotated[int, Meta(ge=0)] = 0
    prompt_token_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class ExportedRun(Object):
    thread_id: Id
    assistant_id: Id
    status: RunStatus
    model: str
    started_at: Time | None = None
    expires_at: Time | None = None
    cancelled_at: Time | None = None
    failed_at: Time | None = None
    completed_at: Time | None = None
    last_error: Json | None = None
    incomplete_details: Json | None = None
    instructions: str | None = None
    tools: list[Json] = []
    tool_resources: Json | None = None
    metadata: Metadata | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
    max_prompt_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    truncation_strategy: Json | None = None
    response_format: str | Json | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    usage: Usage | None = None


def run(line: Json, name: Name) -> Row:
    given = read(line, ExportedRun)
    resources = _checked(CreateThread, line, "tool_resources").normal_tool_resources()
    # What had not ended when the original was switched off never will.
    status = given.status if given.status in ENDED else RunStatus.EXPIRED
    usage = given.usage or Usage()
    return {
        "thread_id": name("thread", given.thread_id),
        "id": name("run", given.id),
        "assistant_id": name("asst", given.assistant_id),
        "created_at": given.created_at,
        "status": status.value,
        "started_at": given.started_at,
        "expires_at": given.expires_at or given.created_at + _RUN_EXPIRES_AFTER_S,
        **_ends(given, status),
        "last_error": given.last_error,
        "incomplete_details": given.incomplete_details,
        "model": given.model,
        "instructions": given.instructions,
        "tools": given.tools,
        "tool_resources": _named_resources(resources, name),
        "metadata": given.metadata or {},
        "temperature": _chosen(given.temperature),
        "top_p": _chosen(given.top_p),
        "reasoning_effort": given.reasoning_effort,
        "max_prompt_tokens": given.max_prompt_tokens,
        "max_completion_tokens": given.max_completion_tokens,
        "truncation_strategy": given.truncation_strategy or {"type": "auto", "last_messages": None},
        "response_format": _by_api_names(given.response_format) or "auto",
        "tool_choice": given.tool_choice or "auto",
        "parallel_tool_calls": given.parallel_tool_calls is not False,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": (usage.prompt_token_details or CachedTokens()).cached_tokens,
        "reasoning_tokens": (usage.completion_tokens_details or ReasoningTokens()).reasoning_tokens,
        "queued_at": given.created_at,
    }


def _ends(given: ExportedRun, status: RunStatus) -> Row:
    """The one time that belongs to the status, as the table demands."""
    some_time = given.started_at or given.created_at
    is_complete = status in (RunStatus.COMPLETED, RunStatus.INCOMPLETE)
    return {
        "completed_at": (given.completed_at or some_time) if is_complete else None,
        "failed_at": (given.failed_at or some_time) if status == RunStatus.FAILED else None,
        "cancelled_at": (
            (given.cancelled_at or some_time) if status == RunStatus.CANCELLED else None
        ),
    }


class CreatedMessage(msgspec.Struct):
    message_id: Id


class MessageCreation(msgspec.Struct, tag_field="type", tag="message_creation"):
    message_creation: CreatedMessage

    def plain(self, name: Name) -> Json:
        message_id = name("msg", self.message_creation.message_id)
        return {"type": "message_creation", "message_creation": {"message_id": message_id}}


class ToolCalls(msgspec.Struct, tag_field="type", tag="tool_calls"):
    tool_calls: list[Json]

    def plain(self, name: Name) -> Json:
        calls = [_call(call, name) for call in self.tool_calls]
        return {"type": "tool_calls", "tool_calls": calls}


class ExportedStep(Object):
    run_id: Id
    thread_id: Id
    assistant_id: Id
    status: StepStatus
    step_details: MessageCreation | ToolCalls
    expires_at: Time | None = None
    cancelled_at: Time | None = None
    completed_at: Time | None = None
    expired_at: Time | None = None
    failed_at: Time | None = None
    last_error: Json | None = None
    usage: Json | None = None
    type: str | UnsetType = UNSET  # the same as in step_details


def step(line: Json, name: Name) -> Row:
    given = read(line, ExportedStep)
    if given.status == StepStatus.IN_PROGRESS:
        given.status, given.expired_at = StepStatus.EXPIRED, given.expires_at or given.created_at
    details = given.step_details.plain(name)
    return {
        "run_id": name("run", given.run_id),
        "id": name("step", given.id),
        "thread_id": name("thread", given.thread_id),
        "assistant_id": name("asst", given.assistant_id),
        "created_at": given.created_at,
        "type": details["type"],
        "status": given.status.value,
        "expires_at": given.expires_at,
        "cancelled_at": given.cancelled_at,
        "completed_at": given.completed_at,
        "expired_at": given.expired_at,
        "failed_at": given.failed_at,
        "last_error": given.last_error,
        "step_details": details,
        "usage": given.usage,
        "turn": 0,  # nobody knows
    }


def _call(call: Json, name: Name) -> Json:
    kind = call.get("type")
    if kind not in ("code_interpreter", "file_search", "function"):
        raise Broken(f"The tool call type {kind!r:.40} is not known.")
    told = call.get(kind)
    if not isinstance(told, dict):
        raise Broken(f"A tool call lacks its {kind}.")
    if kind == "code_interpreter":
        outputs = told.get("outputs") or []
        told = told | {"outputs": [_output(output, name) for output in outputs]}
    elif kind == "file_search":
        results = told.get("results") or []  # left out where nobody had asked for them
        told = told | {"results": [_with_named_file(result, name) for result in results]}
    return call | {kind: told}


def _output(output: Any, name: Name) -> Json:
    if not isinstance(output, dict):
        raise Broken("An output of the code interpreter is not an object.")
    if output.get("type") != "image":
        return output
    return output | {"image": _with_named_file(output.get("image"), name)}
