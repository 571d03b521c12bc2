"""The designs that were weighed, and the shortest way in which each wrong one fails.

Far coarser than `tests.sim.protocol`: one voucher, one lease at a time, no workers. It shows why
Redis alone cannot be rebuilt from PostgreSQL, and why what is unaccounted for must be written off.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.search import Found, explore

UNITS, REQUESTS, LEASES = 2, 3, 3
EVERY_FAULT = ("crash", "rollback", "loss", "split")


@dataclass(frozen=True)
class Design:
    """`answers` after: "script", "fsync" or "commit". `gives_back`: a settled lease returns its
    unaccounted rest instead of writing it off. `is_fenced`: another process's data is settled
    before anything is sold. `hides_unsynced`: nobody reads an entry before it is fsynced.
    """

    name: str
    outcome: str
    answers: str = "fsync"
    faults: tuple[str, ...] = EVERY_FAULT
    gives_back: bool = False
    is_fenced: bool = True
    hides_unsynced: bool = False
    loses_nothing: bool = False
    chunk: int = UNITS


class Redis(NamedTuple):
    """One process: the lease's number and size, what it sold, how much of it is on disk."""

    lease: int
    size: int
    sold: tuple[int, ...]
    synced: int
    read: int
    is_foreign: bool


class World(NamedTuple):
    free: int
    leases: tuple[tuple[int, int, bool], ...]  # size, written, is out
    now: Redis | None
    cut_off: Redis | None
    answered: frozenset[int]
    written: frozenset[int]
    refused: bool


A_TO_O = (
    Design("A answered by the script, resumed", "LOST", "script", ("crash",), is_fenced=False,
           loses_nothing=True),
    Design("B answered by the script, rebuilt from PostgreSQL", "OVER", "script", ("crash",),
           gives_back=True),
    Design("C answered by the script, fenced and burned", "OK", "script"),
    Design("D answered after the fsync, read before it, not fenced", "REFUSED", faults=("crash",),
           is_fenced=False, loses_nothing=True),
    Design("E fsynced before anybody reads, not fenced", "OK", faults=("crash",), is_fenced=False,
           hides_unsynced=True, loses_nothing=True),
    Design("F answered after the fsync, fenced, drained, returned", "OK", faults=("crash",),
           gives_back=True, loses_nothing=True),
    Design("G a lost Redis rebuilt from PostgreSQL", "OVER", faults=("loss",), gives_back=True,
           hides_unsynced=True),
    Design("H a split brain, the rest returned", "REFUSED", faults=("split",), gives_back=True,
           hides_unsynced=True),
    Design("I an old backup, not fenced", "OVER", faults=("rollback",), is_fenced=False,
           hides_unsynced=True),
    Design("J fenced and burned", "OK"),
    Design("K fenced and burned, and nothing answered lost", "LOST", loses_nothing=True),
    Design("L leased one unit at a time", "OK", chunk=1),
    Design("M answered after the commit, fenced, returned", "OK", "commit", gives_back=True,
           loses_nothing=True),
    Design("N answered after the commit, fenced, burned", "OK", "commit", loses_nothing=True),
    Design("O answered after the commit, not fenced", "REFUSED", "commit", ("crash",),
           gives_back=True, is_fenced=False, loses_nothing=True),
)  # fmt: skip


def steps(w: World, d: Design) -> Iterator[tuple[str, World]]:
    """Yield what can happen next."""
    if w.now is None:
        place = next((n for n, lease in enumerate(w.leases) if lease[2]), None)
        if place is not None:
            yield settle(w, d, place)
        elif w.free and len(w.leases) < LEASES + (d.chunk < UNITS):
            size = min(d.chunk, w.free)
            redis = Redis(len(w.leases), size, (), 0, 0, False)
            leases = (*w.leases, (size, 0, True))
            yield f"lease {size}", w._replace(free=w.free - size, leases=leases, now=redis)
    else:
        yield from sell(w, d, w.now, "now")
        yield from faults(w, d, w.now)
        if d.is_fenced and w.now.is_foreign and w.now.read == len(w.now.sold):
            yield settle(w, d, w.now.lease)
    if w.cut_off is not None:
        yield from sell(w, d, w.cut_off, "cut_off")
    if d.answers == "commit":
        for request in w.written - w.answered:
            yield f"answer r{request}", w._replace(answered=w.answered | {request})


def sell(w: World, d: Design, redis: Redis, which: str) -> Iterator[tuple[str, World]]:
    """Yield what one Redis, its clients and its reconciler can do."""
    if not (d.is_fenced and redis.is_foreign) and len(redis.sold) < redis.size:
        for request in set(range(REQUESTS)) - w.answered - set(redis.sold):
            sold = redis._replace(sold=(*redis.sold, request))
            answered = w.answered | ({request} if d.answers == "script" else set())
            yield f"sell r{request}", w._replace(**{which: sold, "answered": answered})
    if redis.synced < len(redis.sold):
        yield "fsync", w._replace(**{which: redis._replace(synced=len(redis.sold))})
    if d.answers == "fsync":
        for request in set(redis.sold[: redis.synced]) - w.answered:
            yield f"answer r{request}", w._replace(answered=w.answered | {request})
    if redis.read < (redis.synced if d.hides_unsynced else len(redis.sold)):
        yield write(w, redis, which)


def write(w: World, redis: Redis, which: str) -> tuple[str, World]:
    """Write the next entry with the offset, or find that there is no unit for it."""
    request = redis.sold[redis.read]
    size, written, is_out = w.leases[redis.lease]
    after = w._replace(**{which: redis._replace(read=redis.read + 1)})
    if request in w.written:
        return f"write r{request} again", after
    if written < size and len(w.written) < UNITS:
        lease = (size, written + 1, is_out)
        leases = (*w.leases[: redis.lease], lease, *w.leases[redis.lease + 1 :])
        return f"write r{request}", after._replace(leases=leases, written=w.written | {request})
    return f"refuse r{request}", after._replace(refused=is_out or request in w.answered)


def settle(w: World, d: Design, place: int) -> tuple[str, World]:
    """Close a lease; what is not written is returned or burned."""
    size, written, _ = w.leases[place]
    back = size - written if d.gives_back else 0
    leases = (*w.leases[:place], (size - back, written, False), *w.leases[place + 1 :])
    settled = w._replace(free=w.free + back, leases=leases, now=None)
    return (f"return {back}" if d.gives_back else f"burn {size - written}"), settled


def faults(w: World, d: Design, redis: Redis) -> Iterator[tuple[str, World]]:
    """Yield what may befall the Redis of the moment."""

    def kept(n: int) -> Redis:
        return redis._replace(
            sold=redis.sold[:n], synced=n, read=min(redis.read, n), is_foreign=True
        )

    if "crash" in d.faults:
        yield "CRASH", w._replace(now=kept(redis.synced))
    if "rollback" in d.faults:
        for n in range(redis.synced):
            yield f"OLDER DATA, {n} sold", w._replace(now=kept(n))
    if "loss" in d.faults:
        yield "LOSS", w._replace(now=None)
    if "split" in d.faults and w.cut_off is None:
        yield "SPLIT", w._replace(now=None, cut_off=redis)


def broken(w: World, d: Design) -> str | None:
    """Return the promise that is broken; UNION: an answered and a written one for one unit."""
    if len(w.answered) > UNITS or len(w.written) > UNITS:
        return "OVER"
    if w.refused:
        return "REFUSED"
    if not d.loses_nothing:
        return "UNION" if len(w.answered | w.written) > UNITS else None
    sold = (w.now.sold if w.now else ()) + (w.cut_off.sold if w.cut_off else ())
    return "LOST" if w.answered - w.written - set(sold) else None


def check(d: Design) -> Found[World]:
    """Search one design whole."""
    start = World(UNITS, (), None, None, frozenset(), frozenset(), False)
    return explore(start, lambda w: steps(w, d), lambda w: broken(w, d), states_max=500_000)


def main() -> int:
    """Print each design's outcome and counter-example; 1 when one is not as expected."""
    is_well = True
    for design in A_TO_O:
        found = check(design)
        is_well &= found.outcome == design.outcome
        sign = " " if found.outcome == design.outcome else "!"
        print(f"{sign} {found.outcome:8} {found.states:7} states  {design.name}")
        if found.path:
            print("             " + " > ".join(found.path))
    return not is_well


if __name__ == "__main__":
    raise SystemExit(main())
