"""`up`: start everything on one machine, keep it running, stop it in order.

What it starts cannot outlive it. A server or child that dies is started again with growing pauses.
Signals arrive as `_Stop` in the main thread, except while stopping, where a second one hurries.
"""

import asyncio
import http.client
import importlib.util
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import msgspec
import structlog

from core.data_dir import DataDirLock
from core.local import Servers
from core.processes import Process, ServerError
from core.settings import PROJECT_ROOT, SERVERS_FILE, Settings

if TYPE_CHECKING:
    from core.demo import Demo

# The first restart is felt by nobody; the last leaves a broken child's log readable.
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 2.0
# Who ran this long had started: its next death is a new story.
STEADY_S = 10.0
# Granian gives requests in flight 10 s; this is above it, and within what init systems wait.
DRAIN_TIMEOUT_S = 15.0
# A first start compiles nothing and loads little; a slow disk gets ten times the usual 3 s.
READY_TIMEOUT_S = 60.0
# A child that cannot start at all says so in its log; five tries rule out a passing cause.
FAILURES_BEFORE_READY_MAX = 5
# How long a killed predecessor's HTTP server may still hold the port.
PORT_TIMEOUT_S = 10.0
READY_POLL_S = 0.1
# Only an upper bound of a wait that signals and deaths cut short.
IDLE_S = 5.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = structlog.get_logger("vauchflow.up")


class _Stop(BaseException):
    """A signal asked this process to stop."""


class _Supervised:
    """One thing that must run: how to start it, and how long to wait before the next try."""

    def __init__(self, name: str, start: Callable[[], Process]) -> None:
        self.name = name
        self.process: Process | None = None
        self.deaths = 0
        self.restart_at_s = 0.0
        self._start = start
        self._backoff_s = BACKOFF_S_MIN

    def start(self) -> None:
        self.process = self._start()

    def note_death(self, now_s: float) -> float:
        """Plan the restart and return the pause in seconds."""
        assert self.process is not None
        if now_s - self.process.started_at_s > STEADY_S:
            self._backoff_s = BACKOFF_S_MIN
        pause_s = self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)
        self.restart_at_s = now_s + pause_s
        self.process = None
        self.deaths += 1
        return pause_s


class Up:
    """One run of `up` on a data directory."""

    def __init__(
        self, settings: Settings, environ: dict[str, str], progress: Callable[[str], None]
    ) -> None:
        """Name what will run. `settings` must not come from an already running `up`."""
        self._settings = settings
        self._environ = environ
        self._progress = progress
        self._lock = DataDirLock(settings.data_dir)
        self._servers = Servers(
            settings.data_dir,
            postgres=settings.database_url is None,
            valkey=not settings.redis_url,
            progress=progress,
        )
        self._supervised: list[_Supervised] = []
        self._is_stopping = False
        self._wake_r, self._wake_w = socket.socketpair()

    def run(self, *, with_demo: bool) -> None:
        """Start, serve until a signal, stop everything that was started.

        Raises: ServerError when something cannot start.
        """
        self._take_signals()
        try:
            self._start(with_demo)
            while True:
                self._watch(IDLE_S)
        except _Stop:
            self._progress("stopping")
        finally:
            self._is_stopping = True
            self._stop()

    # -- starting ------------------------------------------------------------------------------

    def _start(self, with_demo: bool) -> None:
        settings = self._settings
        if importlib.util.find_spec("vauchflow_hotpath") is None:
            raise ServerError("the compiled module is missing; run: make setup")
        self._lock.acquire(settings.base_url)
        _check_port(settings)
        self._servers.start()
        self._settings = settings = msgspec.structs.replace(
            settings,
            database_url=settings.database_url or self._servers.database_url,
            redis_url=settings.redis_url or self._servers.redis_url or "",
        )
        for name in self._servers.processes:
            self._supervised.append(self._server(name))
        self._publish()
        self._progress("migrating the database")
        self._migrate()
        demo = self._seed() if with_demo else None
        commands = self._commands()
        self._progress("starting the API")
        self._begin("api", commands.pop("api"))
        self._wait_until_ready()
        # After the API, whose start is seconds of one core: on two cores three that start at once
        # would take turns, and the one that people wait for would be the last.
        self._progress("starting the reconciler and the worker")
        for name, command in commands.items():
            self._begin(name, command)
        _announce(settings, demo)

    def _begin(self, name: str, command: list[str]) -> None:
        child = _Supervised(name, self._starter(name, command))
        self._supervised.append(child)
        child.start()
        self._publish()

    def _publish(self) -> None:
        pids = {one.name: one.process.pid for one in self._supervised if one.process}
        self._servers.publish(self._settings.base_url, pids)

    def _server(self, name: str) -> _Supervised:
        def start() -> Process:
            self._servers.start_one(name)
            return self._servers.processes[name]

        supervised = _Supervised(name, start)
        supervised.process = self._servers.processes[name]
        return supervised

    def _migrate(self) -> None:
        from core.db.migrate import migrate

        for name in asyncio.run(migrate(self._settings)):
            self._progress(f"migrated {name}")

    def _seed(self) -> "Demo":
        from core import demo

        self._progress("looking after the demo project")
        return asyncio.run(demo.seed(self._settings))

    def _commands(self) -> dict[str, list[str]]:
        settings = self._settings
        data_dir = ["--data-dir", str(settings.data_dir)]
        listen = ["--host", settings.host, "--port", str(settings.port)]
        listen += ["--workers", str(settings.workers)]
        return {
            "api": ["-m", "api", *listen, *data_dir],
            "reconciler": ["-m", "core", "reconcile", *data_dir],
            "worker": ["-m", "core", "worker", *data_dir],
        }

    def _starter(self, name: str, command: list[str]) -> Callable[[], Process]:
        def start() -> Process:
            return Process(
                name,
                [sys.executable, *command],
                # Standard output belongs to the ready line and what follows it.
                log=sys.stderr.buffer,
                environ=self._environ,
                cwd=PROJECT_ROOT,
            )

        return start

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        answer = "no answer"
        while time.monotonic() < deadline_s:
            status, answer = _ask_readyz(self._settings)
            if status == http.HTTPStatus.OK:
                return
            self._watch(READY_POLL_S)
            for one in self._supervised:
                if one.deaths >= FAILURES_BEFORE_READY_MAX:
                    raise ServerError(f"{one.name} does not start; its last words are above")
        raise ServerError(f"not ready after {READY_TIMEOUT_S:.0f} s: {answer}")

    # -- watching ------------------------------------------------------------------------------

    def _watch(self, timeout_s: float) -> None:
        """Wait for a death or a restart that is due; start again what is down."""
        now_s = time.monotonic()
        due = [one.restart_at_s for one in self._supervised if one.process is None]
        if due:
            timeout_s = max(0.0, min(timeout_s, min(due) - now_s))
        if select.select([self._wake_r], [], [], timeout_s)[0]:
            self._wake_r.recv(4096)
        now_s = time.monotonic()
        for one in self._supervised:
            if one.process is not None:
                status = one.process.exit_status()
                if status is not None:
                    # A dead leader's session may still hold its port.
                    one.process.kill()
                    pause_s = one.note_death(now_s)
                    _log.warning(
                        "ended", process=one.name, how=_describe(status), again_in_s=pause_s
                    )
            elif now_s >= one.restart_at_s:
                self._restart(one)

    def _restart(self, one: _Supervised) -> None:
        try:
            one.start()
        except ServerError as error:
            one.process = None
            one.restart_at_s = time.monotonic() + BACKOFF_S_MAX
            _log.error("does_not_start", process=one.name, reason=str(error))
        else:
            assert one.process is not None
            self._publish()
            _log.warning("running_again", process=one.name, pid=one.process.pid)

    # -- stopping ------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        for signum in STOP_SIGNALS:
            # nohup means what it says; a shell that put us behind `&` may still send SIGINT.
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            raise _Stop
        for one in self._children():
            one.hurry()

    def _children(self) -> list[Process]:
        running = [one.process for one in self._supervised if one.process is not None]
        return [
            process
            for process in running
            if process.name not in self._servers.processes and process.exit_status() is None
        ]

    def _stop(self) -> None:
        """Drain the children together, then stop Valkey, then PostgreSQL."""
        children = self._children()
        for child in children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        for child in children:
            child.wait_or_kill(max(0.0, deadline_s - time.monotonic()))
        self._servers.stop()
        if self._lock.is_held:
            self._servers.unpublish()
        self._lock.release()
        signal.set_wakeup_fd(-1)
        self._wake_r.close()
        self._wake_w.close()


@contextmanager
def _connection(settings: Settings) -> Iterator[http.client.HTTPConnection]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        yield connection
    finally:
        connection.close()


def _ask_readyz(settings: Settings) -> tuple[int, str]:
    with _connection(settings) as connection:
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return answer.status, answer.read(2_000).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error) or type(error).__name__


def _check_port(settings: Settings) -> None:
    """Refuse a port somebody listens on; a killed predecessor's server gets time to end.

    Raises: ServerError naming the port.
    """
    crashed = (settings.data_dir / SERVERS_FILE).exists()
    deadline_s = time.monotonic() + (PORT_TIMEOUT_S if crashed else 0.0)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
    except OSError:
        raise ServerError(f"{settings.host} is not an address of this machine") from None
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                # Binding alone succeeds beside a listener that shares its port.
                probe.listen(1)
                return
            except OSError as error:
                if time.monotonic() >= deadline_s:
                    _refuse_port(settings, error)
        time.sleep(READY_POLL_S)


def _refuse_port(settings: Settings, error: OSError) -> NoReturn:
    raise ServerError(
        f"cannot listen on {settings.host} port {settings.port}: "
        f"{(error.strerror or str(error)).lower()}; give another with --port"
    ) from None


def _describe(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"


def _announce(settings: Settings, demo: "Demo | None") -> None:
    """Print the ready line and what a newcomer does next."""
    base = settings.base_url
    lines = [
        f"ready http://{_bracketed(settings.host)}:{settings.port}",
        "",
        f"docs       {base}/docs",
    ]
    if demo is None:
        lines += ["", "No demo project (--no-demo): a start without that option makes one."]
    else:
        code = f"SAVE20-{secrets.token_hex(3).upper()}"
        lines += [
            f"dashboard  {base}/dashboard",
            f"log in     {demo.dashboard_email}  {demo.dashboard_password}",
            f"key        {demo.secret_key}",
            "",
        ]
        lines += _curl_lines(base, demo.secret_key, code)
    print("\n".join(lines), flush=True)


def _curl_lines(base: str, key: str, code: str) -> list[str]:
    def curl(path: str, body: str) -> str:
        headers = f"-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
        return f"curl -sS {base}{path} {headers} -d '{body}'"

    order = '{"customer_id":"cust_xyz","order_value":89.99}'
    discount = f'{{"code":"{code}","discount_type":"PERCENT","discount_value":20}}'
    return [
        curl("/v1/vouchers", discount),
        curl(f"/v1/vouchers/{code}/validate", order),
        curl(f"/v1/vouchers/{code}/redeem", order),
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
