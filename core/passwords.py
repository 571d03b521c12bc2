"""Passwords: argon2id, never more than two hashes at once in a process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2

from core.errors import Unavailable

T = TypeVar("T")

# What OWASP asks of argon2id at least: 19 MiB, two passes, one lane; 15 to 30 ms of a core.
_HASHER: Final = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# A node has two cores and redeems with them: logging in takes no more than it would by a queue.
HASHES_AT_ONCE_MAX: Final = 2
# 64 of 30 ms on two threads are a second, as long as anybody waits for a connection.
WAITING_MAX: Final = 64

# Started by its first use, so after the worker was forked.
_threads: Final = ThreadPoolExecutor(HASHES_AT_ONCE_MAX, thread_name_prefix="argon2")
_seats: Final = threading.Semaphore(WAITING_MAX)
# What nobody's password has: who is unknown is told so as late as who mistypes.
# Written down, since making one costs every process 30 ms at its start.
_OF_NOBODY: Final = (
    f"$argon2id$v=19$m={_HASHER.memory_cost},t={_HASHER.time_cost},p=1${'A' * 22}${'A' * 43}"
)


def hash_now(password: str) -> str:
    """Return the hash of a password with its own salt. Cost: tens of ms of this thread."""
    return _HASHER.hash(password)


async def hash_of(password: str) -> str:
    """Return the hash of a password. Raises: Unavailable (overloaded)."""
    return await _on_a_thread(_HASHER.hash, password)


async def fits(password_hash: str | None, password: str) -> bool:
    """Say whether a password is the one; `None` takes as long and says no.

    Raises: Unavailable (overloaded).
    """
    fitting = await _on_a_thread(_verify, password_hash or _OF_NOBODY, password)
    return fitting and password_hash is not None


async def _on_a_thread(function: Callable[..., T], *args: str) -> T:
    if not _seats.acquire(blocking=False):
        raise Unavailable("Too many people log in at once.", code="overloaded")
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, function, *args)
    finally:
        _seats.release()


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
