"""Every route against every credential: who may not gets the same plain no, and nothing changes.

The routes come from /openapi.json: one that is added tomorrow is asked tomorrow.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import httpx
import pytest

from api.auth import scope_of
from core import api_keys, ids
from tests.api.conftest import Api, Person, Project, join
from tests.api.described import Operation, operations
from tests.api.objects import one_of_each

WITHIN_S: Final = 1.0
# What browsers' keys are for.
FOR_BROWSERS: Final = {
    "vouchers.validate", "gift_cards.lookup", "flash_sales.get", "flash_sales.claim",
}  # fmt: skip
# A shop's own names for its customers mean something in every shop.
ASKED_OF_ANYBODY: Final = {"customers.wallet.list", "customers.segments"}
# Members of a body that choose a name of one's own, and do not point at anything.
CHOSEN: Final = {"customer_id", "order_id", "name", "code", "reference", "holder", "description"}


@pytest.fixture(scope="module")
def every(client: httpx.Client) -> list[Operation]:
    """Return every operation there is."""
    return operations(client.get("/openapi.json").json())


@pytest.fixture(scope="module")
def keyed(every: list[Operation]) -> list[Operation]:
    """Return those that keys are for."""
    return [one for one in every if one.asker in ("key", "program")]


def ask(
    client: httpx.Client, one: Operation, members: dict[str, Any] | None = None, **names: str
) -> httpx.Response:
    body = None if one.body is None else one.body | (members or {})
    return client.request(one.method, one.at(**names), json=body)


def told(answer: httpx.Response, named: str) -> tuple[int, Any, set[str]]:
    """Return all that an answer says, but for what names the request and what it asked for."""
    headers = set(answer.headers) - {"x-request-id"}
    if answer.status_code < 300 and answer.request.method != "GET":
        # Something new was made, with an id and a time of its own.
        return answer.status_code, set(answer.json()), headers
    text = answer.text.replace(answer.headers["x-request-id"], "").replace(named, "…")
    return answer.status_code, text, headers


def test_there_are_routes_to_ask(every: list[Operation], keyed: list[Operation]) -> None:
    assert len(every) > 140 and len(keyed) > 120
    assert len({(one.method, one.path) for one in every}) == len(every)


def test_no_route_answers_without_a_key_that_works(
    api: Api, client: httpx.Client, keyed: list[Operation]
) -> None:
    revoked, expired = (
        client.post("/v1/api-keys", json={"type": "SECRET"}).json() for _ in range(2)
    )
    client.delete(f"/v1/api-keys/{revoked['id']}")
    api.rows(
        "update vf.api_keys set expires_at = now() where id = $1",
        ids.parse_id("key", expired["id"]),
    )
    typed = client.headers["Authorization"].removeprefix("Bearer ")
    wrong = {
        None: "missing_key",
        "nonsense": "malformed_key",
        typed[:20] + ("a" if typed[20] != "a" else "b") + typed[21:]: "malformed_key",
        api_keys.generate("SECRET"): "invalid_key",
        api_keys.generate("AGENT"): "invalid_key",
        revoked["key"]: "invalid_key",
        expired["key"]: "invalid_key",
    }
    time.sleep(WITHIN_S)
    before = api.row_counts()
    for key, code in wrong.items():
        with api.client(key) as nobody:
            for one in keyed:
                answer = ask(nobody, one)
                assert (answer.status_code, answer.json()["code"]) == (401, code), (one, key)
    assert api.row_counts() == before


def test_a_key_without_the_scope_is_told_which_and_nothing_happens(
    api: Api, client: httpx.Client, keyed: list[Operation]
) -> None:
    narrow = client.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["usage:read"]}).json()
    before = api.row_counts()
    asked = 0
    with api.client(narrow["key"]) as other:
        for one in keyed:
            scope = scope_of(one.id, one.method)
            if scope == "usage:read":
                continue
            answer = ask(other, one)
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), one
            assert answer.json()["because"] == {"scope": scope}, one
            asked += 1
    assert asked >= len(keyed) - 2
    after = api.row_counts()
    # What is counted of the calls is all that is new.
    assert {k: v for k, v in after.items() if k != "usage_hours"} == {
        k: v for k, v in before.items() if k != "usage_hours"
    }


def test_a_browsers_key_reaches_what_is_for_browsers_alone(
    browser: httpx.Client, keyed: list[Operation]
) -> None:
    open_to_it = set()
    for one in keyed:
        answer = ask(browser, one)
        if answer.status_code != 403 or answer.json()["code"] != "forbidden":
            open_to_it.add(one.id)
    assert open_to_it == FOR_BROWSERS


def test_nobody_gets_to_what_is_for_people_without_a_session_that_lives(
    sign_up: Callable[..., Person],
    visitor: Callable[[], httpx.Client],
    client: httpx.Client,
    every: list[Operation],
) -> None:
    anna = sign_up()
    ended = visitor()
    ended.cookies.set("vauchflow_session", anna.token)
    assert anna.http.post("/v1/auth/log-out", headers=anna.writes()).status_code == 200
    of_people = [one for one in every if one.asker == "person"]
    assert len(of_people) >= 9
    for one in of_people:
        # A key is no person, whatever it may do.
        for who in (visitor(), ended, client):
            answer = ask(who, one)
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_session"), one


def test_who_may_only_look_changes_nothing(
    api: Api, sign_up: Callable[..., Person], keyed: list[Operation]
) -> None:
    owner, analyst = sign_up(), sign_up()
    join(api, analyst, owner, "analyst")
    headers = analyst.writes(owner.project)
    before = api.row_counts()
    for one in keyed:
        if one.method != "GET" and one.asker == "key":
            url = one.at(id=owner.project) if one.noun == "projects" else one.at()
            answer = analyst.http.request(one.method, url, json=one.body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), one
    assert api.row_counts() == before


class Neighbour(NamedTuple):
    """Somebody with a key and one of everything, who wants what is ours."""

    http: httpx.Client
    own: dict[str, str]


@pytest.fixture(scope="module")
def ours(api: Api, client: httpx.Client) -> dict[str, str]:
    return one_of_each(api, client, "OURS")


@pytest.fixture(scope="module")
def neighbours(
    api: Api, project: Project, make_project: Callable[..., Project]
) -> Iterator[dict[str, Neighbour]]:
    """Return who is on the other side: of another account, and of our own."""
    [account] = api.rows("select account_id from vf.projects where id = $1", raw_id(project))
    made = {
        "another account": make_project(),
        "another project of the account": make_project(account_id=account[0]),
    }
    clients = {who: api.client(one.secret_key) for who, one in made.items()}
    yield {who: Neighbour(http, one_of_each(api, http, "THEIRS")) for who, http in clients.items()}
    for http in clients.values():
        http.close()


def raw_id(project: Project) -> Any:
    return ids.parse_id("prj", project.id) or project.id


def missing(value: str) -> str:
    """Return what reads as a name does, and is nobody's."""
    prefix, _, rest = value.partition("_")
    return ids.format_id(prefix, ids.new()) if rest else "NOBODYS"


def probes(one: Operation, theirs: dict[str, str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield where a request can name something: the place, the name, and the other names."""
    others = {name: theirs[one.kind_of(name)] for name in one.names if one.kind_of(name) in theirs}
    for name in one.names:
        yield "path", name, others
    for name in one.texts:
        if name not in CHOSEN and not one.names:
            yield "body", name, others
    for name in one.query:
        # A cursor is a place in an order, and nothing is looked up by it.
        if not one.names and name not in ("limit", "starting_after"):
            yield "query", name, others


def compare(
    neighbour: Neighbour, one: Operation, place: str, name: str, others: dict[str, str], value: str
) -> httpx.Response:
    """Ask for what is ours and for what is nobody's; returns the answer, which is the same."""
    values = (value, missing(value))
    theirs, nobodys = (
        ask(neighbour.http, one, **(others | {name: asked})) if place == "path"
        else ask(neighbour.http, one, {name: asked}, **others) if place == "body"
        else neighbour.http.request(one.method, one.at(**others), params={name: asked})
        for asked in values
    )  # fmt: skip
    assert told(theirs, values[0]) == told(nobodys, values[1]), (one, place, name)
    return theirs


def fingerprints(api: Api, project: Project) -> dict[str, str]:
    """Return a digest of a project's rows, table by table."""
    tables = api.rows(
        "select c.oid::regclass::text from pg_class c where c.relnamespace = 'vf'::regnamespace "
        "and c.relkind = 'r' and exists (select from pg_attribute a where a.attrelid = c.oid "
        "and a.attname = 'project_id') order by 1"
    )
    # When a key was last used is written by the clock, of our own asking before.
    digest = (
        "select md5(string_agg(row::text, '' order by row::text)) from "
        "(select to_jsonb(t) - 'last_used_at' as row from {} t where project_id = $1) rows"
    )
    return {
        name: api.rows(digest.format(name), raw_id(project))[0][0] or ""
        for [name] in tables if name != "vf.usage_hours"
    }  # fmt: skip


def test_what_is_anothers_is_answered_as_what_nobody_has(
    api: Api,
    project: Project,
    ours: dict[str, str],
    neighbours: dict[str, Neighbour],
    keyed: list[Operation],
) -> None:
    before = fingerprints(api, project)
    neighbour = neighbours["another account"]
    compared = 0
    for one in keyed:
        for place, name, others in probes(one, neighbour.own):
            kind = one.kind_of(name)
            if place == "path" and kind in ours:
                answer = compare(neighbour, one, place, name, others, ours[kind])
                if one.id not in ASKED_OF_ANYBODY:
                    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), one
                compared += 1
    assert compared >= 75
    assert fingerprints(api, project) == before


@pytest.mark.long
@pytest.mark.timeout(300)
def test_five_thousand_requests_for_what_is_anothers_see_and_change_nothing(
    api: Api,
    project: Project,
    ours: dict[str, str],
    neighbours: dict[str, Neighbour],
    keyed: list[Operation],
) -> None:
    before = fingerprints(api, project)
    asked = 0
    for neighbour in neighbours.values():
        for one in keyed:
            for place, name, others in probes(one, neighbour.own):
                for value in ours.values():
                    compare(neighbour, one, place, name, others, value)
                    asked += 1
    print(f"{asked} requests for what is another project's, and as many for what is nobody's")
    assert asked >= 5_000
    after = fingerprints(api, project)
    assert after == before, {name for name in before if after[name] != before[name]}
