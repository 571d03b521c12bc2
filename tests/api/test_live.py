"""Who listens is told of everything once, in its order, also across a break; and nobody else."""

import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from core import live, reports
from core.settings import PROJECT_ROOT
from tests.api.conftest import Api, Project, free_port, wait_until_ready
from tests.api.objects import publish
from tests.api.test_events import told
from tests.api.test_reports import fill, made

WAIT_S = 10.0
# Before what hangs is cut off, after 4 s.
ENDS_S = 3.5
# In which some megabytes are written on one machine.
FULL_S = 3.0


class Message:
    def __init__(self, lines: dict[str, str]) -> None:
        self.id = lines.get("id")
        self.type = lines["event"]
        self.data = json.loads(lines["data"])


class Stream:
    """An open stream; `until` reads on until what came is enough."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.messages: list[Message] = []
        self._lines = answer.iter_lines()
        self.retry = next(self._lines)

    def until(self, is_enough: Callable[[list[Message]], bool]) -> list[Message]:
        deadline_s = time.monotonic() + WAIT_S
        lines: dict[str, str] = {}
        while not is_enough(self.messages):
            assert time.monotonic() < deadline_s, [one.type for one in self.messages]
            line = next(self._lines)
            if line:
                name, _, value = line.partition(": ")
                lines[name] = value
            elif "event" in lines:
                self.messages.append(Message(lines))
                lines = {}
        return self.messages

    def rest(self) -> list[str]:
        return list(self._lines)

    def events(self, count: int) -> list[dict[str, Any]]:
        wanted = self.until(lambda got: len([one for one in got if one.id]) >= count)
        return [one.data for one in wanted if one.id]


@contextmanager
def listening(client: httpx.Client, after: str | None = None, **query: str) -> Iterator[Stream]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with client.stream("GET", "/v1/live", params=query, headers=headers, timeout=WAIT_S) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


@pytest.fixture
def shop(api: Api, make_project: Callable[..., Project]) -> Any:
    project = make_project()
    with api.client(project.secret_key) as client, api.client(project.secret_key) as ear:
        yield project, client, ear


def test_what_happens_is_told_as_it_is_listed_and_to_nobody_else(
    api: Api, shop: Any, stranger: httpx.Client
) -> None:
    _, client, ear = shop
    made(client, "/v1/vouchers", code="BEFORE", discount_value=10)
    publish(api)
    with listening(ear) as all_, listening(stranger) as other, listening(
        client, types="voucher.redeemed"
    ) as some:  # fmt: skip
        assert all_.retry == f"retry: {live.RETRY_MS}"
        with api.client(client.headers["Authorization"].removeprefix("Bearer ")) as till:
            made(till, "/v1/vouchers", code="NOW", discount_value=10)
            for n in range(5):
                made(till, "/v1/vouchers/NOW/redeem", customer_id=f"c{n}", order_value=10)
            made(stranger, "/v1/vouchers", discount_value=10)
            publish(api)
            listed = told(till)[1:]
        assert all_.events(6) == listed
        assert [one["type"] for one in listed] == ["voucher.created"] + ["voucher.redeemed"] * 5
        assert some.events(5) == listed[1:]
        [one] = other.events(1)
        assert one["type"] == "voucher.created" and one["id"] not in {x["id"] for x in listed}


def test_who_comes_back_gets_what_it_missed_and_nothing_twice(api: Api, shop: Any) -> None:
    _, client, ear = shop
    made(client, "/v1/vouchers", code="BACK", discount_value=10)
    with listening(ear) as first:
        made(client, "/v1/vouchers/BACK/redeem", order_value=10)
        publish(api)
        last = first.events(2)[-1]["id"]
    for n in range(30):
        made(client, "/v1/vouchers/BACK/redeem", order_value=10 + n)
    publish(api)
    with listening(ear, after=last) as second:
        made(client, "/v1/vouchers/BACK/redeem", order_value=99)
        publish(api)
        got = [one["id"] for one in second.events(31)]
    listed = [one["id"] for one in told(client)]
    assert got == listed[listed.index(last) + 1 :]
    for wrong in ("evt_x", "vch_00000000000000000000000000"):
        refused = ear.get("/v1/live", headers={"Last-Event-ID": wrong})
        assert (refused.status_code, refused.json()["field"]) == (400, "last-event-id")
    refused = ear.get("/v1/live", params={"types": "voucher.redeemed,nothing"})
    assert (refused.status_code, refused.json()["field"]) == (400, "types")


def test_a_burst_is_skipped_by_name_and_can_be_had_in_full(api: Api, shop: Any) -> None:
    project, client, ear = shop
    count = live.EVENTS_MAX * (live.LOOKS_BEHIND_MAX + 4)
    made(client, "/v1/vouchers", code="BURST", discount_value=20)
    publish(api)
    with listening(ear) as here:
        fill(api, project, "BURST", count)
        api.rows(
            "insert into vf.outbox (project_id, event, subject, data) select project_id, "
            "'voucher.redeemed', id, jsonb_build_object('first', 1, 'count', $2::bigint) "
            "from vf.vouchers where project_id = $1 and code = 'BURST'",
            UUID(project.id), count,
        )  # fmt: skip
        publish(api)
        messages = here.until(lambda got: bool(got) and got[-1].type == "skipped")
    skipped = messages[-1]
    seen = [one.id for one in messages[:-1]]
    assert seen[-1] == skipped.data["after"] and skipped.id == skipped.data["to"]
    assert len(seen) == live.EVENTS_MAX * live.LOOKS_BEHIND_MAX
    with listening(ear, after=skipped.data["after"]) as again:
        rest = [one["id"] for one in again.events(count - len(seen))]
    assert len({*seen, *rest}) == count and rest[-1] == skipped.data["to"]


def test_so_many_listen_and_no_more_and_who_leaves_makes_room(api: Api, shop: Any) -> None:
    project, client, _ = shop
    ears = [api.client(project.secret_key) for _ in range(live.LISTENERS_MAX_PER_PROJECT)]
    streams = [listening(ear) for ear in ears]
    try:
        for stream in streams:
            stream.__enter__()
        refused = client.get("/v1/live")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)
        for ear in ears:
            ear.close()
    deadline_s = time.monotonic() + WAIT_S
    is_in = False
    while not is_in and time.monotonic() < deadline_s:
        # Who left is noticed by what is sent to them.
        made(client, "/v1/vouchers", discount_value=10)
        publish(api)
        with client.stream("GET", "/v1/live") as answer:
            is_in = answer.status_code == 200
        time.sleep(0.3)
    assert is_in


def test_a_sales_counters_come_as_it_sells(api: Api, shop: Any) -> None:
    _, client, ear = shop
    sale = made(
        client, "/v1/flash-sales", name="S", code="LIVE", discount_type="PERCENT",
        discount_value=10, stock=20,
    )  # fmt: skip
    client.post(f"/v1/flash-sales/{sale['id']}/open")
    with listening(ear, types="flash_sale.counters") as here:
        here.until(lambda got: bool(got))
        for n in range(7):
            made(client, f"/v1/flash-sales/{sale['id']}/claim", customer_id=f"c{n}")
        last = here.until(lambda got: got[-1].data["claimed"] == 7)[-1]
        assert last.id is None, "what is counted is not what one goes on from"
        assert (last.data["id"], last.data["stock"], last.data["remaining"]) == (sale["id"], 20, 13)


@contextmanager
def process_of_its_own(api: Api, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    command = [sys.executable, "-m", "api", "--port", str(port), "--data-dir", str(tmp_path)]
    log = tmp_path / "api.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=api.environ, stdout=file, stderr=file
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        yield process, url
    finally:
        process.kill()
        process.wait(10)


def test_a_process_that_ends_ends_its_streams(api: Api, shop: Any, tmp_path: Path) -> None:
    project, client, _ = shop
    made(client, "/v1/vouchers", code="ENDS", discount_value=20)
    fill(api, project, "ENDS", 120 * reports.PIECE)
    path = "/v1/reports/redemptions?format=ndjson"
    key = {"Authorization": f"Bearer {project.secret_key}"}
    with (
        process_of_its_own(api, tmp_path) as (process, url),
        httpx.Client(base_url=url, headers=key) as ear,
        listening(ear) as here,
        ear.stream("GET", path) as report,
    ):
        lines = report.iter_lines()
        next(lines)
        started_s = time.monotonic()
        process.terminate()
        last = deque(lines, maxlen=1)[0]
        process.wait(10)
        took_s = time.monotonic() - started_s
        with suppress(httpx.TransportError):
            assert not [line for line in here.rest() if line.startswith("id")]
    assert "not complete" in json.loads(last)["error"]["detail"]
    print(f"ended in {took_s:.2f} s with a stream and a report open")
    assert took_s < ENDS_S


@pytest.mark.long
def test_a_report_that_is_killed_with_its_process_does_not_look_complete(
    api: Api, shop: Any, tmp_path: Path
) -> None:
    project, client, _ = shop
    made(client, "/v1/vouchers", code="KILLED", discount_value=20)
    fill(api, project, "KILLED", 120 * reports.PIECE)
    key = {"Authorization": f"Bearer {project.secret_key}"}
    # Whoever has room for megabytes would be sent the whole end.
    narrow = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    with (
        process_of_its_own(api, tmp_path) as (process, url),
        httpx.Client(base_url=url, headers=key, transport=narrow) as ear,
        ear.stream("GET", "/v1/reports/redemptions") as report,
    ):
        lines = report.iter_lines()
        next(lines)
        # Until the way is full: nothing is taken, so its end cannot be written.
        time.sleep(FULL_S)
        process.terminate()
        process.wait(10)
        with pytest.raises(httpx.TransportError):
            deque(lines, maxlen=1)
