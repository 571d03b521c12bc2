"""The only floor that speaks asyncpg: pools, transactions, and named statements into structs.

An operation opens one visible transaction for its project and runs statements of
`sql/<noun>.sql` by name. What the database refuses comes out as the classes of `faults`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Self, TypeVar, cast
from uuid import UUID

import asyncpg
import msgspec
import structlog

from core.db import queries
from core.db.faults import (
    DRIVER_ERRORS,
    CheckViolation,
    ForeignKeyViolation,
    RolledBack,
    StatementFailed,
    UniqueViolation,
    overloaded,
    raise_translated,
    unavailable,
)
from core.db.rows import convert_rows
from core.errors import OutcomeUnknown, Unavailable

__all__ = [
    "CheckViolation",
    "Connection",
    "Database",
    "ForeignKeyViolation",
    "OutcomeUnknown",
    "RolledBack",
    "StatementFailed",
    "Unavailable",
    "UniqueViolation",
    "many",
    "one",
    "run",
    "value",
]

T = TypeVar("T")

# A connection is held for one short transaction, 1 to 5 ms. Who has waited a second stands behind
# hundreds of others: an honest 503 now is better than an answer nobody waits for. It is also
# several times what opening a connection over TLS takes.
ACQUIRE_TIMEOUT_S: Final = 1.0
# Those who wait for a connection, per connection: 100 transactions of 5 ms are half the timeout.
WAITING_MAX_PER_CONNECTION: Final = 100
# What PostgreSQL allows one statement. The slowest ordinary one is a page of a report, well under
# a second; ten times that means something is wrong.
STATEMENT_TIMEOUT_MS: Final = 5_000
# A row is locked for one commit, a few milliseconds; a second is a stuck neighbour.
LOCK_TIMEOUT_MS: Final = 1_000
# A process that froze inside a transaction must give its locks back before people notice.
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 10_000
# Behind PgBouncer a call that commits by itself needs BEGIN and COMMIT around it (see
# `Connection._wrapped`); a client that freezes in between may hold its locks for this long.
IDLE_IN_CALL_TIMEOUT_MS: Final = 1_000
# The client waits this much longer than the server's own timeout, so that the server's answer,
# which says "rolled back", wins over the client's "unknown".
CLIENT_GRACE_S: Final = 2.0
# ROLLBACK and handing back are one round trip; a connection that does not answer is thrown away.
RELEASE_TIMEOUT_S: Final = 2.0
# Above asyncpg's 50,000, which a busy flash sale uses up in seconds; a backend that is renewed
# after some hours keeps its caches from growing for ever.
QUERIES_PER_CONNECTION_MAX: Final = 10_000_000
# All named statements of the product fit: a miss would cost a round trip.
STATEMENT_CACHE_SIZE: Final = 400

Isolation = Literal["read committed", "repeatable read"]

_log = structlog.get_logger("vauchflow.db")


def server_settings(application_name: str) -> dict[str, str]:
    """Return what every session is started with.

    PgBouncer refuses these as startup parameters; behind it they come from the roles, on which
    `migrate` sets the same values for its database.
    """
    return {
        "application_name": application_name,
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        "lock_timeout": str(LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
        # Compiling costs more than any statement here takes.
        "jit": "off",
        # A list is one statement with many optional filters: a plan for all of them fits none.
        # The hot functions pin their own plans.
        "plan_cache_mode": "force_custom_plan",
    }


class Connection:
    """A connection for the length of one `async with`.

    In a transaction, or `is_alone`: then every statement commits by itself.
    """

    __slots__ = ("_is_alone", "_is_pooled", "_raw", "_reads_only", "_timeout_s")

    def __init__(
        self,
        raw: Any,
        *,
        is_alone: bool,
        is_pooled: bool = False,
        reads_only: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._raw = raw
        self._is_alone = is_alone
        self._is_pooled = is_pooled
        self._reads_only = reads_only
        self._timeout_s = timeout_s

    async def fetch(self, sql: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Run one statement and return its rows as the driver gives them."""
        return cast("list[Any]", await self._send("fetch", sql, args))

    async def execute(self, sql: str, args: tuple[Any, ...] = ()) -> str:
        """Run one statement, or a script when there are no arguments, and return its tag."""
        return cast("str", await self._send("execute", sql, args))

    def give_back(self) -> None:
        """Mark the end of the `async with`; using the connection from now on is a bug."""
        self._raw = None

    async def _send(self, method: Literal["fetch", "execute"], sql: str, args: Any) -> Any:
        assert self._raw is not None, "the connection was given back: its `async with` is over"
        if _is_lost(self._raw):
            # Nothing was sent: even a call that commits by itself has surely not run.
            raise unavailable("the connection to the database was lost before the statement")
        if self._is_alone and self._is_pooled:
            return await self._wrapped(method, sql, args)
        try:
            return await getattr(self._raw, method)(sql, *args, timeout=self._timeout_s)
        except DRIVER_ERRORS as error:
            if isinstance(error, asyncpg.InternalClientError) and not _is_lost(self._raw):
                # The driver has lost track of what was asked: nobody may ask there again.
                self._raw.terminate()
            may_have_committed = self._is_alone and not self._reads_only
            raise_translated(
                error, may_have_committed=may_have_committed, reads_only=self._reads_only
            )

    async def _wrapped(self, method: Literal["fetch", "execute"], sql: str, args: Any) -> Any:
        # In transaction mode PgBouncer may give each message of an unprepared statement to
        # another server, unless a transaction holds one. It costs two round trips.
        inside = Connection(self._raw, is_alone=False, reads_only=self._reads_only)
        try:
            await inside.execute(
                f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {IDLE_IN_CALL_TIMEOUT_MS}"
            )
            answer = await inside._send(method, sql, args)
        except BaseException:
            await _roll_back(self._raw)
            raise
        await _commit(self._raw, reads_only=self._reads_only, timeout_s=None)
        return answer


class Database:
    """A pool of connections under one role. One per process and role.

    Survives PostgreSQL: connections that died are replaced when they are next asked for, and
    until it is back every use says Unavailable.
    """

    def __init__(self, pool: Any, *, size_max: int, is_pooled: bool) -> None:
        self._pool = pool
        self._is_pooled = is_pooled
        self._size_max = size_max
        self._waiting = 0
        self._waiting_max = WAITING_MAX_PER_CONNECTION * size_max

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        size_min: int = 1,
        size_max: int,
        statement_cache_size: int = STATEMENT_CACHE_SIZE,
        command_timeout_s: float = STATEMENT_TIMEOUT_MS / 1000 + CLIENT_GRACE_S,
        application_name: str = "vauchflow",
    ) -> Self:
        """Open `size_min` connections now; more when needed, up to `size_max`, which idle away.

        `statement_cache_size=0` (settings.prepared_statements off) is the mode for PgBouncer
        pooling transactions: no prepared statements and no startup parameters.

        Raises: Unavailable when PostgreSQL cannot be reached; `size_min=0` never tries.
        """
        is_pooled = statement_cache_size == 0
        try:
            pool = await asyncpg.create_pool(
                dsn,
                # asyncpg keeps a minimum by logging a traceback whenever PostgreSQL is away.
                min_size=0,
                max_size=size_max,
                max_queries=QUERIES_PER_CONNECTION_MAX,
                statement_cache_size=statement_cache_size,
                max_cached_statement_lifetime=0,
                command_timeout=command_timeout_s,
                server_settings=None if is_pooled else server_settings(application_name),
                init=_set_codecs_pooled if is_pooled else _set_codecs,
                reset=_keep_session,
            )
            opened = [await pool.acquire() for _ in range(size_min)]
            for raw in opened:
                await pool.release(raw)
        except DRIVER_ERRORS as error:
            raise_translated(error, may_have_committed=False, reads_only=True)
        return cls(pool, size_max=size_max, is_pooled=is_pooled)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close the pool: wait for connections in use, then cut those that are left."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def transaction(
        self,
        project_id: UUID | None,
        *,
        reads_only: bool = False,
        isolation: Isolation = "read committed",
        statement_timeout_ms: int | None = None,
    ) -> AsyncIterator[Connection]:
        """Open a transaction that sees one project (None: no project), and commit it at the end.

        An exception rolls back and goes on. `statement_timeout_ms` replaces the 5 s for work
        that is known to be long, such as a bulk of codes.

        Raises: Unavailable (nothing applied), RolledBack (nothing applied, run it again),
        OutcomeUnknown when the connection is lost during COMMIT and something was written.
        Cost: two round trips beside the statements.
        """
        begin = _begin(project_id, reads_only, isolation, statement_timeout_ms)
        timeout_s = statement_timeout_ms and statement_timeout_ms / 1000 + CLIENT_GRACE_S
        raw, connection = await self._started(begin, reads_only, timeout_s)
        try:
            try:
                yield connection
            except BaseException:
                await _roll_back(raw)
                raise
            await _commit(raw, reads_only=reads_only, timeout_s=timeout_s)
        finally:
            connection.give_back()
            await self._release(raw)

    @asynccontextmanager
    async def connection(self, *, reads_only: bool = False) -> AsyncIterator[Connection]:
        """Lend a connection on which every statement commits by itself.

        For one call of a function that sets its project itself, so that a client that freezes
        holds no locks. A lost connection is OutcomeUnknown, unless `reads_only`.
        """
        raw = await self._acquire()
        connection = Connection(
            raw, is_alone=True, is_pooled=self._is_pooled, reads_only=reads_only
        )
        try:
            yield connection
        finally:
            connection.give_back()
            await self._release(raw)

    async def _started(
        self, begin: str, reads_only: bool, timeout_s: float | None
    ) -> tuple[Any, Connection]:
        # After a restart of PostgreSQL connections may be dead without anybody knowing yet. A
        # BEGIN that was lost has done nothing, and each try throws one dead connection away.
        for dead in range(self._size_max + 1):
            raw = await self._acquire()
            connection = Connection(raw, is_alone=False, reads_only=reads_only, timeout_s=timeout_s)
            try:
                await connection.execute(begin)
            except BaseException as error:
                is_dead = isinstance(error, Unavailable) and _is_lost(raw)
                if not is_dead:
                    await _roll_back(raw)
                await self._release(raw)
                if not is_dead or dead == self._size_max:
                    raise
            else:
                return raw, connection
        raise AssertionError("the last try returns or raises")

    async def _acquire(self) -> Any:
        if self._waiting >= self._waiting_max:
            raise overloaded("too many requests wait for the database")
        self._waiting += 1
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                return await self._pool.acquire()
        except TimeoutError:
            raise overloaded("no connection to the database became free in time") from None
        except DRIVER_ERRORS as error:
            if isinstance(error, asyncpg.InterfaceError) and not self._pool.is_closing():
                raise
            raise unavailable("the database accepts no connection") from error
        finally:
            self._waiting -= 1

    async def _release(self, raw: Any) -> None:
        try:
            await self._pool.release(raw, timeout=RELEASE_TIMEOUT_S)
        except Exception as error:
            # The pool has thrown the connection away. What the transaction answered stands.
            _log.info("connection_dropped", error=type(error).__name__)


async def one(conn: Connection, name: str, type_: type[T], **params: object) -> T | None:
    """Run a `:one` statement; its row becomes a `type_`, no row None.

    `type_` is a struct (matched by column name), `dict`, or the type of a single column.
    Two rows are a bug in the statement.
    """
    query, args = _bind(name, "one", params)
    rows = await conn.fetch(query.sql, args)
    assert len(rows) <= 1, f"{name} is :one and returned {len(rows)} rows"
    return convert_rows(rows, type_)[0] if rows else None


async def many(conn: Connection, name: str, type_: type[T], **params: object) -> list[T]:
    """Run a `:many` statement; each row becomes a `type_`, as in `one`."""
    query, args = _bind(name, "many", params)
    return convert_rows(await conn.fetch(query.sql, args), type_)


async def run(conn: Connection, name: str, **params: object) -> int:
    """Run an `:exec` statement and return how many rows it changed."""
    query, args = _bind(name, "exec", params)
    tag = await conn.execute(query.sql, args)
    count = tag.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


async def value(conn: Connection, name: str, type_: type[T], **params: object) -> T:
    """Run a `:one` statement that always has exactly one row of one column, and return it."""
    query, args = _bind(name, "one", params)
    rows = await conn.fetch(query.sql, args)
    assert len(rows) == 1 and len(rows[0]) == 1, f"{name} must return one value"
    return convert_rows(rows, type_)[0]


def _bind(
    name: str, kind: queries.Kind, params: dict[str, object]
) -> tuple[queries.Query, tuple[object, ...]]:
    query = queries.find(name)
    assert query.kind == kind, f"{name} is :{query.kind}, not :{kind}"
    try:
        args = tuple([params[param] for param in query.params])
    except KeyError as missing:
        raise TypeError(f"{name} needs @{missing.args[0]}") from None
    if len(params) != len(args):
        extra = ", ".join(sorted(params.keys() - set(query.params)))
        raise TypeError(f"{name} has no parameter {extra}")
    return query, args


def _begin(
    project_id: UUID | None,
    reads_only: bool,
    isolation: Isolation,
    statement_timeout_ms: int | None,
) -> str:
    script = f"BEGIN ISOLATION LEVEL {isolation.upper()}{' READ ONLY' if reads_only else ''}"
    if statement_timeout_ms is not None:
        script += f"; SET LOCAL statement_timeout = {int(statement_timeout_ms)}"
    if project_id is not None:
        # One script is one round trip, and a script takes no parameters: the only text that may
        # be put into it is a UUID's own.
        assert isinstance(project_id, UUID), "a project is named by its UUID"
        script += f"; SELECT set_config('app.project_id', '{project_id}', true)"
    return script


async def _commit(raw: Any, *, reads_only: bool, timeout_s: float | None) -> None:
    if _is_lost(raw):
        raise unavailable("the connection to the database was lost before the commit")
    try:
        tag = await raw.execute("COMMIT", timeout=timeout_s)
    except DRIVER_ERRORS as error:
        raise_translated(error, may_have_committed=not reads_only, reads_only=reads_only)
    # PostgreSQL answers ROLLBACK to the COMMIT of a failed transaction, without an error.
    assert tag == "COMMIT", "an error of a statement was swallowed inside the transaction"


async def _roll_back(raw: Any) -> None:
    if _is_lost(raw):
        return
    try:
        await raw.execute("ROLLBACK", timeout=RELEASE_TIMEOUT_S)
    except Exception:
        # It did not even roll back: without its connection PostgreSQL will do so by itself.
        if not _is_lost(raw):
            raw.terminate()


def _is_lost(raw: Any) -> bool:
    try:
        return bool(raw.is_closed())
    except asyncpg.InterfaceError:
        # The pool has already taken the dead connection away from under its user.
        return True


async def _set_codecs_pooled(raw: Any) -> None:
    # Looking a type up is a statement like any other: see `Connection._wrapped`.
    await raw.execute("BEGIN")
    await _set_codecs(raw)
    await raw.execute("COMMIT")


async def _set_codecs(raw: Any) -> None:
    # jsonb on the wire is a version byte and the text; json is the text alone.
    await raw.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda obj: b"\x01" + msgspec.json.encode(obj),
        decoder=lambda sent: msgspec.json.decode(sent[1:]),
        format="binary",
    )
    await raw.set_type_codec(
        "json",
        schema="pg_catalog",
        encoder=msgspec.json.encode,
        decoder=msgspec.json.decode,
        format="binary",
    )


async def _keep_session(_raw: Any) -> None:
    """Do nothing between two users of a connection.

    asyncpg's own reset is a round trip that undoes session state. There is none: settings are
    set for a transaction only, and nothing here listens, opens cursors that outlive one, or
    takes session locks. An open transaction is rolled back by the pool before this is called.
    """
