"""claim.lua and crowd.lua against the reference, item by item, and what they never write."""

import uuid
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vauchflow_hotpath import CLAIM_LUA

from core.hot import Outcome, keys
from core.hot.leases import LeaseFacts
from tests.hot.memory import Item, MemoryLease
from tests.hot.worlds import FINGERPRINT, OTHER_FINGERPRINT

FAR_MS = 4_000_000_000_000  # the year 2096

_items = st.tuples(
    st.sampled_from(["", "", "k1", "k2", "k3", "ключ", "old"]),
    st.sampled_from([FINGERPRINT, FINGERPRINT, OTHER_FINGERPRINT]),
    st.sampled_from(["", "c1", "c2", "c|3"]),
    st.sampled_from([b"", b"{}", b'{"a":"|"}', "é€".encode()]),
)
_facts = st.fixed_dictionaries(
    {
        "size": st.integers(0, 8),
        "backlog_max": st.sampled_from([0, 2, 1_000]),
        "customer_limit": st.integers(0, 2),
        "start_ms": st.sampled_from([0, 0, 1, FAR_MS]),
        "end_ms": st.sampled_from([0, 0, 1, FAR_MS]),
        "state": st.sampled_from(["open", "open", "open", "arming", "paused"]),
    }
)


def store(client: redis.Redis, lease: MemoryLease) -> tuple[str, str, str, str]:
    """Write a lease as arming does, without asking the code under test."""
    facts = lease.facts
    names = keys.of_lease(facts.lease_id)
    client.hset(
        names[0],
        mapping={
            "lease": facts.lease_id, "state": lease.state, "issued": 0, "size": lease.size,
            "accounted": 0, "backlog_max": facts.backlog_max, "start_ms": facts.start_ms,
            "end_ms": facts.end_ms, "customer_limit": facts.customer_limit,
        },
    )  # fmt: skip
    if lease.records:
        client.hset(names[1], mapping=cast("dict[Any, Any]", lease.records))
    for customer, (count, reference) in lease.customers.items():
        client.hset(names[2], customer, f"{count}|{reference}")
    return names


def run(client: redis.Redis, lease_id: str, items: list[Item]) -> list[int | bytes]:
    flat = [value for item in items for value in item]
    names = keys.of_lease(lease_id)
    reply = client.eval(CLAIM_LUA, 4, *names, lease_id, len(items), *flat)
    assert isinstance(reply, list)
    return reply


@pytest.fixture(scope="module")
def plain_client(hot_server: object) -> Iterator[redis.Redis]:
    with hot_server.client() as client:  # type: ignore[attr-defined]
        yield client


@given(facts=_facts, batches=st.lists(st.lists(_items, min_size=1, max_size=7), max_size=4))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_folded_batch_answers_as_its_items_would_one_by_one(
    plain_client: redis.Redis, facts: dict[str, object], batches: list[list[Item]]
) -> None:
    lease_id = str(uuid.uuid4())
    lease = MemoryLease.armed(
        LeaseFacts(lease_id=lease_id, **facts),  # type: ignore[arg-type]
        [("old", FINGERPRINT, 5, 1, b"{}")],
        [("c2", 1, "rdm_2")],
    )
    names = store(plain_client, lease)
    for items in batches:
        at_ms, size, *told = run(plain_client, lease_id, items)
        assert isinstance(at_ms, int)
        assert told == [lease.claim(item, at_ms) for item in items]
        assert size == lease.size
    stored = plain_client.hgetall(names[0])
    assert int(stored[b"issued"]) == lease.issued
    found: dict[Any, Any] = plain_client.hgetall(names[1])
    records = {key.decode(): value for key, value in found.items()}
    assert records == lease.records
    customers: dict[Any, Any] = plain_client.hgetall(names[2])
    assert {name.decode(): value.decode() for name, value in customers.items()} == {
        name: f"{count}|{reference}" for name, (count, reference) in lease.customers.items()
    }
    plain_client.delete(*names)


def told(order_id: str | None, metadata: dict[str, str]) -> bytes:
    """Write what travels with a claim, as the product does."""
    return msgspec.json.encode((5_000, 0, order_id, msgspec.json.encode(metadata).decode()))


def test_who_is_blocked_is_refused_whatever_else_their_claim_says(hot_client: redis.Redis) -> None:
    lease_id = str(uuid.uuid4())
    state, _, customers, _ = store(
        hot_client, MemoryLease.armed(LeaseFacts(lease_id=lease_id, size=9), [])
    )
    hot_client.hset(state, "blocks", 1)
    until = {"customer eve": 0, "customer zoe": 1, "address aa": 0, "device dd": FAR_MS}
    marks = {f"\0b {name}": at_ms for name, at_ms in until.items()}
    hot_client.hset(customers, mapping=cast("dict[Any, Any]", marks))
    here = {"_address": "aa", "_device": "cc"}
    there = {"_address": "bb", "_device": "dd"}
    lies = {'A"_address': "cc", "B": ',"_address":"cc', 'A,"_device': "cc"}
    blocked = -int(Outcome.BLOCKED)
    for customer, order_id, metadata, answer in (
        ("eve", None, {}, blocked),
        ("zoe", None, {}, 1),
        ("ann", None, here, blocked),
        ("ann", None, there, blocked),
        ("ann", '{"_address":"cc', {**lies, **here}, blocked),
        ("ann", '{"_device":"cc', {**lies, **there}, blocked),
        ("ann", None, {**lies, "_address": "bb"}, 2),
    ):
        item = ("", FINGERPRINT, customer, told(order_id, dict(sorted(metadata.items()))))
        assert run(hot_client, lease_id, [item])[2:] == [answer], (customer, metadata)
    hot_client.hset(customers, "\0b code", 0)
    assert run(hot_client, lease_id, [("", FINGERPRINT, "ann", told(None, {}))])[2:] == [blocked]


def test_a_batch_of_refusals_writes_nothing(hot_client: redis.Redis) -> None:
    lease_id = str(uuid.uuid4())
    lease = MemoryLease.armed(
        LeaseFacts(lease_id=lease_id, size=1, customer_limit=1),
        [("old", FINGERPRINT, 5, 1, b"{}")],
    )
    store(hot_client, lease)
    assert run(hot_client, lease_id, [("k1", FINGERPRINT, "c1", b"{}")])[2:] == [1]
    before = hot_client.info("persistence")
    told = run(
        hot_client,
        lease_id,
        [
            ("k1", FINGERPRINT, "c1", b"{}"),
            ("k1", OTHER_FINGERPRINT, "c1", b"{}"),
            ("old", FINGERPRINT, "c2", b"{}"),
            ("k2", FINGERPRINT, "c2", b"{}"),
        ],
    )[2:]
    assert [answer if isinstance(answer, int) else answer[:1] for answer in told] == [
        b"R", -Outcome.MISMATCH, b"R", -Outcome.SOLD_OUT,
    ]  # fmt: skip
    after = hot_client.info("persistence")
    for name in ("aof_current_size", "rdb_changes_since_last_save"):
        assert after[name] == before[name]


def test_one_batch_is_one_stream_entry(hot_client: redis.Redis) -> None:
    lease_id = str(uuid.uuid4())
    names = store(hot_client, MemoryLease.armed(LeaseFacts(lease_id=lease_id, size=5_000)))
    items = [(f"k{n}", FINGERPRINT, f"c{n}", b"{}") for n in range(3_000)]
    assert run(hot_client, lease_id, items)[2:] == list(range(1, 3_001))
    assert hot_client.xlen(names[3]) == 1
    assert hot_client.hlen(names[1]) == 3_000


def test_a_server_without_memory_refuses_a_batch_whole(hot_client: redis.Redis) -> None:
    lease_id = str(uuid.uuid4())
    names = store(hot_client, MemoryLease.armed(LeaseFacts(lease_id=lease_id, size=5)))
    hot_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            run(hot_client, lease_id, [("k1", FINGERPRINT, "c1", b"{}")])
    finally:
        hot_client.config_set("maxmemory", 0)
    assert hot_client.xlen(names[3]) == 0
    assert hot_client.hget(names[0], "issued") == b"0"
    assert hot_client.hlen(names[1]) == 0
