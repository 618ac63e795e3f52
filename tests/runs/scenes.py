"""Runs that are streamed: what the model says, what happens meanwhile, and the exact events.

One list for all who read streams: as bytes, and through the SDK's helpers.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from runs.wire import Conversation
from threadmill.demo.scripted_model import Gate, Reply, ToolCall

Meanwhile = Callable[[Conversation, str], Awaitable[None]]

BEGUN = ["run.created", "run.queued", "run.in_progress"]
RESUMED = ["run.step.completed", "run.queued", "run.in_progress"]
MESSAGE = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"]
CALLS = ["run.step.created", "run.step.in_progress"]
WRITTEN = ["message.completed", "run.step.completed"]
COMPLETED = ["run.completed", "done"]


def deltas(count: int) -> list[str]:
    return ["message.delta"] * count


def call_deltas(count: int) -> list[str]:
    return ["run.step.delta"] * count


@dataclass
class Scene:
    name: str
    replies: list[Reply]
    events: list[str]
    after_outputs: list[str] | None = None  # the events of a second stream, after submitting
    status: str = "completed"
    text: str | None = None  # of the last message; None if there is none
    settings: dict[str, Any] = field(default_factory=dict)
    meanwhile: Meanwhile | None = None  # at the first delta

    def __str__(self) -> str:
        return self.name


async def _cancel(talk: Conversation, run_id: str) -> None:
    await talk.cancel(run_id)


def scenes() -> list[Scene]:
    """Made anew for every test: a gate belongs to one event loop."""
    weather = ToolCall("get_weather", ['{"city"', ': "Par', 'is"}'])
    return [
        Scene(
            "text",
            [Reply(text=["Hello", "!", " How are you?"])],
            [*BEGUN, *MESSAGE, *deltas(3), *WRITTEN, *COMPLETED],
            text="Hello! How are you?",
        ),
        Scene(
            "one call",
            [Reply(tool_calls=[weather]), Reply(text=["Sun", "ny"])],
            [*BEGUN, *CALLS, *call_deltas(4), "run.requires_action", "done"],
            [*RESUMED, *MESSAGE, *deltas(2), *WRITTEN, *COMPLETED],
            text="Sunny",
        ),
        Scene(
            "several calls",
            [Reply(tool_calls=[weather, ToolCall("get_weather", "{}")]), Reply(text=["Sunny"])],
            [*BEGUN, *CALLS, *call_deltas(6), "run.requires_action", "done"],
            [*RESUMED, *MESSAGE, *deltas(1), *WRITTEN, *COMPLETED],
            text="Sunny",
        ),
        Scene(
            "text, then a call",
            [Reply(text=["Let me ", "see."], tool_calls=[weather]), Reply(text=["Sunny"])],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(2),
                *WRITTEN,
                *CALLS,
                *call_deltas(4),
                "run.requires_action",
                "done",
            ],
            [*RESUMED, *MESSAGE, *deltas(1), *WRITTEN, *COMPLETED],
            text="Sunny",
        ),
        Scene(
            "refusal",
            [Reply(refusal=["I can't ", "do that."])],
            [*BEGUN, *MESSAGE, *deltas(2), *WRITTEN, *COMPLETED],
            text="",
        ),
        Scene(
            "text, then a refusal",
            [Reply(text=["Well, "], refusal=["no."])],
            [*BEGUN, *MESSAGE, *deltas(2), *WRITTEN, *COMPLETED],
            text="Well, ",
        ),
        Scene(
            "nothing",
            [Reply()],
            [*BEGUN, *COMPLETED],
        ),
        Scene(
            "length",
            [Reply(text=["Once upon"], finish_reason="length")],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(1),
                "message.incomplete",
                "run.step.completed",
                "run.incomplete",
                "done",
            ],
            status="incomplete",
            text="Once upon",
        ),
        Scene(
            "content filter",
            [Reply(text=["Take a"], finish_reason="content_filter")],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(1),
                "message.incomplete",
                "run.step.completed",
                "run.incomplete",
                "done",
            ],
            status="incomplete",
            text="Take a",
        ),
        Scene(
            "failure before the answer",
            [Reply(status=400)],
            [*BEGUN, "run.failed", "done"],
            status="failed",
        ),
        Scene(
            "failure within the answer",
            [Reply(text=["Hel", "lo", "!"], drop_after_chunks=2)],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(2),
                "message.incomplete",
                "run.step.failed",
                "run.failed",
                "done",
            ],
            status="failed",
            text="Hello",
        ),
        Scene(
            "failure within a call",
            [Reply(tool_calls=[weather], drop_after_chunks=2)],
            [*BEGUN, *CALLS, *call_deltas(2), "run.step.failed", "run.failed", "done"],
            status="failed",
        ),
        Scene(
            "cancel within the answer",
            [Reply(text=["Hel", Gate()])],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(1),
                "run.cancelling",
                "message.incomplete",
                "run.step.cancelled",
                "run.cancelled",
                "done",
            ],
            status="cancelled",
            text="Hel",
            meanwhile=_cancel,
        ),
        Scene(
            "cancel within a call",
            [Reply(tool_calls=[ToolCall("get_weather", ['{"city"', Gate()])])],
            [
                *BEGUN,
                *CALLS,
                *call_deltas(2),
                "run.cancelling",
                "run.step.cancelled",
                "run.cancelled",
                "done",
            ],
            status="cancelled",
            meanwhile=_cancel,
        ),
        Scene(
            "expiry within the answer",
            [Reply(text=["Hel", Gate()])],
            [
                *BEGUN,
                *MESSAGE,
                *deltas(1),
                "message.incomplete",
                "run.step.expired",
                "run.expired",
                "done",
            ],
            status="expired",
            text="Hel",
            settings={"run_expires_after_s": 2},
        ),
    ]


NAMES = [scene.name for scene in scenes()]


def scene_of(name: str) -> Scene:
    return next(scene for scene in scenes() if scene.name == name)
