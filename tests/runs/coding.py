"""A model that writes code, and what came of it."""

from collections.abc import Callable, Sequence
from typing import Any

from openai.types.beta.threads import Run

from runs.wire import Conversation, Json, eventually
from threadmill.demo.scripted_model import Gate, Reply, ToolCall

CODE: Any = {"type": "code_interpreter"}
LINK = "sandbox:/mnt/data/"
ENDLESS = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
STUBBORN = """
print('begun', flush=True)
while True:
    try:
        while True: pass
    except BaseException: pass
"""

Said = str | Sequence[str | Gate]


def outputs_in(request: Json) -> list[str]:
    """What tools have told the model, of the present run."""
    return [one["content"] for one in request["messages"] if one["role"] == "tool"]


def coding(*cells: str, say: Said = "Done.") -> Callable[[Json], Reply]:
    """A model that runs these cells one after the other, and then says something."""

    def answer(request: Json) -> Reply:
        done = len(outputs_in(request))
        if done < len(cells):
            return Reply(tool_calls=[ToolCall("code_interpreter", {"code": cells[done]})])
        return Reply(text=[say] if isinstance(say, str) else say)

    return answer


async def completed(talk: Conversation, **more: Any) -> Run:
    run = await talk.run(**more)
    assert run.status == "completed", run.last_error
    return run


async def calls(talk: Conversation, run: Run | str) -> list[Any]:
    """All calls of code in the run."""
    found = []
    for step in await talk.steps(run):
        if step.step_details.type == "tool_calls":
            found += [
                call for call in step.step_details.tool_calls if call.type == "code_interpreter"
            ]
    return found


def logs(call: Any) -> str:
    return "".join(one.logs for one in call.code_interpreter.outputs if one.type == "logs")


async def begun(talk: Conversation, run: Run) -> None:
    """The code is running, and whoever polls can see it."""

    async def is_shown() -> bool:
        found = await calls(talk, run)
        return bool(found) and bool(found[0].code_interpreter.input)

    await eventually(is_shown)
