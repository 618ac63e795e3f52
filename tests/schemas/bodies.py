"""A body that is taken, for every request: each with all that can be sent."""

from typing import Any

from threadmill.schemas import requests
from threadmill.schemas.parse import Shape

PARAMETERS = {"type": "object", "properties": {"zoo": {"type": "string"}, "age": {"minimum": 0}}}
TOOLS: list[Any] = [
    {"type": "code_interpreter"},
    {
        "type": "file_search",
        "file_search": {
            "max_num_results": 7,
            "ranking_options": {"ranker": "auto", "score_threshold": 0.5},
        },
    },
    {
        "type": "function",
        "function": {"name": "feed", "description": "d", "parameters": PARAMETERS, "strict": True},
    },
]
RESOURCES: dict[str, Any] = {
    "code_interpreter": {"file_ids": ["file-a", "file-b"]},
    "file_search": {"vector_store_ids": ["vs_a"]},
}
NEW_STORE: dict[str, Any] = {
    "file_search": {
        "vector_stores": [
            {
                "file_ids": ["file-c"],
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 100},
                },
                "metadata": {"a": "b"},
            }
        ]
    }
}
MESSAGE: dict[str, Any] = {
    "role": "user",
    "content": [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_file", "image_file": {"file_id": "file-a", "detail": "low"}},
    ],
    "attachments": [
        {"file_id": "file-a", "tools": [{"type": "file_search"}, {"type": "code_interpreter"}]}
    ],
    "metadata": {"k": "v"},
}
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": PARAMETERS, "strict": None},
}
ASSISTANT: dict[str, Any] = {
    "model": "gpt-4o",
    "name": "n",
    "description": "d",
    "instructions": "i",
    "reasoning_effort": "low",
    "tools": TOOLS,
    "tool_resources": RESOURCES,
    "metadata": {"a": "b"},
    "temperature": 1,
    "top_p": 0.5,
    "response_format": RESPONSE_FORMAT,
}
THREAD: dict[str, Any] = {"messages": [MESSAGE], "tool_resources": NEW_STORE, "metadata": {}}
RUN: dict[str, Any] = {
    "assistant_id": "asst_a",
    "model": "gpt-4o",
    "instructions": "i",
    "tools": TOOLS,
    "metadata": {"a": "b"},
    "temperature": 0.2,
    "top_p": 1,
    "stream": True,
    "max_prompt_tokens": 256,
    "max_completion_tokens": 1000,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "tool_choice": {"type": "function", "function": {"name": "feed"}},
    "parallel_tool_calls": False,
    "response_format": "auto",
}
RUN_MORE: dict[str, Any] = {
    "reasoning_effort": "none",
    "additional_instructions": "more",
    "additional_messages": [MESSAGE],
}

TAKEN: dict[type[Shape], tuple[str, dict[str, Any]]] = {
    requests.CreateAssistant: ("CreateAssistantRequest", ASSISTANT),
    requests.ModifyAssistant: ("ModifyAssistantRequest", ASSISTANT | {"name": None}),
    requests.CreateThread: ("CreateThreadRequest", THREAD),
    requests.ModifyThread: (
        "ModifyThreadRequest",
        {"tool_resources": RESOURCES, "metadata": {}},
    ),
    requests.CreateMessage: ("CreateMessageRequest", MESSAGE),
    requests.ModifyMessage: ("ModifyMessageRequest", {"metadata": {"a": "b"}}),
    requests.CreateRun: ("CreateRunRequest", RUN | RUN_MORE),
    requests.CreateThreadAndRun: (
        "CreateThreadAndRunRequest",
        RUN | {"thread": THREAD, "tool_resources": RESOURCES},
    ),
    requests.ModifyRun: ("ModifyRunRequest", {"metadata": None}),
    requests.SubmitToolOutputs: (
        "SubmitToolOutputsRunRequest",
        {"tool_outputs": [{"tool_call_id": "call_a", "output": "1"}], "stream": False},
    ),
}
