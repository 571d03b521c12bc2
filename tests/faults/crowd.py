"""The load of one round, a process of its own: honest customers, impatient ones and wrong bodies.

Reads a `Load` as a line of JSON from standard input and goes on until that is closed, and for
`requests_after` more. Prints JSON lines (how far it is, ten times a second; the `Seen` last), and
writes one line a call as `./vauchflow verify --history` reads it.

Every request is asked until there is an answer that decides: after a 503, a 504, a reset or a
time-out again with the same key. A share of the decided ones is asked once more; a share hangs up
early and asks again; a share of wrong bodies goes in between and must change nothing.
"""

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import uvloop

from bench import connections
from bench.client import moment

# Ten tries a second and client: a fault of three seconds costs 32 clients a thousand calls at most.
PAUSE_S = 0.1
# A client that hangs up does so when an answer may or may not be on its way.
HANG_UP_S = (0.001, 0.012)
ANSWER_TIMEOUT_S = 3.0
PROGRESS_S = 0.1
UNEXPECTED_MAX = 20


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, how often and how badly."""

    url: str
    tokens: list[str]
    """Each request begins with one of them; refused as unknown, it goes on with the last."""
    paths: list[str]
    code: str
    history: str
    seed: int
    requests_min: int
    requests_after: int
    """How many more begin once the fault is healed."""
    rate_per_s: float
    """First tries a second."""
    clients: int = 32
    retried_share: float = 0.10
    hung_up_share: float = 0.02
    wrong_share: float = 0.05
    shared_customer_share: float = 0.03
    """Of the requests, those of a customer who asked before, with another key."""
    tells_time: bool = True
    """False when the servers' clocks are not the client's: then no `at` is written down."""
    decide_timeout_s: float = 25.0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the crowd saw."""

    calls: int
    wins: int
    sold_out: int
    limited: int
    undecided: int
    answers: dict[str, int]
    unexpected: list[str]
    wrong_accepted: list[str]
    seconds: float


class Crowd:
    """One run of a load."""

    def __init__(self, load: Load, history: IO[bytes]) -> None:
        """`history` gets one JSON line a call."""
        self.load = load
        self.answers: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.wrong_accepted: list[str] = []
        self.begun = 0
        self.last = float("inf")
        self._history = history
        self._encode = msgspec.json.Encoder().encode
        self._target = connections.Target.of(load.url)
        self._random = random.Random(load.seed)
        self._epoch_s = time.time() - time.monotonic()
        self._began_s = time.monotonic()

    async def run(self) -> Seen:
        """Work through all requests."""
        numbers = itertools.count()
        reporter = asyncio.create_task(self._report())
        await self._listen()
        try:
            async with asyncio.TaskGroup() as group:
                for client in range(self.load.clients):
                    group.create_task(self._client(client, numbers))
        finally:
            reporter.cancel()
        return Seen(
            calls=self.answers.total(),
            wins=self.outcomes["ok"],
            sold_out=self.outcomes["sold_out"],
            limited=self.outcomes["limit"],
            undecided=self.outcomes["undecided"],
            answers=dict(self.answers.most_common()),
            unexpected=self.unexpected,
            wrong_accepted=self.wrong_accepted,
            seconds=time.monotonic() - self._began_s,
        )

    async def _report(self) -> None:
        while True:
            tell({"calls": self.answers.total(), "wins": self.outcomes["ok"]})
            await asyncio.sleep(PROGRESS_S)

    async def _listen(self) -> None:
        """Learn of the end of standard input: then the last requests begin."""
        loop = asyncio.get_running_loop()

        class Ears(asyncio.Protocol):
            def __init__(self, crowd: Crowd) -> None:
                self.crowd = crowd

            def connection_lost(self, exc: Exception | None) -> None:
                load = self.crowd.load
                self.crowd.last = max(load.requests_min, self.crowd.begun + load.requests_after)

        await loop.connect_read_pipe(lambda: Ears(self), sys.stdin)

    async def _client(self, client: int, numbers: Iterator[int]) -> None:
        connection = connections.Connection(self._target)
        chance = random.Random(f"{self.load.seed}:{client}")
        try:
            for number in numbers:
                due_s = self._began_s + number / self.load.rate_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if number >= self.last:
                    return
                self.begun = max(self.begun, number)
                await self._request(connection, number, chance)
        finally:
            connection.close()

    async def _request(
        self, connection: connections.Connection, number: int, chance: random.Random
    ) -> None:
        load = self.load
        shown = number
        if chance.random() < load.shared_customer_share:
            shown = chance.randint(0, number)
        customer = f"cus_{load.seed}_{shown}"
        if chance.random() < load.wrong_share / 2:
            await self._ask_wrongly(connection, f"wrong-{load.seed}-{number}", customer, chance)
        ask = Ask(
            key=f"{load.seed}-{number}",
            customer=customer,
            path=chance.choice(load.paths),
            token=chance.choice(load.tokens),
        )
        if chance.random() < load.hung_up_share:
            await self._ask_once(connection, ask, chance.uniform(*HANG_UP_S))
        outcome = await self._decide(connection, ask)
        self.outcomes[outcome] += 1
        if chance.random() < load.retried_share:
            ask.path = chance.choice(load.paths)
            await self._decide(connection, ask)
        if outcome == "ok" and chance.random() < load.wrong_share / 2:
            await self._change_mind(connection, ask)

    async def _decide(self, connection: connections.Connection, ask: "Ask") -> str:
        give_up_s = time.monotonic() + self.load.decide_timeout_s
        while time.monotonic() < give_up_s:
            outcome, is_final = await self._ask_once(connection, ask, ANSWER_TIMEOUT_S)
            if is_final:
                return outcome
            # Jitter: a crowd that was refused together must not come back together.
            await asyncio.sleep(PAUSE_S * self._random.uniform(0.5, 1.0))
        return "undecided"

    async def _ask_once(
        self, connection: connections.Connection, ask: "Ask", timeout_s: float
    ) -> tuple[str, bool]:
        """Send once and write it down; returns the history's word and whether it is the end."""
        body = f'{{"customer_id":"{ask.customer}","order_value":89.99}}'.encode()
        call_s = time.monotonic()
        answer = await self._send(connection, ask, body, timeout_s)
        if answer is None:
            return "unknown", False
        ret_s = time.monotonic()
        fields = fields_of(answer.body)
        code = fields.get("status" if answer.status == 200 else "code", "?")
        self.answers[f"{answer.status} {code}"] += 1
        outcome, is_final = judge(answer.status, fields)
        self._write(call_s, ret_s, outcome, ask, fields)
        if answer.status == 401 and ask.token != self.load.tokens[-1]:
            ask.token = self.load.tokens[-1]
            return "refused", False
        if is_final and outcome not in ("ok", "sold_out", "limit"):
            self._surprise(self.unexpected, answer)
        return outcome, is_final

    async def _send(
        self, connection: connections.Connection, ask: "Ask", body: bytes, timeout_s: float
    ) -> connections.Answer | None:
        """Return the answer, None without one; what was sent and not answered is written down."""
        data = connections.request(self._target, "POST", ask.path, ask.token, body, ask.key)
        call_s = time.monotonic()
        try:
            return await connection.send(data, timeout_s)
        except connections.NotSent:
            self.answers["not sent"] += 1
        except connections.Unanswered:
            self.answers["hung up" if timeout_s < ANSWER_TIMEOUT_S else "unanswered"] += 1
            self._write(call_s, None, "unknown", ask, {})
        return None

    async def _ask_wrongly(
        self, connection: connections.Connection, key: str, customer: str, chance: random.Random
    ) -> None:
        """Send a body that no rule allows, under a key that is never used again."""
        body = chance.choice(
            (
                b'{"customer_id":"%b","order_value":-1}' % customer.encode(),
                b'{"customer_id":"%b","order_value":8.999}' % customer.encode(),
                b'{"customer_id":7,"order_value":89.99}',
                b'{"customer_id":"%b","order_value":89.99' % customer.encode(),
                b'{"customer_id":"%b","order_value":"NaN"}' % customer.encode(),
            )
        )
        ask = Ask(key, customer, self.load.paths[0], self.load.tokens[-1])
        await self._must_refuse(connection, ask, body)

    async def _change_mind(self, connection: connections.Connection, ask: "Ask") -> None:
        """Ask for something else with a key that was answered."""
        body = f'{{"customer_id":"{ask.customer}","order_value":12.34}}'.encode()
        await self._must_refuse(connection, ask, body)

    async def _must_refuse(
        self, connection: connections.Connection, ask: "Ask", body: bytes
    ) -> None:
        call_s = time.monotonic()
        answer = await self._send(connection, ask, body, ANSWER_TIMEOUT_S)
        if answer is None:
            return
        fields = fields_of(answer.body)
        self.answers[f"{answer.status} {fields.get('code', '?')}"] += 1
        outcome = "unknown" if answer.status >= 500 and answer.status != 503 else "refused"
        self._write(call_s, time.monotonic(), outcome, ask, fields)
        if answer.status < 400 or answer.status == 500:
            self._surprise(self.wrong_accepted, answer)

    def _surprise(self, where: list[str], answer: connections.Answer) -> None:
        if len(where) < UNEXPECTED_MAX:
            where.append(f"{answer.status} {answer.body[:300].decode(errors='replace')}")

    def _write(
        self, call_s: float, ret_s: float | None, outcome: str, ask: "Ask", fields: dict[str, Any]
    ) -> None:
        line: dict[str, Any] = {
            "call": call_s,
            "ret": ret_s,
            "out": outcome,
            "key": ask.key,
            "customer": ask.customer,
            "code": self.load.code,
        }
        if outcome == "ok":
            line["rid"] = fields.get("redemption_id")
            line["seq"] = fields.get("seq")
            line["discount"] = fields.get("discount_applied")
            if len(self.load.tokens) > 1:
                line["with_first_key"] = ask.token == self.load.tokens[0]
            if self.load.tells_time:
                line["at"] = moment(fields) - self._epoch_s
        self._history.write(self._encode(line) + b"\n")


class Ask:
    """One request on its way through its tries."""

    __slots__ = ("customer", "key", "path", "token")

    def __init__(self, key: str, customer: str, path: str, token: str) -> None:
        """Nothing is sent yet."""
        self.key = key
        self.customer = customer
        self.path = path
        self.token = token


def judge(status: int, fields: dict[str, Any]) -> tuple[str, bool]:
    """Return the history's word for an answer, and whether it ends the asking."""
    code = fields.get("code")
    if status == 200 and fields.get("status") == "redeemed" and "redemption_id" in fields:
        return "ok", True
    if status == 409 and code in ("sold_out", "limit_reached"):
        return "sold_out", True
    if status == 409 and code == "customer_limit_reached":
        return "limit", True
    if status in (429, 503) or code == "request_in_flight":
        return "refused", False
    if status == 504:
        return "unknown", False
    return ("unknown" if status >= 500 or status == 200 else "refused"), True


def fields_of(body: bytes) -> dict[str, Any]:
    """Return an answer's JSON object, empty when it is none."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def tell(line: Any) -> None:
    """Print one JSON line at once."""
    print(msgspec.json.encode(line).decode(), flush=True)


async def main() -> None:
    """Run the load that standard input describes."""
    load = msgspec.json.decode(sys.stdin.readline(), type=Load)
    with Path(load.history).open("wb") as history:
        seen = await Crowd(load, history).run()
    tell(seen)


if __name__ == "__main__":
    uvloop.run(main())
