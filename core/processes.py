"""Child processes that cannot outlive us, and the account servers run as when we are root.

Start children from the main thread: the kernel ties a child to the *thread* that forked it.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import msgspec

# The account the servers run as when started by root; `nobody` is shared with other services.
ACCOUNTS = ("postgres", "nobody")
# A fast stop of PostgreSQL writes one checkpoint: 256 MB of buffers at a slow 20 MB/s.
STOP_TIMEOUT_S = 15.0

_PR_SET_PDEATHSIG = 1

# Runs in the child in place of a `preexec_fn`, which is unsafe once this process has threads.
# The uid first: the kernel forgets the signal when credentials change. Then it becomes the command.
_TIE = """
import ctypes, os, sys
signum, parent, uid, gid = map(int, sys.argv[1:5])
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signum, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


class ServerError(Exception):
    """One plain sentence: an embedded server cannot start, stop or be found."""


class Account(msgspec.Struct, frozen=True):
    """The unprivileged account the servers run as when we are root."""

    name: str
    uid: int
    gid: int


def servers_account() -> Account | None:
    """Return the account to drop to, or None when this process is not root.

    Raises: ServerError when we are root and the machine has neither account.
    """
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise ServerError(
        "PostgreSQL refuses to run as root and there is no account "
        + " or ".join(ACCOUNTS)
        + " to run it as; start as an ordinary user"
    )


def owner_of(path: Path) -> Account | None:
    """Return the ordinary account an earlier start used, when we are root; data keeps its owner."""
    with contextlib.suppress(FileNotFoundError, KeyError):
        uid = path.stat().st_uid
        if os.geteuid() == 0 and uid != 0:
            entry = pwd.getpwuid(uid)
            return Account(name=entry.pw_name, uid=uid, gid=entry.pw_gid)
    return None


def dropped(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def die_with_parent(signum: int = signal.SIGTERM, *, parent_pid: int | None = None) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends.

    Call it first thing in a child. A parent that went in the meantime is noticed; with
    `parent_pid`, also one that went before the call. Does nothing where the kernel cannot (macOS).
    """
    parent = parent_pid or os.getppid()
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


class Process:
    """A child that cannot outlive this process, in a session of its own.

    A session of its own keeps a terminal's Ctrl-C from reaching it: who started it decides the
    order in which things stop.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        stop_signal: int = signal.SIGTERM,
        account: Account | None = None,
        log: IO[bytes] | None = None,
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start the command at once. Without a log it writes where this process writes."""
        assert threading.current_thread() is threading.main_thread()
        self.name = name
        self.started_at_s = time.monotonic()
        self._stop_signal = stop_signal
        owner = (account.uid, account.gid) if account else (-1, -1)
        tied = [sys.executable, "-I", "-S", "-c", _TIE]
        tied += [str(number) for number in (int(stop_signal), os.getpid(), *owner)]
        self._popen = subprocess.Popen(
            tied + command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
            cwd=cwd or "/",
            env=environ,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._popen.pid

    def exit_status(self) -> int | None:
        """Return None while it runs, else its status, negative for a signal. Reaps."""
        return self._popen.poll()

    def ask_to_stop(self) -> None:
        """Send the stop signal; harmless when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(self._stop_signal)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to stop, wait, and kill its whole session when it does not. Idempotent."""
        if self.exit_status() is None:
            self.ask_to_stop()
        self.wait_or_kill(timeout_s)

    def wait_or_kill(self, timeout_s: float) -> None:
        """Wait for its end; kill what is left of its session in any case."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        self.kill()

    def hurry(self) -> None:
        """Kill its session at once, without waiting."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it and everything it started that is still in its session's group, and reap it."""
        self.hurry()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_TIMEOUT_S)
