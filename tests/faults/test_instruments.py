"""The instruments do what the rounds take for granted: a blind one would call everything clean."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import temporary_data_dir
from tests.faults.proxy import DELAY_S, Link, Proxies, Proxy, Weather
from tests.faults.rounds import back_after
from tests.faults.shim import Loss, Shim, build

WRITER = """
import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"kept kept kept", 0)
os.fdatasync(fd)
os.pwrite(fd, b"LOST", 5)
os.pwrite(fd, b"beyond", 20)
log = os.open(sys.argv[1] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(log, b"one ")
os.fsync(log)
os.write(log, b"two ")
os.write(log, b"three")
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


def run(shim: Shim, code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    environ = os.environ | shim.environ
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_power_cut_takes_exactly_what_was_not_fsynced(directory: Path) -> None:
    (directory / "data").mkdir()
    shim = Shim(build(directory), directory / "shim", directory / "data")
    shim.watch_writes(True)
    run(shim, WRITER, str(directory / "data" / "file"))
    run(shim, WRITER, str(directory / "elsewhere"))
    # A note is 32 bytes and what stood there before.
    assert shim.unsynced_bytes() == 4 * 32 + len(b"kept")
    # Two writes to the file and two to its log; what lies elsewhere is not watched.
    assert shim.lose_unsynced() == Loss(4, 4 + 6 + 4 + 5)
    assert (directory / "data" / "file").read_bytes() == b"kept kept kept"
    assert (directory / "data" / "file.log").read_bytes() == b"one "
    assert (directory / "elsewhere").read_bytes() == b"kept LOST kept\0\0\0\0\0\0beyond"


def test_a_full_disk_tears_the_last_write_and_refuses_the_rest(directory: Path) -> None:
    (directory / "data").mkdir()
    shim = Shim(build(directory), directory / "shim", directory / "data")
    shim.fill_disk(True)
    code = (
        "import errno, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "print(os.write(fd, b'12345678'))\n"
        "try: os.write(fd, b'more')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    assert run(shim, code, str(directory / "data" / "file")).split() == ["4", "ENOSPC"]
    assert (directory / "data" / "file").read_bytes() == b"1234"
    shim.fill_disk(False)
    assert run(shim, code, str(directory / "data" / "other")) == "8"


@pytest.mark.parametrize("offset_s", [60.0, -60.0])
def test_a_clock_is_turned_while_its_process_runs_and_the_monotonic_one_is_not(
    directory: Path, offset_s: float
) -> None:
    shim = Shim(build(directory), directory / "shim")
    shim.set_clock(offset_s)
    told, monotonic = run(shim, "import time; print(time.time(), time.monotonic())").split()
    assert abs(float(told) - time.time() - offset_s) < 5
    assert abs(float(monotonic) - time.monotonic()) < 5
    shim.set_clock(0.0)
    assert abs(float(run(shim, "import time; print(time.time())")) - time.time()) < 5


@pytest.fixture
def echo(directory: Path) -> Iterator[Proxy]:
    """A proxy before a server that answers each line with itself."""
    path = directory / "echo.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1_000):
                heard.append(data)
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    heard: list[bytes] = []
    threading.Thread(target=accept, daemon=True).start()
    proxies = Proxies()
    proxy = Proxy(proxies, path)
    proxy.heard = heard  # type: ignore[attr-defined]
    try:
        yield proxy
    finally:
        proxy.stop()
        proxies.stop()
        server.close()


def connected(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=2)
    assert say(connection) == b"hello"
    return connection


def say(connection: socket.socket, word: bytes = b"hello") -> bytes:
    connection.sendall(word)
    return connection.recv(100)


def test_in_fair_weather_the_proxy_is_not_there(echo: Proxy) -> None:
    with connected(echo) as connection:
        payload = random.randbytes(50)
        assert say(connection, payload) == payload


def test_a_black_hole_holds_everything_and_then_lets_it_go(echo: Proxy) -> None:
    with connected(echo) as old:
        echo.turn(Weather.BLACK_HOLE)
        new = socket.create_connection(("127.0.0.1", echo.port), timeout=2)
        for connection in (old, new):
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                say(connection)
        echo.turn(Weather.FAIR)
        for connection in (old, new):
            connection.settimeout(2)
            assert connection.recv(100) == b"hello"
        new.close()


def test_a_reset_is_felt_by_old_and_new_connections(echo: Proxy) -> None:
    with connected(echo) as old:
        echo.turn(Weather.RESET)
        with pytest.raises(ConnectionResetError):
            old.recv(100)
    # The reset may come while the connection is being made, or right after it.
    with socket.socket() as new, pytest.raises(ConnectionResetError):
        new.settimeout(2)
        new.connect(("127.0.0.1", echo.port))
        new.recv(100)
    echo.turn(Weather.FAIR)
    connected(echo).close()


def test_lost_replies_were_requests_that_arrived(echo: Proxy) -> None:
    with connected(echo) as connection:
        echo.turn(Weather.REPLIES_LOST)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            say(connection, b"write this")
        assert echo.heard[-1] == b"write this"  # type: ignore[attr-defined]
        echo.turn(Weather.FAIR)
        # Half an exchange is gone: nobody may go on as if nothing had been.
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


def test_a_half_closed_connection_ends_for_the_client_and_still_delivers(echo: Proxy) -> None:
    with connected(echo) as connection:
        echo.turn(Weather.HALF_CLOSED)
        assert connection.recv(100) == b""
        connection.sendall(b"late")
        await_that(lambda: echo.heard[-1] == b"late")  # type: ignore[attr-defined]


def test_slow_weather_delays_each_way(echo: Proxy) -> None:
    with connected(echo) as connection:
        echo.turn(Weather.SLOW)
        began_s = time.monotonic()
        assert say(connection) == b"hello"
        assert time.monotonic() - began_s >= 2 * DELAY_S


def test_a_tap_sees_who_speaks_and_can_keep_it_back(echo: Proxy) -> None:
    seen: list[tuple[bytes, bool, bytes]] = []

    def tap(link: Link, from_client: bool, data: bytes) -> bool:
        seen.append((link.opening, from_client, data))
        return not from_client or data != b"secret"

    with connected(echo) as connection:
        echo.tap = tap
        assert say(connection, b"open") == b"open"
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            say(connection, b"secret")
    assert seen[:2] == [(b"helloopen", True, b"open"), (b"helloopen", False, b"open")]
    assert echo.heard[-1] == b"open"  # type: ignore[attr-defined]


def await_that(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 2
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_service_is_back_when_it_decides_not_when_it_refuses(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text(
        '{"call":9.0,"ret":9.5,"out":"ok"}\n'
        '{"call":10.0,"ret":10.2,"out":"refused"}\n'
        '{"call":10.1,"ret":null,"out":"unknown"}\n'
        '{"call":11.0,"ret":11.5,"out":"sold_out"}\n'
        '{"call":11.2,"ret":11.9,"out":"ok"}\n'
    )
    assert back_after(history, 10.0) == 1.5
    assert back_after(history, 12.0) > 10
