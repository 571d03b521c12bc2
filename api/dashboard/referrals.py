"""Referrals: programs, and the list of those that somebody must look at."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import attributions, db, referral_programs, referrals
from core.errors import Fault, Refusal
from core.referral_programs import NewProgram, Program
from core.referrals import Referral

Req = Request[Any, Any, Any]

_STATUSES: Final = ("invited", "attributed", "converted", "rewarded", "rejected", "reversed")
_PROGRAM: Final = (
    Field("name", "Name", required=True),
    Field(
        "conversion", "Counts when", "choice", value="first_order",
        choices=(
            ("first_order", "the friend orders"), ("first_redemption", "the friend redeems a code"),
            ("sign_up", "the friend signs up"),
        ),
    ),
    Field("referrer_reward.amount", "Referrer gets", "number", hint="On a gift card of theirs."),
    Field("referee_reward.amount", "Friend gets", "number", hint="On a gift card of theirs."),
    Field("min_order_value", "Least order value", "number"),
    Field("attribution_window_days", "Days to convert", "number", value="30"),
    Field("new_customers_only", "Only new customers count as friends", "tick", value="on"),
)  # fmt: skip


@get("/dashboard/{project:str}/referrals", operation_id="dashboard.referrals")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show the programs, what waits for review, and the latest referrals."""
    visit = await visits.begun(request, project)
    asked = visit.asked("rfa", "status")
    status = pagination.one_of(asked, "status", *_STATUSES)
    async with visit.reading() as conn:
        programs = await referral_programs.page(conn, visit.caller, after=None, limit=50)
        waiting = await _rows(conn, visit, asked, review="open")
        rows = await _rows(conn, visit, asked, status=status)
    listed = pagination.listed(rows, asked)
    return visit.page(
        "referrals.html", title="Referrals", programs=programs, waiting=waiting, rows=listed.data,
        has_more=listed.has_more, status=status or "", statuses=_STATUSES,
    )  # fmt: skip


async def _rows(
    conn: db.Connection, visit: Visit, asked: pagination.Page, **given: str | None
) -> list[Referral]:
    nothing = dict.fromkeys(("program_id", "referrer_id", "referee_id", "status", "review"))
    return await referrals.page(
        conn, visit.caller, narrow={**nothing, **given},
        after=asked.after if "status" in given else None, limit=asked.limit + 1,
    )  # fmt: skip


@get("/dashboard/{project:str}/referrals/new", operation_id="dashboard.referrals.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a program."""
    return _form(await visits.begun(request, project))


def _form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "New referral program", _PROGRAM, back=("/referrals", "Referrals"), fault=fault,
        lead="Its terms never change; end it and make another one instead.",
    )  # fmt: skip


@post("/dashboard/{project:str}/referrals/new", operation_id="dashboard.referrals.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a program."""
    visit = await visits.changing(request, project)
    rewards = {
        f"{side}_reward.type": "gift_card"
        for side in ("referrer", "referee")
        if visit.given.get(f"{side}_reward.amount", "").strip()
    }

    async def work(conn: db.Connection) -> Program:
        asked = forms.read(NewProgram, _PROGRAM, visit.given, visit.zone, rewards)
        return await referral_programs.create(conn, visit.caller, asked)

    try:
        return await visit.act(work, "/referrals", "created")
    except Fault as fault:
        return _form(visit, fault)


async def _switched(request: Req, project: str, program: str, status: Any) -> Response[bytes]:
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Program:
        return await referral_programs.switch(conn, visit.caller, program, status=status)

    done = {"paused": "paused", "active": "resumed", "ended": "ended"}
    return await visit.act(work, "/referrals", done[status])


@post(
    "/dashboard/{project:str}/referral-programs/{program:str}/pause",
    operation_id="dashboard.referral_programs.pause",
)
async def pause(request: Req, project: str, program: str) -> Response[bytes]:
    """Stop a program for a while."""
    return await _switched(request, project, program, "paused")


@post(
    "/dashboard/{project:str}/referral-programs/{program:str}/resume",
    operation_id="dashboard.referral_programs.resume",
)
async def resume(request: Req, project: str, program: str) -> Response[bytes]:
    """Let a program go on."""
    return await _switched(request, project, program, "active")


@post(
    "/dashboard/{project:str}/referral-programs/{program:str}/end",
    operation_id="dashboard.referral_programs.end",
)
async def finish(request: Req, project: str, program: str) -> Response[bytes]:
    """End a program for good."""
    return await _switched(request, project, program, "ended")


@get("/dashboard/{project:str}/referrals/{referral:str}", operation_id="dashboard.referrals.show")
async def show(request: Req, project: str, referral: str) -> Response[bytes]:
    """Show a referral and what happened to it."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await referrals.get(conn, visit.caller, referral)
        history = await referrals.history(conn, visit.caller, referral)
    return visit.page("referral.html", title=one.code, one=one, history=history)


async def _decided(request: Req, project: str, referral: str, review: Any) -> Response[bytes]:
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Referral | Refusal:
        return await attributions.decide(conn, visit.caller, referral, review=review)

    return await visit.act(work, "/referrals", review)


@post(
    "/dashboard/{project:str}/referrals/{referral:str}/approve",
    operation_id="dashboard.referrals.approve",
)
async def approve(request: Req, project: str, referral: str) -> Response[bytes]:
    """Believe a rejected attribution after all."""
    return await _decided(request, project, referral, "approved")


@post(
    "/dashboard/{project:str}/referrals/{referral:str}/reject",
    operation_id="dashboard.referrals.reject",
)
async def reject(request: Req, project: str, referral: str) -> Response[bytes]:
    """Reject an attribution for good."""
    return await _decided(request, project, referral, "rejected")


ROUTES: Final = [page, new, create, pause, resume, finish, show, approve, reject]
