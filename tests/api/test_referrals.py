"""Referrals reward both sides once, believe nobody who refers themselves, and are taken back."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest

from core import ids
from tests.api.conftest import Api

PROGRAMS, REFERRALS = "/v1/referral-programs", "/v1/referrals"
_numbers = count(1)


def post(client: httpx.Client, path: str, expected: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == expected, answer.text
    return dict(answer.json())


def campaign(client: httpx.Client) -> str:
    rules = {"discount_value": 10}
    return str(post(client, "/v1/campaigns", 201, name="Thanks", rules=rules)["id"])


def program(client: httpx.Client, **members: Any) -> str:
    """Make a program that gives the referrer 10.00 on a card and the referee a voucher."""
    terms = {
        "name": "Friends", "conversion": "sign_up",
        "referrer_reward": {"type": "gift_card", "amount": 10},
        "referee_reward": {"type": "voucher", "campaign_id": campaign(client)},
        **members,
    }  # fmt: skip
    return str(post(client, PROGRAMS, 201, **terms)["id"])


def code_of(client: httpx.Client, program_id: str, customer: str, **more: Any) -> str:
    made = post(client, f"{PROGRAMS}/{program_id}/codes", customer_id=customer, **more)
    return str(made["code"])


def person() -> str:
    return f"person-{next(_numbers)}"


def pair(client: httpx.Client, program_id: str) -> tuple[str, str, dict[str, Any]]:
    """Attribute a new customer to another new one; return both and the referral."""
    referrer, referee = person(), person()
    code = code_of(client, program_id, referrer)
    told = post(client, f"{REFERRALS}/attribute", code=code, customer_id=referee)
    assert told["status"] == "attributed"
    return referrer, referee, told


def by_side(referral: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {reward["side"]: reward for reward in referral["rewards"]}


def test_the_same_customer_has_the_same_code_and_may_choose_it(client: httpx.Client) -> None:
    friends = program(client)
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: code_of(client, friends, "anna"), range(16)))
    assert len(set(told)) == 1
    vanity = code_of(client, friends, "bob", code="BOB-IS-BACK")
    assert vanity == "BOB-IS-BACK" == code_of(client, friends, "bob", code="bob-is-back")
    for customer, wished in (("carl", "bob-is-back"), ("bob", "ANOTHER")):
        refused = client.post(
            f"{PROGRAMS}/{friends}/codes", json={"customer_id": customer, "code": wished}
        )
        assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")


def test_a_conversion_rewards_both_sides_once(api: Api, client: httpx.Client) -> None:
    friends = program(client)
    referrer, referee, told = pair(client, friends)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(
            lambda _: post(client, f"{REFERRALS}/convert", customer_id=referee), range(24)
        ))  # fmt: skip
    assert all(one == done[0] for one in done)
    rewards = by_side(done[0])
    assert done[0]["status"] == "rewarded" and done[0]["id"] == told["id"]
    assert (rewards["referrer"]["status"], rewards["referrer"]["amount"]) == ("issued", 10.00)
    card = client.get(f"/v1/gift-cards/{rewards['referrer']['gift_card_id']}").json()
    assert (card["balance"], card["customer_id"], card["code"]) == (10.00, referrer, None)
    voucher = rewards["referee"]["voucher_code"]
    redeemed = {"customer_id": referee, "order_value": 50}
    assert post(client, f"/v1/vouchers/{voucher}/redeem", **redeemed)["discount_applied"] == 5.00
    made = api.rows(
        "select count(*) from vf.gift_cards where customer_id = $1", referrer
    )[0][0]  # fmt: skip
    assert made == 1
    events = [one["event"] for one in client.get(f"{REFERRALS}/{told['id']}/history").json()]
    assert events == ["attributed", "converted", "rewarded"]
    told_of = api.rows(
        "select event from vf.outbox where event like 'referral.%' and subject = $1 order by at",
        ids.parse_id("rfa", told["id"]),
    )
    assert [row[0] for row in told_of] == [f"referral.{event}" for event in events]


@pytest.mark.parametrize(
    ("own", "theirs", "shared"),
    [({"email": "Ada.Lovelace+news@Example.com"}, {"email": "adalovelace@example.com"}, ["email"]),
     ({"phone": "+43 (1) 234-567"}, {"phone": "0043 1234567"}, ["phone"]),
     ({"device": "device-one", "payment": "visa-77"},
      {"device": "device-two", "payment": "VISA-77 "}, ["payment"]),
     ({"address": "hash-1"}, {"address": "hash-1"}, ["address"])],
)  # fmt: skip
def test_nobody_refers_themselves_under_another_name(
    api: Api, client: httpx.Client, own: dict[str, str], theirs: dict[str, str], shared: list[str]
) -> None:
    friends = program(client)
    code = code_of(client, friends, person(), identifiers=own)
    referee = person()
    body = {"code": code, "customer_id": referee, "identifiers": theirs}
    refused = client.post(f"{REFERRALS}/attribute", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "self_referral"), refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["because"] == {"reason": "same_person", "shared": shared}
    again = client.post(f"{REFERRALS}/attribute", json=body)
    assert again.json()["referral_id"] == refused.json()["referral_id"]
    kept = client.get(f"{REFERRALS}/{refused.json()['referral_id']}").json()
    assert (kept["status"], kept["reason"], kept["review"]) == ("rejected", "same_person", "open")
    assert client.post(f"{REFERRALS}/convert", json={"customer_id": referee}).status_code == 404
    stored = " ".join(str(row) for row in api.rows("select t::text from vf.referrals t"))
    stored += " ".join(str(row) for row in api.rows("select t::text from vf.outbox t"))
    assert [text for text in (*own.values(), *theirs.values()) if text in stored] == []
    # It looked like one person and was a household: somebody decides.
    assert post(client, f"{REFERRALS}/{kept['id']}/approve")["status"] == "attributed"
    assert post(client, f"{REFERRALS}/convert", customer_id=referee)["status"] == "rewarded"


def test_one_and_the_same_customer_is_refused_whoever_approves_it(client: httpx.Client) -> None:
    friends = program(client)
    anna = person()
    code = code_of(client, friends, anna)
    refused = client.post(f"{REFERRALS}/attribute", json={"code": code, "customer_id": anna})
    assert (refused.status_code, refused.json()["code"]) == (409, "self_referral")
    referral = refused.json()["referral_id"]
    answer = client.post(f"{REFERRALS}/{referral}/approve")
    assert (answer.status_code, answer.json()["code"]) == (409, "self_referral")
    assert post(client, f"{REFERRALS}/{referral}/reject")["review"] == "rejected"
    assert client.post(f"{REFERRALS}/{referral}/approve").json()["code"] == "ended"


def test_a_registered_address_gives_a_person_away(client: httpx.Client) -> None:
    friends = program(client)
    anna, other = person(), person()
    post(client, "/v1/customers", customer_id=anna, email="same@example.com")
    post(client, "/v1/customers", customer_id=other, email="s.a.m.e+x@example.com")
    body = {"code": code_of(client, friends, anna), "customer_id": other}
    assert client.post(f"{REFERRALS}/attribute", json=body).json()["code"] == "self_referral"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_is_caught_where_it_would_close(client: httpx.Client, size: int) -> None:
    friends = program(client)
    people = [person() for _ in range(size)]
    codes = [code_of(client, friends, one) for one in people]
    for n in range(size - 1):
        post(client, f"{REFERRALS}/attribute", code=codes[n], customer_id=people[n + 1])
    body = {"code": codes[-1], "customer_id": people[0]}
    refused = client.post(f"{REFERRALS}/attribute", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "self_referral")
    assert refused.json()["because"] == {"reason": "ring", "ring": [*people, people[0]]}
    seen = client.get(f"{REFERRALS}/tree?customer_id={people[0]}").json()
    nodes = [(node["depth"], node["referee_id"], node["status"]) for node in seen["referrals"]]
    below = [(n, people[n], "attributed") for n in range(1, size)]
    assert nodes == [*below, (size, people[0], "rejected")]
    seen = client.get(f"{REFERRALS}/tree?customer_id={people[-1]}").json()
    assert seen["referred_by"] == people[-2::-1]


def test_two_who_refer_each_other_at_once_are_a_ring_too(client: httpx.Client) -> None:
    friends = program(client)
    for _ in range(5):
        one, other = person(), person()
        codes = {who: code_of(client, friends, who) for who in (one, other)}
        bodies = [{"code": codes[one], "customer_id": other},
                  {"code": codes[other], "customer_id": one}]  # fmt: skip
        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(lambda b: client.post(f"{REFERRALS}/attribute", json=b), bodies))
        assert sorted(answer.status_code for answer in told) == [200, 409]


def test_who_was_referred_is_not_referred_again_unless_the_last_touch_counts(
    client: httpx.Client,
) -> None:
    first, last = program(client), program(client, touch="last")
    for program_id, code in ((first, "already_attributed"), (last, None)):
        _, referee, told = pair(client, program_id)
        second = code_of(client, program_id, person())
        answer = client.post(
            f"{REFERRALS}/attribute", json={"code": second, "customer_id": referee}
        ).json()
        assert answer["code"] == (code or second)
        after = client.get(f"{REFERRALS}/{told['id']}").json()
        assert (after["status"], after["reason"]) == (
            ("attributed", None) if code else ("rejected", "replaced")
        )
        same = post(client, f"{REFERRALS}/convert", customer_id=referee, program_id=program_id)
        assert same["code"] == (told["code"] if code else second)
        # What has converted is nobody else's any more.
        third = code_of(client, program_id, person())
        refused = client.post(
            f"{REFERRALS}/attribute", json={"code": third, "customer_id": referee}
        )
        assert refused.json()["code"] == "already_attributed"


def test_a_customer_who_bought_before_is_no_new_one(client: httpx.Client) -> None:
    voucher = post(client, "/v1/vouchers", 201, discount_value=10)["code"]
    for expected in (409, 200):
        friends = program(client, new_customers_only=expected == 409)
        referee = person()
        redeemed = {"customer_id": referee, "order_value": 5}
        post(client, f"/v1/vouchers/{voucher}/redeem", **redeemed)
        body = {"code": code_of(client, friends, person()), "customer_id": referee}
        answer = client.post(f"{REFERRALS}/attribute", json=body)
        assert answer.status_code == expected
        if expected == 409:
            assert answer.json()["because"]["reason"] == "existing_customer"


def test_an_order_below_the_minimum_converts_nothing(client: httpx.Client) -> None:
    friends = program(client, conversion="first_order", min_order_value=30)
    _, referee, told = pair(client, friends)
    convert = f"{REFERRALS}/convert"
    low = client.post(convert, json={"customer_id": referee, "order_id": "1", "order_value": 29.99})
    assert (low.status_code, low.json()["code"]) == (409, "order_value_too_low")
    assert client.post(convert, json={"customer_id": referee}).json()["field"] == "order_value"
    assert client.get(f"{REFERRALS}/{told['id']}").json()["status"] == "attributed"
    done = post(client, convert, customer_id=referee, order_id="2", order_value=30)
    assert (done["status"], done["order_id"], done["order_value"]) == ("rewarded", "2", 30.00)


def test_tiers_reward_every_nth_and_from_the_nth_on(client: httpx.Client) -> None:
    tiers = [{"type": "gift_card", "amount": 15, "from": 4},
             {"type": "gift_card", "amount": 50, "every": 3}]  # fmt: skip
    friends = program(client, tiers=tiers, referee_reward=None)
    code = code_of(client, friends, person())
    amounts = []
    for _ in range(7):
        referee = person()
        post(client, f"{REFERRALS}/attribute", code=code, customer_id=referee)
        done = post(client, f"{REFERRALS}/convert", customer_id=referee)
        amounts.append(by_side(done)["referrer"]["amount"])
    assert amounts == [10, 10, 50, 15, 15, 50, 15]


def test_a_cap_holds_exactly_however_many_convert_at_once(client: httpx.Client) -> None:
    friends = program(client, cap={"count": 3, "per": "month"})
    code = code_of(client, friends, person())
    referees = [person() for _ in range(8)]
    for referee in referees:
        post(client, f"{REFERRALS}/attribute", code=code, customer_id=referee)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(
            lambda one: post(client, f"{REFERRALS}/convert", customer_id=one), referees
        ))  # fmt: skip
    statuses = [by_side(one)["referrer"]["status"] for one in done]
    assert sorted(statuses) == ["capped"] * 5 + ["issued"] * 3
    assert {by_side(one)["referee"]["status"] for one in done} == {"issued"}
    # A reward that is taken back frees a place.
    issued = next(one for one in done if by_side(one)["referrer"]["status"] == "issued")
    post(client, f"{REFERRALS}/{issued['id']}/reverse")
    late = person()
    post(client, f"{REFERRALS}/attribute", code=code, customer_id=late)
    again = post(client, f"{REFERRALS}/convert", customer_id=late)
    assert by_side(again)["referrer"]["status"] == "issued"


def test_a_rolled_back_order_takes_unspent_rewards_back_and_shows_spent_ones_as_debt(
    client: httpx.Client,
) -> None:
    friends = program(client, conversion="first_redemption")
    _, referee, told = pair(client, friends)
    welcome = post(client, "/v1/vouchers", 201, discount_value=5)["code"]
    bought = post(
        client, f"/v1/vouchers/{welcome}/redeem", customer_id=referee, order_value=80
    )["redemption_id"]  # fmt: skip
    done = post(client, f"{REFERRALS}/convert", customer_id=referee, redemption_id=bought)
    rewards = by_side(done)
    card, voucher = rewards["referrer"]["gift_card_id"], rewards["referee"]["voucher_code"]
    post(client, f"/v1/gift-cards/{card}/redeem", amount=4)
    post(client, f"/v1/redemptions/{bought}/rollback", reason="returned")
    after = client.get(f"{REFERRALS}/{told['id']}").json()
    assert (after["status"], after["reason"]) == ("reversed", "returned")
    ended = by_side(after)
    assert (ended["referrer"]["status"], ended["referrer"]["debt"]) == ("debt", 4.00)
    assert (ended["referee"]["status"], ended["referee"]["debt"]) == ("reversed", None)
    assert client.get(f"/v1/gift-cards/{card}").json()["balance"] == 0.00
    refused = client.post(f"/v1/vouchers/{voucher}/redeem", json={"order_value": 10})
    assert refused.json()["code"] == "voucher_inactive"
    again = client.post(f"{REFERRALS}/convert", json={"customer_id": referee})
    assert (again.status_code, again.json()["code"]) == (409, "not_eligible")
    assert post(client, f"{REFERRALS}/{told['id']}/reverse") == after


def test_a_redeemed_reward_voucher_is_debt_and_what_others_put_on_a_card_stays(
    client: httpx.Client,
) -> None:
    friends = program(client)
    _, referee, told = pair(client, friends)
    rewards = by_side(post(client, f"{REFERRALS}/convert", customer_id=referee))
    card, voucher = rewards["referrer"]["gift_card_id"], rewards["referee"]["voucher_code"]
    post(client, f"/v1/gift-cards/{card}/redeem", amount=10)
    post(client, f"/v1/gift-cards/{card}/top-up", amount=25)
    order = {"customer_id": referee, "order_value": 80}
    used = post(client, f"/v1/vouchers/{voucher}/redeem", **order)["redemption_id"]
    ended = by_side(post(client, f"{REFERRALS}/{told['id']}/reverse", reason="fraud"))
    assert (ended["referrer"]["status"], ended["referrer"]["debt"]) == ("debt", 10.00)
    assert (ended["referee"]["status"], ended["referee"]["debt"]) == ("debt", 8.00)
    assert client.get(f"/v1/gift-cards/{card}").json()["balance"] == 25.00
    # Its use comes back with the order, and nobody's it is.
    post(client, f"/v1/redemptions/{used}/rollback")
    refused = client.post(f"/v1/vouchers/{voucher}/redeem", json={"order_value": 80})
    assert refused.json()["code"] == "voucher_inactive"


def test_a_reward_that_a_checkout_holds_is_taken_back_too(client: httpx.Client) -> None:
    friends = program(client)
    _, referee, told = pair(client, friends)
    rewards = by_side(post(client, f"{REFERRALS}/convert", customer_id=referee))
    voucher = rewards["referee"]["voucher_code"]
    order = {"customer_id": referee, "order_value": 80}
    hold = post(client, "/v1/holds", 201, code=voucher, **order)["id"]
    ended = by_side(post(client, f"{REFERRALS}/{told['id']}/reverse"))
    assert (ended["referee"]["status"], ended["referee"]["debt"]) == ("reversed", None)
    redeem = f"/v1/vouchers/{voucher}/redeem"
    refused = client.post(redeem, json={**order, "hold_id": hold})
    assert (refused.status_code, refused.json()["code"]) == (409, "voucher_inactive")
    post(client, f"/v1/holds/{hold}/release")
    assert client.post(redeem, json=order).json()["code"] == "voucher_inactive"


def test_an_invited_friend_is_recognised_when_they_come(client: httpx.Client) -> None:
    friends = program(client)
    anna, friend = person(), person()
    known = {"email": f"{friend}@example.com"}
    invited = post(client, f"{REFERRALS}/invite", 201, program_id=friends, customer_id=anna,
                   identifiers=known)  # fmt: skip
    assert (invited["status"], invited["referee_id"]) == ("invited", None)
    came = post(client, f"{REFERRALS}/attribute", code=invited["code"], customer_id=friend,
                identifiers={"email": f"{friend}+shop@EXAMPLE.com"})  # fmt: skip
    assert (came["id"], came["status"], came["referee_id"]) == (
        invited["id"], "attributed", friend,
    )  # fmt: skip


def test_a_paused_program_attributes_and_converts_nothing(client: httpx.Client) -> None:
    friends = program(client)
    _, referee, told = pair(client, friends)
    assert post(client, f"{PROGRAMS}/{friends}/pause")["status"] == "paused"
    body = {"code": told["code"], "customer_id": person()}
    assert client.post(f"{REFERRALS}/attribute", json=body).json()["code"] == "paused"
    converting = {"customer_id": referee}
    assert client.post(f"{REFERRALS}/convert", json=converting).json()["code"] == "paused"
    post(client, f"{PROGRAMS}/{friends}/resume")
    assert post(client, f"{REFERRALS}/convert", **converting)["status"] == "rewarded"
    assert post(client, f"{PROGRAMS}/{friends}/end")["status"] == "ended"
    assert post(client, f"{PROGRAMS}/{friends}/resume")["status"] == "ended"
    assert client.post(f"{REFERRALS}/attribute", json=body).json()["code"] == "ended"


def test_a_campaign_with_one_code_for_all_is_no_reward(client: httpx.Client) -> None:
    shared = post(client, "/v1/campaigns", 201, name="All", kind="standalone", code="FOR-ALL-1",
                  rules={"discount_value": 10})["id"]  # fmt: skip
    body = {"name": "x", "referee_reward": {"type": "voucher", "campaign_id": shared}}
    refused = client.post(PROGRAMS, json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, "referee_reward.campaign_id")


def test_another_projects_referrals_are_not_there(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    friends = program(client)
    _, referee, told = pair(client, friends)
    assert stranger.get(f"{REFERRALS}/{told['id']}").status_code == 404
    assert stranger.get(f"{PROGRAMS}/{friends}").status_code == 404
    for verb, body in (("attribute", {"code": told["code"], "customer_id": "x"}),
                       ("convert", {"customer_id": referee})):  # fmt: skip
        assert stranger.post(f"{REFERRALS}/{verb}", json=body).status_code == 404
    assert stranger.get(REFERRALS).json()["data"] == []
    assert stranger.get(f"{REFERRALS}/tree?customer_id={referee}").json()["referred_by"] == []


@pytest.mark.parametrize(
    ("members", "field"),
    [({"min_order_value": 5}, "min_order_value"),
     ({"referrer_reward": {"type": "gift_card"}}, "referrer_reward.amount"),
     ({"referrer_reward": {"type": "voucher", "amount": 5}}, "referrer_reward.campaign_id"),
     ({"referee_reward": {"type": "voucher", "campaign_id": "cmp_x"}},
      "referee_reward.campaign_id"),
     ({"tiers": [{"type": "gift_card", "amount": 5}]}, "tiers[0]"),
     ({"cap": {"count": 0}}, "cap.count")],
)  # fmt: skip
def test_a_program_that_makes_no_sense_is_refused(
    client: httpx.Client, members: dict[str, Any], field: str
) -> None:
    body = {"name": "x", "conversion": "sign_up", **members}
    refused = client.post(PROGRAMS, json=body)
    assert refused.status_code in (400, 404) and refused.json()["field"] == field, refused.text
