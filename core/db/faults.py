"""What can go wrong between a statement and its answer, told apart by what may have happened.

Nothing of asyncpg leaves `core.db`: every error of the driver and the server comes out as one of
these classes, with the original as its cause for the log. Messages carry no values of a tenant.
"""

from typing import Final, NoReturn

import asyncpg

from core.errors import OutcomeUnknown, Unavailable

# Everything asyncpg and the socket below it raise.
DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)

_ROLLED_BACK: Final = {
    "40001": "a concurrent transaction came first",
    "40P01": "a deadlock was resolved against this transaction",
    "55P03": "a row stayed locked for longer than lock_timeout",
    "57014": "the statement ran for longer than its timeout",
    "25P03": "the transaction sat idle for longer than its timeout",
    "0A000": "the schema changed under a prepared statement",
}
# Admin shutdown, crash of another backend, starting up, idle session: the session is over.
_SESSION_OVER: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P04"})


class StatementFailed(Exception):
    """PostgreSQL reported an error: the statement, and its transaction, changed nothing.

    `sqlstate` is the five-character code; functions of this schema raise theirs as `VFxxx`.
    `constraint` is the constraint's name where the server named one. Never parse the message.
    """

    def __init__(self, sqlstate: str, constraint: str | None = None, table: str | None = None):
        where = f" by {constraint}" if constraint else ""
        super().__init__(f"PostgreSQL refused the statement with {sqlstate}{where}")
        self.sqlstate = sqlstate
        self.constraint = constraint or ""
        self.table = table or ""


class UniqueViolation(StatementFailed):
    """A key is already taken; `constraint` names the unique constraint or index."""


class CheckViolation(StatementFailed):
    """A CHECK held; `constraint` names it."""


class ForeignKeyViolation(StatementFailed):
    """A row points at nothing, or is still pointed at; `constraint` names the foreign key."""


class RolledBack(Unavailable):
    """The transaction was rolled back for reasons that pass; it may be run again at once.

    `sqlstate` says which: deadlock, serialization, lock timeout, statement timeout.
    """

    def __init__(self, sqlstate: str, reason: str):
        super().__init__(f"Nothing was applied: {reason}.")
        self.sqlstate = sqlstate


_VIOLATIONS: Final[dict[str, type[StatementFailed]]] = {
    "23505": UniqueViolation,
    "23514": CheckViolation,
    "23503": ForeignKeyViolation,
}


def unavailable(reason: str) -> Unavailable:
    """Return the fault of a statement that PostgreSQL never applied and may apply later."""
    return Unavailable(f"Nothing was applied: {reason}.")


def overloaded(reason: str) -> Unavailable:
    """Return the fault of a statement that was never sent, because too many are under way."""
    return Unavailable(f"Nothing was applied: {reason}.", code="overloaded")


def raise_translated(error: Exception, *, may_have_committed: bool, reads_only: bool) -> NoReturn:
    """Raise what `translated` makes of an error, with the error as its cause."""
    fault = translated(error, may_have_committed=may_have_committed, reads_only=reads_only)
    if fault is error:
        raise error
    raise fault from error


def translated(error: Exception, *, may_have_committed: bool, reads_only: bool) -> Exception:
    """Return what an error of the driver means to an operation.

    `may_have_committed`: the statement was a commit, or committed by itself, and was sent. Then
    a connection that is lost before the answer leaves the outcome unknown, never "not applied".
    Errors that only broken code can cause come back as they are.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        if state in _ROLLED_BACK and _is_transient(error):
            return RolledBack(state, _ROLLED_BACK[state])
        if state.startswith("08") or state in _SESSION_OVER:
            return _lost(may_have_committed)
        if state.startswith("53"):
            return unavailable("the database is out of connections, memory or disk space")
        if state == "VF001":
            return unavailable(
                "the database was restored or promoted, and ./vauchflow recover has not accepted it"
            )
        if state == "25006" and not reads_only:
            return unavailable("the database is a standby now and takes no writes")
        kind = _VIOLATIONS.get(state, StatementFailed)
        return kind(
            state, getattr(error, "constraint_name", None), error.as_dict().get("table_name")
        )
    if isinstance(error, TimeoutError | OSError | asyncpg.InternalClientError):
        return _lost(may_have_committed)
    return error


def _is_transient(error: asyncpg.PostgresError) -> bool:
    # 0A000 is also every feature PostgreSQL does not have; only this one passes by itself.
    return error.sqlstate != "0A000" or isinstance(error, asyncpg.InvalidCachedStatementError)


def _lost(may_have_committed: bool) -> Exception:
    if may_have_committed:
        return OutcomeUnknown()
    return unavailable("the connection to the database was lost before a commit")
