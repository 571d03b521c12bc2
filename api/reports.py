"""/v1/reports: tables, or a line of JSON each, of any length."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from litestar import Request, get
from litestar.response import Stream

from api import auth, pagination
from api.docs import CSV, LINES, shape
from api.lifespan import Services
from core import exports
from core.api_keys import Caller
from core.errors import Invalid
from core.gift_cards.ledger import Transaction
from core.redemptions import Redemption
from core.referrals import Referral
from core.reports import Asked, Noun, Used
from core.vouchers import Voucher

Req = Request[Any, Any, Any]
_TIMES: Final = ("from", "to", "format")
_NARROWED: Final = ("campaign_id", *_TIMES)
_MEDIA_TYPES: Final[dict[exports.Format, str]] = {
    "csv": "text/csv", "ndjson": "application/x-ndjson",
}  # fmt: skip


def _form_of(request: Req, page: pagination.Page) -> exports.Format:
    wanted = pagination.one_of(page, "format", *_MEDIA_TYPES)
    if wanted is None:
        accepted = request.headers.get("accept", "")
        wanted = "ndjson" if _MEDIA_TYPES["ndjson"] in accepted else "csv"
    return "ndjson" if wanted == "ndjson" else "csv"


async def _report(request: Req, noun: Noun, *filters: str) -> Stream:
    caller = await auth.secret_caller(request)
    page = pagination.Page(0, None, pagination.parameters(request, *filters))
    form = _form_of(request, page)
    pagination.id_of(page, "campaign_id", "cmp")
    asked = Asked(
        from_at=pagination.instant_of(page, "from"),
        to_at=pagination.instant_of(page, "to", is_end=True),
        campaign_id=page.filters.get("campaign_id"),
    )
    return await streamed(request, caller, noun, form, asked)


async def streamed(
    request: Req, caller: Caller, noun: Noun, form: exports.Format, asked: Asked
) -> Stream:
    """Answer a report as it is written. Raises, before it begins: Invalid, NotFound."""
    if asked.from_at and asked.to_at and asked.from_at >= asked.to_at:
        raise Invalid("from must be before to", field="from")
    services: Services = request.app.state.services
    written = services.reports.write(caller, noun, form, asked)
    # What cannot be answered is told before the answer begins.
    first = await anext(written)
    name = f'attachment; filename="{noun}.{form}"'
    return Stream(
        from_first(first, written),
        media_type=_MEDIA_TYPES[form],
        headers={"content-disposition": name},
    )


async def from_first(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield a piece that was made beforehand, and then the rest."""
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


@get(
    "/v1/reports/redemptions",
    operation_id="reports.redemptions",
    opt=shape(answer=Redemption, query=_NARROWED, gives=(CSV, LINES)),
)
async def redemptions(request: Req) -> Stream:
    """Return all redemptions of a time or a campaign, newest first, as CSV or NDJSON."""
    return await _report(request, "redemptions", *_NARROWED)


@get(
    "/v1/reports/vouchers",
    operation_id="reports.vouchers",
    opt=shape(answer=Voucher, query=_NARROWED, gives=(CSV, LINES)),
)
async def vouchers(request: Req) -> Stream:
    """Return all vouchers made in a time or of a campaign, newest first, as CSV or NDJSON."""
    return await _report(request, "vouchers", *_NARROWED)


@get(
    "/v1/reports/gift-card-entries",
    operation_id="reports.gift_card_entries",
    opt=shape(answer=Transaction, query=_TIMES, gives=(CSV, LINES)),
)
async def gift_card_entries(request: Req) -> Stream:
    """Return what was done with gift cards in a time, the last first, as CSV or NDJSON."""
    return await _report(request, "gift-card-entries", *_TIMES)


@get(
    "/v1/reports/referrals",
    operation_id="reports.referrals",
    opt=shape(answer=Referral, query=_TIMES, gives=(CSV, LINES)),
)
async def referrals(request: Req) -> Stream:
    """Return all referrals made in a time, newest first, as CSV or NDJSON."""
    return await _report(request, "referrals", *_TIMES)


@get(
    "/v1/reports/usage",
    operation_id="reports.usage",
    opt=shape(answer=Used, query=_TIMES, gives=(CSV, LINES)),
)
async def usage(request: Req) -> Stream:
    """Return calls and redemptions by the hour, this month's by default, as CSV or NDJSON."""
    return await _report(request, "usage", *_TIMES)


ROUTES: Final = [redemptions, vouchers, gift_card_entries, referrals, usage]
