"""The compiled part of a flash sale: the batcher, its marks, and the one copy of the scripts."""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from vauchflow_hotpath._native import (
    BUILD_PROFILE,
    CLAIM_LUA,
    CROWD_LUA,
    FACTS_LUA,
    LEASE_LUA,
    RATE_LUA,
    Batcher,
    CommitBatch,
    CommitQueue,
    Door,
    Listener,
    Marks,
    PlainCall,
    PlainTerms,
    read_marks,
    settle_columns,
)

__all__ = [
    "BUILD_PROFILE",
    "CLAIM_LUA",
    "CROWD_LUA",
    "FACTS_LUA",
    "LEASE_LUA",
    "RATE_LUA",
    "Batcher",
    "CommitBatch",
    "CommitQueue",
    "Door",
    "Listener",
    "Marks",
    "PlainCall",
    "PlainTerms",
    "RedisAddress",
    "parse_redis_url",
    "read_marks",
    "settle_columns",
]


class RedisAddress(NamedTuple):
    """Where a Redis is and who asks, as the Batcher takes it."""

    address: str  # unix:/path or host:port
    username: str | None
    password: str | None
    db: int


def parse_redis_url(url: str) -> RedisAddress:
    """Read redis://[user:password@]host[:port][/db] or unix://[user:password@]/path[?db=n].

    Raises: ValueError for any other form; TLS (rediss://) is not spoken by the Batcher.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    db_text = query.get("db", [""])[0]
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path:
            raise ValueError("a unix:// address needs the path of a socket")
        address = f"unix:{path}"
    elif parts.scheme == "redis":
        host = parts.hostname or "localhost"
        address = (
            f"[{host}]:{parts.port or 6379}" if ":" in host else f"{host}:{parts.port or 6379}"
        )
        db_text = db_text or parts.path.strip("/")
    else:
        raise ValueError(f"cannot batch towards a {parts.scheme}:// address")
    if db_text and not db_text.isdecimal():
        raise ValueError("the database of a Redis address is a number")
    return RedisAddress(address, username, password, int(db_text or 0))
