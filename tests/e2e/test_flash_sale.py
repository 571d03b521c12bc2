"""A flash sale from end to end: API, batcher, reconciler, real servers and real sockets."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.connections import Target, request
from bench.product import Product
from tests.e2e.sales import Sale, finish, running, wait_for_wins

pytestmark = pytest.mark.timeout(240)
MODES = pytest.mark.parametrize("durability", ["fast", "strict"])


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with running() as started:
        yield started


@pytest.mark.long
@MODES
def test_20000_units_go_to_exactly_20000_of_60000_customers(
    product: Product, tmp_path: Path, durability: str
) -> None:
    sale = Sale(product, durability, tmp_path)
    with sale.crowd() as crowd:
        summary = finish(crowd)
    sale.assert_sold_exactly(summary)
    assert sale.read()["status"] == "sold_out"


@MODES
def test_the_books_balance_at_any_moment_of_a_selling_sale(
    product: Product, tmp_path: Path, durability: str
) -> None:
    sale = Sale(product, durability, tmp_path, stock=6_000)
    with sale.crowd(9_000) as crowd:
        wait_for_wins(crowd, 500)
        audits = [product.verify() for _ in range(2)]
        summary = finish(crowd)
    assert [status for status, _ in audits] == [0, 0], audits
    assert all("violations: 0" in audit for _, audit in audits)
    sale.assert_sold_exactly(summary)


@MODES
def test_a_retry_gets_its_own_redemption_before_and_after_sold_out(
    product: Product, tmp_path: Path, durability: str
) -> None:
    sale = Sale(product, durability, tmp_path, stock=2)
    status, first = sale.claim("cus_1", key="order-1")
    assert (status, first["status"], first["discount_applied"]) == (200, "redeemed", 45.0)
    assert (first["seq"], first["remaining"]) == (1, 1)

    assert sale.claim("cus_1", key="order-1") == (200, first)
    status, other = sale.claim("cus_1", key="order-1", order_value=10.0)
    assert (status, other["code"]) == (422, "idempotency_mismatch")

    status, second = sale.claim("cus_2", key="order-2")
    assert (status, second["seq"], second["remaining"]) == (200, 2, 0)
    status, refused = sale.claim("cus_3", key="order-3")
    assert (status, refused["code"]) == (409, "sold_out")

    assert sale.claim("cus_1", key="order-1") == (200, first)
    assert sale.claim("cus_2", key="order-2") == (200, second)
    status, other = sale.claim("cus_2", key="order-2", order_value=10.0)
    assert (status, other["code"]) == (422, "idempotency_mismatch")

    product.wait_for_lag_0(sale.id, 30)
    product.must("POST", f"/v1/flash-sales/{sale.id}/close")
    assert sale.claim("cus_1", key="order-1") == (200, first)
    assert sale.rows()["rows"] == 2


@MODES
def test_both_doors_are_one_sale(product: Product, tmp_path: Path, durability: str) -> None:
    sale = Sale(product, durability, tmp_path, stock=2)
    body = {"customer_id": "cus_1", "order_value": 89.99}
    door = f"/v1/vouchers/{sale.code}/redeem"
    status, won = product.ask("POST", door, body, key="order-1")
    assert (status, won["seq"]) == (200, 1)
    assert sale.claim("cus_1", key="order-1") == (200, won)
    status, refused = product.ask("POST", door, body, key="order-2")
    assert (status, refused["code"]) == (409, "customer_limit_reached")
    assert refused["redemption_id"] == won["redemption_id"]


@MODES
def test_a_client_that_hung_up_asks_again_and_gets_its_redemption(
    product: Product, tmp_path: Path, durability: str
) -> None:
    sale = Sale(product, durability, tmp_path, stock=100)
    target = Target.of(product.url)
    for n in range(20):
        body = f'{{"customer_id":"cus_{n}","order_value":89.99}}'.encode()
        data = request(target, "POST", sale.path, product.token, body, f"order-{n}")
        with socket.create_connection(target) as connection:
            connection.sendall(data)
        # Hung up without reading: the claim may or may not have been applied.
    time.sleep(0.5)
    wins = [sale.claim(f"cus_{n}", key=f"order-{n}") for n in range(20)]
    assert [status for status, _ in wins] == [200] * 20
    assert len({win["redemption_id"] for _, win in wins}) == 20
    product.wait_for_lag_0(sale.id, 30)
    assert sale.rows()["rows"] == 20


@MODES
def test_a_closed_sale_gives_its_units_back_to_the_voucher(
    product: Product, tmp_path: Path, durability: str
) -> None:
    code = f"KEEPS{tmp_path.name}"
    code = "".join(letter for letter in code if letter.isalnum()) + durability
    product.must(
        "POST",
        "/v1/vouchers",
        {"code": code, "discount_type": "PERCENT", "discount_value": 50, "max_redemptions": 10},
    )
    sale = product.must(
        "POST",
        "/v1/flash-sales",
        {"name": "Part", "voucher": code, "stock": 6, "durability": durability},
    )
    product.must("POST", f"/v1/flash-sales/{sale['id']}/open")
    for n in range(4):
        status, _ = product.ask(
            "POST", f"/v1/flash-sales/{sale['id']}/claim", {"order_value": 10}, key=f"a-{n}"
        )
        assert status == 200
    product.must("POST", f"/v1/flash-sales/{sale['id']}/close")
    deadline_s = time.monotonic() + 20
    while product.must("GET", f"/v1/flash-sales/{sale['id']}")["status"] != "settled":
        assert time.monotonic() < deadline_s, "a closed sale has to settle"
        time.sleep(0.1)
    voucher = product.must("GET", f"/v1/vouchers/{code}")
    assert (voucher["redeemed_count"], voucher["remaining"]) == (4, 6)
    for n in range(7):
        status, answer = product.ask(
            "POST", f"/v1/vouchers/{code}/redeem", {"order_value": 10}, key=f"b-{n}"
        )
        assert status == (200 if n < 6 else 409), answer
    assert answer["code"] == "limit_reached"
    assert product.verify()[0] == 0
