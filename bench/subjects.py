"""What of the product is measured, each on a voucher or a sale of its own, and audited.

strict, fast      wins of a flash sale; fast is a burst within `backlog_max`
sustained         wins of a fast sale with the lag kept within LAG_MAX
sold_out          refusals of a fast sale that is sold out, told by the process itself
sold_out_keyed    the same with an Idempotency-Key each: the script is asked
ordinary          redeems of one voucher that nobody declared a sale
spread            redeems of SPREAD vouchers in turn
"""

import asyncio
import random
import threading
from typing import Any

from bench import closed_loop, connections, counters
from bench.closed_loop import Aim, Run
from bench.product import Product, ProductFault

STOCK = 100_000_000
# What a default `backlog_max` lets a sale win at once.
BURST = 200_000
# A sale that goes on and on: a second or two of what the reconciler writes.
LAG_MAX = 20_000
# A burst says little of what lasts; a minute is longer than any queue or cache hides.
SUSTAINED_TIMES = 6
SPREAD = 10_000
# Draining 200,000 wins at the slowest rate ever measured, doubled.
DRAIN_S_MAX = 120.0
LAG_LOOK_S = 0.5
# Vouchers made at once; a write is one commit of PostgreSQL.
MAKERS = 16

TERMS = {"discount_type": "PERCENT", "discount_value": 50, "per_customer_limit": 1}
SALES = ("strict", "fast", "sustained", "sold_out", "sold_out_keyed")
NAMES = (*SALES, "ordinary", "spread")


class Bench:
    """One product under measurement. `pids` are all processes whose CPU a request may cost."""

    def __init__(self, product: Product, pids: list[int], burst: int = BURST) -> None:
        """`burst`: claims of a fast run."""
        self.product = product
        self.pids = pids
        self.burst = burst
        self._spread = ""

    def run(self, name: str, connection_count: int, seconds: float) -> Run:
        """Make what is asked for, ask, and audit the books.

        Raises: ProductFault when an answer was not what it has to be, or the books do not balance.
        """
        code = f"BENCH{random.randrange(10**9)}"
        if name in SALES:
            return self._sale(name, code, connection_count, seconds)
        if name == "ordinary":
            self._make_voucher(code)
            aim = self._aim(f"/v1/vouchers/{code}/redeem")
        else:
            self._spread = self._spread or self._make_spread(code)
            aim = self._aim(f"/v1/vouchers/{self._spread}{{n}}/redeem", spread=SPREAD)
        run = self._ask(name, aim, connection_count, seconds)
        self._expect(run, refused=0)
        self.audit(name)
        return run

    def demand(self, mode: str, connection_count: int, stock: int, claims: int) -> Run:
        """Ask for so many units of a stock, however many there are, settle and audit.

        `mode`: strict, fast, or ordinary: a voucher with that limit. Raises: as `run`, and when
        more or fewer units were sold than there were.
        """
        code = f"DEMAND{random.randrange(10**9)}"
        sale = None
        if mode == "ordinary":
            self._make_voucher(code, stock)
            path = f"/v1/vouchers/{code}/redeem"
        else:
            sale = self.open_sale(code, mode, stock)
            path = f"/v1/flash-sales/{sale['id']}/claim"
        run = self._ask(mode, self._aim(path, burst=claims), connection_count, 0)
        # An answer on its way on each connection was not counted when the clients stopped.
        if run.broken or abs(run.won - min(stock, claims)) > connection_count:
            raise ProductFault(f"{mode}: {run.won} of {stock} were won, {run.broken} broken")
        if sale is not None:
            self.close_sale(sale, run.won, connection_count)
        self.audit(mode)
        return run

    def open_sale(self, code: str, durability: str, stock: int) -> dict[str, Any]:
        """Open a sale with one unit for each customer."""
        return self.product.open_sale(
            name=code, code=code, stock=stock, durability=durability, **TERMS
        )

    def close_sale(self, sale: dict[str, Any], answered: int, slack: int) -> None:
        """Wait until the ledger has everything, compare it with what was answered, and close.

        `slack`: answers on their way when the clients stopped, for either side of the count.
        """
        settled = self.product.wait_for_lag_0(sale["id"], DRAIN_S_MAX)
        if abs(settled["claimed"] - answered) > slack:
            raise ProductFault(
                f"{answered} wins were answered, {settled['claimed']} are in the books"
            )
        self.product.must("POST", f"/v1/flash-sales/{sale['id']}/close")

    def audit(self, name: str) -> None:
        """Verify the books. Raises: ProductFault with what is wrong."""
        status, told = self.product.verify()
        if status:
            raise ProductFault(f"{name}: the audit failed, so there is no speed to tell\n{told}")

    def _sale(self, name: str, code: str, connection_count: int, seconds: float) -> Run:
        is_over = name.startswith("sold_out")
        sale = self.open_sale(
            code, "strict" if name == "strict" else "fast", 1 if is_over else STOCK
        )
        path = f"/v1/flash-sales/{sale['id']}/claim"
        if is_over:
            self.product.must("POST", path, {"customer_id": "first", "order_value": 1})
        aim = self._aim(
            path,
            is_keyed=name != "sold_out",
            burst=self.burst if name == "fast" else 0,
        )
        if name == "sustained":
            run = self._watched(sale, aim, connection_count, seconds * SUSTAINED_TIMES)
        else:
            run = self._ask(name, aim, connection_count, seconds)
            self._expect(run, refused=run.requests if is_over else 0)
        self.close_sale(sale, 1 if is_over else run.won, 0 if is_over else connection_count)
        self.audit(name)
        return run

    def _watched(
        self, sale: dict[str, Any], aim: Aim, connection_count: int, seconds: float
    ) -> Run:
        """Ask, and look at the lag meanwhile. A 503 is no win."""
        lags: list[int] = []
        is_over = threading.Event()

        def look() -> None:
            while not is_over.wait(LAG_LOOK_S):
                status, now = self.product.ask("GET", f"/v1/flash-sales/{sale['id']}")
                if status == 200:
                    lags.append(now["lag"])

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            run = self._ask("sustained", aim, connection_count, seconds)
        finally:
            is_over.set()
            watcher.join()
        if run.broken:
            raise ProductFault(f"sustained: {run.broken} broken of {run.requests}")
        run.per_s = run.won / run.seconds
        run.counters["lag_max"] = float(max(lags, default=0))
        run.counters["refused_share"] = run.refused / run.requests
        return run

    def _ask(self, name: str, aim: Aim, connection_count: int, seconds: float) -> Run:
        before = counters.read(self.product)
        run = closed_loop.run(name, aim, connection_count, seconds, self.pids)
        counted = counters.between(before, counters.read(self.product))
        run.counters = counters.describe(counted, run.requests)
        return run

    def _aim(self, path: str, *, is_keyed: bool = True, burst: int = 0, spread: int = 0) -> Aim:
        product = self.product
        return Aim(
            url=product.url,
            path=path,
            token=product.token,
            is_keyed=is_keyed,
            burst=burst,
            spread=spread,
        )

    def _expect(self, run: Run, refused: int) -> None:
        if run.broken or run.refused != refused:
            raise ProductFault(
                f"{run.name}: {run.refused} refused and {run.broken} broken of {run.requests}"
            )

    def _make_voucher(self, code: str, units: int = STOCK) -> None:
        self.product.must("POST", "/v1/vouchers", {"code": code, "max_redemptions": units, **TERMS})

    def _make_spread(self, prefix: str) -> str:
        asyncio.run(make_vouchers(self.product, prefix, SPREAD))
        return prefix


async def make_vouchers(product: Product, prefix: str, count: int) -> None:
    """Make vouchers prefix0, prefix1 … Raises: ProductFault with the first other answer."""
    target = connections.Target.of(product.url)
    numbers = iter(range(count))

    async def make() -> None:
        connection = connections.Connection(target)
        try:
            for number in numbers:
                body = (
                    f'{{"code":"{prefix}{number}","discount_type":"PERCENT","discount_value":50,'
                    f'"max_redemptions":{STOCK},"per_customer_limit":1}}'
                ).encode()
                answer = await connection.send(
                    connections.request(target, "POST", "/v1/vouchers", product.token, body)
                )
                if answer.status != 201:
                    raise ProductFault(f"{answer.status} {answer.body[:200]!r}")
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(MAKERS):
            group.create_task(make())
