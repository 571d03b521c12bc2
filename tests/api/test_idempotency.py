"""The Idempotency-Key of ordinary writes."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.conftest import Api


def test_the_same_request_again_gets_the_first_answer(client: httpx.Client, api: Api) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/vouchers", json={"discount_value": 5}, headers=headers)
    before = api.row_counts()

    again = client.post("/v1/vouchers", content='{ "discount_value" : 5.0 }', headers=headers)
    quoted = client.post(
        "/v1/vouchers", json={"discount_value": 5}, headers={"Idempotency-Key": '"k-1"'}
    )

    assert first.status_code == again.status_code == quoted.status_code == 201
    assert first.content == again.content == quoted.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert api.row_counts() == before


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/vouchers", {"discount_value": 6}),
        ("POST", "/v1/campaigns", {"name": "Other"}),
        ("PATCH", "/v1/vouchers/MISMATCH", {"metadata": {"x": 1}}),
    ],
)
def test_a_key_for_another_request_is_422_and_changes_nothing(
    client: httpx.Client, api: Api, method: str, path: str, body: dict
) -> None:
    client.post("/v1/vouchers", json={"code": "MISMATCH", "discount_value": 5})
    headers = {"Idempotency-Key": "k-2"}
    assert client.post("/v1/vouchers", json={"discount_value": 5}, headers=headers).is_success
    before = api.row_counts()

    answer = client.request(method, path, json=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert api.row_counts() == before
    assert client.get("/v1/vouchers/MISMATCH").json()["metadata"] == {}


def test_a_refused_request_may_be_mended_under_its_key(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k-3"}
    assert (
        client.post("/v1/vouchers", json={"discount_value": 0}, headers=headers).status_code == 400
    )
    client.post("/v1/vouchers", json={"code": "TAKEN", "discount_value": 1})
    taken = client.post(
        "/v1/vouchers", json={"code": "TAKEN", "discount_value": 1}, headers=headers
    )
    assert taken.status_code == 409

    answer = client.post("/v1/vouchers", json={"discount_value": 1}, headers=headers)

    assert answer.status_code == 201
    assert "idempotent-replayed" not in answer.headers


def test_a_key_belongs_to_its_project(client: httpx.Client, stranger: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k-4"}

    mine = client.post("/v1/vouchers", json={"discount_value": 5}, headers=headers)
    theirs = stranger.post("/v1/vouchers", json={"discount_value": 7}, headers=headers)

    assert mine.status_code == theirs.status_code == 201
    assert mine.json()["id"] != theirs.json()["id"]


def test_many_at_once_under_one_key_take_effect_once(client: httpx.Client, api: Api) -> None:
    def write(_: int) -> httpx.Response:
        return client.post(
            "/v1/vouchers",
            json={"discount_value": 5, "metadata": {"burst": True}},
            headers={"Idempotency-Key": "k-5"},
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(write, range(24)))

    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    others = {a.json()["code"] for a in answers if a.status_code != 201}
    assert len(made) == 1
    assert others <= {"request_in_flight"}
    rows = api.rows("""select count(*) from vf.vouchers where metadata @> '{"burst": true}'""")
    assert rows[0][0] == 1


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "kéy", "a\tb"])
def test_a_key_that_cannot_be_kept_is_refused(client: httpx.Client, api: Api, key: str) -> None:
    before = api.row_counts()

    answer = client.post(
        "/v1/vouchers",
        json={"discount_value": 5},
        headers=[(b"Idempotency-Key", key.encode())],
    )

    assert (answer.status_code, answer.json()["field"]) == (400, "Idempotency-Key")
    assert api.row_counts() == before


def test_a_key_of_255_characters_is_kept(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "x" * 255}

    first = client.post("/v1/vouchers", json={"discount_value": 5}, headers=headers)

    assert client.post("/v1/vouchers", json={"discount_value": 5}, headers=headers).json() == (
        first.json()
    )
