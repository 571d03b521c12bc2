"""`kill -9` of each process in the middle of a sale: it comes back by itself and loses nothing."""

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
from bench.client import Summary
from bench.product import Product
from tests.e2e.sales import Sale, finish, running, wait_for_wins

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

BACK_WITHIN_S = 10.0
# The kill comes after a quarter of the stock, long before it is gone.
WINS_BEFORE = 5_000
MODES = pytest.mark.parametrize("durability", ["fast", "strict"])
# What a mode does not need to decide a claim: its death must not be felt at all.
UNFELT = {
    ("fast", "postgres"),
    ("fast", "reconciler"),
    ("strict", "valkey"),
    ("strict", "reconciler"),
}


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
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # Python's resource tracker may be a child, too; the worker is the one that serves.
    serving = [int(child) for child in workers if is_worker(int(child))]
    assert len(serving) == 1, workers
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


def first_decision_after(history: Path, moment_s: float) -> float:
    """Return how long after a moment the first claim asked since then was decided."""
    decided = (
        call["ret"] - moment_s
        for call in map(json.loads, history.read_text().splitlines())
        if call["out"] in ("ok", "sold_out", "limit") and call["call"] > moment_s
    )
    return min(decided, default=float("inf"))


def longest_silence(history: Path, since_s: float) -> float:
    """Return the longest time after a moment in which nobody got a decision, in seconds."""
    decided = sorted(
        call["ret"]
        for call in map(json.loads, history.read_text().splitlines())
        if call["out"] in ("ok", "sold_out", "limit") and call["ret"] > since_s
    )
    return max((b - a for a, b in itertools.pairwise([since_s or decided[0], *decided])))


@MODES
@pytest.mark.parametrize("name", ["worker", "api", "reconciler", "valkey", "postgres"])
def test_a_sale_survives_the_death_of_any_process(
    product: Product, tmp_path: Path, durability: str, name: str
) -> None:
    sale = Sale(product, durability, tmp_path)
    with sale.crowd() as crowd:
        before = wait_for_wins(crowd, WINS_BEFORE)
        dead = victim_of(product, name)
        killed_at_s = time.monotonic()
        os.kill(dead, signal.SIGKILL)
        back_s = wait_for_successor(product, name, dead)
        summary = finish(crowd)
    decided_s = first_decision_after(sale.history, killed_at_s)
    silence_s = longest_silence(sale.history, killed_at_s)
    print(
        f"{durability}, {name} killed after {before} wins: back in {back_s:.1f} s, first decision "
        f"after {decided_s:.2f} s, longest silence {silence_s:.2f} s"
    )
    assert decided_s <= BACK_WITHIN_S
    assert silence_s <= BACK_WITHIN_S
    if (durability, name) in UNFELT:
        assert_nothing_stopped(summary)
    sale.assert_sold_exactly(summary)


def assert_nothing_stopped(summary: Summary) -> None:
    """Nobody was sent away or left without an answer."""
    assert set(summary.answers) <= {"200 redeemed", "409 sold_out"}, summary.answers


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
    assert longest_silence(sale.history, 0.0) <= BACK_WITHIN_S
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
