"""Deterministic simulation: `python -m tests.sim.schedules [--seeds N] [--from N] [--stop]`.

A schedule is a seed: clients, faults and the time each call takes are drawn from it, and the
shipped batcher, keeper and reconciler run through it on a simulated clock. Afterwards everything
heals, the sale closes, and what clients were told is held against what the ledger has.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from core.hot import Outcome
from tests.sim import machine
from tests.sim.cluster import SALE, Cluster, Worker, simulated

FINGERPRINT = "a1" * 16
# Clients come within the first second and a half, faults too; then everything heals, and the sale
# closes once it is served again. A worker that was silent is given up after ten seconds more.
BUSY_S, HEAL_S, CLOSE_S, END_S = 1.5, 2.5, 18.0, 60.0

NOT_APPLIED = frozenset(Outcome) - {
    Outcome.WON, Outcome.REPLAYED, Outcome.UNKNOWN, Outcome.FENCED, Outcome.ASK,
}  # fmt: skip


@dataclass
class History:
    """What clients were told, and what befell the cluster."""

    answered: dict[tuple[str, int], str] = field(default_factory=dict)  # number: whose
    told: dict[str, set[tuple[str, int]]] = field(default_factory=dict)  # whose: numbers
    refused: set[str] = field(default_factory=set)  # attempts that were not applied
    outcomes: Counter[str] = field(default_factory=Counter)
    doubled: list[tuple[str, int]] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    loses_data: bool = False
    loses_marks: bool = False

    def won(self, whose: str, number: tuple[str, int]) -> None:
        if self.answered.setdefault(number, whose) != whose:
            self.doubled.append(number)
        self.told.setdefault(whose, set()).add(number)


class Schedule:
    """One seed's cluster, clients and faults."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.history = History()
        self.cluster = Cluster(
            dice,
            workers=dice.choice((1, 2, 2, 3)),
            limit=dice.choice((3, 8, 20)),
            backlog_max=dice.choice((2, 4, 1_000)),
        )
        self.cluster.redis.faults = dice.choice((0.0, 0.05, 0.3))
        self.cluster.ledger.faults = dice.choice((0.0, 0.0, 0.05, 0.2))

    # -- Clients -------------------------------------------------------------------------------

    async def client(self, number: int) -> None:
        """Ask for a unit, and again with the same key while the outcome is not known."""
        dice = self.dice
        await asyncio.sleep(dice.random() * BUSY_S)
        key = f"k{number}" if dice.random() < 0.8 else None
        customer = f"c{dice.randrange(12)}" if dice.random() < 0.7 else None
        for attempt in range(4 if key else 1):
            worker = dice.choice(self.cluster.workers)
            if await self.attempt(worker, f"{number}.{attempt}", key, customer):
                return
            await asyncio.sleep(dice.random() * 0.5)

    async def attempt(
        self, worker: Worker, name: str, key: str | None, customer: str | None
    ) -> bool:
        """Ask once. True: the client knows, or has gone away."""
        await worker.actor.thaw()
        live = worker.keeper.by_sale.get(SALE) if worker.is_alive else None
        if live is None:
            return False
        payload = msgspec.json.encode((1_000, 100, name, None))
        deadline_ms = self.dice.choice((20, 1_000))
        lease = str(live.row.lease_id)
        future = worker.backend.claim(live.slot, key, FINGERPRINT, customer, payload, deadline_ms)
        patience = self.dice.choice((0.01, 5.0, 120.0))
        done, _ = await asyncio.wait([future], timeout=patience)
        if not done:
            if worker.is_alive and patience > 100:
                self.history.unanswered.append(name)
            future.cancel()
            return key is None
        outcome, seq, _, _, detail = future.result()
        self.history.outcomes[Outcome(outcome).name] += 1
        whose = key or name
        if outcome == Outcome.WON:
            self.history.won(whose, (lease, seq))
            return True
        if outcome == Outcome.REPLAYED:
            if not seq:
                lease, _, text = (detail or b"").decode().partition("|")
                seq = int(text)
            self.history.won(whose, (lease, seq))
            return True
        if outcome in NOT_APPLIED:
            self.history.refused.add(name)
        return outcome in (Outcome.SOLD_OUT, Outcome.CUSTOMER_LIMIT)

    # -- Faults --------------------------------------------------------------------------------

    async def trouble(self) -> None:
        """Let a few things happen, one after the other."""
        dice = self.dice
        kinds = [name for name in dir(self) if name.startswith("on_")]
        for at in sorted(dice.random() * BUSY_S for _ in range(dice.randrange(5))):
            await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
            kind = dice.choice(kinds)
            self.history.events.append(f"{at:.2f} {kind[3:]}")
            getattr(self, kind)()

    def on_restart(self) -> None:
        self.cluster.redis.replace(self.cluster.redis.now.leases)

    def on_old_backup(self) -> None:
        self.cluster.redis.replace(self._older())
        self.history.loses_data = True

    def on_loss(self) -> None:
        self.cluster.redis.replace({})
        self.history.loses_data = True

    def on_flush(self) -> None:
        self.cluster.redis.now.leases.clear()
        self.history.loses_data = True

    def on_split(self) -> None:
        self.cluster.redis.replace(self._older(), old_stays=True)
        self.history.loses_data = True

    def _older(self) -> dict[str, Any]:
        held = self.cluster.redis.now.leases
        return {
            lease: one.older(self.dice.randint(max(0, len(one.stream) - 3), len(one.stream)))
            for lease, one in held.items()
        }

    def on_frozen_redis(self) -> None:
        now = asyncio.get_running_loop().time()
        self.cluster.redis.now.frozen_until = now + self.dice.random() * 3

    def on_frozen_worker(self) -> None:
        now = asyncio.get_running_loop().time()
        worker = self.dice.choice(self.cluster.workers)
        for_s = self.dice.choice((0.5, 2.0, 13.0))
        worker.actor.frozen_until = now + for_s
        self.history.loses_marks |= for_s > 9

    def on_frozen_reconciler(self) -> None:
        now = asyncio.get_running_loop().time()
        self.dice.choice(self.cluster.reconcilers).frozen_until = now + self.dice.random() * 14

    def on_killed_worker(self) -> None:
        worker = self.dice.choice(self.cluster.workers)
        if worker.is_alive:
            loses_host = self.dice.random() < 0.3
            self.history.loses_marks |= loses_host
            worker.kill(loses_host=loses_host)
            asyncio.get_running_loop().create_task(self._again(worker, self.dice.random() * 2))

    def on_killed_worker_and_old_backup(self) -> None:
        """Its marks are all that tells that Redis has forgotten what it answered."""
        self.on_killed_worker()
        self.on_old_backup()

    async def _again(self, worker: Worker, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await worker.start()

    def on_killed_reconciler(self) -> None:
        self.cluster.start_reconciler(self.dice.randrange(2))

    def on_postgresql_away(self) -> None:
        now = asyncio.get_running_loop().time()
        self.cluster.ledger.away_until = now + self.dice.random() * 2

    def on_more_stock(self) -> None:
        self.cluster.ledger.grow(self.dice.randint(1, 4))

    def heal(self) -> None:
        """Nothing happens any more. What was frozen for long stays so for its time."""
        cluster = self.cluster
        cluster.redis.faults = cluster.ledger.faults = 0.0
        for worker in cluster.workers:
            client = worker.keeper._redis
            client.at.is_up = client.at is cluster.redis.now
            link: Any = worker.backend._link
            if link is not None:
                link._at.is_up = link._at is cluster.redis.now
        for made, _ in cluster._reconciling.values():
            at: Any = made.redis
            at.at.is_up = at.at is cluster.redis.now

    # -- From start to end ---------------------------------------------------------------------

    async def play(self) -> None:
        """Run the schedule until every lease is settled."""
        loop = asyncio.get_running_loop()
        async with self.cluster.running():
            clients = [loop.create_task(self.client(n)) for n in range(self.dice.choice((12, 30)))]
            trouble = loop.create_task(self.trouble())
            await asyncio.sleep(HEAL_S)
            await trouble
            self.heal()
            while not self.cluster.is_served() and loop.time() < CLOSE_S:
                await asyncio.sleep(0.1)
            self.cluster.close_sale()
            while self.cluster.ledger.out() is not None and loop.time() < END_S:
                await asyncio.sleep(0.1)
            for client in clients:
                if client.done():
                    client.result()


def check(schedule: Schedule) -> list[str]:
    """Return every promise that is broken at the end of a schedule."""
    cluster, history = schedule.cluster, schedule.history
    ledger, bad = cluster.ledger, []
    rows = {
        (str(grant.lease_id), seq): row.key
        for grant in ledger.grants.values()
        for seq, row in grant.rows.items()
    }
    lost = {number: whose for number, whose in history.answered.items() if number not in rows}
    if len(rows) + len(lost) > ledger.limit:
        bad.append(f"OVER: {len(rows)} rows and {len(lost)} lost of {ledger.limit} units")
    if history.doubled:
        bad.append(f"DOUBLE: {history.doubled}")
    if ledger.held_for:
        bad.append(f"HELD: {ledger.held_for}")
    if ledger.quarantined:
        bad.append(f"REFUSED: {ledger.quarantined}")
    for number, whose in history.answered.items():
        key = rows.get(number)
        if key is not None and whose.startswith("k") and key != whose:
            bad.append(f"STOLEN: {number} was {whose}'s and is {key}'s")
    for grant in ledger.grants.values():
        if grant.state != "settled":
            bad.append(f"STUCK: a lease is {grant.state} at the end")
            continue
        missing = [seq for lease, seq in lost if lease == str(grant.lease_id)]
        if any(seq > grant.open_to for seq in missing):
            bad.append(f"UNBACKED: {missing} above {grant.open_to}")
        if len(missing) > grant.backlog_max:
            bad.append(f"BACKLOG: {len(missing)} lost, {grant.backlog_max} allowed")
        if grant.offsets != sorted(set(grant.offsets)):
            bad.append(f"OFFSET: {grant.offsets}")
        is_whole = not history.loses_data and not history.loses_marks
        if is_whole and grant.open_to > len(grant.rows):
            bad.append(f"BURNED: {grant.open_to - len(grant.rows)} of an intact lease")
    applied = history.refused & cluster.redis.applied
    if applied:
        bad.append(f"APPLIED: {applied} were told they were not")
    if history.unanswered:
        bad.append(f"UNANSWERED: {history.unanswered}")
    return bad + ([] if history.loses_data else _check_intact(schedule, rows, lost))


def _check_intact(
    schedule: Schedule, rows: dict[tuple[str, int], str], lost: dict[tuple[str, int], str]
) -> list[str]:
    bad = [f"LOST: {lost}"] if lost else []
    for whose, numbers in schedule.history.told.items():
        if len(numbers) > 1:
            bad.append(f"KEY: {whose} has {numbers}")
    held = Counter(
        row.customer
        for grant in schedule.cluster.ledger.grants.values()
        for row in grant.rows.values()
        if row.customer is not None
    )
    if any(count > schedule.cluster.customer_limit for count in held.values()):
        bad.append(f"CUSTOMER: {held}")
    return bad


def run(seed: int) -> tuple[Schedule, list[str]]:
    """Play one seed and check it."""
    loop = machine.Loop()
    schedule = Schedule(seed)
    with simulated(loop, schedule.cluster.ledger):
        machine.run(schedule.play(), loop)
    return schedule, check(schedule)


def main(arguments: Sequence[str]) -> int:
    """Play many seeds, print what came up, and every seed that broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.schedules")
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="at the first broken promise")
    parser.add_argument("--seed", type=int, help="play one seed and tell what happened")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        schedule, bad = run(options.seed)
        print(*schedule.history.events, dict(schedule.history.outcomes), *bad, sep="\n")
        return bool(bad)
    began, outcomes, broken = time.monotonic(), Counter[str](), 0
    for seed in range(options.first, options.first + options.seeds):
        schedule, bad = run(seed)
        outcomes += schedule.history.outcomes
        outcomes.update({event.partition(" ")[2]: 1 for event in schedule.history.events})
        if bad:
            broken += 1
            print(f"seed {seed}: {'; '.join(bad)}", flush=True)
            if options.stop:
                return 1
    print(f"{options.seeds} schedules in {time.monotonic() - began:.0f} s, {broken} broken")
    print(", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
