"""What happens is told once, in commit order, to the project it happened in."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from core import campaigns, db, events, ids
from core.gift_cards import ledger
from tests.api.conftest import Api


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    done = client.post(path, json=body)
    assert done.status_code in (200, 201), done.text
    return dict(done.json())


def as_worker(api: Api, work: Any) -> None:
    async def run() -> None:
        database = await db.Database.open(api.settings.database_dsn("worker"), size_max=2)
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())


def publish(api: Api) -> None:
    """Publish all that waits, as the worker does."""

    async def work(database: db.Database) -> None:
        left = 1
        while left:
            async with database.transaction(None) as conn:
                left = (await events.publish(conn)).row_count

    as_worker(api, work)


def told(client: httpx.Client, *, page: int = 100, **query: Any) -> list[dict[str, Any]]:
    """Return every event of a project, oldest first, read in pages."""
    found: list[dict[str, Any]] = []
    while True:
        after = {"starting_after": found[-1]["id"]} if found else {}
        listed = client.get("/v1/events", params={"limit": page, **query, **after})
        assert listed.status_code == 200, listed.text
        found += listed.json()["data"]
        if not listed.json()["has_more"]:
            return found[::-1]


def happen_to_vouchers(client: httpx.Client, api: Api) -> list[tuple[str, str]]:
    made = post(client, "/v1/vouchers", code="TOLD", discount_value=20)
    voucher_id = made["id"]
    client.patch("/v1/vouchers/TOLD", json={"metadata": {"a": 1}})
    for switch in ("disable", "disable", "enable"):
        post(client, "/v1/vouchers/TOLD/" + switch)
    order = {"customer_id": "anna", "order_id": "o-1", "order_value": 89.99}
    redeemed = post(client, "/v1/vouchers/TOLD/redeem", **order)["redemption_id"]
    post(client, f"/v1/redemptions/{redeemed}/rollback", reason="returned")
    bulk = post_bulk(client, count=3)
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    late = post(client, "/v1/vouchers", discount_value=5, expires_at=soon.isoformat())
    return [
        ("voucher.created", voucher_id), ("voucher.updated", voucher_id),
        ("voucher.disabled", voucher_id), ("voucher.enabled", voucher_id),
        ("voucher.redeemed", voucher_id), ("redemption.rolled_back", redeemed),
        ("batch.completed", bulk), ("voucher.created", late["id"]),
        ("voucher.expired", late["id"]),
    ]  # fmt: skip


def post_bulk(client: httpx.Client, count: int) -> str:
    done = client.post("/v1/vouchers/bulk", json={"count": count, "discount_value": 5})
    assert done.status_code in (200, 201), done.text
    return str(done.json().get("id") or done.json()["batch_id"])


def happen_to_campaigns(client: httpx.Client, api: Api) -> list[tuple[str, str]]:
    rules = {"discount_type": "AMOUNT", "discount_value": 4}
    budgets = {"budgets": [{"of": "discount", "max": 4}]}
    made = post(client, "/v1/campaigns", name="Told", rules=rules | budgets)["id"]
    for move in ("pause", "resume"):
        post(client, f"/v1/campaigns/{made}/{move}")
    code = post(client, "/v1/vouchers", campaign_id=made)
    post(client, f"/v1/vouchers/{code['code']}/redeem", order_value=10)
    client.patch(f"/v1/campaigns/{made}", json={"rules": {"max_redemptions": 50}})
    issuing = post(client, "/v1/campaigns", name="Each", rules=rules, kind="join_once")["id"]
    issued = post(client, f"/v1/campaigns/{issuing}/codes", customer_id="anna")
    issued_id = client.get(f"/v1/vouchers/{issued['code']}").json()["id"]
    post(client, f"/v1/campaigns/{made}/end")
    return [
        ("campaign.created", made), ("campaign.started", made), ("campaign.paused", made),
        ("campaign.resumed", made), ("voucher.created", code["id"]),
        ("campaign.budget_reached", made), ("voucher.redeemed", code["id"]),
        ("campaign.edited", made), ("campaign.created", issuing), ("campaign.started", issuing),
        ("voucher.issued", issued_id), ("campaign.ended", made),
    ]  # fmt: skip


def happen_to_cards(client: httpx.Client, api: Api) -> list[tuple[str, str]]:
    card = post(client, "/v1/gift-cards", amount=50)["id"]
    other = post(client, "/v1/gift-cards", amount=1)["id"]
    for move, amount in (("top-up", 10), ("redeem", 25), ("refund", 5), ("adjust", -1)):
        post(client, f"/v1/gift-cards/{card}/{move}", amount=amount, reference=f"r-{move}",
             **({"reason": "by hand"} if move == "adjust" else {}))  # fmt: skip
    post(client, f"/v1/gift-cards/{card}/transfer", to=other, reference="r-transfer")
    due = post(client, "/v1/gift-cards", amount=3)["id"]
    api.rows("update vf.gift_cards set expires_at = now() where id = $1", ids.parse_id("gft", due))
    as_worker(api, ledger.sweep)
    return [
        ("gift_card.issued", card), ("gift_card.issued", other), ("gift_card.topped_up", card),
        ("gift_card.redeemed", card), ("gift_card.refunded", card), ("gift_card.adjusted", card),
        ("gift_card.transferred", card), ("gift_card.issued", due), ("gift_card.expired", due),
    ]  # fmt: skip


def happen_to_referrals(client: httpx.Client, api: Api) -> list[tuple[str, str]]:
    terms = {"name": "Friends", "conversion": "sign_up",
             "referrer_reward": {"type": "gift_card", "amount": 10}}  # fmt: skip
    program = post(client, "/v1/referral-programs", **terms)["id"]
    code = post(client, f"/v1/referral-programs/{program}/codes", customer_id="ref")["code"]
    invited = post(client, "/v1/referrals/invite", program_id=program, customer_id="ref",
                   identifiers={"email": "a@b.example"})  # fmt: skip
    one = post(client, "/v1/referrals/attribute", code=code, customer_id="new")["id"]
    refused = client.post("/v1/referrals/attribute", json={"code": code, "customer_id": "ref"})
    self_referred = refused.json()["referral_id"]
    done = post(client, "/v1/referrals/convert", customer_id="new")
    card = done["rewards"][0]["gift_card_id"]
    post(client, f"/v1/referrals/{one}/reverse", reason="sent back")
    return [
        ("referral.invited", invited["id"]), ("referral.attributed", one),
        ("referral.rejected", self_referred), ("referral.converted", one),
        ("gift_card.issued", card), ("referral.rewarded", one), ("gift_card.adjusted", card),
        ("referral.reversed", one),
    ]  # fmt: skip


def happen_to_sales(client: httpx.Client, api: Api) -> list[tuple[str, str]]:
    made = post(client, "/v1/flash-sales", name="Drop", code="DROPTOLD", discount_value=50,
                stock=1, durability="strict")["id"]  # fmt: skip
    for move in ("open", "open", "pause", "pause", "open"):
        post(client, f"/v1/flash-sales/{made}/{move}")
    won = post(client, f"/v1/flash-sales/{made}/claim", customer_id="anna", order_value=10)
    voucher_id = client.get("/v1/vouchers/DROPTOLD").json()["id"]
    assert won["status"] == "redeemed"
    for _ in range(2):
        as_worker(api, events.tell_what_time_brings)
    for _ in range(2):
        post(client, f"/v1/flash-sales/{made}/close")
    return [
        ("flash_sale.opened", made), ("flash_sale.paused", made), ("flash_sale.opened", made),
        ("voucher.redeemed", voucher_id), ("flash_sale.sold_out", made),
        ("flash_sale.closed", made), ("flash_sale.settled", made),
    ]  # fmt: skip


def test_each_type_is_told_once_of_what_it_names_in_the_order_it_happened(
    api: Api, make_project: Any
) -> None:
    seen: set[str] = set()
    for happen in (
        happen_to_vouchers, happen_to_campaigns, happen_to_cards, happen_to_referrals,
        happen_to_sales,
    ):  # fmt: skip
        with api.client(make_project().secret_key) as client:
            expected = happen(client, api)
            if happen is happen_to_vouchers:
                wait_for_expiry(api)
            publish(api)
            found = [(one["type"], one["subject"]) for one in told(client)]
            assert sorted(found) == sorted(expected)
            by_subject = {subject for _, subject in expected}
            for subject in by_subject:
                order = [name for name, whose in found if whose == subject]
                assert order == [name for name, whose in expected if whose == subject]
            seen |= {name for name, _ in found}
            for one in told(client, page=3):
                again = client.get(f"/v1/events/{one['id']}")
                assert (again.status_code, again.json()) == (200, one)
    # Numbers are written off where Redis lost data: tests/core/test_receipts.py tells of that.
    # Fraud: tests/api/test_fraud.py. The last two are for webhooks: tests/api/test_webhooks.py.
    elsewhere = {"flash_sale.released", "fraud.alert", "voucher.validated", "webhook.test"}
    assert seen | elsewhere == set(events.TYPES) and not seen & elsewhere


def wait_for_expiry(api: Api) -> None:
    async def work(database: db.Database) -> None:
        for _ in range(30):
            await events.tell_what_time_brings(database)
            await asyncio.sleep(0.05)

    as_worker(api, work)


def test_a_redemptions_event_says_what_was_answered_and_never_changes(
    api: Api, client: httpx.Client
) -> None:
    post(client, "/v1/vouchers", code="SAYS", discount_value=20)
    order = {"customer_id": "anna", "order_id": "o-77", "order_value": 89.99}
    answered = post(client, "/v1/vouchers/SAYS/redeem", **order)
    publish(api)
    (one,) = [e for e in told(client, type="voucher.redeemed") if e["data"]["code"] == "SAYS"]
    data = one["data"]
    assert {name: data[name] for name in order} == order
    assert data["redemption_id"] == answered["redemption_id"]
    assert (data["discount_applied"], data["currency"]) == (18.00, "EUR")
    post(client, f"/v1/redemptions/{answered['redemption_id']}/rollback")
    assert client.get(f"/v1/events/{one['id']}").json() == one


def test_a_commit_of_many_redemptions_is_one_row_and_an_event_each(
    api: Api, make_project: Any
) -> None:
    with api.client(make_project().secret_key) as client:
        post(client, "/v1/vouchers", code="CROWD", discount_value=20)
        bodies = [{"customer_id": f"c-{n}", "order_value": 10} for n in range(120)]
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda b: post(client, "/v1/vouchers/CROWD/redeem", **b),
                                    bodies))  # fmt: skip
        publish(api)
        found = told(client, page=7, type="voucher.redeemed")
        assert [one["data"]["seq"] for one in found] == list(range(1, 121))
        assert {one["data"]["redemption_id"] for one in found} == {
            answer["redemption_id"] for answer in answers
        }
        assert len({one["id"] for one in found}) == 120
        last = client.get("/v1/events", params={"limit": 1}).json()["data"][0]
        beyond = ids.parse_id("evt", last["id"])
        assert beyond is not None
        unknown = ids.format_number("evt", beyond.int + 1)
        assert client.get(f"/v1/events/{unknown}").status_code == 404


def test_another_project_sees_none_of_it(api: Api, client: httpx.Client, make_project: Any) -> None:
    made = post(client, "/v1/vouchers", discount_value=20)
    publish(api)
    (one,) = [e for e in told(client) if e["subject"] == made["id"]]
    with api.client(make_project().secret_key) as other:
        assert told(other) == []
        assert other.get(f"/v1/events/{one['id']}").status_code == 404
        assert other.get("/v1/events", params={"starting_after": one["id"]}).json()["data"] == []


@pytest.mark.parametrize("query", [{"type": "voucher"}, {"starting_after": "evt_1"}, {"limit": 0}])
def test_what_cannot_be_asked_is_named(client: httpx.Client, query: dict[str, Any]) -> None:
    refused = client.get("/v1/events", params=query)
    assert (refused.status_code, refused.json()["field"]) == (400, next(iter(query)))


def test_events_are_published_as_they_were_committed_and_none_is_passed_over(
    api: Api, make_project: Any
) -> None:
    """Two writers under one lock: the one that got its transaction first commits last."""
    project = make_project()

    async def write() -> None:
        first, second = [await asyncpg.connect(api.owner_url) for _ in range(2)]
        insert = (
            "insert into vf.outbox (project_id, event, subject) "
            "values ($1, $2, '00000000-0000-0000-0000-000000000001')"
        )
        early = first.transaction()
        await early.start()
        await first.fetchval("select pg_current_xact_id()")
        await second.execute(insert, project.id, "campaign.paused")
        await asyncio.to_thread(publish, api)
        await first.execute(insert, project.id, "campaign.resumed")
        await second.execute(insert, project.id, "campaign.ended")
        await asyncio.to_thread(publish, api)
        await early.commit()
        await asyncio.to_thread(publish, api)
        await first.close()
        await second.close()

    asyncio.run(write())
    with api.client(project.secret_key) as client:
        names = [one["type"] for one in told(client)]
    # The one that was open meanwhile committed last, and comes last.
    assert names == ["campaign.paused", "campaign.ended", "campaign.resumed"]
    assert api.rows("select count(*) from vf.outbox")[0][0] == 0


def test_a_commit_whose_numbers_have_gaps_is_told_by_them(api: Api, make_project: Any) -> None:
    project = make_project()
    with api.client(project.secret_key) as client:
        made = post(client, "/v1/vouchers", code="GAPS", discount_value=20)
        for n in range(4):
            post(client, "/v1/vouchers/GAPS/redeem", customer_id=f"c{n}", order_value=10)
        publish(api)
        voucher_id = ids.parse_id("vch", made["id"])
        for n in (5, 6):
            post(client, "/v1/vouchers/GAPS/redeem", customer_id=f"c{n}", order_value=10)
            api.rows(
                "update vf.vouchers set next_number = next_number + 1 where id = $1", voucher_id
            )
        api.rows("delete from vf.outbox")
        api.rows(
            "insert into vf.outbox (project_id, event, subject, data) "
            "values ($1, 'voucher.redeemed', $2, '{\"first\": 5, \"count\": 2, \"seqs\": [5, 7]}')",
            project.id, voucher_id,
        )  # fmt: skip
        publish(api)
        numbers = [one["data"]["seq"] for one in told(client, type="voucher.redeemed")]
    assert numbers == [1, 2, 3, 4, 5, 7]


def test_events_are_forgotten_after_thirty_days_and_not_before(
    api: Api, client: httpx.Client
) -> None:
    def aged(days: float) -> str:
        at_ms = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000)
        project_id = api.rows("select id from vf.projects limit 1")[0][0]
        row = UUID(int=at_ms << 80)
        api.rows(
            "insert into vf.events (project_id, id, type, subject, data, at, count) "
            "values ($1, $2, 'voucher.updated', $2, '{}', now(), 1)", project_id, row,
        )  # fmt: skip
        return str(row)

    old, young = aged(30.01), aged(29.99)
    as_worker(api, events.forget)
    left = {str(row[0]) for row in api.rows("select id from vf.events")}
    assert old not in left and young in left


def test_campaigns_that_start_by_the_clock_are_told_by_the_worker(
    api: Api, make_project: Any
) -> None:
    with api.client(make_project().secret_key) as client:
        start = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
        made = post(client, "/v1/campaigns", name="Soon",
                    rules={"discount_value": 5, "starts_at": start})  # fmt: skip

        async def keep(database: db.Database) -> None:
            await asyncio.sleep(0.3)
            await campaigns.keep_time(database)

        as_worker(api, keep)
        publish(api)
        found = [(one["type"], one["subject"]) for one in told(client)]
    assert found == [("campaign.created", made["id"]), ("campaign.started", made["id"])]
