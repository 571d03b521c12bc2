"""What a request costs in instructions, which other load on a machine cannot change.

`python -m bench.instructions` counts, in user mode, what each server executes for a request of each
hot path, with the processor's own counters (perf_event_open(2)); `docs/profile.md` has the table.
Time says how long somebody waited, and half of that is the machine's mood: a change of a few
per cent is seen here in one run.
"""

import argparse
import ctypes
import os
import platform
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench import product
from bench.closed_loop import Aim, Run
from bench.product import Product, ProductFault
from bench.subjects import Bench

# Paths whose every request is answered by the compiled module.
PATHS: Final = ("sold_out", "sold_out_keyed", "fast", "strict", "ordinary")
SERVERS: Final = ("api", "valkey", "postgres", "reconciler")
# Enough that a batch more or less, and what a server does each second, are lost in it.
REQUESTS: Final = 30_000
SECONDS: Final = 3.0
CONNECTIONS: Final = 64
# What was won is told as events and added to the figures within a second; that is its cost, too.
AFTERWARDS_S: Final = 1.5

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241}
# struct perf_event_attr, its first version (64 bytes): type, size, config, period, sample type,
# read format, flags, wake-up, breakpoint type, address.
_ATTR: Final = struct.Struct("IIQQQQQIIQ")
_HARDWARE, _INSTRUCTIONS = 0, 1
_INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6


class NoCounters(Exception):
    """The kernel or the processor gives none: a virtual machine without them, or no permission."""


@contextmanager
def counted(pids: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Count user-mode instructions of these processes and their descendants, by name.

    The dictionary is filled when the block ends. Threads and processes that start in between are
    counted, too. Raises: NoCounters.
    """
    opened = {name: [_open(task) for task in _tasks(pid)] for name, pid in pids.items()}
    done: dict[str, int] = {}
    try:
        yield done
        for name, counters in opened.items():
            done[name] = sum(struct.unpack("Q", os.read(counter, 8))[0] for counter in counters)
    finally:
        for counters in opened.values():
            for counter in counters:
                os.close(counter)


def _open(task: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise NoCounters(f"unknown on {platform.machine()}")
    flags = _INHERIT | _NO_KERNEL | _NO_HYPERVISOR
    attr = _ATTR.pack(_HARDWARE, _ATTR.size, _INSTRUCTIONS, 0, 0, 0, flags, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    counter = libc.syscall(number, attr, task, -1, -1, 0)
    if counter < 0:
        raise NoCounters(os.strerror(ctypes.get_errno()))
    return int(counter)


def _tasks(root: int) -> list[int]:
    """Return every thread of a process and of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found += [int(task) for task in os.listdir(f"/proc/{pid}/task")]
        todo += children.get(pid, [])
    return found


class Counting(Bench):
    """Counts what the servers execute while it asks; `cost_k` is that of the last run."""

    cost_k: dict[str, float]

    def _ask(self, name: str, aim: Aim, connection_count: int, seconds: float) -> Run:
        # By number, so that what a run costs once is shared by as many, however slow the machine.
        aim = msgspec.structs.replace(aim, burst=REQUESTS)
        servers = {name: pid for name, pid in self.product.pids().items() if name in SERVERS}
        with counted(servers) as done:
            run = super()._ask(name, aim, connection_count, seconds)
            time.sleep(AFTERWARDS_S)
        self.cost_k = {name: count / run.requests / 1000 for name, count in done.items()}
        return run


def measure(running: Product) -> dict[str, dict[str, float]]:
    """Return thousands of instructions a request, by path and server; the books are audited.

    Raises: NoCounters; ProductFault, as `Bench.run`.
    """
    bench = Counting(running, list(running.pids().values()), burst=REQUESTS)
    found = {}
    for path in PATHS:
        bench.run(path, CONNECTIONS, SECONDS)
        found[path] = bench.cost_k
    return found


def main() -> int:
    """Print the table; exit status 1 where there are no counters or the audit fails."""
    argparse.ArgumentParser(prog="instructions", description="Count instructions.").parse_args()
    try:
        with product.running() as running:
            found = measure(running)
    except (NoCounters, ProductFault) as fault:
        print(fault, file=sys.stderr)
        return 1
    print(f"{'thousand instructions a request':34}" + "".join(f"{name:>12}" for name in SERVERS))
    for path, cost in found.items():
        print(f"{path:34}" + "".join(f"{cost[name]:12.1f}" for name in SERVERS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
