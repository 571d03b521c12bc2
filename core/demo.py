"""The demo project: an account, a project, two keys and a user, made once for `up`."""

import os
import secrets
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from core import api_keys, db, ids, passwords, tenants
from core.settings import Settings

DEMO_FILE: Final = "demo.json"
EMAIL: Final = "demo@vauchflow.local"
CURRENCY: Final = "EUR"
# 128 bits: for whoever reads demo.json, and for nobody else.
PASSWORD_BYTES: Final = 16


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """`demo.json`: where the API is and how to get in. Readable by its owner only."""

    base_url: str
    secret_key: str
    publishable_key: str
    project_id: str
    dashboard_email: str
    dashboard_password: str


async def seed(settings: Settings) -> Demo:
    """Make the demo account and project where there are none, and write demo.json.

    Idempotent: later starts keep project, keys and password; where the file was lost, or belongs
    to another database, new keys and a new password are made for the project that is there.
    """
    path = settings.data_dir / DEMO_FILE
    database = await db.Database.open(settings.database_dsn("worker"), size_max=1)
    try:
        async with database.transaction(None) as conn:
            demo = await _refreshed(conn, settings, _read(path))
    finally:
        await database.close()
    _write(path, demo)
    return demo


async def _refreshed(conn: db.Connection, settings: Settings, known: Demo | None) -> Demo:
    await db.run(conn, "demo.lock")
    project_id = await db.one(conn, "demo.project", UUID, email=EMAIL) or await _create(conn)
    public_id = ids.format_id("prj", project_id)
    if known is not None and known.project_id == public_id and await _works(conn, settings, known):
        return msgspec.structs.replace(known, base_url=settings.base_url)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    await db.run(conn, "demo.set_password", email=EMAIL, password_hash=passwords.hash_now(password))
    return Demo(
        base_url=settings.base_url,
        secret_key=await tenants.create_first_key(
            conn, project_id, "SECRET", name="demo", secret=settings.secret
        ),
        publishable_key=await tenants.create_first_key(
            conn, project_id, "PUBLISHABLE", name="demo", secret=settings.secret
        ),
        project_id=public_id,
        dashboard_email=EMAIL,
        dashboard_password=password,
    )


async def _create(conn: db.Connection) -> UUID:
    account_id = await tenants.create_account(conn, name="Demo", plan="enterprise")
    # Nobody knows this password; `_refreshed` sets the one that is written down.
    user_id = await tenants.create_user(
        conn, account_id, email=EMAIL, password=secrets.token_urlsafe(PASSWORD_BYTES)
    )
    project_id = await tenants.create_project(conn, account_id, name="Demo", currency=CURRENCY)
    await tenants.add_owner(conn, project_id, user_id)
    return project_id


async def _works(conn: db.Connection, settings: Settings, known: Demo) -> bool:
    for token in (known.secret_key, known.publishable_key):
        digest = api_keys.digest_of(token.encode(), settings.secret)
        if not await db.value(conn, "demo.has_key", bool, digest=digest):
            return False
    return True


def _read(path: Path) -> Demo | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Demo)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write(path: Path, demo: Demo) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(demo), indent=2) + b"\n")
    draft.replace(path)
