"""What a claim leaves in Valkey: its stream entry until it is settled and trimmed, its record and
its customer's count while the sale is on, and nothing afterwards."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from core.hot import Outcome, leases
from core.hot.leases import LeaseFacts
from core.hot.rust import RustBackend
from tests.hot.worlds import FINGERPRINT, HotServer

pytestmark = pytest.mark.anyio

CLAIMS = 20_000
# Under way at once, below what the batcher queues.
TOGETHER = 4_000
# A record of about 90 bytes and a count of 10, each under a name of 18, in two hash tables: 185.
SETTLED_BYTES_MAX = 195
# Buffers of connections and loaded scripts, however many claims there were.
LEFT_IN_ALL_BYTES_MAX = 1_000_000
# As long as a claim's own: two amounts, and no order or metadata.
PAYLOAD = b"[8999,4500,null,null]"


@pytest.fixture
async def client(hot_server: HotServer, hot_client: redis.Redis) -> AsyncIterator[Redis]:
    made = Redis.from_url(hot_server.url)
    try:
        yield made
    finally:
        await made.aclose()


async def used_bytes(client: Redis) -> int:
    # Large values are freed by another thread.
    await asyncio.sleep(0.5)
    return int((await client.info("memory"))["used_memory"])


async def test_a_settled_claim_leaves_a_record_while_its_sale_is_on_and_nothing_after(
    hot_server: HotServer, client: Redis
) -> None:
    lease_id = str(uuid.uuid4())
    backend = RustBackend(hot_server.url)
    try:
        facts = LeaseFacts(lease_id=lease_id, size=CLAIMS, customer_limit=1)
        assert await leases.arm(client, facts)
        slot = backend.open_lease(lease_id, (await leases.server_facts(client)).run_id)
        before = await used_bytes(client)
        for first in range(0, CLAIMS, TOGETHER):
            answers = await asyncio.gather(
                *(
                    backend.claim(
                        slot, f"order-{n:012}", FINGERPRINT, f"customer-{n:09}", PAYLOAD, 5_000
                    )
                    for n in range(first, first + TOGETHER)
                )
            )
            assert {answer[0] for answer in answers} == {Outcome.WON}
        unsettled = (await used_bytes(client) - before) / CLAIMS
        entries = await leases.read_wins(client, lease_id, count=CLAIMS)
        assert sum(len(entry.wins) for entry in entries) == CLAIMS
        assert await leases.raise_accounted(client, lease_id, CLAIMS) == CLAIMS
        last_ms = int(entries[-1].id.partition("-")[0])
        await leases.trim(client, lease_id, f"{last_ms + 1}-0")
        settled = (await used_bytes(client) - before) / CLAIMS
        await leases.retire(client, lease_id, serve_s=0, keep_s=0)
        left = await used_bytes(client) - before
    finally:
        await backend.aclose()
    print(f"{unsettled:.0f} bytes unsettled, {settled:.0f} settled, {left:,} left in all")
    assert settled < unsettled - 50
    assert settled <= SETTLED_BYTES_MAX
    assert left <= LEFT_IN_ALL_BYTES_MAX
