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

from threadmill.api.deps import CallerDep, RuntimeDep, raw_body
from threadmill.api.rate_limits import check_tokens
from threadmill.errors import ApiError, InvalidRequest, NotFound, Relayed, UpstreamFault
from threadmill.llm.passthrough import EMBEDDINGS, Passage, Refused, pass_on
from threadmill.llm.stream import UpstreamError
from threadmill.runtime import Runtime
from threadmill.schemas.parse import decode, shown
from threadmill.store import usage
from threadmill.store.database import DatabaseError
from threadmill.store.limits import Caller

router = APIRouter()
log = structlog.get_logger()

_MODEL_NAME_MAX_CHARACTERS = 256


@router.post("/chat/completions")
async def create_chat_completion(
    caller: CallerDep, runtime: RuntimeDep, request: Request
) -> Response:
    return await _passed_on(runtime, caller, request, "chat/completions")


@router.post("/completions")
async def create_completion(caller: CallerDep, runtime: RuntimeDep, request: Request) -> Response:
    return await _passed_on(runtime, caller, request, "completions")


@router.post("/embeddings")
async def create_embeddings(caller: CallerDep, runtime: RuntimeDep, request: Request) -> Response:
    return await _passed_on(runtime, caller, request, EMBEDDINGS)


# As Azure's clients ask; there the deployment is the model, whatever the body says.
@router.post("/deployments/{deployment}/{path:path}")
async def ask_deployment(
    caller: CallerDep, runtime: RuntimeDep, request: Request, deployment: str, path: str
) -> Response:
    if path not in ("chat/completions", "completions", EMBEDDINGS):
        raise NotFound(f"Invalid URL (POST {shown(request.url.path)})")
    return await _passed_on(runtime, caller, request, path, model=deployment)


async def _passed_on(
    runtime: Runtime, caller: Caller, request: Request, path: str, *, model: str | None = None
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
    await check_tokens(request, runtime.database, caller)
    return _PassedOn(runtime, caller, path, raw, sent)


class _PassedOn(Response):
    """Asks the model while its client listens, and no longer."""

    def __init__(
        self, runtime: Runtime, caller: Caller, path: str, raw: bytes, sent: dict[str, Any]
    ) -> None:
        super().__init__()  # FastAPI passes on what it knows as a response
        self._runtime = runtime
        self._caller = caller
        self._path = path
        self._raw = raw
        self._sent = sent
        self._passage: Passage | None = None

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
            # Not in the task that may be cancelled: clients hang up after the last byte.
            if self._passage is not None:
                await self._count(self._passage)
        if not asking.cancelled():
            asking.result()

    async def _ask(self, send: Send) -> None:
        try:
            passage = self._passage = await pass_on(
                self._runtime.models, self._path, self._raw, self._sent
            )
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
        told = passage.usage
        prompt_tokens = told.prompt_tokens if told else None
        completion_tokens = told.completion_tokens if told else passage.events
        if prompt_tokens is None:
            asked = [self._sent.get(name) for name in ("messages", "prompt", "input")]
            [prompt_tokens] = await self._runtime.tokens.count_many(
                [msgspec.json.encode(asked).decode()], passage.model
            )
        self._runtime.metrics.tokens_used(
            passage.model,
            prompt=prompt_tokens,
            completion=completion_tokens or 0,
            cached=told.cached_tokens if told else 0,
            reasoning=told.reasoning_tokens if told else 0,
        )
        try:
            await usage.add_call(
                self._runtime.database,
                self._caller,
                passage.model,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens or 0,
                cached_tokens=told.cached_tokens if told else 0,
                reasoning_tokens=told.reasoning_tokens if told else 0,
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
