"""The bank test: money moves between gift cards while the API and PostgreSQL are killed.

Each client keeps what it was told. In the end every reference that was answered is in the ledger
once, nothing else is, and the cards hold what the answers say.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from core.db import migrate
from core.local import Servers
from core.settings import PROJECT_ROOT, Settings
from tests.api.conftest import open_project, wait_until_ready
from tests.conftest import SEED, settings_on, temporary_data_dir

CARDS = 50
CLIENTS = 16
# A killed API is back in three seconds, PostgreSQL after its recovery; a busy machine gets tenfold.
PATIENCE_S = 60.0
DEFINITE = (200, 400, 404, 409)


def quiet_port() -> int:
    """Return a free port below those the kernel gives to clients.

    One who asks again and again for a port where nobody listens is given it as his own in the end,
    and is then connected to himself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Bank:
    """An API in a process of its own, cards, and what the clients were told."""

    def __init__(self, settings: Settings, key: str) -> None:
        self.settings = settings
        self.headers = {"Authorization": f"Bearer {key}"}
        self.log_path = settings.data_dir / "api.log"
        self.process: subprocess.Popen[bytes]
        self.cards: list[str] = []
        self.told: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self.below_zero: list[Any] = []
        self.kills = 0

    def start(self) -> None:
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")},
            "VAUCHFLOW_DATABASE_URL": str(self.settings.database_url),
            "VAUCHFLOW_REDIS_URL": self.settings.redis_url,
            "VAUCHFLOW_SECRET": self.settings.secret,
        }
        command = [sys.executable, "-m", "api", "--port", str(self.settings.port)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.settings.data_dir)],
                cwd=PROJECT_ROOT, env=environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until_ready(self.settings.base_url, self.process, self.log_path)

    def kill_api(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.start()
        self.kills += 1

    def kill_postgres(self) -> None:
        """Kill one server process outright: PostgreSQL ends all of them and recovers."""
        asyncio.run(self._kill_backend())
        self.kills += 1

    async def _kill_backend(self) -> None:
        owner = await self._owner()
        pid = await owner.fetchval("select pg_backend_pid()")
        os.kill(pid, signal.SIGKILL)
        owner.terminate()

    async def _owner(self) -> asyncpg.Connection:
        """Connect; PostgreSQL may still be recovering from the kill before."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncpg.connect(self.settings.database_dsn("owner"))
            except (asyncpg.CannotConnectNowError, OSError):
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.05)

    def ask(self, client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
        """Ask until the answer is definite, as a client with a reference may."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            try:
                answer = client.post(path, json=body)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code in DEFINITE:
                return answer
            assert answer.status_code in (503, 504), answer.text
            time.sleep(0.02)
        raise AssertionError(f"no definite answer to {body} within {PATIENCE_S} s")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.settings.base_url, headers=self.headers, timeout=5.0)

    def work(self, number: int, operations: int) -> None:
        rng = random.Random(f"{SEED}:{number}")
        with self.client() as client:
            for n in range(operations):
                card, other = rng.sample(self.cards, 2)
                reference = f"{number}-{n}"
                verb = rng.choice(("redeem", "redeem", "refund", "top-up", "transfer"))
                body: dict[str, Any] = {"amount": rng.randrange(1, 2000) / 100}
                if verb == "transfer":
                    body["to"] = other
                asked = (f"/v1/gift-cards/{card}/{verb}", {**body, "reference": reference})
                answer = self.ask(client, *asked)
                if answer.status_code == 200:
                    self.told[reference] = answer.json()
                    if rng.random() < 0.1:
                        assert self.ask(client, *asked).json() == answer.json()
                else:
                    assert answer.status_code == 409, answer.text
                    self.refused.add(reference)

    def watch(self, is_over: threading.Event) -> None:
        rng = random.Random(f"{SEED}:watch")
        with self.client() as client:
            while not is_over.wait(0.02):
                try:
                    seen = client.get(f"/v1/gift-cards/{rng.choice(self.cards)}").json()
                except httpx.TransportError:
                    continue
                if seen.get("balance", 0) < 0:
                    self.below_zero.append(seen)

    def kill_now_and_then(self, is_over: threading.Event, every_s: float) -> None:
        rng = random.Random(f"{SEED}:kill")
        while not is_over.wait(every_s):
            rng.choice((self.kill_api, self.kill_postgres))()

    def run(self, operations: int, kill_every_s: float) -> None:
        with self.client() as client:
            for _ in range(CARDS):
                made = client.post("/v1/gift-cards", json={"amount": 100})
                self.cards.append(made.json()["id"])
        is_over = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 2) as pool:
            beside = [pool.submit(self.watch, is_over),
                      pool.submit(self.kill_now_and_then, is_over, kill_every_s)]  # fmt: skip
            try:
                for done in [
                    pool.submit(self.work, n, operations // CLIENTS) for n in range(CLIENTS)
                ]:
                    done.result()
            finally:
                is_over.set()
            for done in beside:
                done.result()

    async def check(self) -> None:
        owner = await asyncpg.connect(self.settings.database_dsn("owner"))
        rows = await owner.fetch(
            "select reference, count(*)::int as n from vf.gift_card_transactions "
            "where reference not like 'vf:%' group by 1"
        )
        assert {row["reference"]: row["n"] for row in rows} == dict.fromkeys(self.told, 1)
        assert self.refused.isdisjoint(self.told)
        expected = dict.fromkeys(self.cards, 10_000)
        for one in self.told.values():
            change = round(one["change"] * 100)
            expected[one["gift_card_id"]] += change
            if one["type"] == "transfer":
                expected[one["other_card_id"]] -= change
        assert await owner.fetchval(
            "select sum(case side when 'credit' then amount_minor else -amount_minor end)::bigint "
            "from vf.gift_card_entries"
        ) == 0  # fmt: skip
        await owner.close()
        with self.client() as client:
            held = {card: round(client.get(f"/v1/gift-cards/{card}").json()["balance"] * 100)
                    for card in self.cards}  # fmt: skip
        assert held == expected
        assert self.below_zero == []
        assert min(expected.values()) >= 0


@contextmanager
def bank_of_its_own() -> Iterator[Bank]:
    """Start servers that keep what they answered, which the tests' common ones need not."""
    with temporary_data_dir() as path:
        servers = Servers(path)
        servers.start()
        try:
            assert servers.database_url is not None and servers.redis_url is not None
            settings = msgspec.structs.replace(
                settings_on(servers.database_url, servers.redis_url, path), port=quiet_port()
            )
            asyncio.run(migrate.migrate(settings))
            project = asyncio.run(open_project(settings))
            bank = Bank(settings, project.secret_key)
            bank.start()
            try:
                yield bank
            finally:
                bank.process.terminate()
                bank.process.wait(20)
        finally:
            servers.stop()


def verified(bank: Bank) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "core", "verify", "--data-dir", str(bank.settings.data_dir)],
        cwd=PROJECT_ROOT, capture_output=True, text=True,
        env={**os.environ, "VAUCHFLOW_DATABASE_URL": str(bank.settings.database_url),
             "VAUCHFLOW_REDIS_URL": bank.settings.redis_url,
             "VAUCHFLOW_SECRET": bank.settings.secret},
    )  # fmt: skip
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_20000_operations_through_kills_lose_and_double_nothing() -> None:
    with bank_of_its_own() as bank:
        bank.run(20_000, kill_every_s=4.0)
        asyncio.run(bank.check())
        assert bank.kills >= 5
        assert len(bank.told) + len(bank.refused) == 20_000
        said = verified(bank)
        print(f"{bank.kills} kills, {len(bank.told)} moves, {len(bank.refused)} refusals\n{said}")
        assert "violations: 0" in said
