"""What the model is really sent: truncation, images, attachments, half answers."""

import base64
from typing import Any

import openai
import pytest

from conftest import Serve
from runs.wire import WEATHER, Api, Conversation, text_of
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.settings import ModelRoute

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 16


def told(model: ScriptedModel, number: int = -1) -> list[Any]:
    """The messages of a request, without the instructions."""
    messages: list[Any] = model.requests[number].body["messages"]
    return [message for message in messages if message["role"] != "system"]


def client_of(server: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)


async def long_talk(client: openai.AsyncOpenAI, count: int = 12) -> Conversation:
    """Messages of about 50 tokens each; the number of each stands at its beginning."""
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    messages: Any = [
        {"role": "user", "content": f"{number}: " + "word " * 45} for number in range(count)
    ]
    thread = await client.beta.threads.create(messages=messages)
    return Conversation(client, assistant.id, thread.id)


def numbers(messages: list[Any]) -> list[int]:
    return [int(one["content"].partition(":")[0]) for one in messages if one["role"] == "user"]


async def test_truncation_drops_from_the_middle(serve: Serve, model: ScriptedModel) -> None:
    model.say("Hello")
    routes = {"scripted": ModelRoute(context_window_tokens=600)}
    async with (
        serve(models=routes) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await long_talk(client)
        run = await talk.run(max_completion_tokens=150)
        assert run.status == "completed"
        kept = numbers(told(model))
        assert kept[0] == 0
        assert 3 < len(kept) < 12
        assert kept[1:] == list(range(12 - len(kept) + 1, 12))
        [step] = await talk.steps(run)
        _, request = await api.get(f"{talk.runs_path}/{run.id}/steps/{step.id}/request")
        dropped = [one.id for one in await talk.messages() if one.id in request["dropped_messages"]]
        assert len(dropped) == 12 - len(kept)
        first, *_ = await talk.messages()
        assert first.id not in dropped


async def test_truncation_keeps_to_the_prompt_budget_and_calls_with_their_results(
    server: Served, client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather", id="call_a")], usage=_usage(300, 10)),
        Reply(tool_calls=[ToolCall("get_weather", id="call_b")], usage=_usage(200, 10)),
        Reply(text="Sunny.", usage=_usage(250, 10)),
    )
    talk = await long_talk(client)
    run = await talk.run(max_prompt_tokens=850)
    await talk.answer(run, "sunny " * 30)
    run = await talk.stopped(run)
    await talk.answer(run, "wet " * 30)
    run = await talk.stopped(run)
    assert run.status == "completed"
    counts = [len(numbers(told(model, number))) for number in range(3)]
    # All twelve by exact counts; estimates, where no encoding is at hand, are somewhat higher.
    assert 12 >= counts[0] > counts[1] > counts[2] >= 1
    assert numbers(told(model))[-1] == 11
    for number in range(3):
        turns = [one for one in told(model, number) if one["role"] != "user"]
        assert [one["role"] for one in turns] == ["assistant", "tool"] * number
        for call, result in zip(turns[::2], turns[1::2], strict=True):
            assert call["tool_calls"][0]["id"] == result["tool_call_id"]


async def test_only_the_last_messages(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.say("Hello")
    talk = await long_talk(client)
    run = await talk.run(truncation_strategy={"type": "last_messages", "last_messages": 3})
    assert run.status == "completed"
    assert numbers(told(model)) == [9, 10, 11]
    assert run.truncation_strategy is not None
    assert run.truncation_strategy.last_messages == 3


@pytest.mark.parametrize("budget", [None, 256])
async def test_a_question_that_does_not_fit(
    serve: Serve, model: ScriptedModel, budget: int | None
) -> None:
    routes = {"scripted": ModelRoute(context_window_tokens=400)}
    async with serve(models=routes) as server, client_of(server) as client:
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id, "word " * 500)
        run = await talk.run(max_prompt_tokens=budget)
    assert model.requests == []
    if budget is None:
        assert (run.status, run.last_error and run.last_error.code) == ("failed", "invalid_prompt")
    else:
        assert run.incomplete_details is not None
        assert run.incomplete_details.reason == "max_prompt_tokens"


async def test_images_reach_the_model(talk: Conversation, model: ScriptedModel) -> None:
    model.say("A cat.")
    file = await talk.client.files.create(file=("cat.jpg", JPEG), purpose="vision")
    await talk.say(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_file", "image_file": {"file_id": file.id, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ]
    )
    assert (await talk.run()).status == "completed"
    data = base64.b64encode(JPEG).decode()
    assert told(model)[1] == {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/jpeg;base64,{data}", "detail": "low"},
            },
            {
                "type": "image_url",
                "image_url": {"url": "https://example.com/a.png", "detail": "auto"},
            },
        ],
    }


@pytest.mark.parametrize("fault", ["deleted", "no image"])
async def test_an_image_that_cannot_be_used_fails_the_run(
    talk: Conversation, model: ScriptedModel, fault: str
) -> None:
    image = PNG if fault == "deleted" else b"no image at all"
    file = await talk.client.files.create(file=("cat.png", image), purpose="vision")
    await talk.say([{"type": "image_file", "image_file": {"file_id": file.id}}])
    if fault == "deleted":
        await talk.client.files.delete(file.id)
    run = await talk.run()
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "invalid_prompt"
    assert file.id in run.last_error.message
    assert model.requests == []


async def test_the_model_is_told_of_attached_files(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.say("I see.")
    create = talk.client.files.create
    kept = await create(file=("plan.txt", b"text"), purpose="assistants")
    gone = await create(file=("gone.txt", b"text"), purpose="assistants")
    await talk.say(
        "Look at these.",
        attachments=[
            {"file_id": kept.id, "tools": [{"type": "code_interpreter"}]},
            {"file_id": gone.id, "tools": [{"type": "code_interpreter"}]},
        ],
    )
    await talk.client.files.delete(gone.id)
    assert (await talk.run()).status == "completed"
    assert told(model)[1]["content"] == (
        f"Look at these.\nAttached files: {kept.id} (plan.txt) for code_interpreter;"
        f" {gone.id} (deleted) for code_interpreter"
    )


async def test_half_an_answer_that_the_user_stopped_is_part_of_the_talk(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Once upon a time", Gate()]), Reply(text="Fine."))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        await stream.until("thread.message.delta")
        await talk.cancel(run["id"])
        await stream.all()
    await talk.say("Shorter, please.")
    assert (await talk.run()).status == "completed"
    assert [(one["role"], one["content"]) for one in told(model)] == [
        ("user", "Hi"),
        ("assistant", "Once upon a time"),
        ("user", "Shorter, please."),
    ]
    assert text_of((await talk.messages())[1]) == "Once upon a time"


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}
