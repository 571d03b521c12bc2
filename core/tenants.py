"""Accounts, their users and their projects: the tenants themselves. Run under the worker's role."""

from typing import Final
from uuid import UUID

from core import api_keys, db, ids, passwords, projects

PLANS: Final = ("free", "starter", "growth", "scale", "enterprise")


async def create_account(conn: db.Connection, *, name: str, plan: str) -> UUID:
    """Make an account and return its id."""
    assert plan in PLANS, plan
    account_id = ids.new()
    await db.run(conn, "tenants.create_account", id=account_id, account_name=name, plan=plan)
    return account_id


async def create_user(conn: db.Connection, account_id: UUID, *, email: str, password: str) -> UUID:
    """Make a user. Cost: one argon2id hash, tens of milliseconds of this thread."""
    user_id = ids.new()
    await db.run(
        conn, "tenants.create_user", id=user_id, account_id=account_id, email=email.lower(),
        password_hash=passwords.hash_now(password),
    )  # fmt: skip
    return user_id


async def create_project(
    conn: db.Connection, account_id: UUID, *, name: str, currency: str, time_zone: str = "UTC"
) -> UUID:
    """Make a project that nobody owns yet. Raises: Invalid, as `projects.check_currency`."""
    projects.check_currency(currency)
    project_id = ids.new()
    await db.run(
        conn, "tenants.create_project", id=project_id, account_id=account_id,
        project_name=name, currency=currency, time_zone=time_zone,
    )  # fmt: skip
    return project_id


async def add_owner(conn: db.Connection, project_id: UUID, user_id: UUID) -> None:
    """Let a user do everything in a project. Idempotent."""
    await db.run(conn, "tenants.add_owner", project_id=project_id, user_id=user_id)


async def create_first_key(
    conn: db.Connection, project_id: UUID, kind: api_keys.Kind, *, name: str, secret: str
) -> str:
    """Make a key nobody's key asked for, and return its full text. `secret` is the server's."""
    new = api_keys.NewKey(kind=kind, name=name)
    return (await api_keys.insert(conn, project_id, new, secret=secret))[1]
