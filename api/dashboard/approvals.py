"""What waits for a person's word: an agent's risky changes. No agent proposes any yet."""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api.dashboard import visits
from core import referrals

Req = Request[Any, Any, Any]

# Referrals shown here; all of them are on their own page.
WAITING_MAX: Final = 20


@get("/dashboard/{project:str}/approvals", operation_id="dashboard.approvals")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show what waits for somebody's word: referrals, and later what agents propose."""
    visit = await visits.begun(request, project)
    narrow = {"program_id": None, "referrer_id": None, "referee_id": None, "status": None}
    async with visit.reading() as conn:
        waiting = await referrals.page(
            conn, visit.caller, narrow={**narrow, "review": "open"}, after=None,
            limit=WAITING_MAX + 1,
        )  # fmt: skip
    return visit.page(
        "approvals.html", title="Approvals", waiting=waiting[:WAITING_MAX],
        has_more=len(waiting) > WAITING_MAX,
    )  # fmt: skip


ROUTES: Final = [page]
