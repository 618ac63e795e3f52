"""One run: where its time went, and what the model was sent."""

import asyncio
import re
import zlib
from html import unescape
from typing import Any

import orjson

from dashboard.conftest import Desk
from dashboard.test_thread import PNG, in_bash, said, upload
from runs.wire import eventually
from threadmill.dashboard import waterfall
from threadmill.demo.scripted_model import Gate, Reply, ToolCall
from threadmill.store import projects, runs
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
    assert "hx-sse:connect" not in html  # it has ended: nothing is followed


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


async def test_a_run_that_goes_on_is_followed_and_can_be_cancelled(desk: Desk) -> None:
    gate = Gate()
    desk.model.reply(Reply(text=["So", gate, " it is"]))
    thread_id = await desk.thread("Hello")
    made = await desk.client.beta.assistants.create(model="m")
    run = await desk.client.beta.threads.runs.create(thread_id=thread_id, assistant_id=made.id)
    html = await desk.page(f"/ui/runs/{run.id}")
    assert f'hx-sse:connect="/ui/runs/{run.id}/live" hx-sse:close="over"' in html
    assert "Load the page again" in html  # without scripts
    assert (await desk.send("POST", f"/ui/runs/{run.id}/cancel")).status == 303

    async def is_cancelled() -> bool:
        return ">cancelled<" in await desk.page(f"/ui/runs/{run.id}")

    await eventually(is_cancelled)
    gate.set()
    assert (await desk.send("POST", f"/ui/runs/{run.id}/cancel")).status == 400
    assert "hx-sse:connect" not in await desk.page(f"/ui/runs/{run.id}")


async def test_what_is_new_of_a_run_is_sent_until_it_ends(desk: Desk) -> None:
    gate = Gate()
    desk.model.reply(Reply(text=["So", gate, " it is"]))
    run = await started(desk, await desk.thread("Hello"))
    following = asyncio.create_task(desk.send("GET", f"/ui/runs/{run.id}/live"))

    async def is_shown() -> bool:
        return "under way" in await desk.page(f"/ui/runs/{run.id}")

    await eventually(is_shown)
    gate.set()
    answer = await asyncio.wait_for(following, 30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = (await answer.text()).split("\n\n")
    assert frames[-2] == "event: over\ndata: over"
    last = frames[-3]
    assert 'hx-target="#run-head"' in last
    assert ">completed<" in last
    assert "So it is" in last
    assert "under way" not in last
    # Of one that has ended there is one look, and nothing to come back for.
    answer = await asyncio.wait_for(desk.send("GET", f"/ui/runs/{run.id}/live"), 30)
    assert (await answer.text()).endswith("event: over\ndata: over\n\n")


async def test_a_deleted_run_is_followed_no_more(desk: Desk) -> None:
    gate = Gate()
    desk.model.reply(Reply(gate=gate))
    thread_id = await desk.thread("Hello")
    run = await started(desk, thread_id)
    async with asyncio.timeout(30), desk.open(f"/ui/runs/{run.id}/live") as answer:
        assert b"run-head" in await answer.content.readuntil(b"\n\n")
        await desk.client.beta.threads.delete(thread_id)
        assert (await answer.content.read()).endswith(b"event: over\ndata: over\n\n")
    gate.set()


async def test_every_write_to_a_run_makes_another_mark(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    _, other = await asked_for_order(desk)

    async def marks() -> dict[str, str]:
        async with desk.database.connection() as connection:
            return await runs.marks(connection, [run.id, other.id, "run_gone"])

    seen = [await marks()]
    assert {*seen[0]} == {run.id, other.id}
    assert await marks() == seen[0]
    async with desk.database.connection() as connection:
        for statement in (
            "UPDATE runs SET metadata = '{}' WHERE id = %s",
            "UPDATE steps SET given = NULL WHERE run_id = %s",
            "UPDATE messages SET content = content WHERE run_id = %s",
            "UPDATE turns SET record = record WHERE run_id = %s",
            "DELETE FROM steps WHERE run_id = %s",
        ):
            await connection.execute(statement, [run.id])
            now = await marks()
            assert now[run.id] not in [one[run.id] for one in seen]
            assert now[other.id] == seen[0][other.id]
            seen.append(now)


async def test_what_happened_is_told_in_order(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    html = await desk.page(f"/ui/runs/{run.id}")
    table = html[html.index('class="history"') :].partition("</table>")[0]
    told = re.findall(r'<td class="wide">(.*?)</td><td><code>(.*?)</code>', table)
    here, endpoint = desk.runtime.name, desk.model.base_url
    assert told == [
        ("queued", ""),
        ("in progress", here),
        ("turn 1: asked gpt-4o", endpoint),
        ("turn 1: the first token came", ""),
        ("turn 1: the model ended (tool_calls)", ""),
        ("the client&#39;s outputs came", ""),
        ("queued", ""),
        ("in progress", here),
        ("turn 2: asked gpt-4o", endpoint),
        ("turn 2: the first token came", ""),
        ("turn 2: the model ended (stop)", ""),
        ("completed", ""),
    ]


# --- what can be done with a run ---


async def test_a_run_is_retried_on_a_copy_of_what_it_was_given(desk: Desk) -> None:
    thread_id = await desk.thread("One", "Two", user="u1")
    made = await desk.client.beta.assistants.create(model="m", name="Support")
    desk.model.say("Three")
    at = len(desk.model.requests)
    options: Any = {
        "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"},
        "max_completion_tokens": 400, "max_prompt_tokens": 4000, "model": "gpt-4o",
        "truncation_strategy": {"type": "last_messages", "last_messages": 5},
        "response_format": {"type": "text"}, "tools": [FUNCTION], "tool_choice": "none",
        "parallel_tool_calls": False,
    }  # fmt: skip
    first = await desk.client.beta.threads.runs.create_and_poll(
        thread_id=thread_id, assistant_id=made.id, poll_interval_ms=20, **options,
        additional_messages=[{"role": "user", "content": "And more"}],
    )  # fmt: skip
    await desk.client.beta.threads.messages.create(thread_id, role="user", content="Four")
    desk.model.say("Four, then")
    await desk.run(thread_id)
    before = await said(desk, thread_id)
    desk.model.say("Three, once more")
    answer = await desk.send("POST", f"/ui/runs/{first.id}/retry")
    assert answer.status == 303
    address = answer.headers["location"]
    second = await ended(desk, address)
    assert second.id != first.id
    assert second.thread_id != thread_id
    assert await said(desk, second.thread_id) == ["One", "Two", "And more", "Three, once more"]
    assert desk.model.requests[-1].body == desk.model.requests[at].body
    told = {"id", "thread_id", "created_at", "started_at", "completed_at", "expires_at", "usage"}
    assert {name: value for name, value in second.to_dict().items() if name not in told} == {
        name: value for name, value in first.to_dict().items() if name not in told
    }
    assert second.metadata == {"a": "b"}
    thread = await desk.client.beta.threads.retrieve(second.thread_id)
    assert thread.metadata == {"user": "u1"}
    assert await said(desk, thread_id) == before  # the thread stays as it was


async def test_a_run_that_wrote_nothing_is_retried(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    desk.model.reply(Reply(status=400))
    failed = await desk.run(thread_id)
    assert failed.status == "failed"
    desk.model.say("Better")
    answer = await desk.send("POST", f"/ui/runs/{failed.id}/retry")
    second = await ended(desk, answer.headers["location"])
    assert await said(desk, second.thread_id) == ["Hello", "Better"]


async def test_a_run_without_any_messages_is_retried(desk: Desk) -> None:
    desk.model.say("Begin", "")
    first = await desk.run(await desk.thread(), instructions="Greet.")
    desk.model.say("Once more")
    answer = await desk.send("POST", f"/ui/runs/{first.id}/retry")
    second = await ended(desk, answer.headers["location"])
    assert await said(desk, second.thread_id) == ["Once more"]


async def test_a_run_of_a_deleted_assistant_is_not_retried(desk: Desk) -> None:
    desk.model.say("Yes")
    first = await desk.run(await desk.thread("Hello"))
    assert f'action="/ui/runs/{first.id}/retry"' in await desk.page(f"/ui/runs/{first.id}")
    await desk.client.beta.assistants.delete(first.assistant_id)
    assert (await desk.send("POST", f"/ui/runs/{first.id}/retry")).status == 404
    html = await desk.page("/ui/threads")
    assert html.count('class="row"') == 1  # and no copy is left behind
    assert "/retry" not in await desk.page(f"/ui/runs/{first.id}")


async def test_retrying_is_held_to_the_limits_of_the_key(desk: Desk) -> None:
    desk.model.say("Yes")
    first = await desk.run(await desk.thread("Hello"))
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE projects SET max_tokens_per_minute = 1, max_concurrent_runs = 1 WHERE id = %s",
            [desk.project_id],
        )
        project = await projects.get(connection, desk.project_id)
        _, desk.key = await projects.create_key(connection, project, "not known yet")
    await desk.sign_in()
    desk.model.say("Yes")
    answer = await desk.send("POST", f"/ui/runs/{first.id}/retry")
    second = await ended(desk, answer.headers["location"])  # what begins may spend too much
    assert second.status == "completed"
    answer = await desk.send("POST", f"/ui/runs/{first.id}/retry")
    assert answer.status == 429
    assert "tokens are spent" in await answer.text()


async def test_what_was_sent_is_copied_as_a_command(desk: Desk) -> None:
    odd = 'It\'s "odd": $HOME `id` \\ \nEND_OF_JSON\n é🎉 $(id)'
    desk.model.say("Yes")
    run = await desk.run(await desk.thread(odd), instructions=odd)
    [sent] = desk.model.requests[-1:]
    html = await desk.page(f"/ui/runs/{run.id}/turns/1")
    [shown] = re.findall(r'<pre tabindex="0" id="curl-1">(.*?)</pre>', html, re.S)
    as_file = await desk.send("GET", f"/ui/runs/{run.id}/turns/1/curl")
    command = await as_file.text()
    assert unescape(shown) == command
    assert "$OPENAI_API_KEY" in command
    desk.model.say("Yes, from a shell")
    out = await in_bash(command, "my-own-key")
    assert b"from a shell" in out
    assert desk.model.requests[-1].body == sent.body
    assert desk.model.requests[-1].headers["Authorization"] == "Bearer my-own-key"


async def test_functions_are_answered_by_hand(desk: Desk) -> None:
    calls = [ToolCall("get_order", {"id": "<17>"}, id="call_1"), ToolCall("get_order", "{}")]
    desk.model.reply(Reply(tool_calls=calls), Reply(text=["On its way"]))
    thread_id = await desk.thread("Where is it?")
    run = await desk.run(thread_id, tools=[FUNCTION])
    html = await desk.page(f"/ui/runs/{run.id}")
    form = html[html.index('class="answer"') :].partition("</form>")[0]
    call_ids = re.findall(r'name="call_id" value="([^"]+)"', form)
    assert len(call_ids) == form.count("<textarea") == 2
    assert "{&#34;id&#34;: &#34;&lt;17&gt;&#34;}" in form
    path = f"/ui/runs/{run.id}/outputs"
    one = [("call_id", "call_1"), ("output", "x")]
    assert (await desk.send("POST", path, one)).status == 400  # both or none
    both = [("call_id", call_ids[0]), ("output", '{"is": "sent"}\r\nyesterday'),
            ("call_id", call_ids[1]), ("output", "")]  # fmt: skip
    answer = await desk.send("POST", path, both)
    assert (answer.status, answer.headers["location"]) == (303, f"/ui/runs/{run.id}")
    await ended(desk, answer.headers["location"])
    given = [one["content"] for one in desk.model.requests[-1].body["messages"][-2:]]
    assert given == ['{"is": "sent"}\nyesterday', ""]
    assert (await desk.send("POST", path, both)).status == 400  # it was answered
    assert 'class="answer"' not in await desk.page(f"/ui/runs/{run.id}")


# --- how large a page gets ---


async def test_what_is_too_long_for_the_page_is_on_the_page_of_its_step(desk: Desk) -> None:
    desk.model.reply(Reply(tool_calls=[ToolCall("get_order", id="c")]), Reply(text=["Yes"]))
    run = await desk.run(await desk.thread("Where?"), tools=[FUNCTION])
    output = "".join(f"{n}<b>\n" for n in range(30_000))
    outputs: Any = [{"tool_call_id": "c", "output": output}]
    await desk.client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs, poll_interval_ms=20
    )
    html = await desk.page(f"/ui/runs/{run.id}")
    assert len(html) < 30_000
    [(more, link)] = re.findall(r'([\d,]+) more characters: <a href="([^"]+)">', html)
    assert more == f"{len(output) - 2_000:,}"
    html = await desk.page(link)
    assert len(html) < 300_000
    [(more, link)] = re.findall(r'([\d,]+) more characters: <a href="([^"]+)">', html)
    assert int(more.replace(",", "")) == len(output) - 64 * 1024
    step = orjson.loads(await (await desk.send("GET", unescape(link))).read())
    assert step["step_details"]["tool_calls"][0]["function"]["output"] == output


async def test_a_run_of_fifty_turns_and_two_megabytes_is_a_small_page(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    await make_longer(desk, run.id, turns=50, prompt_bytes=40_000)
    html = await desk.page(f"/ui/runs/{run.id}")
    assert html.count('class="turn"') == 50
    assert len(html.encode()) <= 300_000
    assert "All 20 passages" in html
    links = re.findall(r'href="([^"]+)">All 20 passages', html)
    assert len(links) == 48
    html = await desk.page(links[-1])
    assert html.count('<td class="name">handbook.md') == 20
    prompt = await desk.page(f"/ui/runs/{run.id}/turns/50")
    assert "x" * 1000 in prompt


async def test_of_very_many_turns_the_newest_are_shown(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    await make_longer(desk, run.id, turns=230, prompt_bytes=10)
    seen: list[str] = []
    path = f"/ui/runs/{run.id}"
    while path:
        html = await desk.page(path)
        turns = re.findall(r'id="turn-(\d+)"', html)
        assert len(turns) <= 100
        seen = turns + seen
        earlier = re.search(r'href="([^"]+)">← Earlier turns', html)
        path = earlier[1] if earlier else ""
    assert seen == [str(n) for n in range(1, 231)]


async def test_a_prompt_of_five_megabytes_opens(desk: Desk) -> None:
    _, run = await asked_for_order(desk)
    messages = [{"role": "user", "content": f"{n}" + "é<b>" * 20_000} for n in range(60)]
    messages += [{"role": "user", "content": "short"}] * 1000
    body = orjson.dumps({"model": "m", "messages": messages})
    assert len(body) > 5_000_000
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE turns SET request = %s WHERE run_id = %s", [zlib.compress(body), run.id]
        )
    html = await desk.page(f"/ui/runs/{run.id}/turns/1")
    assert len(html.encode()) < 1_000_000
    assert "about " in html  # so much is not counted
    assert "560 more messages" in html
    assert "more characters: " in html
    for path, length in (("request", len(body)), ("curl", len(body) + 100)):
        answer = await desk.send("GET", f"/ui/runs/{run.id}/turns/1/{path}")
        assert len(await answer.read()) >= length
    assert len(await desk.page(f"/ui/runs/{run.id}")) < 30_000


async def test_what_code_has_made_is_shown(desk: Desk) -> None:
    picture = await upload(desk, "plot.png", PNG)
    _, run = await asked_for_order(desk)
    details = {"type": "tool_calls", "tool_calls": [
        {"id": "call_code", "type": "code_interpreter", "code_interpreter": {
            "input": "print('<b>')", "outputs": [
                {"type": "logs", "logs": "<i>done</i>"},
                {"type": "image", "image": {"file_id": picture}},
            ]}}]}  # fmt: skip
    path = {"type": "file_path", "text": "sandbox:/mnt/data/<a>.csv", "start_index": 0,
            "end_index": 25, "file_path": {"file_id": picture}}  # fmt: skip
    content = [{"type": "text", "text": {"value": path["text"], "annotations": [path]}}]
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE steps SET step_details = %s WHERE run_id = %s AND type = 'tool_calls'",
            [orjson.dumps(details).decode(), run.id],
        )
        await connection.execute(
            "UPDATE messages SET content = %s WHERE run_id = %s",
            [orjson.dumps(content).decode(), run.id],
        )
    html = await desk.page(f"/ui/runs/{run.id}")
    for told in (
        '<pre tabindex="0">print(&#39;&lt;b&gt;&#39;)</pre>',
        '<pre tabindex="0">&lt;i&gt;done&lt;/i&gt;</pre>',
        f'<img src="/ui/files/{picture}"', f'<a href="/ui/files/{picture}">&lt;a&gt;.csv</a>',
    ):  # fmt: skip
        assert told in html, told


async def make_longer(desk: Desk, run_id: str, *, turns: int, prompt_bytes: int) -> None:
    """A run of two turns, as if it had gone on: each of them with a prompt of its own, and with a
    search that has found much."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * prompt_bytes}]}
    hit = {"chunk_id": 1, "file_id": "file-1", "filename": "handbook.md", "score": 0.5,
           "vector_rank": 1, "text_rank": 2, "text": "<b>" * 700}  # fmt: skip
    given = {"call_x": {"name": "file_search", "queries": ["refund"], "m": 1, "hits": [hit] * 20}}
    details = {"type": "tool_calls", "tool_calls": [
        {"id": "call_x", "type": "file_search", "file_search": {}}]}  # fmt: skip
    async with desk.database.connection() as connection:
        await connection.execute(
            "INSERT INTO turns (run_id, turn, request, record)"
            " SELECT run_id, n, %s, record FROM turns, generate_series(3, %s) AS n"
            " WHERE run_id = %s AND turn = 2",
            [zlib.compress(orjson.dumps(body)), turns, run_id],
        )
        names = Step.__struct_fields__
        changed = {
            "id": "'step_' || to_char(n, 'FM000') || right(run_id, 20)", "turn": "n",
            "type": "'tool_calls'", "given": "%s::json", "step_details": "%s::json",
        }  # fmt: skip
        picked = [changed.get(name, name) for name in names]
        values = [
            orjson.dumps(given if name == "given" else details).decode()
            for name in names
            if name in ("given", "step_details")
        ]
        await connection.execute(
            f"INSERT INTO steps ({', '.join(names)}) SELECT {', '.join(picked)}"
            " FROM steps, generate_series(3, %s) AS n WHERE run_id = %s AND turn = 2",
            [*values, turns, run_id],
        )


async def started(desk: Desk, thread_id: str) -> Any:
    made = await desk.client.beta.assistants.create(model="m")
    return await desk.client.beta.threads.runs.create(thread_id=thread_id, assistant_id=made.id)


async def ended(desk: Desk, address: str) -> Any:
    """The run at this address, when it has ended."""
    run_id = address.rpartition("/")[2]
    thread_id = re.search(r"thread_\w+", await desk.page(address))
    assert thread_id
    return await desk.client.beta.threads.runs.poll(
        run_id, thread_id=thread_id[0], poll_interval_ms=20
    )


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
