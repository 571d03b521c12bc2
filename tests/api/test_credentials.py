"""What people log in with over HTTP: new and forgotten passwords, and second factors."""

import base64
import time
from collections.abc import Callable

import httpx
import pytest

from core.rules import one_time_codes
from tests.api.conftest import PASSWORD, Api, Person
from tests.api.test_members import mailed

Sign = Callable[..., Person]
Visitor = Callable[[], httpx.Client]
OTHER = "another good password"


def log_in(http: httpx.Client, email: str, password: str = PASSWORD, **more: str) -> httpx.Response:
    return http.post("/v1/auth/log-in", json={"email": email, "password": password, **more})


def code_of(secret: str, *, steps: int = 0) -> str:
    padded = secret + "=" * (-len(secret) % 8)
    step = int(time.time()) // one_time_codes.STEP_S + steps
    return one_time_codes.code_at(base64.b32decode(padded), step)


def with_second_factor(person: Person) -> tuple[str, list[str]]:
    begun = person.http.post(
        "/v1/auth/second-factor", json={"password": PASSWORD}, headers=person.writes()
    ).json()
    confirmed = person.http.post(
        "/v1/auth/second-factor/confirm", json={"code": code_of(begun["secret"], steps=-1)},
        headers=person.writes(),
    )  # fmt: skip
    assert confirmed.status_code == 200, confirmed.text
    return begun["secret"], confirmed.json()["recovery_codes"]


def test_a_forgotten_password_is_set_anew_once_by_mail(
    sign_up: Sign, visitor: Visitor, api: Api
) -> None:
    anna = sign_up()
    size = api.log_size()

    asked = visitor().post("/v1/auth/password-reset", json={"email": anna.email})
    token = mailed(api, size, anna.email)
    set_anew = [
        visitor().post("/v1/auth/password-reset/confirm", json={"token": token, "password": new})
        for new in (OTHER, "a third good password")
    ]

    assert (asked.status_code, asked.json()) == (200, {"status": "sent"})
    assert [answer.status_code for answer in set_anew] == [200, 404]
    assert anna.http.get("/v1/auth/me").status_code == 401, "every session ended"
    assert log_in(visitor(), anna.email).status_code == 401
    assert log_in(visitor(), anna.email, OTHER).status_code == 200


def test_nobody_learns_who_has_an_account_by_forgetting(visitor: Visitor, api: Api) -> None:
    before = api.rows("select count(*) from vf.password_resets")[0][0]

    answer = visitor().post("/v1/auth/password-reset", json={"email": "nobody@example.com"})

    assert (answer.status_code, answer.json()) == (200, {"status": "sent"})
    assert api.rows("select count(*) from vf.password_resets")[0][0] == before


def test_a_later_mail_voids_the_earlier_one_and_an_hour_voids_all(
    sign_up: Sign, visitor: Visitor, api: Api
) -> None:
    anna = sign_up()
    tokens = []
    for _ in range(2):
        size = api.log_size()
        visitor().post("/v1/auth/password-reset", json={"email": anna.email})
        tokens.append(mailed(api, size, anna.email))
    full = visitor().post("/v1/auth/password-reset", json={"email": anna.email})
    # The minute may have turned in between.
    assert full.status_code in (429, 200)
    api.rows("update vf.password_resets set expires_at = now()")

    for token in tokens:
        answer = visitor().post(
            "/v1/auth/password-reset/confirm", json={"token": token, "password": OTHER}
        )
        assert answer.status_code == 404
    assert log_in(visitor(), anna.email).status_code == 200


def test_a_changed_password_ends_the_other_sessions(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    phone = visitor()
    log_in(phone, anna.email)

    wrong = anna.http.post(
        "/v1/auth/password", json={"current_password": "not it at all", "password": OTHER},
        headers=anna.writes(),
    )  # fmt: skip
    assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_credentials")
    assert phone.get("/v1/auth/me").status_code == 200
    right = anna.http.post(
        "/v1/auth/password", json={"current_password": PASSWORD, "password": OTHER},
        headers=anna.writes(),
    )  # fmt: skip

    assert right.status_code == 200
    assert anna.http.get("/v1/auth/me").status_code == 200
    assert phone.get("/v1/auth/me").status_code == 401
    assert log_in(visitor(), anna.email, OTHER).status_code == 200


def test_who_has_a_second_factor_needs_it(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    secret, _ = with_second_factor(anna)

    without = log_in(visitor(), anna.email)
    wrong = log_in(visitor(), anna.email, code="000000")
    right = log_in(visitor(), anna.email, code=code_of(secret))

    assert (without.status_code, without.json()["code"]) == (401, "second_factor_required")
    assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_credentials")
    assert "set-cookie" not in {*without.headers, *wrong.headers}
    assert (right.status_code, right.json()["has_second_factor"]) == (200, True)


def test_a_code_is_taken_once(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    secret, recovery = with_second_factor(anna)
    code = code_of(secret)

    assert log_in(visitor(), anna.email, code=code).status_code == 200
    assert log_in(visitor(), anna.email, code=code).status_code == 401
    assert len(set(recovery)) == 10
    typed = recovery[3].lower()[:5] + "-" + recovery[3][5:]
    assert log_in(visitor(), anna.email, code=typed).status_code == 200
    assert log_in(visitor(), anna.email, code=recovery[3]).status_code == 401
    assert log_in(visitor(), anna.email, code=recovery[4]).status_code == 200


def test_a_second_factor_counts_only_when_it_was_confirmed(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    wrong = anna.http.post(
        "/v1/auth/second-factor", json={"password": "not it at all"}, headers=anna.writes()
    )
    assert wrong.json()["code"] == "invalid_credentials"
    nothing = anna.http.post(
        "/v1/auth/second-factor/confirm", json={"code": "123456"}, headers=anna.writes()
    )
    assert nothing.status_code == 409
    anna.http.post("/v1/auth/second-factor", json={"password": PASSWORD}, headers=anna.writes())

    assert log_in(visitor(), anna.email).status_code == 200
    refused = anna.http.post(
        "/v1/auth/second-factor/confirm", json={"code": "12345x"}, headers=anna.writes()
    )
    assert refused.json()["code"] == "invalid_credentials"
    assert anna.http.get("/v1/auth/me").json()["has_second_factor"] is False


def test_a_second_factor_goes_by_the_password(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    with_second_factor(anna)

    refused = anna.http.request(
        "DELETE", "/v1/auth/second-factor", json={"password": "not it at all"},
        headers=anna.writes(),
    )  # fmt: skip
    assert refused.status_code == 401
    assert log_in(visitor(), anna.email).json()["code"] == "second_factor_required"
    removed = anna.http.request(
        "DELETE", "/v1/auth/second-factor", json={"password": PASSWORD}, headers=anna.writes()
    )

    assert removed.json() == {"status": "removed"}
    assert log_in(visitor(), anna.email).status_code == 200


def test_guessed_codes_are_stopped_like_guessed_passwords(sign_up: Sign, visitor: Visitor) -> None:
    anna = sign_up()
    secret, _ = with_second_factor(anna)

    answers = [log_in(visitor(), anna.email, code=f"{n:06d}").status_code for n in range(7)]

    # The minute may turn once in between.
    assert set(answers) == {401, 429}
    assert log_in(visitor(), anna.email, code=code_of(secret)).status_code == 429


def test_a_person_sees_and_ends_their_sessions(sign_up: Sign, visitor: Visitor) -> None:
    anna, berta = sign_up(), sign_up()
    phone = visitor()
    phone.headers["User-Agent"] = "Phone/1"
    log_in(phone, anna.email)

    listed = anna.http.get("/v1/auth/sessions").json()["data"]
    ended = next(one for one in listed if not one["is_this_one"])

    assert [one["is_this_one"] for one in listed] == [False, True]
    assert (ended["agent"], ended["address"].startswith("127.0.0.")) == ("Phone/1", True)
    path = f"/v1/auth/sessions/{ended['id']}"
    assert berta.http.delete(path, headers=berta.writes()).status_code == 404
    assert phone.get("/v1/auth/me").status_code == 200
    assert anna.http.delete(path, headers=anna.writes()).status_code == 200
    assert phone.get("/v1/auth/me").status_code == 401
    assert anna.http.delete(path, headers=anna.writes()).status_code == 404


@pytest.mark.parametrize("path", ["password-reset", "password", "second-factor"])
def test_no_table_holds_a_token_or_a_code(sign_up: Sign, api: Api, path: str) -> None:
    anna = sign_up()
    size = api.log_size()
    if path == "password-reset":
        anna.http.post("/v1/auth/password-reset", json={"email": anna.email})
        secrets = [mailed(api, size, anna.email)]
    elif path == "password":
        body = {"current_password": PASSWORD, "password": "my very new password"}
        anna.http.post("/v1/auth/password", json=body, headers=anna.writes())
        secrets = ["my very new password"]
    else:
        secret, recovery = with_second_factor(anna)
        secrets = [secret, *recovery]

    dump = "\n".join(
        str(row[0])
        for table in api.row_counts()
        for row in api.rows(f"select to_jsonb(t)::text from vf.{table} t")
    )
    assert [found for found in secrets if found in dump] == []


def test_an_e_mail_is_confirmed_by_the_link_in_its_mail_and_nothing_waits_for_it(
    sign_up: Sign, visitor: Visitor, api: Api
) -> None:
    size = api.log_size()
    anna, ben = sign_up(), sign_up()

    def confirmation(to: str) -> str:
        for _ in range(100):
            for line in api.log_since(size):
                text = str(line.get("text"))
                if line.get("event") == "mail" and line.get("to") == to and "confirm" in text:
                    return text.partition("token=")[2].split()[0]
            time.sleep(0.02)
        raise AssertionError(f"no mail to {to}")

    def is_confirmed(person: Person) -> bool:
        return bool(person.http.get("/v1/auth/me").json()["is_email_confirmed"])

    def confirm(token: str) -> httpx.Response:
        return visitor().post("/v1/auth/email-confirmation/confirm", json={"token": token})

    token = confirmation(anna.email)
    user, ends, digest = token.split(".")
    others = ben.me["id"]
    for wrong in (
        f"{others}.{ends}.{digest}", f"{user}.{int(ends) + 1}.{digest}", f"{user}.0.{digest}",
        f"{user}.{ends}.", "x", f"{user}.²{ends}.{digest}",
    ):  # fmt: skip
        assert confirm(wrong).status_code == 404, wrong
    assert (is_confirmed(anna), is_confirmed(ben)) == (False, False)
    assert visitor().get("/dashboard/confirm-email", params={"token": token}).status_code == 200
    assert not is_confirmed(anna), "looking at the page confirms nothing"

    assert [confirm(token).status_code for _ in range(2)] == [200, 200]
    assert (is_confirmed(anna), is_confirmed(ben)) == (True, False)
    ask = "/v1/auth/email-confirmation"
    assert anna.http.post(ask, headers=anna.writes()).json() == {"status": "confirmed"}
    told = [ben.http.post(ask, headers=ben.writes()).status_code for _ in range(3)]
    assert told == [200, 200, 429]
    posted = visitor().post("/dashboard/confirm-email", data={"token": confirmation(ben.email)})
    assert (posted.status_code, is_confirmed(ben)) == (303, True)
