"""Receipts: proof of a fast win, signed in its answer and good for a number that Redis lost.

A receipt is an HMAC over the answer's own text up to where it stands, so whoever kept the answer
holds all that a row needs. After a loss the number is burned: nobody else was sold it, and nobody
will be. Presenting the receipt writes the redemption at that very number.
"""

import hashlib
import hmac
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

import core.db as db
from core import idempotency, ids, redemptions
from core.api_keys import Caller
from core.errors import Invalid, NotFound, Refusal, Unavailable
from core.hot import leases as hot_leases
from core.leases import Leases, redis_errors
from core.redemptions import NO_REDEMPTION, Redemption
from core.rules import money
from core.rules.limits import Metadata
from core.shapes import Amount

PREFIX: Final = "rcp_"
# 128 bits as hexadecimal; see hotpath/src/receipts.rs, which writes most of them.
DIGITS: Final = 32

_encode = msgspec.json.Encoder().encode


class Presented(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to a claim, as it was received."""

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
    receipt: str
    flash_sale_id: str | None = None
    campaign_id: str | None = None
    metadata: Metadata | None = None
    rolled_back_at: str | None = None
    rollback_reason: str | None = None


class _Signed(msgspec.Struct, frozen=True):
    """What a receipt speaks for: the fields of the answer that come before it."""

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


class _Facts(msgspec.Struct):
    lease_id: UUID
    state: str
    voucher_id: UUID
    code_norm: str
    per_customer_limit: int | None
    open_lease: UUID | None
    open_state: str | None


class _Claimed(msgspec.Struct):
    outcome: str
    existing: UUID | None


class Signer:
    """Signs the wins of one system; every node has the same key."""

    def __init__(self, secret: str) -> None:
        """Derive the key from the system's secret."""
        self.key: Final = hmac.digest(secret.encode(), b"receipts", "sha256")

    def signed(self, answered: Redemption) -> Redemption:
        """Give the answer to a lease's live win its receipt; any other answer has none."""
        redemption_id = ids.parse_id("rdm", answered.redemption_id)
        assert redemption_id is not None, "answers carry ids of ours"
        if answered.status != "redeemed" or not ids.is_win(redemption_id):
            return answered
        return msgspec.structs.replace(answered, receipt=self._receipt(answered))

    def is_genuine(self, presented: Presented) -> bool:
        """Whether this system answered exactly this."""
        # As bytes: texts beyond ASCII are compared by nobody, and a caller may send one.
        return hmac.compare_digest(presented.receipt.encode(), self._receipt(presented).encode())

    def _receipt(self, answered: Redemption | Presented) -> str:
        fields = (getattr(answered, name) for name in _Signed.__struct_fields__)
        text = _encode(_Signed(*fields))[:-1]
        return PREFIX + hmac.new(self.key, text, hashlib.sha256).hexdigest()[:DIGITS]


async def claim(
    database: db.Database,
    desk: Leases,
    signer: Signer,
    caller: Caller,
    presented: Presented,
    key: str | None,
) -> Redemption | Refusal:
    """Write the redemption of a receipt whose number was lost; returns what the ledger has.

    `key` is the `Idempotency-Key` of the claim, if it had one: it stays taken.
    Idempotent: a redemption that is in the ledger is returned. Refuses: not_settled_yet while the
    lease is out; receipt_void when its number was given back or released; customer_limit_reached.
    Raises: Invalid for what was not signed here; NotFound; Unavailable. Concurrency: where the
    voucher has a live lease, Redis admits key and customer first, then PostgreSQL writes.
    """
    presented = _in_our_words(caller, presented)
    redemption_id = ids.parse_id("rdm", presented.redemption_id)
    if redemption_id is None or not signer.is_genuine(presented):
        raise Invalid("This is not an answer that was signed here, as it was.", field="receipt")
    try:
        # In the ledger, or on its way there: a lost number is neither, and "not found".
        return await redemptions.read(database, caller, redemption_id)
    except NotFound:
        pass
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        facts = await db.one(
            conn,
            "receipts.facts",
            _Facts,
            project_id=caller.project_id,
            tag=ids.tag_of_win(redemption_id),
        )
    seq = ids.seq_of_win(redemption_id, facts.lease_id) if facts is not None else None
    if facts is None or seq is None:
        raise NotFound(NO_REDEMPTION)
    row = _row(presented, caller, facts, seq, redemption_id, key)
    admitted = None
    if facts.open_lease is not None:
        admitted = _admission(facts, row, presented)
        refused = await _admit(desk, facts, admitted)
        if refused is not None:
            return refused
    async with database.connection() as conn:
        done = await db.one(conn, "receipts.claim", _Claimed, project_id=caller.project_id, **row)
    assert done is not None
    if done.outcome in ("claimed", "stored"):
        await desk.void_crowd(caller.project_id, facts.voucher_id)
        async with database.transaction(caller.project_id, reads_only=True) as conn:
            return await redemptions.shown(conn, caller, redemption_id)
    if admitted is not None:
        await hot_leases.withdraw(desk.redis, str(facts.open_lease), admitted)
    if done.outcome == "customer_limit":
        return redemptions.refusal("customer_limit_reached", **_named(done.existing))
    return Refusal(
        code="receipt_void",
        detail="Its unit was given back or released, or its key has another redemption.",
        extra=_named(done.existing),
    )


def _named(existing: UUID | None) -> dict[str, Any]:
    return {"redemption_id": ids.format_id("rdm", existing)} if existing is not None else {}


def _in_our_words(caller: Caller, presented: Presented) -> Presented:
    """Write the amounts as they were answered: a client's JSON may have dropped their zeros."""

    def rewritten(name: str) -> Amount:
        minor = money.parse_amount(getattr(presented, name), caller.currency, field=name)
        return money.json_amount(minor, caller.exponent)

    return msgspec.structs.replace(
        presented,
        discount_applied=rewritten("discount_applied"),
        order_value=rewritten("order_value"),
    )


def _row(
    presented: Presented,
    caller: Caller,
    facts: _Facts,
    seq: int,
    redemption_id: UUID,
    key: str | None,
) -> dict[str, Any]:
    order_value = money.parse_amount(presented.order_value, caller.currency, field="order_value")
    discount = money.parse_amount(
        presented.discount_applied, caller.currency, field="discount_applied"
    )
    # A claim without an order value is answered with 0.
    asked = (
        presented.customer_id,
        order_value or None,
        presented.order_id,
        presented.metadata or None,
    )
    return {
        "lease_id": facts.lease_id,
        "seq": seq,
        "id": redemption_id,
        "key": key or presented.redemption_id,
        "fingerprint": idempotency.fingerprint(facts.code_norm, asked),
        "customer": presented.customer_id,
        "order_value": order_value,
        "discount": discount,
        "order_id": presented.order_id,
        "metadata": presented.metadata or None,
        "remaining": presented.remaining,
        "redeemed_at": datetime.fromisoformat(presented.redeemed_at),
    }


def _admission(facts: _Facts, row: dict[str, Any], presented: Presented) -> hot_leases.Admitted:
    sale_id = ids.parse_id("fls", presented.flash_sale_id or "")
    payload = (
        row["order_value"],
        row["discount"],
        row["id"],
        presented.seq,
        row["remaining"],
        sale_id,
    )
    return hot_leases.Admitted(
        key=row["key"],
        fingerprint=row["fingerprint"].hex(),
        at_ms=redemptions.ms_of(row["redeemed_at"]),
        remaining=row["remaining"] or 0,
        payload=_encode(payload),
        customer=row["customer"] if facts.per_customer_limit is not None else None,
        customer_limit=facts.per_customer_limit or 0,
        redemption_id=presented.redemption_id,
    )


async def _admit(desk: Leases, facts: _Facts, one: hot_leases.Admitted) -> Refusal | None:
    """Let the voucher's live lease know of the redemption first. None: it does."""
    if facts.open_state != "open":
        raise Unavailable("Nothing was applied: the sale is being opened or settled.")
    try:
        told = await hot_leases.admit(desk.redis, str(facts.open_lease), one)
    except (redis_errors, OSError) as error:
        raise Unavailable("Nothing was applied: Redis is away, and a sale is live.") from error
    match told:
        case "customer_limit":
            return redemptions.refusal("customer_limit_reached")
        case "key_taken":
            return Refusal(code="receipt_void", detail="Its key has another redemption.")
        case "gone":
            raise Unavailable("Nothing was applied: the sale is being recovered.")
        case _:
            return None
