"""/chat/completions, /completions and /embeddings: what a client of the same base_url asks models
directly"""

import asyncio
from typing import Any

import msgspec
import orjson
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threadmill.api.deps import ProjectId, RuntimeDep, raw_body
from threadmill.errors import ApiError, InvalidRequest, NotFound, Relayed, UpstreamFault
from threadmill.llm.passthrough import EMBEDDINGS, Passage, Refused, pass_on
from threadmill.llm.stream import UpstreamError
from threadmill.runtime import Runtime
from threadmill.schemas.parse import decode, shown
from threadmill.store import calls
from threadmill.store.database import DatabaseError

router = APIRouter()
log = structlog.get_logger()

_MODEL_NAME_MAX_CHARACTERS = 256


@router.post("/chat/completions")
async def create_chat_completion(
    project_id: ProjectId, runtime: RuntimeDep, request: Request
) -> Response:
    return await _passed_on(runtime, project_id, request, "chat/completions")


@router.post("/completions")
async def create_completion(
    project_id: ProjectId, runtime: RuntimeDep, request: Request
) -> Response:
    return await _passed_on(runtime, project_id, request, "completions")


@router.post("/embeddings")
async def create_embeddings(
    project_id: ProjectId, runtime: RuntimeDep, request: Request
) -> Response:
    return await _passed_on(runtime, project_id, request, EMBEDDINGS)


# As Azure's clients ask; there the deployment is the model, whatever the body says.
@router.post("/deployments/{deployment}/{path:path}")
async def ask_deployment(
    project_id: ProjectId, runtime: RuntimeDep, request: Request, deployment: str, path: str
) -> Response:
    if path not in ("chat/completions", "completions", EMBEDDINGS):
        raise NotFound(f"Invalid URL (POST {shown(request.url.path)})")
    return await _passed_on(runtime, project_id, request, path, model=deployment)


async def _passed_on(
    runtime: Runtime, project_id: str, request: Request, path: str, *, model: str | None = None
) -> Response:
    raw = await raw_body(request)
    sent = decode(raw)
    if model is not None and sent.get("model") != model:
        sent["model"] = model
        raw = orjson.dumps(sent)
    if not isinstance(sent.get("model"), str) or not sent["model"]:
        raise InvalidRequest("you must provide a model parameter", param="model")
    if len(sent["model"]) > _MODEL_NAME_MAX_CHARACTERS or "\0" in sent["model"]:
        raise _unknown_model(sent["model"])
    return _PassedOn(runtime, project_id, path, raw, sent)


class _PassedOn(Response):
    """Asks the model while its client listens, and no longer."""

    def __init__(
        self, runtime: Runtime, project_id: str, path: str, raw: bytes, sent: dict[str, Any]
    ) -> None:
        super().__init__()  # FastAPI passes on what it knows as a response
        self._runtime = runtime
        self._project_id = project_id
        self._path = path
        self._raw = raw
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asking = asyncio.create_task(self._ask(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not asking.done():
                asking.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)
        if not asking.cancelled():
            asking.result()

    async def _ask(self, send: Send) -> None:
        try:
            passage = await pass_on(self._runtime.models, self._path, self._raw, self._sent)
        except Refused as refused:
            error = _error(refused, self._sent["model"])
            if refused.status != 429 or refused.retry_after_s is None:
                raise error from None
            await _send_whole(
                send,
                error.status,
                "application/json",
                msgspec.json.encode(error.body()),
                [(b"retry-after-ms", str(int(refused.retry_after_s * 1000)).encode())],
            )
            return
        try:
            await self._pass_back(passage, send)
        finally:
            passage.close()
            await self._count(passage)

    async def _pass_back(self, passage: Passage, send: Send) -> None:
        if not passage.is_stream:
            try:
                body = await passage.whole()
            except UpstreamError as failure:
                raise UpstreamFault(self._runtime.models.words(failure.message)) from failure
            await _send_whole(send, 200, passage.content_type, body)
            return
        headers = [
            (b"content-type", passage.content_type.encode("latin-1")),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # or nginx gathers the events
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for piece in passage.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except UpstreamError as failure:
            # The SDKs raise what stands under `error`; a stream that just ended looks complete.
            error = UpstreamFault(self._runtime.models.words(failure.message)).body()
            told = b"data: %b\n\n" % msgspec.json.encode(error)
            await send({"type": "http.response.body", "body": told, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _count(self, passage: Passage) -> None:
        """What the model has used. Where nobody told, or the client left before, it is counted here
        as well as it can be: an event of a stream is about a token."""
        usage = passage.usage
        prompt_tokens = usage.prompt_tokens if usage else None
        completion_tokens = usage.completion_tokens if usage else passage.events
        if prompt_tokens is None:
            asked = [self._sent.get(name) for name in ("messages", "prompt", "input")]
            [prompt_tokens] = await self._runtime.tokens.count_many(
                [msgspec.json.encode(asked).decode()], passage.model
            )
        try:
            async with self._runtime.database.connection() as connection:
                await calls.count(
                    connection,
                    self._project_id,
                    passage.model,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens or 0,
                    cached_tokens=usage.cached_tokens if usage else 0,
                    reasoning_tokens=usage.reasoning_tokens if usage else 0,
                )
        except DatabaseError as fault:  # the client has its answer
            log.warning("usage_not_counted", model=passage.model, error=str(fault).strip())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(refused: Refused, model: str) -> ApiError:
    """What an endpoint refused, as if we had: its own words, in the original's shape."""
    status = refused.status
    if status is None or status in (401, 403, 407) or not 400 <= status < 600:
        # Our key was refused, not the client's.
        return UpstreamFault(f"Model '{shown(model)}': {refused.message}")
    if status == 404 and not refused.body:
        return _unknown_model(model)
    return Relayed(status, refused.message, refused.type, refused.param, refused.code)


def _unknown_model(model: str) -> NotFound:
    return NotFound(
        f"The model '{shown(model)}' does not exist", param="model", code="model_not_found"
    )


async def _send_whole(
    send: Send,
    status: int,
    content_type: str,
    body: bytes,
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode()),
        *(more or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
