"""Claims over HTTP: what the compiled way answers is to the byte what the general way answers."""

import json
import random
import string
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.api.conftest import Api, Project

PLAIN = string.ascii_letters + string.digits + " !#$%&'()*+,-./:;<=>?@[]^_`{|}~"


@pytest.fixture(params=[("PERCENT", "fast"), ("AMOUNT", "fast"), ("PERCENT", "strict")])
def sale(request: pytest.FixtureRequest, client: httpx.Client, reconciled: None) -> Iterator[str]:
    kind, durability = request.param
    made = client.post(
        "/v1/flash-sales",
        json={
            "name": "claims",
            "code": f'Q"{kind}{time.time_ns()}',
            "discount_type": kind,
            "durability": durability,
            "discount_value": 12.35,
            "min_order_value": 1,
            "stock": 500,
        },
    )
    assert made.status_code == 201, made.text
    sale_id = made.json()["id"]
    opened = client.post(f"/v1/flash-sales/{sale_id}/open")
    assert opened.status_code == 200, opened.text
    yield sale_id
    client.post(f"/v1/flash-sales/{sale_id}/close")


@pytest.fixture(scope="module")
def reconciled(api: Api) -> Iterator[None]:
    """A reconciler beside the API, so that wins reach the ledger."""
    process = subprocess.Popen(
        [sys.executable, "-m", "core", "reconcile", "--data-dir", str(api.settings.data_dir)],
        env=api.environ,
    )
    yield
    process.terminate()
    process.wait()


def bodies(count: int) -> list[str]:
    """Bodies of the plain shape and around its edges."""
    found = []
    for _ in range(count):
        customer = "".join(random.choices(PLAIN, k=random.randint(1, 30)))
        if random.random() < 0.1:
            customer += random.choice(["é", "\\u0041", "\\\\", '\\"'])
        amount = random.choice(
            [
                f"{random.randint(100, 10**7) / 100:.2f}",
                str(random.randint(1, 10**6)),
                "89.9",
                "1e2",
            ]
        )
        members = [f'"customer_id":"{customer}"', f'"order_value":{amount}']
        if random.random() < 0.4:
            members.append(f'"order_id":"{"".join(random.choices(PLAIN, k=8))}"')
        if random.random() < 0.1:
            members.append('"metadata":{"b":1,"a":"x"}')
        random.shuffle(members)
        comma, colon = random.choice([(",", ":"), (", ", ": ")])
        found.append("{" + comma.join(members).replace('":', '"' + colon) + "}")
    return found


def test_a_win_a_retry_and_the_ledger_say_the_same(client: httpx.Client, sale: str) -> None:
    wins = {}
    for n, body in enumerate(bodies(120)):
        headers = {"Idempotency-Key": f"k{n}", "Content-Type": "application/json"}
        first = client.post(f"/v1/flash-sales/{sale}/claim", content=body, headers=headers)
        assert first.status_code == 200, (body, first.text)
        again = client.post(f"/v1/flash-sales/{sale}/claim", content=body, headers=headers)
        assert again.content == first.content, body
        general = client.post(
            f"/v1/flash-sales/{sale}/claim",
            content=body,
            headers={**headers, "Content-Type": "application/json; charset=utf-8"},
        )
        assert general.content == first.content, body
        other = client.post(
            f"/v1/flash-sales/{sale}/claim",
            content=body.replace("{", '{"order_id":"other",', 1)
            if '"order_id"' not in body
            else '{"customer_id":"x","order_value":5.00}',
            headers=headers,
        )
        assert other.status_code == 422, (body, other.text)
        wins[first.json()["redemption_id"]] = first.content
    until = time.monotonic() + 10
    for redemption_id, content in wins.items():
        while (read := client.get(f"/v1/redemptions/{redemption_id}")).status_code == 409:
            assert time.monotonic() < until, read.text
            time.sleep(0.05)
        # jsonb keeps members in an order of its own.
        assert read.json() == json.loads(content)
    shown = client.get(f"/v1/flash-sales/{sale}").json()
    assert (shown["claimed"], shown["remaining"]) == (120, 380)


def test_a_plain_body_without_a_usable_key_is_refused_as_ever(
    api: Api, project: Project, browser: httpx.Client, stranger: httpx.Client, sale: str
) -> None:
    body = {"customer_id": "c", "order_value": 5.00}
    path = f"/v1/flash-sales/{sale}/claim"
    assert browser.post(path, json=body).status_code == 403
    assert stranger.post(path, json=body).status_code == 404
    with api.client(None) as nobody:
        assert nobody.post(path, json=body).status_code == 401
