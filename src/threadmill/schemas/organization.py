"""The shapes of the administration API, after the original's own where it has them."""

from typing import Annotated, Any

import msgspec
from pydantic import Field

from threadmill.schemas.parse import Shape
from threadmill.schemas.requests import Whole

Json = dict[str, Any]

ALL_MODELS = "rl_all"  # the id of a project's one entry of limits: they are not told by model

_NAME_MAX_CHARACTERS = 256
_LIMIT_MAX = 2**53
_AGE_MAX_DAYS = 36_500

Name = Annotated[str, Field(min_length=1, max_length=_NAME_MAX_CHARACTERS)]
Limit = Annotated[Whole, Field(ge=1, le=_LIMIT_MAX)]
Age = Annotated[Whole, Field(ge=1, le=_AGE_MAX_DAYS)]

_COLUMNS = {
    "max_requests_per_1_minute": "max_requests_per_minute",
    "max_tokens_per_1_minute": "max_tokens_per_minute",
}


# --- what is sent ---


class _Fields(Shape):
    def given(self) -> dict[str, Any]:
        """What was sent, by the names of the columns; null takes a limit away."""
        return {_COLUMNS.get(name, name): getattr(self, name) for name in self.model_fields_set}


class CreateProject(_Fields):
    name: Name


class ModifyProject(_Fields):
    name: Name = ""
    hide_prompts: bool = False


class ModifyLimits(_Fields):
    max_requests_per_1_minute: Limit | None = None
    max_tokens_per_1_minute: Limit | None = None
    max_concurrent_runs: Limit | None = None
    max_stored_bytes: Limit | None = None


class CreateKey(ModifyLimits):
    name: Name


class ModifyKey(ModifyLimits):
    name: Name = ""


class ModifyRetention(_Fields):
    threads_max_age_days: Age | None = None
    files_max_age_days: Age | None = None
    requests_max_age_days: Age | None = None


# --- what is answered ---


class Project(msgspec.Struct):
    id: str
    name: str
    created_at: int
    archived_at: int | None
    hide_prompts: bool
    status: str = "active"
    object: str = "organization.project"

    def __post_init__(self) -> None:
        self.status = "active" if self.archived_at is None else "archived"


class Limits(msgspec.Struct, kw_only=True):
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None
    max_concurrent_runs: int | None
    max_stored_bytes: int | None


class RateLimit(Limits, kw_only=True):
    id: str = ALL_MODELS
    model: str = "*"
    object: str = "project.rate_limit"


class ApiKey(Limits, kw_only=True):
    id: str
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    owner: Json
    owner_project_access: str = "active"
    object: str = "organization.project.api_key"


class NewApiKey(ApiKey, kw_only=True):
    value: str  # told this once


class Retention(msgspec.Struct):
    threads_max_age_days: int | None
    files_max_age_days: int | None
    requests_max_age_days: int | None
    object: str = "project.data_retention"


def limits_of(row: Any) -> Json:
    return {
        "max_requests_per_1_minute": row.max_requests_per_minute,
        "max_tokens_per_1_minute": row.max_tokens_per_minute,
        "max_concurrent_runs": row.max_concurrent_runs,
        "max_stored_bytes": row.max_stored_bytes,
    }
