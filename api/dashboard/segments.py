"""Segments: lists of customers, and rules over what is known of them."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, rule_rows, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import db, segments
from core.errors import Fault
from core.segments import MembersPatch, NewSegment, Segment, SegmentPatch

Req = Request[Any, Any, Any]

_NAME: Final = (Field("name", "Name", required=True),)
_KINDS: Final = (("static", "A list of customers"), ("rule", "A rule, asked anew each time"))
_NEW: Final = (
    *_NAME,
    Field("kind", "Made of", "choice", choices=_KINDS, value="static"),
    Field(
        "customer_ids", "Customers on the list", "area",
        hint="Ids as your shop calls them, one a line or parted by commas. A rule needs none.",
    ),
)  # fmt: skip
_MEMBERS: Final = (
    Field("add", "Put on the list", "area", hint="Ids, one a line or parted by commas."),
    Field("remove", "Take off the list", "area"),
)
# What a segment may ask of a customer, in the words of the rows that campaigns have, too.
_FACTS: Final = tuple(fact for fact in rule_rows.FACTS if fact[0].startswith("customer."))


@get("/dashboard/{project:str}/segments", operation_id="dashboard.segments")
async def page(request: Req, project: str) -> Response[bytes]:
    """List segments, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("seg")
    async with visit.reading() as conn:
        rows = await segments.page(conn, visit.caller, after=asked.after, limit=asked.limit + 1)
    listed = pagination.listed(rows, asked)
    return visit.page(
        "segments.html", title="Segments", rows=listed.data, has_more=listed.has_more,
        sentences=rule_rows.sentences,
    )  # fmt: skip


@get("/dashboard/{project:str}/segments/new", operation_id="dashboard.segments.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a segment."""
    return _form(await visits.begun(request, project))


def _form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "New segment", _NEW, template="segment_form.html", fault=fault, has_rows=True,
        back=("/segments", "Segments"), rows=rule_rows.posted(visit.given), facts=_FACTS,
        tests=rule_rows.TESTS,
    )  # fmt: skip


@post("/dashboard/{project:str}/segments/new", operation_id="dashboard.segments.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a segment and look at it."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Segment:
        asked = forms.read(NewSegment, _NAME, visit.given, visit.zone, _made_of(visit.given))
        return await segments.create(conn, visit.caller, asked)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _form(visit, fault)
    return visit.redirect(f"/segments/{made.id}" if made else "/segments", "created")


def _made_of(given: forms.Given) -> dict[str, Any]:
    if given.get("kind") == "rule":
        # A rule without rows is refused by the gate, not a list of nobody.
        return {"rule": rule_rows.read(given) or {}}
    return {"customer_ids": forms.words(given.get("customer_ids", ""))}


@get("/dashboard/{project:str}/segments/{segment:str}", operation_id="dashboard.segments.show")
async def show(request: Req, project: str, segment: str) -> Response[bytes]:
    """Show a segment: its rule as a sentence, or who is on its list."""
    return await _shown(await visits.begun(request, project), segment)


async def _shown(visit: Visit, segment: str, fault: Fault | None = None) -> Response[bytes]:
    after = pagination.parameters(visit.request, "starting_after", "done").get("starting_after")
    async with visit.reading() as conn:
        one = await segments.get(conn, visit.caller, segment)
        found = await segments.members(conn, visit.caller, segment, after=after)
    return visit.page(
        "segment.html", 400 if fault else 200, title=one.name, one=one, members=found.data,
        has_more=found.has_more, sentence=rule_rows.sentences(one.rule) if one.rule else "",
        told=fault.detail if fault else None, fields=_MEMBERS, given=visit.given,
    )  # fmt: skip


@post(
    "/dashboard/{project:str}/segments/{segment:str}/members",
    operation_id="dashboard.segments.members",
)
async def members(request: Req, project: str, segment: str) -> Response[bytes]:
    """Put customers on a list and take others off."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Segment:
        more = {name: forms.words(visit.given.get(name, "")) for name in ("add", "remove")}
        asked = forms.read(MembersPatch, (), visit.given, visit.zone, more)
        return await segments.change_members(conn, visit.caller, segment, asked)

    try:
        return await visit.act(work, f"/segments/{segment}", "saved")
    except Fault as fault:
        return await _shown(visit, segment, fault)


@get("/dashboard/{project:str}/segments/{segment:str}/edit", operation_id="dashboard.segments.form")
async def edit_form(request: Req, project: str, segment: str) -> Response[bytes]:
    """Show a segment's form as it stands."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await segments.get(conn, visit.caller, segment)
    visit.given = {"name": one.name, **(rule_rows.stored(one.rule) or {})}
    return _edit_form(visit, one)


def _is_simple(one: Segment) -> bool:
    """Whether the rows can say the whole rule."""
    return one.rule is not None and rule_rows.stored(one.rule) is not None


def _edit_form(visit: Visit, one: Segment, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        f"Edit {one.name}", _NAME, template="segment_form.html", fault=fault, send="Save",
        has_rows=_is_simple(one), back=(f"/segments/{one.id}", one.name),
        rows=rule_rows.posted(visit.given), facts=_FACTS, tests=rule_rows.TESTS,
        goes_beyond=one.rule is not None and not _is_simple(one),
    )  # fmt: skip


@post(
    "/dashboard/{project:str}/segments/{segment:str}/edit", operation_id="dashboard.segments.edit"
)
async def edit(request: Req, project: str, segment: str) -> Response[bytes]:
    """Change a segment's name or rule; it counts from the next question on."""
    visit = await visits.changing(request, project)
    async with visit.reading() as conn:
        one = await segments.get(conn, visit.caller, segment)

    async def work(conn: db.Connection) -> Segment:
        rule = rule_rows.read(visit.given) or {}
        more = {"rule": rule} if _is_simple(one) else {}
        asked = forms.read(SegmentPatch, _NAME, visit.given, visit.zone, more)
        return await segments.edit(conn, visit.caller, segment, asked)

    try:
        return await visit.act(work, f"/segments/{segment}", "saved")
    except Fault as fault:
        return _edit_form(visit, one, fault)


ROUTES: Final = [page, new, create, show, members, edit_form, edit]
