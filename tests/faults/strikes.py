"""What each fault does. A strike is a generator with two stops: prepared, and healed.

What comes before the first `yield` happens before the load, what comes before the second is the
fault and its healing under load, and what follows puts the system back once the sale is over.
"""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import redis

from bench.product import Product
from tests.faults.proxy import Link, Proxy, Weather
from tests.faults.shim import Loss
from tests.faults.system import Stuck, System

# How long a frozen process, a bad network or a wrong clock lasts; and how long init takes.
FREEZE_S = 3.0
FAULT_S = (1.0, 2.0)
RESTART_S = (0.1, 0.8)
# A few commits of the crowd, and a quarter of what the server waits before it writes by itself.
ANSWERED_S = 0.5
# Twenty notes of appended batches: what the control is sure to lose.
UNSYNCED_BYTES = 640
# A server that found its disk full has one more crash recovery before it. One that does not answer
# for so long is taken for hung: a health check's three tries.
UP_WITHIN_S = 10.0
HUNG_AFTER_S = 3.0
# How far the ledger is behind when Redis loses something: 650 wins a second, below backlog_max.
BEHIND_S = (0.2, 0.8)
# A revoked key is refused everywhere after this.
REVOKED_WITHIN_S = 2.0


class Scene:
    """One round's stage: the system, the sale, and what the strike tells the verdict."""

    def __init__(self, system: System, mode: str, chance: random.Random, variant: str = "") -> None:
        """`variant`: which of a fault's kinds; empty: the seed's choice."""
        self.system = system
        self.mode = mode
        self.chance = chance
        self.variant = variant
        self.tokens = [system.product.token]
        self.sale: dict[str, Any] = {}
        self.tells_time = True
        self.undone = Loss(0, 0)
        self.revoked_s: float | None = None

    def pause(self, span_s: tuple[float, float]) -> None:
        """Wait for a random part of a span."""
        time.sleep(self.chance.uniform(*span_s))

    def choose(self, *variants: str) -> str:
        """Take the variant that was asked for, or one by chance."""
        drawn = self.chance.choice(variants)
        self.variant = self.variant if self.variant in variants else drawn
        return self.variant


Strike = Generator[None, None, None]


@contextlib.contextmanager
def ledger_behind(at: Scene) -> Iterator[None]:
    """Hold the reconciler back: what was answered in the last moments is in Redis and nowhere else.

    Otherwise the ledger has a win within milliseconds, and no loss of Redis would be felt.
    """
    pid = at.system.pid_of_product("reconciler")
    os.kill(pid, signal.SIGSTOP)
    try:
        at.pause(BEHIND_S)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill_valkey(at: Scene) -> Strike:
    """1: SIGKILL of Redis, started again by init."""
    yield
    at.system.kill("valkey")
    at.pause(RESTART_S)
    at.system.start_again("valkey")
    yield


def cut_power(at: Scene) -> Strike:
    """2: power cut of the machine with both servers: what was not fsynced is gone."""
    shims = [at.system.shims[name] for name in ("postgres", "valkey")]
    for shim in shims:
        shim.watch_writes(True)
    yield
    with ledger_behind(at):
        _lose_power(at, "valkey", "postgres")
    yield


def cut_power_under_everysec(at: Scene) -> Strike:
    """The control: with `appendfsync everysec` a power cut takes answered wins."""
    shim = at.system.shims["valkey"]
    shim.watch_writes(True)
    yield
    # Drift is looked for every three seconds; until then wins are answered before they are kept.
    at.system.redis().config_set("appendfsync", "everysec")
    with ledger_behind(at):
        until_s = time.monotonic() + 2.0
        while shim.unsynced_bytes() < UNSYNCED_BYTES and time.monotonic() < until_s:
            time.sleep(0.01)
        _lose_power(at, "valkey")
    yield


def cut_power_under_async_commit(at: Scene) -> Strike:
    """The control of strict: with `synchronous_commit off` a power cut takes answered redeems."""
    shim = at.system.shims["postgres"]
    at.system.ask("alter system set wal_writer_delay = '2s'")
    at.system.ask("select pg_reload_conf()")
    # Sessions have it from their start on, so all are made to begin anew.
    at.system.ask("alter role vf_app set synchronous_commit = off")
    at.system.to_postgres.reset_all()
    _wait_until_ready(at)
    shim.watch_writes(True)
    yield
    # The sale itself is made sure of; what is answered from here on is not.
    at.system.ask("checkpoint")
    time.sleep(ANSWERED_S)
    _lose_power(at, "postgres")
    yield


def _wait_until_ready(at: Scene) -> None:
    """Wait until the API has sound connections again. Raises: Stuck."""
    until_s = time.monotonic() + UP_WITHIN_S
    answered = 0
    while answered < 10:
        if time.monotonic() > until_s:
            raise Stuck("the API does not get ready")
        is_ready = at.system.product.ask("GET", "/readyz")[0] == 200
        answered = answered + 1 if is_ready else 0
        time.sleep(0.05)


def _lose_power(at: Scene, *names: str) -> None:
    for name in names:
        at.system.kill(name)
    for name in names:
        loss = at.system.shims[name].lose_unsynced()
        # From here on the machine is up again: recovery need not be watched.
        at.system.shims[name].watch_writes(False)
        at.undone = Loss(at.undone.writes + loss.writes, at.undone.bytes + loss.bytes)
    at.variant = f"{at.undone.writes} writes undone"
    at.pause(RESTART_S)
    for name in names:
        at.system.start_again(name)


def delete_valkey(at: Scene) -> Strike:
    """3: Redis's directory is deleted."""
    yield
    with ledger_behind(at):
        at.system.kill("valkey")
        _empty(at.system.valkey_dir)
        at.pause(RESTART_S)
        at.system.start_again("valkey")
    yield


def restore_backup(at: Scene) -> Strike:
    """4: Redis comes back with a backup of some moments before."""
    yield
    directory = at.system.valkey_dir
    backup = at.system.directory / "backup"
    with ledger_behind(at):
        shutil.copytree(directory, backup)
        at.pause(BEHIND_S)
        at.system.kill("valkey")
        _empty(directory)
        shutil.copytree(backup, directory, dirs_exist_ok=True)
        for path in [directory, *directory.rglob("*")]:
            owner = (at.system.directory / "servers" / "pg18").stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.rmtree(backup)
        at.system.start_again("valkey")
    yield


def promote_replica(at: Scene) -> Strike:
    """5: a replica that has missed some moments takes over from the primary."""
    system = at.system
    link = Proxy(system.proxies, system.valkey_socket)
    replica = system.replica(link.port)
    try:
        yield
        with ledger_behind(at):
            link.turn(Weather.BLACK_HOLE)
            at.pause(BEHIND_S)
            system.kill("valkey")
            with redis.Redis(unix_socket_path=str(replica.socket)) as client:
                client.execute_command("REPLICAOF", "NO", "ONE")
            system.to_valkey.upstream = replica.socket
            system.to_valkey.reset_all()
        yield
    finally:
        # Nothing is live any more, so the embedded one may begin anew.
        replica.stop()
        link.stop()
        if not system.is_running("valkey"):
            _empty(system.valkey_dir)
            system.start_again("valkey")
        system.to_valkey.upstream = system.valkey_socket
        system.to_valkey.reset_all()


def freeze_valkey(at: Scene) -> Strike:
    """6: Redis stands still for three seconds."""
    yield
    at.system.signal("valkey", signal.SIGSTOP)
    time.sleep(FREEZE_S)
    at.system.signal("valkey", signal.SIGCONT)
    yield


def kill_postgres(at: Scene) -> Strike:
    """7: SIGKILL of all of PostgreSQL, started again by init."""
    yield
    at.system.kill("postgres")
    at.pause(RESTART_S)
    at.system.start_again("postgres")
    yield


def freeze_postgres(at: Scene) -> Strike:
    """8: PostgreSQL stands still for three seconds."""
    yield
    frozen = at.system.pids_of("postgres")
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(FREEZE_S)
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    yield


def kill_api_worker(at: Scene) -> Strike:
    """9: SIGKILL of the process that answers."""
    yield
    for pid in at.system.api_workers():
        os.kill(pid, signal.SIGKILL)
    yield


def kill_reconciler(at: Scene) -> Strike:
    """10: SIGKILL of the reconciler at a point of its work."""
    point = at.choose("before it writes", "while it writes", "before it hears", "at any moment")
    victim = at.system.pid_of_product("reconciler")
    done = threading.Event()

    def kill() -> None:
        if not done.is_set():
            done.set()
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    # A statement with wins is far longer than any look; its reply is the next thing said.
    waiting: set[Link] = set()

    def tap(link: Link, from_client: bool, data: bytes) -> bool:
        if done.is_set() or b"vauchflow-reconciler" not in link.opening:
            return True
        if from_client and len(data) > 600:
            if point == "before it writes":
                kill()
                return False
            waiting.add(link)
            if point == "while it writes":
                kill()
        elif not from_client and link in waiting and point == "before it hears":
            kill()
            return False
        return True

    yield
    if point != "at any moment":
        at.system.to_postgres.tap = tap
        done.wait(1.0)
    kill()
    at.system.to_postgres.tap = None
    yield


def break_network(at: Scene) -> Strike:
    """11: the network between the product and one of its stores."""
    kinds = [w for w in Weather if w is not Weather.FAIR]
    links = {"Redis": at.system.to_valkey, "PostgreSQL": at.system.to_postgres}
    chosen = at.choose(*(f"{name}: {kind}" for name in links for kind in kinds))
    name, _, kind = chosen.partition(": ")
    yield
    links[name].turn(Weather(kind))
    at.pause(FAULT_S)
    links[name].turn(Weather.FAIR)
    yield


def turn_clock(at: Scene) -> Strike:
    """12: a wall clock is a minute off, ahead or behind, and comes back."""
    chosen = at.choose(*(f"{who} {by:+d} s" for who in ("app", "valkey") for by in (60, -60)))
    who, by, _ = chosen.split()
    at.tells_time = False
    yield
    at.system.shims[who].set_clock(float(by))
    time.sleep(FREEZE_S)
    at.system.shims[who].set_clock(0.0)
    yield


def fill_disk(at: Scene) -> Strike:
    """13: the disk of a server is full."""
    own = "valkey" if at.mode == "fast" else "postgres"
    name = at.choose(own, own, "postgres" if own == "valkey" else "valkey")
    yield
    at.system.shims[name].fill_disk(True)
    at.pause(FAULT_S)
    at.system.shims[name].fill_disk(False)
    _bring_back(at.system, name)
    yield


def _bring_back(system: System, name: str) -> None:
    """Do what init does: start it whenever it has ended, and whenever it hangs, until it answers.

    PostgreSQL 18.6 whose crash recovery meets the full disk once more stays "in recovery mode"
    without a startup process for ever, room or not. Raises: Stuck.
    """
    began_s = time.monotonic()
    killed = False
    while time.monotonic() < began_s + UP_WITHIN_S:
        if system.is_running(name) and not killed and time.monotonic() > began_s + HUNG_AFTER_S:
            killed = True
            system.kill(name)
        if not system.is_running(name):
            system.start_again(name)
        if _answers(system, name):
            return
        time.sleep(0.05)
    raise Stuck(f"{name} does not come back with room on its disk")


def _answers(system: System, name: str) -> bool:
    if name == "postgres":
        with contextlib.suppress(Exception):
            system.ask("create temporary table probe (n int)")
            return True
        return False
    with contextlib.suppress(redis.RedisError):
        return bool(system.redis().ping())
    return False


def fill_memory(at: Scene) -> Strike:
    """14: Redis may take no more memory."""
    yield
    client = at.system.redis()
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", str(used))
    at.pause(FAULT_S)
    client.config_set("maxmemory", "0")
    yield


def revoke_key(at: Scene) -> Strike:
    """15: the key half of the crowd uses is revoked."""
    product = at.system.product
    made = product.must("POST", "/v1/api-keys", {"type": "SECRET"})
    at.tokens.insert(0, made["key"])
    yield
    status, answer = product.ask("DELETE", f"/v1/api-keys/{made['id']}")
    if status >= 300:
        raise Stuck(f"the key cannot be revoked: {status} {answer}")
    at.revoked_s = time.monotonic()
    revoked = Product(product.url, made["key"])
    while revoked.ask("GET", f"/v1/flash-sales/{at.sale['id']}")[0] != 401:
        if time.monotonic() > at.revoked_s + REVOKED_WITHIN_S:
            raise Stuck("a revoked key is still good")
        time.sleep(0.02)
    yield


def two_reconcilers(at: Scene) -> Strike:
    """16: a second reconciler; one of the two freezes, wakes up, and then one is killed."""
    with at.system.second("reconcile") as second:
        time.sleep(1.5)
        if second.poll() is not None:
            raise Stuck("the second reconciler does not run")
        yield
        pids = [at.system.pid_of_product("reconciler"), second.pid]
        at.chance.shuffle(pids)
        at.variant = "the first froze" if pids[0] != second.pid else "the second froze"
        os.kill(pids[0], signal.SIGSTOP)
        at.pause(FAULT_S)
        os.kill(pids[0], signal.SIGCONT)
        time.sleep(at.chance.uniform(0, 0.3))
        os.kill(at.chance.choice(pids), signal.SIGKILL)
        yield


def meddle(at: Scene) -> Strike:
    """17: somebody at a Redis prompt."""
    command = at.choose("FLUSHALL", "SCRIPT FLUSH", "CONFIG SET appendfsync everysec")
    yield
    client = at.system.redis()
    with ledger_behind(at) if command == "FLUSHALL" else contextlib.nullcontext():
        client.execute_command(*command.split())
    if command.startswith("CONFIG"):
        # Longer than the product takes to see it.
        time.sleep(FREEZE_S + 1.0)
        client.config_set("appendfsync", "always")
    yield


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
