"""A worker's seat on its node: a number that outlives the process, and the marks kept there.

A worker that dies leaves its marks file behind; its successor takes the same seat and goes on
with it, and while there is none its living neighbours may read it. Locks are the kernel's, so a
killed process holds nothing.
"""

import fcntl
import os
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

from vauchflow_hotpath import read_marks

# Workers of one node that share a data directory.
SEATS_MAX: Final = 256


class NoSeatError(Exception):
    """Every seat of the node is taken: more workers than SEATS_MAX, or foreign locks."""


class Seat:
    """Taken when made; `leave` gives it back, and so does the end of the process."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lowest free seat. Raises: NoSeatError; OSError."""
        self._dir = data_dir / "marks"
        self._dir.mkdir(parents=True, exist_ok=True)
        self.node_id = _node_id(data_dir / "node_id")
        self._lock: IO[str] | None = None
        for number in range(SEATS_MAX):
            lock = self._try(number)
            if lock is not None:
                self._lock = lock
                self.worker_id = f"{self.node_id}:{number}"
                self.marks_path = self._dir / f"{number}.marks"
                return
        raise NoSeatError(f"all {SEATS_MAX} seats under {self._dir} are taken")

    def leave(self) -> None:
        """Give the seat back. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def marks_of_dead(self, worker_id: str) -> dict[str, int] | None:
        """Return the marks a dead neighbour left, by lease.

        None when it lives, is elsewhere, or left none that can be trusted.
        """
        node, _, number = worker_id.rpartition(":")
        if node != self.node_id or not number.isdigit():
            return None
        lock = self._try(int(number))
        if lock is None:
            return None
        try:
            return read_marks(self._dir / f"{number}.marks")
        finally:
            lock.close()

    def _try(self, number: int) -> IO[str] | None:
        lock = (self._dir / f"{number}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock


def _node_id(path: Path) -> str:
    """Read the node's name, made once; two processes that start together agree on one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        name = uuid4().hex[:16]
        file.write(name)
    return name
