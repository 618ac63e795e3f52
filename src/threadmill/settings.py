"""Every setting, read once: environment variables THREADMILL_..., a TOML file where one is."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class ModelRoute(BaseModel):
    """One entry of the `[models]` table: where requests for a model name (or pattern) go."""

    model_config = ConfigDict(extra="forbid")

    base_url: str | None = None  # the default endpoint's when left out
    api_key: SecretStr | None = None
    upstream_name: str | None = None  # what the endpoint calls the model; default: the same name
    context_window_tokens: int | None = Field(default=None, ge=1)
    fallbacks: list[str] = []  # model names that are tried in turn when this one cannot answer
    # "max_tokens" is what most servers know; OpenAI's newer models want "max_completion_tokens".
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] | None = None


class Price(BaseModel):
    """One entry of the `[prices]` table: dollars for a million tokens of a model."""

    model_config = ConfigDict(extra="forbid")

    input: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)  # of the prompt; the input's when left out
    output: float = Field(ge=0)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="THREADMILL_", extra="ignore", env_ignore_empty=True, validate_default=False
    )

    # --- where things are ---
    database_url: str | None = None  # external Postgres with pgvector; else the embedded one
    data_dir: Path = Path(platformdirs.user_data_dir("threadmill", appauthor=False))
    blob_url: str | None = None  # file:///..., s3://bucket/prefix, gs://, az://; else in data_dir
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    # Further names by which clients reach a server that is bound to loopback (behind a proxy, say).
    allowed_hosts: Annotated[list[str], NoDecode] = []

    # --- the model endpoint ---
    model_base_url: str | None = None  # falls back to OPENAI_BASE_URL
    model_api_key: SecretStr | None = None  # falls back to OPENAI_API_KEY
    models: dict[str, ModelRoute] = {}  # by name or pattern ("gpt-*"); the TOML file's [models]
    embedding_base_url: str | None = None  # falls back to the model endpoint
    embedding_api_key: SecretStr | None = None
    embedding_model: str | None = None  # unset: file search works by text alone
    embedding_dimensions: int | None = Field(default=None, ge=1)
    embedding_batch_max_texts: int = Field(default=64, ge=1)  # in one request
    # What stores may name as `search.rerank_url`: else any client could have us call any address.
    rerank_urls: Annotated[list[str], NoDecode] = []
    ingest_max_concurrent_files: int = Field(default=2, ge=1)  # in one process
    ingest_max_attempts: int = Field(default=3, ge=1)  # without progress, then `failed`
    embedding_max_concurrent_requests: int = Field(default=4, ge=1)
    model_connect_timeout_s: float = Field(default=10, gt=0)
    model_idle_timeout_s: float = Field(default=120, gt=0)  # silence of a stream before it is cut
    model_max_attempts: int = Field(default=4, ge=1)  # tries per model before its fallbacks
    model_max_retry_wait_s: float = Field(default=20, gt=0)  # the longest wait between two tries
    context_window_tokens: int = Field(default=128_000, ge=1)  # of models not named in [models]
    tokenizer_download_timeout_s: float = Field(default=10, ge=0)  # 0: tokens are estimated

    # --- who may use it ---
    api_keys: Annotated[list[SecretStr], NoDecode] = []  # static keys of the project "default"
    admin_key: SecretStr | None = None  # opens /v1/organization, and nothing else; unset: closed
    require_beta_header: bool = False  # refuse requests without OpenAI-Beta: assistants=v2
    # The original refused to hand out files of the purposes assistants and user_data.
    allow_assistants_file_download: bool = False

    # --- the dashboard ---
    dashboard: bool = True  # at /ui; off: nothing of it is loaded
    # Whether people find threads by what was said in them. The index costs each message 0.1 ms.
    thread_text_search: bool = True
    assistant_versions_max: int = Field(
        default=100, ge=0
    )  # of one assistant, to go back to; 0: off
    # By name or pattern, as [models]: what usage costs is shown for the models that are here.
    prices: dict[str, Price] = {}

    # --- runs ---
    # False: this process only answers requests; others execute runs and read documents.
    executor: bool = True
    run_expires_after_s: int = Field(default=600, ge=1)
    run_lease_s: float = Field(default=10, gt=0)  # how long a dead process keeps its runs
    run_max_attempts: int = Field(default=3, ge=1)  # executions without progress, then `failed`
    run_max_turns: int = Field(default=100, ge=1)  # model turns of one run: stops endless loops
    max_concurrent_runs: int = Field(default=1000, ge=1)  # in one process; more wait `queued`
    # Between the signal to stop and the end of listening: /readyz says 503, and a balancer notices.
    drain_delay_s: float = Field(default=0, ge=0)
    drain_timeout_s: float = Field(default=20, ge=0)  # at shutdown, before runs are handed back
    keep_requests: bool = True  # keep the exact request of every model turn with its step
    draft_interval_s: float = Field(default=2, gt=0)  # how often half-written messages are saved
    # How long after a run's end its events can be followed; 0: not at all, and a stream is executed
    # by the process that is asked for it, whether that has room or not.
    event_log_retention_s: int = Field(default=3600, ge=0)
    event_log_run_max_bytes: int = Field(default=32 * 1024**2, ge=1024**2)  # older ones go
    stream_keep_alive_s: float = Field(default=15, gt=0)
    stream_backlog_max_bytes: int = Field(default=16 * 1024**2, ge=1024)  # unread by a slow client

    # --- webhooks ---
    # Off, they go to the public internet alone, and by https alone: else any client could have us
    # call what only we can reach. On where the receivers are in the server's own network.
    webhook_allow_private_addresses: bool = False
    webhook_timeout_s: float = Field(default=15, gt=0)
    # Before each further try of one that failed; about three days in all.
    webhook_retry_waits_s: Annotated[list[float], NoDecode] = [
        *(5, 300, 1800),
        *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)),
    ]

    # --- limits ---
    request_body_max_bytes: int = Field(default=32 * 1024**2, ge=1024)
    image_max_bytes: int = Field(default=20 * 1024**2, ge=1)  # of an image given to a model
    file_max_bytes: int = Field(default=512 * 1024**2, ge=1)
    database_pool_max_connections: int = Field(default=20, ge=2)

    # --- reading documents; each is read by a process of its own, which these limit ---
    parse_concurrency: int = Field(default=2, ge=1)  # documents at once; each takes a core
    parse_memory_max_bytes: int = Field(default=1024**3, ge=64 * 1024**2)  # bombs take all
    parse_cpu_max_s: int = Field(default=120, ge=1)  # 5 million tokens of text take 10
    parse_wall_max_s: float = Field(default=300, gt=0)  # without the time that embedding takes
    parse_output_max_bytes: int = Field(default=256 * 1024**2, ge=1024)  # of text from one file
    file_max_tokens: int = Field(default=5_000_000, ge=1)  # in a vector store; the original's limit

    # --- the sandbox ---
    docker_hosts: Annotated[list[str], NoDecode] = []  # falls back to DOCKER_HOST, local socket
    sandbox_image: str = "threadmill-sandbox:latest"
    sandbox_runtime: str | None = None  # of the engine, such as "runsc" (gVisor); its default
    sandbox_cell_timeout_s: float = Field(default=120, gt=0)  # of one execution of code
    sandbox_idle_s: float = Field(default=1200, gt=0)  # then an unused session is removed
    sandbox_lifetime_s: float = Field(default=3600, gt=0)  # of a session, however busy
    sandbox_warm_sessions: int = Field(default=1, ge=0)  # kept ready by each process
    sandbox_max_sessions: int = Field(default=20, ge=1)  # on one engine, warm ones included
    sandbox_max_waiting: int = Field(default=100, ge=0)  # runs in one process, for a full engine
    sandbox_queue_timeout_s: float = Field(default=60, gt=0)  # how long they wait
    sandbox_memory_max_bytes: int = Field(default=1024**3, ge=256 * 1024**2)  # files included
    sandbox_cpus: float = Field(default=1.0, gt=0)
    sandbox_pids_max: int = Field(default=256, ge=32)  # threads count
    sandbox_disk_max_bytes: int = Field(default=512 * 1024**2, ge=1024**2)  # of /mnt/data
    sandbox_tmp_max_bytes: int = Field(default=128 * 1024**2, ge=1024**2)  # of /tmp
    sandbox_inodes_max: int = Field(default=20_000, ge=1000)  # in each of the two
    sandbox_file_max_bytes: int = Field(default=256 * 1024**2, ge=1)  # of one, in or out
    # Of a Docker engine; starting eight containers at once on two busy cores took 6.
    sandbox_engine_timeout_s: float = Field(default=20, gt=0)
    sandbox_output_max_files: int = Field(default=50, ge=0)  # kept of what one cell has written

    # --- watching it ---
    # What /metrics wants as a bearer token. Without it /metrics is as open as the API: it answers
    # as long as no API key is demanded, and then no more.
    metrics_key: SecretStr | None = None
    # Where `threadmill worker`, which has no other port, answers /metrics; unset: nowhere.
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    log_requests: bool = False  # a line for every request, not only for those that fail
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @field_validator(
        "api_keys",
        "allowed_hosts",
        "docker_hosts",
        "rerank_urls",
        "webhook_retry_waits_s",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take a comma-separated string, as environment variables hold one, or a list."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @property
    def endpoint_base_url(self) -> str | None:
        return self.model_base_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def endpoint_api_key(self) -> str | None:
        if self.model_api_key:
            return self.model_api_key.get_secret_value()
        return os.environ.get("OPENAI_API_KEY") or None

    @property
    def files_url(self) -> str:
        return self.blob_url or f"file://{self.data_dir.absolute() / 'files'}"

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed in wins over the environment, and that over the file named by
        THREADMILL_CONFIG (default: threadmill.toml in the working folder, if there is one)."""
        toml = Path(os.environ.get("THREADMILL_CONFIG", "threadmill.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml)
