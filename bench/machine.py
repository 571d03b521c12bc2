"""What the machine was doing: CPU time of processes, and who else used it."""

import os
import platform
import subprocess
from pathlib import Path

from bench.product import ROOT

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(roots: list[int]) -> float:
    """Return the CPU seconds of these processes and all their descendants, dead ones included."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        # utime, stime and what reaped children used.
        used[int(entry.name)] = sum(int(field) for field in fields[11:15])
    total, todo = 0, list(roots)
    while todo:
        pid = todo.pop()
        total += used.get(pid, 0)
        todo += children.get(pid, [])
    return total / _TICKS_PER_S


def busy_s() -> tuple[float, float]:
    """Return the machine's busy CPU seconds, stolen ones included, and all of them."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / _TICKS_PER_S, sum(fields) / _TICKS_PER_S


def now_s() -> tuple[float, float, float]:
    """Return busy CPU seconds, all of them, and those of this process and what it started."""
    return (*busy_s(), cpu_s([os.getpid()]))


def strangers_share(before: tuple[float, float, float]) -> float:
    """Return how much of the machine others have used since `now_s` said `before`."""
    busy, everything, mine = (a - b for a, b in zip(now_s(), before, strict=True))
    return max(0.0, busy - mine) / max(everything, 1e-9)


def described() -> dict[str, str | int]:
    """Return what a reader of figures has to know of the machine and the build."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }
