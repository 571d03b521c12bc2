"""The faults by number, and what each may cost.

The numbers are those of the failure table the rounds were drawn from; docs/proof.md uses them.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from tests.faults import strikes
from tests.faults.strikes import Scene, Strike


class Fault(NamedTuple):
    """One kind of fault."""

    name: str
    what: str
    strike: Callable[[Scene], Strike]
    unfelt: frozenset[str] = frozenset()
    """Modes that do not need what is hurt: there nobody is refused or left without an answer."""


STRICT: Final = frozenset({"strict"})
FAST: Final = frozenset({"fast"})
BOTH: Final = STRICT | FAST

FAULTS: Final = {
    1: Fault("redis-killed", "Redis is killed (SIGKILL)", strikes.kill_valkey, STRICT),
    2: Fault("power-cut", "power cut: what was not fsynced is gone", strikes.cut_power),
    3: Fault("redis-deleted", "Redis's directory is deleted", strikes.delete_valkey, STRICT),
    4: Fault("old-backup", "an old backup of Redis comes back", strikes.restore_backup, STRICT),
    5: Fault("stale-replica", "a stale replica is promoted", strikes.promote_replica, STRICT),
    6: Fault("redis-frozen", "Redis stands still for 3 s", strikes.freeze_valkey, STRICT),
    7: Fault("postgres-killed", "PostgreSQL is killed (SIGKILL)", strikes.kill_postgres, FAST),
    8: Fault("postgres-frozen", "PostgreSQL stands still for 3 s", strikes.freeze_postgres),
    9: Fault("api-killed", "the API worker is killed", strikes.kill_api_worker),
    10: Fault("reconciler-killed", "the reconciler is killed", strikes.kill_reconciler, BOTH),
    11: Fault("network", "the network to a store misbehaves", strikes.break_network),
    12: Fault("clock", "a clock is 60 s off", strikes.turn_clock),
    13: Fault("disk-full", "a server's disk is full", strikes.fill_disk),
    14: Fault("memory-full", "Redis's memory is full", strikes.fill_memory, STRICT),
    15: Fault("key-revoked", "the key half of the crowd uses is revoked", strikes.revoke_key),
    16: Fault("two-reconcilers", "of two reconcilers one freezes", strikes.two_reconcilers, BOTH),
    17: Fault("meddling", "FLUSHALL, SCRIPT FLUSH, appendfsync everysec", strikes.meddle, STRICT),
}
# Set-ups that break the promise: a power cut that takes nothing here is blind. Played last, since
# the ledger has forgotten what it said.
CONTROLS: Final = {
    "fast": Fault(
        "everysec-control",
        "power cut under appendfsync everysec",
        strikes.cut_power_under_everysec,
    ),
    "strict": Fault(
        "async-control",
        "power cut under synchronous_commit off",
        strikes.cut_power_under_async_commit,
    ),
}
CONTROL_NUMBER: Final = 0
MODES: Final = ("strict", "fast")

# Redis's data is deleted or replaced: only there may a fast sale lose what it answered.
LOSING: Final = frozenset({3, 4, 5})


def may_lose(number: int, mode: str, variant: str) -> bool:
    """Say whether answered wins may be missing from the ledger after this fault."""
    if mode != "fast":
        return False
    return number in LOSING or (number == 17 and variant == "FLUSHALL")
