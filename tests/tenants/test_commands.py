"""What people type about projects, keys and retention: real commands on a real database."""

from pathlib import Path

import pytest

from processes import Terminal
from threadmill.store.database import Database


@pytest.fixture
def terminal(database_url: str, tmp_path: Path) -> Terminal:
    return Terminal(database_url, tmp_path)


async def test_limits_are_set_shown_and_taken_away(terminal: Terminal) -> None:
    _, made = await terminal.type("keys", "create", "--project", "acme")
    key_id = made.split()[0]
    status, shown = await terminal.type(
        "projects", "set", "acme", "--max-concurrent-runs", "3", "--files-max-age-days", "9"
    )
    assert (status, shown.split()[1:]) == (
        0,
        ["acme", "max_concurrent_runs=3", "files_max_age_days=9"],
    )
    await terminal.type("projects", "set", "acme", "--max-concurrent-runs", "none")
    status, listed = await terminal.type("projects", "list")
    assert [line.split()[2:] for line in listed.splitlines()] == [
        ["default"],
        ["acme", "files_max_age_days=9"],
    ]
    assert await terminal.type("keys", "set", key_id, "--max-stored-bytes", "10") == (
        0,
        f"{key_id}  max_stored_bytes=10\n",
    )


async def test_what_cannot_be_is_refused_with_a_line(terminal: Terminal) -> None:
    for words, told in (
        (("projects", "set", "nobody"), "There is no project nobody.\n"),
        (("keys", "set", "key_x"), "There is no valid key key_x.\n"),
        (
            ("projects", "set", "default", "--max-stored-bytes", "0"),
            "--max-stored-bytes wants a number from 1 on, or none.\n",
        ),
    ):
        assert await terminal.type(*words) == (1, told)


async def test_a_dry_run_removes_nothing_and_says_what_the_real_one_does(
    terminal: Terminal, database: Database
) -> None:
    async with database.connection() as connection:
        await connection.execute("UPDATE projects SET threads_max_age_days = 1")
        await connection.execute(
            "INSERT INTO threads (id, project_id, created_at, tool_resources, active_at)"
            " VALUES ('thread_a', 'proj_default', 1, '{}', 1)"
        )
    planned = await terminal.type("retention", "--dry-run")
    assert planned == (
        0,
        "default: 1 threads, 0 bytes, oldest 1970-01-01 00:00:01+00:00\n"
        "default: 0 files, 0 bytes\ndefault: 0 requests, 0 bytes\n",
    )
    assert await terminal.type("retention", "--project", "default") == planned
    status, after = await terminal.type("retention")
    assert (status, after.splitlines()[0]) == (0, "default: 0 threads, 0 bytes")


@pytest.mark.parametrize("command", ["keys list", "migrate", "serve --port 0"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresq://me:open-sesame@127.0.0.1:1/x", "cannot be understood. It reads like postg"),
        ("postgresql://me:open-sesame@127.0.0.1:1/x", "is THREADMILL_DATABASE_URL right?"),
    ],
)
async def test_a_database_that_is_not_there_is_told_with_the_setting_and_without_its_password(
    tmp_path: Path, command: str, url: str, expected: str
) -> None:
    status, printed = await Terminal(url, tmp_path).type(*command.split())
    assert status == 1
    assert expected in printed
    assert "open-sesame" not in printed
    assert "Traceback" not in printed
