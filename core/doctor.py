"""`doctor`: whether this set-up can keep the promise. Reads only; one line a check.

A tick holds, a cross does not (status 1), a dash could not be asked because nothing runs.
"""

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core import db, history
from core import settings as settings_module
from core.data_dir import DataDirLock
from core.db import audit, migrate
from core.errors import Fault
from core.hot import leases
from core.hot.nodes import connect, nodes_of
from core.local import POSTGRES_MAJOR
from core.processes import ServerError, servers_account
from core.settings import SECRET_FILE, Settings, SettingsError

PYTHON_MIN: Final = (3, 11)
POSTGRES_MIN: Final = 15
PACKAGES: Final = ("litestar", "granian", "msgspec", "asyncpg", "redis")
# A sale's window is judged by Redis's clock; FLASH.md allows arming up to this.
SKEW_MS_MAX: Final = 250
# A laptop's Redis answers in well under one; two says "away" without a long wait.
REDIS_TIMEOUT_S: Final = 2.0
# What a fence cost is told for so long; the ledger knows it for ever.
LOSSES_SINCE: Final = timedelta(days=30)


class Server(msgspec.Struct, frozen=True):
    """What PostgreSQL says about itself."""

    version_num: int
    version: str
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    connections_max: int
    is_replica: bool
    now_ms: int


class Examination:
    """The lines so far, printed as they are found."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, is_good: bool, line: str, mend: str = "") -> bool:
        """Print a tick or a cross, with what to do about a cross."""
        if not is_good:
            self.failed += 1
        print(f"{'✓' if is_good else '✗'} {line}" + (f": {mend}" if mend and not is_good else ""))
        return is_good

    def note(self, line: str) -> None:
        """Print what could not be asked."""
        print(f"– {line}")


async def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Print every check and return the exit status: 1 when one failed."""
    seen = Examination()
    _check_program(seen)
    _check_data_dir(seen, settings, environ)
    ahead_ms = await _check_postgres(seen, settings)
    await _check_redis(seen, settings, ahead_ms)
    print("nothing to mend" if not seen.failed else f"{seen.failed} to mend")
    return 1 if seen.failed else 0


def _check_program(seen: Examination) -> None:
    version = sys.version.split()[0]
    seen.check(sys.version_info >= PYTHON_MIN, f"Python {version}", "3.11 or newer is needed")
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            seen.check(False, f"{name} is missing", "run make setup")
    seen.check(bool(versions), ", ".join(versions))
    try:
        native = importlib.import_module("vauchflow_hotpath")
    except ImportError as error:
        seen.check(False, "the compiled module", f"{error}; run make setup")
    else:
        profile = getattr(native, "BUILD_PROFILE", "unknown")
        seen.check(profile == "release", f"the compiled module, {profile}", "run make setup")


def _check_data_dir(seen: Examination, settings: Settings, environ: Mapping[str, str]) -> None:
    path = settings.data_dir
    holder = DataDirLock(path).holder()
    seen.check(
        os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK),
        f"data directory {path}, " + (f"held by {holder}" if holder else "not in use"),
        "it cannot be written",
    )
    secret = path / SECRET_FILE
    if secret.exists():
        mode = secret.stat().st_mode & 0o777
        seen.check(mode & 0o077 == 0, f"the secret has mode {mode:04o}", f"chmod 600 {secret}")
    unknown = settings_module.unknown_variables(environ)
    if unknown:
        seen.check(False, f"unknown variables {', '.join(unknown)}", "misspelt?")
    try:
        account = servers_account()
    except ServerError as error:
        seen.check(False, "an account for the embedded servers", str(error))
    else:
        name = account.name if account else "this user"
        seen.check(True, f"embedded servers run as {name} (PostgreSQL {POSTGRES_MAJOR}, Valkey 9)")


async def _check_postgres(seen: Examination, settings: Settings) -> int | None:
    """Check each role's way in, the server and the wall.

    Returns how many ms PostgreSQL's clock is ahead of this process's monotonic one.
    """
    ahead_ms = None
    for role in ("owner", "app", "worker"):
        try:
            dsn = settings.database_dsn(role)
        except SettingsError as error:
            seen.note(f"PostgreSQL: {error}")
            return None
        try:
            database = await db.Database.open(
                dsn,
                size_max=1,
                statement_cache_size=db.STATEMENT_CACHE_SIZE if settings.prepared_statements else 0,
                application_name="vauchflow doctor",
            )
        except Fault as error:
            seen.check(False, f"PostgreSQL as {role}", error.detail)
            continue
        try:
            async with database.connection(reads_only=True) as conn:
                if role == "app":
                    faults = await audit.session_faults(conn)
                    seen.check(not faults, "the app's role is held by the wall", "; ".join(faults))
                if role == "worker":
                    ahead_ms = await _check_server(seen, conn)
        finally:
            await database.close()
    return ahead_ms


async def _check_server(seen: Examination, conn: db.Connection) -> int | None:
    server = await db.one(conn, "doctor.server", Server)
    assert server is not None
    ahead_ms = server.now_ms - _monotonic_ms()
    seen.check(
        server.version_num // 10_000 >= POSTGRES_MIN and not server.is_replica,
        f"PostgreSQL {server.version}, {server.connections_max} connections",
        f"a primary of version {POSTGRES_MIN} or newer is needed",
    )
    for name in ("fsync", "full_page_writes"):
        value = getattr(server, name)
        seen.check(value == "on", f"{name} {value}", "a power cut would lose redemptions")
    seen.check(
        server.synchronous_commit not in ("off",),
        f"synchronous_commit {server.synchronous_commit}",
        "answered redemptions would be lost with the server",
    )
    seen.check(await migrate.is_at_head(conn), "the schema is this version's", "run migrate")
    findings = await audit.findings(conn)
    for finding in findings:
        seen.check(False, finding.object, finding.why)
    seen.check(not findings, f"isolation of projects: {len(audit.CHECKS)} checks of the catalogs")
    await _check_history(seen, conn)
    return ahead_ms


async def _check_history(seen: Examination, conn: db.Connection) -> None:
    """Say whether this database may redeem, and what fences have cost lately."""
    found = await history.read(conn)
    why = found.held_for or f"it continues {found.current}, accepted is {found.accepted}"
    seen.check(
        found.is_accepted,
        f"PostgreSQL holds what Redis was told it holds, since {found.changed_at:%Y-%m-%d %H:%M}",
        f"{why}; nothing is redeemed until ./vauchflow recover",
    )
    for line in await history.fenced(conn):
        seen.note(line)
    now = await db.value(conn, "flash_sales.clock", datetime)
    for loss in await history.losses(conn, now - LOSSES_SINCE):
        seen.note(history.sentence_of(loss))


async def _check_redis(seen: Examination, settings: Settings, ahead_ms: int | None) -> None:
    if not settings.redis_url:
        seen.note("Valkey or Redis: none is running, and VAUCHFLOW_REDIS_URL is not set")
        return
    client = connect(
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    try:
        nodes = await nodes_of(client)
        for number, node in enumerate(nodes, 1):
            which = f", master {number} of {len(nodes)}" if len(nodes) > 1 else ""
            await _check_node(seen, node, ahead_ms, which)
    except (RedisError, OSError) as error:
        seen.check(False, "Valkey or Redis", f"{error}; strict sales and redeems go on without it")
    finally:
        await client.aclose()


async def _check_node(seen: Examination, node: Redis, ahead_ms: int | None, which: str) -> None:
    await node.ping()
    pg_now_ms = None if ahead_ms is None else _monotonic_ms() + ahead_ms
    facts = await leases.server_facts(node, pg_now_ms)
    seen.check(True, f"Valkey or Redis {facts.version}{which}")
    faults = leases.arming_faults(facts)
    seen.check(not faults, "fast sales may be armed on it", " ".join(faults) + " Or use strict.")
    if facts.skew_ms is not None:
        skew_ms = abs(facts.skew_ms)
        seen.check(skew_ms <= SKEW_MS_MAX, f"clocks agree within {skew_ms} ms", "use NTP")


def _monotonic_ms() -> int:
    return round(time.monotonic() * 1000)
