"""One suite for every claim backend: what is answered, in which order, and what never happens."""

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from vauchflow_hotpath import Marks, read_marks

from core.hot import Outcome
from tests.hot.worlds import (
    FINGERPRINT,
    OTHER_FINGERPRINT,
    World,
    claim,
    outcome,
    until,
)

pytestmark = pytest.mark.anyio


async def test_a_win_is_the_next_number_and_says_what_remains(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=3)
    slot = backend.open_lease(lease, await world.run_id())
    before_ms = time.time_ns() // 1_000_000 - 1
    first = await claim(backend, slot, "k1", "c1")
    second = await claim(backend, slot, None, None)
    assert (first[0], first[1], first[3], first[4]) == (Outcome.WON, 1, 2, None)
    assert (second[0], second[1], second[3], second[4]) == (Outcome.WON, 2, 1, None)
    assert before_ms <= first[2] <= time.time_ns() // 1_000_000 + 1
    assert await world.wins(lease) == [(1, "k1", "c1"), (2, "", "")]
    assert backend.status().slots[slot].mark == 2


async def test_the_same_key_gets_the_first_answer_again_and_no_second_unit(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=3)
    slot = backend.open_lease(lease, await world.run_id())
    payload = '{"id":"rdm_1","note":"a|b é"}'.encode()
    won = await claim(backend, slot, "k1", payload=payload)
    again = await claim(backend, slot, "k1", payload=b"something else")
    assert again == (Outcome.REPLAYED, 1, won[2], 2, payload)
    other = claim(backend, slot, "k1", fingerprint=OTHER_FINGERPRINT)
    assert await outcome(other) is Outcome.MISMATCH
    assert await world.issued(lease) == 1


async def test_records_loaded_at_arming_are_replayed(world: World) -> None:
    backend = world.backend()
    record = ("old", FINGERPRINT, 1_700_000_000_000, 7, b'{"redemption_id":"rdm_old"}')
    lease = await world.arm(size=3, records=[record])
    slot = backend.open_lease(lease, await world.run_id())
    assert await claim(backend, slot, "old") == (
        Outcome.REPLAYED, 0, 1_700_000_000_000, 7, b'{"redemption_id":"rdm_old"}',
    )  # fmt: skip
    assert await world.issued(lease) == 0
    assert backend.status().slots[slot].mark == 0


async def test_duplicates_within_one_batch_win_once(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=10, customer_limit=1)
    slot = backend.open_lease(lease, await world.run_id())
    answers = await asyncio.gather(
        claim(backend, slot, "k", "c1"),
        claim(backend, slot, "k", "c1"),
        claim(backend, slot, "k", "c1", fingerprint=OTHER_FINGERPRINT),
        claim(backend, slot, "k2", "c1"),
        claim(backend, slot, "k3", "c2"),
    )
    outcomes = [Outcome(answer[0]) for answer in answers]
    assert outcomes == [
        Outcome.WON, Outcome.REPLAYED, Outcome.MISMATCH, Outcome.CUSTOMER_LIMIT, Outcome.WON,
    ]  # fmt: skip
    assert [answer[1] for answer in answers] == [1, 1, 0, 0, 2]
    assert answers[3][4] == b"1"
    assert await world.wins(lease) == [(1, "k", "c1"), (2, "k3", "c2")]


async def test_a_stock_is_sold_exactly_under_two_thousand_concurrent_claims(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=700)
    slot = backend.open_lease(lease, await world.run_id())
    answers = await asyncio.gather(
        *(claim(backend, slot, f"k{n}", f"c{n}", deadline_ms=30_000) for n in range(2_000))
    )
    wins = sorted(answer[1] for answer in answers if answer[0] == Outcome.WON)
    assert wins == list(range(1, 701))
    assert sum(answer[0] == Outcome.SOLD_OUT for answer in answers) == 1_300
    assert [seq for seq, _, _ in await world.wins(lease)] == list(range(1, 701))
    assert await world.issued(lease) == 700
    assert {answer[1] + answer[3] for answer in answers if answer[0] == Outcome.WON} == {700}


async def test_a_batch_is_never_larger_than_batch_max(world: World) -> None:
    backend = world.backend(batch_max=16)
    lease = await world.arm(size=500)
    slot = backend.open_lease(lease, await world.run_id())
    await asyncio.gather(*(claim(backend, slot, f"k{n}") for n in range(100)))
    assert backend.status().batches >= 7
    assert backend.status().items == 100


@pytest.mark.parametrize("state", ["paused", "closed"])
async def test_a_replay_is_answered_whatever_the_lease_has_come_to(
    world: World, state: str
) -> None:
    backend = world.backend()
    lease = await world.arm(size=1)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    assert await outcome(claim(backend, slot, "k2")) is Outcome.SOLD_OUT
    assert await outcome(claim(backend, slot, "k1")) is Outcome.REPLAYED
    await world.set_state(lease, "paused" if state == "paused" else "closed")
    refusal = Outcome.PAUSED if state == "paused" else Outcome.ENDED
    assert await outcome(claim(backend, slot, "k2")) is refusal
    assert (await claim(backend, slot, "k1"))[:2] == (Outcome.REPLAYED, 1)


async def test_checks_come_in_the_protocols_order(world: World) -> None:
    backend = world.backend()
    run_id = await world.run_id()
    held = [("c1", 1, "rdm_1")]
    now_ms = time.time_ns() // 1_000_000
    cases: list[tuple[dict[str, Any], Outcome]] = [
        ({"start_ms": now_ms + 60_000, "state": "paused"}, Outcome.NOT_STARTED),
        ({"state": "arming"}, Outcome.NOT_STARTED),
        ({"state": "paused", "size": 0}, Outcome.PAUSED),
        ({"end_ms": now_ms - 1, "size": 0}, Outcome.ENDED),
        ({"size": 0}, Outcome.SOLD_OUT),
        ({"backlog_max": 0}, Outcome.CUSTOMER_LIMIT),
        ({"backlog_max": 0, "customer_limit": 0}, Outcome.BUSY),
        ({"customer_limit": 2}, Outcome.WON),
    ]
    for facts, expected in cases:
        armed: dict[str, Any] = {"size": 5, "customer_limit": 1, **facts}
        lease = await world.arm(customers=held, **armed)
        slot = backend.open_lease(lease, run_id)
        assert await outcome(claim(backend, slot, "k", "c1")) is expected, facts


async def test_a_customer_limit_names_what_the_customer_has(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=9, customer_limit=2, customers=[("c9", 2, "rdm_nine")])
    slot = backend.open_lease(lease, await world.run_id())
    loaded = await claim(backend, slot, "k0", "c9")
    assert (loaded[0], loaded[1], loaded[4]) == (Outcome.CUSTOMER_LIMIT, 0, b"rdm_nine")
    assert await outcome(claim(backend, slot, "k1", "c1")) is Outcome.WON
    assert await outcome(claim(backend, slot, "k2", "c1")) is Outcome.WON
    third = await claim(backend, slot, "k3", "c1")
    assert (third[0], third[4]) == (Outcome.CUSTOMER_LIMIT, b"2")
    assert await outcome(claim(backend, slot, "k4", None)) is Outcome.WON


async def test_the_backlog_is_bounded_until_it_is_accounted(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=9, backlog_max=2)
    slot = backend.open_lease(lease, await world.run_id())
    answers = await asyncio.gather(*(claim(backend, slot, f"k{n}") for n in range(4)))
    assert [answer[0] for answer in answers] == [
        Outcome.WON, Outcome.WON, Outcome.BUSY, Outcome.BUSY,
    ]  # fmt: skip
    await world.set_accounted(lease, 1)
    assert (await claim(backend, slot, "k5"))[:2] == (Outcome.WON, 3)
    assert await outcome(claim(backend, slot, "k6")) is Outcome.BUSY


async def test_a_grown_lease_sells_on(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=1)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    assert await outcome(claim(backend, slot, "k2")) is Outcome.SOLD_OUT
    await world.grow(lease, 2)
    won = await claim(backend, slot, "k2")
    assert (won[0], won[1], won[3]) == (Outcome.WON, 2, 0)


async def test_a_lease_that_is_gone_or_fenced_seals_its_slot(world: World) -> None:
    backend = world.backend()
    run_id = await world.run_id()
    gone, fenced = await world.arm(size=5), await world.arm(size=5)
    slots = [backend.open_lease(lease, run_id) for lease in (gone, fenced)]
    for slot in slots:
        assert await outcome(claim(backend, slot, "k")) is Outcome.WON
    await world.drop(gone)
    await world.set_state(fenced, "fenced")
    for slot in slots:
        assert await outcome(claim(backend, slot, "k")) is Outcome.UNAVAILABLE
        status = backend.status().slots[slot]
        assert (status.sealed, status.sealed_reason) == (True, "fenced")
        assert await outcome(claim(backend, slot, "k")) is Outcome.UNAVAILABLE
    assert await world.issued(fenced) == 1


async def test_one_lease_does_not_see_another(world: World) -> None:
    backend = world.backend()
    run_id = await world.run_id()
    leases = [await world.arm(size=1), await world.arm(size=1)]
    slots = [backend.open_lease(lease, run_id) for lease in leases]
    answers = await asyncio.gather(
        *(claim(backend, slot, "same", "c") for slot in slots for _ in range(2))
    )
    assert [answer[:2] for answer in answers] == [
        (Outcome.WON, 1), (Outcome.REPLAYED, 1), (Outcome.WON, 1), (Outcome.REPLAYED, 1),
    ]  # fmt: skip
    for lease in leases:
        assert await world.wins(lease) == [(1, "same", "c")]


async def test_opening_a_lease_twice_gives_the_same_slot(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=1)
    run_id = await world.run_id()
    slot = backend.open_lease(lease, run_id)
    assert backend.open_lease(lease, run_id) == slot
    backend.close_slot(slot)
    backend.close_slot(slot)
    assert await outcome(claim(backend, slot, "k")) is Outcome.UNAVAILABLE
    assert slot not in backend.status().slots
    assert backend.open_lease(lease, run_id) != slot


async def test_a_sealed_slot_answers_nothing_until_it_is_opened_again(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    run_id = await world.run_id()
    slot = backend.open_lease(lease, run_id)
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    assert backend.seal(slot) == 1
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNAVAILABLE
    assert await world.issued(lease) == 1
    backend.reopen(slot, run_id)
    assert (await claim(backend, slot, "k2"))[:2] == (Outcome.WON, 2)


async def test_a_win_in_flight_when_its_slot_is_sealed_is_never_handed_out(world: World) -> None:
    backend = world.backend(flight_timeout_ms=5_000)
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    world.freeze()
    in_flight = claim(backend, slot, "k2")
    await until(lambda: backend.status().in_flight == 1)
    waiting = claim(backend, slot, "k3")
    assert backend.seal(slot) == 1
    assert await outcome(waiting) is Outcome.UNAVAILABLE
    world.thaw()
    assert await outcome(in_flight) is Outcome.UNKNOWN
    assert backend.status().slots[slot].mark == 1
    assert await world.issued(lease) == 2


async def test_a_replay_told_for_the_first_time_counts_for_the_mark(world: World) -> None:
    winner, other = world.backend(), world.backend()
    lease = await world.arm(size=5)
    run_id = await world.run_id()
    slot = winner.open_lease(lease, run_id)
    for n in range(3):
        await claim(winner, slot, f"k{n}")
    there = other.open_lease(lease, run_id)
    assert (await claim(other, there, "k1"))[:2] == (Outcome.REPLAYED, 2)
    assert other.status().slots[there].mark == 2
    assert (await claim(other, there, "k0"))[:2] == (Outcome.REPLAYED, 1)
    assert other.status().slots[there].mark == 2


async def test_a_claim_past_its_deadline_is_not_applied(world: World) -> None:
    backend = world.backend(flight_timeout_ms=5_000)
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    world.freeze()
    in_flight = claim(backend, slot, "k2")
    await until(lambda: backend.status().in_flight == 1)
    late = claim(backend, slot, "k3", deadline_ms=30)
    assert await outcome(late) is Outcome.EXPIRED
    world.thaw()
    assert await outcome(in_flight) is Outcome.WON
    assert [key for _, key, _ in await world.wins(lease)] == ["k1", "k2"]


async def test_a_full_queue_refuses_at_once(world: World) -> None:
    backend = world.backend(queue_max=3, flight_timeout_ms=5_000)
    lease = await world.arm(size=50)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k0")) is Outcome.WON
    world.freeze()
    in_flight = claim(backend, slot, "k1")
    await until(lambda: backend.status().in_flight == 1)
    waiting = [claim(backend, slot, f"w{n}") for n in range(3)]
    refused = claim(backend, slot, "too much")
    assert refused.done()
    assert await outcome(refused) is Outcome.OVERLOADED
    assert backend.status().queued == 3
    world.thaw()
    answers = await asyncio.gather(in_flight, *waiting)
    assert [answer[:2] for answer in answers] == [(Outcome.WON, n) for n in range(2, 6)]


async def test_a_flight_without_an_answer_is_unknown_and_its_key_tells_the_truth(
    world: World,
) -> None:
    backend = world.backend(flight_timeout_ms=200)
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    world.freeze()
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNKNOWN
    world.thaw()
    told = await claim(backend, slot, "k2")
    assert told[0] in (Outcome.REPLAYED, Outcome.WON)
    assert told[1] == 2
    assert [key for _, key, _ in await world.wins(lease)] == ["k1", "k2"]


async def test_a_lost_reply_is_unknown_and_its_key_tells_the_truth(world: World) -> None:
    await world.through_proxy()
    backend = world.backend()
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    world.lose_next_reply()
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNKNOWN
    assert backend.status().slots[slot].mark == 1
    assert (await claim(backend, slot, "k2"))[:2] == (Outcome.REPLAYED, 2)
    assert backend.status().slots[slot].mark == 2
    assert (await claim(backend, slot, "k3"))[:2] == (Outcome.WON, 3)


async def test_a_restarted_server_is_answered_from_only_after_it_was_registered(
    world: World,
) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    won = await claim(backend, slot, "k1")
    assert won[:2] == (Outcome.WON, 1)
    await world.restart()
    await until(lambda: backend.status().slots[slot].sealed_reason == "run_id")
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNAVAILABLE
    assert await world.issued(lease) == 1
    run_id = await world.run_id()
    assert backend.status().run_id == run_id
    backend.reopen(slot, run_id)
    assert await claim(backend, slot, "k1") == (Outcome.REPLAYED, 1, won[2], 4, b"{}")
    assert (await claim(backend, slot, "k2"))[:2] == (Outcome.WON, 2)


async def test_a_slot_of_another_server_is_sealed_from_the_start(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    await until(lambda: backend.status().connected)
    slot = backend.open_lease(lease, "0" * 40)
    assert backend.status().slots[slot].sealed_reason == "run_id"
    assert await outcome(claim(backend, slot, "k1")) is Outcome.UNAVAILABLE
    backend.reopen(slot, "1" * 40)
    assert backend.status().slots[slot].sealed_reason == "run_id"
    assert await world.issued(lease) == 0


async def test_a_forgotten_script_is_loaded_only_after_the_server_was_compared(
    world: World,
) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    await world.forget_scripts()
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNAVAILABLE
    assert await world.issued(lease) == 1
    assert (await claim(backend, slot, "k2"))[:2] == (Outcome.WON, 2)


async def test_marks_outlive_the_backend(world: World, tmp_path: Path) -> None:
    path = tmp_path / "marks"
    lease = await world.arm(size=5)
    run_id = await world.run_id()
    first = world.backend(marks_path=str(path))
    slot = first.open_lease(lease, run_id)
    for n in range(2):
        await claim(first, slot, f"k{n}")
    assert read_marks(path) == {lease: 2}
    await first.aclose()
    del first
    assert read_marks(path) == {lease: 2}
    second = world.backend(marks_path=str(tmp_path / "other"))
    await claim(second, second.open_lease(lease, run_id), "k2")
    assert read_marks(tmp_path / "other") == {lease: 3}
    second.close_slot(0)
    assert read_marks(tmp_path / "other") == {}


async def test_a_number_not_above_the_mark_is_never_answered(world: World, tmp_path: Path) -> None:
    path = str(tmp_path / "marks")
    lease = await world.arm(size=50)
    marks = Marks(path)
    marks.raise_to(marks.take(lease), 10)
    del marks
    backend = world.backend(marks_path=path)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k1")) is Outcome.UNKNOWN
    status = backend.status().slots[slot]
    assert (status.sealed_reason, status.mark) == ("seq_not_above_mark", 10)
    assert await outcome(claim(backend, slot, "k2")) is Outcome.UNAVAILABLE
    assert await world.issued(lease) == 1


async def test_marks_of_leases_nobody_needs_make_room(world: World, tmp_path: Path) -> None:
    path = str(tmp_path / "marks")
    marks = Marks(path)
    left = [str(uuid.uuid4()) for _ in range(1_024)]
    for lease in left:
        marks.raise_to(marks.take(lease), 5)
    del marks
    backend = world.backend(marks_path=path)
    lease = await world.arm(size=5)
    run_id = await world.run_id()
    with pytest.raises(RuntimeError, match="no room"):
        backend.open_lease(lease, run_id)
    backend.keep_marks(left[:2])
    slot = backend.open_lease(lease, run_id)
    assert await outcome(claim(backend, slot, "k1")) is Outcome.WON
    backend.keep_marks([])
    assert read_marks(path) == {lease: 1}


async def test_who_stops_waiting_does_not_stop_the_claim(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    claim(backend, slot, "k1").cancel()
    assert (await claim(backend, slot, "k1"))[:2] == (Outcome.REPLAYED, 1)
    assert await world.issued(lease) == 1


async def test_closing_answers_everybody(world: World) -> None:
    backend = world.backend()
    lease = await world.arm(size=5)
    slot = backend.open_lease(lease, await world.run_id())
    assert await outcome(claim(backend, slot, "k0")) is Outcome.WON
    answers = [claim(backend, slot, f"k{n}") for n in range(1, 4)]
    await backend.aclose()
    await backend.aclose()
    assert all(answer.done() for answer in answers)
    assert await outcome(claim(backend, slot, "late")) is Outcome.UNAVAILABLE
    applied = await world.issued(lease)
    won = [answer.result()[0] for answer in answers].count(Outcome.WON)
    assert won == applied - 1


async def test_a_fingerprint_of_another_length_is_a_mistake_of_the_caller(world: World) -> None:
    backend = world.backend()
    slot = backend.open_lease(await world.arm(size=1), await world.run_id())
    with pytest.raises(ValueError, match="32 hex"):
        claim(backend, slot, "k", fingerprint="abc")


async def test_a_crowd_is_answered_from_fresh_facts_of_its_own_lineage(world: World) -> None:
    backend = world.backend()
    voucher = str(uuid.uuid4())
    record = ("k1", FINGERPRINT, 1_700_000_000_000, 0, b'{"id":"rdm_1"}')
    held = [("c1", 1, "rdm_1")]
    slot = backend.open_crowd(voucher, "system-1")
    assert backend.open_crowd(voucher, "system-1") == slot
    assert await outcome(claim(backend, slot, "k1", payload=b"")) is Outcome.ASK
    await world.put_crowd(voucher, "system-1", records=[record], customers=held, customer_limit=1)
    answers = await asyncio.gather(
        claim(backend, slot, "k1", "c1", payload=b""),
        claim(backend, slot, "k1", "c1", payload=b"", fingerprint=OTHER_FINGERPRINT),
        claim(backend, slot, "k2", "c1", payload=b""),
        claim(backend, slot, "k3", "c2", payload=b""),
        claim(backend, slot, None, None, payload=b""),
    )
    assert answers[0] == (Outcome.REPLAYED, 0, 1_700_000_000_000, 0, b'{"id":"rdm_1"}')
    assert [answer[0] for answer in answers[1:]] == [
        Outcome.MISMATCH, Outcome.CUSTOMER_LIMIT, Outcome.SOLD_OUT, Outcome.SOLD_OUT,
    ]  # fmt: skip
    assert answers[2][4] == b"rdm_1"
    foreign = backend.open_crowd(voucher, "system-2")
    assert await outcome(claim(backend, foreign, "k1", "c1", payload=b"")) is Outcome.ASK
    await world.stale_crowd(voucher)
    assert await outcome(claim(backend, slot, "k1", "c1", payload=b"")) is Outcome.ASK
