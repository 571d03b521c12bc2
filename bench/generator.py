"""The compiled generators: built once, run as processes of their own.

The open loop sends claims when they are due, by Poisson arrivals at a rate, and counts each
latency from that instant; a closed loop would stop asking a server that stalls and never notice.
"""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import machine
from bench.closed_loop import Aim
from bench.product import ROOT, ProductFault

# Of an open loop: more than the product's queue holds, or it would never be seen full.
CONNECTIONS_MAX = 6_000
# The generator has answered for its lateness below this; above, it waited for a core itself.
GENERATOR_SHARE_MAX = 0.85
# After the last arrival the generator waits 10 s for answers; connecting takes part of a second.
PATIENCE_S = 20.0
FSYNC_BYTES = 8_192
# Often enough for a p99 of ten seconds, and next to nothing for the disk.
FSYNC_PAUSE_S = 0.01


class Latency(msgspec.Struct, frozen=True):
    """Of one kind of answer, from the instant a claim was due."""

    count: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float


class OpenRun(msgspec.Struct, kw_only=True):
    """One open-loop run. `cpu_s`: server CPU of all processes; `fsync_p99_ms`: of the data disk."""

    offered: int
    answered: int
    others: int
    lost: int
    unanswered: int
    seconds: float
    elapsed_s: float
    cpu_share: float
    connections: int
    late_p50_us: float
    late_p99_us: float
    ok: Latency
    conflict: Latency
    away: Latency
    unknown: Latency
    cpu_s: float = 0.0
    others_share: float = 0.0
    fsync_p99_ms: float = 0.0


def binary(name: str) -> str:
    """Return the path of a compiled generator, built if it is not up to date.

    Raises: ProductFault with the compiler's last words.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        raise ProductFault("the generators need a Rust toolchain: https://rustup.rs")
    command = [cargo, "build", "--release", "--quiet", "--package", "vauchflow-generators"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProductFault(f"the generators do not build:\n{done.stderr[-2000:]}")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / name)


def packed(redis_url: str, mode: str, batch: int, depth: int, seconds: float) -> dict[str, float]:
    """Claim on a Valkey's unix socket through the batcher or by packed calls; see `packed.rs`.

    Raises: ProductFault when a claim was not won.
    """
    socket = redis_url.removeprefix("unix://")
    command = [binary("packed"), socket, mode, str(batch), str(depth), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProductFault(f"packed {mode}: {done.stderr}")
    told: dict[str, float] = json.loads(done.stdout)
    return told


def open_loop(
    aim: Aim,
    rate: float,
    seconds: float,
    pids: list[int],
    *,
    disk: Path | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> OpenRun:
    """Send claims at a rate. `pids`: the servers; `disk`: where fsyncs are timed during the run.

    `meanwhile` runs in this thread after the start, and ends before the run does.
    Raises: ProductFault when the generator was the bottleneck itself.
    """
    command = [binary("open_loop"), aim.url.removeprefix("http://"), aim.path, str(rate)]
    command += [str(seconds), str(CONNECTIONS_MAX), "1" if aim.is_keyed else "0"]
    command += [str(random.randrange(10**9))]
    before_s, before = machine.cpu_s(pids), machine.busy_s()
    fsyncs = _Fsyncs(disk) if disk else None
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(aim.token + "\n")
        process.stdin.flush()
        if meanwhile is not None:
            meanwhile()
        said, _ = process.communicate(timeout=seconds + PATIENCE_S)
    used_s = machine.cpu_s(pids) - before_s
    busy_s, all_s = (a - b for a, b in zip(machine.busy_s(), before, strict=True))
    if not said:
        raise ProductFault(f"the open loop ended with status {process.returncode}")
    run = msgspec.json.decode(said, type=OpenRun)
    run.cpu_s = used_s
    run.others_share = max(0.0, busy_s - used_s - run.cpu_share * run.elapsed_s) / all_s
    run.fsync_p99_ms = fsyncs.stop() if fsyncs else 0.0
    if run.cpu_share > GENERATOR_SHARE_MAX:
        raise ProductFault(f"the generator was the bottleneck ({run.cpu_share:.0%} of a core)")
    return run


class _Fsyncs:
    """Writes and syncs a little file again and again, and remembers how long each took."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "fsync-probe"
        self._is_over = threading.Event()
        self._took_ms: list[float] = []
        self._thread = threading.Thread(target=self._probe)
        self._thread.start()

    def _probe(self) -> None:
        block: Any = os.urandom(FSYNC_BYTES)
        file = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while not self._is_over.wait(FSYNC_PAUSE_S):
                os.pwrite(file, block, 0)
                started_s = time.perf_counter()
                os.fdatasync(file)
                self._took_ms.append(1_000 * (time.perf_counter() - started_s))
        finally:
            os.close(file)
            self._path.unlink()

    def stop(self) -> float:
        """Return the p99, in milliseconds."""
        self._is_over.set()
        self._thread.join()
        ordered = sorted(self._took_ms)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0
