"""Fifty thousand codes in one breath, all or none, in the form the caller reads."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.api.conftest import Api, Project

MANY = 50_000
COLUMNS = "project_id, id, code, code_norm, batch_id, discount_type, discount_bp, metadata"


@pytest.fixture(scope="module")
def patient(api: Api, project: Project) -> Iterator[httpx.Client]:
    with api.client(project.secret_key) as client:
        client.timeout = httpx.Timeout(60.0)
        yield client


def bulk(client: httpx.Client, accept: str = "*/*", **members: Any) -> httpx.Response:
    given = {"discount_value": 10, **members}
    return client.post("/v1/vouchers/bulk", json=given, headers={"Accept": accept})


def test_a_batch_is_answered_with_its_codes_and_each_redeems(client: httpx.Client) -> None:
    answer = bulk(client, count=25, max_redemptions=1, metadata={"channel": None, "n": 1},
                  code_config={"prefix": "SPRING-", "length": 8})  # fmt: skip
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["count"] == 25 and len(set(made["codes"])) == 25
    assert all(code.startswith("SPRING-") and len(code) == 15 for code in made["codes"])
    shown = client.get(f"/v1/vouchers/{made['codes'][3].lower()}").json()
    assert shown["metadata"] == {"channel": None, "n": 1}
    assert (shown["max_redemptions"], shown["discount_value"]) == (1, 10)
    told = [client.post(f"/v1/vouchers/{code}/redeem", json={"order_value": 10})
            for code in made["codes"][:2] * 2]  # fmt: skip
    assert [one.status_code for one in told] == [200, 200, 409, 409]
    batch = client.get(f"/v1/batches/{made['batch_id']}").json()
    assert (batch["status"], batch["count"], batch["made"]) == ("done", 25, 25)
    assert client.get("/v1/batches").json()["data"][0] == batch


def test_codes_come_as_ndjson_and_csv_as_well(client: httpx.Client) -> None:
    lines = bulk(client, "application/x-ndjson", count=10)
    assert lines.headers["content-type"] == "application/x-ndjson"
    codes = [json.loads(line)["code"] for line in lines.text.splitlines()]
    batch = lines.headers["x-batch-id"]
    assert client.get(f"/v1/batches/{batch}/codes").json()["codes"] == codes

    table = client.get(f"/v1/batches/{batch}/codes", headers={"Accept": "text/csv"})
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(table.text))) == [["code"], *[[code] for code in codes]]
    rest = client.get(f"/v1/batches/{batch}/codes", params={"starting_after": codes[6]})
    assert rest.json()["codes"] == codes[7:]


def test_a_retry_with_the_same_key_gets_the_same_codes_and_makes_none(
    api: Api, client: httpx.Client
) -> None:
    asked = {"json": {"count": 100, "discount_value": 5}, "headers": {"Idempotency-Key": "b-1"}}
    first = client.post("/v1/vouchers/bulk", **asked)
    before = api.row_counts()
    assert client.post("/v1/vouchers/bulk", **asked).json() == first.json()
    assert api.row_counts() == before


def test_what_is_taken_is_drawn_again_until_nothing_is_left(api: Api, client: httpx.Client) -> None:
    look = {"prefix": "T-", "length": 2, "charset": "0123456789"}
    taken: set[str] = set()
    for _ in range(9):
        made = bulk(client, count=10, code_config=look).json()["codes"]
        assert len(made) == 10 and taken.isdisjoint(made)
        taken.update(made)
    for number in range(100):
        if f"T-{number:02}" not in taken:
            assert client.post("/v1/vouchers", json={"code": f"t-{number:02}", "discount_value": 1})
    before = api.row_counts()
    refused = bulk(client, count=1, code_config=look)
    assert (refused.status_code, refused.json()["field"]) == (400, "code_config")
    assert api.row_counts() == before


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 10_000_001}, "count"),
        ({"count": 5, "code": "A"}, "code"),
        ({"count": 5, "discount_value": None}, "discount_value"),
        ({"count": 5, "code_config": {"length": 1}}, "code_config"),
        ({"count": 5, "code_config": {"prefix": "@"}}, "code_config"),
        ({"count": 5, "campaign_id": "cmp_x"}, "campaign_id"),
    ],
)
def test_a_batch_that_cannot_be_made_leaves_nothing(
    api: Api, client: httpx.Client, members: dict[str, Any], field: str
) -> None:
    before = api.row_counts()
    refused = bulk(client, **members)
    assert refused.status_code in (400, 404) and refused.json()["field"] == field
    assert api.row_counts() == before


async def copied_s(url: str, project_id: str, count: int) -> float:
    """Copy as many bare rows in as a superuser may, and return how long it took."""
    raw = await asyncpg.connect(url)
    try:
        batch = uuid4()
        rows = [
            (project_id, uuid4(), code, code, batch, "PERCENT", 1000, "{}")
            for code in (uuid4().hex.upper()[:12] + f"{n:06}" for n in range(count))
        ]
        started_s = time.perf_counter()
        await raw.copy_records_to_table(
            "vouchers", schema_name="vf", records=rows, columns=COLUMNS.split(", ")
        )
        return time.perf_counter() - started_s
    finally:
        await raw.close()


def resident_kb(api: Api) -> int:
    """Return the largest resident memory of the API's processes."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            environ = (status.parent / "cmdline").read_bytes()
            if str(api.settings.port).encode() in environ:
                found.append(int(status.read_text().partition("VmRSS:")[2].split()[0]))
        except (OSError, IndexError, ValueError):
            continue
    return max(found)


def test_fifty_thousand_codes_are_made_in_one_request(patient: httpx.Client) -> None:
    answer = bulk(patient, count=MANY)
    assert answer.status_code == 201
    assert len({code.upper() for code in answer.json()["codes"]}) == MANY


@pytest.mark.long
def test_fifty_thousand_codes_take_less_than_three_copies_and_little_memory(
    api: Api, patient: httpx.Client, project: Project
) -> None:
    bulk(patient, count=1_000)
    before_kb = resident_kb(api)
    took_s, copy_s = [], []
    for _ in range(4):
        copy_s.append(asyncio.run(copied_s(api.owner_url, project.id, MANY)))
        started_s = time.perf_counter()
        answer = bulk(patient, count=MANY)
        took_s.append(time.perf_counter() - started_s)
        assert answer.status_code == 201
        assert len({code.upper() for code in answer.json()["codes"]}) == MANY
    grown_kb = resident_kb(api) - before_kb
    print(f"bulk {took_s} s, COPY {copy_s} s, grown by {grown_kb} kB")
    assert min(took_s) < 3 * min(copy_s), (took_s, copy_s)
    assert grown_kb < 100_000, grown_kb


def test_a_server_that_dies_in_the_middle_of_a_batch_leaves_no_code(
    api: Api, patient: httpx.Client
) -> None:
    before = api.row_counts()
    kill = (
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where query like '%batches.fill%' and pid <> pg_backend_pid()"
    )

    async def dies() -> httpx.Response:
        asked = asyncio.to_thread(bulk, patient, count=MANY)
        answer = asyncio.create_task(asked)
        raw = await asyncpg.connect(api.owner_url)
        await asyncio.sleep(0.3)
        while not answer.done() and not await raw.fetch(kill):
            await asyncio.sleep(0.001)
        await raw.close()
        return await answer

    answer = asyncio.run(dies())
    assert answer.status_code in (503, 504), answer.text
    assert api.row_counts() == before
