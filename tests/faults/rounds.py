"""One round: a sale, a crowd, a fault at a random moment, and the verdict of the books."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.product import ROOT
from core import verify
from core.verify import Report
from tests.faults.catalogue import CONTROL_NUMBER, CONTROLS, FAULTS, Fault, may_lose
from tests.faults.crowd import Load, Seen
from tests.faults.strikes import REVOKED_WITHIN_S, Scene, Strike
from tests.faults.system import BACKLOG_MAX, Stuck, System

BACK_WITHIN_S = 10.0
# The clients' own patience (25 s) and the load before it.
CROWD_WITHIN_S = 60.0
# Settling a fenced lease waits 10 s for a worker that may be lost.
SETTLED_WITHIN_S = 25.0
STOCK = (500, 5_000)
REQUESTS = (1_450, 1_900)
RATE_PER_S = 650.0
# A second of load after the healing.
REQUESTS_AFTER = 600
WINS_BEFORE = 60
STRIKE_AFTER_S = (0.1, 1.2)
# Not the word for a client that hangs up by itself.
LEFT_ALONE = frozenset({"not sent", "unanswered"})


class Verdict(msgspec.Struct, kw_only=True):
    """What one round showed. Clean when `broken` is empty."""

    number: int
    fault: str
    mode: str
    variant: str
    seed: int
    stock: int
    attempts: int
    acknowledged: int
    rows: int
    lost: int
    lost_numbers: list[str]
    burned: int
    over: int
    phantom: int
    duplicate: int
    out_of_order: int
    quarantined: int
    back_s: float
    undone_writes: int
    undone_bytes: int
    seconds: float
    answers: dict[str, int]
    broken: list[str]

    @property
    def command(self) -> str:
        """Return what runs this round again."""
        which = f"--fault {self.number}" if self.number else "--control"
        return f"python -m tests.faults --seed {self.seed} {which} --mode {self.mode}"


def play(
    system: System, number: int, mode: str, seed: int, scratch: Path, variant: str = ""
) -> Verdict:
    """Play one round on a running system.

    `number` 0 is the mode's control. Never raises for what the product does: that is the verdict's.
    """
    began_s = time.monotonic()
    fault = FAULTS[number] if number else CONTROLS[mode]
    chance = random.Random(f"{seed}:{number}:{mode}")
    scene = Scene(system, mode, chance, variant)
    verdict = Verdict(
        number=number, fault=fault.name, mode=mode, variant="", seed=seed, stock=0, attempts=0,
        acknowledged=0, rows=0, lost=0, lost_numbers=[], burned=0, over=0, phantom=0, duplicate=0,
        out_of_order=0, quarantined=0, back_s=0.0, undone_writes=0, undone_bytes=0, seconds=0.0,
        answers={}, broken=[],
    )  # fmt: skip
    strike = fault.strike(scene)
    try:
        _play(scene, fault, strike, verdict, scratch)
    except Stuck as stuck:
        verdict.broken.append(str(stuck))
    except Exception as error:
        verdict.broken.append(f"{type(error).__name__}: {error}"[:600])
    finally:
        strike.close()
    verdict.variant = scene.variant
    verdict.seconds = round(time.monotonic() - began_s, 1)
    return verdict


def _play(scene: Scene, fault: Fault, strike: Strike, verdict: Verdict, scratch: Path) -> None:
    chance, system = scene.chance, scene.system
    verdict.stock = chance.randint(*STOCK)
    history = scratch / "history.jsonl"
    next(strike)
    scene.sale = _open(scene, verdict)
    with Attack(scene, chance, verdict.seed, history) as attack:
        attack.wait_for_wins(WINS_BEFORE)
        time.sleep(chance.uniform(*STRIKE_AFTER_S))
        next(strike)
        healed_s = time.monotonic()
        seen = attack.finish()
    verdict.attempts, verdict.answers = seen.calls, seen.answers
    if verdict.number != CONTROL_NUMBER:
        _judge_crowd(seen, verdict, is_felt=verdict.mode not in fault.unfelt)
    verdict.back_s = round(back_after(history, healed_s), 2)
    if verdict.back_s > BACK_WITHIN_S and verdict.number != CONTROL_NUMBER:
        verdict.broken.append(f"service was back after {verdict.back_s:.1f} s")
    _close(scene, verdict)
    report = asyncio.run(verify.examine(system.settings, history))
    _judge_books(scene, report, history, verdict)
    _judge_sale(scene, seen, verdict)
    verdict.undone_writes, verdict.undone_bytes = scene.undone
    next(strike, None)


_counter = itertools.count(1)


def _open(scene: Scene, verdict: Verdict) -> dict[str, Any]:
    """Open the round's sale; what the round before left of connections is asked again."""
    terms = {
        "name": f"Round {verdict.seed} {verdict.fault} {verdict.mode}",
        "code": f"R{verdict.number}{verdict.mode[0]}{verdict.seed}N{next(_counter)}",
        "discount_type": "PERCENT",
        "discount_value": 50,
        "stock": verdict.stock,
        "per_customer_limit": 1,
        "durability": verdict.mode,
    }
    sale = _ask_until_taken(scene, "/v1/flash-sales", terms)
    return _ask_until_taken(scene, f"/v1/flash-sales/{sale['id']}/open", None)


def _ask_until_taken(scene: Scene, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Send a write until it is not refused as 503, which is never applied. Raises: Stuck."""
    deadline_s = time.monotonic() + BACK_WITHIN_S
    while True:
        status, answer = scene.system.product.ask("POST", path, body)
        if status < 300:
            return answer
        if status != 503 or time.monotonic() > deadline_s:
            raise Stuck(f"{path}: {status} {answer}")
        time.sleep(0.1)


class Attack:
    """The crowd's process and what it says."""

    def __init__(self, scene: Scene, chance: random.Random, seed: int, history: Path) -> None:
        """Describe the load; `with` starts it."""
        sale = scene.sale
        self._load = Load(
            url=scene.system.product.url,
            tokens=scene.tokens,
            paths=[f"/v1/flash-sales/{sale['id']}/claim", f"/v1/vouchers/{sale['code']}/redeem"],
            code=sale["code"],
            history=str(history),
            seed=seed,
            requests_min=chance.randint(*REQUESTS),
            requests_after=REQUESTS_AFTER,
            rate_per_s=RATE_PER_S,
            tells_time=scene.tells_time,
        )

    def __enter__(self) -> "Attack":
        """Start the crowd."""
        self._deadline_s = time.monotonic() + CROWD_WITHIN_S
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crowd"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._load).decode() + "\n")
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def wait_for_wins(self, wins: int) -> None:
        """Wait until the crowd has won so often. Raises: Stuck."""
        for line in self._lines():
            if line["wins"] >= wins:
                return
        raise Stuck(f"the crowd ended before {wins} wins")

    def finish(self) -> Seen:
        """Let the last ones in and serve everybody; returns what the crowd saw. Raises: Stuck."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last: dict[str, Any] = {}
        for line in self._lines():
            last = line
        if "seconds" not in last:
            raise Stuck(f"the crowd broke off: {last}")
        return msgspec.convert(last, Seen)

    def _lines(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
            if time.monotonic() > self._deadline_s:
                raise Stuck(f"the crowd is not served within {CROWD_WITHIN_S:.0f} s: {line[:300]}")


def back_after(history: Path, healed_s: float) -> float:
    """Return how long after the healing the first decision came."""
    decided = [
        call["ret"]
        for call in calls_in(history)
        if call["out"] in ("ok", "sold_out", "limit") and call["ret"] >= healed_s
    ]
    return min(decided) - healed_s if decided else BACK_WITHIN_S + 1


def calls_in(history: Path) -> list[dict[str, Any]]:
    """Return a history's calls."""
    return [json.loads(line) for line in history.read_bytes().splitlines()]


def _judge_crowd(seen: Seen, verdict: Verdict, *, is_felt: bool) -> None:
    felt = {a: n for a, n in seen.answers.items() if a[0] == "5" or a in LEFT_ALONE}
    if verdict.mode == "fast":
        # A sale may run ahead of the ledger by backlog_max, and says so when it has.
        felt.pop("503 overloaded", None)
    if felt and not is_felt:
        verdict.broken.append(f"what {verdict.mode} does not need was missed: {felt}")
    if seen.undecided:
        verdict.broken.append(f"{seen.undecided} requests without a decision: {seen.answers}")
    if seen.unexpected:
        verdict.broken.append(f"unexpected answers: {seen.unexpected[:3]}")
    if seen.wrong_accepted:
        verdict.broken.append(f"wrong bodies accepted: {seen.wrong_accepted[:3]}")


def _close(scene: Scene, verdict: Verdict) -> None:
    """Close the sale and wait until it has given back what it did not sell."""
    system, sale_id = scene.system, scene.sale["id"]
    deadline_s = time.monotonic() + SETTLED_WITHIN_S
    _ask_until_taken(scene, f"/v1/flash-sales/{sale_id}/close", None)
    while system.ask(
        "select 1 from vf.leases l join vf.vouchers v on v.id = l.voucher_id"
        " where v.code = $1 and l.state <> 'settled'",
        scene.sale["code"],
    ):
        if time.monotonic() > deadline_s:
            raise Stuck("the lease is not settled")
        time.sleep(0.1)
    system.wait_for_sale(sale_id, {"settled", "closed"}, SETTLED_WITHIN_S)


def _judge_books(scene: Scene, report: Report, history: Path, verdict: Verdict) -> None:
    """Count what verify found, and hold losses against what this fault may cost."""
    verdict.acknowledged = len({call["rid"] for call in calls_in(history) if call["out"] == "ok"})
    found = {name: len(lines) for name, lines in report.findings.items()}
    verdict.phantom = found.get("I4", 0)
    verdict.duplicate = found.get("I3", 0) + found.get("I6", 0)
    verdict.out_of_order = found.get("I7", 0)
    missing = [line for line in report.findings.get("I2", []) if "missing" in line]
    verdict.lost = len(report.written_off) + len(missing)
    verdict.lost_numbers = [f"{one.lease_id}:{one.seq}" for one in report.written_off]
    if verdict.number == CONTROL_NUMBER:
        _judge_control(report, verdict)
        return
    if report.status != verify.CLEAN:
        verdict.broken += [
            f"{name}: {line}" for name, lines in report.findings.items() for line in lines[:3]
        ] + report.unchecked
    if verdict.lost and not may_lose(verdict.number, verdict.mode, scene.variant):
        verdict.broken.append(f"{verdict.lost} answered wins are lost: {verdict.lost_numbers[:5]}")
    if verdict.lost > BACKLOG_MAX:
        verdict.broken.append(f"more lost than backlog_max: {verdict.lost}")
    revoked_s = scene.revoked_s
    if revoked_s is not None:
        _judge_revocation(history, revoked_s + REVOKED_WITHIN_S, verdict)


def _judge_control(report: Report, verdict: Verdict) -> None:
    """A control loses what it answered, and even so gives out nothing twice."""
    if verdict.lost == 0:
        verdict.broken.append("nothing was lost: the power cut is blind")
    verdict.broken += [f"I1: {line}" for line in report.findings.get("I1", [])]


def _judge_revocation(history: Path, since_s: float, verdict: Verdict) -> None:
    late = sum(
        call["out"] == "ok" and call["call"] > since_s and call.get("with_first_key", False)
        for call in calls_in(history)
    )
    if late:
        verdict.broken.append(f"{late} wins were asked for with a revoked key")


def _judge_sale(scene: Scene, seen: Seen, verdict: Verdict) -> None:
    """Account for every unit of the sale, from the ledger itself."""
    (sale,) = scene.system.ask(
        "select s.stock, s.burned_count as burned, v.direct_count, v.leased_count,"
        " v.max_redemptions,"
        " (select count(*) from vf.redemptions r where r.voucher_id = v.id) as rows,"
        " (select count(*) from vf.quarantine q join vf.leases l on l.id = q.lease_id"
        "   where l.voucher_id = v.id) as quarantined"
        " from vf.flash_sales s join vf.vouchers v on v.id = s.voucher_id where v.code = $1",
        scene.sale["code"],
    )
    verdict.rows, verdict.burned = sale["rows"], sale["burned"]
    verdict.quarantined = sale["quarantined"]
    verdict.over = max(0, sale["rows"] + sale["burned"] - verdict.stock)
    if verdict.over:
        verdict.broken.append(f"{verdict.over} units sold or burned beyond {verdict.stock}")
    losing = verdict.number == CONTROL_NUMBER or may_lose(
        verdict.number, verdict.mode, scene.variant
    )
    if verdict.burned and not losing:
        verdict.broken.append(f"{verdict.burned} units burned although Redis's data was intact")
    if verdict.burned < verdict.lost and verdict.mode == "fast":
        verdict.broken.append(f"{verdict.lost} lost, and only {verdict.burned} units set aside")
    if verdict.number == CONTROL_NUMBER:
        return
    if seen.sold_out and sale["rows"] + sale["burned"] != verdict.stock:
        verdict.broken.append(
            f"sold out with {verdict.stock - sale['rows'] - sale['burned']} units unsold"
        )
    if not seen.sold_out and sale["rows"] < seen.wins - verdict.lost:
        verdict.broken.append(f"{seen.wins} wins, {sale['rows']} rows")
    if verdict.quarantined and verdict.number not in (4, 5):
        verdict.broken.append(f"{verdict.quarantined} wins in quarantine")
