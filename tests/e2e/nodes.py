"""More nodes on the stores of a running `up`: processes of their own, with a disk of their own."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.product import LAUNCHER, Product, free_port

# A node joins in about two seconds; a busy machine gets tenfold.
READY_WITHIN_S = 20.0
# Granian cuts after 4 s what still hangs.
STOP_WITHIN_S = 15.0


def stores_of(product: Product) -> dict[str, str]:
    """Return the environment that leads another process to a product's stores."""
    assert product.data_dir is not None
    servers = json.loads((product.data_dir / "servers.json").read_text())
    return {
        "VAUCHFLOW_DATABASE_URL": servers["database_url"],
        "VAUCHFLOW_REDIS_URL": servers["redis_url"],
        "VAUCHFLOW_SECRET": (product.data_dir / "secret").read_text().strip(),
        "VAUCHFLOW_LOG_FORMAT": "json",
    }


class Command:
    """One `./vauchflow` command that runs until it is stopped; what it says is kept."""

    def __init__(self, *arguments: str, environ: dict[str, str]) -> None:
        self.said: list[str] = []
        clean = {k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")}
        self.process = subprocess.Popen(
            [LAUNCHER, *arguments],
            env=clean | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            self.said += pipe

    def stop(self) -> None:
        """Ask it to drain and wait until it has."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_WITHIN_S)

    def kill(self) -> None:
        """Take it and its workers away at once, as a dead machine does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Node:
    """An API node beside the first one."""

    def __init__(self, environ: dict[str, str], *, workers: int = 1) -> None:
        self.data_dir = Path(tempfile.mkdtemp(prefix="vf-node-", dir="/tmp"))
        self.environ = environ
        self.workers = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.serving = self._start()

    def _start(self) -> Command:
        return Command(
            *("serve", "--data-dir", str(self.data_dir), "--port", str(self.port)),
            *("--workers", str(self.workers)),
            environ=self.environ,
        )

    def wait_until_ready(self) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        raise AssertionError("the node is not ready:\n" + "".join(self.serving.said[-20:]))

    def restart(self) -> None:
        self.serving.stop()
        self.serving = self._start()
        self.wait_until_ready()

    def product(self, first: Product) -> Product:
        """Return what asks this node, with the first one's key and books."""
        return Product(self.url, first.token, first.data_dir)

    def remove(self) -> None:
        self.serving.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)


@contextmanager
def joined(first: Product, **more: str) -> Iterator[Node]:
    """Start a node on another's stores; `more` are variables of its environment."""
    node = Node(stores_of(first) | more)
    try:
        node.wait_until_ready()
        yield node
    finally:
        node.remove()
