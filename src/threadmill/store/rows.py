"""Rows as the program sees them: field for column, in the order in which they are selected.

Written with msgspec, not an ORM: building one takes about a microsecond, and a list of twenty
messages is read on every look at a thread.
"""

import builtins
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from threadmill.lifecycle import ENDED, RunStatus

Json = dict[str, Any]


class Project(msgspec.Struct):
    id: str
    name: str
    created_at: int
    archived_at: int | None = None
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    max_concurrent_runs: int | None = None
    max_stored_bytes: int | None = None
    threads_max_age_days: int | None = None
    files_max_age_days: int | None = None
    requests_max_age_days: int | None = None
    hide_prompts: bool = False


class ApiKey(msgspec.Struct):
    id: str
    project_id: str
    name: str
    hint: str
    created_at: int
    last_used_at: int | None
    revoked_at: int | None
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    max_concurrent_runs: int | None = None
    max_stored_bytes: int | None = None


class Assistant(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: list[Json]
    tool_resources: Json
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None
    response_format: Any
    version: int  # counts what was saved
    saved_at: int | None  # None: not changed since its creation


class AssistantContent(msgspec.Struct):
    """What can be changed of an assistant, and is kept of each version of it."""

    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: list[Json]
    tool_resources: Json
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None
    response_format: Any


class AssistantVersion(msgspec.Struct):
    version: int
    saved_at: int


class Thread(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    metadata: dict[str, str]
    tool_resources: Json
    active_run_id: str | None


class Message(msgspec.Struct):
    id: str
    project_id: str
    thread_id: str
    created_at: int
    status: str
    incomplete_details: Json | None
    completed_at: int | None
    incomplete_at: int | None
    role: str
    content: list[Json]
    assistant_id: str | None
    run_id: str | None
    attachments: list[Json]
    metadata: dict[str, str]
    token_count: int | None = None


class Run(msgspec.Struct):
    id: str
    project_id: str
    thread_id: str
    assistant_id: str
    created_at: int
    status: str
    started_at: int | None
    expires_at: int
    cancelled_at: int | None
    failed_at: int | None
    completed_at: int | None
    required_action: Json | None
    last_error: Json | None
    incomplete_details: Json | None
    model: str
    instructions: str | None
    tools: list[Json]
    tool_resources: Json
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None
    max_prompt_tokens: int | None
    max_completion_tokens: int | None
    truncation_strategy: Json
    response_format: Any
    tool_choice: Any
    parallel_tool_calls: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    worker: str | None = None
    claims: int = 0
    attempts: int = 0
    turns: int = 0
    queued_at: float = 0.0
    api_key_id: str | None = None
    is_metered: bool = False
    slot: str | None = None
    file_search_calls: int = 0
    code_interpreter_calls: int = 0
    traceparent: str | None = None  # of the request that made it, where traces are kept

    @property
    def has_ended(self) -> bool:
        return RunStatus(self.status) in ENDED

    @property
    def usage(self) -> Json | None:
        """The sum over all turns, which clients see once the run has ended."""
        if not self.has_ended:
            return None
        return usage(
            self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens
        )


class Step(msgspec.Struct):
    id: str
    project_id: str
    thread_id: str
    run_id: str
    assistant_id: str
    created_at: int
    type: str
    status: str
    expires_at: int | None
    cancelled_at: int | None
    completed_at: int | None
    expired_at: int | None
    failed_at: int | None
    last_error: Json | None
    step_details: Json
    usage: Json | None
    turn: int
    given: Json | None = None


class Turn(msgspec.Struct):
    run_id: str
    turn: int
    request: bytes | None
    record: Json


class File(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    bytes: int
    sha256: builtins.bytes
    api_key_id: str | None = None


class Upload(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    expires_at: int
    status: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    file_expires_after_s: int | None
    file_id: str | None
    api_key_id: str | None = None


class UploadPart(msgspec.Struct):
    id: str
    upload_id: str
    created_at: int
    bytes: int


class VectorStore(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    name: str | None
    description: str | None
    metadata: dict[str, str]
    expires_after: Json | None
    last_active_at: int
    expires_at: int | None
    embedding_model: str | None
    embedding_dimensions: int | None
    search: Json


class VectorStoreFile(msgspec.Struct):
    vector_store_id: str
    id: str
    project_id: str
    created_at: int
    status: str
    last_error: Json | None
    chunking_strategy: Json
    attributes: dict[str, Any]
    usage_bytes: int
    chunk_count: int
    worker: str | None
    claims: int
    attempts: int


class FileBatch(msgspec.Struct):
    id: str
    project_id: str
    vector_store_id: str
    created_at: int
    cancelled_at: int | None


class WebhookEndpoint(msgspec.Struct):
    id: str
    project_id: str
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    secret: str
    old_secret: str | None
    old_secret_until: int | None
    failing_since: int | None
    disabled_at: int | None
    disabled_reason: str | None


class WebhookDelivery(msgspec.Struct):
    webhook_endpoint_id: str
    id: str
    created_at: int
    event_type: str
    subject: Json
    status: str
    attempts: int
    due_at: datetime | None
    ended_at: int | None
    last_status_code: int | None
    last_error: str | None


class IdempotencyKey(msgspec.Struct):
    project_id: str
    key: str
    request: str
    fingerprint: bytes | None
    seed: bytes
    worker: str | None
    claims: int
    status: int | None
    content_type: str | None
    body: bytes | None
    found_at: str | None


def usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Json:
    """Token counts in the wire's shape (it does say `prompt_token_details`, singular)."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_token_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


@cache
def columns(row: type[msgspec.Struct], table: str = "") -> str:
    """The row's columns for a SELECT or RETURNING list."""
    prefix = f"{table}." if table else ""
    return ", ".join(prefix + field for field in row.__struct_fields__)
