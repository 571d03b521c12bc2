"""Every administrative write leaves exactly one entry of the audit log, and no other leaves any."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from core import ids
from tests.api.conftest import Api, Person, Project, join
from tests.api.described import Operation, operations
from tests.api.objects import one_of_each

# What has a ledger or a history of its own, or is what a shop does all day with its customers.
OF_THE_SHOP = {
    "campaigns.issue", "customers.edit", "customers.register", "flash_sales.claim",
    "gift_cards.adjust", "gift_cards.bulk", "gift_cards.create", "gift_cards.redeem",
    "gift_cards.redeem_by_code", "gift_cards.refund", "gift_cards.top_up", "gift_cards.transfer",
    "holds.create", "holds.extend", "holds.release", "redemptions.claim_receipt",
    "redemptions.create", "redemptions.rollback", "referral_programs.code", "referrals.approve",
    "referrals.attribute", "referrals.convert", "referrals.invite", "referrals.reject",
    "referrals.reverse", "vouchers.bulk", "vouchers.create", "vouchers.import", "vouchers.redeem",
    "vouchers.rollback",
}  # fmt: skip
# What changes nothing: questions, and what was told once and is told again.
QUESTIONS = {
    "fraud.rules.dry_run", "gift_cards.lookup", "qualifications.create", "validations.create",
    "vouchers.validate", "webhooks.deliveries.replay", "webhooks.replay", "webhooks.test",
    "webhooks.test_all",
}  # fmt: skip
# What a loss of Redis's data comes before: tests/core/test_receipts.py.
AFTER_A_LOSS = {"flash_sales.release"}


class Office:
    """Does administrative things one by one, and looks what the log says of each."""

    def __init__(
        self, api: Api, every: dict[str, Operation], client: httpx.Client, own: dict[str, str]
    ) -> None:
        self.api, self.every, self.client, self.own = api, every, client, own
        self.entries: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}

    def do(
        self, operation: str, body: Any = None, *, by: Person | None = None, **names: str
    ) -> Any:
        one = self.every[operation]
        names = {name: self.own.get(one.kind_of(name), "x") for name in one.names} | names
        headers = {"X-Request-Id": f"audit-{operation}"}
        http = self.client if by is None else by.http
        answer = http.request(
            one.method, one.at(**names), json=one.body if body is None else body,
            headers=headers if by is None else headers | by.writes(),
        )  # fmt: skip
        if answer.status_code >= 300:
            self.refused[operation] = answer.text
        rows = self.api.rows(
            "select action from vf.audit_log where request_id = $1", f"audit-{operation}"
        )
        self.entries[operation] = [row[0] for row in rows]
        return {"id": "x", **answer.json()}


@pytest.fixture(scope="module")
def office(api: Api, client: httpx.Client) -> Office:
    every = {one.id: one for one in operations(client.get("/openapi.json").json())}
    return Office(api, every, client, one_of_each(api, client, "AUDITED"))


def administrative(every: dict[str, Operation]) -> set[str]:
    writes = {
        one.id for one in every.values()
        # A person's own log-ins and passwords are of no project.
        if one.method != "GET" and not one.id.startswith("auth.")
    }  # fmt: skip
    assert writes >= OF_THE_SHOP | QUESTIONS | AFTER_A_LOSS
    return writes - OF_THE_SHOP - QUESTIONS - AFTER_A_LOSS


def steer_what_sells(office: Office) -> None:
    # Not while a sale is out, as one is later.
    office.do("customers.erase")
    rules = {"discount_value": 5}
    office.do("campaigns.create", {"name": "d", "type": "DISCOUNT", "rules": rules})
    office.do("campaigns.edit", {"name": "e"})
    office.do("campaigns.pause")
    office.do("campaigns.resume")
    office.do("campaigns.activate", id=office.do("campaigns.clone")["id"])
    office.do("campaigns.end")
    office.do("vouchers.edit", {"metadata": {"a": 1}})
    office.do("vouchers.disable")
    office.do("vouchers.enable")
    office.do("flash_sales.create")
    office.do("flash_sales.edit", {"stock": 2})
    office.do("flash_sales.claim_secret")
    office.do("flash_sales.open")
    office.do("flash_sales.pause")
    office.do("flash_sales.close")
    office.do("segments.create", office.every["segments.create"].body | {"name": "audited"})
    office.do("segments.edit", {"name": "t"})
    office.do("segments.change_members", {"add": ["somebody"]})
    office.do("referral_programs.create", {
        "name": "q", "referrer_reward": {"type": "gift_card", "amount": 5},
    })  # fmt: skip
    office.do("referral_programs.pause")
    office.do("referral_programs.resume")
    office.do("referral_programs.end")
    office.do("gift_cards.edit", {"metadata": {"a": 1}})
    office.do("gift_cards.disable")
    office.do("gift_cards.enable")
    office.do("gift_cards.new_code")
    cards = office.client.post("/v1/gift-cards/bulk", json={"amount": 5, "count": 2}).json()
    office.do("gift_cards.new_codes", batch=cards["batch_id"])
    many = office.client.post("/v1/vouchers/bulk", json={"count": 60_000, "discount_value": 5})
    office.do("batches.cancel", id=many.json()["id"])
    office.do("batches.resume", id=many.json()["id"])
    office.client.post(f"/v1/batches/{many.json()['id']}/cancel")


def watch_for_fraud(office: Office, project: Project) -> None:
    alerts = office.api.rows(
        "insert into vf.fraud_alerts (project_id, id, rule, subject_kind, subject, window_at, at, "
        "score, observed, expected, reasons, action) select $1, gen_random_uuid(), "
        "'customer_velocity', 'customer', n::text, now(), now(), 50, 9, 3, '[]', 'alert' "
        "from generate_series(1, 3) n returning id", project.id,
    )  # fmt: skip
    for decision, row in zip(("acknowledge", "confirm", "dismiss"), alerts, strict=True):
        office.do(f"fraud.alerts.{decision}", id=ids.format_id("fra", row[0]))
    block = office.do("fraud.blocks.create", {"kind": "customer", "value": "mallory"})
    office.do("fraud.blocks.remove", id=block["id"])
    office.do("fraud.rules.set", {"rules": {"customer_velocity": {"enabled": False}}})


def run_the_house(office: Office, anna: Person, ben: Person) -> None:
    office.do("webhooks.create")
    office.do("webhooks.edit", {"status": "disabled"})
    office.do("webhooks.rotate")
    office.do("webhooks.remove")
    office.do("api_keys.create")
    office.do("api_keys.rotate")
    office.do("api_keys.revoke")
    office.do("billing.change_plan", {"plan": "scale"})
    join(office.api, ben, anna, "analyst")
    here = {"id": anna.project}
    office.do("projects.update", {"name": "other"}, by=anna, **here)
    asked = office.do("invitations.create", {"email": "c@example.com", "role": "admin"},
                      by=anna, **here)  # fmt: skip
    office.do("invitations.revoke", by=anna, invitation=asked["id"], **here)
    office.do("members.update", by=anna, user=str(ben.me["id"]), **here)
    office.do("members.remove", by=anna, user=str(ben.me["id"]), **here)
    office.do("projects.archive", by=anna, **here)
    office.do("projects.restore", by=anna, **here)
    office.do("projects.delete", by=anna, **here)
    office.do("projects.create", by=anna)


def test_every_administrative_write_leaves_one_entry(
    office: Office, project: Project, sign_up: Callable[..., Person]
) -> None:
    steer_what_sells(office)
    watch_for_fraud(office, project)
    run_the_house(office, sign_up(), sign_up())

    assert office.refused == {}
    assert set(office.entries) == administrative(office.every)
    assert {name: found for name, found in office.entries.items() if len(found) != 1} == {}
    assert len({action for [action] in office.entries.values()}) > 40


def test_nothing_else_leaves_any(office: Office) -> None:
    [[before]] = office.api.rows("select count(*) from vf.audit_log")
    for name in sorted(OF_THE_SHOP | QUESTIONS):
        one = office.every[name]
        names = {each: office.own.get(one.kind_of(each), "x") for each in one.names}
        office.client.request(one.method, one.at(**names), json=one.body)
    [[after]] = office.api.rows("select count(*) from vf.audit_log")
    assert after == before
