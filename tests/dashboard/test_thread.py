"""One thread: what is shown of it, and what can be done with it."""

import asyncio
import os
import re
from asyncio.subprocess import PIPE
from html import unescape
from typing import Any

import orjson
import pytest
from openai.types.vector_stores import VectorStoreFile

from dashboard.conftest import Desk
from shelf import Archive
from threadmill.api.deps import Keys
from threadmill.app import create_app
from threadmill.demo.scripted_model import Reply, ToolCall
from threadmill.store import projects

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


async def upload(desk: Desk, name: str, content: bytes, purpose: Any = "assistants") -> str:
    return (await desk.client.files.create(file=(name, content), purpose=purpose)).id


async def put(
    desk: Desk, store_id: str, name: str, content: str | bytes, size: int = 800, overlap: int = 400
) -> VectorStoreFile:
    """Into a store, until it is done or has failed."""
    chunking: Any = {
        "type": "static",
        "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap},
    }
    data = content.encode() if isinstance(content, str) else content
    return await desk.client.vector_stores.files.upload_and_poll(
        vector_store_id=store_id,
        file=(name, data),
        chunking_strategy=chunking,
        poll_interval_ms=20,
    )


async def said(desk: Desk, thread_id: str) -> list[str]:
    listed = await desk.client.beta.threads.messages.list(thread_id, order="asc", limit=100)
    return [message.content[0].text.value for message in listed.data]  # type: ignore[union-attr]


async def message_ids(desk: Desk, thread_id: str) -> list[str]:
    listed = await desk.client.beta.threads.messages.list(thread_id, order="asc", limit=100)
    return [message.id for message in listed.data]


async def in_bash(command: str, key: str) -> bytes:
    """What a command that was copied prints in the shell of somebody who has this key."""
    environment = os.environ | {"OPENAI_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", command, stdout=PIPE, stderr=PIPE, env=environment
    )
    out, problem = await process.communicate()
    assert process.returncode == 0, problem
    return out


def shown(html: str) -> list[str]:
    return re.findall(r'<li id="(msg_\w+)"', html)


async def test_messages_in_their_order_with_the_run_that_answered(desk: Desk) -> None:
    thread_id = await desk.thread("Is it **late**?", user="u1")
    desk.model.say("Yes, _very_.")
    run = await desk.run(thread_id)
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert shown(html) == await message_ids(desk, thread_id)
    for told in ("<strong>late</strong>", "<em>very</em>", f"/ui/runs/{run.id}", "<b>user</b> u1"):
        assert told in html
    assert f"{run.usage.prompt_tokens} → {run.usage.completion_tokens}" in html


async def test_a_long_thread_comes_in_pages(desk: Desk) -> None:
    thread_id = await desk.thread(*(f"Message {n}" for n in range(50)))
    ids = await message_ids(desk, thread_id)
    page = await desk.page(f"/ui/threads/{thread_id}")
    assert shown(page) == ids[30:]
    earlier = re.search(r'href="\?before=(\w+)"', page)
    assert earlier
    page = await desk.page(f"/ui/threads/{thread_id}?before={earlier[1]}")
    assert shown(page) == ids[10:30]
    assert f'href="?after={ids[29]}"' in page
    assert shown(await desk.page(f"/ui/threads/{thread_id}?after={ids[29]}")) == ids[30:]
    assert shown(await desk.page(f"/ui/threads/{thread_id}?around={ids[25]}")) == ids[15:36]
    assert "before=" not in await desk.page(f"/ui/threads/{thread_id}?before={ids[5]}")


async def test_a_run_that_said_nothing_is_shown_in_its_place(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    desk.model.reply(Reply(status=400, body={"error": {"message": "no <such> thing"}}))
    run = await desk.run(thread_id)
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert f'<li id="{run.id}" class="message event">' in html
    assert "no &lt;such&gt; thing" in html


async def test_a_citation_shows_its_chunk(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    await desk.client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=("refunds <1>.md", b"Customers may ask for a refund within 30 days."),
        poll_interval_ms=20,
    )

    def answer(request: dict[str, Any]) -> Reply:
        found = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not found:
            return Reply(tool_calls=[ToolCall("file_search", {"queries": ["refund"]})])
        return Reply(text=["Within 30 days", found[0].partition("】")[0] + "】", "."])

    desk.model.answer = answer
    thread_id = await desk.thread("When?")
    run = await desk.run(
        thread_id,
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    assert run.status == "completed"
    html = await desk.page(f"/ui/threads/{thread_id}")
    mark = re.search(r'Within 30 days<a class="mark" href="#([\w-]+)" data-chunk="\1">1</a>', html)
    assert mark
    assert f'<li id="{mark[1]}">' in html
    assert "refunds &lt;1&gt;.md" in html
    assert "<blockquote>Customers may ask for a refund within 30 days.</blockquote>" in html
    place = re.search(r'<a href="(/ui/vector_stores/[^"]*/chunks/0)">Open in store', html)
    assert place
    assert "Customers may ask for a refund" in await desk.page(place[1])
    await desk.client.vector_stores.delete(store.id)  # what was given to the model stays
    assert "<blockquote>Customers" in await desk.page(f"/ui/threads/{thread_id}")


async def test_pictures_and_attachments(desk: Desk) -> None:
    picture = await upload(desk, "a.png", PNG, "vision")
    notes = await upload(desk, "notes <b>.txt", b"text")
    gone = await upload(desk, "gone.txt", b"text")
    content: Any = [
        {"type": "image_file", "image_file": {"file_id": picture}},
        {"type": "image_url", "image_url": {"url": "https://evil.example/a.png"}},
        {"type": "text", "text": "What is it?"},
    ]
    attachments: Any = [
        {"file_id": file_id, "tools": [{"type": "code_interpreter"}]} for file_id in (notes, gone)
    ]
    thread = await desk.client.beta.threads.create(
        messages=[{"role": "user", "content": content, "attachments": attachments}]
    )
    await desk.client.files.delete(gone)
    html = await desk.page(f"/ui/threads/{thread.id}")
    assert f'<img src="/ui/files/{picture}"' in html
    assert '<img src="https://evil.example' not in html
    assert '<a href="https://evil.example/a.png" rel="noopener noreferrer nofollow">' in html
    assert f'<a href="/ui/files/{notes}/about">notes &lt;b&gt;.txt</a>' in html
    assert f"<s>{gone}</s> deleted" in html


async def test_a_long_text_is_cut_and_all_of_it_is_behind_a_link(desk: Desk) -> None:
    thread_id = await desk.thread(*(f"{n}" + "<b>" * 80_000 for n in range(8)))
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert len(html) < 2_000_000  # 7.7 MB as they stand
    links = re.findall(r'([\d,]+) more characters: <a href="([^"]+)">all of it</a>', html)
    [first, *_] = ids = await message_ids(desk, thread_id)
    address = f"/ui/api/v1/threads/{thread_id}/messages"
    assert [link for _, link in links] == [f"{address}/{one}" for one in ids]
    assert links[0][0] == f"{240_001 - 64 * 1024:,}"
    assert links[-1][0] == f"{240_001 - 2_000:,}"
    whole = orjson.loads(await (await desk.send("GET", f"{address}/{first}")).read())
    assert len(whole["content"][0]["text"]["value"]) == 240_001


async def test_a_citation_without_its_passage_says_so(desk: Desk) -> None:
    """Such as one that came from elsewhere, or whose run is older than the record."""
    thread_id = await desk.thread("When?")
    [message_id] = await message_ids(desk, thread_id)
    annotation = {
        "type": "file_citation", "text": "【0:0†a】", "start_index": 4, "end_index": 11,
        "file_citation": {"file_id": "file-gone"},
    }  # fmt: skip
    content = [{"type": "text", "text": {"value": "Soon【0:0†a】", "annotations": [annotation]}}]
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE messages SET content = %s WHERE id = %s",
            [orjson.dumps(content).decode(), message_id],
        )
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert f'Soon<a class="mark" href="#{message_id}-1"' in html
    assert 'file-gone <span class="faint">the passage was not recorded</span>' in html


async def test_a_thread_leads_to_its_json_and_to_a_command_that_fetches_it(desk: Desk) -> None:
    thread_id = await desk.thread("Hello", user="u1")
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert f'href="/ui/playground?thread={thread_id}"' in html
    [link] = re.findall(r'href="(/ui/api/v1/[^"]+)">JSON<', html)
    as_json = orjson.loads(await (await desk.send("GET", link)).read())
    assert as_json["metadata"] == {"user": "u1"}
    [command] = re.findall(r'<pre tabindex="0" id="curl-text">(.*?)</pre>', html, re.S)
    assert desk.key not in command
    assert orjson.loads(await in_bash(unescape(command), desk.key)) == as_json


# --- what can be done ---


async def test_metadata_is_edited(desk: Desk) -> None:
    thread_id = await desk.thread("Hello", old="1", kept="2")
    form = [("key", ""), ("value", "1"), ("key", "kept"), ("value", "3"), ("key", "<new>"),
            ("value", "a & b\r\nc"), ("key", ""), ("value", "")]  # fmt: skip
    answer = await desk.send("POST", f"/ui/threads/{thread_id}/metadata", form)
    assert (answer.status, answer.headers["location"]) == (303, f"/ui/threads/{thread_id}")
    thread = await desk.client.beta.threads.retrieve(thread_id)
    assert thread.metadata == {"kept": "3", "<new>": "a & b\nc"}
    html = await desk.page(f"/ui/threads/{thread_id}")
    assert '<input name="key" value="&lt;new&gt;"' in html
    too_long = [("key", "k"), ("value", "v" * 513)]
    answer = await desk.send("POST", f"/ui/threads/{thread_id}/metadata", too_long)
    assert answer.status == 400
    assert "string too long" in await answer.text()


async def test_a_thread_is_deleted(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    answer = await desk.send("POST", f"/ui/threads/{thread_id}/delete")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/threads")
    assert (await desk.send("GET", f"/ui/threads/{thread_id}")).status == 404
    assert (await desk.send("GET", f"/ui/threads/{thread_id}/delete")).status == 405


async def test_a_fork_is_a_copy_up_to_a_message(desk: Desk) -> None:
    thread_id = await desk.thread("One", "Two", user="u1")
    desk.model.say("Three")
    run = await desk.run(thread_id)
    ids = await message_ids(desk, thread_id)
    for upto, expected in ((0, ["One"]), (1, ["One", "Two"]), (2, ["One", "Two", "Three"])):
        form = {"message_id": ids[upto]}
        answer = await desk.send("POST", f"/ui/threads/{thread_id}/fork", form)
        assert answer.status == 303
        copy = answer.headers["location"].rpartition("/")[2]
        assert await said(desk, copy) == expected
        thread = await desk.client.beta.threads.retrieve(copy)
        assert thread.metadata == {"user": "u1"}
        assert not {*await message_ids(desk, copy)} & {*ids}
    assert await said(desk, thread_id) == ["One", "Two", "Three"]
    of_run = await desk.client.beta.threads.messages.list(copy, run_id=run.id)
    assert of_run.data == []
    desk.model.say("Four")
    assert (await desk.run(copy)).status == "completed"
    sent = desk.model.requests[-1].body["messages"]
    assert [message["content"] for message in sent] == ["One", "Two", "Three"]


async def test_an_export_holds_all_of_the_thread(desk: Desk) -> None:
    thread_id = await desk.thread(*(f"Message {n}" for n in range(120)))
    desk.model.say("Answer")
    run = await desk.run(thread_id)
    answer = await desk.send("GET", f"/ui/threads/{thread_id}/export")
    assert answer.headers["content-disposition"].startswith("attachment;")
    lines = [orjson.loads(line) for line in (await answer.read()).splitlines()]
    thread = await desk.client.beta.threads.retrieve(thread_id)
    assert (lines[0]["id"], lines[0]["created_at"]) == (thread.id, thread.created_at)
    kinds = [line["object"] for line in lines]
    assert kinds == ["thread", *["thread.message"] * 121, "thread.run", "thread.run.step"]
    assert [line["id"] for line in lines[1:101]] == await message_ids(desk, thread_id)
    assert lines[-2]["id"] == run.id


# --- others' ---


READS = [
    "/threads/{thread}", "/threads/{thread}/export", "/runs/{run}", "/runs/{run}/turns/1",
    "/runs/{run}/turns/1/request", "/runs/{run}/turns/1/curl", "/runs/{run}/steps/{step}",
    "/runs/{run}/live", "/threads/export?thread={thread}", "/files/{file}",
    "/jump?id={thread}", "/jump?id={run}",
    "/assistants/{assistant}", "/assistants/{assistant}/export",
    "/assistants/{assistant}/versions",
    "/jump?id={message}", "/jump?id={file}", "/jump?id={assistant}", "/jump?id={store}",
    "/files/{file}/about", "/vector_stores/{store}", "/vector_stores/{store}/search?q=secret",
    "/vector_stores/{store}/files/{stored}", "/vector_stores/{store}/files/{stored}/chunks/1",
    "/threads/{thread}/messages/{message}", "/playground/calls/{run}",
    "/playground?thread={thread}", "/playground?assistant={assistant}",
]  # fmt: skip
WRITES: dict[str, dict[str, str]] = {
    "/threads/{thread}/delete": {},
    "/threads/{thread}/metadata": {"key": "a", "value": "b"},
    "/threads/{thread}/fork": {"message_id": "{message}"},
    "/threads/{mine}/fork": {"message_id": "{message}"},
    "/runs/{run}/cancel": {},
    "/assistants/{assistant}": {"name": "mine"},
    "/assistants/{assistant}/copy": {},
    "/assistants/{assistant}/delete": {},
    "/assistants/{assistant}/versions/1/restore": {},
    "/runs/{run}/retry": {},
    "/runs/{run}/outputs": {"call_id": "call_1", "output": "secret"},
    "/threads/delete": {"thread": "{thread}"},
    "/vector_stores/{store}/edit": {"name": "mine"},
    "/vector_stores/{store}/delete": {},
    "/vector_stores/{store}/files": {},
    "/vector_stores/{store}/files/{stored}/attributes": {"key": "a", "value": "b"},
    "/vector_stores/{store}/files/{stored}/retry": {},
    "/vector_stores/{store}/files/{stored}/remove": {},
    "/files/{file}/delete": {},
    "/keys/{key}/revoke": {},
}
# They name nothing of a project.
HARMLESS = {"GET /", "GET /assistants", "GET /assistants/import", "GET /assistants/models",
            "GET /assistants/new", "GET /files", "GET /sign-in", "GET /static/{}",
            "GET /threads", "GET /vector_stores", "POST /assistants/check",
            "POST /assistants/import", "POST /assistants/new", "POST /files", "POST /sign-in",
            "POST /sign-out", "POST /vector_stores", "POST /playground/check",
            "POST /playground/program/{}", "GET /live", "GET /usage", "GET /usage/csv",
            "GET /keys", "POST /keys", "POST /keys/prompts", "GET /health",
            "GET /health/rows", "GET /health/warnings"}  # fmt: skip
# No project's key opens them (test_keys.py).
OF_THE_ADMIN = {"GET /projects", "POST /projects", "GET /projects/{}", "POST /projects/{}/settings",
                "POST /projects/{}/archive", "POST /projects/{}/keys",
                "POST /projects/{}/keys/{}/revoke"}  # fmt: skip


async def test_nothing_of_another_project_is_reached(desk: Desk, other_desk: Desk) -> None:
    thread_id = await other_desk.thread("secret", user="u")
    other_desk.model.say("secret")
    run = await other_desk.run(thread_id)
    [first, _] = await message_ids(other_desk, thread_id)
    steps = await other_desk.client.beta.threads.runs.steps.list(run.id, thread_id=thread_id)
    store = await other_desk.client.vector_stores.create(name="secret")
    stored = await put(other_desk, store.id, "secret.txt", "secret words " * 200, 100, 0)
    named = {
        "step": steps.data[0].id,
        "thread": thread_id,
        "run": run.id,
        "message": first,
        "assistant": run.assistant_id,
        "file": await upload(other_desk, "secret.txt", b"secret", "vision"),
        "store": store.id,
        "stored": stored.id,
        "mine": await desk.thread("mine"),
    }
    async with other_desk.database.connection() as connection:
        key = await projects.key_behind(connection, projects.key_hash(other_desk.key))
    assert key is not None
    named["key"] = key.id
    for path in (f"/ui{path}".format(**named) for path in READS):
        assert (await other_desk.send("GET", path)).status in (200, 303), path
        answer = await desk.send("GET", path)
        assert answer.status == 404, path
        assert "secret" not in await answer.text()
    for path, form in WRITES.items():
        sent = {name: value.format(**named) for name, value in form.items()}
        assert (await desk.send("POST", f"/ui{path}".format(**named), sent)).status == 404, path
    answer = await desk.send("GET", f"/ui/threads/{named['mine']}?before={first}")
    assert answer.status == 404
    assert await said(other_desk, thread_id) == ["secret", "secret"]
    assert (await other_desk.client.vector_stores.retrieve(store.id)).file_counts.completed == 1


async def test_no_page_is_left_out_of_that(desk: Desk, archive: Archive) -> None:
    keys = Keys(archive.server.runtime.settings, archive.database)
    app: Any = create_app(archive.server.runtime, archive.server.worker, keys)
    [mount] = [route for route in app._app.routes if getattr(route, "path", "") == "/ui" and
               hasattr(route, "app") and not hasattr(route, "methods")]  # fmt: skip
    pages = {
        f"{method} {_bare(route.path)}"
        for included in mount.app._app.routes
        if hasattr(included, "effective_route_contexts")  # the gate to the API has none
        for route in included.effective_route_contexts()
        for method in route.methods
    }
    tried = {f"GET {_bare(path)}" for path in READS} | {f"POST {_bare(path)}" for path in WRITES}
    assert len(pages) > 10
    assert pages == tried | HARMLESS | OF_THE_ADMIN


def _bare(path: str) -> str:
    return re.sub(r"\{[^}]*\}|(?<=/)1\b", "{}", path.partition("?")[0])


async def test_any_id_leads_to_its_page(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    desk.model.say("Yes")
    run = await desk.run(thread_id)
    [first, _] = await message_ids(desk, thread_id)
    steps = await desk.client.beta.threads.runs.steps.list(run.id, thread_id=thread_id)
    file_id = await upload(desk, "a.txt", b"text")
    store = await desk.client.vector_stores.create()
    for wanted, to in {
        thread_id: f"/ui/threads/{thread_id}",
        f"  {run.id} ": f"/ui/runs/{run.id}",
        first: f"/ui/threads/{thread_id}?around={first}#{first}",
        steps.data[0].id: f"/ui/runs/{run.id}#{steps.data[0].id}",
        run.assistant_id: f"/ui/assistants/{run.assistant_id}",
        file_id: f"/ui/files/{file_id}/about",
        store.id: f"/ui/vector_stores/{store.id}",
    }.items():
        answer = await desk.send("GET", f"/ui/jump?id={wanted.replace(' ', '%20')}")
        assert (answer.status, answer.headers["location"]) == (303, to)
    for wanted in ("", "hello", "run_", "run_x%00", "thread_%F0%9F%8E%89", "x" * 5000, "<b>"):
        assert (await desk.send("GET", f"/ui/jump?id={wanted}")).status == 404


# --- files ---


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 20, "image/jpeg"),
        (b"GIF89a" + b"\0" * 20, "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", None),
        (b"<html><script>alert(1)</script>", None),
        (b"%PDF-1.7", None),
        (b"x", None),
    ],
)
async def test_only_pictures_are_shown_in_the_browser(
    desk: Desk, content: bytes, kind: str | None
) -> None:
    file_id = await upload(desk, 'a "b" <c>é.png', content, "vision")
    answer = await desk.send("GET", f"/ui/files/{file_id}")
    assert await answer.read() == content
    assert answer.headers["content-type"] == (kind or "application/octet-stream")
    assert answer.headers["content-disposition"] == (
        f"{'inline' if kind else 'attachment'}; filename*=utf-8''a%20%22b%22%20%3Cc%3E%C3%A9.png"
    )
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
