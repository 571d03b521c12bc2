"""Prove the books: the ledger against its own counters, against Redis, and against the clients.

PostgreSQL is read in one REPEATABLE READ READ ONLY snapshot, so what it says about itself is exact
on a system that is selling. Redis is read after it, in a few atomic read-only calls a live lease,
and may be ahead; what seems wrong there is looked at again before it counts. Nothing is locked or
written: safe in production.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
from redis.exceptions import RedisError

from core import analytics, db, ids, overviews, verify_history, verify_redis
from core.db import audit
from core.errors import Unavailable
from core.hot.nodes import connect
from core.rules import codes, money
from core.settings import Settings

# Offending rows shown of each kind: enough to see a pattern, few enough to read.
ROWS_MAX: Final = 20
# The slowest statement needs 5 to 15 s a million redemptions; beyond 20 million a standby should be
# asked. It bounds how long the snapshot holds vacuum back.
STATEMENT_TIMEOUT_MS: Final = 300_000
# Half a million keys are grouped in memory with it, where the default of 4 MB spills; one statement
# runs at a time, so a busy server hardly feels it.
WORK_MEM: Final = "64MB"
# Answered wins reach the ledger in milliseconds; a history is judged after the lag is 0, or after
# this long, which covers a reconciler that is being restarted (10 s) twice.
DRAIN_S_MAX: Final = 30.0
DRAIN_POLL_S: Final = 0.25
# Rows of a voucher fetched at once: a page is about 4 MB.
PAGE_MAX: Final = 20_000

# Projects whose figures are held against the ledger, the busiest first: a millisecond each.
PROJECTS_MAX: Final = 500

CLEAN, BROKEN, UNKNOWN = 0, 1, 2

INVARIANTS: Final = {
    "I1": "nothing gave out more than it has, and every counter is its rows",
    "I2": "every answered win is in the ledger, as answered",
    "I3": "one redemption a key, replayed identically",
    "I4": "nothing is in the ledger that was not tried",
    "I5": "no customer has more than the limit",
    "I6": "numbers are unique, and every hole is accounted for",
    "I7": "who is answered first has the lower number",
    "I8": "sold out is said only when every unit can be gone",
    "I9": "read = inserted + replayed + same key + quarantined",
    "I10": "Redis and the ledger agree how far a sale is",
    "I11": "gift cards are the sums of their entries, referrals reward each side once",
    "I12": "no row is another project's, and the wall between projects stands",
    "I13": "the figures shown are the ledger's",
    "I14": "the audit logs are whole: no entry was changed or taken out",
}


class Totals(msgspec.Struct, frozen=True):
    """How much there is to check."""

    vouchers: int
    campaigns: int
    sales: int
    leases: int
    redemptions: int
    live: int
    customers: int
    gift_cards: int
    gift_card_transactions: int
    rewards: int
    audit_entries: int
    quarantined: int
    burned: int
    read_count: int
    replayed_count: int
    same_key_count: int


class Offender(msgspec.Struct, frozen=True):
    """One row that breaks an invariant; `offenders` counts all that break it the same way."""

    invariant: str
    what: str
    project_id: UUID
    prefix: str
    subject: UUID
    detail: str | None
    expected: int
    found: int
    offenders: int


class LiveOfProject(msgspec.Struct, frozen=True):
    """A project's live redemptions, those of them that its sales won, and what they took off."""

    project_id: UUID
    live_count: int
    sale_count: int
    discount_minor: int


class VouchersOfProject(msgspec.Struct, frozen=True):
    """A project's vouchers: in their time, disabled, and those whose own time is over."""

    project_id: UUID
    active_count: int
    disabled_count: int
    expired_count: int


class Quarantined(msgspec.Struct, frozen=True):
    """Wins the ledger refused for one reason."""

    lease_id: UUID
    reason: str
    entries: int
    seq_min: int
    seq_max: int


class StrictSale(msgspec.Struct, frozen=True):
    """A live strict sale: what is claimed is settled."""

    project_id: UUID
    id: UUID
    name: str
    status: str
    stock: int
    sold_count: int


class NamedVoucher(msgspec.Struct, frozen=True):
    """The voucher a history's code stands for."""

    project_id: UUID
    id: UUID
    code_norm: str
    currency: str
    burned: int
    units: int | None


class LedgerRow(msgspec.Struct, frozen=True):
    """One redemption, for the comparison with a history."""

    id: UUID
    idempotency_key: str
    customer_id: str | None
    seq: int
    discount_minor: int
    status: str


class LeaseOfVoucher(msgspec.Struct, frozen=True):
    """A lease of a voucher and what the ids of its wins begin with."""

    id: UUID
    tag: int


class BurnedNumber(msgspec.Struct, frozen=True):
    """A number of a settled lease that has no row."""

    lease_id: UUID
    seq: int


class WrittenOff(msgspec.Struct, frozen=True):
    """An answered win that Redis lost: not in the ledger, and its unit is never sold again."""

    redemption_id: UUID
    lease_id: UUID
    seq: int


class Report:
    """Findings by invariant, and the lines that come of them."""

    def __init__(self) -> None:
        """Begin with nothing checked."""
        self.figures: dict[str, str] = {}
        self.findings: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()
        self.unchecked: list[str] = []
        self.notes: list[str] = []
        self.written_off: list[WrittenOff] = []

    def checked(self, invariant: str, figures: str) -> None:
        """Say that an invariant was looked at, and over how much."""
        self.figures[invariant] = figures
        self.findings.setdefault(invariant, [])

    def add(self, invariant: str, line: str) -> None:
        """Count one finding; keep the first of them to show."""
        self.findings.setdefault(invariant, []).append(line)
        self.counts[invariant] += 1

    @property
    def count(self) -> int:
        """Return how much is wrong in all."""
        return self.counts.total()

    def add_offenders(self, offenders: Iterable[Offender]) -> None:
        """Count what a statement found, with the rows it did not return."""
        kinds: dict[tuple[str, str], int] = {}
        for row in offenders:
            kinds[row.invariant, row.what] = kinds.get((row.invariant, row.what), 0) + 1
            detail = f" {row.detail}" if row.detail else ""
            self.add(
                row.invariant,
                f"{row.what}: {_name(row.prefix, row.subject)}{detail} should be {row.expected:,}, "
                f"is {row.found:,} (project {ids.format_id('prj', row.project_id)})",
            )
            if kinds[row.invariant, row.what] == 1:
                self.counts[row.invariant] += max(0, row.offenders - ROWS_MAX)
                if row.offenders > ROWS_MAX:
                    self.findings[row.invariant].append(
                        f"{row.what}: {row.offenders:,} rows, the first {ROWS_MAX} are shown"
                    )

    def lines(self) -> list[str]:
        """Return what is printed: a line an invariant, its offenders below it, then the sum."""
        out = []
        for name, sentence in INVARIANTS.items():
            if name not in self.findings:
                continue
            found = self.findings[name]
            verdict = "FAILED" if found else "ok"
            out.append(
                f"{name:<4}{verdict:<7}{sentence}: {self.figures.get(name, '')}".rstrip(": ")
            )
            out += [f"      {line}" for line in found[: 2 * ROWS_MAX]]
            if len(found) > 2 * ROWS_MAX:
                out.append(f"      … and {len(found) - 2 * ROWS_MAX:,} more")
        out += self.notes
        out += [
            f"written off: {ids.format_id('rdm', lost.redemption_id)} was answered as number "
            f"{lost.seq:,} of lease {lost.lease_id}, which lost it; its unit is burned"
            for lost in self.written_off
        ]
        out += [f"not checked: {line}" for line in self.unchecked]
        out.append(f"violations: {self.count}")
        return out

    @property
    def status(self) -> int:
        """Return the exit status: 0 clean, 1 broken, 2 clean as far as it could be checked."""
        if self.count:
            return BROKEN
        return UNKNOWN if self.unchecked else CLEAN


async def run(
    settings: Settings, history: Path | None = None, *, project: UUID | None = None
) -> int:
    """Check every invariant, print each with its figures, and return the exit status.

    0: the books balance. 1: they do not, and the offending rows are printed. 2: something needed
    could not be asked (PostgreSQL or Redis away, an unreadable history).
    """
    report = await examine(settings, history, project=project)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return report.status


async def examine(
    settings: Settings,
    history: Path | None = None,
    *,
    project: UUID | None = None,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> Report:
    """Check every invariant. `project` bounds it to one project.

    Never raises for what cannot be asked: the report names it. Cost: a few scans of the ledger, on
    two cores 10 to 20 s a million rows.
    """
    report = Report()
    try:
        calls = verify_history.read(history) if history else {}
        pool = await db.Database.open(
            settings.database_dsn("worker"),
            size_max=2,
            statement_cache_size=db.STATEMENT_CACHE_SIZE if settings.prepared_statements else 0,
            command_timeout_s=statement_timeout_ms / 1000 + db.CLIENT_GRACE_S,
            application_name="vauchflow verify",
        )
    except (Unavailable, verify_history.HistoryFault) as fault:
        report.unchecked.append(str(fault))
        return report
    try:
        if calls:
            # First, so that the snapshot below holds all the history speaks of.
            await _check_history(pool, calls, project, report)
        leases = await _check_ledger(pool, project, report, statement_timeout_ms)
        await _check_redis(settings, pool, leases, project, report)
    except Unavailable as fault:
        report.unchecked.append(f"the ledger: {fault.detail}")
    finally:
        await pool.close()
    return report


async def _check_ledger(
    pool: db.Database, project: UUID | None, report: Report, statement_timeout_ms: int
) -> list[verify_redis.LiveLease]:
    """Check what PostgreSQL alone knows, on one snapshot, and return the leases that are out."""
    async with pool.transaction(
        None,
        reads_only=True,
        isolation="repeatable read",
        statement_timeout_ms=statement_timeout_ms,
    ) as conn:
        scope = {"project": project, "rows_max": ROWS_MAX}
        await db.value(conn, "verify.room", str, work_mem=WORK_MEM)
        totals = await db.one(conn, "verify.totals", Totals, project=project)
        assert totals is not None
        for name in (
            "verify.counts",
            "verify.duplicate_numbers",
            "verify.duplicate_sale_numbers",
            "verify.duplicate_keys",
            "verify.duplicate_ids",
            "verify.customers",
            "verify.budgets",
            "verify.gift_cards",
            "verify.referrals",
            "verify.strangers",
            "verify.audit_logs",
        ):
            report.add_offenders(await db.many(conn, name, Offender, **scope))
        quarantine = await db.many(conn, "verify.quarantine", Quarantined, **scope)
        leases = await db.many(conn, "verify.live_leases", verify_redis.LiveLease, project=project)
        strict = await db.many(conn, "verify.strict_sales", StrictSale, project=project)
        await _check_figures(conn, project, report)
        for gap in await audit.findings(conn):
            report.add("I12", f"{gap.object}: {gap.why}")
    report.checked(
        "I1",
        f"{_many(totals.vouchers, 'voucher')}, {_many(totals.campaigns, 'campaign')}, "
        f"{_many(totals.sales, 'sale')}, {_many(totals.leases, 'lease')}, "
        f"{totals.live:,} live of {_many(totals.redemptions, 'redemption')}",
    )
    report.checked("I3", f"{_many(totals.redemptions, 'redemption')}")
    report.checked("I5", f"{_many(totals.customers, 'counted customer')}")
    report.checked("I6", f"{totals.burned:,} burned, {totals.same_key_count:,} repeated keys")
    report.checked(
        "I11",
        f"{_many(totals.gift_cards, 'gift card')}, "
        f"{_many(totals.gift_card_transactions, 'transaction')}, "
        f"{_many(totals.rewards, 'reward')}",
    )
    report.checked("I14", f"{totals.audit_entries:,} of them")
    report.checked("I12", f"{_many(totals.redemptions, 'redemption')} and their parents")
    report.checked("I9", f"{totals.read_count:,} read, {totals.replayed_count:,} of them replayed")
    for sale in strict:
        report.notes.append(
            f"live sale {ids.format_id('fls', sale.id)} {sale.name!r} (strict, {sale.status}): "
            f"stock {sale.stock:,}, claimed {sale.sold_count:,}, settled {sale.sold_count:,}, lag 0"
        )
    for entry in quarantine:
        report.notes.append(
            f"quarantine: lease {entry.lease_id} has {entry.entries:,} × {entry.reason}, "
            f"seq {entry.seq_min:,} to {entry.seq_max:,}"
        )
    report.notes.append(f"quarantine: {totals.quarantined:,}")
    return leases


async def _check_figures(conn: db.Connection, project: UUID | None, report: Report) -> None:
    """Hold what analytics shows against the ledger's own count, in the same snapshot."""
    projects = await db.many(
        conn,
        "verify.live_of_projects",
        LiveOfProject,
        project=project,
        projects_max=PROJECTS_MAX,
    )
    for ledger in projects:
        counts = await overviews.counts_of(conn, ledger.project_id)
        shown = await analytics.now_of(conn, ledger.project_id)
        if not shown.has_begun and shown.redemptions_total < ledger.live_count:
            report.notes.append(
                "figures: what was redeemed before there were events is not added yet"
            )
            continue
        for what, expected, found in (
            ("redemptions_total", ledger.live_count, shown.redemptions_total),
            ("discount in minor units", ledger.discount_minor, shown.discount_total_minor),
            ("flash sale wins", ledger.sale_count, counts.sale_wins),
        ):
            if found != expected:
                name = ids.format_id("prj", ledger.project_id)
                report.add("I13", f"{what} of {name} should be {expected:,}, is {found:,}")
    vouchers = await db.many(
        conn, "verify.vouchers_of_projects", VouchersOfProject,
        project=project, projects_max=PROJECTS_MAX,
    )  # fmt: skip
    for books in vouchers:
        counts = await overviews.counts_of(conn, books.project_id)
        for what, expected, found in (
            ("active vouchers", books.active_count, counts.active_vouchers),
            ("disabled vouchers", books.disabled_count, counts.disabled_vouchers),
            ("expired vouchers", books.expired_count, counts.expired_vouchers),
        ):
            if found != expected:
                name = ids.format_id("prj", books.project_id)
                report.add("I13", f"{what} of {name} should be {expected:,}, is {found:,}")
    report.checked(
        "I13", f"{_many(len(projects), 'project')}, vouchers of {_many(len(vouchers), 'project')}"
    )


async def _check_redis(
    settings: Settings,
    pool: db.Database,
    leases: list[verify_redis.LiveLease],
    project: UUID | None,
    report: Report,
) -> None:
    """Compare each live lease with Redis. Without one, Redis holds no books and is not asked."""
    if not leases:
        report.checked("I10", "no lease is out")
        return
    redis = connect(settings.redis_url, socket_timeout=5, socket_connect_timeout=2)
    sampled = 0
    try:
        for lease in leases:
            view = await verify_redis.examine(redis, pool, lease, project)
            for invariant, line in view.findings:
                report.add(invariant, f"lease {lease.id}: {line}")
            report.notes.append(view.summary)
            report.unchecked += view.unchecked
            sampled += view.sampled
    except (RedisError, OSError) as error:
        report.unchecked.append(f"{_many(len(leases), 'live lease')} in Redis: {error}")
        return
    finally:
        await redis.aclose()
    report.checked("I10", _many(len(leases), "live lease"))
    report.figures["I3"] += f", {_many(sampled, 'record')} of Redis sampled"


async def _check_history(
    pool: db.Database,
    calls: dict[str, list[verify_history.Call]],
    project: UUID | None,
    report: Report,
) -> None:
    """Hold each code's calls against its rows, once every answered win had time to arrive."""
    call_count = win_count = row_count = 0
    for code, of_code in calls.items():
        voucher = await _voucher(pool, code, project, report)
        if voucher is None:
            continue
        rows, lost = await _settled_rows(pool, voucher, of_code)
        report.written_off += lost
        known = verify_history.without(
            of_code, {ids.format_id("rdm", one.redemption_id) for one in lost}
        )
        units = None if voucher.units is None else max(0, voucher.units - voucher.burned)
        for violation in verify_history.check(known, rows, units=units):
            report.add(violation.invariant, f"{violation.what}: {violation.subject}")
        call_count += len(of_code)
        win_count += sum(call.out == "ok" for call in of_code)
        row_count += len(rows)
    for invariant, figures in (
        ("I2", f"{_many(win_count, 'answered win')}"),
        ("I4", f"{_many(row_count, 'row')}, {_many(call_count, 'call')}"),
        ("I7", f"{_many(win_count, 'answered win')}"),
        ("I8", f"{_many(sum(c.out == 'sold_out' for x in calls.values() for c in x), 'refusal')}"),
    ):
        report.checked(invariant, figures)


async def _voucher(
    pool: db.Database, code: str, project: UUID | None, report: Report
) -> NamedVoucher | None:
    async with pool.connection(reads_only=True) as conn:
        found = await db.many(
            conn,
            "verify.voucher_by_code",
            NamedVoucher,
            code=codes.normalise(code) or "",
            project=project,
        )
    if len(found) == 1:
        return found[0]
    report.unchecked.append(
        f"the history's code {code!r}: "
        + ("several projects have it" if found else "there is none")
    )
    return None


async def _settled_rows(
    pool: db.Database, voucher: NamedVoucher, calls: list[verify_history.Call]
) -> tuple[list[verify_history.Row], list[WrittenOff]]:
    """Return the voucher's rows and the answered wins that are written off.

    Waits until the two hold every answered win, or until the wait is over.
    """
    deadline = time.monotonic() + DRAIN_S_MAX
    while True:
        rows = await _rows(pool, voucher)
        missing = verify_history.missing(calls, rows)
        lost = await _written_off(pool, voucher, missing) if missing else []
        if len(lost) == len(missing) or time.monotonic() > deadline:
            return rows, lost
        await asyncio.sleep(DRAIN_POLL_S)


async def _written_off(
    pool: db.Database, voucher: NamedVoucher, missing: Iterable[str]
) -> list[WrittenOff]:
    """Return those of the missing redemptions whose number a settled lease has burned.

    A win's id tells its lease and its number, so each is named, and none is believed.
    """
    async with pool.connection(reads_only=True) as conn:
        leases = await db.many(
            conn,
            "verify.leases_of_voucher",
            LeaseOfVoucher,
            voucher=voucher.id,
            project=voucher.project_id,
        )
        by_tag = {lease.tag: lease.id for lease in leases}
        wins: dict[tuple[UUID, int], UUID] = {}
        for rid in missing:
            value = ids.parse_id("rdm", rid)
            lease_id = by_tag.get(ids.tag_of_win(value)) if value is not None else None
            if value is None or lease_id is None:
                continue
            seq = ids.seq_of_win(value, lease_id)
            if seq is not None:
                wins[lease_id, seq] = value
        burned = await db.many(
            conn,
            "verify.burned_numbers",
            BurnedNumber,
            leases=[lease_id for lease_id, _ in wins],
            seqs=[seq for _, seq in wins],
        )
    return [WrittenOff(wins[one.lease_id, one.seq], one.lease_id, one.seq) for one in burned]


async def _rows(pool: db.Database, voucher: NamedVoucher) -> list[verify_history.Row]:
    exponent = money.exponent_of(voucher.currency) or 0
    rows: list[verify_history.Row] = []
    after = UUID(int=0)
    async with pool.transaction(None, reads_only=True, isolation="repeatable read") as conn:
        while True:
            page = await db.many(
                conn,
                "verify.rows_of_voucher",
                LedgerRow,
                voucher=voucher.id,
                after=after,
                rows_max=PAGE_MAX,
            )
            rows += [
                verify_history.Row(
                    row.idempotency_key,
                    ids.format_id("rdm", row.id),
                    row.seq,
                    row.customer_id,
                    Decimal(row.discount_minor).scaleb(-exponent),
                )
                for row in page
            ]
            if len(page) < PAGE_MAX:
                return rows
            after = page[-1].id


def _name(prefix: str, subject: UUID) -> str:
    if prefix in ("vch", "cmp", "fls", "rdm", "gft", "gfe", "prj", "rfa", "rfp", "rfc"):
        return ids.format_id(prefix, subject)  # type: ignore[arg-type]
    return f"{prefix} {subject}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
