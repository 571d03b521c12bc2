"""A deleted project: its sale is closed, what was won is settled, and then nothing is left."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from core import deletions, projects, sessions
from core.errors import AlreadyExists, Forbidden, Refusal
from core.redemptions import Redemption
from tests.core.conftest import House

pytestmark = pytest.mark.anyio

# One row of everything that refers to something else, as its own keys allow it.
FURNITURE = """
insert into vf.segments (project_id, id, name) values ($1, $2, 'S');
insert into vf.segment_members (project_id, segment_id, customer_id) values ($1, $2, 'c');
insert into vf.customers (project_id, id, customer_id) values ($1, $2, 'c');
insert into vf.campaign_members (project_id, campaign_id, customer_id, voucher_id)
select v.project_id, c.id, 'c', v.id from vf.vouchers v, vf.campaigns c where v.project_id = $1
 and c.project_id = $1 order by v.id limit 1;
insert into vf.holds (project_id, id, voucher_id, discount_minor, detail, expires_at)
select project_id, $2, id, 0, '{}', now() + interval '1 hour' from vf.vouchers
 where project_id = $1 order by id limit 1;
insert into vf.gift_cards (project_id, id, code_digest, last_four, currency, balance_minor)
values ($1, $2, sha256('x'), 'abcd', 'EUR', 500);
insert into vf.gift_card_transactions (project_id, id, card_id, kind, amount_minor, asked_minor,
    currency, reference, fingerprint) values ($1, $2, $2, 'issue', 500, 500, 'EUR', 'r', 'f');
insert into vf.gift_card_entries (project_id, transaction_id, side, account, amount_minor)
values ($1, $2, 'debit', 'sales', 500);
insert into vf.gift_card_entries (project_id, transaction_id, side, account, amount_minor, card_id,
    number, balance_minor) values ($1, $2, 'credit', 'liability', 500, $2, 1, 500);
insert into vf.gift_card_payments (project_id, redemption_id, transaction_id) values ($1, $2, $2);
insert into vf.referral_programs (project_id, id, name, conversion, rules)
values ($1, $2, 'R', 'sign_up', '{}');
insert into vf.referral_codes (project_id, id, program_id, customer_id, code, code_norm)
values ($1, $2, $2, 'c', 'R', 'R');
insert into vf.referrals (project_id, id, program_id, code_id, referrer_id, status)
values ($1, $2, $2, $2, 'c', 'invited');
insert into vf.referral_rewards (project_id, referral_id, side, customer_id, kind, status,
    amount_minor, period, gift_card_id, due_at)
values ($1, $2, 'referrer', 'c', 'gift_card', 'issued', 500, '', $2, now());
insert into vf.referral_history (project_id, referral_id, event) values ($1, $2, 'invited');
insert into vf.audit_log (project_id, id, actor, action, target)
values ($1, $2, 'key', 'changed', 't');
"""


async def furnish(house: House, project_id: UUID) -> None:
    for statement in FURNITURE.split(";\n"):
        if statement.strip():
            # One id for all, so that they refer to each other.
            said = statement.replace("$1", f"'{project_id}'").replace("$2", f"'{project_id}'")
            await house.owner.execute(said)


async def rows_of(house: House, project_id: UUID) -> dict[str, int]:
    tables = await house.owner.fetch(
        "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid "
        "where c.relnamespace = 'vf'::regnamespace and c.relkind = 'r' "
        "and a.attname = 'project_id'"
    )
    found = {}
    for (name,) in tables:
        sql = f"select count(*) from {name} where project_id = $1"
        if count := await house.owner.fetchval(sql, project_id):
            found[name] = count
    return found


async def become(house: House, status: str, role: sessions.Role = "owner") -> object:
    async with house.services.database.transaction(house.project_id) as conn:
        return await projects.set_status(conn, house.caller, role, status)


async def swept_until_gone(house: House) -> int:
    for sweeps in range(1, 200):
        await deletions.sweep(house.worker_db, house.clock)
        if not await house.value(
            "select count(*) from vf.projects where id = $1", house.project_id
        ):
            return sweeps
        await asyncio.sleep(0.05)
    raise AssertionError(f"still there: {await rows_of(house, house.project_id)}")


async def test_a_deleted_projects_wins_are_settled_before_all_of_it_goes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "GRACE", timedelta(0))
    monkeypatch.setattr(deletions, "ROWS_MAX", 7)
    campaign = await house.campaign()
    await house.voucher("PLAIN", campaign_id=campaign, per_customer_limit=1)
    sale = await house.sale("DROP", 100)
    await house.open_sale(sale)
    await furnish(house, house.project_id)
    for n in range(5):
        assert isinstance(await house.redeem("PLAIN", f"p{n}"), Redemption)
    await house.stop_reconciler()
    won = [await house.claim(sale, f"c{n}") for n in range(20)]
    assert all(isinstance(one, Redemption) for one in won)

    assert isinstance(await become(house, "deleting"), projects.Project)
    await deletions.sweep(house.worker_db, house.clock)
    await deletions.sweep(house.worker_db, house.clock)

    # The wins are in Redis alone: nothing is purged, and nothing more is won.
    assert await house.value("select count(*) from vf.redemptions") == 5
    late = await house.claim(sale, "late")
    assert isinstance(late, Refusal) and late.code == "ended"
    house.restart_reconciler()
    await house.until("select count(*) from vf.leases where state <> 'settled'", 0)
    assert await house.value("select count(*) from vf.redemptions") in (0, 25)
    await swept_until_gone(house)
    assert await rows_of(house, house.project_id) == {}
    assert await house.value("select id from vf.deleted_projects") == house.project_id


async def test_an_archived_project_is_refused_while_a_sale_is_live_and_comes_back_whole(
    house: House,
) -> None:
    sale = await house.sale("DROP", 10)
    refused = await become(house, "archived")
    assert isinstance(refused, Refusal) and refused.code == "sale_live"
    await house.clock.close(house.project_id, sale)

    archived = await become(house, "archived")
    restored = await become(house, "active")

    assert isinstance(archived, projects.Project) and archived.status == "archived"
    assert isinstance(restored, projects.Project)
    assert (restored.status, restored.archived_at) == ("active", None)
    await deletions.sweep(house.worker_db, house.clock)
    assert await house.value("select count(*) from vf.vouchers") == 1


async def test_only_an_owner_puts_a_project_away_and_a_deletion_is_final(house: House) -> None:
    for role in ("admin", "analyst", None):
        with pytest.raises(Forbidden):
            await become(house, "deleting", role)  # type: ignore[arg-type]
    await become(house, "deleting")
    assert isinstance(await become(house, "deleting"), projects.Project)
    with pytest.raises(AlreadyExists):
        await become(house, "active")
    assert await house.value("select status from vf.projects") == "deleting"
    actions = "select array_agg(action order by number) from vf.audit_log"
    assert await house.value(actions) == ["project.deleted"]


async def test_nothing_is_purged_within_the_grace(house: House) -> None:
    await house.voucher("A")
    await become(house, "deleting")

    await deletions.sweep(house.worker_db, house.clock)

    assert await house.value("select count(*) from vf.vouchers") == 1
