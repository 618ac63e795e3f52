"""What an answer must be: complete, as the official SDK's own types have it, and, where
THREADMILL_SPEC names the OpenAPI document, as its schema has it."""

import os
from functools import cache
from typing import Any

import pydantic
import yaml
from jsonschema import Draft202012Validator
from openai.types import FileDeleted, FileObject, Model
from openai.types.beta import Assistant, AssistantDeleted, Thread, ThreadDeleted
from openai.types.beta.threads import Message, MessageDeleted, MessageDeltaEvent, Run
from openai.types.beta.threads.runs import RunStep, RunStepDeltaEvent

Json = dict[str, Any]

NO_SPEC = "THREADMILL_SPEC names no OpenAPI document"

SDK_TYPES: dict[str, type[pydantic.BaseModel]] = {
    "assistant": Assistant,
    "thread": Thread,
    "thread.message": Message,
    "thread.message.delta": MessageDeltaEvent,
    "thread.run": Run,
    "thread.run.step": RunStep,
    "thread.run.step.delta": RunStepDeltaEvent,
    "file": FileObject,
    "model": Model,
}
# A deleted file has the kind itself for its `object`.
SDK_DELETED: dict[str, type[pydantic.BaseModel]] = {
    "assistant.deleted": AssistantDeleted,
    "thread.deleted": ThreadDeleted,
    "thread.message.deleted": MessageDeleted,
    "file": FileDeleted,
}
SCHEMAS = {
    "assistant": "AssistantObject",
    "thread": "ThreadObject",
    "thread.message": "MessageObject",
    "thread.message.delta": "MessageDeltaObject",
    "thread.run": "RunObject",
    "thread.run.step": "RunStepObject",
    "thread.run.step.delta": "RunStepDeltaObject",
    "file": "OpenAIFile",
    "model": "Model",
}
DELETED_SCHEMAS = {
    "assistant.deleted": "DeleteAssistantResponse",
    "thread.deleted": "DeleteThreadResponse",
    "thread.message.deleted": "DeleteMessageResponse",
    "file": "DeleteFileResponse",
}
LIST_SCHEMAS = {
    "webhook_endpoint": None,
    "assistant": "ListAssistantsResponse",
    "thread": None,  # the original had no such list
    "thread.message": "ListMessagesResponse",
    "thread.run": "ListRunsResponse",
    "thread.run.step": "ListRunStepsResponse",
    "file": "ListFilesResponse",
    "model": "ListModelsResponse",
}
# The wire said null where the document (and the SDK made from it) does not foresee it.
NULLS = {"thread.run": ["instructions"], "file": ["expires_at", "status_details"]}

# The wire did not keep to these lower limits.
FREE_LIMITS = ("max_prompt_tokens", "max_completion_tokens")
# What the original had not.
OURS = {"thread.run.step.request", "webhook_endpoint", "webhook_endpoint.deleted"}

# Every field that is always there.
FIELDS = {
    "assistant": "id object created_at name description model instructions tools tool_resources"
    " metadata temperature top_p reasoning_effort response_format",
    "thread": "id object created_at metadata tool_resources",
    "thread.message": "id object created_at thread_id status incomplete_details completed_at"
    " incomplete_at role content assistant_id run_id attachments metadata",
    "thread.run": "id object created_at assistant_id thread_id status started_at expires_at"
    " cancelled_at failed_at completed_at required_action last_error model instructions tools"
    " tool_resources metadata temperature top_p reasoning_effort max_completion_tokens"
    " max_prompt_tokens truncation_strategy incomplete_details usage response_format tool_choice"
    " parallel_tool_calls",
    "thread.run.step": "id object created_at run_id assistant_id thread_id type status"
    " cancelled_at completed_at expires_at expired_at failed_at last_error step_details usage"
    " metadata",
    "file": "id object bytes created_at filename purpose status status_details expires_at",
    "model": "id object created owned_by",
}
# What the wire had and the SDK's types do not.
UNKNOWN_TO_THE_SDK = {
    "Assistant.reasoning_effort",
    "Run.reasoning_effort",
    "Run.tool_resources",
    "RunStep.expires_at",
    "Usage.prompt_token_details",
    "Usage.completion_tokens_details",
    "FileSearchRankingOptions.hybrid_search",
}


def check(answer: Json) -> None:
    """Raises AssertionError, pydantic's or jsonschema's ValidationError."""
    kind = answer["object"]
    if kind == "list":
        _check_list(answer)
        return
    if kind in OURS:
        return
    if "deleted" in answer:
        _check_deleted(answer)
        return
    if kind in FIELDS:
        assert set(answer) == set(FIELDS[kind].split()), kind
    sdk_type = SDK_TYPES[kind]
    without_nulls = dict(answer)
    for name in NULLS.get(kind, []):
        if answer[name] is None and sdk_type.model_fields[name].is_required():
            without_nulls[name] = ""
    parsed = sdk_type.model_validate(without_nulls, strict=True)
    assert unknown(parsed) <= UNKNOWN_TO_THE_SDK
    if has_spec():
        validator(SCHEMAS[kind]).validate(answer)


def unknown(node: Any) -> set[str]:
    """The fields that the SDK's type has not: ours may be misspelt."""
    if isinstance(node, list):
        return set().union(*map(unknown, node))
    if not isinstance(node, pydantic.BaseModel):
        return set()
    here = {f"{type(node).__name__}.{name}" for name in node.model_extra or {}}
    known = [getattr(node, name) for name in type(node).model_fields]
    return here.union(*map(unknown, known))


def has_spec() -> bool:
    return "THREADMILL_SPEC" in os.environ


@cache
def validator(schema: str) -> Draft202012Validator:
    here = {"$ref": f"#/components/schemas/{schema}", "components": document()["components"]}
    return Draft202012Validator(here)


@cache
def document() -> Json:
    with open(os.environ["THREADMILL_SPEC"]) as file:
        read: Json = _with_null(yaml.load(file, yaml.CSafeLoader))
    for kind, names in NULLS.items():
        properties = read["components"]["schemas"][SCHEMAS[kind]]["properties"]
        for name in names:
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    run = read["components"]["schemas"]["RunObject"]["properties"]
    for name in FREE_LIMITS:
        run[name]["anyOf"][0]["minimum"] = 1
    return read


def operations(*rooms: str) -> set[str]:
    """Of the document: {"GET /threads/{thread_id}", ...}."""
    return {
        f"{method.upper()} {path}"
        for path, methods in document()["paths"].items()
        for method in methods
        if path.split("/")[1] in rooms
    }


def _check_deleted(answer: Json) -> None:
    kind = answer["object"]
    assert answer["deleted"] is True
    assert unknown(SDK_DELETED[kind].model_validate(answer, strict=True)) == set()
    if has_spec():
        validator(DELETED_SCHEMAS[kind]).validate(answer)


def _check_list(answer: Json) -> None:
    data = answer["data"]
    for one in data:
        check(one)
    kinds = {one["object"] for one in data}
    assert len(kinds) <= 1
    if kinds == {"model"}:
        assert set(answer) == {"object", "data"}
    elif "first_id" in answer:
        assert set(answer) == {"object", "data", "first_id", "last_id", "has_more"}
        assert answer["first_id"] == (data[0]["id"] if data else None)
        assert answer["last_id"] == (data[-1]["id"] if data else None)
        assert type(answer["has_more"]) is bool
    if data and has_spec() and (schema := LIST_SCHEMAS[kinds.pop()]):
        validator(schema).validate(answer)


def _with_null(node: Any) -> Any:
    """`nullable: true` is the old way to say it, and the validator passes over it."""
    if isinstance(node, list):
        return [_with_null(one) for one in node]
    if not isinstance(node, dict):
        return node
    inner = {name: _with_null(one) for name, one in node.items()}
    if inner.pop("nullable", False) is True:
        return {"anyOf": [inner, {"type": "null"}]}
    return inner
