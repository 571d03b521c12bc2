"""What was measured, as a page: `python -m bench.report RESULT.json …` writes bench/README.md.

Each result stands in one table with what is asked of it; a later file replaces what an earlier one
says of the same line. Plots are written beside it as SVG. The results themselves are kept in
bench/results/reference.json, so that a page can be drawn again.
"""

import sys
from pathlib import Path

import msgspec

from bench.lines import Result
from bench.plots import bars
from bench.product import ROOT
from bench.ratio import OTHERS_SHARE_MAX, Report, shown

PAGE = ROOT / "bench" / "README.md"
REFERENCE = ROOT / "bench" / "results" / "reference.json"
RATIOS = ROOT / "bench" / "results" / "ratios.svg"
RATES = ROOT / "bench" / "results" / "rates.svg"

# ruff: noqa: E501
HEAD = """# How fast it is

Every figure on this page is a ratio to something that ran beside it, on one machine, in one go, between two runs of
what it is compared with. Absolute rates are told so that a reader can judge the machine, not the product.
Every run of the product was followed by `./vauchflow verify` on what it had written: a run whose books do not
balance has no speed. Servers sync as they do in production: `appendfsync always`, `fsync=on`, `synchronous_commit=on`.

```sh
python -m bench.ratio                                   # everything, about two hours
python -m bench.ratio --lines S1,S5 --rounds 1 --seconds 4
python -m bench.report bench/results/local/*.json       # draws this page
```

## What is compared

| name | what a request costs there |
| --- | --- |
| `rsgi_empty`, `rsgi_echo` | granian alone; the same with JSON in and out |
| `litestar_echo` | the yardstick: a raw ASGI handler of Litestar, JSON in and out |
| `litestar_typed` | a typed Litestar handler |
| `redis_evalsha` | the same with one `redis.asyncio` script call, written down in Redis only |
| `hot_row` | one UPDATE of one PostgreSQL row, one commit |
| `strict`, `fast`, `ordinary` | wins with key check, an Idempotency-Key each, one for each customer, metering |
| `sustained` | fast, for a minute, with the reconciler keeping up |
| `sold_out_keyed`, `sold_out` | refusals, with a key each (the script is asked) and without |
| `spread` | ordinary redeems of 10,000 vouchers in turn |

All contestants are served with the product's own server settings and asked by the same bytes. Latencies come from an
open loop: claims are sent when they are due, and count from then.
"""


def main() -> int:
    """Merge, draw, write; returns the exit status."""
    reports = [
        msgspec.json.decode(Path(name).read_bytes(), type=Report) for name in sys.argv[1:]
    ] or msgspec.json.decode(REFERENCE.read_bytes(), type=list[Report])
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_bytes(msgspec.json.format(msgspec.json.encode(reports)) + b"\n")
    results = merged(reports)
    ratios = [one for one in results if one.id.startswith(("S", "told")) and _is_ratio(one)]
    RATIOS.write_text(bars("Ratios, with what is asked of each", ratios))
    modes = [one for one in results if one.id == "S6b"]
    if modes:
        RATES.write_text(bars("Decided a second", modes))
    PAGE.write_text(page(reports, results))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


def merged(reports: list[Report]) -> list[Result]:
    """Return one result a line, the latest, in the order of the lines' numbers."""
    latest = {}
    for report in reports:
        for one in report.results:
            one.others_share = report.others_share_median
            latest[one.id, one.says] = one
    return sorted(latest.values(), key=lambda one: _order(one.id))


def page(reports: list[Report], results: list[Result]) -> str:
    """Return the whole page."""
    parts = [HEAD, _machines(reports), "## The lines\n\n![ratios](results/ratios.svg)\n"]
    plain = [one for one in results if one.id not in ("S6b", "S13")]
    parts.append(_table(plain))
    if modes := [one for one in results if one.id == "S6b"]:
        parts.append(
            "## Side by side (S6b)\n\nDecided requests a second, wins among them, and what one "
            "costs.\n\n![rates](results/rates.svg)\n"
        )
        parts.append(_modes(modes))
    if lists := [one for one in results if one.id == "S13"]:
        parts.append(
            "## On a million vouchers and ten million redemptions (S13)\n\n"
            "Median time of a call over HTTP, against 10,000 and 100,000.\n"
        )
        parts.append(_lists(lists))
    return "\n".join(parts)


def _machines(reports: list[Report]) -> str:
    rows = ["## Where and when\n", "| | machine | commit | others used | command |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for report in reports:
        about = report.machine
        rows.append(
            f"| {report.started_at} | {about['processor']}, {about['cores']} cores, "
            f"{about['system']} | {about['commit']} | {report.others_share_median:.0%}, at most "
            f"{report.others_share_max:.0%} | `{report.command}` |"
        )
    rows.append(
        f"\n*Others used*: the share of the machine that neither servers nor generator took during "
        f"the runs. Above {OTHERS_SHARE_MAX:.0%} its lines are marked *busy*: they tell an "
        f"order of magnitude and decide nothing, whichever way they fell.\n"
    )
    return "\n".join(rows)


def _table(results: list[Result]) -> str:
    rows = ["| line | what | value (least to largest) | asked | | beside it |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for one in results:
        beside = ", ".join(f"{_label(name)} {shown(value)}" for name, value in one.figures.items())
        rows.append(
            f"| {one.id} | {one.says} | {shown(one.value)} ({shown(one.low)} to {shown(one.high)}, "
            f"{one.rounds} {'round' if one.rounds == 1 else 'rounds'}) | {one.bound} | {_verdict(one)} | {beside} |"
        )
    return "\n".join(rows) + "\n"


def _modes(results: list[Result]) -> str:
    rows = ["| | decided a second | wins a second | µs CPU each | p50, p99 ms |"]
    rows.append("| --- | --: | --: | --: | --- |")
    for one in results:
        told = one.figures
        rows.append(
            f"| {one.says} | {one.value:,.0f} | {told['wins_per_s']:,.0f} | {told['cpu_us']:.0f} | "
            f"{told['p50_ms']:.1f}, {told['p99_ms']:.1f} |"
        )
    return "\n".join(rows) + "\n"


def _lists(results: list[Result]) -> str:
    rows = ["| call | few rows, ms | many rows, ms | ratio | |", "| --- | --: | --: | --: | --- |"]
    for one in results:
        told = one.figures
        rows.append(
            f"| {one.says} | {told['few_ms']:.2f} | {told['many_ms']:.2f} | {one.value:.2f} | "
            f"{_verdict(one)} |"
        )
    return "\n".join(rows) + "\n"


def _verdict(result: Result) -> str:
    said = {"MISS": "**missed**", "pass": "holds", "told": ""}[result.verdict]
    return f"{said} (busy)" if said and result.others_share > OTHERS_SHARE_MAX else said


def _label(name: str) -> str:
    return name.replace("_", " ").removesuffix(" per s") + ("/s" if name.endswith("per_s") else "")


def _is_ratio(result: Result) -> bool:
    return result.id not in ("S6b", "S12", "S13")


def _order(line: str) -> tuple[int, str]:
    digits = "".join(letter for letter in line if letter.isdigit())
    return (int(digits) if digits else 99, line)


if __name__ == "__main__":
    raise SystemExit(main())
