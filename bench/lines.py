"""What speed is asked for, line by line, and what a measurement of a line is."""

import statistics

import msgspec


class Line(msgspec.Struct, frozen=True):
    """One ratio of two closed-loop throughputs. `at_least` is None where it is only told."""

    id: str
    ours: str
    base: str
    connections: int
    at_least: float | None = None


# In this order they are measured and printed.
LINES = (
    Line("S1", "strict", "litestar_echo", 64, 0.55),
    Line("S1", "strict", "litestar_echo", 256, 0.65),
    Line("S2", "fast", "litestar_echo", 64, 0.90),
    Line("S2", "fast", "litestar_echo", 256, 1.00),
    Line("S2b", "sustained", "litestar_echo", 64, 0.55),
    Line("S2b", "sustained", "litestar_echo", 256, 0.65),
    Line("S3", "sold_out_keyed", "litestar_echo", 64, 1.25),
    Line("S3", "sold_out", "litestar_echo", 64, 1.40),
    Line("S3b", "litestar_echo", "rsgi_echo", 64, 0.45),
    Line("S4", "strict", "redis_evalsha", 64, 3.0),
    Line("S4", "fast", "redis_evalsha", 64, 4.5),
    Line("S5", "strict", "hot_row", 64, 10.0),
    Line("S6", "ordinary", "hot_row", 64, 8.0),
    Line("told", "fast", "hot_row", 64),
    Line("told", "spread", "hot_row", 64),
    Line("told", "litestar_typed", "litestar_echo", 64),
    Line("told", "rsgi_empty", "litestar_echo", 64),
)

# Subjects between the first and the last run of a base: more, and the machine is another by then.
SUBJECTS_MAX = 3


class Result(msgspec.Struct, kw_only=True):
    """A line as it was measured: the median over rounds, with the least and the largest.

    A bound that is None was not asked for. `figures` are what a reader wants to see beside it.
    """

    id: str
    says: str
    value: float
    low: float
    high: float
    rounds: int
    at_least: float | None = None
    at_most: float | None = None
    figures: dict[str, float] = {}
    others_share: float = 0.0
    """How much of the machine others used, as the median over the report's runs."""

    @property
    def is_missed(self) -> bool:
        """Whether a bound that was asked for does not hold."""
        is_low = self.at_least is not None and self.value < self.at_least
        return is_low or (self.at_most is not None and self.value > self.at_most)

    @property
    def verdict(self) -> str:
        """Return pass, MISS or told."""
        if self.at_least is None and self.at_most is None:
            return "told"
        return "MISS" if self.is_missed else "pass"

    @property
    def bound(self) -> str:
        """Return what is asked, as text."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else ""


def over(values: list[float], **fields: object) -> Result:
    """Make a result of the values of all rounds."""
    return msgspec.convert(
        {
            "value": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "rounds": len(values),
            **fields,
        },
        Result,
    )


class Group(msgspec.Struct, frozen=True):
    """Lines that are measured in one go: base, subjects, subjects backwards, base."""

    base: str
    connections: int
    lines: tuple[Line, ...]

    @property
    def subjects(self) -> list[str]:
        """Return what is measured against the base."""
        return [line.ours for line in self.lines]


def groups_of(ids: list[str]) -> list[Group]:
    """Return what to run for these lines: those that share a base share its runs."""
    asked = [line for line in LINES if line.id in ids]
    groups = []
    for key in dict.fromkeys((line.base, line.connections) for line in asked):
        mine = [line for line in asked if (line.base, line.connections) == key]
        for first in range(0, len(mine), SUBJECTS_MAX):
            groups.append(Group(*key, tuple(mine[first : first + SUBJECTS_MAX])))
    return groups
