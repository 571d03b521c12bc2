"""The clock's hand: opens and closes sales, re-arms, fills batches and pools, ends holds.

Beside that it keeps looking at the books (`core.verifications`).

Every step is idempotent and conditional in PostgreSQL, so several workers may run; a step that
fails is tried again at the next look.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
import redis.exceptions
import structlog

import core.db as db
from core import (
    analytics,
    attributions,
    batches,
    billing,
    blocks,
    campaigns,
    conversions,
    deletions,
    deliveries,
    detections,
    events,
    holds,
    notices,
    overviews,
    publications,
    signals,
    verifications,
)
from core.endings import end
from core.errors import Fault, OutcomeUnknown, Refusal, Unavailable
from core.flash_sales import SaleDesk
from core.gift_cards import ledger
from core.gift_cards.vault import Vault
from core.hot.nodes import connect
from core.mails import Mailer
from core.settings import Settings

# The start itself is judged by the store's clock inside the armed sale; this only has to come
# before it. The end likewise: after it nothing is sold, closed or not.
LOOK_S: Final = 0.5
ARM_BEFORE: Final = timedelta(seconds=60)
# The contract keeps an idempotency key for 24 hours at least.
KEEP_IDEMPOTENCY: Final = timedelta(days=7)
# For whoever looks into who was logged in when.
KEEP_SESSIONS: Final = timedelta(days=30)
TIDY_EVERY: Final = 600

_log = structlog.get_logger("vauchflow.worker")


class DueSale(msgspec.Struct, frozen=True):
    """A sale that something is to be done about."""

    project_id: UUID
    sale_id: UUID
    durability: str
    status: str
    is_over: bool
    lease_id: UUID | None
    lease_state: str | None
    free_units: int


async def run(settings: Settings) -> None:
    """Look for work until cancelled."""
    database = await db.Database.open(
        settings.database_dsn("worker"),
        size_min=0,
        size_max=settings.pool_size_max,
        application_name="vauchflow-worker",
        **({} if settings.prepared_statements else {"statement_cache_size": 0}),
    )
    client = connect(settings.redis_url)
    desk = SaleDesk(database, client, settings)
    vault = Vault(settings.secret)
    teller = blocks.Teller(database, client)
    mailer = Mailer(settings)
    mailing = asyncio.create_task(mailer.run())
    books = asyncio.create_task(verifications.keep(settings, database))
    filling = asyncio.create_task(batches.run(database))
    pooling = asyncio.create_task(publications.run(database))
    publishing = asyncio.create_task(deliveries.publish_forever(database))
    adding = asyncio.create_task(analytics.run(database))
    counting = asyncio.create_task(overviews.run(database))
    suspecting = asyncio.create_task(detections.run(database))
    sending = asyncio.create_task(deliveries.Courier(database, settings).run())
    try:
        looks = 0
        while True:
            await look(desk)
            await teller.look()
            await holds.sweep(database)
            await campaigns.keep_time(database)
            await ledger.sweep(database)
            await attributions.sweep(database)
            await conversions.sweep(database, vault)
            await deletions.sweep(database, desk)
            await events.tell_what_time_brings(database)
            if looks % TIDY_EVERY == 0:
                await tidy(database)
                await blocks.forget(database)
                await billing.finalize(database, billing.ByHand(), datetime.now(UTC))
                await notices.tell(database, mailer, datetime.now(UTC))
            looks += 1
            await asyncio.sleep(LOOK_S)
    finally:
        await end(books)
        await end(filling)
        await end(pooling)
        await end(publishing)
        await end(adding)
        await end(counting)
        await end(suspecting)
        await end(sending)
        await mailer.drain()
        await end(mailing)
        await client.aclose()
        await database.close()


async def look(desk: SaleDesk) -> None:
    """Do what is due now. Never raises for a store that is away."""
    try:
        async with desk.database.connection(reads_only=True) as conn:
            due = await db.many(conn, "reconciler.due_sales", DueSale, arm_before=ARM_BEFORE)
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("look_failed", error=str(error))
        return
    for sale in due:
        try:
            await _do(desk, sale)
        except (Fault, redis.exceptions.RedisError, OSError) as error:
            _log.warning("sale_stuck", sale=str(sale.sale_id), error=str(error))
        except Exception:
            _log.exception("sale_broken", sale=str(sale.sale_id))


async def _do(desk: SaleDesk, sale: DueSale) -> None:
    if sale.is_over:
        await desk.close(sale.project_id, sale.sale_id)
        _log.info("sale_closed", sale=str(sale.sale_id))
        return
    if sale.lease_id is not None and sale.lease_state == "open" and sale.status == "open":
        await desk.leases.grow(sale.project_id, sale.lease_id)
        return
    refused = await desk.open(sale.project_id, sale.sale_id, by_hand=False, waits=False)
    if isinstance(refused, Refusal):
        if refused.code != "sold_out":
            _log.warning("sale_not_opened", sale=str(sale.sale_id), detail=refused.detail)
        return
    _log.info("sale_armed", sale=str(sale.sale_id), durability=sale.durability)


async def tidy(database: db.Database) -> None:
    """Forget what nobody needs any more."""
    try:
        async with database.connection() as conn:
            await db.run(conn, "reconciler.forget_idempotency_keys", keep=KEEP_IDEMPOTENCY)
            await db.run(conn, "reconciler.forget_workers")
            await db.run(conn, "lookups.forget")
            await db.run(conn, "sessions.forget", keep=KEEP_SESSIONS)
        await deliveries.forget(database)
        await analytics.forget(database)
        await signals.forget(database)
        await events.forget(database)
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("tidy_failed", error=str(error))
