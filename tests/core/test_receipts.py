"""A receipt brings a lost win back to its own number, once, and nothing else."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from core import receipts, releases, verify, worker
from core.errors import Invalid, NotFound, Refusal
from core.local import Servers
from core.receipts import Presented, Signer
from core.redemptions import Redemption
from core.settings import Settings
from tests.core.conftest import House
from tests.core.homes import claim_until_answered, house_on, kill, outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
async def own_valkey(data_dir: Path) -> AsyncIterator[Servers]:
    running = Servers(data_dir, postgres=False)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
async def home(settings: Settings, own_valkey: Servers) -> AsyncIterator[House]:
    async with house_on(settings, redis_url=own_valkey.redis_url or "") as opened:
        yield opened


def told(home: House, won: Any) -> Presented:
    """Return an answer as its client keeps it: JSON, read and written by somebody else."""
    signed = home.services.receipts.signed(won)
    return msgspec.json.decode(msgspec.json.encode(signed), type=Presented)


async def present(home: House, presented: Presented, key: str | None) -> Any:
    return await receipts.claim(
        home.services.database,
        home.doors.desk.leases,
        home.services.receipts,
        home.caller,
        presented,
        key,
    )


async def lost_sale(home: House, own_valkey: Servers, data_dir: Path) -> tuple[Any, list[Any]]:
    """Sell ten, lose the last five of them with Redis's folder, settle, and arm anew."""
    sale = await home.sale("LOSE", 20, per_customer_limit=1)
    await home.open_sale(sale)
    wins = [await claim_until_answered(home, sale, n) for n in range(5)]
    await home.until("select count(*) from vf.redemptions", 5)
    await home.stop_reconciler()
    wins += [await claim_until_answered(home, sale, n) for n in range(5, 10)]
    await kill(own_valkey, "valkey")
    shutil.rmtree(next(data_dir.rglob("appendonlydir")))
    own_valkey.start_one("valkey")
    home.restart_reconciler()
    await home.until("select burned from vf.leases", 5)
    await worker.look(home.clock)
    await home.until("select count(*) from vf.leases where state = 'open'", 1)
    return sale, wins


async def test_a_lost_win_comes_back_to_its_own_number_and_to_the_live_lease(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale, wins = await lost_sale(home, own_valkey, data_dir)
    kept = told(home, wins[7])
    back = await present(home, kept, "k7")
    assert isinstance(back, Redemption)
    assert back == wins[7]
    assert await present(home, kept, "k7") == back, "presented twice, it is the same"
    assert await home.value("select count(*) from vf.redemptions") == 6
    shown = await home.shown(sale)
    assert (shown.claimed, shown.written_off, shown.remaining) == (6, 4, 10)
    # Its key answers it again from the lease that is live now, and its customer has had a unit.
    assert await claim_until_answered(home, sale, 7) == wins[7]
    again = await home.claim(sale, "c7", key="another")
    assert outcome(again) == "customer_limit_reached"
    rest = [await claim_until_answered(home, sale, n) for n in range(10, 25)]
    assert [outcome(a) for a in rest] == ["won"] * 10 + ["sold_out"] * 5
    await home.until("select count(*) from vf.redemptions", 16)
    assert await verify.run(home.settings) == 0


async def test_a_customer_who_bought_again_since_cannot_have_both(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale, wins = await lost_sale(home, own_valkey, data_dir)
    bought = await claim_until_answered(home, sale, 6, key="new-6")
    assert outcome(bought) == "won"
    refused = await present(home, told(home, wins[6]), "k6")
    assert isinstance(refused, Refusal)
    assert refused.code == "customer_limit_reached"
    # A key that won something else since keeps that.
    assert outcome(await home.claim(sale, "c8", key="k8")) == "won"
    taken = await present(home, told(home, wins[8]), "k8")
    assert isinstance(taken, Refusal)
    assert taken.code == "receipt_void"
    await home.until("select count(*) from vf.redemptions", 7)
    assert await home.value("select sum(burned) from vf.leases") == 5
    assert await claim_until_answered(home, sale, 6, key="new-6") == bought


async def test_a_receipt_of_a_key_that_is_taken_in_the_ledger_is_withdrawn_from_the_lease(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale, wins = await lost_sale(home, own_valkey, data_dir)
    kept = told(home, wins[7])
    # Only the ledger knows of this one: the lease was loaded before.
    await home.owner.execute(
        "update vf.redemptions set idempotency_key = 'k7' where customer_id = 'c0'"
    )
    refused = await present(home, kept, "k7")
    assert isinstance(refused, Refusal)
    assert (refused.code, "redemption_id" in refused.extra) == ("receipt_void", True)
    # The customer may buy after all, and once only.
    assert outcome(await claim_until_answered(home, sale, 7, key="fresh")) == "won"
    assert outcome(await home.claim(sale, "c7", key="more")) == "customer_limit_reached"
    await home.until("select count(*) from vf.redemptions", 6)


async def release(home: House, sale: Any, *numbers: int) -> Any:
    asked = releases.Release(numbers=list(numbers))
    desk = home.doors.desk
    return await releases.release(desk.database, desk.leases, home.caller, sale, asked)


async def test_a_released_number_is_sold_once_more_and_its_receipt_is_void(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale, wins = await lost_sale(home, own_valkey, data_dir)
    async with home.services.database.transaction(home.project_id, reads_only=True) as conn:
        lost = await releases.page(conn, home.caller, sale, None, 100)
    assert [one.number for one in lost] == [6, 7, 8, 9, 10]
    # 5 is sold, 11 was returned, 21 is no number: all or none.
    refused = await release(home, sale, 7, 5, 11, 21)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.extra) == ("not_written_off", {"numbers": [5, 11, 21]})
    assert await home.value("select sum(burned) from vf.leases") == 5
    kept, also_kept = told(home, wins[6]), told(home, wins[8])
    assert isinstance(await present(home, also_kept, "k8"), Redemption)
    refused = await release(home, sale, 7, 9)
    assert isinstance(refused, Refusal), "a number whose receipt was presented is sold"

    assert (await release(home, sale, 7, 8)).released == [7, 8]
    assert (await release(home, sale, 8, 7, 7)).released == [7, 8], "asked again, it is the same"
    told_of = (
        "select array_agg(data ->> 'count') from vf.outbox where event = 'flash_sale.released'"
    )
    assert await home.value(told_of) == ["2"]

    void = await present(home, kept, "k6")
    assert isinstance(void, Refusal)
    assert void.code == "receipt_void"
    shown = await home.shown(sale)
    assert (shown.claimed, shown.written_off, shown.stock) == (6, 2, 20)
    # The two units are sold again, and not one more: 20 less the 2 that stay written off.
    rest = [await claim_until_answered(home, sale, n) for n in range(10, 30)]
    assert [outcome(a) for a in rest].count("won") == 12
    await home.until("select count(*) from vf.redemptions", 18)
    assert await verify.run(home.settings) == 0


async def test_no_hand_can_write_a_win_at_a_released_number(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    sale, _ = await lost_sale(home, own_valkey, data_dir)
    await release(home, sale, 7)
    with pytest.raises(asyncpg.ForeignKeyViolationError) as refused:
        await home.owner.execute(
            "INSERT INTO vf.redemptions SELECT (jsonb_populate_record(r, jsonb_build_object('seq', "
            "7, 'id', gen_random_uuid(), 'idempotency_key', 'late'))).* FROM vf.redemptions r "
            "WHERE r.seq = 1"
        )
    assert refused.value.constraint_name == "redemptions_released"
    assert await home.value("select count(*) from vf.redemptions") == 5


async def test_only_what_was_signed_here_is_believed(
    home: House, own_valkey: Servers, data_dir: Path
) -> None:
    _, wins = await lost_sale(home, own_valkey, data_dir)
    kept = told(home, wins[9])
    for change in (
        {"discount_applied": msgspec.Raw(b"89.99")},
        {"customer_id": "somebody"},
        {"seq": 8},
        {"receipt": "rcp_" + "0" * 32},
        {"receipt": "rcp_é" + "0" * 31},
        {"receipt": told(home, wins[8]).receipt},
        {"redemption_id": told(home, wins[8]).redemption_id},
    ):
        with pytest.raises(Invalid):
            await present(home, msgspec.structs.replace(kept, **change), "k9")
    stranger = Signer("another system's secret").signed(wins[9])
    with pytest.raises(Invalid):
        await present(home, msgspec.json.decode(msgspec.json.encode(stranger), type=Presented), "k")
    other = msgspec.structs.replace(home.caller, project_id=home.caller.key_id)
    with pytest.raises(NotFound):
        await receipts.claim(
            home.services.database,
            home.doors.desk.leases,
            home.services.receipts,
            other,
            kept,
            "k9",
        )
    assert await home.value("select count(*) from vf.redemptions") == 5


async def test_a_receipt_of_a_win_that_is_on_its_way_or_there_changes_nothing(
    home: House,
) -> None:
    sale = await home.sale("SAFE", 5)
    await home.open_sale(sale)
    first = await home.claim(sale, "a", key="a")
    await home.until("select count(*) from vf.redemptions", 1)
    assert await present(home, told(home, first), "a") == first
    await home.stop_reconciler()
    second = await home.claim(sale, "b", key="b")
    waiting = await present(home, told(home, second), "b")
    assert isinstance(waiting, Refusal)
    assert waiting.code == "not_settled_yet"
    direct = await home.voucher("DIRECT")
    assert direct is not None
    plain = await home.redeem("DIRECT", "p")
    assert home.services.receipts.signed(plain) == plain, "no lease, no receipt"
