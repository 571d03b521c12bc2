"""What may befall the processes of the protocol's model, and the small moves all steps share."""

from collections.abc import Iterator

from tests.sim import stores
from tests.sim.world import (
    NEVER,
    NOBODY,
    Follower,
    Rules,
    Setting,
    State,
    Store,
    View,
    Worker,
    put_at,
)

Steps = Iterator[tuple[str, State]]


class Faults:
    """One small world under given rules, with its faults: each kind as often as it says."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting = setting
        self.rules = rules
        self.kinds = setting.kinds()

    def _view(self, s: State) -> View | None:
        place = stores.out(s.pg)
        if place < 0:
            return None
        lease = s.pg.leases[place]
        return View(place, lease.state, lease.run, lease.judged, lease.size)

    def _store_of(self, s: State, run: int) -> Store | None:
        if s.now.run == run:
            return s.now
        return s.old if s.old is not None and s.old.run == run else None

    def _put_store(self, s: State, store: Store) -> State:
        return s._replace(now=store) if s.now.run == store.run else s._replace(old=store)

    def _with(self, s: State, at: int, worker: Worker) -> State:
        return s._replace(workers=put_at(s.workers, at, worker))

    def _follow_with(self, s: State, at: int, follower: Follower) -> State:
        return s._replace(followers=put_at(s.followers, at, follower))

    def faults(self, s: State) -> Steps:
        for kind, left in zip(self.kinds, s.faults, strict=True):
            if left:
                yield from getattr(self, f"_{kind}")(self._spent(s, kind))

    def _next_run(self, s: State) -> int:
        return max(s.now.run, s.old.run if s.old else 0) + 1

    def _restart(self, s: State) -> Steps:
        yield "RESTART: Redis, with its data", s._replace(now=s.now._replace(run=self._next_run(s)))

    def _loss(self, s: State) -> Steps:
        empty = Store(self._next_run(s), -1, "", 0, 0, (), frozenset(), (), frozenset())
        yield "LOSS: Redis comes back empty", s._replace(now=empty)

    def _flush(self, s: State) -> Steps:
        empty = Store(s.now.run, -1, "", 0, 0, (), frozenset(), (), frozenset())
        yield "FLUSH: everything in Redis is deleted", s._replace(now=empty)

    def _older(self, s: State, store: Store) -> Iterator[Store]:
        """What an old backup or a lagging replica may hold of a store."""
        for kept in range(len(store.log)):
            yield store._replace(
                run=self._next_run(s),
                log=store.log[:kept],
                accounted=min(store.accounted, kept),
                state="open" if store.state == "closed" else store.state,
                released=frozenset(n for n in store.released if n <= kept),
            )

    def _backup(self, s: State) -> Steps:
        for older in self._older(s, s.now):
            yield f"OLDER DATA: {len(older.log)} of {len(s.now.log)} wins", s._replace(now=older)

    def _forget(self, s: State) -> Steps:
        """Redis is loaded with older data by hand, and stays the same process."""
        for older in self._older(s, s.now):
            yield (
                f"FORGET: all but {len(older.log)} wins",
                s._replace(now=older._replace(run=s.now.run)),
            )

    def _split(self, s: State) -> Steps:
        if s.old is None and s.now.lease >= 0:
            same = s.now._replace(run=self._next_run(s))
            for promoted in (same, *self._older(s, s.now)):
                label = f"SPLIT: a replica with {len(promoted.log)} wins is promoted"
                yield label, s._replace(old=s.now, now=promoted)

    def _heal(self, s: State) -> Steps:
        """The cut-off primary is gone for good; who was connected to it has to reconnect."""
        if s.old is not None:
            yield "HEAL: the old primary is gone", s._replace(old=None)

    def _kill(self, s: State) -> Steps:
        yield from self._die(s, is_host=False)

    def _host(self, s: State) -> Steps:
        yield from self._die(s, is_host=True)

    def _die(self, s: State, *, is_host: bool) -> Steps:
        for at, w in enumerate(s.workers):
            if not w.is_alive:
                continue
            dead = w._replace(
                run=NOBODY, view=None, slot=-1, sealed="", sealed_at=NEVER, flight=None, stage="",
                read=None, peeked=None, late=None, is_alive=False,
            )  # fmt: skip
            if is_host:
                dead = dead._replace(mark=0, mark_of=-1, marks_lost=True)
            what = "HOST LOST" if is_host else "KILL"
            yield f"{what}: w{at}", self._with(s, at, dead)

    def _respawn(self, s: State) -> Steps:
        for at, w in enumerate(s.workers):
            if not w.is_alive:
                yield f"START: w{at} again", self._with(s, at, w._replace(is_alive=True))

    def _reconciler(self, s: State) -> Steps:
        for at in range(len(s.followers)):
            fresh = Follower(s.now.run, None, 0, 0, None, None, None)
            yield f"KILL: f{at}, and it starts again", self._follow_with(s, at, fresh)

    def _drift(self, s: State) -> Steps:
        place = stores.out(s.pg)
        if place >= 0 and s.pg.leases[place].state == "open":
            judged = s.pg.leases[place].judged + 1
            pg = stores.put_lease(s.pg, place, state="fenced", judged=judged)
            yield "DRIFT: Redis was set to forget, the lease is fenced", s._replace(pg=pg)

    def _standby(self, s: State) -> Steps:
        yield "STANDBY: it is told nothing any more", s._replace(standby=s.pg)

    def _promotion(self, s: State) -> Steps:
        """The standby takes over, with what it has; so does a restored backup."""
        if s.standby is not None:
            pg = s.standby._replace(is_accepted=not self.rules.history_is_gated)
            yield "PROMOTION: of the standby", s._replace(pg=pg, standby=None)

    def _delay(self, s: State) -> Steps:
        """Not an event of its own: see where a worker tells its seal."""
        return
        yield

    def _silence(self, s: State) -> Steps:
        """Not an event: while it may come, anybody may have been silent for too long."""
        return
        yield

    def _silences(self, s: State) -> tuple[bool, ...]:
        return (False, True) if self._left(s, "silence") else (False,)

    def _left(self, s: State, kind: str) -> bool:
        return kind in self.kinds and s.faults[self.kinds.index(kind)] > 0

    def _spent(self, s: State, kind: str) -> State:
        at = self.kinds.index(kind)
        return s._replace(faults=put_at(s.faults, at, s.faults[at] - 1))
