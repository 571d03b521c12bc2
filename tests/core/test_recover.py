"""A restored or promoted PostgreSQL redeems nothing until it holds what was answered."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from core import doctor, history, live_leases, recover, worker
from core.db import migrate
from core.hot import Outcome
from core.hot.rust import RustBackend
from core.local import POSTGRES_MAJOR, Servers
from core.settings import Settings
from tests.conftest import settings_on, temporary_data_dir
from tests.core.conftest import House
from tests.core.homes import claim_until_answered, house_on, outcome

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

CLUSTER = f"pg{POSTGRES_MAJOR}"


class Place:
    """Servers of one test, and what an operator does to PostgreSQL's files."""

    def __init__(self, servers: Servers, settings: Settings) -> None:
        self.servers = servers
        self.settings = settings
        self.data = servers.server_dir(CLUSTER)
        self.backup = self.data.with_name("backup")

    def stop(self) -> None:
        self.servers.processes.pop("postgres").stop()

    def back_up(self) -> None:
        """Take a cold copy."""
        self.stop()
        shutil.copytree(self.data, self.backup)
        own(self.backup, self.data)
        self.servers.start_one("postgres")

    def restore(self, *, promoted: bool) -> None:
        """Put the copy back by hand, or recover it to its end, which begins a new timeline."""
        self.stop()
        shutil.rmtree(self.data)
        self.backup.rename(self.data)
        if promoted:
            self.promote()
        self.servers.start_one("postgres")

    def promote(self) -> None:
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write("restore_command = '/bin/false'\n")
        (self.data / "recovery.signal").touch()
        own(self.data / "recovery.signal", self.data)


class Standby:
    """A PostgreSQL that streams from the place's, until it is cut off, promoted and put there."""

    def __init__(self, place: Place) -> None:
        """Begin as a cold copy of it; the primary is stopped for that moment."""
        self._place = place
        folder = place.settings.data_dir / "standby"
        folder.mkdir()
        self._servers = Servers(folder, valkey=False, fast_for_tests=True)
        self._data = self._servers.server_dir(CLUSTER)
        place.back_up()
        place.backup.rename(self._data)
        socket_dir = (place.settings.database_url or "").partition("host=")[2]
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = 'host={socket_dir} port=5432 user=postgres'\n")
        (self._data / "standby.signal").touch()
        own(self._data / "standby.signal", self._data)
        self._servers.start()

    async def _says(self, query: str, wanted: Any, *args: Any) -> None:
        connection = await asyncpg.connect(self._servers.database_url)
        try:
            for _ in range(400):
                seen = await connection.fetchval(query, *args)
                if seen == wanted:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"{query} says {seen!r}")
        finally:
            await connection.close()

    async def catches_up(self, home: House) -> None:
        """Wait until it has replayed all that the primary has committed by now."""
        lsn = await home.value("select pg_current_wal_insert_lsn()::text")
        await self._says("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", True, lsn)

    async def cut_off(self) -> None:
        await self._says("alter system set primary_conninfo = ''", None)
        await self._says("select pg_reload_conf()", True)
        await self._says("select count(*) from pg_stat_wal_receiver", 0)

    async def take_over(self) -> None:
        """Kill the primary and put the standby, promoted, in its place."""
        primary = self._place.servers.processes.pop("postgres")
        os.kill(primary.pid, signal.SIGKILL)
        while primary.exit_status() is None:
            await asyncio.sleep(0.01)
        await self._says("select pg_promote()", True)
        await self._says("select pg_is_in_recovery()", False)
        self._servers.stop()
        shutil.rmtree(self._place.data)
        self._data.rename(self._place.data)
        self._place.servers.start_one("postgres")


def own(path: Path, like: Path) -> None:
    found = like.stat()
    for one in (path, *path.rglob("*")):
        shutil.chown(one, found.st_uid, found.st_gid)


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    """A migrated cluster at rest: copying one is ten times as fast as making one."""
    with temporary_data_dir() as path:
        running = Servers(path, valkey=False, fast_for_tests=True)
        running.start()
        asyncio.run(migrate.migrate(settings_on(running.database_url or "", "", path)))
        running.stop()
        yield running.server_dir(CLUSTER)


@pytest.fixture
async def place(data_dir: Path, pristine: Path) -> AsyncIterator[Place]:
    cluster = data_dir / CLUSTER
    shutil.copytree(pristine, cluster)
    own(cluster, pristine)
    running = Servers(data_dir, fast_for_tests=True)
    running.start()
    try:
        yield Place(
            running,
            settings_on(running.database_url or "", running.redis_url or "", data_dir),
        )
    finally:
        running.stop()


@pytest.fixture
async def home(place: Place) -> AsyncIterator[House]:
    async with house_on(place.settings) as opened:
        yield opened


@contextlib.asynccontextmanager
async def postgres_away(home: House) -> AsyncIterator[None]:
    """The house's own look into the ledger is closed before and opened after."""
    await home.owner.close()
    yield
    home.owner = await asyncpg.connect(home.settings.database_dsn("owner"))


async def win(home: House, sale: Any, customers: range) -> list[Any]:
    answers = [await claim_until_answered(home, sale, n) for n in customers]
    assert {outcome(answer) for answer in answers} == {"won"}
    return answers


async def count(home: House, sale: Any) -> int:
    return await home.value("select count(*) from vf.redemptions where sale_id = $1", sale)


async def until_settled(home: House, sale: Any, wins: int) -> None:
    await home.until("select count(*) from vf.redemptions where sale_id = $1", wins, sale)


async def recovered(home: House, **options: Any) -> tuple[int, list[str]]:
    told: list[str] = []
    options.setdefault("is_replaced", False)
    status = await recover.run(home.settings, say=told.append, **options)
    return status, told


@pytest.mark.long
@pytest.mark.parametrize("promoted", [False, True], ids=["copied back", "promoted"])
async def test_a_restored_postgresql_is_given_back_every_win_that_redis_kept(
    home: House, place: Place, promoted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    await home.voucher("PLAIN")
    await home.voucher("LATER", max_redemptions=30, per_customer_limit=1)
    sale = await home.sale("FIRST", 40, per_customer_limit=1)
    later = await home.sale("LATER", 20, voucher="LATER")
    await home.open_sale(sale)
    first = await win(home, sale, range(10))
    await until_settled(home, sale, 10)
    async with postgres_away(home):
        place.back_up()
    first += await win(home, sale, range(10, 25))
    await home.open_sale(later)
    second = await win(home, later, range(5))
    unknown = await home.sale("NOBODYKNOWS", 10)
    await home.open_sale(unknown)
    third = await win(home, unknown, range(3))
    for which, wins in ((sale, 25), (later, 5), (unknown, 3)):
        await until_settled(home, which, wins)
    async with postgres_away(home):
        place.restore(promoted=promoted)
    await home.until("select held_for is not null from vf.history", True)
    refused = await home.redeem("PLAIN", "p", key="p")
    assert outcome(refused) == "unavailable"
    assert "./vauchflow recover" in refused.detail
    # Until a process has looked at its leases again, Redis answers its claims: they are in the
    # stream, and given back as the others are.
    await asyncio.sleep(5 * live_leases.POLL_S)
    assert outcome(await home.redeem("LATER", "c9", key="p")) == "unavailable"
    assert outcome(await home.claim(sale, "c30", key="k30")) == "unavailable"
    assert await count(home, sale) == 10
    assert await doctor.run(home.settings, {}) == 1
    assert "nothing is redeemed until ./vauchflow recover" in capsys.readouterr().out

    status, told = await recovered(home)
    assert status == 1, "three wins of a sale that nobody knows cannot be given back"
    named = [line for line in told if line.startswith("not in the ledger: ")]
    assert [line.split(",")[0].split()[-1] for line in named] == [w.redemption_id for w in third]
    assert [await count(home, which) for which in (sale, later)] == [25, 5]
    assert "violations: 0" in capsys.readouterr().out
    assert await home.value("select count(*) from vf.quarantine") == 0
    assert outcome(await home.redeem("PLAIN", "p", key="p")) == "won"

    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 2)
    assert await claim_until_answered(home, sale, 12) == first[12]
    assert await claim_until_answered(home, later, 3) == second[3]
    rest = [await claim_until_answered(home, sale, n) for n in range(25, 50)]
    assert [outcome(a) for a in rest] == ["won"] * 15 + ["sold_out"] * 10
    assert outcome(await home.claim(later, "c3", key="more")) == "customer_limit_reached"
    seqs = [a.seq for a in first + rest[:15]]
    assert len(set(seqs)) == 40
    await until_settled(home, sale, 40)
    capsys.readouterr()
    assert await recovered(home) == (0, [])
    assert "violations: 0" in capsys.readouterr().out
    await doctor.run(home.settings, {})
    out = capsys.readouterr().out
    assert "✓ PostgreSQL holds what Redis was told it holds" in out
    assert out.count("and settled, nothing lost") == 2


@pytest.mark.long
async def test_a_settled_sale_that_the_restored_ledger_has_never_seen_is_written_again_and_closed(
    home: House, place: Place
) -> None:
    sale = await home.sale("OVER", 10, per_customer_limit=1)
    async with postgres_away(home):
        place.back_up()
    await home.open_sale(sale)
    first = await win(home, sale, range(4))
    await home.doors.desk.close(home.project_id, sale)
    await home.until("select status from vf.flash_sales", "settled")
    async with postgres_away(home):
        place.restore(promoted=True)
    await home.until("select held_for is not null from vf.history", True)
    status, _ = await recovered(home)
    assert status == 0
    assert await home.value("select status from vf.flash_sales") == "settled"
    assert await count(home, sale) == 4
    assert await home.value("select direct_count + leased_count from vf.vouchers") == 4
    assert await claim_until_answered(home, sale, 2) == first[2]
    assert outcome(await home.claim(sale, "new", key="new")) == "ended"


async def test_a_promoted_postgresql_that_lacks_nothing_goes_on_by_itself(
    home: House, place: Place
) -> None:
    await home.voucher("PLAIN")
    sale = await home.sale("SOUND", 20, per_customer_limit=1)
    await home.open_sale(sale)
    first = await win(home, sale, range(5))
    await until_settled(home, sale, 5)
    async with postgres_away(home):
        place.stop()
        place.promote()
        # Redis goes on deciding while PostgreSQL is away.
        first += await win(home, sale, range(5, 8))
        place.servers.start_one("postgres")
    first += await win(home, sale, range(8, 20))
    assert [w.seq for w in first] == list(range(1, 21))
    await until_settled(home, sale, 20)
    assert outcome(await home.redeem("PLAIN", "p", key="p")) == "won"
    assert await home.value("select count(*) from vf.leases") == 1
    assert await home.value("select split_part(lineage, '/', 2) from vf.history") == "2"
    assert await recovered(home) == (0, [])


@pytest.mark.long
@pytest.mark.parametrize("lag", [0, 12])
async def test_a_standby_that_was_promoted_sells_no_number_twice_however_far_it_lags(
    home: House, place: Place, lag: int, capsys: pytest.CaptureFixture[str]
) -> None:
    await home.voucher("PLAIN")
    sale = await home.sale("LAG", 40, per_customer_limit=1)
    async with postgres_away(home):
        standby = Standby(place)
    await home.open_sale(sale)
    first = await win(home, sale, range(10))
    await until_settled(home, sale, 10)
    await standby.catches_up(home)
    if lag:
        await standby.cut_off()
        first += await win(home, sale, range(10, 10 + lag))
        await until_settled(home, sale, 10 + lag)
    async with postgres_away(home):
        await standby.take_over()
    if lag:
        await home.until("select held_for is not null from vf.history", True)
        assert outcome(await home.redeem("PLAIN", "p", key="p")) == "unavailable"
        assert await count(home, sale) == 10
        status, told = await recovered(home)
        assert (status, len(told)) == (0, 4), told
        await worker.look(home.clock)
    await home.until("select split_part(lineage, '/', 2) from vf.history", "2")
    rest = [await claim_until_answered(home, sale, n) for n in range(10 + lag, 45)]
    assert [outcome(a) for a in rest] == ["won"] * (30 - lag) + ["sold_out"] * 5
    wins = first + rest[: 30 - lag]
    assert len({w.seq for w in wins}) == len({w.redemption_id for w in wins}) == 40
    await until_settled(home, sale, 40)
    assert await home.value("select count(*) from vf.leases") == (2 if lag else 1)
    assert await home.value("select coalesce(sum(burned), 0) from vf.leases") == 0
    assert await home.value("select count(*) from vf.quarantine") == 0
    assert outcome(await home.redeem("PLAIN", "p", key="p")) == "won"
    capsys.readouterr()
    assert await recovered(home) == (0, [])
    assert "violations: 0" in capsys.readouterr().out


async def test_recover_takes_the_numbers_from_redis_before_it_says_how_many_there_are(
    home: House, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that PostgreSQL does not reach claims until Redis says no."""
    sale = await home.sale("CUTOFF", 20, per_customer_limit=1)
    async with postgres_away(home):
        place.back_up()
    await home.open_sale(sale)
    first = await win(home, sale, range(4))
    lease = str(await home.value("select id from vf.leases"))
    run_id = await home.value("select run_id from vf.leases")
    worker_of_nobody = RustBackend(home.settings.redis_url)
    slot = worker_of_nobody.open_lease(lease, run_id)
    surveyed, payload = history.survey, b"[1000,100,null,null]"

    async def survey_and_claim(*args: Any) -> list[history.Finding]:
        found = await surveyed(*args)
        if any(one.lease.state == "open" for one in found):
            asked = worker_of_nobody.claim(slot, "cut", "a" * 32, "cut", payload, 999)
            assert (await asked)[:2] == (Outcome.WON, 5)
        return found

    await until_settled(home, sale, 4)
    async with postgres_away(home):
        place.restore(promoted=True)
    await home.until("select held_for is not null from vf.history", True)
    monkeypatch.setattr(history, "survey", survey_and_claim)
    status, _ = await recovered(home)
    assert status == 0
    assert await count(home, sale) == 5
    assert await home.value("select count(*) from vf.quarantine") == 0
    late = await worker_of_nobody.claim(slot, "late", "b" * 32, "late", payload, 999)
    assert late[0] == Outcome.UNAVAILABLE
    assert await claim_until_answered(home, sale, 2) == first[2]
    await worker_of_nobody.aclose()


@pytest.mark.long
async def test_a_backup_of_redis_that_nobody_can_tell_is_written_off_on_the_operators_word(
    home: House, place: Place
) -> None:
    sale = await home.sale("WORD", 20)
    await home.open_sale(sale)
    first = await win(home, sale, range(5))
    await until_settled(home, sale, 5)
    await home.owner.execute("update vf.leases set backlog_max = 7")
    status, told = await recovered(home, is_replaced=True)
    assert status == 0
    row = await home.owner.fetchrow("select open_to, returned, burned from vf.leases")
    assert tuple(row) == (12, 8, 7)
    assert [line.rpartition(", ")[2] for line in told] == ["7 written off: numbers 6-12"]
    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 1)
    rest = [await claim_until_answered(home, sale, n) for n in range(5, 15)]
    assert [outcome(a) for a in rest] == ["won"] * 8 + ["sold_out"] * 2
    assert [a.seq for a in first + rest[:8]] == [*range(1, 6), *range(13, 21)]


@pytest.mark.long
async def test_wins_that_were_sold_by_others_since_are_named_one_by_one(
    home: House, place: Place
) -> None:
    await home.voucher("SHARED", max_redemptions=10)
    sale = await home.sale("SHARED", 10, voucher="SHARED")
    async with postgres_away(home):
        place.back_up()
    await home.open_sale(sale)
    wins = await win(home, sale, range(6))
    await until_settled(home, sale, 6)
    await home.stop_reconciler()
    async with postgres_away(home):
        place.restore(promoted=False)
    # A copy put back by hand looks like itself until a reconciler asks Redis: others may redeem,
    # once this process has forgotten the lease that the copy does not know.
    await asyncio.sleep(1)
    for n in range(7):
        assert outcome(await home.redeem("SHARED", f"d{n}", key=f"d{n}")) == "won"
    status, told = await recovered(home)
    named = [line.split(",")[0].split()[-1] for line in told if line.startswith("not in the")]
    assert (status, named) == (1, [w.redemption_id for w in wins[3:]])
    assert await home.value("select count(*) from vf.redemptions") == 10
    assert await home.value("select direct_count + leased_count from vf.vouchers") == 10


async def test_nothing_can_be_written_or_armed_in_a_history_that_is_not_accepted(
    home: House,
) -> None:
    sale = await home.sale("GATE", 5)
    await home.voucher("GATED")
    await home.stop_reconciler()
    await home.owner.execute("update vf.history set lineage = '1/9'")
    assert outcome(await home.redeem("GATED", "c", key="k")) == "unavailable"
    with pytest.raises(Exception, match="recover has not accepted it"):
        await home.doors.desk.open(home.project_id, sale, by_hand=True)
    assert await home.value("select count(*) from vf.redemptions") == 0
    assert await home.value("select count(*) from vf.leases") == 0
    async with home.worker_db.connection() as conn:
        seen = await history.read(conn)
        assert not seen.is_accepted
        await history.accept(conn, msgspec.structs.replace(seen, accepted="9/9"))
        assert not (await history.read(conn)).is_accepted, "somebody else has decided since"
        await history.accept(conn, seen)
        assert (await history.read(conn)).is_accepted
    assert outcome(await home.redeem("GATED", "c", key="k")) == "won"
