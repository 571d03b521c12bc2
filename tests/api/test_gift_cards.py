"""A gift card pays what it holds, once for each reference, and tells its code to nobody twice."""

import csv
import io
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core import ids, lookups
from tests.api.conftest import Api, Project

CARDS = "/v1/gift-cards"
CODE = re.compile(r"[2-9A-HJKMNP-Z]{4}(-[2-9A-HJKMNP-Z]{4}){3}")


def make(client: httpx.Client, amount: Any = 50, **members: Any) -> dict[str, Any]:
    answer = client.post(CARDS, json={"amount": amount, **members})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def move(client: httpx.Client, card: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
    return client.post(f"{CARDS}/{card['id']}/{verb}", json=body)


def balance(client: httpx.Client, card: dict[str, Any]) -> Any:
    return client.get(f"{CARDS}/{card['id']}").json()["balance"]


def uuid_of(public_id: str) -> str:
    found = ids.parse_id(public_id[:3], public_id)  # type: ignore[arg-type]
    assert found is not None
    return str(found)


def entries(api: Api, card: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return number, signed amount and balance after of each entry of a card, in order."""
    rows = api.rows(
        "select number, case side when 'credit' then amount_minor else -amount_minor end, "
        "balance_minor from vf.gift_card_entries where card_id = $1::uuid order by number",
        uuid_of(card["id"]),
    )
    return [tuple(row) for row in rows]


def test_a_card_is_made_with_a_code_that_only_its_own_answer_tells(
    api: Api, client: httpx.Client
) -> None:
    card = make(client, 50, recipient={"name": "Ada", "email": "ada@example.com"}, with_pin=True)
    assert CODE.fullmatch(card["code"]) and re.fullmatch("[0-9]{6}", card["pin"])
    assert (card["balance"], card["currency"], card["status"]) == (50.00, "EUR", "active")
    assert card["last_four"] == card["code"][-4:]
    again = client.get(f"{CARDS}/{card['id']}").json()
    assert (again["code"], again["pin"], again["has_pin"]) == (None, None, True)
    assert {**again, "code": card["code"], "pin": card["pin"]} == card
    assert entries(api, card) == [(1, 5000, 5000)]


def test_no_code_is_in_any_table_log_event_or_stored_answer(
    api: Api, client: httpx.Client, browser: httpx.Client
) -> None:
    keyed = {"Idempotency-Key": "codes-1"}
    made = client.post(CARDS, json={"amount": 20, "with_pin": True}, headers=keyed).json()
    own = make(client, 20, code="OLD-SHOP-77881")
    bulk = client.post(
        f"{CARDS}/bulk", json={"amount": 5, "count": 3}, headers={"Idempotency-Key": "codes-2"}
    ).json()
    fresh = client.post(f"{CARDS}/{own['id']}/new-code").json()
    paid = client.post(
        f"{CARDS}/redeem",
        json={"code": made["code"], "pin": made["pin"], "amount": 1},
        headers={"Idempotency-Key": "codes-3"},
    )
    assert paid.status_code == 200, paid.text
    looked_up = {"code": fresh["code"]}
    assert client.post(f"{CARDS}/lookup", json=looked_up).status_code == 200
    assert browser.post(f"{CARDS}/lookup", json=looked_up).status_code == 200
    assert client.post(f"{CARDS}/lookup", json={"code": made["code"]}).status_code == 404
    codes = [made["code"], own["code"], fresh["code"], *(one["code"] for one in bulk["cards"])]
    spellings = [form for code in codes for form in (code, code.replace("-", ""))]
    tables = api.rows("select tablename from pg_tables where schemaname = 'vf'")
    for (table,) in tables:
        text = "\n".join(str(tuple(row)) for row in api.rows(f"select t::text from vf.{table} t"))
        bodies = "\n".join(
            bytes(row[0]).decode()
            for row in (api.rows(f"select body from vf.{table}") if table.endswith("_keys")
                        and table.startswith("idem") else [])
        )  # fmt: skip
        found = [s for s in spellings if s in text.upper() or s in bodies.upper()]
        assert found == [], table
        assert f'"{made["pin"]}"' not in bodies
    assert [s for s in spellings if s in api.log_text().upper()] == []

    # The same key gets the same card again, and no code.
    again = client.post(CARDS, json={"amount": 20, "with_pin": True}, headers=keyed)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == {**made, "code": None, "pin": None}


def test_a_card_whose_answer_was_lost_gets_a_new_code_and_the_old_one_is_nobodys(
    client: httpx.Client,
) -> None:
    card = make(client)
    fresh = client.post(f"{CARDS}/{card['id']}/new-code").json()
    assert CODE.fullmatch(fresh["code"]) and fresh["code"] != card["code"]
    assert client.post(f"{CARDS}/lookup", json={"code": card["code"]}).status_code == 404
    found = client.post(f"{CARDS}/lookup", json={"code": fresh["code"].lower()}).json()
    assert (found["id"], found["balance"]) == (card["id"], 50.00)


def test_a_batch_is_made_whole_and_its_unused_cards_get_new_codes(
    api: Api, client: httpx.Client
) -> None:
    made = client.post(
        f"{CARDS}/bulk", json={"amount": 10, "count": 30, "with_pin": True},
        headers={"Accept": "text/csv"},
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(made.text)))
    batch = made.headers["x-batch-id"]
    assert len({row["code"] for row in rows}) == len({row["id"] for row in rows}) == 30
    first = rows[0]
    body = {"code": first["code"], "pin": first["pin"], "amount": 4}
    assert client.post(f"{CARDS}/redeem", json=body).json()["balance"] == 6.00
    fresh = client.post(f"{CARDS}/bulk/{batch}/new-codes").json()
    assert fresh["count"] == 29 and first["id"] not in {one["id"] for one in fresh["cards"]}
    assert client.post(f"{CARDS}/redeem", json={**body, "amount": 1}).json()["balance"] == 5.00
    other = {"code": rows[1]["code"], "pin": rows[1]["pin"]}
    assert client.post(f"{CARDS}/lookup", json=other).status_code == 404
    listed = client.get(f"{CARDS}?batch_id={batch}&limit=100").json()["data"]
    assert sum(round(card["balance"] * 100) for card in listed) == 29 * 1000 + 500


def test_a_card_pays_in_parts_and_never_more_than_it_holds(api: Api, client: httpx.Client) -> None:
    card = make(client)
    first = move(client, card, "redeem", amount=30.5, order_id="1001").json()
    assert (first["type"], first["amount"], first["change"], first["balance"]) == (
        "spend", 30.50, -30.50, 19.50,
    )  # fmt: skip
    assert (first["order_id"], first["is_partial"]) == ("1001", False)
    refused = move(client, card, "redeem", amount=19.51)
    assert (refused.status_code, refused.json()["code"]) == (409, "insufficient_balance")
    assert refused.json()["because"]["balance"] == "19.50"
    rest = move(client, card, "redeem", amount=100, allow_partial=True).json()
    assert (rest["amount"], rest["balance"], rest["is_partial"]) == (19.50, 0.00, True)
    empty = move(client, card, "redeem", amount=1, allow_partial=True)
    assert empty.json()["code"] == "insufficient_balance"
    assert entries(api, card) == [(1, 5000, 5000), (2, -3050, 1950), (3, -1950, 0)]


def test_the_same_reference_sent_20_times_at_once_debits_once(
    api: Api, client: httpx.Client
) -> None:
    card = make(client)

    def pay(_: int) -> httpx.Response:
        return move(client, card, "redeem", amount=10, reference="order-1")

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(pay, range(20)))
    assert {answer.status_code for answer in told} == {200}
    assert len({answer.text for answer in told}) == 1
    assert entries(api, card) == [(1, 5000, 5000), (2, -1000, 4000)]
    other = move(client, card, "redeem", amount=11, reference="order-1")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    second = make(client)
    other = move(client, second, "redeem", amount=10, reference="order-1")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert balance(client, second) == 50.00


def test_of_200_concurrent_redeems_of_1_on_a_card_of_50_exactly_50_succeed(
    api: Api, client: httpx.Client
) -> None:
    card = make(client)
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda _: move(client, card, "redeem", amount=1), range(200)))
    outcomes = [answer.json().get("code", "done") for answer in told]
    assert sorted(set(outcomes)) == ["done", "insufficient_balance"]
    assert outcomes.count("done") == 50
    assert balance(client, card) == 0.00
    assert entries(api, card) == [(n + 1, 5000 if n == 0 else -100, 5000 - 100 * n)
                                  for n in range(51)]  # fmt: skip


def test_a_card_made_twice_under_one_reference_is_one_card(client: httpx.Client) -> None:
    first = make(client, 15, reference="sold-77")
    second = make(client, 15, reference="sold-77")
    assert second == {**first, "code": None}
    other = client.post(CARDS, json={"amount": 16, "reference": "sold-77"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_money_goes_back_to_a_card_and_never_more_than_was_spent(client: httpx.Client) -> None:
    card = make(client)
    spent = [move(client, card, "redeem", amount=amount).json() for amount in (20, 10)]
    of_first = {"transaction_id": spent[0]["transaction_id"]}
    assert move(client, card, "refund", amount=15, **of_first).json()["balance"] == 35.00
    too_large = move(client, card, "refund", amount=5.01, **of_first)
    assert (too_large.status_code, too_large.json()["code"]) == (409, "refund_too_large")
    assert move(client, card, "refund", amount=15).json()["balance"] == 50.00
    assert move(client, card, "refund", amount=0.01).json()["code"] == "refund_too_large"
    assert balance(client, card) == 50.00


def test_balances_move_between_cards_of_one_currency(api: Api, client: httpx.Client) -> None:
    source, target = make(client, 50), make(client, 5)
    told = move(client, source, "transfer", to=target["id"], amount=12).json()
    assert (told["balance"], told["change"], told["other_card_id"]) == (38.00, -12.00, target["id"])
    told = move(client, source, "transfer", to=target["id"], reference="whole").json()
    assert (told["amount"], told["balance"], told["is_partial"]) == (38.00, 0.00, False)
    seen = client.get(f"{CARDS}/{target['id']}/transactions").json()["data"]
    assert [(one["type"], one["change"], one["balance"]) for one in seen] == [
        ("transfer", 38.00, 55.00), ("transfer", 12.00, 17.00), ("issue", 5.00, 5.00),
    ]  # fmt: skip
    assert {one["other_card_id"] for one in seen} == {source["id"], None}
    dollars = make(client, 5, currency="USD")
    refused = move(client, dollars, "transfer", to=target["id"])
    assert (refused.status_code, refused.json()["code"]) == (409, "currency_mismatch")
    assert move(client, target, "transfer", to=target["id"]).json()["field"] == "to"


def test_top_ups_adjustments_and_promotions_have_accounts_of_their_own(
    api: Api, client: httpx.Client
) -> None:
    card = make(client, 10, source="promotion")
    move(client, card, "top-up", amount=5)
    move(client, card, "top-up", amount=2, source="promotion")
    move(client, card, "adjust", amount=-3, reason="counted wrong")
    move(client, card, "adjust", amount=1)
    assert balance(client, card) == 15.00
    accounts = api.rows(
        "select e.account, sum(case e.side when 'credit' then e.amount_minor "
        "else -e.amount_minor end)::int from vf.gift_card_entries e join "
        "vf.gift_card_transactions t on t.id = e.transaction_id where t.card_id = $1::uuid "
        "group by 1 order by 1",
        uuid_of(card["id"]),
    )
    assert [tuple(row) for row in accounts] == [
        ("adjustment", 200), ("liability", 1500), ("promotion", -1200), ("sales", -500),
    ]  # fmt: skip
    assert move(client, card, "adjust", amount=-15.01).json()["code"] == "insufficient_balance"
    assert move(client, card, "adjust", amount=0).json()["field"] == "amount"


def test_a_disabled_or_expired_card_pays_nothing_and_still_takes_refunds(
    api: Api, client: httpx.Client
) -> None:
    card = make(client)
    move(client, card, "redeem", amount=10)
    assert client.post(f"{CARDS}/{card['id']}/disable").json()["status"] == "disabled"
    for verb, body in (("redeem", {"amount": 1}), ("top-up", {"amount": 1}),
                       ("transfer", {"to": make(client)["id"]})):  # fmt: skip
        assert move(client, card, verb, **body).json()["code"] == "gift_card_inactive", verb
    assert move(client, card, "refund", amount=4).json()["balance"] == 44.00
    assert client.post(f"{CARDS}/{card['id']}/enable").json()["status"] == "active"
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    assert client.patch(f"{CARDS}/{card['id']}", json=past).json()["status"] == "expired"
    assert move(client, card, "redeem", amount=1).json()["code"] == "gift_card_expired"
    assert move(client, card, "refund", amount=6).json()["balance"] == 50.00
    assert client.patch(f"{CARDS}/{card['id']}", json={"expires_at": None}).json()["status"] == (
        "active"
    )


def test_a_cards_transactions_are_paged_and_exported(client: httpx.Client) -> None:
    card = make(client, 100)
    for n in range(4):
        move(client, card, "redeem", amount=n + 1, reason="=SUM(A1)")
    first = client.get(f"{CARDS}/{card['id']}/transactions?limit=3").json()
    assert first["has_more"] and [one["amount"] for one in first["data"]] == [4, 3, 2]
    after = first["data"][-1]["transaction_id"]
    rest = client.get(f"{CARDS}/{card['id']}/transactions?starting_after={after}").json()
    assert [one["type"] for one in rest["data"]] == ["spend", "issue"] and not rest["has_more"]
    exported = client.get(f"{CARDS}/{card['id']}/transactions", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert [row["change"] for row in rows] == ["-4.00", "-3.00", "-2.00", "-1.00", "100.00"]
    assert rows[0]["reason"] == "'=SUM(A1)"


def test_ages_add_up_to_the_closing_while_money_moves(make_project: Any, api: Api) -> None:
    project: Project = make_project()
    with api.client(project.secret_key) as shop, ThreadPoolExecutor(1) as pool:
        card = make(shop)

        def top_up(_: int) -> None:
            with api.client(project.secret_key) as other:
                for _ in range(20):
                    assert move(other, card, "top-up", amount=1).status_code == 200

        moving = [pool.submit(top_up, n) for n in range(4)]
        while not all(one.done() for one in moving):
            [account] = shop.get(f"{CARDS}/liability").json()["data"]
            aged = sum(round(age["outstanding"] * 100) for age in account["ageing"])
            assert aged == round(account["closing"] * 100)
        for one in moving:
            one.result()
        assert balance(shop, card) == 130.00


def test_a_browser_learns_a_balance_and_gets_one_answer_to_everything_else(
    api: Api, client: httpx.Client, browser: httpx.Client
) -> None:
    card = make(client, 12, with_pin=True, expires_at="2090-01-01T00:00:00Z")
    given = {"code": card["code"], "pin": card["pin"]}
    assert browser.post(f"{CARDS}/lookup", json=given).json() == {
        "last_four": card["last_four"], "currency": "EUR", "balance": 12.00,
        "expires_at": "2090-01-01T00:00:00Z",
    }  # fmt: skip
    client.post(f"{CARDS}/{make(client)['id']}/disable")
    disabled = make(client)
    client.post(f"{CARDS}/{disabled['id']}/disable")
    answers = [
        browser.post(f"{CARDS}/lookup", json=body)
        for body in ({"code": "NOTHING-HERE"}, {"code": card["code"]}, {"code": disabled["code"]},
                     {"code": card["code"], "pin": "000000"})
    ]  # fmt: skip
    plain = [{k: v for k, v in a.json().items() if k != "request_id"} for a in answers]
    assert all(one == plain[0] for one in plain) and plain[0]["status"] == 404
    for path, body in ((CARDS, {"amount": 1}), (f"{CARDS}/redeem", {**given, "amount": 1}),
                       (f"{CARDS}/{card['id']}/redeem", {"amount": 1})):  # fmt: skip
        assert browser.post(path, json=body).status_code == 403, path
    assert balance(client, card) == 12.00


def test_who_guesses_codes_is_told_nothing_after_some_tries(api: Api, make_project: Any) -> None:
    project: Project = make_project()
    with api.client(project.publishable_key) as guesser, api.client(project.secret_key) as shop:
        card = make(shop)
        # A minute that ends in between would begin the count again.
        api.rows("select pg_sleep(greatest(0, extract(second from clock_timestamp()) - 50) * 1.05)")
        told = [
            guesser.post(f"{CARDS}/lookup", json={"code": f"GUESS-{n:04}"}).status_code
            for n in range(lookups.ADDRESS_FAILURES_MAX + 3)
        ]
        assert told == [404] * lookups.ADDRESS_FAILURES_MAX + [429] * 3
        right = guesser.post(f"{CARDS}/lookup", json={"code": card["code"]})
        assert (right.status_code, right.json()["code"]) == (429, "too_many_attempts")
        assert right.headers["retry-after"] == "60"
        # The shop's own server is not the guesser.
        assert shop.post(f"{CARDS}/lookup", json={"code": card["code"]}).status_code == 200
        pinned = make(shop, 5, with_pin=True)
        tries = [
            shop.post(
                f"{CARDS}/redeem", json={"code": pinned["code"], "pin": f"x{n}", "amount": 1}
            ).status_code
            for n in range(lookups.CARD_FAILURES_MAX + 1)
        ]
        assert tries == [404] * lookups.CARD_FAILURES_MAX + [429]
        assert balance(shop, pinned) == 5.00


def test_another_projects_card_is_not_there(client: httpx.Client, stranger: httpx.Client) -> None:
    card = make(client)
    assert stranger.get(f"{CARDS}/{card['id']}").status_code == 404
    assert stranger.post(f"{CARDS}/lookup", json={"code": card["code"]}).status_code == 404
    assert move(stranger, card, "redeem", amount=1).status_code == 404
    mine = make(stranger)
    assert move(stranger, mine, "transfer", to=card["id"]).status_code == 404
    # The same code may be sold in two projects, and opens another card in each.
    make(client, 10, code="TWICE-SOLD-1")
    make(stranger, 20, code="TWICE-SOLD-1")
    taken = client.post(CARDS, json={"amount": 1, "code": "twice sold 1"})
    assert (taken.status_code, taken.json()["code"]) == (409, "already_exists")


@pytest.mark.parametrize(
    ("body", "field"),
    [({"amount": 0}, "amount"), ({"amount": 1.001}, "amount"), ({"amount": -1}, "amount"),
     ({"amount": 5, "currency": "ZZZ"}, "currency"), ({"amount": 5, "code": "short"}, "code"),
     ({"amount": 5.5, "currency": "JPY"}, "amount"), ({"amount": 5, "reference": "vf:1"},
     "reference"), ({"amount": 5, "expires_at": "1999-01-01T00:00:00Z"}, "expires_at"),
     ({}, "amount")],
)  # fmt: skip
def test_a_card_that_makes_no_sense_is_refused(
    api: Api, client: httpx.Client, body: dict[str, Any], field: str
) -> None:
    before = api.row_counts()
    refused = client.post(CARDS, json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)
    assert api.row_counts() == before
