"""The world of the protocol's model: what each store, worker and reconciler knows, as plain values.

Small on purpose: a claim is one request, a stream entry one win, and time is only order. What
PostgreSQL does in one commit, and Redis in one script call, is one step; all else is apart.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

DIRECT = -1  # the "lease" of a redemption that PostgreSQL decided by itself
NOBODY = 0  # the run id of no process
NEVER = -2  # below every judgement's number


class Lease(NamedTuple):
    """PostgreSQL's row of a lease, with its progress. `offset` is the id of a stream entry."""

    state: str
    run: int
    judged: int
    size: int
    open_to: int
    offset: int
    accounted: int
    returned: int
    past_runs: frozenset[int]  # the processes a later one was judged to continue


class Row(NamedTuple):
    """One redemption in the ledger; `request` is None for a number that was released."""

    lease: int
    seq: int
    request: int | None
    is_live: bool


class Member(NamedTuple):
    """A worker registered for the lease that is out. `sealed` is the run id it was sealed for."""

    registered: int  # how often
    sealed: int
    mark: int | None


class Ledger(NamedTuple):
    """PostgreSQL."""

    direct: int
    leased: int
    has_authority: bool
    leases: tuple[Lease, ...]
    rows: frozenset[Row]
    members: tuple[Member | None, ...]
    counts: tuple[int, ...]  # live redemptions a customer has, of settled leases and direct ones
    is_accepted: bool = True  # whether anything may be redeemed or leased in this history


class Entry(NamedTuple):
    """One win in the stream."""

    id: int
    request: int


class Store(NamedTuple):
    """One Redis process and the lease in it. A win's number is its place in the stream."""

    run: int
    lease: int
    state: str
    size: int
    accounted: int
    log: tuple[Entry, ...]
    loaded: frozenset[Row]
    counts: tuple[int, ...]
    released: frozenset[int]


class View(NamedTuple):
    """What a process read of the lease that is out, the last time it looked."""

    lease: int
    state: str
    run: int
    judged: int
    size: int


class Worker(NamedTuple):
    """One API worker. The mark outlives its process, but not its host (`knows_mark`)."""

    run: int
    view: View | None
    slot: int
    slot_run: int
    sealed: str
    sealed_at: int  # the judgement it waits for is a later one
    mark: int
    mark_of: int  # the lease the mark is of
    marks_lost: bool
    knows_mark: bool
    flight: tuple[int, int, str, int, int] | None  # request, lease asked, told, lease, number
    stage: str  # of a judgement: "", "told", or "read"
    read: int | None
    peeked: tuple[int, int, int, int] | None  # a dead neighbour: who, registered, mark, run id
    late: tuple[int, int, int, int | None] | None  # a seal on its way: lease, judged, run, mark
    is_alive: bool


class Follower(NamedTuple):
    """One reconciler's task for the lease that is out."""

    run: int
    view: View | None
    offset: int
    accounted: int
    holds: tuple[Entry, int, int] | None  # an entry it has read: what, its number, of which process
    owes: int | None  # what Redis is still to be told is accounted
    settles: tuple[str, int, int] | None  # how, open_to, and the run id that was asked


class State(NamedTuple):
    """Everything. `old` is a primary that was cut off and still serves whoever is connected."""

    pg: Ledger
    now: Store
    old: Store | None
    workers: tuple[Worker, ...]
    followers: tuple[Follower, ...]
    tries: tuple[int, ...]
    acked: frozenset[tuple[int, int, int]]  # request, lease, number
    entries: int  # stream entries ever written: the next one's id
    faults: tuple[int, ...]  # how many of each kind may still come
    has_grown: bool
    refused: str  # what PostgreSQL had to put into quarantine
    standby: Ledger | None = None  # what a standby has that is no longer told anything


@dataclass(frozen=True)
class Rules:
    """The rules of the protocol, each of which may be left out to see what it is for."""

    marks_are_raised: bool = True
    new_number_is_above_mark: bool = True
    number_seen_twice_fences: bool = True
    replay_raises_mark: bool = True
    all_marks_are_known: bool = True
    run_id_is_compared: bool = True
    joining_is_guarded: bool = True
    settling_is_guarded: bool = True
    settling_is_at_the_offset: bool = True
    seal_is_of_this_judgement: bool = True
    neighbour_seal_is_of_this_process: bool = True
    unsealing_is_told: bool = True
    stream_is_of_this_process: bool = True
    bound_is_computed_at_settling: bool = True
    drained_redis_is_compared: bool = True
    unknown_marks_burn_the_backlog: bool = True
    backlog_is_bounded: bool = True
    accounted_after_commit: bool = True
    open_to_is_checked: bool = True
    offset_is_compared: bool = True
    rows_are_unique: bool = True
    records_are_loaded: bool = True
    customers_are_loaded: bool = True
    authority_is_checked: bool = True
    size_is_absolute: bool = True
    release_is_idempotent: bool = True
    rollback_is_once: bool = True
    hole_is_released_with_a_row: bool = True
    history_is_gated: bool = True
    accepting_asks_redis: bool = True
    recovering_fences_redis: bool = True


@dataclass(frozen=True)
class Setting:
    """One small world. `keys` and `customers` name those of each request (None: without)."""

    name: str
    limit: int = 2
    keys: tuple[int | None, ...] = (0, 1, 2)
    customers: tuple[int | None, ...] = (None, None, None)
    customer_limit: int | None = None
    tries: int = 1
    workers: int = 1
    followers: int = 1
    leases: int = 2
    backlog_max: int = 9
    held_back: int = 0  # units that come to the voucher only while the sale is open
    sells_directly: bool = False
    rolls_back: bool = False
    claims_receipts: bool = False
    closes: bool = True
    arms_slowly: bool = False  # arming, loading and opening are steps of their own
    joins_slowly: bool = False  # what a worker has read may be old when it joins
    reads_slowly: bool = False  # a reconciler may be frozen between reading and writing
    loses_replies: bool = False
    faults: dict[str, int] = field(default_factory=dict)
    loses_data: bool = False
    states_max: int = 400_000

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of faults of this world in a fixed order."""
        return tuple(self.faults)


def begin(setting: Setting) -> State:
    """Return the state in which nothing has happened."""
    store = Store(1, DIRECT, "", 0, 0, (), frozenset(), (), frozenset())
    people = max((c for c in setting.customers if c is not None), default=-1) + 1
    ledger = Ledger(0, 0, True, (), frozenset(), (None,) * setting.workers, (0,) * people)
    worker = Worker(
        1, None, -1, NOBODY, "", NEVER, 0, -1, False, True, None, "", None, None, None, True
    )
    follower = Follower(1, None, 0, 0, None, None, None)
    return State(
        ledger,
        store,
        None,
        (worker,) * setting.workers,
        (follower,) * setting.followers,
        (0,) * len(setting.keys),
        frozenset(),
        1,
        tuple(setting.faults.values()),
        setting.held_back == 0,
        "",
    )


def put_at(items: tuple, place: int, item: object) -> tuple:  # type: ignore[type-arg]
    """Return a tuple with another item at a place."""
    return (*items[:place], item, *items[place + 1 :])
