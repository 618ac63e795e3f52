"""Assistants: the list, the form, its words for what is wrong, versions and the way back."""

import asyncio
import html
import io
import json
import re
from typing import Any
from urllib.parse import urlencode

import aiohttp
from playwright.async_api import Page, expect

from dashboard.conftest import OWN, Desk, Open
from dashboard.hostile import HOSTILE
from threadmill.store import assistants
from threadmill.store.rows import AssistantContent

# More levels than are written, though they are read.
DEEP = '{"a":' * 300 + "1" + "}" * 300

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Now & here",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


async def make(desk: Desk, **fields: Any) -> str:
    return (await desk.client.beta.assistants.create(**{"model": "m"} | fields)).id


async def state(desk: Desk, assistant_id: str) -> dict[str, Any]:
    return (await desk.client.beta.assistants.retrieve(assistant_id)).model_dump()


async def history(desk: Desk, assistant_id: str) -> dict[int, AssistantContent]:
    """By version, the newest first."""
    async with desk.database.connection() as connection:
        row = await assistants.get(connection, desk.project_id, assistant_id)
        return {
            one.version: await assistants.content_of(connection, row, one.version)
            for one in await assistants.versions(connection, row)
        }


def fields(page: str) -> list[tuple[str, str]]:
    """What a browser would send of the form on this page."""
    form = re.search(r'<form id="editor".*?</form>', page, re.DOTALL)
    assert form
    sent = []
    for one in re.finditer(
        r'<input[^>]*?name="(?P<input>\w+)"(?P<rest>[^>]*)>'
        r'|<textarea[^>]*?name="(?P<area>\w+)"[^>]*>\n?(?P<text>.*?)</textarea>'
        r'|<select[^>]*?name="(?P<select>\w+)"[^>]*>(?P<options>.*?)</select>',
        form[0],
        re.DOTALL,
    ):
        if one["area"]:
            sent.append((one["area"], html.unescape(one["text"]).replace("\n", "\r\n")))
        elif one["select"]:
            chosen = re.search(r"<option selected>([^<]*)", one["options"])
            sent.append((one["select"], chosen[1] if chosen else ""))
        elif 'value="on"' not in one["rest"] or " checked" in one["rest"]:
            value = re.search(r'value="([^"]*)"', one["rest"])
            sent.append((one["input"], html.unescape(value[1]) if value else ""))
    return sent


def put(form: list[tuple[str, str]], **values: str) -> list[tuple[str, str]]:
    """The form with these in the first field of their names."""
    left = dict(values)
    put = [(name, left.pop(name, value)) for name, value in form]
    return put + list(left.items())


async def save(desk: Desk, assistant_id: str, **values: str) -> aiohttp.ClientResponse:
    form = fields(await desk.page(f"/ui/assistants/{assistant_id}"))
    return await desk.send("POST", f"/ui/assistants/{assistant_id}", put(form, **values))


def listed(page: str) -> list[str]:
    return re.findall(r'class="row" href="/ui/assistants/(asst_\w+)"', page)


def alerts(page: str) -> str:
    return html.unescape(" ".join(re.findall(r'class="problem"[^>]*>([^<]*)<', page)))


# --- the list ---


async def test_the_list_in_pages_newest_first(desk: Desk) -> None:
    assert "curl" in await desk.page("/ui/assistants")
    made = [await make(desk, name=f"Assistant {n}") for n in range(53)]
    page = await desk.page("/ui/assistants")
    assert listed(page) == made[:2:-1]
    older = re.search(r'href="(/ui/assistants\?after=\w+)"', page)
    assert older
    page = await desk.page(older[1])
    assert listed(page) == made[2::-1]
    assert "after=" not in page
    assert listed(await desk.page("/ui/assistants?q=ANT+17")) == [made[17]]
    assert listed(await desk.page(f"/ui/assistants?q={made[5]}")) == [made[5]]
    assert "Nothing was found" in await desk.page("/ui/assistants?q=%00%25")


async def test_a_row_tells_tools_and_the_use_of_the_last_days(desk: Desk) -> None:
    desk.model.say("Hello, you there.")
    run = await desk.run(
        await desk.thread("Hello"),
        name="Weather",
        tools=[
            {"type": "file_search"},
            {"type": "function", "function": WEATHER},
            {"type": "function", "function": WEATHER | {"name": "other"}},
        ],
    )
    page = await desk.page("/ui/assistants")
    row = page[page.index("<tbody>") : page.index("</tbody>")]
    for told in (">Weather<", "file_search", "2 functions", f'assistant={run.assistant_id}"'):
        assert told in row
    assert re.findall(r'class="number">([\d,]+)<', row) == ["1", f"{run.usage.total_tokens:,}"]


async def test_others_assistants_are_not_there(desk: Desk, other_desk: Desk) -> None:
    theirs = await make(other_desk, name="Secret")
    await other_desk.client.beta.assistants.update(theirs, name="Secret 2")
    assert listed(await desk.page("/ui/assistants")) == []
    assert listed(await desk.page("/ui/assistants?q=secret")) == []
    assert listed(await desk.page(f"/ui/assistants?q={theirs}")) == []
    here = f"/ui/assistants/{theirs}"
    for path in (here, f"{here}/export", f"{here}/versions", f"/ui/assistants?after={theirs}"):
        assert (await desk.send("GET", path)).status == 404, path
    form = fields(await other_desk.page(here))
    for path in (here, f"{here}/copy", f"{here}/delete", f"{here}/versions/1/restore"):
        assert (await desk.send("POST", path, form)).status == 404, path
    assert (await state(other_desk, theirs))["name"] == "Secret 2"
    assert (await desk.send("GET", "/ui/assistants/asst_%00")).status == 404


# --- the form ---


async def test_saving_what_was_not_touched_changes_nothing(desk: Desk) -> None:
    """Also what no form of a browser can hold as it is."""
    store = await desk.client.vector_stores.create()
    made = await make(
        desk,
        name="",
        description=" d ",
        instructions="\n\r\nbegin\rend\r\n\r\n",
        temperature=0.1 + 0.2,
        top_p=0,
        reasoning_effort="low",
        metadata={"": "blank", "lines": "a\r\nb", " k ": " v "},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"z": 1, "a": 1.0}},
        },
        tools=[
            {"type": "function", "function": WEATHER},
            {"type": "file_search", "file_search": {"max_num_results": 7}},
            {"type": "code_interpreter"},
        ],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )  # fmt: skip
    before = await state(desk, made)
    assert (await save(desk, made)).status == 303
    assert await state(desk, made) == before
    assert list(await history(desk, made)) == [1]
    # A field that is changed takes none of the others with it.
    assert (await save(desk, made, description="new")).status == 303
    assert await state(desk, made) == before | {"description": "new"}


async def test_every_field_is_saved(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    file = await desk.client.files.create(file=("a.csv", b"1"), purpose="assistants")
    form = put(
        fields(await desk.page("/ui/assistants/new")),
        name="Support",
        description="Answers",
        instructions="Be brief.\r\nBe kind.",
        model="gpt-x",
        temperature="0.5",
        top_p="1",
        reasoning_effort="high",
        response_format='{"type": "json_object"}',
        file_search="on",
        vector_store=store.id,
        max_num_results="12",
        ranker="auto",
        score_threshold="0.25",
        embedding_weight="0.75",
        text_weight="0.25",
        code_interpreter="on",
        files=f"{file.id}\r\n",
        function=json.dumps(WEATHER),
        key="team",
        value="blue",
    )
    answer = await desk.send("POST", "/ui/assistants/new", form)
    assert answer.status == 303, alerts(await answer.text())
    made = answer.headers["Location"].rpartition("/")[2]
    told = await state(desk, made)
    ranking = {
        "ranker": "auto",
        "score_threshold": 0.25,
        "hybrid_search": {"embedding_weight": 0.75, "text_weight": 0.25},
    }
    expected: dict[str, Any] = {
        "name": "Support",
        "description": "Answers",
        "instructions": "Be brief.\nBe kind.",
        "model": "gpt-x",
        "temperature": 0.5,
        "top_p": 1.0,
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "metadata": {"team": "blue"},
        "tool_resources": {
            "code_interpreter": {"file_ids": [file.id]},
            "file_search": {"vector_store_ids": [store.id]},
        },
    }
    assert {name: told[name] for name in expected} == expected
    assert [tool["type"] for tool in told["tools"]] == [
        "code_interpreter", "file_search", "function",
    ]  # fmt: skip
    assert told["tools"][1]["file_search"] == {"max_num_results": 12, "ranking_options": ranking}
    assert told["tools"][2]["function"] == WEATHER
    # And all of it is emptied again, but the model.
    emptied = [
        (name, value if name in ("model", "version") else "")
        for name, value in fields(await desk.page(f"/ui/assistants/{made}"))
        if name not in ("file_search", "code_interpreter")
    ]
    answer = await desk.send("POST", f"/ui/assistants/{made}", emptied)
    assert answer.status == 303, alerts(await answer.text())
    told = await state(desk, made)
    nothing: dict[str, Any] = {
        "code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []},
    }  # fmt: skip
    assert (told["tools"], told["metadata"], told["response_format"]) == ([], {}, "auto")
    assert (told["name"], told["instructions"], told["tool_resources"]) == (None, None, nothing)


async def test_what_is_wrong_is_told_at_its_field_and_nothing_is_lost(desk: Desk) -> None:
    made = await make(desk, name="n", tools=[{"type": "function", "function": WEATHER}])
    before = await state(desk, made)
    good = json.dumps(WEATHER)
    spaced = json.dumps(WEATHER | {"name": "a b"})
    large = '{"name": "f", "parameters": {"a": 12345678901234567890123}}'
    wrong: list[tuple[dict[str, str], str, str]] = [
        ({"temperature": "3"}, "fault-temperature", "Expected a value <= 2, but got 3 instead"),
        ({"top_p": "much"}, "fault-top_p", "expected a decimal, but got a string instead"),
        ({"model": " "}, "fault-model", "empty string"),
        ({"name": "x" * 257}, "fault-name", "maximum length 256"),
        ({"response_format": "{"}, "fault-response_format", "That is not JSON. Line 1"),
        ({"response_format": '{"type": "x"}'}, "fault-response_format", "Supported values are"),
        ({"function": "{\r\n'a'}"}, "said-of-function-0", "That is not JSON. Line 2, column 1"),
        ({"function": "[]"}, "said-of-function-0", "A function is an object"),
        ({"function": "{}"}, "said-of-function-0", "Missing required parameter: 'name'"),
        ({"function": spaced}, "said-of-function-0", "string does not match pattern"),
        ({"function": good[:-1] + ', "more": 1}'}, "said-of-function-0", "Unknown parameter"),
        ({"function": large}, "said-of-function-0", "64 bits"),
        ({"file_search": "on", "max_num_results": "51"}, "fault-max_num_results", "<= 50"),
        ({"file_search": "on", "text_weight": "1"}, "fault-embedding_weight", "Missing required"),
        ({"vector_store": "vs_none"}, "fault-vector_store", "No vector store found"),
        ({"files": "file-none"}, "fault-files", "No such File object: file-none"),
        ({"files": "other"}, "fault-files", "Expected an ID that begins with 'file'"),
        ({"key": "k" * 65, "value": "v"}, "fault-metadata", "maximum length 64"),
        ({"function": DEEP}, "said-of-function-0", "nested too deeply"),
        ({"response_format": DEEP}, "fault-response_format", "nested too deeply"),
        ({"temperature": DEEP}, "fault-temperature", "expected a decimal, but got a string"),
    ]
    for values, place, words in wrong:
        answer = await save(desk, made, instructions="typed & kept", **values)
        page = await answer.text()
        assert (answer.status, "It was not saved." in page) == (200, True), values
        at = page.index(f'id="{place}"')
        assert words in html.unescape(page[at : at + 400]), (values, page[at : at + 400])
        kept = put(fields(page))
        for name, value in [*values.items(), ("instructions", "typed & kept")]:
            assert (name, value) in kept, (name, kept)
    page = await (await save(desk, made, function="{", top_p="2", response_format="[")).text()
    for place in ('"said-of-function-0"', '"fault-top_p"', '"fault-response_format"'):
        assert f"id={place}" in page
    twice = [*fields(await desk.page(f"/ui/assistants/{made}")), ("function", good)]
    page = await (await desk.send("POST", f"/ui/assistants/{made}", twice)).text()
    assert "Function names must be unique" in page[page.index('id="said-of-function-1"') :]
    assert await state(desk, made) == before
    assert list(await history(desk, made)) == [1]


async def test_another_function_needs_no_script(desk: Desk) -> None:
    made = await make(desk, name="n")
    form = put(fields(await desk.page(f"/ui/assistants/{made}")), name="typed")
    form = put(form, function=json.dumps(WEATHER))
    form.append(("step", "another"))
    answer = await desk.send("POST", f"/ui/assistants/{made}", form)
    form = fields(await answer.text())
    assert [bool(value) for name, value in form if name == "function"] == [True, False]
    assert ("name", "typed") in form
    # A whole tool is taken as well.
    tool = json.dumps({"type": "function", "function": {"name": "second"}})
    at = form.index(("function", ""))
    form[at] = ("function", tool)
    assert (await desk.send("POST", f"/ui/assistants/{made}", form)).status == 303
    told = await state(desk, made)
    assert [tool["function"]["name"] for tool in told["tools"]] == ["get_weather", "second"]


async def test_who_saves_an_older_version_is_told_first(desk: Desk) -> None:
    made = await make(desk, name="1", instructions="mine")
    form = put(fields(await desk.page(f"/ui/assistants/{made}")), name="2")
    await desk.client.beta.assistants.update(made, instructions="theirs")
    answer = await desk.send("POST", f"/ui/assistants/{made}", form)
    page = await answer.text()
    assert (answer.status, (await state(desk, made))["name"]) == (200, "1")
    assert "is at version 2 now, not 1 any more" in alerts(page)
    assert (await desk.send("POST", f"/ui/assistants/{made}", fields(page))).status == 303
    kept = await history(desk, made)
    told = [(version, one.name, one.instructions) for version, one in kept.items()]
    assert told == [(3, "2", "mine"), (2, "1", "theirs"), (1, "1", "mine")]


async def test_long_instructions_go_through_the_form(desk: Desk) -> None:
    made = await make(desk)
    text = "ж" * 256_000
    headers = OWN | {"Content-Type": "application/x-www-form-urlencoded"}

    async def send(instructions: str) -> aiohttp.ClientResponse:
        form: Any = io.BytesIO(urlencode({"model": "m", "instructions": instructions}).encode())
        return await desk.send("POST", f"/ui/assistants/{made}", form, headers=headers)

    assert (await send(text)).status == 303
    assert (await state(desk, made))["instructions"] == text
    answer = await send(text + "ж")
    assert (answer.status, "maximum length 256000" in await answer.text()) == (200, True)
    assert (await send("x" * 7_000_000)).status == 413


async def test_tokens_and_functions_are_told_while_typing(desk: Desk) -> None:
    await asyncio.to_thread(desk.runtime.tokens.encoding, "gpt-4o")

    async def said(part: str, **values: str) -> str:
        form = {"model": "gpt-4o"} | values
        answer = await desk.send("POST", f"/ui/assistants/check?part={part}", form)
        return html.unescape(await answer.text()).strip()

    text = "one two three"
    tokens = desk.runtime.tokens.count(text, "gpt-4o")
    exact = "" if desk.runtime.tokens.state("gpt-4o").exact else "about "
    assert await said("", instructions=text) == f"{exact}{tokens} tokens"
    assert "Missing required" in await said("function-0", function="{}")
    assert "not JSON" in await said("function-0", function="{")
    assert (await said("function-0", function=json.dumps(WEATHER))).endswith(" tokens")
    assert await said("function-0", function="") == f"{exact}0 tokens"
    assert await said("function-7", instructions=text) == f"{exact}{tokens} tokens"


async def test_the_models_of_the_server_are_offered(desk: Desk) -> None:
    served = [model.id async for model in await desk.client.models.list()]
    page = await desk.page("/ui/assistants/models")
    assert re.findall(r'value="([^"]+)"', page) == served != []


# --- copies, files, the end ---


async def test_a_copy_stands_for_itself(desk: Desk) -> None:
    made = await make(
        desk,
        name="x" * 256,
        instructions="i",
        metadata={"a": "b"},
        tools=[{"type": "file_search"}, {"type": "function", "function": WEATHER}],
        temperature=0,
    )
    answer = await desk.send("POST", f"/ui/assistants/{made}/copy")
    copy = answer.headers["Location"].rpartition("/")[2]
    one, other = await state(desk, made), await state(desk, copy)
    assert other.pop("name") == "x" * 249 + " (copy)"
    for name in ("id", "created_at"):
        one.pop(name), other.pop(name)
    one.pop("name")
    assert other == one


async def test_what_is_exported_can_be_imported(desk: Desk, other_desk: Desk) -> None:
    made = await make(desk, name="n", tools=[{"type": "function", "function": WEATHER}], top_p=0.5)
    answer = await desk.send("GET", f"/ui/assistants/{made}/export")
    assert answer.headers["Content-Disposition"] == f"attachment; filename={made}.json"
    text = await answer.text()
    shown = await desk.client.beta.assistants.with_raw_response.retrieve(made)
    assert json.loads(text) == json.loads(shown.text)
    pasted = aiohttp.FormData({"text": text, "file": ""})
    uploaded = aiohttp.FormData({"text": ""})
    uploaded.add_field("file", text.encode(), filename="a.json", content_type="application/json")
    for form in (pasted, uploaded, {"text": text}):
        sent: Any = form
        answer = await other_desk.send("POST", "/ui/assistants/import", sent)
        assert answer.status == 303, alerts(await answer.text())
        copy = answer.headers["Location"]
        told = json.loads(await other_desk.page(f"{copy}/export"))
        assert told | {"id": made, "created_at": 0} == json.loads(text) | {"created_at": 0}


async def test_an_import_that_is_refused_says_why_and_keeps_the_text(desk: Desk) -> None:
    for text, words in (
        ("{", "That is not JSON. Line 1"),
        ("[]", "expected an object"),
        ("", "That is not JSON"),
        (f'{{"model": "m", "response_format": {DEEP}}}', "nested too deeply"),
        ('{"name": "</textarea><b>"}', "Missing required parameter: 'model'"),
        ('{"model": "m", "more": 1}', "Unknown parameter: 'more'"),
        ('{"model": "m", "tool_resources": {"file_search": {"vector_store_ids": ["vs_1"]}}}',
         "No vector store found with id 'vs_1'"),
    ):  # fmt: skip
        answer = await desk.send("POST", "/ui/assistants/import", {"text": text})
        page = await answer.text()
        assert answer.status == 200, text
        assert words in alerts(page), (text, alerts(page))
        assert f"\n{html.escape(text, quote=False)}</textarea>" in page.replace("&#34;", '"')
    binary = aiohttp.FormData({"text": ""})
    binary.add_field("file", b"\xff\xfe\0", filename="a.json")
    sent: Any = binary
    assert (await desk.send("POST", "/ui/assistants/import", sent)).status == 400
    too_long: Any = io.BytesIO(b"text=" + b"x" * 5_000_000)
    assert (await desk.send("POST", "/ui/assistants/import", too_long)).status == 413
    assert listed(await desk.page("/ui/assistants")) == []


async def test_deleting_takes_the_versions_along(desk: Desk) -> None:
    made = await make(desk)
    await desk.client.beta.assistants.update(made, name="n")
    assert (await desk.send("POST", f"/ui/assistants/{made}/delete")).status == 303
    assert (await desk.send("GET", f"/ui/assistants/{made}")).status == 404
    async with desk.database.connection() as connection:
        left = await connection.execute(
            "SELECT count(*) FROM assistant_versions WHERE assistant_id = %s", [made]
        )
        assert await left.fetchone() == (0,)


# --- versions ---


async def test_two_versions_are_compared(desk: Desk) -> None:
    made = await make(desk, name="n", instructions="a\nb\nc\nd\ne\nf\ng\nh <i>\n")
    path = f"/ui/assistants/{made}/versions"
    assert "It has not been changed" in await desk.page(path)
    await desk.client.beta.assistants.update(made, instructions="a\nb\nc\nd\ne\nf\ng\nH <b>\n")
    tool: Any = {"type": "function", "function": WEATHER}
    await desk.client.beta.assistants.update(made, name="N", tools=[tool], temperature=0.5)

    async def told(query: str) -> list[str]:
        page = await desk.page(path + query)
        found = re.findall(r"<(?:ins|del)>([^<]*)</", page)
        return [html.unescape(line).rstrip() for line in found]

    assert await told("?from=1&to=2") == ["−   h <i>", "+   H <b>"]
    assert await told("?from=2&to=1") == ["−   H <b>", "+   h <i>"]
    newest = await told("")
    assert newest == await told("?from=2")
    assert newest[:2] == ["− name: n", "+ name: N"]
    assert "+ temperature: 0.5" in newest
    assert '+       "name": "get_weather",' in newest
    assert await told("?from=2&to=2") == []
    for query in ("?from=9", "?to=0", "?from=-1", "?to=x", "?from=" + "9" * 30, "?from=²"):
        assert (await desk.send("GET", path + query)).status == 404, query


async def test_texts_too_long_to_compare_are_cut(desk: Desk) -> None:
    made = await make(desk, instructions="\n".join(str(n) for n in range(40_000)))
    await desk.client.beta.assistants.update(
        made, instructions="\n".join(f"{n}\nx{n}" for n in range(20_000))
    )
    page = await desk.page(f"/ui/assistants/{made}/versions")
    assert "too long to be compared to their ends" in page
    assert len(page) < 1_000_000


async def test_restoring_saves_the_old_one_as_the_newest(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    made = await make(
        desk,
        name="1",
        instructions="\r\n first ",
        metadata={"": "blank"},
        tools=[{"type": "function", "function": WEATHER}],
    )
    first = await state(desk, made)
    await desk.client.beta.assistants.update(
        made,
        name="2",
        instructions="second",
        metadata={},
        temperature=0.5,
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    answer = await desk.send("POST", f"/ui/assistants/{made}/versions/1/restore")
    assert (answer.status, answer.headers["Location"]) == (303, f"/ui/assistants/{made}")
    told = await state(desk, made)
    assert told.pop("tool_resources")["file_search"] == {"vector_store_ids": []}
    first.pop("tool_resources")
    assert told == first
    kept = await history(desk, made)
    assert [(version, one.name) for version, one in kept.items()] == [(3, "1"), (2, "2"), (1, "1")]
    # Once more: nothing changes, and no version is made of that.
    assert (await desk.send("POST", f"/ui/assistants/{made}/versions/1/restore")).status == 303
    assert list(await history(desk, made)) == [3, 2, 1]
    for version in ("0", "4", "x", "-1"):
        path = f"/ui/assistants/{made}/versions/{version}/restore"
        assert (await desk.send("POST", path)).status == 404


async def test_what_cannot_be_restored_as_it_was_stands_in_the_form(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    made = await make(
        desk,
        instructions="old",
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    await desk.client.beta.assistants.update(
        made, instructions="new", tool_resources={"file_search": {"vector_store_ids": []}}
    )
    await desk.client.vector_stores.delete(store.id)
    answer = await desk.send("POST", f"/ui/assistants/{made}/versions/1/restore")
    page = await answer.text()
    assert (answer.status, "No vector store found" in alerts(page)) == (200, True)
    form = put(fields(page), vector_store="")
    assert (await desk.send("POST", f"/ui/assistants/{made}", form)).status == 303
    assert (await state(desk, made))["instructions"] == "old"


# --- in a browser ---


async def test_an_assistant_is_made_changed_and_restored_by_hand(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/assistants")
        await page.get_by_role("link", name="New assistant").click()
        await page.get_by_label("Name", exact=True).fill("Support")
        await page.get_by_label("Model").fill("m")
        await page.get_by_label("Instructions").fill("Be brief.")
        await expect(page.locator("#tokens")).to_have_text(
            re.compile(r"^(about )?[1-9]\d* tokens$")
        )
        await page.get_by_role("button", name="Create").click()
        await expect(page.locator("h1")).to_have_text("Support")
        await expect(page.locator(".facts")).to_contain_text("version 1")
        await page.get_by_label("Instructions").fill("Be brief.\nBe kind.")
        function = page.get_by_label("New function 1")
        await function.fill('{"name": "get weather"}')
        await expect(page.locator("#said-of-function-0 .problem")).to_contain_text("pattern")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("alert")).to_contain_text("It was not saved.")
        await expect(page.get_by_label("Instructions")).to_have_value("Be brief.\nBe kind.")
        function = page.get_by_label("Function 1", exact=True)
        await expect(function).to_have_value('{"name": "get weather"}')
        await expect(page.locator("#said-of-function-0 .problem")).to_contain_text("pattern")
        await function.fill('{"name": "get_weather"}')
        await expect(page.locator("#said-of-function-0")).to_have_text(re.compile("tokens$"))
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".facts")).to_contain_text("version 2")
        await page.get_by_role("link", name="version 2").click()
        await expect(page.locator("ins").first).to_have_text("+   Be kind.")
        await page.get_by_role("button", name="Restore version 1").click()
        await expect(page.locator(".facts")).to_contain_text("version 3")
        await expect(page.get_by_label("Instructions")).to_have_value("Be brief.")
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Keep it").click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Delete it").click()
        await expect(page).to_have_url(re.compile("/ui/assistants$"))
        await expect(page.locator("a.row")).to_have_count(0)


async def test_the_models_are_listed_below_the_field(desk: Desk, look: Open) -> None:
    async with look() as page:
        await page.goto("/ui/assistants/new")
        await expect(page.locator("datalist option").first).to_be_attached()


async def test_all_of_it_without_scripts(desk: Desk, look: Open) -> None:
    made = await make(desk, name="Support", instructions="1")
    async with look(java_script_enabled=False) as page:
        await page.goto("/ui/assistants")
        await page.get_by_role("searchbox").fill("supp")
        await page.get_by_role("button", name="Search").click()
        await page.locator("a.row").click()
        await page.get_by_label("Instructions").fill("2")
        await page.get_by_label("New function 1").fill('{"name": "one"}')
        await page.get_by_role("button", name="Another function").click()
        await expect(page.get_by_label("Instructions")).to_have_value("2")
        await page.get_by_label("New function 2").fill('{"name": "one"}')
        await page.get_by_label("Name", exact=True).press("Enter")  # saves, and adds no function
        await expect(page.locator("#said-of-function-1 .problem")).to_contain_text("unique")
        await page.get_by_label("Function 2", exact=True).fill("")
        await page.get_by_role("button", name="Save").click()
        await page.get_by_role("link", name="version 2").click()
        await page.get_by_label("From version", exact=True).select_option("2")
        await page.get_by_role("button", name="Compare").click()
        await expect(page.get_by_text("Nothing differs.")).to_be_visible()
        await page.get_by_role("button", name="Restore version 1").click()
        await page.get_by_role("button", name="Copy").click()
        await expect(page.locator("h1")).to_have_text("Support (copy)")
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Delete it").click()
        await page.goto("/ui/assistants/import")
        await page.get_by_label("JSON").fill('{"model": "m", "name": "Imported"}')
        await page.get_by_role("button", name="Import").click()
        await expect(page.locator("h1")).to_have_text("Imported")
    assert [one.instructions for one in (await history(desk, made)).values()] == ["1", "2", "1"]


async def test_hostile_strings_do_nothing_in_forms_and_diffs(desk: Desk, look: Open) -> None:
    everything = "\n".join(HOSTILE)
    keys = [text.replace("\n", " ")[:60] for text in HOSTILE]
    metadata = {key: text[:500] for key, text in zip(keys, HOSTILE, strict=True)}
    function = WEATHER | {"description": everything}
    changing: dict[str, Any] = {
        "name": HOSTILE[1],
        "description": everything[:512],
        "instructions": everything,
        "model": HOSTILE[0],
        "metadata": metadata,
        "tools": [{"type": "function", "function": function}],
    }
    made = await make(desk, **changing)
    await desk.client.beta.assistants.update(
        made, instructions=everything[::-1], metadata={}, tools=[], name=HOSTILE[13]
    )
    await desk.client.beta.assistants.update(made, **changing)
    for options in ({}, {"color_scheme": "dark"}):
        async with look(**options) as page:
            for path in (
                "", f"?q={HOSTILE[1][:20]}", f"?q={HOSTILE[0]}", f"/{made}", f"/{made}/versions",
                f"/{made}/versions?from=1&to=2", f"/{made}/versions?from=2&to=1",
            ):  # fmt: skip
                await page.goto(f"/ui/assistants{path}", wait_until="networkidle")
                await _check_nothing_acts(page, path)
            await page.goto(f"/ui/assistants/{made}")
            await expect(page.get_by_label("Instructions")).to_have_value(everything)
            await page.locator("[name=function]").first.fill(everything)
            await expect(page.locator("#said-of-function-0 .problem")).to_be_visible()
            await page.get_by_label("Temperature").fill("'\"><img src=x onerror=window.pwned=1>")
            await page.get_by_role("button", name="Save").click()
            await expect(page.locator("#said-of-function-0 .problem")).to_be_visible()
            await expect(page.locator("[name=function]").first).to_have_value(everything)
            await _check_nothing_acts(page, "the form")


async def _check_nothing_acts(page: Page, path: str) -> None:
    assert await page.evaluate("window.pwned") is None, path
    assert await page.locator("iframe, base, object, embed, [hx-get^=http]").count() == 0
    assert await page.locator("[onerror], [onload], main style, main script").count() == 0
