"""What PostgreSQL's functions and Redis's scripts do in the model, one commit or call at a time."""

from tests.sim.world import (
    DIRECT,
    NOBODY,
    Entry,
    Lease,
    Ledger,
    Row,
    Rules,
    Setting,
    State,
    Store,
    put_at,
)

Told = tuple[str, int, int]  # what, of which lease, which number

# PostgreSQL -----------------------------------------------------------------------------------


def out(pg: Ledger) -> int:
    """Return the lease that is out, -1 for none: at most one is, and it is the last one."""
    place = len(pg.leases) - 1
    return place if place >= 0 and pg.leases[place].state != "settled" else -1


def put_lease(pg: Ledger, place: int, **changes: object) -> Ledger:
    """Return the ledger with one lease changed."""
    lease = pg.leases[place]._replace(**changes)  # type: ignore[arg-type]
    return pg._replace(leases=put_at(pg.leases, place, lease))


def free_units(s: State, setting: Setting) -> int:
    """Return what the voucher may still give out or lease."""
    held_back = 0 if s.has_grown else setting.held_back
    return setting.limit - held_back - s.pg.direct - s.pg.leased


def arm(s: State, setting: Setting) -> State:
    """Move every free unit into a new lease and take the authority."""
    size = free_units(s, setting)
    lease = Lease("arming", s.now.run, 0, size, size, 0, 0, 0, frozenset())
    pg = s.pg._replace(leases=(*s.pg.leases, lease), leased=s.pg.leased + size, has_authority=False)
    return s._replace(pg=pg)


def row_of(pg: Ledger, request: int, setting: Setting) -> Row | None:
    """Return the redemption a request's key has, if it came with a key."""
    if setting.keys[request] is None:
        return None
    return next((row for row in pg.rows if row.request == request), None)


def settle_win(
    s: State,
    place: int,
    run: int,
    seen: int,
    entry: Entry,
    seq: int,
    setting: Setting,
    rules: Rules,
) -> tuple[State, str]:
    """`vf.settle_wins` for a win that process `run` has told of: applied, stale or closed."""
    pg = s.pg
    if not pg.is_accepted or place >= len(pg.leases):
        return s, "gated"
    lease = pg.leases[place]
    if rules.open_to_is_checked and lease.state == "settled":
        return s, "closed"
    if rules.offset_is_compared and lease.offset != seen:
        return s, "stale"
    is_other = run in lease.past_runs if lease.state == "fenced" else run != lease.run
    if is_other and rules.stream_is_of_this_process:
        return s, "stale"
    refused, rows, counts = s.refused, pg.rows, pg.counts
    if entry.id <= lease.offset and rules.rows_are_unique:
        refused = "the offset went back"
    there = next((row for row in rows if (row.lease, row.seq) == (place, seq)), None)
    if there is not None and rules.rows_are_unique:
        refused = refused if there.request == entry.request else f"number {seq} has a row"
    elif rules.rows_are_unique and row_of(pg, entry.request, setting) is not None:
        refused = "a key has a row"
    elif rules.open_to_is_checked and seq > lease.open_to:
        refused = f"number {seq} is above open_to"
    else:
        number = seq if there is None else seq + 100  # no key: a second row
        rows = rows | {Row(place, number, entry.request, True)}
    pg = pg._replace(rows=rows, counts=counts)
    pg = put_lease(pg, place, offset=entry.id, accounted=max(lease.accounted, seq))
    return s._replace(pg=pg, refused=refused), "applied"


def settle_lease(s: State, place: int, open_to: int, setting: Setting) -> State:
    """`vf.settle_lease`: lower open_to for good, return what is above, count the customers."""
    pg, lease = s.pg, s.pg.leases[place]
    rows = [row for row in pg.rows if row.lease == place]
    to = min(lease.size, max([open_to, *(row.seq for row in rows)]))
    counts = list(pg.counts)
    for row in rows:
        customer = setting.customers[row.request] if row.request is not None else None
        if row.is_live and customer is not None:
            counts[customer] += 1
    pg = put_lease(pg, place, state="settled", open_to=to, returned=lease.size - to)
    pg = pg._replace(
        leased=pg.leased - lease.size + to,
        has_authority=True,
        members=(None,) * len(pg.members),
        counts=tuple(counts),
    )
    return s._replace(pg=pg)


def judge(
    pg: Ledger, place: int, run_old: int, run_new: int, issued: int, silent: bool, rules: Rules
) -> tuple[Ledger, str]:
    """`vf.judge_lease`; `issued` -1 says that Redis lacks the lease."""
    lease = pg.leases[place]
    if lease.state in ("settled", "fenced") or lease.run != run_old:
        return pg, "passed"
    members = [member for member in pg.members if member is not None]
    sealed = [member for member in members if member.sealed == run_new]
    unsealed = len(members) - len(sealed)
    unknown = sum(member.mark is None for member in sealed) + (unsealed if silent else 0)
    waiting = 0 if silent or not rules.all_marks_are_known else unsealed
    mark = max((member.mark or 0 for member in sealed), default=0)
    top = max((row.seq for row in pg.rows if row.lease == place), default=0)
    if unknown or issued < top or (not waiting and issued < mark):
        return put_lease(pg, place, state="fenced", judged=lease.judged + 1), "fenced"
    if waiting:
        return pg, "waiting"
    cleared = tuple(
        None if member is None else member._replace(sealed=NOBODY, mark=None)
        for member in pg.members
    )
    past = lease.past_runs | ({run_old} if run_old != run_new else set())
    pg = put_lease(pg, place, run=run_new, judged=lease.judged + 1, past_runs=past)
    return pg._replace(members=cleared), "intact"


def redeem(s: State, request: int, setting: Setting, rules: Rules) -> State | None:
    """`vf.redeem_many` for one request and its answer; nothing where it is refused."""
    pg = s.pg
    known = row_of(pg, request, setting)
    if not pg.is_accepted or (rules.authority_is_checked and not pg.has_authority):
        return None
    if known is not None:
        return ack(s, request, known.lease, known.seq)
    customer = setting.customers[request]
    counts = pg.counts
    if customer is not None and setting.customer_limit is not None:
        if counts[customer] >= setting.customer_limit:
            return None
        counts = put_at(counts, customer, counts[customer] + 1)
    if free_units(s, setting) <= 0:
        return None
    seq = 1 + sum(row.lease == DIRECT for row in pg.rows)
    rows = pg.rows | {Row(DIRECT, seq, request, True)}
    s = s._replace(pg=pg._replace(direct=pg.direct + 1, rows=rows, counts=counts))
    return ack(s, request, DIRECT, seq)


def lacks(s: State) -> bool:
    """`history.survey`: whether Redis has heard of more than this ledger holds."""
    pg, store = s.pg, s.now
    if store.lease < 0:
        return False
    if store.lease >= len(pg.leases):
        return bool(store.log)
    lease = pg.leases[store.lease]
    if lease.state in ("settled", "fenced"):
        return False
    is_over = store.state in ("closed", "fenced") and lease.state == "open"
    return store.accounted > lease.accounted or store.size > lease.size or is_over


def give_back(s: State) -> State:
    """`vf.recover_lease`: put what Redis knows of its lease here, fenced; then accept."""
    pg, issued = s.pg, len(s.now.log)
    if s.now.lease >= len(pg.leases):
        lease = Lease("fenced", s.now.run, 0, issued, issued, 0, 0, 0, frozenset())
        pg = pg._replace(leases=(*pg.leases, lease), leased=pg.leased + issued)
    else:
        lease = pg.leases[s.now.lease]
        size = max(lease.size, issued)
        pg = pg._replace(leased=pg.leased + size - lease.size)
        pg = put_lease(pg, s.now.lease, state="fenced", size=size, open_to=size)
    return s._replace(pg=pg._replace(has_authority=False, is_accepted=True))


def roll_back(s: State, row: Row, setting: Setting) -> State:
    """`vf.roll_back`: the unit goes back to the voucher, the row stays."""
    pg = s.pg
    pg = pg._replace(rows=(pg.rows - {row}) | {row._replace(is_live=False)})
    if row.lease == DIRECT:
        pg = pg._replace(direct=pg.direct - 1)
    else:
        pg = pg._replace(leased=pg.leased - 1)
    is_counted = row.lease == DIRECT or pg.leases[row.lease].state == "settled"
    customer = setting.customers[row.request] if row.request is not None else None
    if is_counted and customer is not None and pg.counts[customer] > 0:
        pg = pg._replace(counts=put_at(pg.counts, customer, pg.counts[customer] - 1))
    return s._replace(pg=pg)


def ack(s: State, request: int, lease: int, seq: int) -> State:
    """Tell the client that it has won this number."""
    return s._replace(acked=s.acked | {(request, lease, seq)})


# Redis ----------------------------------------------------------------------------------------


def load(s: State, place: int, rules: Rules) -> State:
    """Load a lease into the Redis of the moment, with what PostgreSQL knows of keys and people."""
    lease = s.pg.leases[place]
    loaded = frozenset(row for row in s.pg.rows if row.request is not None)
    counts = s.pg.counts if rules.customers_are_loaded else (0,) * len(s.pg.counts)
    store = Store(
        s.now.run,
        place,
        "open",
        lease.size,
        0,
        (),
        loaded if rules.records_are_loaded else frozenset(),
        counts,
        frozenset(),
    )
    return s._replace(now=store)


def claim(
    store: Store, place: int, request: int, entry: int, setting: Setting, rules: Rules
) -> tuple[Store, Told | None]:
    """`claim.lua` for one item; None for a refusal that changes nothing anywhere."""
    if store.lease != place or store.state == "fenced":
        return store, ("fenced", place, 0)
    if setting.keys[request] is not None:
        for at, known in enumerate(store.log):
            if known.request == request:
                return store, ("replay", place, at + 1)
        for row in store.loaded:
            if row.request == request:
                return store, ("record", row.lease, row.seq)
    if store.state != "open" or len(store.log) >= store.size:
        return store, None
    if rules.backlog_is_bounded and len(store.log) - store.accounted >= setting.backlog_max:
        return store, None
    customer = setting.customers[request]
    if customer is not None and setting.customer_limit is not None:
        held = store.counts[customer] + sum(
            setting.customers[known.request] == customer for known in store.log
        )
        held -= sum(setting.customers[store.log[n - 1].request] == customer for n in unheld(store))
        if held >= setting.customer_limit:
            return store, None
    won = store._replace(log=(*store.log, Entry(entry, request)))
    return won, ("win", place, len(won.log))


def unheld(store: Store) -> list[int]:
    """Return the numbers whose customers were let go; one let go twice stands there twice."""
    return [(n - 1) % 100 + 1 for n in store.released if (n - 1) % 100 < len(store.log)]


def told_state(store: Store, wanted: str) -> Store:
    """`lease.lua state`: fenced is for ever, closed ends in fenced only."""
    if store.state == "fenced" or (store.state == "closed" and wanted != "fenced"):
        return store
    return store._replace(state=wanted)
