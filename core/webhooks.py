"""Webhooks: addresses of the shop's that are told of events.

A webhook's secret is kept nowhere: it is made of the system's secret, the webhook's id and a
version, shown when that is new, and made again whenever something is signed.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import audit_log, db, events, ids, outbound
from core.api_keys import Caller
from core.errors import Invalid, NotFound, Refusal
from core.settings import Settings

# More than anybody has systems that listen; each costs every event a look.
WEBHOOKS_MAX: Final = 50
# For how long two secrets are valid after a rotation: a day's deployments of the receiver.
OVERLAP_S: Final = 86_400
OVERLAP_S_MAX: Final = 7 * 86_400

Url = Annotated[str, msgspec.Meta(min_length=1, max_length=outbound.URL_LENGTH_MAX)]
Description = Annotated[str, msgspec.Meta(max_length=500)]
Types = Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]
Overlap = Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)]


class NewWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a webhook is made from; without `events` it is told of everything."""

    url: Url
    events: Types | None = None
    description: Description | None = None


class WebhookPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may change: members that are left out stay; null for `events` means all."""

    url: Url | msgspec.UnsetType = msgspec.UNSET
    events: Types | msgspec.UnsetType | None = msgspec.UNSET
    description: Description | msgspec.UnsetType | None = msgspec.UNSET
    status: Literal["active", "disabled"] | msgspec.UnsetType = msgspec.UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For how many seconds what is sent is signed with the old secret, too."""

    overlap_s: Overlap = OVERLAP_S


class Test(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which type the example is."""

    type: str = "voucher.redeemed"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook's row."""

    id: UUID
    url: str
    description: str | None
    events: list[str] | None
    status: Literal["active", "disabled"]
    disabled_reason: str | None
    secret_version: int
    previous_until: datetime | None
    failure_count: int
    failing_since: datetime | None
    created_at: datetime
    updated_at: datetime


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as the API shows it; `secret` only when it is new."""

    id: str
    url: str
    events: list[str] | None
    description: str | None
    status: Literal["active", "disabled"]
    disabled_reason: str | None
    failing_since: datetime | None
    previous_secret_until: datetime | None
    created_at: datetime
    updated_at: datetime
    secret: str | None = None


class Signer:
    """Makes the secrets of webhooks, and signs with them; holds the system's secret."""

    def __init__(self, secret: str) -> None:
        """Take the system's secret."""
        self._key = hmac.digest(secret.encode(), b"webhooks", "sha256")

    def secret(self, webhook_id: UUID, version: int) -> str:
        """Return a webhook's secret, the way Standard Webhooks writes it."""
        drawn = hmac.digest(self._key, webhook_id.bytes + version.to_bytes(4, "big"), "sha256")
        return "whsec_" + base64.b64encode(drawn).decode()

    def secrets(
        self, webhook_id: UUID, version: int, previous_until: datetime | None, now: datetime
    ) -> list[str]:
        """Return the secrets that are valid, the newest first."""
        versions = [version]
        if previous_until is not None and now < previous_until and version > 1:
            versions.append(version - 1)
        return [self.secret(webhook_id, one) for one in versions]


def headers(
    secrets: Sequence[str], event_id: str, timestamp_s: int, body: bytes
) -> Mapping[str, str]:
    """Return the headers of a delivery: a signature of each secret, in both ways."""
    named = f"{event_id}.{timestamp_s}.".encode() + body
    stamped = f"{timestamp_s}.".encode() + body
    standard, plain = [], [f"t={timestamp_s}"]
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        standard.append("v1," + base64.b64encode(hmac.digest(key, named, "sha256")).decode())
        plain.append("v1=" + hmac.new(secret.encode(), stamped, hashlib.sha256).hexdigest())
    return {
        "Content-Type": "application/json",
        "User-Agent": "VauchFlow",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(standard),
        "VauchFlow-Signature": ",".join(plain),
    }


async def create(
    conn: db.Connection, caller: Caller, new: NewWebhook, settings: Settings
) -> Webhook | Refusal:
    """Make a webhook. Its secret is in this answer and nowhere else.

    Refuses: too_many_webhooks. Raises: Invalid.
    """
    _check(new.url, new.events, settings)
    webhook_id = ids.new()
    done = await db.run(
        conn, "webhooks.create", project_id=caller.project_id, id=webhook_id, url=new.url,
        events=new.events, description=new.description, count_max=WEBHOOKS_MAX,
    )  # fmt: skip
    if not done:
        return Refusal("too_many_webhooks", f"A project has at most {WEBHOOKS_MAX} webhooks.")
    stored = await find(conn, caller, ids.format_id("whk", webhook_id))
    made = show(stored)
    await audit_log.write_change(conn, caller, "webhook.created", made.id, after=made)
    return show(stored, Signer(settings.secret).secret(webhook_id, stored.secret_version))


def _check(url: str, types: Sequence[str] | None, settings: Settings) -> None:
    try:
        outbound.check_url(url, outbound.networks_of(settings.webhook_allow))
    except outbound.Refused as refused:
        raise Invalid(str(refused), field="url") from None
    for one in types or ():
        noun, _, rest = one.partition(".")
        known = one in events.TYPES or (rest == "*" and noun in events.NOUNS)
        if not known or one == events.TEST:
            raise Invalid(f"events names a type that there is not: {one[:40]!a}", field="events")


async def find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Return a webhook's row. Raises: NotFound."""
    webhook_id = ids.parse_id("whk", public_id)
    if webhook_id is not None:
        stored = await db.one(
            conn, "webhooks.by_id", Stored, project_id=caller.project_id, id=webhook_id
        )
        if stored is not None:
            return stored
    raise NotFound("There is no such webhook in this project.")


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Webhook:
    """Return a webhook as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id))


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[Webhook]:
    """Return up to `limit` webhooks, newest first."""
    rows = await db.many(
        conn, "webhooks.page", Stored, project_id=caller.project_id, after=after, limit=limit
    )
    return [show(row) for row in rows]


async def edit(
    conn: db.Connection, caller: Caller, public_id: str, patch: WebhookPatch, settings: Settings
) -> Webhook:
    """Change a webhook; switched on, it is tried again at once. Raises: NotFound, Invalid."""
    before = await find(conn, caller, public_id)
    url = before.url if patch.url is msgspec.UNSET else patch.url
    types = before.events if patch.events is msgspec.UNSET else patch.events
    described = before.description if patch.description is msgspec.UNSET else patch.description
    status = before.status if patch.status is msgspec.UNSET else patch.status
    _check(url, types, settings)
    await db.run(
        conn, "webhooks.edit", project_id=caller.project_id, id=before.id, url=url,
        events=types, description=described, status=status,
    )  # fmt: skip
    after = await get(conn, caller, public_id)
    await audit_log.write_change(
        conn, caller, "webhook.updated", after.id, before=show(before), after=after
    )
    return after


async def remove(conn: db.Connection, caller: Caller, public_id: str) -> None:
    """Take a webhook away for good; what waits for it is not delivered. Raises: NotFound."""
    stored = await find(conn, caller, public_id)
    await db.run(conn, "webhooks.remove", project_id=caller.project_id, id=stored.id)
    gone = show(stored)
    await audit_log.write_change(conn, caller, "webhook.removed", gone.id, before=gone)


async def rotate(
    conn: db.Connection, caller: Caller, public_id: str, rotation: Rotation, signer: Signer
) -> Webhook:
    """Give a webhook a new secret, shown once; the old one signs, too, for a while.

    Raises: NotFound.
    """
    before = await find(conn, caller, public_id)
    await db.run(
        conn, "webhooks.rotate",
        project_id=caller.project_id, id=before.id, overlap_s=rotation.overlap_s,
    )  # fmt: skip
    stored = await find(conn, caller, public_id)
    await audit_log.write(conn, caller, "webhook.rotated", show(stored).id)
    return show(stored, signer.secret(stored.id, stored.secret_version))


async def try_out(
    conn: db.Connection, caller: Caller, test: Test, public_id: str | None = None
) -> None:
    """Tell an example of a type: to one webhook, or to all that are told of the type.

    Raises: NotFound, Invalid.
    """
    if test.type not in events.TYPES or test.type == events.TEST:
        raise Invalid(f"there is no type {test.type[:40]!a}", field="type")
    webhook_id = None
    if public_id is not None:
        webhook_id = (await find(conn, caller, public_id)).id
    data: dict[str, Any] = {"type": test.type, "webhook": webhook_id}
    await db.run(
        conn, "webhooks.try_out",
        project_id=caller.project_id, event=events.TEST, id=webhook_id or ids.new(), data=data,
    )  # fmt: skip


def without_secret(webhook: Webhook) -> Webhook:
    """Return what may be kept of an answer with a secret in it."""
    return msgspec.structs.replace(webhook, secret=None)


def show(stored: Stored, secret: str | None = None) -> Webhook:
    """Write a row as the API shows it."""
    previous = stored.previous_until
    return Webhook(
        id=ids.format_id("whk", stored.id),
        url=stored.url,
        events=stored.events,
        description=stored.description,
        status=stored.status,
        disabled_reason=stored.disabled_reason,
        failing_since=stored.failing_since,
        previous_secret_until=previous if previous and previous > datetime.now(UTC) else None,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        secret=secret,
    )
