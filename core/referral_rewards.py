"""What a referral earns: promised once a side, issued when its delay is over, taken back once.

Every function here is called with the referral's row locked.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import msgspec

from core import db, ids, vouchers
from core.api_keys import Caller
from core.gift_cards import cards, ledger
from core.gift_cards.cards import NewGiftCard
from core.gift_cards.ledger import Movement
from core.gift_cards.vault import Vault
from core.referral_programs import Stored as Program
from core.rules import money
from core.rules.rewards import Reward, Side
from core.shapes import Amount
from core.vouchers import NewVoucher

Status = Literal["pending", "issued", "capped", "cancelled", "reversed", "debt"]

# One use: whoever is given it may give it away, but not twice.
_USES: Final = 1


class Row(msgspec.Struct, frozen=True):
    """A reward's row."""

    referral_id: UUID
    side: Side
    customer_id: str
    kind: Literal["voucher", "gift_card"]
    status: Status
    campaign_id: UUID | None
    amount_minor: int | None
    period: str
    voucher_id: UUID | None
    voucher_code: str | None
    gift_card_id: UUID | None
    debt_minor: int | None
    due_at: datetime
    is_due: bool
    issued_at: datetime | None
    ended_at: datetime | None


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A reward as the API shows it. `debt`: what was spent of it before it was taken back."""

    side: Side
    customer_id: str
    type: Literal["voucher", "gift_card"]
    status: Status
    amount: Amount | None
    voucher_code: str | None
    gift_card_id: str | None
    debt: Amount | None
    due_at: datetime
    issued_at: datetime | None
    ended_at: datetime | None


async def of_referral(conn: db.Connection, caller: Caller, referral_id: UUID) -> list[Row]:
    """Return what both sides got, the referrer first."""
    return await of_referrals(conn, caller, [referral_id])


async def of_referrals(
    conn: db.Connection, caller: Caller, referral_ids: Sequence[UUID]
) -> list[Row]:
    """Return the same of several referrals, one after another."""
    return await db.many(
        conn, "referral_rewards.of_referrals", Row,
        project_id=caller.project_id, referrals=list(referral_ids),
    )  # fmt: skip


async def promise(
    conn: db.Connection,
    caller: Caller,
    program: Program,
    referral_id: UUID,
    people: dict[Side, str],
    *,
    place: int,
    period: str,
) -> None:
    """Write down what a conversion earns each side; a referrer at the cap gets none, and reads so.

    `place`: the conversion's number among the referrer's. Concurrency: locks the cap's count.
    """
    earned: dict[Side, Reward | None] = {
        "referrer": program.rules.reward_at(place),
        "referee": program.rules.referee,
    }
    for side, reward in earned.items():
        if reward is None:
            continue
        cap = program.rules.cap if side == "referrer" else None
        is_free = cap is None or await db.run(
            conn, "referral_rewards.count",
            project_id=caller.project_id, program_id=program.id, referrer_id=people[side],
            period=period, limit_max=cap.count,
        )  # fmt: skip
        await db.run(
            conn, "referral_rewards.promise",
            project_id=caller.project_id, referral_id=referral_id, side=side,
            customer_id=people[side], kind=reward.kind, status="pending" if is_free else "capped",
            campaign_id=reward.campaign_id, amount_minor=reward.amount_minor, period=period,
            delay_s=program.rules.delay_s,
        )  # fmt: skip


async def issue_due(
    conn: db.Connection, caller: Caller, vault: Vault, referral_id: UUID
) -> list[Side]:
    """Issue the promised rewards whose delay is over; return whose."""
    issued: list[Side] = []
    for row in await of_referral(conn, caller, referral_id):
        if row.status != "pending" or not row.is_due:
            continue
        voucher_id = gift_card_id = None
        if row.kind == "voucher":
            voucher_id = await _voucher(conn, caller, row, referral_id)
        else:
            gift_card_id = await _gift_card(conn, caller, vault, row, referral_id)
        changed = await db.run(
            conn, "referral_rewards.issue",
            project_id=caller.project_id, referral_id=referral_id, side=row.side,
            voucher_id=voucher_id, gift_card_id=gift_card_id,
        )  # fmt: skip
        assert changed == 1, "the referral is locked, so nobody else issues"
        issued.append(row.side)
    return issued


async def _voucher(conn: db.Connection, caller: Caller, row: Row, referral_id: UUID) -> UUID | None:
    assert row.campaign_id is not None
    new = NewVoucher(
        campaign_id=ids.format_id("cmp", row.campaign_id),
        max_redemptions=_USES,
        holder=row.customer_id,
        metadata={"referral_id": ids.format_id("rfa", referral_id), "side": row.side},
    )
    made = await vouchers.create(conn, caller, new)
    return ids.parse_id("vch", made.id)


async def _gift_card(
    conn: db.Connection, caller: Caller, vault: Vault, row: Row, referral_id: UUID
) -> UUID | None:
    assert row.amount_minor is not None
    new = NewGiftCard(
        amount=money.json_amount(row.amount_minor, caller.exponent),
        currency=caller.currency,
        customer_id=row.customer_id,
        source="promotion",
        # A reference is used once for ever: the ledger itself holds who would reward twice.
        reference=_reference("reward", referral_id, row.side),
        reason="referral",
    )
    made = await cards.create(conn, caller, new, vault)
    return ids.parse_id("gft", made.id)


def _reference(what: str, referral_id: UUID, side: Side) -> str:
    return f"referral-{what}:{ids.format_id('rfa', referral_id)}:{side}"


async def revoke(
    conn: db.Connection, caller: Caller, program_id: UUID, referral_id: UUID
) -> dict[Side, Status]:
    """Cancel what is promised and take back what is left of what was issued; return what became.

    What was spent is a debt that is shown, and never taken from anything else.
    """
    ended: dict[Side, Status] = {}
    for row in await of_referral(conn, caller, referral_id):
        if row.status not in ("pending", "issued"):
            continue
        debt_minor = 0
        if row.voucher_id is not None:
            debt_minor = await _take_voucher(conn, caller, row.voucher_id)
        if row.gift_card_id is not None:
            debt_minor = await _take_credit(conn, caller, row, referral_id)
        status: Status = "cancelled" if row.status == "pending" else "reversed"
        ended[row.side] = status = "debt" if debt_minor else status
        owner = {"project_id": caller.project_id}
        await db.run(
            conn, "referral_rewards.end",
            referral_id=referral_id, side=row.side, status=status, debt_minor=debt_minor or None,
            **owner,
        )  # fmt: skip
        if row.side == "referrer":
            await db.run(
                conn, "referral_rewards.uncount",
                program_id=program_id, referrer_id=row.customer_id, period=row.period, **owner,
            )  # fmt: skip
    return ended


async def _take_voucher(conn: db.Connection, caller: Caller, voucher_id: UUID) -> int:
    params = {"project_id": caller.project_id, "id": voucher_id}
    # Also one that is used up: the end of a hold, or a rollback, would give the use back.
    await db.run(conn, "vouchers.switch", status="disabled", **params)
    return await db.value(conn, "referral_rewards.spent_of_voucher", int, **params)


async def _take_credit(conn: db.Connection, caller: Caller, row: Row, referral_id: UUID) -> int:
    """Take credit off a card, as far as it is there and was not put there by somebody else."""
    assert row.gift_card_id is not None and row.amount_minor is not None
    await db.run(conn, "gift_cards.lock", project_id=caller.project_id, ids=[row.gift_card_id])
    public_id = ids.format_id("gft", row.gift_card_id)
    card = await cards.find(conn, caller, public_id)
    taken = max(0, min(card.balance_minor, row.amount_minor - card.spent_minor))
    if taken:
        movement = Movement(
            amount=money.json_amount(-taken, card.exponent),
            reference=_reference("reversal", referral_id, row.side),
            reason="referral reversed",
        )
        await ledger.adjust(conn, caller, public_id, movement)
    return row.amount_minor - taken


def show(rows: Sequence[Row], exponent: int) -> list[Shown]:
    """Write rewards as the API shows them."""

    def amount(minor: int | None) -> Amount | None:
        return None if minor is None else money.json_amount(minor, exponent)

    return [
        Shown(
            side=row.side,
            customer_id=row.customer_id,
            type=row.kind,
            status=row.status,
            amount=amount(row.amount_minor),
            voucher_code=row.voucher_code,
            gift_card_id=ids.format_id("gft", row.gift_card_id) if row.gift_card_id else None,
            debt=amount(row.debt_minor),
            due_at=row.due_at,
            issued_at=row.issued_at,
            ended_at=row.ended_at,
        )
        for row in rows
    ]
