"""One Redis, or the masters of a cluster: clients that find the node which holds a lease.

All keys of a lease or a voucher share a hash tag, so one slot, so one master. A client of a
cluster sends what names such a key to that master; whatever asks a server about itself asks for
the master by name first (`node_of`), or goes through all of them (`nodes_of`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, ConnectionError, MovedError, RedisError

from core.hot import keys

SCHEME: Final = "redis+cluster"
SLOTS: Final = 16_384
# Who has which slot is asked so often while commands flow, and at once after MOVED: a moved slot
# is found within this.
LOOK_S: Final = 0.5

# A node that is asked may be the one that went away: the next is asked after so long.
LOOK_TIMEOUT_S: Final = 1.0


class Owner(NamedTuple):
    """The master of a slot: as of which config epoch, by which id of the cluster, where."""

    epoch: int
    node: str
    address: str


def connect(url: str, **options: Any) -> Redis:
    """Return a client of what an address names. `options` are those of `Redis.from_url`.

    Raises: ValueError for an address that cannot be read.
    """
    if is_cluster(url):
        return Cluster(url, **options)
    client = Redis.from_url(url, **options)
    pool = client.connection_pool
    pool.connection_class = _HONEST.get(pool.connection_class, pool.connection_class)
    return client


def is_cluster(url: str) -> bool:
    """Whether an address names a cluster: redis+cluster://[user:password@]host:port,host:port…"""
    return url.startswith(f"{SCHEME}://")


async def node_of(redis: Redis, target: str) -> Redis:
    """Return a client of the one server that holds a lease's or a voucher's keys.

    Raises: ClusterDownError when no master has them; RedisError and OSError when none answers.
    """
    return await redis.node_of(target) if isinstance(redis, Cluster) else redis


async def nodes_of(redis: Redis) -> list[Redis]:
    """Return a client of every server. Raises: as `node_of`; ClusterDownError if slots lack one."""
    return await redis.masters() if isinstance(redis, Cluster) else [redis]


def address_of_each(url: str) -> list[str]:
    """Return the host:port of each node that a cluster's address names."""
    found = [node for node in urlsplit(url).netloc.rpartition("@")[2].split(",") if node]
    if not found or any(not node.rpartition(":")[2].isdecimal() for node in found):
        raise ValueError(f"a {SCHEME}:// address is host:port, one or several, with commas between")
    return found


def url_of(url: str, address: str) -> str:
    """Return the address of one node of a cluster."""
    login, at, _ = urlsplit(url).netloc.rpartition("@")
    return urlunsplit(("redis", f"{login}{at}{address}", "", "", ""))


class _ResetIsLoss:
    """What is written to a connection that was reset is lost with it, and no bug.

    uvloop says so by a RuntimeError, which the client library takes for one.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error


class _Tcp(_ResetIsLoss, Connection):
    pass


class _Tls(_ResetIsLoss, SSLConnection):
    pass


class _Unix(_ResetIsLoss, UnixDomainSocketConnection):
    pass


_HONEST: Final[dict[type, type]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class Cluster(Redis):
    """A client that sends every command to the master that has its key, and follows MOVED once.

    A command must name a key of `keys`; a pipeline, keys of one lease. Of two masters that claim
    a slot the one with the higher epoch has it, as the nodes themselves decide: a node that was
    cut off and knows an older map cannot lead back to where a slot was.
    """

    def __init__(self, url: str, **options: Any) -> None:
        """Connect to nobody yet."""
        self._url, self._options = url, options
        self._seeds = address_of_each(url)
        self._clients: dict[str, Redis] = {}
        self._owners: list[Owner | None] = [None] * SLOTS
        self._seen: dict[str, Any] = {}  # what each node said last, to skip what is known
        self._asked = 0
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        super().__init__(connection_pool=self._client(self._seeds[0]).connection_pool)

    def _client(self, address: str) -> Redis:
        client = self._clients.get(address)
        if client is None:
            client = connect(url_of(self._url, address), **self._options)
            self._clients[address] = client
        return client

    async def look(self) -> None:
        """Ask a node who has which slot, each time another. Raises: RedisError; OSError."""
        masters = {owner.address for owner in set(self._owners) if owner is not None}
        known = sorted(masters | set(self._seeds))
        lost: Exception | None = None
        for _ in known:
            self._asked += 1
            address = known[self._asked % len(known)]
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    told: Any = await _send(self._client(address), "CLUSTER NODES")
            except (RedisError, OSError) as error:
                lost = error
                continue
            self._learn(address, told)
            self._looked_at = time.monotonic()
            return
        assert lost is not None
        raise lost

    def _learn(self, asked: str, told: dict[str, dict[str, Any]]) -> None:
        found = [
            (int(node["epoch"]), node["node_id"], at, "myself" in node["flags"], node["slots"])
            for at, node in told.items()
            if node["slots"] and "master" in node["flags"] and "noaddr" not in node["flags"]
        ]
        if self._seen.get(asked) == found:
            return
        self._seen[asked] = found
        for epoch, node_id, at, is_itself, ranges in found:
            host, _, port = at.rpartition(":")
            # A node that has not been told its own name is where it was asked.
            owner = Owner(epoch, node_id, f"{host or asked.rpartition(':')[0]}:{port}")
            for first, *last in ranges:
                for slot in range(int(first), int(last[0] if last else first) + 1):
                    known = self._owners[slot]
                    if (
                        known is None
                        or known[:2] < owner[:2]
                        # It came back elsewhere, which it learns later than the others do.
                        or (known[:2] == owner[:2] and not is_itself)
                    ):
                        self._owners[slot] = owner

    async def _look_if_old(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        async with self._looking:
            if time.monotonic() - self._looked_at < LOOK_S:
                return
            try:
                await self.look()
            except (RedisError, OSError):
                if not self._seen:
                    raise
                # Nobody answers: the one that is asked now will say so itself.
                self._looked_at = time.monotonic()

    def address_of(self, target: str) -> str | None:
        """Return the master that holds a lease's or a voucher's keys, as far as is known."""
        owner = self._owners[_slot_of(target)]
        return None if owner is None else owner.address

    async def node_of(self, target: str) -> Redis:
        """Return a client of that master; see the function of this name."""
        await self._look_if_old()
        address = self.address_of(target)
        if address is None:
            raise ClusterDownError(f"no master of the cluster has slot {_slot_of(target)}")
        return self._client(address)

    async def masters(self) -> list[Redis]:
        """Return a client of each master; see `nodes_of`."""
        await self._look_if_old()
        if None in self._owners:
            raise ClusterDownError(f"{self._owners.count(None)} slots of the cluster lack a master")
        return [self._client(at) for at in sorted({own.address for own in self._owners if own})]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command to the master of its key. Raises: as `node_of`."""
        target = _target_of(args)
        node = await self.node_of(target)
        try:
            return await _send(node, *args, **options)
        except MovedError as moved:
            # A command that is told so was not applied.
            self._looked_at = float("-inf")
            self._seeds = sorted({*self._seeds, f"{moved.host}:{moved.port}"})
            node = await self.node_of(target)
            return await _send(node, *args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline that runs whole on one connection to the master of its first key."""
        return _OneNode(self, transaction)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes. Idempotent."""
        for client in self._clients.values():
            with contextlib.suppress(RedisError, OSError):
                await client.aclose(close_connection_pool)
        self._clients.clear()


class _OneNode(Pipeline):
    """A pipeline whose commands name keys of one lease, beside what asks the server itself."""

    def __init__(self, cluster: Cluster, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run it. A slot that has moved is an error here: what is read again starts anew."""
        names = [str(part) for args, _ in self.command_stack for part in args if _is_key(part)]
        node = await self._cluster.node_of(_target_in(names[0]))
        self.connection_pool = node.connection_pool
        try:
            return await super().execute(raise_on_error)
        except MovedError:
            self._cluster._looked_at = float("-inf")
            raise


def _slot_of(target: str) -> int:
    return int(key_slot(keys.of_lease(target)[0].encode()))


async def _send(node: Redis, *args: Any, **options: Any) -> Any:
    return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]


def _is_key(part: Any) -> bool:
    return isinstance(part, str) and part.startswith("vf:{")


def _target_in(key: str) -> str:
    return key[4 : key.index("}")]


def _target_of(args: tuple[Any, ...]) -> str:
    for part in args:
        if _is_key(part):
            return _target_in(part)
    raise AssertionError(f"{args[0]} names no key, so no node of a cluster: ask one for it")
