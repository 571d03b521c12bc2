"""As fast as it goes: wrk on a number of connections, each asking again when it was answered.

Good for throughput and for the CPU a request costs. Its latencies are not to be trusted: a stalled
server is asked nothing meanwhile. `open_loop` measures those.
"""

import json
import random
import shutil
import signal
import subprocess
from typing import Any

import msgspec

from bench import machine
from bench.product import ROOT, ProductFault

THREADS = 2
# A burst at 2,000 a second, far below every target.
BURST_S_MAX = 100
# Above this a thread of wrk waits for a core of its own, and measures itself.
GENERATOR_SHARE_MAX = 0.85
SCRIPT = ROOT / "bench" / "wrk" / "claims.lua"


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask: `{n}` in the path is a number below `spread`.

    `burst`: how many requests, whatever time they take; 0: as many as the time allows.
    """

    url: str
    path: str
    token: str = "none"
    is_keyed: bool = True
    burst: int = 0
    spread: int = 0


class Run(msgspec.Struct, kw_only=True):
    """One run. `cpu_us`: server CPU, all processes, for each request.

    `generator_share`: how busy each thread of wrk was. `others_share`: how much of the machine
    neither the servers nor wrk used, and was not idle. `counters`: what servers counted meanwhile.
    """

    name: str
    connections: int
    per_s: float
    seconds: float
    requests: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float
    cpu_us: float
    generator_share: float
    others_share: float
    counters: dict[str, float] = {}

    @property
    def won(self) -> int:
        """Return how many answers were 2xx."""
        return self.requests - self.refused - self.broken


def is_installed() -> bool:
    """Whether wrk is there."""
    return shutil.which("wrk") is not None


def run(name: str, aim: Aim, connections: int, seconds: float, pids: list[int]) -> Run:
    """Run wrk once; `pids` are the servers whose CPU is counted, with their descendants.

    Raises: ProductFault when wrk ends without a result, or was the bottleneck itself.
    """
    seed = f"{random.randrange(10**9)}"
    # A burst ends by its count; the time is only a bound.
    bound_s = BURST_S_MAX if aim.burst else max(1, round(seconds))
    command = ["wrk", f"-t{THREADS}", f"-c{connections}", f"-d{bound_s}s", "--timeout", "10s"]
    command += ["-s", str(SCRIPT), aim.url, "--", aim.token, aim.path, seed]
    command += [str(aim.burst // THREADS), "1" if aim.is_keyed else "0", str(aim.spread)]
    before_s, before = machine.cpu_s(pids), machine.busy_s()
    told: dict[str, Any] = {}
    used_s, wrk_s, others_share, threads_ended = 0.0, 0.0, 0.0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        assert wrk.stdout is not None
        for line in wrk.stdout:
            if line == "ended\n":
                threads_ended += 1
                if threads_ended == THREADS:
                    wrk.send_signal(signal.SIGINT)
            elif line.startswith("{"):
                told = json.loads(line)
                used_s = machine.cpu_s(pids) - before_s
                wrk_s = machine.cpu_s([wrk.pid])
                busy_s, all_s = (a - b for a, b in zip(machine.busy_s(), before, strict=True))
                others_share = max(0.0, busy_s - used_s - wrk_s) / all_s
    if not told:
        raise ProductFault(f"{name}: wrk ended with status {wrk.returncode}")
    requests, elapsed_s = told["requests"], told["duration_us"] / 1e6
    generator_share = wrk_s / THREADS / elapsed_s
    if generator_share > GENERATOR_SHARE_MAX:
        raise ProductFault(f"{name}: wrk was the bottleneck ({generator_share:.0%} of its threads)")
    return Run(
        name=name,
        connections=connections,
        per_s=requests / elapsed_s,
        seconds=elapsed_s,
        requests=requests,
        refused=told["refused"],
        broken=told["broken"],
        p50_ms=told["p50_us"] / 1000,
        p99_ms=told["p99_us"] / 1000,
        cpu_us=1e6 * used_s / max(1, requests),
        generator_share=generator_share,
        others_share=others_share,
    )
