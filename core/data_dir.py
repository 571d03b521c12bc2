"""A data directory: who holds it, its sockets, and files that only their owner may read."""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

from core.processes import Account, ServerError

# sun_path holds 108 bytes with its NUL on Linux, 104 on macOS.
SOCKET_PATH_BYTES_MAX = 103


class DataDirLock:
    """Who holds a data directory: one `up` at a time. The kernel frees it when the holder dies."""

    def __init__(self, data_dir: Path) -> None:
        """Name the lock; nothing is taken yet."""
        self._path = data_dir / "lock"
        self._file: IO[str] | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the directory."""
        return self._file is not None

    def acquire(self, address: str) -> None:
        """Take the lock and write down who holds it.

        Raises: ServerError naming the holder's pid and address when another has it.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+")
        except OSError as error:
            raise ServerError(
                f"the data directory {self._path.parent} cannot be used: "
                f"{error.strerror}; give another with --data-dir"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ServerError(
                f"{self._path.parent} is already in use by {self.holder() or 'a starting process'}"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} at {address}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go. Idempotent."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def holder(self) -> str | None:
        """Return `process PID at ADDRESS` of who holds it now, None when nobody does."""
        try:
            with self._path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip()
        except OSError:
            pass
        return None


def make_socket_dir(data_dir: Path, suffix: str = "", account: Account | None = None) -> Path:
    """Return a private directory with a short path; a foreign one of that name is never used.

    Raises: ServerError when there is one.
    """
    uid = account.uid if account else os.geteuid()
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    path = Path("/tmp") / f"vf-{digest}{suffix}"  # noqa: S108 - checked below
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if account is not None:
            os.chown(path, account.uid, account.gid)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise ServerError(f"{path} should be a private directory of ours and is not; remove it")
    assert len(os.fsencode(path)) + len("/.s.PGSQL.5432") <= SOCKET_PATH_BYTES_MAX
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
