"""Fixtures of the API's tests: the real application over a real socket.

api            session  `python -m api` against the session's servers, on a database of its own
make_project   session  a function that makes a project with keys: make_project(currency="EUR"),
                        in an account of its own on the plan `plan`, or in `account_id`
project        module   a project of this file's own
client         module   httpx.Client with the project's secret key
browser        module   httpx.Client with its publishable key
stranger       module   httpx.Client with another project's secret key
visitor        test     a function that opens a browser of nobody, at an address of its own
sign_up        test     a function that makes a person who is logged in: sign_up(name="Anna")
"""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest

from core import ids, tenants
from core.db import Database
from core.local import Servers
from core.settings import PROJECT_ROOT, Settings
from tests.conftest import TEMPLATE, fresh_database, settings_on, temporary_data_dir

START_TIMEOUT_S = 20.0
PASSWORD = "correct horse battery"
# Who connects from here may say whose request it is.
PROXY = "127.9.9.9"
_people = itertools.count(1)
_hosts = itertools.count(2)


class Project(msgspec.Struct, frozen=True):
    id: str
    secret_key: str
    publishable_key: str
    currency: str


# Tables that a process writes without being asked.
BY_THE_CLOCK = {"api_workers", "usage_hours", "attempts", "fraud_signals", "failed_lookups"}


class Api:
    """The running API and what a test may look at behind it."""

    def __init__(
        self, settings: Settings, owner_url: str, log_path: Path, environ: dict[str, str], pid: int
    ) -> None:
        self.settings = settings
        self.pid = pid
        self.owner_url = owner_url
        self.environ = environ
        self.base_url = settings.base_url
        self._log_path = log_path
        self._runner = asyncio.Runner()
        self._owner: asyncpg.Connection = self._runner.run(asyncpg.connect(owner_url))
        tables = self.rows("select tablename from pg_tables where schemaname = 'vf' order by 1")
        counts = (f"(select count(*) from vf.{row[0]}) as {row[0]}" for row in tables)
        self._count_rows = f"select {', '.join(counts)}"

    def client(self, key: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=10.0)

    def log_text(self) -> str:
        return self._log_path.read_text()

    def log_size(self) -> int:
        return self._log_path.stat().st_size

    def log_since(self, size: int) -> list[dict[str, object]]:
        """Return the log lines written since `log_size` was that."""
        with self._log_path.open("rb") as file:
            file.seek(size)
            return [msgspec.json.decode(line) for line in file if line.startswith(b"{")]

    def row_counts(self) -> dict[str, int]:
        """Return how many rows each table of the product has, as the owner sees them."""
        counts = dict(self.rows(self._count_rows)[0])
        # Heartbeats of processes come and go by themselves, what they counted of calls comes
        # later, and who asks for what is not there is counted for that.
        return {name: n for name, n in counts.items() if name not in BY_THE_CLOCK}

    def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """Run a statement as the owner, past row-level security."""
        return self._runner.run(self._owner.fetch(sql, *args))

    def close(self) -> None:
        self._runner.run(self._owner.close())
        self._runner.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def api(servers: Servers, template_url: str) -> Iterator[Api]:
    assert servers.redis_url is not None
    with temporary_data_dir() as path, fresh_database(servers, TEMPLATE) as url:
        settings = msgspec.structs.replace(
            settings_on(url, servers.redis_url, path), port=free_port()
        )
        log_path = path / "api.log"
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")},
            "VAUCHFLOW_DATABASE_URL": url,
            "VAUCHFLOW_REDIS_URL": servers.redis_url,
            "VAUCHFLOW_SECRET": settings.secret,
            "VAUCHFLOW_LOG_FORMAT": "json",
            "VAUCHFLOW_TRUSTED_PROXIES": f"{PROXY}/32",
            "VAUCHFLOW_LOG_LEVEL": "debug",
        }
        command = [sys.executable, "-m", "api", "--port", str(settings.port)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--data-dir", str(path)],
                cwd=PROJECT_ROOT, env=environ, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                wait_until_ready(settings.base_url, process, log_path)
                running = Api(settings, url, log_path, environ, process.pid)
                yield running
                running.close()
            finally:
                process.terminate()
                process.wait(20)


def wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(f"{base_url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the API did not get ready:\n{log_path.read_text()}")


@pytest.fixture(scope="session")
def make_project(api: Api) -> Callable[..., Project]:
    def make(
        currency: str = "EUR",
        time_zone: str = "UTC",
        plan: str = "enterprise",
        account_id: UUID | None = None,
    ) -> Project:
        return asyncio.run(open_project(api.settings, currency, time_zone, plan, account_id))

    return make


async def open_project(
    settings: Settings,
    currency: str = "EUR",
    time_zone: str = "UTC",
    plan: str = "enterprise",
    account_id: UUID | None = None,
) -> Project:
    """Make a project with its first keys, on the account given or on one of its own."""
    database = await Database.open(settings.database_dsn("worker"), size_max=1)
    try:
        async with database.transaction(None) as conn:
            if account_id is None:
                account_id = await tenants.create_account(conn, name="Test", plan=plan)
            project_id = await tenants.create_project(
                conn, account_id, name="Test", currency=currency, time_zone=time_zone
            )
            keys = [
                await tenants.create_first_key(
                    conn, project_id, kind, name="test", secret=settings.secret
                )
                for kind in ("SECRET", "PUBLISHABLE")
            ]
    finally:
        await database.close()
    return Project(str(project_id), keys[0], keys[1], currency)


@pytest.fixture(scope="module")
def project(make_project: Callable[..., Project]) -> Project:
    return make_project()


@pytest.fixture(scope="module")
def client(api: Api, project: Project) -> Iterator[httpx.Client]:
    with api.client(project.secret_key) as client:
        yield client


@pytest.fixture(scope="module")
def browser(api: Api, project: Project) -> Iterator[httpx.Client]:
    with api.client(project.publishable_key) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(api: Api, make_project: Callable[..., Project]) -> Iterator[httpx.Client]:
    with api.client(make_project().secret_key) as client:
        yield client


class Person:
    """Somebody with a browser, who has signed up."""

    def __init__(self, http: httpx.Client, email: str, me: dict[str, object]) -> None:
        self.http = http
        self.email = email
        self.me = me
        self.project = str(me["projects"][0]["id"])

    @property
    def token(self) -> str:
        return str(self.http.cookies["vauchflow_session"])

    def writes(self, project: str | None = None) -> dict[str, str]:
        return {
            "X-CSRF-Token": str(self.me["csrf_token"]),
            "VauchFlow-Project": project or self.project,
        }


@pytest.fixture
def visitor(api: Api) -> Iterator[Callable[[], httpx.Client]]:
    """A function that opens a browser without cookies, at an address of its own."""
    opened: list[httpx.Client] = []

    def open_browser() -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{next(_hosts)}")
        opened.append(httpx.Client(base_url=api.base_url, transport=transport, timeout=10.0))
        return opened[-1]

    yield open_browser
    for client in opened:
        client.close()


@pytest.fixture
def sign_up(visitor: Callable[[], httpx.Client]) -> Callable[..., Person]:
    def make(**more: str) -> Person:
        http = visitor()
        email = f"person{next(_people)}@example.com"
        answer = http.post("/v1/auth/sign-up", json={"email": email, "password": PASSWORD, **more})
        assert answer.status_code == 201, answer.text
        return Person(http, email, answer.json())

    return make


def join(api: Api, person: Person, other: Person, role: str) -> None:
    """Make a person a member of another's project."""
    api.rows(
        "insert into vf.memberships (project_id, user_id, role) values ($1, $2, $3)",
        ids.parse_id("prj", other.project), ids.parse_id("usr", str(person.me["id"])), role,
    )  # fmt: skip
