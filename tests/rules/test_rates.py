"""Rates: never more than a burst and what has come back since."""

from hypothesis import given
from hypothesis import strategies as st

from core.rules import plans, rates
from core.rules.rates import Left, Rate

HUNDRED_AN_HOUR = Rate(limit=100, window_s=3_600, burst=100)
RATES = st.builds(
    Rate, limit=st.integers(1, 1_000), window_s=st.integers(1, 86_400), burst=st.integers(1, 1_000)
)


def test_a_hundred_an_hour_pass_at_once_and_then_one_every_36_s() -> None:
    assert HUNDRED_AN_HOUR.interval_us == 36_000_000
    granted, full_at_us = rates.draw(HUNDRED_AN_HOUR, 0, 1_000, 1_000)
    assert (granted, full_at_us) == (100, 1_000 + 3_600_000_000)
    assert rates.draw(HUNDRED_AN_HOUR, full_at_us, 36_000_999, 5)[0] == 0
    assert rates.left(HUNDRED_AN_HOUR, full_at_us, 36_000_999) == Left(0, 1)
    assert rates.draw(HUNDRED_AN_HOUR, full_at_us, 36_001_000, 5)[0] == 1
    assert rates.left(HUNDRED_AN_HOUR, full_at_us, 3_600_001_000) == Left(100, 0)


@given(RATES, st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 300)), max_size=40))
def test_in_no_time_do_more_pass_than_a_burst_and_what_came_back(
    rate: Rate, asked: list[tuple[int, int]]
) -> None:
    now_us = full_at_us = 0
    passed: list[tuple[int, int]] = []
    for pause_us, wanted in asked:
        now_us += pause_us
        before = rates.left(rate, full_at_us, now_us).rest
        granted, full_at_us = rates.draw(rate, full_at_us, now_us, wanted)
        assert granted == min(wanted, before)
        assert rates.left(rate, full_at_us, now_us).rest == before - granted
        passed.append((now_us, granted))
    for at, (start_us, _) in enumerate(passed):
        for end, (end_us, _) in enumerate(passed[at:], at):
            count = sum(granted for _, granted in passed[at : end + 1])
            assert count <= rate.burst + (end_us - start_us) // rate.interval_us


def test_what_is_drawn_at_once_is_a_hundredth_of_a_burst() -> None:
    assert [rates.batch_of(n) for n in (1, 100, 199, 200, 5_000, 1_000_000)] == [
        1,
        1,
        1,
        2,
        50,
        256,
    ]


def test_larger_plans_let_more_pass_and_the_largest_everything() -> None:
    a_minute = [plan.rate and plan.rate.limit * 60 // plan.rate.window_s
                for plan in plans.PLANS.values()]  # fmt: skip
    assert a_minute == [600, 6_000, 30_000, 120_000, None]
