"""What the ledger refuses to hold, whoever writes: the keys and checks behind the promise."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core.db import queries
from core.settings import Settings

pytestmark = pytest.mark.anyio

SIZE = 10


class Ledger:
    """A voucher whose units are all out on one lease, written to as the reconciler writes."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.project, self.voucher, self.sale, self.lease = (uuid4() for _ in range(4))
        self.last_id = "0-0"
        self.entries = 0

    async def found(self) -> None:
        account = uuid4()
        await self.raw.execute(
            "INSERT INTO vf.accounts (id, name, plan) VALUES ($1, 'a', 'scale')", account
        )
        await self.raw.execute(
            "INSERT INTO vf.projects (id, account_id, name) VALUES ($1, $2, 'p')",
            self.project, account,
        )  # fmt: skip
        await self.raw.execute(
            "INSERT INTO vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp, "
            "max_redemptions) VALUES ($1, $2, 'CODE', 'CODE', 'PERCENT', 1000, $3)",
            self.project, self.voucher, SIZE,
        )  # fmt: skip
        await self.raw.execute(
            "INSERT INTO vf.flash_sales (project_id, id, voucher_id, name, stock) "
            "VALUES ($1, $2, $3, 's', $4)",
            self.project, self.sale, self.voucher, SIZE,
        )  # fmt: skip
        armed = await self.raw.fetchrow(
            "SELECT * FROM vf.arm_lease($1, $2, $3, 1, 'run', 200000)",
            self.project, self.sale, self.lease,
        )  # fmt: skip
        assert (armed["outcome"], armed["size"]) == ("armed", SIZE)

    async def settle(
        self,
        *seqs: int,
        key: str = "key",
        after: str | None = None,
        run_id: str = "run",
        judged: int | None = None,
    ) -> Any:
        """Write wins of the next stream entry; `after` is where the writer believes to be.

        `judged`: the last judgement that the writer knew of when it read; else all.
        """
        if judged is None:
            judged = await self.raw.fetchval("SELECT judged FROM vf.leases")
        query = queries.find("reconciler.settle_wins")
        self.entries += 1
        count = len(seqs)
        given: dict[str, Any] = {
            "project_id": self.project,
            "lease_id": self.lease,
            "run_id": run_id,
            "judged": judged,
            "from_id": self.last_id if after is None else after,
            "to_id": f"{self.entries}-0",
            "seqs": list(seqs),
            "ids": [UUID(int=seq) for seq in seqs],
            "keys": [f"{key}-{seq}" for seq in seqs],
            "fingerprints": [b"f"] * count,
            "customers": [None] * count,
            "order_values": [1000] * count,
            "discounts": [100] * count,
            "order_ids": [None] * count,
            "metadata": [None] * count,
            "remaining": [SIZE - seq for seq in seqs],
            "at_ms": [1_750_000_000_000] * count,
        }
        # What a later schema asks for besides is empty here.
        row = await self.raw.fetchrow(query.sql, *(given.get(name, []) for name in query.params))
        if row["outcome"] == "applied":
            self.last_id = given["to_id"]
        return row

    async def end(self, open_to: int) -> Any:
        await self.raw.execute("UPDATE vf.leases SET state = 'draining'")
        return await self.raw.fetchrow(
            "SELECT * FROM vf.settle_lease($1, $2, 'draining', 'run', $3)",
            self.project,
            self.lease,
            open_to,
        )

    async def seqs(self) -> list[int]:
        rows = await self.raw.fetch("SELECT seq FROM vf.redemptions ORDER BY seq")
        return [row["seq"] for row in rows]

    async def quarantine(self) -> list[tuple[int, str]]:
        rows = await self.raw.fetch("SELECT seq, reason FROM vf.quarantine ORDER BY seq")
        return [tuple(row) for row in rows]


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    try:
        made = Ledger(raw)
        await made.found()
        yield made
    finally:
        await raw.close()


async def test_a_win_written_after_its_lease_was_settled_finds_it_closed(ledger: Ledger) -> None:
    await ledger.settle(1, 2, 3)
    ended = await ledger.end(3)
    assert (ended["outcome"], ended["open_to"], ended["returned"]) == ("settled", 3, SIZE - 3)

    late = await ledger.settle(3, 4)

    assert (late["outcome"], late["inserted"]) == ("closed", 0)
    assert await ledger.seqs() == [1, 2, 3]
    counts = "SELECT leased_count, direct_count, authority FROM vf.vouchers"
    assert tuple(await ledger.raw.fetchrow(counts)) == (3, 0, "pg")


async def test_a_win_above_what_is_still_accepted_goes_to_quarantine(ledger: Ledger) -> None:
    await ledger.raw.execute("UPDATE vf.leases SET open_to = 2, state = 'fenced'")

    late = await ledger.settle(1, 2, 3, 4)

    assert (late["outcome"], late["inserted"], late["quarantined"]) == ("applied", 2, 2)
    assert await ledger.quarantine() == [(3, "closed"), (4, "closed")]
    assert await ledger.seqs() == [1, 2]


async def test_a_settled_lease_is_never_settled_again_with_a_higher_number(ledger: Ledger) -> None:
    await ledger.settle(1)
    await ledger.end(1)
    query = "SELECT * FROM vf.settle_lease($1, $2, 'settled', NULL, $3)"
    again = await ledger.raw.fetchrow(query, ledger.project, ledger.lease, SIZE)

    assert again["outcome"] == "not_found"
    row = await ledger.raw.fetchrow("SELECT open_to, returned, burned FROM vf.leases")
    assert tuple(row) == (1, SIZE - 1, 0)


async def test_one_number_is_never_two_customers(ledger: Ledger) -> None:
    await ledger.settle(1, key="first")

    second = await ledger.settle(1, key="second")

    assert (second["inserted"], second["quarantined"]) == (0, 1)
    assert await ledger.quarantine() == [(1, "conflict")]
    assert await ledger.raw.fetchval("SELECT idempotency_key FROM vf.redemptions") == "first-1"


async def test_a_second_reconciler_at_an_old_offset_writes_nothing(ledger: Ledger) -> None:
    await ledger.settle(1, 2)

    stale = await ledger.settle(1, 2, 3, after="0-0")

    assert (stale["outcome"], stale["inserted"]) == ("stale", 0)
    assert await ledger.seqs() == [1, 2]
    assert await ledger.quarantine() == []


async def test_wins_that_are_read_again_change_nothing_and_are_counted(ledger: Ledger) -> None:
    await ledger.settle(1, 2)

    again = await ledger.settle(1, 2, 3)

    assert (again["inserted"], again["replayed"], again["quarantined"]) == (1, 2, 0)
    assert await ledger.seqs() == [1, 2, 3]


async def test_each_win_is_told_and_counted_once_however_often_it_is_read(ledger: Ledger) -> None:
    await ledger.settle(1, 2)
    await ledger.settle(1, 2, 3)
    await ledger.settle(5)
    await ledger.settle(3, 4, 6)
    waiting = await ledger.raw.fetchval(
        "SELECT sum(redeemed) FROM vf.facts(NULL, $1, $2, true)",
        UUID(int=0), UUID(int=2**128 - 1),
    )  # fmt: skip
    assert waiting == 6
    published = await ledger.raw.fetchval("SELECT row_count FROM vf.publish_events(100, 1000)")
    rows = await ledger.raw.fetch(
        "SELECT first_seq, last_seq, count, seqs FROM vf.events WHERE first_seq > 0 ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        (1, 2, 2, None), (3, 3, 1, None), (5, 5, 1, None), (4, 6, 2, [4, 6]),
    ]  # fmt: skip
    assert published >= len(rows)


async def test_no_hand_can_write_a_win_beyond_its_grant(ledger: Ledger) -> None:
    await ledger.settle(1)
    copy = (
        "INSERT INTO vf.redemptions SELECT (jsonb_populate_record(r, "
        "jsonb_build_object('seq', $1::int, 'id', gen_random_uuid(), 'idempotency_key', $2::text, "
        "'granted_size', $3::int))).* FROM vf.redemptions r WHERE r.seq = 1"
    )
    for seq, granted, constraint in (
        (SIZE + 1, SIZE, "redemptions_within_grant"),
        (SIZE + 1, SIZE + 1, "redemptions_grant"),
        (2, None, "redemptions_source"),
        (1, SIZE, "redemptions_pkey"),
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
            await ledger.raw.execute(copy, seq, f"key-{constraint}", granted)
        assert refused.value.constraint_name == constraint
    assert await ledger.seqs() == [1]


async def test_a_win_stays_with_its_grant_and_the_grant_with_its_wins(ledger: Ledger) -> None:
    await ledger.settle(1)
    for sql in (
        "UPDATE vf.redemptions SET granted_size = granted_size + 1",
        "UPDATE vf.redemptions SET lease_id = gen_random_uuid()",
        "UPDATE vf.lease_grants SET size = size + 1",
        "DELETE FROM vf.lease_grants",
    ):
        with pytest.raises(asyncpg.ForeignKeyViolationError) as refused:
            await ledger.raw.execute(sql)
        assert refused.value.constraint_name == "redemptions_grant", sql
    assert await ledger.raw.fetchval("SELECT array_agg(size) FROM vf.lease_grants") == [SIZE]
    assert await ledger.raw.fetchval("SELECT granted_size FROM vf.redemptions") == SIZE


async def test_no_count_can_pass_its_limit(ledger: Ledger) -> None:
    for table, column, constraint in (
        ("vouchers", "direct_count", "vouchers_never_over"),
        ("flash_sales", "sold_count", "flash_sales_never_over"),
    ):
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await ledger.raw.execute(f"UPDATE vf.{table} SET {column} = {column} + 1")
        assert refused.value.constraint_name == constraint


async def test_a_redemption_has_a_voucher_of_its_project_and_stays_with_it(ledger: Ledger) -> None:
    await ledger.settle(1)
    raw, other = ledger.raw, uuid4()
    await raw.execute(
        "INSERT INTO vf.projects (id, account_id, name) "
        "SELECT $1, account_id, 'q' FROM vf.projects",
        other,
    )
    copy = (
        "INSERT INTO vf.redemptions SELECT (jsonb_populate_record(r, jsonb_build_object("
        "'project_id', $1::uuid, 'lease_id', $2::uuid, 'voucher_id', $2::uuid, 'seq', 2, "
        "'id', gen_random_uuid(), 'granted_size', NULL, 'idempotency_key', 'k2'))).* "
        "FROM vf.redemptions r WHERE r.seq = 1"
    )
    moved = "SET voucher_id = gen_random_uuid() WHERE seq = 1"
    for sql, args in (
        (copy, [ledger.project, uuid4()]),
        (copy, [other, ledger.voucher]),
        (f"UPDATE vf.redemptions {moved}", []),
        ("UPDATE vf.redemptions SET project_id = $1 WHERE seq = 1", [other]),
        ("DELETE FROM vf.vouchers WHERE id = $1", [ledger.voucher]),
        ("UPDATE vf.vouchers SET id = gen_random_uuid() WHERE id = $1", [ledger.voucher]),
    ):
        with pytest.raises(asyncpg.ForeignKeyViolationError) as refused:
            await raw.execute(sql, *args)
        assert refused.value.constraint_name == "redemptions_voucher", sql
    assert await ledger.seqs() == [1]
    # What names the columns and changes nothing is nobody's harm, and an unused voucher may go.
    await raw.execute("UPDATE vf.redemptions SET voucher_id = voucher_id")
    unused = uuid4()
    await raw.execute(
        "INSERT INTO vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp) "
        "VALUES ($1, $2, 'U', 'U', 'PERCENT', 1)",
        ledger.project, unused,
    )  # fmt: skip
    assert await raw.execute("DELETE FROM vf.vouchers WHERE id = $1", unused) == "DELETE 1"
