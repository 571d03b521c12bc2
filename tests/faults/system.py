"""A product whose servers can be hurt: PostgreSQL and Valkey under the shim, proxies before them.

`./vauchflow up` runs on the proxies' addresses and supervises its own processes. The two servers
are run from here, the way an operator's init system runs them: dead ones are started again.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import redis

from bench import product as bench_product
from bench.product import ROOT, Product
from core import settings as settings_module
from core.local import POSTGRES_MAJOR, VALKEY_OPTIONS, Servers
from core.processes import Account, Process
from core.settings import Settings
from tests.faults.proxy import Proxies, Proxy
from tests.faults.shim import Shim, build

# A sale may run so far ahead of the ledger: what a lost Redis may cost, so small enough to matter
# for a stock of 500 to 5,000, and reached where PostgreSQL is away for seconds.
BACKLOG_MAX = 1_000
SETTLED_WITHIN_S = 25.0


class Stuck(Exception):
    """The product did not do in time what it has to do by itself."""


class System:
    """One product, its servers and what stands between them. Made and used by the main thread."""

    def __init__(self, directory: Path) -> None:
        """Name everything; nothing runs yet."""
        self.directory = directory
        directory.chmod(0o755)
        library = build(directory)
        data = directory / "servers"
        self.shims = {
            "postgres": Shim(library, directory / "shim-pg", data / f"pg{POSTGRES_MAJOR}"),
            "valkey": Shim(library, directory / "shim-valkey", data / "valkey9"),
            "app": Shim(library, directory / "shim-app"),
        }
        data.mkdir()
        environ = {name: shim.environ for name, shim in self.shims.items()}
        self.servers = Servers(data, environ=environ)
        self.proxies = Proxies()
        self.product: Product

    def start(self) -> None:
        """Start the servers, the proxies and the product. Raises: ServerError, ProductFault."""
        self.servers.start()
        self.to_postgres = Proxy(self.proxies, self.postgres_socket)
        self.to_valkey = Proxy(self.proxies, self.valkey_socket)
        self.environ = {
            "VAUCHFLOW_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.to_postgres.port}"
            "/vauchflow?sslmode=disable",
            "VAUCHFLOW_REDIS_URL": f"redis://127.0.0.1:{self.to_valkey.port}/0",
            "VAUCHFLOW_BACKLOG_MAX": str(BACKLOG_MAX),
            "VAUCHFLOW_LOG_FORMAT": "json",
        } | self.shims["app"].environ
        self.product = bench_product.start(self.directory / "app", settings=self.environ)

    def stop(self) -> None:
        """Stop everything that was started. Idempotent enough to be called after a failed start."""
        if hasattr(self, "product"):
            self.product.stop()
        for name in ("to_postgres", "to_valkey"):
            if hasattr(self, name):
                getattr(self, name).stop()
        self.servers.stop()
        self.proxies.stop()
        for shim in self.shims.values():
            shim.close()

    # -- where things are ----------------------------------------------------------------------

    @property
    def postgres_socket(self) -> Path:
        """Return PostgreSQL's own socket, past the proxy."""
        url = self.servers.database_url
        assert url is not None
        return Path(url.partition("host=")[2]) / ".s.PGSQL.5432"

    @property
    def valkey_socket(self) -> Path:
        """Return the embedded Valkey's own socket, past the proxy."""
        assert self.servers.redis_url is not None
        return Path(self.servers.redis_url.removeprefix("unix://"))

    @property
    def valkey_dir(self) -> Path:
        """Return where the embedded Valkey keeps its append-only file."""
        return self.servers.server_dir("valkey9")

    @property
    def settings(self) -> Settings:
        """Return settings that go past the proxies, for the audit."""
        environ = {
            "VAUCHFLOW_DATABASE_URL": self.servers.database_url or "",
            "VAUCHFLOW_REDIS_URL": f"unix://{self.to_valkey.upstream}",
        }
        return settings_module.load(environ, self.directory / "app", join_running=False)

    # -- processes -----------------------------------------------------------------------------

    def pids_of(self, name: str) -> list[int]:
        """Return a server's processes, its children after it."""
        return [self.servers.processes[name].pid, *children(self.servers.processes[name].pid)]

    def signal(self, name: str, signum: signal.Signals) -> None:
        """Send a signal to all processes of a server."""
        for pid in self.pids_of(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def kill(self, name: str) -> None:
        """Kill all of a server at one moment: frozen first, so that nobody cleans up after it."""
        pids = self.pids_of(name)
        self.signal(name, signal.SIGSTOP)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.servers.processes[name].kill()

    def start_again(self, name: str) -> None:
        """Start a dead server and wait until it answers."""
        self.servers.start_one(name)

    def is_running(self, name: str) -> bool:
        """Say whether a server's first process is alive."""
        return self.servers.processes[name].exit_status() is None

    def pid_of_product(self, name: str) -> int:
        """Return a process of the product: api, reconciler, worker."""
        return self.product.pids()[name]

    def api_workers(self) -> list[int]:
        """Return the processes that serve requests."""
        return [
            pid
            for pid in children(self.pid_of_product("api"))
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    @contextlib.contextmanager
    def second(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one more `./vauchflow` command on the same system; killed on leaving."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "core", command, "--data-dir", str(self.directory / "app")],
            cwd=ROOT,
            env=own | self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def replica(self, port: int) -> "Replica":
        """Start a Valkey that follows whoever listens on a loopback port, and wait till it does."""
        return Replica(self.servers, self.directory / "servers" / "replica", port)

    # -- stores --------------------------------------------------------------------------------

    def redis(self) -> "redis.Redis":
        """Return a client of the Valkey the product uses, past the proxy."""
        return redis.Redis(unix_socket_path=str(self.to_valkey.upstream))

    def ask(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement as the owner, past the proxy and past row-level security."""

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.servers.database_url)
            try:
                return [dict(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def wait_for_sale(self, sale_id: str, statuses: set[str], within_s: float) -> dict[str, Any]:
        """Wait until a sale has one of some states and no lag. Raises: Stuck."""
        deadline_s = time.monotonic() + within_s
        sale: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                status, sale = self.product.ask("GET", f"/v1/flash-sales/{sale_id}")
                if status == 200 and sale["status"] in statuses and sale["lag"] == 0:
                    return sale
            time.sleep(0.05)
        raise Stuck(
            f"after {within_s:.0f} s not {' or '.join(sorted(statuses))}: {json.dumps(sale)}"
        )


class Replica:
    """A second Valkey with the embedded one's options."""

    def __init__(self, servers: Servers, directory: Path, port: int) -> None:
        """Start it and wait until it has everything. Raises: Stuck."""
        running = servers.processes["valkey"]
        owner = servers.server_dir("valkey9").stat()
        directory.mkdir(exist_ok=True)
        os.chown(directory, owner.st_uid, owner.st_gid)
        self.directory = directory
        self.socket = directory / "valkey.sock"
        options = VALKEY_OPTIONS | {
            "dir": str(directory),
            "unixsocket": str(self.socket),
            "pidfile": str(directory / "valkey.pid"),
            "replicaof": f"127.0.0.1 {port}",
            "repl-diskless-sync-delay": "0",
        }
        command = [os.readlink(f"/proc/{running.pid}/exe")]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = Process(
            "replica",
            command,
            account=Account("servers", owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None,
            log=(directory.parent / "replica.log").open("ab"),
        )
        deadline_s = time.monotonic() + SETTLED_WITHIN_S
        while not self._follows():
            if time.monotonic() > deadline_s:
                self.stop()
                raise Stuck("the replica does not follow")
            time.sleep(0.05)

    def _follows(self) -> bool:
        with contextlib.suppress(redis.RedisError), self._client() as client:
            return bool(client.info("replication")["master_link_status"] == "up")
        return False

    def _client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.socket))

    def stop(self) -> None:
        """Kill it and remove what it kept."""
        self._process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def children(pid: int) -> list[int]:
    """Return the children of a process, of its main thread."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
