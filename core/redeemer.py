"""The one way in for a redeem or a claim, whichever door it came through and whoever decides it.

A live lease is asked through the claim backend; everything else shares a commit in PostgreSQL.
What this process believes about a code is a hint: who decides says `rerouted` or `repriced` where
the hint was stale, and the request is routed once more.
"""

import time
from typing import Final
from uuid import UUID

import msgspec

import core.db as db
from core import checkouts, customers, ids, redemptions
from core.api_keys import Caller
from core.crowds import SOLD_OUT_S, Crowds
from core.errors import (
    IdempotencyMismatch,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refusal,
    Unavailable,
)
from core.flash_sales import SaleDesk, SaleRow
from core.hot import Answer, ClaimBackend, Outcome, RawAnswer
from core.live_leases import LeaseKeeper, LiveLease
from core.redemptions import NewRedemption, Priced, Redemption, Terms
from core.rules import codes
from core.shared_commits import Decision, SharedCommits
from core.terms import TermsCache

# How long a claim may wait before it is sent; then it is answered "not applied".
CLAIM_WAIT_MS: Final = 1_000
# A code is routed twice at most: once by the hint, once by what the hint was corrected to.
ROUTES_MAX: Final = 2

_CLAIM_REFUSALS: Final = {
    Outcome.SOLD_OUT: "sold_out",
    Outcome.NOT_STARTED: "not_started",
    Outcome.ENDED: "ended",
    Outcome.PAUSED: "paused",
    Outcome.BLOCKED: "blocked",
}
# What a sale that is not open answers to a claim.
_PHASE_REFUSALS: Final = {
    "scheduled": "not_started",
    "paused": "paused",
    "closed": "ended",
    "settled": "ended",
}

_encode = msgspec.json.Encoder().encode
_decode_loaded = msgspec.json.Decoder(tuple[int, int, UUID, int, int | None, UUID | None]).decode
_decode_own = msgspec.json.Decoder(tuple[int, int, str | None, str | None]).decode


class Redeemer:
    """Everything a redeem needs in one process. The parts are the caller's to close."""

    def __init__(
        self,
        *,
        database: db.Database,
        commits: SharedCommits,
        terms: TermsCache,
        keeper: LeaseKeeper,
        backend: ClaimBackend,
        desk: SaleDesk,
        crowds: Crowds,
    ) -> None:
        """Wire the parts together; nothing is opened here."""
        self._database = database
        self._commits = commits
        self._terms = terms
        self._keeper = keeper
        self._backend = backend
        self._desk = desk
        self._crowds = crowds

    async def redeem(
        self, caller: Caller, code: str, new: NewRedemption, key: str | None
    ) -> Redemption | Refusal:
        """Redeem a code for a customer.

        Idempotent on `key` across both doors, both modes and all leases.
        Refuses: the reasons of `core.errors.REFUSALS` that a voucher or sale can have.
        Raises: Invalid; NotFound; IdempotencyMismatch; Unavailable (not applied); OutcomeUnknown.
        Cost: a share of one Redis batch or of one commit; the first redeem of a code reads it.
        """
        norm = codes.normalise(code)
        if norm is None:
            raise NotFound("There is no voucher with this code.")
        redemptions.checked(new)
        live = self.live_of_code(caller, norm)
        if new.customer is not None:
            await self._meet(caller, new, live)
        if live is not None:
            answered = await self._claim(caller, live, new, key)
            if answered is not None:
                return answered
            # The lease is over: what was cached of the code while it lived is over, too.
            await self._terms.load(caller.project_id, norm)
        return await self._redeem_in_ledger(caller, norm, new, key)

    async def was_decided(
        self, caller: Caller, code: str | None, sale_id: UUID | None, key: str
    ) -> bool:
        """Whether a redeem of a code, or a claim of a sale, is in the ledger under this key."""
        async with self._database.transaction(caller.project_id, reads_only=True) as conn:
            return await db.value(
                conn, "redemptions.is_decided", bool, project_id=caller.project_id,
                code_norm=code and codes.normalise(code), sale_id=sale_id, key=key,
            )  # fmt: skip

    async def claim(
        self, caller: Caller, sale_id: UUID, new: NewRedemption, key: str | None
    ) -> Redemption | Refusal:
        """Take one unit of a sale: `redeem` of its code, and only while the sale is on.

        Refuses and raises as `redeem`.
        """
        redemptions.checked(new)
        live = self.live_of_sale(caller, sale_id)
        if new.customer is not None:
            await self._meet(caller, new, live)
        if live is not None:
            answered = await self._claim(caller, live, new, key)
            if answered is not None:
                return answered
        terms = self._terms.of_sale(caller.project_id, sale_id)
        if terms is None:
            row = await self._desk.glance(caller.project_id, sale_id)
            if row.durability == "fast" and row.phase() == "open" and row.lease_state == "open":
                raise Unavailable("Nothing was applied: this process is just joining the sale.")
            terms = await self._terms.load(caller.project_id, row.code_norm)
            if terms is None or terms.sale_id != sale_id:
                return await self._after_sale(caller, row, new, key)
        return await self._redeem_in_ledger(caller, terms.code_norm, new, key, sale_id=sale_id)

    async def _meet(self, caller: Caller, new: NewRedemption, live: LiveLease | None) -> None:
        """Write down what a request says of its customer, whatever becomes of the redemption."""
        if live is not None:
            raise Invalid("A fast sale does not take customer.", field="customer")
        async with self._database.transaction(caller.project_id) as conn:
            await customers.meet(conn, caller, new.customer_id, new.customer)

    # -- What the compiled doors took, and did not answer by themselves ---------------------------

    async def after_claim(
        self, caller: Caller, live: LiveLease, new: NewRedemption, key: str | None, raw: RawAnswer
    ) -> Redemption | Refusal:
        """Word what a plain claim was told instead of a win. Raises as `redeem`."""
        priced = redemptions.price(live.terms, new, caller.currency)
        assert not isinstance(priced, Refusal), "a plain claim was priced before"
        answered = self._judge_claim(caller, live, priced, Answer(*raw))
        if answered is not None:
            return answered
        await self._terms.load(caller.project_id, live.row.code_norm)
        return await self._redeem_in_ledger(caller, live.row.code_norm, new, key)

    async def after_redeem(
        self, caller: Caller, terms: Terms, new: NewRedemption, decision: Decision
    ) -> Redemption | Refusal | None:
        """Word what PostgreSQL decided of a plain redeem other than a win. Raises as `redeem`.

        None: it decided nothing, under terms that are no longer the voucher's.
        """
        if decision.outcome in ("repriced", "rerouted"):
            return None
        if decision.outcome == "no_sale":
            return await self._outside_sale(caller, terms)
        if decision.outcome in ("sold_out", "limit_reached"):
            self._crowds.sold_out(terms)
        priced = redemptions.price(terms, new, caller.currency)
        assert not isinstance(priced, Refusal), "a plain redeem was priced before"
        return redemptions.judged(caller, terms, priced, decision)

    def live_of_sale(self, caller: Caller, sale_id: UUID | None) -> LiveLease | None:
        """Return the live lease that a sale of the caller's project has in this process."""
        live = self._keeper.by_sale.get(sale_id) if sale_id is not None else None
        return live if live is not None and live.row.project_id == caller.project_id else None

    def live_of_code(self, caller: Caller, code: str) -> LiveLease | None:
        """Return the live lease that a code has in this process."""
        norm = codes.normalise(code)
        return self._keeper.by_code.get((caller.project_id, norm)) if norm is not None else None

    def knows(self, caller: Caller, code: str) -> bool:
        """Whether this process has met a code before."""
        norm = codes.normalise(code)
        return norm is not None and (
            self._terms.peek(caller.project_id, norm) is not None
            or (caller.project_id, norm) in self._keeper.by_code
        )

    # -- PostgreSQL decides ----------------------------------------------------------------

    async def _redeem_in_ledger(
        self,
        caller: Caller,
        norm: str,
        new: NewRedemption,
        key: str | None,
        *,
        sale_id: UUID | None = None,
    ) -> Redemption | Refusal:
        for route in range(ROUTES_MAX):
            terms, age_s = await self._terms_of(caller, norm, is_fresh=route > 0)
            if sale_id is not None and terms.sale_id != sale_id:
                row = await self._desk.glance(caller.project_id, sale_id)
                return await self._after_sale(caller, row, new, key)
            is_plain = terms.is_plain and new.order is None and new.hold_id is None
            if not is_plain and (terms.sells_alone or not terms.is_plain):
                told = await checkouts.redeem(self._database, caller, terms, new, key)
                is_stale = isinstance(told, Refusal) and age_s > redemptions.TERMS_REFUSE_S
                if told is not None and not is_stale:
                    return told
                continue
            priced = redemptions.price(terms, new, caller.currency)
            if isinstance(priced, Refusal):
                if age_s <= redemptions.TERMS_REFUSE_S:
                    return priced
                continue
            if terms.authority == "flash":
                answered = await self._while_leased(caller, norm, new, key)
                if answered is not None:
                    return answered
                continue
            crowd = await self._crowds.answer(terms, priced, key)
            if crowd is not None:
                return self._judge_crowd(caller, terms, priced, crowd)
            decision = await redemptions.decide(self._commits, terms, priced, key)
            if decision.outcome in ("repriced", "rerouted"):
                continue
            if decision.outcome == "no_sale":
                return await self._outside_sale(caller, terms)
            if decision.outcome in ("sold_out", "limit_reached"):
                self._crowds.sold_out(terms)
            return redemptions.judged(caller, terms, priced, decision)
        raise Unavailable("Nothing was applied: the voucher's terms are changing.")

    async def _terms_of(self, caller: Caller, norm: str, *, is_fresh: bool) -> tuple[Terms, float]:
        known = None if is_fresh else self._terms.peek(caller.project_id, norm)
        if known is not None:
            return known
        terms = await self._terms.load(caller.project_id, norm)
        if terms is None:
            raise NotFound("There is no voucher with this code.")
        return terms, 0.0

    async def _while_leased(
        self, caller: Caller, norm: str, new: NewRedemption, key: str | None
    ) -> Redemption | Refusal | None:
        """A lease has the voucher: ask it, or say that it cannot be asked just now.

        None: it is over, and PostgreSQL decides again.
        """
        live = self._keeper.by_code.get((caller.project_id, norm))
        if live is not None:
            answered = await self._claim(caller, live, new, key)
            if answered is not None:
                return answered
        terms = await self._terms.load(caller.project_id, norm)
        if terms is not None and terms.authority == "flash":
            raise Unavailable("Nothing was applied: the sale is being opened or settled.")
        return None

    async def _outside_sale(self, caller: Caller, terms: Terms) -> Refusal:
        """A code that only sells inside a sale was redeemed outside one: say what the sale says."""
        async with self._database.transaction(caller.project_id, reads_only=True) as conn:
            sale_id = await db.one(
                conn,
                "flash_sales.id_of_code",
                UUID,
                project_id=caller.project_id,
                voucher_id=terms.voucher_id,
            )
        assert sale_id is not None, "a voucher that a sale made has a sale"
        return await self._refusal_of(await self._desk.glance(caller.project_id, sale_id))

    async def _refusal_of(self, row: SaleRow) -> Refusal:
        outcome = _PHASE_REFUSALS.get(row.phase())
        if row.phase() == "open" and row.lease_id is None and row.free_units <= 0:
            # What a fence wrote off is not sold again: there is nothing left to arm.
            outcome = "sold_out"
        if outcome is None:
            raise Unavailable("Nothing was applied: the sale is being opened or recovered.")
        return redemptions.refusal(outcome)

    async def _after_sale(
        self, caller: Caller, row: SaleRow, new: NewRedemption, key: str | None
    ) -> Redemption | Refusal:
        """The sale is not on: a retry still gets its redemption, anything else the reason."""
        if key is None:
            return await self._refusal_of(row)
        terms = await self._terms.load(caller.project_id, row.code_norm)
        assert terms is not None, "a voucher is never deleted"
        priced = redemptions.price(terms, new, caller.currency)
        if isinstance(priced, Refusal):
            return priced
        async with self._database.transaction(caller.project_id, reads_only=True) as conn:
            stored = await db.one(
                conn,
                "redemptions.by_key",
                redemptions.Keyed,
                project_id=caller.project_id,
                voucher_id=row.voucher_id,
                key=key,
            )
        if stored is None:
            return await self._refusal_of(row)
        if stored.fingerprint != priced.fingerprint:
            raise IdempotencyMismatch
        return redemptions.from_row(caller, stored)

    # -- The crowd after a sell-out ---------------------------------------------------------

    def _judge_crowd(
        self, caller: Caller, terms: Terms, priced: Priced, raw: Answer
    ) -> Redemption | Refusal:
        if raw.outcome == Outcome.REPLAYED:
            return self._replayed_record(caller, terms, priced, raw)
        if raw.outcome == Outcome.MISMATCH:
            raise IdempotencyMismatch
        if raw.outcome == Outcome.CUSTOMER_LIMIT:
            return _customer_limit(caller, (raw.detail or b"").decode())
        return redemptions.refusal("sold_out" if terms.sale_id else "limit_reached")

    # -- Redis decides ----------------------------------------------------------------------

    async def _claim(
        self, caller: Caller, live: LiveLease, new: NewRedemption, key: str | None
    ) -> Redemption | Refusal | None:
        """Ask a lease. None: it has nothing to say to this request, PostgreSQL has."""
        terms = live.terms
        priced = redemptions.price(terms, new, caller.currency)
        if isinstance(priced, Refusal):
            return priced
        if key is None and live.sold_out_until > time.monotonic():
            return redemptions.refusal("sold_out")
        raw = Answer(
            *await self._backend.claim(
                live.slot,
                key,
                priced.fingerprint.hex(),
                new.customer_id,
                _encode(
                    (priced.order_value_minor, priced.discount_minor, new.order_id, priced.metadata)
                ),
                CLAIM_WAIT_MS,
            )
        )
        return self._judge_claim(caller, live, priced, raw)

    def _judge_claim(
        self, caller: Caller, live: LiveLease, priced: Priced, raw: Answer
    ) -> Redemption | Refusal | None:
        match raw.outcome:
            case Outcome.WON:
                return self._won(
                    caller, live, priced, raw, priced.order_value_minor, priced.discount_minor
                )
            case Outcome.SOLD_OUT:
                live.sold_out_until = time.monotonic() + SOLD_OUT_S
                return redemptions.refusal("sold_out")
            case Outcome.REPLAYED if raw.seq:
                order_value, discount, _, _ = _decode_own(raw.detail or b"")
                return self._won(caller, live, priced, raw, order_value, discount)
            case Outcome.REPLAYED:
                return self._replayed_record(caller, live.terms, priced, raw)
            case Outcome.MISMATCH:
                raise IdempotencyMismatch
            case Outcome.CUSTOMER_LIMIT:
                reference = (raw.detail or b"").decode()
                if reference.isdigit():
                    won = ids.win_id(live.row.tag, live.row.lease_id, int(reference))
                    reference = ids.format_id("rdm", won)
                return _customer_limit(caller, reference)
            case Outcome.NOT_STARTED | Outcome.ENDED if not live.terms.sale_only:
                return None
            case Outcome.OVERLOADED | Outcome.BUSY:
                raise Unavailable(code="overloaded")
            case Outcome.UNAVAILABLE | Outcome.EXPIRED | Outcome.FENCED | Outcome.ASK:
                raise Unavailable("Nothing was applied: the sale's Redis is away or recovering.")
            case Outcome.UNKNOWN:
                raise OutcomeUnknown
        return redemptions.refusal(_CLAIM_REFUSALS[Outcome(raw.outcome)])

    def _won(
        self,
        caller: Caller,
        live: LiveLease,
        priced: Priced,
        raw: Answer,
        order_value_minor: int,
        discount_minor: int,
    ) -> Redemption:
        row = live.row
        return redemptions.answer(
            caller,
            live.terms,
            priced,
            redemption_number=ids.win_number(row.tag, live.lease_bytes, raw.seq),
            seq=row.seq_base + raw.seq,
            remaining=raw.remaining,
            redeemed_at=redemptions.instant_of(raw.at_ms),
            order_value_minor=order_value_minor,
            discount_minor=discount_minor,
            sale_id=row.sale_id,
        )

    def _replayed_record(
        self, caller: Caller, terms: Terms, priced: Priced, raw: Answer
    ) -> Redemption:
        """A redemption that PostgreSQL told Redis of: its figures are in the record."""
        order_value, discount, redemption_id, seq, remaining, sale_id = _decode_loaded(
            raw.detail or b""
        )
        return redemptions.answer(
            caller,
            terms,
            priced,
            redemption_number=redemption_id.int,
            seq=seq,
            remaining=remaining,
            redeemed_at=redemptions.instant_of(raw.at_ms),
            order_value_minor=order_value,
            discount_minor=discount,
            sale_id=sale_id,
        )


def _customer_limit(caller: Caller, reference: str) -> Refusal:
    extra = {"redemption_id": reference} if caller.is_secret and reference else {}
    return redemptions.refusal("customer_limit_reached", **extra)
