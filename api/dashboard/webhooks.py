"""Webhooks: whom events are told, what came of each delivery, and sending again."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import db, deliveries, webhooks
from core.deliveries import Delivery, Replay, Replayed
from core.errors import Fault, Refusal
from core.webhooks import NewWebhook, Test, Webhook

Req = Request[Any, Any, Any]

_WEBHOOK: Final = (
    Field("url", "Address", required=True, hint="Where events are sent, https://…"),
    Field("events", "Events", "words", hint="Such as voucher.redeemed, campaign.*. Empty: all."),
    Field("description", "Description"),
)


@get("/dashboard/{project:str}/webhooks", operation_id="dashboard.webhooks")
async def page(request: Req, project: str) -> Response[bytes]:
    """List webhooks, newest first."""
    return await _shown(await visits.begun(request, project))


async def _shown(
    visit: Visit, told: str | None = None, made: Webhook | None = None
) -> Response[bytes]:
    asked = visit.asked("whk")
    async with visit.reading() as conn:
        rows = await webhooks.page(conn, visit.caller, after=asked.after, limit=asked.limit + 1)
    listed = pagination.listed(rows, asked)
    return visit.page(
        "webhooks.html", 400 if told else 201 if made else 200, title="Webhooks",
        rows=listed.data, has_more=listed.has_more, fields=_WEBHOOK, given=visit.given, told=told,
        made=made,
    )  # fmt: skip


@post("/dashboard/{project:str}/webhooks", operation_id="dashboard.webhooks.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a webhook and show its secret, once."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Webhook | Refusal:
        new = forms.read(NewWebhook, _WEBHOOK, visit.given, visit.zone)
        return await webhooks.create(conn, visit.caller, new, visit.services.settings)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return await _shown(visit, fault.detail)
    if isinstance(made, Refusal):
        return visit.refused(made)
    return await _shown(visit, made=made)


@get("/dashboard/{project:str}/webhooks/{webhook:str}", operation_id="dashboard.webhooks.show")
async def show(request: Req, project: str, webhook: str) -> Response[bytes]:
    """Show a webhook and its deliveries."""
    visit = await visits.begun(request, project)
    asked = visit.asked("dlv", "status")
    status: Any = pagination.one_of(asked, "status", "pending", "delivered", "dead")
    async with visit.reading() as conn:
        one = await webhooks.get(conn, visit.caller, webhook)
        rows = await deliveries.page(
            conn, visit.caller, webhook, status=status, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "webhook.html", title=one.url, one=one, rows=listed.data, has_more=listed.has_more,
        status=status or "",
    )  # fmt: skip


@get(
    "/dashboard/{project:str}/webhooks/{webhook:str}/deliveries/{delivery:str}",
    operation_id="dashboard.webhooks.delivery",
)
async def delivery_page(request: Req, project: str, webhook: str, delivery: str) -> Response[bytes]:
    """Show a delivery with every attempt."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await deliveries.get(conn, visit.caller, webhook, delivery)
    return visit.page("delivery.html", title=one.event_type, one=one)


@post(
    "/dashboard/{project:str}/webhooks/{webhook:str}/deliveries/{delivery:str}/replay",
    operation_id="dashboard.webhooks.replay",
)
async def replay(request: Req, project: str, webhook: str, delivery: str) -> Response[bytes]:
    """Send a delivery again."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Delivery:
        return await deliveries.replay(conn, visit.caller, webhook, delivery)

    return await visit.act(work, f"/webhooks/{webhook}", "sent-again")


@post(
    "/dashboard/{project:str}/webhooks/{webhook:str}/replay",
    operation_id="dashboard.webhooks.replay_all",
)
async def replay_all(request: Req, project: str, webhook: str) -> Response[bytes]:
    """Send again all that failed for good."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Replayed:
        return await deliveries.replay_all(conn, visit.caller, webhook, Replay())

    return await visit.act(work, f"/webhooks/{webhook}", "sent-again")


@post(
    "/dashboard/{project:str}/webhooks/{webhook:str}/test",
    operation_id="dashboard.webhooks.test",
)
async def try_out(request: Req, project: str, webhook: str) -> Response[bytes]:
    """Send an example."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> None:
        await webhooks.try_out(conn, visit.caller, Test(), webhook)

    return await visit.act(work, f"/webhooks/{webhook}", "tried")


@post(
    "/dashboard/{project:str}/webhooks/{webhook:str}/remove",
    operation_id="dashboard.webhooks.remove",
)
async def remove(request: Req, project: str, webhook: str) -> Response[bytes]:
    """Take a webhook away for good."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> None:
        await webhooks.remove(conn, visit.caller, webhook)

    return await visit.act(work, "/webhooks", "removed")


ROUTES: Final = [page, create, show, delivery_page, replay, replay_all, try_out, remove]
