"""The crowd of a sold-out voucher, answered from Redis so that it never reaches PostgreSQL.

Once PostgreSQL has said sold out, this process puts the facts into Redis (every key with its
answer, every customer's count) and renews them while people ask. A fact is good for one second
after PostgreSQL last agreed; anything that may have freed a unit raises the voucher's version,
and older facts are void. Losing Redis only means that PostgreSQL is asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

import core.db as db
from core.endings import end
from core.errors import OutcomeUnknown, Unavailable
from core.hot import Answer, ClaimBackend, Outcome, crowds, leases
from core.leases import Leases, redis_errors
from core.redemptions import Priced, Terms

# Facts are fresh for a second; three probes in that time, so that one may be late.
RENEW_S: Final = 0.3
# A process without a question for so long stops renewing; the facts fade by themselves.
IDLE_S: Final = 5.0
# For so long after a "sold out" this process says it again by itself, to requests without a key.
SOLD_OUT_S: Final = 0.25
# An answer from the crowd's script is a read of well under a millisecond; who has waited for a
# third of a second asks PostgreSQL instead.
ASK_WAIT_MS: Final = 300
# Sold-out vouchers whose crowd one process keeps; beyond it PostgreSQL is asked.
CROWDS_MAX: Final = 64

_log = structlog.get_logger("vauchflow.crowds")


class _Facts(msgspec.Struct):
    crowd_version: int
    lineage: str
    per_customer_limit: int | None
    is_sold_out: bool


class _Crowd:
    __slots__ = ("asked_at", "is_served", "slot", "sold_out_until", "terms")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.slot: int | None = None
        self.is_served = False
        self.sold_out_until = 0.0
        self.asked_at = time.monotonic()


class Crowds:
    """The sold-out vouchers of one process."""

    def __init__(self, database: db.Database, backend: ClaimBackend, lease_desk: Leases) -> None:
        """Start empty; everything given is the caller's to close, after `stop`."""
        self._database = database
        self._backend = backend
        self._leases = lease_desk
        self._crowds: dict[UUID, _Crowd] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Stop renewing."""
        await asyncio.gather(*(end(task) for task in list(self._tasks)))

    def has(self, voucher_id: UUID) -> bool:
        """Whether a crowd waits at this voucher, which PostgreSQL said is sold out."""
        return voucher_id in self._crowds

    def sold_out(self, terms: Terms) -> None:
        """Note that PostgreSQL has just said sold out; begin to keep this voucher's crowd."""
        if terms.campaign_id is not None:
            # A campaign's limits move without the voucher's version: PostgreSQL is asked.
            return
        crowd = self._crowds.get(terms.voucher_id)
        if crowd is None:
            if len(self._crowds) >= CROWDS_MAX:
                return
            crowd = self._crowds[terms.voucher_id] = _Crowd(terms)
            task = asyncio.get_running_loop().create_task(self._keep(terms.voucher_id, crowd))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        crowd.terms = terms
        crowd.sold_out_until = time.monotonic() + SOLD_OUT_S

    async def answer(self, terms: Terms, priced: Priced, key: str | None) -> Answer | None:
        """Answer one request of a crowd; None when PostgreSQL must be asked."""
        crowd = self._crowds.get(terms.voucher_id)
        if crowd is None or crowd.terms.terms_version != terms.terms_version:
            return None
        now = time.monotonic()
        crowd.asked_at = now
        if key is None and not terms.needs_customer and crowd.sold_out_until > now:
            return Answer(Outcome.SOLD_OUT, 0, 0, 0, None)
        if not crowd.is_served or crowd.slot is None:
            return None
        raw = await self._backend.claim(
            crowd.slot,
            key,
            priced.fingerprint.hex(),
            priced.new.customer_id,
            b"",
            ASK_WAIT_MS,
        )
        if raw[0] in (
            Outcome.SOLD_OUT,
            Outcome.REPLAYED,
            Outcome.MISMATCH,
            Outcome.CUSTOMER_LIMIT,
        ):
            return Answer(*raw)
        return None

    async def _keep(self, voucher_id: UUID, crowd: _Crowd) -> None:
        try:
            while time.monotonic() - crowd.asked_at < IDLE_S:
                try:
                    if not await self._probe(voucher_id, crowd):
                        return
                except (Unavailable, OutcomeUnknown, redis_errors, OSError) as error:
                    # Without a probe the facts go stale within the second and PostgreSQL decides.
                    _log.debug("probe_failed", error=str(error))
                await asyncio.sleep(RENEW_S)
        except Exception:
            _log.exception("crowd_broken")
        finally:
            self._crowds.pop(voucher_id, None)
            if crowd.slot is not None:
                self._backend.close_slot(crowd.slot)

    async def _probe(self, voucher_id: UUID, crowd: _Crowd) -> bool:
        """Ask PostgreSQL once and renew the facts, put them or clear them. False: not sold out."""
        project_id = crowd.terms.project_id
        async with self._database.transaction(project_id, reads_only=True) as conn:
            facts = await db.one(
                conn,
                "redemptions.crowd_facts",
                _Facts,
                project_id=project_id,
                voucher_id=voucher_id,
                sale_id=crowd.terms.sale_id,
            )
        at = str(voucher_id)
        redis = self._leases.redis
        if facts is None or not facts.is_sold_out:
            crowd.is_served = False
            if facts is not None:
                await crowds.clear(redis, at, facts.crowd_version)
            return False
        if crowd.slot is None:
            crowd.slot = self._backend.open_crowd(at, facts.lineage)
        if not await crowds.renew(redis, at, facts.crowd_version):
            await crowds.put(
                redis,
                at,
                facts.lineage,
                facts.crowd_version,
                self._records(project_id, voucher_id),
                self._customers(project_id, voucher_id, facts),
                customer_limit=facts.per_customer_limit or 0,
            )
        crowd.is_served = True
        return True

    def _records(self, project_id: UUID, voucher_id: UUID) -> AsyncIterator[leases.Record]:
        return self._leases.records(project_id, voucher_id)

    def _customers(self, project_id: UUID, voucher_id: UUID, facts: _Facts) -> Any:
        if facts.per_customer_limit is None:
            return ()
        return self._leases.customers(project_id, voucher_id)
