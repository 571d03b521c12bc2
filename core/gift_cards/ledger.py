"""Money onto a card and off it. Each movement is one call of `vf.move_gift_card`.

It changes the balance and writes both entries together, once for each reference, under the
card's lock alone: a CHECK keeps the balance from going below zero whatever is asked here.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import db, ids
from core.api_keys import Caller
from core.errors import (
    IdempotencyMismatch,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refusal,
    Unavailable,
)
from core.gift_cards import cards
from core.gift_cards.cards import ACCOUNTS, OWN, Lookup, Source, Stored, Text
from core.gift_cards.vault import Vault
from core.lookups import Asker
from core.rules import money
from core.rules.orders import Reference
from core.shapes import Amount

# Beside vouchers in one order; more cards are more locks held together.
PAYMENTS_MAX: Final = 5
# Cards whose time is over that are swept at one look: a millisecond or two each.
DUE_MAX: Final = 500
# Transactions in one export: some seconds, and 10 MB.
EXPORT_MAX: Final = 50_000

Kind = Literal["issue", "top_up", "spend", "refund", "expire", "adjust", "transfer"]

_DETAILS: Final = {
    "insufficient_balance": "The gift card holds less than that.",
    "gift_card_inactive": "This gift card is disabled.",
    "gift_card_expired": "This gift card has expired.",
    "refund_too_large": "More would be refunded than was spent.",
    "currency_mismatch": "The gift card is in another currency.",
}
_log = structlog.get_logger("vauchflow.gift_cards")


class Movement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much moves, and the caller's own name for it: the same one moves nothing twice."""

    amount: Amount
    reference: Reference | None = None
    order_id: Reference | None = None
    reason: Text | None = None


class Spend(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is taken off a card; with `allow_partial` what is left where that is less."""

    currency: str | None = None
    allow_partial: bool = False


class SpendByCode(Spend, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same of the card with a code."""

    code: str
    pin: str | None = None


class TopUp(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is put onto a card; `source`: whether it was paid for."""

    source: Source = "sold"


class Refund(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is given back to a card, of one spend where `transaction_id` names it."""

    transaction_id: str | None = None


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To which card the balance goes, or a part of it."""

    to: str
    amount: Amount = msgspec.field(default_factory=msgspec.Raw)
    reference: Reference | None = None
    reason: Text | None = None


class Payment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A card that pays for an order: by id or code, a given amount or what is left to pay."""

    id: str | None = None
    code: str | None = None
    pin: str | None = None
    amount: Amount = msgspec.field(default_factory=msgspec.Raw)


Payments = Annotated[list[Payment], msgspec.Meta(max_length=PAYMENTS_MAX)]


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a card. `change` is signed, `balance` is the one after it.

    `is_partial`: less was taken than was asked for, because it was all that was left.
    """

    transaction_id: str
    gift_card_id: str
    type: Kind
    amount: Amount
    change: Amount
    balance: Amount
    currency: str
    is_partial: bool
    reference: str | None
    order_id: str | None
    reason: str | None
    other_card_id: str | None
    refund_of: str | None
    created_at: datetime


class Row(msgspec.Struct, frozen=True):
    """A transaction's row, with the entry of the card it is seen from."""

    id: UUID
    card_id: UUID
    kind: Kind
    amount_minor: int
    asked_minor: int
    side: Literal["debit", "credit"]
    balance_minor: int
    currency: str
    reference: str
    to_card_id: UUID | None
    refund_of: UUID | None
    order_id: str | None
    reason: str | None
    created_at: datetime


class _Entry(Row, frozen=True):
    """The same with the card it is seen from."""

    seen_from: UUID


class Place(msgspec.Struct, frozen=True):
    """Where a walk through the ledger has come to."""

    at: datetime
    transaction_id: UUID


class _Moved(msgspec.Struct, frozen=True):
    outcome: str
    transaction_id: UUID | None


class _Due(msgspec.Struct, frozen=True):
    project_id: UUID
    id: UUID
    entry_count: int


async def spend(
    conn: db.Connection, caller: Caller, card: Stored, new: Spend
) -> Transaction | Refusal:
    """Take an amount off a card.

    Idempotent on `reference`. Refuses: insufficient_balance, gift_card_inactive,
    gift_card_expired, currency_mismatch. Raises: Invalid, IdempotencyMismatch.
    """
    if cards.checked_currency(new.currency) not in (None, card.currency):
        return _refusal("currency_mismatch", card)
    return await _move(conn, caller, card, "spend", new, is_partial=new.allow_partial)


async def top_up(
    conn: db.Connection, caller: Caller, public_id: str, new: TopUp
) -> Transaction | Refusal:
    """Put an amount onto a card; idempotent, refuses and raises as `spend`, and NotFound."""
    card = await cards.find(conn, caller, public_id)
    return await _move(conn, caller, card, "top_up", new, account=ACCOUNTS[new.source])


async def refund(
    conn: db.Connection, caller: Caller, public_id: str, new: Refund
) -> Transaction | Refusal:
    """Give back what was spent, also to a card that may not spend any more. Idempotent.

    Refuses: refund_too_large. Raises: NotFound, Invalid, IdempotencyMismatch.
    """
    card = await cards.find(conn, caller, public_id)
    refund_of = None
    if new.transaction_id is not None:
        refund_of = ids.parse_id("gfe", new.transaction_id)
        if refund_of is None:
            raise _no_transaction()
    return await _move(conn, caller, card, "refund", new, refund_of=refund_of)


async def adjust(
    conn: db.Connection, caller: Caller, public_id: str, new: Movement
) -> Transaction | Refusal:
    """Correct a balance by hand, up or down. Idempotent. Refuses: insufficient_balance."""
    card = await cards.find(conn, caller, public_id)
    return await _move(conn, caller, card, "adjust", new)


async def transfer(
    conn: db.Connection, caller: Caller, public_id: str, new: Transfer
) -> Transaction | Refusal:
    """Move a card's balance, or a part, to another card of its currency. Idempotent as `spend`.

    Concurrency: locks both cards in id order.
    """
    card = await cards.find(conn, caller, public_id)
    target = await cards.find(conn, caller, new.to)
    if target.id == card.id:
        raise Invalid("to must be another gift card", field="to")
    is_whole = not money.is_given(new.amount)
    whole = money.json_amount(money.AMOUNT_MINOR_MAX, card.exponent)
    movement = Movement(
        amount=whole if is_whole else new.amount, reference=new.reference, reason=new.reason
    )
    return await _move(
        conn, caller, card, "transfer", movement, is_partial=is_whole, to_card_id=target.id
    )


async def pay(
    conn: db.Connection,
    asker: Asker,
    vault: Vault,
    payments: Sequence[Payment],
    *,
    due_minor: int | None,
    redemptions: Sequence[UUID],
    order_id: str | None,
) -> list[Transaction] | Refusal:
    """Pay what an order still costs with cards, in the transaction that redeemed its codes.

    `due_minor`: None where the order has no value; then each card says its amount. A card that
    finds nothing left to pay is not touched. Call inside `lookups.counted`.

    Refuses: as `spend`, naming the card's `place` from 1. Raises: Invalid, NotFound, UnknownCode.
    Concurrency: locks the cards in id order, after vouchers and campaigns.
    """
    caller = asker.caller
    found = [await _payer(conn, asker, vault, given, place) for place, given in enumerate(payments)]
    if len({card.id for card in found}) != len(found):
        raise Invalid("gift_cards has a card twice", field="gift_cards")
    project_id = caller.project_id
    await db.run(conn, "gift_cards.lock", project_id=project_id, ids=[c.id for c in found])
    paid: list[Transaction] = []
    for place, (card, given) in enumerate(zip(found, payments, strict=True)):
        if card.currency != caller.currency:
            return _at(_refusal("currency_mismatch", card), card, place)
        amount = _to_pay(given, card, due_minor, place)
        if amount is None:
            continue
        done = await spend(conn, caller, card, msgspec.structs.replace(amount, order_id=order_id))
        if isinstance(done, Refusal):
            return _at(done, card, place)
        taken = money.parse_amount(done.amount, card.currency, field="amount")
        due_minor = due_minor - taken if due_minor is not None else None
        number = ids.parse_id("gfe", done.transaction_id)
        await db.run(
            conn, "gift_cards.pay_with",
            project_id=project_id, transaction_id=number, redemptions=list(redemptions),
        )  # fmt: skip
        paid.append(done)
    return paid


async def _payer(
    conn: db.Connection, asker: Asker, vault: Vault, given: Payment, place: int
) -> Stored:
    field = f"gift_cards[{place}]"
    if (given.id is None) == (given.code is None):
        raise Invalid(f"{field} must have either id or code", field=field)
    if given.code is not None:
        lookup = Lookup(code=given.code, pin=given.pin)
        return await cards.find_by_code(conn, asker, lookup, vault, field=field)
    assert given.id is not None
    return await cards.find(conn, asker.caller, given.id)


def _to_pay(given: Payment, card: Stored, due_minor: int | None, place: int) -> Spend | None:
    """Return what a card is asked for, None where nothing is left to pay. Raises: Invalid."""
    field = f"gift_cards[{place}].amount"
    if money.is_given(given.amount):
        asked = money.parse_amount(given.amount, card.currency, field=field, minor_min=1)
        if due_minor is not None and asked > due_minor:
            raise Invalid(f"{field} is more than is left to pay", field=field)
        return Spend(amount=given.amount)
    if due_minor is None:
        raise Invalid(f"{field} is required: the order has no value", field=field)
    if due_minor == 0:
        return None
    return Spend(amount=money.json_amount(due_minor, card.exponent), allow_partial=True)


async def refund_redemption(
    conn: db.Connection, caller: Caller, redemption_id: UUID, reason: str | None
) -> int:
    """Refund what cards paid beside a redemption that was just rolled back; return how many.

    Only with the last of the redemptions they paid together with. Concurrency: locks the cards.
    """
    done = await db.many(
        conn, "gift_cards.refund_redemption", UUID,
        project_id=caller.project_id, redemption_id=redemption_id, reason=reason,
    )  # fmt: skip
    return len(done)


async def transactions(
    conn: db.Connection, caller: Caller, public_id: str, *, after: UUID | None, limit: int
) -> list[Transaction]:
    """Return up to `limit` transactions of a card, the last first. Raises: NotFound."""
    card = await cards.find(conn, caller, public_id)
    rows = await db.many(
        conn, "gift_cards.transactions", Row,
        project_id=caller.project_id, card_id=card.id, after=after, limit=limit,
    )  # fmt: skip
    return [show(row, card.id) for row in rows]


async def entries(
    conn: db.Connection,
    caller: Caller,
    *,
    from_at: datetime | None,
    to_at: datetime | None,
    after: Place | None,
    limit: int,
) -> tuple[list[Transaction], Place | None]:
    """Return what up to `limit` transactions did to cards, the last first, and where to go on.

    A transfer is two, one for each card. None: there are no more.
    """
    rows = await db.many(
        conn, "gift_cards.entries", _Entry,
        project_id=caller.project_id, from_at=from_at, to_at=to_at, limit=limit,
        after_at=after and after.at, after_id=after and after.transaction_id,
    )  # fmt: skip
    shown = [show(row, row.seen_from) for row in rows]
    if len({row.id for row in rows}) < limit:
        return shown, None
    return shown, Place(rows[-1].created_at, rows[-1].id)


async def sweep(database: db.Database) -> int:
    """Move to breakage what is left on cards whose time is over; return how many.

    Each is a commit of its own and conditional: several workers may sweep. Never raises for a
    store that is away.
    """
    swept = 0
    try:
        async with database.connection(reads_only=True) as conn:
            due = await db.many(conn, "gift_cards.due", _Due, limit=DUE_MAX)
        for card in due:
            async with database.connection() as conn:
                moved = await db.one(
                    conn, "gift_cards.move", _Moved,
                    project_id=card.project_id, card_id=card.id, kind="expire", amount_minor=0,
                    reference=f"{OWN}expire:{card.id}:{card.entry_count}", fingerprint=b"expire",
                    **_NOTHING_ELSE, id=ids.new(),
                )  # fmt: skip
            swept += moved is not None and moved.outcome == "done"
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("sweep_failed", error=str(error))
    return swept


_NOTHING_ELSE: Final[dict[str, Any]] = {
    "is_partial": False, "account": None, "to_card_id": None, "refund_of": None, "order_id": None,
    "reason": None,
}  # fmt: skip


async def _move(
    conn: db.Connection, caller: Caller, card: Stored, kind: Kind, new: Movement, **more: Any
) -> Transaction | Refusal:
    """Move an amount, by parameters of `vf.move_gift_card`; see `spend`."""
    least = -money.AMOUNT_MINOR_MAX if kind == "adjust" else 1
    amount_minor = money.parse_amount(new.amount, card.currency, field="amount", minor_min=least)
    if amount_minor == 0:
        raise Invalid("amount must not be 0", field="amount")
    number = ids.new()
    reference = f"{OWN}{number}"
    if new.reference is not None:
        reference = cards.checked_reference(new.reference)
    given = {**_NOTHING_ELSE, **more, "order_id": new.order_id}
    told = (kind, card.id, amount_minor, sorted(given.items()))
    moved = await db.one(
        conn, "gift_cards.move", _Moved,
        **{**given, "reason": new.reason}, project_id=caller.project_id, card_id=card.id,
        kind=kind, amount_minor=amount_minor, id=number, reference=reference,
        fingerprint=cards.fingerprint(told),
    )  # fmt: skip
    assert moved is not None, "the function answers one row"
    match moved.outcome:
        case "done" | "replayed":
            assert moved.transaction_id is not None
            return await get(conn, caller, moved.transaction_id)
        case "mismatch":
            raise IdempotencyMismatch("The reference was used for something else before.")
        case "no_transaction":
            raise _no_transaction()
        case "balance_too_large":
            raise Invalid("amount is more than a card may hold", field="amount")
        case "not_found":
            raise NotFound("There is no such gift card in this project.")
        case outcome:
            return _refusal(outcome, await cards.find(conn, caller, ids.format_id("gft", card.id)))


async def get(conn: db.Connection, caller: Caller, transaction_id: UUID) -> Transaction:
    """Return a transaction that is known to be in the ledger, as its card sees it."""
    row = await db.one(
        conn, "gift_cards.transaction", Row, project_id=caller.project_id, id=transaction_id
    )
    assert row is not None, "what was written is there"
    return show(row, row.card_id)


def show(row: Row, seen_from: UUID) -> Transaction:
    """Write a transaction as the API shows it to one of its cards."""
    exponent = cards.exponent_of(row.currency)
    is_out = row.side == "debit"
    other = row.to_card_id if seen_from == row.card_id else row.card_id
    return Transaction(
        transaction_id=ids.format_id("gfe", row.id),
        gift_card_id=ids.format_id("gft", seen_from),
        type=row.kind,
        amount=money.json_amount(row.amount_minor, exponent),
        change=money.json_amount(-row.amount_minor if is_out else row.amount_minor, exponent),
        balance=money.json_amount(row.balance_minor, exponent),
        currency=row.currency,
        is_partial=row.amount_minor < row.asked_minor,
        reference=None if row.reference.startswith(OWN) else row.reference,
        order_id=row.order_id,
        reason=row.reason,
        other_card_id=ids.format_id("gft", other) if row.to_card_id and other else None,
        refund_of=ids.format_id("gfe", row.refund_of) if row.refund_of else None,
        created_at=row.created_at,
    )


def _no_transaction() -> NotFound:
    return NotFound("There is no such spend of this gift card.", field="transaction_id")


def _refusal(outcome: str, card: Stored) -> Refusal:
    balance = str(money.json_amount(card.balance_minor, card.exponent), "ascii")
    facts = {"balance": balance, "currency": card.currency, "expires_at": card.expires_at}
    return Refusal(outcome, _DETAILS[outcome], because=facts)


def _at(refusal: Refusal, card: Stored, place: int) -> Refusal:
    """Say in a refusal of several cards which one it is about; places count from 1."""
    extra = {"gift_card_id": ids.format_id("gft", card.id), "place": place + 1}
    return msgspec.structs.replace(refusal, extra=extra)
