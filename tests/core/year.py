"""A year of redemptions, seeded, and every figure of it computed again from the ledger.

Redemptions go by COPY into the tables the product writes, a row each and an outbox row a batch, in
the order of their time; they are published, added up and rolled back by the product.
"""

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from core import analytics, deliveries, ids, overviews
from core.analytics import Asked
from core.api_keys import Caller

DAYS = 365
# Half an hour and three quarters off, midnight that does not exist, and hours that come twice.
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Africa/Cairo")
# Some days before and after which clocks change somewhere among them.
CHANGES = (((3, 6), (4, 2)), ((4, 20), (5, 2)), ((10, 20), (11, 5)))

_COLUMNS = (
    "project_id", "lease_id", "seq", "id", "voucher_id", "campaign_id", "idempotency_key",
    "fingerprint", "customer_id", "order_value_minor", "discount_minor", "redeemed_at",
)  # fmt: skip

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

_STANDING = """
    select count(*), coalesce(sum(discount_minor - coalesce(returned_minor, 0)), 0)::bigint,
           coalesce(sum(order_value_minor), 0)::bigint
      from vf.redemptions r
     where r.project_id = $1 and r.status = 'redeemed'
"""
_TODAY = " and r.redeemed_at >= date_trunc('day', now() at time zone $2) at time zone $2"
_TOP_CODE = """
    select v.code from vf.vouchers v
     where v.id = (select r.voucher_id from vf.redemptions r
                    where r.project_id = $1 and r.status = 'redeemed' {}
                    group by 1 order by count(*) desc, 1 desc limit 1)
"""
_TOP = """
    select {0}, count(*), sum(r.discount_minor - coalesce(r.returned_minor, 0))::bigint,
           sum(r.order_value_minor)::bigint
      from vf.redemptions r
     where r.project_id = $1 and r.status = 'redeemed' and {0} is not null
       and r.redeemed_at >= ($2::date)::timestamp at time zone $4
       and r.redeemed_at < ($3::date + 1)::timestamp at time zone $4
     group by 1 order by 2 desc, 1 desc limit 20
"""


class Year:
    """Twelve vouchers, three campaigns, and what was redeemed of them in the year up to now."""

    def __init__(self, owner: Any, project_id: UUID, worker: Any, app: Any, seed: int) -> None:
        self.owner = owner
        self.project_id = project_id
        self.worker = worker
        self.app = app
        self.caller = Caller(project_id, ids.new(), "SECRET", "EUR", 2)
        self.seed = seed
        self.chance = random.Random(seed)
        self.vouchers: list[tuple[UUID, UUID | None]] = []
        self.next: dict[UUID, int] = {}
        self.last = datetime.now(UTC)
        self.first = self.last - timedelta(days=DAYS)

    async def open(self) -> None:
        self.campaigns = [ids.new() for _ in range(3)]
        await self.owner.executemany(
            "insert into vf.campaigns (project_id, id, name, discount_type, discount_bp, "
            "max_redemptions) values ($1, $2, 'Year', 'PERCENT', 2000, 10000000)",
            [(self.project_id, one) for one in self.campaigns],
        )
        for n in range(12):
            voucher, campaign = ids.new(), (*self.campaigns, None)[n % 4]
            await self.owner.execute(
                "insert into vf.vouchers (project_id, id, code, code_norm, campaign_id, "
                "discount_type, discount_bp) values ($1, $2, $3, $3, $4, 'PERCENT', 2000)",
                self.project_id, voucher, f"YEAR-{n}", campaign,
            )  # fmt: skip
            self.vouchers.append((voucher, campaign))
            self.next[voucher] = 1

    async def redeem(self, count: int) -> None:
        """Redeem so often over the year, a batch at a time, as commits are."""
        rows: list[tuple[Any, ...]] = []
        told: list[tuple[Any, ...]] = []
        sizes: list[int] = []
        left = count
        while left:
            sizes.append(min(self.chance.choice((1, 1, 3, 40)), left))
            left -= sizes[-1]
        for after_s, batch in zip(
            sorted(self.chance.uniform(0, DAYS * 86_400) for _ in sizes), sizes, strict=True
        ):
            at = self.first + timedelta(seconds=after_s)
            voucher, campaign = self.chance.choice(self.vouchers)
            first = self.next[voucher]
            ms = int(at.timestamp() * 1000)
            for seq in range(first, first + batch):
                value = self.chance.randrange(100, 50_000)
                win = UUID(int=ms << 80 | 7 << 76 | self.chance.getrandbits(72))
                customer = f"c{self.chance.randrange(50_000)}"
                rows.append((self.project_id, voucher, seq, win, voucher, campaign, win.hex, b"",
                             customer, value, value // 5, at))  # fmt: skip
            self.next[voucher] += batch
            data = msgspec.json.encode({"first": first, "count": batch}).decode()
            told.append((self.project_id, "voucher.redeemed", voucher, data))
        async with self.owner.transaction():
            await self.owner.copy_records_to_table(
                "redemptions", schema_name="vf", columns=_COLUMNS, records=rows
            )
            await self.owner.copy_records_to_table(
                "outbox", schema_name="vf", columns=("project_id", "event", "subject", "data"),
                records=told,
            )  # fmt: skip
            await self.owner.execute(
                "update vf.vouchers v set direct_count = r.live, next_number = r.n + 1 from "
                "(select voucher_id, count(*) as n, count(*) filter (where status = 'redeemed') "
                "as live from vf.redemptions where project_id = $1 group by 1) r "
                "where v.id = r.voucher_id",
                self.project_id,
            )
            await self.owner.execute(
                "update vf.campaigns c set direct_count = (select count(*) from vf.redemptions r "
                "where r.campaign_id = c.id and r.status = 'redeemed') where c.project_id = $1",
                self.project_id,
            )

    async def roll_back(self, share: float) -> None:
        rows = await self.owner.fetch(
            "select id, discount_minor, returned_minor from vf.redemptions "
            "where status = 'redeemed' and project_id = $1 order by id", self.project_id,
        )  # fmt: skip
        window = timedelta(days=10_000)
        for row in self.chance.sample(rows, int(len(rows) * share)):
            rest = row["discount_minor"] - (row["returned_minor"] or 0)
            if self.chance.random() < 0.4 and rest > 2:
                await self.owner.fetchval(
                    "select vf.roll_back_part($1, $2, $3, 'part', $4)",
                    self.project_id, row["id"], self.chance.randrange(1, rest), window,
                )  # fmt: skip
            if self.chance.random() < 0.7:
                await self.owner.fetch(
                    "select vf.roll_back($1, $2, 'whole', $3)", self.project_id, row["id"], window
                )

    async def publish(self) -> None:
        while await deliveries.publish(self.worker):
            pass

    async def add_up(self) -> None:
        while await analytics.roll_up(self.worker):
            pass

    def spans(self) -> list[tuple[date, date]]:
        """The year, the days around each change of clocks, and those around today."""
        first, last = self.first.date(), self.last.date()
        around = [
            (date(year, *begin), date(year, *end))
            for year in (first.year, last.year) for begin, end in CHANGES
            if first <= date(year, *begin) and date(year, *end) <= last
        ]  # fmt: skip
        assert len(around) >= 2
        return [(first, last), *around, (last - timedelta(days=5), last + timedelta(days=1))]

    async def compare(self) -> int:
        """Hold every series against the ledger; return how many points were held."""
        compared = 0
        async with self.app.transaction(
            self.project_id, reads_only=True, isolation="repeatable read",
            statement_timeout_ms=60_000,
        ) as conn:  # fmt: skip
            for zone in ZONES:
                for unit in ("hour", "day", "week", "month"):
                    for scope in (None, self.campaigns[0]):
                        spans = self.spans()
                        for days in spans[1:] if unit == "hour" else spans[:1]:
                            compared += await self._held(conn, zone, unit, scope, days)
                await self._held_attempts(conn, zone)
                await self._held_top(conn, zone)
            await self._held_overview(conn)
            await self._held_liability(conn)
        return compared

    async def compare_overview(self) -> None:
        """Hold the overview alone, on the project's clock as it is now."""
        async with self.app.transaction(
            self.project_id, reads_only=True, isolation="repeatable read"
        ) as conn:
            await self._held_overview(conn)

    async def _recomputed(self, days: tuple[date, date], zone: str, unit: str, scope: Any) -> Any:
        return await self.owner.fetch(RECOMPUTED, self.project_id, *days, zone, unit, scope)

    async def _held(self, conn: Any, zone: str, unit: Any, scope: UUID | None,
                    days: tuple[date, date]) -> int:  # fmt: skip
        asked = Asked(from_day=days[0], to_day=days[1], unit=unit, time_zone=zone)
        if scope is None:
            shown: analytics.Series = await analytics.of_project(conn, self.caller, asked)
        else:
            public_id = ids.format_id("cmp", scope)
            shown = await analytics.of_campaign(conn, self.caller, public_id, asked)
        rows = await self._recomputed(days, zone, unit, scope)
        found = [(one.at, *_figures(one)) for one in shown.points]
        assert found == [tuple(row) for row in rows], (self.seed, zone, unit, days)
        assert _figures(shown.totals) == _total(rows)
        if unit != "month":
            return len(found)
        length = days[1] - days[0]
        before = (days[0] - length - timedelta(days=1), days[0] - timedelta(days=1))
        assert _figures(shown.previous) == _total(
            await self._recomputed(before, zone, "month", scope)
        )
        return len(found)

    async def _held_attempts(self, conn: Any, zone: str) -> None:
        asked = Asked(from_day=self.first.date(), to_day=self.last.date(), unit="month",
                      time_zone=zone)  # fmt: skip
        told = await analytics.of_attempts(conn, self.caller, asked)
        rows = await self._recomputed((self.first.date(), self.last.date()), zone, "month", None)
        assert told.redemptions.succeeded == _total(rows)[3]

    async def _held_top(self, conn: Any, zone: str) -> None:
        last = self.last.date()
        for of, column, from_day in (
            ("codes", "r.voucher_id", last - timedelta(days=30)),
            ("campaigns", "r.campaign_id", self.first.date()),
        ):
            asked = Asked(from_day=from_day, to_day=last, time_zone=zone)
            told = await analytics.top(conn, self.caller, of, asked, 20)  # type: ignore[arg-type]
            rows = await self.owner.fetch(
                _TOP.format(column), self.project_id, from_day, last, zone
            )
            prefix: Any = "vch" if of == "codes" else "cmp"
            found = [
                (ids.parse_id(prefix, one.id), one.redemptions, _minor(one.discount),
                 _minor(one.order_value)) for one in told.data
            ]  # fmt: skip
            assert rows
            assert found == [tuple(row) for row in rows], (self.seed, of, zone)

    async def _held_overview(self, conn: Any) -> None:
        zone = await self.owner.fetchval(
            "select time_zone from vf.projects where id = $1", self.project_id
        )
        seen = await overviews.overview(conn, self.caller)
        ever = await self.owner.fetchrow(_STANDING, self.project_id)
        today = await self.owner.fetchrow(_STANDING + _TODAY, self.project_id, zone)
        top = await self.owner.fetchval(_TOP_CODE.format(_TODAY), self.project_id, zone)
        top = top or await self.owner.fetchval(_TOP_CODE.format(""), self.project_id)
        assert (seen.redemptions_total, seen.redemptions_today, _minor(seen.discounts_today)) == (
            ever[0], today[0], today[1],
        )  # fmt: skip
        assert (seen.top_code, seen.active_campaigns, seen.time_zone) == (top, 3, zone)

    async def _held_liability(self, conn: Any) -> None:
        for campaign in self.campaigns:
            told = await analytics.of_campaign(
                conn, self.caller, ids.format_id("cmp", campaign), Asked()
            )
            count, discount, _ = await self.owner.fetchrow(
                _STANDING + " and r.campaign_id = $2", self.project_id, campaign
            )
            left = 10_000_000 - count
            expected = (left * discount + max(1, count) // 2) // max(1, count)
            liability = told.liability
            assert liability.open_redemptions == left
            assert _minor(liability.expected_discount) == expected


def _minor(amount: Any) -> int:
    return int(bytes(amount).replace(b".", b""))


def _figures(one: Any) -> tuple[int, ...]:
    return (one.redemptions, _minor(one.discount), _minor(one.order_value), one.redeemed,
            one.rolled_back)  # fmt: skip


def _total(rows: list[Any]) -> tuple[int, ...]:
    return tuple(sum(row[place] for row in rows) for place in range(1, 6))
