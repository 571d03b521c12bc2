"""Redeeming and holding what goes beyond plain terms, one code or several for one order.

Quoted by the rule book, decided by one statement, all or nothing. Where PostgreSQL finds other
terms than were priced it decides nothing and says so. Plain vouchers go by `core.shared_commits`,
many of them in one commit.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import contexts, customers, db, ids, quotes, redemptions
from core.api_keys import Caller
from core.errors import IdempotencyMismatch, Invalid, NotFound, OutcomeUnknown, Refusal, Unavailable
from core.gift_cards import ledger
from core.gift_cards.ledger import Payments, Transaction
from core.gift_cards.vault import Vault
from core.lookups import Asker
from core.quotes import Quote, Request
from core.redemptions import NewRedemption, Redemption, Terms
from core.rules import budgets, codes, discounts, money, orders, promotions, stacking
from core.rules.budgets import Taking
from core.rules.discounts import Taken
from core.rules.orders import ShownOrder
from core.rules.promotions import Detail, Stacking
from core.rules.stacking import Stacked
from core.shapes import Amount

# A statement whose answer was lost is asked again with the same keys, which is idempotent.
UNKNOWN_PAUSES_S: Final = (0.02, 0.2, 0.6)
# A deadlock or lock timeout was rolled back whole; it is run again as it is.
ROLLED_BACK_TRIES: Final = 4
# As many codes as the field's largest takes for one order.
CODES_MAX: Final = 30
# Terms are read and priced in front of the statement; they rarely change twice in between.
PRICINGS_MAX: Final = 3

_encode: Final = msgspec.json.Encoder().encode


class NewCheckout(NewRedemption, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several codes for one order. `mode`: all of them or none, or of those that may the best.

    `gift_cards` pay what the codes leave, in the same commit.
    """

    codes: Annotated[list[str], msgspec.Meta(min_length=1, max_length=CODES_MAX)]
    mode: Literal["all", "best_deal"] = "all"
    gift_cards: Payments = msgspec.field(default_factory=list)


class LeftOut(msgspec.Struct, frozen=True):
    """A code that was sent and not redeemed, and why."""

    code: str
    reason: str
    detail: str
    because: dict[str, Any] | None


class Checkout(msgspec.Struct, frozen=True):
    """Redemptions of one order, in the order in which they were taken off."""

    redemptions: list[Redemption]
    discount_applied: Amount
    left_out: list[LeftOut]
    order: ShownOrder | msgspec.UnsetType = msgspec.UNSET
    gift_cards: list[Transaction] = []
    left_to_pay: Amount | msgspec.UnsetType = msgspec.UNSET


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


class _Pricing(msgspec.Struct, frozen=True):
    """Quotes in the order of taking off, and what was left out of a best deal."""

    quotes: list[Quote]
    left_out: list[LeftOut]


async def redeem(
    database: db.Database, caller: Caller, terms: Terms, new: NewRedemption, key: str | None
) -> Redemption | Refusal | None:
    """Redeem one code; None where nothing was decided because the terms have changed.

    Idempotent on (project, voucher, key). Refuses: the reasons of `quotes.quote`, hold_expired,
    and every limit, window and budget. Raises: Invalid, IdempotencyMismatch, NotFound for the
    hold, Unavailable (not applied), OutcomeUnknown. Cost: a read and a commit of its own.
    """
    request = quotes.read(new, caller)
    if isinstance(request, Refusal):
        return request
    digest = quotes.fingerprint(terms.code_norm, new, request)
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        known = await quotes.facts(conn, caller, terms, request)
        quoted = quotes.quote(terms, request, known, None, caller)
        if isinstance(quoted, Refusal):
            # What was redeemed stays redeemed, whatever the rules would say by now.
            return await _stored(conn, caller, terms, key, digest) or quoted
    params = _params(request, new, [quoted], digest, key=key)
    decided = await _decide(database, params)
    if decided[0].outcome in ("redeemed", "replayed"):
        return _redemption(caller, new, terms, decided[0])
    return None if decided[0].outcome == "rerouted" else _refused(caller, decided[0])


async def hold(
    conn: db.Connection, caller: Caller, new: NewRedemption, *, code: str, hold_s: int
) -> UUID | Refusal:
    """Take one use of a code for so many seconds; return the hold's id.

    Refuses and raises as `redeem`, and Unavailable where the terms keep changing.
    """
    if new.hold_id is not None:
        raise Invalid("hold_id cannot be given: extend the hold instead", field="hold_id")
    redemptions.checked(new)
    request = quotes.read(new, caller)
    if isinstance(request, Refusal):
        return request
    await customers.meet(conn, caller, new.customer_id, new.customer)
    for _ in range(PRICINGS_MAX):
        [terms] = await _terms(conn, caller, [code], ["code"])
        known = await quotes.facts(conn, caller, terms, request)
        quoted = quotes.quote(terms, request, known, None, caller)
        if isinstance(quoted, Refusal):
            return quoted
        params = _params(request, new, [quoted], b"", hold_s=hold_s)
        decided = await db.many(conn, "redemptions.redeem_order", Decided, **params)
        if decided[0].outcome == "held":
            assert decided[0].id is not None
            return decided[0].id
        refused = _refused(caller, decided[0])
        if refused is not None:
            return refused
    raise Unavailable("Nothing was applied: the voucher's terms are changing.")


async def check_out(
    conn: db.Connection, asker: Asker, vault: Vault, new: NewCheckout
) -> Checkout | Refusal:
    """Redeem codes for one order, then pay what is left with gift cards: all of it or nothing.

    Idempotent where the caller's transaction is, which a refusal must roll back; call inside
    `lookups.counted`. Refuses and raises as `redeem_together` and `ledger.pay`.
    Concurrency: locks campaigns, vouchers, gift cards, each in id order.
    """
    done = await redeem_together(conn, asker.caller, new)
    if isinstance(done, Refusal) or not new.gift_cards:
        return done
    caller = asker.caller
    due_minor = None
    request = quotes.read(new, caller)
    assert not isinstance(request, Refusal), "it was read before"
    if request.order is not None:
        discount = money.parse_amount(done.discount_applied, caller.currency, field="discount")
        whole = request.order.value_minor + request.order.shipping_minor
        due_minor = max(0, whole - discount)
    numbers = [ids.parse_id("rdm", one.redemption_id) for one in done.redemptions]
    paid = await ledger.pay(
        conn, asker, vault, new.gift_cards,
        due_minor=due_minor, redemptions=[n for n in numbers if n], order_id=new.order_id,
    )  # fmt: skip
    if isinstance(paid, Refusal):
        return paid
    left: Amount | msgspec.UnsetType = msgspec.UNSET
    if due_minor is not None:
        taken = (money.parse_amount(one.amount, caller.currency, field="amount") for one in paid)
        left = money.json_amount(due_minor - sum(taken), caller.exponent)
    return msgspec.structs.replace(done, gift_cards=paid, left_to_pay=left)


async def redeem_together(
    conn: db.Connection, caller: Caller, new: NewCheckout
) -> Checkout | Refusal:
    """Redeem several codes for one order, all of them or none.

    Idempotent where the caller's transaction is. Refuses: as `redeem`, and not_combinable; the
    code that was refused is in `extra`. Raises: Invalid, NotFound, Unavailable.
    Concurrency: locks campaigns and vouchers, each in id order.
    """
    if new.hold_id is not None:
        raise Invalid("hold_id is of one code; redeem it by its voucher", field="hold_id")
    redemptions.checked(new)
    norms = [codes.normalise(code) for code in new.codes]
    if len(set(norms)) != len(norms):
        raise Invalid("codes has a code twice", field="codes")
    request = quotes.read(new, caller)
    if isinstance(request, Refusal):
        return request
    await customers.meet(conn, caller, new.customer_id, new.customer)
    for _ in range(PRICINGS_MAX):
        terms = await _terms(
            conn, caller, new.codes, [f"codes[{place}]" for place in range(len(new.codes))]
        )
        known = [await quotes.facts(conn, caller, one, request) for one in terms]
        pricing = _priced(terms, known, request, new, caller)
        if isinstance(pricing, Refusal):
            return pricing
        params = _params(request, new, pricing.quotes, b"")
        decided = await db.many(conn, "redemptions.redeem_order", Decided, **params)
        first = decided[0]
        if first.outcome == "redeemed":
            return _checkout(caller, new, request, pricing, decided)
        refused = _refused(caller, first)
        if refused is not None:
            return _naming(refused, pricing.quotes[first.ord - 1].terms, new)
    raise Unavailable("Nothing was applied: the vouchers' terms are changing.")


def _priced(
    terms: Sequence[Terms],
    known: Sequence[dict[str, Any]],
    request: Request,
    new: NewCheckout,
    caller: Caller,
) -> _Pricing | Refusal:
    """Quote all codes one after another, or find the combination that takes off most. Pure."""
    stacked = [_stacked(one) for one in terms]
    if new.mode == "all":
        conflict = stacking.refusal(stacked)
        if conflict is not None:
            return _naming(conflict[1], terms[conflict[0]], new)
        quoted = _taken_off(stacking.places(stacked), terms, known, request, caller)
        if isinstance(quoted, tuple):
            return _naming(quoted[1], terms[quoted[0]], new)
        return _Pricing(quoted, [])
    return _best(stacked, terms, known, request, new, caller)


def _best(
    stacked: Sequence[Stacked],
    terms: Sequence[Terms],
    known: Sequence[dict[str, Any]],
    request: Request,
    new: NewCheckout,
    caller: Caller,
) -> _Pricing | Refusal:
    alone = [
        quotes.quote(one, request, known[place], None, caller) for place, one in enumerate(terms)
    ]
    may = [place for place, one in enumerate(alone) if isinstance(one, Quote)]
    worth = [one.taken.total for one in alone if isinstance(one, Quote)]
    best: list[Quote] = []
    for choice in stacking.choices([stacked[place] for place in may], worth):
        chosen = [may[place] for place in choice]
        ordered = [p for p in stacking.places(stacked) if p in chosen]
        quoted = _taken_off(ordered, terms, known, request, caller)
        if isinstance(quoted, list) and (
            not best
            or sum(one.taken.total for one in quoted) > sum(one.taken.total for one in best)
        ):
            best = quoted
    taken = {one.terms.voucher_id for one in best}
    left_out = []
    for place, one in enumerate(alone):
        if terms[place].voucher_id in taken:
            continue
        reason = one if isinstance(one, Refusal) else _NOT_BEST
        left_out.append(LeftOut(terms[place].code, reason.code, reason.detail, reason.because))
    if not best:
        refused = next(one for one in alone if isinstance(one, Refusal))
        return _naming(refused, terms[0], new)
    return _Pricing(best, left_out)


_NOT_BEST: Final = Refusal("not_combinable", "Without this code the order costs less.")


def _taken_off(
    places: Sequence[int],
    terms: Sequence[Terms],
    known: Sequence[dict[str, Any]],
    request: Request,
    caller: Caller,
) -> list[Quote] | tuple[int, Refusal]:
    """Quote codes on what those before left; the first refusal comes with its place."""
    rests = discounts.whole(request.order) if request.order is not None else None
    found: list[Quote] = []
    for place in places:
        quoted = quotes.quote(terms[place], request, known[place], rests, caller)
        if isinstance(quoted, Refusal):
            return place, quoted
        if rests is not None:
            rests = rests.less(quoted.taken)
        found.append(quoted)
    return found


def _stacked(terms: Terms) -> Stacked:
    owner = terms.promotion if terms.owns_discount else terms.campaign_promotion
    deal = promotions.deal_of(terms.discount_type, terms.discount_bp, terms.discount_minor, owner)
    rules = [
        promotion.stacking
        for promotion in (terms.promotion, terms.campaign_promotion)
        if promotion is not None and promotion.stacking is not None
    ]
    return Stacked(terms.code_norm, deal, rules[0] if rules else Stacking())


def _naming(refusal: Refusal, terms: Terms, new: NewCheckout) -> Refusal:
    """Say in a refusal of several codes which one it is about; places count from 1."""
    norms = [codes.normalise(code) for code in new.codes]
    place = norms.index(terms.code_norm) + 1
    extra = {**refusal.extra, "voucher": terms.code, "place": place}
    return msgspec.structs.replace(refusal, extra=extra)


async def _terms(
    conn: db.Connection, caller: Caller, given: Sequence[str], fields: Sequence[str]
) -> list[Terms]:
    """Read the terms of codes in their order; `fields` name the members they came from."""
    norms = [codes.normalise(code) or "" for code in given]
    rows = await db.many(
        conn, "redemptions.terms", Terms, project_id=caller.project_id, codes=norms
    )
    found = {terms.code_norm: terms for terms in rows}
    for norm, field in zip(norms, fields, strict=True):
        if norm not in found:
            raise NotFound("There is no voucher with this code.", field=field)
    return [found[norm] for norm in norms]


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
    quoted: Sequence[Quote],
    digest: bytes,
    *,
    key: str | None = None,
    hold_s: int | None = None,
) -> dict[str, Any]:
    held = None
    if new.hold_id is not None:
        held = ids.parse_id("hld", new.hold_id)
        if held is None:
            raise NotFound("There is no such hold in this project.", field="hold_id")
    # A hold's redemption has its id.
    numbers = [held or ids.new() for _ in quoted]
    return {
        "project_id": quoted[0].terms.project_id,
        "customer_id": new.customer_id,
        "order_id": new.order_id,
        "order_value": request.order_value_minor,
        "metadata": contexts.stored(new.metadata, new.context),
        "fingerprint": digest,
        "vouchers": [one.terms.voucher_id for one in quoted],
        "versions": [one.terms.terms_version for one in quoted],
        "campaigns": [one.terms.campaign_id for one in quoted],
        "campaign_versions": [one.terms.campaign_version for one in quoted],
        "ids": numbers,
        "keys": [key or ids.format_id("rdm", number) for number in numbers],
        "discounts": [one.taken.total for one in quoted],
        "details": [
            _encode(quotes.detail(request, one.taken, one.takings)).decode() for one in quoted
        ],
        "takings": [one.takings for one in quoted],
        "holds": [held for _ in quoted],
        "hold_s": hold_s,
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


def _refused(caller: Caller, first: Decided) -> Refusal | None:
    """Turn what was decided against into what is told; None where the terms had changed."""
    match first.outcome:
        case "repriced":
            return None
        case "rerouted":
            return Refusal("voucher_in_sale", "A flash sale holds this voucher until it ends.")
        case "mismatch":
            raise IdempotencyMismatch
        case "not_found":
            raise NotFound("There is no voucher with this code.")
        case "no_hold":
            raise NotFound("There is no such hold of this voucher and customer.", field="hold_id")
        case "hold_expired":
            return Refusal("hold_expired", "This hold has ended; its use was given back.")
        case "customer_required":
            raise Invalid(
                "customer_id is required: this voucher is limited per customer",
                field="customer_id",
            )
        case "budget":
            taking = msgspec.convert(first.detail, Taking)
            return budgets.refusal(taking, first.used or 0, caller.exponent)
        case "customer_limit_reached" if first.existing is not None and caller.is_secret:
            existing = ids.format_id("rdm", first.existing)
            return redemptions.refusal("customer_limit_reached", redemption_id=existing)
        case outcome:
            return redemptions.refusal(outcome)


def _checkout(
    caller: Caller,
    new: NewCheckout,
    request: Request,
    pricing: _Pricing,
    decided: Sequence[Decided],
) -> Checkout:
    rows = sorted(decided, key=lambda one: one.ord)
    taken = [one.taken for one in pricing.quotes]
    whole = Taken(
        tuple(sum(parts) for parts in zip(*(one.lines for one in taken), strict=True)),
        sum(one.shipping for one in taken),
    )
    after = quotes.detail(request, whole, ()).order
    return Checkout(
        redemptions=[
            _redemption(caller, new, pricing.quotes[one.ord - 1].terms, one) for one in rows
        ],
        discount_applied=money.json_amount(whole.total, caller.exponent),
        left_out=pricing.left_out,
        order=msgspec.UNSET if after is None else orders.shown(after, caller.exponent),
    )


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
