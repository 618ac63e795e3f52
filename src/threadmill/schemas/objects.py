"""What clients see. Field for field and in the order of the original's answers.

Each is made from a row by `msgspec.convert(row, Shape, from_attributes=True)`; that and encoding
take microseconds, which counts where every event of a stream carries such an object.
"""

from typing import Any, TypeVar

import msgspec

Json = dict[str, Any]
Shape = TypeVar("Shape", bound=msgspec.Struct)


def shape(row: Any, wanted: type[Shape]) -> Shape:
    return msgspec.convert(row, wanted, from_attributes=True)


def plain(row: msgspec.Struct) -> Json:
    """As it is, for answers that are not the original's."""
    shown: Json = msgspec.to_builtins(row)
    return shown


class Assistant(msgspec.Struct):
    id: str
    created_at: int
    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: list[Json]
    tool_resources: Json
    metadata: dict[str, str]
    reasoning_effort: str | None
    response_format: Any
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    object: str = "assistant"

    def __post_init__(self) -> None:
        self.temperature, self.top_p = _shown(self.temperature), _shown(self.top_p)


class Thread(msgspec.Struct):
    id: str
    created_at: int
    metadata: dict[str, str]
    tool_resources: Json
    object: str = "thread"


class Message(msgspec.Struct):
    id: str
    created_at: int
    assistant_id: str | None
    thread_id: str
    run_id: str | None
    status: str
    incomplete_details: Json | None
    incomplete_at: int | None
    completed_at: int | None
    role: str
    content: list[Json]
    attachments: list[Json]
    metadata: dict[str, str]
    object: str = "thread.message"


class Run(msgspec.Struct):
    id: str
    created_at: int
    assistant_id: str
    thread_id: str
    status: str
    started_at: int | None
    expires_at: int | None
    cancelled_at: int | None
    failed_at: int | None
    completed_at: int | None
    required_action: Json | None
    last_error: Json | None
    model: str
    instructions: str | None
    tools: list[Json]
    tool_resources: Json
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None
    max_completion_tokens: int | None
    max_prompt_tokens: int | None
    truncation_strategy: Json
    incomplete_details: Json | None
    usage: Json | None
    response_format: Any
    tool_choice: Any
    parallel_tool_calls: bool
    object: str = "thread.run"

    def __post_init__(self) -> None:
        self.temperature, self.top_p = _shown(self.temperature), _shown(self.top_p)
        if self.usage is not None:  # it has ended, and what has ended expires no more
            self.expires_at = None


class Step(msgspec.Struct):
    id: str
    created_at: int
    run_id: str
    assistant_id: str
    thread_id: str
    type: str
    status: str
    cancelled_at: int | None
    completed_at: int | None
    expires_at: int | None
    expired_at: int | None
    failed_at: int | None
    last_error: Json | None
    step_details: Json
    usage: Json | None
    metadata: dict[str, str] = {}
    object: str = "thread.run.step"

    def __post_init__(self) -> None:
        if self.status == "in_progress":
            self.usage = None  # known already while the client is waited for, but not told yet
        if not self.shows_content and self.type == "tool_calls":
            self.step_details = _without_content(self.step_details)

    @property
    def shows_content(self) -> bool:
        """Whether the results of file_search come with their text: only on demand."""
        return False


class StepWithContent(Step):
    @property
    def shows_content(self) -> bool:
        return True


def _without_content(step_details: Json) -> Json:
    calls = []
    for call in step_details["tool_calls"]:
        if call["type"] == "file_search":
            results = [
                {name: value for name, value in result.items() if name != "content"}
                for result in call["file_search"]["results"]
            ]
            call = call | {"file_search": call["file_search"] | {"results": results}}
        calls.append(call)
    return step_details | {"tool_calls": calls}


class File(msgspec.Struct):
    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None
    status: str = "processed"
    status_details: str | None = None
    object: str = "file"


class Upload(msgspec.Struct):
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int
    file: File | None = None  # once it is completed
    object: str = "upload"


class UploadPart(msgspec.Struct):
    id: str
    created_at: int
    upload_id: str
    object: str = "upload.part"


class FileCounts(msgspec.Struct):
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0


class VectorStore(msgspec.Struct):
    id: str
    created_at: int
    name: str | None
    description: str | None
    usage_bytes: int
    file_counts: FileCounts
    status: str
    expires_after: Json | None
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]
    # Ours, and only there where somebody has set it: a stock client never meets it.
    search: Json | msgspec.UnsetType = msgspec.UNSET
    object: str = "vector_store"


class VectorStoreFile(msgspec.Struct):
    id: str
    created_at: int
    vector_store_id: str
    usage_bytes: int
    status: str
    last_error: Json | None
    chunking_strategy: Json
    attributes: Json
    object: str = "vector_store.file"


class FileBatch(msgspec.Struct):
    id: str
    created_at: int
    vector_store_id: str
    status: str
    file_counts: FileCounts
    object: str = "vector_store.file_batch"


class FoundChunk(msgspec.Struct):
    file_id: str
    filename: str
    score: float
    attributes: Json
    content: list[Json]


class SearchResults(msgspec.Struct):
    search_query: list[str]
    data: list[FoundChunk]
    has_more: bool = False
    next_page: str | None = None
    object: str = "vector_store.search_results.page"


class FileContent(msgspec.Struct):
    data: list[Json]
    has_more: bool = False
    next_page: str | None = None
    object: str = "vector_store.file_content.page"


class WebhookEndpoint(msgspec.Struct):
    id: str
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    # Ours: what became of it.
    status: str  # enabled or disabled
    disabled_reason: str | None
    failing_since: int | None
    signing_secret: str | msgspec.UnsetType = msgspec.UNSET  # once, when it was made
    object: str = "webhook_endpoint"


class WebhookDelivery(msgspec.Struct):
    id: str  # the event's
    created_at: int
    webhook_endpoint_id: str
    event_type: str
    status: str
    attempts: int
    next_attempt_at: int | None
    ended_at: int | None
    last_status_code: int | None
    last_error: str | None
    object: str = "webhook_endpoint.delivery"


class Event(msgspec.Struct):
    """What a webhook endpoint is sent."""

    id: str
    created_at: int
    type: str
    data: Any
    object: str = "event"


class Page(msgspec.Struct):
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


def page(rows: list[Any], wanted: type[Shape], has_more: bool) -> Page:
    return Page(
        data=[shape(row, wanted) for row in rows],
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
        has_more=has_more,
    )


class Deleted(msgspec.Struct):
    """The answer to a DELETE; `object` is the kind with `.deleted` behind (but not for files)."""

    id: str
    object: str
    deleted: bool = True


def _shown(value: float | None) -> float:
    """temperature and top_p read 1.0 where they were never set."""
    return 1.0 if value is None else value
