"""The model check of the flash protocol: `python -m tests.sim.model [--large] [NAME…]`.

Every world is searched whole (or up to a bound that is printed) with all rules in force, and must
keep every promise; then each rule is left out in turn in a world where it matters, and the search
must find how that breaks a promise. A rule nobody misses would be a rule nobody needs, or a hole
in the model. The designs that were not chosen are in `tests.sim.designs`.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tests.sim.promises import broken
from tests.sim.protocol import Protocol
from tests.sim.search import Found, explore
from tests.sim.world import Rules, Setting, State, begin

# What CI looks at in one world: two seconds' worth; `--large` looks at fifty times as much.
STATES_MAX = 12_000
LARGE_STATES_MAX = 600_000

NOBODY_NAMED = (None, None, None)

WORLDS = {
    world.name: world
    for world in (
        Setting(
            "a sale from start to end",
            keys=(0, 1),
            tries=2,
            loses_replies=True,
            sells_directly=True,
        ),
        Setting("keyless claims beside retried ones", keys=(0, None, None), tries=2),
        Setting("a sale that grows", held_back=1, leases=1, sells_directly=True),
        Setting(
            "one of each customer",
            keys=(0, 1, 2),
            customers=(0, 0, 0),
            customer_limit=1,
            limit=3,
            leases=1,
            rolls_back=True,
            sells_directly=True,
        ),
        Setting(
            "customers and keys over both doors",
            keys=(0, 1),
            customers=(0, 0),
            customer_limit=1,
            held_back=1,
            tries=2,
            sells_directly=True,
        ),
        Setting("arming that breaks off", keys=(0,), arms_slowly=True, faults={"loss": 1},
                loses_data=True),
        Setting("two reconcilers", keys=(0, 1), followers=2, faults={"reconciler": 1}),
        Setting("Redis restarts", faults={"restart": 1}),
        Setting("Redis restarts twice under two workers", keys=(0, 1), workers=2, leases=1,
                closes=False, faults={"restart": 2}),
        Setting("Redis is lost", tries=2, keys=(0, 1), faults={"loss": 1}, loses_data=True),
        Setting("Redis is flushed", tries=2, keys=(0, 1), faults={"flush": 1}, loses_data=True),
        Setting("Redis forgets, one worker", tries=2, keys=(0, 1), followers=0, closes=False,
                faults={"forget": 1}, loses_data=True),
        Setting("an old backup", faults={"backup": 1}, loses_data=True),
        Setting("an old backup under two workers", keys=(0, 1), tries=2, workers=2, leases=1,
                closes=False, loses_replies=True, faults={"backup": 1}, loses_data=True),
        Setting("a restart, then a flush", keys=(0, 1), workers=2, leases=1, closes=False,
                faults={"restart": 1, "flush": 1}, loses_data=True),
        Setting("a split while the sale closes", keys=(0, 1), faults={"split": 1, "heal": 1},
                loses_data=True),
        Setting("a split under two reconcilers", keys=(0, 1), followers=2, leases=1, limit=1,
                loses_replies=True, sells_directly=True, faults={"split": 1}, loses_data=True),
        Setting("a split under two workers", keys=(0, 1), workers=2, leases=1, closes=False,
                loses_replies=True, joins_slowly=True, faults={"split": 1}, loses_data=True),
        Setting("a worker that stayed with the old primary", keys=(0, 1), workers=2, leases=1,
                closes=False, faults={"split": 1}, loses_data=True),
        Setting("a worker is killed in a split", keys=(0, 1), workers=2, followers=0, leases=1,
                closes=False,
                faults={"split": 1, "kill": 1, "respawn": 1}, loses_data=True),
        Setting("a writer that wakes after a settle", keys=(0, 1), followers=2, leases=1, limit=1,
                closes=False, reads_slowly=True, loses_replies=True, sells_directly=True,
                faults={"loss": 1}, loses_data=True),
        Setting("a seal that arrives late", keys=(0, 1), leases=1, closes=False,
                faults={"restart": 1, "delay": 1, "drift": 1, "loss": 1}, loses_data=True),
        Setting("a silent worker", limit=3, leases=1, backlog_max=1, followers=2, closes=False,
                faults={"drift": 1, "silence": 1}, loses_data=True),
        Setting("a host is lost with Redis", keys=(0, 1, 2), backlog_max=1, closes=False,
                faults={"host": 1, "respawn": 1, "loss": 1, "silence": 1}, loses_data=True),
        Setting("a standby that lags is promoted", leases=1, sells_directly=True,
                faults={"standby": 1, "promotion": 1}),
        Setting("receipts and released holes", keys=(0, 1), leases=1, closes=False,
                claims_receipts=True, sells_directly=True, faults={"loss": 1}, loses_data=True),
    )
}  # fmt: skip

# The rule that is left out, the world where it is missed, and the promise that breaks first.
MISSED = (
    ("marks_are_raised", "an old backup", "DOUBLE"),
    ("new_number_is_above_mark", "Redis forgets, one worker", "DOUBLE"),
    ("number_seen_twice_fences", "Redis forgets, one worker", "DOUBLE"),
    ("replay_raises_mark", "an old backup under two workers", "DOUBLE"),
    ("all_marks_are_known", "an old backup under two workers", "DOUBLE"),
    ("run_id_is_compared", "an old backup", "REFUSED"),
    ("joining_is_guarded", "a split under two workers", "DOUBLE"),
    ("seal_is_of_this_judgement", "a seal that arrives late", "UNBACKED"),
    ("neighbour_seal_is_of_this_process", "a worker is killed in a split", "DOUBLE"),
    ("unsealing_is_told", "a worker that stayed with the old primary", "UNBACKED"),
    ("stream_is_of_this_process", "a split under two workers", "REFUSED"),
    ("settling_is_guarded", "arming that breaks off", "UNBACKED"),
    ("bound_is_computed_at_settling, settling_is_at_the_offset", "a silent worker", "UNBACKED"),
    ("drained_redis_is_compared", "a split while the sale closes", "UNBACKED"),
    ("unknown_marks_burn_the_backlog", "a host is lost with Redis", "UNBACKED"),
    ("backlog_is_bounded", "a silent worker", "UNBACKED"),
    ("accounted_after_commit", "a silent worker", "UNBACKED"),
    ("open_to_is_checked", "a writer that wakes after a settle", "OVER"),
    ("offset_is_compared", "two reconcilers", "REFUSED"),
    ("rows_are_unique, offset_is_compared", "two reconcilers", "KEY"),
    ("records_are_loaded", "a sale from start to end", "KEY"),
    ("customers_are_loaded", "customers and keys over both doors", "CUSTOMER"),
    ("authority_is_checked", "customers and keys over both doors", "KEY"),
    ("size_is_absolute", "a sale that grows", "OVER"),
    ("release_is_idempotent", "one of each customer", "CUSTOMER"),
    ("rollback_is_once", "one of each customer", "BOOKS"),
    ("settling_is_at_the_offset", "a standby that lags is promoted", "BURNED"),
    ("recovering_fences_redis", "a standby that lags is promoted", "REFUSED"),
    ("history_is_gated", "a standby that lags is promoted", "OVER"),
    ("accepting_asks_redis", "a standby that lags is promoted", "OVER"),
    ("hole_is_released_with_a_row", "receipts and released holes", "BOOKS"),
)


def check(world: Setting, rules: Rules, states_max: int) -> Found[State]:
    """Search one world under some rules."""
    protocol = Protocol(world, rules)
    return explore(begin(world), protocol.steps, lambda s: broken(s, world), states_max)


def without(rule: str) -> Rules:
    """Return the rules with one left out, or several named with commas."""
    return replace(Rules(), **dict.fromkeys(rule.split(", "), False))


def all_worlds(states_max: int) -> Iterator[tuple[str, Found[State]]]:
    """Search every world with all rules in force."""
    for name, world in WORLDS.items():
        yield name, check(world, Rules(), states_max)


def all_missed(states_max: int) -> Iterator[tuple[str, str, str, Found[State]]]:
    """Leave out each rule in the world where it is missed."""
    for rule, name, promise in MISSED:
        yield rule, name, promise, check(WORLDS[name], without(rule), states_max)


def main(arguments: Sequence[str]) -> int:
    """Print what was explored; 1 when anything came out otherwise than expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.model", description=__doc__)
    parser.add_argument("--large", action="store_true", help="fifty times as far (ten minutes)")
    parser.add_argument("--paths", action="store_true", help="print the counter-examples")
    options = parser.parse_args(arguments)
    states_max = LARGE_STATES_MAX if options.large else STATES_MAX
    began, states, is_well = time.monotonic(), 0, True
    print("The shipped protocol keeps every promise:")
    for name, found in all_worlds(states_max):
        states += found.states
        is_well &= found.broken is None
        print(f"  {found.outcome:9} {found.states:8} states {found.seconds:6.1f} s  {name}")
        if found.broken:
            print("".join(f"      {step}\n" for step in found.path))
    print("Each rule is missed where it is left out:")
    for rule, name, promise, found in all_missed(LARGE_STATES_MAX):
        states += found.states
        is_well &= found.broken == promise
        sign = " " if found.broken == promise else "!"
        print(f"{sign} {found.outcome:9} {found.states:8} states {found.seconds:6.1f} s  {rule}")
        if options.paths or found.broken != promise:
            print("".join(f"      {step}\n" for step in (f"in: {name}", *found.path)))
    print(f"{states} states in {time.monotonic() - began:.0f} s: ", end="")
    print("all as expected" if is_well else "UNEXPECTED")
    return not is_well


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
