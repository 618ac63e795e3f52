from collections.abc import Callable
from typing import Any

import pytest

from llm.raw_server import RawServer
from threadmill.llm.client import ModelClient, TurnRecord
from threadmill.llm.routes import Endpoint, Routes, embedding_endpoint
from threadmill.settings import ModelRoute, Settings

HERE = "http://here.example/v1"
THERE = "http://there.example/v1"


def routes(models: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Routes:
    fields = {"model_base_url": HERE, "model_api_key": "default-key", **fields}
    entries = {name: ModelRoute(**entry) for name, entry in (models or {}).items()}
    return Routes(Settings(models=entries, **fields))


def endpoint_of(found: Routes, model: str) -> Endpoint:
    route = found.find(model)
    assert route is not None
    return route.endpoint


def test_the_exact_name_wins_then_the_longest_pattern_then_the_default() -> None:
    found = routes(
        {
            "gpt-*": {"upstream_name": "any"},
            "gpt-4*": {"upstream_name": "four"},
            "gpt-4o": {"upstream_name": "exact"},
        }
    )
    names = {name: found.find(name) for name in ("gpt-4o", "gpt-4.1", "gpt-5", "llama")}
    assert {name: route and route.upstream_name for name, route in names.items()} == {
        "gpt-4o": "exact",
        "gpt-4.1": "four",
        "gpt-5": "any",
        "llama": "llama",
    }
    assert found.names == ["gpt-4o"]


def test_without_a_default_endpoint_only_what_has_its_own_is_served() -> None:
    found = routes({"a": {"base_url": THERE}, "b": {}}, model_base_url=None)
    assert str(endpoint_of(found, "a")) == THERE
    assert found.find("b") is None
    assert found.find("c") is None


def test_the_default_key_goes_to_the_default_endpoint_only() -> None:
    found = routes(
        {
            "same": {"base_url": HERE + "/"},
            "other": {"base_url": THERE},
            "own": {"base_url": THERE, "api_key": "own-key"},
            "own-here": {"api_key": "own-key"},
        }
    )
    keys = {name: endpoint_of(found, name).headers.get("Authorization") for name in found.names}
    assert keys == {
        "same": "Bearer default-key",
        "other": None,
        "own": "Bearer own-key",
        "own-here": "Bearer own-key",
    }
    embedding = embedding_endpoint(
        Settings(model_base_url=HERE, model_api_key="default-key", embedding_base_url=THERE)
    )
    assert embedding is not None
    assert embedding.headers == {}


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1//", "http://h:1/v1/chat/completions"),
        ("http://h", "http://h/chat/completions"),
        ("https://h/d/x?api-version=1", "https://h/d/x/chat/completions?api-version=1"),
        ("https://h/d/x/?api-version=1", "https://h/d/x/chat/completions?api-version=1"),
    ],
)
def test_base_urls_are_normalised(base_url: str, url: str) -> None:
    assert str(endpoint_of(routes(model_base_url=base_url), "m").url("chat/completions")) == url


def test_credentials_in_a_url_become_a_header_and_are_never_shown() -> None:
    there = "https://me:pass-word@there.example/v1"
    found = endpoint_of(routes({"m": {"base_url": there}}), "m")
    assert "pass" not in str(found)
    assert found.headers == {"Authorization": "Basic bWU6cGFzcy13b3Jk"}
    assert found.secrets == ("pass-word",)


@pytest.mark.parametrize("wrong", ["localhost:11434/v1", "ftp://h/v1", "/v1", "https://"])
def test_a_url_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="begins with http"):
        routes(model_base_url=wrong)


@pytest.mark.parametrize(
    ("base_url", "parameter"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://notapi.openai.com.example/v1", "max_tokens"),
        (HERE, "max_tokens"),
    ],
)
def test_the_name_of_the_limit_depends_on_the_host(base_url: str, parameter: str) -> None:
    found = routes({"own": {"max_tokens_parameter": "max_tokens"}}, model_base_url=base_url)
    chosen, own = found.find("m"), found.find("own")
    assert chosen is not None
    assert own is not None
    assert chosen.max_tokens_parameter == parameter
    assert own.max_tokens_parameter == "max_tokens"


def test_a_context_window_is_the_routes_or_the_default() -> None:
    found = routes({"own": {"context_window_tokens": 8000}}, context_window_tokens=9000)
    windows = [route and route.context_window_tokens for route in map(found.find, ("own", "m"))]
    assert windows == [8000, 9000]


def test_names_that_clients_invent_do_not_pile_up() -> None:
    found = routes()
    for number in range(2500):
        found.find(f"m{number}")
    assert len(found._known) <= 1000


async def test_a_proxy_is_used_with_its_password_but_not_for_this_machine(
    raw: RawServer, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = raw.base_url.split(":")[2].split("/")[0]
    monkeypatch.setenv("http_proxy", f"http://me:proxy-password@127.0.0.1:{port}")
    raw.answer(b'HTTP/1.1 200 OK\r\n\r\n{"choices":[{"message":{"content":"a"}}]}')
    entries = {"far": ModelRoute(base_url=HERE), "near": ModelRoute(base_url=raw.base_url)}
    async with ModelClient(settings(models=entries)) as client:
        for name in entries:
            assert [one async for one in client.stream(name, {}, record=TurnRecord())]
    far, near = raw.requests
    assert far.startswith(f"POST {HERE}/chat/completions HTTP/1.1".encode())
    assert b"Proxy-Authorization: Basic bWU6cHJveHktcGFzc3dvcmQ=" in far
    assert near.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert b"Proxy-Authorization" not in near
