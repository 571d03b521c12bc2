"""Many vouchers at once: first what would happen, then all of it in one transaction, then undo."""

from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import db, vouchers
from core.errors import Fault, Invalid, Refusal
from core.vouchers import Voucher, VoucherPatch

Req = Request[Any, Any, Any]

# The largest page of a list; a transaction of so many changes takes some hundred milliseconds.
VOUCHERS_MAX: Final = 100
Deed = Literal["disable", "enable", "extend", "restore"]
_DEEDS: Final[dict[str, Deed]] = {
    "disable": "disable", "enable": "enable", "extend": "extend", "restore": "restore",
}  # fmt: skip
# What takes each back.
_BACK: Final[dict[Deed, Deed]] = {
    "disable": "enable", "enable": "disable", "extend": "restore", "restore": "restore",
}  # fmt: skip
_UNTIL: Final = (
    Field("expires_at", "They end", "time", clears=True, hint="Empty: never. The project’s clock."),
)  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """What became of one voucher. `refused`: why it stays as it was; `was`: its end before."""

    one: Voucher
    is_changed: bool
    refused: str | None
    was: datetime | None


def _deed(text: str) -> Deed:
    deed = _DEEDS.get(text)
    if deed is None:
        raise Invalid(f"do must be one of {', '.join(_DEEDS)}", field="do")
    return deed


def _checked(found: list[str]) -> list[str]:
    found = list(dict.fromkeys(filter(None, found)))
    if len(found) > VOUCHERS_MAX:
        raise Invalid(f"At most {VOUCHERS_MAX} vouchers at once.", field="id")
    return found


@get("/dashboard/{project:str}/vouchers/bulk", operation_id="dashboard.vouchers.bulk_page")
async def page(request: Req, project: str) -> Response[bytes]:
    """Say what would happen to the chosen vouchers."""
    visit = await visits.begun(request, project)
    chosen = _checked(request.query_params.getall("id", []))
    return await _page(visit, _deed(request.query_params.get("do", "")), chosen)


async def _page(
    visit: Visit, deed: Deed, chosen: list[str], fault: Fault | None = None
) -> Response[bytes]:
    async with visit.reading() as conn:
        rows = [await vouchers.get(conn, visit.caller, one) for one in chosen]
    return visit.page(
        "bulk.html", 400 if fault else 200, title=f"{deed.capitalize()} vouchers", deed=deed,
        rows=rows, fields=_UNTIL, given=visit.given, told=fault.detail if fault else None,
    )  # fmt: skip


@post("/dashboard/{project:str}/vouchers/bulk", operation_id="dashboard.vouchers.bulk")
async def change(request: Req, project: str) -> Response[bytes]:
    """Change the chosen vouchers, all or none; those that a flash sale holds stay as they are."""
    visit = await visits.changing(request, project)
    deed = _deed(visit.given.get("do", ""))
    chosen = _checked(visit.given.get("ids", "").split(","))
    try:
        done = await visit.once(lambda conn: _done(conn, visit, deed, chosen))
    except Invalid as fault:
        return await _page(visit, deed, [one.partition("=")[0] for one in chosen], fault)
    if done is None:
        return visit.redirect("/vouchers")
    back = ",".join(_named(one, deed) for one in done if one.is_changed)
    return visit.page(
        "bulk_done.html", title="Done", deed=deed, done=done, back=back, back_deed=_BACK[deed],
        changed=sum(one.is_changed for one in done),
    )  # fmt: skip


def _named(one: Outcome, deed: Deed) -> str:
    """Write a voucher as the form that takes a change back names it."""
    if _BACK[deed] != "restore":
        return one.one.id
    return f"{one.one.id}={one.was.isoformat() if one.was else ''}"


async def _done(conn: db.Connection, visit: Visit, deed: Deed, chosen: list[str]) -> list[Outcome]:
    until = forms.read(VoucherPatch, _UNTIL, visit.given, visit.zone)
    return [await _changed(conn, visit, deed, one, until) for one in chosen]


async def _changed(
    conn: db.Connection, visit: Visit, deed: Deed, named: str, until: VoucherPatch
) -> Outcome:
    name, _, was = named.partition("=")
    before = await vouchers.get(conn, visit.caller, name)
    after: Voucher | Refusal
    match deed:
        case "disable":
            after = await vouchers.switch(conn, visit.caller, name, status="disabled")
        case "enable":
            after = await vouchers.switch(conn, visit.caller, name, status="active")
        case "extend":
            after = await vouchers.edit(conn, visit.caller, name, until)
        case "restore":
            given = forms.read(VoucherPatch, _UNTIL, {"expires_at": was}, visit.zone)
            after = await vouchers.edit(conn, visit.caller, name, given)
    if isinstance(after, Refusal):
        return Outcome(before, False, after.detail, before.expires_at)
    is_changed = (after.status, after.expires_at) != (before.status, before.expires_at)
    return Outcome(after, is_changed, None, before.expires_at)


ROUTES: Final = [page, change]
