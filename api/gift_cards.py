"""/v1/gift-cards. A code is a bearer secret: addresses take the id, codes travel in bodies."""

import csv
import io
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import lookups
from core.gift_cards import cards, ledger
from core.gift_cards.cards import Bulk, GiftCard, GiftCardPatch, Lookup, NewBulk, NewGiftCard
from core.gift_cards.ledger import (
    Movement,
    Refund,
    Spend,
    SpendByCode,
    TopUp,
    Transaction,
    Transfer,
)
from core.rules.cells import harmless

Req = Request[Any, Any, Any]
_FILTERS: Final = ("status", "customer_id", "last_four", "batch_id")
_COLUMNS: Final = (
    "transaction_id", "type", "amount", "change", "balance", "currency", "reference", "order_id",
    "reason", "created_at",
)  # fmt: skip


@post(
    "/v1/gift-cards",
    operation_id="gift_cards.create",
    opt=shape(body=NewGiftCard, answer=GiftCard, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a gift card. Its code and PIN are in this answer and nowhere else."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewGiftCard)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            card = await cards.create(work.conn, caller, new, services.vault)
            work.answer(201, card, kept=cards.without_secrets(card))
    return work.response()


@post(
    "/v1/gift-cards/bulk",
    operation_id="gift_cards.bulk",
    opt=shape(body=NewBulk, answer=Bulk, status=201, gives=(docs.JSON, docs.CSV)),
)
async def create_bulk(request: Req) -> Response[bytes]:
    """Create up to 50,000 gift cards, all or none; JSON, or CSV by Accept."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewBulk)
    services: Services = request.app.state.services
    made: Bulk | None = None
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            made = await cards.create_bulk(work.conn, caller, new, services.vault)
            work.answer(201, made, kept=msgspec.structs.replace(made, cards=[]))
    return _secrets(request, work, made)


@post(
    "/v1/gift-cards/bulk/{batch:str}/new-codes",
    operation_id="gift_cards.new_codes",
    status_code=200,
    opt=shape(answer=Bulk, gives=(docs.JSON, docs.CSV)),
)
async def recode_bulk(request: Req, batch: str) -> Response[bytes]:
    """Give the unused cards of a batch new codes, for when the answer with the first was lost."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    services: Services = request.app.state.services
    made: Bulk | None = None
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            made = await cards.recode_bulk(work.conn, caller, batch, services.vault)
            work.answer(200, made, kept=msgspec.structs.replace(made, cards=[]))
    return _secrets(request, work, made)


def _secrets(request: Req, work: idempotency.Write, made: Bulk | None) -> Response[bytes]:
    answer = work.response()
    if made is None or "text/csv" not in request.headers.get("accept", ""):
        return answer
    rows = [("id", "code", "pin"), *((one.id, one.code, one.pin or "") for one in made.cards)]
    return _table(rows, answer.status_code or 200, {"X-Batch-Id": made.batch_id})


def _table(
    rows: Sequence[Sequence[Any]], status: int, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """Write CSV; text that a spreadsheet would run gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return Response(
        text.getvalue().encode(), status_code=status, media_type="text/csv", headers=headers or {}
    )


@post(
    "/v1/gift-cards/lookup",
    operation_id="gift_cards.lookup",
    status_code=200,
    opt=shape(body=Lookup, answer=GiftCard, for_browsers=True),
)
async def look_up(request: Req) -> Response[bytes]:
    """Return the card with a code; to a browser its balance, currency and end alone."""
    asker = auth.asker_of(request, await auth.any_caller(request))
    _, given = await bodies.received(request, Lookup)
    services: Services = request.app.state.services
    async with (
        lookups.counted(services.database, asker),
        services.database.transaction(asker.caller.project_id, reads_only=True) as conn,
    ):
        return answers.ok(await cards.look_up(conn, asker, given, services.vault))


@post(
    "/v1/gift-cards/redeem",
    operation_id="gift_cards.redeem_by_code",
    status_code=200,
    opt=shape(body=SpendByCode, answer=Transaction),
)
async def redeem_by_code(request: Req) -> Response[bytes]:
    """Take an amount off the card with a code."""
    caller = await auth.secret_caller(request)
    asker = auth.asker_of(request, caller)
    raw, new = await bodies.received(request, SpendByCode)
    services: Services = request.app.state.services
    given = Lookup(code=new.code, pin=new.pin)
    async with (
        lookups.counted(services.database, asker),
        idempotency.write(request, caller, raw) as work,
    ):
        if not work.is_done:
            card = await cards.find_by_code(work.conn, asker, given, services.vault)
            work.answer(200, await ledger.spend(work.conn, caller, card, new))
    return work.response()


@get(
    "/v1/gift-cards",
    operation_id="gift_cards.list",
    opt=shape(answer=pagination.Listed[GiftCard], query=_FILTERS),
)
async def page(request: Req) -> Response[bytes]:
    """List gift cards, newest first, narrowed by status, customer, last four and batch."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "gft", *_FILTERS)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await cards.page(
            conn, caller, narrow=_narrowed(asked), after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


def _narrowed(asked: pagination.Page) -> dict[str, Any]:
    return {
        "status": pagination.one_of(asked, "status", "active", "disabled", "expired"),
        "customer_id": asked.filters.get("customer_id"),
        "last_four": asked.filters.get("last_four"),
        "batch_id": pagination.id_of(asked, "batch_id", "bat"),
    }


@get("/v1/gift-cards/{id:str}", operation_id="gift_cards.get", opt=shape(answer=GiftCard))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a gift card, without its code."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await cards.get(conn, caller, id))


@patch(
    "/v1/gift-cards/{id:str}",
    operation_id="gift_cards.edit",
    opt=shape(body=GiftCardPatch, answer=GiftCard),
)
async def edit(request: Req, id: str) -> Response[bytes]:
    """Change a card's end, owner, recipient or metadata."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, GiftCardPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await cards.edit(work.conn, caller, id, change))
    return work.response()


@post(
    "/v1/gift-cards/{id:str}/redeem",
    operation_id="gift_cards.redeem",
    status_code=200,
    opt=shape(body=Spend, answer=Transaction),
)
async def redeem(request: Req, id: str) -> Response[bytes]:
    """Take an amount off a card; with `allow_partial` what is left where that is less."""

    async def spend(conn: Any, caller: Any, public_id: str, new: Spend) -> Any:
        card = await cards.find(conn, caller, public_id)
        return await ledger.spend(conn, caller, card, new)

    return await _moved(request, id, Spend, spend)


@post(
    "/v1/gift-cards/{id:str}/top-up",
    operation_id="gift_cards.top_up",
    status_code=200,
    opt=shape(body=TopUp, answer=Transaction),
)
async def top_up(request: Req, id: str) -> Response[bytes]:
    """Put an amount onto a card."""
    return await _moved(request, id, TopUp, ledger.top_up)


@post(
    "/v1/gift-cards/{id:str}/refund",
    operation_id="gift_cards.refund",
    status_code=200,
    opt=shape(body=Refund, answer=Transaction),
)
async def refund(request: Req, id: str) -> Response[bytes]:
    """Give back to a card what was spent with it, never more."""
    return await _moved(request, id, Refund, ledger.refund)


@post(
    "/v1/gift-cards/{id:str}/adjust",
    operation_id="gift_cards.adjust",
    status_code=200,
    opt=shape(body=Movement, answer=Transaction),
)
async def adjust(request: Req, id: str) -> Response[bytes]:
    """Correct a card's balance by hand, up or down."""
    return await _moved(request, id, Movement, ledger.adjust)


@post(
    "/v1/gift-cards/{id:str}/transfer",
    operation_id="gift_cards.transfer",
    status_code=200,
    opt=shape(body=Transfer, answer=Transaction),
)
async def transfer(request: Req, id: str) -> Response[bytes]:
    """Move a card's balance, or a part of it, to another card."""
    return await _moved(request, id, Transfer, ledger.transfer)


async def _moved(
    request: Req, public_id: str, type_: type[Any], move: Callable[..., Awaitable[Any]]
) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, type_)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await move(work.conn, caller, public_id, new))
    return work.response()


@post(
    "/v1/gift-cards/{id:str}/disable",
    operation_id="gift_cards.disable",
    status_code=200,
    opt=shape(answer=GiftCard),
)
async def disable(request: Req, id: str) -> Response[bytes]:
    """Stop a card from paying; its balance stays."""
    return await _switched(request, id, "disabled")


@post(
    "/v1/gift-cards/{id:str}/enable",
    operation_id="gift_cards.enable",
    status_code=200,
    opt=shape(answer=GiftCard),
)
async def enable(request: Req, id: str) -> Response[bytes]:
    """Let a disabled card pay again."""
    return await _switched(request, id, "active")


async def _switched(request: Req, public_id: str, status: Any) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await cards.switch(work.conn, caller, public_id, status=status))
    return work.response()


@post(
    "/v1/gift-cards/{id:str}/new-code",
    operation_id="gift_cards.new_code",
    status_code=200,
    opt=shape(answer=GiftCard),
)
async def recode(request: Req, id: str) -> Response[bytes]:
    """Give a card a new code, shown in this answer alone; the old one opens nothing any more."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            card = await cards.recode(work.conn, caller, id, services.vault)
            work.answer(200, card, kept=cards.without_secrets(card))
    return work.response()


@get(
    "/v1/gift-cards/{id:str}/transactions",
    operation_id="gift_card_transactions.list",
    opt=shape(answer=pagination.Listed[Transaction], gives=(docs.JSON, docs.CSV)),
)
async def transactions(request: Req, id: str) -> Response[bytes]:
    """List what happened to a card, the last first; as CSV up to 50,000 of them, by Accept."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "gfe")
    is_csv = "text/csv" in request.headers.get("accept", "")
    limit = ledger.EXPORT_MAX if is_csv else asked.limit + 1
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await ledger.transactions(conn, caller, id, after=asked.after, limit=limit)
    return _exported(found) if is_csv else answers.ok(pagination.listed(found, asked))


def _exported(found: list[Transaction]) -> Response[bytes]:
    plain = [msgspec.structs.asdict(one) for one in found]
    cells = (
        [Decimal(str(value, "ascii")) if isinstance(value, msgspec.Raw) else value for value in row]
        for row in ([one[name] for name in _COLUMNS] for one in plain)
    )
    return _table([_COLUMNS, *cells], 200)


ROUTES: Final = [
    create, create_bulk, recode_bulk, look_up, redeem_by_code, page, show, edit, redeem, top_up,
    refund, adjust, transfer, disable, enable, recode, transactions,
]  # fmt: skip
