"""Which endpoint serves a model name, under which name there, and with which key."""

import base64
from collections.abc import Mapping
from fnmatch import fnmatchcase
from urllib.request import getproxies, proxy_bypass

import msgspec
from pydantic import SecretStr
from yarl import URL

from threadmill.settings import LOOPBACK_HOSTS, ModelRoute, Settings


class Endpoint(msgspec.Struct, frozen=True):
    """A base URL with what every request to it carries."""

    base_url: URL  # without credentials
    headers: Mapping[str, str]  # Authorization, where there is something to say
    secrets: tuple[str, ...]  # what no message may repeat
    proxy: URL | None
    proxy_headers: Mapping[str, str] | None

    def url(self, path: str) -> URL:
        # Azure's base URLs carry ?api-version=..., which has to come after the path.
        return (self.base_url / path).with_query(self.base_url.query)

    def __str__(self) -> str:
        return str(self.base_url.with_query(None))


class Route(msgspec.Struct, frozen=True):
    model: str  # as the client named it
    upstream_name: str
    endpoint: Endpoint
    max_tokens_parameter: str
    context_window_tokens: int
    fallbacks: tuple[str, ...]


class Routes:
    """Resolves model names: an exact entry, else the longest pattern, else the default endpoint."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.default = default_endpoint(settings)
        self._entries = {
            name: (entry, self._endpoint_of(entry)) for name, entry in settings.models.items()
        }
        self._patterns = sorted(filter(_is_pattern, settings.models), key=len, reverse=True)
        # The same handful of names comes over and over; clients may invent names, hence the bound.
        self._known: dict[str, Route | None] = {}

    @property
    def names(self) -> list[str]:
        return [name for name in self._entries if not _is_pattern(name)]

    @property
    def secrets(self) -> set[str]:
        endpoints = [endpoint for _, endpoint in self._entries.values()]
        return {
            secret
            for one in [self.default, *endpoints]
            if one is not None
            for secret in one.secrets
        }

    def is_named(self, model: str) -> bool:
        """By an entry of its own or a pattern."""
        return model in self._entries or any(fnmatchcase(model, one) for one in self._patterns)

    def find(self, model: str) -> Route | None:
        if model not in self._known:
            if len(self._known) >= 1000:
                self._known.clear()
            self._known[model] = self._resolve(model)
        return self._known[model]

    def _resolve(self, model: str) -> Route | None:
        entry, endpoint = self._entry(model)
        if endpoint is None:
            return None
        return Route(
            model=model,
            upstream_name=entry.upstream_name or model,
            endpoint=endpoint,
            max_tokens_parameter=entry.max_tokens_parameter or _limit_of(endpoint),
            context_window_tokens=(
                entry.context_window_tokens or self._settings.context_window_tokens
            ),
            fallbacks=tuple(entry.fallbacks),
        )

    def _entry(self, model: str) -> tuple[ModelRoute, Endpoint | None]:
        if model in self._entries:
            return self._entries[model]
        for pattern in self._patterns:
            if fnmatchcase(model, pattern):
                return self._entries[pattern]
        return ModelRoute(), self.default

    def _endpoint_of(self, entry: ModelRoute) -> Endpoint | None:
        return _endpoint(self._settings, entry.base_url, entry.api_key)


def default_endpoint(settings: Settings) -> Endpoint | None:
    return _endpoint(settings, None, None)


def embedding_endpoint(settings: Settings) -> Endpoint | None:
    return _endpoint(settings, settings.embedding_base_url, settings.embedding_api_key)


def _endpoint(
    settings: Settings, base_url: str | None, api_key: SecretStr | None
) -> Endpoint | None:
    default = settings.endpoint_base_url
    if base_url is None and default is None:
        return None
    if api_key is not None and api_key.get_secret_value():
        return endpoint(base_url or default or "", api_key.get_secret_value())
    # The default key goes to the default endpoint only, never to someone else's server.
    is_default = base_url is None or base_url.rstrip("/") == (default or "").rstrip("/")
    return endpoint(base_url or default or "", settings.endpoint_api_key if is_default else None)


def endpoint(base_url: str, api_key: str | None) -> Endpoint:
    url = URL(base_url.strip().rstrip("/"))
    if url.scheme not in ("http", "https") or not url.host:
        shown = url.with_user(None) if url.host else base_url
        raise ValueError(f"A model endpoint's URL begins with http:// or https://, not: '{shown}'")
    url = url.with_path(url.path.rstrip("/"), keep_query=True)
    key = (api_key or "").strip()  # keys read from files end in a newline
    secrets = tuple(secret for secret in (key, url.password or "") if _is_secret(secret))
    headers = {"Authorization": f"Bearer {key}"} if key else _basic_authorization(url)
    bare = url.with_user(None)
    proxy = _proxy_for(bare)
    if proxy is None:
        return Endpoint(bare, headers, secrets, None, None)
    secrets += tuple(filter(_is_secret, [proxy.password or ""]))
    proxy_headers = {f"Proxy-{name}": value for name, value in _basic_authorization(proxy).items()}
    proxy = proxy.with_user(None)
    if bare.scheme == "https":
        return Endpoint(bare, headers, secrets, proxy, proxy_headers)
    # aiohttp sends `proxy_headers` with CONNECT only; without a tunnel the request carries them.
    return Endpoint(bare, {**headers, **proxy_headers}, secrets, proxy, None)


def _is_secret(value: str) -> bool:
    # Local servers are given "none", "EMPTY" or "ollama": words that messages may well contain.
    return len(value) >= 8


def _basic_authorization(url: URL) -> dict[str, str]:
    if url.user is None and url.password is None:
        return {}
    pair = f"{url.user or ''}:{url.password or ''}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}


def _proxy_for(url: URL) -> URL | None:
    """What HTTP_PROXY, HTTPS_PROXY and NO_PROXY say, asked once.

    aiohttp's own `trust_env` asks in a thread at every request, sends ~/.netrc passwords along,
    and sends requests for this machine to the proxy unless NO_PROXY forbids it.
    """
    host = url.host or ""
    if host in LOOPBACK_HOSTS or proxy_bypass(host):
        return None
    proxy = getproxies().get(url.scheme)
    if not proxy:
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")


def _limit_of(endpoint: Endpoint) -> str:
    host = endpoint.base_url.host or ""
    openai = host == "api.openai.com" or host.endswith(".openai.azure.com")
    return "max_completion_tokens" if openai else "max_tokens"


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")
