"""`house`: one project in a fresh database with everything a worker process opens, in this process.

Real PostgreSQL, real Valkey, the compiled batcher; only HTTP is left out.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
import redis.asyncio

from api.doors import Doors
from api.lifespan import Services
from core import db, flash_sales, ids
from core.api_keys import Caller
from core.endings import end
from core.errors import Fault, Refusal
from core.flash_sales import NewFlashSale
from core.hot.nodes import connect
from core.reconciler import Reconciler
from core.redemptions import NewRedemption, Redemption
from core.settings import Settings
from tests.core.books import Books


class House:
    """A worker's parts, a reconciler, and short ways to make and count things."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.services = Services(settings)
        self.doors = Doors(self.services)
        self.services.doors = self.doors
        self.project_id = ids.new()
        self.caller = Caller(self.project_id, ids.new(), "SECRET", "EUR", 2)
        self.reconciler: Reconciler
        self.owner: Any

    async def open(self) -> None:
        self.owner = await asyncpg.connect(self.settings.database_dsn("owner"))
        account = ids.new()
        await self.owner.execute(
            "insert into vf.accounts (id, name, plan) values ($1, 'a', 'scale')", account
        )
        await self.owner.execute(
            "insert into vf.projects (id, account_id, name) values ($1, $2, 'p')",
            self.project_id,
            account,
        )
        await self.services.start()
        self.worker_db = await db.Database.open(
            self.settings.database_dsn("worker"), size_min=0, size_max=4
        )
        self.worker_redis = connect(self.settings.redis_url)
        self.clock = flash_sales.SaleDesk(self.worker_db, self.worker_redis, self.settings)
        self.reconciler = Reconciler(self.worker_db, self.worker_redis, self.settings)
        self._reconciling = asyncio.create_task(self.reconciler.run())

    async def close(self) -> None:
        await self.stop_reconciler()
        await self.services.stop()
        await self.worker_redis.aclose()
        await self.worker_db.close()
        await self.owner.close()

    async def stop_reconciler(self) -> None:
        await end(self._reconciling)
        await self.reconciler.stop()

    def restart_reconciler(self) -> None:
        self._reconciling = asyncio.create_task(self.reconciler.run())

    async def voucher(self, code: str, **columns: Any) -> UUID:
        voucher_id = ids.new()
        row = {
            "project_id": self.project_id,
            "id": voucher_id,
            "code": code,
            "code_norm": code.upper(),
            "discount_type": "PERCENT",
            "discount_bp": 2000,
            **columns,
        }
        await self._insert("vf.vouchers", row)
        return voucher_id

    async def campaign(self, **columns: Any) -> UUID:
        campaign_id = ids.new()
        row = {
            "project_id": self.project_id,
            "id": campaign_id,
            "name": "c",
            "discount_type": "PERCENT",
            "discount_bp": 1000,
            **columns,
        }
        await self._insert("vf.campaigns", row)
        return campaign_id

    async def _insert(self, table: str, row: dict[str, Any]) -> None:
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await self.owner.execute(
            f"insert into {table} ({', '.join(row)}) values ({places})", *row.values()
        )

    async def sale(self, code: str, stock: int, **fields: Any) -> UUID:
        given = NewFlashSale(
            name=code,
            code=None if "voucher" in fields else code,
            stock=stock,
            discount_value=msgspec.Raw(b"null" if "voucher" in fields else b"50"),
            **fields,
        )
        async with self.services.database.transaction(self.project_id) as conn:
            made = await flash_sales.create(conn, self.caller, given)
        assert isinstance(made, UUID), made
        return made

    async def open_sale(self, sale_id: UUID) -> None:
        refused = await self.doors.desk.open(self.project_id, sale_id, by_hand=True)
        assert refused is None, refused

    async def shown(self, sale_id: UUID) -> flash_sales.FlashSale:
        row = await self.doors.desk.read(self.project_id, sale_id)
        return await flash_sales.show(self.doors.redis, row, self.caller)

    async def redeem(
        self, code: str, customer: str | None = None, key: str | None = None, **more: Any
    ) -> Redemption | Refusal | Fault:
        try:
            return await self.doors._redeemer.redeem(self.caller, code, _new(customer, more), key)
        except Fault as fault:
            return fault

    async def claim(
        self, sale_id: UUID, customer: str | None = None, key: str | None = None, **more: Any
    ) -> Redemption | Refusal | Fault:
        try:
            return await self.doors._redeemer.claim(self.caller, sale_id, _new(customer, more), key)
        except Fault as fault:
            return fault

    async def value(self, sql: str, *args: Any) -> Any:
        return await self.owner.fetchval(sql, *args)

    async def until(self, sql: str, wanted: Any, *args: Any, within_s: float = 10.0) -> None:
        """Wait until a query says what is wanted; fail with what it says instead."""
        seen = None
        for _ in range(int(within_s / 0.05)):
            seen = await self.owner.fetchval(sql, *args)
            if seen == wanted:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{sql} says {seen!r}, not {wanted!r}")


def _new(customer: str | None, more: dict[str, Any]) -> NewRedemption:
    value = more.pop("order_value", b"89.99")
    return NewRedemption(customer_id=customer, order_value=msgspec.Raw(value), **more)


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    opened = House(settings)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def books(settings: Settings, valkey: redis.asyncio.Redis) -> AsyncIterator[Books]:
    owner = await asyncpg.connect(settings.database_dsn("owner"))
    try:
        shop = Books(owner, valkey)
        await shop.open_shop()
        await shop.arm(shop.settled)
        await shop.claim(shop.settled, 4)
        await shop.settle(shop.settled)
        await shop.close(shop.settled, 5)
        await shop.arm(shop.open)
        await shop.claim(shop.open, 5)
        await shop.settle(shop.open)
        await shop.claim(shop.open, 2)
        yield shop
    finally:
        await owner.close()
