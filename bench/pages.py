"""S13: lists, look-ups and redeems on a million vouchers and ten million redemptions.

The rows are written by SQL as the database's owner, past the API, in the likeness of what a year
leaves behind: campaigns, customers who come back, orders, some roll-backs, some codes that are
disabled or expired. Then every call is timed over HTTP, one at a time, on few rows and on many.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from bench import connections
from bench.lines import Result, over
from bench.product import Product, ProductFault, running

AT_MOST = 2.0
# Calls of one kind: the median does not feel a hiccup, and the first ones warm caches.
CALLS = 60
WARM_UP_CALLS = 10
CAMPAIGNS = 20
# A voucher in so many is in a campaign.
IN_CAMPAIGN = 10
# The oldest rows have so many exceptions, one in RARE: less than a page, which is where a filter
# that walks has to walk to the end.
RARE = 200
EXCEPTIONS = 10
# Redemptions of one customer; an order has one.
A_CUSTOMER = 50
FIRST_AT_S = 1_735_689_600
APART_S = 3
# Of sorting a large index; the machine runs nothing else meanwhile.
FILL_MEMORY = "1GB"
STATEMENTS = Path(__file__).with_suffix(".sql")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Rows(msgspec.Struct, frozen=True):
    """How many there are of each; they are numbered from 1."""

    vouchers: int
    redemptions: int


NONE = Rows(0, 0)
SMALL = Rows(10_000, 100_000)
LARGE = Rows(1_000_000, 10_000_000)


def statements() -> dict[str, str]:
    """Return the statements of `pages.sql` by name."""
    _, *named = STATEMENTS.read_text().split("-- name: ")
    numbers = {
        "FIRST_AT_S": FIRST_AT_S,
        "APART_S": APART_S,
        "CAMPAIGNS": CAMPAIGNS,
        "IN_CAMPAIGN": IN_CAMPAIGN,
        "RARE": RARE,
        "EXCEPTIONS": EXCEPTIONS,
        "A_CUSTOMER": A_CUSTOMER,
    }
    return {
        name: text.format_map(numbers) for name, _, text in (one.partition("\n") for one in named)
    }


async def fill(
    dsn: str,
    project: UUID,
    campaigns: list[UUID],
    have: Rows,
    want: Rows,
    *,
    is_analysed: bool = True,
) -> None:
    """Add rows up to `want`. Indexes that no constraint needs are made anew afterwards."""
    sql = statements()
    raw = await asyncpg.connect(dsn)
    try:
        if have == NONE:
            await raw.execute(sql["helpers"])
        # Foreign keys hold by construction; ten million look-ups of them would take an hour.
        await raw.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        await raw.execute(f"SET maintenance_work_mem = '{FILL_MEMORY}'; SET work_mem = '256MB'")
        indexes = await raw.fetch(sql["indexes"])
        for index in indexes:
            await raw.execute(sql["drop"].replace("$1", index["name"]))
        await raw.execute(sql["vouchers"], project, have.vouchers, want.vouchers, campaigns)
        many = (have.redemptions, want.redemptions, campaigns, have.vouchers, want.vouchers)
        await raw.execute(sql["redemptions"], project, *many)
        await raw.execute(sql["counts"], project, have.redemptions)
        await raw.execute(sql["campaign_counts"], project)
        for index in indexes:
            await raw.execute(index["definition"])
        # What autovacuum has done by the time anybody looks.
        if not is_analysed:
            return
        for table in ("redemptions", "vouchers", "campaigns"):
            await raw.execute(f"VACUUM (ANALYZE) vf.{table}")
        await raw.execute("CHECKPOINT")
    finally:
        await raw.close()


def public_id(prefix: str, number: int) -> str:
    """Return the id of a filled row as the API writes it."""
    left = ((FIRST_AT_S + number * APART_S) * 1000) << 80 | 0x7000_8000_0000_0000_0000
    digits = ""
    for _ in range(26):
        left, digit = divmod(left, 32)
        digits = CROCKFORD[digit] + digits
    return f"{prefix}_{digits}"


def uuid_of(public: str) -> UUID:
    """Read an id of the API."""
    value = 0
    for letter in public.partition("_")[2]:
        value = value * 32 + CROCKFORD.index(letter)
    return UUID(int=value)


class Call(msgspec.Struct, frozen=True):
    """One kind of call: its path, and a body where it writes. `is_told`: no bound is asked."""

    name: str
    path: Callable[[], str]
    body: Callable[[], str] | None = None
    is_told: bool = False


def calls_of(rows: Rows, campaign: str) -> list[Call]:
    """Return what is timed on so many rows."""

    def voucher() -> str:
        # Neither disabled nor expired, whichever it is.
        return f"FILL{random.randrange(rows.vouchers // RARE) * RARE + 11}"

    def page(name: str, query: str) -> Call:
        return Call(f"{name}?{query}", lambda: f"/v1/{name}?{query}")

    def after(name: str, place: str, prefix: str, number: int) -> Call:
        path = f"/v1/{name}?starting_after={public_id(prefix, number)}"
        return Call(f"{name}, {place} page", lambda: path)

    def buyer() -> str:
        return f'{{"customer_id":"new-{random.randrange(10**12)}","order_value":89.99}}'

    middle_voucher, middle = rows.vouchers // 2, rows.redemptions // 2
    in_campaign = f"campaign_id={campaign}"
    return [
        Call("vouchers, first page", lambda: "/v1/vouchers"),
        after("vouchers", "middle", "vch", middle_voucher),
        after("vouchers", "last", "vch", 21),
        Call("vouchers of a campaign", lambda: f"/v1/vouchers?{in_campaign}"),
        page("vouchers", "status=active"),
        page("vouchers", "status=disabled"),
        page("vouchers", "status=expired"),
        Call("voucher by code", lambda: f"/v1/vouchers/{voucher()}"),
        Call("redemptions, first page", lambda: "/v1/redemptions"),
        after("redemptions", "middle", "rdm", middle),
        after("redemptions", "last", "rdm", 21),
        Call("redemptions of a code", lambda: f"/v1/redemptions?code={voucher()}"),
        Call("redemptions of a campaign", lambda: f"/v1/redemptions?{in_campaign}"),
        Call(
            "rolled back redemptions of a campaign",
            lambda: f"/v1/redemptions?{in_campaign}&status=rolled_back",
        ),
        page("redemptions", "status=rolled_back"),
        page("redemptions", "from=2025-01-02&to=2025-01-02"),
        Call(
            "redemptions of a customer",
            lambda: (
                f"/v1/redemptions?customer_id=fill-"
                f"{random.randrange(rows.redemptions // A_CUSTOMER)}"
            ),
        ),
        Call(
            "redemptions of an order",
            lambda: f"/v1/redemptions?order_id=order-{random.randint(1, rows.redemptions)}",
        ),
        Call(
            "redemption by id",
            lambda: f"/v1/redemptions/{public_id('rdm', random.randint(1, rows.redemptions))}",
        ),
        Call("validate", lambda: f"/v1/vouchers/{voucher()}/validate", buyer),
        Call("redeem", lambda: f"/v1/vouchers/{voucher()}/redeem", buyer),
        Call("analytics overview", lambda: "/v1/analytics/overview", is_told=True),
    ]


async def timed(one: Product, other: Product, call: Call, same: Call) -> tuple[float, float]:
    """Time a call on two products in turn, so that whatever else happens meets both alike.

    Returns the medians, in milliseconds. Raises: ProductFault for an answer that is not 200.
    """
    took_s: tuple[list[float], list[float]] = ([], [])
    sides = ((one, call, took_s[0]), (other, same, took_s[1]))
    linked = [connections.Connection(connections.Target.of(side[0].url)) for side in sides]
    try:
        for number in range(WARM_UP_CALLS + CALLS):
            for connection, (product, asked, took) in zip(linked, sides, strict=True):
                body = asked.body().encode() if asked.body else b""
                target = connections.Target.of(product.url)
                method = "POST" if body else "GET"
                data = connections.request(target, method, asked.path(), product.token, body)
                started_s = time.perf_counter()
                answer = await connection.send(data)
                if number >= WARM_UP_CALLS:
                    took.append(time.perf_counter() - started_s)
                if answer.status != 200:
                    raise ProductFault(f"{asked.name}: {answer.status} {answer.body[:300]!r}")
    finally:
        for connection in linked:
            connection.close()
    return 1_000 * statistics.median(took_s[0]), 1_000 * statistics.median(took_s[1])


def measure(small: Rows = SMALL, large: Rows = LARGE) -> list[Result]:
    """Return S13, a result for each kind of call. Takes minutes and about 8 GB of disk."""
    with running() as few, running() as many:
        return compared(few, filled(few, small), small, many, filled(many, large), large)


def filled(product: Product, rows: Rows) -> str:
    """Fill a fresh product; returns the id of a campaign."""
    assert product.data_dir is not None
    project = uuid_of(json.loads((product.data_dir / "demo.json").read_text())["project_id"])
    campaigns = [_campaign(product, number) for number in range(CAMPAIGNS)]
    dsn: Any = product.servers()["database_url"]
    started_s = time.monotonic()
    asyncio.run(fill(dsn, project, [uuid_of(one) for one in campaigns], NONE, rows))
    print(
        f"{rows.vouchers:,} vouchers and {rows.redemptions:,} redemptions "
        f"in {time.monotonic() - started_s:.0f} s",
        flush=True,
    )
    return campaigns[0]


def compared(
    few: Product, campaign: str, small: Rows, many: Product, same_campaign: str, large: Rows
) -> list[Result]:
    """Time every call on both."""
    results = []
    calls = zip(calls_of(small, campaign), calls_of(large, same_campaign), strict=True)
    for call, same in calls:
        few_ms, many_ms = asyncio.run(timed(few, many, call, same))
        print(f"{few_ms:9.2f} ms {many_ms:9.2f} ms  {call.name}", flush=True)
        results.append(
            over(
                [many_ms / few_ms],
                id="S13",
                says=call.name,
                at_most=None if call.is_told else AT_MOST,
                figures={"few_ms": few_ms, "many_ms": many_ms},
            )
        )
    return results


def _campaign(product: Product, number: int) -> str:
    answer = product.must(
        "POST",
        "/v1/campaigns",
        {"name": f"Year {number}", "type": "DISCOUNT", "rules": {"discount_value": 10}},
    )
    return str(answer["id"])
