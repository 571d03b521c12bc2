"""The flash protocol as it ships: every step any process can take next, in any order.

A step is one commit in PostgreSQL, one script call in Redis, or one turn of a process between two
of them; a process that is frozen simply takes no step for a while. Rules can be left out one by
one; what is then broken, and by which shortest way, is what each rule is for.
"""

from collections.abc import Iterator

from tests.sim import stores
from tests.sim.faults import Faults, Steps
from tests.sim.world import (
    DIRECT,
    NEVER,
    NOBODY,
    Entry,
    Follower,
    Ledger,
    Member,
    Row,
    State,
    Store,
    Worker,
    put_at,
)


class Protocol(Faults):
    """The steps of one small world under given rules."""

    def steps(self, s: State) -> Steps:
        """Yield every next state with a label that says what happened."""
        yield from self._control(s)
        for at in range(len(s.workers)):
            yield from self._worker(s, at)
        for at in range(len(s.followers)):
            yield from self._follower(s, at)
        yield from self.faults(s)

    # -- The sale: arm, load, open, grow, close, roll back ------------------------------------

    def _control(self, s: State) -> Steps:
        setting, rules, pg = self.setting, self.rules, s.pg
        place = stores.out(pg)
        if not pg.is_accepted:
            yield from self._accepts(s)
        elif place < 0:
            # A lease that only Redis knows has a name of its own, which here is its place.
            is_nameable = s.now.lease < len(pg.leases) < setting.leases
            if is_nameable and stores.free_units(s, setting) > 0:
                armed = stores.arm(s, setting)
                pg = armed.pg
                if not setting.arms_slowly:
                    armed = stores.load(armed, len(pg.leases) - 1, rules)
                    pg = stores.put_lease(pg, len(pg.leases) - 1, state="open")
                    armed = armed._replace(pg=pg)
                yield f"arm: lease {len(pg.leases) - 1}", armed
        else:
            lease = pg.leases[place]
            if lease.state == "arming" and s.now.lease != place:
                yield "load: into Redis", stores.load(s, place, rules)
            if lease.state == "arming" and s.now.lease == place:
                yield "open: the lease", s._replace(pg=stores.put_lease(pg, place, state="open"))
            if lease.state == "open" and setting.closes:
                closed = stores.put_lease(pg, place, state="draining")
                yield "close: the sale", s._replace(pg=closed)
            if lease.state == "open":
                yield from self._grow(s, place)
        # What PostgreSQL decided by itself and lost is lost: nobody else ever knew it.
        if setting.sells_directly and not self._left(s, "promotion"):
            for request in self._askable(s):
                sold = stores.redeem(s, request, setting, rules)
                if sold is not None:
                    yield f"redeem: r{request} in PostgreSQL", self._tried(sold, request)
        yield from self._give_back(s, place)
        if setting.claims_receipts:
            yield from self._receipts(s)

    def _accepts(self, s: State) -> Steps:
        """Accept a history that lacks nothing Redis was told of; else an operator gives it back."""
        if not stores.lacks(s) or not self.rules.accepting_asks_redis:
            accepted = s._replace(pg=s.pg._replace(is_accepted=True))
            yield "accept: the promoted PostgreSQL", accepted
        elif self.rules.recovering_fences_redis and s.now.state == "open":
            fenced = s.now._replace(state="fenced")
            yield "recover: Redis is fenced first", s._replace(now=fenced)
        else:
            yield "recover: the lease, fenced", stores.give_back(s)

    def _grow(self, s: State, place: int) -> Steps:
        if not s.has_grown:
            yield "stock: more units for the sale", s._replace(has_grown=True)
        more = stores.free_units(s, self.setting)
        if more > 0:
            lease = s.pg.leases[place]
            size = lease.size + more
            pg = stores.put_lease(s.pg, place, size=size, open_to=size)
            grown = s._replace(pg=pg._replace(leased=pg.leased + more))
            if not self.rules.size_is_absolute and s.now.lease == place:
                # By increment: told once by who granted it, and again by who repeats it.
                grown = grown._replace(now=s.now._replace(size=s.now.size + 2 * more))
            yield f"grow: the lease to {size}", grown

    def _give_back(self, s: State, place: int) -> Steps:
        if not self.setting.rolls_back:
            return
        for row in s.pg.rows:
            if row.request is None:
                continue
            may_again = not self.rules.rollback_is_once and s.pg.leased > 0
            if row.is_live or (may_again and row.lease != DIRECT):
                yield f"roll back: r{row.request}", stores.roll_back(s, row, self.setting)
            if not row.is_live and row.lease == s.now.lease == place:
                again = row.seq if row.seq not in s.now.released else row.seq + 100
                if again not in s.now.released and (
                    again == row.seq or not self.rules.release_is_idempotent
                ):
                    store = s.now._replace(released=s.now.released | {again})
                    yield f"release: the customer of {row.seq}", s._replace(now=store)

    def _receipts(self, s: State) -> Steps:
        held = {(row.lease, row.seq): row for row in s.pg.rows}
        for place, lease in enumerate(s.pg.leases):
            if lease.state != "settled":
                continue
            for seq in range(1, lease.open_to + 1):
                if (place, seq) in held:
                    continue
                pg = s.pg._replace(leased=s.pg.leased - 1)
                if self.rules.hole_is_released_with_a_row:
                    pg = pg._replace(rows=pg.rows | {Row(place, seq, None, False)})
                if pg.leased >= 0:
                    yield f"release hole: {place}/{seq}", s._replace(pg=pg)
                for request, of, number in s.acked:
                    if (of, number) != (place, seq):
                        continue
                    if stores.row_of(s.pg, request, self.setting) is None:
                        rows = s.pg.rows | {Row(place, seq, request, True)}
                        claimed = s._replace(pg=s.pg._replace(rows=rows))
                        yield f"receipt: r{request} for {place}/{seq}", claimed

    def _askable(self, s: State) -> Iterator[int]:
        """Requests that may be asked now. Those that differ in nothing are first asked in order."""
        setting = self.setting
        for request, tries in enumerate(s.tries):
            most = setting.tries if setting.keys[request] is not None else 1
            if tries >= most:
                continue
            is_alike = (
                request > 0
                and setting.customers[request] == setting.customers[request - 1]
                and (setting.keys[request] is None) == (setting.keys[request - 1] is None)
            )
            if tries == 0 and is_alike and s.tries[request - 1] == 0:
                continue
            yield request

    def _tried(self, s: State, request: int) -> State:
        return s._replace(tries=put_at(s.tries, request, s.tries[request] + 1))

    # -- A worker -----------------------------------------------------------------------------

    def _worker(self, s: State, at: int) -> Steps:
        w = s.workers[at]
        if not w.is_alive:
            return
        place = f"w{at}"
        if w.run != s.now.run and w.flight is None and w.stage == "":
            yield f"connect: {place}", self._with(s, at, self._compared(w, s.now.run))
            if w.run == NOBODY and s.old is not None:
                moved = self._compared(w, s.old.run)
                yield f"connect: {place} to the old primary", self._with(s, at, moved)
        if w.view is not None and w.view.lease >= len(s.pg.leases):
            # PostgreSQL has lost the lease: what is asked about it finds nothing.
            forgets = w._replace(view=None, stage="", read=None, peeked=None, late=None)
            yield f"miss: w{at}", self._with(s, at, forgets._replace(slot=-1, mark=0, mark_of=-1))
            return
        if w.late is not None:
            yield f"arrive: a seal that w{at} gave up", self._arrive(s, at)
        if w.flight is not None:
            yield f"land: {place}", self._land(s, at)
            if self.setting.loses_replies:
                yield f"lose: the reply to {place}", self._with(s, at, w._replace(flight=None))
        elif w.slot >= 0 and not w.sealed and self._store_of(s, w.run) is not None:
            yield from self._claims(s, at)
        if w.stage == "":
            yield from self._looks(s, at)
            if self.setting.joins_slowly:
                yield from self._joins(s, at)
        if w.view is not None and w.slot == w.view.lease:
            yield from self._judges(s, at)

    def _compared(self, w: Worker, run: int) -> Worker:
        """Connect, and seal the slot of another process's lease."""
        is_other = w.slot >= 0 and w.slot_run != run and self.rules.run_id_is_compared
        return w._replace(run=run, sealed=w.sealed or ("run" if is_other else ""))

    def _claims(self, s: State, at: int) -> Steps:
        w = s.workers[at]
        store = self._store_of(s, w.run)
        assert store is not None
        for request in self._askable(s):
            after, told = stores.claim(store, w.slot, request, s.entries, self.setting, self.rules)
            if told is None:
                continue
            what, lease, seq = told
            asked = self._with(s, at, w._replace(flight=(request, w.slot, what, lease, seq)))
            if after is not store:
                asked = self._put_store(asked, after)._replace(entries=s.entries + 1)
            yield f"claim: r{request} at w{at} is told {what} {seq}", self._tried(asked, request)

    def _land(self, s: State, at: int) -> State:
        """A reply comes in: what the batcher makes of it."""
        w = s.workers[at]
        assert w.flight is not None
        request, slot, what, lease, seq = w.flight
        w = w._replace(flight=None)
        s = self._with(s, at, w)
        if what == "record":
            return stores.ack(s, request, lease, seq)
        if what == "fenced":
            return self._with(s, at, w._replace(sealed=w.sealed or "fenced"))
        rules = self.rules
        may_answer = slot == w.slot and not w.sealed
        if what == "win":
            if not may_answer:
                return s
            if seq <= w.mark and rules.new_number_is_above_mark:
                return self._with(s, at, w._replace(sealed="mark"))
            if rules.marks_are_raised:
                s = self._with(s, at, w._replace(mark=max(w.mark, seq)))
        elif slot != w.slot or seq > w.mark:
            if not rules.replay_raises_mark:
                return stores.ack(s, request, lease, seq)
            if not may_answer:
                return s
            if rules.marks_are_raised:
                s = self._with(s, at, w._replace(mark=seq))
        return stores.ack(s, request, lease, seq)

    def _looks(self, s: State, at: int) -> Steps:
        w, pg = s.workers[at], s.pg
        view = self._view(s)
        if view is not None and not pg.is_accepted:
            if w.slot == view.lease and not w.sealed:
                held = w._replace(sealed="asked", sealed_at=NEVER)
                yield f"hold: w{at} seals", self._with(s, at, held)
            return
        if view is None and len(pg.leases) == self.setting.leases:
            return
        if view is not None:
            state = "live" if view.state in ("open", "draining") else view.state
            view = view._replace(state=state, size=0)
        if view == w.view:
            return
        seen = w._replace(view=view)
        if w.slot >= 0 and (view is None or view.lease != w.slot):
            seen = seen._replace(slot=-1, sealed="", sealed_at=NEVER, mark=0, mark_of=-1)
        looked = self._with(s, at, seen)
        if not self.setting.joins_slowly:
            for _, joined in self._joins(looked, at):
                looked = joined
        yield f"look: w{at} sees {'nothing' if view is None else view.state}", looked

    def _joins(self, s: State, at: int) -> Steps:
        """Register for the lease this worker has seen, then open a slot for it."""
        w, pg = s.workers[at], s.pg
        view = w.view
        if view is None or w.slot >= 0 or view.state == "arming":
            return
        lease = pg.leases[view.lease]
        member = pg.members[at]
        if self.rules.joining_is_guarded:
            if lease.state != "open" or lease.run != view.run:
                return
            joined = Member(1 if member is None else member.registered + 1, NOBODY, None)
        elif member is None:
            joined = Member(1, NOBODY, None)
        else:
            joined = member._replace(registered=member.registered + 1)
        mark = w.mark if w.mark_of == view.lease else 0
        w = w._replace(
            slot=view.lease,
            slot_run=view.run,
            sealed="",
            sealed_at=NEVER,
            mark=mark,
            mark_of=view.lease,
            knows_mark=not (w.marks_lost and member is not None),
        )
        w = self._compared(w, w.run) if w.run != NOBODY else w
        pg = pg._replace(members=put_at(pg.members, at, joined))
        yield f"join: w{at}", self._with(s._replace(pg=pg), at, w)

    def _judges(self, s: State, at: int) -> Steps:
        """Seal, tell, read what Redis has issued, ask PostgreSQL; or unseal."""
        w, rules = s.workers[at], self.rules
        view = w.view
        assert view is not None
        store = self._store_of(s, w.run)
        if w.stage == "told":
            if store is None:
                yield f"give up: w{at}", self._with(s, at, w._replace(stage=""))
            else:
                issued = len(store.log) if store.lease == w.slot else -1
                if w.sealed == "mark" and rules.number_seen_twice_fences:
                    issued = -1  # it may have caught up since, with other people's wins
                read = w._replace(stage="read", read=issued)
                yield f"read: w{at} reads {issued} issued", self._with(s, at, read)
            return
        if w.stage == "read":
            assert w.read is not None
            for silent in self._silences(s):
                pg, verdict = stores.judge(s.pg, w.slot, view.run, w.run, w.read, silent, rules)
                judged = self._with(s._replace(pg=pg), at, w._replace(stage="", read=None))
                yield f"judge: {verdict}, asked by w{at}", judged
            return
        if store is None or w.flight is not None:
            return
        is_fenced = view.state == "fenced"
        if view.run == w.run and not w.sealed and not is_fenced:
            return
        if not is_fenced and NEVER < w.sealed_at < view.judged and view.run == w.run:
            yield from self._unseals(s, at)
            return
        judged = view.judged - (w.sealed == "run" or view.run != w.run)
        w = w._replace(
            sealed=w.sealed or "asked",
            sealed_at=w.sealed_at if w.sealed_at > NEVER else judged,
            stage="" if is_fenced else "told",
        )
        mark = w.mark if w.knows_mark else None
        pg = self._sealed(s, at, view.lease, view.judged, w.run, mark)
        told = self._with(s._replace(pg=pg), at, w)
        if told != s:
            yield f"tell: w{at} seals at {mark}", told
        if self._left(s, "delay") and w.late is None:
            late = w._replace(late=(view.lease, view.judged, w.run, mark), stage="")
            lost = self._with(self._spent(s, "delay"), at, late)
            yield f"DELAY: w{at} seals at {mark}, and does not hear back", lost
        yield from self._neighbours(s, at)

    def _unseals(self, s: State, at: int) -> Steps:
        """It was judged intact since: take the seal back in PostgreSQL first, then open."""
        w, pg = s.workers[at], s.pg
        assert w.view is not None
        lease, member = pg.leases[w.view.lease], pg.members[at]
        opened = w._replace(sealed="", sealed_at=NEVER, slot_run=w.run)
        if self.rules.unsealing_is_told:
            if lease.judged != w.view.judged or member is None:
                return
            member = member._replace(sealed=NOBODY, mark=None)
            pg = pg._replace(members=put_at(pg.members, at, member))
        yield f"unseal: w{at}", self._with(s._replace(pg=pg), at, opened)

    def _neighbours(self, s: State, at: int) -> Steps:
        """Answer for a dead neighbour: read its marks, then tell them; it may start in between."""
        w = s.workers[at]
        assert w.view is not None
        if w.peeked is not None:
            who, registered, mark, run = w.peeked
            member = s.pg.members[who]
            pg = s.pg
            if member is not None and (
                not self.rules.neighbour_seal_is_of_this_process or member.registered == registered
            ):
                pg = self._sealed(s, who, w.view.lease, w.view.judged, run, mark)
            told = self._with(s._replace(pg=pg), at, w._replace(peeked=None))
            yield f"tell: w{at} for dead w{who}, {mark}", told
            return
        for who, other in enumerate(s.workers):
            member = s.pg.members[who]
            if other.is_alive or other.marks_lost or member is None or member.sealed == w.run:
                continue
            mark = other.mark if other.mark_of == w.slot else 0
            peeked = w._replace(peeked=(who, member.registered, mark, w.run))
            yield f"peek: w{at} at the marks of dead w{who}", self._with(s, at, peeked)

    def _arrive(self, s: State, at: int) -> State:
        """PostgreSQL runs a statement whose connection was lost."""
        late = s.workers[at].late
        assert late is not None
        lease, judged, run, mark = late
        pg = self._sealed(s, at, lease, judged, run, mark)
        return self._with(s._replace(pg=pg), at, s.workers[at]._replace(late=None))

    def _sealed(
        self, s: State, who: int, place: int, judged: int, run: int, mark: int | None
    ) -> Ledger:
        """Write a seal. By the rule it counts only for the judgement it was told for."""
        lease, member = s.pg.leases[place], s.pg.members[who]
        is_stale = lease.judged != judged and self.rules.seal_is_of_this_judgement
        if member is None or is_stale:
            return s.pg
        sealed = member._replace(sealed=run, mark=mark)
        return s.pg._replace(members=put_at(s.pg.members, who, sealed))

    # -- A reconciler -------------------------------------------------------------------------

    def _follower(self, s: State, at: int) -> Steps:
        f = s.followers[at]
        store = self._store_of(s, f.run)
        if store is None:
            f, store = f._replace(run=s.now.run), s.now
        if f.run != s.now.run:
            moved = self._follow_with(s, at, f._replace(run=s.now.run, owes=None))
            yield f"connect: f{at}", moved
        if f.view is not None and f.view.lease >= len(s.pg.leases):
            fresh = Follower(s.now.run, None, 0, 0, None, None, None)
            yield f"miss: f{at}", self._follow_with(s, at, fresh)
            return
        if f.owes is not None:
            paid = self._follow_with(s, at, f._replace(owes=None))
            if store.lease == stores.out(s.pg):
                accounted = max(store.accounted, f.owes)
                paid = self._put_store(paid, store._replace(accounted=accounted))
            yield f"account: {f.owes} in Redis", paid
            return
        if f.settles is not None:
            yield from self._settle(s, at)
            return
        view = self._view(s) if s.pg.is_accepted else None
        if view is not None:
            view = view._replace(run=NOBODY, judged=0)
        is_over = view is None and len(s.pg.leases) == self.setting.leases and s.pg.is_accepted
        if view != f.view and not is_over:
            seen = f._replace(view=view)
            if view is not None and (f.view is None or f.view.lease != view.lease):
                seen = self._resumed(s, seen)
            label = "nothing" if view is None else view.state
            yield f"notice: f{at} sees {label}", self._follow_with(s, at, seen)
        view = f.view
        if view is None or (view.state == "arming" and store.lease != view.lease):
            return
        if f.holds is not None:
            yield from self._apply(s, at, f._replace(holds=None), *f.holds)
            return
        if store.lease == view.lease:
            yield from self._steer(s, at, f, store)
            following = [n for n, entry in enumerate(store.log, 1) if entry.id > f.offset]
            if following:
                seq = following[0]
                entry = (store.log[seq - 1], seq, store.run)
                if self.setting.reads_slowly:
                    holding = self._follow_with(s, at, f._replace(holds=entry))
                    yield f"fetch: f{at} has number {seq} in hand", holding
                else:
                    yield from self._apply(s, at, f, *entry)
                return
        yield from self._decide(s, at, f, store)

    def _resumed(self, s: State, f: Follower) -> Follower:
        """Read the offset of the lease it follows."""
        assert f.view is not None
        lease = s.pg.leases[f.view.lease]
        return f._replace(offset=lease.offset, accounted=lease.accounted)

    def _steer(self, s: State, at: int, f: Follower, store: Store) -> Steps:
        """Make Redis follow what PostgreSQL said."""
        view = f.view
        assert view is not None
        wanted = {"fenced": "fenced", "draining": "closed", "arming": "closed"}
        told = stores.told_state(store, wanted.get(view.state, "open"))
        if view.state == "open" and store.size < view.size:
            told = told._replace(size=view.size)
        if told != store:
            yield f"steer: f{at} tells Redis {view.state}", self._put_store(s, told)

    def _apply(self, s: State, at: int, f: Follower, entry: Entry, seq: int, run: int) -> Steps:
        view, store = f.view, self._store_of(s, run)
        assert view is not None
        if not self.rules.accounted_after_commit and store and store.accounted < seq:
            told = self._put_store(s, store._replace(accounted=seq))
            yield f"account: {seq} before its commit", told
        after, verdict = stores.settle_win(
            s, view.lease, run, f.offset, entry, seq, self.setting, self.rules
        )
        label = f"write: f{at} writes number {seq}, {verdict}"
        if verdict == "applied":
            accounted = after.pg.leases[view.lease].accounted
            f = f._replace(offset=entry.id, accounted=accounted, owes=accounted)
        else:
            f = self._resumed(after, f)
        yield label, self._follow_with(after, at, f)

    def _decide(self, s: State, at: int, f: Follower, store: Store) -> Steps:
        """Nothing is left to write: settle, if it is known how far answered wins can reach."""
        view, rules = f.view, self.rules
        assert view is not None
        place, settles = view.lease, None
        if view.state == "arming":
            if store.lease == place and store.state == "closed":
                settles = ("unopened", 0, NOBODY)
        elif view.state == "draining":
            is_closed = store.lease == place and store.state == "closed"
            if is_closed and len(store.log) <= f.accounted:
                settles = ("drained", len(store.log), store.run)
        elif view.state == "fenced":
            members = [member for member in s.pg.members if member is not None]
            unknown = [m for m in members if m.sealed == NOBODY or m.mark is None]
            waiting = [m for m in members if m.sealed == NOBODY]
            if unknown and (not waiting or True in self._silences(s)):
                bound = f.accounted
                if rules.unknown_marks_burn_the_backlog:
                    bound = min(view.size, bound + self.setting.backlog_max)
                settles = ("bound", bound, NOBODY)
            elif not waiting:
                marks = [member.mark or 0 for member in members]
                settles = ("marks", max([f.accounted, *marks]), NOBODY)
        if settles is not None:
            decided = f._replace(settles=settles)
            yield f"decide: f{at} by {settles[0]} {settles[1]}", self._follow_with(s, at, decided)

    def _settle(self, s: State, at: int) -> Steps:
        f, rules = s.followers[at], self.rules
        assert f.view is not None and f.settles is not None
        place = f.view.lease
        lease = s.pg.leases[place]
        how, to, run = f.settles
        after = self._follow_with(s, at, f._replace(settles=None))
        if lease.state in ("settled", "open"):
            yield f"settle: f{at} is too late", after
            return
        if how == "drained" and rules.drained_redis_is_compared and lease.run != run:
            yield f"settle: f{at} asked another Redis", after
            return
        if rules.settling_is_at_the_offset and lease.offset != f.offset:
            yield (
                f"settle: f{at} has read elsewhere",
                self._follow_with(s, at, self._resumed(s, f)._replace(settles=None)),
            )
            return
        expected = {"unopened": "arming", "drained": "draining"}.get(how, "fenced")
        if rules.settling_is_guarded and lease.state != expected:
            yield f"settle: f{at} has seen another state", after
            return
        if how == "bound" and rules.bound_is_computed_at_settling:
            to = lease.accounted
            if rules.unknown_marks_burn_the_backlog:
                to = min(lease.size, to + self.setting.backlog_max)
        yield f"settle: {how} {to}", stores.settle_lease(after, place, to, self.setting)
