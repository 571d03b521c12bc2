"""`./vauchflow up` as an operator meets it: a real start, real signals, real sockets."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.settings import PROJECT_ROOT, running_servers
from tests.conftest import temporary_data_dir

LAUNCHER = str(PROJECT_ROOT / "vauchflow")
# A first start takes about 3 s on an idle machine; this one may be busy.
START_TIMEOUT_S = 45.0
BACK_TIMEOUT_S = 10.0
GONE_TIMEOUT_S = 5.0
SECOND_START_S_MAX = 5.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environ() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")}
    return kept | {"COLUMNS": "200"}


class Running:
    """An `up` in the foreground of a shell that is not there."""

    def __init__(self, data_dir: Path, port: int, *options: str) -> None:
        self.data_dir = data_dir
        self.port = port
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.started_at_s = time.monotonic()
        self.process = subprocess.Popen(
            [LAUNCHER, "up", "--data-dir", str(data_dir), "--port", str(port), *options],
            cwd="/",
            env=environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in (
                (self.process.stdout, self.lines),
                (self.process.stderr, self.errors),
            )
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line.rstrip("\n"))

    def wait_until_ready(self) -> float:
        """Return how many seconds the start took."""
        self.wait_for(lambda: len(self.curl_lines()) == 3 or self.process.poll() is not None)
        assert self.process.poll() is None, "\n".join(self.errors[-30:])
        return time.monotonic() - self.started_at_s

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_true():
            said = "\n".join(self.lines + self.errors[-30:])
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s:\n{said}"
            time.sleep(0.02)

    def curl_lines(self) -> list[str]:
        return [line for line in self.lines if line.startswith("curl ")]

    def ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def pids(self) -> dict[str, int]:
        running = running_servers(self.data_dir)
        return dict(running.pids) if running else {}

    def family(self) -> set[int]:
        """Return every process that came of it, itself included."""
        found = descendants(self.process.pid)
        assert len(found) >= 6, found
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat(int(entry))[1])
            except (OSError, IndexError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def still_running(pids: set[int]) -> set[int]:
    """Return those that run; a zombie nobody has reaped does not."""
    running = set()
    for pid in pids:
        try:
            if _stat(pid)[0] != "Z":
                running.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return running


@contextmanager
def up(data_dir: Path, port: int, *options: str) -> Iterator[Running]:
    running = Running(data_dir, port, *options)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with temporary_data_dir() as data_dir, up(data_dir, free_port()) as running:
        running.wait_until_ready()
        yield running


def test_the_ready_line_comes_once_and_what_it_prints_works_when_pasted(served: Running) -> None:
    base = f"http://127.0.0.1:{served.port}"
    assert served.lines.count(f"ready {base}") == 1
    assert f"docs       {base}/docs" in served.lines
    demo = json.loads((served.data_dir / "demo.json").read_bytes())
    assert f"dashboard  {base}/dashboard" in served.lines
    assert f"log in     {demo['dashboard_email']}  {demo['dashboard_password']}" in served.lines
    assert f"key        {demo['secret_key']}" in served.lines
    bodies = []
    for line in served.curl_lines():
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        bodies.append(done.stdout)
    created, validated, redeemed = map(json.loads, bodies)
    assert created["id"].startswith("vch_")
    assert validated["valid"] is True
    assert redeemed["status"] == "redeemed"
    assert '"discount_applied":18.00' in bodies[2]


def test_the_demo_file_has_what_a_client_needs_and_only_its_owner_reads_it(
    served: Running,
) -> None:
    path = served.data_dir / "demo.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    demo = json.loads(path.read_bytes())
    assert demo["base_url"] == f"http://127.0.0.1:{served.port}"
    assert demo["secret_key"].startswith("vf_sk_")
    assert demo["publishable_key"].startswith("vf_pk_")
    assert demo["project_id"].startswith("prj_")
    assert "@" in demo["dashboard_email"]
    assert demo["dashboard_password"]


def test_a_second_up_is_told_in_one_line_who_holds_the_directory(served: Running) -> None:
    done = subprocess.run(
        [LAUNCHER, "up", "--data-dir", str(served.data_dir), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ(),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"vauchflow: {served.data_dir} is already in use by process {served.process.pid} "
        f"at http://127.0.0.1:{served.port}"
    ]
    assert served.ask("/readyz")[0] == 200


def test_a_port_in_use_is_one_line_and_starts_nothing(served: Running, data_dir: Path) -> None:
    done = subprocess.run(
        [LAUNCHER, "up", "--data-dir", str(data_dir), "--port", str(served.port)],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ(),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"vauchflow: cannot listen on 127.0.0.1 port {served.port}: address already in use; "
        "give another with --port"
    ]
    assert not (data_dir / "pg18").exists()


def test_doctor_finds_nothing_to_mend_in_a_fresh_start(served: Running) -> None:
    done = subprocess.run(
        [LAUNCHER, "doctor", "--data-dir", str(served.data_dir)],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ(),
    )
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
    assert f"held by process {served.process.pid}" in done.stdout


@pytest.mark.parametrize("name", ["worker", "reconciler", "valkey", "api", "postgres"])
def test_whatever_is_killed_comes_back_within_ten_seconds(served: Running, name: str) -> None:
    before = served.pids()
    family = descendants(before[name])
    os.kill(before[name], signal.SIGKILL)
    served.wait_for(lambda: served.pids().get(name) not in (None, before[name]), BACK_TIMEOUT_S)
    served.wait_for(lambda: served.ask("/readyz")[0] == 200, BACK_TIMEOUT_S)
    # What the dead one had started is gone, too.
    served.wait_for(lambda: not still_running(family), GONE_TIMEOUT_S)
    others = {key: pid for key, pid in served.pids().items() if key != name}
    assert others == {key: pid for key, pid in before.items() if key != name}


def test_a_killed_http_worker_comes_back_without_its_parent_noticing(served: Running) -> None:
    main = served.pids()["api"]
    workers = descendants(main) - {main}
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    served.wait_for(lambda: not still_running(workers), GONE_TIMEOUT_S)
    served.wait_for(lambda: served.ask("/readyz")[0] == 200, BACK_TIMEOUT_S)


def test_stopping_leaves_nothing_and_the_next_start_is_quick_and_keeps_the_key(
    data_dir: Path,
) -> None:
    port = free_port()
    with up(data_dir, port) as first:
        first.wait_until_ready()
        key = json.loads((data_dir / "demo.json").read_bytes())["secret_key"]
        family = first.family()
        first.process.terminate()
        assert first.process.wait(20) == 0
        assert still_running(family) == set()
    assert not (data_dir / "servers.json").exists()
    port = free_port()
    with up(data_dir, port) as second:
        took_s = second.wait_until_ready()
        assert took_s < SECOND_START_S_MAX
        demo = json.loads((data_dir / "demo.json").read_bytes())
        assert demo["secret_key"] == key
        assert demo["base_url"] == f"http://127.0.0.1:{port}"
        family = second.family()
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(20) == 0
        assert still_running(family) == set()


def test_killing_up_leaves_nothing_and_the_next_start_takes_over(data_dir: Path) -> None:
    port = free_port()
    with up(data_dir, port) as first:
        first.wait_until_ready()
        family = first.family()
        first.process.kill()
        first.wait_for(lambda: not still_running(family), GONE_TIMEOUT_S)
    with up(data_dir, port) as second:
        second.wait_until_ready()
        killed = second.family()
        second.process.kill()
        # At once, while what the killed one left behind is still on its way out.
        with up(data_dir, port) as third:
            third.wait_until_ready()
            assert still_running(killed) == set()


def test_without_a_demo_no_project_is_made(data_dir: Path) -> None:
    with up(data_dir, free_port(), "--no-demo") as running:
        running.wait_for(lambda: any(line.startswith("ready ") for line in running.lines))
        running.wait_for(lambda: any("--no-demo" in line for line in running.lines), 5)
        assert running.curl_lines() == []
        assert not (data_dir / "demo.json").exists()
