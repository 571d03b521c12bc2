"""Usage: API calls counted in each process, redemptions in the ledger, and where a plan ends.

A call is counted when it is answered, unless the answer is 402, 429 or 5xx, and written down within
a second, at most once: a worker that is killed takes its last second with it. Redemptions are never
counted here: the ledger has them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import db
from core.api_keys import Caller
from core.errors import OutcomeUnknown, PlanLimit, Unavailable
from core.rate_limits import Standing
from core.rules import plans
from core.rules.plans import Change, Hour

# What the killed worker's last second is.
FLUSH_S: Final = 1.0
# What other processes have counted of an account that stops at its quota is read so often.
READ_S: Final = 1.0
# Projects on a plan that stops, that one process knows of at once.
KNOWN_MAX: Final = 10_000

_log = structlog.get_logger("vauchflow.usage")


class Ticket(msgspec.Struct):
    """A request that was let in, until it is answered."""

    caller: Caller
    is_held: bool
    standing: Standing | None = None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a project, with its way through the plans."""

    account_id: UUID
    plan: str
    created_at: datetime
    project_count: int
    changes: list[Change]


class Measured(msgspec.Struct, frozen=True):
    """What an account used of what its plan includes (None: no limit), and this project's part."""

    used: int
    included: int | None
    of_this_project: int


class Projects(msgspec.Struct, frozen=True):
    """How many projects there are, and how many the plan has room for."""

    used: int
    included: int | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """A month's usage so far. Calls of the last second may be missing."""

    month: str
    plan: str
    api_calls: Measured
    redemptions: Measured
    projects: Projects
    resets_at: datetime


class _Spent(msgspec.Struct):
    """Calls of an account this month, as far as this process knows. `held`: under way."""

    month: datetime
    calls: int = 0
    held: int = 0
    read_s: float = 0.0


class Meter:
    """Counts the calls that one process answers. Used from one event loop only."""

    def __init__(self, database: db.Database) -> None:
        """Start at nothing; `run` writes down what comes."""
        self._database = database
        self._counts: dict[UUID, int] = {}
        self._spent: dict[UUID, _Spent] = {}
        self._locks: dict[UUID, asyncio.Lock] = {}
        # Reading and writing take turns, so that no call is seen twice or not at all.
        self._turn = asyncio.Lock()
        self.sources: list[Callable[[], Iterable[tuple[UUID, int]]]] = []
        """Who else counts, and is asked before each flush."""

    def count(self, project_id: UUID, count: int = 1) -> None:
        """Count calls that were answered. Cost: a dictionary."""
        self._counts[project_id] = self._counts.get(project_id, 0) + count

    async def enter(self, caller: Caller, *, stops: bool = True) -> Ticket:
        """Let a call in; one that the plan has no room for is refused, unless not `stops`.

        Cost: nothing on a plan that goes on; else one read a second. Raises: PlanLimit.
        """
        plan = plans.PLANS[caller.plan]
        if not plan.stops or caller.key_id is None or not stops:
            return Ticket(caller, False)
        spent = await self._spent_of(caller.project_id)
        unwritten = self._counts.get(caller.project_id, 0)
        assert plan.calls is not None
        if spent.calls + spent.held + unwritten >= plan.calls:
            raise limit_of("api_calls", "API calls", plan.calls)
        spent.held += 1
        return Ticket(caller, True)

    def leave(self, ticket: Ticket, status: int) -> None:
        """Count a call that was let in by how it was answered."""
        caller = ticket.caller
        if ticket.is_held:
            self._spent[caller.project_id].held -= 1
        # What people do in the dashboard is no API call.
        if caller.key_id is not None and status < 500 and status not in (402, 429):
            self.count(caller.project_id)

    async def _spent_of(self, project_id: UUID) -> _Spent:
        month = plans.month_of(datetime.now(UTC))
        spent = self._spent.get(project_id)
        if spent is None:
            if len(self._spent) >= KNOWN_MAX:
                self._spent = {key: one for key, one in self._spent.items() if one.held}
            spent = self._spent[project_id] = _Spent(month)
        if spent.month != month or time.monotonic() - spent.read_s > READ_S:
            async with self._turn, self._database.connection(reads_only=True) as conn:
                spent.calls = await db.value(
                    conn, "usage.calls_of_month", int, project_id=project_id
                )
            spent.month, spent.read_s = month, time.monotonic()
        return spent

    @asynccontextmanager
    async def room_for_redemptions(
        self,
        caller: Caller,
        count: int = 1,
        *,
        is_replay: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[None]:
        """Let redemptions be decided where the plan has room for so many more. Raises: PlanLimit.

        `is_replay` says whether they were decided before: then there is nothing to have room for.
        Concurrency: of an account that stops at its quota, one process decides one at a time; so
        several processes may go beyond it by one each. Cost: nothing on a plan that goes on.
        """
        if caller.key_id is not None and not plans.PLANS[caller.plan].stops:
            yield
            return
        if len(self._locks) >= KNOWN_MAX:
            self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        async with self._locks.setdefault(caller.project_id, asyncio.Lock()):
            async with self._database.connection(reads_only=True) as conn:
                rest = await db.one(conn, "usage.quota_rest", int, project_id=caller.project_id)
            if rest is not None and rest < count and not await is_replay():
                raise no_redemptions()
            yield

    async def flush(self) -> None:
        """Write down what was counted, at most once: what may have been written is not repeated.

        Raises: Unavailable, with the counts in hand; OutcomeUnknown, without.
        """
        for source in self.sources:
            for project_id, count in source():
                self.count(project_id, count)
        async with self._turn:
            counts, self._counts = self._counts, {}
            if not counts:
                return
            try:
                async with self._database.connection() as conn:
                    await db.run(
                        conn, "usage.count_calls",
                        projects=list(counts), counts=list(counts.values()),
                    )  # fmt: skip
            except Unavailable:
                for project_id, count in counts.items():
                    self.count(project_id, count)
                raise
            for project_id, count in counts.items():
                if (spent := self._spent.get(project_id)) is not None:
                    spent.calls += count

    async def run(self) -> None:
        """Flush every second until cancelled; an outage is waited out, counts in hand."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Unavailable as error:
                _log.warning("calls_not_written", reason=error.detail)
            except OutcomeUnknown:
                _log.warning("calls_perhaps_lost")


@contextmanager
def within_plan() -> Iterator[None]:
    """Say that the plan has no room where one project more breaks its limit. Raises: PlanLimit."""
    try:
        yield
    except db.CheckViolation as error:
        if error.constraint != "projects_within_plan":
            raise
        raise PlanLimit(
            "The account's plan has room for no more projects. Change the plan with POST "
            "/v1/billing/plan, or archive a project.",
            because={"limit": "projects"},
        ) from error


def no_redemptions() -> PlanLimit:
    """Return the end of the one plan that stops, for redemptions."""
    quota = plans.PLANS["free"].redemptions
    assert quota is not None
    return limit_of("redemptions", "redemptions", quota)


def limit_of(limit: str, things: str, quota: int) -> PlanLimit:
    """Return the end of the one plan that stops, and what to do."""
    resets_at = plans.next_month(plans.month_of(datetime.now(UTC)))
    return PlanLimit(
        f"The free plan includes {quota:,} {things} a month, and they are used. Change the plan "
        f"with POST /v1/billing/plan, or wait for {resets_at:%Y-%m-%d}.",
        because={"limit": limit, "quota": quota, "resets_at": resets_at},
    )


async def account_of(conn: db.Connection, caller: Caller) -> Account:
    """Return the account that a caller's project belongs to."""
    account = await db.one(conn, "usage.account_of", Account, project_id=caller.project_id)
    assert account is not None, "a project has an account"
    return account


async def by_hour(
    conn: db.Connection, account_id: UUID, month: datetime, project_id: UUID | None = None
) -> list[Hour]:
    """Return what an account, or one project of it, used. Cost: reads a month's ledger."""
    return await db.many(
        conn, "usage.by_hour", Hour,
        account_id=account_id, project_id=project_id, from_at=month, to_at=plans.next_month(month),
    )  # fmt: skip


async def read(conn: db.Connection, caller: Caller, now: datetime) -> Usage:
    """Return the running month's usage of the caller's account, and their project's part in it."""
    month = plans.month_of(now)
    account = await account_of(conn, caller)
    all_ = await by_hour(conn, account.account_id, month)
    own = await by_hour(conn, account.account_id, month, caller.project_id)
    plan = plans.PLANS[account.plan]
    return Usage(
        month=f"{month:%Y-%m}",
        plan=plan.name,
        api_calls=Measured(
            sum(one.call_count for one in all_), plan.calls, sum(one.call_count for one in own)
        ),
        redemptions=Measured(
            sum(one.redemption_count for one in all_),
            plan.redemptions,
            sum(one.redemption_count for one in own),
        ),
        projects=Projects(account.project_count, plan.projects),
        resets_at=plans.next_month(month),
    )
