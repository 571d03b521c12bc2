"""A project with one of everything in it, and the page of each: what is looked at, and drawn."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from playwright.sync_api import Page

from bench.product import Product

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TERMS = {"discount_type": "PERCENT", "discount_value": 20}
MONTH = f"{datetime.now(UTC):%Y-%m}"


def fill(product: Product) -> dict[str, str]:
    """Make one of everything by the API; returns its pages below the project."""
    must = product.must
    campaign = must(
        "POST", "/v1/campaigns",
        {
            "name": "Summer sale", "type": "DISCOUNT",
            "rules": {
                "discount_value": 15, "max_redemptions": 500,
                "conditions": {"fact": "order.value", "is": "at_least", "value": 50},
                "budgets": [{"of": "discount", "max": 1000}],
            },
        },
    )  # fmt: skip
    must("POST", "/v1/vouchers", {"code": "SUMMER", "campaign_id": campaign["id"]})
    voucher = must(
        "POST", "/v1/vouchers",
        {**TERMS, "code": "SAVE20", "max_redemptions": 500, "metadata": {"channel": HOSTILE}},
    )  # fmt: skip
    redeemed: dict[str, Any] = {}
    for n in range(12):
        body = {"customer_id": f"cust_{n}", "order_value": 40 + 7.5 * n, "order_id": f"A-{n}"}
        redeemed = must("POST", "/v1/vouchers/SAVE20/redeem", body)
    batch = must("POST", "/v1/vouchers/bulk", {**TERMS, "count": 30})
    sale = product.open_sale(name="Drop 1", code="DROP1", stock=200, **TERMS)
    for n in range(20):
        must("POST", f"/v1/flash-sales/{sale['id']}/claim", {"order_value": 20 + n})
    card = must(
        "POST", "/v1/gift-cards", {"amount": 50, "recipient": {"name": HOSTILE}}
    )  # fmt: skip
    must("POST", f"/v1/gift-cards/{card['id']}/redeem", {"amount": 12.5, "order_id": "A-1"})
    must(
        "POST", "/v1/customers", {"customer_id": "cust_1", "name": HOSTILE, "email": "a@b.example"}
    )
    program = must(
        "POST", "/v1/referral-programs",
        {"name": "Friends", "referrer_reward": {"type": "gift_card", "amount": 10}},
    )  # fmt: skip
    code = must("POST", f"/v1/referral-programs/{program['id']}/codes", {"customer_id": "cust_1"})
    referral = must(
        "POST", "/v1/referrals/attribute", {"code": code["code"], "customer_id": "cust_new"}
    )
    # Nobody is referred any more, so nothing is sent there.
    address = {"url": "https://shop.example/hook", "events": ["referral.*"]}
    hook = must("POST", "/v1/webhooks", address)
    return {
        **around(product),
        "webhooks": "/webhooks", "webhook": f"/webhooks/{hook['id']}",
        "home": "", "vouchers": "/vouchers", "voucher": f"/vouchers/{voucher['id']}",
        "vouchers-bulk": f"/vouchers/bulk?do=extend&id={voucher['id']}",
        "customer-erase": "/customers/erase?id=cust_1",
        "voucher-new": "/vouchers/new", "voucher-missed": "/vouchers/find?code=NOBODY",
        "batches": "/batches", "batch": f"/batches/{batch['batch_id']}",
        "batch-new": "/batches/new",
        "campaigns": "/campaigns", "campaign": f"/campaigns/{campaign['id']}",
        "campaign-new": "/campaigns/new", "campaign-edit": f"/campaigns/{campaign['id']}/edit",
        "redemptions": "/redemptions", "redemption": f"/redemptions/{redeemed['redemption_id']}",
        "sales": "/flash-sales", "sale": f"/flash-sales/{sale['id']}",
        "sale-new": "/flash-sales/new", "cards": "/gift-cards",
        "card": f"/gift-cards/{card['id']}", "card-new": "/gift-cards/new",
        "liability": "/gift-cards/liability", "referrals": "/referrals",
        "referral": f"/referrals/{referral['id']}", "referral-new": "/referrals/new",
        "customers": "/customers", "customer": "/customers/person?id=cust_1",
        "customer-new": "/customers/new", "team": "/team", "developers": "/developers",
        "audit-log": "/audit-log",
        "empty": "/gift-cards?status=disabled", "missing": "/nothing",
    }  # fmt: skip


def around(product: Product) -> dict[str, str]:
    """Make groups of customers; return the pages around the work, the person's own among them."""
    must = product.must
    group = must("POST", "/v1/segments", {"name": HOSTILE, "customer_ids": ["cust_1", HOSTILE]})
    new = {"fact": "customer.is_new", "is": "equals", "value": True}
    rule = must("POST", "/v1/segments", {"name": "New here", "rule": new})
    event = first_event(product, "voucher.redeemed")
    for n in range(9):
        body = {"customer_id": "fast", "order_value": 20 + n}
        must("POST", "/v1/vouchers/SAVE20/redeem", body)
    must("POST", "/v1/fraud/blocks", {"kind": "customer", "value": HOSTILE, "reason": HOSTILE})
    alert = first_of(product, "/v1/fraud/alerts?limit=1")
    return {
        "first-steps": "/first-steps",
        "settings": "/settings",
        "billing": "/billing",
        "billing-plan": "/billing/plan?plan=growth",
        "invoice": f"/billing/invoices/{MONTH}",
        "events": "/events",
        "events-of-a-kind": "/events?type=campaign.created",
        "event": f"/events/{event}",
        "segments": "/segments",
        "segment": f"/segments/{group['id']}",
        "segment-rule": f"/segments/{rule['id']}",
        "segment-new": "/segments/new",
        "segment-edit": f"/segments/{rule['id']}/edit",
        "approvals": "/approvals",
        "reports": "/reports",
        "fraud": "/fraud",
        "fraud-alert": f"/fraud/alerts/{alert}",
        "fraud-rules": "/fraud/rules",
        "fraud-blocks": "/fraud/blocks",
        "requests": "/requests",
        "requests-failed": "/requests?status=failed",
        "account": "/dashboard/account",
        "projects": "/dashboard/projects",
        "project-new": "/dashboard/projects/new",
    }


def first_event(product: Product, kind: str) -> str:
    """Return the id of the newest event of a kind; it is published moments after its change."""
    return first_of(product, f"/v1/events?type={kind}&limit=1")


def first_of(product: Product, path: str) -> str:
    """Return the id of the first of a list, which comes by itself within some seconds."""
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        told = product.must("GET", path)["data"]
        if told:
            return str(told[0]["id"])
        time.sleep(0.1)
    raise AssertionError(f"nothing at {path} within 20 s")


def at(root: str, address: str) -> str:
    """Return the whole address of a page, which is below the project or the person's own."""
    own = address.startswith("/dashboard/")
    return root.partition("/dashboard/")[0] + address if own else root + address


def log_in(page: Page, product: Product) -> str:
    """Log the demo user in; returns the address of the demo project."""
    assert product.data_dir is not None
    demo = json.loads((product.data_dir / "demo.json").read_text())
    page.goto(f"{product.url}/dashboard")
    page.get_by_label("E-mail").fill(demo["dashboard_email"])
    page.get_by_label("Password").fill(demo["dashboard_password"])
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/dashboard/prj_*")
    # Where there are several projects a person comes to the first of them.
    return f"{product.url}/dashboard/{demo['project_id']}"
