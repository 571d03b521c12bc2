"""What the servers counted by themselves: script calls, write-ahead log fsyncs, loop wake-ups.

Valkey's and PostgreSQL's own counters need no trust in the product; the product's are taken from
its /metrics where it has them.
"""

import asyncio
import re
from typing import Any

import asyncpg
import redis

from bench.product import Product

# What /metrics calls them, and what they are called here.
OF_METRICS = {
    "vauchflow_batches_total": "batches",
    "vauchflow_batch_items_total": "batch_items",
    "vauchflow_batch_wakeups_total": "wakeups",
    "vauchflow_commits_total": "commits",
    "vauchflow_commit_redeems_total": "commit_redeems",
}


def read(product: Product) -> dict[str, float]:
    """Return all counters as they stand."""
    found = _of_metrics(product)
    servers = product.servers()
    client = redis.from_url(servers["redis_url"])
    try:
        stats: dict[str, Any] = client.info("commandstats")
        found["script_calls"] = float(stats.get("cmdstat_evalsha", {}).get("calls", 0))
    finally:
        client.close()
    return found | asyncio.run(_of_postgres(servers["database_url"]))


def between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return by how much each counter has risen."""
    return {name: after[name] - before[name] for name in after if name in before}


def _of_metrics(product: Product) -> dict[str, float]:
    text = product.text("/metrics")
    found = {}
    for name, ours in OF_METRICS.items():
        values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
        if values:
            found[ours] = sum(float(value) for value in values)
    return found


async def _of_postgres(dsn: str) -> dict[str, float]:
    connection = await asyncpg.connect(dsn)
    try:
        fsyncs = await connection.fetchval(
            "select sum(fsyncs) from pg_stat_io where object = 'wal'"
            if connection.get_server_version().major >= 18
            else "select wal_sync from pg_stat_wal"
        )
    finally:
        await connection.close()
    return {"wal_fsyncs": float(fsyncs or 0)}


def describe(counted: dict[str, float], decided: int) -> dict[str, float]:
    """Return redemptions for each event that was counted, for the events that mattered."""
    told = {}
    for name in ("script_calls", "wal_fsyncs", "wakeups", "commits"):
        # Background probes make a few a second; fewer than one in a thousand says nothing.
        if counted.get(name, 0.0) > decided / 1_000:
            told[name] = decided / counted[name]
    return told
