"""S8 to S11: what happens near capacity and beyond it, by claims that do not wait for each other.

Capacity is what a closed loop gets on 256 connections, measured in the same round.
"""

import os
import signal
import time
from typing import Any

from bench import closed_loop, counters, generator, lines, opponents, subjects
from bench.closed_loop import Aim
from bench.generator import OpenRun
from bench.lines import Result
from bench.product import Product, ProductFault, running

CONNECTIONS = 256
CALM, NEARLY_FULL, OVER, FLOOD = 0.7, 0.9, 1.5, 3.0
GOODPUT_AT_LEAST = 0.60
REFUSAL_AT_MOST = 0.5
SLOWER_AT_MOST = 4.0
TOGETHER_AT_LEAST = 32.0
DRAIN_AT_LEAST = 1.3
# The reconciler is held back for this share of the run, and the rest is time to catch up.
HELD_SHARE = 0.25
# Caught up: what is on its way now is what arrives in a quarter of a second anyway.
CAUGHT_UP_S = 0.25
LOOK_S = 0.1


class _Round:
    """One round on a product of its own."""

    def __init__(self, product: Product, echo: opponents.Opponent, seconds: float) -> None:
        assert product.process is not None
        self.product = product
        self.echo = echo
        self.seconds = seconds
        self.pids = [product.process.pid, echo.pid]
        self.bench = subjects.Bench(product, self.pids)
        self.values: dict[str, float] = {}
        self.shares: list[float] = []

    def measure(self, ids: list[str]) -> None:
        if {"S8", "S9", "S10"} & set(ids):
            self._strict(ids)
        if {"S8", "S11"} & set(ids):
            self._fast(ids)

    def _strict(self, ids: list[str]) -> None:
        self.bench.run("strict", CONNECTIONS, 2.0)
        full = self.bench.run("strict", CONNECTIONS, self.seconds)
        values = self.values
        values["strict_per_s"] = full.per_s
        values["strict_a_fsync"] = full.counters.get("wal_fsyncs", 0.0)
        if "S8" in ids:
            _, counted = self._offered("strict", full.per_s * NEARLY_FULL)
            values["strict_a_fsync_90"] = counted.get("wal_fsyncs", 0.0)
        if not {"S9", "S10"} & set(ids):
            return
        rate = full.per_s * CALM
        disk = self.product.data_dir
        calm_echo = generator.open_loop(self.echo.aim, rate, self.seconds, self.pids, disk=disk)
        calm, _ = self._offered("strict", rate)
        values["p99_ms"] = calm.ok.p99_us / 1_000
        values["echo_p99_ms"] = calm_echo.ok.p99_us / 1_000
        values["fsync_p99_ms"] = max(calm.fsync_p99_ms, calm_echo.fsync_p99_ms)
        self.shares += [calm.others_share, calm_echo.others_share]
        if "S10" in ids:
            self._overload(full.per_s, full.cpu_us)

    def _overload(self, capacity: float, cpu_us: float) -> None:
        values = self.values
        over, _ = self._offered("strict", capacity * OVER)
        values["goodput"] = over.ok.count / over.elapsed_s / capacity
        values["over_p99_ms"] = over.ok.p99_us / 1_000
        values["over_refused"] = over.away.count / over.offered
        values["slower"] = values["over_p99_ms"] / values["p99_ms"]
        flood, _ = self._offered("strict", capacity * FLOOD)
        if flood.away.count < flood.ok.count / 2:
            raise ProductFault("S10: the flood was not refused, so no refusal's cost can be told")
        refusal_us = (1e6 * flood.cpu_s - cpu_us * flood.ok.count) / flood.away.count
        echo = closed_loop.run("litestar_echo", self.echo.aim, CONNECTIONS, 3.0, self.pids)
        values["refusal_cpu_us"] = refusal_us
        values["echo_cpu_us"] = echo.cpu_us
        values["refusal"] = refusal_us / echo.cpu_us
        self.shares += [over.others_share, flood.others_share, echo.others_share]

    def _fast(self, ids: list[str]) -> None:
        full = self.bench.run("fast", CONNECTIONS, self.seconds)
        self.values["fast_per_s"] = full.per_s
        self.values["fast_a_call"] = full.counters.get("script_calls", 0.0)
        self.values["fast_a_wakeup"] = full.counters.get("wakeups", 0.0)
        if "S8" in ids:
            _, counted = self._offered("fast", full.per_s * NEARLY_FULL)
            self.values["fast_a_call_90"] = counted.get("script_calls", 0.0)
        if "S11" in ids:
            self._drain(full.per_s * CALM)

    def _offered(self, durability: str, rate: float) -> tuple[OpenRun, dict[str, float]]:
        """Offer claims of a new sale at a rate, settle it, and audit."""
        sale = self.bench.open_sale(f"OPEN{time.monotonic_ns()}", durability, subjects.STOCK)
        before = counters.read(self.product)
        run = generator.open_loop(
            self._aim(sale), rate, self.seconds, self.pids, disk=self.product.data_dir
        )
        counted = counters.between(before, counters.read(self.product))
        self._settle(durability, sale, run)
        return run, counters.describe(counted, max(1, run.ok.count))

    def _drain(self, rate: float) -> None:
        """Hold the reconciler back while claims arrive, then see how fast it catches up."""
        sale = self.bench.open_sale(f"DRAIN{time.monotonic_ns()}", "fast", subjects.STOCK)
        seen: list[tuple[float, dict[str, Any]]] = []
        reconciler = self.product.pids()["reconciler"]

        def look() -> int:
            now = self.product.must("GET", f"/v1/flash-sales/{sale['id']}")
            seen.append((time.monotonic(), now))
            return int(now["lag"])

        def hold_back() -> None:
            until_s = time.monotonic() + self.seconds * 0.9
            os.kill(reconciler, signal.SIGSTOP)
            try:
                time.sleep(self.seconds * HELD_SHARE)
            finally:
                os.kill(reconciler, signal.SIGCONT)
            look()
            while time.monotonic() < until_s and look() > rate * CAUGHT_UP_S:
                time.sleep(LOOK_S)

        run = generator.open_loop(
            self._aim(sale), rate, self.seconds, self.pids, meanwhile=hold_back
        )
        (first_s, first), (last_s, last) = seen[0], seen[-1]
        arrived = last["claimed"] - first["claimed"]
        self.values["drain"] = (last["settled"] - first["settled"]) / max(1, arrived)
        self.values["drain_per_s"] = (last["settled"] - first["settled"]) / (last_s - first_s)
        self.values["lag_held"] = float(first["lag"])
        self.values["lag_left"] = float(last["lag"])
        self._settle("fast", sale, run)

    def _settle(self, durability: str, sale: dict[str, Any], run: OpenRun) -> None:
        if run.others or run.conflict.count or run.lost:
            raise ProductFault(f"{durability}: unexpected answers in {run}")
        self.bench.close_sale(sale, run.ok.count, run.unknown.count + run.unanswered)
        self.bench.audit(durability)

    def _aim(self, sale: dict[str, Any]) -> Aim:
        path = f"/v1/flash-sales/{sale['id']}/claim"
        return Aim(url=self.product.url, path=path, token=self.product.token)


def measure(ids: list[str], rounds: int, seconds: float) -> tuple[list[Result], list[float]]:
    """Return the lines asked for, and how much of the machine others used in each run."""
    done: list[dict[str, float]] = []
    shares: list[float] = []
    for number in range(1, rounds + 1):
        with running() as product, opponents.started(product, ["litestar_echo"]) as opponent:
            one = _Round(product, opponent["litestar_echo"], seconds)
            one.measure(ids)
        done.append(one.values)
        shares += one.shares
        told = "  ".join(f"{name} {value:,.1f}" for name, value in one.values.items())
        print(f"round {number}  {told}", flush=True)
    return [result for make in _LINES if make(done).id in ids for result in [make(done)]], shares


def _of(done: list[dict[str, float]], name: str) -> list[float]:
    return [values[name] for values in done if name in values] or [0.0]


def _line(
    done: list[dict[str, float]], name: str, shown: tuple[str, ...], **fields: object
) -> Result:
    figures = {key: lines.over(_of(done, key), id="", says="").value for key in shown}
    return lines.over(_of(done, name), figures=figures, **fields)


def _s9(done: list[dict[str, float]]) -> Result:
    # As one ratio: the p99 over what it may be, so that 1 is the bound.
    ratios = [
        values["p99_ms"] / (5 * values["echo_p99_ms"] + 2 * values["fsync_p99_ms"])
        for values in done
        if "p99_ms" in values
    ] or [0.0]
    shown = ("p99_ms", "echo_p99_ms", "fsync_p99_ms", "strict_per_s")
    figures = {key: lines.over(_of(done, key), id="", says="").value for key in shown}
    return lines.over(
        ratios,
        id="S9",
        says="strict at 70 % of capacity: p99 ÷ (5 × p99 of the echo + 2 × p99 of fdatasync)",
        at_most=1.0,
        figures=figures,
    )


_LINES = (
    lambda done: _line(
        done, "fast_a_call", ("fast_a_call_90", "fast_a_wakeup", "fast_per_s"),
        id="S8", says="fast redemptions a script call at saturation", at_least=TOGETHER_AT_LEAST,
    ),
    lambda done: _line(
        done, "strict_a_fsync", ("strict_a_fsync_90", "strict_per_s"),
        id="S8", says="strict redemptions an fsync at saturation", at_least=TOGETHER_AT_LEAST,
    ),
    _s9,
    lambda done: _line(
        done, "goodput", ("over_refused", "strict_per_s"),
        id="S10", says="strict at 150 % offered: goodput ÷ capacity", at_least=GOODPUT_AT_LEAST,
    ),
    lambda done: _line(
        done, "refusal", ("refusal_cpu_us", "echo_cpu_us"),
        id="S10", says="server CPU of a 503 ÷ of an echo", at_most=REFUSAL_AT_MOST,
    ),
    lambda done: _line(
        done, "slower", ("over_p99_ms", "p99_ms"),
        id="S10", says="p99 of the accepted at 150 % ÷ p99 at 70 %", at_most=SLOWER_AT_MOST,
    ),
    lambda done: _line(
        done, "drain", ("drain_per_s", "fast_per_s", "lag_held", "lag_left"),
        id="S11", says="reconciler drain ÷ arrival at 70 %", at_least=DRAIN_AT_LEAST,
    ),
)  # fmt: skip
