"""The audit log: who changed what, written in the transaction of the change. Append-only."""

from typing import TYPE_CHECKING, Any

from core import db, ids

if TYPE_CHECKING:
    from core.api_keys import Caller


async def write(
    conn: db.Connection,
    caller: "Caller",
    action: str,
    target: str,
    detail: dict[str, Any],
    *,
    origin: str,
) -> None:
    """Add an entry; `origin` is the request id. No secrets in here."""
    await db.run(
        conn, "audit_log.write",
        project_id=caller.project_id, id=ids.new(), actor=caller.actor,
        action=action, target=target, detail=detail, request_id=origin,
    )  # fmt: skip
