"""Vector stores: the list, files as they come in, what is found in them, and every chunk."""

import asyncio
import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import aiohttp
import openai
import orjson
import pytest
from playwright.async_api import FilePayload, expect

from dashboard.conftest import Desk, Open
from dashboard.hostile import HOSTILE
from dashboard.test_thread import put
from threadmill import ids
from threadmill.dashboard import attributes, marks
from threadmill.dashboard.attributes import parse_filter
from threadmill.demo.scripted_model import Reply, vector
from threadmill.errors import InvalidRequest
from threadmill.store import postings, vector_stores
from threadmill.store.chunks import Stored

FRUIT = [
    "Apples are picked in September and kept in the cellar until spring.",
    "Pears bruise easily; they are wrapped in paper one by one.",
    "Plums are dried on racks above the stove.",
    "The orchard has a fence against deer and a gate on the north side.",
    "Cider is pressed from the apples that fell.",
]
PATIENCE_MS = 60_000


def form_of(files: dict[str, bytes], **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    for name, value in fields.items():
        form.add_field(name, value)
    for name, content in files.items():
        form.add_field("file", content, filename=name)
    return form


async def pages(desk: Desk, path: str, rows: str) -> list[str]:
    """What the expression finds on the page, and on those behind it."""
    found: list[str] = []
    while path:
        html = await desk.page(path)
        found += re.findall(rows, html)
        older = re.search(r'href="([^"]*after=[^"]*)">Older', html)
        following = unescape(older[1]) if older else ""
        path = path.partition("?")[0] + following if following.startswith("?") else following
    return found


async def settled(desk: Desk, store_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            store = await desk.client.vector_stores.retrieve(store_id)
            if not store.file_counts.in_progress:
                return store
            await asyncio.sleep(0.05)


# --- the list ---


async def test_pages_hold_every_store_once_newest_first(desk: Desk, other_desk: Desk) -> None:
    made = [(await desk.client.vector_stores.create(name=f"{n}")).id for n in range(55)]
    theirs = await other_desk.client.vector_stores.create(name="theirs")
    rows = r'class="row" href="/ui/vector_stores/(vs_\w+)"'
    assert await pages(desk, "/ui/vector_stores", rows) == made[::-1]
    assert (await desk.send("GET", f"/ui/vector_stores?after={theirs.id}")).status == 404


async def test_a_store_is_told_by_what_is_in_it(desk: Desk) -> None:
    store = await desk.client.vector_stores.create(
        name="<b>Fruit</b>", metadata={"<i>": "a & b"},
        expires_after={"anchor": "last_active_at", "days": 7},
    )  # fmt: skip
    await put(desk, store.id, "fruit.txt", "\n\n".join(FRUIT))
    await put(desk, store.id, "broken.pdf", b"%PDF-1.7 broken")
    html = await desk.page("/ui/vector_stores")
    for told in (
        "&lt;b&gt;Fruit&lt;/b&gt;", "<b>&lt;i&gt;</b> a &amp; b", '<td class="number">2</td>',
        "1 failed", ">in 7 d</time>",
    ):  # fmt: skip
        assert told in html
    html = await desk.page(f"/ui/vector_stores/{store.id}")
    assert "2 files · 1 chunks · " in html
    assert "<code>hashing</code> 64 dimensions" in html


async def test_no_more_files_are_counted_than_have_to_be(desk: Desk) -> None:
    large, small = [(await desk.client.vector_stores.create()).id for _ in range(2)]
    file_ids = [ids.new("file") for _ in range(30)]
    async with desk.database.connection() as connection:
        await connection.execute(
            "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
            " SELECT unnest(%s::text[]), %s, 1, 'a', 'assistants', 1, ''",
            [file_ids, desk.project_id],
        )
        for store_id, held in ((large, file_ids), (small, file_ids[:20])):
            await connection.execute(
                "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at,"
                " status, chunking_strategy, usage_bytes, chunk_count)"
                " SELECT %s, unnest(%s::text[]), %s, 1, 'completed', '{}', 10, 2",
                [store_id, held, desk.project_id],
            )
        tallied = await vector_stores.tally(connection, [large, small], 20)
    found = tallied[small]
    assert (found.total, found.chunk_count, found.usage_bytes, found.is_cut) == (20, 40, 200, False)
    assert (tallied[large].total, tallied[large].is_cut) == (21, True)


async def test_a_store_is_made_edited_and_deleted(desk: Desk) -> None:
    answer = await desk.send("POST", "/ui/vector_stores", {"name": "Fruit", "days": "3"})
    assert answer.status == 303
    store_id = answer.headers["location"].rpartition("/")[2]
    store = await desk.client.vector_stores.retrieve(store_id)
    assert (store.name, store.expires_after.days) == ("Fruit", 3)  # type: ignore[union-attr]
    form = [("name", "Nuts"), ("description", "all"), ("days", ""), ("key", "k"), ("value", "v"),
            ("key", ""), ("value", "x")]  # fmt: skip
    assert (await desk.send("POST", f"/ui/vector_stores/{store_id}/edit", form)).status == 303
    edited: Any = await desk.client.vector_stores.retrieve(store_id)
    assert (edited.name, edited.description) == ("Nuts", "all")
    assert (edited.expires_after, edited.expires_at, edited.metadata) == (None, None, {"k": "v"})
    for days in ("400", "soon", "-1", "1.5"):
        answer = await desk.send("POST", f"/ui/vector_stores/{store_id}/edit", {"days": days})
        assert answer.status == 400
        assert "expires_after.days" in await answer.text()
    answer = await desk.send("POST", f"/ui/vector_stores/{store_id}/delete")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/vector_stores")
    with pytest.raises(openai.NotFoundError):
        await desk.client.vector_stores.retrieve(store_id)


async def test_an_expired_store_stays_to_be_read(desk: Desk) -> None:
    store = await desk.client.vector_stores.create(name="old")
    await put(desk, store.id, "fruit.txt", FRUIT[0])
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE vector_stores SET expires_at = 1 WHERE id = %s", [store.id]
        )
    assert 'class="status expired"' in await desk.page("/ui/vector_stores")
    assert "This store has expired" in await desk.page(f"/ui/vector_stores/{store.id}")
    html = await desk.page(f"/ui/vector_stores/{store.id}/search?q=apples")
    assert "has expired</p>" in html
    answer = await desk.send("POST", f"/ui/vector_stores/{store.id}/edit", {"name": "new"})
    assert answer.status == 400


# --- files come in ---


async def test_files_are_added_by_a_form(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    path = f"/ui/vector_stores/{store.id}/files"
    name = "é <b>.md"
    files = {"fruit.txt": "\n\n".join(FRUIT * 10).encode(), name: b"Nuts"}
    sizes = {"max_chunk_size_tokens": "120", "chunk_overlap_tokens": "20"}
    answer = await desk.send("POST", path, form_of(files, **sizes))
    assert (answer.status, answer.headers["location"]) == (303, f"/ui/vector_stores/{store.id}")
    assert (await settled(desk, store.id)).file_counts.completed == 2
    listed = (await desk.client.vector_stores.files.list(store.id, order="asc")).data
    names = [(await desk.client.files.retrieve(file.id)).filename for file in listed]
    assert names == ["fruit.txt", name]
    static: Any = listed[0].chunking_strategy
    assert static.static.model_dump() == {
        "max_chunk_size_tokens": 120, "chunk_overlap_tokens": 20,
    }  # fmt: skip
    assert "é &lt;b&gt;.md" in await desk.page(f"/ui/vector_stores/{store.id}")


@pytest.mark.parametrize(
    ("files", "fields", "told"),
    [
        ({}, {}, "Choose at least one file."),
        ({"a.exe": b"x"}, {}, "Files with extensions [.exe] are not supported"),
        ({"a.txt": b"x", "b.exe": b"x"}, {}, "Files with extensions [.exe] are not supported"),
        ({"a.txt": b"x", "b.txt": b""}, {}, "File is empty."),
        ({"a.txt": b"x"}, {"max_chunk_size_tokens": "50"}, "Expected a value &gt;= 100"),
        ({"a.txt": b"x"}, {"max_chunk_size_tokens": "many"}, "expected an integer"),
        ({"a.txt": b"x"}, {"chunk_overlap_tokens": "401"}, "Expected a value &lt;= 400"),
        ({f"{n}.txt": b"x" for n in range(21)}, {}, "At most 20 files"),
    ],
)
async def test_what_cannot_be_added_is_told_and_nothing_is_kept(
    desk: Desk, files: dict[str, bytes], fields: dict[str, str], told: str
) -> None:
    store = await desk.client.vector_stores.create()
    form = form_of(files, **({"max_chunk_size_tokens": "800"} | fields))
    if not files:
        form.add_field("file", b"", filename="")  # as a browser sends a field left empty
    answer = await desk.send("POST", f"/ui/vector_stores/{store.id}/files", form)
    assert answer.status == 400
    assert told in await answer.text()
    assert (await desk.client.files.list()).data == []
    async with desk.database.connection() as connection:
        kept = await connection.execute("SELECT count(*) FROM files WHERE project_id = %s",
                                        [desk.project_id])  # fmt: skip
        assert await kept.fetchone() == (0,)


async def test_a_file_too_large_leaves_nothing(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    settings = desk.runtime.settings
    before, settings.file_max_bytes = settings.file_max_bytes, 1000
    try:
        form = form_of({"a.txt": b"x" * 900, "b.txt": b"x" * 1001})
        answer = await desk.send("POST", f"/ui/vector_stores/{store.id}/files", form)
    finally:
        settings.file_max_bytes = before
    assert answer.status == 413
    assert (await desk.client.files.list()).data == []


async def test_a_failed_file_says_why_and_is_retried(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    reason = "no room for <script>window.pwned=1</script>"
    desk.model.before_embeddings = lambda _: Reply(status=400, body={"error": {"message": reason}})
    file = await put(desk, store.id, "fruit.txt", FRUIT[0], 200, 10)
    assert file.status == "failed"
    attributes: Any = {"kept": 1}
    await desk.client.vector_stores.files.update(
        file.id, vector_store_id=store.id, attributes=attributes
    )
    path = f"/ui/vector_stores/{store.id}"
    for html in (await desk.page(path), await desk.page(f"{path}/files/{file.id}")):
        assert "no room for &lt;script&gt;window.pwned=1&lt;/script&gt;" in html
        assert f'action="{path}/files/{file.id}/retry"' in html
    desk.model.before_embeddings = None
    assert (await desk.send("POST", f"{path}/files/{file.id}/retry")).status == 303
    assert (await settled(desk, store.id)).file_counts.completed == 1
    found = await desk.client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert found.attributes == {"kept": 1}
    static: Any = found.chunking_strategy
    assert static.static.max_chunk_size_tokens == 200
    html = await desk.page(path)
    assert "retry" not in html
    # What is done is not begun anew by somebody whose page is old.
    assert (await desk.send("POST", f"{path}/files/{file.id}/retry")).status == 303
    html = await desk.page(path)
    assert 'status completed">completed' in html


async def test_of_many_retries_at_once_one_begins_it_anew(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    desk.model.before_embeddings = lambda _: Reply(status=400)
    file = await put(desk, store.id, "fruit.txt", FRUIT[0])
    desk.model.before_embeddings = None
    path = f"/ui/vector_stores/{store.id}/files/{file.id}/retry"
    answers = await asyncio.gather(*(desk.send("POST", path) for _ in range(8)))
    assert {answer.status for answer in answers} == {303}
    assert (await settled(desk, store.id)).file_counts.completed == 1
    async with desk.database.connection() as connection:
        claims = await connection.execute(
            "SELECT claims FROM vector_store_files WHERE vector_store_id = %s", [store.id]
        )
        assert await claims.fetchone() == (2,)


async def test_pages_hold_every_file_once_and_by_status(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    path = f"/ui/vector_stores/{store.id}"
    made: list[str] = []
    for first in range(0, 120, 20):
        files = {f"{n:03}.txt": b"text" for n in range(first, first + 20)}
        assert (await desk.send("POST", f"{path}/files", form_of(files))).status == 303
    await settled(desk, store.id)
    broken = await put(desk, store.id, "broken.pdf", b"%PDF-1.7 broken")
    listed = await desk.client.vector_stores.files.list(store.id, limit=100)
    async for file in listed:
        made.append(file.id)
    assert len(made) == 121
    rows = rf'class="row" href="{path}/files/(file-\w+)"'
    assert await pages(desk, path, rows) == made
    assert await pages(desk, f"{path}?status=completed", rows) == made[1:]
    assert await pages(desk, f"{path}?status=failed", rows) == [broken.id]
    assert await pages(desk, f"{path}?status=cancelled", rows) == []
    assert (await desk.send("GET", f"{path}?status=odd")).status == 400


async def test_attributes_keep_their_kind(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    file = await put(desk, store.id, "fruit.txt", FRUIT[0])
    path = f"/ui/vector_stores/{store.id}/files/{file.id}"
    told: Any = {"<b>": "x & y", "year": 2026, "share": 0.5, "new": True, "text": "12",
                 "quoted": '"x"', "word": "true", "empty": ""}  # fmt: skip
    form = [pair for key, value in told.items()
            for pair in (("key", key), ("value", attributes.write(value)))]  # fmt: skip
    assert (await desk.send("POST", f"{path}/attributes", form)).status == 303
    found = await desk.client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert found.attributes == told
    html = await desk.page(path)
    shown = re.findall(r'name="key" value="([^"]+)".*?name="value" value="([^"]*)"', html)
    read = {unescape(key): attributes.read(unescape(value)) for key, value in shown}
    assert read == told
    assert "<b>&lt;b&gt;</b> x &amp; y" in html
    too_many = [pair for n in range(17) for pair in (("key", f"k{n}"), ("value", "v"))]
    assert (await desk.send("POST", f"{path}/attributes", too_many)).status == 400


async def test_a_file_is_removed_from_the_store_alone(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    file = await put(desk, store.id, "fruit.txt", FRUIT[0])
    path = f"/ui/vector_stores/{store.id}"
    assert (await desk.send("POST", f"{path}/files/{file.id}/remove")).status == 303
    assert (await desk.send("GET", f"{path}/files/{file.id}")).status == 404
    assert "There are no files in this store" in await desk.page(path)
    assert (await desk.client.files.retrieve(file.id)).filename == "fruit.txt"


# --- what is found ---


async def results(desk: Desk, store_id: str, **asked: Any) -> list[dict[str, Any]]:
    html = await desk.page(f"/ui/vector_stores/{store_id}/search?{urlencode(asked)}")
    assert 'role="alert"' not in html, html
    found = []
    for part in html.split('<p class="place">')[1:]:
        ranks = re.findall(r"<span>(vector|text) (?:<b>(\d+)\.</b>|–)(?: ([\d.]+))?</span>", part)
        place = re.search(r'chunks/(\d+)">(.*?) #\1</a>', part)
        score = re.match(r"<b>([\d.]+)</b>", part)
        assert place
        assert score
        found.append(
            {side: (int(rank) if rank else None, value) for side, rank, value in ranks}
            | {"ordinal": int(place[1]), "name": unescape(place[2]), "score": float(score[1])}
        )
    return found


async def orchard(desk: Desk, **more: Any) -> str:
    """A store of one file with a chunk for each text."""
    store = await desk.client.vector_stores.create(**more)
    texts = [f"{text} " + f"filler{n} " * 45 for n, text in enumerate(FRUIT)]
    file = await put(desk, store.id, "fruit.txt", "\n\n".join(texts), 130, 0)
    assert file.status == "completed", file.last_error
    return store.id


async def test_both_ranks_are_those_of_the_database(desk: Desk) -> None:
    store_id = await orchard(desk)
    query = "how are apples and pears kept"
    found = await results(desk, store_id, q=query)
    asked = orjson.dumps(vector(query, 64)).decode()
    async with desk.database.connection() as connection:
        near = await connection.execute(
            "SELECT ordinal FROM chunks WHERE vector_store_id = %s"
            " ORDER BY embedding <=> %s::halfvec, id",
            [store_id, asked],
        )
        by_vector = [ordinal for (ordinal,) in await near.fetchall()]
        ordinals = dict(
            await (
                await connection.execute(
                    "SELECT id, ordinal FROM chunks WHERE vector_store_id = %s", [store_id]
                )
            ).fetchall()
        )
        extent = await postings.extent(connection, store_id)
        assert extent
        best = await postings.best(connection, store_id, extent, query, "english", 20, None)
    by_text = [ordinals[one.chunk_id] for one in best]
    assert len(by_vector) == len(found) >= 5
    assert 2 <= len(by_text) < len(found)
    assert {one["ordinal"]: one["vector"][0] for one in found} == {
        ordinal: rank for rank, ordinal in enumerate(by_vector, 1)
    }
    assert {one["ordinal"]: one["text"][0] for one in found if one["text"][0]} == {
        ordinal: rank for rank, ordinal in enumerate(by_text, 1)
    }


async def test_a_page_finds_what_the_api_finds(desk: Desk) -> None:
    store_id = await orchard(desk)
    for asked, options in (
        ({}, {}),
        ({"n": "2"}, {"max_num_results": 2}),
        ({"threshold": "0.6"}, {"ranking_options": {"score_threshold": 0.6}}),
        (
            {"vector": "0", "text": "1"},
            {"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}},
        ),
        ({"text": "0"},
         {"ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}}),
        ({"ranker": "none"}, {"ranking_options": {"ranker": "none"}}),
    ):  # fmt: skip
        found = await results(desk, store_id, q="apples in the cellar", **asked)
        body: Any = {"query": "apples in the cellar"} | options
        api = (await desk.client.vector_stores.search(store_id, **body)).data
        assert [round(one.score, 3) for one in api] == [one["score"] for one in found], asked
        assert found
        assert found[0]["ordinal"] == 0
    only_text = await results(desk, store_id, q="apples", vector="0", text="1")
    assert all(one["vector"][0] is None for one in only_text)
    only_vectors = await results(desk, store_id, q="apples", text="0")
    assert all(one["text"][0] is None for one in only_vectors)


async def test_attributes_narrow_a_search(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    for region, year in (("eu", 2024), ("us", 2025), ("eu", 2026)):
        file = await put(desk, store.id, f"{region}-{year}.txt", FRUIT[0])
        told: Any = {"region": region, "year": year}
        await desk.client.vector_stores.files.update(
            file.id, vector_store_id=store.id, attributes=told
        )
    for where, names in {
        "region = eu": {"eu-2024.txt", "eu-2026.txt"},
        "region = eu and year >= 2025": {"eu-2026.txt"},
        "region=eu\nyear<2025": {"eu-2024.txt"},
        'year in [2025, 2026] and region != "us"': {"eu-2026.txt"},
        '{"type": "eq", "key": "region", "value": "us"}': {"us-2025.txt"},
        "year = nothing": set(),
    }.items():
        found = await results(desk, store.id, q="apples", where=where)
        assert {one["name"] for one in found} == names, where


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"n": "51"}, "Expected a value <= 50"),
        ({"n": "many"}, "expected an integer"),
        ({"threshold": "2"}, "score_threshold"),
        ({"vector": "0", "text": "0"}, "one of the weights must be greater than 0"),
        ({"ranker": "odd"}, "Supported values are: 'none', 'auto'"),
        ({"where": "region"}, "The filter cannot be read"),
        ({"where": "{"}, "The filter cannot be read"),
        ({"where": '{"a":' * 300 + "1" + "}" * 300}, "nested too deeply"),
        ({"where": '{"type": "odd"}'}, "Supported values are: 'eq'"),
        ({"where": "x" * 2001}, "The filter is longer"),
        ({"q": "x" * 5000}, "query"),
    ],
)
async def test_what_cannot_be_searched_is_told(
    desk: Desk, asked: dict[str, str], told: str
) -> None:
    store = await desk.client.vector_stores.create()
    query = urlencode({"q": "apples"} | asked)
    html = await desk.page(f"/ui/vector_stores/{store.id}/search?{query}")
    problem = re.search(r'<p class="problem" role="alert">(.*?)</p>', html, re.DOTALL)
    assert problem
    assert told in unescape(problem[1])


async def test_an_endpoint_that_is_away_is_told(desk: Desk) -> None:
    store_id = await orchard(desk)
    desk.model.before_embeddings = lambda _: Reply(
        status=400, body={"error": {"message": "no such model <b>"}}
    )
    path = f"/ui/vector_stores/{store_id}/search?q=apples"
    assert "no such model &lt;b&gt;" in await desk.page(f"{path}&text=0")
    assert '<p class="place">' in await desk.page(path)  # the words alone find it


async def test_looking_is_no_use_of_a_store(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    await put(desk, store.id, "fruit.txt", FRUIT[0])
    async with desk.database.connection() as connection:
        await connection.execute(
            "UPDATE vector_stores SET last_active_at = 5 WHERE id = %s", [store.id]
        )
    await desk.page(f"/ui/vector_stores/{store.id}/search?q=apples")
    assert (await desk.client.vector_stores.retrieve(store.id)).last_active_at == 5


async def test_words_of_the_query_are_marked_and_nothing_else_is(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    text = "A refunded order & <b>refunds</b>. The late\ue000<i>r\ue001 </mark>"
    await put(desk, store.id, "a.txt", text)
    html = await desk.page(f"/ui/vector_stores/{store.id}/search?q=Refund+the")
    shown = html.partition('<div class="passage"')[2].partition(">")[2].partition("</div>")[0]
    assert shown.startswith(
        "A <mark>refunded</mark> order &amp; &lt;b&gt;<mark>refunds</mark>&lt;/b&gt;. The late"
    )
    assert "&lt;i&gt;" in shown
    assert "&lt;/mark&gt;" in shown
    html = await desk.page(f"/ui/vector_stores/{store.id}/search?q=the+%00")
    assert "<mark>" not in html


# --- chunks ---


async def test_a_chunk_is_shown_between_its_neighbours(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    text = "\n\n".join(
        f"# Part {n}\n\nSentence {n} says <b>something</b>. " + f"word{n} " * 60 for n in range(12)
    )
    file = await put(desk, store.id, "long.md", text, 100, 40)
    path = f"/ui/vector_stores/{store.id}/files/{file.id}"
    async with desk.database.connection() as connection:
        rows = await (
            await connection.execute(
                "SELECT ordinal, text, first_token, token_count FROM chunks"
                " WHERE vector_store_id = %s AND file_id = %s ORDER BY ordinal",
                [store.id, file.id],
            )
        ).fetchall()
    assert len(rows) > 10
    assert rows[0][2] == 0
    with_overlap = 0
    for before, this, after in zip(rows, rows[1:], rows[2:], strict=False):
        html = await desk.page(f"{path}/chunks/{this[0]}")
        assert f"tokens {this[2]:,}–{this[2] + this[3]:,} " in html
        for neighbour in (before, after):
            assert f'href="{path}/chunks/{neighbour[0]}"' in html
        shown = html.partition('<div class="passage whole">')[2].partition("</div>")[0]
        assert unescape(re.sub("<mark[^>]*>|</mark>", "", shown)) == this[1]
        shared = re.match(r"<mark[^>]*>(.*?)</mark>", shown, re.DOTALL)
        tokens = before[2] + before[3] - this[2]
        assert (shared is not None) == (tokens > 0)
        if shared:
            with_overlap += 1
            assert before[1].endswith(unescape(shared[1]))
    assert with_overlap > 5
    last = rows[-1][0]
    assert 'rel="next"' not in await desk.page(f"{path}/chunks/{last}")
    assert 'rel="prev"' not in await desk.page(f"{path}/chunks/0")
    for odd in (last + 1, "x", "-1", "9" * 30, "%F0%9F%8E%89"):
        assert (await desk.send("GET", f"{path}/chunks/{odd}")).status == 404
    html = await desk.page(path)
    assert "&lt;b&gt;something" in html


async def test_chunks_come_in_pages(desk: Desk) -> None:
    store = await desk.client.vector_stores.create()
    file = await put(desk, store.id, "long.txt", "word " * 6000, 100, 0)
    path = f"/ui/vector_stores/{store.id}/files/{file.id}"
    found: list[int] = []
    following: str | None = path
    while following:
        html = await desk.page(following)
        found += [int(one) for one in re.findall(r'class="row" href="[^"]*/chunks/(\d+)"', html)]
        later = re.search(r'href="([^"]*)">Later', html)
        following = unescape(later[1]) if later else None
    assert len(found) > 50
    assert found == list(range(len(found)))


def stored(ordinal: int, text: str, first: int | None, tokens: int) -> Stored:
    return Stored(ordinal, ordinal, text, tokens, None, None, first)


def test_what_two_chunks_share() -> None:
    one, two = stored(0, "a b c d", 0, 4), stored(1, "c d e f", 2, 4)
    three = stored(2, "f g", 6, 2)  # begins with what the one before ends with, by chance
    told = [(piece.text, piece.stands_out) for piece in marks.overlapping(one, two, three)]
    assert told == [("c d", True), (" e f", False)]
    told = [(piece.text, piece.stands_out) for piece in marks.overlapping(None, one, two)]
    assert told == [("a b ", False), ("c d", True)]
    old = [stored(at, text, None, 4) for at, text in enumerate(("x y", "y z"))]
    told = [(piece.text, piece.stands_out) for piece in marks.overlapping(old[0], old[1], None)]
    assert told == [("y", True), (" z", False)]
    all_of_it = [stored(at, "aaaa", None, 4) for at in range(3)]
    told = [(piece.text, piece.stands_out) for piece in marks.overlapping(*all_of_it)]
    assert told == [("aaaa", True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("region = eu", {"type": "eq", "key": "region", "value": "eu"}),
        ("a b = c d", None),
        ('"a b" = c d', {"type": "eq", "key": "a b", "value": "c d"}),
        ("n >= 1.5", {"type": "gte", "key": "n", "value": 1.5}),
        ('n = "1"', {"type": "eq", "key": "n", "value": "1"}),
        ("on = true", {"type": "eq", "key": "on", "value": True}),
        ("x not in [1, 2]", {"type": "nin", "key": "x", "value": [1, 2]}),
        ("x IN [1]", {"type": "in", "key": "x", "value": [1]}),
        ("x in 1", None),
        ("index = 3", {"type": "eq", "key": "index", "value": 3}),
        ("a = sand and b = 1", {"type": "and", "filters": [
            {"type": "eq", "key": "a", "value": "sand"}, {"type": "eq", "key": "b", "value": 1}]}),
        ('a = "x and y"\nb != 2', {"type": "and", "filters": [
            {"type": "eq", "key": "a", "value": "x and y"},
            {"type": "ne", "key": "b", "value": 2}]}),
    ],
)  # fmt: skip
def test_filters_as_they_are_typed(text: str, expected: Any) -> None:
    if expected is None and text:
        with pytest.raises(InvalidRequest):
            parse_filter(text)
    else:
        assert parse_filter(text) == expected


# --- in a browser ---


async def test_files_are_followed_while_they_come_in(desk: Desk, look: Open) -> None:
    store = await desk.client.vector_stores.create(name="Fruit")
    gate = asyncio.Event()
    desk.model.before_embeddings = lambda _: Reply(gate=gate)
    async with look() as page:
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(f"/ui/vector_stores/{store.id}")
        await page.get_by_role("button", name="Add files").click()
        chosen: list[FilePayload] = [
            {"name": name, "mimeType": "text/plain", "buffer": FRUIT[0].encode()}
            for name in ("a.txt", "b.txt")
        ]
        await page.get_by_label("Files, up to 20").set_input_files(chosen)
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.locator("#files .status.in_progress")).to_have_count(2)
        gate.set()
        await expect(page.locator("#files .status.completed")).to_have_count(2, timeout=PATIENCE_MS)
        await expect(page.locator("[hx-trigger]")).to_have_count(0)  # nothing moves any more


async def test_a_store_is_used_without_scripts(desk: Desk, look: Open) -> None:
    async with look(java_script_enabled=False) as page:
        page.set_default_timeout(PATIENCE_MS)
        await page.goto("/ui/vector_stores")
        await page.get_by_role("button", name="New store").click()
        await page.get_by_label("Name").fill("Fruit")
        await page.get_by_role("button", name="Create").click()
        await page.get_by_role("button", name="Add files").click()
        await page.get_by_label("Files, up to 20").set_input_files(
            {"name": "fruit.txt", "mimeType": "text/plain", "buffer": FRUIT[0].encode()}
        )
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.locator("#files a.row")).to_have_text(["fruit.txt"])
        await settled(desk, page.url.rpartition("/")[2])
        await page.get_by_label("Search this store").fill("apples")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator(".results mark")).to_have_text(["Apples"])
        await page.get_by_role("link", name="fruit.txt #0").click()
        await expect(page.locator(".passage")).to_contain_text("Apples are picked")


async def test_a_failed_file_is_retried_and_removed(desk: Desk, look: Open) -> None:
    store = await desk.client.vector_stores.create()
    await put(desk, store.id, "broken.pdf", b"%PDF-1.7 broken")
    async with look() as page:
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(f"/ui/vector_stores/{store.id}")
        reason = await page.locator(".fault").inner_text()
        await page.get_by_role("button", name="Retry broken.pdf").click()
        await expect(page.locator("#files .status.failed")).to_have_count(1, timeout=PATIENCE_MS)
        await expect(page.locator(".fault")).to_have_text(reason)
        await page.locator("a.row").click()
        await page.get_by_role("button", name="Edit attributes").click()
        await page.get_by_label("Key").first.fill("region")
        await page.get_by_label("Value").first.fill("eu")
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".facts .tag")).to_have_text(["region eu"])
        await page.get_by_role("button", name="Remove", exact=True).click()
        await page.get_by_role("button", name="Remove it").click()
        await expect(page.get_by_text("There are no files in this store.")).to_be_visible()


async def test_hostile_strings_do_nothing_in_a_store(desk: Desk, look: Open) -> None:
    """In names, metadata, attributes, chunks, queries, and the words of an upstream."""
    all_of_them = "\n\n".join(HOSTILE)
    names = [text.replace("\n", " ")[:60] for text in HOSTILE]
    metadata = {name: text[:500] for name, text in zip(names, HOSTILE, strict=True)}
    told: Any = metadata
    store = await desk.client.vector_stores.create(name=HOSTILE[0], metadata=metadata)
    done = await put(desk, store.id, f"{names[1]}.md", all_of_them, 100, 20)
    assert done.status == "completed", done.last_error
    await desk.client.vector_stores.files.update(done.id, vector_store_id=store.id, attributes=told)
    desk.model.before_embeddings = lambda _: Reply(
        status=400, body={"error": {"message": all_of_them}}
    )
    failed = await put(desk, store.id, f"{names[13]}.txt", "text")
    assert failed.status == "failed"
    desk.model.before_embeddings = None
    base = f"vector_stores/{store.id}"
    for options in ({}, {"color_scheme": "dark"}):
        async with look(**options) as page:
            for path in (
                "vector_stores", base, f"{base}?status=failed", f"{base}/files/{done.id}",
                f"{base}/files/{failed.id}", f"{base}/files/{done.id}/chunks/1",
                *(f"{base}/search?{urlencode({'q': text, 'where': ''})}" for text in HOSTILE),
                f"{base}/search?{urlencode({'q': 'a', 'where': HOSTILE[0], 'ranker': HOSTILE[1]})}",
                f"{base}/search?{urlencode({'q': 'a', 'n': HOSTILE[0], 'vector': HOSTILE[13]})}",
                f"files/{done.id}/about", "files",
            ):  # fmt: skip
                await page.goto(f"/ui/{path}", wait_until="networkidle")
                assert await page.evaluate("window.pwned") is None, path
                assert await page.locator("iframe, base, object, embed").count() == 0
                assert (
                    await page.locator("[onerror], [onload], main style, main script").count() == 0
                )
                assert await page.locator("main form[action^=http], [hx-get^=http]").count() == 0
