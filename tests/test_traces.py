"""Traces, as a collector receives them: OTLP over HTTP, read with OpenTelemetry's own messages."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from conftest import Serve
from processes import FAST, launcher
from runs.wire import WEATHER, Conversation, eventually
from threadmill.app import Served
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"

KINDS = {1: "internal", 2: "server", 3: "client"}


class Span:
    def __init__(self, sent: Any, resource: dict[str, Any]) -> None:
        self.name = str(sent.name)
        self.kind = KINDS[sent.kind]
        self.trace_id = sent.trace_id.hex()
        self.id = sent.span_id.hex()
        self.parent_id = sent.parent_span_id.hex()
        self.has_failed = sent.status.code == 2
        self.attributes = _values(sent.attributes)
        self.resource = resource
        self.took_s = (sent.end_time_unix_nano - sent.start_time_unix_nano) / 1e9


class Collector:
    """Receives spans, as any OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.address = ""

    async def receive(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in sent.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [Span(span, resource) for span in of_scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        [span] = self.named(name)
        return span

    async def has(self, name: str, count: int = 1) -> list[Span]:
        async def came() -> bool:
            return len(self.named(name)) >= count

        await eventually(came)
        return self.named(name)


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(one) for one in found.values] if kind == "array_value" else found


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield collector
    await runner.cleanup()


@pytest.fixture
def otel(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables by which somebody turns it on."""
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest_asyncio.fixture
async def traced(otel: dict[str, str], serve: Serve) -> AsyncIterator[Served]:
    async with serve() as server:
        yield server


@asynccontextmanager
async def client_of(server: Served, **headers: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key="any", base_url=f"{server.address}/v1", max_retries=0, default_headers=headers
    ) as client:
        yield client


async def begin(client: openai.AsyncOpenAI, *tools: Any, question: str = "Hi") -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=list(tools))
    return await Conversation.begin(client, assistant.id, question)


def sent_traceparents(model: ScriptedModel) -> list[str | None]:
    return [one.headers.get("traceparent") for one in model.requests]


async def test_a_run_is_a_tree_of_spans_below_the_clients_own(
    traced: Served, collector: Collector, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[ToolCall("file_search", '{"queries":["rain"]}', id="call_1")]),
        Reply("It rains.", usage={"prompt_tokens": 30, "completion_tokens": 4}),
    )
    async with client_of(traced) as client:
        talk = await begin(client, {"type": "file_search"})
        run = await talk.run(extra_headers={"traceparent": TRACEPARENT})
    [agent] = await collector.has("invoke_agent")
    [created] = await collector.has("POST /v1/threads/{thread_id}/runs")
    turns = await collector.has("chat scripted", 2)
    [tool] = await collector.has("execute_tool file_search")

    assert (created.kind, created.trace_id, created.parent_id) == ("server", TRACE_ID, PARENT_ID)
    assert created.attributes["http.request.method"] == "POST"
    assert created.attributes["http.route"] == "/v1/threads/{thread_id}/runs"
    assert created.attributes["http.response.status_code"] == 200
    assert created.attributes["threadmill.request.id"].startswith("req_")

    assert (agent.kind, agent.trace_id, agent.parent_id) == ("internal", TRACE_ID, created.id)
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert agent.attributes["gen_ai.provider.name"] == "threadmill"
    assert agent.attributes["gen_ai.agent.id"] == talk.assistant_id
    assert agent.attributes["gen_ai.conversation.id"] == talk.thread_id
    assert agent.attributes["threadmill.run.id"] == run.id
    assert agent.attributes["threadmill.run.status"] == "completed"
    assert agent.attributes["threadmill.run.turns"] == 2

    for turn in turns:
        assert (turn.kind, turn.trace_id, turn.parent_id) == ("client", TRACE_ID, agent.id)
        assert turn.attributes["gen_ai.operation.name"] == "chat"
        assert turn.attributes["gen_ai.request.model"] == "scripted"
        assert turn.attributes["gen_ai.response.model"] == "scripted"
        assert turn.attributes["gen_ai.request.stream"] is True
        assert turn.attributes["server.address"] == "127.0.0.1"
        assert turn.attributes["server.port"] > 0
        assert 0 < turn.attributes["gen_ai.response.time_to_first_chunk"] < 5
    first, last = turns
    assert first.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert last.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert last.attributes["gen_ai.usage.input_tokens"] == 30
    assert last.attributes["gen_ai.usage.output_tokens"] == 4

    assert (tool.kind, tool.trace_id, tool.parent_id) == ("internal", TRACE_ID, agent.id)
    assert tool.attributes["gen_ai.operation.name"] == "execute_tool"
    assert tool.attributes["gen_ai.tool.name"] == "file_search"
    assert tool.attributes["gen_ai.tool.type"] == "datastore"
    assert tool.attributes["gen_ai.tool.call.id"] == "call_1"

    assert agent.resource["service.name"] == "threadmill"
    assert agent.resource["deployment.environment.name"] == "test"
    assert agent.resource["service.instance.id"] == traced.runtime.name

    # The endpoint goes on with the trace, each request below its turn.
    assert sent_traceparents(model) == [f"00-{TRACE_ID}-{turn.id}-01" for turn in turns]


async def test_a_run_of_a_client_without_a_trace_begins_one_and_keeps_it(
    traced: Served, collector: Collector, model: ScriptedModel
) -> None:
    """Also beyond the pause in which the client answers."""
    model.reply(Reply(tool_calls=[ToolCall("get_weather")]), Reply("Fine."))
    async with client_of(traced) as client:
        talk = await begin(client, WEATHER)
        run = await talk.run()
        await talk.stopped(await talk.answer(run))
    before, after = await collector.has("invoke_agent", 2)
    assert before.attributes["threadmill.run.status"] == "requires_action"
    assert after.attributes["threadmill.run.status"] == "completed"
    assert before.trace_id == after.trace_id
    [created] = await collector.has("POST /v1/threads/{thread_id}/runs")
    assert {before.parent_id, after.parent_id} == {created.id}
    assert created.parent_id == ""


async def test_created_with_its_thread_it_is_traced_as_well(
    traced: Served, collector: Collector
) -> None:
    async with client_of(traced, traceparent=TRACEPARENT) as client:
        assistant = await client.beta.assistants.create(model="scripted")
        await client.beta.threads.create_and_run_poll(
            assistant_id=assistant.id,
            thread={"messages": [{"role": "user", "content": "Hi"}]},
            poll_interval_ms=20,
        )
    [agent] = await collector.has("invoke_agent")
    assert agent.trace_id == TRACE_ID


async def test_a_worker_goes_on_with_the_trace_that_another_process_began(
    otel: dict[str, str],
    collector: Collector,
    database_url: str,
    model: ScriptedModel,
    tmp_path: Path,
) -> None:
    async with launcher(database_url, model, tmp_path) as launch:
        server = await launch(**FAST, **otel)
        talk = await begin(server.client, WEATHER)
        model.reply(Reply(tool_calls=[ToolCall("get_weather")]), Reply("Fine."))
        run = await talk.run(extra_headers={"traceparent": TRACEPARENT})
        assert run.status == "requires_action"
        second = await launch(**FAST, **otel)
        await collector.has("invoke_agent", 1)
        await server.kill()
        elsewhere = Conversation(second.client, talk.assistant_id, talk.thread_id)
        await elsewhere.stopped(await elsewhere.answer(run))
        one, two = await collector.has("invoke_agent", 2)
    assert one.trace_id == two.trace_id == TRACE_ID
    assert one.parent_id == two.parent_id
    assert one.resource["service.instance.id"] != two.resource["service.instance.id"]


async def test_what_a_client_does_not_want_sampled_is_not_sent_but_passed_on(
    traced: Served, collector: Collector, model: ScriptedModel
) -> None:
    model.say("Fine.")
    async with client_of(traced) as client:
        talk = await begin(client)
        await talk.run(extra_headers={"traceparent": UNSAMPLED})
    await collector.has("GET /v1/threads/{thread_id}/runs/{run_id}")
    assert collector.named("invoke_agent") == []
    [sent] = sent_traceparents(model)
    assert sent is not None
    assert sent.startswith(f"00-{TRACE_ID}-")
    assert sent.endswith("-00")


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT_ID}-01", "\xff"])
async def test_nonsense_instead_of_a_traceparent_begins_a_trace(
    traced: Served, collector: Collector, traceparent: str
) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as http:
        headers = {"traceparent": traceparent}
        async with http.post(f"{traced.address}/v1/threads", headers=headers) as answer:
            assert answer.status == 200
    [span] = await collector.has("POST /v1/threads")
    assert span.parent_id == ""


async def test_failures_are_marked_with_their_kind(
    traced: Served, collector: Collector, model: ScriptedModel
) -> None:
    model.answer = lambda _: Reply(status=429)
    async with client_of(traced) as client:
        talk = await begin(client)
        await talk.run()
    [agent] = await collector.has("invoke_agent")
    [turn] = await collector.has("chat scripted")
    assert agent.has_failed
    assert agent.attributes["error.type"] == "rate_limit_exceeded"
    assert turn.has_failed
    assert turn.attributes["error.type"] == "429"
    assert turn.attributes["threadmill.tries"] == 4
    refused = await collector.has("GET /v1/threads/{thread_id}/runs/{run_id}")
    assert not any(span.has_failed for span in refused)


SECRET = "the launch code is 00000000"


async def test_no_text_of_a_conversation_is_sent(
    traced: Served, collector: Collector, model: ScriptedModel
) -> None:
    model.reply(Reply(SECRET, tool_calls=[ToolCall("get_weather", {"city": SECRET})]))
    async with client_of(traced) as client:
        talk = await begin(client, WEATHER, question=SECRET)
        await talk.run(instructions=SECRET)
    await collector.has("invoke_agent")
    told = json.dumps([span.attributes for span in collector.spans])
    assert "gen_ai.operation.name" in told
    assert "launch code" not in told


async def test_contents_are_sent_to_those_who_ask_for_them(
    otel: dict[str, str],
    collector: Collector,
    model: ScriptedModel,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    model.reply(
        Reply(tool_calls=[ToolCall("file_search", '{"queries":["rain"]}', id="call_1")]),
        Reply("It rains."),
    )
    async with serve() as server, client_of(server) as client:
        talk = await begin(client, {"type": "file_search"}, question="Does it rain?")
        await talk.run(instructions="Be brief.")
    first, last = await collector.has("chat scripted", 2)
    tool = collector.one("execute_tool file_search")
    asked = json.loads(first.attributes["gen_ai.input.messages"])
    assert asked == [
        {"role": "system", "parts": [{"type": "text", "content": asked[0]["parts"][0]["content"]}]},
        {"role": "user", "parts": [{"type": "text", "content": "Does it rain?"}]},
    ]
    assert asked[0]["parts"][0]["content"].startswith("Be brief.")
    call = {
        "type": "tool_call",
        "id": "call_1",
        "name": "file_search",
        "arguments": '{"queries":["rain"]}',
    }
    assert json.loads(first.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [call], "finish_reason": "tool_calls"}
    ]
    told = json.loads(last.attributes["gen_ai.input.messages"])
    assert told[2] == {"role": "assistant", "parts": [call]}
    assert told[3]["role"] == "tool"
    assert told[3]["parts"][0]["id"] == "call_1"
    assert tool.attributes["gen_ai.tool.call.arguments"] == '{"queries":["rain"]}'
    assert tool.attributes["gen_ai.tool.call.result"] == told[3]["parts"][0]["response"]
    assert json.loads(last.attributes["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "It rains."}],
            "finish_reason": "stop",
        }
    ]


async def test_what_is_left_is_sent_when_the_server_stops(
    otel: dict[str, str], collector: Collector, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    async with serve() as server, client_of(server) as client:
        await client.beta.threads.create()
        assert collector.spans == []
    assert collector.named("POST /v1/threads")


async def test_a_collector_that_is_away_disturbs_nobody(
    serve: Serve, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.say("Fine.")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with serve() as server, client_of(server) as client:
        talk = await begin(client)
        async with asyncio.timeout(30):
            assert (await talk.run()).status == "completed"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_it_is_not_even_loaded_where_nobody_asks_for_it(variables: dict[str, str]) -> None:
    look = (
        "import sys; from threadmill import app; from threadmill.traces import Traces;"
        " traces = Traces('p'); assert not traces.are_on;"
        " assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    )
    environment = {name: value for name, value in os.environ.items() if "OTEL" not in name}
    subprocess.run([sys.executable, "-c", look], env=environment | variables, check=True)


def test_without_the_extra_it_says_what_to_install() -> None:
    look = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None;"
        " from threadmill.traces import Traces; assert not Traces('p').are_on"
    )
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    said = subprocess.run(
        [sys.executable, "-c", look], env=environment, check=True, capture_output=True, text=True
    )
    assert "threadmill[otel]" in said.stdout
