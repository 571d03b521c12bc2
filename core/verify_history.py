"""What only the clients know: a log of requests and answers, held against the ledger.

Every win carries its number, so the order that has to be shown linear is given and only has to be
checked: O(n log n), no search. Pure functions; reading the ledger is `core.verify`'s.

A history is JSON lines, one a call, times in seconds of one monotonic clock of one machine:

    {"call": t0, "ret": t1 or null, "out": "ok|sold_out|limit|refused|unknown", "key": …,
     "customer": …, "code": …, "rid": … or null, "seq": … or null, "discount": … or absent,
     "at": … or absent}

`ok`: a redemption was answered. `sold_out`: no unit is left (`sold_out`, `limit_reached`).
`limit`: the customer's own limit. `refused`: surely not applied (409, 4xx, 503). `unknown`: no
answer, or one that says so (504, reset, time-out). `at`: the answer's redeemed_at on the same
clock, where clients and servers share one. A history must hold every call made for the codes it
names since their vouchers were made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

Outcome = Literal["ok", "sold_out", "limit", "refused", "unknown"]

_LATE: Final = float("inf")
# `redeemed_at` is cut to milliseconds, and a wall clock is slewed against the monotonic one; a
# client waits at least 50 ms before it asks again, so this still tells two tries apart.
_CLOCKS_AGREE_S: Final = 0.02


class HistoryFault(Exception):
    """The file cannot be read as a history; the text says where and why."""


class Call(msgspec.Struct, frozen=True):
    """One request and what came back."""

    call: float
    out: Outcome
    code: str
    ret: float | None = None
    key: str | None = None
    customer: str | None = None
    rid: str | None = None
    seq: int | None = None
    discount: Decimal | None = None
    at: float | None = None


class Row(NamedTuple):
    """One redemption of the ledger, as clients name it. `discount` is a decimal, like theirs."""

    key: str
    rid: str
    seq: int
    customer: str | None
    discount: Decimal | None = None


class Violation(NamedTuple):
    """One broken invariant and where it shows."""

    invariant: str
    what: str
    subject: str


def read(path: Path) -> dict[str, list[Call]]:
    """Read a history file into the calls of each code.

    Raises: HistoryFault, with the number of the first line that is not a call.
    """
    decoder = msgspec.json.Decoder(Call)
    calls: dict[str, list[Call]] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    call = decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise HistoryFault(f"{path}:{number}: {error}") from None
                if call.out == "ok" and (call.rid is None or call.ret is None):
                    raise HistoryFault(f"{path}:{number}: an `ok` needs its rid and ret")
                calls.setdefault(call.code, []).append(call)
    except OSError as error:
        raise HistoryFault(f"{path}: {error.strerror or error}") from None
    return calls


def identity(call: Call) -> str:
    """Return what makes a call the same as a row: its key, without one the redemption."""
    return call.key if call.key is not None else f"without a key: {call.rid}"


def missing(calls: Iterable[Call], rows: Iterable[Row]) -> set[str]:
    """Return the answered wins that are not in the ledger (yet), by redemption id."""
    answered = {call.rid for call in calls if call.out == "ok" and call.rid is not None}
    return answered - {row.rid for row in rows}


def without(calls: Sequence[Call], rids: set[str]) -> Sequence[Call]:
    """Return the calls with the answers that named these redemptions taken back.

    Whoever got one may ask again with the same key and get another: the first is void.
    """
    if not rids:
        return calls
    void = {"out": "unknown", "rid": None, "seq": None, "discount": None, "at": None}
    return [msgspec.structs.replace(call, **void) if call.rid in rids else call for call in calls]


def check(calls: Sequence[Call], rows: Sequence[Row], *, units: int | None) -> list[Violation]:
    """Hold one voucher's calls against its redemptions, rolled back ones included.

    `units`: how many could be redeemed before anyone may hear "sold out"; None: without limit.
    Reports I2 (every answered win is in the ledger, as answered), I3 (a replay is identical), I4
    (nothing is in the ledger that nobody tried), I7 (a win answered before another was asked for
    has the lower number) and I8 (sold out only when the units could be gone).
    """
    found: list[Violation] = []
    wins = _wins(calls, found)
    by_rid = {row.rid: row for row in rows}
    _check_answered(wins, by_rid, found)
    _check_tried(calls, wins, rows, found)
    _check_refused(calls, wins, found)
    started, ended = _spans(calls)
    _check_order(wins, started, ended, found)
    if units is not None:
        _check_sold_out(calls, rows, started, units, found)
    return found


def _wins(calls: Sequence[Call], found: list[Violation]) -> dict[str, Call]:
    """Return the first answer of each win; every later one must be equal."""
    wins: dict[str, Call] = {}
    for call in calls:
        if call.out != "ok":
            continue
        first = wins.setdefault(identity(call), call)
        if (first.rid, first.seq, first.discount) != (call.rid, call.seq, call.discount):
            found.append(
                Violation("I3", "a replay is the first answer", f"key {call.key}: {first} / {call}")
            )
    rids: dict[str | None, str] = {}
    for name, win in wins.items():
        if rids.setdefault(win.rid, name) != name:
            found.append(Violation("I3", "two keys never share a redemption", f"{win.rid}: {name}"))
    return wins


def _check_answered(wins: dict[str, Call], by_rid: dict[str, Row], found: list[Violation]) -> None:
    for name, win in wins.items():
        row = by_rid.get(win.rid or "")
        if row is None:
            found.append(
                Violation("I2", "an answered win is in the ledger", f"{win.rid}, {name}: missing")
            )
            continue
        told = (
            win.key if win.key is not None else row.key,
            win.customer,
            row.seq if win.seq is None else win.seq,
            row.discount if win.discount is None else win.discount,
        )
        if told != (row.key, row.customer, row.seq, row.discount):
            found.append(
                Violation("I2", "an answered win is in the ledger as answered", f"{win} / {row}")
            )


def _check_tried(
    calls: Sequence[Call], wins: dict[str, Call], rows: Sequence[Row], found: list[Violation]
) -> None:
    tried = {call.key for call in calls if call.out in ("ok", "unknown") and call.key is not None}
    asked = {call.key for call in calls if call.key is not None}
    answered = {win.rid for win in wins.values()}
    # A call without a key that got no answer may be any row that no key explains.
    nameless = sum(call.out == "unknown" for call in calls if call.key is None)
    for row in rows:
        if row.key in tried or row.rid in answered:
            continue
        if row.key not in asked and nameless > 0:
            nameless -= 1
            continue
        refused = "was refused and is in the ledger all the same" if row.key in asked else "unheard"
        found.append(
            Violation(
                "I4",
                "nothing is in the ledger that was not tried",
                f"{row.rid} {row.key}: {refused}",
            )
        )


def _check_refused(calls: Sequence[Call], wins: dict[str, Call], found: list[Violation]) -> None:
    """A win that was decided during none but refused calls was refused and applied all the same.

    A call whose outcome is unknown has no end: what it sent may be applied long after.
    """
    tries: dict[str, list[Call]] = {}
    for call in calls:
        if call.key is not None and call.key in wins:
            tries.setdefault(call.key, []).append(call)
    for name, of_key in tries.items():
        at = wins[name].at
        if at is None or all(call.out == "ok" for call in of_key):
            continue
        during = [
            call.out
            for call in of_key
            if call.call - _CLOCKS_AGREE_S <= at
            and (call.ret is None or call.out == "unknown" or at <= call.ret + _CLOCKS_AGREE_S)
        ]
        if not {"ok", "unknown"}.intersection(during):
            found.append(
                Violation(
                    "I4",
                    "what was refused was not applied",
                    f"{wins[name].rid} {name}: decided while {' and '.join(during) or 'nobody'} "
                    "was answered",
                )
            )


def _spans(calls: Sequence[Call]) -> tuple[dict[str, float], dict[str, float]]:
    """Return when each win may have begun (its first call) and was known (its first answer)."""
    started: dict[str, float] = {}
    ended: dict[str, float] = {}
    for call in calls:
        name = identity(call)
        if call.out in ("ok", "unknown"):
            started[name] = min(started.get(name, _LATE), call.call)
        if call.out == "ok" and call.ret is not None:
            ended[name] = min(ended.get(name, _LATE), call.ret)
    return started, ended


def _check_order(
    wins: dict[str, Call],
    started: dict[str, float],
    ended: dict[str, float],
    found: list[Violation],
) -> None:
    numbered = [(win.seq, name) for name, win in wins.items() if win.seq is not None]
    numbered.sort(reverse=True)
    for (above, name), (below, other) in pairwise(numbered):
        if above == below:
            found.append(
                Violation("I7", "no number is answered twice", f"{above}: {name}, {other}")
            )
    earliest, holder = _LATE, ""
    for seq, name in numbered:
        if started[name] > earliest:
            found.append(
                Violation(
                    "I7",
                    "who is answered first has the lower number",
                    f"{name} has {seq}, but began after {holder} was answered with a higher one",
                )
            )
        if ended[name] < earliest:
            earliest, holder = ended[name], name


def _check_sold_out(
    calls: Sequence[Call],
    rows: Sequence[Row],
    started: dict[str, float],
    units: int,
    found: list[Violation],
) -> None:
    # What nobody can place in time may have begun before everything.
    begun = sorted(
        started.get(row.key, started.get(f"without a key: {row.rid}", -_LATE)) for row in rows
    )
    for call in calls:
        if call.out != "sold_out" or call.ret is None:
            continue
        possible = bisect_right(begun, call.ret)
        if possible < units:
            found.append(
                Violation(
                    "I8",
                    "sold out is said only when every unit can be gone",
                    f"{call.key} heard it when at most {possible} of {units} could be",
                )
            )
