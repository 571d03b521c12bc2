"""No hot path becomes dearer unseen: its instructions are counted, which no neighbour changes."""

import math

import pytest

from bench import instructions, product
from bench.instructions import NoCounters

# Thousands of user-mode instructions a request, as docs/profile.md has them.
EXPECTED_K = {
    ("sold_out", "api"): 23.2,
    ("sold_out_keyed", "api"): 31.7,
    ("sold_out_keyed", "valkey"): 24.5,
    ("fast", "api"): 39.8,
    ("fast", "valkey"): 52.9,
    ("strict", "api"): 55.4,
    ("ordinary", "api"): 55.8,
}
# Runs of one build differ by up to 2 %, Valkey's by 10; a machine that is busy with others makes
# smaller batches, which cost more each. What is seen is a path that costs an eighth more in the
# cheapest of a few runs. Whoever makes one cheaper writes the new figure down here.
DEARER_MAX = 1.125
RUNS_MAX = 4

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def dearer(cheapest_k: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {
        place: round(cheapest_k[place], 1)
        for place, expected_k in EXPECTED_K.items()
        if cheapest_k[place] > expected_k * DEARER_MAX
    }


def test_no_hot_path_costs_an_eighth_more_instructions_than_written_down() -> None:
    cheapest_k = dict.fromkeys(EXPECTED_K, math.inf)
    with product.running() as running:
        for number in range(RUNS_MAX):
            try:
                found = instructions.measure(running)
            except NoCounters as fault:
                pytest.skip(f"the kernel counts no instructions here: {fault}")
            print(f"run {number}: {found}")
            for path, server in EXPECTED_K:
                cheapest_k[path, server] = min(cheapest_k[path, server], found[path][server])
            if not dearer(cheapest_k):
                break
    assert dearer(cheapest_k) == {}
