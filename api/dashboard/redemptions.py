"""What was redeemed: the list, one, and giving it back."""

from typing import Any, Final
from uuid import UUID

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api import redemptions as of_api
from api.dashboard import visits
from api.dashboard.visits import Visit
from core import db, ids, redemptions
from core.errors import NotFound, Refusal
from core.redemptions import Filter, RolledBack

Req = Request[Any, Any, Any]

FILTERS: Final = ("code", "customer_id", "order_id", "status", "campaign_id")


@get("/dashboard/{project:str}/redemptions", operation_id="dashboard.redemptions")
async def page(request: Req, project: str) -> Response[bytes]:
    """List redemptions, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("rdm", *FILTERS)
    rows, has_more = await redemptions.list_page(
        visit.services.database, visit.caller, narrowed(asked), before=asked.after,
        limit=asked.limit,
    )  # fmt: skip
    given = {name: asked.filters.get(name, "") for name in FILTERS}
    return visit.page(
        "redemptions.html", title="Redemptions", recent=rows, has_more=has_more, asked=given,
        can_roll_back=True,
    )  # fmt: skip


def narrowed(asked: pagination.Page) -> Filter:
    """Return what the list's filters ask for. Raises: Invalid."""
    return Filter(
        code=asked.filters.get("code"),
        campaign_id=pagination.id_of(asked, "campaign_id", "cmp"),
        customer_id=asked.filters.get("customer_id"),
        order_id=asked.filters.get("order_id"),
        status=pagination.one_of(asked, "status", "redeemed", "rolled_back"),
    )


@get(
    "/dashboard/{project:str}/redemptions/{redemption:str}",
    operation_id="dashboard.redemptions.show",
)
async def show(request: Req, project: str, redemption: str) -> Response[bytes]:
    """Show one redemption."""
    visit = await visits.begun(request, project)
    found = await redemptions.read(visit.services.database, visit.caller, _id_of(redemption))
    if isinstance(found, Refusal):
        return visit.refused(found)
    return visit.page("redemption.html", title=found.code, one=found)


def _id_of(public_id: str) -> UUID:
    found = ids.parse_id("rdm", public_id)
    if found is None:
        raise NotFound(redemptions.NO_REDEMPTION)
    return found


@post(
    "/dashboard/{project:str}/redemptions/{redemption:str}/roll-back",
    operation_id="dashboard.redemptions.roll_back",
)
async def roll_back(request: Req, project: str, redemption: str) -> Response[bytes]:
    """Give a redemption's unit back, with what was paid and rewarded for it."""
    visit = await visits.changing(request, project)
    return await _rolled_back(visit, _id_of(redemption), f"/redemptions/{redemption}")


async def _rolled_back(visit: Visit, redemption_id: UUID, then: str) -> Response[bytes]:
    reason = visit.given.get("reason", "").strip()[:500] or None

    async def work(conn: db.Connection) -> RolledBack | Refusal:
        return await of_api.roll_back(conn, visit.caller, redemption_id, reason)

    done = await visit.once(work)
    if isinstance(done, Refusal):
        return visit.refused(done)
    if done is not None:
        await visit.desk.leases.give_back(visit.caller.project_id, redemption_id, done)
    return visit.redirect(then, "rolled-back")


ROUTES: Final = [page, show, roll_back]
