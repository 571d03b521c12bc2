"""The plans of hot statements do not depend on statistics, which a hot voucher's never are.

Each hot function runs as its role against a ledger that was just filled and never analysed, or
was analysed while the voucher was cold, or was planned when the tables were empty. Every look-up
inside it must then touch one row and a handful of pages, however many redemptions there are.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core.db import queries
from core.settings import Settings

pytestmark = pytest.mark.anyio

REDEMPTIONS = 20_000
BATCH = 2_500
# A B-tree of millions of rows is four levels deep; the row itself and a split page add a few.
PAGES_PER_LOOKUP_MAX = 8
HOT_TABLES = {"redemptions", "customer_counts"}
# An index that starts with one of these never walks the rows of one voucher, lease or project.
COLUMNS_THAT_VARY = {"idempotency_key", "customer_id", "id"}
# What finds one row: its id, or what is unique in a project.
NAMES_ONE_ROW = re.compile(
    r"WHERE (\w+\.)?project_id = \$\d+ AND (\w+\.)?"
    r"(?P<column>id|code_norm|code_digest|reference) = \$\d+"
)
# As many as there were when this was written; so that a change of style does not blind the test.
ONE_ROW_STATEMENTS_MIN = 40


class Ledger:
    """A voucher with a customer limit and a fast sale, filled through the product's functions."""

    def __init__(self, raw: Any, role: str) -> None:
        self.raw = raw
        self.role = role
        self.project = uuid4()
        self.voucher = uuid4()
        self.sale = uuid4()
        self.lease = uuid4()
        self.entry = 0

    async def found(self) -> None:
        account = uuid4()
        await self.raw.execute(
            "INSERT INTO vf.accounts (id, name, plan) VALUES ($1, 'a', 'scale')", account
        )
        await self.raw.execute(
            "INSERT INTO vf.projects (id, account_id, name) VALUES ($1, $2, 'p')",
            self.project,
            account,
        )
        for table in (*HOT_TABLES, "outbox"):
            await self.raw.execute(f"ALTER TABLE vf.{table} SET (autovacuum_enabled = false)")
        await self.add_voucher(self.voucher)

    async def add_voucher(self, voucher: UUID) -> None:
        await self.raw.execute(
            "INSERT INTO vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp, "
            "max_redemptions, per_customer_limit) "
            "VALUES ($1, $2, $3, $3, 'PERCENT', 1000, 1000000, 1)",
            self.project,
            voucher,
            str(voucher).upper(),
        )

    async def call(self, name: str, **params: Any) -> list[Any]:
        query = queries.find(name)
        async with self.raw.transaction():
            await self.raw.execute(f"SET LOCAL ROLE {self.role}")
            return list(await self.raw.fetch(query.sql, *(params[p] for p in query.params)))

    async def redeem(self, first: int, count: int, voucher: UUID | None = None) -> list[str]:
        """Ask for keys first, first + 1 …; each key has a customer of its own."""
        keys = [f"key-{voucher or ''}-{number:09}" for number in range(first, first + count)]
        found = await self.call(
            "redemptions.redeem_many",
            project_id=self.project,
            voucher_id=voucher or self.voucher,
            version=1,
            campaign_id=None,
            campaign_version=None,
            sale_id=None,
            ids=[uuid4() for _ in keys],
            keys=keys,
            fingerprints=[key.encode() for key in keys],
            customers=[f"customer-{key}" for key in keys],
            order_values=[1000] * count,
            discounts=[100] * count,
            order_ids=[None] * count,
            metadata=[None] * count,
        )
        if [row["ord"] for row in found] == [0]:
            return [found[0]["outcome"]] * count
        return [row["outcome"] for row in found]

    async def arm(self) -> None:
        await self.raw.execute(
            "INSERT INTO vf.flash_sales (project_id, id, voucher_id, name, stock) "
            "VALUES ($1, $2, $3, 's', 500000)",
            self.project,
            self.sale,
            self.voucher,
        )
        outcome = await self.raw.fetchval(
            "SELECT outcome FROM vf.arm_lease($1, $2, $3, 1, 'run', 200000)",
            self.project,
            self.sale,
            self.lease,
        )
        assert outcome == "armed"

    async def settle(self, first: int, count: int) -> Any:
        """Write wins first, first + 1 … as the reconciler does, at the next stream offset."""
        seqs = list(range(first, first + count))
        came_from = f"{self.entry}-0"
        self.entry += 1
        return await self.raw.fetchrow(
            "SELECT * FROM vf.settle_wins($1, $2, $3, 0, $4, $5, $6, $7, $8, $9, $10, $11, $12, "
            "$13, $14, $15, $16, $17, $18)",
            self.project,
            self.lease,
            "run",
            came_from,
            f"{self.entry}-0",
            seqs,
            [UUID(int=seq) for seq in seqs],
            [f"win-{seq:09}" for seq in seqs],
            [b"f"] * count,
            [f"buyer-{seq:09}" for seq in seqs],
            [1000] * count,
            [100] * count,
            [None] * count,
            [None] * count,
            [0] * count,
            [1_750_000_000_000] * count,
            [],
            [],
        )


@asynccontextmanager
async def session(settings: Settings) -> AsyncIterator[Any]:
    """Connect as the owner, with every statement's plan kept, those inside functions too."""
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    try:
        await raw.execute(
            """
            LOAD 'auto_explain';
            SET auto_explain.log_nested_statements = on;
            SET auto_explain.log_analyze = on;
            SET auto_explain.log_buffers = on;
            SET auto_explain.log_timing = off;
            SET auto_explain.log_triggers = on;
            SET auto_explain.log_format = json;
            SET auto_explain.log_level = notice;
            SET client_min_messages = notice;
            SET jit = off;
            """
        )
        yield raw
    finally:
        await raw.close()


@asynccontextmanager
async def plans_of(raw: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """Collect the plans of everything that runs inside the block."""
    plans: list[dict[str, Any]] = []

    def keep(_connection: Any, message: Any) -> None:
        _, found, text = message.message.partition("plan:\n")
        if found:
            plans.append(json.loads(text))

    raw.add_log_listener(keep)
    await raw.execute("SET auto_explain.log_min_duration = 0")
    yield plans
    await raw.execute("SET auto_explain.log_min_duration = -1")
    raw.remove_log_listener(keep)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def assert_lookups_are_single_rows(
    raw: Any, plans: list[dict[str, Any]], *, lookups_min: int, varying: bool
) -> None:
    """Fail for any scan of a hot table that meets more than one row or a handful of pages.

    64 requests, half of them seen before, look 64 keys and 32 customers up.
    """
    scans = [
        node
        for plan in plans
        for node in nodes(plan["Plan"])
        if node.get("Relation Name") in HOT_TABLES
        and node["Node Type"] != "ModifyTable"
        and node["Actual Loops"]
    ]
    assert sum(node["Actual Loops"] for node in scans) >= lookups_min, "the look-ups were seen"
    for node in scans:
        shown = json.dumps(node, indent=1)
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), shown
        assert node["Actual Rows"] <= 1, shown
        assert node.get("Rows Removed by Filter", 0) == 0, shown
        pages = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
        assert pages <= PAGES_PER_LOOKUP_MAX * node["Actual Loops"], shown
        if varying:
            first_column = await raw.fetchval(
                "SELECT pg_get_indexdef(('vf.' || quote_ident($1))::regclass, 1, false)",
                node["Index Name"],
            )
            assert first_column in COLUMNS_THAT_VARY, shown


@pytest.mark.parametrize("statistics", ["none", "of_a_cold_voucher"])
async def test_redeeming_looks_single_rows_up_whatever_the_statistics(
    settings: Settings, statistics: str
) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await ledger.found()
        if statistics == "of_a_cold_voucher":
            # Many vouchers with one redemption each: a voucher looks as selective as a key.
            for _ in range(100):
                voucher = uuid4()
                await ledger.add_voucher(voucher)
                assert await ledger.redeem(0, 3, voucher) == ["redeemed"] * 3
            await raw.execute("ANALYZE vf.redemptions; ANALYZE vf.customer_counts")
        for first in range(0, REDEMPTIONS, BATCH):
            assert await ledger.redeem(first, BATCH) == ["redeemed"] * BATCH
    async with session(settings) as other:
        # The session that filled keeps its plans (see the next test); a new one plans now.
        ledger.raw = other
        async with plans_of(other) as plans:
            outcomes = await ledger.redeem(REDEMPTIONS - 32, 64)
        assert sorted(outcomes) == ["redeemed"] * 32 + ["replayed"] * 32
        await assert_lookups_are_single_rows(other, plans, lookups_min=96, varying=True)
        async with plans_of(other) as plans:
            outcomes = await ledger.redeem(2 * REDEMPTIONS, 64)
        assert outcomes == ["redeemed"] * 64
        await assert_lookups_are_single_rows(other, plans, lookups_min=128, varying=True)


async def test_plans_made_while_the_ledger_was_empty_stay_good(settings: Settings) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await ledger.found()
        for number in range(8):
            assert await ledger.redeem(9_000_000 + number, 1) == ["redeemed"]
        for first in range(0, REDEMPTIONS, BATCH):
            assert await ledger.redeem(first, BATCH) == ["redeemed"] * BATCH
        async with plans_of(raw) as plans:
            outcomes = await ledger.redeem(REDEMPTIONS - 32, 64)
        assert sorted(outcomes) == ["redeemed"] * 32 + ["replayed"] * 32
        await assert_lookups_are_single_rows(raw, plans, lookups_min=96, varying=True)


async def test_codes_are_looked_up_singly_by_a_plan_made_before_there_were_any(
    settings: Settings,
) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await raw.execute("ALTER TABLE vf.vouchers SET (autovacuum_enabled = false)")
        assert await ledger.call("redemptions.terms", project_id=uuid4(), codes=["NONE"]) == []
        await ledger.found()
        codes = [f"CODE-{number}" for number in range(3_000)]
        await raw.execute(
            "INSERT INTO vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp) "
            "SELECT $1, uuidv7(), c, c, 'PERCENT', 1000 FROM unnest($2::text[]) c",
            ledger.project, codes,
        )  # fmt: skip
        async with plans_of(raw) as plans:
            found = await ledger.call(
                "redemptions.terms", project_id=ledger.project, codes=codes[-64:]
            )
        assert sorted(row["code"] for row in found) == sorted(codes[-64:])
        scans = [
            node
            for plan in plans
            for node in nodes(plan["Plan"])
            if node.get("Relation Name") == "vouchers"
        ]
        assert sum(node["Actual Loops"] for node in scans) == 64
        for node in scans:
            assert node["Index Name"] == "vouchers_code_key", node
            assert node.get("Rows Removed by Filter", 0) == 0, node


async def test_a_statement_that_names_one_row_is_planned_to_find_it_even_on_an_empty_ledger(
    settings: Settings,
) -> None:
    asked = 0
    raw = await asyncpg.connect(settings.database_dsn("owner"), statement_cache_size=0)
    try:
        await raw.execute(
            "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; "
            f"SET app.project_id = '{uuid4()}'; SET ROLE vf_app"
        )
        # Those of a few live rows (open invitations, live leases) stay small in any project.
        partial = {
            row["name"]
            for row in await raw.fetch(
                "SELECT c.relname AS name FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid "
                "WHERE x.indpred IS NOT NULL"
            )
        }
        for query in queries.QUERIES.values():
            named = NAMES_ONE_ROW.search(query.sql)
            if named is None or " OR " in query.sql:
                continue
            await raw.execute(f"PREPARE asked AS {query.sql}")
            nothing = ", ".join(["NULL"] * len(query.params))
            plan = await raw.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked ({nothing})")
            await raw.execute("DEALLOCATE asked")
            asked += 1
            for node in nodes(json.loads(plan)[0]["Plan"]):
                # A walk of the whole project for the one that is named.
                if node.get("Index Name") not in partial and re.search(
                    rf"\b{named['column']} = \$", node.get("Filter", "")
                ):
                    assert node.get("Index Cond", "").count(" = ") != 1, (
                        query.name,
                        node["Index Name"],
                        node["Index Cond"],
                        node["Filter"],
                    )
    finally:
        await raw.close()
    assert asked >= ONE_ROW_STATEMENTS_MIN


async def test_settling_wins_again_looks_single_rows_up(settings: Settings) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_worker")
        await ledger.found()
        await ledger.arm()
        for first in range(1, REDEMPTIONS, BATCH):
            settled = await ledger.settle(first, BATCH)
            assert (settled["outcome"], settled["inserted"]) == ("applied", BATCH)
        async with plans_of(raw) as plans:
            settled = await ledger.settle(REDEMPTIONS - 31, 64)
        assert (settled["inserted"], settled["replayed"]) == (32, 32)
        await assert_lookups_are_single_rows(raw, plans, lookups_min=64, varying=False)


async def test_what_happened_is_looked_up_by_its_number_whatever_the_statistics(
    settings: Settings,
) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await ledger.found()
        for first in range(0, REDEMPTIONS, BATCH):
            assert await ledger.redeem(first, BATCH) == ["redeemed"] * BATCH
        await raw.execute("TRUNCATE vf.outbox")
        for number in range(300):
            assert await ledger.redeem(REDEMPTIONS + number, 1) == ["redeemed"]
        await raw.execute("ANALYZE vf.redemptions; ANALYZE vf.outbox; ANALYZE vf.events")
        nothing = UUID(int=0)
        async with plans_of(raw) as plans:
            facts = await raw.fetch(
                "SELECT redeemed FROM vf.facts($1, $2, $2, true)", ledger.project, nothing
            )
        assert [row["redeemed"] for row in facts] == [1] * 300
        await assert_lookups_are_single_rows(raw, plans, lookups_min=300, varying=False)


async def test_the_check_itself_catches_a_walk_along_the_voucher(settings: Settings) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await ledger.found()
        for first in range(0, 5_000, BATCH):
            await ledger.redeem(first, BATCH)
        async with plans_of(raw) as plans:
            await raw.fetch(
                "SELECT count(*) FROM vf.redemptions WHERE voucher_id = $1 AND fingerprint = 'x' "
                "AND redeemed_at > '-infinity'",
                ledger.voucher,
            )
        with pytest.raises(AssertionError, match=r"Seq Scan|Rows Removed|Bitmap"):
            await assert_lookups_are_single_rows(raw, plans, lookups_min=1, varying=True)


async def test_reading_and_listing_walk_their_own_indexes(settings: Settings) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_app")
        await ledger.found()
        other = uuid4()
        await ledger.add_voucher(other)
        for first in range(0, REDEMPTIONS, BATCH):
            await ledger.redeem(first, BATCH)
        await ledger.redeem(0, 10, other)
        one = await raw.fetchval(
            "SELECT id FROM vf.redemptions WHERE voucher_id = $1 LIMIT 1", other
        )
        nothing = dict.fromkeys(
            ("before", "voucher_id", "campaign_id", "sale_id", "customer_id", "order_id", "status",
             "from_at", "to_at")
        )  # fmt: skip
        listing = {"project_id": ledger.project, "limit": 20, **nothing}
        await raw.execute("SET plan_cache_mode = force_custom_plan")
        expected = (
            ("redemptions.read", {"project_id": ledger.project, "id": one}, "redemptions_id"),
            ("redemptions.list", listing, "redemptions_id"),
            ("redemptions.list", {**listing, "voucher_id": other}, "redemptions_of_voucher"),
            (
                "redemptions.list",
                {**listing, "customer_id": "customer-key--000000007"},
                "redemptions_of_customer",
            ),
            (
                "redemptions.records",
                {"project_id": ledger.project, "voucher_id": other, "after": None, "limit": 5_000},
                "redemptions_of_voucher",
            ),
        )
        for name, params, index in expected:
            async with plans_of(raw) as plans:
                await ledger.call(name, **params)
            scans = [node for plan in plans for node in nodes(plan["Plan"])]
            used = {
                node["Index Name"] for node in scans if "redemptions" in node.get("Index Name", "")
            }
            assert used == {index}, (name, params, plans)


async def test_closing_a_sale_never_waits_for_wins_being_settled(settings: Settings) -> None:
    async with session(settings) as raw, session(settings) as closing:
        ledger = Ledger(raw, "vf_worker")
        await ledger.found()
        await ledger.arm()
        await raw.execute("SET lock_timeout = 500")
        lock = queries.find("flash_sales.lock_voucher")
        params = {"project_id": ledger.project, "id": ledger.sale}
        async with closing.transaction():
            await closing.fetch(lock.sql, *(params[name] for name in lock.params))
            settled = await ledger.settle(1, 100)
        assert (settled["outcome"], settled["inserted"]) == ("applied", 100)


async def test_a_win_is_listed_on_its_day_however_long_ago_its_sale_was_armed(
    settings: Settings,
) -> None:
    async with session(settings) as raw:
        ledger = Ledger(raw, "vf_worker")
        await ledger.found()
        await ledger.arm()
        await raw.execute("UPDATE vf.leases SET armed_at = '2025-01-01 00:00Z'")
        # The id of a win begins with the milliseconds of the arming.
        win = UUID(int=int(datetime(2025, 1, 1, tzinfo=UTC).timestamp() * 1000) << 80 | 1)
        await raw.execute(
            "INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, "
            "sale_id, sale_seq, idempotency_key, fingerprint, order_value_minor, discount_minor, "
            "redeemed_at) SELECT $1, $2, 1, l.size, $3, $4, $5, 1, 'k', 'f', 1, 0, "
            "'2025-03-05 12:00Z' FROM vf.leases l",
            ledger.project, ledger.lease, win, ledger.voucher, ledger.sale,
        )  # fmt: skip
        query = queries.find("redemptions.list")

        async def listed(first: int, last: int) -> list[UUID]:
            days = {
                "from_at": datetime(2025, 3, first, tzinfo=UTC),
                "to_at": datetime(2025, 3, last, tzinfo=UTC),
            }
            asked = dict.fromkeys(query.params) | days | {"project_id": ledger.project, "limit": 5}
            rows = await ledger.call("redemptions.list", **asked)
            return [row["id"] for row in rows]

        assert await listed(5, 6) == [win]
        assert await listed(4, 5) == []
        assert await listed(6, 7) == []
        await raw.execute("UPDATE vf.leases SET settled_at = '2025-03-05 12:01Z'")
        assert await listed(5, 6) == [win]
