"""`python -m api`: serve the API until SIGTERM.

Options win over the environment. Each worker is a process of its own that dies with this one.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops

from core import settings as settings_module
from core.processes import die_with_parent
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
        _check_port(settings)
    except (SettingsError, PortTaken) as error:
        sys.stderr.write(f"vauchflow: {error}\n")
        raise SystemExit(1) from None
    if settings.workers > 1:
        _share_metrics(settings)
    server = Granian(
        "api.app:create",
        address=settings.host,
        port=settings.port,
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
    server.serve(target_loader=partial(_load, settings), wrap_loader=False)


def _check_port(settings: Settings) -> None:
    # The server shares its port on purpose, between workers; a stranger's must not be shared.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
                "choose another with --host and --port"
            ) from None


def _load(settings: Settings) -> Any:
    """Make the application inside a worker process."""
    die_with_parent(signal.SIGKILL)
    from api import app
    from core import logs

    logs.configure(settings)
    return app.create(settings)


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
