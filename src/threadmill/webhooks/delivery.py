"""From the outbox to the endpoints: each process takes what is due, and tries.

At least once: a process that dies between the endpoint's answer and our note of it leaves the event
to be sent again, with the same `webhook-id`. The order is not promised.
"""

import asyncio
import random
import time
from collections import Counter
from importlib.metadata import version
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp.abc import AbstractResolver

from threadmill import ids
from threadmill.runtime import Runtime
from threadmill.schemas import objects
from threadmill.settings import Settings
from threadmill.store import rows, webhooks
from threadmill.store.rows import WebhookDelivery, WebhookEndpoint
from threadmill.store.webhooks import Due
from threadmill.webhooks import addresses, signature

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_AT_ONCE_MAX = 64  # in this process
_AT_ONCE_EACH_MAX = 4  # for one endpoint
_SPARE_S = 5.0  # on top of a try's timeout, until another process thinks that it was lost
_JITTER = 0.2  # a wait is up to so much longer, or all that failed at once would come back at once
_LINGER_S = 3.0  # at the end, for what is under way
_SWEEP_EVERY_S = 60.0
_DISABLED_AFTER_S = 3 * 24 * 3600  # without any success
_PENDING_MAX = 100_000  # of one endpoint; it is disabled then
_DELIVERED_KEPT_S = 24 * 3600
_FAILED_KEPT_S = 30 * 24 * 3600
_ERROR_MAX_CHARACTERS = 500
_SAMPLE_IDS = {"thread.run": "run_sample", "vector_store.file": "file-sample"}
_GONE = 410  # how an endpoint says that it wants nothing more

_encode = msgspec.json.Encoder().encode


class NotSent(Exception):
    """There was no answer. The text is for whoever looks after the endpoint."""


class Deliveries:
    """A process's part in sending. `resolver` is where names are looked up instead of the DNS."""

    def __init__(self, runtime: Runtime, *, resolver: AbstractResolver | None = None) -> None:
        self._settings = runtime.settings
        self._database = runtime.database
        self._metrics = runtime.metrics
        self._resolver = resolver
        self._under_way: dict[asyncio.Task[None], str] = {}

    # --- services: each runs until it is cancelled ---

    async def send_due(self) -> None:
        async with self._session() as session:
            try:
                while True:
                    if not await self._take_up(session):
                        await self._pause()
            finally:
                await self._let_finish()

    async def sweep(self) -> None:
        while True:
            async with self._database.connection() as connection:
                for endpoint_id in await webhooks.overfull(connection, _PENDING_MAX):
                    reason = f"more than {_PENDING_MAX} events were waiting for it"
                    await webhooks.disable(connection, endpoint_id, reason)
                    log.warning("webhook_disabled", endpoint_id=endpoint_id, reason=reason)
                while await webhooks.forget(
                    connection, delivered_for_s=_DELIVERED_KEPT_S, failed_for_s=_FAILED_KEPT_S
                ):
                    pass
            await asyncio.sleep(_SWEEP_EVERY_S)

    # --- for whoever tries an endpoint out ---

    async def send_sample(self, endpoint: WebhookEndpoint, event_type: str) -> int:
        """The status of the endpoint's answer. Raises NotSent."""
        kind, _, _ = event_type.rpartition(".")
        event = objects.Event(
            ids.new("evt"), int(time.time()), event_type, {"id": _SAMPLE_IDS[kind], "object": kind}
        )
        async with self._session() as session:
            return await self._post(
                session, endpoint.url, event.id, _encode(event), [endpoint.secret]
            )

    # --- taking up ---

    async def _take_up(self, session: aiohttp.ClientSession) -> bool:
        room = _AT_ONCE_MAX - len(self._under_way)
        if room <= 0:
            return False
        each = Counter(self._under_way.values())
        async with self._database.connection() as connection:
            due = await webhooks.claim(
                connection,
                room=room,
                room_each=_AT_ONCE_EACH_MAX,
                busy=[one for one, count in each.items() if count >= _AT_ONCE_EACH_MAX],
                for_s=self._settings.webhook_timeout_s + _SPARE_S,
            )
        for one in due:
            task = asyncio.create_task(self._deliver(session, one))
            self._under_way[task] = one.delivery.webhook_endpoint_id
            task.add_done_callback(self._under_way.pop)
        return bool(due)

    async def _pause(self) -> None:
        """Until the next look, which comes at once when there is room again."""
        if not self._under_way:
            await asyncio.sleep(_LOOK_EVERY_S)
        else:
            await asyncio.wait(
                self._under_way, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )

    async def _let_finish(self) -> None:
        """What is cut off here is due again later, in whatever process there is."""
        tasks = list(self._under_way)
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=_LINGER_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    # --- one delivery ---

    async def _deliver(self, session: aiohttp.ClientSession, due: Due) -> None:
        try:
            await self._try(session, due)
        except Exception:
            # It is due again when its time is over; the others go on.
            log.exception("webhook_delivery_broke", event_id=due.delivery.id)

    async def _try(self, session: aiohttp.ClientSession, due: Due) -> None:
        delivery = due.delivery
        status: int | None = None
        error = ""
        try:
            status = await self._post(
                session, due.url, delivery.id, _encode(_event(delivery)), due.secrets
            )
        except NotSent as fault:
            error = str(fault)
        is_through = status is not None and 200 <= status < 300
        self._metrics.webhook_tried("ok" if is_through else "failed")
        async with self._database.connection() as connection:
            if status is not None and is_through:
                await webhooks.note_success(connection, delivery, status)
                return
            wait_s = _wait_s(self._settings, delivery.attempts)
            await webhooks.note_failure(
                connection,
                delivery,
                status_code=status,
                error=error or f"The endpoint answered {status}.",
                wait_s=wait_s,
            )
            if status == _GONE:
                reason = "it answered 410 Gone"
                await webhooks.disable(connection, delivery.webhook_endpoint_id, reason)
            elif wait_s is None:
                await webhooks.disable(
                    connection,
                    delivery.webhook_endpoint_id,
                    "nothing has got through for days",
                    if_failing_for_s=_DISABLED_AFTER_S,
                )

    async def _post(
        self,
        session: aiohttp.ClientSession,
        url: str,
        event_id: str,
        body: bytes,
        secrets: list[str],
    ) -> int:
        headers = signature.headers(event_id, body, secrets, int(time.time()))
        try:
            async with session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                # What it says does not matter, and may be endless.
                response.close()
                return response.status
        except TimeoutError as error:
            timeout_s = self._settings.webhook_timeout_s
            raise NotSent(f"The endpoint did not answer within {timeout_s:g} seconds.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = str(error) or type(error).__name__
            raise NotSent(message[:_ERROR_MAX_CHARACTERS]) from error

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=addresses.connector(
                allow_private=self._settings.webhook_allow_private_addresses,
                resolver=self._resolver,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._settings.webhook_timeout_s),
            headers={
                "content-type": "application/json",
                "user-agent": f"threadmill/{version('threadmill')}",
            },
        )


def _event(delivery: WebhookDelivery) -> objects.Event:
    """The same in every try, byte for byte."""
    kind, _, _ = delivery.event_type.rpartition(".")
    row: type[Any] = rows.Run if kind == "thread.run" else rows.VectorStoreFile
    wanted: type[Any] = objects.Run if kind == "thread.run" else objects.VectorStoreFile
    subject = objects.shape(msgspec.convert(delivery.subject, row), wanted)
    return objects.Event(delivery.id, delivery.created_at, delivery.event_type, subject)


def _wait_s(settings: Settings, attempts: int) -> float | None:
    """Until the try after this one, which was number `attempts`; None after the last."""
    waits = settings.webhook_retry_waits_s
    if attempts > len(waits):
        return None
    return waits[attempts - 1] * random.uniform(1, 1 + _JITTER)
