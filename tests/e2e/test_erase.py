"""Whoever is erased is nowhere any more: in no table, event, delivery, kept answer, Valkey key or
log; and the books, and everybody else, are as they were."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import asyncpg
import pytest
import redis

from bench.product import Product, running
from tests.e2e.nodes import stores_of

# Whoever of these is found somewhere was not erased.
CUSTOMER = "cust-zebulon-quixote-7"
NAME = "Zebulon Quixote"
EMAIL = "zebulon.quixote@mail.example"
STREET = "77 Marmalade Crescent"
DEVICE = "device-9f2c-zq"
PHONE = "+43 1 7777 4242"
PAYMENT = "visa-zq-4242"
TRACES = (CUSTOMER, NAME, EMAIL, STREET, DEVICE, PHONE, PAYMENT, "Zebulon", "zebulon")
OTHER = "cust-somebody-else"
SETTLED_WITHIN_S = 30.0


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent, which the log of deliveries keeps."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def receiver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/in"
    server.shutdown()
    server.server_close()


def ask(product: Product, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request that must succeed, with a key of its own, so that its answer is kept."""
    key = f"key-{time.monotonic_ns()}" if method != "GET" else ""
    status, answer = product.ask(method, path, body, key=key)
    assert status < 300, (method, path, status, answer)
    return answer


def leave_traces(product: Product, hook: str) -> None:
    """Have the person do everything that one can do here, and somebody else as well."""
    person = {"name": NAME, "email": EMAIL, "attributes": {"street": STREET, "device": DEVICE}}
    known = {"customer_id": CUSTOMER, "customer": person}
    identifiers = {
        "email": EMAIL, "phone": PHONE, "device": DEVICE, "payment": PAYMENT, "address": STREET,
    }  # fmt: skip
    ask(product, "POST", "/v1/webhooks", {"url": hook})
    # First: for some seconds after a sale nobody is erased.
    sales(product)
    ask(product, "POST", "/v1/customers", {"customer_id": CUSTOMER, **person})
    ask(product, "PATCH", f"/v1/customers/{CUSTOMER}", {"attributes": {"street": STREET}})
    ask(product, "POST", "/v1/vouchers", {"code": "TRACE", "discount_value": 5})
    ask(product, "POST", "/v1/vouchers", {"code": "OWN", "discount_value": 5, "holder": CUSTOMER})
    ask(product, "POST", "/v1/vouchers/TRACE/validate", {"order_value": 9, **known})
    ask(product, "POST", "/v1/qualifications", {"customer_id": CUSTOMER})
    order = {"order_value": 50, "order_id": "o-1", "metadata": {"ship_to": STREET, "for": NAME}}
    redeemed = ask(product, "POST", "/v1/vouchers/TRACE/redeem", {**known, **order})
    undone = ask(product, "POST", "/v1/vouchers/TRACE/redeem", {**known, **order})
    rolled = f"/v1/redemptions/{undone['redemption_id']}/rollback"
    ask(product, "POST", rolled, {"reason": f"{NAME} called"})
    ask(product, "GET", f"/v1/redemptions/{redeemed['redemption_id']}")
    ask(product, "POST", "/v1/redemptions", {"codes": ["TRACE"], **known, **order})
    for ends in ("release", "keep"):
        held = ask(product, "POST", "/v1/holds", {"code": "TRACE", **known, **order})
        if ends == "release":
            ask(product, "POST", f"/v1/holds/{held['id']}/release")
    ask(product, "POST", "/v1/segments", {"name": "s", "customer_ids": [CUSTOMER, OTHER]})
    campaign = ask(product, "POST", "/v1/campaigns", {
        "name": "join", "type": "DISCOUNT", "rules": {"discount_value": 5, "per_customer_limit": 2},
    })  # fmt: skip
    ask(product, "POST", f"/v1/campaigns/{campaign['id']}/codes", {"customer_id": CUSTOMER})
    cards(product)
    referrals(product, identifiers)


def cards(product: Product) -> None:
    recipient = {"name": NAME, "email": EMAIL, "message": f"Happy birthday, {NAME}"}
    card = ask(product, "POST", "/v1/gift-cards", {
        "amount": 50, "customer_id": CUSTOMER, "recipient": recipient, "metadata": {"at": STREET},
        "reason": f"birthday of {NAME}",
    })  # fmt: skip
    path = f"/v1/gift-cards/{card['id']}"
    ask(product, "PATCH", path, {"recipient": {**recipient, "message": "again"}})
    ask(product, "POST", f"{path}/redeem", {"amount": 10, "order_id": "o-2", "reason": EMAIL})
    ask(product, "POST", f"{path}/top-up", {"amount": 5, "reason": f"by {NAME}"})
    ask(product, "POST", "/v1/gift-cards/bulk", {"amount": 5, "count": 2, "customer_id": CUSTOMER})


def referrals(product: Product, identifiers: dict[str, str]) -> None:
    program = ask(product, "POST", "/v1/referral-programs", {
        "name": "friends", "new_customers_only": False,
        "referrer_reward": {"type": "gift_card", "amount": 5},
        "referee_reward": {"type": "gift_card", "amount": 5},
    })  # fmt: skip
    codes = f"/v1/referral-programs/{program['id']}/codes"
    theirs = ask(product, "POST", codes, {"customer_id": CUSTOMER, "identifiers": identifiers})
    others = ask(product, "POST", codes, {"customer_id": OTHER})
    told = {"code": others["code"], "customer_id": CUSTOMER, "identifiers": identifiers}
    ask(product, "POST", "/v1/referrals/attribute", told)
    ask(
        product,
        "POST",
        "/v1/referrals/convert",
        {"customer_id": CUSTOMER, "order_id": "o-3", "order_value": 50},
    )
    # The same person once more under another name, which speaks against it.
    same = {"code": theirs["code"], "customer_id": "cust-alias", "identifiers": identifiers}
    product.ask("POST", "/v1/referrals/attribute", same)
    invited = {"customer_id": CUSTOMER, "program_id": program["id"]}
    ask(product, "POST", "/v1/referrals/invite", {**invited, "identifiers": {"email": EMAIL}})


def sales(product: Product) -> None:
    for durability in ("fast", "strict"):
        sale = product.open_sale(
            name=durability, code=f"SALE{durability}", discount_value=50, stock=3,
            per_customer_limit=1, durability=durability,
        )  # fmt: skip
        claim = f"/v1/flash-sales/{sale['id']}/claim"
        people = (OTHER, CUSTOMER, "cust-third", "cust-too-late", CUSTOMER)
        for number, customer in enumerate(people):
            told = {"ship_to": STREET if customer == CUSTOMER else "elsewhere"}
            order = {"customer_id": customer, "order_value": 20, "metadata": told}
            product.ask("POST", claim, order, key=f"claim-{number}")
        product.wait_for_lag_0(sale["id"], SETTLED_WITHIN_S)
        ask(product, "POST", f"/v1/flash-sales/{sale['id']}/close")
        until_s = time.monotonic() + SETTLED_WITHIN_S
        while product.must("GET", f"/v1/flash-sales/{sale['id']}")["status"] != "settled":
            assert time.monotonic() < until_s
            time.sleep(0.1)


async def in_postgresql(url: str) -> set[tuple[str, str]]:
    """Return the tables and columns that hold a trace, whatever their type."""
    conn = await asyncpg.connect(url)
    columns = await conn.fetch(
        "select c.oid::regclass::text as name, quote_ident(a.attname) as column, "
        "a.atttypid = 'bytea'::regtype as is_bytes from pg_class c "
        "join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped "
        "where c.relkind in ('r', 'm') and c.relnamespace = 'vf'::regnamespace"
    )
    found = set()
    for row in columns:
        text = f"encode({row['column']}, 'escape')" if row["is_bytes"] else f"{row['column']}::text"
        traces = " or ".join(f"position($t${trace}$t$ in {text}) > 0" for trace in TRACES)
        if await conn.fetchval(f"select exists (select from {row['name']} where {traces})"):
            found.add((row["name"], row["column"]))
    await conn.close()
    return found


def in_valkey(url: str) -> set[bytes]:
    """Return the keys that hold a trace, in their name or anywhere in their value."""
    found = set()
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(count=1_000):
            read = {
                b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange,
                b"set": client.smembers, b"list": lambda name: client.lrange(name, 0, -1),
                b"zset": lambda name: client.zrange(name, 0, -1),
            }[client.type(key)]  # fmt: skip
            text = key + repr(read(key)).encode()
            if any(trace.encode() in text for trace in TRACES):
                found.add(key)
    return found


def wait_until_told(product: Product, url: str) -> None:
    """Wait until everything that happened is an event, and was delivered."""
    waiting = (
        "select (select count(*) from vf.outbox) + "
        "(select count(*) from vf.deliveries where status = 'pending')"
    )

    async def left() -> int:
        conn = await asyncpg.connect(url)
        try:
            return int(await conn.fetchval(waiting))
        finally:
            await conn.close()

    until_s = time.monotonic() + SETTLED_WITHIN_S
    while asyncio.run(left()):
        assert time.monotonic() < until_s
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_who_is_erased_is_found_nowhere_and_the_books_stand() -> None:
    with (
        receiver() as hook,
        running(settings={"VAUCHFLOW_WEBHOOK_ALLOW": "127.0.0.0/8"}) as product,
    ):
        stores = stores_of(product)
        postgresql, valkey = stores["VAUCHFLOW_DATABASE_URL"], stores["VAUCHFLOW_REDIS_URL"]
        leave_traces(product, hook)
        wait_until_told(product, postgresql)
        before = asyncio.run(in_postgresql(postgresql))
        assert len(before) >= 12, before
        assert in_valkey(valkey), "the fast sale's stream is kept for an hour"

        until_s = time.monotonic() + SETTLED_WITHIN_S
        erase = f"/v1/customers/{CUSTOMER}/erase"
        while (told := product.ask("POST", erase, key="e"))[0] == 409:
            assert told[1]["code"] == "sale_live" and time.monotonic() < until_s
            time.sleep(0.2)
        status, erased = told
        assert status == 200, erased

        left = asyncio.run(in_postgresql(postgresql)), in_valkey(valkey)
        print("\n".join(map(str, sorted(before))))
        assert left == (set(), set())
        time.sleep(2)
        assert (asyncio.run(in_postgresql(postgresql)), in_valkey(valkey)) == (set(), set())
        assert [line for line in product.log if any(trace in line for trace in TRACES)] == []
        assert product.ask("GET", f"/v1/customers/{CUSTOMER}")[0] == 404
        kept = product.must("GET", f"/v1/redemptions?customer_id={erased['pseudonym']}")["data"]
        assert len(kept) == erased["redemptions"] == 5
        others = product.must("GET", f"/v1/redemptions?customer_id={OTHER}")["data"]
        assert [one["metadata"] for one in others] == [{"ship_to": "elsewhere"}] * 2
        status, said = product.verify()
        assert status == 0, said
        assert json.dumps(said)
