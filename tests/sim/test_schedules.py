"""The shipped batcher, keeper and reconciler through schedules drawn from a seed."""

import pytest

from tests.conftest import SEED
from tests.sim import schedules

# Ten seconds' worth in every run; a thousand, and a hundred thousand by
# `python -m tests.sim.schedules --seeds 100000`, take their time elsewhere.
QUICK, LONG = 120, 1_000


def _play(first: int, count: int) -> None:
    for seed in range(first, first + count):
        _, bad = schedules.run(seed)
        again = f"python -m tests.sim.schedules --seed {seed}"
        assert not bad, "\n".join([*bad, f"again: {again}"])


def test_no_schedule_breaks_a_promise():
    _play(SEED * 1_000, QUICK)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_schedule_of_a_thousand_breaks_a_promise():
    _play(0, LONG)


def test_a_seed_is_one_order_of_events():
    first, second = (schedules.run(7)[0] for _ in range(2))
    assert first.history == second.history
    assert list(first.cluster.ledger.grants) == list(second.cluster.ledger.grants)


def test_schedules_reach_every_outcome_and_every_fault():
    outcomes, events = set(), set()
    for seed in range(60):
        played, _ = schedules.run(seed)
        outcomes |= set(played.history.outcomes)
        events |= {event.partition(" ")[2] for event in played.history.events}
    assert outcomes >= {"WON", "REPLAYED", "UNKNOWN", "UNAVAILABLE", "EXPIRED", "OVERLOADED",
                        "BUSY", "SOLD_OUT", "CUSTOMER_LIMIT"}  # fmt: skip
    assert events == {name[3:] for name in dir(schedules.Schedule) if name.startswith("on_")}
