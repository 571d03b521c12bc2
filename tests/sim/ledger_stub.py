"""PostgreSQL in the simulation: each function one commit, with answers that get lost or come late.

`core/db/schema.sql` is the original of every rule here, and `tests/db` holds that one to it.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec

from core.errors import OutcomeUnknown, Unavailable
from tests.sim.machine import EPOCH, Actor, wall_time


@dataclass
class SimRow:
    """A redemption."""

    key: str
    customer: str | None


@dataclass
class SimMember:
    """A worker registered for a lease."""

    node_id: str
    registered_at: datetime
    seen_at: datetime
    sealed_run_id: str | None = None
    mark: int | None = None
    serving_size: int = 0


@dataclass
class SimGrant:
    """A lease's row, its progress and who serves it."""

    lease_id: Any
    tag: int
    size: int
    open_to: int
    backlog_max: int
    run_id: str
    state: str = "arming"
    judged: int = 0
    past_run_ids: list[str] = field(default_factory=list)
    returned: int = 0
    last_id: str = "0-0"
    accounted: int = 0
    offsets: list[int] = field(default_factory=list)
    rows: dict[int, SimRow] = field(default_factory=dict)
    members: dict[str, SimMember] = field(default_factory=dict)


class SimLedger:
    """Stands in for `core.db`, for its connections and for the functions behind its statements."""

    def __init__(self, dice: random.Random, facts: dict[str, Any], limit: int) -> None:
        self.dice = dice
        self.facts = facts
        self.limit = limit
        self.leased = 0
        self.grants: dict[Any, SimGrant] = {}
        self.keys: dict[str, tuple[Any, int]] = {}
        self.held_for: list[str] = []
        self.quarantined: list[tuple[Any, int, str]] = []
        self.away_until = 0.0
        self.faults = 0.0
        self._late: set[asyncio.Task[None]] = set()

    # -- Stands in for core.db -----------------------------------------------------------------

    def connection_of(self, actor: Actor) -> "SimDatabase":
        return SimDatabase(actor)

    async def one(self, conn: Actor, name: str, _struct: Any, **given: Any) -> Any:
        found = await self._call(conn, name, given)
        return _filled(_struct, found)

    async def many(self, conn: Actor, name: str, _struct: Any, **given: Any) -> list[Any]:
        return [_filled(_struct, row) for row in await self._call(conn, name, given)]

    async def value(self, conn: Actor, name: str, _struct: Any, **given: Any) -> Any:
        return await self._call(conn, name, given)

    async def run(self, conn: Actor, name: str, **given: Any) -> None:
        await self._call(conn, name, given)

    async def _call(self, actor: Actor, name: str, given: dict[str, Any]) -> Any:
        """Run a statement, unless it is lost on its way there, or its answer on its way back."""
        act = getattr(self, name.replace(".", "_"))
        await actor.wait()
        if asyncio.get_running_loop().time() < self.away_until:
            raise Unavailable("PostgreSQL is away")
        fault = self.dice.random() if self.dice.random() < self.faults else 1.0
        if fault < 0.3:
            raise Unavailable("not sent")
        if fault < 0.5:
            task = asyncio.get_running_loop().create_task(self._run_late(act, given))
            self._late.add(task)
            raise OutcomeUnknown
        answer = act(**given)
        if fault < 0.8:
            raise OutcomeUnknown
        await actor.wait()
        return answer

    async def _run_late(self, act: Any, given: dict[str, Any]) -> None:
        await asyncio.sleep(self.dice.random() * 3)
        act(**given)

    # -- The sale ------------------------------------------------------------------------------

    def out(self) -> SimGrant | None:
        return next((one for one in self.grants.values() if one.state != "settled"), None)

    def arm(self, lease_id: Any, run_id: str, backlog_max: int) -> SimGrant | None:
        size = self.limit - self.leased
        if size <= 0 or self.out() is not None:
            return None
        self.leased += size
        grant = SimGrant(lease_id, len(self.grants) + 1, size, size, backlog_max, run_id)
        self.grants[lease_id] = grant
        return grant

    def grow(self, more: int) -> None:
        """More stock for the sale, and `vf.grow_lease`."""
        self.limit += more
        grant = self.out()
        if grant is not None and grant.state == "open":
            self.leased += more
            grant.size += more
            grant.open_to = grant.size

    # -- What workers call ---------------------------------------------------------------------

    def lease_workers_live(self) -> list[dict[str, Any]]:
        return [
            self.facts
            | {
                "lease_id": one.lease_id,
                "tag": one.tag,
                "state": one.state,
                "size": one.size,
                "seq_base": 0,
                "run_id": one.run_id,
                "judged": one.judged,
                "code_norm": "SALE",
                "is_held": False,
            }
            for one in self.grants.values()
            if one.state != "settled"
        ]

    def lease_workers_beat(self, **_given: Any) -> None:
        pass

    def lease_workers_leave(self, **_given: Any) -> None:
        pass

    def lease_workers_seen(self, worker_id: str) -> None:
        for grant in self.grants.values():
            if worker_id in grant.members:
                grant.members[worker_id].seen_at = wall_time()

    def lease_workers_serve(self, lease_id: Any, worker_id: str, size: int) -> None:
        member = self.grants[lease_id].members.get(worker_id)
        if member is not None:
            member.serving_size, member.seen_at = size, wall_time()

    def lease_workers_join(
        self, project_id: Any, lease_id: Any, worker_id: str, node_id: str, run_id: str
    ) -> dict[str, bool]:
        grant = self.grants[lease_id]
        known = grant.members.get(worker_id)
        if grant.state not in ("open", "draining") or grant.run_id != run_id:
            return {"joined": False, "was_registered": known is not None}
        registered_at = known.registered_at if known is not None else wall_time()
        grant.members[worker_id] = SimMember(node_id, registered_at, wall_time())
        return {"joined": True, "was_registered": known is not None}

    def lease_workers_seal(
        self,
        project_id: Any,
        lease_id: Any,
        worker_id: str,
        node_id: str,
        run_id: str,
        judged: int,
        mark: int | None,
        seen_at: datetime | None,
    ) -> bool:
        grant = self.grants[lease_id]
        if grant.judged != judged:
            return False
        member = grant.members.get(worker_id)
        if seen_at is None and member is None:
            member = grant.members[worker_id] = SimMember(node_id, wall_time(), wall_time())
        elif member is None or (seen_at is not None and member.seen_at != seen_at):
            return False
        member.sealed_run_id, member.mark, member.seen_at = run_id, mark, wall_time()
        return True

    def lease_workers_unseal(
        self, project_id: Any, lease_id: Any, worker_id: str, run_id: str, judged: int
    ) -> bool:
        grant = self.grants[lease_id]
        is_same = (grant.run_id, grant.judged) == (run_id, judged)
        member = grant.members.get(worker_id)
        if grant.state not in ("open", "draining") or not is_same or member is None:
            return False
        member.sealed_run_id, member.mark, member.seen_at = None, None, wall_time()
        return True

    def lease_workers_unsealed_neighbours(
        self, lease_id: Any, node_id: str, worker_id: str, run_id: str
    ) -> list[dict[str, Any]]:
        return [
            {"worker_id": name, "seen_at": one.seen_at}
            for name, one in self.grants[lease_id].members.items()
            if one.node_id == node_id and name != worker_id and one.sealed_run_id != run_id
        ]

    def lease_workers_judge(
        self,
        project_id: Any,
        lease_id: Any,
        run_id_old: str,
        run_id_new: str,
        issued: int | None,
        deadline: timedelta,
    ) -> dict[str, Any]:
        grant = self.grants[lease_id]
        if grant.state in ("settled", "fenced") or grant.run_id != run_id_old:
            return {"outcome": grant.state, "run_id": grant.run_id}
        sealed = [one for one in grant.members.values() if one.sealed_run_id == run_id_new]
        others = [one for one in grant.members.values() if one.sealed_run_id != run_id_new]
        silent = [one for one in others if one.seen_at <= wall_time() - deadline]
        unknown = len(silent) + sum(one.mark is None for one in sealed)
        waiting = len(others) - len(silent)
        mark = max((one.mark or 0 for one in sealed), default=0)
        top = max(grant.rows, default=0)
        if unknown or issued is None or issued < top or (not waiting and issued < mark):
            grant.state, grant.judged = "fenced", grant.judged + 1
            return {"outcome": "fenced", "run_id": grant.run_id}
        if waiting:
            return {"outcome": "waiting", "run_id": grant.run_id}
        if run_id_new != grant.run_id:
            grant.past_run_ids.append(grant.run_id)
        grant.run_id, grant.judged = run_id_new, grant.judged + 1
        for member in grant.members.values():
            member.sealed_run_id = member.mark = None
        return {"outcome": "intact", "run_id": run_id_new}

    # -- What reconcilers call -----------------------------------------------------------------

    def reconciler_leases(self) -> list[dict[str, Any]]:
        return [
            self.facts
            | {
                "lease_id": one.lease_id,
                "tag": one.tag,
                "state": one.state,
                "size": one.size,
                "open_to": one.open_to,
                "backlog_max": one.backlog_max,
                "run_id": one.run_id,
                "judged": one.judged,
                "armed_at": EPOCH,
                "last_id": one.last_id,
                "accounted": one.accounted,
                "is_paused": False,
                "starts_at": None,
                "ends_at": None,
                "now": wall_time(),
            }
            for one in self.grants.values()
            if one.state != "settled"
        ]

    def reconciler_progress(self, lease_id: Any) -> dict[str, Any]:
        grant = self.grants[lease_id]
        return {"last_id": grant.last_id, "accounted": grant.accounted}

    def reconciler_rolled_back(self, **_given: Any) -> list[Any]:
        return []

    def reconciler_fence(self, lease_id: Any, reason: str) -> None:
        grant = self.grants[lease_id]
        if grant.state in ("open", "draining"):
            grant.state, grant.judged = "fenced", grant.judged + 1

    def reconciler_drop_workers(self, lease_id: Any) -> None:
        self.grants[lease_id].members.clear()

    def flash_sales_clock(self) -> datetime:
        return wall_time()

    def reconciler_seals(self, lease_id: Any, silent_after: timedelta) -> dict[str, int]:
        members = self.grants[lease_id].members.values()
        unsealed = [one for one in members if one.sealed_run_id is None]
        silent = [one for one in unsealed if one.seen_at <= wall_time() - silent_after]
        unknown = [one for one in members if one.sealed_run_id is not None and one.mark is None]
        return {
            "waiting": len(unsealed) - len(silent),
            "silent": len(silent) + len(unknown),
            "mark": max((one.mark or 0 for one in members), default=0),
        }

    def reconciler_settle_wins(
        self, lease_id: Any, run_id: str, judged: int, from_id: str, to_id: str, **arrays: Any
    ) -> dict[str, Any]:
        grant = self.grants[lease_id]
        nothing = dict.fromkeys(("inserted", "replayed", "same_key", "quarantined", "accounted"), 0)
        if grant.state == "settled":
            return {"outcome": "closed", **nothing}
        is_other = grant.state != "fenced" and (run_id, judged) != (grant.run_id, grant.judged)
        if run_id in grant.past_run_ids or is_other or grant.last_id != from_id:
            return {"outcome": "stale", **nothing}
        told = dict(nothing)
        for seq, key, customer in zip(
            arrays["seqs"], arrays["keys"], arrays["customers"], strict=True
        ):
            there = grant.rows.get(seq)
            if there is not None and there.key == key:
                told["replayed"] += 1
            elif there is None and key in self.keys and seq <= grant.open_to:
                told["same_key"] += 1
            elif there is not None or seq > grant.open_to:
                told["quarantined"] += 1
                self.quarantined.append((lease_id, seq, key))
            else:
                told["inserted"] += 1
                grant.rows[seq] = SimRow(key, customer)
                self.keys[key] = (lease_id, seq)
        grant.accounted = max([grant.accounted, *arrays["seqs"], *arrays["poison"]])
        grant.last_id = to_id
        grant.offsets.append(int(to_id.partition("-")[0]))
        return {"outcome": "applied", **told, "accounted": grant.accounted}

    def reconciler_settle_plain(self, poison: Any = (), **given: Any) -> dict[str, Any]:
        columns = ("seqs", "keys", "customers")
        return self.reconciler_settle_wins(
            **given | {name: _elements(given[name], given["seqs"]) for name in columns},
            poison=poison,
        )

    def reconciler_settle_lease(
        self,
        project_id: Any,
        lease_id: Any,
        state: str,
        run_id: str | None,
        open_to: int | None,
        last_id: str,
    ) -> dict[str, Any] | None:
        grant = self.grants[lease_id]
        if grant.last_id != last_id:
            return None
        nothing = {"open_to": None, "returned": None, "burned": None}
        if grant.state == "settled":
            return {"outcome": "not_found", **nothing}
        if grant.state != state or (run_id is not None and run_id != grant.run_id):
            return {"outcome": "changed", **nothing}
        to = grant.accounted + grant.backlog_max if open_to is None else open_to
        to = min(grant.size, max([to, *grant.rows]))
        grant.state, grant.open_to, grant.returned = "settled", to, grant.size - to
        self.leased -= grant.returned
        burned = to - len(grant.rows)
        return {
            "outcome": "settled",
            "open_to": to,
            "returned": grant.returned,
            "burned": burned,
        }


class SimHistory:
    """Stands in for `core.history`: this PostgreSQL is never restored, and must never seem so."""

    def __init__(self, ledger: SimLedger) -> None:
        self._ledger = ledger

    async def read(self, _conn: Actor) -> SimpleNamespace:
        return SimpleNamespace(is_accepted=True, started_at=None, held_for=None)

    async def hold(self, _conn: Actor, reason: str) -> None:
        self._ledger.held_for.append(reason)


class SimDatabase:
    """Stands in for `core.db.Database`: a connection is whoever calls."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    @contextlib.asynccontextmanager
    async def connection(self, *, reads_only: bool = False) -> AsyncIterator[Actor]:
        yield self._actor


def _filled(struct: Any, row: dict[str, Any] | None) -> Any:
    """Fill a struct by name; what the schema holds besides is empty here."""
    if row is None:
        return None
    return struct(**{name: row.get(name) for name in struct.__struct_fields__})


def _elements(literal: str | None, seqs: str) -> list[Any]:
    """The elements of an array literal: what is escaped in it is escaped in JSON, too.

    None stands for as many NULLs as there are `seqs`.
    """
    if literal is None:
        return [None] * len(_elements(seqs, seqs))
    return msgspec.json.decode("[" + literal[1:-1].replace("NULL", "null") + "]")
