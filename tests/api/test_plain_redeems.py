"""What the compiled doors take and answer by themselves, and what they must not go on taking."""

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import httpx
import msgspec

from tests.api.conftest import Api, Project


def make(client: httpx.Client, **terms: object) -> str:
    code = f"PLAIN{time.time_ns()}"
    made = client.post("/v1/vouchers", json={"code": code, "discount_value": 20} | terms)
    assert made.status_code == 201, made.text
    return code


def redeem(client: httpx.Client, code: str, customer: str, **headers: str) -> httpx.Response:
    return client.post(
        f"/v1/vouchers/{code}/redeem",
        json={"customer_id": customer, "order_value": 89.99},
        headers=headers,
    )


def answered(client: httpx.Client, status: int) -> float:
    text = client.get("/metrics").text
    name = f'vauchflow_requests_total{{route="redeem",status="{status}"}} '
    found = [float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)]
    return found[0] if found else 0.0


def test_every_answer_is_counted_once_whichever_way_it_went(client: httpx.Client) -> None:
    code = make(client, max_redemptions=10, per_customer_limit=1)
    before = {status: answered(client, status) for status in (200, 409)}
    for n in range(10):
        assert redeem(client, code, f"c{n}").status_code == 200
    for n in range(5):
        assert redeem(client, code, f"d{n}").status_code == 409
    after = {status: answered(client, status) for status in (200, 409)}
    assert (after[200] - before[200], after[409] - before[409]) == (10, 5)


def test_a_revoked_key_takes_no_more_redeems_where_it_took_them_a_second_ago(
    client: httpx.Client, api: Api, make_project: Callable[..., Project]
) -> None:
    code = make(client, max_redemptions=1_000)
    key = client.post("/v1/api-keys", json={"type": "SECRET"}).json()
    with api.client(key["key"]) as till:
        assert [redeem(till, code, f"c{n}").status_code for n in range(5)] == [200] * 5
        assert client.delete(f"/v1/api-keys/{key['id']}").status_code == 200
        time.sleep(1)
        refused = redeem(till, code, "c9")
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_key")
    assert len(client.get("/v1/redemptions", params={"code": code}).json()["data"]) == 5


def test_another_projects_key_finds_no_voucher_at_an_address_that_is_redeemed(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    code = make(client, max_redemptions=1_000)
    assert [redeem(client, code, f"c{n}").status_code for n in range(3)] == [200] * 3
    assert redeem(stranger, code, "c9").json()["code"] == "not_found"


def test_a_new_expiry_holds_from_the_next_redeem_on(client: httpx.Client) -> None:
    code = make(client, max_redemptions=1_000)
    assert [redeem(client, code, f"c{n}").status_code for n in range(3)] == [200] * 3
    changed = client.patch(f"/v1/vouchers/{code}", json={"expires_at": "2020-01-01T00:00:00Z"})
    assert changed.status_code == 200, changed.text
    assert redeem(client, code, "d").json()["code"] == "voucher_expired"
    client.patch(f"/v1/vouchers/{code}", json={"expires_at": None})
    assert [redeem(client, code, f"e{n}").status_code for n in range(3)] == [200] * 3


def test_a_disabled_voucher_refuses_and_serves_again_when_it_is_enabled(
    client: httpx.Client,
) -> None:
    code = make(client, max_redemptions=1_000)
    assert [redeem(client, code, f"c{n}").status_code for n in range(3)] == [200] * 3
    client.post(f"/v1/vouchers/{code}/disable")
    assert redeem(client, code, "d").json()["code"] == "voucher_inactive"
    client.post(f"/v1/vouchers/{code}/enable")
    assert [redeem(client, code, f"e{n}").status_code for n in range(3)] == [200] * 3


def test_one_key_asked_at_once_by_many_is_one_redemption(client: httpx.Client) -> None:
    code = make(client, max_redemptions=1_000)
    assert redeem(client, code, "warm").status_code == 200
    headers = {"Idempotency-Key": "once"}
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda _: redeem(client, code, "c", **headers), range(64)))
    assert {answer.status_code for answer in told} == {200}
    assert len({answer.content for answer in told}) == 1
    assert len(client.get("/v1/redemptions", params={"code": code}).json()["data"]) == 2


def test_the_last_units_go_to_exactly_as_many_whoever_asks_how(client: httpx.Client) -> None:
    code = make(client, max_redemptions=40)
    assert redeem(client, code, "warm").status_code == 200

    def ask(n: int) -> str:
        if n % 3:
            return redeem(client, code, f"c{n}").json().get("code", "")
        # A body with metadata is not plain.
        body = {"customer_id": f"c{n}", "order_value": 5, "metadata": {"n": n}}
        return client.post(f"/v1/vouchers/{code}/redeem", json=body).json().get("code", "")

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(ask, range(120)))
    assert told.count("limit_reached") == 81
    assert client.get(f"/v1/vouchers/{code}").json()["redeemed_count"] == 40


def test_quotes_and_backslashes_in_references_are_stored_as_they_were_sent(
    client: httpx.Client,
) -> None:
    code = make(client, max_redemptions=1_000)
    for customer in ("{a,b}", "NULL", "it's", "a,b", "$1", "%s"):
        headers = {"Idempotency-Key": f"{{{customer}\\,}}".replace(" ", "")}
        won = redeem(client, code, customer, **headers).json()
        read = client.get(f"/v1/redemptions/{won['redemption_id']}").json()
        assert (read["customer_id"], read) == (customer, won)
        assert redeem(client, code, customer, **headers).json() == won


def test_vouchers_that_fly_together_keep_their_own_numbers_and_limits(
    client: httpx.Client,
) -> None:
    codes = [make(client, max_redemptions=6) for _ in range(24)]
    for code in codes:
        # The second one teaches the doors.
        assert [redeem(client, code, f"w{n}").status_code for n in range(2)] == [200] * 2
    asked = [(code, f"c,{{{n}}}") for n in range(6) for code in codes]
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda one: redeem(client, *one).json(), asked))
    for code in codes:
        mine = [answer for (asked_code, _), answer in zip(asked, told, strict=True)
                if asked_code == code]  # fmt: skip
        won = [answer for answer in mine if answer.get("status") == "redeemed"]
        assert sorted((one["seq"], one["remaining"]) for one in won) == [
            (3, 3), (4, 2), (5, 1), (6, 0),
        ]  # fmt: skip
        assert {one["code"] for one in won} == {code}
        assert [one["code"] for one in mine if one not in won] == ["limit_reached"] * 2
        listed = client.get("/v1/redemptions", params={"code": code}).json()["data"]
        assert {one["redemption_id"] for one in won} <= {one["redemption_id"] for one in listed}
        assert len(listed) == 6


def test_an_escape_in_an_address_is_never_taken_for_another_code(
    client: httpx.Client, api: Api, project: Project
) -> None:
    stamp = f"{time.time_ns()}"
    escaped, plain = f"P%41{stamp}", f"PA{stamp}"
    for code in (escaped, plain):
        assert client.post("/v1/vouchers", json={"code": code, "discount_value": 5}).is_success

    def told(address: str, customer: str) -> str:
        body = msgspec.json.encode({"customer_id": customer, "order_value": 10})
        headers = {
            "Authorization": f"Bearer {project.secret_key}",
            "Content-Type": "application/json",
        }
        # As it is written: a client library of more comfort would escape it once more.
        port = api.settings.port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("POST", f"/v1/vouchers/{address}/redeem", body, headers)
            return str(msgspec.json.decode(connection.getresponse().read())["code"])

    for n in range(4):
        # Taught under its decoded name, and asked under that name as it would be written.
        assert told(f"P%2541{stamp}", f"e{n}") == escaped
        assert told(f"P%41{stamp}", f"p{n}") == plain
        assert told(plain, f"q{n}") == plain
    counts = [client.get(f"/v1/vouchers/{quote(code)}").json() for code in (escaped, plain)]
    assert [one["redeemed_count"] for one in counts] == [4, 8]
