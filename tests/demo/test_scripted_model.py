import asyncio
import json
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall, vector


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as model:
        yield model


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def complete(
    session: aiohttp.ClientSession, model: ScriptedModel, *, stream: bool = True
) -> tuple[int, str]:
    body = {"model": "m", "messages": [], "stream": stream}
    async with session.post(f"{model.base_url}/chat/completions", json=body) as response:
        return response.status, await response.text()


async def test_the_queue_is_answered_in_order_and_then_empty(
    model: ScriptedModel, session: aiohttp.ClientSession
) -> None:
    model.say("one")
    model.reply(Reply(text="two", tool_calls=[ToolCall("f", {"a": 1})]))
    first, second, third = [await complete(session, model, stream=False) for _ in range(3)]
    assert json.loads(first[1])["choices"][0]["message"]["content"] == "one"
    choice = json.loads(second[1])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert third == (500, '{"error":{"message":"script is empty"}}')


async def test_a_stream_ends_in_done(model: ScriptedModel, session: aiohttp.ClientSession) -> None:
    model.say("Hello", " world")
    status, body = await complete(session, model)
    events = body.split("\n\n")
    assert status == 200
    assert [json.loads(event[6:])["choices"][0]["delta"] for event in events[:3]] == [
        {"role": "assistant", "content": "Hello"},
        {"content": " world"},
        {},
    ]
    assert events[3:] == ["data: [DONE]", ""]


async def test_a_gate_holds_a_reply_until_it_is_set(
    model: ScriptedModel, session: aiohttp.ClientSession
) -> None:
    gate = asyncio.Event()
    model.say("a", gate, "b")
    task = asyncio.create_task(complete(session, model))
    await model.received(1)
    assert not task.done()
    gate.set()
    assert '"b"' in (await task)[1]


async def test_stopping_is_no_disconnect(session: aiohttp.ClientSession) -> None:
    async with ScriptedModel() as model:
        model.say(asyncio.Event())
        task = asyncio.create_task(complete(session, model))
        await model.received(1)
    with pytest.raises(aiohttp.ClientError):
        await task
    assert model.disconnects == 0


async def test_models_are_listed(model: ScriptedModel, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{model.base_url}/models") as response:
        assert [one["id"] for one in (await response.json())["data"]] == ["scripted"]


def test_vectors_of_texts_that_share_words_are_near() -> None:
    def likeness(one: str, other: str) -> float:
        pairs = zip(vector(one, 64), vector(other, 64), strict=True)
        return sum(left * right for left, right in pairs)

    assert likeness("the red car", "the red car") == pytest.approx(1)
    assert likeness("the red car", "a red car") > likeness("the red car", "monthly tax report")
    assert len(vector("", 8)) == 8


async def test_as_a_process_it_names_its_url_first(session: aiohttp.ClientSession) -> None:
    options = ["--chunks", "3", "--delay-s", "0.01", "--tool-calls", "2"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "threadmill.demo.scripted_model",
        *options,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        texts: list[str] = []
        for role in ("user", "tool"):
            body = {"model": "m", "messages": [{"role": role}], "stream": True}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                texts.append(await response.text())
        assert texts[0].count("get_weather") == 2
        assert [texts[1].count(word) for word in ("word0", "word1", "word2", "word3")] == [
            1,
            1,
            1,
            0,
        ]
    finally:
        process.kill()
        await process.wait()
