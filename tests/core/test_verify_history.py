"""A history of thousands of concurrent claims is judged at once, and no planted bug passes."""

import random
import time
from decimal import Decimal

import msgspec
import pytest

from core.verify_history import Call, Row, check, missing, without

UNITS = 5_000
CALLS = 20_000


def history(*, seed: int = 7, loses: float = 0.0) -> tuple[list[Call], list[Row]]:
    """Simulate a linearizable sale: every call takes effect at a moment between call and ret.

    Two calls in a hundred get no answer; `loses` is the share of wins the ledger forgets.
    """
    chance = random.Random(seed)
    moments = []
    for n in range(CALLS):
        call = n / 64 + chance.random()
        ret = call + chance.random()
        moments.append((chance.uniform(call, ret), call, ret, n))
    calls, rows = [], []
    for place, (_, call, ret, n) in enumerate(sorted(moments), 1):
        won, silent = place <= UNITS, chance.random() < 0.02
        rid = f"rdm_{n}"
        if won and chance.random() >= loses:
            rows.append(Row(f"key-{n}", rid, place, f"cus-{n}", Decimal("4.50")))
        calls.append(
            Call(
                call=call,
                ret=None if silent else ret,
                out="unknown" if silent else "ok" if won else "sold_out",
                code="F",
                key=f"key-{n}",
                customer=f"cus-{n}",
                rid=rid if won and not silent else None,
                seq=place if won and not silent else None,
                discount=Decimal("4.50") if won and not silent else None,
            )
        )
    return calls, rows


def broken(calls: list[Call], rows: list[Row], units: int = UNITS) -> set[str]:
    return {violation.invariant for violation in check(calls, rows, units=units)}


def test_a_linearizable_history_passes_quickly() -> None:
    calls, rows = history()
    begun = time.perf_counter()
    assert check(calls, rows, units=UNITS) == []
    assert time.perf_counter() - begun < 2.0
    assert missing(calls, rows) == set()


def test_lost_wins_are_found_one_by_one() -> None:
    calls, rows = history(loses=0.002)
    kept = {row.rid for row in rows}
    lost = {call.rid for call in calls if call.out == "ok"} - kept
    found = check(calls, rows, units=UNITS - (UNITS - len(rows)))
    assert lost
    assert len([v for v in found if v.invariant == "I2"]) == len(lost)
    assert missing(calls, rows) == lost


def test_an_over_redemption_is_found() -> None:
    calls, rows = history()
    place = next(i for i, call in enumerate(calls) if call.out == "sold_out")
    late = calls[place]
    calls[place] = msgspec.structs.replace(late, out="ok", rid="rdm_x", seq=UNITS)
    rows.append(Row(late.key or "", "rdm_x", UNITS, late.customer, None))
    assert "I7" in broken(calls, rows)


def test_a_row_nobody_asked_for_is_found() -> None:
    calls, rows = history()
    rows.append(rows[3]._replace(key="nobody", rid="rdm_nobody", seq=UNITS + 1))
    assert broken(calls, rows) == {"I4"}


def test_a_refused_call_that_was_applied_is_found() -> None:
    calls, rows = history()
    place = next(i for i, call in enumerate(calls) if call.out == "ok")
    calls[place] = msgspec.structs.replace(calls[place], out="refused", rid=None, seq=None)
    assert broken(calls, rows) == {"I4"}


def test_an_unanswered_call_may_be_applied_or_not() -> None:
    calls, rows = history()
    silent = {call.key for call in calls if call.out == "unknown"}
    applied = [row for row in rows if row.key in silent]
    assert applied and len(applied) < len(silent)
    assert broken(calls, rows) == set()


def test_a_replay_that_differs_is_found() -> None:
    calls, rows = history()
    first = next(call for call in calls if call.out == "ok")
    again = msgspec.structs.replace(first, call=900.0, ret=901.0)
    assert broken([*calls, again], rows) == set()
    assert broken([*calls, msgspec.structs.replace(again, rid="rdm_other")], rows) == {"I3"}


def test_numbers_against_the_clock_are_found() -> None:
    calls, rows = history()
    wins = sorted((call for call in calls if call.out == "ok"), key=lambda call: call.seq or 0)
    first, last = wins[0], wins[-1]
    swapped = {first.key: last.seq, last.key: first.seq}
    calls = [msgspec.structs.replace(c, seq=swapped.get(c.key, c.seq)) for c in calls]
    rows = [row._replace(seq=swapped.get(row.key) or row.seq) for row in rows]
    assert broken(calls, rows) == {"I7"}


@pytest.mark.parametrize(("units", "expected"), [(UNITS, {"I8"}), (None, set())])
def test_sold_out_before_it_can_be_is_found(units: int | None, expected: set[str]) -> None:
    calls, rows = history()
    calls.append(Call(call=0.0, ret=20.0, out="sold_out", code="F", key="early"))
    assert {v.invariant for v in check(calls, rows, units=units)} == expected


def test_calls_without_a_key_are_known_by_their_redemption() -> None:
    calls, rows = history()
    calls = [
        msgspec.structs.replace(call, key=None) if call.out == "ok" else call for call in calls
    ]
    rows = [row._replace(key=f"internal-{row.seq}") if row.seq % 2 else row for row in rows]
    silent = {call.key for call in calls if call.out == "unknown"}
    rows = [row for row in rows if row.key not in silent]
    answered = {call.rid for call in calls if call.out == "ok"}
    assert broken(calls, [r for r in rows if r.rid in answered], units=0) == set()


def test_a_win_decided_during_a_call_that_was_refused_is_found() -> None:
    row = Row("k", "rdm_1", 1, None)
    refused = Call(call=1.0, ret=1.2, out="refused", code="F", key="k")
    won = Call(call=2.0, ret=2.2, out="ok", code="F", key="k", rid="rdm_1", seq=1, at=2.1)
    assert broken([refused, won], [row], 0) == set()
    early = msgspec.structs.replace(won, at=1.1)
    assert broken([refused, early], [row], 0) == {"I4"}
    silent = msgspec.structs.replace(refused, out="unknown", ret=None)
    assert broken([silent, early], [row], 0) == set()
    # Told "unknown" (504) while the store stood still: it is applied when the store wakes up.
    unknown = msgspec.structs.replace(refused, call=0.1, ret=0.3, out="unknown")
    assert broken([unknown, refused, early], [row], 0) == set()


def test_a_win_that_was_written_off_may_be_won_again_with_the_same_key() -> None:
    first = Call(call=1.0, ret=1.1, out="ok", code="F", key="k", rid="rdm_1", seq=7)
    again = Call(call=3.0, ret=3.1, out="ok", code="F", key="k", rid="rdm_2", seq=9)
    rows = [Row("k", "rdm_2", 9, None)]
    assert {v.invariant for v in check([first, again], rows, units=None)} >= {"I2", "I3"}
    assert check(without([first, again], {"rdm_1"}), rows, units=None) == []
    assert missing([first, again], rows) == {"rdm_1"}
