"""A merchant's codes come in as they are, and each line that does not is told why."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api

VOUCHERIFY = '''\
Code,Voucher Type,Value,Discount Type,Category,Start Date,Expiration Date,Redemption Quantity,\
Redemption Count,Active,channel
VF-1,DISCOUNT_VOUCHER,20,PERCENT,spring,2026-01-01T00:00:00.000Z,2099-01-01T00:00:00Z,5,2,true,mail
VF-2,DISCOUNT_VOUCHER,007.50,AMOUNT,,,,null,0,FALSE,"a, ""b"""
VF-3,GIFT_VOUCHER,50,AMOUNT,,,,1,0,true,
VF-4,DISCOUNT_VOUCHER,20,PERCENT,,,,1,1,true,
vf-1,DISCOUNT_VOUCHER,10,PERCENT,,,,,,true,
VF-5,DISCOUNT_VOUCHER,150,PERCENT,,,,,,true,

VF-6,DISCOUNT_VOUCHER,1,UNIT,,,,,,true,
VF-7,DISCOUNT_VOUCHER,1
VF/8,DISCOUNT_VOUCHER,1,AMOUNT,,,,,,true,
VF-9,DISCOUNT_VOUCHER,1,AMOUNT,,yesterday,,,,true,
'''


def send(client: httpx.Client, table: str | bytes) -> httpx.Response:
    return client.post(
        "/v1/vouchers/import", content=table, headers={"Content-Type": "text/csv; charset=utf-8"}
    )


def test_a_table_of_voucherify_comes_in_and_each_refused_line_is_told(client: httpx.Client) -> None:
    answer = send(client, "\ufeff" + VOUCHERIFY.replace("\n", "\r\n"))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["imported"] == 2
    assert [(one["line"], one["code"], one["field"]) for one in told["refused"]] == [
        (3, "VF-3", "voucher_type"),
        (4, "VF-4", "redemption_count"),
        (5, "vf-1", "code"),
        (6, "VF-5", "discount_value"),
        (7, "VF-6", "discount_type"),
        (8, "VF-7", None),
        (9, "VF/8", "code"),
        (10, "VF-9", "start_date"),
    ]
    first = client.get("/v1/vouchers/VF-1").json()
    assert (first["discount_value"], first["max_redemptions"]) == (20, 3)
    assert (first["status"], first["metadata"]) == ("active", {"channel": "mail"})
    assert first["expires_at"] == "2099-01-01T00:00:00Z"
    second = client.get("/v1/vouchers/VF-2").json()
    assert (second["discount_value"], second["status"]) == (7.50, "disabled")
    assert (second["max_redemptions"], second["metadata"]) == (None, {"channel": 'a, "b"'})
    again = send(client, VOUCHERIFY).json()
    assert again["imported"] == 0 and len(again["refused"]) == 10


def test_json_comes_in_with_everything_a_voucher_may_have(client: httpx.Client) -> None:
    rules = {"discount_type": "FIXED", "discount_value": 9, "expires_after_days": 5}
    campaign = client.post("/v1/campaigns", json={"name": "i", "rules": rules}).json()["id"]
    given: list[dict[str, Any]] = [
        {"code": "J-1", "campaign_id": campaign},
        {
            "code": "J-2",
            "discount_type": "FREE_SHIPPING",
            "budgets": [{"of": "discount", "max": 5}],
        },
        {"discount_value": 5},
        {"code": "J-3", "discount_value": 5, "campaign_id": "cmp_nothing"},
    ]
    told = client.post("/v1/vouchers/import", json={"vouchers": given}).json()
    assert told["imported"] == 2
    assert [(one["line"], one["field"]) for one in told["refused"]] == [
        (3, "code"), (4, "campaign_id"),
    ]  # fmt: skip
    shown = client.get("/v1/vouchers/J-1").json()
    assert (shown["discount_type"], shown["campaign_id"]) == ("FIXED", campaign)
    assert shown["expires_at"] is not None
    assert client.get("/v1/vouchers/J-2").json()["budgets"][0]["max"] == 5


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("value\n5\n", "one must be code"),
        ("code,value,Code\nA,5,B\n", "each once"),
        (b"code,value\nA,5\n\xff\xfe,6\n", "line 3"),
        ("code,value\nA,5\0\n", "NUL"),
        ('code,value\nA,"5\n', "no CSV: line"),
        ('code,value\nOK-1,5\nA,"5"x\n', "no CSV: line 3"),
        ("", "one must be code"),
    ],
)
def test_what_is_no_table_is_refused_whole_and_nothing_is_stored(
    api: Api, client: httpx.Client, table: str | bytes, says: str
) -> None:
    before = api.row_counts()
    refused = send(client, table)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid")
    assert says in refused.json()["detail"]
    assert api.row_counts() == before


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_long_table_comes_in_whole_and_one_line_too_many_does_not(
    api: Api, client: httpx.Client
) -> None:
    client.timeout = httpx.Timeout(60.0)
    lines = "".join(f"LONG-{n:05},5\n" for n in range(5_001))
    assert send(client, "code,value\n" + lines).json() == {"imported": 5_001, "refused": []}
    before = api.row_counts()
    too_long = "code,value\n" + "".join(f"X{n},5\n" for n in range(50_001))
    refused = send(client, too_long)
    assert (refused.status_code, "50000" in refused.json()["detail"]) == (400, True)
    assert api.row_counts() == before
    assert send(client, "code,value\n" + "A" * 10_485_760).status_code == 413


def test_a_table_in_two_encodings_is_refused_by_its_line(api: Api, client: httpx.Client) -> None:
    before = api.row_counts()
    table = "code,discount_value\nÄ1,5\n".encode() + "Ö2,5\n".encode("latin-1")

    answer = send(client, table)

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert answer.json()["detail"] == "The file is not UTF-8: see line 3."
    assert api.row_counts() == before
