"""/metrics: what is counted, that it stays small, who may read it, several processes at once."""

import asyncio
import io
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import openai
import psutil
import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from conftest import Serve
from processes import launcher
from runs.wire import WEATHER, Api, Conversation, eventually
from threadmill import __version__
from threadmill.api.metrics import Siblings
from threadmill.app import Served, served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.metrics import Metrics, rendered
from threadmill.settings import Settings
from threadmill.store import limits, sight, workers
from threadmill.store.database import Database
from threadmill.store.projects import DEFAULT_PROJECT_ID

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "threadmill.json"
ALERTS = DASHBOARD.with_name("alerts.yml")


@pytest_asyncio.fixture
async def api(server: Served) -> AsyncIterator[Api]:
    async with Api(server.address) as api:
        yield api


@pytest_asyncio.fixture
async def talk(client: openai.AsyncOpenAI) -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id)


class Scrape:
    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        self.families: list[str] = []
        for family in text_string_to_metric_families(text):
            self.families.append(family.name)
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float:
        """The sum of what carries these labels."""
        return sum(
            value
            for found, value in self.samples.get(f"threadmill_{name}", [])
            if labels.items() <= found.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        return {found[label] for found, _ in self.samples.get(f"threadmill_{name}", [])}


async def scrape(address: str, key: str | None = None) -> Scrape:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{address}/metrics") as answer,
    ):
        assert answer.status == 200, await answer.text()
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Scrape(await answer.text())


async def refused(address: str, **headers: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{address}/metrics") as answer,
    ):
        return answer.status, await answer.text()


# --- what is counted ---


async def test_a_run_is_counted_with_its_times_turns_and_tokens(
    server: Served, model: ScriptedModel, talk: Conversation
) -> None:
    model.reply(
        Reply("Wait.", status=500),
        Reply(tool_calls=[ToolCall("get_weather", '{"city":"Oslo"}')]),
        Reply("It rains.", usage={"prompt_tokens": 30, "completion_tokens": 4}),
    )
    run = await talk.run()
    assert run.status == "requires_action"
    waiting = await scrape(server.address)
    assert waiting.value("runs", status="requires_action") == 1
    assert waiting.value("runs_ended_total") == 0
    await talk.stopped(await talk.answer(run, "rain"))
    found = await scrape(server.address)
    assert found.value("runs_ended_total", status="completed", error="") == 1
    assert found.value("run_duration_seconds_count", status="completed") == 1
    assert found.value("run_queue_seconds_count") == 2  # it was taken up twice
    assert found.value("run_first_token_seconds_count") == 2
    assert found.value("model_tries_total", model="scripted", outcome="5xx") == 1
    assert found.value("model_tries_total", model="scripted", outcome="ok") == 2
    assert found.value("model_turns_total", model="scripted", outcome="tool_calls") == 1
    assert found.value("model_turns_total", model="scripted", outcome="stop") == 1
    assert found.value("model_first_chunk_seconds_count", model="scripted") == 2
    assert found.value("tokens_total", kind="completion", model="scripted") >= 4
    assert found.value("tokens_total", kind="prompt", model="scripted") >= 30
    assert found.value("runs_held") == 0


async def test_a_failed_run_is_counted_with_its_error(
    server: Served, model: ScriptedModel, talk: Conversation
) -> None:
    model.answer = lambda _: Reply(status=429)
    assert (await talk.run()).status == "failed"
    found = await scrape(server.address)
    assert found.value("runs_ended_total", status="failed", error="rate_limit_exceeded") == 1
    assert found.value("model_tries_total", outcome="429") == 4
    assert found.value("model_turns_total", outcome="error") == 1
    assert found.value("run_first_token_seconds_count") == 0


async def test_a_cancelled_run_counts_as_interrupted_and_its_stream_is_seen(
    server: Served, model: ScriptedModel, talk: Conversation, api: Api
) -> None:
    gate = Gate()
    model.say("One ", gate, "two")
    path = f"/threads/{talk.thread_id}/runs"
    async with api.stream(path, {"assistant_id": talk.assistant_id}) as stream:
        await stream.until("thread.message.delta")
        open_now = await scrape(server.address)
        assert open_now.value("streams_open") == 1
        assert open_now.value("runs_held") == 1
        assert open_now.value("runs", status="in_progress") == 1
        run_id = stream.events[0].data["id"]
        await api.post(f"{path}/{run_id}/cancel")
        await stream.all()

    async def is_closed() -> bool:
        return (await scrape(server.address)).value("streams_open") == 0

    await eventually(is_closed)
    found = await scrape(server.address)
    assert found.value("runs_ended_total", status="cancelled") == 1
    assert found.value("model_turns_total", outcome="interrupted") == 1


async def test_requests_are_counted_by_the_template_of_their_path(
    server: Served, client: openai.AsyncOpenAI
) -> None:
    thread = await client.beta.threads.create()
    await client.beta.threads.retrieve(thread.id)
    with pytest.raises(openai.NotFoundError):
        await client.beta.threads.retrieve("thread_gone")
    async with aiohttp.ClientSession(headers={"api-key": "any"}) as http:
        await (await http.get(f"{server.address}/openai/threads/{thread.id}")).read()
        for n in range(50):
            await (await http.get(f"{server.address}/v1/made/up/{n}")).read()
        for verb in ("PROPFIND", "REPORT"):
            await (await http.request(verb, f"{server.address}/v1/threads")).read()
    found = await scrape(server.address)
    route = "/v1/threads/{thread_id}"
    counted = "http_requests_total"
    assert found.value(counted, method="GET", route=route, status="200") == 2  # one as on Azure
    assert found.value(counted, method="GET", route=route, status="404") == 1
    assert found.value(counted, method="POST", route="/v1/threads", status="200") == 1
    assert found.value(counted, method="GET", route="unknown", status="404") == 50
    assert found.value(counted, method="other") == 2
    assert found.value("http_request_seconds_count", method="GET", route=route) == 3
    assert len(found.labels(counted, "route")) <= 4
    assert thread.id not in found.text


async def test_a_stream_counts_until_it_begins(
    server: Served, model: ScriptedModel, talk: Conversation, api: Api
) -> None:
    gate = Gate()
    model.say("One ", gate, "two")
    path = f"/threads/{talk.thread_id}/runs"
    asked = time.perf_counter()
    async with api.stream(path, {"assistant_id": talk.assistant_id}) as stream:
        await stream.until("thread.message.delta")
        began_within_s = time.perf_counter() - asked
        await asyncio.sleep(0.1)
        gate.set()
        await stream.all()
    route = "/v1/threads/{thread_id}/runs"

    async def is_counted() -> bool:
        found = await scrape(server.address)
        return found.value("http_request_seconds_count", method="POST", route=route) == 1

    await eventually(is_counted)
    found = await scrape(server.address)
    took_s = found.value("http_request_seconds_sum", method="POST", route=route)
    assert 0 < took_s < began_within_s


async def test_files_on_their_way_into_a_store_are_counted(
    server: Served, client: openai.AsyncOpenAI
) -> None:
    store = await client.vector_stores.create()
    for name, content in (("good.txt", b"One sentence about rain."), ("bad.pdf", b"no pdf")):
        file = await client.files.create(file=(name, io.BytesIO(content)), purpose="assistants")
        await client.vector_stores.files.create_and_poll(
            vector_store_id=store.id, file_id=file.id, poll_interval_ms=20
        )
    found = await scrape(server.address)
    assert found.value("ingestion_files_total", outcome="completed") == 1
    assert found.value("ingestion_files_total", outcome="failed") == 1
    assert found.value("ingestion_chunks_total") == 1
    assert found.value("ingestion_seconds_count") == 2
    assert found.value("ingestion_queue") == 0


async def test_calls_of_a_tool_are_timed(
    server: Served, model: ScriptedModel, client: openai.AsyncOpenAI
) -> None:
    assistant = await client.beta.assistants.create(
        model="scripted", tools=[{"type": "file_search"}]
    )
    model.reply(
        Reply(tool_calls=[ToolCall("file_search", '{"queries":["rain"]}')]), Reply("Nothing.")
    )
    talk = await Conversation.begin(client, assistant.id)
    assert (await talk.run()).status == "completed"
    found = await scrape(server.address)
    assert found.value("tool_seconds_count", tool="file_search", outcome="ok") == 1


async def test_what_waits_in_the_queue_is_seen_with_its_age(
    server: Served, model: ScriptedModel, talk: Conversation, database: Database
) -> None:
    model.reply(Reply(tool_calls=[ToolCall("get_weather")]))
    assert (await talk.run()).status == "requires_action"
    async with database.connection() as connection:
        await workers.renew(connection, "somebody", 3600)
        await connection.execute(
            "UPDATE runs SET status = 'queued', required_action = NULL, worker = 'somebody',"
            " queued_at = extract(epoch FROM now()) - 42"
        )
    found = await scrape(server.address)
    assert found.value("runs", status="queued") == 1
    assert found.value("runs", status="requires_action") == 0
    assert 42 <= found.value("runs_oldest_queued_age_seconds") < 60


async def test_the_process_and_what_it_holds_are_seen(server: Served) -> None:
    found = await scrape(server.address)
    assert found.value("build_info", version=__version__) == 1
    assert found.value("database_up") == 1
    assert found.value("database_connections", state="max") == 20
    assert 1 <= found.value("database_connections", state="open") <= 20
    assert found.value("database_waiting") == 0
    assert found.value("sandbox_sessions", state="warm") == 0
    assert found.samples["process_resident_memory_bytes"][0][1] > 1e6
    assert found.samples["process_cpu_seconds_total"][0][1] > 0

    async def loop_was_timed() -> bool:
        return (await scrape(server.address)).value("event_loop_lag_seconds_count") > 0

    await eventually(loop_was_timed)


async def test_without_the_database_the_rest_is_told(server: Served, database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("LOCK TABLE vector_store_files")
        found = await scrape(server.address)
    assert found.value("database_up") == 0
    assert "threadmill_runs" not in found.families
    assert found.value("build_info") == 1


async def test_who_waits_for_a_limit_is_not_taken_for_a_full_queue(
    server: Served, model: ScriptedModel, talk: Conversation, database: Database
) -> None:
    model.reply(Reply(tool_calls=[ToolCall("get_weather")]))
    assert (await talk.run()).status == "requires_action"
    async with database.transaction() as judging, database.connection() as connection:
        await limits.lock_project(judging, DEFAULT_PROJECT_ID)  # or it would be let in
        await workers.renew(connection, "somebody", 3600)
        await connection.execute(
            "UPDATE runs SET status = 'queued', required_action = NULL, slot = 'waiting',"
            " worker = 'somebody', queued_at = extract(epoch FROM now()) - 42"
        )
        found = await scrape(server.address)
    assert found.value("runs", status="queued") == 1
    assert found.value("runs_behind_limits") == 1
    assert found.value("runs_oldest_queued_age_seconds") == 0


async def test_tokens_of_calls_that_are_passed_on_are_counted_too(
    server: Served, model: ScriptedModel, client: openai.AsyncOpenAI
) -> None:
    model.reply(Reply("Hi.", usage={"prompt_tokens": 11, "completion_tokens": 3}))
    await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "Hi"}]
    )

    async def are_counted() -> bool:
        found = await scrape(server.address)
        counted = [found.value("tokens_total", kind=kind) for kind in ("prompt", "completion")]
        return counted == [11, 3]

    await eventually(are_counted)


async def test_processes_of_one_command_are_told_apart(
    database_url: str, model: ScriptedModel, tmp_path: Path
) -> None:
    """Whichever of them is asked, and also when one was killed and started again."""
    async with launcher(database_url, model, tmp_path) as launch:
        server = await launch("serve", "--workers", "2")

        async def both_answer() -> bool:
            return (await scrape(server.address)).value("process_up") == 2

        await eventually(both_answer)
        found = await scrape(server.address)
        assert found.labels("build_info", "process") == {"1", "2"}
        children = psutil.Process(server.pid).children()
        assert len(children) == 2
        children[0].kill()

        async def one_is_away() -> bool:
            return (await scrape(server.address)).value("process_up") == 1

        await eventually(one_is_away)  # it is started again after a second
        await eventually(both_answer)


# --- that it stays small ---


def test_names_of_models_are_told_apart_up_to_a_limit() -> None:
    metrics = Metrics(["gpt-4o"])
    for n in range(1000):
        metrics.model_tried(f"invented-{n}", 404, answered=False)
    for n in range(1000):
        metrics.model_tried(f"served-{n}", 200, answered=True)
    metrics.model_tried("gpt-4o", 503, answered=False)
    found = Scrape(rendered({"": metrics.families()}).decode())
    told_apart = found.labels("model_tries_total", "model")
    assert len(told_apart) == 52  # those of the settings, 50 that have answered, and the others
    assert not any(model.startswith("invented") for model in told_apart)
    assert found.value("model_tries_total", model="gpt-4o", outcome="5xx") == 1
    assert found.value("model_tries_total", model="other", outcome="4xx") == 1000
    assert found.value("model_tries_total", model="other", outcome="ok") == 950


async def test_many_scrapes_at_once_ask_the_database_once(
    server: Served, database: Database
) -> None:
    async with database.transaction() as connection:
        # Whoever asks now waits, and all the others with it.
        await connection.execute("LOCK TABLE vector_store_files")
        scrapes = asyncio.gather(*(scrape(server.address) for _ in range(10)))

        async def one_waits() -> bool:
            async with database.connection() as other:
                cursor = await other.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database() AND query LIKE '%files_waiting%'"
                )
                return await cursor.fetchone() == (1,)

        await eventually(one_waits)
        await asyncio.sleep(0.2)  # for those that would come second
        assert await one_waits()
    found = await scrapes
    assert len({one.value("database_up") for one in found}) == 1


async def test_a_million_runs_that_ended_cost_nothing(database: Database) -> None:
    """The plan is looked at, not the clock."""
    async with database.connection() as connection:
        await connection.execute("SET enable_seqscan = off")
        cursor = await connection.execute(f"EXPLAIN {sight.UNDER_WAY}")
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    assert "runs_active_thread_key" in plan


# --- who may read it ---


async def test_without_keys_it_is_open_on_this_machine_only(server: Served) -> None:
    await scrape(server.address)
    assert (await refused(server.address, Host="evil.example"))[0] == 421


async def test_where_keys_are_demanded_it_wants_one_of_its_own(serve: Serve) -> None:
    async with serve(api_keys=[SecretStr("sk-a-static-key")]) as server:
        status, text = await refused(server.address)
        assert status == 401
        assert "THREADMILL_METRICS_KEY" in text
        # A client's key opens the API, not this.
        assert (await refused(server.address, Authorization="Bearer sk-a-static-key"))[0] == 401


async def test_its_own_key_opens_it_and_nothing_else(serve: Serve) -> None:
    async with serve(
        api_keys=[SecretStr("sk-a-static-key")], metrics_key=SecretStr("for-prometheus")
    ) as server:
        await scrape(server.address, key="for-prometheus")
        assert (await refused(server.address))[0] == 401
        assert (await refused(server.address, Authorization="Bearer for-prometheu"))[0] == 401
        headers = {"Authorization": "Bearer for-prometheus"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"{server.address}/v1/assistants") as answer,
        ):
            assert answer.status == 401


async def test_with_a_key_it_is_closed_to_all_others_even_on_this_machine(serve: Serve) -> None:
    async with serve(metrics_key=SecretStr("for-prometheus")) as server:
        assert (await refused(server.address))[0] == 401
        await scrape(server.address, key="for-prometheus")


# --- several processes ---


async def test_who_shares_a_port_is_told_apart_whoever_is_asked(
    settings: Settings, model: ScriptedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "siblings"
    folder.mkdir()
    async with (
        served(settings, siblings=Siblings(folder, 1)) as one,
        served(settings, siblings=Siblings(folder, 2)) as two,
        openai.AsyncOpenAI(api_key="any", base_url=f"{two.address}/v1") as client,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        model.answer = lambda _: Reply("Yes.")
        for _ in range(3):
            await (await Conversation.begin(client, assistant.id)).run()
        for asked in (one, two):
            found = await scrape(asked.address)
            assert found.value("runs_ended_total", status="completed") == 3
            assert found.value("runs_ended_total", status="completed", process="2") == 3
            assert found.value("process_up") == 2
            assert found.labels("build_info", "process") == {"1", "2"}
            assert len(found.families) == len(set(found.families))
            # What is in the database is there once.
            assert len(found.samples["threadmill_runs_oldest_queued_age_seconds"]) == 1
        await asyncio.to_thread((folder / "2").unlink)
        deaf = await asyncio.start_unix_server(lambda reader, writer: writer.close(), folder / "2")
        found = await scrape(one.address)
        assert found.value("process_up", process="1") == 1
        assert found.value("process_up", process="2") == 0
        deaf.close()
        await deaf.wait_closed()


async def test_a_worker_answers_on_a_port_of_its_own(
    database_url: str, model: ScriptedModel, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with launcher(database_url, model, tmp_path) as launch:
        await launch("worker", THREADMILL_METRICS_PORT=str(port))
        found = await scrape(f"http://127.0.0.1:{port}")
        assert found.value("build_info") == 1
        assert found.value("database_up") == 1
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                assert answer.status == 200
            async with http.get(f"http://127.0.0.1:{port}/v1/threads") as answer:
                assert answer.status == 404


# --- the dashboard and the alerts ---


def queries_of_dashboard() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def queries_of_alerts() -> list[str]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:threadmill|process)_\w+", query))


@pytest.mark.parametrize("queries", [queries_of_dashboard, queries_of_alerts])
async def test_every_metric_that_is_asked_for_is_there(
    server: Served, queries: Callable[[], list[str]]
) -> None:
    text = (await scrape(server.address)).text
    typed = dict(re.findall(r"(?m)^# TYPE (\w+) (\w+)$", text))
    # Told only by processes that share a port.
    typed["threadmill_process_up"] = "gauge"
    there = set(typed)
    for name, kind in typed.items():
        if kind == "histogram":
            there |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    asked_for = {name for query in queries() for name in metrics_in(query)}
    assert len(asked_for) >= 3
    assert asked_for <= there, asked_for - there


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "threadmill"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) >= 12
    for panel in dashboard["panels"]:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    rows = [
        (place["x"], place["y"], place["w"], place["h"])
        for place in (panel["gridPos"] for panel in dashboard["panels"])
    ]
    for n, (x, y, w, h) in enumerate(rows):
        assert x + w <= 24
        for a, b, c, d in rows[n + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y, "panels overlap"
