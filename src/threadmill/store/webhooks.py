"""Webhook endpoints, and the outbox of what they are to be told.

The rows of deliveries are the queue. They are written by a trigger on `runs` and
`vector_store_files`, in the transaction of the move itself. Whoever takes one up puts `due_at`
behind the time that a try may take: if he dies meanwhile, it is simply due again. `attempts` is the
number of his claim, under which he writes what came of it.
"""

import time
from typing import Any

import msgspec

from threadmill import ids
from threadmill.errors import InvalidRequest, not_found
from threadmill.lifecycle import DeliveryStatus
from threadmill.store import query
from threadmill.store.database import Connection
from threadmill.store.page import Cursor, page
from threadmill.store.rows import WebhookDelivery, WebhookEndpoint, columns

ENDPOINTS_MAX = 20  # of a project: each has the outbox written to once more

_ENDPOINT = columns(WebhookEndpoint)
_DELIVERY = columns(WebhookDelivery, "webhook_deliveries")
_LOOKED_THROUGH_MAX = 1000  # deliveries that are due, in search of those to take up
_SWEPT_AT_ONCE = 1000


class Due(msgspec.Struct):
    """A delivery that was taken up, with all that is needed to send it."""

    delivery: WebhookDelivery
    url: str
    secrets: list[str]


# --- endpoints ---


async def create(
    connection: Connection,
    project_id: str,
    *,
    name: str,
    url: str,
    event_types: list[str],
    secret: str,
) -> WebhookEndpoint:
    endpoint = await query.one(
        connection,
        WebhookEndpoint,
        "INSERT INTO webhook_endpoints"
        " (id, project_id, created_at, updated_at, name, url, event_types, secret)"
        " SELECT %(id)s, %(project_id)s, %(now)s, %(now)s, %(name)s, %(url)s, %(event_types)s,"
        " %(secret)s WHERE (SELECT count(*) FROM webhook_endpoints"
        f" WHERE project_id = %(project_id)s) < %(most)s RETURNING {_ENDPOINT}",
        {
            "id": ids.new("wh"),
            "project_id": project_id,
            "now": int(time.time()),
            "name": name,
            "url": url,
            "event_types": event_types,
            "secret": secret,
            "most": ENDPOINTS_MAX,
        },
    )
    if endpoint is None:
        raise InvalidRequest(f"A project can have at most {ENDPOINTS_MAX} webhook endpoints.")
    return endpoint


async def get(connection: Connection, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    endpoint = await query.one(
        connection,
        WebhookEndpoint,
        f"SELECT {_ENDPOINT} FROM webhook_endpoints"
        " WHERE id = %(id)s AND project_id = %(project_id)s",
        {"id": endpoint_id, "project_id": project_id},
    )
    if endpoint is None:
        raise not_found("webhook endpoint", endpoint_id)
    return endpoint


async def list_page(
    connection: Connection, project_id: str, cursor: Cursor
) -> tuple[list[WebhookEndpoint], bool]:
    return await page(
        connection,
        WebhookEndpoint,
        "webhook_endpoints",
        cursor,
        "webhook endpoint",
        project_id=project_id,
    )


async def modify(
    connection: Connection, project_id: str, endpoint_id: str, **fields: Any
) -> WebhookEndpoint:
    """Set the given columns and leave the others."""
    if not fields:
        return await get(connection, project_id, endpoint_id)
    fields["updated_at"] = int(time.time())
    endpoint = await query.one(
        connection,
        WebhookEndpoint,
        f"UPDATE webhook_endpoints SET {', '.join(f'{name} = %({name})s' for name in fields)}"
        f" WHERE id = %(id)s AND project_id = %(project_id)s RETURNING {_ENDPOINT}",
        fields | {"id": endpoint_id, "project_id": project_id},
    )
    if endpoint is None:
        raise not_found("webhook endpoint", endpoint_id)
    return endpoint


async def rotate_secret(
    connection: Connection, project_id: str, endpoint_id: str, secret: str, *, old_for_s: int
) -> WebhookEndpoint:
    """For `old_for_s` seconds the secret that it had signs too."""
    endpoint = await query.one(
        connection,
        WebhookEndpoint,
        "UPDATE webhook_endpoints SET secret = %(secret)s, updated_at = %(now)s,"
        " old_secret = CASE WHEN %(old_for_s)s > 0 THEN secret END,"
        " old_secret_until = CASE WHEN %(old_for_s)s > 0 THEN %(now)s + %(old_for_s)s END"
        f" WHERE id = %(id)s AND project_id = %(project_id)s RETURNING {_ENDPOINT}",
        {
            "id": endpoint_id,
            "project_id": project_id,
            "secret": secret,
            "now": int(time.time()),
            "old_for_s": old_for_s,
        },
    )
    if endpoint is None:
        raise not_found("webhook endpoint", endpoint_id)
    return endpoint


async def remove(connection: Connection, project_id: str, endpoint_id: str) -> None:
    """With all that it was still to be told."""
    removed = await query.execute(
        connection,
        "DELETE FROM webhook_endpoints WHERE id = %(id)s AND project_id = %(project_id)s",
        {"id": endpoint_id, "project_id": project_id},
    )
    if not removed:
        raise not_found("webhook endpoint", endpoint_id)


async def disable(
    connection: Connection, endpoint_id: str, reason: str, *, if_failing_for_s: int = 0
) -> bool:
    """Write nothing more to it, and give up what waits. With `if_failing_for_s` only if nothing has
    got through for so long."""
    disabled = await query.execute(
        connection,
        "WITH endpoint AS (UPDATE webhook_endpoints SET disabled_at = %(now)s,"
        " disabled_reason = %(reason)s WHERE id = %(id)s AND disabled_at IS NULL"
        " AND (%(for_s)s = 0 OR failing_since <= %(now)s - %(for_s)s) RETURNING id),"
        " given_up AS (UPDATE webhook_deliveries SET status = 'failed', due_at = NULL,"
        " ended_at = %(now)s, last_error = %(reason)s FROM endpoint"
        " WHERE webhook_endpoint_id = endpoint.id AND webhook_deliveries.status = 'pending')"
        " SELECT id FROM endpoint",
        {"id": endpoint_id, "reason": reason, "now": int(time.time()), "for_s": if_failing_for_s},
    )
    return disabled > 0


# --- deliveries ---


async def list_deliveries(
    connection: Connection,
    project_id: str,
    endpoint_id: str,
    cursor: Cursor,
    status: DeliveryStatus | None,
) -> tuple[list[WebhookDelivery], bool]:
    await get(connection, project_id, endpoint_id)
    scope = {"status": status.value} if status else {}
    return await page(
        connection,
        WebhookDelivery,
        "webhook_deliveries",
        cursor,
        "webhook event",
        webhook_endpoint_id=endpoint_id,
        **scope,
    )


async def claim(
    connection: Connection, *, room: int, room_each: int, busy: list[str], for_s: float
) -> list[Due]:
    """Take up to `room` deliveries that are due, and no more than `room_each` for one endpoint:
    one that never answers must not hold up the others. Those in `busy` are passed over."""
    cursor = await connection.execute(
        "WITH due AS (SELECT webhook_endpoint_id, id, due_at FROM webhook_deliveries"
        " WHERE status = 'pending' AND due_at <= now() AND webhook_endpoint_id <> ALL (%(busy)s)"
        " ORDER BY due_at LIMIT %(looked_through)s),"
        " chosen AS (SELECT webhook_endpoint_id, id FROM (SELECT *, row_number() OVER"
        " (PARTITION BY webhook_endpoint_id ORDER BY due_at) AS place FROM due) AS placed"
        " WHERE place <= %(room_each)s ORDER BY place, due_at LIMIT %(room)s),"
        " taken AS (SELECT webhook_endpoint_id, id FROM webhook_deliveries"
        " JOIN chosen USING (webhook_endpoint_id, id) WHERE status = 'pending' AND due_at <= now()"
        " FOR UPDATE OF webhook_deliveries SKIP LOCKED)"
        " UPDATE webhook_deliveries SET attempts = attempts + 1,"
        " due_at = now() + make_interval(secs => %(for_s)s)"
        " FROM taken, webhook_endpoints WHERE webhook_endpoints.id = taken.webhook_endpoint_id"
        " AND webhook_deliveries.webhook_endpoint_id = taken.webhook_endpoint_id"
        " AND webhook_deliveries.id = taken.id"
        f" RETURNING {_DELIVERY}, url, secret,"
        " CASE WHEN old_secret_until > %(now)s THEN old_secret END",
        {
            "busy": busy,
            "looked_through": _LOOKED_THROUGH_MAX,
            "room": room,
            "room_each": room_each,
            "for_s": for_s,
            "now": int(time.time()),
        },
    )
    return [
        Due(WebhookDelivery(*row[:-3]), row[-3], [secret for secret in row[-2:] if secret])
        for row in await cursor.fetchall()
    ]


async def note_success(connection: Connection, delivery: WebhookDelivery, status_code: int) -> None:
    await query.execute(
        connection,
        "WITH delivery AS (UPDATE webhook_deliveries SET status = 'delivered', due_at = NULL,"
        " ended_at = %(now)s, last_status_code = %(status_code)s, last_error = NULL"
        " WHERE webhook_endpoint_id = %(webhook_endpoint_id)s AND id = %(id)s"
        " AND attempts = %(attempts)s AND status = 'pending' RETURNING webhook_endpoint_id)"
        " UPDATE webhook_endpoints SET failing_since = NULL FROM delivery"
        " WHERE webhook_endpoints.id = webhook_endpoint_id AND failing_since IS NOT NULL",
        _claimed(delivery) | {"status_code": status_code},
    )


async def note_failure(
    connection: Connection,
    delivery: WebhookDelivery,
    *,
    status_code: int | None,
    error: str,
    wait_s: float | None,
) -> None:
    """`wait_s` is the time until the next try; None if that was the last."""
    await query.execute(
        connection,
        "WITH delivery AS (UPDATE webhook_deliveries SET"
        " status = CASE WHEN %(wait_s)s::float8 IS NULL THEN 'failed' ELSE status END,"
        " due_at = now() + make_interval(secs => %(wait_s)s::float8),"
        " ended_at = CASE WHEN %(wait_s)s::float8 IS NULL THEN %(now)s END,"
        " last_status_code = %(status_code)s, last_error = %(error)s"
        " WHERE webhook_endpoint_id = %(webhook_endpoint_id)s AND id = %(id)s"
        " AND attempts = %(attempts)s AND status = 'pending' RETURNING webhook_endpoint_id)"
        " UPDATE webhook_endpoints SET failing_since = %(now)s FROM delivery"
        " WHERE webhook_endpoints.id = webhook_endpoint_id AND failing_since IS NULL",
        _claimed(delivery) | {"status_code": status_code, "error": error, "wait_s": wait_s},
    )


def _claimed(delivery: WebhookDelivery) -> dict[str, Any]:
    return {
        "webhook_endpoint_id": delivery.webhook_endpoint_id,
        "id": delivery.id,
        "attempts": delivery.attempts,
        "now": int(time.time()),
    }


async def overfull(connection: Connection, pending_max: int) -> list[str]:
    """The endpoints for which more than that many deliveries wait."""
    cursor = await connection.execute(
        "SELECT webhook_endpoint_id FROM webhook_deliveries WHERE status = 'pending'"
        " GROUP BY 1 HAVING count(*) > %s",
        [pending_max],
    )
    return [row[0] for row in await cursor.fetchall()]


async def forget(connection: Connection, *, delivered_for_s: int, failed_for_s: int) -> bool:
    """Remove some of the deliveries that ended so long ago; True if there may be more."""
    removed = await query.execute(
        connection,
        "DELETE FROM webhook_deliveries WHERE (webhook_endpoint_id, id) IN"
        " (SELECT webhook_endpoint_id, id FROM webhook_deliveries"
        " WHERE (status = 'delivered' AND ended_at < %(delivered_before)s)"
        " OR (status = 'failed' AND ended_at < %(failed_before)s) LIMIT %(limit)s"
        " FOR UPDATE SKIP LOCKED)",
        {
            "delivered_before": int(time.time()) - delivered_for_s,
            "failed_before": int(time.time()) - failed_for_s,
            "limit": _SWEPT_AT_ONCE,
        },
    )
    return removed == _SWEPT_AT_ONCE
