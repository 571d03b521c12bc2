"""`up` and its servers, killed in the middle of a sale: all comes back and nothing is lost.

One fault at a time, of every kind, is `tests/faults`.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import product as bench_product
from bench.product import Product
from tests.e2e.sales import Sale, finish, running, wait_for_wins

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

BACK_WITHIN_S = 10.0
MODES = pytest.mark.parametrize("durability", ["fast", "strict"])


@pytest.fixture
def product() -> Iterator[Product]:
    with running() as started:
        yield started
        print_log(started)


def print_log(product: Product) -> None:
    """Show what the product said beside its ordinary news; pytest keeps it for a failure."""
    print("\n".join(line for line in product.log if '"level": "info"' not in line)[-6_000:])


def victim_of(product: Product, name: str) -> int:
    """Return the process to kill; the API's worker is the server's only child."""
    pid = product.pids()["api" if name == "worker" else name]
    if name != "worker":
        return pid
    serving: list[int] = []
    deadline_s = time.monotonic() + BACK_WITHIN_S
    # A server that has just come back starts its worker in a moment.
    while not serving and time.monotonic() < deadline_s:
        pid = product.pids()["api"]
        with contextlib.suppress(OSError):
            workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            # Python's resource tracker may be a child, too; the worker is the one that serves.
            serving = [int(child) for child in workers if is_worker(int(child))]
        time.sleep(0.05)
    assert len(serving) == 1, serving
    return serving[0]


def is_worker(pid: int) -> bool:
    return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for_successor(product: Product, name: str, dead: int) -> float:
    """Wait until another process has taken the place; returns how long that took."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + BACK_WITHIN_S:
        try:
            pid = victim_of(product, name)
            if pid != dead:
                os.kill(pid, 0)
                return time.monotonic() - began_s
        except (OSError, ValueError, KeyError, AssertionError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{name} was not back after {BACK_WITHIN_S} s")


def longest_silence(history: Path) -> float:
    """Return the longest time in which nobody got a decision, in seconds."""
    decided = sorted(
        call["ret"]
        for call in map(json.loads, history.read_text().splitlines())
        if call["out"] in ("ok", "sold_out", "limit")
    )
    return max((b - a for a, b in itertools.pairwise(decided)))


@MODES
def test_a_sale_survives_one_death_after_another(
    product: Product, tmp_path: Path, durability: str
) -> None:
    """Five kills at random moments of one sale, each process once, in random order."""
    sale = Sale(product, durability, tmp_path)
    order = ["worker", "api", "reconciler", "valkey", "postgres"]
    random.shuffle(order)
    with sale.crowd(replay_share=0.1) as crowd:
        for number, name in enumerate(order):
            wait_for_wins(crowd, 1_000 + number * 3_000)
            time.sleep(random.random() / 5)
            dead = victim_of(product, name)
            os.kill(dead, signal.SIGKILL)
            print(f"{name} killed, back in {wait_for_successor(product, name, dead):.1f} s")
        summary = finish(crowd)
    assert longest_silence(sale.history) <= BACK_WITHIN_S
    sale.assert_sold_exactly(summary)


@MODES
def test_a_sale_survives_the_power_switch(tmp_path: Path, data_dir: Path, durability: str) -> None:
    """Everything is killed at once in the middle, and started again by hand."""
    first = bench_product.start(data_dir)
    try:
        sale = Sale(first, durability, tmp_path, stock=3_000)
        answered = []
        for n in range(200):
            answered.append(sale.claim(f"cus_{n}", key=f"order-{n}"))
    finally:
        assert first.process is not None
        first.process.kill()
        first.process.wait()
    second = bench_product.start(data_dir)
    try:
        sale.product = second
        deadline_s = time.monotonic() + BACK_WITHIN_S
        while sale.claim("cus_0", key="order-0")[0] == 503:
            assert time.monotonic() < deadline_s, "the sale does not come back"
            time.sleep(0.1)
        again = [sale.claim(f"cus_{n}", key=f"order-{n}") for n in range(200)]
        assert again == answered
        assert {status for status, _ in answered} == {200}
        second.wait_for_lag_0(sale.id, 30)
        assert sale.rows()["rows"] == 200
        status, audit = second.verify()
        assert status == 0, audit
    finally:
        second.stop()
        print_log(second)
