"""A simulated cluster: shipped batchers, keepers and reconcilers over the stubs of this folder."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

from redis.exceptions import RedisError

from core import live_leases, reconciler
from core.hot import redis_py
from core.hot.leases import LeaseFacts
from core.hot.redis_py import RedisPyBackend
from core.live_leases import LeaseKeeper
from core.reconciler import Reconciler
from tests.sim.ledger_stub import SimHistory, SimLedger
from tests.sim.machine import Actor, Clock, Loop
from tests.sim.redis_stub import Client, SimLease, SimLeases, SimLink, SimRedis

PROJECT, SALE, VOUCHER = (UUID(int=n) for n in (1, 2, 3))
FACTS = {"project_id": PROJECT, "sale_id": SALE, "voucher_id": VOUCHER}
LEASES_MAX = 4
LOOK_S = 0.3


class SimMarks:
    """Stands in for the compiled marks file; it outlives its worker in the worker's `store`."""

    def __init__(self, store: "Worker") -> None:
        self._store = store
        self.were_lost = store.marks_lost
        self._names: dict[int, str] = {}

    def take(self, lease_id: str) -> int:
        place = len(self._names)
        self._names[place] = lease_id
        self._store.marks.setdefault(lease_id, 0)
        return place

    def get(self, place: int) -> int:
        return self._store.marks.get(self._names[place], 0)

    def raise_to(self, place: int, seq: int) -> None:
        self._store.marks[self._names[place]] = max(self.get(place), seq)

    def free(self, place: int) -> None:
        self._store.marks.pop(self._names[place], None)

    def keep(self, lease_ids: list[str]) -> None:
        for lease_id in self._store.marks.keys() - set(lease_ids):
            del self._store.marks[lease_id]


class Worker:
    """One API worker: its batcher and its keeper, and the marks that outlive both."""

    def __init__(self, cluster: "Cluster", name: str, flight_timeout_ms: int) -> None:
        self._cluster = cluster
        self._flight_timeout_ms = flight_timeout_ms
        self.worker_id = name
        self.node_id = "node"
        self.actor = Actor(name, cluster.dice)
        self.marks: dict[str, int] = {}
        self.marks_lost = False
        self.is_alive = False
        self.keeper: LeaseKeeper
        self.backend: RedisPyBackend

    def marks_of_dead(self, worker_id: str) -> dict[str, int] | None:
        """See `core.seats.Seat`."""
        other = self._cluster.worker_named(worker_id)
        return None if other.is_alive or other.marks_lost else dict(other.marks)

    async def start(self) -> None:
        self.is_alive = True
        cluster = self._cluster
        self.backend = RedisPyBackend(
            "",
            batch_max=3,
            queue_max=6,
            flight_timeout_ms=self._flight_timeout_ms,
            marks_path=self,  # type: ignore[arg-type]
            connect=self._connect,
        )
        self.keeper = LeaseKeeper(
            cluster.ledger.connection_of(self.actor),  # type: ignore[arg-type]
            Client(cluster.redis, self.actor),
            self.backend,
            SimpleNamespace(load=self._terms),  # type: ignore[arg-type]
            self,
        )
        await self.keeper.start()

    async def _connect(self) -> SimLink:
        await self.actor.wait()
        return SimLink(self._cluster.redis, self.actor)

    async def _terms(self, _project: UUID, _code: str) -> object:
        return self

    def kill(self, *, loses_host: bool) -> None:
        """End at once: nothing is answered, nothing is told."""
        self.is_alive = False
        for task in (self.backend._task, self.backend._ticker, self.keeper._task):
            if task is not None:
                task.cancel()
        if loses_host:
            self.marks.clear()
            self.marks_lost = True


class Cluster:
    """Both stores, the workers and the reconcilers, and the hand that arms the sale."""

    def __init__(self, dice: random.Random, *, workers: int, limit: int, backlog_max: int) -> None:
        self.dice = dice
        self.backlog_max = backlog_max
        self.customer_limit = 2
        self.redis = SimRedis(dice)
        self.ledger = SimLedger(dice, FACTS, limit)
        self.is_open = True
        timeouts = [dice.choice((400, 30_000)) for _ in range(workers)]
        self.workers = [Worker(self, f"w{at}", ms) for at, ms in enumerate(timeouts)]
        self._clock = Actor("clock", dice)
        self._reconciling: dict[int, tuple[Reconciler, asyncio.Task[None]]] = {}
        self.reconcilers = [Actor(f"f{at}", dice) for at in range(2)]

    def worker_named(self, name: str) -> Worker:
        return next(one for one in self.workers if one.worker_id == name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        arming = loop.create_task(self._keep_armed())
        for at in range(len(self.reconcilers)):
            self.start_reconciler(at)
        for worker in self.workers:
            await worker.start()
        try:
            yield
        finally:
            arming.cancel()

    def start_reconciler(self, at: int) -> None:
        """Start one, ending its predecessor wherever that one is."""
        if at in self._reconciling:
            old, task = self._reconciling.pop(at)
            for one in (task, *old._tasks.values()):
                one.cancel()
        actor = self.reconcilers[at]
        made = Reconciler(
            self.ledger.connection_of(actor),  # type: ignore[arg-type]
            Client(self.redis, actor),  # type: ignore[arg-type]
            SimpleNamespace(trim_keep_s=3_600),  # type: ignore[arg-type]
        )
        self._reconciling[at] = (made, asyncio.get_running_loop().create_task(made.run()))

    async def _keep_armed(self) -> None:
        client = Client(self.redis, self._clock)
        while True:
            if self.is_open:
                with contextlib.suppress(RedisError, OSError):
                    await self._arm(client)
            await asyncio.sleep(LOOK_S)

    async def _arm(self, client: Client) -> None:
        """As `core.leases.arm`: PostgreSQL first, then Redis, then open."""
        grant = self.ledger.out()
        if grant is None and len(self.ledger.grants) < LEASES_MAX:
            run_id = (await client.reach()).run_id
            lease_id = UUID(int=self.dice.getrandbits(128))
            grant = self.ledger.arm(lease_id, run_id, self.backlog_max)
        if grant is None or grant.state != "arming":
            return
        records: list[Any] = []
        counts: dict[str, int] = {}
        for past in self.ledger.grants.values():
            for seq, row in past.rows.items():
                told = f"{past.lease_id}|{seq}".encode()
                records.append((row.key, "a1" * 16, 0, 0, told))
                if row.customer is not None:
                    counts[row.customer] = counts.get(row.customer, 0) + 1
        facts = LeaseFacts(
            lease_id=str(grant.lease_id),
            size=grant.size,
            backlog_max=grant.backlog_max,
            customer_limit=self.customer_limit,
        )
        customers = [(name, count, "rdm") for name, count in counts.items()]
        process = await client.reach()
        process.leases.setdefault(facts.lease_id, SimLease.load(facts, records, customers))
        await self._clock.wait()
        if grant.state == "arming":
            grant.state = "open"

    def is_served(self) -> bool:
        """Whether a lease is out that the Redis of the moment serves."""
        grant = self.ledger.out()
        return grant is not None and grant.state == "open" and grant.run_id == self.redis.now.run_id

    def close_sale(self) -> None:
        self.is_open = False
        grant = self.ledger.out()
        if grant is not None and grant.state == "open":
            grant.state = "draining"


@contextlib.contextmanager
def simulated(loop: Loop, ledger: SimLedger) -> Iterator[None]:
    """Put clock, transport and store of the shipped modules under the simulation's hand."""
    clock, stub = Clock(loop), SimLeases()
    quiet = mock.Mock()
    with contextlib.ExitStack() as stack:
        for module, name, stand_in in (
            (redis_py, "time", clock),
            (redis_py, "Marks", SimMarks),
            (redis_py, "TICK_S", 0.1),
            (redis_py, "_log", quiet),
            (live_leases, "time", clock),
            (live_leases, "db", ledger),
            (live_leases, "leases", stub),
            (live_leases, "_log", quiet),
            (reconciler, "time", clock),
            (reconciler, "db", ledger),
            (reconciler, "leases", stub),
            (reconciler, "history", SimHistory(ledger)),
            (reconciler, "_log", quiet),
        ):
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield
