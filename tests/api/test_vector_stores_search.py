from typing import Any

import openai
import pytest
import pytest_asyncio

from api.conftest import Shared
from api.stores import Stores
from api.wire import Wire

Json = dict[str, Any]

PETS = {
    "cats": ({"legs": 4, "sound": "meow", "tame": True}, "The cat sleeps on the warm mat."),
    "dogs": ({"legs": 4, "sound": "woof", "tame": True}, "The dog guards the old gate."),
    "birds": ({"legs": 2, "sound": "tweet", "tame": False}, "The bird sings in the tall tree."),
    "worms": ({}, "The worm digs in the wet ground."),
}


@pytest_asyncio.fixture(loop_scope="session")
async def stores(shared: Shared, wire: Wire) -> Stores:
    stores = Stores(shared.database, wire.project_id)
    await stores.hold()
    return stores


@pytest_asyncio.fixture(loop_scope="session")
async def path(wire: Wire, stores: Stores) -> str:
    """Of a store with a file on each of the pets."""
    store = await wire.post("/vector_stores", {"search": {"mode": "text"}})
    path = f"/vector_stores/{store['id']}"
    for name, (attributes, text) in PETS.items():
        file_id = await stores.add_file(f"{name}.txt")
        await wire.post(f"{path}/files", {"file_id": file_id, "attributes": attributes})
        await stores.move(store["id"], file_id, "completed", (text,))
    return path


def names(answer: Json) -> set[str]:
    return {found["filename"].removesuffix(".txt") for found in answer["data"]}


ALL = "cat dog bird worm"


async def test_what_is_found_is_shown_with_its_file(wire: Wire, path: str) -> None:
    answer = await wire.post(f"{path}/search", {"query": "Where does the cat sleep?"})
    assert answer["object"] == "vector_store.search_results.page"
    assert answer["search_query"] == ["Where does the cat sleep?"]
    assert (answer["has_more"], answer["next_page"]) == (False, None)
    found = answer["data"][0]
    assert found == {
        "file_id": found["file_id"],
        "filename": "cats.txt",
        "score": found["score"],
        "attributes": PETS["cats"][0],
        "content": [{"type": "text", "text": PETS["cats"][1]}],
    }
    assert 0 < found["score"] <= 1
    assert (await wire.get(f"{path}/files/{found['file_id']}"))["id"] == found["file_id"]


async def test_several_queries_are_searched_together(wire: Wire, path: str) -> None:
    body = {"query": ["cat sleeps", "dog guards"], "rewrite_query": True, "max_num_results": 2}
    answer = await wire.post(f"{path}/search", body)
    assert answer["search_query"] == ["cat sleeps", "dog guards"]
    assert names(answer) == {"cats", "dogs"}
    scores = [found["score"] for found in answer["data"]]
    assert scores == sorted(scores, reverse=True)


async def test_the_sdk_reads_results_as_a_page(
    sdk: openai.AsyncOpenAI, wire: Wire, path: str
) -> None:
    found = [
        (one.filename, one.content[0].text)
        async for one in sdk.vector_stores.search(
            path.split("/")[2],
            query="worm digs",
            filters={"type": "ne", "key": "legs", "value": 4},
            max_num_results=1,
            ranking_options={"ranker": "none", "score_threshold": 0.1},
        )
    ]
    assert found == [("worms.txt", PETS["worms"][1])]


@pytest.mark.parametrize(
    ("ranking", "count"),
    [
        ({}, 1),
        ({"ranker": "auto"}, 1),
        ({"ranker": "default-2024-11-15", "score_threshold": 0}, 1),
        ({"score_threshold": 1}, 0),
        ({"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}, 1),
        (None, 1),
    ],
)
async def test_ranking_options(wire: Wire, path: str, ranking: Any, count: int) -> None:
    body = {"query": "cat", "ranking_options": ranking}
    assert len((await wire.post(f"{path}/search", body))["data"]) == count


def compare(kind: str, key: str, value: Any) -> Json:
    return {"type": kind, "key": key, "value": value}


def put(kind: str, *filters: Json) -> Json:
    return {"type": kind, "filters": list(filters)}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (None, {"cats", "dogs", "birds", "worms"}),
        (compare("eq", "sound", "meow"), {"cats"}),
        (compare("eq", "tame", False), {"birds"}),
        (compare("eq", "legs", 4.0), {"cats", "dogs"}),
        (compare("ne", "legs", 4), {"birds", "worms"}),
        (compare("gt", "legs", 2), {"cats", "dogs"}),
        (compare("gte", "legs", 2), {"cats", "dogs", "birds"}),
        (compare("lt", "legs", 4), {"birds"}),
        (compare("lte", "legs", 1.5), set()),
        (compare("in", "sound", ["meow", "woof"]), {"cats", "dogs"}),
        (compare("nin", "sound", ["meow", "woof"]), {"birds", "worms"}),
        (compare("in", "sound", []), set()),
        (put("and", compare("eq", "legs", 4), compare("eq", "sound", "woof")), {"dogs"}),
        (put("or", compare("eq", "legs", 2), compare("eq", "sound", "woof")), {"birds", "dogs"}),
        (
            put(
                "or",
                put("and", compare("eq", "legs", 4), compare("ne", "sound", "meow")),
                put("and", compare("eq", "tame", False)),
            ),
            {"dogs", "birds"},
        ),
    ],
)
async def test_filters(wire: Wire, path: str, filters: Any, wanted: set[str]) -> None:
    body = {"query": ALL, "filters": filters}
    assert names(await wire.post(f"{path}/search", body)) == wanted


async def test_changed_attributes_count_at_once(wire: Wire, path: str) -> None:
    body = {"query": ALL, "filters": compare("eq", "legs", 4)}
    found = (await wire.post(f"{path}/search", body))["data"]
    for one in found:
        await wire.post(f"{path}/files/{one['file_id']}", {"attributes": {"legs": 3}})
    assert (await wire.post(f"{path}/search", body))["data"] == []


async def test_only_completed_files_are_found(wire: Wire, stores: Stores, path: str) -> None:
    body = {"query": "cat"}
    [found] = (await wire.post(f"{path}/search", body))["data"]
    await stores.execute(
        "UPDATE vector_store_files SET status = 'in_progress' WHERE id = %s", found["file_id"]
    )
    assert (await wire.post(f"{path}/search", body))["data"] == []
    await wire.delete(f"{path}/files/{found['file_id']}")
    assert (await wire.post(f"{path}/search", body))["data"] == []


DEEP: Json = compare("eq", "a", 1)
for _ in range(9):
    DEEP = put("and", DEEP)


async def test_filters_may_be_ten_levels_deep_and_200_conditions_long(
    wire: Wire, path: str
) -> None:
    wide = put("or", *(compare("eq", "legs", n) for n in range(199)))
    for filters in (DEEP, wide):
        await wire.post(f"{path}/search", {"query": "cat", "filters": filters})


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ({}, "Missing required parameter: 'query'.", "query", "missing_required_parameter"),
        (
            {"query": ""},
            "Invalid 'query': empty string. Expected a string with minimum length 1, but got an"
            " empty string instead.",
            "query",
            "empty_string",
        ),
        (
            {"query": []},
            "Invalid 'query': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            "query",
            "empty_array",
        ),
        (
            {"query": ["a", 1]},
            "Invalid type for 'query[1]': expected a string, but got an integer instead.",
            "query[1]",
            "invalid_type",
        ),
        (
            {"query": 1},
            "Invalid type for 'query': expected one of a string or array of strings, but got an"
            " integer instead.",
            "query",
            "invalid_type",
        ),
        (
            {"max_num_results": 51},
            "Invalid 'max_num_results': integer above maximum value. Expected a value <= 50, but"
            " got 51 instead.",
            "max_num_results",
            "integer_above_max_value",
        ),
        (
            {"max_num_results": 0},
            "Invalid 'max_num_results': integer below minimum value. Expected a value >= 1, but got"
            " 0 instead.",
            "max_num_results",
            "integer_below_min_value",
        ),
        (
            {"ranking_options": {"ranker": "best"}},
            "Invalid value: 'best'. Supported values are: 'none', 'auto', 'default-2024-11-15', and"
            " 'default_2024_08_21'.",
            "ranking_options.ranker",
            "invalid_value",
        ),
        (
            {"ranking_options": {"score_threshold": 1.5}},
            "Invalid 'ranking_options.score_threshold': decimal above maximum value. Expected a"
            " value <= 1, but got 1.5 instead.",
            "ranking_options.score_threshold",
            "integer_above_max_value",
        ),
        (
            {"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "Invalid 'ranking_options.hybrid_search': one of the weights must be greater than 0.",
            "ranking_options.hybrid_search",
            "invalid_value",
        ),
        (
            {"filters": compare("like", "a", "b")},
            "Invalid value: 'like'. Supported values are: 'eq', 'ne', 'gt', 'gte', 'lt', 'lte',"
            " 'in', 'nin', 'and', and 'or'.",
            "filters.type",
            "invalid_value",
        ),
        (
            {"filters": {"type": "eq", "value": 1}},
            "Missing required parameter: 'filters.key'.",
            "filters.key",
            "missing_required_parameter",
        ),
        (
            {"filters": put("or", {"type": "eq", "key": "a"})},
            "Missing required parameter: 'filters.filters[0].value'.",
            "filters.filters[0].value",
            "missing_required_parameter",
        ),
        (
            {"filters": {"type": "and"}},
            "Missing required parameter: 'filters.filters'.",
            "filters.filters",
            "missing_required_parameter",
        ),
        (
            {"filters": put("and")},
            "Invalid 'filters.filters': empty array. Expected an array with minimum length 1, but"
            " got an empty array instead.",
            "filters.filters",
            "empty_array",
        ),
        (
            {"filters": put("and", compare("eq", "a", 1)) | {"key": "a"}},
            "Unknown parameter: 'filters.key'.",
            "filters.key",
            "unknown_parameter",
        ),
        (
            {"filters": compare("eq", "a", [1])},
            "Invalid type for 'filters.value': expected one of a string, number or boolean, but got"
            " an array instead.",
            "filters.value",
            "invalid_type",
        ),
        (
            {"filters": compare("gt", "a", True)},
            "Invalid type for 'filters.value': expected one of a string or number, but got a"
            " boolean instead.",
            "filters.value",
            "invalid_type",
        ),
        (
            {"filters": compare("in", "a", 1)},
            "Invalid type for 'filters.value': expected an array, but got an integer instead.",
            "filters.value",
            "invalid_type",
        ),
        (
            {"filters": compare("nin", "a", [1, {}])},
            "Invalid type for 'filters.value[1]': expected one of a string, number or boolean, but"
            " got an object instead.",
            "filters.value[1]",
            "invalid_type",
        ),
        (
            {"filters": []},
            "Invalid type for 'filters': expected an object, but got an array instead.",
            "filters",
            "invalid_type",
        ),
        (
            {"filters": put("and", DEEP)},
            "Invalid 'filters': nested too deeply. Expected at most 10 levels.",
            "filters",
            "invalid_value",
        ),
        (
            {"filters": put("or", *[compare("eq", "a", 1)] * 200)},
            "Invalid 'filters': expected at most 200 conditions.",
            "filters",
            "invalid_value",
        ),
        ({"colour": 1}, "Unknown parameter: 'colour'.", "colour", "unknown_parameter"),
    ],
)
async def test_a_search_that_cannot_be_is_refused(
    wire: Wire, path: str, body: Json, message: str, param: str, code: str
) -> None:
    sent = body if not body or "query" in body else {"query": "a"} | body
    refusal = await wire.refused("POST", f"{path}/search", sent)
    assert (refusal.status, refusal.message, refusal.param) == (400, message, param)
    assert (refusal.code or "").replace("decimal", "integer") == code


async def test_odd_words_are_only_words(wire: Wire, path: str) -> None:
    for query in (
        "' OR 1=1 --",
        "cat & | ! ( :*",
        "\U0001f408",
        " ",
        "%s %(id)s",
        "\\",
        "a" * 4096,
    ):
        assert (await wire.send("POST", f"{path}/search", {"query": query})).status == 200
        body = {"query": "cat", "filters": compare("eq", query[:64], query[:512])}
        assert (await wire.post(f"{path}/search", body))["data"] == []
