"""Campaigns: shared terms and limits of many vouchers."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
import structlog

from core import audit_log, db, ids, segments
from core.api_keys import Caller
from core.errors import Invalid, NotFound, OutcomeUnknown, Refusal, Unavailable
from core.rules import codes, limits, money, promotions
from core.rules.budgets import Budgets
from core.rules.codes import CodeConfig, Pattern
from core.rules.conditions import NewRule
from core.rules.discounts import DealType
from core.rules.limits import Metadata
from core.rules.promotions import Days, Members, Promotion, Shown, Stacking
from core.rules.schedules import Schedule
from core.shapes import Amount, Count, Instant

_log = structlog.get_logger("vauchflow.campaigns")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Status = Literal["draft", "active", "paused", "ended"]
Phase = Literal["draft", "scheduled", "active", "paused", "ended"]
Kind = Literal["codes", "standalone", "automatic", "auto_refill", "join_once"]
Move = Literal["activate", "pause", "resume", "end"]

# A pool that is drawn from a thousand times a second lasts until it is looked at again.
POOL_MAX: Final = 10_000
# Codes that are issued one by one must not be guessed from each other, however many there will be.
ISSUED_MIN: Final = 10_000

# From which states a move goes, where to, and what is told of it.
_MOVES: Final[dict[Move, tuple[tuple[Status, ...], Status, str | None]]] = {
    "activate": (("draft",), "active", None),
    "pause": (("active",), "paused", "campaign.paused"),
    "resume": (("paused",), "active", "campaign.resumed"),
    "end": (("draft", "active", "paused"), "ended", "campaign.ended"),
}
_ACTIONS: Final[dict[Move, str]] = {
    "activate": "campaign.activated",
    "pause": "campaign.paused",
    "resume": "campaign.resumed",
    "end": "campaign.ended",
}
# Members of `rules` that change the terms of codes that are out, as opposed to later ones.
_LATER_ONLY: Final = ("expires_after_days",)


class NewRules(Members, kw_only=True, forbid_unknown_fields=True):
    """What every voucher of the campaign is held to; its discount is theirs unless they differ."""

    discount_type: DealType | None = None
    discount_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    max_redemptions: Count | None = None
    per_customer_limit: Count | None = None
    starts_at: Instant | None = None
    expires_at: Instant | None = None
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)


class NewIssuing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What codes are like that a campaign issues one by one, and how many lie ready."""

    code_config: CodeConfig = CodeConfig()
    max_redemptions: Count | None = None
    pool_size: Annotated[int, msgspec.Meta(ge=1, le=POOL_MAX)] | None = None


class Issuing(msgspec.Struct, frozen=True):
    """The same as it is stored."""

    pattern: Pattern
    code_config: CodeConfig
    max_redemptions: int | None
    pool_size: int | None


class NewCampaign(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a campaign is made from."""

    name: Name
    type: Literal["DISCOUNT"] = "DISCOUNT"
    rules: NewRules = msgspec.field(default_factory=NewRules)
    metadata: Metadata | None = None
    kind: Kind = "codes"
    status: Literal["draft", "active"] = "active"
    code: str | None = None
    issuing: NewIssuing | None = None


class RulesPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of the rules; members that are left out stay, null clears.

    A discount stays of its type. Conditions, schedule, budgets and stacking are replaced whole.
    """

    starts_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    expires_after_days: Days | msgspec.UnsetType | None = msgspec.UNSET
    max_redemptions: Count | msgspec.UnsetType | None = msgspec.UNSET
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    discount_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    conditions: NewRule | msgspec.UnsetType | None = msgspec.UNSET
    schedule: Schedule | msgspec.UnsetType | None = msgspec.UNSET
    budgets: Budgets | msgspec.UnsetType | None = msgspec.UNSET
    stacking: Stacking | msgspec.UnsetType | None = msgspec.UNSET


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
    kind: Kind
    code: str | None
    issuing: Issuing | None
    started_at: datetime | None
    ended_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def phase(self) -> Phase:
        """Its state as the clock has it."""
        now = datetime.now(UTC)
        if self.status == "ended" or (self.expires_at is not None and self.expires_at <= now):
            return "ended"
        if self.status == "active" and self.starts_at is not None and self.starts_at > now:
            return "scheduled"
        return self.status


class Effect(msgspec.Struct, frozen=True):
    """What a change does to codes that are out: which members count for them at once.

    `own_discount`: how many of them have a discount of their own, which stays.
    """

    codes: int
    at_once: list[str]
    later_codes_only: list[str]
    own_discount: int


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
    status: Phase
    rules: Rules
    redeemed_count: int
    remaining: int | None
    metadata: Metadata
    created_at: datetime
    updated_at: datetime
    kind: Kind | msgspec.UnsetType = msgspec.UNSET
    code: str | msgspec.UnsetType = msgspec.UNSET
    issuing: NewIssuing | msgspec.UnsetType = msgspec.UNSET
    effect: Effect | msgspec.UnsetType = msgspec.UNSET


async def create(conn: db.Connection, caller: Caller, new: NewCampaign) -> Campaign:
    """Make a campaign, a draft or active at once; its code, where it has one, is the caller's.

    Raises: Invalid.
    """
    rules = new.rules
    discount = promotions.read_discount(
        rules.discount_type, rules.discount_value, caller.currency, prefix="rules."
    )
    if discount is None and new.kind != "codes":
        raise Invalid(
            f"rules.discount_value is required: codes of {new.kind} have none of their own",
            field="rules.discount_value",
        )
    promotion = promotions.read(
        rules,
        None if discount is None else discount.type,
        caller.currency,
        await time_zone(conn, caller),
        prefix="rules.",
    )
    await segments.check_named(
        conn, caller, None if promotion is None else promotion.conditions,
        field="rules.conditions",
    )  # fmt: skip
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
        promotion=promotion, expires_after_days=rules.expires_after_days, kind=new.kind,
        code=_code(new, campaign_id), issuing=_issuing(new), status=new.status,
    )  # fmt: skip
    stored = await _by_id(conn, caller, campaign_id)
    await record(conn, caller, stored, "campaign.created")
    if stored.started_at is not None:
        await record(conn, caller, stored, "campaign.started")
    made = show(stored, caller)
    await audit_log.write_change(conn, caller, "campaign.created", made.id, after=made)
    return made


def _code(new: NewCampaign, campaign_id: UUID) -> str | None:
    """Return the one code of a campaign that has one; an automatic one's nobody has to type."""
    if new.kind == "automatic" and new.code is None:
        return f"AUTO-{ids.format_id('cmp', campaign_id)[4:]}"
    if new.kind != "standalone":
        if new.code is not None:
            raise Invalid("code is for a standalone campaign", field="code")
        return None
    code = codes.generate() if new.code is None else new.code
    codes.checked(code)
    return code.strip(" ")


def _issuing(new: NewCampaign) -> Issuing | None:
    if new.kind in ("standalone", "automatic"):
        if new.issuing is not None:
            raise Invalid("issuing is for campaigns with many codes", field="issuing")
        return None
    given = new.issuing or NewIssuing()
    if (given.pool_size is not None) != (new.kind == "auto_refill"):
        raise Invalid(
            "issuing.pool_size is for an auto_refill campaign, which must have it",
            field="issuing.pool_size",
        )
    pattern = codes.pattern_of(given.code_config, ISSUED_MIN, field="issuing.code_config")
    return Issuing(pattern, given.code_config, given.max_redemptions, given.pool_size)


async def record(
    conn: db.Connection, caller: Caller, stored: Stored, event: str, **data: Any
) -> None:
    """Write down what became of a campaign, for those who listen."""
    await db.run(
        conn, "campaigns.record",
        project_id=caller.project_id, event=event, id=stored.id, data=data,
    )  # fmt: skip


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
) -> Campaign | Refusal:
    """Change name, metadata or rules, and say what that does to codes that are out.

    A change of rules is a new version of the terms: codes without a discount of their own follow
    at once, and a budget that is new counts from now on. Refuses: sale_live for rules other than
    dates, while a fast sale sells at the old ones. Raises: NotFound, Invalid.
    Concurrency: locks the campaign, so that of two changes at once neither undoes the other.
    """
    rules = RulesPatch() if patch.rules is msgspec.UNSET else patch.rules
    changed = _changed(rules)
    found = await find(conn, caller, public_id)
    # Redeems wait for the lock, and must not wait until a million codes are counted.
    effect = await _effect(conn, caller, found.id, changed) if changed else msgspec.UNSET
    before = await _locked(conn, caller, found.id)
    is_out = await db.value(
        conn, "campaigns.has_live_lease", bool, project_id=caller.project_id, id=before.id
    )
    if is_out and set(changed) - {"starts_at", "expires_at"}:
        return Refusal("sale_live", "A fast sale of this campaign is armed or open.")
    promotion = await _patched(conn, caller, before, rules)
    starts_at = before.starts_at if rules.starts_at is msgspec.UNSET else rules.starts_at
    expires_at = before.expires_at if rules.expires_at is msgspec.UNSET else rules.expires_at
    limits.check_window(starts_at, expires_at, prefix="rules.")
    metadata = before.metadata if patch.metadata is msgspec.UNSET else patch.metadata or {}
    limits.check_metadata(metadata)
    bp, minor = _discount(caller, before, rules)
    try:
        await db.run(
            conn, "campaigns.edit", project_id=caller.project_id, id=before.id,
            campaign_name=before.name if patch.name is msgspec.UNSET else patch.name,
            metadata=metadata, starts_at=starts_at, expires_at=expires_at,
            max_redemptions=_or(rules.max_redemptions, before.max_redemptions),
            min_order_minor=_least(caller, before, rules), discount_bp=bp, discount_minor=minor,
            promotion=promotion,
            expires_after_days=_or(rules.expires_after_days, before.expires_after_days),
            is_new_version=bool(changed),
        )  # fmt: skip
    except db.CheckViolation as violation:
        if violation.constraint != "campaigns_never_over":
            raise
        raise Invalid(
            "rules.max_redemptions is less than what was redeemed already",
            field="rules.max_redemptions",
        ) from None
    after = await _by_id(conn, caller, before.id)
    await record(conn, caller, after, "campaign.edited", rules=changed)
    shown = show(after, caller)
    await audit_log.write_change(
        conn, caller, "campaign.updated", shown.id, before=show(before, caller), after=shown
    )
    return msgspec.structs.replace(shown, effect=effect)


def _changed(rules: RulesPatch) -> list[str]:
    given = {name: getattr(rules, name) for name in RulesPatch.__struct_fields__}
    return [
        name
        for name, value in given.items()
        if value is not msgspec.UNSET and (not isinstance(value, msgspec.Raw) or bytes(value))
    ]


async def _effect(
    conn: db.Connection, caller: Caller, campaign_id: UUID, changed: list[str]
) -> Effect:
    issued = await db.one(
        conn, "campaigns.issued", _Issued, project_id=caller.project_id, id=campaign_id
    )
    assert issued is not None, "an aggregate has a row"
    return Effect(
        codes=issued.codes,
        at_once=[name for name in changed if name not in _LATER_ONLY],
        later_codes_only=[name for name in changed if name in _LATER_ONLY],
        own_discount=issued.with_own_discount,
    )


class _Issued(msgspec.Struct, frozen=True):
    codes: int
    with_own_discount: int


T = TypeVar("T")


def _or(given: T | msgspec.UnsetType | None, stored: T | None) -> T | None:
    return stored if given is msgspec.UNSET else given


def _least(caller: Caller, before: Stored, rules: RulesPatch) -> int | None:
    if not bytes(rules.min_order_value):
        return before.min_order_minor
    if not money.is_given(rules.min_order_value):
        return None
    return money.parse_amount(rules.min_order_value, caller.currency, field="rules.min_order_value")


def _discount(caller: Caller, before: Stored, rules: RulesPatch) -> tuple[int | None, int | None]:
    if not bytes(rules.discount_value):
        return before.discount_bp, before.discount_minor
    if before.discount_type is None:
        raise Invalid("this campaign has no discount to change", field="rules.discount_value")
    discount = promotions.read_discount(
        before.discount_type, rules.discount_value, caller.currency, prefix="rules."
    )
    assert discount is not None, "a type was given"
    return discount.bp, discount.amount_minor


async def _patched(
    conn: db.Connection, caller: Caller, before: Stored, rules: RulesPatch
) -> Promotion | None:
    """Return what goes beyond plain terms after a change. Raises: Invalid."""
    given: dict[str, Any] = {
        name: None if value is msgspec.UNSET else value
        for name in ("conditions", "schedule", "budgets", "stacking")
        if (value := getattr(rules, name)) is not msgspec.UNSET
    }
    if not given:
        return before.promotion
    zone = await time_zone(conn, caller)
    if before.promotion is not None:
        zone = before.promotion.time_zone
    read = promotions.read(
        Members(**given), before.discount_type, caller.currency, zone, prefix="rules."
    ) or Promotion(time_zone=zone)
    await segments.check_named(conn, caller, read.conditions, field="rules.conditions")
    merged = msgspec.structs.replace(
        before.promotion or Promotion(time_zone=zone),
        **{name: getattr(read, name) for name in given},
    )
    return promotions.if_any(merged, before.discount_type)


async def clone(
    conn: db.Connection, caller: Caller, public_id: str, name: str | None, code: str | None
) -> Campaign:
    """Make a draft with the same rules and no code yet; dates that are over are left out.

    Raises: NotFound, Invalid. A standalone campaign's new code is drawn where none is given.
    """
    before = await find(conn, caller, public_id)
    campaign_id = ids.new()
    expires_at = before.expires_at if before.phase != "ended" else None
    new = NewCampaign(name=name or f"{before.name} (copy)"[:200], kind=before.kind, code=code)
    await db.run(
        conn, "campaigns.create",
        project_id=caller.project_id, id=campaign_id, campaign_name=new.name, type=before.type,
        discount_type=before.discount_type, discount_bp=before.discount_bp,
        discount_minor=before.discount_minor, min_order_minor=before.min_order_minor,
        max_redemptions=before.max_redemptions, per_customer_limit=before.per_customer_limit,
        starts_at=before.starts_at, expires_at=expires_at, metadata=before.metadata,
        promotion=before.promotion, expires_after_days=before.expires_after_days,
        kind=before.kind, code=_code(new, campaign_id), issuing=before.issuing, status="draft",
    )  # fmt: skip
    stored = await _by_id(conn, caller, campaign_id)
    await record(
        conn, caller, stored, "campaign.created", cloned_from=ids.format_id("cmp", before.id)
    )
    made = show(stored, caller)
    await audit_log.write_change(conn, caller, "campaign.created", made.id, after=made)
    return made


async def switch(
    conn: db.Connection, caller: Caller, public_id: str, move: Move
) -> Campaign | Refusal:
    """Activate a draft, pause, resume or end a campaign, and with it all its vouchers. Idempotent.

    Refuses: ended; not_started, where a draft is to pause or resume. Raises: NotFound.
    Concurrency: locks the campaign, so that no step of it is told twice.
    """
    before = await _locked(conn, caller, (await find(conn, caller, public_id)).id)
    sources, status, event = _MOVES[move]
    count = await db.run(
        conn, "campaigns.switch", project_id=caller.project_id, id=before.id, status=status,
        from_statuses=list(sources),
    )  # fmt: skip
    after = await _by_id(conn, caller, before.id)
    if count:
        if event is not None:
            await record(conn, caller, after, event)
        if before.started_at is None and after.started_at is not None:
            await record(conn, caller, after, "campaign.started")
    elif after.status != status:
        if after.status == "ended":
            return Refusal("ended", "This campaign has ended.")
        if after.status == "draft":
            return Refusal("not_started", "This campaign is a draft; activate it.")
        return Refusal("paused", "This campaign is paused; resume it.")
    shown = show(after, caller)
    await audit_log.write_change(
        conn, caller, _ACTIONS[move], shown.id, before=show(before, caller), after=shown
    )
    return shown


async def keep_time(database: db.Database) -> None:
    """Tell of campaigns whose start or end has come, once. Never raises for a store away."""
    try:
        async with database.connection() as conn:
            await db.run(conn, "campaigns.tell_started")
            await db.run(conn, "campaigns.tell_ended")
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("campaigns_wait", error=str(error))


def show(stored: Stored, caller: Caller) -> Campaign:
    """Write a row as the API shows it: texts for ids, decimals for money."""
    issuing = stored.issuing
    least = stored.min_order_minor
    taken = stored.direct_count + stored.leased_count
    return Campaign(
        id=ids.format_id("cmp", stored.id),
        name=stored.name,
        type=stored.type,
        status=stored.phase,
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
        kind=stored.kind if stored.kind != "codes" else msgspec.UNSET,
        code=stored.code or msgspec.UNSET,
        issuing=msgspec.UNSET
        if issuing is None or stored.kind == "codes"
        else NewIssuing(
            code_config=issuing.code_config,
            max_redemptions=issuing.max_redemptions,
            pool_size=issuing.pool_size,
        ),
    )


async def _by_id(conn: db.Connection, caller: Caller, campaign_id: UUID) -> Stored:
    stored = await db.one(
        conn, "campaigns.by_id", Stored, project_id=caller.project_id, id=campaign_id
    )
    assert stored is not None
    return stored


async def _locked(conn: db.Connection, caller: Caller, campaign_id: UUID) -> Stored:
    """Return a campaign's row, which nobody else changes until the transaction ends."""
    await db.run(conn, "campaigns.lock", project_id=caller.project_id, id=campaign_id)
    return await _by_id(conn, caller, campaign_id)
