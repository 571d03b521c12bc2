"""A crowd of honest customers: claims with retries, and a history of every call for the audit.

    python -m bench.client --url http://127.0.0.1:8080 --path /v1/flash-sales/fls_…/claim \
        --code DROP1 --requests 60000 --history history.jsonl < key

The API key comes on standard input. A 503 is asked again with the same key after its Retry-After;
a 504, a reset or a time-out is asked again with the same key, to learn the truth. Prints JSON
lines: progress while it runs, the summary last. `history.jsonl` is what `./vauchflow verify
--history` reads.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import uvloop

from bench import connections

# A longer Retry-After is not waited for: the test's time is bounded.
RETRY_AFTER_S_MAX = 1.0
# Without one, and after a lost connection: a restart is noticed quickly, without a busy loop.
RETRY_PAUSE_S = 0.1
PROGRESS_S = 0.2

SOLD_OUT_CODES = frozenset({"sold_out", "limit_reached"})


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, how often, and how patiently."""

    url: str
    token: str
    path: str
    code: str
    requests: int
    connections: int = 256
    customers: int = 0
    """Different customers; 0: one a request."""
    seed: int = 0
    """Begins every idempotency key and customer id, so that two loads never share one."""
    rate_max: float = 0.0
    """First tries a second; 0: as fast as the connections go."""
    replay_share: float = 0.0
    """Share of decided requests that are asked once more with the same key."""
    decide_timeout_s: float = 60.0
    """After this a request is given up, undecided."""
    order_value: str = "89.99"


class Summary(msgspec.Struct, kw_only=True):
    """What happened. `answers` counts every call by status and code, retries included."""

    seed: int
    requests: int
    seconds: float
    wins: int
    distinct_wins: int
    sold_out: int
    customer_limited: int
    undecided: int
    unexpected: list[str]
    replays_checked: int
    replays_differing: int
    answers: dict[str, int]
    latency_ms: dict[str, float]
    last_win_s: float
    """Seconds from the start to the last first answer of a win."""

    @property
    def decided_per_s(self) -> float:
        """Return wins and refusals a second."""
        return (self.wins + self.sold_out + self.customer_limited) / max(self.seconds, 1e-9)


class Crowd:
    """One run of a load."""

    def __init__(self, load: Load, history: IO[bytes] | None = None) -> None:
        """`history` gets one JSON line a call."""
        self.load = load
        self.wins: dict[int, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self.unexpected: list[str] = []
        self.replays_checked = 0
        self.replays_differing = 0
        self.last_win_s = 0.0
        self.started_at_s = time.monotonic()
        self._history = history
        self._encode = msgspec.json.Encoder().encode
        self._target = connections.Target.of(load.url)
        self._random = random.Random(load.seed)
        self._epoch_s = time.time() - time.monotonic()

    async def run(self, report: Any = None) -> Summary:
        """Work through all requests; `report(self)` is called every `PROGRESS_S` seconds."""
        self.started_at_s = time.monotonic()
        numbers = iter(range(self.load.requests))
        reporter = asyncio.create_task(self._report(report)) if report else None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.load.connections, self.load.requests)):
                    group.create_task(self._customer(numbers))
        finally:
            if reporter:
                reporter.cancel()
        return self._summary()

    async def _report(self, report: Any) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            report(self)

    async def _customer(self, numbers: Iterator[int]) -> None:
        connection = connections.Connection(self._target)
        try:
            for number in numbers:
                if self.load.rate_max:
                    due_s = self.started_at_s + number / self.load.rate_max
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await self._decide(connection, number)
                if self._random.random() < self.load.replay_share:
                    await self._ask_again(connection, number)
        finally:
            connection.close()

    async def _ask_again(self, connection: connections.Connection, number: int) -> None:
        before = self.wins.get(number)
        if before is None:
            return
        self.replays_checked += 1
        if await self._decide(connection, number, is_replay=True) != before:
            self.replays_differing += 1

    async def _decide(
        self, connection: connections.Connection, number: int, *, is_replay: bool = False
    ) -> str | None:
        """Ask until there is an answer that decides; return the redemption's id for a win."""
        load = self.load
        key = f"{load.seed}-{number}"
        customer = f"cus_{load.seed}_{number % load.customers if load.customers else number}"
        body = f'{{"customer_id":"{customer}","order_value":{load.order_value}}}'.encode()
        data = connections.request(self._target, "POST", load.path, load.token, body, key)
        give_up_at_s = time.monotonic() + load.decide_timeout_s
        while time.monotonic() < give_up_at_s:
            call_s = time.monotonic()
            try:
                answer = await connection.send(data)
            except connections.NotSent:
                self.answers["not sent"] += 1
                await self._pause(RETRY_PAUSE_S)
                continue
            except connections.Unanswered:
                self.answers["unanswered"] += 1
                self._record(call_s, None, "unknown", key, customer, {})
                await self._pause(RETRY_PAUSE_S)
                continue
            ret_s = time.monotonic()
            fields = _fields(answer.body)
            outcome, is_final = _judge(answer.status, fields)
            code = fields.get("status" if answer.status == 200 else "code", "?")
            self.answers[f"{answer.status} {code}"] += 1
            self._record(call_s, ret_s, outcome, key, customer, fields)
            if not is_final:
                after = answer.header(b"retry-after") or b""
                await self._pause(float(after) if after.isdigit() else RETRY_PAUSE_S)
                continue
            if not is_replay:
                self._count(number, outcome, fields, ret_s, ret_s - call_s, answer)
            return fields.get("redemption_id")
        if not is_replay:
            self.outcomes["undecided"] += 1
        return None

    def _count(
        self,
        number: int,
        outcome: str,
        fields: dict[str, Any],
        ret_s: float,
        latency_s: float,
        answer: connections.Answer,
    ) -> None:
        self.latencies_s.append(latency_s)
        self.outcomes[outcome] += 1
        if outcome == "ok":
            self.wins[number] = fields.get("redemption_id", "")
            self.last_win_s = ret_s - self.started_at_s
        elif outcome not in ("sold_out", "limit") and len(self.unexpected) < 20:
            self.unexpected.append(f"{answer.status} {answer.body[:300].decode(errors='replace')}")

    def _record(
        self,
        call_s: float,
        ret_s: float | None,
        outcome: str,
        key: str,
        customer: str,
        fields: dict[str, Any],
    ) -> None:
        if self._history is None:
            return
        line: dict[str, Any] = {
            "call": call_s,
            "ret": ret_s,
            "out": outcome,
            "key": key,
            "customer": customer,
            "code": self.load.code,
        }
        if outcome == "ok":
            line["rid"] = fields.get("redemption_id")
            line["seq"] = fields.get("seq")
            line["discount"] = fields.get("discount_applied")
            line["at"] = moment(fields) - self._epoch_s
        self._history.write(self._encode(line) + b"\n")

    async def _pause(self, seconds: float) -> None:
        # Jitter: a crowd that was refused together must not come back together.
        await asyncio.sleep(min(seconds, RETRY_AFTER_S_MAX) * self._random.uniform(0.5, 1.0))

    def _summary(self) -> Summary:
        latencies = sorted(self.latencies_s)
        return Summary(
            seed=self.load.seed,
            requests=self.load.requests,
            seconds=time.monotonic() - self.started_at_s,
            wins=self.outcomes["ok"],
            distinct_wins=len(set(self.wins.values())),
            sold_out=self.outcomes["sold_out"],
            customer_limited=self.outcomes["limit"],
            undecided=self.outcomes["undecided"],
            unexpected=self.unexpected,
            replays_checked=self.replays_checked,
            replays_differing=self.replays_differing,
            answers=dict(self.answers.most_common()),
            latency_ms={
                name: round(
                    1000 * latencies[min(len(latencies) - 1, int(share * len(latencies)))], 2
                )
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
                if latencies
            },
            last_win_s=round(self.last_win_s, 3),
        )


def moment(fields: dict[str, Any]) -> float:
    """Return when a redemption was decided, in seconds since 1970."""
    return datetime.fromisoformat(fields["redeemed_at"]).timestamp()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _judge(status: int, fields: dict[str, Any]) -> tuple[str, bool]:
    """Return the history's word for an answer, and whether it ends the asking."""
    code = fields.get("code")
    if status == 200 and fields.get("status") == "redeemed" and "redemption_id" in fields:
        return "ok", True
    if status == 409 and code in SOLD_OUT_CODES:
        return "sold_out", True
    if status == 409 and code == "customer_limit_reached":
        return "limit", True
    if status in (429, 503) or code == "request_in_flight":
        return "refused", False
    if status == 504:
        return "unknown", False
    # A 5xx that promises nothing may have been applied; other 4xx were refused for good.
    return ("unknown" if status >= 500 or status == 200 else "refused"), True


def _parsed() -> tuple[Load, Path | None]:
    parser = argparse.ArgumentParser(description="Load one voucher or flash sale over HTTP.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--code", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--customers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate-max", type=float, default=0.0)
    parser.add_argument("--replay-share", type=float, default=0.0)
    parser.add_argument("--decide-timeout-s", type=float, default=60.0)
    parser.add_argument("--history", type=Path)
    given = vars(parser.parse_args())
    history: Path | None = given.pop("history")
    return Load(token=sys.stdin.readline().strip(), **given), history


async def _main() -> None:
    load, path = _parsed()

    def progress(crowd: Crowd) -> None:
        counts = {"wins": crowd.outcomes["ok"], "sold_out": crowd.outcomes["sold_out"]}
        counts |= {"calls": sum(crowd.answers.values())}
        print(msgspec.json.encode(counts).decode(), flush=True)

    if path is None:
        summary = await Crowd(load).run(progress)
    else:
        with path.open("wb") as history:
            summary = await Crowd(load, history).run(progress)
    print(msgspec.json.encode(summary).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
