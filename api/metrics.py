"""Counters and gauges for Prometheus. No label carries a tenant, a code or a key.

With several workers each writes its own files in PROMETHEUS_MULTIPROC_DIR (set before this module
is imported, by `api.__main__`), and whichever worker is asked sums them.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Final

import msgspec
from litestar import Request, get
from litestar.response import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from api.lifespan import Services
from core import verifications
from core.errors import Fault

# From an idle process (1 ms) to the statement timeout (5 s).
_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# A scraper gives up after ten seconds; the counters must not wait for a PostgreSQL that is away.
GAUGES_S_MAX: Final = 0.25

_REQUESTS: Final = Counter("vauchflow_requests_total", "Answered requests.", ["route", "status"])


class _Elapsed(Histogram):
    """A histogram that also takes what was counted elsewhere, by bucket."""

    def add(self, buckets: list[int], sum_s: float) -> None:
        """Raise every bucket by its count; the last is open."""
        for bucket, count_ in zip(self._buckets, buckets, strict=True):
            bucket.inc(count_)
        self._sum.inc(sum_s)


_ELAPSED: Final = _Elapsed(
    "vauchflow_request_seconds", "From the request's headers to its answer.", ["route"],
    buckets=_BUCKETS_S,
)  # fmt: skip
_HAPPENED: Final = Counter(
    "vauchflow_events_total", "What happened in the product, such as voucher.created.", ["event"]
)

# What the machinery behind the hot doors did, told as sums since the worker's start.
_TOLD: Final = {
    "batches": Counter("vauchflow_batches", "Script calls of the claim batcher."),
    "batch_items": Counter("vauchflow_batch_items", "Claims in them."),
    "batch_wakeups": Counter("vauchflow_batch_wakeups", "Wake-ups of the loop by their answers."),
    "commits": Counter("vauchflow_commits", "Statements of the shared commits."),
    "commit_redeems": Counter("vauchflow_commit_redeems", "Redeems in them."),
}
_told: dict[str, int] = dict.fromkeys(_TOLD, 0)

# Looking a labelled counter up costs more than raising it; routes times statuses are few.
_requests: dict[tuple[str, int], Counter] = {}
_elapsed: dict[str, _Elapsed] = {}
_events: dict[str, Counter] = {}


def observe(route: str, status: int, elapsed_s: float) -> None:
    """Count one answered request. Cost: about 2 µs."""
    _of_status(route, status).inc()
    _elapsed[route].observe(elapsed_s)


def add(route: str, by_status: dict[int, int], buckets: list[int], sum_s: float) -> None:
    """Count requests that were answered elsewhere; `buckets` are those of `_BUCKETS_S`."""
    for status, count_ in by_status.items():
        if count_:
            _of_status(route, status).inc(count_)
    _elapsed[route].add(buckets, sum_s)


def _of_status(route: str, status: int) -> Counter:
    counter = _requests.get((route, status))
    if counter is None:
        counter = _requests[route, status] = _REQUESTS.labels(route, str(status))
        _elapsed.setdefault(route, _ELAPSED.labels(route))
    return counter


def told(**sums: int) -> None:
    """Raise the counters of `_TOLD` to these sums since the worker's start."""
    for name, total in sums.items():
        _TOLD[name].inc(max(0, total - _told[name]))
        _told[name] = total


def count(event: str, amount: int = 1) -> None:
    """Count what happened in the product; `event` is one of few fixed names."""
    counter = _events.get(event)
    if counter is None:
        counter = _events[event] = _HAPPENED.labels(event)
    counter.inc(amount)


def text() -> bytes:
    """Return all counters of all workers in Prometheus' text form."""
    return generate_latest(_registry())


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


class Tally(msgspec.Struct, frozen=True):
    """Requests of some routes since the start: how many by status, and how many took up to what.

    `within`: pairs of a bound in seconds and how many took no longer.
    """

    by_status: dict[int, int]
    within: list[tuple[float, int]]


def tally(routes: Sequence[str]) -> Tally:
    """Add up the counters of some routes, of all workers. Cost: under a millisecond a worker."""
    by_status: dict[int, int] = {}
    within: dict[float, int] = {}
    for family in _registry().collect():
        if family.name not in ("vauchflow_requests", "vauchflow_request_seconds"):
            continue
        for sample in family.samples:
            if sample.labels.get("route") not in routes:
                continue
            if sample.name == "vauchflow_requests_total":
                status = int(sample.labels["status"])
                by_status[status] = by_status.get(status, 0) + int(sample.value)
            elif sample.name == "vauchflow_request_seconds_bucket":
                bound = float(sample.labels["le"])
                within[bound] = within.get(bound, 0) + int(sample.value)
    return Tally(by_status, sorted(within.items()))


def gauges(found: Sequence[verifications.Verification]) -> bytes:
    """Return what the last look at the books found, in Prometheus' text form."""
    lines = []
    for name, what, values in (
        (
            "vauchflow_invariant_violations",
            "What breaks an invariant of the books, as of the last look; 0 is the only good value.",
            [f"{one.violations}" for one in found],
        ),
        (
            "vauchflow_invariant_checked_timestamp_seconds",
            "When the invariant was last looked at.",
            [f"{one.checked_at_s:.3f}" for one in found],
        ),
    ):
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
        lines += [
            f'{name}{{invariant="{one.invariant}"}} {value}'
            for one, value in zip(found, values, strict=True)
        ]
    return "\n".join([*lines, ""]).encode()


async def _found(services: Services) -> list[verifications.Verification]:
    """Return what the last look found; empty while PostgreSQL is away, so that counters go on."""
    try:
        async with (
            asyncio.timeout(GAUGES_S_MAX),
            services.database.connection(reads_only=True) as conn,
        ):
            return await verifications.latest(conn)
    except (TimeoutError, Fault):
        return []


@get("/metrics", operation_id="metrics")
async def show(request: Request) -> Response[bytes]:  # type: ignore[type-arg]
    """Return the counters of all workers, and a gauge an invariant of the books."""
    services: Services = request.app.state.services
    if services.doors is not None:
        services.doors.flush_metrics()
    found = await _found(services)
    return Response(text() + gauges(found), media_type=CONTENT_TYPE_LATEST)


ROUTES: Final = [show]
