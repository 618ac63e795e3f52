"""Conversations with a server through the official SDK of Python, of whichever generation.

    python conversation.py http://127.0.0.1:8000/v1 KEY

needs nothing but the package `openai`. The model behind the server answers as replies.py says, and
the server demands the key. Each flow is a function; one line is printed for each.
"""

import asyncio
import base64
import inspect
import sys
import time
import traceback
import warnings
from typing import Any

import openai
from openai import (
    AssistantEventHandler,
    AsyncAssistantEventHandler,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AzureOpenAI,
    OpenAI,
)
from openai.types.beta import assistant_stream_event

SEARCH_CONTENT = "step_details.tool_calls[*].file_search.results[*].content"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAA"
    "AElFTkSuQmCC"
)


def function(name: str, parameter: str) -> Any:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [function("get_weather", "city"), function("get_clothes", "weather")]

RUN_BEGINS = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
MESSAGE_BEGINS = [
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
]
MESSAGE_ENDS = ["thread.message.completed", "thread.run.step.completed"]
CALLS = ["thread.run.step.created", "thread.run.step.in_progress", "thread.run.step.delta"]
TEXT_RUN = [*RUN_BEGINS, *MESSAGE_BEGINS, *MESSAGE_ENDS, "thread.run.completed"]


# --- objects ---


def assistants(client: OpenAI) -> None:
    made = [
        client.beta.assistants.create(
            model="scripted",
            name=f"Number {n}",
            description="One of five",
            instructions="Be brief.",
            tools=TOOLS,
            metadata={"batch": "one"},
            temperature=0.5,
            top_p=0.25,
            response_format={"type": "json_object"},
        )
        for n in range(5)
    ]
    first = made[0]
    equal(first.id[:5], "asst_")
    equal(first.object, "assistant")
    equal(first.tools[1].function.name, "get_clothes")
    equal((first.temperature, first.top_p), (0.5, 0.25))
    equal(first.response_format.type, "json_object")
    equal(client.beta.assistants.retrieve(first.id), first)

    changed = client.beta.assistants.update(first.id, name="Uno", metadata={})
    equal((changed.name, changed.description, changed.metadata), ("Uno", "One of five", {}))

    ids = [assistant.id for assistant in made]
    paged = [found.id for found in client.beta.assistants.list(limit=2, order="asc")]
    equal([found for found in paged if found in ids], ids, "paging forwards")
    equal(len(paged), len(set(paged)), "assistants that came once")
    paged = [found.id for found in client.beta.assistants.list(limit=2)]
    equal([found for found in paged if found in ids], ids[::-1], "paging backwards")
    page = client.beta.assistants.list(order="asc", after=ids[0], before=ids[3])
    equal([found.id for found in page.data], ids[1:3], "after one and before another")

    for assistant_id in ids:
        assert client.beta.assistants.delete(assistant_id).deleted is True
    gone = f"No assistant found with id '{ids[0]}'."
    refused(openai.NotFoundError, gone, client.beta.assistants.retrieve, ids[0])


def threads(client: OpenAI) -> None:
    empty = client.beta.threads.create()
    equal((empty.object, empty.metadata), ("thread", {}))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    thread = client.beta.threads.create(
        messages=[
            {"role": "user", "content": "One", "metadata": {"n": "1"}},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": [{"type": "text", "text": "Three"}, image]},
        ],
        metadata={"topic": "numbers"},
    )
    equal(client.beta.threads.retrieve(thread.id), thread)
    listed = client.beta.threads.messages.list(thread.id, order="asc").data
    equal([message.role for message in listed], ["user", "assistant", "user"])
    equal([text_of(message) for message in listed], ["One", "Two", "Three"])
    equal(listed[0].metadata, {"n": "1"})
    equal(listed[2].content[1].image_url.url, "https://example.com/a.png")
    changed = client.beta.threads.update(thread.id, metadata={"topic": "letters"})
    equal(changed.metadata, {"topic": "letters"})
    assert client.beta.threads.delete(thread.id).deleted is True
    gone = f"No thread found with id '{thread.id}'."
    refused(openai.NotFoundError, gone, client.beta.threads.retrieve, thread.id)


def messages(client: OpenAI) -> None:
    thread = client.beta.threads.create()
    of_thread = client.beta.threads.messages
    made = [of_thread.create(thread.id, role="user", content=f"say: {n}") for n in range(5)]
    equal((made[0].role, made[0].status, made[0].attachments), ("user", "completed", []))
    equal((made[0].run_id, made[0].assistant_id), (None, None))
    equal(of_thread.retrieve(made[0].id, thread_id=thread.id), made[0])
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client)
    )
    equal([text_of(said) for said in of_thread.list(thread.id, run_id=run.id)], ["4"])

    listed = [text_of(said) for said in of_thread.list(thread.id, limit=2)]
    equal(listed, ["4", "say: 4", "say: 3", "say: 2", "say: 1", "say: 0"])
    listed = [text_of(said) for said in of_thread.list(thread.id, limit=2, order="asc")]
    equal(listed, ["say: 0", "say: 1", "say: 2", "say: 3", "say: 4", "4"])

    changed = of_thread.update(made[1].id, thread_id=thread.id, metadata={"seen": "yes"})
    equal((changed.metadata, text_of(changed)), ({"seen": "yes"}, "say: 1"))
    deleted = delete_message(client, thread.id, made[1].id)
    equal((deleted.id, deleted.deleted), (made[1].id, True))
    gone = f"No message found with id '{made[1].id}'."
    refused(openai.NotFoundError, gone, of_thread.retrieve, made[1].id, thread_id=thread.id)


def models(client: OpenAI) -> None:
    assert "scripted" in [model.id for model in client.models.list()]
    equal(client.models.retrieve("scripted").object, "model")
    gone = "The model 'nobody' does not exist"
    refused(openai.NotFoundError, gone, client.models.retrieve, "nobody")


# --- runs ---


def polling(client: OpenAI) -> None:
    thread = asked(client, "say: Good morning to you")
    started = time.monotonic()
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client, instructions="Be polite.")
    )
    took_s = time.monotonic() - started
    assert took_s < 1, f"create_and_poll took {took_s:.1f} s: does openai-poll-after-ms arrive?"
    equal((run.status, run.last_error, run.required_action), ("completed", None, None))
    equal((run.model, run.instructions), ("scripted", "Be polite."))
    assert run.usage.total_tokens == run.usage.prompt_tokens + run.usage.completion_tokens > 0
    [said] = client.beta.threads.messages.list(thread.id, run_id=run.id).data
    equal((said.role, text_of(said)), ("assistant", "Good morning to you"))
    equal((said.assistant_id, said.status), (run.assistant_id, "completed"))
    equal([found.id for found in client.beta.threads.runs.list(thread.id)], [run.id])
    changed = client.beta.threads.runs.update(run.id, thread_id=thread.id, metadata={"a": "b"})
    equal(changed.metadata, {"a": "b"})


def polling_by_hand(client: OpenAI) -> None:
    thread = asked(client, "say: By hand")
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant(client))
    equal((run.status, run.started_at, run.usage), ("queued", None, None))
    equal(run.expires_at, run.created_at + 600)
    seen = {run.status}
    while run.status in ("queued", "in_progress"):
        time.sleep(0.02)
        run = client.beta.threads.runs.retrieve(run.id, thread_id=thread.id)
        seen.add(run.status)
    assert seen <= {"queued", "in_progress", "completed"}, seen
    assert run.created_at <= run.started_at <= run.completed_at
    equal(last_text(client, thread.id), "By hand")


def overrides(client: OpenAI) -> None:
    """What a run changes of its assistant, and how the model hears of it."""
    thread = asked(client, "say: never mind")
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id,
        assistant_id=assistant(client, instructions="Be brief.", temperature=0.5),
        model="another",
        instructions="Be long.",
        additional_instructions="And kind.",
        additional_messages=[
            {"role": "assistant", "content": "Never."},
            {"role": "user", "content": "repeat: it"},
        ],
        tools=TOOLS[:1],
        tool_choice="none",
        temperature=0,
        max_prompt_tokens=5000,
        max_completion_tokens=500,
        truncation_strategy={"type": "last_messages", "last_messages": 2},
        response_format={"type": "text"},
        metadata={"kind": "changed"},
    )
    equal((run.status, run.model, run.temperature), ("completed", "another", 0))
    equal((run.max_prompt_tokens, run.max_completion_tokens), (5000, 500))
    equal(run.truncation_strategy.last_messages, 2)
    equal((run.tool_choice, run.response_format.type), ("none", "text"))
    equal((len(run.tools), run.metadata), (1, {"kind": "changed"}))
    heard = last_text(client, thread.id)
    assert heard.endswith("assistant=Never. | user=repeat: it"), heard
    assert heard.startswith("system=Be long.\n\nAnd kind."), heard
    assert "never mind" not in heard, heard


def thread_and_run(client: OpenAI) -> None:
    run = client.beta.threads.create_and_run_poll(
        assistant_id=assistant(client),
        thread={"messages": [{"role": "user", "content": "say: At once"}]},
    )
    equal(run.status, "completed")
    equal(last_text(client, run.thread_id), "At once")


def functions(client: OpenAI) -> None:
    thread = asked(client, "weather: Paris, Rome")
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client, tools=TOOLS)
    )
    equal((run.status, run.usage), ("requires_action", None))
    calls = run.required_action.submit_tool_outputs.tool_calls
    equal([call.function.arguments for call in calls], ['{"city": "Paris"}', '{"city": "Rome"}'])
    ids = [call.id for call in calls]
    refused(
        openai.BadRequestError,
        f"Expected tool outputs for call_ids {ids}, got {ids[:1]}",
        client.beta.threads.runs.submit_tool_outputs,
        run.id,
        thread_id=thread.id,
        tool_outputs=outputs_for(run)[:1],
    )
    run = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread.id, tool_outputs=outputs_for(run)[::-1]
    )
    equal((run.status, run.required_action), ("completed", None))
    equal(last_text(client, thread.id), "It is 21 in Paris and 24 in Rome")


def steps(client: OpenAI) -> None:
    thread = asked(client, "clothes: Paris, Rome")
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client, tools=TOOLS)
    )
    while run.status == "requires_action":
        run = client.beta.threads.runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=thread.id, tool_outputs=outputs_for(run)
        )
    equal(last_text(client, thread.id), "Take a coat.")
    of_run = client.beta.threads.runs.steps
    found = of_run.list(run.id, thread_id=thread.id, order="asc", **including(of_run.list)).data
    kinds = ["message_creation", "tool_calls", "tool_calls", "message_creation"]
    equal([step.type for step in found], kinds)
    equal({step.status for step in found}, {"completed"})
    calls = found[1].step_details.tool_calls
    equal([call.function.name for call in calls], ["get_weather", "get_weather"])
    equal([call.function.output for call in calls], ["21 in Paris", "24 in Rome"])
    equal(sum(step.usage.total_tokens for step in found if step.usage), run.usage.total_tokens)
    newest_first = [step.id for step in of_run.list(run.id, thread_id=thread.id, limit=1)]
    equal(newest_first, [step.id for step in reversed(found)])
    last = of_run.retrieve(
        found[3].id, run_id=run.id, thread_id=thread.id, **including(of_run.retrieve)
    )
    equal(last, found[3])
    said = client.beta.threads.messages.list(thread.id, limit=1).data[0]
    equal(last.step_details.message_creation.message_id, said.id)


def cancelling(client: OpenAI) -> None:
    of_runs = client.beta.threads.runs
    thread = asked(client, "weather: Oslo")
    waiting = of_runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client, tools=TOOLS)
    )
    equal(waiting.status, "requires_action")
    run = of_runs.cancel(waiting.id, thread_id=thread.id)
    equal((run.status, run.cancelled_at), ("cancelling", None))
    run = until_over(client, run)
    equal((run.status, run.expires_at), ("cancelled", None))
    assert run.cancelled_at >= run.created_at
    refused(
        openai.BadRequestError,
        "Cannot cancel run with status 'cancelled'.",
        of_runs.cancel,
        run.id,
        thread_id=thread.id,
    )
    refused(
        openai.BadRequestError,
        'Runs in status "cancelled" do not accept tool outputs.',
        of_runs.submit_tool_outputs,
        run.id,
        thread_id=thread.id,
        tool_outputs=outputs_for(waiting),
    )


def failing(client: OpenAI) -> None:
    thread = asked(client, "fail: please")
    assistant_id = assistant(client)
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant_id)
    equal((run.status, run.last_error.code), ("failed", "invalid_prompt"))
    assert "This cannot be answered." in run.last_error.message, run.last_error
    assert run.failed_at >= run.created_at
    heard = Heard()
    with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=assistant_id, event_handler=Listener(heard)
    ) as stream:
        stream.until_done()
    equal(stream.get_final_run().status, "failed")
    equal(heard.events, [*RUN_BEGINS, "thread.run.failed"])
    client.beta.threads.messages.create(thread.id, role="user", content="say: Free again")
    client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant_id)
    equal(last_text(client, thread.id), "Free again")


def incomplete(client: OpenAI) -> None:
    thread = asked(client, "cut: This is not")
    assistant_id = assistant(client)
    run = client.beta.threads.runs.create(
        thread.id, assistant_id=assistant_id, max_completion_tokens=300
    )
    run = until_over(client, run)
    equal((run.status, run.incomplete_details.reason), ("incomplete", "max_completion_tokens"))
    said = client.beta.threads.messages.list(thread.id, limit=1).data[0]
    equal((said.status, said.incomplete_details.reason), ("incomplete", "max_tokens"))
    equal(text_of(said), "This is not")
    ends = ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"]
    told = [*RUN_BEGINS, *MESSAGE_BEGINS, *ends]
    stream = client.beta.threads.runs.create(thread.id, assistant_id=assistant_id, stream=True)
    equal(once_each([event.event for event in stream]), told)
    if not hasattr(assistant_stream_event, "ThreadRunIncomplete"):
        return  # the helper of 1.30 does not take this for the end of a run
    heard = Heard()
    with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=assistant_id, event_handler=Listener(heard)
    ) as helper:
        equal(helper.get_final_run().status, "incomplete")
        equal([message.status for message in helper.get_final_messages()], ["incomplete"])
    equal((heard.events, heard.text), (told, "This is not"))


# --- streams ---


def iterating(client: OpenAI) -> None:
    thread = asked(client, "say: Word by word")
    stream = client.beta.threads.runs.create(thread.id, assistant_id=assistant(client), stream=True)
    events = list(stream)
    equal(once_each([event.event for event in events]), TEXT_RUN)
    deltas = [event.data.delta for event in events if event.event == "thread.message.delta"]
    equal([delta.content[0].text.value for delta in deltas], ["Word ", "by ", "word"])
    run = events[-1].data
    equal((run.object, run.status, run.expires_at), ("thread.run", "completed", None))
    equal(client.beta.threads.runs.retrieve(run.id, thread_id=thread.id), run)
    [message] = [event.data for event in events if event.event == "thread.message.completed"]
    equal(client.beta.threads.messages.retrieve(message.id, thread_id=thread.id), message)


def listening(client: OpenAI) -> None:
    thread = asked(client, "say: Word by word")
    heard = Heard()
    with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=assistant(client), event_handler=Listener(heard)
    ) as stream:
        equal(list(stream.text_deltas), ["Word ", "by ", "word"])
    equal((heard.events, heard.text, heard.has_ended), (TEXT_RUN, "Word by word", True))
    equal(heard.texts_done, ["Word by word"])
    equal(stream.get_final_run().status, "completed")
    equal([text_of(message) for message in stream.get_final_messages()], ["Word by word"])
    equal([step.type for step in stream.get_final_run_steps()], ["message_creation"])


def thread_and_run_streamed(client: OpenAI) -> None:
    assistant_id = assistant(client)
    thread = {"messages": [{"role": "user", "content": "say: At once"}]}
    heard = [
        event.event
        for event in client.beta.threads.create_and_run(
            assistant_id=assistant_id, thread=thread, stream=True
        )
    ]
    equal(once_each(heard), ["thread.created", *TEXT_RUN])
    with client.beta.threads.create_and_run_stream(
        assistant_id=assistant_id, thread=thread
    ) as stream:
        equal("".join(stream.text_deltas), "At once")
    equal(last_text(client, stream.get_final_run().thread_id), "At once")


def functions_streamed(client: OpenAI) -> None:
    """Parallel calls, then another round, each answered from within the event handler."""
    thread = asked(client, "clothes: Paris, Rome")
    heard: list[Heard] = []

    class Caller(Listener):
        def __init__(self) -> None:
            heard.append(Heard())
            super().__init__(heard[-1])

        def on_event(self, event: Any) -> None:
            super().on_event(event)
            if event.event == "thread.run.requires_action":
                with client.beta.threads.runs.submit_tool_outputs_stream(
                    thread_id=event.data.thread_id,
                    run_id=event.data.id,
                    tool_outputs=outputs_for(event.data),
                    event_handler=Caller(),
                ) as stream:
                    stream.until_done()

    with client.beta.threads.runs.stream(
        thread_id=thread.id,
        assistant_id=assistant(client, tools=TOOLS),
        event_handler=Caller(),
    ) as stream:
        stream.until_done()
    check_rounds(heard)
    equal(stream.get_final_run().status, "requires_action")
    first = stream.get_final_run_steps()[1].step_details.tool_calls[0]
    equal((first.id[:5], first.id.count("call_")), ("call_", 1))
    equal(last_text(client, thread.id), "Take a coat.")


def cancelling_streamed(client: OpenAI) -> None:
    thread = asked(client, "hang: Once upon a")
    events = []
    for event in client.beta.threads.runs.create(
        thread.id, assistant_id=assistant(client), stream=True
    ):
        events.append(event)
        if event.event == "thread.message.delta" and "a" in event.data.delta.content[0].text.value:
            client.beta.threads.runs.cancel(events[0].data.id, thread_id=thread.id)
    ends = [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
    ]
    equal(once_each([event.event for event in events]), [*RUN_BEGINS, *MESSAGE_BEGINS, *ends])
    said = client.beta.threads.messages.list(thread.id, limit=1).data[0]
    equal((said.status, said.incomplete_details.reason), ("incomplete", "run_cancelled"))
    equal(text_of(said).strip(), "Once upon a")


def leaving(client: OpenAI) -> None:
    """Whoever stops listening does not stop the run."""
    thread = asked(client, "drip: I go on and on")
    stream = client.beta.threads.runs.create(thread.id, assistant_id=assistant(client), stream=True)
    run = next(iter(stream)).data
    for event in stream:
        if event.event == "thread.message.delta":
            break
    stream.close()
    equal(until_over(client, run).status, "completed")
    equal(last_text(client, thread.id), "I go on and on")


def refusal(client: OpenAI) -> None:
    """The older SDKs know no such part; they must get past it all the same."""
    thread = asked(client, "refuse: Not this one")
    events = list(
        client.beta.threads.runs.create(thread.id, assistant_id=assistant(client), stream=True)
    )
    equal(once_each([event.event for event in events]), TEXT_RUN)
    said = client.beta.threads.messages.list(thread.id, limit=1).data[0]
    equal((said.content[0].type, said.content[0].refusal), ("refusal", "Not this one"))


# --- headers and errors ---


def headers(client: OpenAI) -> None:
    thread = asked(client, "say: hi")
    answer = client.beta.threads.runs.with_raw_response.create(
        thread.id, assistant_id=assistant(client)
    )
    equal(answer.parse().object, "thread.run")
    equal(answer.headers["x-request-id"][:4], "req_")
    equal(answer.headers["openai-version"], "2020-10-01")
    assert int(answer.headers["openai-poll-after-ms"]) < 1000


def errors(client: OpenAI) -> None:
    wrong_key = client.with_options(api_key="sk-nobody-knows-this-one")
    error = refused(
        openai.AuthenticationError, "Incorrect API key provided", wrong_key.beta.threads.create
    )
    equal((error.status_code, error.code), (401, "invalid_api_key"))
    missing = "asst_" + "0" * 24
    thread = asked(client, "say: hi")
    refused(
        openai.NotFoundError,
        f"No assistant found with id '{missing}'.",
        client.beta.threads.runs.create,
        thread.id,
        assistant_id=missing,
    )
    refused(
        openai.NotFoundError,
        "No run found with id 'run_000000000000000000000000'.",
        client.beta.threads.runs.retrieve,
        "run_" + "0" * 24,
        thread_id=thread.id,
    )
    error = refused(
        openai.BadRequestError,
        "Invalid type for 'metadata.n': expected a string, but got an integer instead.",
        client.beta.threads.create,
        metadata={"n": 1},
    )
    equal((error.code, error.param), ("invalid_type", "metadata.n"))
    equal((error.type, error.status_code), ("invalid_request_error", 400))
    equal((error.request_id or "")[:4], "req_")
    error = refused(
        openai.BadRequestError,
        "Missing required parameter: 'model'.",
        client.beta.assistants.create,
        model=openai.NOT_GIVEN,
    )
    equal((error.code, error.param), ("missing_required_parameter", "model"))


def locking(client: OpenAI) -> None:
    thread = asked(client, "hang: on")
    assistant_id = assistant(client)
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant_id)
    refused(
        openai.BadRequestError,
        f"Can't add messages to {thread.id} while a run {run.id} is active.",
        client.beta.threads.messages.create,
        thread.id,
        role="user",
        content="say: Me too",
    )
    refused(
        openai.BadRequestError,
        f"Thread {thread.id} already has an active run {run.id}.",
        client.beta.threads.runs.create,
        thread.id,
        assistant_id=assistant_id,
    )
    client.beta.threads.runs.cancel(run.id, thread_id=thread.id)
    equal(until_over(client, run).status, "cancelled")
    client.beta.threads.messages.create(thread.id, role="user", content="say: Me too")


# --- the other clients ---


async def async_polling(client: AsyncOpenAI) -> None:
    made = await client.beta.assistants.create(model="scripted")

    async def converse(n: int) -> str:
        run = await client.beta.threads.create_and_run_poll(
            assistant_id=made.id,
            thread={"messages": [{"role": "user", "content": f"say: Number {n}"}]},
        )
        equal(run.status, "completed")
        listed = client.beta.threads.messages.list(run.thread_id, limit=1, order="asc")
        return " / ".join([text_of(message) async for message in listed])

    said = await asyncio.gather(*(converse(n) for n in range(8)))
    equal(said, [f"say: Number {n} / Number {n}" for n in range(8)], "eight at a time")


async def async_listening(client: AsyncOpenAI) -> None:
    made = await client.beta.assistants.create(model="scripted")
    thread = await client.beta.threads.create(messages=[{"role": "user", "content": "say: A b c"}])
    heard = Heard()
    async with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=made.id, event_handler=AsyncListener(heard)
    ) as stream:
        await stream.until_done()
    equal((heard.events, heard.text, heard.has_ended), (TEXT_RUN, "A b c", True))
    equal((await stream.get_final_run()).status, "completed")
    equal([text_of(message) for message in await stream.get_final_messages()], ["A b c"])


async def async_functions(client: AsyncOpenAI) -> None:
    made = await client.beta.assistants.create(model="scripted", tools=TOOLS)
    thread = await client.beta.threads.create(
        messages=[{"role": "user", "content": "clothes: Paris, Rome"}]
    )
    heard = [Heard()]
    async with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=made.id, event_handler=AsyncListener(heard[0])
    ) as stream:
        run = await stream.get_final_run()
    while run.status == "requires_action":
        heard.append(Heard())
        async with client.beta.threads.runs.submit_tool_outputs_stream(
            thread_id=thread.id,
            run_id=run.id,
            tool_outputs=outputs_for(run),
            event_handler=AsyncListener(heard[-1]),
        ) as stream:
            run = await stream.get_final_run()
    check_rounds(heard)


def azure(client: OpenAI) -> None:
    with AzureOpenAI(
        azure_endpoint=str(client.base_url).removesuffix("/v1/"),
        api_key=client.api_key,
        api_version="2024-05-01-preview",
        max_retries=0,
    ) as azure_client:
        polling(azure_client)
        functions(azure_client)
        listening(azure_client)


async def async_azure(client: AsyncOpenAI) -> None:
    async with AsyncAzureOpenAI(
        azure_endpoint=str(client.base_url).removesuffix("/v1/"),
        api_key=client.api_key,
        api_version="2025-01-01-preview",
        max_retries=0,
    ) as azure_client:
        await async_listening(azure_client)


# --- files ---


def files(client: OpenAI) -> None:
    made = client.files.create(file=("square.png", PNG, "image/png"), purpose="vision")
    equal((made.id[:5], made.object, made.bytes), ("file-", "file", len(PNG)))
    equal((made.filename, made.purpose, made.status), ("square.png", "vision", "processed"))
    equal(client.files.retrieve(made.id), made)
    equal(client.files.wait_for_processing(made.id), made)
    assert made.id in [found.id for found in client.files.list(purpose="vision")]
    equal(client.files.content(made.id).read(), PNG)

    thread = client.beta.threads.create()
    image = {"type": "image_file", "image_file": {"file_id": made.id, "detail": "low"}}
    link = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    said = client.beta.threads.messages.create(
        thread.id, role="user", content=[{"type": "text", "text": "look: here"}, image, link]
    )
    equal((said.content[1].type, said.content[1].image_file.file_id), ("image_file", made.id))
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant(client)
    )
    equal((run.status, run.last_error), ("completed", None))
    seen = "data:image/png;base64,iVBORw0KGgoAAAANSU, https://example.com/a.png"
    equal(last_text(client, thread.id), seen)

    notes = client.files.create(file=("notes.txt", b"Of mine"), purpose="assistants")
    refused(
        openai.BadRequestError,
        "Not allowed to download files of purpose: assistants",
        client.files.content,
        notes.id,
    )
    for file_id in (made.id, notes.id):
        assert client.files.delete(file_id).deleted is True
    gone = f"No such File object: {made.id}"
    refused(openai.NotFoundError, gone, client.files.retrieve, made.id)


FLOWS = (
    assistants,
    threads,
    messages,
    models,
    polling,
    polling_by_hand,
    overrides,
    thread_and_run,
    functions,
    steps,
    cancelling,
    failing,
    incomplete,
    iterating,
    listening,
    thread_and_run_streamed,
    functions_streamed,
    cancelling_streamed,
    leaving,
    refusal,
    headers,
    errors,
    locking,
    async_polling,
    async_listening,
    async_functions,
    azure,
    async_azure,
    files,
)


# --- what the stream helpers tell ---


class Heard:
    def __init__(self) -> None:
        self.events: list[str] = []  # a row of the same counts once
        self.text = ""
        self.texts_done: list[str] = []
        self.arguments = ""  # of all function calls
        self.calls_created = 0
        self.has_ended = False

    def event(self, event: Any) -> None:
        if self.events[-1:] != [event.event]:
            self.events.append(event.event)

    def text_delta(self, delta: Any, snapshot: Any) -> None:
        self.text += delta.value
        equal(snapshot.value, self.text, "the text so far")

    def call_delta(self, delta: Any) -> None:
        self.arguments += delta.function.arguments or ""


class Listener(AssistantEventHandler):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def on_event(self, event: Any) -> None:
        self.heard.event(event)

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.text_delta(delta, snapshot)

    def on_text_done(self, text: Any) -> None:
        self.heard.texts_done.append(text.value)

    def on_tool_call_created(self, tool_call: Any) -> None:
        self.heard.calls_created += 1

    def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.call_delta(delta)

    def on_end(self) -> None:
        self.heard.has_ended = True


class AsyncListener(AsyncAssistantEventHandler):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    async def on_event(self, event: Any) -> None:
        self.heard.event(event)

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.text_delta(delta, snapshot)

    async def on_text_done(self, text: Any) -> None:
        self.heard.texts_done.append(text.value)

    async def on_tool_call_created(self, tool_call: Any) -> None:
        self.heard.calls_created += 1

    async def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.call_delta(delta)

    async def on_end(self) -> None:
        self.heard.has_ended = True


def check_rounds(heard: list[Heard]) -> None:
    """What the streams of "clothes: Paris, Rome" tell: a text and two calls, a call, a text."""
    first, second, third = heard
    resumes = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
    acts = "thread.run.requires_action"
    equal(first.events, [*RUN_BEGINS, *MESSAGE_BEGINS, *MESSAGE_ENDS, *CALLS, acts])
    equal((first.text, first.calls_created), ("Let me look.", 2))
    equal(first.arguments, '{"city": "Paris"}{"city": "Rome"}')
    equal(second.events, [*resumes, *CALLS, acts])
    equal(second.arguments, '{"weather": "21 in Paris, 24 in Rome"}')
    equal(third.events, [*resumes, *MESSAGE_BEGINS, *MESSAGE_ENDS, "thread.run.completed"])
    equal((third.text, third.texts_done), ("Take a coat.", ["Take a coat."]))
    equal([one.has_ended for one in heard], [True, True, True])


# --- what the flows share ---


def assistant(client: OpenAI, **options: Any) -> str:
    return client.beta.assistants.create(model="scripted", **options).id


def asked(client: OpenAI, text: str) -> Any:
    return client.beta.threads.create(messages=[{"role": "user", "content": text}])


def until_over(client: OpenAI, run: Any) -> Any:
    """By hand: the oldest helpers do not know every end of a run."""
    until = time.monotonic() + 10
    while run.status in ("queued", "in_progress", "cancelling"):
        assert time.monotonic() < until, f"The run is still {run.status}."
        time.sleep(0.02)
        run = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
    return run


def outputs_for(run: Any) -> list[Any]:
    outputs = []
    for call in run.required_action.submit_tool_outputs.tool_calls:
        output = "a coat"
        if call.function.name == "get_weather":
            output = "21 in Paris" if "Paris" in call.function.arguments else "24 in Rome"
        outputs.append({"tool_call_id": call.id, "output": output})
    return outputs


def delete_message(client: OpenAI, thread_id: str, message_id: str) -> Any:
    of_thread = client.beta.threads.messages
    if hasattr(of_thread, "delete"):
        return of_thread.delete(message_id, thread_id=thread_id)
    path = f"/threads/{thread_id}/messages/{message_id}"  # 1.30 has no method for it
    return client.delete(path, cast_to=openai.types.beta.AssistantDeleted)


def including(method: Any) -> dict[str, Any]:
    if "include" in inspect.signature(method).parameters:
        return {"include": [SEARCH_CONTENT]}
    return {"extra_query": {"include[]": [SEARCH_CONTENT]}}


def last_text(client: OpenAI, thread_id: str) -> str:
    return text_of(client.beta.threads.messages.list(thread_id, limit=1).data[0])


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def once_each(names: list[str]) -> list[str]:
    """A row of the same name counts once."""
    return [name for n, name in enumerate(names) if names[n - 1 : n] != [name]]


def equal(found: Any, wanted: Any, what: str = "") -> None:
    assert found == wanted, f"{what}\n   found: {found!r}\n  wanted: {wanted!r}"


def refused(error: type[Any], text: str, call: Any, *args: Any, **named: Any) -> Any:
    caught = None
    try:
        call(*args, **named)
    except error as one:
        caught = one
    assert caught is not None, f"No {error.__name__} came, which should say: {text}"
    assert text in str(caught.body["message"]), f"found: {caught}\n  wanted: {text}"
    return caught


def play(flow: Any, base_url: str, api_key: str) -> None:
    if inspect.iscoroutinefunction(flow):
        asyncio.run(_play_async(flow, base_url, api_key))
    else:
        with OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=30) as client:
            flow(client)


async def _play_async(flow: Any, base_url: str, api_key: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=30) as client:
        await flow(client)


def main(base_url: str, api_key: str) -> int:
    warnings.simplefilter("ignore", DeprecationWarning)  # which every method of these is
    failed = 0
    for flow in FLOWS:
        started = time.monotonic()
        try:
            play(flow, base_url, api_key)
            outcome = "ok"
        except Exception:
            traceback.print_exc()
            failed += 1
            outcome = "FAILED"
        print(f"{outcome:6} {time.monotonic() - started:5.2f} s  {flow.__name__}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
