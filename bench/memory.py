"""S12: what a claim leaves behind in memory: in an API worker, and in Valkey once settled."""

import time
from pathlib import Path

import redis

from bench import closed_loop, subjects
from bench.closed_loop import Aim
from bench.lines import Result, over
from bench.product import Product, ProductFault, running

CLAIMS = 1_000_000
# Pools, caches and the interpreter's arenas have their size after this.
WARM_UP = 100_000
CONNECTIONS = 256
GROWTH_MB_MAX = 50.0
CLAIM_BYTES_MAX = 120.0
# Nothing is kept longer than it is needed, so that what is left is a claim's own.
SETTINGS = {"VAUCHFLOW_TRIM_KEEP_S": "0"}
# The reconciler trims every few seconds, and Valkey frees in the background.
TRIMMED_S_MAX = 60.0
LOOK_S = 1.0


def measure(claims: int = CLAIMS) -> list[Result]:
    """Return both lines of S12, from one run of so many claims in bursts within `backlog_max`."""
    with running(settings=SETTINGS) as product:
        assert product.process is not None
        bench = subjects.Bench(product, [product.process.pid])
        warm = bench.open_sale("WARM", "fast", subjects.STOCK)
        _claim(product, warm["id"], min(WARM_UP, claims))
        bench.close_sale(warm, min(WARM_UP, claims), CONNECTIONS)
        _settled(product, warm["id"])
        sale = bench.open_sale("MEMORY", "fast", subjects.STOCK)
        worker = _worker(product.pids()["api"])
        rss_before, valkey_before = _rss_bytes(worker), _valkey_bytes(product)
        won = 0
        bursts = max(1, round(claims / subjects.BURST))
        for _ in range(bursts):
            won += _claim(product, sale["id"], claims // bursts)
            product.wait_for_lag_0(sale["id"], subjects.DRAIN_S_MAX)
        valkey = (_trimmed(product) - valkey_before) / won
        growth = (_rss_bytes(worker) - rss_before) / 1e6
        # Each burst may leave an answer on its way on every connection.
        bench.close_sale(sale, won, CONNECTIONS * bursts)
        bench.audit("memory")
        _settled(product, sale["id"])
        left = (_trimmed(product) - valkey_before) / won
    return [
        over(
            [growth],
            id="S12",
            says=f"MB an API worker grew over {won:,} claims",
            at_most=GROWTH_MB_MAX,
            figures={"rss_mb": rss_before / 1e6 + growth},
        ),
        over(
            [valkey],
            id="S12",
            says="bytes of Valkey a settled claim while its sale is open, after trimming",
            at_most=CLAIM_BYTES_MAX,
            figures={"after_the_sale": left},
        ),
    ]


def _claim(product: Product, sale_id: str, count: int) -> int:
    aim = Aim(
        url=product.url,
        path=f"/v1/flash-sales/{sale_id}/claim",
        token=product.token,
        burst=count,
    )
    run = closed_loop.run("memory", aim, CONNECTIONS, 0, [])
    if run.refused or run.broken:
        raise ProductFault(f"{run.refused} refused and {run.broken} broken of {run.requests}")
    return run.won


def _settled(product: Product, sale_id: str) -> None:
    deadline_s = time.monotonic() + subjects.DRAIN_S_MAX
    while product.must("GET", f"/v1/flash-sales/{sale_id}")["status"] != "settled":
        if time.monotonic() > deadline_s:
            raise ProductFault("the sale does not settle")
        time.sleep(LOOK_S)


def _worker(api: int) -> int:
    """Return the process below granian's own that serves: the largest."""
    children = Path(f"/proc/{api}/task/{api}/children").read_text().split()
    return max((int(pid) for pid in children), key=_rss_bytes, default=api)


def _rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1_024 * int(line.split()[1])
    return 0


def _valkey_bytes(product: Product) -> int:
    client = redis.from_url(product.servers()["redis_url"])
    try:
        return int(client.info("memory")["used_memory"])
    finally:
        client.close()


def _trimmed(product: Product) -> int:
    """Return what Valkey uses once it no longer shrinks."""
    least, since_s = _valkey_bytes(product), time.monotonic()
    deadline_s = since_s + TRIMMED_S_MAX
    while time.monotonic() < min(deadline_s, since_s + 10 * LOOK_S):
        time.sleep(LOOK_S)
        now = _valkey_bytes(product)
        if now < least * 0.999:
            least, since_s = now, time.monotonic()
    return least
