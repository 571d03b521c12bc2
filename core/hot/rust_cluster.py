"""The compiled claim backend towards a cluster: one batcher for each master that serves something.

A lease belongs to one slot, so to one master. When the slot moves, or a replica takes a master's
place, the lease's claims go through another batcher, which finds another process there: it seals,
and PostgreSQL judges as after any change of Redis. The marks are one file for all batchers, so a
lease takes its mark along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from os import PathLike
from typing import Any, Final

import structlog
from redis.exceptions import RedisError
from vauchflow_hotpath import Marks

from core.endings import end
from core.hot import QUEUE_MAX, Outcome, RawAnswer, SlotStatus, Status
from core.hot.nodes import LOOK_S, Cluster, url_of
from core.hot.rust import Door, RustBackend

_UNAVAILABLE: Final[RawAnswer] = (int(Outcome.UNAVAILABLE), 0, 0, 0, None)
# Why a slot was sealed, where that says something of the lease.
_DOUBTS: Final = ("fenced", "seq_not_above_mark")
_log = structlog.get_logger("vauchflow.rust_cluster")


class _Route:
    """Where the claims of one slot go."""

    __slots__ = ("address", "carried", "inner", "is_lease", "run_id", "subject", "target", "terms")

    def __init__(self, target: str, subject: str, run_id: str, is_lease: bool) -> None:
        """Go nowhere yet. `carried`: why it was sealed at the master it has come from."""
        self.target, self.subject, self.run_id, self.is_lease = target, subject, run_id, is_lease
        self.address: str | None = None
        self.inner = 0
        self.carried: str | None = None
        self.terms: tuple[Any, ...] | None = None


class RustCluster:
    """Make it on a running loop, one a worker process; see `ClaimBackend` for what it promises."""

    def __init__(
        self, url: str, *, marks_path: str | PathLike[str] | None = None, queue_max: int = QUEUE_MAX
    ) -> None:
        """Take the marks file and begin to look for the masters.

        `queue_max` bounds the queue of each. Raises: as `RustBackend`.
        """
        self._loop = asyncio.get_running_loop()
        self._url, self._queue_max = url, queue_max
        self._nodes = Cluster(url)
        self._marks = Marks(marks_path)
        self._backends: dict[str, RustBackend] = {}
        self._routes: dict[int, _Route] = {}
        self._next_slot = 0
        self._task = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        """Follow the slots to where they are."""
        while True:
            try:
                await self._nodes.look()
                for slot in list(self._routes):
                    self._follow(self._routes[slot])
                await self._leave_unused()
            except (RedisError, OSError) as error:
                _log.debug("cluster_unseen", error=str(error))
            except Exception:
                _log.exception("cluster_broken")
            await asyncio.sleep(LOOK_S)

    def _follow(self, route: _Route) -> None:
        address = self._nodes.address_of(route.target)
        if address is None or address == route.address:
            return
        if route.address is not None:
            left = self._backends[route.address]
            if route.is_lease and route.carried is None:
                # What was doubted there is doubted here; and without any doubt, it is judged.
                was_sealed = left.status().slots[route.inner].sealed_reason
                route.carried = was_sealed if was_sealed in _DOUBTS else "asked"
            left.seal(route.inner)
            left.leave_slot(route.inner)
            _log.warning("slot_moved", target=route.target, now=address, was=route.address)
        backend = self._backends.get(address)
        if backend is None:
            url = url_of(self._url, address)
            backend = RustBackend(url, marks=self._marks, queue_max=self._queue_max)
            self._backends[address] = backend
        if route.is_lease:
            route.inner = backend.open_lease(route.target, route.run_id)
        else:
            route.inner = backend.open_crowd(route.target, route.subject)
        route.address = address
        if route.carried is not None:
            backend.seal(route.inner)
        if route.terms is not None:
            backend.set_terms(route.inner, *route.terms)

    async def _leave_unused(self) -> None:
        for address in list(self._backends):
            # Looked at one by one: while one is closed, a lease may be opened at the next.
            if all(route.address != address for route in self._routes.values()):
                await self._backends.pop(address).aclose()

    # Slots ---------------------------------------------------------------------------------------

    def open_lease(self, lease_id: str, run_id: str) -> int:
        self._marks.take(lease_id)
        return self._open(_Route(lease_id, lease_id, run_id, True))

    def open_crowd(self, voucher_id: str, lineage: str) -> int:
        return self._open(_Route(voucher_id, lineage, "", False))

    def _open(self, route: _Route) -> int:
        for slot, known in self._routes.items():
            if (known.target, known.subject) == (route.target, route.subject):
                return slot
        slot = self._next_slot
        self._next_slot += 1
        self._routes[slot] = route
        self._follow(route)
        return slot

    def _given(self, slot: int) -> _Route | None:
        if not 0 <= slot < self._next_slot:
            raise ValueError("no such slot")
        return self._routes.get(slot)

    def _at(self, slot: int) -> tuple[RustBackend, _Route] | None:
        """Return the batcher of an open slot; None where its master is not known yet."""
        route = self._given(slot)
        if route is None or route.address is None:
            return None
        return self._backends[route.address], route

    def reopen(self, slot: int, run_id: str) -> None:
        route = self._given(slot)
        if route is None:
            return
        route.run_id, route.carried = run_id, None
        if route.address is not None:
            self._backends[route.address].reopen(route.inner, run_id)

    def seal(self, slot: int) -> int:
        route = self._given(slot)
        if route is None:
            return 0
        if route.address is not None:
            return self._backends[route.address].seal(route.inner)
        route.carried = route.carried or "asked"
        return self._marks.get(self._marks.take(route.target)) if route.is_lease else 0

    def close_slot(self, slot: int) -> None:
        route = self._given(slot)
        if route is None:
            return
        if route.address is not None:
            self._backends[route.address].close_slot(route.inner)
        elif route.is_lease:
            self._marks.free(self._marks.take(route.target))
        del self._routes[slot]

    def forget_sold_out(self, slot: int) -> None:
        found = self._at(slot)
        if found is not None:
            found[0].forget_sold_out(found[1].inner)

    def keep_marks(self, lease_ids: Sequence[str]) -> None:
        here = [route.target for route in self._routes.values() if route.is_lease]
        self._marks.keep([*here, *lease_ids])

    def set_terms(self, slot: int, *terms: Any) -> None:
        """Say with what plain claims of a lease are answered, wherever it goes."""
        route = self._given(slot)
        if route is None:
            return
        route.terms = terms
        if route.address is not None:
            self._backends[route.address].set_terms(route.inner, *terms)

    def learn(self, door: Door, path: str, token: bytes, slot: int) -> None:
        """Let a door take the plain claims of a slot that has its terms.

        After a slot has moved the door asks again: what it knew leads to a slot that is closed.
        """
        found = self._at(slot)
        if found is not None:
            found[0].learn(door, path, token, found[1].inner)

    # Claims --------------------------------------------------------------------------------------

    def claim(
        self,
        slot: int,
        key: str | None,
        fingerprint: str,
        customer: str | None,
        payload: bytes,
        deadline_ms: int,
    ) -> asyncio.Future[RawAnswer]:
        found = self._at(slot)
        if found is None:
            refused: asyncio.Future[RawAnswer] = self._loop.create_future()
            refused.set_result(_UNAVAILABLE)
            return refused
        backend, route = found
        return backend.claim(route.inner, key, fingerprint, customer, payload, deadline_ms)

    def status(self) -> Status:
        told = {address: backend.status() for address, backend in self._backends.items()}
        slots = {}
        for slot, route in self._routes.items():
            inner = None
            if route.address is not None:
                inner = told[route.address].slots[route.inner]
            reason = route.carried or (inner.sealed_reason if inner is not None else None)
            slots[slot] = SlotStatus(
                route.target,
                reason is not None,
                reason,
                inner.mark if inner is not None else 0,
                inner.run_id if inner is not None else None,
            )
        each = list(told.values())
        return Status(
            connected=any(one.connected for one in each),
            run_id=None,
            dead=any(one.dead for one in each),
            queued=sum(one.queued for one in each),
            in_flight=sum(one.in_flight for one in each),
            batches=sum(one.batches for one in each),
            items=sum(one.items for one in each),
            wakeups=sum(one.wakeups for one in each),
            last_error=next((one.last_error for one in each if one.last_error), None),
            marks_lost=self._marks.were_lost,
            slots=slots,
        )

    async def aclose(self) -> None:
        await end(self._task)
        for backend in self._backends.values():
            await backend.aclose()
        await self._nodes.aclose()
