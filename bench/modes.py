"""S6b: the three ways to sell side by side, when all can win and when one in twenty can."""

from collections.abc import Iterator

from bench import subjects
from bench.lines import Result, over
from bench.product import running

MODES = ("strict", "fast", "ordinary")
CONNECTIONS = (64, 256)
WORKERS = (1, 2)
# Claims for each unit of stock: a sale that just sells, and a crowd.
DEMANDS = (1, 20)
CLAIMS = 60_000
WARM_UP = 4_000


def measure(claims: int = CLAIMS) -> Iterator[Result]:
    """Yield what was decided a second in each case, and what it cost. Nothing is asked of it."""
    for workers in WORKERS:
        with running("--workers", str(workers)) as product:
            assert product.process is not None
            bench = subjects.Bench(product, [product.process.pid])
            for mode in MODES:
                bench.demand(mode, CONNECTIONS[0], WARM_UP, WARM_UP)
            for demand in DEMANDS:
                for connections in CONNECTIONS:
                    for mode in MODES:
                        run = bench.demand(mode, connections, claims // demand, claims)
                        on = "1 worker" if workers == 1 else f"{workers} workers"
                        says = (
                            f"{mode}, {connections} connections, {on}, demand {demand} × the stock"
                        )
                        print(f"{run.per_s:9,.0f}/s  {run.cpu_us:5.0f} µs CPU  {says}", flush=True)
                        yield over(
                            [run.per_s],
                            id="S6b",
                            says=says,
                            figures={
                                "wins_per_s": run.won / run.seconds,
                                "cpu_us": run.cpu_us,
                                "p50_ms": run.p50_ms,
                                "p99_ms": run.p99_ms,
                            },
                        )
