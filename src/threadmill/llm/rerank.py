"""A rerank endpoint: what Cohere, Jina, and the servers that speak like them call `/rerank`."""

from typing import Any

import aiohttp
import msgspec

_TIMEOUT_S = 10.0
_ANSWER_MAX_BYTES = 4 * 1024**2


class RerankError(Exception):
    """The endpoint did not answer, or not with what was asked for."""


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Answer(msgspec.Struct):
    results: list[_Result]


async def rerank(
    url: str, model: str | None, query: str, documents: list[str]
) -> list[tuple[int, float]]:
    """Index and relevance of the documents, best first. Raises RerankError."""
    body: dict[str, Any] = {"query": query, "documents": documents, "top_n": len(documents)}
    if model is not None:
        body["model"] = model
    try:
        answer = await _posted(url, body)
        results = msgspec.json.decode(answer, type=_Answer).results
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RerankError(str(error) or type(error).__name__) from error
    found = {result.index: result.relevance_score for result in results}
    if not all(0 <= index < len(documents) for index in found):
        raise RerankError("It named a document that it was not given.")
    return sorted(found.items(), key=lambda item: -item[1])


async def _posted(url: str, body: dict[str, Any]) -> bytes:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, json=body, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise RerankError(f"It answered with status {response.status}.")
        answer = bytearray()
        async for part in response.content.iter_any():
            answer += part
            if len(answer) > _ANSWER_MAX_BYTES:
                raise RerankError("Its answer is too long.")
    return bytes(answer)
