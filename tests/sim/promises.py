"""What must hold in every state of the protocol's model, whatever order things happened in."""

from collections import Counter

from tests.sim.world import DIRECT, Setting, State


def broken(s: State, setting: Setting) -> str | None:
    """Return the name of a broken promise, None when all hold.

    OVER      more units are answered or written than the voucher has
    DOUBLE    one number was answered to two requests
    UNBACKED  an answered number of a settled lease is neither a row nor a burned unit
    BACKLOG   more answered wins are missing from a settled lease than its backlog allows
    BOOKS     units handed to leases are not those that leases hold
    KEY       one key has two redemptions
    CUSTOMER  a customer holds more than the limit
    REFUSED   PostgreSQL had to refuse an entry of a lease that is out
    LOST      an answered win is gone though no data was (only where none is deleted)
    BURNED    a unit was written off though no data was lost and every mark is known
    """
    pg = s.pg
    rows = {(row.lease, row.seq): row for row in pg.rows}
    answered: dict[tuple[int, int], int] = {}
    for request, place, seq in s.acked:
        if answered.setdefault((place, seq), request) != request:
            return "DOUBLE"
    units = {at for at, row in rows.items() if row.is_live}
    units |= {at for at in answered if at not in rows}
    if len(units) > setting.limit:
        return "OVER"
    given_back = 0
    for place, lease in enumerate(pg.leases):
        lost = [at for at in answered if at[0] == place and at not in rows]
        written = sum(at[0] == place for at in rows)
        if lease.state != "settled":
            continue
        if any(seq > lease.open_to for _, seq in lost):
            return "UNBACKED"
        if len(lost) > setting.backlog_max:
            return "BACKLOG"
        if not setting.loses_data and lease.open_to > written:
            return "BURNED"
    given_back = sum(row.lease != DIRECT and not row.is_live for row in pg.rows)
    if pg.leased != sum(lease.size - lease.returned for lease in pg.leases) - given_back:
        return "BOOKS"
    if s.refused:
        return "REFUSED"
    return _of_people(s, setting) or (None if setting.loses_data else _lost(s, answered))


def _of_people(s: State, setting: Setting) -> str | None:
    written = Counter(row.request for row in s.pg.rows if row.request is not None)
    if any(n > 1 and setting.keys[request] is not None for request, n in written.items()):
        return "KEY"
    held = [
        setting.customers[row.request]
        for row in s.pg.rows
        if row.is_live and row.request is not None
    ]
    if not setting.loses_data:
        told: dict[int, tuple[int, int]] = {}
        rows = {(row.lease, row.seq) for row in s.pg.rows}
        for request, lease, seq in s.acked:
            if told.setdefault(request, (lease, seq)) != (lease, seq):
                return "KEY"
            if (lease, seq) not in rows:
                held.append(setting.customers[request])
    if setting.customer_limit is not None:
        for customer, n in Counter(held).items():
            if customer is not None and n > setting.customer_limit:
                return "CUSTOMER"
    return None


def _lost(s: State, answered: dict[tuple[int, int], int]) -> str | None:
    rows = {(row.lease, row.seq) for row in s.pg.rows}
    for at, request in answered.items():
        if at in rows:
            continue
        lease, seq = at
        for store in (s.now, s.old):
            won = store.log[seq - 1 : seq] if store is not None and store.lease == lease else ()
            if won and won[0].request == request:
                break
        else:
            return "LOST"
    return None
