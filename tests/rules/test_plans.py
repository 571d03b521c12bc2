"""What a month comes to: fees shared out by the hour, quotas, what goes beyond them."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.rules import plans
from core.rules.plans import Change, Hour, Line
from tests.rules import reference_bill

MONTH = datetime(2026, 11, 1, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOURS = 720
Event = tuple[datetime, int, int]


def bill_of(
    plan: str, used: list[Hour], *changes: Change, since: datetime = LONG_AGO
) -> plans.Bill:
    return plans.bill(MONTH, plans.stretches(MONTH, plan, since, list(changes)), used)


def used(calls: int, redemptions: int, *, after_hours: int = 0) -> Hour:
    return Hour(MONTH + timedelta(hours=after_hours), calls, redemptions)


@pytest.mark.parametrize(
    ("plan", "calls", "redemptions", "total_minor"),
    [
        ("free", 1_000, 500, 0),
        ("starter", 10_000, 2_000, 2_900),
        ("starter", 10_001, 2_000, 2_900),  # 0.3 cents
        ("starter", 10_002, 2_000, 2_901),  # 0.6 cents
        ("starter", 10_000, 2_001, 2_901),  # 0.5 cents, half up
        ("growth", 51_000, 10_100, 7_900 + 300 + 50),
        ("scale", 1_200_000, 1_050_000, 19_900 + 300_000 + 500_000),
        ("enterprise", 10**9, 10**9, 50_000),
    ],
)
def test_a_month_costs_the_fee_and_what_goes_beyond(
    plan: str, calls: int, redemptions: int, total_minor: int
) -> None:
    bill = bill_of(plan, [used(calls, redemptions)])

    assert bill.total_minor == total_minor
    assert (bill.calls, bill.redemptions) == (calls, redemptions)


def test_a_month_on_two_plans_is_shared_out_by_the_hour() -> None:
    change = Change(MONTH + timedelta(hours=240, minutes=59), "starter", "growth")

    bill = bill_of("growth", [used(9_000, 0), used(40_000, 0, after_hours=300)], change)

    assert bill.lines == [
        Line("Starter plan, 240 hours of 720", 1, 9_670, 967),  # 29 / 3
        Line("Growth plan, 480 hours of 720", 1, 52_670, 5_267),  # 79 * 2 / 3
        Line("API calls beyond 36666", 12_334, 3, 3_700),
    ]
    assert bill.total_minor == 967 + 5_267 + 3_700


def test_what_is_used_without_a_limit_counts_towards_none() -> None:
    up = Change(MONTH + timedelta(hours=100), "starter", "enterprise")
    down = Change(MONTH + timedelta(hours=200), "enterprise", "starter")

    bill = bill_of("starter", [used(8_000, 0), used(10**6, 0, after_hours=150)], up, down)

    assert bill.included_calls == 10_000 * 620 // 720
    assert [line.description for line in bill.lines] == [
        "Starter plan, 100 hours of 720",
        "Enterprise plan, 100 hours of 720",
        "Starter plan, 520 hours of 720",
    ]


def test_of_several_changes_in_an_hour_the_last_one_counts() -> None:
    at = MONTH + timedelta(hours=10)
    changes = [Change(at + timedelta(minutes=n), a, b) for n, (a, b) in
               enumerate([("free", "scale"), ("scale", "growth"), ("growth", "free")])]  # fmt: skip

    bill = bill_of("free", [], *changes)

    assert bill.total_minor == 0
    assert all(line.description.startswith("Free") for line in bill.lines)


def test_an_account_pays_from_its_first_hour() -> None:
    bill = bill_of("scale", [], since=MONTH + timedelta(hours=719, minutes=30))

    assert bill.lines == [Line("Scale plan, 1 hours of 720", 1, 280, 28)]


@given(
    st.lists(st.tuples(st.integers(0, 2 * HOURS * 60 - 1), st.sampled_from(sorted(plans.PLANS))),
             max_size=6),
    st.sampled_from(sorted(plans.PLANS)),
)  # fmt: skip
def test_however_often_a_plan_changes_every_hour_is_paid_once(
    steps: list[tuple[int, str]], first: str
) -> None:
    changes, before = [], first
    for minute, after in sorted(steps):
        # From a month before on.
        at = MONTH + timedelta(minutes=minute - HOURS * 60)
        changes.append(Change(at, before, after))
        before = after

    parts = plans.stretches(MONTH, before, LONG_AGO, changes)

    assert sum(part.hours for part in parts) == HOURS
    assert parts[0].start == MONTH
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert parts[-1].plan.name == before


MONTHS = st.builds(
    lambda year, month: datetime(year, month, 1, tzinfo=UTC),
    st.integers(2024, 2027), st.integers(1, 12),
)  # fmt: skip


@st.composite
def lives(draw: st.DrawFn) -> tuple[datetime, list[tuple[datetime, str]], list[Event]]:
    """Draw a month, an account's way through the plans around it, and what it asked for."""
    month = draw(MONTHS)
    minutes = int((plans.next_month(month) - month).total_seconds() // 60)
    # From half a month before, and often enough in the same hour.
    steps = draw(st.lists(
        st.tuples(st.integers(-minutes // 2, minutes - 1), st.sampled_from(sorted(plans.PLANS))),
        max_size=8, unique_by=lambda step: step[0],
    ))  # fmt: skip
    events = draw(st.lists(
        st.tuples(st.integers(0, minutes - 1), st.integers(0, 90_000), st.integers(0, 30_000)),
        max_size=12,
    ))  # fmt: skip
    return (
        month,
        [(month + timedelta(minutes=at), plan) for at, plan in sorted(steps)],
        [(month + timedelta(minutes=at), *counts) for at, *counts in events],
    )


@given(lives(), st.sampled_from(sorted(plans.PLANS)))
@example(
    (MONTH, [(MONTH + timedelta(minutes=m), p) for m, p in ((61, "scale"), (62, "starter"))], []),
    "starter",
)
def test_a_month_comes_to_the_cent_of_what_its_events_add_up_to(
    life: tuple[datetime, list[tuple[datetime, str]], list[Event]], first: str
) -> None:
    month, steps, events = life
    changes, before = [], first
    for at, after in steps:
        changes.append(Change(at, before, after))
        before = after
    hours = [Hour(plans.hour_of(at), calls, redeemed) for at, calls, redeemed in events]

    parts = plans.stretches(month, before, LONG_AGO, changes)
    bill = plans.bill(month, parts, hours)

    assert bill.total_minor == reference_bill.total_minor(month, first, steps, events)
    assert bill.calls == sum(calls for _, calls, _ in events)
    # Both halves of a change are there, and no plan is twice in a row.
    assert all(a.plan != b.plan for a, b in itertools.pairwise(parts))
