"""Vouchers: made, read, edited, switched on and off, and validated. Redeeming is its own noun."""

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from core import audit_log, campaigns, db, ids, segments
from core.api_keys import Caller
from core.errors import AlreadyExists, Invalid, NotFound, Refusal
from core.rules import codes, limits, money, promotions, schedules
from core.rules.discounts import DealType
from core.rules.limits import Metadata, Terms
from core.rules.promotions import Members, Promotion, Shown
from core.shapes import Amount, Count, CustomerId, Instant

Status = Literal["active", "disabled", "expired"]


class NewVoucher(Members, kw_only=True, forbid_unknown_fields=True):
    """What a voucher is made from. Without a code a random one is drawn."""

    code: str | None = None
    discount_type: DealType | None = None
    discount_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    campaign_id: str | None = None
    max_redemptions: Count | None = None
    per_customer_limit: Count | None = None
    starts_at: Instant | None = None
    expires_at: Instant | None = None
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    metadata: Metadata | None = None
    holder: CustomerId | None = None


class VoucherPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a voucher: members that are left out stay, null clears."""

    starts_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType | None = msgspec.UNSET


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A voucher's row with what its campaign adds.

    `leased_count` holds the units out at a fast sale, `unsold_count` those of them that the
    ledger does not know as sold.
    """

    id: UUID
    code: str
    campaign_id: UUID | None
    status: Literal["active", "disabled"]
    discount_type: DealType | None
    discount_bp: int | None
    discount_minor: int | None
    min_order_minor: int | None
    max_redemptions: int | None
    per_customer_limit: int | None
    starts_at: datetime | None
    expires_at: datetime | None
    metadata: Metadata
    promotion: Promotion | None
    holder: str | None
    direct_count: int
    held_count: int
    leased_count: int
    unsold_count: int
    authority: Literal["pg", "flash"]
    flash_sale_id: UUID | None
    sale_only: bool
    terms_version: int
    created_at: datetime
    updated_at: datetime
    campaign_status: Literal["draft", "active", "paused", "ended"] | None
    campaign_terms_version: int | None
    campaign_discount_type: DealType | None
    campaign_discount_bp: int | None
    campaign_discount_minor: int | None
    campaign_min_order_minor: int | None
    campaign_rest: int | None
    campaign_per_customer_limit: int | None
    campaign_starts_at: datetime | None
    campaign_expires_at: datetime | None
    campaign_promotion: Promotion | None

    @property
    def terms(self) -> Terms:
        """Its own discount, else its campaign's; of both windows and minimums the narrower."""
        is_own = self.discount_type is not None
        kind = self.discount_type or self.campaign_discount_type
        assert kind is not None, "a voucher without a discount of its own has a campaign's"
        return Terms(
            discount_type=kind,
            discount_bp=self.discount_bp if is_own else self.campaign_discount_bp,
            discount_minor=self.discount_minor if is_own else self.campaign_discount_minor,
            min_order_minor=max(
                self.min_order_minor or 0, self.campaign_min_order_minor or 0
            ) or None,
            starts_at=max(filter(None, (self.starts_at, self.campaign_starts_at)), default=None),
            expires_at=min(
                filter(None, (self.expires_at, self.campaign_expires_at)), default=None
            ),
        )  # fmt: skip

    @property
    def remaining(self) -> int | None:
        """The smallest rest of voucher and campaign; units out at a fast sale count as gone."""
        rest = (
            None
            if self.max_redemptions is None
            else self.max_redemptions - self.direct_count - self.leased_count
        )
        return limits.smallest_rest(rest, self.campaign_rest)


class Voucher(Shown, frozen=True, kw_only=True):
    """A voucher as the API shows it."""

    id: str
    code: str
    status: Status
    discount_type: DealType | None
    discount_value: Amount | None
    campaign_id: str | None
    max_redemptions: int | None
    per_customer_limit: int | None
    redeemed_count: int
    remaining: int | None
    min_order_value: Amount | None
    starts_at: datetime | None
    expires_at: datetime | None
    metadata: Metadata
    created_at: datetime
    updated_at: datetime
    holder: str | msgspec.UnsetType = msgspec.UNSET


async def create(conn: db.Connection, caller: Caller, new: NewVoucher) -> Voucher:
    """Make a voucher. It inherits its campaign's discount where it has none of its own.

    Raises: AlreadyExists for a code that is taken, NotFound for the campaign, Invalid.
    """
    given_code = codes.generate() if new.code is None else new.code
    code_norm = codes.checked(given_code)
    voucher_id = ids.new()
    try:
        await db.run(
            conn, "vouchers.create",
            project_id=caller.project_id, id=voucher_id, code=given_code.strip(" "),
            code_norm=code_norm, **await columns(conn, caller, new),
        )  # fmt: skip
    except db.UniqueViolation as violation:
        if violation.constraint != "vouchers_code_key":
            raise
        raise AlreadyExists("A voucher with this code is there already.", field="code") from None
    return show(await _by_id(conn, caller, voucher_id), caller)


async def columns(conn: db.Connection, caller: Caller, new: NewVoucher) -> dict[str, Any]:
    """Return what a new voucher's row has besides its code and ids, by the names of its columns.

    Raises: NotFound for the campaign, Invalid.
    """
    time_zone = await campaigns.time_zone(conn, caller)
    campaign = None
    if new.campaign_id is not None:
        campaign = await campaigns.find(conn, caller, new.campaign_id, field="campaign_id")
    found = columns_of(caller, new, campaign, time_zone)
    await check_segments(conn, caller, found)
    return found


async def check_segments(conn: db.Connection, caller: Caller, row: dict[str, Any]) -> None:
    """Hold the segments that a row's rules name against those there are. Raises: Invalid."""
    promotion: Promotion | None = row["promotion"]
    if promotion is not None:
        await segments.check_named(conn, caller, promotion.conditions, field="conditions")


def columns_of(
    caller: Caller, new: NewVoucher, campaign: campaigns.Stored | None, time_zone: str
) -> dict[str, Any]:
    """Return the same of a voucher whose campaign was found; `time_zone` is the project's.

    Raises: Invalid.
    """
    discount = promotions.read_discount(new.discount_type, new.discount_value, caller.currency)
    kind = None if discount is None else discount.type
    promotion = promotions.read(new, kind, caller.currency, time_zone)
    limits.check_window(new.starts_at, new.expires_at)
    limits.check_metadata(new.metadata or {})
    days = new.expires_after_days
    if campaign is not None:
        days = days or campaign.expires_after_days
        if discount is None and campaign.discount_type is None:
            raise Invalid(
                "discount_value is required: the campaign has no discount of its own",
                field="discount_value",
            )
    elif discount is None:
        raise Invalid(
            "discount_value is required where there is no campaign_id", field="discount_value"
        )
    clock = time_zone if promotion is None else promotion.time_zone
    return {
        "campaign_id": None if campaign is None else campaign.id,
        "discount_type": kind,
        "discount_bp": None if discount is None else discount.bp,
        "discount_minor": None if discount is None else discount.amount_minor,
        "min_order_minor": least_order(new.min_order_value, caller),
        "max_redemptions": new.max_redemptions,
        "per_customer_limit": new.per_customer_limit,
        "starts_at": new.starts_at,
        "expires_at": issued_until(new.starts_at, new.expires_at, days, clock),
        "metadata": new.metadata or {},
        "promotion": promotion,
        "holder": new.holder,
    }


async def find(conn: db.Connection, caller: Caller, code_or_id: str) -> Stored:
    """Return a voucher by its code, or by its `vch_…` id. Raises: NotFound."""
    voucher_id = ids.parse_id("vch", code_or_id)
    code_norm = codes.normalise(code_or_id)
    stored = None
    if voucher_id is not None:
        stored = await db.one(
            conn, "vouchers.by_id", Stored, project_id=caller.project_id, id=voucher_id
        )
    if stored is None and code_norm is not None:
        stored = await db.one(
            conn, "vouchers.by_code", Stored, project_id=caller.project_id, code_norm=code_norm
        )
    if stored is None:
        raise NotFound("There is no such voucher in this project.")
    return stored


async def get(conn: db.Connection, caller: Caller, code_or_id: str) -> Voucher:
    """Return a voucher as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, code_or_id), caller)


async def page(
    conn: db.Connection,
    caller: Caller,
    *,
    campaign_id: str | None,
    status: Status | None,
    after: UUID | None,
    limit: int,
) -> list[Voucher]:
    """Return up to `limit` vouchers, newest first. Raises: NotFound for the campaign."""
    campaign = campaign_id and await campaigns.find(conn, caller, campaign_id, field="campaign_id")
    narrow = {
        "project_id": caller.project_id, "campaign_id": campaign.id if campaign else None,
        "after": after, "limit": limit,
    }  # fmt: skip
    only = None
    if status == "expired":
        only = await db.many(conn, "vouchers.expired_ids", UUID, **narrow)
    await db.run(conn, "vouchers.in_order")
    rows = await db.many(conn, "vouchers.page", Stored, status=status, only=only, **narrow)
    return [show(row, caller) for row in rows]


async def edit(
    conn: db.Connection, caller: Caller, code_or_id: str, patch: VoucherPatch
) -> Voucher | Refusal:
    """Change dates or metadata; a change of dates is a new version of the terms.

    Refuses: voucher_in_sale for dates, while a flash sale holds the voucher.
    Raises: NotFound, Invalid.
    """
    before = await find(conn, caller, code_or_id)
    starts_at = before.starts_at if patch.starts_at is msgspec.UNSET else patch.starts_at
    expires_at = before.expires_at if patch.expires_at is msgspec.UNSET else patch.expires_at
    limits.check_window(starts_at, expires_at)
    metadata = None if patch.metadata is msgspec.UNSET else patch.metadata or {}
    limits.check_metadata(metadata or {})
    try:
        changed = await db.run(
            conn, "vouchers.edit", project_id=caller.project_id, id=before.id,
            sets_starts=patch.starts_at is not msgspec.UNSET, starts_at=starts_at,
            sets_expires=patch.expires_at is not msgspec.UNSET, expires_at=expires_at,
            metadata=metadata,
        )  # fmt: skip
    except db.CheckViolation as violation:
        # Somebody moved the other date since the look above.
        if violation.constraint != "vouchers_window":
            raise
        raise Invalid("expires_at must be later than starts_at", field="expires_at") from None
    if not changed:
        return _IN_SALE
    after = show(await _by_id(conn, caller, before.id), caller)
    await audit_log.write_change(
        conn, caller, "voucher.updated", after.id, before=show(before, caller), after=after
    )
    return after


async def switch(
    conn: db.Connection, caller: Caller, code_or_id: str, *, status: Literal["active", "disabled"]
) -> Voucher | Refusal:
    """Disable or enable a voucher. Idempotent.

    Refuses: voucher_in_sale, while a fast sale sells it without asking here.
    Raises: NotFound.
    """
    stored = await find(conn, caller, code_or_id)
    changed = await db.run(
        conn, "vouchers.switch", project_id=caller.project_id, id=stored.id, status=status
    )
    after = await _by_id(conn, caller, stored.id)
    if not changed and after.status != status:
        return _IN_SALE
    shown = show(after, caller)
    if changed:
        action = "voucher.enabled" if status == "active" else "voucher.disabled"
        await audit_log.write_change(
            conn, caller, action, shown.id, before=show(stored, caller), after=shown
        )
    return shown


def show(stored: Stored, caller: Caller) -> Voucher:
    """Write a row as the API shows it: texts for ids, decimals for money."""
    terms = stored.terms
    status: Status = stored.status
    if (
        status == "active"
        and terms.expires_at is not None
        and terms.expires_at <= datetime.now(UTC)
    ):
        status = "expired"
    least = stored.min_order_minor
    return Voucher(
        id=ids.format_id("vch", stored.id),
        code=stored.code,
        status=status,
        discount_type=terms.discount_type,
        discount_value=limits.show_discount(
            terms.discount_bp, terms.discount_minor, caller.exponent
        ),
        campaign_id=None
        if stored.campaign_id is None
        else ids.format_id("cmp", stored.campaign_id),
        max_redemptions=stored.max_redemptions,
        per_customer_limit=stored.per_customer_limit,
        redeemed_count=stored.direct_count
        - stored.held_count
        + stored.leased_count
        - stored.unsold_count,
        remaining=stored.remaining,
        min_order_value=None if least is None else money.json_amount(least, caller.exponent),
        starts_at=stored.starts_at,
        expires_at=stored.expires_at,
        metadata=stored.metadata,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        holder=stored.holder or msgspec.UNSET,
        **promotions.shown(stored.promotion, caller.exponent),
    )


def issued_until(
    starts_at: datetime | None, expires_at: datetime | None, days: int | None, time_zone: str
) -> datetime | None:
    """Return when a voucher that is issued now expires: the earlier of its date and its days.

    The days are counted from its start where that is later. Raises: Invalid.
    """
    if days is None:
        return expires_at
    issued_at = datetime.now(UTC)
    after_days = schedules.days_after(max(issued_at, starts_at or issued_at), days, time_zone)
    return after_days if expires_at is None else min(expires_at, after_days)


def least_order(raw: msgspec.Raw, caller: Caller) -> int | None:
    """Read `min_order_value`; None where it is not given. Raises: Invalid."""
    if not money.is_given(raw):
        return None
    return money.parse_amount(raw, caller.currency, field="min_order_value")


async def _by_id(conn: db.Connection, caller: Caller, voucher_id: UUID) -> Stored:
    stored = await db.one(
        conn, "vouchers.by_id", Stored, project_id=caller.project_id, id=voucher_id
    )
    assert stored is not None
    return stored


_IN_SALE = Refusal(
    "voucher_in_sale", "A flash sale holds this voucher: its terms are frozen until it ends."
)
