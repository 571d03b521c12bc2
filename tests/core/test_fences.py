"""A Redis that comes back: the same data goes on, other data is fenced, settled and re-armed."""

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core import worker
from core.endings import end
from core.local import Servers
from core.redemptions import Redemption
from core.settings import Settings
from tests.core.conftest import House

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
    opened = House(msgspec.structs.replace(settings, redis_url=own_valkey.redis_url or ""))
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


def outcome(answer: Any) -> str:
    return "won" if isinstance(answer, Redemption) else str(answer.code)


async def kill_valkey(servers: Servers) -> None:
    process = servers.processes["valkey"]
    os.kill(process.pid, signal.SIGKILL)
    while process.exit_status() is None:
        await asyncio.sleep(0.01)


async def claim_until_answered(home: House, sale: Any, n: int) -> Any:
    """Claim like an honest client: not applied or unknown is asked again with the same key."""
    for _ in range(400):
        answer = await home.claim(sale, f"c{n}", key=f"k{n}")
        if outcome(answer) not in ("unavailable", "overloaded", "outcome_unknown"):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError("no answer within 20 seconds")


async def test_a_sale_goes_on_when_valkey_is_killed_and_keeps_its_data(
    home: House, own_valkey: Servers
) -> None:
    sale = await home.sale("DROP", 2_000, per_customer_limit=1)
    await home.open_sale(sale)
    lease = await home.value("select id from vf.leases")
    crowd = [asyncio.create_task(claim_until_answered(home, sale, n)) for n in range(3_000)]
    await asyncio.sleep(0.15)
    await kill_valkey(own_valkey)
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
    await kill_valkey(own_valkey)
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
