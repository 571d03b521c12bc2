"""Whatever is sent, the answer is a plain no or a closed door: at once, and nothing grows by it."""

import contextlib
import random
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.api import hostile
from tests.api.conftest import Api, Project
from tests.api.described import Operation, operations
from tests.api.objects import one_of_each

WITHIN_S = 1.0
# So long a client waits, so that an answer that comes too late is told of by its name.
WAIT_S = 10.0
GROWTH_BYTES_MAX = 50 * 1_048_576
# What of the corpus an ordinary run tries at each address.
SAMPLE = 8
BODIES = [(f"{n}: {what}", body) for n, (what, body) in enumerate(hostile.bodies())]


@pytest.fixture(scope="module")
def targets(api: Api, client: httpx.Client) -> list[tuple[Operation, str]]:
    """Return every address that changes something, with names of what there is."""
    own = one_of_each(api, client, "OURS")
    every = operations(client.get("/openapi.json").json())
    changing = [one for one in every if one.method != "GET"]
    return [
        (one, one.at(**{name: own.get(one.kind_of(name), "x") for name in one.names}))
        for one in changing
    ]


def send(
    client: httpx.Client, one: Operation, path: str, body: bytes,
    headers: dict[str, str | bytes] | None = None,
) -> tuple[int, float]:  # fmt: skip
    """Send a body; returns the status, 0 where the door was closed, and how long it took."""
    given = {"Content-Type": "application/json"} | (headers or {})
    began_s = time.perf_counter()
    try:
        status = client.request(one.method, path, content=body, headers=given).status_code
    except httpx.TransportError:
        status = 0
    return status, time.perf_counter() - began_s


def judge(ended: dict[str, tuple[int, float]]) -> None:
    statuses = Counter(status for status, _ in ended.values())
    print(dict(statuses), f"the slowest took {max(took for _, took in ended.values()):.3f} s")
    wrong = {what: one for what, one in ended.items() if one[0] and not 400 <= one[0] < 500}
    assert wrong == {}
    assert {what: one for what, one in ended.items() if one[1] > WITHIN_S} == {}


def resident_bytes(pid: int) -> int:
    """Return what a process and all it started have in memory."""
    total, waiting = 0, [pid]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        total += int((place / "statm").read_text().split()[1]) * 4_096
        for task in (place / "task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return total


def test_the_corpus_is_large() -> None:
    assert len({body for _, body in BODIES}) >= 300
    assert len(hostile.HEADERS) + len(hostile.ODD_HEADERS) >= 50


def test_a_sample_of_what_nobody_takes_is_refused_everywhere(
    api: Api, client: httpx.Client, targets: list[tuple[Operation, str]]
) -> None:
    before, logged = api.row_counts(), api.log_size()
    judge({
        f"{one.method} {path}: {what}": send(client, one, path, body)
        for one, path in targets
        for what, body in random.sample([b for b in BODIES if len(b[1]) < 1_000_000], SAMPLE)
    })  # fmt: skip
    assert api.row_counts() == before
    assert [e for e in api.log_since(logged) if e["level"] in ("warning", "error")] == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_is_sent_to_whatever_address_it_is_refused_and_nothing_grows(
    api: Api, client: httpx.Client, targets: list[tuple[Operation, str]]
) -> None:
    before, logged = api.row_counts(), api.log_size()
    # What one body of each size makes it need is there before it is measured.
    for one, path in targets:
        send(client, one, path, BODIES[-2][1])
    small_bytes = resident_bytes(api.pid)
    large = [body for body in BODIES if len(body[1]) > 1_000_000]
    ended = {
        f"{one.method} {path}: {what}": send(client, one, path, body)
        for one, path in targets
        for what, body in [b for b in BODIES if b not in large] + random.sample(large, 1)
    }
    ended |= {
        f"{one.method} {path}: {header!a}"[:300]: send(client, one, path, b'{"zzz":1}', header)
        for one, path in targets
        for header in hostile.HEADERS + hostile.ODD_HEADERS
    }
    grown_bytes = resident_bytes(api.pid) - small_bytes
    print(f"{len(ended)} requests; memory grew by {grown_bytes / 1e6:.1f} MB")
    judge(ended)
    assert grown_bytes < GROWTH_BYTES_MAX
    assert api.row_counts() == before
    assert [e for e in api.log_since(logged) if e["level"] in ("warning", "error")] == []


PATHS = (
    "/v1/vouchers",
    "/v1/vouchers/CODEOURS/redeem",
    "/v1/flash-sales/x/claim",
    "/v1/auth/log-in",
)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_request_gets_a_no_or_a_closed_door(
    api: Api, client: httpx.Client, project: Project, path: str,
    targets: list[tuple[Operation, str]],
) -> None:  # fmt: skip
    before = api.row_counts()
    url = httpx.URL(api.base_url)
    ended = {}
    for what, raw in hostile.requests(path, project.secret_key):
        began_s = time.perf_counter()
        with socket.create_connection((url.host, url.port or 80), timeout=WAIT_S) as connection:
            try:
                connection.sendall(raw)
                # The door may be closed by now; what was said before can still be read.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                said = connection.recv(65_536)
            except (ConnectionError, TimeoutError):
                said = b""
        status = int(said.split(b" ")[1]) if said.startswith(b"HTTP/1.1 ") else 0
        ended[f"{path}: {what}"] = (status, time.perf_counter() - began_s)
    judge(ended)
    assert len(ended) >= 40
    assert client.get("/healthz").status_code == 200
    assert api.row_counts() == before
