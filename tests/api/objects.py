"""One of everything a project can have, made through the API."""

import asyncio
from typing import Any

import httpx

from core import db, deliveries, ids
from tests.api.conftest import Api


def publish(api: Api) -> None:
    """Publish all events that wait, as the worker does; those that webhooks are told of, too."""

    async def run() -> None:
        database = await db.Database.open(api.settings.database_dsn("worker"), size_max=2)
        while await deliveries.publish(database):
            pass
        await database.close()

    asyncio.run(run())


def one_of_each(api: Api, client: httpx.Client, mark: str) -> dict[str, str]:
    """Make an object of each kind; returns how addresses name it, by the noun in the address.

    `mark` is in the names that one may choose. Of kinds that are made by themselves (deliveries,
    events) the newest.
    """

    def made(path: str, body: dict[str, Any], name: str = "id") -> str:
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 201, 202), (path, answer.text)
        return str(answer.json()[name])

    def newest(path: str) -> str:
        return str(client.get(path).json()["data"][0]["id"])

    def alert() -> str:
        project_id, alert_id = ids.parse_id("prj", newest("/v1/projects")), ids.new()
        api.rows(
            "insert into vf.fraud_alerts (project_id, id, rule, subject_kind, subject, window_at, "
            "at, score, observed, expected, reasons, action) values ($1, $2, 'customer_velocity', "
            "'customer', $3, now(), now(), 50, 8, 8, '[]', 'alert')",
            project_id, alert_id, f"shopper{mark}",
        )  # fmt: skip
        return ids.format_id("fra", alert_id)

    hook = made("/v1/webhooks", {"url": "https://hooks.example/in"})
    code = made("/v1/vouchers", {"code": f"CODE{mark}", "discount_value": 5}, "code")
    publish(api)
    order = {"order_value": 10, "customer_id": f"shopper{mark}"}
    program = made(
        "/v1/referral-programs",
        {"name": "p", "referrer_reward": {"type": "gift_card", "amount": 5}},
    )
    referral_code = made(f"/v1/referral-programs/{program}/codes", {"customer_id": "anna"}, "code")
    return {
        "vouchers": code,
        "redemptions": made(f"/v1/vouchers/{code}/redeem", order, "redemption_id"),
        "holds": made("/v1/holds", {"code": code, **order}),
        "campaigns": made(
            "/v1/campaigns", {"name": "c", "type": "DISCOUNT", "rules": {"discount_value": 5}}
        ),
        "batches": made("/v1/vouchers/bulk", {"count": 2, "discount_value": 5}, "batch_id"),
        "customers": made("/v1/customers", {"customer_id": f"shopper{mark}"}, "customer_id"),
        "segments": made("/v1/segments", {"name": "s", "customer_ids": [f"shopper{mark}"]}),
        "flash-sales": made(
            "/v1/flash-sales", {"name": "f", "code": "SALE", "discount_value": 5, "stock": 1}
        ),
        "gift-cards": made("/v1/gift-cards", {"amount": 10}),
        "referral-programs": program,
        "referrals": made(
            "/v1/referrals/attribute", {"code": referral_code, "customer_id": "ben"}
        ),
        "webhooks": hook,
        "deliveries": newest(f"/v1/webhooks/{hook}/deliveries"),
        "events": newest("/v1/events"),
        "blocks": made("/v1/fraud/blocks", {"kind": "customer", "value": f"blocked{mark}"}),
        "alerts": alert(),
        "api-keys": made("/v1/api-keys", {"type": "SECRET"}),
        "projects": newest("/v1/projects"),
    }  # fmt: skip
