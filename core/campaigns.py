"""Campaigns: shared terms and limits of many vouchers."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from core import db, ids, segments
from core.api_keys import Caller
from core.errors import Invalid, NotFound, Refusal
from core.rules import limits, money, promotions
from core.rules.discounts import DealType
from core.rules.limits import Metadata
from core.rules.promotions import Members, Promotion, Shown
from core.shapes import Amount, Count, Instant

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Status = Literal["active", "paused", "ended"]


class NewRules(Members, kw_only=True, forbid_unknown_fields=True):
    """What every voucher of the campaign is held to; its discount is theirs unless they differ."""

    discount_type: DealType | None = None
    discount_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    max_redemptions: Count | None = None
    per_customer_limit: Count | None = None
    starts_at: Instant | None = None
    expires_at: Instant | None = None
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)


class NewCampaign(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a campaign is made from."""

    name: Name
    type: Literal["DISCOUNT"] = "DISCOUNT"
    rules: NewRules = msgspec.field(default_factory=NewRules)
    metadata: Metadata | None = None


class RulesPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of the rules: their dates. Null clears."""

    starts_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: Instant | msgspec.UnsetType | None = msgspec.UNSET


class CampaignPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a campaign: members that are left out stay."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    rules: RulesPatch | msgspec.UnsetType = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType | None = msgspec.UNSET


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign's row."""

    id: UUID
    name: str
    type: Literal["DISCOUNT"]
    status: Status
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
    expires_after_days: int | None
    direct_count: int
    held_count: int
    leased_count: int
    unsold_count: int
    terms_version: int
    created_at: datetime
    updated_at: datetime


class Rules(Shown, frozen=True, kw_only=True):
    """A campaign's rules as the API shows them."""

    discount_type: DealType | None
    discount_value: Amount | None
    max_redemptions: int | None
    per_customer_limit: int | None
    starts_at: datetime | None
    expires_at: datetime | None
    min_order_value: Amount | None
    expires_after_days: int | msgspec.UnsetType = msgspec.UNSET


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign as the API shows it."""

    id: str
    name: str
    type: Literal["DISCOUNT"]
    status: Status
    rules: Rules
    redeemed_count: int
    remaining: int | None
    metadata: Metadata
    created_at: datetime
    updated_at: datetime


async def create(conn: db.Connection, caller: Caller, new: NewCampaign) -> Campaign:
    """Make a campaign; it is active at once. Raises: Invalid."""
    rules = new.rules
    discount = promotions.read_discount(
        rules.discount_type, rules.discount_value, caller.currency, prefix="rules."
    )
    promotion = promotions.read(
        rules,
        None if discount is None else discount.type,
        caller.currency,
        await time_zone(conn, caller),
        prefix="rules.",
    )
    await segments.check_named(
        conn,
        caller,
        None if promotion is None else promotion.conditions,
        field="rules.conditions",
    )
    limits.check_window(rules.starts_at, rules.expires_at, prefix="rules.")
    limits.check_metadata(new.metadata or {})
    least = rules.min_order_value
    campaign_id = ids.new()
    await db.run(
        conn, "campaigns.create",
        project_id=caller.project_id, id=campaign_id, campaign_name=new.name, type=new.type,
        discount_type=discount and discount.type, discount_bp=discount and discount.bp,
        discount_minor=discount and discount.amount_minor,
        min_order_minor=money.parse_amount(least, caller.currency, field="rules.min_order_value")
        if money.is_given(least) else None,
        max_redemptions=rules.max_redemptions, per_customer_limit=rules.per_customer_limit,
        starts_at=rules.starts_at, expires_at=rules.expires_at, metadata=new.metadata or {},
        promotion=promotion, expires_after_days=rules.expires_after_days,
    )  # fmt: skip
    return show(await _by_id(conn, caller, campaign_id), caller)


async def time_zone(conn: db.Connection, caller: Caller) -> str:
    """Return the time zone of the caller's project."""
    return await db.value(conn, "campaigns.time_zone", str, project_id=caller.project_id)


async def find(
    conn: db.Connection, caller: Caller, public_id: str, *, field: str | None = None
) -> Stored:
    """Return a campaign's row; `field` names the member of the request it came from.

    Raises: NotFound.
    """
    campaign_id = ids.parse_id("cmp", public_id)
    if campaign_id is not None:
        stored = await db.one(
            conn, "campaigns.by_id", Stored, project_id=caller.project_id, id=campaign_id
        )
        if stored is not None:
            return stored
    raise NotFound("There is no such campaign in this project.", field=field)


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Campaign:
    """Return a campaign as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id), caller)


async def page(
    conn: db.Connection, caller: Caller, *, status: Status | None, after: UUID | None, limit: int
) -> list[Campaign]:
    """Return up to `limit` campaigns, newest first."""
    rows = await db.many(
        conn, "campaigns.page", Stored,
        project_id=caller.project_id, status=status, after=after, limit=limit,
    )  # fmt: skip
    return [show(row, caller) for row in rows]


async def edit(
    conn: db.Connection, caller: Caller, public_id: str, patch: CampaignPatch
) -> Campaign:
    """Change name, dates or metadata; a change of dates is a new version of the terms.

    Raises: NotFound, Invalid.
    """
    before = await find(conn, caller, public_id)
    rules = RulesPatch() if patch.rules is msgspec.UNSET else patch.rules
    starts_at = before.starts_at if rules.starts_at is msgspec.UNSET else rules.starts_at
    expires_at = before.expires_at if rules.expires_at is msgspec.UNSET else rules.expires_at
    limits.check_window(starts_at, expires_at, prefix="rules.")
    metadata = None if patch.metadata is msgspec.UNSET else patch.metadata or {}
    limits.check_metadata(metadata or {})
    try:
        await db.run(
            conn, "campaigns.edit", project_id=caller.project_id, id=before.id,
            campaign_name=None if patch.name is msgspec.UNSET else patch.name,
            sets_starts=rules.starts_at is not msgspec.UNSET, starts_at=starts_at,
            sets_expires=rules.expires_at is not msgspec.UNSET, expires_at=expires_at,
            metadata=metadata,
        )  # fmt: skip
    except db.CheckViolation as violation:
        # Somebody moved the other date since the look above.
        if violation.constraint != "campaigns_window":
            raise
        raise Invalid(
            "rules.expires_at must be later than rules.starts_at", field="rules.expires_at"
        ) from None
    return show(await _by_id(conn, caller, before.id), caller)


async def switch(
    conn: db.Connection, caller: Caller, public_id: str, *, status: Literal["active", "paused"]
) -> Campaign | Refusal:
    """Pause or resume a campaign and with it all its vouchers. Idempotent.

    Refuses: ended. Raises: NotFound.
    """
    stored = await find(conn, caller, public_id)
    await db.run(conn, "campaigns.switch", project_id=caller.project_id, id=stored.id,
                 status=status)  # fmt: skip
    after = await _by_id(conn, caller, stored.id)
    if after.status != status:
        return Refusal("ended", "This campaign has ended.")
    return show(after, caller)


def show(stored: Stored, caller: Caller) -> Campaign:
    """Write a row as the API shows it: texts for ids, decimals for money."""
    status: Status = stored.status
    if stored.expires_at is not None and stored.expires_at <= datetime.now(UTC):
        status = "ended"
    least = stored.min_order_minor
    taken = stored.direct_count + stored.leased_count
    return Campaign(
        id=ids.format_id("cmp", stored.id),
        name=stored.name,
        type=stored.type,
        status=status,
        rules=Rules(
            discount_type=stored.discount_type,
            discount_value=limits.show_discount(
                stored.discount_bp, stored.discount_minor, caller.exponent
            ),
            max_redemptions=stored.max_redemptions,
            per_customer_limit=stored.per_customer_limit,
            starts_at=stored.starts_at,
            expires_at=stored.expires_at,
            min_order_value=None if least is None else money.json_amount(least, caller.exponent),
            expires_after_days=stored.expires_after_days or msgspec.UNSET,
            **promotions.shown(stored.promotion, caller.exponent),
        ),
        redeemed_count=taken - stored.held_count - stored.unsold_count,
        remaining=None if stored.max_redemptions is None else stored.max_redemptions - taken,
        metadata=stored.metadata,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


async def _by_id(conn: db.Connection, caller: Caller, campaign_id: UUID) -> Stored:
    stored = await db.one(
        conn, "campaigns.by_id", Stored, project_id=caller.project_id, id=campaign_id
    )
    assert stored is not None
    return stored
