"""Cards: made with what they are worth, found by id or code, changed but for their money.

Of a code only a keyed hash and the last four are kept: it is in the answer that makes the card,
and nowhere else.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import audit_log, db, ids, lookups
from core.api_keys import Caller
from core.errors import (
    AlreadyExists,
    IdempotencyMismatch,
    Invalid,
    NotFound,
)
from core.gift_cards.vault import Secrets, Vault, normalised
from core.lookups import Asker, UnknownCode
from core.rules import limits, money
from core.rules.limits import Metadata
from core.rules.orders import Reference
from core.shapes import Amount, CustomerId, Instant

# What the published product promises in one request; some seconds of PostgreSQL's time.
BULK_MAX: Final = 50_000
# One statement: four tables a card, 100 to 200 ms.
PIECE: Final = 5_000
# Codes brought from elsewhere: what the field's cards have.
CODE_LENGTH_MIN, CODE_LENGTH_MAX = 8, 40
# References that the product itself gives begin so.
OWN: Final = "vf:"
_UNKNOWN: Final = "There is no gift card with this code and PIN."

Status = Literal["active", "disabled", "expired"]
Source = Literal["sold", "promotion"]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]

ACCOUNTS: Final[dict[Source, str]] = {"sold": "sales", "promotion": "promotion"}
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Recipient(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who gets a card, for the shop's own use."""

    name: Text | None = None
    email: Text | None = None
    message: Text | None = None


class NewGiftCards(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What cards that are made together have in common; `source`: whether they were paid for."""

    amount: Amount
    currency: str | None = None
    with_pin: bool = False
    expires_at: Instant | None = None
    customer_id: CustomerId | None = None
    recipient: Recipient | None = None
    metadata: Metadata = {}
    source: Source = "sold"
    order_id: Reference | None = None
    reason: Text | None = None


class NewGiftCard(NewGiftCards, kw_only=True, forbid_unknown_fields=True):
    """One card, also with a code that was in use elsewhere."""

    code: str | None = None
    reference: Reference | None = None


class NewBulk(NewGiftCards, kw_only=True, forbid_unknown_fields=True):
    """Many cards."""

    count: Annotated[int, msgspec.Meta(ge=1, le=BULK_MAX)]


class GiftCardPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a card: members that are left out stay, null clears."""

    expires_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    customer_id: CustomerId | msgspec.UnsetType | None = msgspec.UNSET
    recipient: Recipient | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET


class Lookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The secrets of a card."""

    code: str
    pin: str | None = None


class GiftCard(msgspec.Struct, frozen=True, kw_only=True):
    """A card as the API shows it. `code` and `pin` are there once, when they are made."""

    id: str
    code: str | None
    pin: str | None
    last_four: str
    has_pin: bool
    status: Status
    currency: str
    balance: Amount
    expires_at: datetime | None
    customer_id: str | None
    recipient: Recipient | None
    metadata: Metadata
    batch_id: str | None
    created_at: datetime
    updated_at: datetime


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a browser may know of a card whose code it has."""

    last_four: str
    currency: str
    balance: Amount
    expires_at: datetime | None


class Bulk(msgspec.Struct, frozen=True):
    """Cards that were made together, with their codes."""

    batch_id: str
    count: int
    cards: list[Secrets]


class Stored(msgspec.Struct, frozen=True):
    """A card's row."""

    id: UUID
    last_four: str
    pin_digest: bytes | None
    currency: str
    status: Literal["active", "disabled"]
    balance_minor: int
    spent_minor: int
    expires_at: datetime | None
    is_expired: bool
    customer_id: str | None
    recipient: Recipient | None
    metadata: Metadata
    batch_id: UUID | None
    created_at: datetime
    updated_at: datetime

    @property
    def exponent(self) -> int:
        """How many decimals its currency has."""
        return exponent_of(self.currency)


class Known(msgspec.Struct, frozen=True):
    """Who took a reference."""

    id: UUID
    card_id: UUID
    kind: str
    fingerprint: bytes


class _Unused(msgspec.Struct, frozen=True):
    id: UUID
    has_pin: bool


async def create(conn: db.Connection, caller: Caller, new: NewGiftCard, vault: Vault) -> GiftCard:
    """Make a card and return it with its code, which nobody sees again.

    Idempotent on `reference`: the same one again returns the card, without its code. Raises:
    Invalid, AlreadyExists for a code that is taken, IdempotencyMismatch.
    """
    terms = _terms(caller, new)
    if new.reference is not None:
        known = await _known(conn, caller, checked_reference(new.reference))
        if known is not None:
            if known.fingerprint != terms["fingerprint"]:
                raise IdempotencyMismatch
            return await get(conn, caller, ids.format_id("gft", known.card_id))
    card_id = ids.new()
    [drawn] = vault.draw([card_id], [new.with_pin])
    if new.code is not None:
        drawn = msgspec.structs.replace(drawn, code=_own_code(new.code))
    try:
        made = await _issue(
            conn, caller, terms, vault, [card_id], [drawn],
            references=[new.reference], batch_id=None,
        )  # fmt: skip
    except db.UniqueViolation as violation:
        if violation.constraint != "gift_card_transactions_reference_key":
            raise
        # Another card's transaction took the reference since the look above.
        raise IdempotencyMismatch from None
    if not made:
        raise AlreadyExists("A gift card has this code already.", field="code")
    card = await get(conn, caller, drawn.id)
    return msgspec.structs.replace(card, code=drawn.code, pin=drawn.pin)


async def create_bulk(conn: db.Connection, caller: Caller, new: NewBulk, vault: Vault) -> Bulk:
    """Make many cards, all or none. Raises: Invalid. Cost: 3 to 6 s for BULK_MAX of them."""
    terms = _terms(caller, new)
    batch_id = ids.new()
    made: list[Secrets] = []
    while len(made) < new.count:
        card_ids = [ids.new() for _ in range(min(PIECE, new.count - len(made)))]
        drawn = vault.draw(card_ids, [new.with_pin] * len(card_ids))
        count = await _issue(
            conn, caller, terms, vault, card_ids, drawn,
            references=[None] * len(drawn), batch_id=batch_id,
        )  # fmt: skip
        assert count == len(drawn), "two of 10^23 codes are equal"
        made += drawn
    return Bulk(ids.format_id("bat", batch_id), len(made), made)


def _terms(caller: Caller, new: NewGiftCards) -> dict[str, Any]:
    limits.check_metadata(new.metadata)
    limits.check_window(None, new.expires_at)
    currency = checked_currency(new.currency) or caller.currency
    amount_minor = money.parse_amount(new.amount, currency, field="amount", minor_min=1)
    told = (
        "issue", amount_minor, currency, new.customer_id, new.source, new.order_id, new.expires_at,
    )  # fmt: skip
    return {
        "amount_minor": amount_minor,
        "currency": currency,
        "expires_at": new.expires_at,
        "customer_id": new.customer_id,
        "recipient": msgspec.to_builtins(new.recipient),
        "metadata": new.metadata,
        "account": ACCOUNTS[new.source],
        "order_id": new.order_id,
        "reason": new.reason,
        "fingerprint": fingerprint(told),
    }


async def _issue(
    conn: db.Connection,
    caller: Caller,
    terms: dict[str, Any],
    vault: Vault,
    card_ids: Sequence[UUID],
    drawn: Sequence[Secrets],
    *,
    references: Sequence[str | None],
    batch_id: UUID | None,
) -> int:
    numbers = [ids.new() for _ in card_ids]
    return await db.value(
        conn, "gift_cards.issue", int,
        project_id=caller.project_id, transactions=numbers, batch_id=batch_id,
        references=[
            given or f"{OWN}{number}" for given, number in zip(references, numbers, strict=True)
        ],
        **vault.columns(caller.project_id, card_ids, drawn), **terms,
    )  # fmt: skip


async def _known(conn: db.Connection, caller: Caller, reference: str) -> Known | None:
    params = {"project_id": caller.project_id, "reference": reference}
    await db.value(conn, "gift_cards.lock_reference", bool, **params)
    return await db.one(conn, "gift_cards.by_reference", Known, **params)


def checked_currency(text: str | None) -> str | None:
    """Return a currency that was given, or None. Raises: Invalid."""
    if text is not None and money.exponent_of(text) is None:
        raise Invalid("currency must be an ISO 4217 code such as EUR", field="currency")
    return text


def exponent_of(currency: str) -> int:
    """Return how many decimals a card's currency has."""
    exponent = money.exponent_of(currency)
    assert exponent is not None, currency
    return exponent


def _own_code(code: str) -> str:
    norm = normalised(code)
    if not (norm.isascii() and norm.isalnum() and CODE_LENGTH_MIN <= len(norm) <= CODE_LENGTH_MAX):
        raise Invalid(
            f"code must have {CODE_LENGTH_MIN} to {CODE_LENGTH_MAX} letters and digits",
            field="code",
        )
    return code.strip()


def checked_reference(reference: str) -> str:
    """Return a caller's reference. Raises: Invalid for one that looks like the product's own."""
    if reference.startswith(OWN):
        raise Invalid(f"reference cannot begin with {OWN}", field="reference")
    return reference


def fingerprint(parts: tuple[Any, ...]) -> bytes:
    """Return what tells a request from another with the same reference."""
    return hashlib.sha256(_encode(parts)).digest()[:16]


async def find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Return a card's row. Raises: NotFound."""
    card_id = ids.parse_id("gft", public_id)
    if card_id is not None:
        stored = await db.one(
            conn, "gift_cards.by_id", Stored, project_id=caller.project_id, id=card_id
        )
        if stored is not None:
            return stored
    raise NotFound("There is no such gift card in this project.")


async def find_by_code(
    conn: db.Connection, asker: Asker, given: Lookup, vault: Vault, *, field: str | None = None
) -> Stored:
    """Return the row of the card with a code. Call inside `lookups.counted`.

    Raises: UnknownCode, for a wrong code and a wrong PIN alike; TooManyAttempts.
    """
    caller = asker.caller
    await lookups.check(conn, caller.project_id, asker.limits)
    stored = await db.one(
        conn, "gift_cards.by_digest", Stored, project_id=caller.project_id,
        digest=vault.digest(caller.project_id, normalised(given.code)),
    )  # fmt: skip
    if stored is None:
        raise UnknownCode(_UNKNOWN, field=field)
    if stored.pin_digest is not None:
        scope = f"card:{stored.id}"
        await lookups.check(conn, caller.project_id, {scope: lookups.CARD_FAILURES_MAX})
        found = vault.pin_digest(stored.id, given.pin or "")
        if not hmac.compare_digest(stored.pin_digest, found):
            raise UnknownCode(_UNKNOWN, field=field, scope=scope)
    return stored


async def look_up(
    conn: db.Connection, asker: Asker, given: Lookup, vault: Vault
) -> GiftCard | Holding:
    """Return the card with a code; to a browser only what it holds, and only while it may pay.

    Raises: UnknownCode, which to a browser is every reason; TooManyAttempts.
    """
    stored = await find_by_code(conn, asker, given, vault)
    if asker.caller.is_secret:
        return show(stored)
    if stored.status != "active" or stored.is_expired:
        raise UnknownCode(_UNKNOWN)
    return Holding(
        last_four=stored.last_four,
        currency=stored.currency,
        balance=money.json_amount(stored.balance_minor, stored.exponent),
        expires_at=stored.expires_at,
    )


def without_secrets(card: GiftCard) -> GiftCard:
    """Return a card as it may be kept."""
    return msgspec.structs.replace(card, code=None, pin=None)


async def get(conn: db.Connection, caller: Caller, public_id: str) -> GiftCard:
    """Return a card as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id))


def show(stored: Stored) -> GiftCard:
    """Write a row as the API shows it."""
    is_expired = stored.status == "active" and stored.is_expired
    return GiftCard(
        id=ids.format_id("gft", stored.id),
        code=None,
        pin=None,
        last_four=stored.last_four,
        has_pin=stored.pin_digest is not None,
        status="expired" if is_expired else stored.status,
        currency=stored.currency,
        balance=money.json_amount(stored.balance_minor, stored.exponent),
        expires_at=stored.expires_at,
        customer_id=stored.customer_id,
        recipient=stored.recipient,
        metadata=stored.metadata,
        batch_id=ids.format_id("bat", stored.batch_id) if stored.batch_id else None,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


async def page(
    conn: db.Connection,
    caller: Caller,
    *,
    narrow: dict[str, Any],
    after: UUID | None,
    limit: int,
) -> list[GiftCard]:
    """Return up to `limit` cards, newest first.

    `narrow` has customer_id, last_four, batch_id and status; None does not narrow.
    """
    rows = await db.many(
        conn, "gift_cards.page", Stored,
        project_id=caller.project_id, after=after, limit=limit, **narrow,
    )  # fmt: skip
    return [show(row) for row in rows]


async def edit(
    conn: db.Connection, caller: Caller, public_id: str, patch: GiftCardPatch
) -> GiftCard:
    """Change a card's end, owner, recipient or metadata. Raises: NotFound, Invalid.

    A later end does not bring back what an earlier one moved to breakage; adjust does.
    """
    stored = await find(conn, caller, public_id)
    metadata = None if patch.metadata is msgspec.UNSET else patch.metadata
    limits.check_metadata(metadata or {})
    given = {
        name: (getattr(patch, name) is not msgspec.UNSET, getattr(patch, name) or None)
        for name in ("expires_at", "customer_id", "recipient")
    }
    limits.check_window(None, given["expires_at"][1])
    await db.run(
        conn, "gift_cards.edit", project_id=caller.project_id, id=stored.id,
        sets_expires_at=given["expires_at"][0], expires_at=given["expires_at"][1],
        sets_customer_id=given["customer_id"][0], customer_id=given["customer_id"][1],
        sets_recipient=given["recipient"][0],
        recipient=msgspec.to_builtins(given["recipient"][1]),
        metadata=metadata,
    )  # fmt: skip
    card = await get(conn, caller, public_id)
    named = [name for name in patch.__struct_fields__ if getattr(patch, name) is not msgspec.UNSET]
    if named:
        # Which members: who owns a card, and whom it is for, is nobody's business there.
        await audit_log.write(
            conn, caller, "gift_card.updated", card.id, {"members": named},
            before={"expires_at": stored.expires_at}, after={"expires_at": card.expires_at},
        )  # fmt: skip
    return card


async def switch(
    conn: db.Connection, caller: Caller, public_id: str, *, status: Literal["active", "disabled"]
) -> GiftCard:
    """Disable a card, or enable it again. Idempotent; its balance stays. Raises: NotFound."""
    stored = await find(conn, caller, public_id)
    await db.run(
        conn, "gift_cards.switch", project_id=caller.project_id, id=stored.id, status=status
    )
    card = await get(conn, caller, public_id)
    if stored.status != status:
        await audit_log.write(
            conn, caller, "gift_card.enabled" if status == "active" else "gift_card.disabled",
            card.id,
            before={"status": stored.status}, after={"status": status},
        )  # fmt: skip
    return card


async def recode(conn: db.Connection, caller: Caller, public_id: str, vault: Vault) -> GiftCard:
    """Give a card a new code, and a new PIN if it has one; the old ones open nothing any more.

    For a card that was lost, and for an answer that was. Raises: NotFound.
    """
    stored = await find(conn, caller, public_id)
    [drawn] = vault.draw([stored.id], [stored.pin_digest is not None])
    await _recode(conn, caller, vault, [stored.id], [drawn])
    card = await get(conn, caller, public_id)
    await audit_log.write(conn, caller, "gift_card.recoded", card.id)
    return msgspec.structs.replace(card, code=drawn.code, pin=drawn.pin)


async def recode_bulk(conn: db.Connection, caller: Caller, public_id: str, vault: Vault) -> Bulk:
    """Give the cards of a batch that nobody has used new codes. Raises: NotFound.

    Concurrency: locks them in id order, so that none is used in between.
    """
    batch_id = ids.parse_id("bat", public_id)
    unused = await db.many(
        conn, "gift_cards.of_batch", _Unused, project_id=caller.project_id, batch_id=batch_id
    )
    if not unused:
        raise NotFound("There is no such batch of gift cards, or all of them were used.")
    made = vault.draw([card.id for card in unused], [card.has_pin for card in unused])
    for at in range(0, len(unused), PIECE):
        card_ids = [card.id for card in unused[at : at + PIECE]]
        await _recode(conn, caller, vault, card_ids, made[at : at + PIECE])
    await audit_log.write(conn, caller, "gift_cards.recoded", public_id, {"count": len(made)})
    return Bulk(public_id, len(made), made)


async def _recode(
    conn: db.Connection,
    caller: Caller,
    vault: Vault,
    card_ids: Sequence[UUID],
    drawn: Sequence[Secrets],
) -> None:
    columns = vault.columns(caller.project_id, card_ids, drawn)
    await db.run(conn, "gift_cards.recode", project_id=caller.project_id, **columns)
