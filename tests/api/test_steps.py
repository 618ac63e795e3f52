from api.rows import CALL, Rows
from api.test_runs import scene
from api.wire import Refusal, Wire, events
from threadmill.demo.scripted_model import ScriptedModel

CONTENT = "step_details.tool_calls[*].file_search.results[*].content"


async def test_a_message_is_a_step(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire)
    body = {"assistant_id": assistant_id, "stream": True}
    _, run = events(await wire.send("POST", f"/threads/{thread_id}/runs", body))[-1]
    path = f"/threads/{thread_id}/runs/{run['id']}/steps"
    [step] = (await wire.get(path))["data"]
    assert await wire.get(f"{path}/{step['id']}") == step
    [message_id] = await wire.ids(f"/threads/{thread_id}/messages?run_id={run['id']}")
    assert step.pop("id").startswith("step_")
    assert step.pop("created_at") <= step.pop("completed_at")
    assert step == {
        "object": "thread.run.step",
        "run_id": run["id"],
        "assistant_id": assistant_id,
        "thread_id": thread_id,
        "type": "message_creation",
        "status": "completed",
        "cancelled_at": None,
        "expires_at": None,
        "expired_at": None,
        "failed_at": None,
        "last_error": None,
        "step_details": {
            "type": "message_creation",
            "message_creation": {"message_id": message_id},
        },
        "usage": run["usage"],
        "metadata": {},
    }


async def test_a_step_of_function_calls_waits_with_its_run(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id, "requires_action")
    [step] = (await wire.get(f"/threads/{thread_id}/runs/{run_id}/steps"))["data"]
    assert (step["status"], step["usage"]) == ("in_progress", None)
    function = CALL["function"] | {"output": None}
    assert step["step_details"]["tool_calls"] == [CALL | {"function": function}]


async def test_the_content_of_results_can_be_asked_for(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id)
    step_id = await rows.add_step(run_id)
    path = f"/threads/{thread_id}/runs/{run_id}/steps"
    for where in (path, f"{path}/{step_id}"):
        for query in (f"include[]={CONTENT}", f"include%5B%5D={CONTENT}", f"include={CONTENT}"):
            await wire.get(f"{where}?{query}")
        assert await wire.refused("GET", f"{where}?include[]={CONTENT}&include[]=x") == Refusal(
            400, f"Invalid value: 'x'. Value must be '{CONTENT}'.", "include[1]", "invalid_value"
        )


async def test_ids_must_be_those_of_a_thread_a_run_and_a_step(wire: Wire, rows: Rows) -> None:
    assistant_id, thread_id = await scene(wire)
    run_id = await rows.add_run(thread_id, assistant_id)
    other_run_id = await rows.add_run(thread_id, assistant_id)
    other_thread_id = (await wire.post("/threads"))["id"]
    step_id = await rows.add_step(run_id)
    no_step = Refusal(404, f"No run step found with id '{step_id}'.")
    no_run = Refusal(404, f"No run found with id '{run_id}'.")
    for path, refusal in (
        (
            f"{thread_id}/runs/{run_id}/steps/step_123",
            Refusal(404, "No run step found with id 'step_123'."),
        ),
        (f"{thread_id}/runs/{other_run_id}/steps/{step_id}", no_step),
        (f"{other_thread_id}/runs/{run_id}/steps/{step_id}", no_step),
        (f"{other_thread_id}/runs/{run_id}/steps", no_run),
        (f"{thread_id}/runs/run_gone/steps", Refusal(404, "No run found with id 'run_gone'.")),
        (
            f"{thread_id}/runs/{run_id}/steps/run_1",
            Refusal(
                400,
                "Invalid 'step_id': 'run_1'. Expected an ID that begins with 'step'.",
                "step_id",
                "invalid_value",
            ),
        ),
        (
            f"{thread_id}/runs/msg_1/steps",
            Refusal(
                400,
                "Invalid 'run_id': 'msg_1'. Expected an ID that begins with 'run'.",
                "run_id",
                "invalid_value",
            ),
        ),
    ):
        assert await wire.refused("GET", f"/threads/{path}") == refusal
    assert await wire.ids(f"/threads/{thread_id}/runs/{other_run_id}/steps") == []


# Not in the original.
async def test_the_request_of_a_step_can_be_read(wire: Wire, script: ScriptedModel) -> None:
    script.say("Hello")
    assistant_id, thread_id = await scene(wire, instructions="Be kind.")
    body = {"assistant_id": assistant_id, "stream": True}
    _, run = events(await wire.send("POST", f"/threads/{thread_id}/runs", body))[-1]
    path = f"/threads/{thread_id}/runs/{run['id']}/steps"
    [step_id] = await wire.ids(path)
    told = await wire.get(f"{path}/{step_id}/request")
    assert (told["step_id"], told["run_id"], told["turn"]) == (step_id, run["id"], 1)
    assert told["request"] == script.requests[-1].body
    assert told["usage"]["total_tokens"] == run["usage"]["total_tokens"]
    assert told["timings"]["generation_ms"] >= 0
    assert await wire.refused("GET", f"{path}/step_gone/request") == Refusal(
        404, "No run step found with id 'step_gone'."
    )
