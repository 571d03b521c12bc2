"""Conversions: a referred customer did what the program waits for, and both sides are rewarded.

Conversions of different people wait for nobody but their referrer's code and cap. What undoes the
conversion takes the rewards back.
"""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from core import campaigns, db, ids, redemptions, referral_programs, referral_rewards, referrals
from core.api_keys import Caller
from core.errors import Fault, Invalid, NotFound, OutcomeUnknown, Refusal, Unavailable
from core.gift_cards.vault import Vault
from core.referral_programs import Stored as Program
from core.referrals import Referral, Stored
from core.rules import limits, money, schedules
from core.rules.orders import Reference
from core.rules.rewards import Side
from core.shapes import Amount, CustomerId

# A reward that cannot be issued is tried again when somebody may have mended its campaign.
STUCK_WAIT_S: Final = 600

_EXPIRED: Final = Refusal("attribution_expired", "The time to convert this referral is over.")
_log = structlog.get_logger("vauchflow.conversions")


class Conversion(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who did what a program waits for: signed up, redeemed, or paid for an order."""

    customer_id: CustomerId
    program_id: str | None = None
    redemption_id: str | None = None
    order_id: Reference | None = None
    order_value: Amount = msgspec.field(default_factory=msgspec.Raw)


async def convert(
    conn: db.Connection, caller: Caller, vault: Vault, new: Conversion
) -> Referral | Refusal:
    """Convert a customer's attribution and promise both sides their rewards, once.

    Idempotent: a converted one is returned as it is. A refusal must roll back. Refuses:
    order_value_too_low, paused, ended, attribution_expired, not_eligible for one that was reversed.
    Raises: NotFound, Invalid.
    Concurrency: locks the referral, then the referrer's code and cap.
    """
    program_id = None
    if new.program_id is not None:
        program = await referral_programs.find(conn, caller, new.program_id, field="program_id")
        program_id = program.id
    live = await referrals.live_of(conn, caller, new.customer_id, program_id)
    if not live:
        raise NotFound("Nobody has referred this customer.", field="customer_id")
    if len(live) > 1:
        raise Invalid("program_id is required: several programs wait", field="program_id")
    public_id = ids.format_id("rfa", live[0].id)
    stored = await referrals.take(conn, caller, public_id)
    if stored.status in ("converted", "rewarded"):
        return await referrals.get(conn, caller, public_id)
    if stored.status != "attributed":
        return Refusal("not_eligible", "This referral was reversed.", {"status": stored.status})
    if stored.is_over:
        return _EXPIRED
    found = await referral_programs.by_id(conn, caller, stored.program_id)
    assert found is not None, "a referral's program is there"
    if found.status != "active":
        return referrals.closed(found)
    evidence = await _evidence(conn, caller, found, new)
    if isinstance(evidence, Refusal):
        return evidence
    if not await _converted(conn, caller, vault, found, stored, evidence):
        return _EXPIRED
    return await referrals.get(conn, caller, public_id)


async def _converted(
    conn: db.Connection,
    caller: Caller,
    vault: Vault,
    program: Program,
    stored: Stored,
    evidence: dict[str, Any],
) -> bool:
    """Convert a locked attribution and reward both sides, unless its time has run out by now."""
    project_id = caller.project_id
    place = await db.value(
        conn, "referrals.count_conversion", int, project_id=project_id, id=stored.code_id
    )
    changed = await db.run(
        conn, "referrals.convert", project_id=project_id, id=stored.id, place=place, **evidence
    )
    if not changed:
        return False
    await referrals.record(conn, caller, stored.id, "converted", place=place)
    cap = program.rules.cap
    zone = await campaigns.time_zone(conn, caller)
    assert stored.referee_id is not None
    await referral_rewards.promise(
        conn, caller, program, stored.id,
        {"referrer": stored.referrer_id, "referee": stored.referee_id},
        place=place, period=schedules.period_of(cap.per if cap else None, datetime.now(UTC), zone),
    )  # fmt: skip
    await _issue(conn, caller, vault, stored.id)
    return True


async def _evidence(
    conn: db.Connection, caller: Caller, program: Program, new: Conversion
) -> dict[str, Any] | Refusal:
    """Return what is kept of a conversion's cause, if it is what the program waits for."""
    value = None
    if money.is_given(new.order_value):
        value = money.parse_amount(new.order_value, caller.currency, field="order_value")
    number = None
    if new.redemption_id is not None:
        number = ids.parse_id("rdm", new.redemption_id)
        row = None
        if number is not None:
            row = await db.one(
                conn, "redemptions.read", redemptions.Row, project_id=caller.project_id, id=number
            )
        if row is None or row.customer_id != new.customer_id or row.status != "redeemed":
            raise NotFound("This customer has no such redemption.", field="redemption_id")
        value = row.order_value_minor if value is None else value
    if program.conversion == "first_redemption" and number is None:
        raise Invalid("redemption_id is required: the program waits for one", field="redemption_id")
    if program.conversion == "first_order":
        if value is None or (number is None and new.order_id is None):
            raise Invalid("order_id and order_value are required", field="order_value")
        if program.min_order_minor is not None and value < program.min_order_minor:
            return limits.order_value_too_low(value, program.min_order_minor, caller.exponent)
    return {"order_id": new.order_id, "order_value_minor": value, "redemption_id": number}


async def _issue(conn: db.Connection, caller: Caller, vault: Vault, referral_id: UUID) -> None:
    """Issue what is due, and mark the referral when nothing is left to issue."""
    issued: list[Side] = await referral_rewards.issue_due(conn, caller, vault, referral_id)
    if not issued:
        return
    rows = await referral_rewards.of_referral(conn, caller, referral_id)
    if not any(row.status == "pending" for row in rows):
        await db.run(
            conn, "referrals.set_status",
            project_id=caller.project_id, id=referral_id, status="rewarded", reason=None,
        )  # fmt: skip
    await referrals.record(conn, caller, referral_id, "rewarded", sides=issued)


async def reverse(
    conn: db.Connection, caller: Caller, public_id: str, reason: str | None
) -> Referral | Refusal:
    """Take back the rewards of a conversion that was undone; what was spent is shown as debt.

    Idempotent. Refuses: not_eligible for one that is not converted. Raises: NotFound.
    """
    stored = await referrals.take(conn, caller, public_id)
    if stored.status == "reversed":
        return await referrals.get(conn, caller, public_id)
    if stored.status not in ("converted", "rewarded"):
        facts = {"status": stored.status}
        return Refusal("not_eligible", "Only a converted referral can be reversed.", facts)
    ended = await referral_rewards.revoke(conn, caller, stored.program_id, stored.id)
    await db.run(
        conn, "referrals.set_status",
        project_id=caller.project_id, id=stored.id, status="reversed", reason=reason,
    )  # fmt: skip
    await referrals.record(conn, caller, stored.id, "reversed", rewards=ended)
    return await referrals.get(conn, caller, public_id)


async def reverse_redemption(
    conn: db.Connection, caller: Caller, redemption_id: UUID, reason: str | None
) -> None:
    """Reverse what a redemption that was just rolled back had converted."""
    converted = await db.many(
        conn, "referrals.of_redemption", UUID,
        project_id=caller.project_id, redemption_id=redemption_id,
    )  # fmt: skip
    for referral_id in converted:
        await reverse(conn, caller, ids.format_id("rfa", referral_id), reason or "rolled_back")


async def sweep(database: db.Database, vault: Vault) -> int:
    """Issue rewards whose delay is over; return for how many referrals. As `attributions.sweep`."""
    swept = 0
    try:
        async with database.connection(reads_only=True) as conn:
            found = await db.many(
                conn, "referral_rewards.due", referrals.Due, limit=referrals.DUE_MAX
            )
        for due in found:
            swept += await _issued_late(database, vault, due)
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("sweep_failed", error=str(error))
    return swept


async def _issued_late(database: db.Database, vault: Vault, due: referrals.Due) -> bool:
    caller = referrals.acting(due)
    try:
        async with database.transaction(due.project_id) as conn:
            await referrals.take(conn, caller, ids.format_id("rfa", due.id))
            await _issue(conn, caller, vault, due.id)
    except (Unavailable, OutcomeUnknown):
        raise
    except Fault as fault:
        # Whatever is in the way of this one must not be in the way of the others.
        _log.error("reward_stuck", referral=str(due.id), error=fault.detail)
        async with database.transaction(due.project_id) as conn:
            await db.run(
                conn, "referral_rewards.postpone",
                project_id=due.project_id, referral_id=due.id, wait_s=STUCK_WAIT_S,
            )  # fmt: skip
        return False
    return True
