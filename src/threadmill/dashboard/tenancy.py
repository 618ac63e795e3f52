"""What forms say of projects and keys, through the shapes that the administration API has."""

from typing import Any

import msgspec
import orjson

from threadmill.dashboard.forms import Form
from threadmill.schemas import organization as shapes
from threadmill.schemas.parse import parse
from threadmill.schemas.queries import Page
from threadmill.store import projects
from threadmill.store.database import Connection
from threadmill.store.rows import ApiKey, Project

_PAGE = 100

# The field of a form, the row's own name, and how people call it.
LIMITS = (
    ("max_requests_per_1_minute", "max_requests_per_minute", "requests a minute"),
    ("max_tokens_per_1_minute", "max_tokens_per_minute", "tokens a minute"),
    ("max_concurrent_runs", "max_concurrent_runs", "runs at once"),
    ("max_stored_bytes", "max_stored_bytes", "stored bytes"),
)
AGES = (
    ("threads_max_age_days", "threads_max_age_days", "threads, after their last use"),
    ("files_max_age_days", "files_max_age_days", "files"),
    ("requests_max_age_days", "requests_max_age_days", "exact prompts"),
)


class Made(msgspec.Struct):
    row: ApiKey
    key: str  # shown this once


class KeysPage(msgspec.Struct):
    rows: list[ApiKey]
    older: str | None  # the id after which there are more


async def keys_page(connection: Connection, project_id: str, after: str | None) -> KeysPage:
    cursor = Page(limit=_PAGE, after=after)
    rows, has_more = await projects.list_keys_page(connection, project_id, cursor)
    return KeysPage(rows, rows[-1].id if has_more else None)


async def make_key(connection: Connection, project: Project, form: Form) -> Made:
    """Raises InvalidRequest, in words for whoever filled it in."""
    wanted = {"name": form.get("name").strip()} | _numbers(form, LIMITS)
    fields = parse(shapes.CreateKey, orjson.dumps(wanted)).given()
    return Made(*await projects.create_key(connection, project, **fields))


def limits(form: Form) -> dict[str, Any]:
    return parse(shapes.ModifyLimits, orjson.dumps(_numbers(form, LIMITS))).given()


def ages(form: Form) -> dict[str, Any]:
    return parse(shapes.ModifyRetention, orjson.dumps(_numbers(form, AGES))).given()


def _numbers(form: Form, fields: tuple[tuple[str, str, str], ...]) -> dict[str, int | str | None]:
    """What is no number is left for the shape to refuse."""
    return {
        name: _number(form.get(name).replace(",", "").replace(" ", "")) for name, _, _ in fields
    }


def _number(text: str) -> int | str | None:
    if not text:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else text
