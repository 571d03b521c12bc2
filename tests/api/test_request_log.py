"""What keys asked lately, as the dashboard shows it."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.api.conftest import Api
from tests.api.test_dashboard import Visitor, visiting


@pytest.fixture
def anna(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


@pytest.fixture
def stranger(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


def shown(visitor: Visitor, status: str = "") -> list[tuple[str, ...]]:
    """Return request, status and error code of each row, newest first."""
    page = visitor.get(f"/requests?status={status}").text
    row = r'"Request"><span class="code">([^<]*)</span>.*?badge \w+">(\d+)<(.*?)</td>'
    found = re.findall(row, page)
    return [(asked, code, *re.findall(r">(\w+)</a>", rest)) for asked, code, rest in found]


def test_what_a_key_asked_is_seen_by_its_project_within_moments(
    api: Api, anna: Visitor, stranger: Visitor
) -> None:
    made = anna.post("/developers", type="SECRET", name="till")
    key = re.search(r'id="new-key-text">(vf_sk_\w+)<', made.text)
    assert key is not None
    with api.client(key[1]) as client:
        answer = client.get("/v1/vouchers?limit=1000")
        assert answer.status_code == 400
        assert client.get("/v1/vouchers/SECRET-CODE").status_code == 404
        made = client.post("/v1/vouchers", json={"code": "SEEN", "discount_value": 5})
        assert made.status_code == 201
        body = {"customer_id": "cust_seen", "order_value": 10}
        assert client.post("/v1/vouchers/SEEN/redeem", json=body).status_code == 200
        wrong = client.post("/v1/vouchers/SEEN/redeem", json={"order_value": "ten"})
        assert wrong.status_code == 400
    deadline_s = time.monotonic() + 10.0
    while len(shown(anna)) < 4 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert shown(anna) == [
        ("POST /v1/vouchers/{code}/redeem", "400", "invalid"),
        ("POST /v1/vouchers", "201"),
        ("GET /v1/vouchers/{code}", "404", "not_found"),
        ("GET /v1/vouchers", "400", "invalid"),
    ]
    assert len(shown(anna, "failed")) == 3 and len(shown(anna, "ok")) == 1
    page = anna.get("/requests").text
    assert answer.headers["x-request-id"] in page and ">till<" in page
    # No code, no customer; and nobody else sees any of it.
    assert "SECRET-CODE" not in page and "SEEN" not in page and "cust_seen" not in page
    assert shown(stranger) == []
    # What people do in the dashboard is no request of a key.
    assert "/dashboard/" not in str(shown(anna))
