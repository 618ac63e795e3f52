"""Files: the list, what uses one, and whose bytes are handed out."""

import hashlib
import re
from typing import Any

import aiohttp
import openai
import pytest
from playwright.async_api import expect

from conftest import Serve
from dashboard.conftest import Desk, Open
from dashboard.test_stores import form_of, pages
from dashboard.test_thread import PNG, put, upload
from threadmill.errors import NotFound

REFUSED = "Not allowed to download files of purpose: {}"


async def test_pages_hold_every_file_once_newest_first(desk: Desk, other_desk: Desk) -> None:
    made = []
    for first in range(0, 120, 20):
        form = form_of({f"{first + n}.txt": b"x" for n in range(20)}, purpose="vision")
        assert (await desk.send("POST", "/ui/files", form)).status == 303
    made = [file.id async for file in await desk.client.files.list(order="desc")]
    theirs = await upload(other_desk, "theirs.txt", b"x")
    found = await pages(desk, "/ui/files", r'class="row" href="/ui/files/(file-\w+)/about"')
    assert len(made) == 120
    assert found == made
    assert (await desk.send("GET", f"/ui/files?after={theirs}")).status == 404


async def test_a_file_is_uploaded_looked_at_and_deleted(desk: Desk) -> None:
    name = "a <b> é.csv"
    answer = await desk.send("POST", "/ui/files", form_of({name: b"1,2"}, purpose="user_data"))
    assert answer.status == 303
    file_id = answer.headers["location"].split("/")[3]
    assert answer.headers["location"] == f"/ui/files/{file_id}/about"
    file = await desk.client.files.retrieve(file_id)
    assert (file.filename, file.purpose, file.bytes) == (name, "user_data", 3)
    html = await desk.page(f"/ui/files/{file_id}/about")
    for told in (
        "a &lt;b&gt; é.csv", "user_data", "3 B", "Nothing uses it.",
        hashlib.sha256(b"1,2").hexdigest(),
    ):  # fmt: skip
        assert told in html, told
    answer = await desk.send("POST", f"/ui/files/{file_id}/delete")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/files")
    with pytest.raises(openai.NotFoundError):
        await desk.client.files.retrieve(file_id)
    with pytest.raises(NotFound):
        await desk.runtime.blobs.open(file_id)


@pytest.mark.parametrize("purpose", ["", "odd", "assistants_output"])
async def test_a_file_has_a_purpose_of_the_api(desk: Desk, purpose: str) -> None:
    form = form_of({"a.txt": b"x"}, **({"purpose": purpose} if purpose else {}))
    answer = await desk.send("POST", "/ui/files", form)
    assert answer.status == 400
    assert "Choose what the files are for." in await answer.text()
    assert (await desk.client.files.list()).data == []


async def test_what_uses_a_file_is_told(desk: Desk) -> None:
    file_id = await upload(desk, "data.csv", b"1,2", "assistants")
    lonely = await upload(desk, "lonely.csv", b"1,2", "assistants")
    stores = []
    for n in range(22):
        store = await desk.client.vector_stores.create(name=f"Store <{n}>")
        stores.append(store.id)
        async with desk.database.connection() as connection:
            await connection.execute(
                "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at,"
                " status, chunking_strategy) VALUES (%s, %s, %s, 1, 'completed', '{}')",
                [store.id, file_id, desk.project_id],
            )
    assistant = await desk.client.beta.assistants.create(
        model="m", name="Coder", tools=[{"type": "code_interpreter"}],
        tool_resources={"code_interpreter": {"file_ids": [file_id]}},
    )  # fmt: skip
    attachment: Any = {"file_id": file_id, "tools": [{"type": "code_interpreter"}]}
    attached = await desk.client.beta.threads.create(
        messages=[{"role": "user", "content": "Look", "attachments": [attachment]}]
    )
    content: Any = [{"type": "image_file", "image_file": {"file_id": file_id}}]
    seen = await desk.client.beta.threads.create(messages=[{"role": "user", "content": content}])
    other = await desk.thread(f"I speak of {file_id}")
    html = await desk.page(f"/ui/files/{file_id}/about")
    listed = re.findall(r'href="(/ui/(?:vector_stores|assistants|threads)/\w+)', html)
    assert f"/ui/assistants/{assistant.id}" in listed
    assert {f"/ui/threads/{one.id}" for one in (attached, seen)} <= set(listed)
    assert f"/ui/threads/{other}" not in listed
    assert sum("vector_stores" in one for one in listed) == 20
    assert "and other vector stores" in html
    assert "Store &lt;" in html
    assert "It is used in 23+." in html
    html = await desk.page(f"/ui/files/{lonely}/about")
    assert "Nothing uses it." in html
    assert "It is used" not in html


async def test_looking_for_uses_has_an_end(desk: Desk) -> None:
    file_id = await upload(desk, "data.csv", b"1,2", "assistants")
    await desk.thread("Hello")
    async with desk.database.transaction() as connection:
        # Whoever reads messages has to wait, as they would where there are millions.
        await connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        html = await desk.page(f"/ui/files/{file_id}/about")
    assert "Perhaps threads: there are too many to look through." in html
    assert "It is used in 0+." in html


# --- bytes ---


@pytest.mark.parametrize("purpose", ["assistants", "user_data", "vision", "batch", "evals"])
async def test_the_pages_hand_out_what_the_api_hands_out(desk: Desk, purpose: str) -> None:
    file_id = await upload(desk, "a.png", PNG, purpose)
    answer = await desk.send("GET", f"/ui/files/{file_id}")
    try:
        told = (await desk.client.files.content(file_id)).content
    except openai.BadRequestError as refusal:
        body: Any = refusal.body
        assert body["message"] == REFUSED.format(purpose)
        assert answer.status == 400
        assert body["message"] in await answer.text()
        assert PNG not in await answer.read()
    else:
        assert answer.status == 200
        assert await answer.read() == told == PNG
    is_refused = purpose in ("assistants", "user_data")
    assert (answer.status == 400) == is_refused
    html = await desk.page(f"/ui/files/{file_id}/about")
    assert ("Download</a>" in html) != is_refused
    assert ("are not handed out" in html) == is_refused


async def test_a_setting_hands_them_out(serve: Serve) -> None:
    async with serve(allow_assistants_file_download=True) as server:
        async with openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client:
            file = await client.files.create(file=("a.txt", b"text"), purpose="assistants")
        async with aiohttp.ClientSession(server.address) as session:
            answer = await session.get(f"/ui/files/{file.id}")
            assert await answer.read() == b"text"


async def test_a_picture_that_is_not_handed_out_is_named(desk: Desk, look: Open) -> None:
    held, shown = (
        await upload(desk, "a.png", PNG, "assistants"),
        await upload(desk, "b.png", PNG, "vision"),
    )
    content: Any = [
        {"type": "image_file", "image_file": {"file_id": file_id}} for file_id in (held, shown)
    ]
    thread = await desk.client.beta.threads.create(messages=[{"role": "user", "content": content}])
    html = await desk.page(f"/ui/threads/{thread.id}")
    assert f'<img src="/ui/files/{shown}"' in html
    assert f'<img src="/ui/files/{held}"' not in html
    assert f'<a href="/ui/files/{held}/about">' in html


# --- in a browser ---


async def test_files_are_dropped_and_deleted(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/files")
        await page.get_by_role("button", name="Upload").click()
        await page.get_by_label("Purpose").select_option("vision")
        field = page.get_by_label("Files, up to 20")
        drop = await page.evaluate_handle(
            """() => {
                const data = new DataTransfer();
                data.items.add(new File(["abc"], "a.txt"));
                data.items.add(new File(["abc"], "<b>b.txt"));
                return data;
            }"""
        )
        await field.evaluate("(one, data) => { one.files = data.files; }", drop)
        await page.get_by_role("button", name="Upload").last.click()
        await expect(page.locator("a.row")).to_have_text(["<b>b.txt", "a.txt"])
        await page.get_by_role("link", name="a.txt").click()
        async with page.expect_download() as started:
            await page.get_by_role("link", name="Download").click()
        assert (await started.value).suggested_filename == "a.txt"
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Delete it").click()
        await expect(page.locator("a.row")).to_have_text(["<b>b.txt"])


async def test_a_file_in_a_store_leads_there(desk: Desk, look: Open) -> None:
    store = await desk.client.vector_stores.create(name="Fruit")
    file = await put(desk, store.id, "fruit.txt", "Apples")
    async with look(java_script_enabled=False) as page:
        await page.goto("/ui/files")
        await page.get_by_role("link", name="fruit.txt").click()
        await page.get_by_role("link", name="Fruit").click()
        await expect(page).to_have_url(re.compile(f"{store.id}/files/{file.id}$"))
