"""A sale in a cluster: its slot moves, its master dies or loses everything, and no unit is sold
twice; what other masters have is not touched."""

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest

from core import worker
from core.redemptions import Redemption
from core.settings import Settings
from tests.core.conftest import House
from tests.core.homes import claim_until_answered, house_on, outcome
from tests.masters import Master, Masters, masters

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster() -> Iterator[Masters]:
    with masters() as made:
        yield made


@pytest.fixture
async def home(settings: Settings, cluster: Masters) -> AsyncIterator[House]:
    for master in cluster.all:
        master.ask("FLUSHALL")
    async with house_on(settings, redis_url=cluster.url) as opened:
        yield opened


async def opened(home: House, cluster: Masters, name: str, stock: int) -> tuple[UUID, str, Master]:
    """Open a fast sale; returns it, its lease and the master that holds it."""
    sale = await home.sale(name, stock, per_customer_limit=1)
    await home.open_sale(sale)
    lease = str(await home.value("select id from vf.leases where sale_id = $1", sale))
    return sale, lease, cluster.of(lease)


class Crowd:
    """Twenty lanes of customers, one claim each, for as long as it lasts."""

    def __init__(self, home: House, sale: UUID) -> None:
        self._home, self._sale, self._is_over = home, sale, False
        self._numbers = itertools.count()
        self.answers: dict[int, Any] = {}
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(20)]

    async def _lane(self) -> None:
        while not self._is_over:
            n = next(self._numbers)
            self.answers[n] = await claim_until_answered(self._home, self._sale, n)

    async def wins(self, more: int) -> None:
        """Wait until so many more have been answered."""
        wanted = len(self.answers) + more
        while len(self.answers) < wanted:
            await asyncio.sleep(0.01)

    async def goes_home(self) -> int:
        """End it; returns how many have won, which must be all, each another number."""
        self._is_over = True
        await asyncio.gather(*self._lanes)
        assert {outcome(answer) for answer in self.answers.values()} == {"won"}
        assert len({answer.seq for answer in self.answers.values()}) == len(self.answers)
        return len(self.answers)


async def test_a_sale_goes_on_where_its_slot_has_moved(home: House, cluster: Masters) -> None:
    sale, lease, was = await opened(home, cluster, "MOVED", 100_000)
    crowd = Crowd(home, sale)
    await crowd.wins(300)
    now = await asyncio.to_thread(cluster.move, lease)
    await crowd.wins(300)
    back = await asyncio.to_thread(cluster.move, lease)
    await crowd.wins(300)
    count = await crowd.goes_home()
    assert was is not now is not back
    assert await home.value("select run_id from vf.leases") == back.ask("INFO", "server")["run_id"]
    assert await claim_until_answered(home, sale, 0) == crowd.answers[0]
    await home.doors.desk.close(home.project_id, sale)
    await home.until("select count(*) from vf.leases where state = 'settled'", 1)
    row = await home.owner.fetchrow("select open_to, returned, burned from vf.leases")
    assert tuple(row) == (count, 100_000 - count, 0)
    assert await home.value("select count(*) from vf.redemptions") == count
    assert await home.value("select count(*) from vf.quarantine") == 0


async def test_a_killed_master_comes_back_with_its_sale_and_the_others_go_on(
    home: House, cluster: Masters
) -> None:
    sale, _, master = await opened(home, cluster, "KILLED", 100_000)
    other, elsewhere, number = sale, master, 0
    while elsewhere is master:
        number += 1
        other, _, elsewhere = await opened(home, cluster, f"OTHER{number}", 50)
    crowd = Crowd(home, sale)
    await crowd.wins(300)
    await asyncio.to_thread(master.kill)
    beside = [await home.claim(other, f"c{n}", key=f"o{n}") for n in range(20)]
    assert {outcome(answer) for answer in beside} == {"won"}
    await asyncio.to_thread(master.start)
    await crowd.wins(300)
    count = await crowd.goes_home()
    sold = "select count(*) from vf.redemptions r join vf.leases l on l.id = r.lease_id"
    await home.until(f"{sold} where l.sale_id = $1", count, sale)
    await home.until(f"{sold} where l.sale_id = $1", 20, other)
    assert await home.value("select count(*) from vf.leases where state = 'open'") == number + 1


async def test_a_master_that_lost_its_data_is_fenced_and_sells_no_number_twice(
    home: House, cluster: Masters
) -> None:
    sale, _, master = await opened(home, cluster, "LOST", 100)
    first = [await claim_until_answered(home, sale, n) for n in range(40)]
    await home.until("select count(*) from vf.redemptions", 40)
    await home.stop_reconciler()
    lost = [await claim_until_answered(home, sale, n) for n in range(40, 50)]
    assert Counter(map(outcome, first + lost)) == {"won": 50}
    await asyncio.to_thread(master.kill)
    shutil.rmtree(master.directory / "appendonlydir")
    await asyncio.to_thread(master.start)
    home.restart_reconciler()
    await home.until("select count(*) from vf.leases where state = 'settled'", 1, within_s=20)
    row = await home.owner.fetchrow("select open_to, returned, burned from vf.leases")
    assert tuple(row) == (50, 50, 10)
    await worker.look(home.clock)
    rest = [await claim_until_answered(home, sale, n) for n in range(50, 120)]
    assert Counter(map(outcome, rest)) == {"won": 50, "sold_out": 20}
    await home.until("select count(*) from vf.redemptions", 90)
    seqs = [one.seq for one in first + lost + rest if isinstance(one, Redemption)]
    assert len(set(seqs)) == len(seqs) == 100


async def test_the_crowd_of_a_strict_sale_is_answered_from_its_own_master(
    home: House, cluster: Masters
) -> None:
    sale = await home.sale("STRICT", 20, per_customer_limit=1, durability="strict")
    await home.open_sale(sale)
    answers = [await home.claim(sale, f"c{n}", key=f"k{n}") for n in range(25)]
    assert Counter(map(outcome, answers)) == {"won": 20, "sold_out": 5}
    voucher = str(await home.value("select id from vf.vouchers"))
    master = cluster.of(voucher)
    for _ in range(100):
        if master.ask("EXISTS", f"vf:{{{voucher}}}:f"):
            break
        await home.claim(sale, "late", key="late")
        await asyncio.sleep(0.02)
    assert master.ask("EXISTS", f"vf:{{{voucher}}}:f") == 1
    assert outcome(await home.claim(sale, "c99", key="k99")) == "sold_out"
    again = await home.claim(sale, "c3", key="k3")
    assert again == answers[3]
