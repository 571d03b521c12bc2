"""PgBouncer as it is installed, for the tests that go through it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.product import free_port
from core.processes import servers_account


@contextmanager
def pgbouncer(database_url: str, *, connections: int = 6) -> Iterator[str]:
    """Run Debian's PgBouncer in transaction mode before a server on a socket.

    Yields the URL of the same database through it, as the owner.
    """
    own = Path(sys.prefix) / "pgbouncer"
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:{own}/usr/sbin")
    assert binary, "this test needs PgBouncer: make test-long fetches it, or apt install pgbouncer"
    address, _, socket_dir = database_url.partition("host=")
    database = address.rstrip("?&").rpartition("/")[2]
    port = free_port()
    account = servers_account()
    folder = Path(tempfile.mkdtemp(prefix="vf-bouncer-", dir="/tmp"))
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    users = "".join(f'"{name}" ""\n' for name in ("postgres", "vf_app", "vf_worker"))
    (folder / "users").write_text(users)
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={socket_dir} port=5432\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"default_pool_size = {connections}\nmax_client_conn = 200\nserver_reset_query =\n"
    )
    command = [binary, str(folder / "pgbouncer.ini")]
    if account is not None:
        command[1:1] = ["-u", account.name]
    libraries = os.pathsep.join(str(path) for path in own.glob("usr/lib/*-linux-*"))
    running = subprocess.Popen(
        command,
        env=os.environ | ({"LD_LIBRARY_PATH": libraries} if libraries else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        assert running.poll() is None, "PgBouncer has ended"
        yield f"postgresql://postgres@127.0.0.1:{port}/{database}"
    finally:
        running.terminate()
        running.wait()
        shutil.rmtree(folder, ignore_errors=True)
