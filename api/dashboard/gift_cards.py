"""Gift cards: list, issue, a card with its ledger, and what is owed day by day."""

from datetime import date, timedelta
from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from api.liability import day_of
from core import db, liability
from core.errors import Fault, Refusal
from core.gift_cards import cards, ledger
from core.gift_cards.cards import GiftCard, NewGiftCard
from core.gift_cards.ledger import TopUp, Transaction

Req = Request[Any, Any, Any]

_SOURCES: Final = (("sold", "It was paid for"), ("promotion", "A present of yours"))
_CARD: Final = (
    Field("amount", "Amount", "number", required=True),
    Field("source", "Why", "choice", choices=_SOURCES, value="sold"),
    Field("customer_id", "Customer"),
    Field("expires_at", "Ends", "time", hint="What is left then becomes breakage."),
    Field("recipient.name", "Recipient’s name"),
    Field("recipient.email", "Recipient’s e-mail", "email"),
    Field("with_pin", "With a PIN", "tick"),
)
_TOP_UP: Final = (
    Field("amount", "Amount", "number", required=True),
    Field("source", "Why", "choice", choices=_SOURCES, value="sold"),
    Field("reason", "Reason"),
)


@get("/dashboard/{project:str}/gift-cards", operation_id="dashboard.gift_cards")
async def page(request: Req, project: str) -> Response[bytes]:
    """List gift cards, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("gft", "status", "last_four", "customer_id")
    status = pagination.one_of(asked, "status", "active", "disabled", "expired")
    narrow = {name: asked.filters.get(name) for name in ("last_four", "customer_id")}
    async with visit.reading() as conn:
        rows = await cards.page(
            conn, visit.caller, narrow={**narrow, "status": status, "batch_id": None},
            after=asked.after, limit=asked.limit + 1,
        )  # fmt: skip
    listed = pagination.listed(rows, asked)
    given = {"status": status or "", **{name: text or "" for name, text in narrow.items()}}
    return visit.page(
        "gift_cards.html", title="Gift cards", rows=listed.data, has_more=listed.has_more,
        asked=given,
    )  # fmt: skip


@get("/dashboard/{project:str}/gift-cards/new", operation_id="dashboard.gift_cards.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a gift card."""
    return _form(await visits.begun(request, project))


def _form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "New gift card", _CARD, back=("/gift-cards", "Gift cards"), fault=fault,
        lead="Its code is shown once, on the next page, and kept nowhere.",
    )  # fmt: skip


@post("/dashboard/{project:str}/gift-cards/new", operation_id="dashboard.gift_cards.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Issue a gift card and show its code, once."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> GiftCard:
        asked = forms.read(NewGiftCard, _CARD, visit.given, visit.zone)
        return await cards.create(conn, visit.caller, asked, visit.services.vault)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _form(visit, fault)
    if made is None:
        return visit.redirect("/gift-cards", "created")
    return visit.page("gift_card_code.html", 201, title="The card’s code", one=made)


@get("/dashboard/{project:str}/gift-cards/liability", operation_id="dashboard.gift_cards.liability")
async def owed(request: Req, project: str) -> Response[bytes]:
    """Show what is owed to card holders: opening, what moved it, closing, by day, with ages."""
    visit = await visits.begun(request, project)
    given = {k: v for k, v in pagination.parameters(request, "from", "to").items() if v}
    from_day, to_day = day_of(given, "from"), day_of(given, "to")
    async with visit.services.database.transaction(
        visit.caller.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        report = await liability.report(conn, visit.caller, from_day=from_day, to_day=to_day)
    before = date.fromisoformat(report.from_) - timedelta(days=1)
    return visit.page(
        "liability.html", title="Liability", report=report, to_before=before.isoformat(),
        from_before=before.replace(day=1).isoformat(),
    )  # fmt: skip


@get("/dashboard/{project:str}/gift-cards/{card:str}", operation_id="dashboard.gift_cards.show")
async def show(request: Req, project: str, card: str) -> Response[bytes]:
    """Show a card and its ledger."""
    visit = await visits.begun(request, project)
    asked = visit.asked("gfe")
    async with visit.reading() as conn:
        one = await cards.get(conn, visit.caller, card)
        rows = await ledger.transactions(
            conn, visit.caller, card, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "gift_card.html", title=f"Card …{one.last_four}", one=one, rows=listed.data,
        has_more=listed.has_more, top_up=_TOP_UP,
    )  # fmt: skip


@post(
    "/dashboard/{project:str}/gift-cards/{card:str}/top-up",
    operation_id="dashboard.gift_cards.top_up",
)
async def top_up(request: Req, project: str, card: str) -> Response[bytes]:
    """Put money onto a card."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Transaction | Refusal:
        asked = forms.read(TopUp, _TOP_UP, visit.given, visit.zone)
        return await ledger.top_up(conn, visit.caller, card, asked)

    return await visit.act(work, f"/gift-cards/{card}", "saved")


@post(
    "/dashboard/{project:str}/gift-cards/{card:str}/disable",
    operation_id="dashboard.gift_cards.disable",
)
async def disable(request: Req, project: str, card: str) -> Response[bytes]:
    """Stop a card from paying."""
    return await _switched(request, project, card, "disabled")


@post(
    "/dashboard/{project:str}/gift-cards/{card:str}/enable",
    operation_id="dashboard.gift_cards.enable",
)
async def enable(request: Req, project: str, card: str) -> Response[bytes]:
    """Let a card pay again."""
    return await _switched(request, project, card, "active")


async def _switched(request: Req, project: str, card: str, status: Any) -> Response[bytes]:
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> GiftCard:
        return await cards.switch(conn, visit.caller, card, status=status)

    done = "enabled" if status == "active" else "disabled"
    return await visit.act(work, f"/gift-cards/{card}", done)


ROUTES: Final = [page, new, create, owed, show, top_up, disable, enable]
