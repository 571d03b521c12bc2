"""The API's processes: without PostgreSQL, after a killed worker, at the end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from core import demo
from core.db import migrate
from core.local import Servers
from core.settings import PROJECT_ROOT, Settings
from tests.api.conftest import free_port, wait_until_ready
from tests.conftest import settings_on, temporary_data_dir

pytestmark = pytest.mark.timeout(120)
BACK_WITHIN_S = 10.0


class System(msgspec.Struct):
    servers: Servers
    settings: Settings
    process: subprocess.Popen[bytes]
    log_path: Path
    key: str


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """PostgreSQL, Valkey and an API of two workers, of this file's own."""
    with temporary_data_dir() as path:
        servers = Servers(path, fast_for_tests=True)
        servers.start()
        assert servers.database_url is not None
        assert servers.redis_url is not None
        settings = msgspec.structs.replace(
            settings_on(servers.database_url, servers.redis_url, path), port=free_port()
        )
        asyncio.run(migrate.migrate(settings))
        key = asyncio.run(demo.seed(settings)).secret_key
        log_path = path / "api.log"
        with log_path.open("wb") as log:
            process = start(settings, log, workers=2)
        try:
            wait_until_ready(settings.base_url, process, log_path)
            yield System(servers, settings, process, log_path, key)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            servers.stop()


def start(settings: Settings, log: object, *, workers: int) -> subprocess.Popen[bytes]:
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")},
        "VAUCHFLOW_DATABASE_URL": str(settings.database_url),
        "VAUCHFLOW_REDIS_URL": settings.redis_url,
        "VAUCHFLOW_SECRET": settings.secret,
        "VAUCHFLOW_LOG_FORMAT": "json",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "api", "--port", str(settings.port), "--workers", str(workers),
         "--data-dir", str(settings.data_dir)],
        cwd=PROJECT_ROOT, env=environ, stdout=log, stderr=log,
    )  # fmt: skip


def children_of(pid: int) -> set[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return set()
    return {int(child) for child in text.split()}


def until(holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + BACK_WITHIN_S
    while time.monotonic() < deadline_s:
        if holds():
            return True
        time.sleep(0.05)
    return False


def answers(system: System, path: str, status: int) -> bool:
    try:
        return httpx.get(system.settings.base_url + path).status_code == status
    except httpx.TransportError:
        return False


def test_without_postgresql_the_answer_is_503_not_applied(system: System) -> None:
    headers = {"Authorization": f"Bearer {system.key}"}
    with httpx.Client(base_url=system.settings.base_url, headers=headers) as client:
        for _ in range(20):
            # Both workers know the key from here on.
            client.get("/v1/vouchers", headers={"Connection": "close"})
        logged = system.log_path.stat().st_size
        system.servers.stop()

        answer = client.post("/v1/vouchers", json={"code": "AWAY", "discount_value": 5})
        alive = client.get("/healthz")
        ready = client.get("/readyz")

        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert alive.status_code == 200
        assert (ready.status_code, ready.json()["postgres"]) == (503, "away")
        system.servers.start()
        assert until(lambda: answers(system, "/readyz", 200))
        assert client.get("/v1/vouchers/AWAY").status_code == 404
        assert client.post("/v1/vouchers", json={"code": "BACK", "discount_value": 5}).is_success
    lines = [
        msgspec.json.decode(line)
        for line in system.log_path.read_bytes()[logged:].splitlines()
        if line.startswith(b"{")
    ]
    assert any(line["event"] == "not_served" for line in lines)
    assert [line for line in lines if line["level"] == "error"] == []


def test_a_killed_worker_comes_back(system: System) -> None:
    before = children_of(system.process.pid)
    assert len(before) >= 2
    victim = min(before)

    os.kill(victim, signal.SIGKILL)

    assert until(
        lambda: (
            victim not in children_of(system.process.pid)
            and len(children_of(system.process.pid)) == len(before)
        )
    )
    assert until(lambda: all(answers(system, "/healthz", 200) for _ in range(20)))


def test_counters_are_the_same_whichever_worker_is_asked(system: System) -> None:
    def counted() -> int:
        text = httpx.get(f"{system.settings.base_url}/metrics").text
        name = 'vauchflow_requests_total{route="/healthz",status="200"}'
        return next((int(float(x.split()[-1])) for x in text.splitlines() if name in x), 0)

    before = counted()
    for _ in range(20):
        httpx.get(f"{system.settings.base_url}/healthz")

    assert {counted() for _ in range(10)} == {before + 20}


def test_a_taken_port_is_one_line(system: System, tmp_path: Path) -> None:
    log_path = tmp_path / "second.log"
    with log_path.open("wb") as log:
        second = start(system.settings, log, workers=1)
    try:
        status = second.wait(20)
    finally:
        second.kill()
        second.wait()

    assert status == 1
    lines = log_path.read_text().splitlines()
    assert len(lines) == 1
    assert str(system.settings.port) in lines[0]


def test_a_terminated_server_leaves_nothing(system: System) -> None:
    workers = children_of(system.process.pid)

    system.process.send_signal(signal.SIGTERM)

    assert system.process.wait(10) == 0
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not answers(system, "/healthz", 200)


def test_workers_die_with_a_killed_server(system: System, tmp_path: Path) -> None:
    with (tmp_path / "third.log").open("wb") as log:
        third = start(system.settings, log, workers=2)
    try:
        wait_until_ready(system.settings.base_url, third, tmp_path / "third.log")
        workers = children_of(third.pid)
    finally:
        third.kill()
        third.wait()

    assert len(workers) >= 2
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
