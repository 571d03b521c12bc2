"""`python -m api`: serve the API until SIGTERM.

Options win over the environment. Each worker is a process of its own that dies with this one. All
accept at one socket, which is opened here and outlives them; granian listens behind it, at a Unix
socket, for what the workers' own listeners hand on.
"""

import argparse
import gc
import os
import shutil
import signal
import socket
import sys
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops

from api.lifespan import Entrance
from core import settings as settings_module
from core.data_dir import make_socket_dir
from core.processes import ServerError, die_with_parent
from core.settings import PREFIX, Settings, SettingsError

# Connections the kernel holds while workers are busy; the crowd of a sale arrives at once.
BACKLOG: Final = 4_096
# Requests one worker has in hand: far above the queues behind the doors, which refuse by
# themselves with a 503, so that nobody waits here unanswered.
BACKPRESSURE: Final = 8_192
# Requests are done in milliseconds and redeems within 2 s; whatever still hangs is cut, so that
# nothing is left 5 s after `up` was killed.
WORKER_KILL_TIMEOUT_S: Final = 4
# A killed worker is back within a second: one attempt a quarter second does not spin.
RESPAWN_INTERVAL_S: Final = 0.25


class PortTaken(Exception):
    """One plain sentence: the address cannot be listened on."""


class _Server(Granian):  # type: ignore[misc, valid-type]
    """Granian, which lets the workers know that it is told to end before it waits for them."""

    running: Connection

    def shutdown(self, exit_code: int = 0) -> None:
        self.running.close()
        super().shutdown(exit_code)


def main() -> None:
    """Serve. Ends with status 1 and one line when a setting is wrong or the port is taken."""
    options = _options()
    environ = dict(os.environ)
    for name in ("host", "port", "workers"):
        value = getattr(options, name)
        if value is not None:
            environ[PREFIX + name.upper()] = str(value)
    try:
        settings = settings_module.load(environ, options.data_dir)
        settings.database_dsn("app")
        listening = _listening(settings)
        private = make_socket_dir(settings.data_dir, f"-api-{settings.port}")
    except (SettingsError, PortTaken, ServerError) as error:
        sys.stderr.write(f"vauchflow: {error}\n")
        raise SystemExit(1) from None
    if settings.workers > 1:
        _share_metrics(settings)
    ending, running = Pipe(duplex=False)
    entrance = Entrance(listening, private / "api.sock", ending)
    # Left by one that was killed.
    entrance.upstream.unlink(missing_ok=True)
    server = _Server(
        "api.app:create",
        uds=entrance.upstream,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        runtime_threads=1,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=BACKPRESSURE,
        log_access=False,
        log_enabled=False,
        respawn_failed_workers=True,
        respawn_interval=RESPAWN_INTERVAL_S,
        workers_kill_timeout=WORKER_KILL_TIMEOUT_S,
    )
    server.running = running
    try:
        server.serve(target_loader=partial(_load, settings, entrance, running), wrap_loader=False)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise PortTaken(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "choose another with --host and --port"
        ) from None
    return listening


def _load(settings: Settings, entrance: Entrance, running: Connection) -> Any:
    """Make the application inside a worker process."""
    die_with_parent(signal.SIGKILL)
    # This end is the parent's alone: when it closes it, the other one is at its end.
    running.close()
    # What is made here stays as long as the process: who looks it through for garbage, a few times
    # now and at every full collection later, finds none.
    gc.disable()
    from api import app
    from core import logs

    logs.configure(settings)
    made = app.create(settings, entrance)
    gc.freeze()
    gc.enable()
    return made


def _share_metrics(settings: Settings) -> None:
    # prometheus_client reads the variable when it is imported, which is in the workers.
    directory = settings.data_dir / "metrics"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the VauchFlow API.")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port to listen on")
    parser.add_argument("--workers", type=int, help="worker processes")
    parser.add_argument("--data-dir", type=Path, help="where the embedded servers are found")
    return parser.parse_args()


if __name__ == "__main__":
    main()
