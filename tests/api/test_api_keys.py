"""API keys over HTTP: shown once, stored hashed, revoked everywhere within a second."""

import re
import time
from collections.abc import Callable

import httpx
import pytest

from core import api_keys
from tests.api.conftest import Api, Project

REVOKED_WITHIN_S = 1.0


def test_the_list_starts_with_the_calling_key_masked(
    client: httpx.Client, project: Project
) -> None:
    answer = client.get("/v1/api-keys").json()

    assert answer["key"] == f"vf_sk_…{project.secret_key[-4:]}"
    assert answer["type"] == "SECRET"
    assert {key["type"] for key in answer["data"]} == {"SECRET", "PUBLISHABLE"}
    assert answer["has_more"] is False


def test_a_new_key_is_shown_once_and_works(client: httpx.Client, api: Api) -> None:
    made = client.post("/v1/api-keys", json={"type": "SECRET", "name": "till 4"})

    assert made.status_code == 201
    key = made.json()
    assert re.fullmatch(api_keys.PATTERN, key["key"])
    assert key["key"].startswith("vf_sk_")
    assert key["id"].startswith("key_")
    with api.client(key["key"]) as other:
        assert other.get("/v1/vouchers").status_code == 200
    shown = client.get(f"/v1/api-keys/{key['id']}")
    assert shown.json() == {**key, "key": f"vf_sk_…{key['key'][-4:]}"}
    assert key["key"] not in client.get("/v1/api-keys").text


def test_no_table_and_no_log_line_holds_a_key(client: httpx.Client, api: Api) -> None:
    key = client.post(
        "/v1/api-keys", json={"type": "SECRET"}, headers={"Idempotency-Key": "secret-once"}
    ).json()["key"]
    with api.client(key) as other:
        other.get("/v1/vouchers")

    dump = []
    for table in api.row_counts():
        dump += [str(row[0]) for row in api.rows(f"select to_jsonb(t)::text from vf.{table} t")]
    kept = api.rows("select body from vf.idempotency_keys where key = 'secret-once'")
    assert len(dump) > 5
    assert key not in "\n".join(dump)
    assert len(kept) == 1
    assert key.encode() not in kept[0][0]
    assert key not in api.log_text()


def test_a_revoked_key_stops_working_within_a_second(client: httpx.Client, api: Api) -> None:
    key = client.post("/v1/api-keys", json={"type": "SECRET"}).json()
    with api.client(key["key"]) as other:
        assert other.get("/v1/vouchers").status_code == 200

        revoked = client.delete(f"/v1/api-keys/{key['id']}")
        time.sleep(REVOKED_WITHIN_S)
        answer = other.get("/v1/vouchers")

    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
    again = client.delete(f"/v1/api-keys/{key['id']}").json()
    assert again["revoked_at"] == revoked.json()["revoked_at"]


def test_a_key_may_revoke_itself(api: Api, make_project: Callable[..., Project]) -> None:
    with api.client(make_project().secret_key) as client:
        own = client.get("/v1/api-keys").json()["id"]

        assert client.delete(f"/v1/api-keys/{own}").status_code == 200
        time.sleep(REVOKED_WITHIN_S)
        assert client.get("/v1/api-keys").status_code == 401


def test_making_and_revoking_a_key_is_in_the_audit_log_once(client: httpx.Client, api: Api) -> None:
    key = client.post(
        "/v1/api-keys", json={"type": "PUBLISHABLE"}, headers={"X-Request-Id": "audit-1"}
    ).json()
    for _ in range(2):
        client.delete(f"/v1/api-keys/{key['id']}", headers={"X-Request-Id": "audit-2"})

    entries = api.rows(
        "select action, actor, request_id from vf.audit_log where target = $1 order by id",
        key["id"],
    )
    caller = client.get("/v1/api-keys").json()["id"]
    assert [tuple(entry) for entry in entries] == [
        ("api_key.created", caller, "audit-1"),
        ("api_key.revoked", caller, "audit-2"),
    ]


def test_another_projects_key_cannot_be_seen_or_revoked(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    key = client.post("/v1/api-keys", json={"type": "SECRET"}).json()

    assert stranger.get(f"/v1/api-keys/{key['id']}").status_code == 404
    assert stranger.delete(f"/v1/api-keys/{key['id']}").status_code == 404
    assert client.get(f"/v1/api-keys/{key['id']}").json()["status"] == "active"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_key"),
        ("", "missing_key"),
        ("Basic dXNlcjpwYXNz", "malformed_key"),
        ("Bearer", "malformed_key"),
        ("Bearer nonsense", "malformed_key"),
        ("Bearer vf_sk_" + "A" * 49, "malformed_key"),
        ("Bearer vf_sk_" + "A" * 5000, "malformed_key"),
        (f"Bearer {api_keys.generate('SECRET')}", "invalid_key"),
        (f"bearer {api_keys.generate('PUBLISHABLE')}", "invalid_key"),
    ],
)
def test_without_a_good_key_nothing_is_answered(
    api: Api, authorization: str | None, code: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}

    answer = httpx.get(f"{api.base_url}/v1/vouchers", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_typing_error_in_a_key_is_told_without_the_database(api: Api, project: Project) -> None:
    key = project.secret_key
    swapped = key[:20] + ("a" if key[20] != "a" else "b") + key[21:]

    with api.client(swapped) as client:
        assert client.get("/v1/vouchers").json()["code"] == "malformed_key"
