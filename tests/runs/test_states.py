"""What a run reads like in each of its states, and what its parameters do."""

import asyncio
import time
from typing import Any

import openai
import pytest
from openai.types.beta import Assistant

from conftest import Serve
from runs.wire import WEATHER, Api, Conversation, eventually, refused, text_of
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.settings import ModelRoute

WEATHER_CALL = ToolCall("get_weather", {"city": "Paris"}, id="call_a")


def shown(run: Any) -> set[str]:
    """Which of the fields that tell of the run's end are set."""
    names = ("cancelled_at", "failed_at", "completed_at", "required_action", "last_error")
    names += ("incomplete_details", "usage", "expires_at", "started_at")
    return {name for name in names if getattr(run, name) is not None}


# --- states ---


async def test_a_run_that_completes(talk: Conversation, model: ScriptedModel) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    run = await talk.start()
    assert (run.status, shown(run)) == ("queued", {"expires_at"})
    assert run.expires_at == run.created_at + 600
    running = await talk.reaches(run, "in_progress")
    assert shown(running) == {"expires_at", "started_at"}
    gate.set()
    ended = await talk.stopped(run)
    assert ended.status == "completed"
    assert shown(ended) == {"started_at", "completed_at", "usage"}
    [step] = await talk.steps(run)
    assert step.usage is not None
    assert ended.usage is not None
    assert step.usage.model_dump() == ended.usage.model_dump()
    assert (step.status, step.type) == ("completed", "message_creation")


async def test_a_run_that_waits_for_its_client(talk: Conversation, model: ScriptedModel) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL]))
    model.say("Sunny.")
    waiting = await talk.run()
    assert waiting.status == "requires_action"
    assert shown(waiting) == {"expires_at", "started_at", "required_action"}
    [step] = await talk.steps(waiting)
    assert (step.status, step.usage, step.completed_at) == ("in_progress", None, None)

    first_start = waiting.started_at
    assert first_start is not None
    await asyncio.sleep(max(first_start + 1.01 - time.time(), 0))  # so that a second has passed
    resumed = await talk.answer(waiting)
    assert (resumed.status, resumed.required_action) == ("queued", None)
    assert resumed.expires_at == waiting.expires_at
    ended = await talk.stopped(waiting)
    assert ended.status == "completed"
    assert ended.started_at is not None
    assert ended.started_at > first_start
    steps = await talk.steps(ended)
    assert [step.type for step in steps] == ["tool_calls", "message_creation"]
    assert ended.usage is not None
    used = [step.usage for step in steps]
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(ended.usage, field) == sum(getattr(usage, field) for usage in used)
    assert [message["role"] for message in model.requests[1].body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    newest_first = await talk.client.beta.threads.runs.steps.list(
        ended.id, thread_id=talk.thread_id
    )
    assert newest_first.data[0].type == "message_creation"


async def test_a_run_that_is_cancelled_in_the_middle(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hel", Gate()]))
    run = await talk.start()
    await model.received(1)
    cancelling = await talk.cancel(run)
    assert (cancelling.status, cancelling.cancelled_at) == ("cancelling", None)
    ended = await talk.stopped(run)
    assert ended.status == "cancelled"
    assert shown(ended) >= {"cancelled_at", "started_at"}
    assert not {"expires_at", "failed_at", "last_error"} & shown(ended)
    await model.disconnected()  # the model was stopped too
    assert "Cannot cancel run with status 'cancelled'." in await refused(talk.cancel(run))


async def test_a_run_that_is_cancelled_while_it_waits(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL]))
    waiting = await talk.run()
    cancelling = await talk.cancel(waiting)
    assert (cancelling.status, cancelling.required_action) == ("cancelling", None)
    ended = await talk.stopped(waiting)
    assert (ended.status, ended.required_action) == ("cancelled", None)
    [step] = await talk.steps(ended)
    assert (step.status, step.cancelled_at is not None) == ("cancelled", True)
    assert 'Runs in status "cancelled" do not accept' in await refused(talk.answer(waiting))


async def test_a_run_that_expires_while_it_waits(serve: Serve, model: ScriptedModel) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL]))
    async with serve(run_expires_after_s=60) as server, _client(server) as client:
        talk = await _begin(client)
        waiting = await talk.run()
        assert waiting.status == "requires_action"
        assert waiting.expires_at == waiting.created_at + 60
        async with server.runtime.database.connection() as connection:
            await connection.execute("UPDATE runs SET expires_at = expires_at - 60")
        ended = await talk.reaches(waiting, "expired")
        assert shown(ended) == {"started_at", "usage"}
        [step] = await talk.steps(ended)
        assert (step.status, step.expired_at is not None) == ("expired", True)
        assert await refused(talk.answer(waiting)) == (
            'Runs in status "expired" do not accept tool outputs.'
        )
        model.say("Hello")
        assert (await talk.run()).status == "completed"  # the thread is free


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(status=400), "invalid_prompt"),
        (Reply(status=401), "server_error"),
        (Reply(status=429, headers={"retry-after": "60"}), "rate_limit_exceeded"),
        (Reply(status=500), "server_error"),
        (Reply(drop_before_headers=True), "server_error"),
        (Reply(text=["Hel", "lo"], drop_after_chunks=1), "server_error"),
        (Reply(text=["Hel", "lo"], silent_after_chunks=1), "server_error"),
        (Reply(silent_after_chunks=0), "server_error"),
    ],
    ids=["400", "401", "429", "500", "drop", "drop in the middle", "silence", "silence first"],
)
async def test_a_model_that_fails(
    serve: Serve, model: ScriptedModel, reply: Reply, code: str
) -> None:
    model.answer = lambda body: reply
    async with (
        serve(model_max_attempts=2, model_idle_timeout_s=1) as server,
        _client(server) as client,
    ):
        talk = await _begin(client)
        ended = await talk.run()
        assert ended.status == "failed"
        assert shown(ended) == {"started_at", "failed_at", "last_error", "usage"}
        assert ended.last_error is not None
        assert ended.last_error.code == code
        assert ended.last_error.message
        assert all(step.status == "failed" for step in await talk.steps(ended))
        half = [message for message in await talk.messages() if message.role == "assistant"]
        assert [text_of(message) for message in half] == (["Hel"] if reply.text else [])
        for message in half:
            assert message.status == "incomplete"
            assert message.incomplete_details is not None
            assert message.incomplete_details.reason == "run_failed"
            assert message.incomplete_at is not None
        model.answer = lambda body: Reply(text="Hello")
        assert (await talk.run()).status == "completed"
        # What went wrong is not told to the model as something it said.
        assert "Hel" not in [message["content"] for message in model.requests[-1].body["messages"]]


@pytest.mark.parametrize("status", [500, 429, 503, 408])
async def test_one_passing_fault_of_the_model_fails_no_run(
    talk: Conversation, api: Api, model: ScriptedModel, status: int
) -> None:
    model.reply(Reply(status=status), Reply(text="Hello"))
    ended = await talk.run()
    assert ended.status == "completed"
    [step] = await talk.steps(ended)
    _, told = await api.get(f"{talk.runs_path}/{ended.id}/steps/{step.id}/request")
    assert [one["status"] for one in told["upstream"]["tries"]] == [status, 200]
    assert str(status) in told["upstream"]["tries"][0]["error"]


async def test_a_run_that_the_model_breaks_off(talk: Conversation, model: ScriptedModel) -> None:
    for finish_reason, run_reason, message_reason in (
        ("length", "max_completion_tokens", "max_tokens"),
        ("content_filter", "content_filter", "content_filter"),
    ):
        model.reply(Reply(text="Once upon a", finish_reason=finish_reason))
        ended = await talk.run()
        assert ended.status == "incomplete"
        assert shown(ended) == {"started_at", "completed_at", "incomplete_details", "usage"}
        assert ended.incomplete_details is not None
        assert ended.incomplete_details.reason == run_reason
        [step] = await talk.steps(ended)
        assert step.status == "completed"
        message = (await talk.messages())[-1]
        assert text_of(message) == "Once upon a"
        assert message.status == "incomplete"
        assert message.incomplete_details is not None
        assert message.incomplete_details.reason == message_reason


async def test_metadata_is_changed_only_while_nobody_works_on_the_run(
    talk: Conversation, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(gate=gate, tool_calls=[WEATHER_CALL]))
    run = await talk.start(metadata={"a": "1"})
    update = talk.client.beta.threads.runs.update
    await talk.reaches(run, "in_progress")
    with pytest.raises(
        openai.BadRequestError, match=r"Cannot update run with status 'in_progress'\."
    ):
        await update(run.id, thread_id=talk.thread_id, metadata={"b": "2"})
    gate.set()
    waiting = await talk.stopped(run)
    changed = await update(run.id, thread_id=talk.thread_id, metadata={"b": "2"})
    assert (changed.status, changed.metadata) == ("requires_action", {"b": "2"})
    assert changed.required_action == waiting.required_action


# --- values ---


async def test_the_run_keeps_the_assistants_values_of_its_creation(
    client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    assistant = await client.beta.assistants.create(
        model="scripted",
        instructions="Be brief.",
        tools=[WEATHER],
        temperature=0.5,
        top_p=0.25,
        reasoning_effort="low",
        response_format={"type": "json_object"},
    )
    talk = await Conversation.begin(client, assistant.id)
    gate = Gate()
    model.reply(Reply(gate=gate, tool_calls=[WEATHER_CALL]), Reply(text="Sunny."))
    run = await talk.start()
    await model.received(1)
    await client.beta.assistants.update(
        assistant.id, model="other", instructions="Be long.", tools=[], temperature=1.5
    )
    gate.set()
    waiting = await talk.stopped(run)
    assert (await talk.stopped(await talk.answer(waiting))).status == "completed"
    for request in model.requests:
        body = request.body
        assert body["model"] == "scripted"
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body["tools"][0]["function"]["name"] == "get_weather"
        assert (body["temperature"], body["top_p"], body["reasoning_effort"]) == (0.5, 0.25, "low")
        assert body["response_format"] == {"type": "json_object"}
    ended = await talk.look(run.id)
    assert (ended.model, ended.instructions, ended.temperature) == ("scripted", "Be brief.", 0.5)


async def test_the_run_overrides_its_assistant(talk: Conversation, model: ScriptedModel) -> None:
    model.say("Hello")
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }
    run = await talk.run(
        model="special",
        instructions="Be loud.",
        additional_instructions="And merry.",
        additional_messages=[
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
        ],
        tools=[{"type": "function", "function": {"name": "other"}}],
        temperature=0,
        top_p=0.5,
        response_format=schema,
        metadata={"kind": "test"},
    )
    assert run.status == "completed"
    body = model.requests[0].body
    assert body["model"] == "special"
    assert body["messages"] == [
        {"role": "system", "content": "Be loud.\n\nAnd merry."},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["other"]
    assert (body["temperature"], body["top_p"]) == (0, 0.5)
    assert body["response_format"] == schema  # together with tools
    assert run.instructions == "Be loud.\n\nAnd merry."
    assert run.metadata == {"kind": "test"}
    assert await talk.texts() == ["Hi", "One", "Two", "Hello"]


async def test_what_was_not_set_is_not_sent(
    client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    assistant = await client.beta.assistants.create(model="scripted")
    talk = await Conversation.begin(client, assistant.id)
    model.say("Hello")
    run = await talk.run()
    assert (run.temperature, run.top_p, run.instructions) == (1.0, 1.0, None)
    assert (run.tool_choice, run.parallel_tool_calls, run.response_format) == ("auto", True, "auto")
    assert set(model.requests[0].body) == {"model", "messages", "stream", "stream_options"}
    assert model.requests[0].body["messages"] == [{"role": "user", "content": "Hi"}]


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("choice", "first", "second"),
    [
        ("auto", None, None),
        ("none", "none", "none"),
        ("required", "required", None),
        (NAMED, NAMED, None),
    ],
    ids=["auto", "none", "required", "named"],
)
async def test_a_forced_tool_holds_for_the_first_turn(
    talk: Conversation, model: ScriptedModel, choice: Any, first: Any, second: Any
) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL]), Reply(text="Sunny."))
    waiting = await talk.run(tool_choice=choice)
    assert waiting.model_dump(exclude_none=True)["tool_choice"] == choice
    await talk.stopped(await talk.answer(waiting))
    assert [request.body.get("tool_choice") for request in model.requests] == [first, second]


async def test_a_tool_that_the_run_does_not_have_cannot_be_forced(talk: Conversation) -> None:
    wanted = {"type": "function", "function": {"name": "other"}}
    assert "tool_choice" in await refused(talk.start(tool_choice=wanted))
    assert await talk.texts() == ["Hi"]


async def test_one_call_at_a_time_even_from_a_model_that_makes_several(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[WEATHER_CALL, ToolCall("get_weather", {"city": "Rome"}, id="call_b")])
    )
    waiting = await talk.run(parallel_tool_calls=False)
    assert model.requests[0].body["parallel_tool_calls"] is False
    assert waiting.required_action is not None
    calls = waiting.required_action.submit_tool_outputs.tool_calls
    assert [call.id for call in calls] == ["call_a"]
    model.say("Sunny.")
    assert (await talk.stopped(await talk.answer(waiting))).status == "completed"
    assert len(model.requests[1].body["messages"][2]["tool_calls"]) == 1


async def test_outputs_are_for_all_calls_and_in_any_order(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL, ToolCall("get_weather", "{}", id="call_b")]))
    model.say("Both sunny.")
    waiting = await talk.run()
    submit = talk.client.beta.threads.runs.submit_tool_outputs

    async def send(*call_ids: str) -> str:
        outputs: Any = [{"tool_call_id": call_id, "output": call_id} for call_id in call_ids]
        return await refused(submit(waiting.id, thread_id=talk.thread_id, tool_outputs=outputs))

    expected = "Expected tool outputs for call_ids ['call_a', 'call_b'], got "
    assert await send("call_a") == expected + "['call_a']"
    assert await send("call_a", "call_b", "call_c") == expected + "['call_a', 'call_b', 'call_c']"
    assert await send("call_a", "call_a") == expected + "['call_a', 'call_a']"
    assert (await talk.look(waiting.id)).status == "requires_action"
    outputs: Any = [
        {"tool_call_id": "call_b", "output": "wet"},
        {"tool_call_id": "call_a"},
    ]
    await submit(waiting.id, thread_id=talk.thread_id, tool_outputs=outputs)
    assert (await talk.stopped(waiting)).status == "completed"
    told = [message for message in model.requests[1].body["messages"] if message["role"] == "tool"]
    assert told == [
        {"role": "tool", "tool_call_id": "call_a", "content": ""},
        {"role": "tool", "tool_call_id": "call_b", "content": "wet"},
    ]
    assert await refused(submit(waiting.id, thread_id=talk.thread_id, tool_outputs=outputs)) == (
        'Runs in status "completed" do not accept tool outputs.'
    )


async def test_text_and_calls_of_one_turn_are_given_back_as_one_message(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(text="Let me see.", tool_calls=[WEATHER_CALL]), Reply(text="Sunny."))
    waiting = await talk.run()
    assert [step.type for step in await talk.steps(waiting)] == ["message_creation", "tool_calls"]
    await talk.stopped(await talk.answer(waiting, "22 degrees"))
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert model.requests[1].body["messages"][2:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "call_a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "22 degrees"},
    ]
    assert await talk.texts() == ["Hi", "Let me see.", "Sunny."]


# --- budgets ---


async def test_the_completion_budget_is_the_whole_runs(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[WEATHER_CALL], usage={"prompt_tokens": 10, "completion_tokens": 60}),
        Reply(
            text="Once upon",
            finish_reason="length",
            usage={"prompt_tokens": 20, "completion_tokens": 40},
        ),
    )
    waiting = await talk.run(max_completion_tokens=100)
    ended = await talk.stopped(await talk.answer(waiting))
    assert [request.body["max_tokens"] for request in model.requests] == [100, 40]
    assert ended.status == "incomplete"
    assert ended.incomplete_details is not None
    assert ended.incomplete_details.reason == "max_completion_tokens"
    assert ended.usage is not None
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (30, 100)
    message = (await talk.messages())[-1]
    assert (message.status, text_of(message)) == ("incomplete", "Once upon")


async def test_a_spent_completion_budget_asks_for_no_outputs(
    talk: Conversation, model: ScriptedModel
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 300}
    model.reply(Reply(text="Let me see.", tool_calls=[WEATHER_CALL], usage=usage))
    ended = await talk.run(max_completion_tokens=300)
    assert ended.status == "incomplete"
    assert ended.incomplete_details is not None
    assert ended.incomplete_details.reason == "max_completion_tokens"
    assert await talk.texts() == ["Hi", "Let me see."]


async def test_the_prompt_budget_is_the_whole_runs(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[WEATHER_CALL], usage={"prompt_tokens": 290, "completion_tokens": 5})
    )
    waiting = await talk.run(max_prompt_tokens=300)
    ended = await talk.stopped(await talk.answer(waiting, "sunny " * 20))
    assert ended.status == "incomplete"
    assert ended.incomplete_details is not None
    assert ended.incomplete_details.reason == "max_prompt_tokens"
    assert len(model.requests) == 1
    assert ended.usage is not None
    assert ended.usage.prompt_tokens == 290


async def test_a_run_stops_after_so_many_turns(serve: Serve, model: ScriptedModel) -> None:
    model.answer = lambda body: Reply(tool_calls=[ToolCall("get_weather")])
    async with serve(run_max_turns=3) as server, _client(server) as client:
        talk = await _begin(client)
        run = await talk.run()
        for _ in range(3):
            assert run.status == "requires_action"
            await talk.answer(run)
            run = await talk.stopped(run)
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.message == "The run was stopped after 3 model turns."
    assert len(model.requests) == 3


async def test_usage_that_the_model_does_not_tell_is_counted(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(text="one two three four five", usage=None))
    ended = await talk.run()
    assert ended.usage is not None
    assert 5 <= ended.usage.completion_tokens <= 10  # without tiktoken's files it is an estimate
    assert ended.usage.prompt_tokens > 5
    assert ended.usage.total_tokens == ended.usage.prompt_tokens + ended.usage.completion_tokens


# --- which model ---


async def test_models_are_routed_and_fall_back(serve: Serve, model: ScriptedModel) -> None:
    async with ScriptedModel() as other:
        routes = {
            "gpt-*": ModelRoute(base_url=other.base_url, upstream_name="big", fallbacks=["spare"]),
            "small": ModelRoute(upstream_name="tiny", context_window_tokens=100_000),
        }
        other.reply(Reply(text="From the other."), Reply(status=401))
        model.reply(Reply(text="From tiny."), Reply(text="From the spare."))
        async with serve(models=routes) as server, _client(server) as client:
            talk = await _begin(client)
            for name in ("gpt-9", "small", "gpt-9"):
                run = await talk.run(model=name)
                assert (run.status, run.model) == ("completed", name)
            texts = await talk.texts()
        assert texts == ["Hi", "From the other.", "From tiny.", "From the spare."]
        assert [one.body["model"] for one in other.requests] == ["big", "big"]
        assert [one.body["model"] for one in model.requests] == ["tiny", "spare"]


async def test_without_an_endpoint_the_model_does_not_exist(serve: Serve) -> None:
    async with serve(model_base_url=None) as server, _client(server) as client:
        talk = await _begin(client)
        with pytest.raises(openai.BadRequestError) as refusal:
            await talk.start(additional_messages=[{"role": "user", "content": "More"}])
        assert refusal.value.code == "model_not_found"
        assert await talk.texts() == ["Hi"]  # nothing was written


# --- what is kept ---


async def test_the_exact_request_is_kept_with_its_step(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[WEATHER_CALL]), Reply(text="Sunny."))
    waiting = await talk.run()
    ended = await talk.stopped(await talk.answer(waiting))
    for number, step in enumerate(await talk.steps(ended)):
        status, told = await api.get(f"{talk.runs_path}/{ended.id}/steps/{step.id}/request")
        assert status == 200
        assert told["request"] == model.requests[number].body
        assert told["turn"] == number + 1
        assert told["upstream"]["model"] == "scripted"
        assert told["upstream"]["base_url"] == model.base_url
        [one] = told["upstream"]["tries"]
        assert (one["status"], one["error"]) == (200, None)
        assert step.usage is not None
        assert told["usage"]["total_tokens"] == step.usage.total_tokens
        timings = told["timings"]
        times = ("queue_ms", "prompt_ms", "connect_ms", "first_token_ms", "generation_ms")
        assert all(0 <= timings[name] < 60_000 for name in (*times, "database_ms"))
        assert (timings["tools_ms"] is not None) == (step.type == "tool_calls")
    missing, _ = await api.get(f"{talk.runs_path}/{ended.id}/steps/step_missing/request")
    assert missing == 404


async def test_requests_are_not_kept_where_nobody_wants_it(
    serve: Serve, model: ScriptedModel
) -> None:
    model.say("Hello")
    async with (
        serve(keep_requests=False) as server,
        _client(server) as client,
        Api(server.address) as api,
    ):
        talk = await _begin(client)
        ended = await talk.run()
        [step] = await talk.steps(ended)
        _, told = await api.get(f"{talk.runs_path}/{ended.id}/steps/{step.id}/request")
    assert told["request"] is None
    assert told["timings"]["first_token_ms"] is not None


async def test_half_an_answer_can_be_read_while_it_is_written(
    serve: Serve, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with serve(draft_interval_s=0.05) as server, _client(server) as client:
        talk = await _begin(client)
        run = await talk.start()

        async def is_seen() -> bool:
            return await talk.texts() == ["Hi", "Hel"]

        await eventually(is_seen)
        assert (await talk.messages())[1].status == "in_progress"
        gate.set()
        await talk.stopped(run)
        assert await talk.texts() == ["Hi", "Hello"]
        assert len(await talk.steps(run)) == 1


def _client(server: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)


async def _begin(client: openai.AsyncOpenAI) -> Conversation:
    assistant: Assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id)
