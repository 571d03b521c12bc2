"""S7: how much of the server's own speed comes through the batcher, without HTTP and Python."""

import statistics

from bench import generator
from bench.lines import Result, over
from bench.product import Product, running

BATCH = 256
# Calls under way at once. The batcher has one in the air and one forming; the sender is given
# whichever depth makes it fastest, so that the base is what the server can do.
BATCHER_DEPTH = 2
SENDER_DEPTHS = (1, 2, 4)
AT_LEAST = 0.70


def measure(rounds: int, seconds: float) -> list[Result]:
    """Return S7: A B B A of the sender and the batcher on the Valkey of an idle product."""
    with running() as product:
        url = product.servers()["redis_url"]
        each_s = max(1.0, seconds / 2)
        depth = max(SENDER_DEPTHS, key=lambda depth: _rate(url, "sender", depth, 1.0))
        ratios, ours, base, calls = [], [], [], []
        for _ in range(rounds):
            a1 = _rate(url, "sender", depth, each_s)
            b1, calls1 = _batcher(product, each_s)
            b2, calls2 = _batcher(product, each_s)
            a2 = _rate(url, "sender", depth, each_s)
            ratios.append((b1 + b2) / (a1 + a2))
            ours += [b1, b2]
            base += [a1, a2]
            calls += [calls1, calls2]
    return [
        over(
            ratios,
            id="S7",
            says=f"claims through the batcher ÷ packed by hand, {BATCH} a call",
            at_least=AT_LEAST,
            figures={
                "per_s": statistics.median(ours),
                "base_per_s": statistics.median(base),
                "base_depth": float(depth),
                "claims_a_call": statistics.median(calls),
            },
        )
    ]


def _rate(url: str, mode: str, depth: int, seconds: float) -> float:
    told = generator.packed(url, mode, BATCH, depth, seconds)
    return told["won"] / told["seconds"]


def _batcher(product: Product, seconds: float) -> tuple[float, float]:
    url = product.servers()["redis_url"]
    told = generator.packed(url, "batcher", BATCH, BATCHER_DEPTH, seconds)
    return told["won"] / told["seconds"], told["won"] / told["calls"]
