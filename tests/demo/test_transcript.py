"""`threadmill demo`, as one types it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The SDK is there for tests only: the demo has to do without. Warnings would be seen in stderr.
DEMO = """
import sys
sys.modules["openai"] = None
sys.argv = ["threadmill", "demo"]
from threadmill.cli import main
main()
"""
COMMAND = [sys.executable, "-W", "error", "-c", DEMO]

FIRST_STREAM = """\
POST .../runs, streamed
thread.run.created
thread.run.queued
thread.run.in_progress
thread.run.step.created
thread.run.step.in_progress
thread.run.step.delta
thread.run.requires_action"""

SECOND_STREAM = """\
POST .../submit_tool_outputs, streamed
thread.run.step.completed
thread.run.queued
thread.run.in_progress
thread.run.step.created
thread.run.step.in_progress
thread.message.created
thread.message.in_progress
thread.message.delta
thread.message.completed
thread.run.step.completed
thread.run.completed"""

SEARCH_STREAM = """\
POST .../runs, streamed
thread.run.created
thread.run.queued
thread.run.in_progress
thread.run.step.created
thread.run.step.in_progress
thread.run.step.delta
thread.run.step.completed
thread.run.step.created
thread.run.step.in_progress
thread.message.created
thread.message.in_progress
thread.message.delta
thread.message.completed
thread.run.step.completed
thread.run.completed"""

CITATION = "\u3010\\d+:\\d+\u2020lisbon\\.md\u3011"


def test_the_demo_is_the_same_in_every_environment(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    (tmp_path / "threadmill.toml").write_text("port = 'none'")
    environment.pop("TIKTOKEN_CACHE_DIR", None)  # what is not there is done without
    demo = subprocess.run(
        COMMAND, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert demo.stderr == ""
    assert demo.returncode == 0
    wire = _wire(demo.stdout)
    assert FIRST_STREAM in wire
    assert SECOND_STREAM in wire
    assert "scripted stand-in" in demo.stdout
    # Arguments arrive in fragments that are no JSON by themselves.
    fragments = [line[8:54].rstrip() for line in demo.stdout.splitlines() if ": {" in line]
    assert fragments == ['get_weather: {"city', 'get_local_time: {"city']
    assert " model  It is 18:42 there." in demo.stdout  # which only the outputs knew
    rows = demo.stdout.partition("In the database now:")[2]
    assert rows.count(" completed ") == 2
    _check_citation(demo.stdout)
    _check_chart(demo.stdout, temporary)


def _check_chart(said: str, temporary: Path) -> None:
    """The one thing that is left behind, or the word that nothing can be drawn here."""
    left = list(temporary.iterdir())
    if "there is nothing here to run it in" in said:
        assert left == []
        return
    [chart] = left
    assert str(chart) in said
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert " model  -> 9.4%" in said


def _check_citation(transcript: str) -> None:
    assert SEARCH_STREAM in _wire(transcript)
    deltas = [line for line in transcript.splitlines() if re.match(f" model  {CITATION} ", line)]
    assert len(deltas) == 1  # whole
    shown = transcript.partition("The answer:\n\n  ")[2]
    answer, _, shown = shown.partition("\n")
    place = re.search(r"Its characters (\d+) to (\d+) are a citation:\n\n  (.*)\n", shown)
    assert place is not None
    start, end, marker = int(place[1]), int(place[2]), place[3]
    assert re.fullmatch(CITATION, marker)
    assert answer[start:end] == marker
    passage = shown.partition("Of lisbon.md, file-")[2]
    assert answer[:start].strip() in " ".join(passage.split())
    assert "one at night" in answer


@pytest.mark.parametrize(
    "line", ["scripted stand-in", "are up at", "thread.run.step.delta", "POST /v1/vector_stores"]
)
def test_an_interrupted_demo_leaves_nothing_behind(
    environment: dict[str, str], temporary: Path, line: str
) -> None:
    assert _interrupted(environment, line, times=1) == (130, "")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("line", ["are up at", "Of lisbon.md"])
def test_nor_does_one_that_is_interrupted_while_it_closes(
    environment: dict[str, str], temporary: Path, line: str
) -> None:
    code, errors = _interrupted(environment, line, times=5)
    assert code in (0, 130)  # 0: it had said all, and was closing
    assert errors == ""
    assert not list(temporary.iterdir())


def _interrupted(environment: dict[str, str], line: str, times: int) -> tuple[int, str]:
    """Exit status and errors of a demo that is sent Ctrl-C after that line."""
    with subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout
        assert any(line in said for said in iter(demo.stdout.readline, "")), "it never got there"
        for _ in range(times):
            demo.send_signal(signal.SIGINT)
            time.sleep(0.05)
        _, errors = demo.communicate(timeout=60)
        return demo.returncode, errors


def _wire(transcript: str) -> str:
    """The right column, repeated deltas once."""
    names = [line[56:] for line in transcript.splitlines() if len(line) > 56]
    once = [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    return "\n".join(once)
