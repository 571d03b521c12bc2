"""Every event reaches who is told of it at least once, is signed, and stops with the first 2xx."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook as Judge

from core import deliveries, events, ids, webhooks
from core.deliveries import Courier, Pace, Replay
from core.endings import end
from core.webhooks import NewWebhook, Rotation
from tests.api.conftest import free_port
from tests.conftest import SEED

pytestmark = pytest.mark.anyio

EVENTS = 2_000
# Hours of a schedule in a second.
QUICK = Pace(
    delays_s=(0.05, 0.1, 0.2, 0.4), give_up_after_s=2.0, failures_max=20, rest_s=0.1, rest_s_max=0.2
)


def opened(house: Any) -> Any:
    return msgspec.structs.replace(house.settings, webhook_allow="127.0.0.0/8")


async def add(house: Any, url: str, **members: Any) -> webhooks.Webhook:
    async with house.services.database.transaction(house.project_id) as conn:
        made = await webhooks.create(
            conn, house.caller, NewWebhook(url=url, **members), opened(house)
        )
    assert isinstance(made, webhooks.Webhook), made
    return made


async def happen(house: Any, count: int, type: str = "voucher.updated") -> None:
    await house.owner.execute(
        "insert into vf.outbox (project_id, event, subject, data) "
        "select $1, $2, gen_random_uuid(), jsonb_build_object('code', n) "
        "from generate_series(1, $3::int) n",
        house.project_id, type, count,
    )  # fmt: skip
    while await deliveries.publish(house.worker_db):
        pass


@asynccontextmanager
async def couriers(house: Any, count: int = 1, pace: Pace = QUICK) -> AsyncIterator[list[Courier]]:
    all_of_them = [Courier(house.worker_db, opened(house), pace=pace) for _ in range(count)]
    running = [asyncio.create_task(one.run()) for one in all_of_them]
    try:
        yield all_of_them
    finally:
        for task in running:
            await end(task)


class Listener:
    """A receiver in this process: remembers what it hears and answers as it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.hangs = False
        self.at_once = 0
        self.at_once_max = 0

    async def __aenter__(self) -> "Listener":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        rows = (line.partition(": ") for line in head.split("\r\n")[1:-2])
        headers = {name.lower(): value for name, _, value in rows}
        self.heard.append((headers, await reader.readexactly(int(headers["content-length"]))))
        if self.hangs:
            await reader.read()
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\nok".encode())
        self.at_once -= 1
        writer.close()


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_two_thousand_events_reach_a_receiver_that_fails_and_is_killed_twice(
    house: Any, data_dir: Path
) -> None:
    log = data_dir / "heard.log"
    port = free_port()
    made = await add(house, f"http://127.0.0.1:{port}/hook")
    assert made.secret is not None

    async def start(percent: int) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "tests.core.webhook_receiver", str(port), made.secret]
        process = await asyncio.create_subprocess_exec(
            *map(str, command), str(percent), str(SEED), str(log), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
        return process

    def heard() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()]

    receiver = await start(30)
    async with couriers(house, 2):
        await happen(house, EVENTS)
        for share in (0.25, 0.5):
            while len({one for one, status in heard() if status == "204"}) < EVENTS * share:
                await asyncio.sleep(0.02)
            receiver.kill()
            await receiver.wait()
            await asyncio.sleep(0.7)
            receiver = await start(30)
        pending = "select count(*) from vf.deliveries where status = 'pending'"
        await house.until(pending, 0, within_s=40)
        dead = await house.value("select count(*) from vf.deliveries where status = 'dead'")
        receiver.kill()
        await receiver.wait()
        receiver = await start(0)
        async with house.services.database.transaction(house.project_id) as conn:
            again = await deliveries.replay_all(conn, house.caller, made.id, Replay())
        assert again.replayed == dead
        await house.until(pending, 0, within_s=20)
    receiver.kill()
    await receiver.wait()
    told = await house.value("select count(*) from vf.deliveries where status = 'delivered'")
    statuses = Counter(status for _, status in heard())
    print(f"seed {SEED}: {dict(statuses)}, {dead} dead and replayed")
    assert told == EVENTS and set(statuses) <= {"204", "500"} and statuses["500"] > 100
    after = heard()
    first = {}
    repeated = []
    for place, (one, status) in enumerate(after):
        if one in first:
            repeated.append(one)
        elif status == "204":
            first[one] = place
    # What was answered as the receiver was killed may have been lost on the way, and only that.
    assert len(first) == EVENTS and len(repeated) <= 2 * 2 * deliveries.PER_WEBHOOK_MAX
    names = "select array_agg(id) from vf.events"
    assert set(first) == {ids.format_id("evt", one) for one in await house.value(names)}


async def test_what_is_sent_is_the_event_as_it_is_listed_signed_in_both_ways(house: Any) -> None:
    await house.voucher("SENT")
    async with Listener() as listener, couriers(house):
        made = await add(house, listener.url, events=["voucher.redeemed"])
        redeemed = await house.redeem("SENT", "anna", order_id="o-1")
        await happen(house, 3)
        await house.until("select count(*) from vf.deliveries where status = 'delivered'", 1)
    ((headers, body),) = listener.heard
    event = msgspec.json.decode(body)
    assert event["data"]["redemption_id"] == redeemed.redemption_id
    assert event["id"] == headers["webhook-id"] and headers["content-type"] == "application/json"
    assert made.secret is not None
    assert Judge(made.secret).verify(body, headers) == event
    stamp, plain = headers["vauchflow-signature"].split(",")
    expected = webhooks.headers([made.secret], "x", int(stamp.removeprefix("t=")), body)
    assert expected["VauchFlow-Signature"] == f"{stamp},{plain}"
    with pytest.raises(Exception, match="No matching signature"):
        Judge("whsec_" + "QUJD" * 8).verify(body, headers)
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        (listed,) = await deliveries.page(
            conn, house.caller, made.id, status=None, after=None, limit=9
        )
        seen = await deliveries.get(conn, house.caller, made.id, listed.id)
    assert seen.event is not None and seen.event.data["customer_id"] == "anna"
    (attempt,) = seen.log
    assert (attempt.number, attempt.status_code, attempt.error, attempt.response_body) == (
        1, 204, None, "ok",
    )  # fmt: skip
    assert 0 <= attempt.latency_ms < 5_000


async def test_both_secrets_sign_until_the_old_one_is_over(house: Any) -> None:
    async with Listener() as listener, couriers(house):
        old = await add(house, listener.url)
        signer = webhooks.Signer(house.settings.secret)
        async with house.services.database.transaction(house.project_id) as conn:
            new = await webhooks.rotate(
                conn, house.caller, old.id, Rotation(overlap_s=3600), signer
            )
        assert new.secret != old.secret and new.previous_secret_until is not None
        await happen(house, 1)
        done = "select count(*) from vf.deliveries where status = 'delivered'"
        await house.until(done, 1)
        await house.owner.execute("update vf.webhooks set previous_until = now()")
        await happen(house, 1)
        await house.until(done, 2)
    both, one = listener.heard
    for secret in (old.secret, new.secret):
        assert Judge(str(secret)).verify(both[1], both[0])
    assert Judge(str(new.secret)).verify(one[1], one[0])
    with pytest.raises(Exception, match="No matching signature"):
        Judge(str(old.secret)).verify(one[1], one[0])
    stored = str(await house.owner.fetch("select t::text from vf.webhooks t"))
    assert str(old.secret)[6:] not in stored and str(new.secret)[6:] not in stored


async def test_a_webhook_that_hangs_delays_no_other(house: Any) -> None:
    async with Listener() as slow, Listener() as quick, couriers(house):
        slow.hangs = True
        await add(house, slow.url, events=["voucher.updated"])
        mine = await add(house, quick.url, events=["voucher.*"])
        await happen(house, 300)
        done = "select count(*) from vf.deliveries where status = 'delivered' and webhook_id = $1"
        await house.until(done, 300, ids.parse_id("whk", mine.id), within_s=8)
        assert slow.at_once_max == deliveries.PER_WEBHOOK_MAX
        assert len(slow.heard) == deliveries.PER_WEBHOOK_MAX
        assert quick.at_once_max <= deliveries.PER_WEBHOOK_MAX


async def test_one_that_fails_is_left_alone_and_asked_by_one_request_at_a_time(house: Any) -> None:
    pace = Pace(delays_s=(0.01,), give_up_after_s=60, failures_max=3, rest_s=0.4, rest_s_max=0.4)
    async with Listener() as listener, couriers(house, pace=pace):
        listener.status = 503
        await add(house, listener.url)
        await happen(house, 50)
        await house.until("select failure_count >= 3 from vf.webhooks", True)
        await asyncio.sleep(0.1)
        before = len(listener.heard)
        listener.at_once_max = 0
        await asyncio.sleep(1.0)
        assert 1 <= len(listener.heard) - before <= 4 and listener.at_once_max <= 1
        listener.status = 200
        done = "select count(*) from vf.deliveries where status = 'delivered'"
        await house.until(done, 50, within_s=10)
        assert await house.value("select failure_count from vf.webhooks") == 0


async def test_one_that_is_gone_is_switched_off_and_nothing_more_is_sent(house: Any) -> None:
    async with Listener() as listener, couriers(house):
        listener.status = 410
        made = await add(house, listener.url)
        await happen(house, 1)
        await house.until("select status from vf.webhooks", "disabled")
        await happen(house, 5)
        await asyncio.sleep(0.5)
        assert len(listener.heard) == 1
        async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
            shown = await webhooks.get(conn, house.caller, made.id)
            dead = await deliveries.page(
                conn, house.caller, made.id, status="dead", after=None, limit=9
            )
    assert shown.disabled_reason == "it answered 410" and len(dead) == 1


async def test_who_dies_with_a_delivery_in_hand_leaves_it_to_the_next(house: Any) -> None:
    async with Listener() as listener:
        await add(house, listener.url)
        await happen(house, 3)
        listener.hangs = True
        async with couriers(house):
            while len(listener.heard) < 3:
                await asyncio.sleep(0.02)
        listener.hangs = False
        async with couriers(house):
            await asyncio.sleep(0.5)
            assert len(listener.heard) == 3, "taken, and nobody knows that they died"
            await house.owner.execute("update vf.deliveries set due_at = now()")
            await house.until("select count(*) from vf.deliveries where status = 'delivered'", 3)


async def test_an_example_goes_to_one_or_to_those_who_are_told_of_its_type(house: Any) -> None:
    async with Listener() as one, Listener() as other, couriers(house):
        first = await add(house, one.url, events=["campaign.*"])
        await add(house, other.url, events=["voucher.redeemed"])
        async with house.services.database.transaction(house.project_id) as conn:
            await webhooks.try_out(conn, house.caller, webhooks.Test())
            await webhooks.try_out(conn, house.caller, webhooks.Test(type="gift_card.issued"),
                                   first.id)  # fmt: skip
        await deliveries.publish(house.worker_db)
        await house.until("select count(*) from vf.deliveries where status = 'delivered'", 2)
    sent = [[msgspec.json.decode(body) for _, body in x.heard] for x in (one, other)]
    assert [(e["type"], e["is_test"]) for e in sent[0]] == [("gift_card.issued", True)]
    assert [(e["type"], e["data"]["code"]) for e in sent[1]] == [("voucher.redeemed", "EXAMPLE")]


def test_the_schedule_is_the_one_that_is_promised() -> None:
    pace = Pace()
    waits = [pace.delay_s(tries) for tries in range(1, 11)]
    hours = (1 / 12, 0.5, 2, 5, 10, 12, 12, 12, 12, 12)
    for waited, wanted in zip(waits, hours, strict=True):
        assert abs(waited / 3600 / wanted - 1) <= 0.1001
    assert pace.give_up_after_s == 72 * 3600
    assert len({round(pace.delay_s(1), 6) for _ in range(20)}) > 1, "there is jitter"
    assert events.KEEP_DAYS * 24 > 72
