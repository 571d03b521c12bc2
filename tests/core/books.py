"""A small shop whose books the tests of `verify` cook."""

import hashlib
import itertools
import json
import random
import uuid

import asyncpg
import redis.asyncio
from vauchflow_hotpath import CLAIM_LUA

from core.hot import keys, leases

RUN_ID = "a" * 40
PROJECT, ACCOUNT = uuid.UUID(int=1), uuid.UUID(int=2)
CAMPAIGN, DIRECT, FLASH, SALE, STRICT, STRICT_SALE = (uuid.UUID(int=n) for n in range(10, 16))


class Books:
    """A small shop: 5 direct redemptions under a campaign, a strict sale, a settled lease with a
    burned hole, and an open lease that sold 7 of 20 with 2 not settled yet."""

    def __init__(self, owner: asyncpg.Connection, valkey: redis.asyncio.Redis) -> None:
        self.owner = owner
        self.valkey = valkey
        self.settled = uuid.uuid4()
        self.open = uuid.uuid4()
        self.numbers = itertools.count()

    async def open_shop(self) -> None:
        await self.owner.execute(
            f"""
            insert into vf.accounts (id, name, plan) values ('{ACCOUNT}', 'A', 'scale');
            insert into vf.projects (id, account_id, name) values ('{PROJECT}', '{ACCOUNT}', 'P');
            insert into vf.campaigns (project_id, id, name, max_redemptions, per_customer_limit)
            values ('{PROJECT}', '{CAMPAIGN}', 'C', 100, 2);
            insert into vf.vouchers (project_id, id, code, code_norm, campaign_id, discount_type,
                discount_bp, max_redemptions, per_customer_limit)
            values ('{PROJECT}', '{DIRECT}', 'A', 'A', '{CAMPAIGN}', 'PERCENT', 1000, 10, 2),
                   ('{PROJECT}', '{FLASH}', 'F', 'F', null, 'PERCENT', 5000, 30, 1),
                   ('{PROJECT}', '{STRICT}', 'S', 'S', null, 'PERCENT', 5000, 4, null);
            insert into vf.flash_sales (project_id, id, voucher_id, name, durability, status, stock)
            values ('{PROJECT}', '{SALE}', '{FLASH}', 'Drop', 'fast', 'open', 30),
                   ('{PROJECT}', '{STRICT_SALE}', '{STRICT}', 'Slow', 'strict', 'open', 4);
            update vf.vouchers set flash_sale_id = '{STRICT_SALE}' where id = '{STRICT}';
            """
        )
        await self.redeem(DIRECT, 5, campaign=CAMPAIGN)
        await self.redeem(STRICT, 3, sale=STRICT_SALE)

    async def redeem(
        self,
        voucher: uuid.UUID,
        count: int,
        *,
        campaign: uuid.UUID | None = None,
        sale: uuid.UUID | None = None,
    ) -> None:
        some = [f"{voucher.int}-{i}" for i in range(count)]
        answers = await self.owner.fetch(
            "select * from vf.redeem_many($1, $2, 1, $3, 1, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            *(PROJECT, voucher, campaign, sale, [uuid.uuid4() for _ in some]),
            *([f"key-{s}" for s in some], [b"f" * 16 for _ in some], [f"cus-{s}" for s in some]),
            *([8999] * count, [900] * count, [None] * count, [None] * count),
        )
        assert {row["outcome"] for row in answers} == {"redeemed"}

    async def arm(self, lease: uuid.UUID) -> None:
        tag = random.getrandbits(62)
        armed = await self.owner.fetchrow(
            "select * from vf.arm_lease($1, $2, $3, $4, $5, 1000)",
            *(PROJECT, SALE, lease, tag, RUN_ID),
        )
        assert armed["outcome"] == "armed"
        await self.owner.execute("update vf.leases set state = 'open' where id = $1", lease)
        facts = leases.LeaseFacts(lease_id=str(lease), size=armed["size"], customer_limit=1)
        assert await leases.arm(self.valkey, facts)

    async def claim(self, lease: uuid.UUID, count: int) -> None:
        items: list[str] = []
        for _ in range(count):
            i = next(self.numbers)
            name = f"{str(lease)[:8]}-{i}"
            items += [f"key-{name}", hashlib.md5(name.encode()).hexdigest(), f"cus-{name}"]
            items.append(json.dumps({"id": str(uuid.uuid4())}))
        reply = await self.valkey.eval(
            CLAIM_LUA, 4, *keys.of_lease(str(lease)), str(lease), count, *items
        )
        assert all(isinstance(seq, int) and seq > 0 for seq in reply[2:]), reply

    async def settle(self, lease: uuid.UUID, *, drop_seq: int | None = None) -> None:
        """Write what the stream holds behind the offset, as the reconciler does."""
        from_id = await self.owner.fetchval(
            "select last_id from vf.lease_progress where lease_id = $1", lease
        )
        for entry in await leases.read_wins(self.valkey, str(lease), from_id):
            wins = [win for win in entry.wins if win.seq != drop_seq]
            settled = await self.owner.fetchrow(
                "select * from vf.settle_wins($1, $2, $3, 0, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
                " $13, $14, $15, $16, '{}', '{}')",
                *(PROJECT, lease, RUN_ID, from_id, entry.id, [win.seq for win in wins]),
                [uuid.UUID(json.loads(win.payload)["id"]) for win in wins],
                *([win.key for win in wins], [bytes.fromhex(win.fingerprint) for win in wins]),
                *([win.customer for win in wins], [8999] * len(wins), [4500] * len(wins)),
                *([None] * len(wins), [None] * len(wins), [win.remaining for win in wins]),
                [entry.at_ms] * len(wins),
            )
            assert settled["outcome"] == "applied"
            from_id = entry.id

    async def close(self, lease: uuid.UUID, open_to: int) -> None:
        await self.owner.execute("update vf.leases set state = 'draining' where id = $1", lease)
        ended = await self.owner.fetchrow(
            "select * from vf.settle_lease($1, $2, 'draining', $3, $4)",
            *(PROJECT, lease, RUN_ID, open_to),
        )
        assert ended["outcome"] == "settled"
        await leases.retire(self.valkey, str(lease), serve_s=0, keep_s=0)
