"""The audit log over HTTP: who changed what, from where, in a chain nobody can mend unseen."""

import asyncio
import concurrent.futures
import csv
import hashlib
import io
import json
from uuid import UUID

import asyncpg
import httpx
import pytest

from tests.api.conftest import Api, Project


def revoked_key(client: httpx.Client, request_id: str) -> str:
    key = client.post("/v1/api-keys", json={"type": "SECRET"}).json()["id"]
    client.delete(f"/v1/api-keys/{key}", headers={"X-Request-Id": request_id})
    return str(key)


def test_an_entry_says_who_what_before_and_after_and_from_where(
    client: httpx.Client, api: Api
) -> None:
    key = revoked_key(client, "revoke-7")

    entries = client.get("/v1/audit-log", params={"target": key}).json()

    assert entries["has_more"] is False
    last, first = entries["data"]
    assert (last["action"], first["action"]) == ("api_key.revoked", "api_key.created")
    assert (last["before"], last["after"]) == ({"status": "active"}, {"status": "revoked"})
    assert last["actor"] == client.get("/v1/api-keys").json()["id"]
    assert (last["request_id"], last["address"]) == ("revoke-7", "127.0.0.1")
    assert last["number"] == first["number"] + 1
    assert last["id"].startswith("aud_")


def test_the_list_goes_on_below_a_cursor_and_filters(client: httpx.Client) -> None:
    for n in range(3):
        revoked_key(client, f"page-{n}")

    first = client.get("/v1/audit-log", params={"limit": 2, "action": "api_key.revoked"}).json()
    rest = client.get(
        "/v1/audit-log",
        params={"action": "api_key.revoked", "starting_after": first["data"][-1]["id"]},
    ).json()

    numbers = [entry["number"] for entry in first["data"] + rest["data"]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(first["data"]) == 2 and first["has_more"] is True
    assert {entry["action"] for entry in first["data"] + rest["data"]} == {"api_key.revoked"}
    assert client.get("/v1/audit-log", params={"actor": "key_nobody"}).json()["data"] == []


def test_the_table_has_every_entry_and_no_formula(client: httpx.Client, api: Api) -> None:
    revoked_key(client, "=HYPERLINK(1)")
    listed = client.get("/v1/audit-log", params={"limit": 100}).json()["data"]

    answer = client.get("/v1/exports/audit-log")

    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == [entry["id"] for entry in listed]
    assert [row["hash"] for row in rows] == [entry["hash"] for entry in listed]
    assert json.loads(rows[0]["after"]) == listed[0]["after"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_another_project_has_a_log_of_its_own(client: httpx.Client, stranger: httpx.Client) -> None:
    key = revoked_key(client, "mine")

    assert stranger.get("/v1/audit-log", params={"target": key}).json()["data"] == []
    assert all(
        entry["request_id"] != "mine" for entry in stranger.get("/v1/audit-log").json()["data"]
    )


def test_each_entry_is_sealed_with_the_one_before(
    client: httpx.Client, api: Api, project: Project
) -> None:
    revoked_key(client, "sealed")
    rows = api.rows(
        "select number, hash, jsonb_build_array(project_id, number, id, actor, action, target, "
        "detail, before, after, address, request_id, extract(epoch from at))::text as said "
        "from vf.audit_log where project_id = $1 order by number",
        UUID(project.id),
    )

    seal = b""
    for place, row in enumerate(rows, 1):
        seal = hashlib.sha256(seal + row["said"].encode()).digest()
        assert (row["number"], row["hash"]) == (place, seal)
    head = api.rows(
        "select number, hash from vf.audit_heads where project_id = $1", UUID(project.id)
    )
    assert tuple(head[0]) == (len(rows), seal)


def test_many_changes_at_once_are_one_chain(
    client: httpx.Client, api: Api, project: Project
) -> None:
    def make(_: int) -> int:
        with api.client(project.secret_key) as other:
            return other.post("/v1/api-keys", json={"type": "SECRET"}).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(make, range(24))) == {201}

    numbers = [
        row[0]
        for row in api.rows(
            "select number from vf.audit_log where project_id = $1 order by number",
            UUID(project.id),
        )
    ]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    "sql",
    [
        "update vf.audit_log set actor = 'nobody'",
        "delete from vf.audit_log",
        "update vf.audit_heads set number = 0",
        "delete from vf.audit_heads",
    ],
)
def test_the_app_can_neither_change_nor_remove_an_entry(
    api: Api, project: Project, sql: str
) -> None:
    async def attempt() -> None:
        raw = await asyncpg.connect(api.settings.database_dsn("app"))
        try:
            async with raw.transaction():
                await raw.execute("select set_config('app.project_id', $1, true)", project.id)
                await raw.execute(sql)
        finally:
            await raw.close()

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        asyncio.run(attempt())


def entries_of(client: httpx.Client, target: str) -> list[tuple[str, object, object]]:
    listed = client.get("/v1/audit-log", params={"target": target}).json()["data"]
    return [(one["action"], one["before"], one["after"]) for one in reversed(listed)]


def test_what_is_done_with_a_campaign_is_told_with_what_changed(client: httpx.Client) -> None:
    made = client.post("/v1/campaigns", json={"name": "A", "rules": {"discount_value": 5}}).json()
    path = f"/v1/campaigns/{made['id']}"
    client.patch(path, json={"name": "B"})
    client.patch(path, json={"name": "B"})
    client.post(f"{path}/pause")
    client.post(f"{path}/pause")

    told = entries_of(client, made["id"])

    assert [action for action, _, _ in told] == [
        "campaign.created", "campaign.updated", "campaign.paused",
    ]  # fmt: skip
    assert told[1][1:] == ({"name": "A"}, {"name": "B"})
    assert told[2][1:] == ({"status": "active"}, {"status": "paused"})


def test_what_is_done_with_a_sale_is_told_and_what_is_refused_is_not(client: httpx.Client) -> None:
    made = client.post(
        "/v1/flash-sales",
        json={"name": "F", "code": "AUDITED", "discount_value": 5, "stock": 10,
              "durability": "strict"},
    ).json()  # fmt: skip
    path = f"/v1/flash-sales/{made['id']}"
    assert client.post(f"{path}/pause").status_code == 409
    client.post(f"{path}/open")
    client.patch(path, json={"stock": 20})
    client.post(f"{path}/close")
    assert client.post(f"{path}/open").status_code == 409

    assert [(action, after) for action, _, after in entries_of(client, made["id"])] == [
        ("flash_sale.created", {"name": "F", "stock": 10, "durability": "strict"}),
        ("flash_sale.opened", None),
        ("flash_sale.updated", {"name": None, "stock": 20}),
        ("flash_sale.closed", None),
    ]


def test_a_voucher_that_is_switched_or_edited_is_told_once(client: httpx.Client) -> None:
    made = client.post("/v1/vouchers", json={"code": "TOLD", "discount_value": 5}).json()
    for _ in range(2):
        client.post("/v1/vouchers/TOLD/disable")
        client.patch("/v1/vouchers/TOLD", json={"metadata": {"a": 1}})

    assert entries_of(client, made["id"]) == [
        ("voucher.disabled", {"status": "active"}, {"status": "disabled"}),
        ("voucher.updated", {"metadata": {}}, {"metadata": {"a": 1}}),
    ]


def test_an_erased_customer_is_told_of_without_who_they_were(
    client: httpx.Client, api: Api, project: Project
) -> None:
    client.post("/v1/customers", json={"customer_id": "cust_secret", "name": "Zoë Secret"})
    erased = client.post("/v1/customers/cust_secret/erase").json()

    said = api.rows(
        "select to_jsonb(a)::text from vf.audit_log a where project_id = $1", UUID(project.id)
    )
    text = "\n".join(str(row[0]) for row in said)
    assert "customer.erased" in text
    assert erased["pseudonym"] in text
    assert "cust_secret" not in text and "Zoë" not in text
