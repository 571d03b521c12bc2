"""Members over HTTP: asked in, given a role, and out again; an owner is always left."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from core import ids
from tests.api.conftest import PASSWORD, Api, Person, join

Sign = Callable[..., Person]


def mailed(api: Api, since: int, to: str) -> str:
    """Return the token in the last mail to somebody, as the log has it."""
    for _ in range(100):
        texts = [
            str(line["text"]) for line in api.log_since(since)
            if line.get("event") == "mail" and line.get("to") == to
        ]  # fmt: skip
        # What asks to confirm an e-mail has a token of another form.
        if found := re.findall(r"token=([\w-]{43})\b", "".join(texts)):
            return str(found[-1])
        time.sleep(0.02)
    raise AssertionError(f"no mail to {to}")


def invite(owner: Person, email: str, role: str) -> httpx.Response:
    return owner.http.post(
        f"/v1/projects/{owner.project}/invitations", json={"email": email, "role": role},
        headers=owner.writes(),
    )  # fmt: skip


def roles(person: Person) -> dict[str, str]:
    answer = person.http.get(f"/v1/projects/{person.project}/members").json()
    return {member["email"]: member["role"] for member in answer["data"]}


def accept(person: Person, token: str) -> httpx.Response:
    return person.http.post(
        "/v1/auth/invitations/accept", json={"token": token}, headers=person.writes()
    )


def test_an_invited_person_joins_with_the_role_they_were_offered(sign_up: Sign, api: Api) -> None:
    owner, guest = sign_up(), sign_up()
    size = api.log_size()

    invited = invite(owner, guest.email.upper(), "admin")

    assert invited.status_code == 201
    assert (invited.json()["email"], invited.json()["role"]) == (guest.email, "admin")
    token = mailed(api, size, guest.email)
    assert token not in invited.text
    joined = accept(guest, token)
    assert {one["id"]: one["role"] for one in joined.json()["projects"]} == {
        guest.project: "owner",
        owner.project: "admin",
    }
    assert roles(owner) == {owner.email: "owner", guest.email: "admin"}
    assert accept(guest, token).status_code == 404
    open_ones = owner.http.get(f"/v1/projects/{owner.project}/invitations").json()
    assert open_ones == {"data": []}
    log = owner.http.get("/v1/audit-log").json()["data"]
    assert [(entry["action"], entry["actor_email"]) for entry in log[:2]] == [
        ("member.joined", guest.email),
        ("invitation.created", owner.email),
    ]


def test_who_has_no_account_signs_up_by_the_invitation(
    sign_up: Sign, visitor: Callable[[], httpx.Client], api: Api
) -> None:
    owner = sign_up()
    size = api.log_size()
    invite(owner, "newcomer@example.com", "analyst")
    token = mailed(api, size, "newcomer@example.com")
    body = {"email": "newcomer@example.com", "password": PASSWORD, "invitation": token}

    joined = visitor().post("/v1/auth/sign-up", json=body)

    assert joined.status_code == 201
    assert [(one["id"], one["role"]) for one in joined.json()["projects"]] == [
        (owner.project, "analyst")
    ]
    again = visitor().post("/v1/auth/sign-up", json={**body, "email": "second@example.com"})
    assert again.status_code == 404
    assert api.rows("select 1 from vf.users where email = 'second@example.com'") == []


def test_a_second_invitation_voids_the_first_and_a_revoked_one_is_none(
    sign_up: Sign, api: Api
) -> None:
    owner, guest = sign_up(), sign_up()
    size = api.log_size()
    invite(owner, guest.email, "admin")
    first = mailed(api, size, guest.email)
    size = api.log_size()
    second_id = invite(owner, guest.email, "analyst").json()["id"]
    second = mailed(api, size, guest.email)
    path = f"/v1/projects/{owner.project}/invitations"

    assert accept(guest, first).status_code == 404
    assert [one["id"] for one in owner.http.get(path).json()["data"]] == [second_id]
    assert owner.http.delete(f"{path}/{second_id}", headers=owner.writes()).status_code == 200
    assert accept(guest, second).status_code == 404
    assert owner.http.delete(f"{path}/{second_id}", headers=owner.writes()).status_code == 404
    assert list(roles(owner)) == [owner.email]


def test_an_invitation_is_good_for_a_week(sign_up: Sign, api: Api) -> None:
    owner, guest = sign_up(), sign_up()
    size = api.log_size()
    invite(owner, guest.email, "admin")
    token = mailed(api, size, guest.email)
    api.rows("update vf.invitations set expires_at = now() where email = $1", guest.email)

    assert accept(guest, token).status_code == 404
    assert list(roles(owner)) == [owner.email]


@pytest.mark.parametrize(
    ("asker", "asked"),
    [("admin", "owner"), ("analyst", "analyst"), ("analyst", "owner")],
)
def test_nobody_asks_in_more_than_they_may(sign_up: Sign, api: Api, asker: str, asked: str) -> None:
    owner, person = sign_up(), sign_up()
    join(api, person, owner, asker)
    before = api.rows("select count(*) from vf.invitations")[0][0]

    answer = person.http.post(
        f"/v1/projects/{owner.project}/invitations",
        json={"email": "x@example.com", "role": asked}, headers=person.writes(),
    )  # fmt: skip

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert api.rows("select count(*) from vf.invitations")[0][0] == before


def test_an_admin_touches_no_owner(sign_up: Sign, api: Api) -> None:
    owner, admin, analyst = sign_up(), sign_up(), sign_up()
    join(api, admin, owner, "admin")
    join(api, analyst, owner, "analyst")
    path = f"/v1/projects/{owner.project}/members"

    for target, method, body in (
        (owner, "PATCH", {"role": "analyst"}),
        (owner, "DELETE", None),
        (admin, "PATCH", {"role": "owner"}),
        (analyst, "PATCH", {"role": "owner"}),
    ):
        answer = admin.http.request(
            method, f"{path}/{target.me['id']}", json=body, headers=admin.writes()
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    made = admin.http.patch(
        f"{path}/{analyst.me['id']}", json={"role": "admin"}, headers=admin.writes()
    )

    assert made.json()["role"] == "admin"
    assert roles(owner) == {owner.email: "owner", admin.email: "admin", analyst.email: "admin"}


def test_a_changed_or_taken_role_holds_with_the_next_request(sign_up: Sign, api: Api) -> None:
    owner, person = sign_up(), sign_up()
    join(api, person, owner, "admin")
    path = f"/v1/projects/{owner.project}/members/{person.me['id']}"

    def make_voucher() -> int:
        return person.http.post(
            "/v1/vouchers", json={"discount_value": 5}, headers=person.writes(owner.project)
        ).status_code

    assert make_voucher() == 201
    owner.http.patch(path, json={"role": "analyst"}, headers=owner.writes())
    assert make_voucher() == 403
    assert owner.http.delete(path, headers=owner.writes()).json()["status"] == "removed"
    assert make_voucher() == 404
    assert person.http.get(f"/v1/projects/{owner.project}").status_code == 404
    assert person.http.get("/v1/auth/me").json()["projects"] == person.me["projects"]


def test_the_last_owner_stays_also_when_two_leave_at_once(sign_up: Sign, api: Api) -> None:
    first, second = sign_up(), sign_up()
    path = f"/v1/projects/{first.project}/members"
    for method, body in (("DELETE", None), ("PATCH", {"role": "admin"})):
        answer = first.http.request(
            method, f"{path}/{first.me['id']}", json=body, headers=first.writes()
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    join(api, second, first, "owner")

    def leave(person: Person) -> int:
        own = f"{path}/{person.me['id']}"
        return person.http.delete(own, headers=person.writes()).status_code

    with ThreadPoolExecutor(2) as threads:
        answers = sorted(threads.map(leave, (first, second)))

    assert answers == [200, 400]
    left = api.rows(
        "select role from vf.memberships where project_id = $1",
        ids.parse_id("prj", first.project),
    )
    assert [row[0] for row in left] == ["owner"]


def test_the_members_of_another_project_are_the_same_404(sign_up: Sign) -> None:
    owner, stranger = sign_up(), sign_up()

    for path in (f"/v1/projects/{owner.project}/members", "/v1/projects/nonsense/members"):
        assert stranger.http.get(path).status_code == 404
    own = f"/v1/projects/{stranger.project}/members/{owner.me['id']}"
    answer = stranger.http.patch(own, json={"role": "analyst"}, headers=stranger.writes())
    assert answer.status_code == 404
    assert roles(owner) == {owner.email: "owner"}


def test_a_key_sees_the_members_and_changes_none(client: httpx.Client) -> None:
    own = client.get("/v1/projects").json()["data"][0]["id"]

    assert client.get(f"/v1/projects/{own}/members").json() == {"data": []}
    answer = client.post(
        f"/v1/projects/{own}/invitations", json={"email": "x@example.com", "role": "analyst"}
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
