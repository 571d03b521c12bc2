"""Projects over HTTP: made, changed and put away by their people, and nobody else's."""

import time
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest

from core import ids
from tests.api.conftest import Api, Person, Project, join

STOPPED_WITHIN_S = 1.0
Sign = Callable[..., Person]


@pytest.fixture
def owner(sign_up: Sign, api: Api) -> Person:
    """Somebody with room for many projects."""
    person = sign_up(name="Olga")
    api.rows(
        "update vf.accounts set plan = 'enterprise' where id = "
        "(select account_id from vf.users where email = $1) returning 1",
        person.email,
    )
    return person


def test_a_new_project_is_its_makers_and_empty(owner: Person) -> None:
    made = owner.http.post(
        "/v1/projects", json={"name": "Client B", "currency": "CHF", "time_zone": "Europe/Zurich"},
        headers=owner.writes(),
    )  # fmt: skip

    assert made.status_code == 201
    project = made.json()
    assert project == {
        "id": project["id"], "name": "Client B", "status": "active", "currency": "CHF",
        "time_zone": "Europe/Zurich", "rollback_window_minutes": 30, "mail_at_percent": [80, 100],
        "role": "owner", "created_at": project["created_at"], "archived_at": None,
    }  # fmt: skip
    assert owner.http.get(f"/v1/projects/{project['id']}").json() == project
    listed = owner.http.get("/v1/projects").json()["data"]
    assert {one["name"] for one in listed} == {"My shop", "Client B"}
    vouchers = owner.http.get("/v1/vouchers", headers=owner.writes(project["id"])).json()
    assert vouchers == {"data": [], "has_more": False}


def test_one_idempotency_key_is_one_project(owner: Person) -> None:
    headers = {**owner.writes(), "Idempotency-Key": "again"}

    answers = [
        owner.http.post("/v1/projects", json={"name": name}, headers=headers)
        for name in ("Once", "Once", "Twice")
    ]

    assert [answer.status_code for answer in answers] == [201, 201, 422]
    assert answers[0].json() == answers[1].json()
    assert answers[2].json()["code"] == "idempotency_mismatch"
    assert len(owner.http.get("/v1/projects").json()["data"]) == 2


def test_the_list_is_by_pages(owner: Person) -> None:
    for name in ("B", "C"):
        owner.http.post("/v1/projects", json={"name": name}, headers=owner.writes())

    first = owner.http.get("/v1/projects", params={"limit": 2}).json()
    rest = owner.http.get("/v1/projects", params={"starting_after": first["data"][-1]["id"]}).json()

    assert (len(first["data"]), first["has_more"]) == (2, True)
    assert (len(rest["data"]), rest["has_more"]) == (1, False)


def test_a_patch_changes_what_it_names_and_is_audited(owner: Person) -> None:
    path = f"/v1/projects/{owner.project}"
    patch = {
        "name": "Shop 2", "time_zone": "Asia/Tokyo", "currency": "JPY",
        "rollback_window_minutes": 90, "mail_at_percent": [100, 50, 50],
    }  # fmt: skip
    before = owner.http.get(path).json()

    after = owner.http.patch(path, json=patch, headers=owner.writes())

    assert after.status_code == 200
    assert after.json() == {**before, **patch, "mail_at_percent": [50, 100]}
    assert owner.http.patch(path, json={}, headers=owner.writes()).json() == after.json()
    entries = owner.http.get("/v1/audit-log", params={"action": "project.updated"}).json()["data"]
    assert len(entries) == 1
    assert entries[0]["before"] == {name: before[name] for name in patch}
    assert entries[0]["after"] == {**patch, "mail_at_percent": [50, 100]}
    assert (entries[0]["actor"], entries[0]["actor_email"]) == (owner.me["id"], owner.email)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", 5), ("currency", "XXZ"), ("currency", None), ("time_zone", "Mars"),
     ("rollback_window_minutes", -1), ("rollback_window_minutes", 525_601),
     ("mail_at_percent", [0]), ("mail_at_percent", [101]), ("mail_at_percent", [1] * 6),
     ("status", "active"), ("account_id", "x")],
)  # fmt: skip
def test_a_patch_that_cannot_be_is_refused_by_name(
    owner: Person, field: str, value: object
) -> None:
    path = f"/v1/projects/{owner.project}"
    before = owner.http.get(path).json()

    answer = owner.http.patch(path, json={field: value}, headers=owner.writes())

    assert answer.status_code == 400
    assert answer.json()["field"].startswith(field)
    assert owner.http.get(path).json() == before


def test_a_currency_with_amounts_in_it_stays(owner: Person) -> None:
    path = f"/v1/projects/{owner.project}"
    owner.http.post("/v1/vouchers", json={"discount_value": 5}, headers=owner.writes())

    answer = owner.http.patch(path, json={"currency": "JPY"}, headers=owner.writes())

    assert (answer.status_code, answer.json()["field"]) == (400, "currency")
    assert owner.http.get(path).json()["currency"] == "EUR"


def test_a_changed_currency_holds_for_keys_within_a_second(owner: Person, api: Api) -> None:
    key = owner.http.post("/v1/api-keys", json={"type": "SECRET"}, headers=owner.writes()).json()
    with api.client(key["key"]) as till:
        assert till.get("/v1/vouchers").status_code == 200
        owner.http.patch(
            f"/v1/projects/{owner.project}", json={"currency": "JPY"}, headers=owner.writes()
        )
        time.sleep(STOPPED_WITHIN_S)
        made = till.post("/v1/vouchers", json={"discount_type": "AMOUNT", "discount_value": 5.5})

    assert (made.status_code, made.json()["field"]) == (400, "discount_value")


def test_the_rollback_window_is_the_projects(owner: Person, api: Api) -> None:
    key = owner.http.post("/v1/api-keys", json={"type": "SECRET"}, headers=owner.writes()).json()
    path = f"/v1/projects/{owner.project}"
    owner.http.post(
        "/v1/vouchers", json={"code": "BACK", "discount_value": 5}, headers=owner.writes()
    )
    with api.client(key["key"]) as till:
        won = [till.post("/v1/vouchers/BACK/redeem", json={"order_value": 5}).json() for _ in "12"]
        owner.http.patch(path, json={"rollback_window_minutes": 0}, headers=owner.writes())
        late = till.post(f"/v1/redemptions/{won[0]['redemption_id']}/rollback")
        owner.http.patch(path, json={"rollback_window_minutes": 1}, headers=owner.writes())
        early = till.post(f"/v1/redemptions/{won[1]['redemption_id']}/rollback")

    assert (late.status_code, late.json()["code"]) == (409, "rollback_window_passed")
    assert late.json()["detail"] == "A redemption can be rolled back for 0 minutes."
    assert (early.status_code, early.json()["status"]) == (200, "rolled_back")


def test_an_archived_project_is_looked_at_and_does_nothing(owner: Person, api: Api) -> None:
    key = owner.http.post("/v1/api-keys", json={"type": "SECRET"}, headers=owner.writes()).json()
    owner.http.post(
        "/v1/vouchers", json={"code": "STILL", "discount_value": 5}, headers=owner.writes()
    )
    path = f"/v1/projects/{owner.project}"
    with api.client(key["key"]) as till:
        assert till.post("/v1/vouchers/STILL/redeem", json={"order_value": 5}).status_code == 200

        archived = owner.http.post(f"{path}/archive", headers=owner.writes())
        time.sleep(STOPPED_WITHIN_S)

        assert (archived.status_code, archived.json()["status"]) == (200, "archived")
        for answer in (
            till.get("/v1/vouchers"),
            till.post("/v1/vouchers/STILL/redeem", json={"order_value": 5}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
        refused = owner.http.post(
            "/v1/vouchers", json={"discount_value": 5}, headers=owner.writes()
        )
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        patched = owner.http.patch(path, json={"name": "x"}, headers=owner.writes())
        assert patched.json()["code"] == "forbidden"
        assert owner.http.get("/v1/vouchers/STILL").json()["redeemed_count"] == 1

        restored = owner.http.post(f"{path}/restore", headers=owner.writes())
        assert restored.json()["status"] == "active"
        time.sleep(STOPPED_WITHIN_S)
        assert till.post("/v1/vouchers/STILL/redeem", json={"order_value": 5}).status_code == 200


def test_a_deleted_projects_keys_stop_and_it_says_so(owner: Person, api: Api) -> None:
    key = owner.http.post("/v1/api-keys", json={"type": "SECRET"}, headers=owner.writes()).json()
    path = f"/v1/projects/{owner.project}"

    deleted = owner.http.delete(path, headers=owner.writes())
    time.sleep(STOPPED_WITHIN_S)

    assert (deleted.status_code, deleted.json()["status"]) == (200, "deleting")
    with api.client(key["key"]) as till:
        assert till.get("/v1/vouchers").json()["code"] == "invalid_key"
    assert owner.http.get(path).json()["status"] == "deleting"
    assert owner.http.post(f"{path}/restore", headers=owner.writes()).status_code == 409


def test_an_admin_changes_a_project_and_only_an_owner_puts_it_away(
    owner: Person, sign_up: Sign, api: Api
) -> None:
    admin, analyst = sign_up(), sign_up()
    join(api, admin, owner, "admin")
    join(api, analyst, owner, "analyst")
    path = f"/v1/projects/{owner.project}"

    assert (
        admin.http.patch(path, json={"name": "By admin"}, headers=admin.writes()).status_code == 200
    )
    assert analyst.http.get(path).json()["role"] == "analyst"
    for person in (admin, analyst):
        for method, address in (("POST", f"{path}/archive"), ("DELETE", path)):
            answer = person.http.request(method, address, headers=person.writes())
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert owner.http.get(path).json()["status"] == "active"


def test_a_project_of_others_is_the_same_404_as_none(
    owner: Person, sign_up: Sign, client: httpx.Client
) -> None:
    stranger = sign_up()
    paths = [owner.project, ids.format_id("prj", UUID(int=9)), "nonsense"]

    for method, suffix in (("GET", ""), ("PATCH", ""), ("POST", "/archive"), ("DELETE", "")):
        bodies = []
        for name in paths:
            for asker in (stranger.http, client):
                headers = stranger.writes() if asker is stranger.http else {}
                answer = asker.request(
                    method, f"/v1/projects/{name}{suffix}", headers=headers,
                    json={"name": "mine"} if method == "PATCH" else None,
                )  # fmt: skip
                assert answer.status_code == 404, answer.text
                bodies.append({**answer.json(), "request_id": None})
        assert all(body == bodies[0] for body in bodies)
    assert owner.http.get(f"/v1/projects/{owner.project}").json()["name"] == "My shop"


def test_a_key_sees_and_changes_its_own_project_and_puts_none_away(
    client: httpx.Client, project: Project
) -> None:
    own = ids.format_id("prj", UUID(project.id))

    assert [one["id"] for one in client.get("/v1/projects").json()["data"]] == [own]
    assert client.get(f"/v1/projects/{own}").json()["role"] is None
    assert client.patch(f"/v1/projects/{own}", json={"name": "By key"}).json()["name"] == "By key"
    for method, suffix in (("POST", "/archive"), ("DELETE", "")):
        answer = client.request(method, f"/v1/projects/{own}{suffix}")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    made = client.post("/v1/projects", json={"name": "By key"})
    assert (made.status_code, made.json()["code"]) == (401, "invalid_session")
