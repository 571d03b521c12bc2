"""Reports have every row once, whatever their length, and run nothing in a spreadsheet."""

import csv
import io
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from core import reports
from tests.api.conftest import Api, Project
from tests.api.test_batches import resident_kb

LINES = {"Accept": "application/x-ndjson"}
MANY = 1_000_000
# What others wait for while a report is written: some pieces of 20 ms.
OTHERS_S = 0.1

# As the product writes them: an id that begins with the milliseconds, a number of its voucher.
_FILL = """
    with v as (
        update vf.vouchers set direct_count = direct_count + $3, next_number = next_number + $3
         where project_id = $1 and code = $2
        returning id, campaign_id, next_number - $3 as first)
    insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id,
           idempotency_key, fingerprint, customer_id, order_value_minor, discount_minor,
           redeemed_at)
    select $1, v.id, v.first + n, (lpad(to_hex((extract(epoch from a.at) * 1000)::bigint), 12, '0')
               || '7' || lpad(to_hex(n), 19, '0'))::uuid, v.id, v.campaign_id,
           'k' || n, '', case n % 3 when 0 then '=1+' || n when 1 then 'c' || n end,
           8999, 1800, a.at
      from v, generate_series(0, $3::bigint - 1) n
     cross join lateral (select now() - (n + 1) * interval '1 second' as at) a
"""


_BUSY = """
    select count(*) from pg_stat_activity
     where application_name = 'vauchflow api' and state <> 'idle'
"""


def fill(api: Api, project: Project, code: str, count: int) -> None:
    api.rows(_FILL, UUID(project.id), code, count)


def made(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


def table_of(client: httpx.Client, noun: str, **query: str) -> list[dict[str, str]]:
    answer = client.get(f"/v1/reports/{noun}", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{noun}.csv"'
    return list(csv.DictReader(io.StringIO(answer.text)))


def lines_of(client: httpx.Client, noun: str, **query: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/reports/{noun}", params=query, headers=LINES)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture
def shop(api: Api, make_project: Callable[..., Project]) -> Any:
    project = make_project()
    with api.client(project.secret_key) as client:
        yield project, client


def test_every_redemption_is_in_it_once_whatever_the_pieces(api: Api, shop: Any) -> None:
    project, client = shop
    campaign = made(client, "/v1/campaigns", name="C", rules={"discount_value": 20})["id"]
    made(client, "/v1/vouchers", code="OF", campaign_id=campaign)
    made(client, "/v1/vouchers", code="ALONE", discount_value=20)
    count = 2 * reports.PIECE
    fill(api, project, "OF", count)
    answer = made(
        client, "/v1/vouchers/ALONE/redeem", customer_id="@SUM(1)", order_value=89.99,
        metadata={"a": "=1+1"},
    )  # fmt: skip
    made(client, f"/v1/redemptions/{answer['redemption_id']}/rollback", reason="-cmd")

    lines = lines_of(client, "redemptions")
    assert len(lines) == count + 1 == len({line["redemption_id"] for line in lines})
    listed = client.get("/v1/redemptions", params={"limit": "100"}).json()["data"]
    assert lines[:100] == listed, "as the list shows them, in its order"
    table = table_of(client, "redemptions")
    assert [row["redemption_id"] for row in table] == [line["redemption_id"] for line in lines]
    first = table[0]
    assert (first["status"], first["customer_id"], first["rollback_reason"], first["metadata"]) == (
        "rolled_back", "'@SUM(1)", "'-cmd", '{"a":"=1+1"}',
    )  # fmt: skip
    assert (first["discount_applied"], first["order_value"], first["seq"]) == (
        "18.00",
        "89.99",
        "1",
    )
    cells = [cell for row in table for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    of_campaign = table_of(client, "redemptions", campaign_id=campaign)
    assert [row["redemption_id"] for row in of_campaign] == [
        row["redemption_id"] for row in table[1:]
    ]
    edge = lines[100]["redeemed_at"]
    newer = lines_of(client, "redemptions", **{"from": edge})
    older = lines_of(client, "redemptions", to=edge)
    assert newer + older == lines and len(newer) == 101


def test_vouchers_and_referrals_of_a_time_and_no_others(shop: Any) -> None:
    _, client = shop
    campaign = made(client, "/v1/campaigns", name="C", rules={"discount_value": 20})["id"]
    for n in range(3):
        made(client, "/v1/vouchers", code=f"=V{n}", campaign_id=campaign)
    made(client, "/v1/vouchers/bulk", count=reports.PIECE, discount_value=5)
    assert len(table_of(client, "vouchers")) == reports.PIECE + 3
    own = table_of(client, "vouchers", campaign_id=campaign)
    assert [row["code"] for row in own] == ["'=V2", "'=V1", "'=V0"]
    assert {row["campaign_id"] for row in own} == {campaign}
    edge = lines_of(client, "vouchers", campaign_id=campaign)[1]["created_at"]
    newer = lines_of(client, "vouchers", campaign_id=campaign, **{"from": edge})
    older = lines_of(client, "vouchers", campaign_id=campaign, to=edge)
    assert [row["code"] for row in newer + older] == ["=V2", "=V1", "=V0"] and len(older) == 1
    assert table_of(client, "vouchers", to="2001-01-01") == []

    program = made(
        client, "/v1/referral-programs", name="P", conversion="sign_up",
        referrer_reward={"type": "gift_card", "amount": 10},
    )  # fmt: skip
    code = made(client, f"/v1/referral-programs/{program['id']}/codes", customer_id="anna")["code"]
    made(client, "/v1/referrals/attribute", code=code, customer_id="bert")
    [line] = lines_of(client, "referrals")
    assert line == client.get("/v1/referrals").json()["data"][0]
    [row] = table_of(client, "referrals")
    assert (row["referrer_id"], row["referee_id"], row["status"]) == ("anna", "bert", "attributed")


def test_gift_card_entries_add_up_to_what_is_owed(shop: Any) -> None:
    _, client = shop
    cards = [made(client, "/v1/gift-cards", amount=50, reference=f"i{n}") for n in range(3)]
    one, other = cards[0], cards[1]
    made(client, f"/v1/gift-cards/{one['id']}/redeem", amount=12.5, reference="-s")
    made(
        client, f"/v1/gift-cards/{one['id']}/transfer", to=other["id"], amount=10,
        reference="t",
    )  # fmt: skip
    lines = lines_of(client, "gift-card-entries")
    assert [line["type"] for line in lines] == ["transfer"] * 2 + ["spend"] + ["issue"] * 3
    assert round(sum(line["change"] for line in lines), 2) == 137.5
    for card in cards:
        own = [line for line in lines if line["gift_card_id"] == card["id"]]
        listed = client.get(f"/v1/gift-cards/{card['id']}/transactions").json()["data"]
        assert own == listed
    table = table_of(client, "gift-card-entries")
    assert (table[2]["reference"], table[2]["change"]) == ("'-s", "-12.50"), "a number stays one"


def test_usage_is_told_by_the_hour(api: Api, shop: Any) -> None:
    project, client = shop
    api.rows(
        "insert into vf.usage_hours select $1, date_trunc('hour', now()) - n * interval '1 hour', "
        "n from generate_series(1, 60) n",
        UUID(project.id),
    )
    lines = lines_of(client, "usage", **{"from": "2020-01-01", "to": "2020-01-31"})
    assert lines == []
    at = api.rows("select date_trunc('hour', now()) - interval '60 hours' as at")[0][0]
    lines = lines_of(client, "usage", **{"from": at.isoformat()})
    assert [line["api_calls"] for line in lines][-60:] == list(range(1, 61))
    assert [line["hour"] for line in lines] == sorted((x["hour"] for x in lines), reverse=True)


@pytest.mark.parametrize(
    ("noun", "query", "field"),
    [
        ("redemptions", {"format": "xls"}, "format"),
        ("redemptions", {"limit": "5"}, "limit"),
        ("redemptions", {"campaign_id": "cmp_x"}, "campaign_id"),
        ("redemptions", {"from": "yesterday"}, "from"),
        ("vouchers", {"from": "2030-02-01", "to": "2030-01-01"}, "from"),
        ("usage", {"from": "2020-01-01", "to": "2030-01-01"}, "from"),
        ("referrals", {"campaign_id": "cmp_00000000000000000000000000"}, "campaign_id"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: httpx.Client, noun: str, query: dict[str, str], field: str
) -> None:
    answer = client.get(f"/v1/reports/{noun}", params=query)
    assert (answer.status_code, answer.json().get("field")) == (400, field)


def test_a_campaign_that_is_not_there_is_told_before_the_report_begins(
    client: httpx.Client,
) -> None:
    query = {"campaign_id": "cmp_00000000000000000000000000"}
    assert client.get("/v1/reports/vouchers", params=query).status_code == 404
    assert lines_of(client, "redemptions", **query) == []


def test_head_and_who_leaves_early_stop_the_writing(api: Api, shop: Any) -> None:
    project, client = shop
    made(client, "/v1/vouchers", code="LONG", discount_value=20)
    fill(api, project, "LONG", 40 * reports.PIECE)
    assert client.head("/v1/reports/redemptions").content == b""
    host, port = httpx.URL(api.base_url).host, httpx.URL(api.base_url).port
    size = api.log_size()
    for _ in range(reports.STREAMS_MAX):
        with socket.create_connection((host, port)) as leaving:
            leaving.sendall(
                f"GET /v1/reports/redemptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                f"{project.secret_key}\r\n\r\n".encode()
            )
            assert leaving.recv(100).startswith(b"HTTP/1.1 200")
    done = 0
    deadline_s = time.monotonic() + 10
    while done < reports.STREAMS_MAX and time.monotonic() < deadline_s:
        time.sleep(0.05)
        lines = api.log_since(size)
        done = len([line for line in lines if line.get("route") == "/v1/reports/redemptions"])
    assert done == reports.STREAMS_MAX
    assert not [line for line in api.log_since(size) if line["level"] == "error"]
    assert len(lines_of(client, "redemptions")) == 40 * reports.PIECE, "there is room again"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_who_takes_nothing_holds_one_piece_and_no_connection(api: Api, shop: Any) -> None:
    project, client = shop
    made(client, "/v1/vouchers", code="SLOW", discount_value=20)
    fill(api, project, "SLOW", 120 * reports.PIECE)
    host, port = httpx.URL(api.base_url).host, httpx.URL(api.base_url).port
    asked = (
        f"GET /v1/reports/redemptions?format=csv HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        f"{project.secret_key}\r\n\r\n".encode()
    )
    waiting = [socket.socket() for _ in range(reports.STREAMS_MAX)]
    try:
        for one in waiting:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((host, port))
            one.sendall(asked)
            assert one.recv(12) == b"HTTP/1.1 200"
        deadline_s = time.monotonic() + 20
        seen: list[int] = []
        while seen[-5:] != [0] * 5 and time.monotonic() < deadline_s:
            time.sleep(0.1)
            seen.append(api.rows(_BUSY)[0][0])
        assert seen[-5:] == [0] * 5, "where nobody takes anything, nothing is read"
        refused = client.get("/v1/reports/redemptions")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    finally:
        for one in waiting:
            one.close()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_rows_are_written_in_bounded_memory(api: Api, shop: Any) -> None:
    project, client = shop
    made(client, "/v1/vouchers", code="MILLION", discount_value=20)
    api.rows("set statement_timeout = '300s'")
    fill(api, project, "MILLION", MANY)
    assert len(lines_of(client, "redemptions", to="2001-01-01")) == 0
    sizes = [resident_kb(api)]
    waited_s: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        with api.client(project.secret_key) as other:
            while not is_over.wait(0.1):
                sizes.append(resident_kb(api))
                started_s = time.monotonic()
                assert other.get("/v1/vouchers/MILLION").status_code == 200
                waited_s.append(time.monotonic() - started_s)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    for form in ("csv", "ndjson"):
        before_kb, started_s = sizes[-1], time.monotonic()
        seen: set[str] = set()
        count = 0
        with client.stream("GET", f"/v1/reports/redemptions?format={form}", timeout=60) as answer:
            for line in answer.iter_lines():
                count += 1
                seen.add(line.partition(",")[0])
        assert (count, len(seen)) == (MANY + (form == "csv"),) * 2
        print(
            f"{form}: {count} lines in {time.monotonic() - started_s:.1f} s, "
            f"{before_kb} kB before, at most {max(sizes)} kB"
        )
    is_over.set()
    watching.join()
    assert max(sizes) - sizes[0] < 60_000, (sizes[0], max(sizes))
    typical_s, slowest_s = statistics.median(waited_s), max(waited_s)
    print(
        f"{len(waited_s)} others waited {typical_s * 1e3:.0f} ms, at most {slowest_s * 1e3:.0f} ms"
    )
    assert len(waited_s) > 100
    assert typical_s < OTHERS_S and slowest_s < 10 * OTHERS_S
