"""code_interpreter on servers of their own: limits, ends, and where there is no engine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import openai
import pytest

from conftest import Serve
from runs.coding import CODE, ENDLESS, STUBBORN, begun, calls, coding, completed, logs, outputs_in
from runs.wire import Conversation
from threadmill.demo.scripted_model import ScriptedModel

Open = Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]


@pytest.fixture
def without_engine(serve: Serve) -> Open:
    """`async with server(sandbox_cell_timeout_s=1) as client`: one with that setting."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            serve(**changes) as served,
            openai.AsyncOpenAI(
                api_key="any", base_url=f"{served.address}/v1", max_retries=0
            ) as client,
        ):
            yield client

    return start


@pytest.fixture
def with_engine(without_engine: Open, engine: str) -> Open:
    return partial(without_engine, docker_hosts=[engine])


async def test_files_and_sizes_are_limited(with_engine: Open, model: ScriptedModel) -> None:
    limits = {"sandbox_file_max_bytes": 1000, "sandbox_output_max_files": 3}
    async with with_engine(**limits) as client:
        large = await client.files.create(file=("large", b"x" * 1001), purpose="assistants")
        assistant = await client.beta.assistants.create(
            model="scripted",
            tools=[CODE],
            tool_resources={"code_interpreter": {"file_ids": [large.id]}},
        )
        talk = await Conversation.begin(client, assistant.id)
        model.answer = coding(
            "for n in range(5):\n    open(f'/mnt/data/{n}', 'w').write('x')\n"
            "open('/mnt/data/00-large', 'w').write('x' * 1001)"
        )
        await completed(talk)
        [output] = outputs_in(model.requests[-1].body)
        assert f"/mnt/data/{large.id} (large): it is larger than 1000 bytes" in output
        assert "00-large (larger than 1000 bytes)" in output
        assert "more than 3 files at once" in output
        made = await client.files.list(purpose="assistants_output")
        assert len(made.data) == 3


async def test_expiry_stops_the_code(with_engine: Open, model: ScriptedModel) -> None:
    async with with_engine(run_expires_after_s=4) as client:
        assistant = await client.beta.assistants.create(model="scripted", tools=[CODE])
        talk = await Conversation.begin(client, assistant.id)
        model.answer = coding(ENDLESS)
        run = await talk.start()
        ended = await talk.stopped(run)  # the time that a cell may take is far longer
        assert ended.status == "expired"
        [step] = await talk.steps(run)
        assert step.status == "expired"


async def test_a_cell_that_takes_too_long(with_engine: Open, model: ScriptedModel) -> None:
    async with with_engine(sandbox_cell_timeout_s=3) as client:
        assistant = await client.beta.assistants.create(model="scripted", tools=[CODE])
        talk = await Conversation.begin(client, assistant.id)
        model.answer = coding("x = 1", ENDLESS, "print(x)", STUBBORN, "print(x)")
        run = await completed(talk)
        _, slow, kept, stubborn, lost = [logs(call) for call in await calls(talk, run)]
        assert "The code was stopped after 3 seconds. Its variables are kept." in slow
        assert kept == "1\n"
        assert "The code was stopped after 3 seconds. Its variables are gone." in stubborn
        assert "NameError" in lost


async def test_a_stopped_server_runs_the_code_again(
    with_engine: Open, model: ScriptedModel
) -> None:
    model.answer = coding(ENDLESS)
    async with with_engine(drain_timeout_s=0) as client:
        assistant = await client.beta.assistants.create(model="scripted", tools=[CODE])
        talk = await Conversation.begin(client, assistant.id)
        run = await talk.start()
        await begun(talk, run)
    model.answer = coding("print('again')")
    async with with_engine(drain_timeout_s=0) as client:
        talk = Conversation(client, talk.assistant_id, talk.thread_id)
        ended = await talk.stopped(run)
        assert ended.status == "completed", ended.last_error
        steps = [(step.type, step.status) for step in await talk.steps(run)]
        assert steps == [
            ("tool_calls", "failed"),
            ("tool_calls", "completed"),
            ("message_creation", "completed"),
        ]


async def test_without_an_engine_only_the_call_fails(
    without_engine: Open, model: ScriptedModel
) -> None:
    async with without_engine() as client:
        assistant = await client.beta.assistants.create(model="scripted", tools=[CODE])
        talk = await Conversation.begin(client, assistant.id)
        model.answer = coding(say="Without code.")
        assert (await talk.run()).status == "completed"
        await talk.say("Now with code.")
        model.answer = coding("print(1)")
        run = await talk.run()
        assert run.status == "failed"
        assert run.last_error is not None
        assert run.last_error.code == "server_error"
        assert run.last_error.message.startswith("The code could not be run: ")
        assert "no Docker engine" in run.last_error.message
        [step] = await talk.steps(run)
        assert step.status == "failed"
        assert step.last_error is not None
        assert (await calls(talk, run))[0].code_interpreter.outputs == []
