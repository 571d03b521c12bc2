"""How fast, as ratios that a noisy machine cannot spoil.

    python -m bench.ratio [--lines S1,S5 …] [--rounds 5] [--seconds 10]

A round runs base, subject, subject, base on one machine with one set of servers: A B B A, so that
whatever drifts meets both alike. Each round has a product of its own. Prints for each line the
median of the rounds' ratios with the least and the largest beside what is asked, stores the runs
as JSON, and ends with status 1 when a line is missed. A debug build, a failed audit, an
unexpected answer or a generator that was the bottleneck itself gives no figure at all.
All lines at the defaults take about two hours.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from bench import (
    capacity,
    closed_loop,
    lines,
    machine,
    memory,
    modes,
    opponents,
    packing,
    pages,
    subjects,
)
from bench.closed_loop import Run
from bench.contestants import CONTESTANTS
from bench.lines import Group, Result
from bench.product import ROOT, ProductFault, running

RESULTS = ROOT / "bench" / "results" / "local"
# Everything has been asked once and every plan is made after this.
WARM_UP_S = 2.0
# A tenth of the machine taken away moves a ratio by less than the rounds differ anyway.
OTHERS_SHARE_MAX = 0.10
NEAR_CAPACITY = ("S8", "S9", "S10", "S11")
PROFILE = "import vauchflow_hotpath; print(vauchflow_hotpath.BUILD_PROFILE)"


class Report(msgspec.Struct, kw_only=True):
    """One invocation: what was asked, where, and every run behind every result."""

    command: str
    started_at: str
    machine: dict[str, str | int]
    others_share_median: float
    others_share_max: float
    results: list[Result]
    runs: list[Run] = []


def main() -> int:
    """Measure, audit, print, store; returns the exit status."""
    given = _parsed()
    signal.signal(signal.SIGTERM, _end)
    if not closed_loop.is_installed():
        print("wrk is not on PATH; get it with: apt-get install wrk (or brew install wrk)")
        return 2
    started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results: list[Result] = []
    runs: list[Run] = []
    shares: list[float] = []
    status = 0
    try:
        _check_build()
        for group in lines.groups_of(given.lines):
            rounds: list[list[Run]] = []
            try:
                for number in range(1, given.rounds + 1):
                    rounds.append(_measured(group, number, given.seconds, given.burst))
            finally:
                # What was measured before a fault or a signal is kept.
                results += _results(group, rounds) if rounds else []
                runs += [run for round_runs in rounds for run in round_runs]
                shares = [run.others_share for run in runs]
        _beyond_throughput(given, results, shares)
    except ProductFault as fault:
        print(f"ratio: {fault}", file=sys.stderr)
        status = 1
    except SystemExit:
        status = 143
    report = Report(
        command="python -m bench.ratio " + " ".join(sys.argv[1:]),
        started_at=started_at,
        machine=machine.described(),
        others_share_median=statistics.median(shares or [0.0]),
        others_share_max=max(shares or [0.0]),
        results=results,
        runs=runs,
    )
    return conclude(report) or status


def _beyond_throughput(
    given: argparse.Namespace, results: list[Result], shares: list[float]
) -> None:
    """Measure what is no ratio of two throughputs; adds to both lists as it goes."""
    before = machine.now_s()
    if "S6b" in given.lines:
        # Each case as it comes, so that a signal in the middle loses none.
        results.extend(modes.measure())
    if "S7" in given.lines:
        results += packing.measure(given.rounds, given.seconds)
    if near := [name for name in given.lines if name in NEAR_CAPACITY]:
        found, others = capacity.measure(near, given.rounds, given.seconds)
        results += found
        shares += others
    if "S12" in given.lines:
        results += memory.measure(given.claims)
    if "S13" in given.lines:
        results += pages.measure(large=pages.Rows(given.vouchers, 10 * given.vouchers))
    if not shares:
        shares.append(machine.strangers_share(before))


def conclude(report: Report) -> int:
    """Print the lines of a report and store it; returns the exit status."""
    print()
    for result in report.results:
        span = f"({result.low:.2f} to {result.high:.2f})"
        figures = "  ".join(f"{name} {shown(value)}" for name, value in result.figures.items())
        print(
            f"{result.id:<5} {result.verdict:<5} {result.value:6.2f} {span:<17} {result.bound:<7} "
            f"{result.says}   {figures}"
        )
    print(
        f"others used {report.others_share_median:.0%} of the machine, "
        f"at most {report.others_share_max:.0%}"
    )
    if report.others_share_max > OTHERS_SHARE_MAX:
        print(f"above {OTHERS_SHARE_MAX:.0%} the figures are no measurement; repeat on an idle one")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"ratio-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(f"stored in {path.relative_to(ROOT)}")
    return 1 if any(result.is_missed for result in report.results) else 0


def shown(value: float) -> str:
    """Return a figure with the digits it deserves."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _measured(group: Group, number: int, seconds: float, burst: int) -> list[Run]:
    """Run one round of a group on a product of its own."""
    names = [group.base, *group.subjects]
    with running() as product, opponents.started(product, names) as opponent:
        assert product.process is not None
        pids = [product.process.pid, *(one.pid for one in opponent.values())]
        bench = subjects.Bench(product, pids, burst)

        def run(name: str, run_s: float) -> Run:
            if name not in CONTESTANTS:
                return bench.run(name, group.connections, run_s)
            done = closed_loop.run(name, opponent[name].aim, group.connections, run_s, pids)
            if done.refused or done.broken:
                raise ProductFault(f"{name}: {done.refused} refused and {done.broken} broken")
            return done

        for name in names:
            # A burst or a minute is no warm-up: the plain sale of the same kind is.
            run({"fast": "strict", "sustained": "strict"}.get(name, name), min(WARM_UP_S, seconds))
        runs = []
        for name in names + names[::-1]:
            runs.append(run(name, seconds))
            print(
                f"round {number}  {group.connections:>3} connections  {name:<14} "
                f"{runs[-1].per_s:9,.0f}/s  {runs[-1].cpu_us:5.0f} µs CPU  "
                f"wrk {runs[-1].generator_share:.0%}  others {runs[-1].others_share:.0%}",
                flush=True,
            )
    return runs


def _results(group: Group, rounds: list[list[Run]]) -> Iterator[Result]:
    for line in group.lines:
        ratios = [_per_s(runs, line.ours) / _per_s(runs, line.base) for runs in rounds]
        ours = [run for runs in rounds for run in runs if run.name == line.ours]
        base = [run for runs in rounds for run in runs if run.name == line.base]
        figures = {
            "per_s": _median(ours, "per_s"),
            "base_per_s": _median(base, "per_s"),
            "cpu_us": _median(ours, "cpu_us"),
            "base_cpu_us": _median(base, "cpu_us"),
            "p99_ms": _median(ours, "p99_ms"),
            # What the ratio is by CPU alone: a busy neighbour costs both alike.
            "ratio_by_cpu": _median(base, "cpu_us") / _median(ours, "cpu_us"),
            "wrk_share": _median(ours, "generator_share"),
            "others_share": _median(ours + base, "others_share"),
        }
        for name in ours[0].counters:
            figures[name] = statistics.median(run.counters.get(name, 0.0) for run in ours)
        yield lines.over(
            ratios,
            id=line.id,
            says=f"{line.ours} ÷ {line.base}, {line.connections} connections",
            at_least=line.at_least,
            figures=figures,
        )


def _per_s(runs: list[Run], name: str) -> float:
    # The ratio of the sums is the ratio of the means.
    return sum(run.per_s for run in runs if run.name == name)


def _median(runs: list[Run], field: str) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


def _check_build() -> None:
    command = [sys.executable, "-c", PROFILE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.stdout.strip() != "release":
        raise ProductFault(f"the compiled module is a {done.stdout.strip() or 'missing'} build")


def _end(*_: object) -> None:
    # Leaving by an exception stops whatever was started.
    raise SystemExit(143)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ids = [
        *dict.fromkeys(line.id for line in lines.LINES),
        "S6b",
        "S7",
        *NEAR_CAPACITY,
        "S12",
        "S13",
    ]
    parser.add_argument("--lines", default=",".join(ids), help=f"of {', '.join(ids)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--burst", type=int, default=subjects.BURST, help="claims of a fast run")
    parser.add_argument("--claims", type=int, default=memory.CLAIMS, help="claims of S12")
    parser.add_argument(
        "--vouchers", type=int, default=pages.LARGE.vouchers, help="many vouchers of S13"
    )
    given = parser.parse_args()
    given.lines = given.lines.split(",")
    if unknown := [name for name in given.lines if name not in ids]:
        parser.error(f"unknown line {', '.join(unknown)}")
    return given


if __name__ == "__main__":
    raise SystemExit(main())
