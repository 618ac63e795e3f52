"""file_search in a run: what the model is given, what the client sees, and citations to the letter.

The documents are ingested for real, the model is scripted: it searches, and then it cites the
markers that it was given.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AssistantEventHandler, AsyncAssistantEventHandler
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep

from conftest import Serve
from runs.scenes import BEGUN, CALLS, COMPLETED, MESSAGE, RESUMED, WRITTEN, call_deltas, deltas
from runs.wire import WEATHER, Api, Conversation, Event, Json, names, outputs_for, text_of
from shelf import LARGE_CHUNKS, POLL_EVERY_MS, SMALL_CHUNKS, Archive, Shelf, new_shelf
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEARCH: Any = {"type": "file_search"}
CONTENT: Any = ["step_details.tool_calls[*].file_search.results[*].content"]
FOODS = "Anna likes pizza with olives. Ben likes sushi and green tea."
PETS = "Anna has a parrot called Otto. Ben has no pets but wants an aquarium."
MARKER = re.compile(r"【\d+:\d+†[^【】\n]*】")

SEARCHED = [*CALLS, "run.step.delta", "run.step.completed"]
Said = Callable[[list[str]], Sequence[str | Gate]]


def searching(*queries: str, say: Said, name: str = "file_search") -> Callable[[Json], Reply]:
    """A model that searches once, and then says something with the markers that it was given."""

    def answer(request: Json) -> Reply:
        last = request["messages"][-1]
        if last["role"] != "tool":
            return Reply(tool_calls=[ToolCall(name, {"queries": list(queries)})])
        return Reply(text=say(MARKER.findall(last["content"])))

    return answer


def citing(*queries: str) -> Callable[[Json], Reply]:
    """One that cites the first passage in a marker of its own."""
    return searching(*queries, say=lambda markers: ["Pizza", markers[0], "."])


@pytest_asyncio.fixture(loop_scope="session")
async def api(shelf: Shelf) -> AsyncIterator[Api]:
    async with Api(shelf.address, shelf.client.api_key) as api:
        yield api


async def begin(
    shelf: Shelf,
    documents: dict[str, str] | None = None,
    *,
    question: str = "What does Anna like?",
    store_ids: list[str] | None = None,
    tools: list[Any] | None = None,
    model: str = "scripted",
    instructions: str | None = None,
) -> Conversation:
    """With an assistant that has a store of these documents, or these stores."""
    if documents is not None:
        store_ids = [(await shelf.store(documents)).id]
    assistant = await shelf.client.beta.assistants.create(
        model=model,
        instructions=instructions,
        tools=tools or [SEARCH],
        tool_resources={"file_search": {"vector_store_ids": store_ids or []}},
    )
    return await Conversation.begin(shelf.client, assistant.id, question)


def chats(model: ScriptedModel) -> list[Json]:
    """What the language model was asked, without the requests for embeddings."""
    return [one.body for one in model.requests if one.path.endswith("/chat/completions")]


def tool_outputs(model: ScriptedModel) -> list[str]:
    """All that the model was told by tools, in its last prompt."""
    return [one["content"] for one in chats(model)[-1]["messages"] if one["role"] == "tool"]


async def searched(talk: Conversation, run: Run, **more: Any) -> list[Any]:
    """The results of the run's first search."""
    page = await talk.client.beta.threads.runs.steps.list(
        run.id, thread_id=talk.thread_id, order="asc", **more
    )
    return results_of(page.data[0])


def results_of(step: RunStep) -> list[Any]:
    assert step.step_details.type == "tool_calls"
    [call] = [call for call in step.step_details.tool_calls if call.type == "file_search"]
    return call.file_search.results or []


async def completed(talk: Conversation, **more: Any) -> Run:
    run = await talk.run(**more)
    assert run.status == "completed", run.last_error
    return run


async def last_message(talk: Conversation) -> Message:
    return (await talk.messages())[-1]


class Told:
    """A message as its deltas told it, checked as they come."""

    def __init__(self, events: list[Event]) -> None:
        self.value = ""
        self.annotations: list[Json] = []
        for event in events:
            if event.name == "thread.message.delta":
                [part] = event.data["delta"]["content"]
                assert (part["index"], part["type"]) == (0, "text")
                self._add(part["text"])

    def _add(self, text: Json) -> None:
        annotations = text.get("annotations", [])
        if MARKER.search(text["value"]) and annotations:
            assert MARKER.fullmatch(text["value"])  # whole, and nothing else with it
            [annotation] = annotations
            assert annotation["index"] == len(self.annotations)
            assert annotation["text"] == text["value"]
            assert annotation["start_index"] == len(self.value)
            assert annotation["end_index"] == len(self.value) + len(text["value"])
        self.value += text["value"]
        self.annotations += annotations

    def check(self, stored: Json) -> None:
        """That the finished message says the same, without what belongs to deltas only."""
        assert stored["value"] == self.value
        assert len(stored["annotations"]) == len(self.annotations)
        for said, kept in zip(self.annotations, stored["annotations"], strict=True):
            file_id = said["file_citation"]["file_id"]
            assert kept == {
                "type": "file_citation",
                "text": said["text"],
                "start_index": said["start_index"],
                "end_index": said["end_index"],
                "file_citation": {"file_id": file_id},
            }
            # Code point by code point, as Python's strings have them.
            assert self.value[kept["start_index"] : kept["end_index"]] == kept["text"]


async def streamed(api: Api, talk: Conversation, query: str = "", **more: Any) -> list[Event]:
    async with api.stream(talk.runs_path + query, talk.body | more) as stream:
        return await stream.all()


def finished(events: list[Event]) -> Json:
    """The text of the message at its end."""
    [message] = [event.data for event in events if event.name == "thread.message.completed"]
    [part] = message["content"]
    text: Json = part["text"]
    return text


# --- the stream ---


async def test_the_events_are_those_of_the_original(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = citing("Anna likes")
    events = await streamed(api, talk)
    assert names(events) == [*BEGUN, *SEARCHED, *MESSAGE, *deltas(3), *WRITTEN, *COMPLETED]
    created, _, delta, done = (event.data for event in events[3:7])
    assert created["step_details"] == {"type": "tool_calls", "tool_calls": []}
    assert delta["delta"]["step_details"]["tool_calls"] == [
        {
            "index": 0,
            "id": done["step_details"]["tool_calls"][0]["id"],
            "type": "file_search",
            "file_search": {
                "ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.0},
                "results": [],
            },
        }
    ]
    [call] = done["step_details"]["tool_calls"]
    assert call["file_search"]["ranking_options"]["ranker"] == "default_2024_08_21"
    [result] = call["file_search"]["results"]
    assert set(result) == {"file_id", "file_name", "score", "attributes"}
    assert (result["file_name"], result["attributes"]) == ("foods.txt", {})
    assert 0 < result["score"] <= 1
    told = Told(events)
    told.check(finished(events))
    [annotation] = told.annotations
    assert annotation["file_citation"] == {"file_id": result["file_id"], "quote": FOODS}
    assert annotation["text"] == "【2:0†foods.txt】"
    deltas_of_text = [
        event.data["delta"]["content"][0]["text"]
        for event in events
        if event.name == "thread.message.delta"
    ]
    assert deltas_of_text[0] == {"value": "Pizza", "annotations": []}
    assert deltas_of_text[2] == {"value": "."}


async def test_the_markers_first_number_is_the_place_in_the_context(
    shelf: Shelf,
) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS}, instructions="Be brief.")
    await talk.say("Quickly!")
    shelf.model.answer = citing("Anna")
    await completed(talk)
    sent = chats(shelf.model)[-1]["messages"]
    assert [one["role"] for one in sent] == ["system", "user", "user", "assistant", "tool"]
    assert sent[4]["content"] == f"【4:0†foods.txt】\n{FOODS}"
    assert sent[3]["tool_calls"][0]["id"] == sent[4]["tool_call_id"]
    assert text_of(await last_message(talk)) == "Pizza【4:0†foods.txt】."


async def test_a_run_that_is_polled_has_the_same_message(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = citing("Anna likes")
    stored = finished(await streamed(api, talk))
    polled = await Conversation.begin(shelf.client, talk.assistant_id, "What does Anna like?")
    await completed(polled)
    assert (await last_message(polled)).content[0].to_dict()["text"] == stored


# --- results ---


async def test_the_content_of_results_is_shown_on_demand_only(shelf: Shelf, api: Api) -> None:
    store = await shelf.client.vector_stores.create()
    attributes = {"year": 2024.0, "kind": "list", "is_new": True}
    await shelf.put(store.id, "foods.txt", FOODS, attributes=attributes)
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.answer = citing("Anna likes")
    events = await streamed(api, talk, f"?include[]={CONTENT[0]}")
    run_id, step = events[0].data["id"], events[6].data
    with_content = {"type": "text", "text": FOODS}
    [result] = step["step_details"]["tool_calls"][0]["file_search"]["results"]
    assert result["content"] == [with_content]
    assert result["attributes"] == attributes
    bare = {name: value for name, value in result.items() if name != "content"}
    path = f"{talk.runs_path}/{run_id}/steps"
    for query, expected in (("", bare), (f"?include[]={CONTENT[0]}", result)):
        for place in (f"{path}/{step['id']}{query}", f"{path}{query}"):
            _, found = await api.get(place)
            shown = found["data"][-1] if "data" in found else found
            assert shown["step_details"]["tool_calls"][0]["file_search"]["results"] == [expected]
    run = await talk.look(run_id)
    [typed] = await searched(talk, run, include=CONTENT)
    assert typed.content[0].text == FOODS
    # What was found is kept, whatever becomes of the file.
    await shelf.client.files.delete(result["file_id"])
    [typed] = await searched(talk, run, include=CONTENT)
    assert typed.content[0].text == FOODS


async def test_a_stream_shows_no_content_unless_it_was_asked_for(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = citing("Anna likes")
    events = await streamed(api, talk)
    assert FOODS not in json.dumps(events[6].data)


LONG = "\n\n".join(f"Topic {number}. " + f"word{number} " * 45 for number in range(30))


@pytest_asyncio.fixture(loop_scope="session")
async def long_store(shelf: Shelf) -> str:
    """More than thirty chunks in one file."""
    store = await shelf.client.vector_stores.create()
    await shelf.put(store.id, "long.txt", LONG, chunking_strategy=SMALL_CHUNKS)
    return store.id


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("scripted", {}, 20),
        ("gpt-3.5-turbo", {}, 5),
        ("gpt-3.5-turbo", {"max_num_results": 7}, 7),
        ("scripted", {"max_num_results": 3}, 3),
        ("scripted", {"ranking_options": {"score_threshold": 0.0}}, 20),
        ("scripted", {"ranking_options": {"score_threshold": 0.7, "ranker": "auto"}}, 1),
    ],
)
async def test_so_many_results_are_given(
    shelf: Shelf, long_store: str, model: str, options: Json, expected: int
) -> None:
    tool = SEARCH | {"file_search": options} if options else SEARCH
    talk = await begin(shelf, store_ids=[long_store], tools=[tool], model=model)
    shelf.model.answer = citing("topic word7")
    run = await completed(talk)
    results = await searched(talk, run)
    assert len(results) == expected
    [output] = tool_outputs(shelf.model)
    assert len(MARKER.findall(output)) == expected
    assert [marker.split("†")[0].split(":")[1] for marker in MARKER.findall(output)] == [
        str(n) for n in range(expected)
    ]
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    threshold = options.get("ranking_options", {}).get("score_threshold", 0)
    assert all(threshold <= score <= 1 for score in scores)


@pytest.mark.parametrize(
    ("model", "chunks"), [("scripted", 3), ("gpt-3.5-turbo", 1)], ids=["16,000", "4,000"]
)
async def test_the_model_is_given_so_many_tokens(shelf: Shelf, model: str, chunks: int) -> None:
    store = await shelf.client.vector_stores.create()
    text = " ".join(f"apple{number % 7}" for number in range(12_000))
    await shelf.put(store.id, "apples.txt", text, chunking_strategy=LARGE_CHUNKS)
    talk = await begin(shelf, store_ids=[store.id], model=model)
    shelf.model.answer = citing("apple1")
    run = await completed(talk)
    assert len(await searched(talk, run)) == chunks  # the first one in any case
    [output] = tool_outputs(shelf.model)
    assert len(MARKER.findall(output)) == chunks


@pytest.mark.asyncio(loop_scope="function")
async def test_a_model_with_a_small_window_is_given_less(
    serve: Serve, model: ScriptedModel
) -> None:
    """It searches again and again, and all of it still fits."""

    def answer(request: Json) -> Reply:
        if sum(one["role"] == "tool" for one in request["messages"]) < 3:
            return Reply(tool_calls=[ToolCall("file_search", {"queries": ["topic word7"]})])
        return Reply(text="Enough.")

    model.answer = answer
    async with (
        serve(context_window_tokens=8_192) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        store = await client.vector_stores.create()
        await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=("long.txt", " ".join(f"apple{n % 7} topic" for n in range(4_000)).encode()),
            poll_interval_ms=POLL_EVERY_MS,
        )
        assistant = await client.beta.assistants.create(
            model="scripted",
            tools=[SEARCH],
            tool_resources={"file_search": {"vector_store_ids": [store.id]}},
        )
        talk = await Conversation.begin(client, assistant.id)
        run = await completed(talk)
        assert len(await searched(talk, run)) == 2  # of 800 tokens each


# --- what is searched ---


async def test_the_stores_of_assistant_and_thread_are_searched_together(
    shelf: Shelf,
) -> None:
    of_thread = await shelf.store({"pets.txt": PETS})
    talk = await begin(shelf, {"foods.txt": FOODS})
    await talk.client.beta.threads.update(
        talk.thread_id, tool_resources={"file_search": {"vector_store_ids": [of_thread.id]}}
    )
    shelf.model.answer = searching("Anna", say=lambda markers: ["Both: ", *sorted(markers)])
    run = await completed(talk)
    assert {result.file_name for result in await searched(talk, run)} == {"foods.txt", "pets.txt"}
    [part] = (await last_message(talk)).content
    assert part.type == "text"
    assert [note.text.split("†")[1] for note in part.text.annotations] in (
        ["foods.txt】", "pets.txt】"],
        ["pets.txt】", "foods.txt】"],
    )


async def test_several_queries_are_one_search(shelf: Shelf) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS, "pets.txt": PETS})
    shelf.model.answer = searching("pizza", "parrot", say=lambda markers: ["".join(markers)])
    run = await completed(talk)
    found = [result.file_name for result in await searched(talk, run)]
    assert sorted(found) == ["foods.txt", "pets.txt"]  # each once
    embedded = [one.body for one in shelf.model.requests if one.path.endswith("/embeddings")]
    assert embedded[-1]["input"] == ["pizza", "parrot"]


async def test_a_second_search_has_markers_of_its_own(shelf: Shelf) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS, "pets.txt": PETS})

    def answer(request: Json) -> Reply:
        outputs = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if len(outputs) < 2:
            query = ["pizza", "parrot"][len(outputs)]
            return Reply(tool_calls=[ToolCall("file_search", {"queries": [query]})])
        return Reply(text=["".join(MARKER.findall("".join(outputs)))])

    shelf.model.answer = answer
    run = await completed(talk)
    steps = await talk.steps(run)
    assert [step.type for step in steps] == ["tool_calls", "tool_calls", "message_creation"]
    [part] = (await last_message(talk)).content
    assert part.type == "text"
    texts = [note.text for note in part.text.annotations]
    assert len(set(texts)) == len(texts) == 4
    assert "".join(texts) == part.text.value
    assert run.usage is not None
    assert run.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage)
    assert all(step.usage for step in steps)


async def test_two_searches_in_one_turn_have_two_first_numbers(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS, "pets.txt": PETS})

    def answer(request: Json) -> Reply:
        outputs = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not outputs:
            queries = ({"queries": ["pizza"]}, {"queries": ["parrot"]})
            return Reply(tool_calls=[ToolCall("file_search", query) for query in queries])
        return Reply(text=MARKER.findall("".join(outputs)))

    shelf.model.answer = answer
    events = await streamed(api, talk)
    searched_twice = [*CALLS, *call_deltas(2), "run.step.completed"]
    assert names(events) == [*BEGUN, *searched_twice, *MESSAGE, *deltas(4), *WRITTEN, *COMPLETED]
    Told(events).check(finished(events))
    texts = [note["text"] for note in finished(events)["annotations"]]
    assert {text.split(":")[0] for text in texts} == {"【2", "【3"}
    assert len(set(texts)) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{",
        "null",
        "7",
        '{"queries": 7}',
        '{"queries": []}',
        '{"queries": ["", "  ", null, 3]}',
        '{"search": "pizza"}',
        '{"queries": {"a": "pizza"}}',
    ],
)
async def test_the_model_is_told_what_it_did_wrong(shelf: Shelf, arguments: str) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = lambda request: (
        Reply(text=["I see."])
        if request["messages"][-1]["role"] == "tool"
        else Reply(tool_calls=[ToolCall("file_search", arguments)])
    )
    run = await completed(talk)
    assert await searched(talk, run) == []
    assert tool_outputs(shelf.model) == ['Say what to look for: {"queries": ["..."]}.']
    assert text_of(await last_message(talk)) == "I see."


@pytest.mark.parametrize(
    "arguments",
    [
        '{"queries": "pizza"}',
        '{"query": "pizza"}',
        '{"query": ["pizza"]}',
        '["pizza"]',
        '"pizza"',
        '{"queries": ["pizza\\u0000", "\\n"]}',
        json.dumps({"queries": ["pizza"] * 100}),
        json.dumps({"queries": ["pizza " * 5_000]}),
        json.dumps({"queries": ["' OR 1=1; -- & | ! <-> :* pizza \\"]}),
    ],
)
async def test_what_can_be_understood_is_searched(shelf: Shelf, arguments: str) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = lambda request: (
        Reply(text=["I see."])
        if request["messages"][-1]["role"] == "tool"
        else Reply(tool_calls=[ToolCall("file_search", arguments)])
    )
    run = await completed(talk)
    assert [result.file_name for result in await searched(talk, run)] == ["foods.txt"]


async def test_without_a_store_the_model_is_told(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf)
    shelf.model.answer = searching("pizza", say=lambda markers: ["Nothing", " there."])
    events = await streamed(api, talk)
    assert names(events) == [*BEGUN, *SEARCHED, *MESSAGE, *deltas(2), *WRITTEN, *COMPLETED]
    assert tool_outputs(shelf.model) == ["There are no files to search."]
    assert finished(events) == {"value": "Nothing there.", "annotations": []}


async def test_an_empty_store_has_nothing(shelf: Shelf) -> None:
    talk = await begin(shelf, {})
    shelf.model.answer = searching("pizza", say=lambda markers: ["Nothing."])
    run = await completed(talk)
    assert tool_outputs(shelf.model) == ["Nothing was found."]
    assert await searched(talk, run) == []


async def test_a_store_that_was_deleted_is_simply_not_found(shelf: Shelf) -> None:
    gone = await shelf.store({"pets.txt": PETS})
    talk = await begin(shelf, store_ids=[gone.id])
    await shelf.client.vector_stores.delete(gone.id)
    shelf.model.answer = searching("parrot", say=lambda markers: ["Nothing."])
    await completed(talk)
    assert tool_outputs(shelf.model) == ["There are no files to search."]


async def test_a_file_that_was_deleted_is_not_found(shelf: Shelf) -> None:
    store = await shelf.store({"foods.txt": FOODS, "pets.txt": PETS})
    [pets] = [key for key, name in (await shelf.names(store.id)).items() if name == "pets.txt"]
    await shelf.client.files.delete(pets)
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.answer = searching("Anna parrot", say=lambda markers: ["".join(markers)])
    run = await completed(talk)
    assert [result.file_name for result in await searched(talk, run)] == ["foods.txt"]


async def expire(shelf: Shelf, store_id: str) -> None:
    await shelf.client.vector_stores.update(
        store_id, expires_after={"anchor": "last_active_at", "days": 1}
    )
    await shelf.execute(
        "UPDATE vector_stores SET last_active_at = last_active_at - 86400,"
        " expires_at = expires_at - 86400 WHERE id = %s",
        store_id,
    )


async def test_an_expired_store_of_the_thread_fails_the_run(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf)
    store = await shelf.store({"pets.txt": PETS})
    await talk.client.beta.threads.update(
        talk.thread_id, tool_resources={"file_search": {"vector_store_ids": [store.id]}}
    )
    await expire(shelf, store.id)
    events = await streamed(api, talk)
    assert names(events) == [*BEGUN, "run.failed", "done"]
    assert events[-2].data["last_error"] == {
        "code": "server_error",
        "message": f"Vector store '{store.id}' has expired",
    }
    assert chats(shelf.model) == []
    await talk.say("The thread is free.")


async def test_an_expired_store_of_the_assistant_is_passed_over(shelf: Shelf) -> None:
    store = await shelf.store({"pets.txt": PETS})
    talk = await begin(shelf, store_ids=[store.id])
    await expire(shelf, store.id)
    shelf.model.answer = searching("parrot", say=lambda markers: ["Nothing."])
    await completed(talk)
    assert tool_outputs(shelf.model) == ["There are no files to search."]


async def test_a_run_is_activity_of_the_store(shelf: Shelf) -> None:
    store = await shelf.store({"pets.txt": PETS})
    talk = await begin(shelf, store_ids=[store.id])
    await shelf.execute(
        "UPDATE vector_stores SET last_active_at = last_active_at - 5000 WHERE id = %s", store.id
    )
    shelf.model.answer = searching("parrot", say=lambda markers: ["Otto."])
    run = await completed(talk)
    used = await shelf.client.vector_stores.retrieve(store.id)
    assert used.last_active_at is not None
    assert used.last_active_at >= run.created_at


async def test_projects_never_see_each_others_stores(shelf: Shelf, archive: Archive) -> None:
    store = await shelf.store({"foods.txt": FOODS})
    async with new_shelf(archive) as other:
        with pytest.raises(openai.NotFoundError):
            await begin(other, store_ids=[store.id])
        # Not even where an assistant names one all the same.
        talk = await begin(other, {"pets.txt": PETS})
        await other.execute(
            "UPDATE assistants SET tool_resources = %s::json WHERE id = %s",
            json.dumps({"file_search": {"vector_store_ids": [store.id]}}),
            talk.assistant_id,
        )
        other.model.answer = searching("Anna likes", say=lambda markers: ["Nothing."])
        await completed(talk)
        assert tool_outputs(other.model) == ["There are no files to search."]


# --- files that were just attached ---


def attached(file_id: str) -> list[Any]:
    return [{"file_id": file_id, "tools": [SEARCH]}]


async def in_a_message(shelf: Shelf, talk: Conversation, file_id: str) -> Run:
    await talk.say("Look here.", attachments=attached(file_id))
    return await talk.start()


async def in_an_additional_message(shelf: Shelf, talk: Conversation, file_id: str) -> Run:
    message = {"role": "user", "content": "Look here.", "attachments": attached(file_id)}
    return await talk.start(additional_messages=[message])


async def with_a_new_thread(shelf: Shelf, talk: Conversation, file_id: str) -> Run:
    store: Any = {"file_ids": [file_id]}
    run = await shelf.client.beta.threads.create_and_run(
        assistant_id=talk.assistant_id,
        thread={
            "messages": [{"role": "user", "content": "Look here."}],
            "tool_resources": {"file_search": {"vector_stores": [store]}},
        },
    )
    talk.thread_id = run.thread_id
    return run


async def with_a_new_message(shelf: Shelf, talk: Conversation, file_id: str) -> Run:
    run = await shelf.client.beta.threads.create_and_run(
        assistant_id=talk.assistant_id,
        thread={
            "messages": [
                {"role": "user", "content": "Look here.", "attachments": attached(file_id)}
            ]
        },
    )
    talk.thread_id = run.thread_id
    return run


@pytest.mark.parametrize(
    "begun", [in_a_message, in_an_additional_message, with_a_new_thread, with_a_new_message]
)
async def test_a_file_just_attached_is_found(shelf: Shelf, begun: Any) -> None:
    """However long it takes to read: here the vectors come late."""
    talk = await begin(shelf, {"foods.txt": FOODS})
    file_id = await shelf.upload("pets.txt", PETS)
    gate = Gate()
    shelf.model.before_embeddings = lambda body: (
        Reply(gate=gate) if body["input"] == [PETS] else None
    )
    shelf.model.answer = searching("Anna has a parrot", say=lambda markers: ["".join(markers)])
    run = await begun(shelf, talk, file_id)
    await talk.reaches(run, "in_progress")
    await asyncio.sleep(0.5)
    assert chats(shelf.model) == []
    assert (await talk.look(run.id)).status == "in_progress"
    gate.set()
    run = await talk.stopped(run)
    assert run.status == "completed", run.last_error
    assert {one.file_name for one in await searched(talk, run)} == {"foods.txt", "pets.txt"}
    part = (await last_message(talk)).content[0]
    assert part.type == "text"
    cited = [note for note in part.text.annotations if "pets.txt" in note.text]
    assert [note.to_dict()["file_citation"] for note in cited] == [{"file_id": file_id}]


async def test_a_run_that_waits_for_files_can_be_cancelled(shelf: Shelf) -> None:
    talk = await begin(shelf)
    gate = Gate()
    shelf.model.before_embeddings = lambda body: Reply(gate=gate)
    await talk.say("Look.", attachments=attached(await shelf.upload("pets.txt", PETS)))
    run = await talk.start()
    await asyncio.sleep(0.1)
    await talk.cancel(run)
    assert (await talk.stopped(run)).status == "cancelled"
    assert chats(shelf.model) == []
    gate.set()


async def test_a_file_that_cannot_be_read_is_not_waited_for(shelf: Shelf) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    await talk.say("Look.", attachments=attached(await shelf.upload("bad.pdf", "no PDF")))
    shelf.model.answer = searching("Anna", say=lambda markers: ["".join(markers)])
    run = await completed(talk)
    assert [one.file_name for one in await searched(talk, run)] == ["foods.txt"]


async def test_the_files_of_the_assistants_store_are_not_waited_for(shelf: Shelf) -> None:
    store = await shelf.client.vector_stores.create()
    gate = Gate()
    shelf.model.before_embeddings = lambda body: (
        Reply(gate=gate) if body["input"] == [PETS] else None
    )
    file_id = await shelf.upload("pets.txt", PETS)
    await shelf.client.vector_stores.files.create(store.id, file_id=file_id)
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.answer = searching("parrot", say=lambda markers: ["Nothing yet."])
    await completed(talk)
    assert tool_outputs(shelf.model) == ["Nothing was found."]
    gate.set()


# --- citations ---


async def cited(shelf: Shelf, api: Api, say: Said) -> tuple[Told, list[Event]]:
    """What is streamed of that answer, checked against what is stored, and against a run that
    is polled."""
    talk = await begin(shelf, {"foods.txt": FOODS, "pets 🦜.txt": PETS})
    shelf.model.answer = searching("Anna", say=say)
    events = await streamed(api, talk)
    assert events[-2].name == "thread.run.completed"
    told = Told(events)
    stored = (await last_message(talk)).content[0].to_dict()["text"]
    assert isinstance(stored, dict)
    assert stored == finished(events)
    told.check(stored)
    polled = await Conversation.begin(shelf.client, talk.assistant_id, "What does Anna like?")
    await completed(polled)
    assert (await last_message(polled)).content[0].to_dict()["text"] == stored
    return told, events


async def test_a_marker_cut_anywhere_arrives_whole(shelf: Shelf, api: Api) -> None:
    """The same sentence again and again, cut at the next place each time."""

    def say(markers: list[str]) -> list[str]:
        sentence = f"Ünï 🦊 {markers[0]} and【 "
        return [
            piece
            for place in range(1, len(sentence))
            for piece in (sentence[:place], sentence[place:])
        ]

    told, _ = await cited(shelf, api, say)
    assert len(told.annotations) == told.value.count("†") > 20
    assert len({note["text"] for note in told.annotations}) == 1


async def test_an_answer_that_comes_byte_by_byte(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})

    def answer(request: Json) -> Reply:
        last = request["messages"][-1]
        if last["role"] != "tool":
            return Reply(tool_calls=[ToolCall("file_search", {"queries": ["Anna"]})])
        [marker] = MARKER.findall(last["content"])
        chunk = {
            "choices": [{"index": 0, "delta": {"content": f"🦊{marker}!"}, "finish_reason": None}]
        }
        done = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        events = "".join(
            f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in (chunk, done)
        )
        body = f"{events}data: [DONE]\n\n".encode()
        return Reply(raw=[body[at : at + 1] for at in range(len(body))])

    shelf.model.answer = answer
    events = await streamed(api, talk)
    told = Told(events)
    told.check(finished(events))
    assert [note["start_index"] for note in told.annotations] == [1]
    assert told.value == "🦊【2:0†foods.txt】!"


async def test_each_occurrence_is_an_annotation(shelf: Shelf, api: Api) -> None:
    def say(markers: list[str]) -> list[str]:
        first, second = sorted(markers)
        return [f"A{first}B{second}{first}", f"{first[:3]}", f"{first[3:]}C"]

    told, _ = await cited(shelf, api, say)
    texts = [note["text"] for note in told.annotations]
    assert len(texts) == 4
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert [note["index"] for note in told.annotations] == [0, 1, 2, 3]
    quotes = {note["file_citation"]["quote"] for note in told.annotations}
    assert quotes == {FOODS, PETS}


async def test_other_uses_of_the_brackets_stay_as_they_are(shelf: Shelf, api: Api) -> None:
    texts = [
        "【note】 ",
        "【【 】】",
        "【4:",
        "x】【",
        "\n【1:0†two\nlines】",
        "【999:0†foods.txt】",  # made up
        "【2:7†foods.txt】",
        "【2:0†else.txt】",
        "🦜† 【2:0†foods.txt",  # without an end
    ]
    told, _ = await cited(shelf, api, lambda markers: texts)
    assert told.annotations == []
    assert told.value == "".join(texts)


async def test_a_marker_that_the_end_cuts_off_is_text(shelf: Shelf, api: Api) -> None:
    def say(markers: list[str]) -> list[str]:
        return [markers[0], " and ", markers[0][:-1]]

    told, _ = await cited(shelf, api, say)
    [annotation] = told.annotations
    marker = annotation["text"]
    assert told.value == f"{marker} and {marker[:-1]}"


async def test_text_is_held_back_no_longer_than_it_must_be(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    gate = Gate()
    shelf.model.answer = searching("Anna", say=lambda markers: ["Now 【wait", gate, " a bit】"])
    async with api.stream(talk.runs_path, talk.body) as stream:
        delta = await stream.until("thread.message.delta")
        assert delta.data["delta"]["content"][0]["text"]["value"] == "Now 【wait"
        gate.set()
        await stream.all()


async def test_what_is_held_back_is_there_when_the_run_is_cancelled(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = searching(
        "Anna", say=lambda markers: ["Pizza", markers[0], markers[0][:5], Gate()]
    )
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        for _ in range(2):
            await stream.until("thread.message.delta")
        await talk.cancel(run["id"])
        events = await stream.all()
    ending = ["run.cancelling", "message.delta", "message.incomplete", "run.step.cancelled"]
    assert names(events)[-6:] == [*ending, "run.cancelled", "done"]
    stored = (await last_message(talk)).content[0].to_dict()["text"]
    assert isinstance(stored, dict)
    assert stored["value"] == "Pizza【2:0†foods.txt】【2:0†"
    assert len(Told(events).annotations) == len(stored["annotations"]) == 1


async def test_a_later_run_does_not_cite_what_it_was_not_given(shelf: Shelf) -> None:
    """The marker stands in the thread, and the model repeats it without a search."""
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = citing("Anna")
    await completed(talk)
    shelf.model.answer = lambda request: Reply(text=[request["messages"][1]["content"]])
    await talk.say("Say it again.")
    await completed(talk)
    first, again = [message for message in await talk.messages() if message.role == "assistant"]
    assert text_of(first) == text_of(again) == "Pizza【2:0†foods.txt】."
    assert first.content[0].type == again.content[0].type == "text"
    assert (len(first.content[0].text.annotations), again.content[0].text.annotations) == (1, [])


@pytest.mark.parametrize("filename", ["a 【b】.txt", "new\nline.txt", "†:†.txt", "üñí 🦊.txt"])
async def test_any_name_of_a_file_can_be_cited(shelf: Shelf, api: Api, filename: str) -> None:
    store = await shelf.client.vector_stores.create()
    file = await shelf.put(store.id, "plain.txt", FOODS)
    await shelf.execute("UPDATE files SET filename = %s WHERE id = %s", filename, file.id)
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.answer = searching("Anna", say=lambda markers: ["See ", *markers[0]])
    events = await streamed(api, talk)
    told = Told(events)
    told.check(finished(events))
    [annotation] = told.annotations
    assert annotation["file_citation"]["file_id"] == file.id
    assert annotation["start_index"] == 4


# --- the SDK's helpers ---


class AsyncHandler(AsyncAssistantEventHandler):
    def __init__(self) -> None:
        super().__init__()
        self.snapshots: list[Message] = []

    async def on_message_done(self, message: Message) -> None:
        assert self.current_message_snapshot is not None
        self.snapshots.append(self.current_message_snapshot)


class SyncHandler(AssistantEventHandler):
    def __init__(self) -> None:
        super().__init__()
        self.snapshots: list[Message] = []

    def on_message_done(self, message: Message) -> None:
        assert self.current_message_snapshot is not None
        self.snapshots.append(self.current_message_snapshot)


async def _read_async(shelf: Shelf, talk: Conversation) -> tuple[list[Message], list[Message]]:
    handler = AsyncHandler()
    async with shelf.client.beta.threads.runs.stream(
        thread_id=talk.thread_id, assistant_id=talk.assistant_id, event_handler=handler
    ) as stream:
        await stream.until_done()
        return handler.snapshots, await stream.get_final_messages()


async def _read_sync(shelf: Shelf, talk: Conversation) -> tuple[list[Message], list[Message]]:
    return await asyncio.to_thread(_read_in_thread, shelf, talk)


def _read_in_thread(shelf: Shelf, talk: Conversation) -> tuple[list[Message], list[Message]]:
    handler = SyncHandler()
    with (
        openai.OpenAI(
            api_key=shelf.client.api_key, base_url=f"{shelf.address}/v1", max_retries=0
        ) as client,
        client.beta.threads.runs.stream(
            thread_id=talk.thread_id, assistant_id=talk.assistant_id, event_handler=handler
        ) as stream,
    ):
        stream.until_done()
        return handler.snapshots, stream.get_final_messages()


@pytest.mark.parametrize("read", [_read_async, _read_sync])
async def test_the_helpers_put_the_stored_message_together(shelf: Shelf, read: Any) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS, "pets.txt": PETS})
    shelf.model.answer = searching(
        "Anna",
        say=lambda markers: [
            "🍕 ",
            markers[0][:4],
            markers[0][4:],
            " and ",
            markers[1],
            markers[0],
        ],
    )
    [snapshot], [final] = await read(shelf, talk)
    [part] = snapshot.content
    assert part.type == "text"
    assert len(part.text.annotations) == 3
    for annotation in part.text.annotations:
        start, end = annotation.start_index, annotation.end_index
        assert part.text.value[start:end] == annotation.text
    stored = await last_message(talk)
    assert final.to_dict() == stored.to_dict()
    assert snapshot.to_dict() == stored.to_dict()


# --- beside functions ---


def both(say: Said) -> Callable[[Json], Reply]:
    """A model that calls a function and searches, in one turn."""

    def answer(request: Json) -> Reply:
        outputs = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if outputs:
            return Reply(text=say(MARKER.findall("".join(outputs))))
        calls = [
            ToolCall("get_weather", {"city": "Paris"}, id="call_weather"),
            ToolCall("file_search", {"queries": ["Anna likes"]}, id="call_search"),
            ToolCall("get_weather", {"city": "Rome"}, id="call_rome"),
        ]
        return Reply(text=["Wait."], tool_calls=calls)

    return answer


async def test_functions_in_the_same_turn_wait_for_the_search(shelf: Shelf, api: Api) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS}, tools=[WEATHER, SEARCH])
    shelf.model.answer = both(lambda markers: ["Sunny", markers[0]])
    events = await streamed(api, talk)
    before = [*MESSAGE, *deltas(1), *WRITTEN]
    assert names(events) == [
        *BEGUN,
        *before,
        *CALLS,
        *call_deltas(5),
        "run.requires_action",
        "done",
    ]
    run = await talk.look(events[-2].data["id"])
    assert run.required_action is not None
    waiting = run.required_action.submit_tool_outputs.tool_calls
    assert [call.id for call in waiting] == ["call_weather", "call_rome"]
    step = (await talk.steps(run))[-1]
    assert (step.status, step.usage) == ("in_progress", None)
    assert [result.file_name for result in results_of(step)] == ["foods.txt"]
    # An output for our own call is one too many.
    status, refusal = await api.post(
        f"{talk.runs_path}/{run.id}/submit_tool_outputs",
        {"tool_outputs": [*outputs_for(run), {"tool_call_id": "call_search", "output": ""}]},
    )
    assert status == 400
    assert refusal["error"]["message"] == (
        "Expected tool outputs for call_ids ['call_weather', 'call_rome'],"
        " got ['call_weather', 'call_rome', 'call_search']"
    )
    async with api.stream(
        f"{talk.runs_path}/{run.id}/submit_tool_outputs",
        {"tool_outputs": outputs_for(run, "12 degrees", "20 degrees")},
    ) as stream:
        events = await stream.all()
    assert names(events) == [*RESUMED, *MESSAGE, *deltas(2), *WRITTEN, *COMPLETED]
    told = Told(events)
    told.check(finished(events))
    assert len(told.annotations) == 1
    [waited] = [event.data for event in events if event.data != "[DONE]"][:1]
    calls = waited["step_details"]["tool_calls"]
    assert [call["type"] for call in calls] == ["function", "file_search", "function"]
    assert [call["function"]["output"] for call in calls[::2]] == ["12 degrees", "20 degrees"]
    assert [result["file_name"] for result in calls[1]["file_search"]["results"]] == ["foods.txt"]
    assert FOODS not in json.dumps(events[0].data)
    sent = chats(shelf.model)[-1]["messages"]
    assert [one.get("tool_call_id") for one in sent[-3:]] == [
        "call_weather",
        "call_search",
        "call_rome",
    ]
    assert sent[-4]["content"] == "Wait."
    assert [call["id"] for call in sent[-4]["tool_calls"]] == [
        "call_weather",
        "call_search",
        "call_rome",
    ]
    ended = await talk.look(run.id)
    assert ended.usage is not None
    steps = await talk.steps(run)
    assert [step.type for step in steps] == ["message_creation", "tool_calls", "message_creation"]
    assert ended.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage)
    assert [result.content[0].text for result in await _of_calls(talk, run)] == [FOODS]


async def _of_calls(talk: Conversation, run: Run) -> list[Any]:
    page = await talk.client.beta.threads.runs.steps.list(
        run.id, thread_id=talk.thread_id, order="asc", include=CONTENT
    )
    return results_of(page.data[1])


async def test_a_function_that_is_named_as_the_tool(shelf: Shelf) -> None:
    """The client's keeps its name; ours gives way."""
    theirs = {"type": "function", "function": {"name": "file_search", "parameters": {}}}
    talk = await begin(shelf, {"foods.txt": FOODS}, tools=[theirs, SEARCH])

    def answer(request: Json) -> Reply:
        outputs = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if not outputs:
            assert [tool["function"]["name"] for tool in request["tools"]] == [
                "file_search",
                "threadmill_file_search",
            ]
            return Reply(tool_calls=[ToolCall("file_search", {"theirs": 1})])
        if len(outputs) == 1:
            ours = ToolCall("threadmill_file_search", {"queries": ["Anna"]})
            return Reply(tool_calls=[ours])
        return Reply(text=["Pizza", MARKER.findall(outputs[1])[0]])

    shelf.model.answer = answer
    run = await talk.run()
    assert run.status == "requires_action"
    assert run.required_action is not None
    [call] = run.required_action.submit_tool_outputs.tool_calls
    assert (call.function.name, call.function.arguments) == ("file_search", '{"theirs": 1}')
    await talk.answer(run, "from the client")
    run = await talk.stopped(run)
    assert run.status == "completed", run.last_error
    assert tool_outputs(shelf.model)[0] == "from the client"
    called = [
        call["function"]["name"]
        for message in chats(shelf.model)[-1]["messages"]
        for call in message.get("tool_calls", [])
    ]
    assert called == ["file_search", "threadmill_file_search"]
    steps = await talk.steps(run)
    assert [result.file_name for result in results_of(steps[1])] == ["foods.txt"]
    assert text_of(await last_message(talk)).startswith("Pizza【")


@pytest.mark.parametrize("choice", [SEARCH, "required"])
async def test_a_forced_search_is_forced_once(shelf: Shelf, choice: Any) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS}, tools=[WEATHER, SEARCH])
    shelf.model.answer = citing("Anna")
    run = await completed(talk, tool_choice=choice)
    first, second = chats(shelf.model)
    named = {"type": "function", "function": {"name": "file_search"}}
    assert first["tool_choice"] == ("required" if choice == "required" else named)
    assert "tool_choice" not in second
    assert [tool["function"]["name"] for tool in first["tools"]] == ["get_weather", "file_search"]
    assert run.to_dict()["tool_choice"] == choice


async def test_no_tool_is_used_where_none_is_wanted(shelf: Shelf) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = lambda request: Reply(text=["No."])
    await completed(talk, tool_choice="none")
    assert chats(shelf.model)[0]["tool_choice"] == "none"


# --- what is kept for those who look ---


async def test_the_request_of_a_step_can_be_seen_with_the_tools_output(
    shelf: Shelf, api: Api
) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.answer = citing("Anna")
    run = await completed(talk)
    search, message = await talk.steps(run)
    path = f"{talk.runs_path}/{run.id}/steps"
    _, first = await api.get(f"{path}/{search.id}/request")
    _, second = await api.get(f"{path}/{message.id}/request")
    assert first["timings"]["tools_ms"] > 0
    assert second["timings"]["tools_ms"] is None
    assert first["finish_reason"] == "tool_calls"
    asked = [{name: body[name] for name in ("messages", "tools")} for body in chats(shelf.model)]
    for told, sent in zip((first, second), asked, strict=True):
        assert told["request"]["messages"] == sent["messages"]
        assert told["request"]["tools"] == sent["tools"]
    assert second["request"]["messages"][-1]["content"] == f"【2:0†foods.txt】\n{FOODS}"
    assert search.usage is not None
    assert message.usage is not None
    assert run.usage is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        parts = [getattr(step.usage, name) for step in (search, message)]
        assert getattr(run.usage, name) == sum(parts)


async def test_embeddings_that_fail_leave_the_words(shelf: Shelf) -> None:
    talk = await begin(shelf, {"foods.txt": FOODS})
    shelf.model.before_embeddings = lambda body: Reply(status=400)
    shelf.model.answer = citing("pizza")
    run = await completed(talk)
    assert [result.file_name for result in await searched(talk, run)] == ["foods.txt"]


async def test_a_search_that_cannot_be_made_fails_the_run(shelf: Shelf, api: Api) -> None:
    store = await shelf.store({"foods.txt": FOODS}, extra_body={"search": {"mode": "vector"}})
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.before_embeddings = lambda body: Reply(status=400)
    shelf.model.answer = citing("pizza")
    events = await streamed(api, talk)
    searched_in_vain = [*CALLS, "run.step.delta", "run.step.failed"]
    assert names(events) == [*BEGUN, *searched_in_vain, "run.failed", "done"]
    assert events[-2].data["last_error"] == {
        "code": "server_error",
        "message": "The search failed: Model 'hashing': The endpoint answered 400:"
        " scripted error 400",
    }


async def test_a_batch_through_the_sdk_can_be_asked_about(shelf: Shelf) -> None:
    store = await shelf.client.vector_stores.create()
    batch = await shelf.client.vector_stores.file_batches.upload_and_poll(
        store.id,
        files=[("foods.md", f"# Tastes\n\n{FOODS}".encode()), ("pets.txt", PETS.encode())],
        poll_interval_ms=POLL_EVERY_MS,
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", 2)
    talk = await begin(shelf, store_ids=[store.id])
    shelf.model.answer = searching("likes pizza", say=lambda markers: [markers[0]])
    await completed(talk)
    [output] = tool_outputs(shelf.model)
    assert "【2:0†foods.md】 (Tastes)\n" in output  # where it stands is told
