"""A running product to talk to: `./vauchflow up` on a directory of its own, or one that runs.

Everything after the start goes over HTTP, except `verify`, which is a command.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = str(ROOT / "vauchflow")
# A first start takes 3 to 10 s; a busy machine gets the sixfold.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 10.0


class ProductFault(Exception):
    """The product could not be started or asked; the text says why."""


class Product:
    """An address, a secret key, and what may be asked with them."""

    def __init__(self, url: str, token: str, data_dir: Path | None = None) -> None:
        """`data_dir` is where `verify` finds the books; None: its own default."""
        self.url = url.rstrip("/")
        self.token = token
        self.data_dir = data_dir
        self.process: subprocess.Popen[str] | None = None
        self.log: list[str] = []
        self.readers: list[threading.Thread] = []

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Send one request; returns the status and the JSON, whatever the status is.

        Raises: OSError when there is no answer.
        """
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key:
            headers["Idempotency-Key"] = key
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read())

    def must(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request that has to succeed.

        Raises: ProductFault with the answer otherwise.
        """
        status, answer = self.ask(method, path, body)
        if status >= 300:
            raise ProductFault(f"{method} {path}: {status} {json.dumps(answer)[:500]}")
        return answer

    def open_sale(self, **terms: Any) -> dict[str, Any]:
        """Create a flash sale and open it; returns the open sale."""
        sale = self.must("POST", "/v1/flash-sales", terms)
        return self.must("POST", f"/v1/flash-sales/{sale['id']}/open")

    def wait_for_lag_0(self, sale_id: str, timeout_s: float) -> dict[str, Any]:
        """Wait until everything claimed is settled; returns the sale as it is then.

        Raises: ProductFault when the lag is still there after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        sale: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            try:
                status, sale = self.ask("GET", f"/v1/flash-sales/{sale_id}")
                if status == 200 and sale["lag"] == 0:
                    return sale
            except OSError:
                pass
            time.sleep(0.1)
        raise ProductFault(f"still a lag after {timeout_s:.0f} s: {sale}")

    def verify(self, history: Path | None = None) -> tuple[int, str]:
        """Run `./vauchflow verify`; returns its exit status and everything it printed."""
        command = [LAUNCHER, "verify"]
        if self.data_dir is not None:
            command += ["--data-dir", str(self.data_dir)]
        if history is not None:
            command += ["--history", str(history)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        return done.returncode, done.stdout + done.stderr

    def text(self, path: str) -> str:
        """Return the body of a page that needs no key. Raises: OSError without an answer."""
        with urllib.request.urlopen(self.url + path, timeout=ASK_TIMEOUT_S) as answer:
            return str(answer.read().decode())

    def servers(self) -> dict[str, Any]:
        """Return what an `up` wrote down: the addresses of its stores, and pids by name."""
        assert self.data_dir is not None
        found: dict[str, Any] = json.loads((self.data_dir / "servers.json").read_text())
        return found

    def pids(self) -> dict[str, int]:
        """Return the process ids of what an `up` supervises, by name."""
        found: dict[str, int] = self.servers()["pids"]
        return found

    def stop(self) -> None:
        """Stop an `up` that was started here, and whatever does not listen."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self.readers:
            reader.join(STOP_TIMEOUT_S)


def start(data_dir: Path, *options: str, settings: dict[str, str] | None = None) -> Product:
    """Start `./vauchflow up` on a directory and wait for its ready line.

    `settings` are VAUCHFLOW_ variables; those of this process are not passed on.
    Raises: ProductFault with its last words when it does not get there.
    """
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")}
    environ |= settings or {}
    process = subprocess.Popen(
        [LAUNCHER, "up", "--data-dir", str(data_dir), "--port", str(port), *options],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C is for the one who measures; this one is stopped in order afterwards.
        start_new_session=True,
    )
    product = Product(f"http://127.0.0.1:{port}", "", data_dir)
    product.process = process
    is_ready = threading.Event()

    def read(pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                product.log.append(line.rstrip("\n"))
                if line.startswith("ready "):
                    is_ready.set()
        is_ready.set()

    # Two pipes: a log line and the ready line must not end up as one.
    assert process.stdout is not None and process.stderr is not None
    for pipe in (process.stdout, process.stderr):
        reader = threading.Thread(target=read, args=(pipe,), daemon=True)
        reader.start()
        product.readers.append(reader)
    if not is_ready.wait(START_TIMEOUT_S) or process.poll() is not None:
        product.stop()
        raise ProductFault("./vauchflow up did not start:\n" + "\n".join(product.log[-20:]))
    product.token = json.loads((data_dir / "demo.json").read_text())["secret_key"]
    return product


@contextmanager
def running(*options: str, settings: dict[str, str] | None = None) -> Iterator[Product]:
    """Start a product on a temporary directory, stop it and remove everything afterwards."""
    # Not below a private directory: the servers run as another user when started by root.
    data_dir = Path(tempfile.mkdtemp(prefix="vf-bench-", dir="/tmp"))
    try:
        # A harness that is killed has no `finally`; its product must not sell on without it.
        product = start(data_dir, "--die-with-parent", *options, settings=settings)
        try:
            yield product
        finally:
            product.stop()
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


@contextmanager
def crowd(
    product: Product, path: str, code: str, *options: str, history: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run `bench.client` against a product, in a process of its own; ends it on leaving."""
    command = [sys.executable, "-m", "bench.client", "--url", product.url, "--path", path]
    command += ["--code", code, *options]
    if history is not None:
        command += ["--history", str(history)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        process.stdin.write(product.token + "\n")
        process.stdin.close()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    """Return a TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {"body": body[:500].decode(errors="replace")}
    return found if isinstance(found, dict) else {"body": found}
