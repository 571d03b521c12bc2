"""Redeeming a voucher: price it, let PostgreSQL (or a live lease) decide, answer.

`NewRedemption` is what a caller sends, `Redemption` what is answered, stored and read back. The
operations here serve every door and both modes; the SQL functions judge, this file never does.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec

import core.db as db
from core import contexts, idempotency, ids
from core.api_keys import Caller
from core.contexts import Told
from core.errors import IdempotencyMismatch, Invalid, NotFound, Refusal, Unavailable
from core.rules import codes, discounts, limits, money
from core.rules.discounts import DealType
from core.rules.limits import Metadata
from core.rules.orders import REFERENCE_LENGTH_MAX, NewOrder, ShownOrder
from core.rules.promotions import Detail, Promotion
from core.shapes import Amount, Person
from core.shared_commits import Ask, Decision, SharedCommits

# A refusal that was judged from cached terms is only given when they are younger than this.
TERMS_REFUSE_S: Final = 1.0
NO_REDEMPTION: Final = "There is no redemption with this id."


class NewRedemption(Told, frozen=True, forbid_unknown_fields=True):
    """A request to redeem or claim, with `order_value`, the text of a JSON number, or `order`.

    `customer_token`: what the shop signed, where a browser claims. `context` is no part of what a
    retry is told by.
    """

    customer_id: str | None = None
    order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    order_id: str | None = None
    metadata: Metadata | None = None
    order: NewOrder | None = None
    hold_id: str | None = None
    customer: Person | None = None
    customer_token: str | None = None


class Redemption(msgspec.Struct, frozen=True):
    """A redemption as it is answered: the same at once, on a retry and when read back.

    `remaining`: the smallest limit left right after it, None without limits. `seq`: its number,
    unique in its voucher or sale. `status`: redeemed or rolled_back. `order`: its lines after it.
    `receipt`: of a fast win, not in lists.
    """

    redemption_id: str
    status: str
    code: str
    discount_applied: Amount
    remaining: int | None
    seq: int
    order_value: Amount
    currency: str
    customer_id: str | None
    order_id: str | None
    redeemed_at: str
    receipt: str | msgspec.UnsetType = msgspec.UNSET
    flash_sale_id: str | None = None
    campaign_id: str | None = None
    metadata: Metadata | None = None
    rolled_back_at: str | None = None
    rollback_reason: str | None = None
    order: ShownOrder | msgspec.UnsetType = msgspec.UNSET
    rolled_back_amount: Amount | msgspec.UnsetType = msgspec.UNSET


class Terms(msgspec.Struct, frozen=True):
    """What a price is computed from, with the versions that PostgreSQL holds it against."""

    project_id: UUID
    voucher_id: UUID
    code: str
    code_norm: str
    terms_version: int
    campaign_id: UUID | None
    campaign_version: int | None
    sale_id: UUID | None
    authority: str
    sale_only: bool
    discount_type: DealType
    discount_bp: int | None
    discount_minor: int | None
    min_order_minor: int | None
    needs_customer: bool
    crowd_version: int
    owns_discount: bool
    promotion: Promotion | None
    campaign_promotion: Promotion | None

    @property
    def is_plain(self) -> bool:
        """Whether type, value, minimum and counts are all there is to it."""
        return self.promotion is None and self.campaign_promotion is None

    @property
    def sells_alone(self) -> bool:
        """Whether no flash sale has a say in it."""
        return self.authority == "pg" and self.sale_id is None and not self.sale_only


class Priced(msgspec.Struct, frozen=True):
    """A request with everything computed that will ever be computed of it."""

    new: NewRedemption
    order_value_minor: int
    discount_minor: int
    fingerprint: bytes
    metadata: str | None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_encoder: Final = msgspec.json.Encoder(order="deterministic")

_DETAILS: Final = {
    "limit_reached": "This voucher has been redeemed as often as it may be.",
    "customer_limit_reached": "This customer has redeemed the voucher as often as allowed.",
    "sold_out": "Every unit of this sale has been taken.",
    "voucher_inactive": "This voucher is not active.",
    "voucher_expired": "This voucher has expired.",
    "not_started": "This voucher cannot be redeemed yet.",
    "ended": "This sale is over.",
    "paused": "This sale is paused.",
    "blocked": "This customer, code or device may not redeem; ask the shop.",
}


def refusal(outcome: str, **extra: Any) -> Refusal:
    """Return a refusal with its plain sentence."""
    return Refusal(code=outcome, detail=_DETAILS[outcome], extra=extra)


def checked(new: NewRedemption) -> NewRedemption:
    """Hold the references and metadata of a request against their bounds.

    Raises: Invalid, naming the field.
    """
    for name, value in (("customer_id", new.customer_id), ("order_id", new.order_id)):
        if value is not None and not 0 < len(value) <= REFERENCE_LENGTH_MAX:
            raise Invalid(f"{name} must have 1 to {REFERENCE_LENGTH_MAX} characters", field=name)
    if new.metadata:
        limits.check_metadata(new.metadata)
        if not new.metadata.keys().isdisjoint(contexts.NAMES):
            raise Invalid("metadata has a name that is taken; send context", field="metadata")
    if new.customer is not None:
        if new.customer_id is None:
            raise Invalid("customer_id is required with customer", field="customer_id")
        limits.check_metadata(new.customer.attributes or {}, field="customer.attributes")
    return new


def price(terms: Terms, new: NewRedemption, currency: str) -> Priced | Refusal:
    """Compute a plain discount, once. Pure. Refuses: order_value_too_low. Raises: Invalid."""
    if new.order is not None or new.hold_id is not None:
        field = "order" if new.order is not None else "hold_id"
        raise Invalid(f"A flash sale does not take {field}.", field=field)
    order_value = None
    if money.is_given(new.order_value):
        order_value = money.parse_amount(new.order_value, currency, field="order_value")
    if terms.needs_customer and new.customer_id is None:
        raise Invalid(
            "customer_id is required: this voucher is limited per customer", field="customer_id"
        )
    if terms.min_order_minor:
        if order_value is None:
            raise Invalid(
                "order_value is required: this voucher has a minimum", field="order_value"
            )
        if order_value < terms.min_order_minor:
            least, exponent = terms.min_order_minor, money.exponent_of(currency) or 0
            return limits.order_value_too_low(order_value, least, exponent)
    assert terms.discount_type in ("PERCENT", "AMOUNT"), "richer terms are priced by core.quotes"
    discount = discounts.discount_minor(
        terms.discount_type,
        bp=terms.discount_bp,
        amount_minor=terms.discount_minor,
        order_value_minor=order_value,
    )
    return Priced(
        new=new,
        order_value_minor=order_value or 0,
        discount_minor=discount,
        fingerprint=idempotency.fingerprint(
            terms.code_norm,
            (new.customer_id, order_value, new.order_id, new.metadata)
            + (() if new.customer is None else (new.customer,)),
        ),
        metadata=contexts.stored(new.metadata, new.context),
    )


@lru_cache(maxsize=256)
def iso_ms(at: datetime) -> str:
    """Write an instant as RFC 3339 UTC with milliseconds, cutting off what is below.

    A batch shares its instant, so most calls find it written.
    """
    return at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


@lru_cache(maxsize=256)
def ms_of(at: datetime) -> int:
    """Return an instant in milliseconds since 1970, cutting off what is below."""
    return (at - _EPOCH) // _MILLISECOND


@lru_cache(maxsize=256)
def instant_of(at_ms: int) -> datetime:
    """Return the instant of milliseconds since 1970."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def answer(
    caller: Caller,
    terms: Terms,
    priced: Priced,
    *,
    redemption_number: int,
    seq: int,
    remaining: int | None,
    redeemed_at: datetime,
    order_value_minor: int,
    discount_minor: int,
    sale_id: UUID | None,
) -> Redemption:
    """Put an answer together; a replay gets the figures of the first answer.

    `redemption_number` is the id's 128 bits.
    """
    new = priced.new
    exponent = caller.exponent
    return Redemption(
        redemption_id=ids.format_number("rdm", redemption_number),
        status="redeemed",
        code=terms.code,
        discount_applied=money.json_amount(discount_minor, exponent),
        remaining=remaining,
        seq=seq,
        order_value=money.json_amount(order_value_minor, exponent),
        currency=caller.currency,
        customer_id=new.customer_id,
        order_id=new.order_id,
        redeemed_at=iso_ms(redeemed_at),
        flash_sale_id=ids.remembered_id("fls", sale_id) if sale_id else None,
        campaign_id=ids.remembered_id("cmp", terms.campaign_id) if terms.campaign_id else None,
        metadata=new.metadata or None,
    )


class Row(msgspec.Struct, frozen=True):
    """A redemption as the ledger has it."""

    id: UUID
    code: str
    voucher_id: UUID
    campaign_id: UUID | None
    sale_id: UUID | None
    customer_id: str | None
    order_id: str | None
    order_value_minor: int
    discount_minor: int
    remaining: int | None
    seq: int
    status: str
    redeemed_at: datetime
    rolled_back_at: datetime | None
    rollback_reason: str | None
    returned_minor: int | None
    metadata: Metadata | None
    detail: Detail | None


class Keyed(Row, frozen=True):
    """A row with what tells its request from another with the same key."""

    fingerprint: bytes


def from_row(caller: Caller, row: Row) -> Redemption:
    """Show a row of the ledger as it was answered."""
    return Redemption(
        redemption_id=ids.format_id("rdm", row.id),
        status=row.status,
        code=row.code,
        discount_applied=money.json_amount(row.discount_minor, caller.exponent),
        remaining=row.remaining,
        seq=row.seq,
        order_value=money.json_amount(row.order_value_minor, caller.exponent),
        currency=caller.currency,
        customer_id=row.customer_id,
        order_id=row.order_id,
        redeemed_at=iso_ms(row.redeemed_at),
        flash_sale_id=ids.format_id("fls", row.sale_id) if row.sale_id else None,
        campaign_id=ids.format_id("cmp", row.campaign_id) if row.campaign_id else None,
        metadata=contexts.without(row.metadata) or None,
        rolled_back_at=iso_ms(row.rolled_back_at) if row.rolled_back_at else None,
        rollback_reason=row.rollback_reason,
        order=row.detail.shown(caller.exponent) if row.detail else msgspec.UNSET,
        rolled_back_amount=money.json_amount(row.returned_minor, caller.exponent)
        if row.returned_minor
        else msgspec.UNSET,
    )


def asked(
    terms: Terms,
    key: str | None,
    *,
    fingerprint: bytes,
    customer_id: str | None,
    order_value_minor: int,
    discount_minor: int,
    order_id: str | None,
    metadata: str | None,
) -> Ask:
    """Return a priced request as the shared commits take it; without a key its id is the key."""
    redemption_id = ids.new()
    return Ask(
        project_id=terms.project_id,
        voucher_id=terms.voucher_id,
        version=terms.terms_version,
        campaign_id=terms.campaign_id,
        campaign_version=terms.campaign_version,
        sale_id=terms.sale_id,
        id=redemption_id,
        key=key or ids.format_id("rdm", redemption_id),
        fingerprint=fingerprint,
        customer_id=customer_id,
        order_value_minor=order_value_minor,
        discount_minor=discount_minor,
        order_id=order_id,
        metadata=metadata,
    )


async def decide(commits: SharedCommits, terms: Terms, priced: Priced, key: str | None) -> Decision:
    """Let PostgreSQL decide one priced request, in a commit it shares."""
    return await commits.submit(
        asked(
            terms,
            key,
            fingerprint=priced.fingerprint,
            customer_id=priced.new.customer_id,
            order_value_minor=priced.order_value_minor,
            discount_minor=priced.discount_minor,
            order_id=priced.new.order_id,
            metadata=priced.metadata,
        )
    )


def judged(
    caller: Caller, terms: Terms, priced: Priced, decision: Decision
) -> Redemption | Refusal:
    """Turn PostgreSQL's decision into the answer.

    Raises: IdempotencyMismatch; NotFound; Unavailable when the terms moved twice in a row.
    """
    match decision.outcome:
        case "redeemed" | "replayed":
            assert decision.id is not None
            assert decision.seq is not None and decision.redeemed_at is not None
            assert decision.order_value_minor is not None and decision.discount_minor is not None
            return answer(
                caller,
                terms,
                priced,
                redemption_number=decision.id.int,
                seq=decision.seq,
                remaining=decision.remaining,
                redeemed_at=decision.redeemed_at,
                order_value_minor=decision.order_value_minor,
                discount_minor=decision.discount_minor,
                sale_id=decision.sale,
            )
        case "mismatch":
            raise IdempotencyMismatch
        case "customer_limit_reached" if decision.existing is not None and caller.is_secret:
            existing = ids.format_id("rdm", decision.existing)
            return refusal("customer_limit_reached", redemption_id=existing)
        case "customer_required":
            raise Invalid(
                "customer_id is required: this voucher is limited per customer",
                field="customer_id",
            )
        case "not_found":
            raise NotFound("There is no voucher with this code.")
        case "repriced" | "rerouted":
            raise Unavailable("Nothing was applied: the voucher's terms are changing.")
        case outcome:
            return refusal(outcome)


class Filter(msgspec.Struct, frozen=True):
    """What narrows a list of redemptions; None does not narrow."""

    code: str | None = None
    campaign_id: UUID | None = None
    sale_id: UUID | None = None
    customer_id: str | None = None
    order_id: str | None = None
    status: str | None = None
    from_at: datetime | None = None
    to_at: datetime | None = None


async def list_page(
    database: db.Database, caller: Caller, narrow: Filter, *, before: UUID | None, limit: int
) -> tuple[list[Redemption], bool]:
    """Return a page, newest first, and whether more follow. An unknown code has no redemptions."""
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        return await page(conn, caller, narrow, before=before, limit=limit)


async def page(
    conn: db.Connection, caller: Caller, narrow: Filter, *, before: UUID | None, limit: int
) -> tuple[list[Redemption], bool]:
    """Do the same in a transaction that is open, whose later statements walk lists as well."""
    voucher_id = None
    if narrow.code is not None:
        voucher_id = await db.one(
            conn, "redemptions.voucher_id_of_code", UUID,
            project_id=caller.project_id, code_norm=codes.normalise(narrow.code) or "",
        )  # fmt: skip
        if voucher_id is None:
            return [], False
    await db.run(conn, "redemptions.in_order")
    asked = {k: v for k, v in msgspec.structs.asdict(narrow).items() if k != "code"}
    rows = await db.many(
        conn, "redemptions.list", Row,
        project_id=caller.project_id, before=before, voucher_id=voucher_id, limit=limit + 1,
        **asked,
    )  # fmt: skip
    return [from_row(caller, row) for row in rows[:limit]], len(rows) > limit


class _LeaseOfTag(msgspec.Struct):
    lease_id: UUID
    state: str
    open_to: int


async def read(database: db.Database, caller: Caller, redemption_id: UUID) -> Redemption | Refusal:
    """Return one redemption. Refuses: not_settled_yet, for a win that the ledger has not yet.

    Raises: NotFound.
    """
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        row = await db.one(
            conn, "redemptions.read", Row, project_id=caller.project_id, id=redemption_id
        )
        if row is not None:
            return from_row(caller, row)
        return await _unsettled(conn, caller, redemption_id)


async def _unsettled(conn: db.Connection, caller: Caller, redemption_id: UUID) -> Refusal:
    tag = ids.tag_of_win(redemption_id)
    lease = (
        await db.one(
            conn,
            "redemptions.lease_of_tag",
            _LeaseOfTag,
            project_id=caller.project_id,
            tag=tag,
        )
        if tag < 1 << 63
        else None
    )
    if lease is not None and lease.state != "settled":
        seq = ids.seq_of_win(redemption_id, lease.lease_id)
        if seq is not None and seq <= lease.open_to:
            return Refusal(
                code="not_settled_yet",
                detail="This win is on its way into the ledger; ask again in a moment.",
            )
    raise NotFound(NO_REDEMPTION)


class RolledBack(msgspec.Struct, frozen=True):
    """What `vf.roll_back` did; the lease and customer are there when Redis must hear of it."""

    outcome: str
    voucher_id: UUID | None
    lease_id: UUID | None
    lease_state: str | None
    customer_id: str | None


async def shown(conn: db.Connection, caller: Caller, redemption_id: UUID) -> Redemption:
    """Return a redemption that is known to be in the ledger."""
    row = await db.one(
        conn, "redemptions.read", Row, project_id=caller.project_id, id=redemption_id
    )
    assert row is not None
    return from_row(caller, row)


async def roll_back(
    conn: db.Connection,
    caller: Caller,
    redemption_id: UUID,
    reason: str | None,
    *,
    code: str | None = None,
) -> RolledBack | Refusal:
    """Give the unit of a redemption back, once, within the project's window; the row stays.

    With `code`, only a redemption of that voucher. Call `SaleDesk.give_back` after the commit.
    Refuses: already_rolled_back, rollback_window_passed, not_settled_yet. Raises: NotFound.
    Concurrency: locks campaign, voucher, then changes the row if it is still live.
    """
    if code is not None:
        row = await db.one(
            conn, "redemptions.read", Row, project_id=caller.project_id, id=redemption_id
        )
        if row is not None and codes.normalise(row.code) != codes.normalise(code):
            raise NotFound(NO_REDEMPTION)
    done = await db.one(
        conn,
        "redemptions.roll_back",
        RolledBack,
        project_id=caller.project_id,
        id=redemption_id,
        reason=reason,
    )
    assert done is not None
    if done.outcome == "rolled_back":
        return done
    return await _not_rolled_back(conn, caller, redemption_id, done.outcome)


async def roll_back_part(
    conn: db.Connection,
    caller: Caller,
    redemption_id: UUID,
    amount: msgspec.Raw,
    reason: str | None,
) -> Refusal | None:
    """Give a part of a redemption's discount back to its budgets; the use stays used.

    Refuses as `roll_back`. Raises: NotFound; Invalid for more than is left of the discount.
    Concurrency: a conditional write; parts that come at once never exceed the whole.
    """
    amount_minor = money.parse_amount(amount, caller.currency, field="amount", minor_min=1)
    outcome = await db.value(
        conn, "redemptions.roll_back_part", str,
        project_id=caller.project_id, id=redemption_id, amount=amount_minor, reason=reason,
    )  # fmt: skip
    if outcome == "rolled_back":
        return None
    if outcome == "too_much":
        raise Invalid("amount is more than is left of the discount", field="amount")
    return await _not_rolled_back(conn, caller, redemption_id, outcome)


async def _not_rolled_back(
    conn: db.Connection, caller: Caller, redemption_id: UUID, outcome: str
) -> Refusal:
    match outcome:
        case "not_found":
            return await _unsettled(conn, caller, redemption_id)
        case "already_rolled_back":
            return Refusal(
                code="already_rolled_back", detail="This redemption was rolled back before."
            )
        case _:
            window_s = await db.value(
                conn, "redemptions.rollback_window_s", int, project_id=caller.project_id
            )
            return Refusal(
                code="rollback_window_passed",
                detail=f"A redemption can be rolled back for {window_s // 60} minutes.",
            )
