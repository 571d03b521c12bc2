"""Who may serve, seal, write and settle a lease: each only as it last saw it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from core.db import queries
from core.settings import Settings
from tests.db.test_ledger import SIZE, Ledger

pytestmark = pytest.mark.anyio


class Court(Ledger):
    """An open lease, with short ways to do what workers and reconcilers do to it."""

    async def call(self, function: str, *args: Any) -> Any:
        places = "".join(f", ${n}" for n in range(3, len(args) + 3))
        return await self.raw.fetchrow(
            f"SELECT * FROM vf.{function}($1, $2{places})", self.project, self.lease, *args
        )

    async def join(self, worker: str, run_id: str = "run") -> bool:
        return bool((await self.call("join_lease", worker, "node", run_id))["joined"])

    async def seal(
        self, worker: str, run_id: str, judged: int, mark: int, seen_at: Any = None
    ) -> bool:
        told = await self.call("seal_lease", worker, "node", run_id, judged, mark, seen_at)
        return bool(told[0])

    async def judge(self, run_old: str, run_new: str, issued: int | None) -> str:
        deadline = timedelta(seconds=10)
        return str((await self.call("judge_lease", run_old, run_new, issued, deadline))[0])

    async def member(self, worker: str) -> tuple[Any, ...]:
        query = "SELECT sealed_run_id, mark FROM vf.lease_workers WHERE worker_id = $1"
        return tuple(await self.raw.fetchrow(query, worker))

    async def lease_row(self, columns: str) -> tuple[Any, ...]:
        return tuple(await self.raw.fetchrow(f"SELECT {columns} FROM vf.leases"))


@pytest.fixture
async def court(settings: Settings) -> AsyncIterator[Court]:
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    try:
        made = Court(raw)
        await made.found()
        await raw.execute("UPDATE vf.leases SET state = 'open'")
        yield made
    finally:
        await raw.close()


async def test_a_worker_takes_no_seat_at_a_lease_that_another_redis_serves_by_now(
    court: Court,
) -> None:
    assert await court.join("w1")
    assert await court.seal("w1", "run2", 0, 0)
    assert await court.judge("run", "run2", 0) == "intact"

    assert not await court.join("w2", "run")
    assert await court.join("w2", "run2")
    await court.raw.execute("UPDATE vf.leases SET state = 'fenced'")
    assert not await court.join("w3", "run2")
    seats = await court.raw.fetch("SELECT worker_id FROM vf.lease_workers ORDER BY 1")
    assert [row[0] for row in seats] == ["w1", "w2"]


async def test_a_process_that_takes_its_seat_again_has_sealed_nothing(court: Court) -> None:
    await court.join("w1")
    await court.join("w2")
    await court.seal("w1", "run2", 0, 7)
    await court.seal("w2", "run2", 0, 7)
    assert await court.join("w1")

    assert await court.member("w1") == (None, None)
    assert await court.judge("run", "run2", 7) == "waiting"


async def test_a_seal_counts_for_no_later_judgement_than_it_was_told_for(court: Court) -> None:
    await court.join("w1")
    assert await court.seal("w1", "run2", 0, 3)
    assert await court.judge("run", "run2", 3) == "intact"

    assert not await court.seal("w1", "run2", 0, 3)
    assert await court.member("w1") == (None, None)
    assert await court.seal("w1", "run3", 1, 4)
    assert await court.judge("run2", "run3", 3) == "fenced"
    assert await court.lease_row("judged, state, past_run_ids") == (2, "fenced", ["run"])


async def test_a_neighbours_word_counts_only_if_nobody_has_seen_the_dead_one_since(
    court: Court,
) -> None:
    await court.join("dead")
    query = "SELECT seen_at FROM vf.lease_workers WHERE worker_id = 'dead'"
    seen_at = await court.raw.fetchval(query)
    await court.join("dead")

    assert not await court.seal("dead", "run2", 0, 0, seen_at)
    assert await court.member("dead") == (None, None)
    assert await court.seal("dead", "run2", 0, 0, await court.raw.fetchval(query))
    assert await court.member("dead") == ("run2", 0)


async def test_a_worker_unseals_only_if_nothing_was_judged_since_it_looked(court: Court) -> None:
    await court.join("w1")
    await court.seal("w1", "run2", 0, 0)
    await court.judge("run", "run2", 0)
    await court.seal("w1", "old", 1, 0)

    assert not (await court.call("unseal_lease", "w1", "run2", 0))[0]
    assert not (await court.call("unseal_lease", "w1", "old", 1))[0]
    assert await court.member("w1") == ("old", 0)
    assert (await court.call("unseal_lease", "w1", "run2", 1))[0]
    assert await court.member("w1") == (None, None)

    await court.raw.execute("UPDATE vf.leases SET state = 'fenced'")
    assert not (await court.call("unseal_lease", "w1", "run2", 1))[0]


async def test_the_stream_of_a_process_that_another_one_continues_is_never_written(
    court: Court,
) -> None:
    await court.join("w1")
    await court.seal("w1", "run2", 0, 0)
    await court.judge("run", "run2", 0)

    for state in ("open", "draining", "fenced"):
        await court.raw.execute("UPDATE vf.leases SET state = $1", state)
        cut_off = await court.settle(1, key="cut-off", run_id="run")
        assert (cut_off["outcome"], cut_off["inserted"]) == ("stale", 0)
    assert (await court.settle(1, key="went-on", run_id="run3"))["outcome"] == "applied"
    assert (await court.settle(2, key="went-on", run_id="run2"))["outcome"] == "applied"
    assert await court.quarantine() == []


async def test_a_process_that_a_lease_came_back_to_is_written_from_by_who_read_it_since(
    court: Court,
) -> None:
    await court.join("w1")
    assert (await court.settle(1))["outcome"] == "applied"
    for judged, (old, new) in enumerate((("run", "run2"), ("run2", "run"))):
        await court.seal("w1", new, judged, 1)
        assert await court.judge(old, new, 1) == "intact"

    assert await court.lease_row("run_id, judged, past_run_ids") == ("run", 2, ["run2"])
    for judged in (0, 1):
        read_before = await court.settle(2, key="before", judged=judged)
        assert read_before["outcome"] == "stale"
    assert (await court.settle(2, key="other", run_id="run2"))["outcome"] == "stale"
    assert (await court.settle(2))["outcome"] == "applied"
    keys = await court.raw.fetch("SELECT idempotency_key FROM vf.redemptions ORDER BY seq")
    assert [row[0] for row in keys] == ["key-1", "key-2"]


async def test_another_process_is_not_written_from_before_it_is_judged(court: Court) -> None:
    assert (await court.settle(1, run_id="run2"))["outcome"] == "stale"
    assert await court.seqs() == []


async def test_a_lease_is_settled_only_as_the_settler_saw_it(court: Court) -> None:
    await court.settle(1, 2, 3)
    for seen in ("arming", "draining", "fenced"):
        ended = await court.call("settle_lease", seen, None, 3)
        assert ended["outcome"] == "changed", seen
    await court.raw.execute("UPDATE vf.leases SET state = 'draining'")
    assert (await court.call("settle_lease", "draining", "run2", 0))["outcome"] == "changed"

    assert await court.lease_row("state, open_to, returned") == ("draining", SIZE, 0)
    assert (await court.call("settle_lease", "draining", "run", 3))["outcome"] == "settled"


async def test_a_backlog_is_burned_from_what_is_in_the_ledger_when_the_lease_is_settled(
    court: Court,
) -> None:
    await court.raw.execute("UPDATE vf.leases SET backlog_max = 2, state = 'fenced'")
    await court.settle(1, 2, 3)
    ended = await court.call("settle_lease", "fenced", None, None)

    assert (ended["outcome"], ended["open_to"], ended["burned"]) == ("settled", 5, 2)
    assert await court.lease_row("returned") == (SIZE - 5,)


async def test_a_lease_is_settled_only_where_its_stream_was_read_to_the_end(court: Court) -> None:
    await court.settle(1)
    await court.raw.execute("UPDATE vf.leases SET state = 'draining'")
    query = queries.find("reconciler.settle_lease")
    given: dict[str, Any] = {
        "project_id": court.project,
        "lease_id": court.lease,
        "state": "draining",
        "run_id": "run",
        "open_to": 1,
    }
    for last_id in ("0-0", "2-0"):
        values = given | {"last_id": last_id}
        assert await court.raw.fetchrow(query.sql, *(values[name] for name in query.params)) is None
    assert await court.lease_row("state") == ("draining",)
    values = given | {"last_id": court.last_id}
    done = await court.raw.fetchrow(query.sql, *(values[name] for name in query.params))
    assert (done["outcome"], done["open_to"], done["burned"]) == ("settled", 1, 0)
