"""A Redis that comes back, or is tampered with: the same data goes on, other data is fenced,
settled and re-armed by itself, and no unit is ever sold twice."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from bench.product import free_port
from core import campaigns, ids, redemptions, worker
from core.endings import end
from core.errors import Unavailable
from core.flash_sales import FlashSalePatch
from core.hot import keys
from core.ids import parse_id
from core.local import Servers
from core.redemptions import Redemption
from core.settings import Settings
from tests.core.conftest import House
from tests.core.homes import claim_until_answered, house_on, kill, outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
async def own_valkey(data_dir: Path) -> AsyncIterator[Servers]:
    running = Servers(data_dir, postgres=False)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
async def home(settings: Settings, own_valkey: Servers) -> AsyncIterator[House]:
    async with house_on(settings, redis_url=own_valkey.redis_url or "") as opened:
        yield opened


async def won(home: House, sale: Any, *customers: int) -> list[Any]:
    answers = [await claim_until_answered(home, sale, n) for n in customers]
    assert {outcome(answer) for answer in answers} == {"won"}
    return answers


async def settled(home: House, count: int) -> None:
    await home.until("select count(*) from vf.redemptions", count)


async def fenced_and_settled(home: House, reason: str) -> tuple[int, int, int]:
    """Wait until the first lease is settled; returns where it ended, what came back and burned."""
    await home.until("select count(*) from vf.leases where state = 'settled'", 1)
    row = await home.owner.fetchrow("select open_to, returned, burned, fence_reason from vf.leases")
    assert reason in row["fence_reason"]
    return row["open_to"], row["returned"], row["burned"]


async def sold_the_rest(home: House, sale: Any, first: list[Any], customers: range) -> int:
    """Re-arm, sell what is left, and hold every number against all others; returns how many."""
    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 1)
    rest = [await claim_until_answered(home, sale, n) for n in customers]
    assert {outcome(answer) for answer in rest} == {"won", "sold_out"}
    wins = [answer for answer in first + rest if isinstance(answer, Redemption)]
    assert len({win.seq for win in wins}) == len({win.redemption_id for win in wins}) == len(wins)
    return sum(isinstance(answer, Redemption) for answer in rest)


async def test_a_sale_goes_on_when_valkey_is_killed_and_keeps_its_data(
    home: House, own_valkey: Servers
) -> None:
    sale = await home.sale("DROP", 2_000, per_customer_limit=1)
    await home.open_sale(sale)
    lease = await home.value("select id from vf.leases")
    crowd = [asyncio.create_task(claim_until_answered(home, sale, n)) for n in range(3_000)]
    await asyncio.sleep(0.15)
    await kill(own_valkey, "valkey")
    own_valkey.start_one("valkey")
    answers = await asyncio.gather(*crowd)
    assert Counter(map(outcome, answers)) == {"won": 2_000, "sold_out": 1_000}
    await home.until("select count(*) from vf.redemptions", 2_000)
    assert await home.value("select count(distinct (lease_id, seq)) from vf.redemptions") == 2_000
    assert await home.value("select count(*) from vf.leases") == 1
    assert await home.value("select id from vf.leases where state = 'open'") == lease
    assert await home.value("select count(*) from vf.quarantine") == 0
    again = await claim_until_answered(home, sale, 0)
    assert again == answers[0]


async def test_a_replaced_valkey_is_fenced_and_never_sells_a_unit_twice(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale = await home.sale("DROP", 100, per_customer_limit=1)
    await home.open_sale(sale)
    first = [await claim_until_answered(home, sale, n) for n in range(40)]
    assert Counter(map(outcome, first)) == {"won": 40}
    await home.until("select count(*) from vf.redemptions", 40)
    await home.stop_reconciler()
    lost = [await claim_until_answered(home, sale, n) for n in range(40, 50)]
    assert Counter(map(outcome, lost)) == {"won": 10}
    await kill(own_valkey, "valkey")
    folder = next(data_dir.rglob("appendonlydir"))
    shutil.rmtree(folder)
    own_valkey.start_one("valkey")
    reconciling = asyncio.create_task(home.reconciler.run())
    await home.until("select count(*) from vf.leases where state = 'settled'", 1)
    row = await home.owner.fetchrow("select open_to, returned, burned from vf.leases")
    assert tuple(row) == (50, 50, 10)
    await worker.look(home.clock)
    await asyncio.sleep(0.5)
    rest = [await claim_until_answered(home, sale, n) for n in range(50, 120)]
    assert Counter(map(outcome, rest)) == {"won": 50, "sold_out": 20}
    await home.until("select count(*) from vf.redemptions", 90)
    seqs = [a.seq for a in first + lost + rest if isinstance(a, Redemption)]
    assert len(seqs) == len(set(seqs)) == 100
    replay = await claim_until_answered(home, sale, 3)
    assert replay == first[3]
    assert (await home.shown(sale)).written_off == 10
    await end(reconciling)


async def test_a_valkey_that_is_set_to_forget_is_fenced_and_the_rest_waits(
    home: House, own_valkey: Servers
) -> None:
    sale = await home.sale("DRIFT", 100)
    await home.open_sale(sale)
    assert outcome(await home.claim(sale, "a", key="a")) == "won"
    await home.worker_redis.config_set("appendfsync", "everysec")
    await home.until("select count(*) from vf.leases where state = 'settled'", 1)
    row = await home.owner.fetchrow("select open_to, returned, burned, fence_reason from vf.leases")
    assert tuple(row) == (1, 99, 0, "appendfsync is everysec; it must be always.")
    await worker.look(home.clock)
    assert await home.value("select count(*) from vf.leases") == 1
    await home.worker_redis.config_set("appendfsync", "always")
    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 1)
    assert outcome(await claim_until_answered(home, sale, 7)) == "won"


async def test_a_flushed_valkey_is_noticed_without_a_claim_and_loses_nothing_that_was_settled(
    home: House,
) -> None:
    sale = await home.sale("FLUSH", 30, per_customer_limit=1)
    await home.open_sale(sale)
    first = await won(home, sale, *range(10))
    await settled(home, 10)
    await home.worker_redis.flushall()
    assert await fenced_and_settled(home, "gone from Redis") == (10, 20, 0)
    assert await sold_the_rest(home, sale, first, range(10, 40)) == 20
    await settled(home, 30)
    assert await claim_until_answered(home, sale, 3) == first[3]
    shown = await home.shown(sale)
    assert (shown.claimed, shown.written_off, shown.remaining) == (30, 0, 0)


async def test_one_lost_lease_stops_no_other_sale(home: House) -> None:
    sale, other = await home.sale("LOST", 30), await home.sale("OTHER", 30)
    await home.open_sale(sale)
    lease = await home.value("select id from vf.leases")
    await home.open_sale(other)
    first = await won(home, sale, *range(10))
    await settled(home, 10)
    await home.worker_redis.unlink(*keys.of_lease(str(lease)))
    assert outcome(await home.claim(sale, "late", key="late")) == "unavailable"
    assert outcome(await home.claim(other, "c", key="c")) == "won"
    await home.until("select state from vf.leases where id = $1", "settled", lease)
    assert await home.value("select count(*) from vf.leases where state = 'open'") == 1
    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 2)
    assert {outcome(await claim_until_answered(home, sale, n)) for n in range(10, 30)} == {"won"}
    assert await claim_until_answered(home, sale, 0) == first[0]
    await settled(home, 31)


async def test_a_flushed_script_is_loaded_again_and_nothing_else_happens(home: House) -> None:
    sale = await home.sale("SCRIPT", 20, per_customer_limit=1)
    await home.open_sale(sale)
    first = await won(home, sale, *range(5))
    await home.worker_redis.script_flush()
    rest = await won(home, sale, *range(5, 20))
    assert [win.seq for win in first + rest] == list(range(1, 21))
    await settled(home, 20)
    assert await home.value("select count(*) from vf.leases") == 1
    assert await home.value("select fence_reason from vf.leases") is None


async def test_a_valkey_that_may_evict_is_fenced(home: House) -> None:
    sale = await home.sale("EVICT", 20)
    await home.open_sale(sale)
    first = await won(home, sale, *range(5))
    await home.worker_redis.config_set("maxmemory-policy", "allkeys-lru")
    assert await fenced_and_settled(home, "maxmemory-policy is allkeys-lru") == (5, 15, 0)
    await home.worker_redis.config_set("maxmemory-policy", "noeviction")
    assert await sold_the_rest(home, sale, first, range(5, 25)) == 15


async def test_a_restored_backup_of_valkey_is_told_by_the_marks_and_sells_no_number_twice(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale = await home.sale("BACKUP", 60, per_customer_limit=1)
    await home.open_sale(sale)
    first = await won(home, sale, *range(10))
    folder = next(data_dir.rglob("appendonlydir"))
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    await home.stop_reconciler()
    first += await won(home, sale, *range(10, 30))
    await kill(own_valkey, "valkey")
    shutil.rmtree(folder)
    backup.rename(folder)
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, folder.parent.stat().st_uid, folder.parent.stat().st_gid)
    own_valkey.start_one("valkey")
    reconciling = asyncio.create_task(home.reconciler.run())
    assert await fenced_and_settled(home, "workers answered up to 30") == (30, 30, 20)
    assert await sold_the_rest(home, sale, first, range(30, 70)) == 30
    await settled(home, 40)
    shown = await home.shown(sale)
    assert (shown.claimed, shown.written_off, shown.remaining) == (40, 20, 0)
    assert await claim_until_answered(home, sale, 3) == first[3]
    await end(reconciling)


async def replicate_once(primary: Any, replica: Servers) -> None:
    """Make a true replica, and part it from its primary as soon as it has everything."""
    port = free_port()
    await primary.config_set("port", port)
    client = redis.asyncio.from_url(replica.redis_url or "")
    await client.replicaof("127.0.0.1", port)
    while (await client.info("replication")).get("master_link_status") != "up":
        await asyncio.sleep(0.02)
    await client.replicaof("no", "one")
    await client.aclose()


async def test_a_stale_replica_that_was_promoted_sells_no_number_twice(
    settings: Settings, own_valkey: Servers, data_dir: Path
) -> None:
    (data_dir / "second").mkdir()
    replica = Servers(data_dir / "second", postgres=False)
    replica.start()
    address = data_dir / "sock" / "redis.sock"
    address.parent.mkdir()
    primary = (own_valkey.redis_url or "").removeprefix("unix://")
    address.symlink_to(primary)
    try:
        async with house_on(settings, redis_url=f"unix://{address}") as home:
            sale = await home.sale("STALE", 60, per_customer_limit=1)
            await home.open_sale(sale)
            first = await won(home, sale, *range(10))
            await settled(home, 10)
            await replicate_once(home.worker_redis, replica)
            first += await won(home, sale, *range(10, 25))
            await settled(home, 25)
            address.unlink()
            address.symlink_to((replica.redis_url or "").removeprefix("unix://"))
            await kill(own_valkey, "valkey")
            assert await fenced_and_settled(home, "Redis knows 10, PostgreSQL has 25") == (
                25,
                35,
                0,
            )
            assert await sold_the_rest(home, sale, first, range(25, 65)) == 35
            await settled(home, 60)
            assert await home.value("select count(*) from vf.quarantine") == 0
    finally:
        replica.stop()


async def test_a_lost_node_costs_at_most_the_backlog_and_what_is_left_is_sold(
    home: House,
) -> None:
    """Nobody can tell what a lost node answered, so what it may have answered is written off."""
    sale = await home.sale("GONE", 40, per_customer_limit=1)
    await home.open_sale(sale)
    first = await won(home, sale, *range(10))
    await settled(home, 10)
    lease = await home.value("update vf.leases set backlog_max = 12 returning id")
    await home.owner.execute(
        "insert into vf.lease_workers (lease_id, worker_id, node_id, seen_at)"
        " values ($1, 'gone:0', 'gone', now() - interval '1 minute')",
        lease,
    )
    await home.worker_redis.flushall()
    assert await fenced_and_settled(home, "gone from Redis") == (22, 18, 12)
    assert await sold_the_rest(home, sale, first, range(10, 40)) == 18
    assert outcome(await claim_until_answered(home, sale, 99)) == "sold_out"


async def test_a_sale_of_which_everything_left_was_written_off_says_sold_out(
    home: House,
) -> None:
    sale = await home.sale("ALLGONE", 15)
    await home.open_sale(sale)
    first = await won(home, sale, 0, 1)
    await settled(home, 2)
    await home.owner.execute(
        "insert into vf.lease_workers (lease_id, worker_id, node_id, seen_at)"
        " select id, 'gone:0', 'gone', now() - interval '1 minute' from vf.leases"
    )
    await home.worker_redis.flushall()
    assert await fenced_and_settled(home, "gone from Redis") == (15, 0, 13)
    assert outcome(await claim_until_answered(home, sale, 5)) == "sold_out"
    assert outcome(await claim_until_answered(home, sale, 1)) == "won"
    assert await claim_until_answered(home, sale, 0) == first[0]
    shown = await home.shown(sale)
    assert (shown.status, shown.claimed, shown.written_off) == ("sold_out", 2, 13)


async def roll_back(home: House, win: Any) -> redemptions.RolledBack:
    back = parse_id("rdm", win.redemption_id)
    assert back is not None
    async with home.services.database.transaction(home.project_id) as conn:
        done = await redemptions.roll_back(conn, home.caller, back, "a test")
    assert isinstance(done, redemptions.RolledBack)
    return done


async def test_a_customer_is_released_however_long_redis_was_away_at_the_rollback(
    home: House, own_valkey: Servers
) -> None:
    sale = await home.sale("AWAY", 5, per_customer_limit=1)
    await home.open_sale(sale)
    first = await won(home, sale, 0, 1)
    await settled(home, 2)
    await kill(own_valkey, "valkey")
    done = await roll_back(home, first[0])
    back = parse_id("rdm", first[0].redemption_id)
    assert back is not None
    await home.doors.desk.leases.give_back(home.project_id, back, done)
    own_valkey.start_one("valkey")
    assert outcome(await claim_until_answered(home, sale, 1)) == "won"
    for _ in range(100):
        again = await home.claim(sale, "c0", key="again")
        if outcome(again) == "won":
            break
        assert outcome(again) in ("customer_limit_reached", "unavailable", "outcome_unknown")
        await asyncio.sleep(0.05)
    assert outcome(again) == "won"
    assert outcome(await home.claim(sale, "c0", key="more")) == "customer_limit_reached"
    assert outcome(await home.claim(sale, "c1", key="more")) == "customer_limit_reached"
    await settled(home, 3)


async def test_a_redemption_from_before_the_sale_that_is_rolled_back_frees_its_customer_in_it(
    home: House,
) -> None:
    await home.voucher("BOTH", max_redemptions=9, per_customer_limit=1)
    before = await home.redeem("BOTH", "c0", key="before")
    undone = await home.redeem("BOTH", "c1", key="undone")
    await roll_back(home, undone)
    sale = await home.sale("BOTH", 5, voucher="BOTH")
    await home.open_sale(sale)
    assert outcome(await home.claim(sale, "c0", key="in-0")) == "customer_limit_reached"
    assert outcome(await home.claim(sale, "c1", key="in-1")) == "won"
    await roll_back(home, before)
    await asyncio.sleep(2.5)
    assert outcome(await home.claim(sale, "c0", key="in-0")) == "won"
    # What was rolled back before the lease was loaded is not given back a second time.
    assert outcome(await home.claim(sale, "c1", key="two")) == "customer_limit_reached"


async def test_a_paused_campaign_stops_its_armed_sale_and_resuming_lets_it_go_on(
    home: House,
) -> None:
    campaign = await home.campaign(max_redemptions=50)
    await home.voucher("OFCAMP", campaign_id=campaign)
    sale = await home.sale("OFCAMP", 5, voucher="OFCAMP")
    await home.open_sale(sale)
    assert outcome(await home.claim(sale, "a")) == "won"
    name = ids.format_id("cmp", campaign)
    moves: tuple[tuple[campaigns.Move, str], ...] = (("pause", "paused"), ("resume", "won"))
    for move, wanted in moves:
        async with home.services.database.transaction(home.project_id) as conn:
            await campaigns.switch(conn, home.caller, name, move)
        await asyncio.sleep(1.0)
        assert outcome(await home.claim(sale, f"b-{move}")) == wanted
    shown = await home.shown(sale)
    assert (shown.status, shown.claimed) == ("open", 2)


async def test_a_sale_that_grew_while_redis_was_away_sells_what_it_grew_by(
    home: House, own_valkey: Servers
) -> None:
    sale = await home.sale("GREW", 5)
    await home.open_sale(sale)
    first = await won(home, sale, *range(5))
    await kill(own_valkey, "valkey")
    with pytest.raises(Unavailable):
        await home.doors.desk.patch(home.project_id, sale, FlashSalePatch(stock=9))
    own_valkey.start_one("valkey")
    rest = []
    for n in range(5, 12):
        answer = await claim_until_answered(home, sale, n)
        while n < 9 and outcome(answer) == "sold_out":
            await asyncio.sleep(0.1)
            answer = await claim_until_answered(home, sale, n)
        rest.append(answer)
    assert [outcome(a) for a in rest] == ["won"] * 4 + ["sold_out"] * 3
    assert [win.seq for win in first + rest[:4]] == list(range(1, 10))
    assert await home.value("select array_agg(size order by size) from vf.lease_grants") == [5, 9]
    await settled(home, 9)
