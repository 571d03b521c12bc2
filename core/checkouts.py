"""Redeeming what goes beyond plain terms: quoted by the rule book, decided by one statement.

Where PostgreSQL finds other terms than were priced it decides nothing and says so; the caller
prices once more. Plain vouchers go by `core.shared_commits`, many of them in one commit.
"""

import asyncio
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from core import db, ids, quotes, redemptions
from core.api_keys import Caller
from core.errors import IdempotencyMismatch, Invalid, NotFound, OutcomeUnknown, Refusal, Unavailable
from core.quotes import Quote, Request
from core.redemptions import NewRedemption, Redemption, Terms
from core.rules import budgets, money
from core.rules.budgets import Taking
from core.rules.promotions import Detail

# A statement whose answer was lost is asked again with the same keys, which is idempotent.
UNKNOWN_PAUSES_S: Final = (0.02, 0.2, 0.6)
# A deadlock or lock timeout was rolled back whole; it is run again as it is.
ROLLED_BACK_TRIES: Final = 4

_encode: Final = msgspec.json.Encoder().encode


class Decided(msgspec.Struct, frozen=True):
    """What `vf.redeem_order` answers for one code; of a refused budget `detail` is the taking."""

    ord: int
    outcome: str
    id: UUID | None
    seq: int | None
    remaining: int | None
    redeemed_at: datetime | None
    order_value_minor: int | None
    discount_minor: int | None
    detail: dict[str, Any] | None
    existing: UUID | None
    label: str | None
    used: int | None


async def redeem(
    database: db.Database,
    caller: Caller,
    terms: Terms,
    new: NewRedemption,
    key: str | None,
) -> Redemption | Refusal | None:
    """Redeem one code; None where nothing was decided because the terms have changed.

    Idempotent on (project, voucher, key). Refuses: the reasons of `quotes.quote`, and every limit,
    window and budget. Raises: Invalid, IdempotencyMismatch, Unavailable (not applied),
    OutcomeUnknown. Cost: a read and a commit of its own.
    """
    request = quotes.read(new, caller)
    if isinstance(request, Refusal):
        return request
    digest = quotes.fingerprint(terms.code_norm, new, request)
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        known = await quotes.facts(conn, terms, request)
        quoted = quotes.quote(terms, request, known, None, caller)
        if isinstance(quoted, Refusal):
            # What was redeemed stays redeemed, whatever the rules would say by now.
            return await _stored(conn, caller, terms, key, digest) or quoted
    decided = await _decide(database, _params(request, new, [quoted], digest, [key]))
    return _judged(caller, new, [quoted], decided)[0]


async def _stored(
    conn: db.Connection, caller: Caller, terms: Terms, key: str | None, digest: bytes
) -> Redemption | None:
    if key is None:
        return None
    stored = await db.one(
        conn, "redemptions.by_key", redemptions.Keyed,
        project_id=caller.project_id, voucher_id=terms.voucher_id, key=key,
    )  # fmt: skip
    if stored is None:
        return None
    if stored.fingerprint != digest:
        raise IdempotencyMismatch
    return redemptions.from_row(caller, stored)


def _params(
    request: Request,
    new: NewRedemption,
    quoted: list[Quote],
    digest: bytes,
    keys: list[str | None],
) -> dict[str, Any]:
    numbers = [ids.new() for _ in quoted]
    return {
        "project_id": quoted[0].terms.project_id,
        "customer_id": new.customer_id,
        "order_id": new.order_id,
        "order_value": request.order_value_minor,
        "metadata": _encode(new.metadata).decode() if new.metadata else None,
        "fingerprint": digest,
        "vouchers": [one.terms.voucher_id for one in quoted],
        "versions": [one.terms.terms_version for one in quoted],
        "campaigns": [one.terms.campaign_id for one in quoted],
        "campaign_versions": [one.terms.campaign_version for one in quoted],
        "ids": numbers,
        "keys": [
            key or ids.format_id("rdm", number) for key, number in zip(keys, numbers, strict=True)
        ],
        "discounts": [one.taken.total for one in quoted],
        "details": [
            _encode(quotes.detail(request, one.taken, one.takings)).decode() for one in quoted
        ],
        "takings": [one.takings for one in quoted],
    }


async def _decide(database: db.Database, params: dict[str, Any]) -> list[Decided]:
    is_unknown = False
    rolled_back = 0
    pauses = iter(UNKNOWN_PAUSES_S)
    while True:
        try:
            async with database.connection() as conn:
                return await db.many(conn, "redemptions.redeem_order", Decided, **params)
        except db.RolledBack:
            rolled_back += 1
            if rolled_back == ROLLED_BACK_TRIES:
                raise
        except (OutcomeUnknown, Unavailable) as error:
            is_unknown = is_unknown or isinstance(error, OutcomeUnknown)
            pause = next(pauses, None)
            if not is_unknown:
                raise
            if pause is None:
                raise OutcomeUnknown from error
            await asyncio.sleep(pause)


def _judged(
    caller: Caller, new: NewRedemption, quoted: list[Quote], decided: list[Decided]
) -> list[Redemption | Refusal | None]:
    """Turn answers into what is told: a redemption a code, or one refusal for all."""
    first = decided[0]
    if first.outcome in ("redeemed", "replayed"):
        return [
            _redemption(caller, new, quoted[one.ord - 1].terms, one)
            for one in sorted(decided, key=lambda one: one.ord)
        ]
    match first.outcome:
        case "repriced" | "rerouted":
            return [None]
        case "mismatch":
            raise IdempotencyMismatch
        case "not_found":
            raise NotFound("There is no voucher with this code.")
        case "customer_required":
            raise Invalid(
                "customer_id is required: this voucher is limited per customer",
                field="customer_id",
            )
        case "budget":
            taking = msgspec.convert(first.detail, Taking)
            return [budgets.refusal(taking, first.used or 0, caller.exponent)]
        case "customer_limit_reached" if first.existing is not None and caller.is_secret:
            existing = ids.format_id("rdm", first.existing)
            return [redemptions.refusal("customer_limit_reached", redemption_id=existing)]
        case outcome:
            return [redemptions.refusal(outcome)]


def _redemption(caller: Caller, new: NewRedemption, terms: Terms, decided: Decided) -> Redemption:
    assert decided.id is not None and decided.seq is not None and decided.redeemed_at is not None
    assert decided.order_value_minor is not None and decided.discount_minor is not None
    detail = msgspec.convert(decided.detail, Detail | None)
    return Redemption(
        redemption_id=ids.format_id("rdm", decided.id),
        status="redeemed",
        code=terms.code,
        discount_applied=money.json_amount(decided.discount_minor, caller.exponent),
        remaining=decided.remaining,
        seq=decided.seq,
        order_value=money.json_amount(decided.order_value_minor, caller.exponent),
        currency=caller.currency,
        customer_id=new.customer_id,
        order_id=new.order_id,
        redeemed_at=redemptions.iso_ms(decided.redeemed_at),
        campaign_id=ids.format_id("cmp", terms.campaign_id) if terms.campaign_id else None,
        metadata=new.metadata or None,
        order=detail.shown(caller.exponent) if detail is not None else msgspec.UNSET,
    )
