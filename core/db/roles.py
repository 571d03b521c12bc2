"""The roles everything rests on, made when missing. Roles belong to the cluster, not to a database.

vf_owner    owns every object; no login; migrations run as it
vf_app      serves requests; sees one project at a time
vf_worker   acts for all projects: reconciler, worker, verify
vf_definer  owns the few functions that look across projects; no login
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import asyncpg

from core.db import server_settings
from core.settings import Settings

LOGINS: Final[dict[Literal["app", "worker"], str]] = {"app": "vf_app", "worker": "vf_worker"}
NO_LOGINS: Final = ("vf_owner", "vf_definer")

# Databases of one cluster that migrate at once collide on the same rows of pg_authid; each
# collision lets one of them through.
RACE_ATTEMPTS_MAX: Final = 20
# What PostgreSQL itself uses by default.
SCRAM_ITERATIONS: Final = 4_096
SCRAM_SALT_BYTES: Final = 16
LOGIN_TIMEOUT_S: Final = 5.0


async def prepare_roles(raw: Any, settings: Settings) -> None:
    """Create the roles, let the migrating login become vf_owner, and set logins' passwords.

    Idempotent; changes nothing that is right already. Concurrency: safe beside other databases
    of the cluster doing the same.
    """
    for role in (*NO_LOGINS, *LOGINS.values()):
        await _racing(_create, raw, role)
    await _racing(_grant_memberships, raw)
    for kind, login in LOGINS.items():
        has_own_url = settings.app_database_url if kind == "app" else settings.worker_database_url
        if not has_own_url and not await _can_log_in(settings.database_dsn(kind)):
            await _racing(_set_password, raw, login, settings.role_password(login))
        await _racing(_set_defaults, raw, login)
    database = await raw.fetchval("SELECT quote_ident(current_database())")
    if not await raw.fetchval(
        "SELECT has_database_privilege('vf_owner', current_database(), 'CREATE')"
    ):
        await raw.execute(f"GRANT CREATE ON DATABASE {database} TO vf_owner")
    if await raw.fetchval("SELECT has_database_privilege('vf_app', current_database(), 'TEMP')"):
        # A temporary table could stand before a real one in a careless search_path.
        await raw.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password, so that the password never enters its log."""
    salt = secrets.token_bytes(SCRAM_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    parts = (
        salt,
        hashlib.sha256(client_key).digest(),
        hmac.digest(salted, b"Server Key", "sha256"),
    )
    salt_64, stored_64, server_64 = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt_64}${stored_64}:{server_64}"


async def _racing(change: Callable[..., Awaitable[None]], *args: Any) -> None:
    for attempt in range(1, RACE_ATTEMPTS_MAX + 1):
        try:
            await change(*args)
            return
        except (
            asyncpg.DuplicateObjectError,
            asyncpg.UniqueViolationError,
            asyncpg.InternalServerError,  # "tuple concurrently updated"
        ):
            if attempt == RACE_ATTEMPTS_MAX:
                raise
            await asyncio.sleep(secrets.randbelow(50) / 1000)


async def _create(raw: Any, role: str) -> None:
    if not await raw.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
        login = "NOLOGIN" if role in NO_LOGINS else "LOGIN"
        await raw.execute(f"CREATE ROLE {role} {login}")


async def _grant_memberships(raw: Any) -> None:
    # vf_owner gives functions to vf_definer, for which it must be able to become it.
    if not await raw.fetchval("SELECT pg_has_role('vf_owner', 'vf_definer', 'MEMBER')"):
        await raw.execute("GRANT vf_definer TO vf_owner")
    # Who made a role without being a superuser may grant it, yet not become it: only trying
    # tells, on every version.
    try:
        await raw.execute("SET ROLE vf_owner")
    except asyncpg.InsufficientPrivilegeError:
        await raw.execute("GRANT vf_owner TO current_user")
    finally:
        await raw.execute("RESET ROLE")


async def _set_password(raw: Any, login: str, password: str) -> None:
    await raw.execute(f"ALTER ROLE {login} LOGIN PASSWORD '{scram_verifier(password)}'")


async def _can_log_in(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=LOGIN_TIMEOUT_S)
    except (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InterfaceError,  # the role has no password at all
    ):
        return False
    await connection.close(timeout=LOGIN_TIMEOUT_S)
    return True


async def _set_defaults(raw: Any, login: str) -> None:
    """Give a role, in this database, the limits PgBouncer would not pass on at start-up."""
    wanted = {k: v for k, v in server_settings("").items() if k != "application_name"}
    rows = await raw.fetchval(
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase "
        "WHERE d.datname = current_database() AND s.setrole = $1::text::regrole",
        login,
    )
    present = dict(row.split("=", 1) for row in rows or ())
    database = await raw.fetchval("SELECT quote_ident(current_database())")
    for name, text in wanted.items():
        if present.get(name) != text:
            await raw.execute(f"ALTER ROLE {login} IN DATABASE {database} SET {name} = '{text}'")
