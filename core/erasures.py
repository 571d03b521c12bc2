"""A person forgotten in Redis: before the books forget them, and after, in what crowds are told."""

from uuid import UUID

import msgspec

from core import customers, db
from core.api_keys import Caller
from core.errors import NotFound, Unavailable
from core.hot import erasures as hot_erasures
from core.leases import Leases, redis_errors


class Begun(msgspec.Struct, frozen=True):
    """An erasure that has begun: the name the books get, and whose crowds are told at the end."""

    pseudonym: str
    vouchers: list[UUID] = []


async def begin(database: db.Database, desk: Leases, caller: Caller, name: str) -> Begun:
    """Take a person out of what Redis keeps of settled sales. Nothing where there is no such one.

    Idempotent: until the books are changed it can be begun anew. Raises: Unavailable, where Redis
    is away. Cost: the streams of the fast sales they claimed in, for as long as those are kept.
    """
    begun = Begun(customers.new_pseudonym())
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        try:
            person = (await customers.find(conn, caller, name)).customer_id
        except NotFound:
            return begun
        where = {"project_id": caller.project_id, "customer_id": person}
        leases = await db.many(conn, "erasures.leases", UUID, **where)
        vouchers = await db.many(conn, "erasures.vouchers", UUID, **where)
    try:
        for lease_id in leases:
            await hot_erasures.rename(desk.redis, str(lease_id), person, begun.pseudonym)
    except (redis_errors, OSError) as error:
        raise Unavailable(
            "Nothing was erased: Redis keeps a sale of them, and is away or at another erasure."
        ) from error
    return msgspec.structs.replace(begun, vouchers=vouchers)


async def end(desk: Leases, caller: Caller, begun: Begun) -> None:
    """Void what Redis was told of sold-out vouchers, after the commit. Without Redis it fades."""
    for voucher_id in begun.vouchers:
        await desk.void_crowd(caller.project_id, voucher_id)
