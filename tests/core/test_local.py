"""The embedded servers start, keep what they were told, and never outlive who started them."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import redis

from core.local import DataDirLock, ServerError, Servers
from core.processes import owner_of, servers_account
from core.settings import PROJECT_ROOT, RunningServers, running_servers

# Starts servers on the directory it is given, says so, and waits to be killed.
HOLD = """
import sys, time
from pathlib import Path
from core.local import Servers
servers = Servers(Path(sys.argv[1]), fast_for_tests=True)
servers.start()
servers.publish("http://127.0.0.1:1")
print("started", flush=True)
time.sleep(600)
"""
GONE_TIMEOUT_S = 5.0


@contextmanager
def started(data_dir: Path, **more: Any) -> Iterator[Servers]:
    servers = Servers(data_dir, **({"fast_for_tests": True} | more))
    servers.start()
    try:
        yield servers
    finally:
        servers.stop()


def is_running(pid: int) -> bool:
    """Say whether a process runs; a zombie nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(is_true: Callable[[], bool], timeout_s: float = GONE_TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        time.sleep(0.02)


async def fetch_value(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def valkey_at(url: str | None) -> redis.Redis:
    assert url is not None
    return redis.Redis.from_url(url)


@pytest.mark.anyio
async def test_a_restart_on_the_same_directory_keeps_every_row_and_key(data_dir: Path) -> None:
    with started(data_dir) as servers:
        first_urls = (servers.database_url, servers.redis_url)
        await fetch_value(servers.database_url, "create table kept (n) as select 7")
        with valkey_at(servers.redis_url) as valkey:
            valkey.set("kept", "seven")
        pids = [process.pid for process in servers.processes.values()]
    assert [is_running(pid) for pid in pids] == [False, False]
    with started(data_dir) as servers:
        assert (servers.database_url, servers.redis_url) == first_urls
        assert await fetch_value(servers.database_url, "select n from kept") == 7
        with valkey_at(servers.redis_url) as valkey:
            assert valkey.get("kept") == b"seven"


@pytest.mark.anyio
async def test_up_gives_up_no_durability_and_opens_no_port(data_dir: Path) -> None:
    servers = Servers(data_dir)
    servers.start()
    try:
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await fetch_value(servers.database_url, f"show {name}") == "on", name
        assert await fetch_value(servers.database_url, "show listen_addresses") == ""
        assert await fetch_value(servers.database_url, "select lower('ÄÉ')") == "äé"
        with valkey_at(servers.redis_url) as valkey:
            told = valkey.config_get("append*", "port", "no-appendfsync*", "maxmemory-policy")
        assert told["appendonly"] == "yes"
        assert told["appendfsync"] == "always"
        assert told["no-appendfsync-on-rewrite"] == "no"
        assert told["maxmemory-policy"] == "noeviction"
        assert told["port"] == "0"
        socket_dir = Path(servers.redis_url.removeprefix("unix://")).parent
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    finally:
        servers.stop()
    assert not socket_dir.exists()


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["postgres", "valkey"])
async def test_a_killed_server_comes_back_with_what_it_had_answered(
    data_dir: Path, name: str
) -> None:
    with started(data_dir, fast_for_tests=False) as servers:
        await fetch_value(servers.database_url, "create table kept (n) as select 7")
        with valkey_at(servers.redis_url) as valkey:
            valkey.set("kept", "seven")
        killed = servers.processes[name]
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(lambda: killed.exit_status() is not None)
        servers.start_one(name)
        assert servers.processes[name].pid != killed.pid
        assert await fetch_value(servers.database_url, "select n from kept") == 7
        with valkey_at(servers.redis_url) as valkey:
            assert valkey.get("kept") == b"seven"


def hold(python: str, data_dir: Path, **more: Any) -> tuple[subprocess.Popen[str], RunningServers]:
    holder = subprocess.Popen(
        [python, "-c", HOLD, str(data_dir)],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={
            "PATH": os.defpath,
            # Another interpreter of the same version needs to be told where the packages are.
            "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), *filter(None, sys.path)]),
        },
        **more,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "started\n"
    running = running_servers(data_dir)
    assert running is not None
    return holder, running


def kill_and_expect_nothing_left(holder: subprocess.Popen[str], running: RunningServers) -> None:
    assert sorted(running.pids) == ["postgres", "valkey"]
    assert all(is_running(pid) for pid in running.pids.values())
    holder.kill()
    holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()
    wait_until(lambda: not any(is_running(pid) for pid in running.pids.values()))


@pytest.mark.anyio
async def test_killing_the_parent_leaves_no_server_and_the_next_start_works(
    data_dir: Path,
) -> None:
    holder, running = hold(sys.executable, data_dir)
    await fetch_value(running.database_url, "create table kept (n) as select 7")
    kill_and_expect_nothing_left(holder, running)
    with started(data_dir) as servers:
        assert await fetch_value(servers.database_url, "select n from kept") == 7


@pytest.mark.anyio
async def test_a_start_waits_for_the_servers_a_killed_parent_left_behind(data_dir: Path) -> None:
    holder, running = hold(sys.executable, data_dir)
    await fetch_value(running.database_url, "create table kept (n) as select 7")
    holder.kill()
    # Not a moment's wait: the old servers may still be writing their last.
    with started(data_dir) as servers:
        assert await fetch_value(servers.database_url, "select n from kept") == 7
    holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()


def test_a_stale_pid_that_belongs_to_somebody_else_keeps_nobody_out(data_dir: Path) -> None:
    with started(data_dir, valkey=False):
        pass
    account = servers_account()
    stale = data_dir / "pg18" / "postmaster.pid"
    stranger = subprocess.Popen(["sleep", "60"], user=account.uid if account else None)
    try:
        stale.write_text(f"{stranger.pid}\n{data_dir}/pg18\n1\n5432\n\n\n\nready   \n")
        with started(data_dir, valkey=False) as servers:
            assert servers.processes["postgres"].exit_status() is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def _ordinary_account() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def _python_for(account: pwd.struct_passwd) -> str | None:
    """Return an interpreter of our version that the account can run and that reads our files."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    drop = {} if os.geteuid() != 0 else {"user": account.pw_uid, "group": account.pw_gid}
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = subprocess.run(
                [python, "-c", f"open({str(PROJECT_ROOT / 'core' / 'local.py')!r})"],
                capture_output=True,
                cwd="/",
                **drop,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return None


ORDINARY = _ordinary_account()
ORDINARY_PYTHON = _python_for(ORDINARY)

# Where no ordinary account can run Python (all of it below /root), there is nobody to promise to.
if ORDINARY_PYTHON is not None:

    def test_an_ordinary_user_starts_servers_under_their_own_name(data_dir: Path) -> None:
        assert ORDINARY_PYTHON is not None
        drop: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(data_dir, ORDINARY.pw_uid, ORDINARY.pw_gid)
            drop = {"user": ORDINARY.pw_uid, "group": ORDINARY.pw_gid, "extra_groups": []}
        holder, running = hold(ORDINARY_PYTHON, data_dir, **drop)
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in running.pids.values()}
        assert owners == {ORDINARY.pw_uid}
        assert (data_dir / "pg18").stat().st_uid == ORDINARY.pw_uid
        kill_and_expect_nothing_left(holder, running)


if os.geteuid() == 0:

    def test_root_runs_no_server_as_root_and_opens_no_directory(data_dir: Path) -> None:
        with started(data_dir) as servers:
            for process in servers.processes.values():
                assert Path(f"/proc/{process.pid}").stat().st_uid != 0, process.name
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o710
        assert stat.S_IMODE((data_dir / "pg18").stat().st_mode) == 0o700

    def test_root_may_keep_its_data_where_the_servers_cannot_go(data_dir: Path) -> None:
        inside = data_dir / "closed" / "data"
        inside.mkdir(parents=True)
        (data_dir / "closed").chmod(0o700)
        with started(inside) as servers:
            elsewhere = servers.server_dir("pg18")
            assert elsewhere.parent.parent == Path("/var/lib/vauchflow")
            assert stat.S_IMODE((data_dir / "closed").stat().st_mode) == 0o700
        with started(inside) as servers:
            assert servers.server_dir("pg18") == elsewhere
        (inside / "servers").unlink()
        with started(inside) as afresh:
            assert afresh.server_dir("pg18") != elsewhere
        for used in (elsewhere.parent, afresh.server_dir("pg18").parent):
            shutil.rmtree(used)

    def test_data_of_an_ordinary_user_stays_theirs_when_root_starts_it(data_dir: Path) -> None:
        os.chown(data_dir, ORDINARY.pw_uid, ORDINARY.pw_gid)
        cluster = data_dir / "pg18"
        cluster.mkdir(mode=0o700)
        os.chown(cluster, ORDINARY.pw_uid, ORDINARY.pw_gid)
        account = owner_of(cluster)
        assert account is not None
        assert account.uid == ORDINARY.pw_uid


def test_a_second_holder_is_told_who_has_the_directory(data_dir: Path) -> None:
    first, second = DataDirLock(data_dir), DataDirLock(data_dir)
    first.acquire("http://127.0.0.1:8080")
    with pytest.raises(ServerError) as refused:
        second.acquire("http://127.0.0.1:9090")
    assert str(refused.value) == (
        f"{data_dir} is already in use by process {os.getpid()} at http://127.0.0.1:8080"
    )
    assert second.holder() == f"process {os.getpid()} at http://127.0.0.1:8080"
    first.release()
    assert second.holder() is None
    second.acquire("http://127.0.0.1:9090")
    second.release()


def test_a_foreign_socket_directory_is_refused_not_used(data_dir: Path) -> None:
    with started(data_dir) as servers:
        assert servers.redis_url is not None
        socket_dir = Path(servers.redis_url.removeprefix("unix://")).parent
    socket_dir.symlink_to(data_dir)
    try:
        with pytest.raises(ServerError, match="should be a private directory"):
            Servers(data_dir, fast_for_tests=True).start()
        assert not list(data_dir.glob("*.sock"))
    finally:
        socket_dir.unlink()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(data_dir: Path) -> None:
    with started(data_dir, valkey=False):
        pass
    (data_dir / "pg18" / "global" / "pg_control").unlink()
    with pytest.raises(ServerError) as failed:
        Servers(data_dir, fast_for_tests=True).start()
    assert "postgres ended with status" in str(failed.value)
    assert "pg_control" in str(failed.value)


def test_servers_json_is_readable_by_its_owner_only(data_dir: Path) -> None:
    with started(data_dir, postgres=False) as servers:
        servers.publish("http://127.0.0.1:8080", {"api": 12})
        path = data_dir / "servers.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        told = msgspec.json.decode(path.read_bytes())
        assert told["database_url"] is None
        assert told["redis_url"] == servers.redis_url
        assert told["pids"] == {"valkey": servers.processes["valkey"].pid, "api": 12}
        servers.unpublish()
        assert not path.exists()
