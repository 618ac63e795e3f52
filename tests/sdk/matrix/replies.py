"""What the model says in the conversations: the user's last message tells it how to behave.

A message is a word and what comes after it, such as "say: Good morning". The answer depends on the
request alone, so one model serves every flow and every SDK at the same time.
"""

import asyncio
import re
from dataclasses import replace
from typing import Any

from threadmill.demo.scripted_model import Reply, ToolCall

Message = dict[str, Any]


def answer(body: dict[str, Any]) -> Reply:
    messages: list[Message] = body["messages"]
    asked_at = max(n for n, message in enumerate(messages) if message["role"] == "user")
    outputs = [said["content"] for said in messages[asked_at + 1 :] if said["role"] == "tool"]
    word, _, rest = _text(messages[asked_at]).partition(": ")
    match word:
        case "say":
            return Reply(text=_words(rest))
        case "drip":  # slowly enough that a client can leave in the middle
            return Reply(text=_words(rest), delay_s=0.05)
        case "hang":  # until the run is cancelled
            return Reply(text=[*_words(rest), asyncio.Event()])
        case "cut":
            return Reply(text=_words(rest), finish_reason="length")
        case "fail":
            return Reply(status=400, body={"error": {"message": "This cannot be answered."}})
        case "refuse":
            return Reply(refusal=_words(rest))
        case "repeat":  # everything that was said to the model
            told = [f"{said['role']}={_text(said)}" for said in messages]
            return Reply(text=_words(" | ".join(told)))
        case "look":
            return Reply(text=_words(", ".join(_images(messages[asked_at]))))
        case "weather":
            return _weather(rest, outputs)
        case "clothes":  # as above, and then one more round
            return _clothes(rest, outputs)
    return Reply(status=400, body={"error": {"message": f"No flow says '{word}'."}})


def _weather(cities: str, outputs: list[str]) -> Reply:
    if outputs:
        return Reply(text=_words("It is " + " and ".join(outputs)))
    calls = [
        ToolCall("get_weather", ['{"city"', f': "{city}"', "}"]) for city in cities.split(", ")
    ]
    return Reply(tool_calls=calls, calls_take_turns=False)


def _clothes(cities: str, outputs: list[str]) -> Reply:
    asked = len(cities.split(", "))
    if not outputs:
        return replace(_weather(cities, []), text=_words("Let me look."))
    if len(outputs) == asked:
        return Reply(tool_calls=[ToolCall("get_clothes", {"weather": ", ".join(outputs)})])
    return Reply(text=_words(f"Take {outputs[-1]}."))


def _text(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or [] if part["type"] == "text")


def _images(message: Message) -> list[str]:
    """How each image reached the model: a link as it is, file contents up to the first bytes."""
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] != "text"]
    return [url[:40] for url in urls]


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)
