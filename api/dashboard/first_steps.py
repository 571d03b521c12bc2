"""The first minutes: a key, a voucher and a line that redeems it, made together and tried at once.

The key is shown on the answer alone; whoever comes back makes another one.
"""

import json
import shlex
from typing import Any, Final
from urllib.parse import quote

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import api_keys, db, redemptions, vouchers
from core.errors import Fault
from core.redemptions import Redemption
from core.vouchers import NewVoucher, Voucher

Req = Request[Any, Any, Any]

_FIRST: Final = (
    Field("code", "A code", required=True, value="WELCOME20", hint="What shoppers type."),
    Field("discount_value", "Percent off", "number", required=True, value="20", suffix="%"),
)
_KEY_NAME: Final = "first steps"
# What the line redeems: an order that shows what a percentage does to cents.
_ORDER: Final = {"customer_id": "cust_1", "order_value": 89.99}


class _Made(msgspec.Struct, frozen=True):
    token: str
    voucher: Voucher


@get("/dashboard/{project:str}/first-steps", operation_id="dashboard.first_steps")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show what to make first."""
    return _shown(await visits.begun(request, project))


def _shown(visit: Visit, fault: Fault | None = None, made: _Made | None = None) -> Response[bytes]:
    return visit.form(
        "First steps", _FIRST, template="first_steps.html", fault=fault, made=made,
        line=_line(visit, made) if made else "", first=None,
        is_for_all=True,
    )  # fmt: skip


def _line(visit: Visit, made: _Made) -> str:
    """Return the command that redeems the voucher, for a shell to run as it stands."""
    address = f"{visit.services.settings.base_url}/v1/vouchers/{quote(made.voucher.code)}/redeem"
    parts = [
        f"curl -sS {shlex.quote(address)}",
        f"-H {shlex.quote(f'Authorization: Bearer {made.token}')}",
        "-H 'Content-Type: application/json'",
        f"-d {shlex.quote(json.dumps(_ORDER))}",
    ]
    return " \\\n  ".join(parts)


@post("/dashboard/{project:str}/first-steps", operation_id="dashboard.first_steps.make")
async def make(request: Req, project: str) -> Response[bytes]:
    """Make a key and a voucher, both or neither, and show the line that redeems it."""
    visit = await visits.changing(request, project)
    try:
        made = await visit.once(lambda conn: _make(conn, visit))
    except Fault as fault:
        return _shown(visit, fault)
    return _shown(visit, made=made) if made else visit.redirect("/first-steps")


async def _make(conn: db.Connection, visit: Visit) -> _Made:
    kind = {"discount_type": "PERCENT"}
    asked = forms.read(NewVoucher, _FIRST, visit.given, visit.zone, kind)
    made = await vouchers.create(conn, visit.caller, asked)
    key = api_keys.NewKey(kind="SECRET", name=_KEY_NAME)
    secret = visit.services.settings.secret
    _, token = await api_keys.create(conn, visit.caller, key, secret=secret)
    return _Made(token, made)


@get(
    "/dashboard/{project:str}/first-steps/{voucher:str}/used",
    operation_id="dashboard.first_steps.used",
)
async def used(request: Req, project: str, voucher: str) -> Response[bytes]:
    """Return whether the voucher was redeemed, for the page that waits for it."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await vouchers.get(conn, visit.caller, voucher)
    found: list[Redemption] = []
    if one.redeemed_count:
        found, _ = await redemptions.list_page(
            visit.services.database, visit.caller, redemptions.Filter(code=one.code), before=None,
            limit=1,
        )  # fmt: skip
    return visit.page(
        "first_redemption.html", title="First steps", voucher_id=one.id,
        first=found[0] if found else None,
    )  # fmt: skip


ROUTES: Final = [page, make, used]
