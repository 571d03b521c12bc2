"""People over HTTP: signing up, logging in, and what a session may do in which project."""

import asyncio
import itertools
import re
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest

from api import docs
from api.app import ROUTES
from core import demo, ids
from tests.api.conftest import PASSWORD, Api, Person, join

_numbers = itertools.count(1)


def test_signing_up_makes_a_person_with_a_project_and_logs_them_in(
    sign_up: Callable[..., Person], api: Api
) -> None:
    anna = sign_up(name="Anna", project_name="Anna's shop", currency="JPY", time_zone="Asia/Tokyo")

    assert anna.me["email"] == anna.email
    assert anna.me["name"] == "Anna"
    assert anna.me["projects"] == [
        {"id": anna.project, "name": "Anna's shop", "currency": "JPY", "time_zone": "Asia/Tokyo",
         "status": "active", "role": "owner"}
    ]  # fmt: skip
    assert anna.http.get("/v1/auth/me").json() == anna.me
    row = api.rows(
        "select a.plan, u.password_hash from vf.users u join vf.accounts a on a.id = u.account_id "
        "where u.email = $1",
        anna.email,
    )[0]
    assert row["plan"] == "free"
    assert row["password_hash"].startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_the_cookie_is_for_the_server_alone(visitor: Callable[[], httpx.Client]) -> None:
    answer = visitor().post(
        "/v1/auth/sign-up",
        json={"email": f"cookie{next(_numbers)}@example.com", "password": PASSWORD},
    )

    assert re.fullmatch(
        r"vauchflow_session=[\w-]{43}; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax",
        answer.headers["set-cookie"],
    )
    assert answer.headers["cache-control"] == "no-store"


def test_an_e_mail_has_one_account_however_it_is_written(
    sign_up: Callable[..., Person], visitor: Callable[[], httpx.Client], api: Api
) -> None:
    anna = sign_up()
    before = api.row_counts()

    answer = visitor().post(
        "/v1/auth/sign-up", json={"email": anna.email.upper(), "password": "another password"}
    )

    assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    assert "set-cookie" not in answer.headers
    after = api.row_counts()
    assert {name for name in after if after[name] != before[name]} <= {"failed_lookups"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "anna"),
        ("email", "anna@example"),
        ("email", "an na@example.com"),
        ("email", "anna@example.com\n"),
        ("email", "änna@example.com"),
        ("password", "too short"),
        ("password", "x" * 129),
        ("currency", "XXZ"),
        ("time_zone", "Mars/Olympus"),
        ("project_name", ""),
        ("role", "owner"),
    ],
)
def test_a_sign_up_that_cannot_be_is_refused_by_name(
    visitor: Callable[[], httpx.Client], api: Api, field: str, value: str
) -> None:
    before = api.row_counts()

    answer = visitor().post(
        "/v1/auth/sign-up",
        json={"email": "nobody@example.com", "password": PASSWORD, field: value},
    )

    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert api.row_counts() == before


def test_logging_in_gives_a_new_token_each_time_and_ends_the_browsers_old_one(
    sign_up: Callable[..., Person], visitor: Callable[[], httpx.Client]
) -> None:
    anna = sign_up()
    first = anna.token

    answer = anna.http.post(
        "/v1/auth/log-in", json={"email": anna.email.title(), "password": PASSWORD}
    )

    assert answer.status_code == 200
    assert anna.token != first
    assert answer.json()["csrf_token"] != anna.me["csrf_token"]
    old = visitor().get("/v1/auth/me", headers={"Cookie": f"vauchflow_session={first}"})
    assert (old.status_code, old.json()["code"]) == (401, "invalid_session")
    assert anna.http.get("/v1/auth/me").status_code == 200


def test_logging_out_ends_the_session_and_no_other(
    sign_up: Callable[..., Person], visitor: Callable[[], httpx.Client]
) -> None:
    anna = sign_up()
    phone = visitor()
    phone.post("/v1/auth/log-in", json={"email": anna.email, "password": PASSWORD})
    token = anna.token

    answer = anna.http.post("/v1/auth/log-out", headers=anna.writes())

    assert (answer.status_code, answer.json()) == (200, {"status": "logged_out"})
    assert "vauchflow_session" not in anna.http.cookies
    stolen = visitor().get("/v1/auth/me", headers={"Cookie": f"vauchflow_session={token}"})
    assert stolen.status_code == 401
    assert phone.get("/v1/auth/me").json()["email"] == anna.email


@pytest.mark.parametrize("aged", ["seen_at = now() - interval '31 minutes'", "expires_at = now()"])
def test_an_idle_or_old_session_is_over(
    sign_up: Callable[..., Person], api: Api, aged: str
) -> None:
    anna = sign_up()
    user_id = ids.parse_id("usr", str(anna.me["id"]))
    assert (
        len(api.rows(f"update vf.sessions set {aged} where user_id = $1 returning 1", user_id)) == 1
    )

    assert anna.http.get("/v1/auth/me").json()["code"] == "invalid_session"
    assert anna.http.get("/v1/vouchers").json()["code"] == "invalid_session"


def test_a_session_that_is_used_lives_on(sign_up: Callable[..., Person], api: Api) -> None:
    anna = sign_up()
    user_id = ids.parse_id("usr", str(anna.me["id"]))
    api.rows(
        "update vf.sessions set seen_at = now() - interval '29 minutes' where user_id = $1",
        user_id,
    )

    assert anna.http.get("/v1/auth/me").status_code == 200

    age = api.rows(
        "select now() - seen_at < interval '1 minute' from vf.sessions where user_id = $1", user_id
    )
    assert age[0][0] is True


def test_a_wrong_password_and_an_unknown_e_mail_are_one_answer(
    sign_up: Callable[..., Person], visitor: Callable[[], httpx.Client], api: Api
) -> None:
    anna = sign_up()
    before = api.rows("select count(*) from vf.sessions")[0][0]

    answers = [
        visitor().post("/v1/auth/log-in", json={"email": email, "password": "not the password"})
        for email in (anna.email, "nobody-has-this@example.com")
    ]

    assert [answer.status_code for answer in answers] == [401, 401]
    bodies = [{**answer.json(), "request_id": None} for answer in answers]
    assert bodies[0] == bodies[1]
    assert bodies[0]["code"] == "invalid_credentials"
    assert api.rows("select count(*) from vf.sessions")[0][0] == before


def test_guesses_at_a_password_are_stopped_whatever_address_they_come_from(
    sign_up: Callable[..., Person], visitor: Callable[[], httpx.Client]
) -> None:
    anna = sign_up()

    answers = [
        visitor().post("/v1/auth/log-in", json={"email": anna.email, "password": f"guess {n}"})
        for n in range(7)
    ]
    right = visitor().post("/v1/auth/log-in", json={"email": anna.email, "password": PASSWORD})

    # The minute may turn once in between.
    assert {answer.status_code for answer in answers} == {401, 429}
    assert (right.status_code, right.json()["code"]) == (429, "too_many_attempts")
    assert anna.http.get("/v1/auth/me").status_code == 200


def test_a_person_works_in_their_project_as_a_key_does(sign_up: Callable[..., Person]) -> None:
    anna = sign_up()

    made = anna.http.post(
        "/v1/vouchers", json={"code": "HELLO", "discount_value": 5}, headers=anna.writes()
    )

    assert made.status_code == 201
    assert anna.http.get("/v1/vouchers/HELLO").json()["id"] == made.json()["id"]
    assert anna.http.get("/v1/api-keys").json()["key"] is None


def test_what_a_person_does_is_audited_under_their_name(
    sign_up: Callable[..., Person], api: Api
) -> None:
    anna = sign_up()

    key = anna.http.post("/v1/api-keys", json={"type": "SECRET"}, headers=anna.writes()).json()

    entries = api.rows(
        "select actor, action, target from vf.audit_log where project_id = $1 order by id",
        ids.parse_id("prj", anna.project),
    )
    assert [tuple(entry) for entry in entries] == [
        (anna.me["id"], "project.created", anna.project),
        (anna.me["id"], "api_key.created", key["id"]),
    ]


def test_a_project_of_others_is_as_one_that_is_not_there(sign_up: Callable[..., Person]) -> None:
    anna, berta = sign_up(), sign_up()
    nobodys = ids.format_id("prj", UUID(int=77))

    answers = [
        anna.http.get("/v1/vouchers", headers={"VauchFlow-Project": project})
        for project in (berta.project, nobodys, "nonsense")
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    bodies = [{**answer.json(), "request_id": None} for answer in answers]
    assert bodies[0] == bodies[1] == bodies[2]


def test_a_person_of_two_projects_says_which(sign_up: Callable[..., Person], api: Api) -> None:
    anna, berta = sign_up(), sign_up()
    join(api, anna, berta, "analyst")

    unsaid = anna.http.get("/v1/vouchers")
    projects = anna.http.get("/v1/auth/me").json()["projects"]

    assert (unsaid.status_code, unsaid.json()["field"]) == (400, "VauchFlow-Project")
    assert {one["id"]: one["role"] for one in projects} == {
        anna.project: "owner",
        berta.project: "analyst",
    }
    for project in (anna.project, berta.project):
        answer = anna.http.get("/v1/vouchers", headers={"VauchFlow-Project": project})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": "ä"}],
    ids=str,
)
def test_a_write_with_the_cookie_alone_is_refused(
    sign_up: Callable[..., Person], api: Api, headers: dict[str, str]
) -> None:
    anna = sign_up()
    before = api.row_counts()

    for path in ("/v1/vouchers", "/v1/auth/log-out"):
        answer = anna.http.post(
            path, json={} if "auth" in path else {"discount_value": 5},
            headers={k: v.encode("latin-1") for k, v in headers.items()},  # type: ignore[misc]
        )  # fmt: skip
        assert (answer.status_code, answer.json()["code"]) == (403, "invalid_csrf_token")

    assert api.row_counts() == before
    assert anna.http.get("/v1/auth/me").status_code == 200


def test_another_sites_page_can_neither_write_nor_log_anybody_in(
    sign_up: Callable[..., Person],
) -> None:
    anna = sign_up()
    foreign = {"Sec-Fetch-Site": "cross-site"}

    answers = [
        anna.http.post(
            "/v1/vouchers", json={"discount_value": 5}, headers={**anna.writes(), **foreign}
        ),
        anna.http.post(
            "/v1/auth/log-in", json={"email": anna.email, "password": PASSWORD}, headers=foreign
        ),
    ]

    assert [answer.json()["code"] for answer in answers] == ["invalid_csrf_token"] * 2


def test_another_persons_csrf_token_is_none(sign_up: Callable[..., Person]) -> None:
    anna, berta = sign_up(), sign_up()

    answer = anna.http.post(
        "/v1/vouchers", json={"discount_value": 5},
        headers={**anna.writes(), "X-CSRF-Token": str(berta.me["csrf_token"])},
    )  # fmt: skip

    assert answer.json()["code"] == "invalid_csrf_token"


WRITES = sorted(
    {(method, path) for route in ROUTES for path in route.paths if path.startswith("/v1/")
     for method in route.http_methods - {"GET", "HEAD", "OPTIONS"}}
    | {(hot.method, hot.path) for hot in docs.HOT}
)  # fmt: skip


def test_an_analyst_changes_nothing_by_any_address_there_is(
    sign_up: Callable[..., Person], api: Api
) -> None:
    owner, analyst = sign_up(), sign_up()
    join(api, analyst, owner, "analyst")
    owner.http.post(
        "/v1/vouchers", json={"code": "A1", "discount_value": 5}, headers=owner.writes()
    )
    writes = [(m, p) for m, p in WRITES if not p.startswith("/v1/auth/") and p != "/v1/projects"]
    assert len(writes) > 50
    before = api.row_counts()

    told = {}
    for method, template in writes:
        path = re.sub(r"\{[^}]*\}", owner.project if "projects/" in template else "A1", template)
        for headers in (analyst.writes(owner.project), {"VauchFlow-Project": owner.project}):
            answer = analyst.http.request(method, path, json={}, headers=headers)
            told[f"{method} {template}"] = (answer.status_code, answer.json()["code"])
            is_hot = any(template == hot.path for hot in docs.HOT)
            allowed = {"missing_key"} if is_hot else {"forbidden", "invalid_csrf_token"}
            assert answer.json()["code"] in allowed, (method, template, answer.text)

    assert len(told) == len(writes)
    assert api.row_counts() == before
    assert (
        analyst.http.get("/v1/vouchers/A1", headers=analyst.writes(owner.project)).status_code
        == 200
    )


def test_no_log_line_and_no_table_holds_a_password_or_a_session(
    sign_up: Callable[..., Person], api: Api
) -> None:
    anna = sign_up()
    anna.http.get("/v1/auth/me")

    dump = "\n".join(
        str(row[0])
        for table in api.row_counts()
        for row in api.rows(f"select to_jsonb(t)::text from vf.{table} t")
    )
    for secret in (PASSWORD, anna.token, str(anna.me["csrf_token"])):
        assert secret not in dump
        assert secret not in api.log_text()


def test_the_demo_user_logs_in_and_owns_the_demo_project(
    api: Api, visitor: Callable[[], httpx.Client]
) -> None:
    made = asyncio.run(demo.seed(api.settings))

    answer = visitor().post(
        "/v1/auth/log-in",
        json={"email": made.dashboard_email, "password": made.dashboard_password},
    )

    assert answer.status_code == 200
    assert [(one["id"], one["role"]) for one in answer.json()["projects"]] == [
        (made.project_id, "owner")
    ]
