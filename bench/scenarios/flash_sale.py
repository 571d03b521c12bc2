"""A flash sale as its customers live it: look, claim, doubt and ask again, be told sold out.

A customer looks at the sale now and then, claims one unit with a key of their own, asks one time
in ten again with the same key (the answer must be the same redemption), and repeats after a 503.
`Tally` is what the run is judged by; Locust's own statistics are not.
"""

import itertools
import os
import random
import time
from collections import Counter
from datetime import datetime
from typing import Any, ClassVar

import gevent
import msgspec
from locust import FastHttpUser, constant, events, task

RETRY_SHARE = 0.1
BROWSE_SHARE = 0.02
RETRY_AFTER_S_MAX = 1.0
# With Retry-After of a second this is longer than any restart the promise allows (10 s).
TRIES_MAX = 30

REFUSALS = frozenset({"sold_out", "limit_reached", "customer_limit_reached"})


class Setup(msgspec.Struct):
    """What `bench.run` tells the scenario, as JSON in VF_BENCH."""

    sale_id: str
    code: str
    token: str
    seed: int
    stock: int
    crowd: int
    """Refusals to collect after the stock is gone."""
    result: str
    """A file for the tally."""
    history: str
    """A file for `verify --history`."""


class Tally:
    """What came back, in total. One process, cooperative: no locks."""

    def __init__(self, setup: Setup) -> None:
        """Open the history; nothing was asked yet."""
        self.setup = setup
        self.answers: Counter[str] = Counter()
        self.wins: dict[str, str] = {}
        self.refused = 0
        self.unexpected: list[str] = []
        self.latencies_ms: list[float] = []
        self.started_at_s = self.ended_at_s = time.monotonic()
        self.epoch_s = time.time() - time.monotonic()
        self._history = open(setup.history, "wb")  # noqa: SIM115 - closed by `write`

    def record(self, line: dict[str, Any]) -> None:
        """Append one call to the history."""
        self._history.write(msgspec.json.encode(line) + b"\n")

    def is_over(self) -> bool:
        """Tell whether the stock is sold and the crowd was sent away."""
        return len(self.wins) >= self.setup.stock and self.refused >= self.setup.crowd

    def fault(self, line: str) -> None:
        """Keep an answer that must not be."""
        self.answers["unexpected"] += 1
        if len(self.unexpected) < 20:
            self.unexpected.append(line)

    def write(self) -> None:
        """Close the history and leave the result for `bench.run`."""
        self._history.close()
        with open(self.setup.result, "wb") as file:
            file.write(
                msgspec.json.encode(
                    {
                        "seconds": self.ended_at_s - self.started_at_s,
                        "wins": len(self.wins),
                        "distinct_wins": len(set(self.wins.values())),
                        "refused": self.refused,
                        "answers": dict(self.answers.most_common()),
                        "unexpected": self.unexpected,
                        "latencies_ms": self.latencies_ms,
                    }
                )
            )


SETUP = msgspec.json.decode(os.environ["VF_BENCH"], type=Setup)
TALLY = Tally(SETUP)
NUMBERS = itertools.count(1)


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Start the clock and the line that shows progress."""
    TALLY.started_at_s = time.monotonic()
    gevent.spawn(_report, environment)


@events.quitting.add_listener
def end(**_: Any) -> None:
    """Leave the result behind."""
    TALLY.write()


def _report(environment: Any) -> None:
    last = 0
    while not TALLY.is_over():
        gevent.sleep(1.0)
        answered = sum(TALLY.answers.values())
        print(
            f"  {time.monotonic() - TALLY.started_at_s:5.0f} s   {answered - last:6,} answers/s   "
            f"{len(TALLY.wins):7,} of {SETUP.stock:,} sold   {TALLY.refused:7,} turned away",
            flush=True,
        )
        last = answered
    environment.runner.quit()


class Customer(FastHttpUser):
    """One browser after another on one connection."""

    wait_time = constant(0)
    connection_timeout = 2.0
    network_timeout = 5.0
    max_retries = 0
    default_headers: ClassVar[dict[str, str]] = {"Authorization": f"Bearer {SETUP.token}"}

    @task
    def visit(self) -> None:
        """Look, claim, and perhaps ask again."""
        if TALLY.is_over():
            gevent.sleep(0.1)
            return
        if random.random() < BROWSE_SHARE:
            self._browse()
        number = next(NUMBERS)
        key, customer = f"{SETUP.seed}-{number}", f"cus_{SETUP.seed}_{number}"
        won = self._claim(key, customer)
        if won and random.random() < RETRY_SHARE:
            again = self._claim(key, customer)
            TALLY.answers["replays"] += 1
            if again != won:
                TALLY.fault(f"key {key} won {won} and then {again}")

    def _browse(self) -> None:
        with self.client.get(
            f"/v1/flash-sales/{SETUP.sale_id}", name="browse", catch_response=True
        ) as answer:
            TALLY.answers[f"browse {answer.status_code}"] += 1
            sale = _fields(answer)
            if answer.status_code == 200 and sale.get("stock") == SETUP.stock:
                answer.success()
            else:
                TALLY.fault(f"browse: {answer.status_code} {(answer.text or '')[:300]}")
                answer.failure("not the sale")

    def _claim(self, key: str, customer: str) -> str | None:
        """Claim until it is decided; returns the redemption's id, None for a refusal."""
        body = b'{"customer_id":"%s","order_value":89.99}' % customer.encode()
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        for _ in range(TRIES_MAX):
            call_s = time.monotonic()
            with self.client.post(
                f"/v1/flash-sales/{SETUP.sale_id}/claim",
                data=body,
                headers=headers,
                name="claim",
                catch_response=True,
            ) as answer:
                outcome, redemption_id, pause_s = self._judge(answer, call_s, key, customer)
            if pause_s is None:
                return redemption_id if outcome == "ok" else None
            gevent.sleep(pause_s * random.uniform(0.5, 1.0))
        TALLY.fault(f"key {key} was undecided after {TRIES_MAX} tries")
        return None

    def _judge(
        self, answer: Any, call_s: float, key: str, customer: str
    ) -> tuple[str, str | None, float | None]:
        """Count one answer; the pause is None when it decides."""
        ret_s = time.monotonic()
        TALLY.ended_at_s = ret_s
        status, fields = answer.status_code, _fields(answer)
        code = fields.get("code", "")
        line = {"call": call_s, "ret": ret_s, "key": key, "customer": customer, "code": SETUP.code}
        answer.success()
        if status == 200 and fields.get("status") == "redeemed" and "redemption_id" in fields:
            TALLY.answers["200 redeemed"] += 1
            TALLY.latencies_ms.append((ret_s - call_s) * 1000)
            TALLY.wins[key] = fields["redemption_id"]
            told = {"rid": fields["redemption_id"], "seq": fields.get("seq")}
            at_s = datetime.fromisoformat(fields["redeemed_at"]).timestamp()
            told["at"] = at_s - TALLY.epoch_s
            TALLY.record({**line, **told, "out": "ok", "discount": fields.get("discount_applied")})
            return "ok", fields["redemption_id"], None
        TALLY.answers[f"{status} {code}".strip()] += 1
        if status == 409 and code in REFUSALS:
            TALLY.latencies_ms.append((ret_s - call_s) * 1000)
            TALLY.refused += 1
            out = "limit" if code == "customer_limit_reached" else "sold_out"
            TALLY.record({**line, "out": out})
            return out, None, None
        if status in (429, 503):
            TALLY.record({**line, "out": "refused"})
            after = answer.headers.get("Retry-After", "") if answer.headers else ""
            return "refused", None, min(float(after or 0.1), RETRY_AFTER_S_MAX)
        if status in (0, 504):
            TALLY.record({**line, "ret": None, "out": "unknown"})
            return "unknown", None, 0.1
        TALLY.record({**line, "out": "unknown" if status >= 500 else "refused"})
        TALLY.fault(f"claim: {status} {(answer.text or '')[:300]}")
        answer.failure(f"{status} {code}")
        return "unexpected", None, None


def _fields(answer: Any) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(answer.content or b"")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
