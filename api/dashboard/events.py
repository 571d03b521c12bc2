"""Events: what happened in the project, one as JSON, and who was told of it."""

from itertools import groupby
from typing import Any, Final

import msgspec
from litestar import Request, get
from litestar.response import Response

from api import pagination
from api.dashboard import visits
from core import deliveries, events, webhooks
from core.webhooks import Webhook

Req = Request[Any, Any, Any]

# Deliveries of one event that are shown: more webhooks than anybody has.
DELIVERIES_MAX: Final = 100
_BY_NOUN: Final = [
    (noun, list(found))
    for noun, found in groupby(
        sorted(name for name in events.TYPES if name != events.TEST),
        lambda name: name.partition(".")[0],
    )
]


@get("/dashboard/{project:str}/events", operation_id="dashboard.events")
async def page(request: Req, project: str) -> Response[bytes]:
    """List what happened in the last 30 days, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("evt", "type")
    wanted = pagination.one_of(asked, "type", *events.TYPES)
    async with visit.reading() as conn:
        rows = await events.page(
            conn, visit.caller, type=wanted, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "events.html", title="Events", rows=listed.data, has_more=listed.has_more,
        type=wanted or "", types=_BY_NOUN, pages_of=PAGES,
    )  # fmt: skip


# Where the object of an event has a page of its own, by the prefix of its id.
PAGES: Final = {
    "vch": "/vouchers", "cmp": "/campaigns", "bat": "/batches", "rdm": "/redemptions",
    "gft": "/gift-cards", "rfa": "/referrals", "fls": "/flash-sales", "fra": "/fraud/alerts",
}  # fmt: skip


@get("/dashboard/{project:str}/events/{event:str}", operation_id="dashboard.events.show")
async def show(request: Req, project: str, event: str) -> Response[bytes]:
    """Show one event as the API and webhooks tell it, and its deliveries."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await events.get(conn, visit.caller, event)
        sent = await deliveries.of_event(conn, visit.caller, one.id, limit=DELIVERIES_MAX)
        hooks: list[Webhook] = []
        if sent:
            hooks = await webhooks.page(conn, visit.caller, after=None, limit=DELIVERIES_MAX)
    text = msgspec.json.format(msgspec.json.encode(one), indent=2).decode()
    return visit.page(
        "event.html", title=one.type, one=one, text=text, sent=sent, pages_of=PAGES,
        urls={hook.id: hook.url for hook in hooks},
    )  # fmt: skip


ROUTES: Final = [page, show]
