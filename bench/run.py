"""`make bench`: a flash sale played by Locust against the real thing, and the audit afterwards.

Starts a product of its own on a temporary directory, or uses the one at `--url` with `--key`.
Exit status 1 when fewer than 1,000 wins, sold-out and limit refusals a second were answered, when
more than 1 % of the answers were 503, when the stock was not sold exactly, when an answer was
neither a win nor a named refusal, or when the books do not balance.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.product import ROOT, Product, ProductFault, running

# The promise on the product's page: 1,000 requests a second.
DECIDED_PER_S_MIN = 1_000
UNAVAILABLE_SHARE_MAX = 0.01
# A run that has not ended by then is stuck; at the least promised rate it takes half as long.
SECONDS_MAX = 120
DRAIN_S_MAX = 60.0


def main() -> int:
    """Play, report, audit; returns the exit status."""
    given = _parsed()
    try:
        with _product(given) as product:
            print(f"flash sale at {product.url}, {given.durability}, seed {given.seed}")
            return _play(product, given)
    except ProductFault as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1


@contextmanager
def _product(given: argparse.Namespace) -> Iterator[Product]:
    if given.url:
        yield Product(given.url, given.key, given.data_dir)
        return
    print("starting VauchFlow on a temporary directory")
    with running("--workers", str(given.workers)) as product:
        yield product


def _play(product: Product, given: argparse.Namespace) -> int:
    code = f"BENCH{given.seed}"
    sale = product.open_sale(
        name=f"Bench {given.seed}",
        code=code,
        discount_type="PERCENT",
        discount_value=50,
        stock=given.stock,
        per_customer_limit=1,
        durability=given.durability,
    )
    scratch = Path(tempfile.mkdtemp(prefix="vf-bench-"))
    try:
        history = scratch / "history.jsonl"
        result = _locust(product, given, sale["id"], code, scratch, history)
        if result is None:
            return 1
        _print_result(result)
        settled = product.wait_for_lag_0(sale["id"], DRAIN_S_MAX)
        print(
            f"sale       stock {settled['stock']:,}, claimed {settled['claimed']:,}, "
            f"settled {settled['settled']:,}, lag {settled['lag']}"
        )
        status, audit = product.verify(history)
        print("\n" + audit.rstrip() + "\n")
        failures = _failures(result, settled, status, given.stock)
        for failure in failures:
            print(f"FAILED     {failure}")
        print("bench      " + ("failed" if failures else "passed"))
        return 1 if failures else 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _locust(
    product: Product,
    given: argparse.Namespace,
    sale_id: str,
    code: str,
    scratch: Path,
    history: Path,
) -> dict[str, Any] | None:
    setup = {
        "sale_id": sale_id,
        "code": code,
        "token": product.token,
        "seed": given.seed,
        "stock": given.stock,
        "crowd": given.crowd,
        "result": str(scratch / "result.json"),
        "history": str(history),
    }
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "bench" / "locustfile.py")]
    command += [
        "--headless",
        "--only-summary",
        "--loglevel",
        "WARNING",
        "--exit-code-on-error",
        "0",
    ]
    command += ["--host", product.url, "--users", str(given.users)]
    command += ["--spawn-rate", str(given.users), "--run-time", f"{SECONDS_MAX}s"]
    environ = os.environ | {"VF_BENCH": json.dumps(setup), "PYTHONPATH": str(ROOT)}
    # Locust's own tables say the same with less precision; its warnings are kept for failures.
    with (scratch / "locust.log").open("w+") as log:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, stderr=log, timeout=SECONDS_MAX + 60, check=False
        )
        log.seek(0)
        said = log.read()
    try:
        result: dict[str, Any] = json.loads((scratch / "result.json").read_text())
    except (OSError, ValueError):
        print(
            f"bench: locust ended with status {done.returncode}:\n{said[-2000:]}", file=sys.stderr
        )
        return None
    return result


def _print_result(result: dict[str, Any]) -> None:
    seconds = max(result["seconds"], 1e-9)
    decided = result["wins"] + result["refused"]
    print(f"\nclaims     {decided:,} decided in {seconds:.1f} s: {decided / seconds:,.0f} a second")
    latencies = sorted(result["latencies_ms"])
    if latencies:
        shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        line = "   ".join(f"{n} {_percentile(latencies, share):,.1f} ms" for n, share in shares)
        print(f"latency    {line}")
    for name, count in result["answers"].items():
        print(f"           {count:>9,}  {name}")
    for line in result["unexpected"]:
        print(f"unexpected {line}")


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _failures(
    result: dict[str, Any], sale: dict[str, Any], audit_status: int, stock: int
) -> list[str]:
    """Return what the run has to be failed for, one sentence each."""
    failures = []
    rate = (result["wins"] + result["refused"]) / max(result["seconds"], 1e-9)
    if rate < DECIDED_PER_S_MIN:
        failures.append(
            f"{rate:,.0f} claims a second were decided, {DECIDED_PER_S_MIN:,} are asked"
        )
    answers = result["answers"]
    claims = sum(count for name, count in answers.items() if name[:1].isdigit())
    away = sum(count for name, count in answers.items() if name.startswith("503"))
    if away > UNAVAILABLE_SHARE_MAX * claims:
        failures.append(f"{away:,} of {claims:,} answers were 503")
    if not result["wins"] == result["distinct_wins"] == sale["claimed"] == stock:
        failures.append(
            f"a stock of {stock:,} was sold as {result['wins']:,} wins, "
            f"{result['distinct_wins']:,} of them different, {sale['claimed']:,} in the books"
        )
    if result["unexpected"]:
        failures.append(
            f"{answers.get('unexpected', 0):,} answers were no win and no named refusal"
        )
    if audit_status:
        failures.append(f"the audit ended with status {audit_status}")
    return failures


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--url", help="use a running product instead of starting one")
    parser.add_argument("--key", default=os.environ.get("VF_BENCH_KEY", ""), help="its secret key")
    parser.add_argument("--data-dir", type=Path, help="where its `verify` finds the books")
    parser.add_argument("--stock", type=int, default=10_000)
    parser.add_argument(
        "--crowd", type=int, default=20_000, help="refusals after the stock is gone"
    )
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--durability", choices=("fast", "strict"), default="fast")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    if given.url and not given.key:
        parser.error("--url needs --key, or VF_BENCH_KEY")
    return given


if __name__ == "__main__":
    raise SystemExit(main())
