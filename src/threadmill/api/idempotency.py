"""Idempotency-Key: a POST that is sent again is not done again, and is answered as it was.

It stands around every route, so that it holds for every POST of the API. Without the header it
costs nothing.

1. The key is claimed, then the request is done, then its answer is kept, then it leaves. What is
   kept for a day is what was answered, be it a refusal. An answer that tells the client to come
   again (429, a fault of ours, ...) is not kept: then coming again is of use.
2. Whoever comes meanwhile is told to come again; whoever comes with another request is refused.
3. A process may die between doing and keeping. The ids that a request gives out are made from a
   seed that was kept with the key. So the next process sees whether the object has been made: if
   so, the answer is the object as it is now, and else the request is done again, giving out the
   same ids. Nothing is made twice, even if the process was not dead but slow.
4. Of a stream it is kept which run it told of. Sent again, the request follows that run.
5. An API key is told once and kept nowhere. Sent again, the request that made it is told which one
   it made, and no more.
"""

import re

import msgspec
import stamina
import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threadmill import ids
from threadmill.api.deps import authenticated, authenticated_admin
from threadmill.api.fingerprint import Fingerprint, boundary_in
from threadmill.errors import ApiError, Conflict, InvalidRequest, Unavailable
from threadmill.runs.executor import Executor
from threadmill.runtime import Runtime
from threadmill.store import idempotency
from threadmill.store.database import Unreachable
from threadmill.store.projects import DEFAULT_PROJECT_ID
from threadmill.store.rows import IdempotencyKey

log = structlog.get_logger()

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_HEADER = b"idempotency-key"
# The administration has no project. Its keys stand among those of one, behind what no client sends:
# a line break.
_ADMINISTRATION = "/v1/organization/"
_OF_ADMINISTRATION = "administration\n"
_MAKES_KEY = re.compile(rf"{_ADMINISTRATION}projects/[^/]+/api_keys")
_ANSWER_MAX_BYTES = 4 * 1024**2  # what is longer is not kept
# These say that nothing was done yet, and that the same request may be answered otherwise soon.
_NOT_KEPT = frozenset({401, 408, 409, 425, 429})
_SAVE_ATTEMPTS = 10
_SAVE_TIMEOUT_S = 30
_REPLAYED = (b"idempotent-replayed", b"true")
_EVENT_ID = re.compile(rb"^id: ([0-9]+)$", re.MULTILINE)
_STREAMED = re.compile(rb'"stream"\s*:\s*true')


class Idempotency:
    """Plain ASGI, inside of what renders faults and outside of all that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key_in(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            project_id, prefix = await _owner(request)
        except ApiError:  # the route says so too, in the place where errors are rendered
            await self._app(scope, receive, send)
            return
        try:
            await _Keyed(self._app, request, send, project_id, key, prefix).answer()
        except ApiError as error:
            await _refuse(send, error, should_retry=isinstance(error, Conflict | Unavailable))


def _key_in(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    if scope["path"].startswith("/ui/"):
        # Who asks there is known from a sign-in, and pages may hold a key that was just made. What
        # goes on from there to the API comes by here once more.
        return None
    for name, value in scope["headers"]:
        if name == _HEADER:
            return str(value.decode("latin-1")) or None
    return None


async def _owner(request: Request) -> tuple[str, str]:
    """The project that the key is one of, and what is put before it."""
    if request.scope["path"].startswith(_ADMINISTRATION):
        await authenticated_admin(request)
        return DEFAULT_PROJECT_ID, _OF_ADMINISTRATION
    return (await authenticated(request)).project_id, ""


class _Keyed:
    """One request with a key."""

    def __init__(
        self,
        app: ASGIApp,
        request: Request,
        send: Send,
        project_id: str,
        key: str,
        prefix: str,
    ) -> None:
        self._app = app
        self._request = request
        self._receive = request.receive
        self._send = send
        self._project_id = project_id
        self._key = key
        self._prefix = prefix
        self._makes_key = _MAKES_KEY.fullmatch(request.scope["path"]) is not None
        self._runtime: Runtime = request.app.state.runtime
        executor: Executor = request.app.state.worker.executor
        self._worker = executor.name
        boundary = boundary_in(request.headers.get("content-type", ""))
        self._is_form = boundary is not None
        self._fingerprint = Fingerprint(boundary)
        self._body: bytes | None = None  # of what is not a form; forms pass through
        self._has_whole_body = False

    async def answer(self) -> None:
        if not _KEY.fullmatch(self._key):
            raise InvalidRequest(
                "Invalid 'Idempotency-Key': expected 1 to 255 printable ASCII characters.",
                code="invalid_value",
            )
        if not self._is_form and not await self._read_body():
            # Larger than any that is taken: the route refuses it.
            await self._app(self._request.scope, self._replayed_body, self._send)
            return
        try:
            row, is_new = await self._claim()
        except Unreachable as error:
            raise Unavailable("The database cannot be reached right now.") from error
        if row.status is not None:
            await self._repeat(row)
        elif is_new or not await self._find_made(row):
            await self._do(row)

    async def _claim(self) -> tuple[IdempotencyKey, bool]:
        """A row that is ours, and whether nobody had it before, or one that holds an answer."""
        request = _described(self._request.scope)
        lease_s = self._runtime.settings.run_lease_s
        async with self._runtime.database.connection() as connection:
            row, is_new = await idempotency.claim(
                connection,
                self._project_id,
                self._prefix + self._key,
                request=request,
                fingerprint=None if self._is_form else self._fingerprint.digest(),
                worker=self._worker,
                lease_s=lease_s,
            )
            if is_new:
                return row, True
            if row.request != request:
                raise _reused()
            if row.status is None:
                taken = await idempotency.take_over(connection, row, self._worker, lease_s)
                if taken is None:
                    raise _in_progress()
                row = taken
        return row, False

    # --- doing ---

    async def _do(self, row: IdempotencyKey) -> None:
        recorder = _Recorder(self, row)
        try:
            with ids.seeded(row.seed):
                await self._app(self._request.scope, self._passed_body, recorder.send)
        finally:
            if not recorder.is_settled:
                await self._let_go(row)

    async def keep(self, row: IdempotencyKey) -> None:
        """Write down the answer in `row`. Without it, the next one sees what was made."""
        if self._has_whole_body or not self._is_form:
            row.fingerprint = self._fingerprint.digest()
        try:
            async for attempt in stamina.retry_context(
                on=Unreachable, attempts=_SAVE_ATTEMPTS, timeout=_SAVE_TIMEOUT_S
            ):
                with attempt:
                    async with self._runtime.database.connection() as connection:
                        await idempotency.save(connection, row)
        except Unreachable:
            log.warning("answer_not_kept", request=row.request)

    def is_kept(self, status: int) -> bool:
        # A form that was refused half-way is not known well enough to be told from another.
        is_known = self._has_whole_body or not self._is_form or status < 400
        return status < 500 and status not in _NOT_KEPT and is_known

    async def _let_go(self, row: IdempotencyKey) -> None:
        try:
            async with self._runtime.database.connection() as connection:
                await idempotency.let_go(connection, row)
        except Unreachable:
            log.warning("key_not_let_go", request=row.request)

    # --- repeating ---

    async def _repeat(self, row: IdempotencyKey) -> None:
        await self._check_same(row)
        if row.body is not None:
            assert row.status is not None
            await _send_whole(self._send, row.status, row.content_type, row.body, _REPLAYED)
        elif row.found_at is not None:
            await self._show(row.found_at)
        else:
            raise InvalidRequest(
                "The answer to the first request with this Idempotency-Key was not kept: it was"
                " streamed, or too long. Use another key to have the request done again.",
                code="idempotent_answer_not_kept",
            )

    async def _check_same(self, row: IdempotencyKey) -> None:
        if self._is_form:
            limit = (
                self._runtime.settings.file_max_bytes
                + self._runtime.settings.request_body_max_bytes
            )
            read = 0
            while not self._has_whole_body and read <= limit:
                message = await self._passed_body()
                if message["type"] == "http.disconnect":
                    break
                read += len(message.get("body", b""))
        if row.fingerprint is not None and row.fingerprint != self._fingerprint.digest():
            raise _reused()

    async def _find_made(self, row: IdempotencyKey) -> bool:
        """Whether the request was done, by a process that died before it could say so. Then this
        shows what it made."""
        if row.fingerprint is not None and row.fingerprint != self._fingerprint.digest():
            await self._let_go(row)
            raise _reused()
        place = await self._place_of_made(row)
        if place is None:
            return False
        row.status, row.found_at = 200, place
        await self.keep(row)
        await self._show(place)
        return True

    async def _place_of_made(self, row: IdempotencyKey) -> str | None:
        path: str = self._request.scope["path"]
        kind = path.rpartition("/")[2]
        if kind not in idempotency.MADE_BY:
            return None
        object_id = ids.first(row.seed, idempotency.MADE_BY[kind][0])
        async with self._runtime.database.connection() as connection:
            if not await idempotency.was_made(connection, kind, object_id):
                return None
        place = place_of(path, object_id, row.seed)
        if kind == "runs" and _STREAMED.search(self._body or b""):
            place += "/events"
        return place

    async def _show(self, place: str) -> None:
        """Answer as a GET of that place would be."""
        if self._makes_key:
            raise _told_once(place.rpartition("/")[2])
        path, _, query = place.partition("?")
        scope = {
            **self._request.scope,
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
        }
        refused: int | None = None

        async def send(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                if message["status"] != 200:
                    refused = message["status"]
                else:
                    message["headers"] = [*message["headers"], _REPLAYED]
            if refused is None:
                await self._send(message)

        await self._app(scope, self._receive, send)
        if refused is not None:
            raise InvalidRequest(
                "The first request with this Idempotency-Key was carried out, but its answer"
                f" cannot be given again. Look for what it made: {place}",
                code="idempotent_answer_not_kept",
            )

    # --- the body ---

    async def _read_body(self) -> bool:
        """False if there is more than may be: then only its beginning was read."""
        pieces: list[bytes] = []
        size, most = 0, self._runtime.settings.request_body_max_bytes
        is_last = False
        while not is_last and size <= most:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            is_last = not message.get("more_body", False)
        self._body = b"".join(pieces)
        self._fingerprint.feed(self._body)
        self._has_whole_body = is_last
        return is_last and size <= most

    async def _passed_body(self) -> Message:
        """What the route receives, seen on its way."""
        if not self._is_form:
            return await self._replayed_body()
        message = await self._receive()
        if message["type"] == "http.request":
            self._fingerprint.feed(message.get("body", b""))
            self._has_whole_body = not message.get("more_body", False)
        return message

    async def _replayed_body(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": not self._has_whole_body}

    def place_of_secret(self, row: IdempotencyKey) -> str | None:
        """What is kept instead of an answer that tells a secret; None: it tells none."""
        if not self._makes_key or row.status != 200:
            return None
        return place_of(self._request.scope["path"], ids.first(row.seed, "key"), row.seed)

    def place_of_stream(self, row: IdempotencyKey, first_events: bytes) -> str | None:
        """Where a stream that begins so can be followed again; None if it is of no run."""
        path: str = self._request.scope["path"]
        head, _, kind = path.rpartition("/")
        if kind == "submit_tool_outputs":
            place = head
        elif kind == "runs":
            place = place_of(path, ids.first(row.seed, "run"), row.seed)
        else:
            return None
        first = _EVENT_ID.search(first_events)
        return f"{place}/events" + (f"?after={int(first[1]) - 1}" if first else "")


class _Recorder:
    """Looks at an answer on its way out. It leaves once it is kept, or cannot be."""

    def __init__(self, keyed: _Keyed, row: IdempotencyKey) -> None:
        self.is_settled = False
        self._keyed = keyed
        self._row = row
        self._out = keyed._send
        self._start: Message | None = None
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    async def send(self, message: Message) -> None:
        if self.is_settled or (self._start and not self._keyed.is_kept(self._start["status"])):
            await self._out(message)
        elif message["type"] == "http.response.start":
            self._start = message
            self._row.status = message["status"]
            self._row.content_type = _header(message, b"content-type")
            if not self._keyed.is_kept(message["status"]):
                await self._out(_as_repeatable(message))
        elif message["type"] == "http.response.body":
            await self._take(message)

    async def _take(self, message: Message) -> None:
        assert self._start is not None
        piece = message.get("body", b"")
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        if (self._row.content_type or "").startswith("text/event-stream"):
            self._row.found_at = self._keyed.place_of_stream(self._row, piece)
            await self._settle(message.get("more_body", False))
        elif self._size_bytes > _ANSWER_MAX_BYTES:
            await self._settle(message.get("more_body", False))
        elif not message.get("more_body", False):
            self._row.found_at = self._keyed.place_of_secret(self._row)
            if self._row.found_at is None:
                self._row.body = b"".join(self._pieces)
            await self._settle(False)

    async def _settle(self, more_body: bool) -> None:
        assert self._start is not None
        self.is_settled = True
        await self._keyed.keep(self._row)
        await self._out(self._start)
        body = b"".join(self._pieces)
        self._pieces.clear()
        await self._out({"type": "http.response.body", "body": body, "more_body": more_body})


def place_of(path: str, object_id: str, seed: bytes) -> str:
    """Where the object can be read that a POST to the path has made."""
    if path.endswith("/threads/runs"):
        path = f"{path.removesuffix('/runs')}/{ids.first(seed, 'thread')}/runs"
    return f"{path}/{object_id}"


def _described(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"POST {scope['path']}" + (f"?{query}" if query else "")


def _as_repeatable(start: Message) -> Message:
    """With a key, even a write whose outcome is not known may be repeated."""
    if start["status"] < 500:
        return start
    headers = [pair for pair in start["headers"] if pair[0].lower() != b"x-should-retry"]
    return {**start, "headers": [*headers, (b"x-should-retry", b"true")]}


def _header(message: Message, wanted: bytes) -> str | None:
    for name, value in message["headers"]:
        if name.lower() == wanted:
            return str(value.decode("latin-1"))
    return None


def _in_progress() -> Conflict:
    return Conflict(
        "A request with this Idempotency-Key is being carried out right now. Try again when it is"
        " done.",
        code="idempotency_key_in_use",
    )


class _ToldOnce(InvalidRequest):
    """No Conflict, for it does not help to come again."""

    status = 409


def _told_once(key_id: str) -> _ToldOnce:
    return _ToldOnce(
        f"The first request with this Idempotency-Key made the API key '{key_id}', whose value was"
        " told in its answer and is not kept. If that answer did not arrive, delete the key, and"
        " send the request with another Idempotency-Key.",
        code="idempotent_answer_not_kept",
    )


def _reused() -> InvalidRequest:
    return InvalidRequest(
        "This Idempotency-Key was used with another request within the last 24 hours: a key"
        " stands for one method, path and body. Use a new key for a new request.",
        code="idempotency_key_reused",
    )


async def _refuse(send: Send, error: ApiError, *, should_retry: bool) -> None:
    await _send_whole(
        send,
        error.status,
        "application/json",
        msgspec.json.encode(error.body()),
        (b"x-should-retry", b"true" if should_retry else b"false"),
    )


async def _send_whole(
    send: Send, status: int, content_type: str | None, body: bytes, header: tuple[bytes, bytes]
) -> None:
    headers = [(b"content-length", str(len(body)).encode()), header]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode("latin-1")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
