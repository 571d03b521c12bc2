"""Taking a person out of the streams that are kept of settled leases."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
from redis.asyncio import Redis

from core.hot import keys

# A batch has up to a thousand wins of some hundred bytes: some megabytes in one reply.
ENTRIES_AT_ONCE: Final = 50

_Wins = list[tuple[str, str, str, str]]
_wins = msgspec.msgpack.Decoder(_Wins)


async def rename(redis: Redis, lease_id: str, customer: str, pseudonym: str) -> int:
    """Put a pseudonym in place of a customer, and drop what their orders carried along.

    Of a settled lease only: nobody writes to its stream any more, so it is written anew beside and
    takes the place of the old one at once, entry by entry under the same ids. Returns how many wins
    were theirs. Idempotent. Cost: the stream is read once, and written once where they are in it.
    """
    stream = keys.of_lease(lease_id)[3]
    found = 0
    async for _, fields in _entries(redis, stream):
        found += _renamed(fields, customer, pseudonym)
    if not found:
        return 0
    draft = keys.of_draft(lease_id)
    kept_ms = max(await redis.pttl(stream), 1)
    await redis.delete(draft)
    async for entry_id, fields in _entries(redis, stream):
        _renamed(fields, customer, pseudonym)
        await redis.xadd(draft, cast("Any", fields), id=entry_id)
        await redis.pexpire(draft, kept_ms)
    await redis.rename(draft, stream)
    return found


async def _entries(redis: Redis, stream: str) -> Any:
    after = "-"
    while True:
        page: Any = await redis.xrange(stream, min=after, count=ENTRIES_AT_ONCE)
        for entry_id, fields in page:
            yield entry_id, fields
        if len(page) < ENTRIES_AT_ONCE:
            return
        after = f"({page[-1][0].decode()}"


def _renamed(fields: dict[bytes, bytes], customer: str, pseudonym: str) -> int:
    """Rename within one entry; returns how many of its wins are the customer's."""
    try:
        wins = _wins.decode(fields[b"d"])
    except (KeyError, msgspec.MsgspecError):
        # Unreadable, and so in quarantine, which is looked through by itself.
        return 0
    theirs = [customer == one[2] for one in wins]
    if any(theirs):
        fields[b"d"] = msgspec.msgpack.encode(
            [
                (key, fingerprint, pseudonym, _without_metadata(payload)) if is_theirs
                else (key, fingerprint, name, payload)
                for (key, fingerprint, name, payload), is_theirs in zip(wins, theirs, strict=True)
            ]
        )  # fmt: skip
    return sum(theirs)


def _without_metadata(payload: str) -> str:
    """Return what a win was priced at, and its order, without the shop's own words beside it."""
    priced = msgspec.json.decode(payload)
    return msgspec.json.encode([*priced[:3], None]).decode()
