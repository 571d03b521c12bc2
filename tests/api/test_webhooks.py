"""Webhooks by the API: made, changed, rotated, taken away, and never led into a private network."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import msgspec
import pytest
from standardwebhooks.webhooks import Webhook as Judge

from core import events, ids
from core.settings import PROJECT_ROOT
from tests.api.conftest import Api, Project
from tests.api.objects import publish
from tests.api.test_events import told

URL = "https://hooks.shop.example/in?x=1"


def make(client: httpx.Client, **members: Any) -> dict[str, Any]:
    made = client.post("/v1/webhooks", json={"url": URL, **members})
    assert made.status_code == 201, made.text
    return dict(made.json())


def test_a_secret_is_shown_once_and_kept_nowhere(api: Api, client: httpx.Client) -> None:
    key = {"Idempotency-Key": "make-hook"}
    made = client.post("/v1/webhooks", json={"url": URL}, headers=key).json()
    assert made["secret"].startswith("whsec_") and len(made["secret"]) > 40
    again = client.post("/v1/webhooks", json={"url": URL}, headers=key).json()
    assert (again["id"], again["secret"]) == (made["id"], None)
    shown = client.get(f"/v1/webhooks/{made['id']}").json()
    assert shown == {**made, "secret": None}
    rotated = client.post(f"/v1/webhooks/{made['id']}/rotate-secret", json={}).json()
    assert rotated["secret"] not in (None, made["secret"]) and rotated["previous_secret_until"]
    stored = str(api.rows("select t::text from vf.webhooks t"))
    stored += str(api.rows("select encode(body, 'escape') from vf.idempotency_keys"))
    for secret in (made["secret"], rotated["secret"]):
        assert secret[6:] not in stored


def test_it_is_changed_switched_off_and_taken_away(api: Api, client: httpx.Client) -> None:
    made = make(client, events=["voucher.*"], description="ours")
    path = f"/v1/webhooks/{made['id']}"
    changed = client.patch(path, json={"events": None, "status": "disabled"}).json()
    assert (changed["events"], changed["status"], changed["description"]) == (
        None, "disabled", "ours",
    )  # fmt: skip
    client.post("/v1/vouchers", json={"discount_value": 5})
    publish(api)
    assert client.get(f"{path}/deliveries").json()["data"] == []
    assert client.patch(path, json={"status": "active"}).json()["disabled_reason"] is None
    client.post("/v1/vouchers", json={"discount_value": 5})
    publish(api)
    (waiting,) = client.get(f"{path}/deliveries?status=pending").json()["data"]
    assert (waiting["event_type"], waiting["attempts"]) == ("voucher.created", 0)
    seen = client.get(f"{path}/deliveries/{waiting['id']}").json()
    assert seen["event"] == client.get(f"/v1/events/{waiting['event_id']}").json()
    assert client.delete(path).status_code == 200
    assert client.get(path).status_code == 404
    assert made["id"] not in {one["id"] for one in client.get("/v1/webhooks").json()["data"]}
    status = "select status from vf.deliveries where id = $1"
    assert api.rows(status, ids.parse_id("dlv", waiting["id"]))[0][0] == "dead"


def test_what_was_given_up_is_listed_and_sent_again(api: Api, client: httpx.Client) -> None:
    made = make(client, events=["voucher.created"])
    path = f"/v1/webhooks/{made['id']}"
    for _ in range(3):
        client.post("/v1/vouchers", json={"discount_value": 5})
    publish(api)
    end = (
        "update vf.deliveries set status = 'dead', ended_at = now(), try_count = 9 "
        "where webhook_id = $1"
    )
    api.rows(end, ids.parse_id("whk", made["id"]))
    dead = client.get(f"{path}/deliveries?status=dead").json()["data"]
    assert len(dead) == 3
    one = client.post(f"{path}/deliveries/{dead[0]['id']}/replay").json()
    assert (one["status"], one["ended_at"]) == ("pending", None)
    assert client.post(f"{path}/replay", json={}).json() == {"replayed": 2}
    assert client.post(f"{path}/replay", json={}).json() == {"replayed": 0}
    tries = api.rows("select distinct try_count from vf.deliveries where webhook_id = $1",
                     ids.parse_id("whk", made["id"]))  # fmt: skip
    assert [row[0] for row in tries] == [0]


@pytest.mark.parametrize(
    "url",
    ["http://hooks.shop.example/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/x",
     "https://169.254.169.254/latest", "https://u:p@shop.example/", "ftp://shop.example/",
     "https://shop.example:6379/", "https://shop.example/#x", "hooks.shop.example", "",
     "https://ⓛocalhost/", "https://[fd00:ec2::254]/", "https://a b/"],
)  # fmt: skip
def test_an_address_that_is_not_to_be_called_is_refused_and_nothing_is_stored(
    api: Api, client: httpx.Client, url: str
) -> None:
    before = api.row_counts()
    refused = client.post("/v1/webhooks", json={"url": url})
    assert (refused.status_code, refused.json()["field"]) == (400, "url"), refused.text
    assert api.row_counts() == before


@pytest.mark.parametrize("types", [["voucher"], ["nothing.*"], ["webhook.test"], [], ["*"]])
def test_a_type_that_there_is_not_is_refused(client: httpx.Client, types: list[str]) -> None:
    refused = client.post("/v1/webhooks", json={"url": URL, "events": types})
    assert (refused.status_code, refused.json()["field"]) == (400, "events")


def test_another_projects_webhook_is_not_there(
    api: Api, client: httpx.Client, stranger: httpx.Client
) -> None:
    made = make(client)
    path = f"/v1/webhooks/{made['id']}"
    for method, where, body in (
        ("GET", path, None), ("PATCH", path, {"status": "disabled"}), ("DELETE", path, None),
        ("POST", f"{path}/rotate-secret", {}), ("POST", f"{path}/test", {}),
        ("GET", f"{path}/deliveries", None), ("POST", f"{path}/replay", {}),
    ):  # fmt: skip
        given = {"json": body} if body is not None else {}
        assert stranger.request(method, where, **given).status_code == 404, where
    before = len(stranger.get("/v1/webhooks").json()["data"])
    stranger.post("/v1/vouchers", json={"discount_value": 5})
    publish(api)
    mine = client.get(f"{path}/deliveries").json()["data"]
    (theirs,) = stranger.get("/v1/events").json()["data"]
    assert theirs["id"] not in {one["event_id"] for one in mine} and before == 0


def test_a_project_has_so_many_webhooks_and_no_more(api: Api, make_project: Any) -> None:
    with api.client(make_project().secret_key) as client:
        for _ in range(50):
            make(client)
        refused = client.post("/v1/webhooks", json={"url": URL})
        assert (refused.status_code, refused.json()["code"]) == (409, "too_many_webhooks")


def test_a_validation_is_told_only_where_a_webhook_names_it(api: Api, make_project: Any) -> None:
    with api.client(make_project().secret_key) as client:
        made = client.post("/v1/vouchers", json={"code": "ASKED", "discount_value": 5}).json()
        ask = {"order_value": 10}

        def told() -> list[dict[str, Any]]:
            publish(api)
            found = client.get("/v1/events?type=voucher.validated").json()["data"]
            return [one["data"] | {"subject": one["subject"]} for one in found]

        make(client)
        client.post("/v1/vouchers/ASKED/validate", json=ask)
        assert told() == []
        make(client, events=["voucher.validated"])
        client.post("/v1/vouchers/ASKED/validate", json=ask)
        client.post("/v1/vouchers/ASKED/disable")
        client.post("/v1/vouchers/ASKED/validate", json=ask)
        assert told() == [
            {"code": "ASKED", "valid": False, "refusal": "voucher_inactive",
             "subject": made["id"]},
            {"code": "ASKED", "valid": True, "refusal": None, "subject": made["id"]},
        ]  # fmt: skip


def test_a_developer_listens_and_triggers_from_the_command_line(
    api: Api, make_project: Any
) -> None:
    heard: list[tuple[dict[str, str], bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    project: Project = make_project()
    access = ["--url", api.base_url, "--key", project.secret_key]
    command = [sys.executable, "-m", "core"]
    target = f"http://127.0.0.1:{server.server_port}/hook"
    listening = subprocess.Popen(
        [*command, "listen", "--forward-to", target, *access],
        cwd=PROJECT_ROOT, env=api.environ, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert listening.stdout is not None
        secret = listening.stdout.readline().split()[-1]
        done = subprocess.run(
            [*command, "trigger", "campaign.ended", *access],
            cwd=PROJECT_ROOT, env=api.environ, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "told campaign.ended\n"), done.stderr
        publish(api)
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        listening.terminate()
        listening.wait(10)
        listening.stdout.close()
        server.shutdown()
        server.server_close()
    ((headers, body),) = heard
    assert Judge(secret).verify(body, headers) == msgspec.json.decode(body)
    assert msgspec.json.decode(body)["type"] == "campaign.ended"
    refused = subprocess.run(
        [*command, "trigger", "no.type", *access],
        cwd=PROJECT_ROOT, env=api.environ, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert refused.returncode == 1 and "there is no type" in refused.stderr


def test_every_type_can_be_triggered_and_says_that_it_is_an_example(
    api: Api, make_project: Any
) -> None:
    with api.client(make_project().secret_key) as shop:
        types = [name for name in events.TYPES if name != events.TEST]
        for name in types:
            assert shop.post("/v1/webhooks/test", json={"type": name}).status_code in (200, 202)
        publish(api)
        listed = told(shop)
        assert [one["type"] for one in listed] == types
        assert all(one["is_test"] and one["subject"][3] == "_" for one in listed)
        refused = shop.post("/v1/webhooks/test", json={"type": events.TEST})
        assert (refused.status_code, refused.json()["field"]) == (400, "type")
