"""GET /v1/gift-cards/liability."""

from datetime import date
from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, pagination
from api.docs import shape
from api.lifespan import Services
from core import liability
from core.errors import Invalid
from core.liability import Liability

Req = Request[Any, Any, Any]


def day_of(given: dict[str, str], name: str) -> date | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = date.min
    if len(text) != len("2030-01-31") or not 2000 <= found.year < 9000:
        raise Invalid(f"{name} must be a day such as 2030-01-31", field=name)
    return found


@get(
    "/v1/gift-cards/liability",
    operation_id="gift_cards.liability",
    opt=shape(answer=Liability, query=("from", "to")),
)
async def report(request: Req) -> Response[bytes]:
    """Return what is owed to card holders: opening, what moved it, closing, by day, with ages."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "from", "to")
    from_day, to_day = day_of(given, "from"), day_of(given, "to")
    services: Services = request.app.state.services
    async with services.database.transaction(
        # Two statements of one moment, so that the ages add up to the closing.
        caller.project_id,
        reads_only=True,
        isolation="repeatable read",
    ) as conn:
        return answers.ok(await liability.report(conn, caller, from_day=from_day, to_day=to_day))


ROUTES: Final = [report]
