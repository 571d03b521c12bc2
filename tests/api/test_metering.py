"""Counting calls while the process that counts them is killed: never too many, hardly too few."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from core.settings import PROJECT_ROOT
from core.usage import FLUSH_S
from tests.api.conftest import Api, Project, free_port, wait_until_ready
from tests.conftest import temporary_data_dir

CALLED_S = 30.0
CALLERS = 4
# A write takes a moment, and on a busy machine the clock that starts it comes late.
LATE_S = 0.5


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_killed_worker_takes_no_more_than_its_last_second(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project(plan="scale")
    with api.client(project.secret_key) as client:
        made = client.post("/v1/vouchers", json={"code": "METER", "discount_value": 5})
        assert made.status_code == 201
    answered: list[float] = []
    with temporary_data_dir() as path:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log_path = path / "api.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "api", "--port", str(port), "--data-dir", str(path)],
                cwd=PROJECT_ROOT, env=api.environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until_ready(url, process, log_path)
            threads = [
                threading.Thread(target=call, args=(url, project.secret_key, answered))
                for _ in range(CALLERS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(CALLED_S)
        finally:
            killed_s = time.monotonic()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for thread in threads:
            thread.join()

    time.sleep(2 * FLUSH_S)
    [[counted]] = api.rows(
        "select coalesce(sum(call_count), 0)::bigint from vf.usage_hours where project_id = $1",
        project.id,
    )
    # One made the voucher, at another process that goes on.
    least = 1 + sum(at < killed_s - FLUSH_S - LATE_S for at in answered)
    print(f"{len(answered)} answered, {counted} counted, at least {least}")
    assert len(answered) > 1_000
    # What each caller was being told when it ended may be counted, and was not heard.
    assert least <= counted <= 1 + len(answered) + CALLERS


def call(url: str, key: str, answered: list[float]) -> None:
    """Redeem and list in turn until nobody answers: both ways of being counted."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
        while True:
            try:
                for _ in range(4):
                    won = client.post("/v1/vouchers/METER/redeem", json={"order_value": 1})
                    assert won.status_code == 200, won.text
                    answered.append(time.monotonic())
                assert client.get("/v1/usage").status_code == 200
                answered.append(time.monotonic())
            except httpx.TransportError:
                return
