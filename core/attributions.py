"""Attributions: who came through whom, and whether that is believed.

Those of a project come one after another, because a ring has no row of its own to lock. One that
is not believed is refused and written down, for somebody to decide within a deadline.
"""

import hmac
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import structlog

from core import db, ids, referral_programs, referrals
from core.api_keys import Caller
from core.errors import NotFound, OutcomeUnknown, Refusal, Unavailable
from core.referral_programs import NewCode, ReferralCode, StoredCode
from core.referral_programs import Stored as Program
from core.referrals import Referral, Review, Status
from core.rules import codes, rewards
from core.rules.rewards import IdentifierKind
from core.shapes import CustomerId

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=320)]

_TAKEN: Final = Refusal("already_attributed", "This customer was referred by somebody else before.")
_log = structlog.get_logger("vauchflow.attributions")


class Identifiers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tells one person from another; kept as keyed hashes."""

    email: Text | None = None
    phone: Text | None = None
    device: Text | None = None
    payment: Text | None = None
    address: Text | None = None


class NewReferralCode(NewCode, kw_only=True, forbid_unknown_fields=True):
    """Whose code it is, and what is known of them."""

    identifiers: Identifiers = Identifiers()


class Invitation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom a customer invites, by what is known of them."""

    program_id: str
    customer_id: CustomerId
    identifiers: Identifiers


class Attribution(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who came with a code."""

    code: str
    customer_id: CustomerId
    identifiers: Identifiers = Identifiers()


class _Email(msgspec.Struct, frozen=True):
    customer_id: str
    email: str


class _Invited(msgspec.Struct, frozen=True):
    id: UUID
    created_at: datetime


class People:
    """Recognises people by keyed hashes of what identifies them."""

    def __init__(self, secret: str) -> None:
        """Take the system's secret."""
        self._key = hmac.digest(secret.encode(), b"referrals", "sha256")

    async def know(
        self, conn: db.Connection, caller: Caller, customer_id: str, given: Identifiers
    ) -> None:
        """Keep what is known of a customer, also the address they are registered with."""
        found: list[tuple[IdentifierKind, str]] = [
            (kind, text)
            for kind in ("email", "phone", "device", "payment", "address")
            if (text := getattr(given, kind)) is not None
        ]
        project_id = caller.project_id
        registered = await db.many(
            conn, "referrals.emails", _Email, project_id=project_id, customers=[customer_id]
        )
        found += [("email", row.email) for row in registered]
        plain = [(kind, rewards.normalised(kind, text)) for kind, text in found]
        known = [(kind, text) for kind, text in plain if text]
        if known:
            await db.run(
                conn, "referrals.know", project_id=project_id, customer_id=customer_id,
                kinds=[kind for kind, _ in known],
                digests=[self._digest(project_id, kind, text) for kind, text in known],
            )  # fmt: skip

    def _digest(self, project_id: UUID, kind: str, text: str) -> bytes:
        return hmac.digest(self._key, project_id.bytes + f"{kind}:{text}".encode(), "sha256")


async def code_of(
    conn: db.Connection, caller: Caller, people: People, public_id: str, new: NewReferralCode
) -> ReferralCode:
    """Return a customer's code in a program, and keep what is known of the customer.

    Idempotent. Raises: NotFound for the program; Invalid and AlreadyExists for the code.
    """
    program = await referral_programs.find(conn, caller, public_id)
    await people.know(conn, caller, new.customer_id, new.identifiers)
    return referral_programs.show_code(await referral_programs.code_of(conn, caller, program, new))


async def invite(
    conn: db.Connection, caller: Caller, people: People, new: Invitation
) -> Referral | Refusal:
    """Write down that a customer has invited somebody, who is recognised when they come.

    Refuses: paused, ended. Raises: NotFound, Invalid.
    """
    program = await referral_programs.find(conn, caller, new.program_id, field="program_id")
    if program.status != "active":
        return referrals.closed(program)
    owner = NewCode(customer_id=new.customer_id)
    code = await referral_programs.code_of(conn, caller, program, owner)
    referral_id = ids.new()
    await people.know(conn, caller, str(referral_id), new.identifiers)
    await _write(conn, caller, program, code, referral_id, None, "invited")
    return await referrals.get(conn, caller, ids.format_id("rfa", referral_id))


async def attribute(
    conn: db.Connection, caller: Caller, people: People, new: Attribution
) -> Referral | Refusal:
    """Attribute a customer to the owner of a code, if nothing speaks against it.

    Idempotent: the same customer with the same code is the same referral. A refusal for who they
    are (self_referral, not_eligible) is written down for review, so commit it; already_attributed,
    paused and ended are not. Raises: NotFound for the code.
    Concurrency: one attribution of a project at a time.
    """
    project_id = caller.project_id
    await db.value(conn, "referrals.lock", bool, project_id=project_id)
    code = await db.one(
        conn, "referrals.code", StoredCode,
        project_id=project_id, code_norm=codes.normalise(new.code) or "",
    )  # fmt: skip
    if code is None:
        raise NotFound("There is no such referral code in this project.", field="code")
    program = await referral_programs.by_id(conn, caller, code.program_id)
    assert program is not None, "a code's program is there"
    if program.status != "active":
        return referrals.closed(program)
    live = await referrals.live_of(conn, caller, new.customer_id, program.id)
    if live and live[0].code_id == code.id:
        return await referrals.get(conn, caller, ids.format_id("rfa", live[0].id))
    if live and (program.rules.touch == "first" or live[0].status != "attributed"):
        return _TAKEN
    for person, given in ((new.customer_id, new.identifiers), (code.customer_id, Identifiers())):
        await people.know(conn, caller, person, given)
    against = await _against(conn, caller, program, code.customer_id, new.customer_id)
    if against is not None:
        return await _rejected(conn, caller, program, code, new.customer_id, against)
    for one in live:
        replaced = await db.run(
            conn, "referrals.reject",
            project_id=project_id, id=one.id, reason="replaced", review=None,
        )  # fmt: skip
        if not replaced:
            # It was converted since the look above, and is nobody else's any more.
            return _TAKEN
        await referrals.record(conn, caller, one.id, "rejected", reason="replaced")
    invited = await db.one(
        conn, "referrals.invited", _Invited,
        project_id=project_id, code_id=code.id, referee_id=new.customer_id,
    )  # fmt: skip
    referral_id = invited.id if invited else ids.new()
    if invited:
        await _attribute(conn, caller, program, referral_id, new.customer_id, review=None)
    else:
        await _write(conn, caller, program, code, referral_id, new.customer_id, "attributed")
    return await referrals.get(conn, caller, ids.format_id("rfa", referral_id))


async def _against(
    conn: db.Connection, caller: Caller, program: Program, referrer_id: str, referee_id: str
) -> tuple[str, dict[str, Any]] | None:
    """Return why an attribution is not believed: the reason, and its facts."""
    project_id = caller.project_id
    if referrer_id == referee_id:
        return "same_customer", {"customer_id": referee_id}
    shared = await db.many(
        conn, "referrals.shared", str, project_id=project_id, one=referrer_id, other=referee_id
    )
    if shared:
        return "same_person", {"shared": shared}
    above = await db.many(
        conn, "referrals.referrers", str,
        project_id=project_id, customer_id=referrer_id, depth_max=referrals.DEPTH_MAX,
    )  # fmt: skip
    if referee_id in above:
        return "ring", {"ring": [referee_id, *reversed(above[: above.index(referee_id)]),
                                 referrer_id, referee_id]}  # fmt: skip
    if program.rules.new_customers_only and await db.value(
        conn, "referrals.has_redeemed", bool, project_id=project_id, customer_id=referee_id
    ):
        return "existing_customer", {"customer_id": referee_id}
    return None


async def _rejected(
    conn: db.Connection,
    caller: Caller,
    program: Program,
    code: StoredCode,
    referee_id: str,
    against: tuple[str, dict[str, Any]],
) -> Refusal:
    """Put a rejected attribution on the review list, once, and return the refusal."""
    reason, because = against
    referral_id = await db.one(
        conn, "referrals.in_review", UUID,
        project_id=caller.project_id, code_id=code.id, referee_id=referee_id,
    )  # fmt: skip
    if referral_id is None:
        referral_id = ids.new()
        await _write(
            conn, caller, program, code, referral_id, referee_id, "rejected",
            reason=reason, because=because,
        )  # fmt: skip
    extra = {"referral_id": ids.format_id("rfa", referral_id)}
    facts = {"reason": reason, **because}
    if reason == "existing_customer":
        return Refusal("not_eligible", "This customer has bought before.", facts, extra)
    return Refusal("self_referral", "Customers cannot refer themselves.", facts, extra)


async def _write(
    conn: db.Connection,
    caller: Caller,
    program: Program,
    code: StoredCode,
    referral_id: UUID,
    referee_id: str | None,
    status: Status,
    *,
    reason: str | None = None,
    because: dict[str, Any] | None = None,
) -> None:
    is_rejected = status == "rejected"
    await db.run(
        conn, "referrals.create",
        project_id=caller.project_id, id=referral_id, program_id=program.id, code_id=code.id,
        referrer_id=code.customer_id, referee_id=referee_id, status=status, reason=reason,
        because=because, review="open" if is_rejected else None,
        review_hours=program.rules.review_hours if is_rejected else None,
        window_days=program.rules.window_days,
    )  # fmt: skip
    detail = {"reason": reason} if reason else {}
    await referrals.record(conn, caller, referral_id, status, **detail)


async def _attribute(
    conn: db.Connection,
    caller: Caller,
    program: Program,
    referral_id: UUID,
    referee_id: str,
    *,
    review: Review | None,
) -> None:
    changed = await db.run(
        conn, "referrals.attribute",
        project_id=caller.project_id, id=referral_id, referee_id=referee_id, review=review,
        window_days=program.rules.window_days,
    )  # fmt: skip
    assert changed == 1, "its row, or the project's attributions, are locked"
    await referrals.record(conn, caller, referral_id, "attributed")


async def decide(
    conn: db.Connection, caller: Caller, public_id: str, *, review: Review
) -> Referral | Refusal:
    """Approve a rejected attribution, or reject it for good. Idempotent.

    Refuses: ended where it was decided otherwise; already_attributed; self_referral for one and
    the same customer. Raises: NotFound.
    """
    await db.value(conn, "referrals.lock", bool, project_id=caller.project_id)
    stored = await referrals.take(conn, caller, public_id)
    if stored.review == review:
        return await referrals.get(conn, caller, public_id)
    if stored.review != "open":
        return Refusal("ended", "Nobody has to decide about this referral any more.")
    if review != "approved":
        await db.run(
            conn, "referrals.reject",
            project_id=caller.project_id, id=stored.id, reason=None, review=review,
        )  # fmt: skip
        await referrals.record(conn, caller, stored.id, "rejected", review=review)
        return await referrals.get(conn, caller, public_id)
    if stored.referee_id is None or stored.referee_id == stored.referrer_id:
        return Refusal("self_referral", "A customer cannot refer themselves, whoever approves it.")
    if await referrals.live_of(conn, caller, stored.referee_id, stored.program_id):
        return Refusal("already_attributed", "This customer was referred by somebody else since.")
    program = await referral_programs.by_id(conn, caller, stored.program_id)
    assert program is not None, "a referral's program is there"
    await _attribute(conn, caller, program, stored.id, stored.referee_id, review="approved")
    return await referrals.get(conn, caller, public_id)


async def sweep(database: db.Database) -> int:
    """Decide reviews that nobody has decided in time; return how many.

    Each is a commit of its own and conditional: several workers may sweep. Never raises for a
    store that is away.
    """
    swept = 0
    try:
        async with database.connection(reads_only=True) as conn:
            found = await db.many(
                conn, "referrals.due_reviews", referrals.Due, limit=referrals.DUE_MAX
            )
        for due in found:
            async with database.transaction(due.project_id) as conn:
                await _lapse(conn, referrals.acting(due), due.id)
            swept += 1
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("sweep_failed", error=str(error))
    return swept


async def _lapse(conn: db.Connection, caller: Caller, referral_id: UUID) -> None:
    # Before the referral's row, as `decide`: the other way round two could wait for each other.
    await db.value(conn, "referrals.lock", bool, project_id=caller.project_id)
    public_id = ids.format_id("rfa", referral_id)
    stored = await referrals.take(conn, caller, public_id)
    program = await referral_programs.by_id(conn, caller, stored.program_id)
    assert program is not None, "a referral's program is there"
    if program.rules.on_lapse == "approve":
        told = await decide(conn, caller, public_id, review="approved")
        if not isinstance(told, Refusal):
            return
    await decide(conn, caller, public_id, review="lapsed")
