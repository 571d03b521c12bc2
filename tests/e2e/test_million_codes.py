"""A million codes as one job: it says how far it is, survives kills, and ends exact."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import asyncpg
import pytest

from bench.product import Product
from core.settings import running_servers
from tests.e2e import sales

CODES = 1_000_000
# A killed process is back within seconds; pieces of 50,000 take one each on a machine at rest.
FINISH_S_MAX = 420.0

pytestmark = [pytest.mark.long, pytest.mark.timeout(540)]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with sales.running() as started:
        yield started


def wait_until_made(product: Product, batch_id: str, count: int) -> int:
    """Wait for a job's progress, which never goes back; return it."""
    deadline_s, made = time.monotonic() + FINISH_S_MAX, 0
    while time.monotonic() < deadline_s:
        status, told = product.ask("GET", f"/v1/batches/{batch_id}")
        if status == 200:
            assert told["made"] >= made, "progress went back"
            made = told["made"]
            if made >= count:
                return made
        # Any other status is the kill's: asked again, as a client would.
        time.sleep(0.2)
    raise AssertionError(f"{made} of {count} codes after {FINISH_S_MAX:.0f} s")


async def counted(product: Product) -> tuple[int, int]:
    assert product.data_dir is not None
    owner = await asyncpg.connect(running_servers(product.data_dir).database_url)
    try:
        row = await owner.fetchrow(
            "SELECT count(*), count(DISTINCT code_norm) FROM vf.vouchers "
            "WHERE code LIKE 'MILLION-%'"
        )
        return int(row[0]), int(row[1])
    finally:
        await owner.close()


def test_a_million_codes_survive_kills_of_the_worker_and_of_postgresql(product: Product) -> None:
    began = time.monotonic()
    status, batch = product.ask(
        "POST",
        "/v1/vouchers/bulk",
        {"count": CODES, "discount_value": 10, "code_config": {"prefix": "MILLION-"}},
    )
    assert (status, batch["status"], batch["made"]) == (202, "running", 0)

    for made, victim in ((1, "worker"), (300_000, "postgres"), (600_000, "worker")):
        reached = wait_until_made(product, batch["id"], made)
        assert reached < CODES, "it was done before it could be killed"
        os.kill(product.pids()[victim], signal.SIGKILL)
    wait_until_made(product, batch["id"], CODES)

    _, after = product.ask("GET", f"/v1/batches/{batch['id']}")
    assert (after["status"], after["made"]) == ("done", CODES)
    assert asyncio.run(counted(product)) == (CODES, CODES)
    print(f"{CODES} codes and three kills in {time.monotonic() - began:.0f} s")
