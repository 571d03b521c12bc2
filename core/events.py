"""What happened in a project: published from the outbox in commit order, listed for 30 days.

A commit of many redemptions is one row here and one event a redemption where it is read: nothing
of it is written again, and what a redemption said is read from the ledger.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from core import contexts, db, fraud, ids
from core.api_keys import Caller
from core.errors import NotFound, OutcomeUnknown, Unavailable
from core.rules import money

# The subject of a type's events is an object of that noun.
_PREFIXES: Final[dict[str, ids.Prefix]] = {
    "voucher": "vch", "campaign": "cmp", "batch": "bat", "redemption": "rdm",
    "gift_card": "gft", "referral": "rfa", "flash_sale": "fls", "fraud": "fra",
}  # fmt: skip

TYPES: Final[dict[str, str]] = {
    "voucher.created": "One voucher was made by itself; of many at once, see batch.completed.",
    "voucher.issued": "A campaign's code was given to a customer.",
    "voucher.updated": "Its dates or metadata changed.",
    "voucher.disabled": "It was switched off.",
    "voucher.enabled": "It was switched on again.",
    "voucher.expired": "Its time is over, and it could still have been redeemed.",
    "voucher.validated": "Somebody asked whether it would work; only where a webhook names this "
    "type.",
    "voucher.redeemed": "One redemption, whoever decided it.",
    "batch.completed": "All vouchers of a batch are made.",
    "campaign.created": "It was made, or cloned from another.",
    "campaign.started": "It is active and its start has come.",
    "campaign.edited": "Its terms changed.",
    "campaign.paused": "It was paused.",
    "campaign.resumed": "It goes on after a pause.",
    "campaign.ended": "It was ended, or its time is over.",
    "campaign.budget_reached": "A budget is spent, or the next redemption did not fit in it.",
    "redemption.rolled_back": "A redemption, or a part of its discount, was given back.",
    "gift_card.issued": "A card was issued, or a batch of them.",
    "gift_card.topped_up": "Money was put on a card.",
    "gift_card.redeemed": "Something was paid with a card.",
    "gift_card.refunded": "What a card had paid came back to it.",
    "gift_card.expired": "A card's time is over; what was left is gone.",
    "gift_card.adjusted": "A balance was corrected by hand.",
    "gift_card.transferred": "A card's money went to another card.",
    "referral.invited": "A customer said whom they invited.",
    "referral.attributed": "Somebody came through a referrer, and it is believed.",
    "referral.rejected": "It is not believed; the reason is in its history.",
    "referral.converted": "The referee did what the program asks for.",
    "referral.rewarded": "What was due is issued.",
    "referral.reversed": "The conversion was undone.",
    "flash_sale.opened": "It sells, for the first time or after a pause.",
    "flash_sale.paused": "It was paused.",
    "flash_sale.sold_out": "Nothing of its stock is left; told again after more stock.",
    "flash_sale.closed": "It is over; what was won may still be on its way into the books.",
    "flash_sale.released": "Numbers that were written off are sold again.",
    "fraud.alert": "A rule found something suspicious; once for a subject and window.",
    "webhook.test": "Somebody asked for an example; it comes as the type it is one of.",
    "flash_sale.settled": "All of a lease's wins are in the books. After Redis lost data the sale "
    "goes on under another lease, which settles, too.",
}
"""Every type there is, and when it is told."""

NOUNS: Final = frozenset(name.partition(".")[0] for name in TYPES)

ALERT: Final = "fraud.alert"

TEST: Final = "webhook.test"
"""What an example is stored as; it is shown and sent as the type it is one of."""

# How long an event can be read; what the API says.
KEEP_DAYS: Final = 30
# An idle look is one indexed read; whoever listens hears of a commit a third of a second later.
LOOK_S: Final = 0.3
# One publishing transaction: some ten milliseconds of small rows, and no more events than can be
# written out for those who subscribe, one row each, well within a statement's 5 s.
ROWS_MAX: Final = 1_000
EVENTS_MAX: Final = 20_000
# A deletion of 10,000 rows takes some ten milliseconds; a look may do so many, 3 million a day.
FORGET_PIECES_MAX: Final = 100
# Many vouchers may expire at one instant, a batch for example, and are told in one statement.
EXPIRY_TIMEOUT_MS: Final = 60_000

# The last 24 bits of an event's id count the redemptions of one commit; the rest is the row's.
_PLACES: Final = 0xFF_FFFF

_log = structlog.get_logger("vauchflow.events")


class Event(msgspec.Struct, frozen=True):
    """What happened to `subject`, the public id of an object; `data` depends on the type.

    `is_test`: it is an example, and nothing happened.
    """

    id: str
    type: str
    created_at: datetime
    subject: str
    data: dict[str, Any]
    is_test: bool = False


class Stored(msgspec.Struct, frozen=True):
    """A row of vf.events: one event, or `count` redemptions."""

    id: UUID
    type: str
    subject: UUID
    data: dict[str, Any]
    at: datetime
    count: int
    first_seq: int | None
    seqs: list[int] | None


class _Told(msgspec.Struct, frozen=True):
    """What the event of a redemption says."""

    lease_id: UUID
    seq: int
    id: UUID
    voucher_id: UUID
    code: str
    campaign_id: UUID | None
    sale_id: UUID | None
    sale_seq: int | None
    customer_id: str | None
    order_id: str | None
    order_value_minor: int
    discount_minor: int
    metadata: dict[str, Any] | None
    redeemed_at: datetime


class Published(msgspec.Struct, frozen=True):
    """How many rows left the outbox, and the ids of the first and the last event's row."""

    row_count: int
    first_id: UUID | None
    last_id: UUID | None


async def page(
    conn: db.Connection, caller: Caller, *, type: str | None, after: UUID | None, limit: int
) -> list[Event]:
    """Return up to `limit` events, newest first, below the event `after`."""
    rows = await db.many(
        conn, "events.page", Stored,
        project_id=caller.project_id, type=type, limit=limit + 1,
        before=None if after is None else _row_id(after),
    )  # fmt: skip
    found: list[tuple[Stored, int]] = []
    for row in rows:
        top = row.count
        if after is not None and row.id == _row_id(after):
            top = min(top, after.int & _PLACES)
        found += [(row, place) for place in range(top - 1, max(-1, top - 1 - limit), -1)]
    return await show(conn, caller, found[:limit])


async def of_ids(
    conn: db.Connection, caller: Caller, event_ids: Iterable[UUID]
) -> dict[UUID, Event]:
    """Return those of some events that are not forgotten."""
    wanted = list(event_ids)
    rows = await db.many(
        conn, "events.by_ids", Stored,
        project_id=caller.project_id, ids=list({_row_id(one) for one in wanted}),
    )  # fmt: skip
    by_id = {row.id: row for row in rows}
    there = [one for one in wanted if _row_id(one) in by_id]
    found = [(by_id[_row_id(one)], one.int & _PLACES) for one in there]
    return dict(zip(there, await show(conn, caller, found), strict=True))


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Event:
    """Return one event. Raises: NotFound, also of one that is older than 30 days."""
    event_id = ids.parse_id("evt", public_id)
    if event_id is not None:
        row = await db.one(
            conn, "events.by_id", Stored, project_id=caller.project_id, id=_row_id(event_id)
        )
        place = event_id.int & _PLACES
        if row is not None and place < row.count:
            return (await show(conn, caller, [(row, place)]))[0]
    raise NotFound("There is no such event in this project; they are kept for 30 days.")


async def show(
    conn: db.Connection, caller: Caller, found: Sequence[tuple[Stored, int]]
) -> list[Event]:
    """Write events as the API shows them, each a row and its place in it. Cost: one read."""
    wanted = [
        (row.subject, row.seqs[place] if row.seqs else row.first_seq + place)
        for row, place in found if row.first_seq is not None
    ]  # fmt: skip
    told: dict[tuple[UUID, int], _Told] = {}
    if wanted:
        rows = await db.many(
            conn, "events.redemptions", _Told, project_id=caller.project_id,
            lease_ids=[lease_id for lease_id, _ in wanted], seqs=[seq for _, seq in wanted],
        )  # fmt: skip
        told = {(one.lease_id, one.seq): one for one in rows}
    alerts = {row.subject for row, _ in found if row.type == ALERT}
    seen = await fraud.of_ids(conn, caller, alerts) if alerts else {}
    return [
        _alert_event(row, seen[row.subject]) if row.subject in seen
        else _event(row, place, told, caller)
        for row, place in found
    ]  # fmt: skip


def _alert_event(row: Stored, alert: fraud.Alert) -> Event:
    """Say what an alert says by now: whom it is about stays where it can be erased."""
    names = ("rule", "subject", "score", "reasons", "action", "redemption_ids", "at")
    data = {name: getattr(alert, name) for name in names}
    return Event(ids.format_number("evt", row.id.int), row.type, row.at, alert.id, data)


def _event(row: Stored, place: int, told: dict[tuple[UUID, int], _Told], caller: Caller) -> Event:
    public_id = ids.format_number("evt", row.id.int + place)
    if row.type == TEST:
        return _example(public_id, row)
    if row.first_seq is None:
        prefix = _PREFIXES[row.type.partition(".")[0]]
        if row.type == "gift_card.issued" and row.data.get("count", 1) > 1:
            prefix = "bat"
        subject = ids.format_id(prefix, row.subject)
        return Event(public_id, row.type, row.at, subject, _data(row, caller.exponent))
    one = told[row.subject, row.seqs[place] if row.seqs else row.first_seq + place]
    data = {
        "redemption_id": ids.format_id("rdm", one.id),
        "code": one.code,
        "campaign_id": one.campaign_id and ids.format_id("cmp", one.campaign_id),
        "flash_sale_id": one.sale_id and ids.format_id("fls", one.sale_id),
        "seq": one.sale_seq or one.seq,
        "customer_id": one.customer_id,
        "order_id": one.order_id,
        "order_value": money.json_amount(one.order_value_minor, caller.exponent),
        "discount_applied": money.json_amount(one.discount_minor, caller.exponent),
        "currency": caller.currency,
        "metadata": contexts.without(one.metadata) or {},
        "redeemed_at": one.redeemed_at,
    }
    return Event(public_id, row.type, row.at, ids.format_id("vch", one.voucher_id), data)


def _example(public_id: str, row: Stored) -> Event:
    """Return what an event of the type would look like, of objects that there are not."""
    name = str(row.data["type"])
    noun = name.partition(".")[0]
    subject = ids.format_id(_PREFIXES.get(noun, "whk"), row.subject)
    data: dict[str, Any] = {"name": "Example"}
    if noun == "voucher":
        data = {"code": "EXAMPLE", "campaign_id": None}
    if name == "voucher.redeemed":
        data |= {
            "redemption_id": ids.format_id("rdm", row.subject), "flash_sale_id": None, "seq": 1,
            "customer_id": "cust_example", "order_id": None, "order_value": msgspec.Raw(b"89.99"),
            "discount_applied": msgspec.Raw(b"18.00"), "currency": "EUR", "metadata": {},
            "redeemed_at": row.at,
        }  # fmt: skip
    return Event(public_id, name, row.at, subject, data, is_test=True)


def _data(row: Stored, exponent: int) -> dict[str, Any]:
    """Write a row's data with public ids and decimals."""
    noun = row.type.partition(".")[0]
    given = dict(row.data)
    if noun == "flash_sale":
        # A lease's own id is what the ids of its wins are checked with: nobody is told.
        given.pop("lease", None)
    if noun == "gift_card" and "currency" in given:
        exponent = money.exponent_of(given["currency"]) or 0
    if row.type == "campaign.budget_reached":
        is_count = given["label"].startswith("redemptions")
        return {
            "budget": given["label"],
            "period": given["period"] or None,
            **{
                name: value if is_count else money.json_amount(value, exponent)
                for name, value in (("used", given["used"]), ("max", given["used_max"]))
            },
        }
    shown: dict[str, Any] = {}
    for name, value in given.items():
        if name.endswith("_minor") and isinstance(value, int):
            shown[name.removesuffix("_minor")] = money.json_amount(value, exponent)
        elif name == "transaction":
            shown["transaction_id"] = ids.format_id("gfe", UUID(value))
        elif name == "campaign_id" and value is not None:
            shown[name] = ids.format_id("cmp", UUID(value))
        else:
            shown[name] = value
    return shown


def _row_id(event_id: UUID) -> UUID:
    return UUID(int=event_id.int & ~_PLACES)


async def publish(conn: db.Connection) -> Published:
    """Move what waits in the outbox to the events, in its order; nothing while another does.

    Run it in a transaction of no project, as the worker.
    """
    done = await db.one(conn, "events.publish", Published, rows_max=ROWS_MAX, events_max=EVENTS_MAX)
    assert done is not None
    return done


async def tell_what_time_brings(database: db.Database) -> None:
    """Write down what nobody did: vouchers that expired, sales that sold out.

    Never raises for a store that is away; several workers may run it.
    """
    try:
        async with database.connection() as conn:
            await db.run(conn, "flash_sales.tell_sold_out")
        async with database.transaction(None, statement_timeout_ms=EXPIRY_TIMEOUT_MS) as conn:
            await db.run(conn, "events.tell_expired")
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("telling_failed", error=str(error))


async def forget(database: db.Database) -> None:
    """Delete events that are older than they are kept, a bounded number. Raises: Unavailable."""
    for _ in range(FORGET_PIECES_MAX):
        async with database.connection() as conn:
            if not await db.run(conn, "events.forget", keep_days=KEEP_DAYS):
                return
