"""Customers: who redeems. Registered or only known from the books, read, exported and erased.

A customer is named by the shop's own id, the one that redemptions carry; nobody must be
registered to redeem.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from core import audit_log, db, ids, redemptions, segments, vouchers
from core.api_keys import Caller
from core.errors import Invalid, NotFound, Refusal
from core.redemptions import Redemption
from core.rules import limits
from core.rules.limits import Metadata
from core.shapes import CustomerId, Person, Text
from core.vouchers import Voucher

# Of each kind in one export; the largest shops' best customers have some thousands of redemptions.
EXPORT_MAX: Final = 100_000
# One statement of an erasure. A month's events of the largest shops are some millions, of which
# each second reads some hundred thousand; with less time those shops could never erase anybody.
ERASE_TIMEOUT_MS: Final = 60_000


class NewCustomer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who is registered; members that are left out of a second registration stay."""

    customer_id: CustomerId
    name: Text | None = None
    email: Text | None = None
    attributes: Metadata | None = None


class CustomerPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a customer: members that are left out stay, null clears."""

    name: Text | msgspec.UnsetType | None = msgspec.UNSET
    email: Text | msgspec.UnsetType | None = msgspec.UNSET
    attributes: Metadata | msgspec.UnsetType | None = msgspec.UNSET


class Stored(msgspec.Struct, frozen=True):
    """A customer's row, with what the ledger says; without a row the id is None."""

    id: UUID | None
    customer_id: str
    name: str | None
    email: str | None
    attributes: Metadata
    redemption_count: int
    created_at: datetime | None
    updated_at: datetime | None


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """A customer as the API shows it. `id` is None for one who never was registered."""

    id: str | None
    customer_id: str
    name: str | None
    email: str | None
    attributes: Metadata
    redemption_count: int
    created_at: datetime | None
    updated_at: datetime | None


class Export(msgspec.Struct, frozen=True):
    """What promotions keep of a customer; `vouchers` are their wallet."""

    customer: Customer
    redemptions: list[Redemption]
    vouchers: list[Voucher]
    segments: list[str]


class _Card(msgspec.Struct, frozen=True):
    id: UUID
    recipient: dict[str, str] | None


class Erased(msgspec.Struct, frozen=True):
    """What was erased. The redemptions stay in the books under `pseudonym`."""

    pseudonym: str
    redemptions: int


async def register(conn: db.Connection, caller: Caller, new: NewCustomer) -> Customer:
    """Register a customer, or change one who is registered. Idempotent. Raises: Invalid."""
    await _write_down(conn, caller, new.customer_id, new, field="attributes")
    return await get(conn, caller, new.customer_id)


async def meet(
    conn: db.Connection, caller: Caller, customer_id: str | None, person: Person | None
) -> None:
    """Write down what a call says of its customer, if it does. Raises: Invalid."""
    if person is None:
        return
    if customer_id is None:
        raise Invalid("customer_id is required with customer", field="customer_id")
    await _write_down(conn, caller, customer_id, person, field="customer.attributes")


async def _write_down(
    conn: db.Connection,
    caller: Caller,
    customer_id: str,
    told: NewCustomer | Person,
    *,
    field: str,
) -> None:
    limits.check_metadata(told.attributes or {}, field=field)
    await db.run(
        conn, "customers.register",
        project_id=caller.project_id, id=ids.new(), customer_id=customer_id,
        customer_name=told.name, email=told.email, attributes=told.attributes,
    )  # fmt: skip


async def wallet(
    conn: db.Connection, caller: Caller, name: str, *, after: UUID | None, limit: int
) -> list[Voucher]:
    """Return up to `limit` vouchers that are this customer's, newest first."""
    customer_id = await _id_of(conn, caller, name)
    rows = await db.many(
        conn, "vouchers.wallet", vouchers.Stored,
        project_id=caller.project_id, holder=customer_id, after=after, limit=limit,
    )  # fmt: skip
    return [vouchers.show(row, caller) for row in rows]


async def segments_of(conn: db.Connection, caller: Caller, name: str) -> list[str]:
    """Return the ids of the segments a customer belongs to now; anybody may be asked for."""
    return await segments.of_customer(conn, caller, await _id_of(conn, caller, name))


async def _id_of(conn: db.Connection, caller: Caller, name: str) -> str:
    """Return the shop's own id: the name itself, unless it is a registration's `cus_…`."""
    if ids.parse_id("cus", name) is None:
        return name
    return (await find(conn, caller, name)).customer_id


async def get(conn: db.Connection, caller: Caller, name: str) -> Customer:
    """Return a customer by the shop's id or the `cus_…` one. Raises: NotFound."""
    return show(await find(conn, caller, name))


async def find(conn: db.Connection, caller: Caller, name: str) -> Stored:
    """Return a customer who is registered or in the books. Raises: NotFound."""
    stored = await db.one(
        conn, "customers.by_name", Stored,
        project_id=caller.project_id, customer_id=name, id=ids.parse_id("cus", name),
    )  # fmt: skip
    if stored is None:
        raise NotFound("There is no such customer in this project.")
    return stored


async def page(
    conn: db.Connection, caller: Caller, *, email: str | None, after: UUID | None, limit: int
) -> list[Customer]:
    """Return up to `limit` registered customers, newest first."""
    rows = await db.many(
        conn, "customers.page", Stored,
        project_id=caller.project_id, email=email, after=after, limit=limit,
    )  # fmt: skip
    return [show(row) for row in rows]


async def edit(conn: db.Connection, caller: Caller, name: str, patch: CustomerPatch) -> Customer:
    """Change a registered customer. Raises: NotFound, Invalid."""
    stored = await find(conn, caller, name)
    attributes = None if patch.attributes is msgspec.UNSET else patch.attributes or {}
    limits.check_metadata(attributes or {}, field="attributes")
    if stored.id is None:
        raise NotFound("This customer is not registered; POST /v1/customers does that.")
    await db.run(
        conn, "customers.edit", project_id=caller.project_id, id=stored.id,
        sets_name=patch.name is not msgspec.UNSET,
        customer_name=None if patch.name is msgspec.UNSET else patch.name,
        sets_email=patch.email is not msgspec.UNSET,
        email=None if patch.email is msgspec.UNSET else patch.email,
        attributes=attributes,
    )  # fmt: skip
    return await get(conn, caller, name)


async def export(conn: db.Connection, caller: Caller, name: str) -> Export:
    """Return what is kept of a customer, newest redemption first. Raises: NotFound."""
    stored = await find(conn, caller, name)
    rows = await db.many(
        conn, "customers.redemptions", redemptions.Row,
        project_id=caller.project_id, customer_id=stored.customer_id, limit=EXPORT_MAX,
    )  # fmt: skip
    return Export(
        show(stored),
        [redemptions.from_row(caller, row) for row in rows],
        await wallet(conn, caller, stored.customer_id, after=None, limit=EXPORT_MAX),
        await segments.of_customer(conn, caller, stored.customer_id),
    )


async def erase(
    conn: db.Connection, caller: Caller, name: str, pseudonym: str | None = None
) -> Erased | Refusal:
    """Forget a person: the registration goes, the books keep their rows under a random name.

    Limits that the person had used go with the pseudonym. Refuses: sale_live, while a fast sale
    of the project is out, whose copy of the name would come back. Raises: NotFound. Cost: reads
    the project's events and kept answers, a second for some hundred thousand. Part of
    `erasures`, which sees to Redis.
    """
    stored = await find(conn, caller, name)
    if await db.value(conn, "customers.has_live_lease", bool, project_id=caller.project_id):
        return Refusal(
            "sale_live",
            "A fast sale is out, or settled just now; erase the customer some seconds after that.",
        )
    pseudonym = pseudonym or new_pseudonym()
    person = {"project_id": caller.project_id, "customer_id": stored.customer_id}
    params = {**person, "pseudonym": pseudonym}
    cards = await db.many(conn, "customers.cards", _Card, **person)
    texts = _texts_of(stored, cards)
    await db.run(conn, "customers.raise_crowds", **person)
    await db.run(conn, "customers.release_holds", **person)
    renamed = await db.run(conn, "customers.rename_redemptions", **params)
    await db.run(conn, "customers.rename_takings", **params)
    await db.run(conn, "customers.rename_counts", **params)
    await db.run(conn, "customers.rename_budgets", **params)
    await db.run(conn, "customers.rename_holds", **params)
    await db.run(conn, "gift_cards.forget_recipient", **params)
    await db.run(conn, "customers.rename_holder", **params)
    await db.run(conn, "customers.rename_member", **params)
    await db.run(conn, "customers.leave_segments", **person)
    await db.run(conn, "referrals.forget_identifiers", **person)
    await db.run(conn, "referrals.rename_facts", **params)
    await db.run(conn, "referrals.rename_referrals", **params)
    await db.run(conn, "referrals.rename_codes", **params)
    await db.run(conn, "referral_rewards.rename", **params)
    await db.run(conn, "referral_rewards.rename_counts", **params)
    await db.run(conn, "blocks.erase", **person)
    await db.run(conn, "fraud.rename_alerts", **params)
    await db.run(conn, "signals.erase", **person)
    books = {"project_id": caller.project_id, "pseudonym": pseudonym}
    await db.run(conn, "customers.forget_reasons", **books)
    await db.run(conn, "customers.rename_events", **params)
    await db.run(conn, "customers.rename_outbox", **params)
    told = [*texts, *(ids.format_id("gft", card.id) for card in cards)]
    await db.run(
        conn, "customers.forget_answers", project_id=caller.project_id,
        told=[msgspec.json.encode(text).decode() for text in told],
    )  # fmt: skip
    await db.run(conn, "customers.forget_echoes", project_id=caller.project_id, texts=texts)
    await db.run(conn, "customers.forget_quarantine", **person)
    await db.run(conn, "customers.forget", **person)
    await audit_log.write(conn, caller, "customer.erased", pseudonym)
    return Erased(pseudonym, renamed)


def new_pseudonym() -> str:
    """Draw the name under which the books keep somebody who is erased."""
    return f"erased-{ids.format_id('cus', ids.new())[4:]}"


def _texts_of(stored: Stored, cards: list[_Card]) -> list[str]:
    """Return by what a person is found in texts that others wrote."""
    recipients = [card.recipient or {} for card in cards]
    told = [
        stored.customer_id,
        stored.id and ids.format_id("cus", stored.id),
        stored.name,
        stored.email,
        *(one.get(part) for one in recipients for part in ("name", "email")),
    ]
    return sorted({text for text in told if text})


def show(stored: Stored) -> Customer:
    """Write a row as the API shows it."""
    return Customer(
        id=ids.format_id("cus", stored.id) if stored.id is not None else None,
        customer_id=stored.customer_id,
        name=stored.name,
        email=stored.email,
        attributes=stored.attributes,
        redemption_count=stored.redemption_count,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )
