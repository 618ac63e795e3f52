"""/webhook_endpoints, with the paths and shapes that OpenAI gave its own"""

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request

from threadmill import ids
from threadmill.api.deps import Json, ProjectId, RuntimeDep, body
from threadmill.errors import InvalidRequest
from threadmill.lifecycle import DeliveryStatus
from threadmill.schemas import objects
from threadmill.schemas.queries import Page, choice
from threadmill.schemas.requests import (
    EVENT_TYPES,
    CreateWebhookEndpoint,
    ModifyWebhookEndpoint,
    RotateWebhookSecret,
    TestWebhookEndpoint,
)
from threadmill.settings import Settings
from threadmill.store import webhooks
from threadmill.store.rows import WebhookDelivery, WebhookEndpoint
from threadmill.webhooks import addresses, signature
from threadmill.webhooks.delivery import Deliveries, NotSent

router = APIRouter()

_OLD_SECRET_KEPT_S = 24 * 3600
_BY_CLIENT = "by a client"


@router.post("/webhook_endpoints")
async def create_endpoint(
    project_id: ProjectId,
    runtime: RuntimeDep,
    wanted: Annotated[CreateWebhookEndpoint, body(CreateWebhookEndpoint)],
) -> Json:
    _check_url(wanted.url, runtime.settings)
    async with runtime.database.connection() as connection:
        endpoint = await webhooks.create(
            connection,
            project_id,
            name=wanted.name,
            url=wanted.url,
            event_types=_each_once(wanted.event_types),
            secret=signature.new_secret(),
        )
    return Json(_shape(endpoint, secret=endpoint.secret))


@router.get("/webhook_endpoints")
async def list_endpoints(project_id: ProjectId, runtime: RuntimeDep, request: Request) -> Json:
    cursor = Page.parse(request.query_params, "wh")
    async with runtime.database.connection() as connection:
        rows, has_more = await webhooks.list_page(connection, project_id, cursor)
    return Json(objects.page([_shape(row) for row in rows], objects.WebhookEndpoint, has_more))


@router.get("/webhook_event_types")
async def list_event_types(project_id: ProjectId) -> Json:
    return Json({"object": "list", "data": EVENT_TYPES})


@router.get("/webhook_endpoints/{endpoint_id}")
async def retrieve_endpoint(project_id: ProjectId, runtime: RuntimeDep, endpoint_id: str) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    async with runtime.database.connection() as connection:
        return Json(_shape(await webhooks.get(connection, project_id, endpoint_id)))


@router.post("/webhook_endpoints/{endpoint_id}")
async def modify_endpoint(
    project_id: ProjectId,
    runtime: RuntimeDep,
    endpoint_id: str,
    wanted: Annotated[ModifyWebhookEndpoint, body(ModifyWebhookEndpoint)],
) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    fields: dict[str, Any] = wanted.model_dump(exclude_none=True, exclude={"status"})
    if wanted.url is not None:
        _check_url(wanted.url, runtime.settings)
    if wanted.event_types is not None:
        fields["event_types"] = _each_once(wanted.event_types)
    if wanted.status == "enabled":
        fields |= {"disabled_at": None, "disabled_reason": None, "failing_since": None}
    async with runtime.database.transaction() as connection:
        endpoint = await webhooks.modify(connection, project_id, endpoint_id, **fields)
        if wanted.status == "disabled":
            await webhooks.disable(connection, endpoint_id, _BY_CLIENT)
            endpoint = await webhooks.get(connection, project_id, endpoint_id)
    return Json(_shape(endpoint))


@router.delete("/webhook_endpoints/{endpoint_id}")
async def delete_endpoint(project_id: ProjectId, runtime: RuntimeDep, endpoint_id: str) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    async with runtime.database.connection() as connection:
        await webhooks.remove(connection, project_id, endpoint_id)
    return Json(objects.Deleted(endpoint_id, "webhook_endpoint.deleted"))


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
async def rotate_secret(
    project_id: ProjectId,
    runtime: RuntimeDep,
    endpoint_id: str,
    wanted: Annotated[RotateWebhookSecret, body(RotateWebhookSecret)],
) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    async with runtime.database.connection() as connection:
        endpoint = await webhooks.rotate_secret(
            connection,
            project_id,
            endpoint_id,
            signature.new_secret(),
            old_for_s=_OLD_SECRET_KEPT_S if wanted.keep_old_secret_active_for_24_hours else 0,
        )
    return Json(_shape(endpoint, secret=endpoint.secret))


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def try_endpoint(
    project_id: ProjectId,
    runtime: RuntimeDep,
    request: Request,
    endpoint_id: str,
    wanted: Annotated[TestWebhookEndpoint, body(TestWebhookEndpoint)],
) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    async with runtime.database.connection() as connection:
        endpoint = await webhooks.get(connection, project_id, endpoint_id)
    deliveries: Deliveries = request.app.state.worker.deliveries
    try:
        status = await deliveries.send_sample(endpoint, wanted.event_type)
    except NotSent as fault:
        raise InvalidRequest(f"The event could not be sent: {fault}", param="url") from fault
    return Json(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": endpoint_id,
            "event_type": wanted.event_type,
            "success": True,
            "status_code": status,
        }
    )


# Not in the original: what became of each event.
@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
async def list_deliveries(
    project_id: ProjectId, runtime: RuntimeDep, endpoint_id: str, request: Request
) -> Json:
    ids.check("webhook_endpoint_id", endpoint_id, "wh")
    cursor = Page.parse(request.query_params, "evt")
    status = choice(request.query_params, "status", [one.value for one in DeliveryStatus])
    async with runtime.database.connection() as connection:
        rows, has_more = await webhooks.list_deliveries(
            connection, project_id, endpoint_id, cursor, DeliveryStatus(status) if status else None
        )
    shown = [_delivery_shape(row) for row in rows]
    return Json(objects.page(shown, objects.WebhookDelivery, has_more))


def _check_url(url: str, settings: Settings) -> None:
    """What can be told without asking the DNS. Where a name leads to is looked at in the moment
    in which it is connected to."""
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.username is not None or parts.password is not None:
        raise _bad_url("Expected a URL with a host name and without a user name or a password.")
    if settings.webhook_allow_private_addresses:
        return
    if parts.scheme.lower() != "https":
        raise _bad_url("Expected a URL that begins with https://.")
    try:
        is_public = addresses.is_public(host)
    except ValueError:  # a name
        is_public = host.lower().rstrip(".") != "localhost"
    if not is_public:
        raise _bad_url("Webhooks are sent to addresses of the public internet only.")


def _bad_url(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'url': {reason}", param="url", code="invalid_value")


def _each_once(event_types: list[Any]) -> list[str]:
    return list(dict.fromkeys(event_types))


def _shape(endpoint: WebhookEndpoint, *, secret: str | None = None) -> objects.WebhookEndpoint:
    shape = objects.WebhookEndpoint(
        id=endpoint.id,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=f"{endpoint.secret[:9]}...{endpoint.secret[-4:]}",
        status="disabled" if endpoint.disabled_at else "enabled",
        disabled_reason=endpoint.disabled_reason,
        failing_since=endpoint.failing_since,
    )
    if secret is not None:
        shape.signing_secret = secret
    return shape


def _delivery_shape(delivery: WebhookDelivery) -> objects.WebhookDelivery:
    return objects.WebhookDelivery(
        id=delivery.id,
        created_at=delivery.created_at,
        webhook_endpoint_id=delivery.webhook_endpoint_id,
        event_type=delivery.event_type,
        status=delivery.status,
        attempts=delivery.attempts,
        next_attempt_at=int(delivery.due_at.timestamp()) if delivery.due_at else None,
        ended_at=delivery.ended_at,
        last_status_code=delivery.last_status_code,
        last_error=delivery.last_error,
    )
