"""docker-compose.yml for real, as the README's chapter says: `make compose-test`.

Not among the other tests, for it takes minutes and an engine with the compose plugin. Where no
registry is reachable: make compose-test LOCAL_IMAGES=1.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.beta.threads import Run

CHECKOUT = Path(__file__).parents[2]
IS_LOCAL = bool(os.environ.get("LOCAL_IMAGES"))
LOCAL_IMAGES = {
    "BASE_IMAGE": "threadmill-local/python",
    "POSTGRES_IMAGE": "threadmill-local/postgres",
    "ENGINE_IMAGE": "threadmill-local/engine",
    "ENCODINGS": "",
}
KEY = "sk-of-the-compose-test"
MODEL = """
services:
  model:
    image: ${THREADMILL_IMAGE}
    entrypoint: ["sh", "-c", 'exec python -c "$$MODEL"']
    environment:
      MODEL: |
        import asyncio
        from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall

        def answer(body):
            if body.get("tools") and body["messages"][-1]["role"] != "tool":
                return Reply(tool_calls=[ToolCall("code_interpreter", {"code": "print(6 * 7)"})])
            return Reply(text=[f"word{n} " for n in range(10)], delay_s=0.2)

        async def serve():
            model = ScriptedModel(keep_requests=False)
            model.answer = answer
            await model.start("0.0.0.0", 9000)
            await asyncio.Event().wait()

        asyncio.run(serve())
    networks: [out]
    healthcheck: {disable: true}
"""


class Deployment:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.address = f"http://{address}"
        (folder / "model.yml").write_text(MODEL)
        files = ["docker-compose.yml", "model.yml"]
        files += ["deploy/local-images/compose.yml"] if IS_LOCAL else []
        name = f"threadmill-test-{secrets.token_hex(4)}"
        settings = {
            "COMPOSE_PROJECT_NAME": name,
            "COMPOSE_FILE": ":".join(files),
            "THREADMILL_IMAGE": name,
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "THREADMILL_API_KEYS": KEY,
            "THREADMILL_MODEL_BASE_URL": "http://model:9000/v1",
            "THREADMILL_LISTEN": address,
            **(LOCAL_IMAGES if IS_LOCAL else {}),
        }
        lines = (f"{name}={value}\n" for name, value in settings.items())
        (folder / ".env").write_text("".join(lines))
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY)

    def compose(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        done = subprocess.run(
            ["docker", "compose", *arguments], cwd=self.folder, input=stdin, stdout=subprocess.PIPE
        )
        assert done.returncode == 0, arguments
        return done.stdout

    def type(self, commands: str) -> None:
        subprocess.run(["sh", "-e", "-c", commands], cwd=self.folder, check=True)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=5):
                return True
        except OSError:  # a 503 is one as well
            return False

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 300
        while not self.is_ready():
            assert time.monotonic() < end, self.compose("logs").decode()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = _clone(tmp_path_factory.mktemp("deployment"))
    if IS_LOCAL and not all(
        _is_made(LOCAL_IMAGES[name]) for name in LOCAL_IMAGES if "IMAGE" in name
    ):
        subprocess.run([folder / "deploy/local-images/build"], check=True)
    deployment = Deployment(folder)
    try:
        deployment.compose("up", "--detach", "--build")
        deployment.wait_until_ready()
        yield deployment
    finally:
        deployment.compose("logs")
        deployment.compose("down", "--volumes", "--rmi", "local", "--timeout", "5")
        shutil.rmtree(folder)


def _clone(above: Path) -> Path:
    """What somebody has who cloned this version, and can pull: from a copy, for the checkout may be
    on no branch, or go on to another version while this runs."""
    origin, folder = above / "origin.git", above / "threadmill"
    for command in (
        ("clone", "--quiet", "--bare", CHECKOUT, origin),
        ("-C", origin, "branch", "--force", "released", "HEAD"),
        ("clone", "--quiet", "--branch", "released", origin, folder),
    ):
        subprocess.run(["git", *command], check=True)
    return folder


def _is_made(image: str) -> bool:
    looked = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
    return looked.returncode == 0


def ask(client: openai.OpenAI, text: str = "Hello?") -> Run:
    assistant = client.beta.assistants.create(model="scripted")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": text}])
    return client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)


def test_a_run_is_streamed(deployment: Deployment) -> None:
    client = deployment.client
    assistant = client.beta.assistants.create(model="scripted")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "Hello?"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        assert "".join(stream.text_deltas)
        run = stream.current_run
    assert run is not None
    assert run.status == "completed"


def test_the_worker_goes_on_with_the_runs_of_a_server_that_is_stopped(
    deployment: Deployment,
) -> None:
    runs = [ask(deployment.client) for _ in range(5)]
    deployment.compose("kill", "server")
    deadline = time.monotonic() + 180
    statement = "SELECT count(*) FROM runs WHERE status = 'completed' AND id IN ({})".format(
        ", ".join(f"'{run.id}'" for run in runs)
    )
    psql = ("exec", "-T", "postgres", "psql", "--username=threadmill", "--tuples-only", "-c")
    while int(deployment.compose(*psql, statement)) < len(runs):
        assert time.monotonic() < deadline
        time.sleep(1)
    deployment.compose("up", "--detach")
    deployment.wait_until_ready()
    for run in runs:
        found = deployment.client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        assert found.status == "completed"


def test_files_are_seen_by_server_and_worker_and_a_document_is_found(
    deployment: Deployment,
) -> None:
    client = deployment.client
    store = client.vector_stores.create(name="handbook")
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("cat.txt", b"The cat of the house is called Mimi.")
    )
    assert file.status == "completed", file.last_error
    found = client.vector_stores.search(store.id, query="cat")
    assert "Mimi" in found.data[0].content[0].text


def test_the_engine_can_be_reached_from_the_server_alone(deployment: Deployment) -> None:
    look = (
        "import urllib.request as web;"
        "print(web.urlopen('http://engine:2375/_ping', timeout=5).read().decode())"
    )
    said = deployment.compose("exec", "-T", "server", "python", "-c", look)
    assert said.strip() == b"OK"
    look = "import socket; socket.create_connection(('engine', 2375), 5)"
    with pytest.raises(AssertionError):
        deployment.compose("exec", "-T", "model", "python", "-c", look)


def test_code_runs_in_the_engine(deployment: Deployment) -> None:
    if IS_LOCAL:  # by the last lines of the README's section
        *_, local = commands("Deployment")[:3]
        deployment.type("\n".join(local.splitlines()[2:]))
    else:
        deployment.compose("run", "--rm", "sandbox-image")
    client = deployment.client
    assistant = client.beta.assistants.create(model="m", tools=[{"type": "code_interpreter"}])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "6 * 7?"}])
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    assert run.status == "completed", run.last_error
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=thread.id, order="asc")
    details = steps.data[0].step_details
    assert details.type == "tool_calls"
    [call] = details.tool_calls
    assert call.type == "code_interpreter"
    [output] = call.code_interpreter.outputs
    assert output.type == "logs"
    assert output.logs.strip() == "42"


def test_a_backup_can_be_restored(deployment: Deployment) -> None:
    back_up, restore = commands("Backup")
    client = deployment.client
    assistant = client.beta.assistants.create(model="scripted", name="Kept")
    file = client.files.create(file=("dot.png", b"bytes"), purpose="vision")
    deployment.type(back_up)
    client.beta.assistants.delete(assistant.id)
    client.files.delete(file.id)
    deployment.type(restore)
    deployment.wait_until_ready()
    assert client.beta.assistants.retrieve(assistant.id).name == "Kept"
    assert client.files.content(file.id).read() == b"bytes"


def test_an_upgrade_keeps_what_is_there(deployment: Deployment) -> None:
    [upgrade] = commands("Upgrade")
    assistant = deployment.client.beta.assistants.create(model="scripted")
    lines = [line for line in upgrade.splitlines() if "sandbox-image" not in line]
    deployment.type("\n".join(lines))
    deployment.wait_until_ready()
    assert deployment.client.beta.assistants.retrieve(assistant.id)


def commands(chapter: str) -> list[str]:
    """What the README says to type, block by block."""
    text = (CHECKOUT / "README.md").read_text()
    [_, after] = text.split(f"\n## {chapter}\n")
    return re.findall(r"```sh\n(.*?)```", after.partition("\n## ")[0], re.DOTALL)
