"""The model check of the protocol, as far as takes seconds. `python -m tests.sim.model` goes on."""

import pytest

from tests.sim import designs, model
from tests.sim.world import Rules

# Enough for every rule's counter-example; a search that finds one ends there.
MISSED_STATES_MAX = 150_000
# Found after a quarter of a minute of looking.
FAR_AWAY = {"unsealing_is_told", "stream_is_of_this_process", "neighbour_seal_is_of_this_process"}


@pytest.mark.parametrize("world", model.WORLDS.values(), ids=lambda world: world.name)
def test_the_shipped_protocol_keeps_every_promise(world):
    found = model.check(world, Rules(), model.STATES_MAX)
    print(f"{found.outcome}: {found.states} states in {found.seconds:.1f} s")
    assert found.broken is None, "\n".join(found.path)


@pytest.mark.parametrize(
    ("rule", "world", "promise"),
    [
        pytest.param(*missed, marks=[pytest.mark.long] if missed[0] in FAR_AWAY else [])
        for missed in model.MISSED
    ],
)
def test_every_rule_is_missed_where_it_is_left_out(rule, world, promise):
    found = model.check(model.WORLDS[world], model.without(rule), MISSED_STATES_MAX)
    print(f"{found.states} states in {found.seconds:.1f} s", *found.path, sep="\n")
    assert found.broken == promise


def test_every_rule_has_a_world_that_misses_it():
    missed = {rule for rules, _, _ in model.MISSED for rule in rules.split(", ")}
    assert missed == set(vars(Rules()))


def test_no_part_of_the_protocol_is_out_of_the_models_reach():
    seen = set()
    for world in ("a sale from start to end", "one of each customer", "a silent worker"):
        seen |= model.check(model.WORLDS[world], Rules(), model.STATES_MAX).steps
    wanted = {
        "arm", "claim", "land", "lose", "redeem", "roll back", "release", "close", "steer",
        "write", "account", "decide", "settle", "tell", "DRIFT",
    }  # fmt: skip
    assert wanted <= seen


@pytest.mark.parametrize("design", designs.A_TO_O, ids=lambda design: design.name)
def test_each_design_that_was_weighed_fails_as_it_must(design):
    found = designs.check(design)
    print(f"{found.states} states", *found.path, sep="\n")
    assert found.outcome == design.outcome
