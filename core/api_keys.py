"""API keys: how one is made, checked, cached and revoked.

Only `HMAC-SHA256(secret, key)` is stored. A key's own checksum refuses typing errors without a
database; a cache answers for every key seen before, and a poll makes revocation true everywhere
within a second. The cache lives through an outage of PostgreSQL: keys it knows keep working until
their own end.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import audit_log, db, ids
from core.errors import (
    AlreadyExists,
    Fault,
    Forbidden,
    Invalid,
    MissingScope,
    NotFound,
    Unauthenticated,
)
from core.rules import money
from core.rules.rates import Rate

Kind = Literal["SECRET", "PUBLISHABLE", "AGENT"]

PREFIXES: Final[dict[Kind, str]] = {
    "SECRET": "vf_sk_",
    "PUBLISHABLE": "vf_pk_",
    "AGENT": "vf_ak_",
}
# What an operator gives to a scanner for leaked secrets.
PATTERN: Final = "vf_[spa]k_[0-9A-Za-z]{49}"

# An agent's key ends by itself: a week if nobody says otherwise, a quarter at most.
AGENT_DAYS: Final = 7
AGENT_DAYS_MAX: Final = 90
# A key that is replaced goes on for a day unless told otherwise: every deployment has had its turn.
OVERLAP_S: Final = 86_400

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62^43 is just above 2^256, and 62^6 above 2^32.
_RANDOM_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_TOKEN_LENGTH: Final = 6 + _RANDOM_LENGTH + _CHECKSUM_LENGTH
_TOKEN_CHARACTERS: Final = frozenset(_BASE62.encode() + b"_")

_PREFIX_BYTES: Final = frozenset(prefix.encode() for prefix in PREFIXES.values())

# About 1 kB each: 10 MB for the keys of ten thousand shops on one node.
CACHED_MAX: Final = 10_000
# An unknown key costs the database one look-up a second, however often it is tried.
UNKNOWN_TTL_S: Final = 1.0
# Revocation holds everywhere within 1 s: three polls fit, so two may fail.
POLL_INTERVAL_S: Final = 0.3
# A key's last use is written so often at most, and so late at most.
TOUCH_INTERVAL_S: Final = 5.0
# A revocation may commit this long after the instant it carries: a transaction's longest life
# (10 s idle) with as much again.
POLL_OVERLAP: Final = timedelta(seconds=20)

_log = structlog.get_logger(__name__)


class Caller(msgspec.Struct, frozen=True):
    """Who asks of one project: a key, or a person who is logged in (`user_id`; then no key).

    `exponent` is how many decimals the currency has. `scopes`: what the key may do, None for all.
    `origins`: the pages a browser's key may be used on, none for any. `plan` and `account_id` are
    a key's account's; `rate` is the key's own limit beside the plan's.
    """

    project_id: UUID
    key_id: UUID | None
    kind: Kind
    currency: str
    exponent: int
    user_id: UUID | None = None
    scopes: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    expires_at: datetime | None = None
    plan: str = "enterprise"
    account_id: UUID | None = None
    rate: Rate | None = None

    @property
    def is_secret(self) -> bool:
        """Whether this is a server-side key, a shop's or an agent's, rather than a browser's."""
        return self.kind != "PUBLISHABLE"

    @property
    def actor(self) -> str:
        """Who asks, as the audit log names them: the public id of a key or of a person."""
        if self.key_id is not None:
            return ids.format_id("key", self.key_id)
        assert self.user_id is not None, "a key or a person"
        return ids.format_id("usr", self.user_id)

    def may(self, scope: str) -> bool:
        """Whether the key has a scope such as `vouchers:write`, itself or by `*:write`."""
        return self.scopes is None or scope in self.scopes or _any_of(scope) in self.scopes


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is made with. `lifetime`: None for ever."""

    kind: Kind
    name: str | None = None
    scopes: list[str] | None = None
    origins: list[str] = []
    lifetime: timedelta | None = None
    rate_limit: Rate | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key; `hint` is all that may be shown of it. `last_used_at` is a minute's."""

    id: UUID
    kind: Kind
    name: str | None
    hint: str
    scopes: list[str] | None
    origins: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    rotated_to: UUID | None
    rate_limit: Rate | None

    @property
    def status(self) -> Literal["active", "expired", "revoked"]:
        """Return whether it works at this moment."""
        if self.revoked_at is not None:
            return "revoked"
        is_over = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return "expired" if is_over else "active"


def generate(kind: Kind) -> str:
    """Return a new key of 256 random bits with its checksum."""
    body = PREFIXES[kind] + _base62(secrets.randbits(256), _RANDOM_LENGTH)
    return body + _checksum(body.encode())


def is_well_formed(token: bytes) -> bool:
    """Say whether a token has a key's shape and checksum; most typing errors do not."""
    return (
        len(token) == _TOKEN_LENGTH
        and token[:6] in _PREFIX_BYTES
        and _TOKEN_CHARACTERS.issuperset(token)
        and _checksum(token[:-_CHECKSUM_LENGTH]).encode() == token[-_CHECKSUM_LENGTH:]
    )


def digest_of(token: bytes, secret: str) -> bytes:
    """Return what is stored of a key."""
    return hmac.digest(secret.encode(), token, "sha256")


def hint_of(token: str) -> str:
    """Return what may be shown of a key: its kind and last four characters."""
    return f"{token[:6]}…{token[-4:]}"


async def create(
    conn: db.Connection, caller: Caller, new: NewKey, *, secret: str
) -> tuple[ApiKey, str]:
    """Make a key and return it with its full text, which nobody sees again.

    Raises: Invalid; MissingScope or Forbidden, for a key that may do more than the calling one.
    """
    _within(caller, new.kind, new.scopes)
    key, token = await insert(conn, caller.project_id, new, secret=secret)
    await audit_log.write(conn, caller, "api_key.created", ids.format_id("key", key.id),
                          after=_told(key))  # fmt: skip
    return key, token


async def insert(
    conn: db.Connection, project_id: UUID, new: NewKey, *, secret: str
) -> tuple[ApiKey, str]:
    """Store a new key, whoever asked for it, and return it with its full text.

    Raises: Invalid, for what the kind cannot have.
    """
    if new.kind == "PUBLISHABLE" and new.scopes is not None:
        raise Invalid("scopes are not for a publishable key: it may do very little", field="scopes")
    if new.kind != "PUBLISHABLE" and new.origins:
        raise Invalid("origins are for a publishable key: others stay on servers", field="origins")
    lifetime = new.lifetime
    if new.kind == "AGENT":
        if not new.scopes:
            raise Invalid("scopes are required for an agent's key", field="scopes")
        lifetime = lifetime or timedelta(days=AGENT_DAYS)
        if lifetime > timedelta(days=AGENT_DAYS_MAX):
            raise Invalid(
                f"expires_in_days is at most {AGENT_DAYS_MAX} for an agent's key",
                field="expires_in_days",
            )
    token = generate(new.kind)
    key = await db.one(
        conn, "api_keys.create", ApiKey,
        project_id=project_id, id=ids.new(), kind=new.kind, key_name=new.name,
        digest=digest_of(token.encode(), secret), hint=hint_of(token),
        scopes=new.scopes, origins=new.origins, lifetime=lifetime, rate_limit=new.rate_limit,
    )  # fmt: skip
    assert key is not None
    return key, token


async def rotate(
    conn: db.Connection,
    caller: Caller,
    public_id: str,
    overlap: timedelta,
    *,
    secret: str,
) -> tuple[ApiKey, str]:
    """Make a key's successor, with its scopes, origins and lifetime; the old one ends after both.

    `overlap`: how long both work. Raises: NotFound; AlreadyExists, for a key that was replaced,
    revoked or over before; MissingScope or Forbidden.
    """
    old = await get(conn, caller, public_id)
    _within(caller, old.kind, old.scopes)
    lifetime = old.expires_at - old.created_at if old.expires_at is not None else None
    new = NewKey(kind=old.kind, name=old.name, scopes=old.scopes, origins=old.origins,
                 lifetime=lifetime, rate_limit=old.rate_limit)  # fmt: skip
    key, token = await insert(conn, caller.project_id, new, secret=secret)
    is_retired = await db.run(
        conn, "api_keys.retire",
        project_id=caller.project_id, id=old.id, overlap=overlap, successor_id=key.id,
    )  # fmt: skip
    if not is_retired:
        raise AlreadyExists("This key was replaced or ended before; rotate the one that works.")
    await audit_log.write(conn, caller, "api_key.rotated", public_id,
                          after={**_told(key), "successor": ids.format_id("key", key.id)},
                          )  # fmt: skip
    return key, token


def _within(caller: Caller, kind: Kind, scopes: list[str] | None) -> None:
    """Let a key hand out nothing that can do more, or lives longer, than itself."""
    if caller.expires_at is not None:
        raise Forbidden("A key that ends by itself makes no keys.")
    if caller.scopes is None:
        return
    if kind == "PUBLISHABLE" or scopes is None:
        raise Forbidden("A key with scopes hands out keys with no more than its own scopes.")
    for scope in scopes:
        if not caller.may(scope):
            raise MissingScope(scope)


def _told(key: ApiKey) -> dict[str, object]:
    return {"type": key.kind, "hint": key.hint, "scopes": key.scopes, "origins": key.origins,
            "expires_at": key.expires_at, "rate_limit": key.rate_limit}  # fmt: skip


def _any_of(scope: str) -> str:
    return f"*:{scope.rpartition(':')[2]}"


async def get(conn: db.Connection, caller: Caller, public_id: str) -> ApiKey:
    """Return one key. Raises: NotFound."""
    key_id = ids.parse_id("key", public_id)
    if key_id is not None:
        key = await db.one(conn, "api_keys.get", ApiKey, project_id=caller.project_id, id=key_id)
        if key is not None:
            return key
    raise NotFound("There is no such API key in this project.")


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[ApiKey]:
    """Return up to `limit` keys, newest first, revoked ones included."""
    return await db.many(
        conn, "api_keys.page", ApiKey, project_id=caller.project_id, after=after, limit=limit
    )


async def revoke(conn: db.Connection, caller: Caller, public_id: str) -> ApiKey:
    """Revoke a key, also the calling one; it stops working everywhere within a second.

    Idempotent: a revoked key keeps its first instant and is not audited twice. Raises: NotFound.
    """
    before = await get(conn, caller, public_id)
    is_revoked = await db.run(conn, "api_keys.revoke", project_id=caller.project_id, id=before.id)
    key = await get(conn, caller, public_id)
    if is_revoked:
        await audit_log.write(conn, caller, "api_key.revoked", public_id, _told(key),
                              before={"status": "active"}, after={"status": "revoked"},
                              )  # fmt: skip
    return key


class _Found(msgspec.Struct, frozen=True):
    key_id: UUID
    project_id: UUID
    account_id: UUID
    kind: Kind
    currency: str
    scopes: list[str] | None
    origins: list[str]
    expires_at: datetime | None
    plan: str
    rate_limit: Rate | None


class _Revoked(msgspec.Struct, frozen=True):
    at: datetime
    digests: list[bytes]


class KeyCache:
    """Every key this process has seen, by its text. Used from one event loop only."""

    def __init__(
        self, database: db.Database, secret: str, on_forget: Callable[[bytes], None] | None = None
    ) -> None:
        """Start empty; `poll_forever` keeps revocations coming.

        `on_forget` is called with a key that may not pass any more without being looked up.
        """
        self._database = database
        self._on_forget = on_forget
        self._secret = secret
        self._callers: dict[bytes, Caller] = {}
        self._tokens_of_digest: dict[bytes, bytes] = {}
        self._ends: dict[bytes, datetime] = {}
        self._used: set[bytes] = set()
        self._touched_s = time.monotonic()
        self._unknown_until_s: dict[bytes, float] = {}
        self._flights: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._polled_at: datetime | None = None

    def peek(self, token: bytes) -> Caller | None:
        """Return a known key's caller at once; None means: `resolve` it. Cost: one dict look-up."""
        caller = self._callers.get(token)
        if caller is not None:
            self._used.add(token)
        return caller

    async def resolve(self, token: bytes) -> Caller:
        """Return a key's caller. Concurrent misses of one key share one look-up.

        Raises: Unauthenticated (malformed_key, invalid_key), Unavailable.
        """
        caller = self.peek(token)
        if caller is not None:
            return caller
        if not is_well_formed(token):
            raise Unauthenticated(
                "This is not a VauchFlow API key: its length or checksum does not fit; copy it "
                "again.",
                code="malformed_key",
            )
        if self._unknown_until_s.get(token, 0.0) <= time.monotonic():
            flight = self._flights.get(token)
            if flight is None:
                flight = asyncio.create_task(self._look_up(token))
                self._flights[token] = flight
                flight.add_done_callback(lambda _: self._flights.pop(token, None))
            # A caller that hangs up must not cancel the look-up the others wait for.
            caller = await asyncio.shield(flight)
        if caller is not None:
            self._used.add(token)
        else:
            raise Unauthenticated("The API key is unknown, revoked or expired.", code="invalid_key")
        return caller

    async def _look_up(self, token: bytes) -> Caller | None:
        digest = digest_of(token, self._secret)
        async with self._database.connection(reads_only=True) as conn:
            found = await db.one(conn, "api_keys.authenticate", _Found, digest=digest)
        if found is None:
            _make_room(self._unknown_until_s)
            self._unknown_until_s[token] = time.monotonic() + UNKNOWN_TTL_S
            return None
        exponent = money.exponent_of(found.currency)
        assert exponent is not None, found.currency
        caller = Caller(
            found.project_id, found.key_id, found.kind, found.currency, exponent,
            scopes=frozenset(found.scopes) if found.scopes is not None else None,
            origins=frozenset(found.origins), expires_at=found.expires_at,
            plan=found.plan, account_id=found.account_id, rate=found.rate_limit,
        )  # fmt: skip
        while len(self._callers) >= CACHED_MAX:
            self._forget(digest_of(next(iter(self._callers)), self._secret))
        self._callers[token] = caller
        self._tokens_of_digest[digest] = token
        if caller.expires_at is not None:
            self._ends[digest] = caller.expires_at
        return caller

    def _forget(self, digest: bytes) -> None:
        self._ends.pop(digest, None)
        token = self._tokens_of_digest.pop(digest, None)
        if token is not None:
            self._callers.pop(token, None)
            if self._on_forget is not None:
                self._on_forget(token)

    async def touch(self) -> None:
        """Write down which keys were used since the last time. Raises: Unavailable."""
        used, self._used = self._used, set()
        callers = [caller for token in used if (caller := self._callers.get(token)) is not None]
        if callers:
            async with self._database.connection() as conn:
                await db.run(conn, "api_keys.touch", ids=[caller.key_id for caller in callers])

    def forget_expired(self, now: datetime) -> None:
        """Forget the keys that are over; PostgreSQL need not be there for that."""
        for digest in [digest for digest, end in self._ends.items() if end <= now]:
            self._forget(digest)

    async def poll_once(self) -> None:
        """Forget what was revoked or changed since the last poll that succeeded.

        Raises: Unavailable.
        """
        since = self._polled_at and self._polled_at - POLL_OVERLAP
        async with self._database.connection(reads_only=True) as conn:
            revoked = await db.one(conn, "api_keys.revoked_since", _Revoked, since=since)
        assert revoked is not None
        self._polled_at = revoked.at
        for digest in revoked.digests:
            self._forget(digest)

    async def poll_forever(self) -> None:
        """Poll every 300 ms until cancelled; an outage is waited out, keys in hand."""
        is_away = False
        while True:
            self.forget_expired(datetime.now(UTC))
            try:
                await self.poll_once()
                if time.monotonic() - self._touched_s > TOUCH_INTERVAL_S:
                    self._touched_s = time.monotonic()
                    await self.touch()
                is_away = False
            except Fault as fault:
                if not is_away:
                    _log.warning("revocations_not_polled", reason=fault.detail)
                is_away = True
            await asyncio.sleep(POLL_INTERVAL_S)


def _make_room(cache: dict[bytes, float]) -> None:
    while len(cache) >= CACHED_MAX:
        with contextlib.suppress(StopIteration):
            del cache[next(iter(cache))]


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        characters.append(_BASE62[digit])
    assert number == 0
    return "".join(reversed(characters))


def _checksum(body: bytes) -> str:
    return _base62(zlib.crc32(body), _CHECKSUM_LENGTH)
