"""`python -m bench.contestants NAME PORT`: serve one contestant until a signal.

The settings are those of `api/__main__.py`, so that nobody is served better.
"""

import sys

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops

from bench.contestants import CONTESTANTS


def main() -> None:
    """Serve."""
    name, port = sys.argv[1], int(sys.argv[2])
    Granian(
        f"bench.contestants.{name}:app",
        address="127.0.0.1",
        port=port,
        interface=Interfaces(CONTESTANTS[name].interface),
        workers=1,
        runtime_threads=1,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        backlog=4_096,
        backpressure=8_192,
        log_access=False,
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    main()
