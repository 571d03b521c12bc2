"""The contestants while they run: one process each, on the servers of the product."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import asyncpg

from bench.closed_loop import Aim
from bench.contestants import CONTESTANTS, DATABASE, DATABASE_VARIABLE, PATH, REDIS_VARIABLE
from bench.product import ROOT, Product, ProductFault, free_port

START_S_MAX = 15.0
STOP_S_MAX = 10.0


class Opponent:
    """A contestant that answers."""

    def __init__(self, name: str, url: str, pid: int) -> None:
        """All three are known once it is started."""
        self.name = name
        self.aim = Aim(url=url, path=PATH)
        self.pid = pid


@contextmanager
def started(product: Product, names: list[str]) -> Iterator[dict[str, Opponent]]:
    """Start contestants on the product's PostgreSQL and Valkey; stop them afterwards.

    Raises: ProductFault for one that does not answer.
    """
    servers = product.servers()
    if "hot_row" in names:
        asyncio.run(_create_database(servers["database_url"]))
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        DATABASE_VARIABLE: servers["database_url"].replace("/vauchflow", f"/{DATABASE}", 1),
        REDIS_VARIABLE: servers["redis_url"],
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_started(name, environ))
            for name in names
            if name in CONTESTANTS
        }


@contextmanager
def _started(name: str, environ: dict[str, str]) -> Iterator[Opponent]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.contestants", name, str(port)], cwd=ROOT, env=environ
    )
    opponent = Opponent(name, f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_for(opponent, process)
        yield opponent
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _create_database(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        if not await connection.fetchval("select 1 from pg_database where datname = $1", DATABASE):
            await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


def _wait_for(opponent: Opponent, process: "subprocess.Popen[bytes]") -> None:
    probe = Product(opponent.aim.url, "")
    body = {"customer_id": "probe", "order_value": 1}
    deadline_s = time.monotonic() + START_S_MAX
    while True:
        try:
            status, answer = probe.ask("POST", PATH, body, key="probe")
        except OSError:
            if time.monotonic() > deadline_s or process.poll() is not None:
                raise ProductFault(f"{opponent.name} does not answer") from None
            time.sleep(0.1)
        else:
            if status != 200:
                raise ProductFault(f"{opponent.name} answers {status} {answer}")
            return
