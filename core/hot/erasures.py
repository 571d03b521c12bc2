"""Taking a person out of the streams that are kept of settled leases."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError

from core.hot import keys
from core.hot.nodes import node_of

# A batch has up to a thousand wins of some hundred bytes: some megabytes in one reply.
ENTRIES_AT_ONCE: Final = 50
# A stream that is settled in the books, and is about to be told so: it then fades by that.
NOT_FADING_MS: Final = 3_600_000

_Wins = list[tuple[str, str, str, str]]
_wins = msgspec.msgpack.Decoder(_Wins)


async def rename(redis: Redis, lease_id: str, customer: str, pseudonym: str) -> int:
    """Put a pseudonym in place of a customer, and drop what their orders carried along.

    Of a settled lease only: nobody writes to its stream any more, so it is written anew beside and
    takes the place of the old one at once, entry by entry under the same ids. Returns how many wins
    were theirs. Idempotent. Raises: RedisError, also where another erasure or its fading came in
    between: then nothing was changed. Cost: the stream is read once, and written once where they
    are in it.
    """
    stream, draft = keys.of_lease(lease_id)[3], keys.of_draft(lease_id, pseudonym)
    node = await node_of(redis, stream)
    async with node.pipeline() as pipe:
        await pipe.watch(stream)
        found = 0
        async for _, fields in _entries(node, stream):
            found += _renamed(fields, customer, pseudonym)
        if not found:
            return 0
        kept_ms = await node.pttl(stream)
        async for entry_id, fields in _entries(node, stream):
            _renamed(fields, customer, pseudonym)
            await node.xadd(draft, cast("Any", fields), id=entry_id)
            await node.pexpire(draft, kept_ms if kept_ms > 0 else NOT_FADING_MS)
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.rename(draft, stream)
        try:
            await pipe.execute()
        except WatchError:
            # Somebody else who is erased meanwhile is in it.
            await node.delete(draft)
            raise
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
