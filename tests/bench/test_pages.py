"""The big ledger that lists are timed on: its ids are the API's, and its books balance."""

import asyncio
from uuid import UUID

import asyncpg

from bench import pages
from core import ids
from core.settings import Settings

PROJECT = UUID(int=7)
FEW = pages.Rows(600, 6_000)
MANY = pages.Rows(1_000, 10_000)


def test_ids_of_filled_rows_are_written_as_the_api_writes_them() -> None:
    for number in (1, 12_345, 10_000_000):
        text = pages.public_id("rdm", number)
        parsed = ids.parse_id("rdm", text)
        assert parsed is not None
        assert pages.uuid_of(text) == parsed
        assert ids.format_id("rdm", parsed) == text


async def filled(settings: Settings) -> dict[str, object]:
    dsn = settings.database_dsn("owner")
    raw = await asyncpg.connect(dsn)
    try:
        await raw.execute(
            "INSERT INTO vf.accounts (id, name, plan) VALUES ($1, 'a', 'scale')", PROJECT
        )
        await raw.execute(
            "INSERT INTO vf.projects (id, account_id, name) VALUES ($1, $1, 'p')", PROJECT
        )
        campaigns = [UUID(int=number) for number in range(1, pages.CAMPAIGNS + 1)]
        for campaign in campaigns:
            await raw.execute(
                "INSERT INTO vf.campaigns (project_id, id, name) VALUES ($1, $2, 'c')",
                PROJECT,
                campaign,
            )
        before = {row["name"] for row in await raw.fetch(pages.statements()["indexes"])}
        await pages.fill(dsn, PROJECT, campaigns, pages.NONE, FEW)
        await pages.fill(dsn, PROJECT, campaigns, FEW, MANY)
        indexes = await raw.fetch(pages.statements()["indexes"])
        assert {row["name"] for row in indexes} == before
        return dict(
            await raw.fetchrow(
                "SELECT count(*) AS redemptions, count(DISTINCT voucher_id) AS vouchers, "
                "count(DISTINCT customer_id) AS customers, "
                "count(*) FILTER (WHERE status = 'rolled_back') AS rolled_back, "
                "min(id::text) AS first, max(id::text) AS last, "
                "(SELECT sum(direct_count) FROM vf.vouchers) AS live, "
                "(SELECT sum(direct_count) FROM vf.campaigns) AS in_campaigns, "
                "count(*) FILTER (WHERE campaign_id IS NOT NULL AND status = 'redeemed') "
                "AS campaign_rows, "
                "bool_and(seq < (SELECT v.next_number FROM vf.vouchers v WHERE v.id = voucher_id)) "
                "AS is_numbered FROM vf.redemptions"
            )
        )
    finally:
        await raw.close()


def test_a_filled_ledger_has_what_was_asked_and_its_counts_are_its_rows(settings: Settings) -> None:
    found = asyncio.run(filled(settings))
    assert found["redemptions"] == MANY.redemptions
    assert found["vouchers"] == MANY.vouchers
    assert found["rolled_back"] == pages.EXCEPTIONS
    assert found["live"] == MANY.redemptions - pages.EXCEPTIONS
    assert found["in_campaigns"] == found["campaign_rows"]
    assert found["is_numbered"]
    assert str(found["first"]) == str(pages.uuid_of(pages.public_id("rdm", 1)))
    assert str(found["last"]) == str(pages.uuid_of(pages.public_id("rdm", MANY.redemptions)))
    # Fifty each; the first part of the rows knew fewer of them.
    assert found["customers"] == MANY.redemptions // pages.A_CUSTOMER
