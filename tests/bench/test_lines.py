"""What a measured line says, and that every line is measured as it is told."""

import pytest

from bench import lines
from bench.contestants import CONTESTANTS
from bench.lines import LINES, Group
from bench.subjects import NAMES


def test_every_line_names_what_can_be_run() -> None:
    for line in LINES:
        assert line.base in CONTESTANTS, line
        assert line.ours in NAMES or line.ours in CONTESTANTS, line


def test_lines_of_one_base_share_its_runs_three_at_a_time() -> None:
    groups = lines.groups_of(["S1", "S2", "S2b", "S3"])
    assert [(group.connections, group.subjects) for group in groups] == [
        (64, ["strict", "fast", "sustained"]),
        (64, ["sold_out_keyed", "sold_out"]),
        (256, ["strict", "fast", "sustained"]),
    ]
    assert {group.base for group in groups} == {"litestar_echo"}


def test_every_line_is_in_exactly_one_group() -> None:
    groups = lines.groups_of([line.id for line in LINES])
    grouped = [line for group in groups for line in group.lines]
    assert sorted(map(repr, grouped)) == sorted(map(repr, LINES))
    assert lines.groups_of([]) == []
    assert lines.groups_of(["S5"]) == [
        Group("hot_row", 64, (next(line for line in LINES if line.id == "S5"),))
    ]


@pytest.mark.parametrize(
    ("value", "bounds", "verdict", "bound"),
    [
        (0.55, {"at_least": 0.55}, "pass", "≥ 0.55"),
        (0.549, {"at_least": 0.55}, "MISS", "≥ 0.55"),
        (4.0, {"at_most": 4.0}, "pass", "≤ 4"),
        (4.01, {"at_most": 4.0}, "MISS", "≤ 4"),
        (0.0, {}, "told", ""),
    ],
)
def test_a_line_passes_at_its_bound_and_is_missed_beyond_it(
    value: float, bounds: dict[str, float], verdict: str, bound: str
) -> None:
    result = lines.over([value], id="S0", says="", **bounds)
    assert (result.verdict, result.bound) == (verdict, bound)
    assert result.is_missed == (verdict == "MISS")


def test_a_result_is_the_median_with_the_least_and_the_largest() -> None:
    result = lines.over([3.0, 1.0, 9.0, 2.0, 2.5], id="S0", says="")
    assert (result.value, result.low, result.high, result.rounds) == (2.5, 1.0, 9.0, 5)
