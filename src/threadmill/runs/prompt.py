"""What the model is sent: instructions, tools, the thread's messages, and what this run has done.

The prompt is built anew for every turn from rows, so that a run can go on in another process.
"""

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from threadmill.lifecycle import MessageStatus
from threadmill.runs.tools import Toolbox
from threadmill.store.rows import Message, Run, Step

Json = dict[str, Any]

# What one message costs beside its text: role and separators, by OpenAI's own counting recipe
# (cookbook, "How to count tokens"). It also keeps thousands of empty messages from being free.
MESSAGE_OVERHEAD_TOKENS = 4
# By OpenAI's vision guide: 85 for detail "low", at most 85 + 6 tiles of 170 for "high".
_IMAGE_TOKENS = {"low": 85, "high": 1105, "auto": 1105}
_IMAGE_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}

LoadImage = Callable[[str], Awaitable[bytes]]


class Entry(msgspec.Struct):
    """A part of the prompt that stays or goes as a whole: a message of the thread, or one turn of
    this run with its tool calls and their results."""

    messages: list[Json]
    message_id: str | None = None  # a message of the thread, whose count is kept in its row
    token_count: int | None = None
    is_needed: bool = False  # of the present run: never dropped
    image_tokens: int = 0


class Unreadable(Exception):
    """The prompt cannot be built: an image is gone, say."""


def request_body(run: Run, toolbox: Toolbox, entries: list[Entry], *, is_first_turn: bool) -> Json:
    """The chat completions request, without the model's name and the streaming options."""
    body: Json = {"messages": system_messages(run)}
    for entry in entries:
        body["messages"] += entry.messages
    if tools := toolbox.functions():
        body["tools"] = tools
        choice = toolbox.choice(is_first_turn=is_first_turn)
        if choice != "auto":
            body["tool_choice"] = choice
        if not run.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if run.temperature is not None:
        body["temperature"] = run.temperature
    if run.top_p is not None:
        body["top_p"] = run.top_p
    if run.reasoning_effort is not None:
        body["reasoning_effort"] = run.reasoning_effort
    if run.response_format not in ("auto", {"type": "text"}):
        body["response_format"] = run.response_format
    if run.max_completion_tokens is not None:
        body["max_tokens"] = max(run.max_completion_tokens - run.completion_tokens, 1)
    return body


def system_messages(run: Run) -> list[Json]:
    return [{"role": "system", "content": run.instructions}] if run.instructions else []


async def entries(
    run: Run,
    history: list[Message],
    steps: list[Step],
    file_names: Mapping[str, str],
    load_image: LoadImage,
) -> list[Entry]:
    """The thread's messages, then what this run has said and done, oldest first."""
    told = []
    for message in history:
        if message.run_id == run.id or not _is_worth_telling(message):
            continue
        text = _only_text(message)
        if text is not None:  # nearly always, and a thread may have thousands
            entry = Entry([{"role": message.role, "content": text}])
        else:
            entry = Entry([await _message(message, file_names, load_image)])
            entry.image_tokens = _image_tokens(message)
        entry.message_id, entry.token_count = message.id, message.token_count
        told.append(entry)
    own = {message.id: message for message in history if message.run_id == run.id}
    turns: dict[int, Entry] = {}
    for step in steps:
        if step.status == "completed":
            turn = turns.setdefault(step.turn, Entry(messages=[], is_needed=True))
            _add_step(turn.messages, step, own)
    return told + [turn for turn in turns.values() if turn.messages]


def _is_worth_telling(message: Message) -> bool:
    """Half an answer counts where the user has seen it; not where the run went wrong."""
    if message.status == MessageStatus.COMPLETED:
        return True
    reason = (message.incomplete_details or {}).get("reason")
    return reason != "run_failed" and bool(message.content)


def _only_text(message: Message) -> str | None:
    """The text of a message that is one part of text and nothing else."""
    content = message.content
    is_bare = message.role == "assistant" or not message.attachments
    if len(content) == 1 and content[0]["type"] == "text" and is_bare:
        return str(content[0]["text"]["value"])
    return None


async def _message(message: Message, file_names: Mapping[str, str], load_image: LoadImage) -> Json:
    parts = [await _part(part, message.role, load_image) for part in message.content]
    if message.attachments and message.role == "user":
        parts.append({"type": "text", "text": _attached(message.attachments, file_names)})
    if all(part["type"] == "text" for part in parts):
        return {"role": message.role, "content": "\n".join(part["text"] for part in parts)}
    return {"role": message.role, "content": parts}


async def _part(part: Json, role: str, load_image: LoadImage) -> Json:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]["value"]}
    if kind == "refusal":
        return {"type": "text", "text": part["refusal"]}
    if role == "assistant":  # chat completions take images from users only
        return {"type": "text", "text": f"[image {part[kind].get('file_id') or 'by URL'}]"}
    if kind == "image_url":
        return {"type": "image_url", "image_url": part["image_url"]}
    image = await load_image(part["image_file"]["file_id"])
    url = f"data:{image_type(image)};base64,{base64.b64encode(image).decode()}"
    detail = part["image_file"].get("detail") or "auto"
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def image_type(image: bytes) -> str:
    """Its MIME type by its first bytes; raises Unreadable for what no vision model takes."""
    for signature, mime_type in _IMAGE_SIGNATURES.items():
        if image.startswith(signature):
            return mime_type
    raise Unreadable("it is not a PNG, JPEG, GIF or WebP image")


def _attached(attachments: list[Json], file_names: Mapping[str, str]) -> str:
    listed = []
    for attachment in attachments:
        file_id = attachment["file_id"]
        tools = ", ".join(tool["type"] for tool in attachment.get("tools") or [])
        name = file_names.get(file_id, "deleted")
        listed.append(f"{file_id} ({name}){' for ' + tools if tools else ''}")
    return "Attached files: " + "; ".join(listed)


def _image_tokens(message: Message) -> int:
    return sum(
        _IMAGE_TOKENS.get(part[part["type"]].get("detail") or "auto", 1105)
        for part in message.content
        if message.role == "user" and part["type"] in ("image_url", "image_file")
    )


def _add_step(messages: list[Json], step: Step, own: Mapping[str, Message]) -> None:
    """Text and tool calls of one turn were one message of the model, and are given back as one."""
    if not messages or messages[0]["role"] != "assistant":
        messages.insert(0, {"role": "assistant", "content": None})
    said = messages[0]
    if step.type == "message_creation":
        message = own.get(step.step_details["message_creation"]["message_id"])
        if message:  # the client may have deleted it meanwhile
            texts = [
                part["text"]["value"] if part["type"] == "text" else part["refusal"]
                for part in message.content
                if part["type"] in ("text", "refusal")
            ]
            said["content"] = "\n".join([*filter(None, [said["content"]]), *texts])
        elif said["content"] is None and "tool_calls" not in said:
            messages.pop(0)
        return
    for call in step.step_details["tool_calls"]:
        # What one of our own tools was given and gave is kept beside the step.
        used = call["function"] if call["type"] == "function" else (step.given or {})[call["id"]]
        called = {"name": used["name"], "arguments": used["arguments"]}
        said.setdefault("tool_calls", []).append(
            {"id": call["id"], "type": "function", "function": called}
        )
        output = used["output"] or ""
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})


def text_of(messages: list[Json]) -> str:
    """All that has to be counted of these messages; images count by a fixed number instead."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif content:
            texts += [part["text"] for part in content if part["type"] == "text"]
        for call in message.get("tool_calls", ()):
            texts += [call["function"]["name"], call["function"]["arguments"]]
    return "\n".join(texts)
