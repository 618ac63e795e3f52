"""The log: one form for what we say and what libraries say, and nothing in it that is secret.

What leaves here is read by more people than may read the conversations. Nobody should log a key
or a text in the first place; the last look is for what slips into the words of an exception.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog
from pydantic import SecretStr
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

from threadmill.settings import Settings

_HIDDEN = "[hidden]"
_SECRET_MIN_CHARACTERS = 8  # local servers are given "none" or "EMPTY", words that a log may hold
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^\s:/@?#]*):[^\s/@]+@")
_PASSWORD_IN_DSN = re.compile(r"(?i)\b(password=)('(?:[^'\\]|\\.)*'|[^\s&]+)")
_CREDENTIALS = re.compile(
    r"\b((?i:bearer)) [\w.~+/=-]{8,}|\b((?i:basic)) (?=\S*[A-Z0-9=])[\w+/=-]{8,}"
)
_OUR_KEYS = re.compile(r"\bsk-[\w-]{8,}")
# Postgres quotes the row: "DETAIL:  Failing row contains (msg_1, What my client told me, ...)".
_ROW = re.compile(r"(?m)^(DETAIL|CONTEXT):.*(?:\n(?![A-Z]+:).*)*")

Event = MutableMapping[str, Any]


def set_up(settings: Settings) -> None:
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    is_json = settings.log_format == "json"
    ours: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    printed: list[Processor] = [*_tracebacks(is_json), Secrets(settings).hide, *_printed(is_json)]
    structlog.configure(
        processors=[*ours, *printed],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*ours, structlog.stdlib.add_logger_name],
            processors=[ProcessorFormatter.remove_processors_meta, *printed],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])


def _tracebacks(is_json: bool) -> list[Processor]:
    # Never with the values of variables, which both would show: keys and conversations are there.
    if is_json:
        frames = ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(frames)]
    return [structlog.processors.format_exc_info]


def _printed(is_json: bool) -> list[Processor]:
    if is_json:
        return [structlog.processors.JSONRenderer(_json)]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


class Secrets:
    def __init__(self, settings: Settings) -> None:
        words = {*_secrets_in(dict(settings)), settings.endpoint_api_key or ""}
        self._words = sorted(filter(_is_secret, words), key=len, reverse=True)

    def hide(self, _: Any, __: str, event: Event) -> Event:
        for name, value in event.items():
            event[name] = self._without(value)
        return event

    def _without(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hidden_in(value)
        if isinstance(value, dict):
            return {name: self._without(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._without(inner) for inner in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._hidden_in(str(value))

    def _hidden_in(self, text: str) -> str:
        for word in self._words:
            text = text.replace(word, _HIDDEN)
        if "://" in text:
            text = _PASSWORD_IN_URL.sub(rf"\1:{_HIDDEN}@", text)
        if "=" in text:
            text = _PASSWORD_IN_DSN.sub(rf"\1{_HIDDEN}", text)
        if " " in text:
            text = _CREDENTIALS.sub(rf"\1\2 {_HIDDEN}", text)
        if "sk-" in text:
            text = _OUR_KEYS.sub(f"sk-{_HIDDEN}", text)
        if "DETAIL:" in text or "CONTEXT:" in text:
            text = _ROW.sub(rf"\1: {_HIDDEN}", text)
        return text


def _secrets_in(value: Any) -> list[str]:
    """All that the settings mark as secret, however deep."""
    if isinstance(value, SecretStr):
        return [value.get_secret_value()]
    if isinstance(value, dict):
        return [secret for inner in value.values() for secret in _secrets_in(inner)]
    if isinstance(value, list):
        return [secret for inner in value for secret in _secrets_in(inner)]
    if hasattr(value, "model_fields_set"):
        return _secrets_in(dict(value))
    return []


def _is_secret(word: str) -> bool:
    return len(word) >= _SECRET_MIN_CHARACTERS
