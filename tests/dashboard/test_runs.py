"""One run: where its time went, and what the model was sent."""

import re
from typing import Any

import orjson

from dashboard.conftest import Desk
from runs.wire import eventually
from threadmill.dashboard import waterfall
from threadmill.demo.scripted_model import Gate, Reply, ToolCall
from threadmill.store.rows import Step, Turn

FUNCTION: Any = {
    "type": "function",
    "function": {"name": "get_order", "parameters": {"type": "object", "properties": {}}},
}


async def asked_for_order(desk: Desk) -> tuple[str, Any]:
    """A run that has called a function, was answered, and has spoken."""
    desk.model.reply(
        Reply(tool_calls=[ToolCall("get_order", {"id": "<17>"}, id="call_17")]),
        Reply(text=["It is <on> its way."]),
    )
    thread_id = await desk.thread("Where is order 17?")
    run = await desk.run(thread_id, instructions="Be brief.", tools=[FUNCTION], model="gpt-4o")
    outputs: Any = [{"tool_call_id": "call_17", "output": '{"status": "<sent>"}'}]
    return thread_id, await desk.client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread_id, tool_outputs=outputs, poll_interval_ms=20
    )


async def test_a_run_shows_its_turns_tools_and_texts(desk: Desk) -> None:
    thread_id, run = await asked_for_order(desk)
    html = await desk.page(f"/ui/runs/{run.id}")
    for told in (
        "completed", f"/ui/threads/{thread_id}", "gpt-4o", "2 turns", "turn 1", "turn 2",
        "the client&#39;s functions", "{&#34;id&#34;: &#34;&lt;17&gt;&#34;}",
        "{&#34;status&#34;: &#34;&lt;sent&gt;&#34;}", "It is &lt;on&gt; its way.",
    ):  # fmt: skip
        assert told in html or told.replace("&#39;", "'") in html, told
    for kind in ("queue", "prompt", "wait", "generate", "client"):
        assert f'<rect class="{kind}"' in html
    assert "hx-trigger" not in html  # it has ended: nothing is asked for again


async def test_what_was_sent_is_taken_apart(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    html = await desk.page(f"/ui/runs/{run.id}/turns/2")
    pieces = re.findall(
        r'<summary><span class="share k\d">(.+?)</span> <b>([\w ,]+)</b>.*?<pre[^>]*>(.*?)</pre>',
        html,
        re.S,
    )
    assert [(kind, role) for kind, role, _ in pieces] == [
        ("instructions", "system"),
        ("tools", "get_order"),
        ("history", "user"),
        ("calls", "assistant"),
        ("function output", "tool"),
    ]
    assert pieces[0][2] == "Be brief."
    assert pieces[4][2] == "{&#34;status&#34;: &#34;&lt;sent&gt;&#34;}"
    part = await desk.send("GET", f"/ui/runs/{run.id}/turns/2", headers={"HX-Request": "true"})
    assert "<html" not in await part.text()
    raw = await desk.send("GET", f"/ui/runs/{run.id}/turns/2/request")
    assert orjson.loads(await raw.read()) == desk.model.requests[-1].body
    for number in ("3", "0", "-1", "x", "9" * 30, "²"):
        assert (await desk.send("GET", f"/ui/runs/{run.id}/turns/{number}")).status == 404


async def test_chunks_are_told_from_other_outputs(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    await desk.client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("a.md", b"Refunds within 30 days."), poll_interval_ms=20
    )
    desk.model.reply(
        Reply(tool_calls=[ToolCall("file_search", {"queries": ["refunds"]})]), Reply(text=["Yes"])
    )
    thread_id = await desk.thread("When?")
    run = await desk.run(
        thread_id,
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    assert run.status == "completed", run.last_error
    html = await desk.page(f"/ui/runs/{run.id}/turns/2")
    assert re.search(r'<span class="share k4">chunks</span> <b>tool</b>', html)
    html = await desk.page(f"/ui/runs/{run.id}")
    assert "<li>refunds</li>" in html
    assert "Refunds within 30 days." in html
    assert '<rect class="tool"' in html


async def test_what_truncation_left_out_is_named(desk: Desk) -> None:
    desk.model.say("Yes")
    thread_id = await desk.thread(*(f"Number {n} " + "word " * 400 for n in range(12)))
    made = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create_and_poll(
        thread_id=thread_id, assistant_id=made.id, max_prompt_tokens=2000, poll_interval_ms=20
    )
    assert run.status == "completed"
    html = await desk.page(f"/ui/runs/{run.id}/turns/1")
    left_out = re.search(r"(\d+) messages were left out", html)
    assert left_out
    assert html.count("?around=msg_") == int(left_out[1]) > 0


async def test_a_failed_run_says_what_the_upstream_said(desk: Desk) -> None:
    answer = {"error": {"message": "Slow <down>"}}
    desk.model.answer = lambda _: Reply(status=429, body=answer)
    run = await desk.run(await desk.thread("Hello"))
    html = await desk.page(f"/ui/runs/{run.id}")
    assert "<b>rate_limit_exceeded</b>" in html
    assert html.count("Slow &lt;down&gt;") == 1 + 4  # the run's error, and every try
    assert html.count("<td>429</td>") == 4


async def test_a_run_that_goes_on_is_looked_at_again_and_can_be_cancelled(desk: Desk) -> None:
    gate = Gate()
    desk.model.reply(Reply(text=["So", gate, " it is"]))
    thread_id = await desk.thread("Hello")
    made = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create(thread_id=thread_id, assistant_id=made.id)
    html = await desk.page(f"/ui/runs/{run.id}")
    assert f'hx-get="/ui/runs/{run.id}" hx-trigger="every 2s" hx-swap="outerMorph"' in html
    assert (await desk.send("POST", f"/ui/runs/{run.id}/cancel")).status == 303

    async def is_cancelled() -> bool:
        return ">cancelled<" in await desk.page(f"/ui/runs/{run.id}")

    await eventually(is_cancelled)
    gate.set()
    assert (await desk.send("POST", f"/ui/runs/{run.id}/cancel")).status == 400
    part = await desk.send("GET", f"/ui/runs/{run.id}", headers={"HX-Request": "true"})
    assert "hx-trigger" not in await part.text()


def test_the_picture_has_every_span_in_its_place() -> None:
    record = {
        "queued_at": 10.0, "claimed_at": 11.0, "prompt_s": 0.5, "sent_at": 12.0,
        "first_chunk_at": 14.0, "ended_at": 18.0, "tries": [],
        "tools": [{"call_id": "call_1", "started_at": 18.0, "ended_at": 20.0}],
    }  # fmt: skip
    step = Step(
        *["x"] * 5, 0, "tool_calls", "completed", None, None, None, None, None, None,
        {"tool_calls": []}, None, 1, {"call_1": {"name": "file_search", "queries": ["a", "b"]}},
    )  # fmt: skip
    run: Any = None
    drawn = waterfall.draw(run, [Turn("run_x", 1, None, record)], [step])
    assert drawn is not None
    assert drawn.length_s == 10
    assert [(row.label, row.note) for row in drawn.rows] == [
        ("queue", ""),
        ("turn 1", ""),
        ("file_search", "a · b"),
    ]
    assert [(bar.kind, bar.x, bar.width) for row in drawn.rows for bar in row.bars] == [
        ("queue", 0, 100),
        ("prompt", 150, 50),
        ("wait", 200, 200),
        ("generate", 400, 400),
        ("tool", 800, 200),
    ]
    assert drawn.ticks == [(0, 0), (200, 2), (400, 4), (600, 6), (800, 8), (1000, 10)]
