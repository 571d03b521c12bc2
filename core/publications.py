"""Codes of campaigns that are given to customers one by one, and pools that lie ready for it."""

import asyncio
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import campaigns, customers, db, ids, vouchers
from core.api_keys import Caller
from core.campaigns import ISSUED_MIN, Campaign, Issuing, NewCampaign, NewIssuing
from core.errors import AlreadyExists, Invalid, OutcomeUnknown, Refusal, Unavailable
from core.rules import codes
from core.shapes import CustomerId, Person
from core.vouchers import Voucher

# Nine of ten codes of a look are free; so many taken in a row mean that others have the rest.
DRAWS_MAX: Final = 40
# Codes that a pool gets in one transaction, some ten milliseconds.
PIECE: Final = 1_000
# How often the worker looks for pools that lack codes. An empty one is drawn past.
LOOK_S: Final = 0.5

_REFUSALS: Final = {
    "draft": Refusal("not_started", "This campaign is a draft; activate it."),
    "paused": Refusal("paused", "This campaign is paused."),
    "ended": Refusal("ended", "This campaign has ended."),
}
_log = structlog.get_logger("vauchflow.publications")


class NewCode(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom a code is for; a campaign that gives each customer one must be told."""

    customer_id: CustomerId | None = None
    customer: Person | None = None


class Cloned(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a clone does not share: its name, and the code of a standalone campaign."""

    name: campaigns.Name | None = None
    code: str | None = None


class _Pool(msgspec.Struct, frozen=True):
    project_id: UUID
    id: UUID


class _Missing(msgspec.Struct, frozen=True):
    issuing: Issuing
    missing: int


async def launch(conn: db.Connection, caller: Caller, new: NewCampaign) -> Campaign:
    """Make a campaign, with its code where it has one for all.

    Raises: Invalid, AlreadyExists for the code.
    """
    made = await campaigns.create(conn, caller, new)
    await _add_its_code(conn, caller, made)
    return made


async def clone(conn: db.Connection, caller: Caller, public_id: str, new: Cloned) -> Campaign:
    """Make a draft with the same rules and codes of its own. Raises: as `launch`, NotFound."""
    made = await campaigns.clone(conn, caller, public_id, new.name, new.code)
    await _add_its_code(conn, caller, made)
    return made


async def _add_its_code(conn: db.Connection, caller: Caller, made: Campaign) -> None:
    if made.code is msgspec.UNSET:
        return
    stored = await campaigns.find(conn, caller, made.id)
    added = await _add(conn, stored, caller.project_id, ids.new(), made.code, None, None)
    if not added:
        raise AlreadyExists("A voucher with this code is there already.", field="code")


async def issue(
    conn: db.Connection, caller: Caller, public_id: str, new: NewCode
) -> Voucher | Refusal:
    """Give a customer a code of a campaign: one of its pool, or one that is drawn now.

    A join_once campaign gives each customer one: asked again, or at once by many, it is the same.
    Refuses: not_started, paused, ended. Raises: NotFound; Invalid, also where all have one code.
    """
    campaign = await campaigns.find(conn, caller, public_id)
    if campaign.code is not None:
        raise Invalid(f"This campaign has one code for all: {campaign.code}")
    if campaign.discount_type is None:
        raise Invalid("This campaign has no discount that its codes could have.")
    await customers.meet(conn, caller, new.customer_id, new.customer)
    refused = _REFUSALS.get(campaign.phase)
    if campaign.kind != "join_once":
        return refused or await _issued(conn, caller, campaign, ids.new(), new.customer_id)
    if new.customer_id is None:
        raise Invalid("customer_id is required: each customer gets one code", field="customer_id")
    one = {
        "project_id": caller.project_id, "campaign_id": campaign.id,
        "customer_id": new.customer_id,
    }  # fmt: skip
    known = await db.one(conn, "publications.joined", str, **one)
    if known is None:
        if refused is not None:
            return refused
        voucher_id = ids.new()
        if await db.run(conn, "publications.join", voucher_id=voucher_id, **one):
            return await _issued(conn, caller, campaign, voucher_id, new.customer_id)
        known = await db.one(conn, "publications.joined", str, **one)
        assert known is not None, "who was in front has committed"
    return await vouchers.get(conn, caller, known)


async def _issued(
    conn: db.Connection,
    caller: Caller,
    campaign: campaigns.Stored,
    voucher_id: UUID,
    holder: str | None,
) -> Voucher:
    if campaign.promotion is None:
        zone = await campaigns.time_zone(conn, caller)
    else:
        zone = campaign.promotion.time_zone
    expires_at = vouchers.issued_until(campaign.starts_at, None, campaign.expires_after_days, zone)
    if campaign.kind == "auto_refill":
        taken = await db.one(
            conn, "publications.take_pooled", UUID,
            project_id=caller.project_id, campaign_id=campaign.id, holder=holder,
            expires_at=expires_at,
        )  # fmt: skip
        if taken is not None:
            return await vouchers.get(conn, caller, ids.format_id("vch", taken))
    pattern = _issuing_of(campaign).pattern
    for _ in range(DRAWS_MAX):
        [code] = pattern.draw(1)
        if await _add(conn, campaign, caller.project_id, voucher_id, code, holder, expires_at):
            return await vouchers.get(conn, caller, ids.format_id("vch", voucher_id))
    raise _used_up()


async def _add(
    conn: db.Connection,
    campaign: campaigns.Stored,
    project_id: UUID,
    voucher_id: UUID,
    code: str,
    holder: str | None,
    expires_at: datetime | None,
) -> bool:
    added = await db.run(
        conn, "publications.add",
        project_id=project_id, id=voucher_id, code=code, code_norm=codes.checked(code),
        campaign_id=campaign.id, expires_at=expires_at, holder=holder,
        max_redemptions=None if campaign.code else _issuing_of(campaign).max_redemptions,
    )  # fmt: skip
    return added == 1


def _issuing_of(campaign: campaigns.Stored) -> Issuing:
    """Return how a campaign issues codes; one that was made before that could be said, plainly."""
    if campaign.issuing is not None:
        return campaign.issuing
    plain = NewIssuing()
    pattern = codes.pattern_of(plain.code_config, ISSUED_MIN)
    return Issuing(pattern, plain.code_config, None, None)


def _used_up() -> Invalid:
    return Invalid(
        "issuing.code_config has too few combinations left: most of its codes are taken",
        field="issuing.code_config",
    )


async def run(database: db.Database) -> None:
    """Fill pools that lack codes, until cancelled. Several workers may run it."""
    while True:
        try:
            await fill(database)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("pools_wait", error=str(error))
        except Exception:
            _log.exception("pool_broken")
        await asyncio.sleep(LOOK_S)


async def fill(database: db.Database) -> None:
    """Give each pool that lacks codes a piece of them; one that another worker is at is left."""
    async with database.connection(reads_only=True) as conn:
        due = await db.many(conn, "publications.pools", _Pool)
    for pool in due:
        async with database.transaction(pool.project_id) as conn:
            lacks = await db.one(
                conn, "publications.lock_pool", _Missing, project_id=pool.project_id, id=pool.id
            )
            if lacks is not None and lacks.missing > 0:
                await _fill(conn, pool, lacks.issuing, min(lacks.missing, PIECE))


async def _fill(conn: db.Connection, pool: _Pool, issuing: Issuing, count: int) -> None:
    # What is taken already is drawn again at the next look.
    drawn = list(dict.fromkeys(issuing.pattern.draw(count)))
    added = await db.run(
        conn, "publications.add_pooled",
        project_id=pool.project_id, campaign_id=pool.id, ids=[ids.new() for _ in drawn],
        codes=drawn, norms=[code.upper() for code in drawn],
        max_redemptions=issuing.max_redemptions,
    )  # fmt: skip
    if not added:
        _log.warning("pool_used_up", campaign=str(pool.id))
