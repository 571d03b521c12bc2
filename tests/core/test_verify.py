"""Clean books pass `verify`; every way of cooking them is named.

Each fraud is planted by hand, as a superuser, with the constraint that forbids it dropped first:
so the checks are shown to see it, and the constraints are shown to stand in its way.
"""

import asyncio
import json
import random
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core import ids, verify
from core.hot import keys, leases
from core.settings import Settings
from tests.core import books as named
from tests.core.books import DIRECT, FLASH, PROJECT, Books

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fraud stays where it is: looking again for five seconds only makes the tests slow.
    monkeypatch.setattr("core.verify_redis.PATIENCE_S", 0.1)
    monkeypatch.setattr("core.verify.DRAIN_S_MAX", 0.1)


async def test_a_budget_that_is_what_was_taken_is_clean(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await books.owner.execute(
        "insert into vf.budgets values ('{PROJECT}', '{CAMPAIGN}', 'discount', '', '', 4500, 5000);"
        "{TAKEN}".format(TAKEN=TAKEN.format(**vars(named)), **vars(named))
    )
    assert (await judged(settings, capsys))[:2] == (0, set())


async def test_clean_books_of_a_selling_shop_pass_with_their_figures(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await verify.run(settings, None) == 0
    out = capsys.readouterr().out
    assert "I1  ok" in out and "17 live of 17 redemptions" in out
    assert "I6  ok     numbers are unique, and every hole is accounted for: 1 burned" in out
    assert "stock 30, claimed 7, settled 5, lag 2" in out
    assert "stock 4, claimed 3, settled 3, lag 0" in out
    assert "quarantine: 0" in out
    assert out.endswith("violations: 0\n")
    assert "FAILED" not in out and "not checked" not in out


async def judged(
    settings: Settings, capsys: pytest.CaptureFixture[str], history: Path | None = None
) -> tuple[int, set[str], str]:
    """Return the exit status, the invariants that failed, and everything that was printed."""
    capsys.readouterr()
    status = await verify.run(settings, history)
    out = capsys.readouterr().out
    return status, {line.split()[0] for line in out.splitlines() if " FAILED" in line}, out


# The campaign's redemptions took their discounts, 4,500 in all, of its budget.
TAKEN = (
    "update vf.redemptions set detail = jsonb_build_object('takings', jsonb_build_array("
    "jsonb_build_object('scope_id', campaign_id, 'label', 'discount', 'subject', '',"
    " 'period', '', 'used', discount_minor))) where lease_id = '{DIRECT}'"
)

THREE_ENTRIES = (
    "insert into vf.audit_log (project_id, id, actor, action, target) "
    "select '{PROJECT}', gen_random_uuid(), 'key', 'changed', 't' from generate_series(1, 3);"
)

# What is done to the books, which invariants say so, and the sentence that names it.
FRAUDS: dict[str, tuple[str, set[str], str]] = {
    "an entry of the audit log that says something else now": (
        THREE_ENTRIES + "update vf.audit_log set actor = 'somebody else' where number = 2",
        {"I14"},
        "an entry of the audit log is as it was written",
    ),
    "an entry that was taken out of the audit log": (
        THREE_ENTRIES + "delete from vf.audit_log where number = 2",
        {"I14"},
        "the audit log has no gap",
    ),
    "an audit log whose end was cut off": (
        THREE_ENTRIES + "delete from vf.audit_log where number = 3",
        {"I14"},
        "the audit log ends where it ended",
    ),
    "a row under another project's lease": (
        "alter table vf.quarantine drop constraint quarantine_lease;"
        "insert into vf.quarantine (project_id, lease_id, seq, reason, entry)"
        " values ('{ACCOUNT}', '{settled}', 1, 'planted', '{{}}')",
        {"I12"},
        "a row's parent is its own project's: quarantine ",
    ),
    "a table without its wall": (
        "alter table vf.outbox no force row level security",
        {"I12"},
        "vf.outbox: row-level security is not enabled and forced",
    ),
    "a direct redemption counted twice": (
        "update vf.vouchers set direct_count = direct_count + 1 where id = '{DIRECT}'",
        {"I1"},
        "a voucher's direct_count is its live direct redemptions: vch_",
    ),
    "a committed redemption lost": (
        "delete from vf.redemptions where lease_id = '{DIRECT}' and seq = 3",
        {"I1", "I5"},
        "should be 4, is 5",
    ),
    "a redemption lost after it was shown in the figures": (
        "select vf.publish_events(1000, 20000); select vf.begin_figures();"
        "delete from vf.redemptions where lease_id = '{DIRECT}' and seq = 3",
        {"I1", "I5", "I13"},
        "redemptions_total of prj_",
    ),
    "a voucher redeemed beyond its limit": (
        "alter table vf.vouchers drop constraint vouchers_never_over;"
        "update vf.vouchers set max_redemptions = 4 where id = '{DIRECT}'",
        {"I1"},
        "a voucher redeems at most max_redemptions",
    ),
    "units vanished from a voucher": (
        "update vf.vouchers set leased_count = leased_count - 1 where id = '{FLASH}'",
        {"I1"},
        "a voucher's leased_count is what its leases hold",
    ),
    "a strict sale's count is off": (
        "update vf.flash_sales set sold_count = 2 where id = '{STRICT_SALE}'",
        {"I1", "I13"},
        "a sale's sold_count is its live direct redemptions",
    ),
    "units vanished from a sale": (
        "update vf.flash_sales set leased_count = 1 where id = '{SALE}'",
        {"I1", "I13"},
        "a sale's leased_count is what its leases hold",
    ),
    "a sale sold more than its stock": (
        "alter table vf.flash_sales drop constraint flash_sales_never_over;"
        "update vf.flash_sales set stock = 2 where id = '{STRICT_SALE}'",
        {"I1"},
        "a sale sells at most its stock",
    ),
    "a sale forgot what was burned": (
        "update vf.flash_sales set burned_count = 0 where id = '{SALE}'",
        {"I1", "I13"},
        "a sale's burned_count is what its leases burned",
    ),
    "a campaign's count is off": (
        "update vf.campaigns set direct_count = 6",
        {"I1"},
        "a campaign's direct_count is its live direct redemptions",
    ),
    "a campaign holds units of no lease": (
        "update vf.campaigns set leased_count = 1",
        {"I1"},
        "a campaign's leased_count is what its leases hold",
    ),
    "a hold that nobody counted": (
        "insert into vf.holds (project_id, id, voucher_id, discount_minor, detail, expires_at)"
        " values ('{PROJECT}', gen_random_uuid(), '{STRICT}', 0, '{{}}', now() + '1 h'::interval)",
        {"I1"},
        "a voucher's held_count is its live holds: vch_",
    ),
    "a campaign that holds for nobody": (
        "update vf.campaigns set held_count = 1",
        {"I1"},
        "a campaign's held_count is its live holds: cmp_",
    ),
    "a budget that forgot what was taken": (
        "insert into vf.budgets values ('{PROJECT}', '{CAMPAIGN}', 'discount', '', '', 4000, 5000);"
        + TAKEN,
        {"I1"},
        "a budget is what its live redemptions took: cmp_",
    ),
    "a budget beyond its cap": (
        "alter table vf.budgets drop constraint budgets_never_over;"
        "insert into vf.budgets values ('{PROJECT}', '{CAMPAIGN}', 'discount', '', '', 4500, 4000);"
        + TAKEN,
        {"I1"},
        "a budget is never exceeded: cmp_",
    ),
    "a campaign redeemed beyond its limit": (
        "alter table vf.campaigns drop constraint campaigns_never_over;"
        "update vf.campaigns set max_redemptions = 4",
        {"I1"},
        "a campaign redeems at most max_redemptions",
    ),
    "a lease grew without a grant": (
        "update vf.leases set size = size + 5, open_to = open_to + 5 where id = '{open}'",
        {"I1", "I13"},
        "a lease's size is its largest grant",
    ),
    "a lease with more rows than units": (
        "update vf.leases set size = 3, open_to = 3 where id = '{open}'",
        {"I1", "I10", "I13"},
        "a lease has at most size redemptions",
    ),
    "a number above its grant": (
        "alter table vf.redemptions drop constraint redemptions_within_grant;"
        "update vf.redemptions set seq = 900 where lease_id = '{open}' and seq = 5",
        {"I1", "I6", "I10"},
        "no number is above its grant",
    ),
    "a number written after the lease was closed": (
        "update vf.redemptions set seq = 6 where lease_id = '{settled}' and seq = 4",
        {"I1"},
        "a lease's numbers end at open_to",
    ),
    "a unit that was released without its number": (
        "update vf.leases set burned = burned - 1, released = released + 1 where id = '{settled}'",
        {"I1", "I6"},
        "a released unit has its number",
    ),
    "a redemption of no lease": (
        "alter table vf.redemptions disable trigger redemptions_stay;"
        "update vf.redemptions set lease_id = gen_random_uuid()"
        " where lease_id = '{settled}' and seq = 1",
        {"I1", "I6", "I9"},
        "a redemption's lease is in the books",
    ),
    "one key with two redemptions": (
        "alter table vf.redemptions drop constraint redemptions_key;"
        "update vf.redemptions set idempotency_key = 'twice' where lease_id = '{STRICT}'",
        {"I3"},
        "an idempotency key has one redemption: vch_",
    ),
    "one redemption id on two rows": (
        "drop index vf.redemptions_id;"
        "update vf.redemptions set id = '{SALE}' where lease_id = '{STRICT}'",
        {"I3"},
        "a redemption id has one row: rdm_",
    ),
    "a customer beyond the limit": (
        "update vf.redemptions set customer_id = 'greedy' where lease_id = '{settled}'",
        {"I5"},
        "a customer has at most per_customer_limit: vch_",
    ),
    "a customer beyond a campaign's limit": (
        "update vf.redemptions set customer_id = 'greedy' where lease_id = '{DIRECT}'",
        {"I5"},
        "a customer has at most per_customer_limit: cmp_",
    ),
    "a customer who was forgiven": (
        "update vf.customer_counts set live_count = 0 where customer_id like '%-2'",
        {"I5"},
        "customer_counts is the customer's settled redemptions",
    ),
    "a number given out twice": (
        "alter table vf.redemptions drop constraint redemptions_pkey;"
        "update vf.redemptions set seq = 1 where lease_id = '{DIRECT}' and seq = 2",
        {"I6"},
        "a number is given out once: lease",
    ),
    "a sale-wide number answered twice": (
        "update vf.redemptions set sale_seq = 1 where sale_id = '{SALE}' and sale_seq = 2",
        {"I6"},
        "a sale-wide number is given out once: fls_",
    ),
    "a voucher's numbers set back": (
        "update vf.vouchers set next_number = 2 where id = '{DIRECT}'",
        {"I6"},
        "direct numbers are below next_number",
    ),
    "a settled row of an open lease lost": (
        "delete from vf.redemptions where lease_id = '{open}' and seq = 3",
        {"I6", "I9", "I13"},
        "up to accounted every number is a row, a repeated key or quarantined",
    ),
    "burned units nobody counted": (
        "update vf.leases set burned = 0 where id = '{settled}'",
        {"I1", "I6"},
        "a settled lease's holes are burned",
    ),
    "units returned twice": (
        "update vf.leases set returned = returned + 1 where id = '{settled}'",
        {"I6"},
        "a settled lease returned what is above open_to",
    ),
    "accounted set back": (
        "update vf.lease_progress set accounted = 4 where lease_id = '{open}'",
        {"I6", "I10"},
        "no row is above accounted",
    ),
    "a lease without progress": (
        "delete from vf.lease_progress where lease_id = '{settled}'",
        {"I9"},
        "a lease's progress is kept",
    ),
    "a win read and gone": (
        "alter table vf.lease_progress drop constraint lease_progress_sum;"
        "update vf.lease_progress set read_count = read_count + 1",
        {"I9"},
        "read is inserted + replayed + same_key + quarantined",
    ),
    "a row that came past the reconciler": (
        "update vf.lease_progress set inserted_count = 3, read_count = 3 where lease_id = '{open}'",
        {"I9", "I13"},
        "inserted is the lease's rows",
    ),
    "a win that was refused, and nobody looked why": (
        "insert into vf.quarantine (project_id, lease_id, seq, reason, entry)"
        " values ('{PROJECT}', '{open}', 3, 'conflict', '{{}}');"
        "update vf.lease_progress set quarantined_count = 1, read_count = read_count + 1"
        " where lease_id = '{open}'",
        {"I9"},
        "nothing is in quarantine that a fence does not explain: lease",
    ),
    "a quarantine swept under the rug": (
        "update vf.lease_progress set quarantined_count = 1, inserted_count = inserted_count - 1"
        " where lease_id = '{settled}'",
        {"I9"},
        "quarantined is the lease's quarantine",
    ),
    "an offset beyond the stream": (
        "update vf.lease_progress set last_id = '99999999999999-0' where lease_id = '{open}'",
        {"I10"},
        "the offset 99999999999999-0 is behind the stream's end",
    ),
}


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_fraud_in_the_ledger_is_named(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], fraud: str
) -> None:
    statements, invariants, sentence = FRAUDS[fraud]
    await books.owner.execute(
        statements.format(**vars(named), settled=books.settled, open=books.open)
    )
    status, failed, out = await judged(settings, capsys)
    assert (status, failed) == (1, invariants), out
    assert sentence in out
    assert "violations: 0" not in out


REDIS_FRAUDS: dict[str, tuple[list[tuple[Any, ...]], set[str], str]] = {
    "numbers set back": (
        [("HSET", "{s}", "issued", "3")],
        {"I10"},
        "accounted 5 is above Redis's issued 3",
    ),
    "told of commits that never were": (
        [("HSET", "{s}", "accounted", "6")],
        {"I10"},
        "Redis was told accounted 6, PostgreSQL has 5",
    ),
    "more units than were granted": (
        [("HSET", "{s}", "size", "1000")],
        {"I10"},
        "Redis has size 1,000, PostgreSQL granted 25",
    ),
    "more numbers than units": (
        [("HSET", "{s}", "size", "6")],
        {"I10"},
        "Redis issued 7 of a size of 6",
    ),
    "trimmed before it was settled": (
        [("XTRIM", "{x}", "MAXLEN", "=", "0")],
        {"I10"},
        "2 wins above accounted 5 are not in the stream",
    ),
    "an unread entry lost": (
        [("HINCRBY", "{s}", "issued", "1"), ("DEL", "{x}"), ("XADD", "{x}", "*", "f", "8")],
        {"I10"},
        "the stream goes on with seq 8, accounted is 5",
    ),
    "everything lost": (
        [("DEL", "{s}", "{k}", "{c}", "{x}")],
        {"I10"},
        "Redis does not have it",
    ),
    "idempotency records lost": ([("DEL", "{k}")], {"I3"}, "in the ledger and nothing in Redis"),
    "customers forgotten": ([("DEL", "{c}")], {"I5"}, "has won and Redis counts 0 of 1"),
}


@pytest.mark.parametrize("fraud", REDIS_FRAUDS)
async def test_a_redis_that_disagrees_is_named(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], fraud: str
) -> None:
    commands, invariants, sentence = REDIS_FRAUDS[fraud]
    names = dict(zip("skcx", keys.of_lease(str(books.open)), strict=True))
    for command in commands:
        await books.valkey.execute_command(*[part.format(**names) for part in command])
    status, failed, out = await judged(settings, capsys)
    assert (status, failed) == (1, invariants), out
    assert sentence in out


async def test_a_win_the_reconciler_dropped_is_a_hole_nothing_accounts_for(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await books.settle(books.open, drop_seq=6)
    status, failed, out = await judged(settings, capsys)
    assert (status, failed) == (1, {"I6"}), out
    assert "should be 0, is 1" in out


async def test_offenders_are_shown_up_to_a_bound_and_counted_in_full(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await books.owner.execute(
        "insert into vf.customer_counts select project_id, scope_id, 'ghost-' || n, 1, 2,"
        f" last_redemption_id from (select * from vf.customer_counts where scope_id = '{DIRECT}'"
        " limit 1) k, generate_series(1, 250) n"
    )
    status, failed, out = await judged(settings, capsys)
    assert (status, failed) == (1, {"I5"})
    assert out.count("ghost-") == verify.ROWS_MAX
    assert "violations: 250" in out


async def test_another_project_is_left_out_when_one_is_named(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await books.owner.execute(f"update vf.vouchers set direct_count = 9 where id = '{DIRECT}'")
    assert await verify.run(settings, None, project=uuid.uuid4()) == 0
    assert "0 vouchers" in capsys.readouterr().out
    assert await verify.run(settings, None, project=PROJECT) == 1


async def calls_of(books: Books, voucher: uuid.UUID, code: str) -> list[dict[str, Any]]:
    """Make the history that honest clients of this voucher would have written."""
    rows = await books.owner.fetch(
        "select *, coalesce(sale_seq, seq) as told from vf.redemptions where voucher_id = $1"
        " order by told",
        voucher,
    )
    return [
        {
            "call": float(n),
            "ret": n + 0.5,
            "out": "ok",
            "key": row["idempotency_key"],
            "customer": row["customer_id"],
            "code": code,
            "rid": ids.format_id("rdm", row["id"]),
            "seq": row["told"],
            "discount": f"{row['discount_minor'] / 100:.2f}",
        }
        for n, row in enumerate(rows)
    ]


def written(path: Path, calls: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(call) for call in calls))
    return path


async def test_an_honest_history_passes_and_each_lie_is_named(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await books.settle(books.open)
    file = tmp_path / "history.jsonl"
    direct = await calls_of(books, DIRECT, "a")
    flash = await calls_of(books, FLASH, "F")
    status, failed, out = await judged(settings, capsys, written(file, direct + flash))
    assert (status, failed) == (0, set()), out
    assert "I2  ok     every answered win is in the ledger, as answered: 16 answered wins" in out
    assert "I4  ok" in out and "I7  ok" in out and "I8  ok" in out

    lost = {
        **flash[0],
        "call": 50.0,
        "ret": 51.0,
        "key": "k",
        "rid": ids.format_id("rdm", ids.new()),
        "seq": 99,
    }
    early = {**flash[0], "key": "e", "rid": None, "seq": None, "out": "sold_out", "ret": 7.2}
    for lie, invariant, sentence in (
        ([*flash, lost], "I2", "missing"),
        ([{**flash[0], "discount": 45.01}, *flash[1:]], "I2", "as answered"),
        ([*flash, {**flash[0], "seq": 2}], "I3", "a replay is the first answer"),
        (flash[1:], "I4", "unheard"),
        ([{**flash[0], "out": "refused"}, *flash[1:]], "I4", "was refused"),
        ([{**flash[0], "call": 8.0, "ret": 8.1}, *flash[1:]], "I7", "lower number"),
        ([*flash, early], "I8", "heard it when at most 8 of 29 could be"),
    ):
        status, failed, out = await judged(settings, capsys, written(file, lie))
        assert (status, failed) == (1, {invariant}), out
        assert sentence in out


async def test_an_answered_win_whose_number_was_burned_is_named_and_no_other_is_excused(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await books.settle(books.open)
    file = tmp_path / "history.jsonl"
    flash = await calls_of(books, FLASH, "F")
    tag = await books.owner.fetchval("select tag from vf.leases where id = $1", books.settled)

    def win(seq: int) -> dict[str, Any]:
        rid = ids.format_id("rdm", ids.win_id(tag, books.settled, seq))
        return {**flash[4], "key": f"lost-{seq}", "rid": rid, "seq": seq, "customer": None}

    status, failed, out = await judged(settings, capsys, written(file, [*flash, win(5)]))
    assert (status, failed) == (0, set()), out
    named = f"written off: {win(5)['rid']} was answered as number 5 of lease {books.settled}"
    assert out.count("written off") == 1 and named in out
    # Number 4 is another's in the ledger, number 6 was returned: neither unit is set aside.
    for seq in (4, 6):
        rid = ids.win_id(tag, books.settled, seq)
        lie = {**win(seq), "rid": ids.format_id("rdm", rid)}
        status, failed, out = await judged(settings, capsys, written(file, [*flash, lie]))
        assert status == 1 and "I2" in failed and "written off" not in out, out


async def test_a_history_that_cannot_be_held_against_anything_is_not_called_clean(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "history.jsonl"
    unknown = {"call": 1.0, "out": "unknown", "code": "NOBODY", "key": "k"}
    status, _, out = await judged(settings, capsys, written(file, [unknown]))
    assert (status, "the history's code 'NOBODY': there is none" in out) == (2, True)
    status, _, out = await judged(settings, capsys, written(file, [unknown, {"call": 1}]))
    assert (status, f"{file}:2: " in out) == (2, True)


async def test_a_redis_that_is_away_is_not_called_clean(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    away = msgspec.structs.replace(settings, redis_url=f"unix://{data_dir}/nobody.sock")
    status, failed, out = await judged(away, capsys)
    assert (status, failed) == (2, set())
    assert "not checked: 1 live lease in Redis" in out


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_selling_settling_and_trimmed_sale_never_raises_a_false_alarm(
    books: Books, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await books.owner.execute(
        "update vf.flash_sales set stock = 1000000 where durability = 'fast';"
        f"update vf.vouchers set max_redemptions = 1000000 where id = '{FLASH}'"
    )
    assert (
        await books.owner.fetchval("select vf.grow_lease($1, $2, 25)", PROJECT, books.open)
        == 999_995
    )
    await leases.grow(books.valkey, str(books.open), 999_995)
    ended = asyncio.Event()

    async def sell() -> None:
        while not ended.is_set():
            await books.claim(books.open, random.randint(1, 40))
            await asyncio.sleep(0.002)

    async def reconcile() -> None:
        while not ended.is_set():
            await books.settle(books.open)
            row = await books.owner.fetchrow(
                "select last_id, accounted from vf.lease_progress where lease_id = $1", books.open
            )
            await leases.raise_accounted(books.valkey, str(books.open), row["accounted"])
            await leases.trim(books.valkey, str(books.open), row["last_id"])

    async with asyncio.TaskGroup() as group:
        group.create_task(sell())
        group.create_task(reconcile())
        lags = []
        try:
            for _ in range(8):
                status, failed, out = await judged(settings, capsys)
                assert (status, failed) == (0, set()), out
                lags.append(out[out.index("claimed") :].split(";")[0])
        finally:
            ended.set()
    assert len(set(lags)) > 1, "the sale stood still"
