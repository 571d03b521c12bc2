"""Referral programs, and the code that a customer has in one.

A program's terms never change, so that everybody is rewarded by those they were referred under.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import audit_log, campaigns, db, ids
from core.api_keys import Caller
from core.campaigns import Name
from core.errors import AlreadyExists, Invalid, NotFound
from core.rules import codes, limits, money, rewards
from core.rules.limits import Metadata
from core.rules.rewards import Cap, Reward, Rules, Tier
from core.shapes import Amount, CustomerId

# More steps than a program has that anybody understands.
TIERS_MAX: Final = 20

Status = Literal["active", "paused", "ended"]
Conversion = Literal["sign_up", "first_redemption", "first_order"]
Place = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
WindowDays = Annotated[int, msgspec.Meta(ge=1, le=rewards.WINDOW_DAYS_MAX)]
DelayS = Annotated[int, msgspec.Meta(ge=0, le=rewards.DELAY_S_MAX)]
ReviewHours = Annotated[int, msgspec.Meta(ge=1, le=rewards.REVIEW_HOURS_MAX)]


class NewReward(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A voucher of a campaign, or an amount on a gift card of its own."""

    type: Literal["voucher", "gift_card"]
    campaign_id: str | None = None
    amount: Amount = msgspec.field(default_factory=msgspec.Raw)


class NewTier(NewReward, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward for every n-th conversion of a referrer, or from the n-th on."""

    every: Place | None = None
    from_: Place | None = msgspec.field(default=None, name="from")


class NewProgram(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a program is made from; a reward that is left out is nothing."""

    name: Name
    conversion: Conversion = "first_order"
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    referrer_reward: NewReward | None = None
    referee_reward: NewReward | None = None
    tiers: Annotated[list[NewTier], msgspec.Meta(max_length=TIERS_MAX)] = []
    cap: Cap | None = None
    attribution_window_days: WindowDays = rewards.WINDOW_DAYS
    reward_delay_s: DelayS = 0
    touch: Literal["first", "last"] = "first"
    review_hours: ReviewHours = rewards.REVIEW_HOURS
    on_lapse: Literal["reject", "approve"] = "reject"
    new_customers_only: bool = True
    metadata: Metadata = {}


class ShownReward(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reward as the API shows it, with its tier's place."""

    type: Literal["voucher", "gift_card"]
    campaign_id: str | None = None
    amount: Amount | None = None
    every: int | None = None
    from_: int | None = msgspec.field(default=None, name="from")


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A program as the API shows it."""

    id: str
    name: str
    status: Status
    conversion: Conversion
    min_order_value: Amount | None
    referrer_reward: ShownReward | None
    referee_reward: ShownReward | None
    tiers: list[ShownReward]
    cap: Cap | None
    attribution_window_days: int
    reward_delay_s: int
    touch: Literal["first", "last"]
    review_hours: int
    on_lapse: Literal["reject", "approve"]
    new_customers_only: bool
    metadata: Metadata
    created_at: datetime
    updated_at: datetime


class Stored(msgspec.Struct, frozen=True):
    """A program's row."""

    id: UUID
    name: str
    status: Status
    conversion: Conversion
    min_order_minor: int | None
    rules: Rules
    metadata: Metadata
    created_at: datetime
    updated_at: datetime


class NewCode(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose code it is, and how it reads, where the customer may choose."""

    customer_id: CustomerId
    code: str | None = None


class ReferralCode(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's code as the API shows it."""

    id: str
    program_id: str
    customer_id: str
    code: str
    conversions: int
    created_at: datetime


class StoredCode(msgspec.Struct, frozen=True):
    """A code's row."""

    id: UUID
    program_id: UUID
    customer_id: str
    code: str
    conversion_count: int
    created_at: datetime


async def create(conn: db.Connection, caller: Caller, new: NewProgram) -> Program:
    """Make a program. Raises: Invalid, NotFound for a campaign."""
    limits.check_metadata(new.metadata)
    least = None
    if money.is_given(new.min_order_value):
        if new.conversion != "first_order":
            raise Invalid("min_order_value is for first_order alone", field="min_order_value")
        least = money.parse_amount(
            new.min_order_value, caller.currency, field="min_order_value", minor_min=1
        )
    tiers = []
    for number, tier in enumerate(new.tiers):
        field = f"tiers[{number}]"
        if (tier.every is None) == (tier.from_ is None):
            raise Invalid(f"{field} must have either every or from", field=field)
        reward = await _read(conn, caller, tier, f"{field}.")
        assert reward is not None
        tiers.append(Tier(reward=reward, every=tier.every, from_=tier.from_))
    rules = Rules(
        referrer=await _read(conn, caller, new.referrer_reward, "referrer_reward."),
        referee=await _read(conn, caller, new.referee_reward, "referee_reward."),
        tiers=tuple(tiers),
        cap=new.cap,
        window_days=new.attribution_window_days,
        delay_s=new.reward_delay_s,
        touch=new.touch,
        review_hours=new.review_hours,
        on_lapse=new.on_lapse,
        new_customers_only=new.new_customers_only,
    )
    program_id = ids.new()
    await db.run(
        conn, "referral_programs.create",
        project_id=caller.project_id, id=program_id, program_name=new.name,
        conversion=new.conversion, min_order_minor=least, rules=rules, metadata=new.metadata,
    )  # fmt: skip
    made = await get(conn, caller, ids.format_id("rfp", program_id))
    await audit_log.write_change(conn, caller, "referral_program.created", made.id, after=made)
    return made


async def _read(
    conn: db.Connection, caller: Caller, given: NewReward | None, prefix: str
) -> Reward | None:
    if given is None:
        return None
    has_amount = money.is_given(given.amount)
    wants_amount = given.type == "gift_card"
    if has_amount != wants_amount or (given.campaign_id is None) != wants_amount:
        takes = "amount" if wants_amount else "campaign_id"
        raise Invalid(f"{prefix}type {given.type} takes {takes}", field=f"{prefix}{takes}")
    if wants_amount:
        amount = money.parse_amount(
            given.amount, caller.currency, field=f"{prefix}amount", minor_min=1
        )
        return Reward(kind="gift_card", amount_minor=amount)
    field = f"{prefix}campaign_id"
    campaign = await campaigns.find(conn, caller, given.campaign_id or "", field=field)
    if campaign.kind != "codes":
        raise Invalid(f"{field}: a campaign of kind codes gives rewards", field=field)
    if campaign.discount_type is None:
        raise Invalid(f"{field}: the campaign has no discount of its own", field=field)
    return Reward(kind="voucher", campaign_id=campaign.id)


async def find(
    conn: db.Connection, caller: Caller, public_id: str, *, field: str | None = None
) -> Stored:
    """Return a program's row. Raises: NotFound."""
    program_id = ids.parse_id("rfp", public_id)
    if program_id is not None:
        stored = await by_id(conn, caller, program_id)
        if stored is not None:
            return stored
    raise NotFound("There is no such referral program in this project.", field=field)


async def by_id(conn: db.Connection, caller: Caller, program_id: UUID) -> Stored | None:
    """Return a program's row, None where there is none."""
    return await db.one(
        conn, "referral_programs.by_id", Stored, project_id=caller.project_id, id=program_id
    )


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Program:
    """Return a program as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id), caller)


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[Program]:
    """Return up to `limit` programs, newest first."""
    rows = await db.many(
        conn, "referral_programs.page", Stored,
        project_id=caller.project_id, after=after, limit=limit,
    )  # fmt: skip
    return [show(row, caller) for row in rows]


async def switch(conn: db.Connection, caller: Caller, public_id: str, *, status: Status) -> Program:
    """Pause a program, let it go on, or end it for good. Idempotent. Raises: NotFound."""
    stored = await find(conn, caller, public_id)
    await db.run(
        conn, "referral_programs.switch", project_id=caller.project_id, id=stored.id, status=status
    )
    after = await get(conn, caller, public_id)
    await audit_log.write_change(
        conn, caller, "referral_program.updated", after.id,
        before=show(stored, caller), after=after,
    )  # fmt: skip
    return after


def show(stored: Stored, caller: Caller) -> Program:
    """Write a row as the API shows it."""
    rules, exponent = stored.rules, caller.exponent
    least = stored.min_order_minor
    return Program(
        id=ids.format_id("rfp", stored.id),
        name=stored.name,
        status=stored.status,
        conversion=stored.conversion,
        min_order_value=None if least is None else money.json_amount(least, exponent),
        referrer_reward=_shown(rules.referrer, exponent) if rules.referrer else None,
        referee_reward=_shown(rules.referee, exponent) if rules.referee else None,
        tiers=[
            _shown(tier.reward, exponent, every=tier.every, from_=tier.from_)
            for tier in rules.tiers
        ],
        cap=rules.cap,
        attribution_window_days=rules.window_days,
        reward_delay_s=rules.delay_s,
        touch=rules.touch,
        review_hours=rules.review_hours,
        on_lapse=rules.on_lapse,
        new_customers_only=rules.new_customers_only,
        metadata=stored.metadata,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


def _shown(reward: Reward, exponent: int, **place: Any) -> ShownReward:
    amount = reward.amount_minor
    return ShownReward(
        type=reward.kind,
        campaign_id=ids.format_id("cmp", reward.campaign_id) if reward.campaign_id else None,
        amount=None if amount is None else money.json_amount(amount, exponent),
        **place,
    )


async def code_of(conn: db.Connection, caller: Caller, program: Stored, new: NewCode) -> StoredCode:
    """Return a customer's code in a program, made where there is none yet.

    Idempotent: the same customer has the same code, whatever happens at once. Raises: Invalid;
    AlreadyExists where another code is wished for than the customer has, or one that is taken.
    """
    wished = codes.checked(new.code) if new.code is not None else None
    text = new.code.strip(" ") if new.code is not None else codes.generate()
    owner = {"project_id": caller.project_id, "program_id": program.id,
             "customer_id": new.customer_id}  # fmt: skip
    stored = await db.one(conn, "referral_programs.code_of", StoredCode, **owner)
    if stored is None:
        try:
            await db.run(
                conn, "referral_programs.create_code",
                id=ids.new(), code=text, code_norm=wished or text, **owner,
            )  # fmt: skip
        except db.UniqueViolation as violation:
            if violation.constraint != "referral_codes_code_key":
                raise
            raise AlreadyExists("This referral code is taken.", field="code") from None
        stored = await db.one(conn, "referral_programs.code_of", StoredCode, **owner)
        assert stored is not None
    if wished is not None and codes.normalise(stored.code) != wished:
        raise AlreadyExists(f"This customer's code is {stored.code}.", field="code")
    return stored


def show_code(stored: StoredCode) -> ReferralCode:
    """Write a code's row as the API shows it."""
    return ReferralCode(
        id=ids.format_id("rfc", stored.id),
        program_id=ids.format_id("rfp", stored.program_id),
        customer_id=stored.customer_id,
        code=stored.code,
        conversions=stored.conversion_count,
        created_at=stored.created_at,
    )
