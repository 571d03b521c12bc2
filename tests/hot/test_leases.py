"""Arming, steering and reading a lease, and a crowd's facts: what each step refuses."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis
from redis.asyncio import Redis

from core.hot import Outcome, crowds, keys, leases
from core.hot.leases import LeaseFacts, Win
from core.hot.rust import RustBackend
from tests.hot.worlds import FINGERPRINT, HotServer, claim, outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(hot_server: HotServer, hot_client: redis.Redis) -> AsyncIterator[Redis]:
    made = Redis.from_url(hot_server.url)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def backend(hot_server: HotServer) -> AsyncIterator[RustBackend]:
    made = RustBackend(hot_server.url)
    try:
        yield made
    finally:
        await made.aclose()


def new_id() -> str:
    return str(uuid.uuid4())


async def open_slot(client: Redis, backend: RustBackend, lease_id: str) -> int:
    return backend.open_lease(lease_id, (await leases.server_facts(client)).run_id)


async def test_arming_loads_everything_before_it_opens(client: Redis) -> None:
    lease_id = new_id()
    facts = LeaseFacts(
        lease_id=lease_id, size=7, backlog_max=3, start_ms=1, end_ms=2, customer_limit=1,
        pg_system="7301", pg_timeline="1", sale="fls_1", project="prj_1",
    )  # fmt: skip

    async def records() -> AsyncIterator[leases.Record]:
        for n in range(1_203):
            state = await leases.read_state(client, lease_id)
            assert state is not None
            assert (state.state, state.ready) == ("arming", False)
            yield (f"k{n}", FINGERPRINT, n, 0, b"{}")

    customers = [(f"c{n}", 1, f"rdm_{n}") for n in range(700)]
    assert await leases.arm(client, facts, records(), customers)
    assert await leases.read_state(client, lease_id) == leases.LeaseState(
        lease_id=lease_id, state="open", ready=True, issued=0, size=7, accounted=0, backlog_max=3,
        start_ms=1, end_ms=2, customer_limit=1, pg_system="7301", pg_timeline="1",
        sale="fls_1", project="prj_1",
    )  # fmt: skip
    names = keys.of_lease(lease_id)
    assert await client.hlen(names[1]) == 1_203
    assert await client.hlen(names[2]) == 700
    assert await client.hget(names[1], "k5") == f"{FINGERPRINT}|0|5|0|{{}}".encode()


async def test_a_lease_that_was_ready_is_never_armed_again(
    client: Redis, backend: RustBackend
) -> None:
    lease_id = new_id()
    assert await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5))
    slot = await open_slot(client, backend, lease_id)
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    assert not await leases.arm(client, LeaseFacts(lease_id=lease_id, size=99))
    state = await leases.read_state(client, lease_id)
    assert state is not None
    assert (state.issued, state.size) == (1, 5)


async def test_a_loader_that_was_overtaken_changes_nothing(client: Redis) -> None:
    lease_id = new_id()
    facts = LeaseFacts(lease_id=lease_id, size=5)
    may_go_on = asyncio.Event()

    async def slow() -> AsyncIterator[leases.Record]:
        await may_go_on.wait()
        yield ("late", FINGERPRINT, 1, 0, b"{}")

    overtaken = asyncio.create_task(leases.arm(client, facts, slow()))
    while await leases.read_state(client, lease_id) is None:
        await asyncio.sleep(0.001)
    assert await leases.arm(client, facts, [("good", FINGERPRINT, 1, 0, b"{}")])
    may_go_on.set()
    assert not await overtaken
    assert await client.hkeys(keys.of_lease(lease_id)[1]) == [b"good"]


async def test_states_only_move_forward(client: Redis) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5, state="arming"))
    reached = []
    for wanted in ("open", "paused", "open", "arming", "closed", "open", "fenced", "closed"):
        state = await leases.set_state(client, lease_id, wanted)
        assert state is not None
        reached.append(state.state)
    assert reached == ["open", "paused", "open", "open", "closed", "closed", "fenced", "fenced"]
    assert await leases.set_state(client, new_id(), "open") is None


async def test_an_unloaded_lease_never_opens(client: Redis) -> None:
    lease_id = new_id()
    await client.hset(
        keys.of_lease(lease_id)[0], mapping={"lease": lease_id, "state": "arming", "size": 5}
    )
    state = await leases.set_state(client, lease_id, "open")
    assert state is not None
    assert state.state == "arming"


async def test_size_and_accounted_only_rise(client: Redis) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5))
    for size, stored in ((9, 9), (7, 9), (10, 10)):
        state = await leases.grow(client, lease_id, size)
        assert state is not None
        assert state.size == stored
    assert await leases.raise_accounted(client, lease_id, 3) == 3
    assert await leases.raise_accounted(client, lease_id, 2) == 3
    assert await leases.raise_accounted(client, new_id(), 2) is None
    state = await leases.set_end(client, lease_id, 77)
    assert state is not None
    assert state.end_ms == 77


async def test_a_customer_is_released_once_for_one_redemption(
    client: Redis, backend: RustBackend
) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5, customer_limit=1))
    slot = await open_slot(client, backend, lease_id)
    assert await outcome(claim(backend, slot, "k1", "c1")) is Outcome.WON
    assert await outcome(claim(backend, slot, "k2", "c1")) is Outcome.CUSTOMER_LIMIT
    assert await leases.release(client, lease_id, "c1", "rdm_1")
    assert not await leases.release(client, lease_id, "c1", "rdm_1")
    assert not await leases.release(client, lease_id, "c1", "rdm_2")
    assert not await leases.release(client, lease_id, "nobody", "rdm_3")
    assert await outcome(claim(backend, slot, "k3", "c1")) is Outcome.WON
    assert await outcome(claim(backend, slot, "k4", "c1")) is Outcome.CUSTOMER_LIMIT


async def test_wins_are_read_in_order_with_all_they_carry(
    client: Redis, backend: RustBackend
) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5, customer_limit=3))
    slot = await open_slot(client, backend, lease_id)
    payload = '{"id":"rdm_1","name":"é"}'.encode()
    first = await claim(backend, slot, "k1", "c1", payload=payload)
    await asyncio.gather(claim(backend, slot), claim(backend, slot, "k3", "c3"))
    entries = await leases.read_wins(client, lease_id)
    assert entries[0].at_ms == first[2]
    assert [win for entry in entries for win in entry.wins] == [
        Win(1, "k1", FINGERPRINT, "c1", payload, 4),
        Win(2, None, FINGERPRINT, None, b"{}", 3),
        Win(3, "k3", FINGERPRINT, "c3", b"{}", 2),
    ]
    after = await leases.read_wins(client, lease_id, entries[0].id, 1)
    assert [entry.id for entry in after] == [entries[1].id]
    assert await leases.read_wins(client, lease_id, entries[-1].id) == []
    assert await leases.read_wins(client, lease_id, entries[-1].id, block_ms=10) == []
    assert await leases.trim(client, lease_id, entries[1].id) == 1
    assert [entry.id for entry in await leases.read_wins(client, lease_id)] == [
        entry.id for entry in entries[1:]
    ]


async def test_an_unreadable_entry_is_reported_and_stops_nobody(client: Redis) -> None:
    lease_id = new_id()
    stream = keys.of_lease(lease_id)[3]
    packed = msgspec.msgpack.encode([["k", FINGERPRINT, "", "{}"]])
    good: dict[Any, Any] = {"f": 4, "t": 9, "r": 1, "d": packed}
    await client.xadd(stream, {**good, "d": b"\xc1"})
    await client.xadd(stream, {"f": "x"})
    await client.xadd(stream, good)
    entries = await leases.read_wins(client, lease_id)
    assert [entry.fault is None for entry in entries] == [False, False, True]
    assert entries[0].wins == []
    assert entries[0].raw[b"d"] == b"\xc1"
    assert entries[2].wins == [Win(4, "k", FINGERPRINT, None, b"{}", 1)]


async def test_a_retired_lease_leaves_its_stream_and_facts_for_as_long_as_they_are_kept(
    client: Redis, backend: RustBackend
) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5, customer_limit=3))
    slot = await open_slot(client, backend, lease_id)
    await claim(backend, slot, "k1", "c1")
    await leases.retire(client, lease_id, serve_s=0, keep_s=100)
    assert await leases.read_state(client, lease_id) is None
    kept = [keys.of_settled(lease_id), keys.of_lease(lease_id)[3]]
    assert sorted(await client.keys(f"*{lease_id}*")) == sorted(key.encode() for key in kept)
    assert [0 < await client.ttl(key) <= 100 for key in kept] == [True, True]
    assert await client.hget(kept[0], "issued") == b"1"
    assert [win.key for e in await leases.read_wins(client, lease_id) for win in e.wins] == ["k1"]
    assert (await claim(backend, slot, "k2", "c2"))[0] == Outcome.UNAVAILABLE


async def test_a_retired_lease_that_nobody_keeps_leaves_nothing(client: Redis) -> None:
    lease_id = new_id()
    await leases.arm(client, LeaseFacts(lease_id=lease_id, size=5))
    await leases.retire(client, lease_id, serve_s=0, keep_s=0)
    assert await client.keys(f"*{lease_id}*") == []


async def test_a_stream_is_cut_to_its_bytes_and_never_above_the_committed_offset(
    client: Redis,
) -> None:
    lease_id = new_id()
    stream = keys.of_lease(lease_id)[3]
    for n in range(2_000):
        await client.xadd(stream, {"d": "x" * 500}, id=f"{1_000 + n}-0")
    whole = await client.memory_usage(stream)
    assert await leases.trim_to_bytes(client, lease_id, whole, "2999-0") == 0
    assert await leases.trim_to_bytes(client, lease_id, whole // 2, "2999-0") in range(950, 1_050)
    assert await client.memory_usage(stream) <= whole * 0.55
    assert await leases.trim_to_bytes(client, lease_id, 1, "2500-0") > 0
    assert (await client.xrange(stream, count=1))[0][0] == b"2500-0"


async def test_what_keeps_a_sale_from_arming_is_said_plainly(client: Redis) -> None:
    now = await leases.server_facts(client)
    facts = await leases.server_facts(client, now.time_ms)
    assert leases.arming_faults(facts) == []
    weak = msgspec.structs.replace(
        facts, aof_enabled=False, appendfsync="everysec", maxmemory_policy=None, skew_ms=-400,
        role="slave",
    )  # fmt: skip
    assert leases.arming_faults(weak) == [
        "This Redis is a slave, not a primary.",
        "The append-only file is off; set appendonly yes.",
        "appendfsync is everysec; it must be always.",
        "This Redis does not tell maxmemory-policy, which must be noeviction.",
        "Redis's clock is -400 ms from PostgreSQL's; 250 ms are allowed.",
    ]


async def test_an_older_writer_cannot_undo_newer_facts(client: Redis, backend: RustBackend) -> None:
    voucher = new_id()
    slot = backend.open_crowd(voucher, "sys")
    assert await crowds.put(client, voucher, "sys", 4)
    assert not await crowds.put(client, voucher, "sys", 3)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.SOLD_OUT
    assert await crowds.clear(client, voucher, 5)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.ASK
    assert not await crowds.renew(client, voucher, 4)
    assert not await crowds.put(client, voucher, "sys", 5)
    assert not await crowds.clear(client, voucher, 4)
    assert await crowds.put(client, voucher, "sys", 6)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.SOLD_OUT
    assert 0 < await client.pttl(keys.of_crowd(voucher)[0]) <= crowds.FACTS_TTL_MS


async def test_facts_that_nobody_renews_stop_counting_after_a_second(
    client: Redis, backend: RustBackend
) -> None:
    voucher = new_id()
    slot = backend.open_crowd(voucher, "sys")
    assert await crowds.put(client, voucher, "sys", 1)
    fresh = keys.of_crowd(voucher)[3]
    assert 0 < await client.pttl(fresh) <= crowds.FRESH_MS
    await client.pexpire(fresh, 1)
    await asyncio.sleep(0.01)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.ASK
    assert await crowds.renew(client, voucher, 1)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.SOLD_OUT


async def test_a_server_that_stood_still_is_not_taken_for_a_clock_that_is_ahead(
    client: Redis,
) -> None:
    now = await leases.server_facts(client)
    # Reads are held back as well: TIME is answered, and read off the clock, 600 ms later.
    await client.execute_command("CLIENT", "PAUSE", "600", "ALL")
    late = await leases.server_facts(client, now.time_ms)
    assert late.time_ms - now.time_ms >= 500
    assert late.skew_ms is not None and late.skew_ms < leases.CLOCK_SKEW_MS_MAX
    # Nor does waiting excuse a clock that is behind, or one that is truly ahead.
    ahead = await leases.server_facts(client, late.time_ms - 60_000)
    behind = await leases.server_facts(client, late.time_ms + 60_000)
    assert leases.arming_faults(ahead) and leases.arming_faults(behind)


async def test_a_process_that_stood_still_is_not_taken_for_a_clock_that_is_ahead(
    client: Redis,
) -> None:
    asked_at_s = time.monotonic()
    now = await leases.server_facts(client)
    await asyncio.sleep(0.6)
    late = await leases.server_facts(client, now.time_ms, asked_at_s)
    assert late.time_ms - now.time_ms >= 500
    assert late.skew_ms is not None and late.skew_ms < leases.CLOCK_SKEW_MS_MAX
    truly = await leases.server_facts(client, late.time_ms - 60_000, asked_at_s)
    assert leases.arming_faults(truly)


async def test_facts_that_took_long_to_load_count_once_renewed(
    client: Redis, backend: RustBackend
) -> None:
    voucher = new_id()
    slot = backend.open_crowd(voucher, "sys")

    async def slow() -> AsyncIterator[leases.Record]:
        yield ("k", FINGERPRINT, 1, 0, b"{}")
        await asyncio.sleep(crowds.FRESH_MS / 1000 + 0.05)

    assert await crowds.put(client, voucher, "sys", 1, slow())
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.ASK
    assert await crowds.renew(client, voucher, 1)
    assert await outcome(claim(backend, slot, "k", payload=b"")) is Outcome.REPLAYED


async def test_facts_count_only_when_complete(client: Redis, backend: RustBackend) -> None:
    voucher = new_id()
    slot = backend.open_crowd(voucher, "sys")
    seen: list[Outcome] = []

    async def records() -> AsyncIterator[leases.Record]:
        for n in range(600):
            if n == 550:
                seen.append(await outcome(claim(backend, slot, "k0", payload=b"")))
                assert not await crowds.renew(client, voucher, 1)
                assert not await crowds.put(client, voucher, "sys", 1)
            yield (f"k{n}", FINGERPRINT, n, 0, b"{}")

    assert await crowds.put(client, voucher, "sys", 1, records())
    assert seen == [Outcome.ASK]
    assert await outcome(claim(backend, slot, "k0", payload=b"")) is Outcome.REPLAYED
