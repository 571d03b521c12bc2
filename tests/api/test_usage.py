"""Plans over HTTP: what is counted, where the free plan stops, what others pay."""

import asyncio
import csv
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from core import billing
from core.db import Database
from core.rules import plans
from tests.api.conftest import Api, Project
from tests.rules import reference_bill

WRITTEN_WITHIN_S = 3.0
_numbers = iter(range(10**6))


def used_of(client: httpx.Client) -> tuple[int, int]:
    usage = client.get("/v1/usage").json()
    return usage["api_calls"]["used"], usage["redemptions"]["used"]


def settled(client: httpx.Client) -> tuple[int, int]:
    """Return what is written down once nothing is on its way; each look is a call, too."""
    time.sleep(WRITTEN_WITHIN_S)
    return used_of(client)


def voucher(client: httpx.Client) -> str:
    code = f"PLAN{next(_numbers)}"
    assert client.post("/v1/vouchers", json={"code": code, "discount_value": 5}).status_code == 201
    return code


def set_calls(api: Api, project: Project, calls: int) -> None:
    api.rows(
        "insert into vf.usage_hours values ($1, date_trunc('month', now(), 'UTC'), $2) "
        "on conflict (project_id, hour) do update set call_count = $2",
        project.id,
        calls,
    )


@pytest.fixture
def starter(api: Api, make_project: Callable[..., Project]) -> Iterator[httpx.Client]:
    with api.client(make_project(plan="starter").secret_key) as client:
        yield client


def test_calls_are_counted_by_how_they_are_answered(api: Api, starter: httpx.Client) -> None:
    code = voucher(starter)  # 1
    for status, method, path, body in [
        (200, "GET", "/v1/vouchers", None),
        (404, "GET", "/v1/vouchers/NOBODY", None),
        (400, "POST", "/v1/vouchers", {"discount_value": "x"}),
        (200, "POST", f"/v1/vouchers/{code}/redeem", {}),
        (400, "POST", f"/v1/vouchers/{code}/redeem", {"nonsense": 1}),
        (405, "DELETE", "/v1/vouchers", None),  # nobody was asked who calls
    ]:
        assert starter.request(method, path, json=body).status_code == status, path

    assert settled(starter) == (6, 1)
    # Each look is one more.
    assert settled(starter) == (7, 1)


def test_what_the_compiled_doors_answer_is_counted_too(starter: httpx.Client) -> None:
    code = voucher(starter)
    for n in range(60):
        answer = starter.post(f"/v1/vouchers/{code}/redeem", json={"order_value": 1})
        assert answer.status_code == 200, n

    assert settled(starter) == (61, 60)


def test_redemptions_are_the_ledgers(api: Api, starter: httpx.Client) -> None:
    code = voucher(starter)
    for _ in range(2):
        won = starter.post(
            f"/v1/vouchers/{code}/redeem", json={}, headers={"Idempotency-Key": "one"}
        )
    assert starter.post(
        f"/v1/redemptions/{won.json()['redemption_id']}/rollback", json={}
    ).status_code == 200  # fmt: skip

    assert used_of(starter)[1] == 1


def test_the_free_plan_stops_at_its_calls_and_says_what_to_do(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="free")
    set_calls(api, project, 990)
    with api.client(project.secret_key) as client:
        statuses = [client.get("/v1/vouchers").status_code for _ in range(30)]
        assert statuses == [200] * 10 + [402] * 20
        stopped = client.get("/v1/vouchers").json()
        assert stopped["code"] == "plan_limit"
        assert "POST /v1/billing/plan" in stopped["detail"]
        assert (stopped["because"]["limit"], stopped["because"]["quota"]) == ("api_calls", 1_000)

        # The way on stays open.
        assert client.get("/v1/usage").json()["api_calls"]["included"] == 1_000
        changed = client.post("/v1/billing/plan", json={"plan": "starter"})
        assert (changed.status_code, changed.json()["included"]["api_calls"]) == (200, 10_000)
        time.sleep(1)
        assert client.get("/v1/vouchers").status_code == 200


def test_the_free_plan_stops_at_its_redemptions_however_many_ask(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="free")
    quota = plans.PLANS["free"].redemptions
    assert quota == 500
    with api.client(project.secret_key) as client:
        code = voucher(client)
        seed = (
            "insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, "
            "idempotency_key, fingerprint, order_value_minor, discount_minor, redeemed_at) "
            "select v.project_id, v.id, n, gen_random_uuid(), v.id, n::text, '', 0, 0, "
            "clock_timestamp() from vf.vouchers v, generate_series(1, 490) n "
            "where v.project_id = $1 and v.code = $2"
        )
        api.rows(seed, project.id, code)
        api.rows(
            "update vf.vouchers set next_number = 491, direct_count = 490 where project_id = $1",
            project.id,
        )
        statuses: list[int] = []

        def redeem() -> None:
            with api.client(project.secret_key) as own:
                answer = own.post(f"/v1/vouchers/{code}/redeem", json={})
                statuses.append(answer.status_code)

        threads = [threading.Thread(target=redeem) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(statuses) == [200] * 10 + [402] * 14
        both = client.post("/v1/redemptions", json={"codes": [code]})
        assert (both.status_code, both.json()["because"]["limit"]) == (402, "redemptions")
        assert used_of(client)[1] == 500


def test_what_was_decided_before_is_told_again_where_the_free_plan_has_ended(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="free")
    made = {"code": "ONCE", "discount_value": 5}
    key, other = {"Idempotency-Key": "first"}, {"Idempotency-Key": "other"}
    with api.client(project.secret_key) as client:
        voucher = client.post("/v1/vouchers", json=made, headers=key)
        won = client.post("/v1/vouchers/ONCE/redeem", json={"order_value": 9}, headers=key)
        order = {"codes": ["ONCE"]}
        both = client.post("/v1/redemptions", json=order, headers={"Idempotency-Key": "both"})
        assert (won.status_code, both.status_code) == (200, 200), both.text
        api.rows(
            "insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, "
            "idempotency_key, fingerprint, order_value_minor, discount_minor, redeemed_at) "
            "select v.project_id, v.id, n + 2, gen_random_uuid(), v.id, n::text, '', 0, 0, "
            "clock_timestamp() from vf.vouchers v, generate_series(1, 498) n "
            "where v.project_id = $1", project.id,
        )  # fmt: skip
        for calls in (0, 1_000):
            # First the redemptions have come to their end, then the calls as well.
            if calls:
                set_calls(api, project, calls)
                time.sleep(1.2)
            again = client.post("/v1/vouchers/ONCE/redeem", json={"order_value": 9}, headers=key)
            assert (again.status_code, again.json()) == (200, won.json())
            again = client.post("/v1/redemptions", json=order, headers={"Idempotency-Key": "both"})
            assert (again.status_code, again.json()) == (200, both.json())
            again = client.post("/v1/vouchers", json=made, headers=key)
            assert (again.status_code, again.json()) == (201, voucher.json())
            changed = client.post("/v1/vouchers/ONCE/redeem", json={"order_value": 8}, headers=key)
            assert changed.status_code == 422
            new = client.post("/v1/vouchers/ONCE/redeem", json={"order_value": 9}, headers=other)
            assert new.status_code == 402
        assert client.post("/v1/vouchers", json=made, headers=other).status_code == 402
        assert used_of(client)[1] == 500


def test_a_lease_takes_no_more_than_the_plan_has_room_for(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project(plan="free").secret_key) as client:
        for stock, size in ((480, 480), (300, 20)):
            made = client.post(
                "/v1/flash-sales",
                json={"name": "s", "code": f"Q{stock}", "discount_value": 5, "stock": stock},
            ).json()
            assert client.post(f"/v1/flash-sales/{made['id']}/open").status_code == 200
            shown = client.get(f"/v1/flash-sales/{made['id']}").json()
            [[leased]] = api.rows(
                "select leased_count from vf.flash_sales s join vf.vouchers v "
                "using (project_id) where v.id = s.voucher_id and v.code = $1".replace(
                    "leased_count", "s.leased_count"
                ),
                f"Q{stock}",
            )
            assert (shown["status"], leased) == ("open", size)
        third = client.post(
            "/v1/flash-sales", json={"name": "s", "code": "Q3", "discount_value": 5, "stock": 1}
        ).json()
        refused = client.post(f"/v1/flash-sales/{third['id']}/open")
        assert (refused.status_code, refused.json()["code"]) == (402, "plan_limit")
        ordinary = client.post(f"/v1/vouchers/{voucher(client)}/redeem", json={})
        assert ordinary.status_code == 402


def test_other_plans_go_on_and_pay(api: Api, make_project: Callable[..., Project]) -> None:
    project = make_project(plan="starter")
    set_calls(api, project, 11_000)
    api.rows("update vf.accounts a set created_at = '2020-01-01' from vf.projects p "
             "where p.id = $1 and a.id = p.account_id", project.id)  # fmt: skip
    with api.client(project.secret_key) as client:
        assert client.get("/v1/vouchers").status_code == 200
        plan = client.get("/v1/billing/plan").json()
        assert (plan["plan"], plan["price"]) == ("starter", 29.0)
        assert plan["overage"] == {"api_call": 0.003, "redemption": 0.005}
        month = f"{datetime.now(UTC):%Y-%m}"
        draft = client.get(f"/v1/billing/invoices/{month}").json()
        table = client.get(f"/v1/billing/invoices/{month}", headers={"Accept": "text/csv"})

    over = next(line for line in draft["lines"] if line["description"].startswith("API calls"))
    assert draft["status"] == "draft"
    assert over["quantity"] >= 1_000
    assert round(over["amount"] * 100) == (over["quantity"] * 3 + 5) // 10
    assert round(draft["total"] * 100) == 2_900 + round(over["amount"] * 100)
    rows = list(csv.reader(io.StringIO(table.text)))
    assert [row[2] for row in rows[1:]][-1] == "Total EUR"
    assert len(rows) == 2 + len(draft["lines"])


def finalize(api: Api, now: datetime) -> None:
    """Write invoices down as the worker does, twice."""

    async def run() -> None:
        database = await Database.open(api.settings.database_dsn("worker"), size_max=1)
        try:
            for _ in range(2):
                await billing.finalize(database, billing.ByHand(), now)
        finally:
            await database.close()

    asyncio.run(run())


def test_a_month_that_is_over_is_billed_once_from_what_happened(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="growth")
    now = datetime.now(UTC)
    last = plans.month_of(plans.month_of(now) - plans.HOUR)
    api.rows(
        "update vf.accounts a set created_at = '2020-01-01' from vf.projects p "
        "where p.id = $1 and a.id = p.account_id",
        project.id,
    )
    with api.client(project.secret_key) as client:
        code = voucher(client)
    # Raw events: redemptions and calls spread over the month.
    api.rows(
        "insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, idempotency_key, "
        "fingerprint, order_value_minor, discount_minor, redeemed_at) "
        "select v.project_id, v.id, n, gen_random_uuid(), v.id, n::text, '', 0, 0, "
        "$3::timestamptz + n * interval '2 minutes' from vf.vouchers v, "
        "generate_series(1, 12345) n where v.project_id = $1 and v.code = $2",
        project.id, code, last,
    )  # fmt: skip
    api.rows(
        "insert into vf.usage_hours select $1, $2::timestamptz + n * interval '1 hour', 100 + n "
        "from generate_series(0, 600) n",
        project.id,
        last,
    )
    later = plans.next_month(last) + billing.FINAL_AFTER

    finalize(api, later)
    calls = sum(100 + n for n in range(601))
    expected_minor = 7_900 + ((calls - 50_000) * 3 + 5) // 10 + ((12_345 - 10_000) * 5 + 5) // 10
    stored = api.rows(
        "select i.total_minor, i.lines from vf.invoices i join vf.projects p using (account_id) "
        "where p.id = $1",
        project.id,
    )
    with api.client(project.secret_key) as client:
        shown = client.get(f"/v1/billing/invoices/{last:%Y-%m}").json()

    assert [row[0] for row in stored] == [expected_minor]
    assert shown["status"] == "final"
    assert round(shown["total"] * 100) == expected_minor
    assert sum(round(line["amount"] * 100) for line in shown["lines"]) == expected_minor
    assert shown["reference"].startswith("acc_")


def test_an_account_has_no_more_projects_than_its_plan_has_room_for(api: Api) -> None:
    [[account]] = api.rows(
        "insert into vf.accounts (id, name, plan) values (gen_random_uuid(), 'a', 'starter') "
        "returning id"
    )
    add = "insert into vf.projects (id, account_id, name) values (gen_random_uuid(), $1, 'p')"
    for _ in range(2):
        api.rows(add, account)
    with pytest.raises(Exception, match="room for 2 projects"):
        api.rows(add, account)
    [[count]] = api.rows("select count(*) from vf.projects where account_id = $1", account)
    assert count == 2


def test_a_plan_with_less_room_than_there_are_projects_is_refused(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="growth")
    [[account]] = api.rows("select account_id from vf.projects where id = $1", project.id)
    for _ in range(2):
        api.rows(
            "insert into vf.projects (id, account_id, name) values (gen_random_uuid(), $1, 'p')",
            account,
        )
    with api.client(project.secret_key) as client:
        refused = client.post("/v1/billing/plan", json={"plan": "starter"})
        assert (refused.status_code, refused.json()["because"]["limit"]) == (402, "projects")
        assert client.get("/v1/billing/plan").json()["plan"] == "growth"
        assert client.post("/v1/billing/plan", json={"plan": "scale"}).status_code == 200
    changes = api.rows("select before, after from vf.plan_changes where account_id = $1", account)
    assert [tuple(row) for row in changes] == [("growth", "scale")]


def test_the_database_and_the_rule_book_mean_the_same_plans(api: Api) -> None:
    for plan in plans.PLANS.values():
        [row] = api.rows("select vf.redemptions_until_stop($1), vf.projects_of_plan($1)", plan.name)
        assert tuple(row) == (plan.redemptions if plan.stops else None, plan.projects)


def test_months_with_changes_of_plan_are_billed_to_the_cent_of_their_raw_events(
    api: Api, make_project: Callable[..., Project]
) -> None:
    """Months drawn anew each time: events in the ledger, plans changed within hours."""
    for year in (2021, 2022):
        month = datetime(year, random.randint(1, 12), 1, tzinfo=UTC)
        minutes = int((plans.next_month(month) - month).total_seconds() // 60)
        names = [random.choice(sorted(plans.PLANS)) for _ in range(5)]
        ats = sorted(random.sample(range(minutes), 4))
        steps = [(month + timedelta(minutes=at), p) for at, p in zip(ats, names[1:], strict=True)]
        project = make_project(plan=names[-1])
        [[account]] = api.rows(
            "update vf.accounts a set created_at = $2 from vf.projects p "
            "where p.id = $1 and a.id = p.account_id returning a.id",
            project.id, datetime(2020, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        for before, (at, after) in zip(names, steps, strict=False):
            api.rows(
                "insert into vf.plan_changes (account_id, at, before, after) "
                "values ($1, $2, $3, $4)", account, at, before, after,
            )  # fmt: skip
        with api.client(project.secret_key) as client:
            voucher(client)
        api.rows(
            "insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, "
            "idempotency_key, fingerprint, order_value_minor, discount_minor, redeemed_at) "
            "select v.project_id, v.id, n, gen_random_uuid(), v.id, n::text, '', 0, 0, "
            "$2::timestamptz + random() * $3 * interval '1 minute' from vf.vouchers v, "
            "generate_series(1, 4000) n where v.project_id = $1",
            project.id, month, minutes,
        )  # fmt: skip
        api.rows(
            "insert into vf.usage_hours select $1, $2::timestamptz + n * interval '1 hour', "
            "(random() * 200)::bigint from generate_series(0, $3) n",
            project.id, month, minutes // 60 - 1,
        )  # fmt: skip
        raw = api.rows(
            "select redeemed_at, 0::bigint, 1::bigint from vf.redemptions where project_id = $1 "
            "union all select hour, call_count, 0 from vf.usage_hours "
            "where project_id = $1 and hour < $2",
            project.id, plans.next_month(month),
        )  # fmt: skip

        finalize(api, plans.next_month(month) + billing.FINAL_AFTER)

        [[total]] = api.rows("select total_minor from vf.invoices where account_id = $1", account)
        events = [(at.astimezone(UTC), calls, redeemed) for at, calls, redeemed in raw]
        assert len(events) >= 4_000
        assert total == reference_bill.total_minor(month, names[0], steps, events), (month, steps)
