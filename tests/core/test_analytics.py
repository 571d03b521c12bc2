"""Every figure equals what the ledger says, at every moment and on four different clocks."""

import asyncio
import random
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from core import analytics, deliveries, events, ids, verify
from core.analytics import Asked
from tests.conftest import SEED

pytestmark = pytest.mark.anyio

REDEMPTIONS = 12_000
FIRST = datetime(2029, 11, 20, tzinfo=UTC)
DAYS = 365
# Half an hour and three quarters off, midnight that does not exist, and hours that come twice.
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Africa/Cairo")

RECOMPUTED = """
    select case when $5 = 'hour' then
                     -- By the offset, not by the clock: the hour that comes twice is two.
                     to_timestamp(extract(epoch from l.at) - mod(extract(epoch from l.at)
                         + extract(epoch from (l.at at time zone $4) - (l.at at time zone 'UTC')),
                         3600))
                else date_trunc($5, l.at at time zone $4) at time zone $4 end as at,
           sum(l.live)::bigint, sum(l.discount)::bigint, sum(l.value)::bigint,
           sum(l.redeemed)::bigint, sum(l.back)::bigint
      from (select r.redeemed_at as at, (r.status = 'redeemed')::int as live, 1 as redeemed,
                   0 as back, (r.status = 'redeemed')::int * (r.discount_minor
                       - coalesce(r.returned_minor, 0)) as discount,
                   (r.status = 'redeemed')::int * r.order_value_minor as value
              from vf.redemptions r
             where r.project_id = $1 and ($6::uuid is null or r.campaign_id = $6)
            union all
            select r.rolled_back_at, 0, 0, 1, 0, 0 from vf.redemptions r
             where r.status = 'rolled_back' and r.project_id = $1
               and ($6::uuid is null or r.campaign_id = $6)) l
     where l.at >= ($2::date)::timestamp at time zone $4
       and l.at < ($3::date + 1)::timestamp at time zone $4
     group by 1 order by 1
"""


class Year:
    """A year of redemptions of twelve vouchers, written as the product does: row and outbox."""

    def __init__(self, house: Any) -> None:
        self.house = house
        self.chance = random.Random(SEED)
        self.vouchers: list[tuple[UUID, UUID | None]] = []
        self.next: dict[UUID, int] = {}

    async def open(self) -> None:
        self.campaigns = [await self.house.campaign() for _ in range(3)]
        for n in range(12):
            campaign = (*self.campaigns, None)[n % 4]
            voucher = await self.house.voucher(f"YEAR-{n}", campaign_id=campaign)
            self.vouchers.append((voucher, campaign))
            self.next[voucher] = 1

    async def redeem(self, count: int) -> None:
        rows, told = [], []
        while len(rows) < count:
            voucher, campaign = self.chance.choice(self.vouchers)
            batch = self.chance.choice((1, 1, 3, 40))
            first = self.next[voucher]
            for seq in range(first, first + batch):
                at = FIRST + timedelta(seconds=self.chance.random() * DAYS * 86_400)
                value = self.chance.randrange(100, 50_000)
                rows.append((self.house.project_id, voucher, seq, ids.new(), voucher, campaign,
                             f"{voucher}{seq}", b"", value, value // 5, at))  # fmt: skip
            self.next[voucher] += batch
            data = msgspec.json.encode({"first": first, "count": batch}).decode()
            told.append((self.house.project_id, "voucher.redeemed", voucher, data))
        async with self.house.owner.transaction():
            await self.house.owner.executemany(
                "insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, "
                "campaign_id, idempotency_key, fingerprint, order_value_minor, discount_minor, "
                "redeemed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)", rows,
            )  # fmt: skip
            await self.house.owner.executemany(
                "insert into vf.outbox (project_id, event, subject, data) values ($1, $2, $3, $4)",
                told,
            )  # fmt: skip
            await self.house.owner.execute(
                "update vf.vouchers v set direct_count = r.n, next_number = r.n + 1 "
                "from (select voucher_id, count(*) filter (where status = 'redeemed') as n "
                "from vf.redemptions group by 1) r where v.id = r.voucher_id"
            )
            await self.house.owner.execute(
                "update vf.vouchers v set next_number = 1 + "
                "(select count(*) from vf.redemptions r where r.voucher_id = v.id)"
            )
            await self.house.owner.execute(
                "update vf.campaigns c set direct_count = (select count(*) from vf.redemptions r "
                "where r.campaign_id = c.id and r.status = 'redeemed')"
            )

    async def roll_back(self, share: float) -> None:
        rows = await self.house.owner.fetch(
            "select id, discount_minor, returned_minor from vf.redemptions "
            "where status = 'redeemed' order by id"
        )
        window = timedelta(days=10_000)
        for row in self.chance.sample(rows, int(len(rows) * share)):
            rest = row["discount_minor"] - (row["returned_minor"] or 0)
            if self.chance.random() < 0.4 and rest > 2:
                await self.house.owner.fetchval(
                    "select vf.roll_back_part($1, $2, $3, 'part', $4)",
                    self.house.project_id, row["id"], self.chance.randrange(1, rest), window,
                )  # fmt: skip
            if self.chance.random() < 0.7:
                await self.house.owner.fetch(
                    "select vf.roll_back($1, $2, 'whole', $3)",
                    self.house.project_id, row["id"], window,
                )  # fmt: skip

    async def compare(self) -> int:
        """Hold every series against the ledger; return how many points were held."""
        compared = 0
        spans = [(FIRST.date(), date(2030, 11, 21)), (date(2030, 3, 20), date(2030, 4, 2))]
        today = datetime.now(UTC).date()
        spans.append((today - timedelta(days=5), today + timedelta(days=1)))
        async with self.house.services.database.transaction(
            self.house.project_id, reads_only=True, isolation="repeatable read"
        ) as conn:
            for zone in ZONES:
                for unit in ("hour", "day", "week", "month"):
                    for scope in (None, self.campaigns[0]):
                        for days in spans:
                            if (days[1] - days[0]).days >= analytics.DAYS_MAX[unit]:
                                continue
                            compared += await self._held(conn, zone, unit, scope, days)
        return compared

    async def _held(self, conn: Any, zone: str, unit: Any, scope: UUID | None,
                    days: tuple[date, date]) -> int:  # fmt: skip
        asked = Asked(from_day=days[0], to_day=days[1], unit=unit, time_zone=zone)
        caller = self.house.caller
        if scope is None:
            shown: analytics.Series = await analytics.of_project(conn, caller, asked)
        else:
            public_id = ids.format_id("cmp", scope)
            shown = await analytics.of_campaign(conn, caller, public_id, asked)
        rows = await self.house.owner.fetch(
            RECOMPUTED, self.house.project_id, *days, zone, unit, scope
        )
        found = [(one.at, one.redemptions, _minor(one.discount), _minor(one.order_value),
                  one.redeemed, one.rolled_back) for one in shown.points]  # fmt: skip
        assert found == [tuple(row) for row in rows], (SEED, zone, unit, days)
        totals = shown.totals
        assert totals.redemptions == sum(row[1] for row in rows)
        assert _minor(totals.discount) == sum(row[2] for row in rows)
        return len(found)


def _minor(amount: Any) -> int:
    return int(bytes(amount).replace(b".", b""))


async def publish(house: Any) -> None:
    while await deliveries.publish(house.worker_db):
        pass


async def test_every_figure_is_the_ledgers_before_while_and_after_it_is_added_up(
    house: Any,
) -> None:
    year = Year(house)
    await year.open()
    await year.redeem(REDEMPTIONS // 3)
    await year.roll_back(0.1)
    compared = [await year.compare()]
    assert await analytics.begin(house.worker_db) is False, "something waits to be published"
    await publish(house)
    assert await analytics.roll_up(house.worker_db) is None
    assert await analytics.begin(house.worker_db) is True
    assert await analytics.roll_up(house.worker_db) == 0
    ever = "select sum(redeemed) from vf.figures where kind = 'p' and grain_s = 0"
    assert await house.value(ever) >= REDEMPTIONS // 3
    await year.redeem(REDEMPTIONS // 3)
    await publish(house)
    await year.roll_back(0.1)
    assert await analytics.roll_up(house.worker_db), "half of it is added, the rest is not"
    compared.append(await year.compare())
    await year.redeem(REDEMPTIONS // 3)
    await publish(house)
    while await analytics.roll_up(house.worker_db):
        pass
    compared.append(await year.compare())
    assert await analytics.begin(house.worker_db) is True, "once"
    assert await verify.run(house.settings) == verify.CLEAN
    print(f"seed {SEED}: {compared} points were compared")
    assert min(compared) > 3_000
    grains = await house.owner.fetch(
        "select kind, sum(redeemed) filter (where grain_s = 0), sum(redeemed) filter (where "
        "grain_s = 900), sum(undone) filter (where grain_s = 0), "
        "sum(undone) filter (where grain_s = 900) from vf.figures group by 1"
    )
    for row in grains:
        assert (row[1], row[3]) == (row[2], row[4]), row


async def test_a_figure_that_is_not_the_ledgers_is_found_by_verify(house: Any, capsys: Any) -> None:
    await house.voucher("OFF")
    await house.redeem("OFF", "anna")
    await publish(house)
    await analytics.begin(house.worker_db)
    assert await verify.run(house.settings) == verify.CLEAN
    capsys.readouterr()
    await house.owner.execute(
        "update vf.figures set discount_minor = discount_minor + 1 where kind = 'p' and grain_s = 0"
    )
    assert await verify.run(house.settings) == verify.BROKEN
    assert "discount in minor units of prj_" in capsys.readouterr().out


async def test_two_that_add_up_at_once_add_each_event_once(house: Any) -> None:
    await house.voucher("TWICE")
    await analytics.begin(house.worker_db)
    for wave in range(5):
        await asyncio.gather(*(house.redeem("TWICE", f"c{wave}-{n}") for n in range(40)))
        await asyncio.gather(*(deliveries.publish(house.worker_db) for _ in range(3)))
        await asyncio.gather(*(analytics.roll_up(house.worker_db) for _ in range(3)))
    await publish(house)
    while await analytics.roll_up(house.worker_db):
        pass
    for kind in "pv":
        ever = "select redeemed from vf.figures where kind = $1 and grain_s = 0"
        assert await house.value(ever, kind) == 200


async def test_a_fast_sale_is_counted_by_the_second_and_soon(house: Any) -> None:
    sale_id = await house.sale("SECONDS", 300)
    await house.open_sale(sale_id)
    await asyncio.gather(*(house.claim(sale_id, f"c{n}") for n in range(300)))
    await house.until("select count(*) from vf.redemptions", 300)
    today = datetime.now(UTC).date()
    asked = Asked(from_day=today - timedelta(days=0), to_day=today, unit="second")
    started_s = time.monotonic()
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        seen = await analytics.overview(conn, house.caller)
        shown = await analytics.of_sale(conn, house.caller, ids.format_id("fls", sale_id), asked)
    assert time.monotonic() - started_s < 5
    assert (seen.redemptions_today, seen.top_code, seen.flash_sales.wins) == (300, "SECONDS", 300)
    rows = await house.owner.fetch(
        "select date_trunc('second', redeemed_at) as at, count(*) from vf.redemptions "
        "group by 1 order by 1"
    )
    assert [(one.at, one.redemptions) for one in shown.points] == [tuple(row) for row in rows]


async def test_fine_figures_are_forgotten_and_coarse_ones_are_kept(house: Any) -> None:
    await house.voucher("OLD")
    await house.redeem("OLD", "anna")
    await house.owner.execute("update vf.redemptions set redeemed_at = now() - interval '40 days'")
    await publish(house)
    await analytics.begin(house.worker_db)
    await analytics.forget(house.worker_db)
    left = await house.owner.fetch("select kind, grain_s from vf.figures order by 1, 2")
    assert [tuple(row) for row in left] == [("p", 0), ("p", 900), ("v", 0)]
    assert events.KEEP_DAYS < analytics.KEEP_DAYS
