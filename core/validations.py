"""Would a redemption work, and what would it take off? Asked without taking anything."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from core import customers, db, lookups, quotes, vouchers
from core.api_keys import Caller
from core.errors import Fault, Forbidden, Invalid, NotFound, Refusal
from core.lookups import Asker, UnknownCode
from core.quotes import Quote, Request
from core.redemptions import NewRedemption, Terms
from core.rules import codes, limits, money
from core.rules.limits import Metadata
from core.rules.orders import NewOrder, ShownOrder
from core.shapes import Amount, CustomerId, Person
from core.vouchers import Stored

# A code is judged in some milliseconds, and nobody is to wait for seconds.
CODES_MAX: Final = 500


class Question(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a redemption would be, asked without one."""

    customer_id: CustomerId | None = None
    order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    order: NewOrder | None = None
    metadata: Metadata | None = None
    customer: Person | None = None


class ManyQuestions(Question, kw_only=True, forbid_unknown_fields=True):
    """The same of several codes, each for itself."""

    codes: Annotated[list[str], msgspec.Meta(min_length=1, max_length=CODES_MAX)]


class Verdicts(msgspec.Struct, frozen=True):
    """Answers in the order of the questions."""

    data: list["Verdict"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to "would it work": `code` is the voucher's where it would, else the refusal's."""

    valid: bool
    code: str
    voucher: str
    discount_applied: Amount
    remaining: int | None
    detail: str | None = None
    because: dict[str, Any] | None = None
    order: ShownOrder | msgspec.UnsetType = msgspec.UNSET


class _SaleState(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    starts_at: datetime | None
    ends_at: datetime | None
    rest: int


async def meet(conn: db.Connection, caller: Caller, question: Question) -> None:
    """Write down what a question says of its customer. Raises: Forbidden, Invalid.

    A browser's key may ask about its customer and change nothing of them.
    """
    if question.customer is not None and caller.kind != "SECRET":
        raise Forbidden("A publishable key may not change a customer: leave customer out.")
    await customers.meet(conn, caller, question.customer_id, question.customer)


async def validate_many(conn: db.Connection, caller: Caller, asked: ManyQuestions) -> Verdicts:
    """Say of each code whether a redemption of it alone would work. Raises: as `each`."""
    return Verdicts(await each(conn, caller, asked.codes, asked))


async def each(
    conn: db.Connection, caller: Caller, codes_or_ids: Iterable[str], question: Question
) -> list[Verdict]:
    """Answer one question for several codes, each for itself. Consumes nothing.

    A code that is unknown or lacks something of the request is a no with that as its `code`.
    Raises: Invalid for what is wrong with the request whatever the code.
    """
    request = _request(caller, question)
    return [await _answer(conn, caller, code, request) for code in codes_or_ids]


async def _answer(
    conn: db.Connection, caller: Caller, code: str, request: Request | Refusal
) -> Verdict:
    try:
        return await _judged(conn, caller, await vouchers.find(conn, caller, code), request)
    except (Invalid, NotFound) as fault:
        return _fault(caller, code, fault)


def _fault(caller: Caller, code: str, fault: Fault) -> Verdict:
    return Verdict(
        valid=False, code=fault.code, voucher=code, remaining=None, detail=fault.detail,
        discount_applied=money.json_amount(0, caller.exponent),
    )  # fmt: skip


async def validate(
    conn: db.Connection, caller: Caller, code_or_id: str, question: Question
) -> Verdict:
    """Say whether a redemption would work now, and what it would take off. Consumes nothing.

    Without a customer the customer's limit is not judged; an order without a value is worth
    nothing. Under a fast sale the rest is what the ledger knows, some milliseconds late.
    It is an event where a webhook names that type. Raises: NotFound, Invalid.
    """
    stored = await vouchers.find(conn, caller, code_or_id)
    verdict = await _judged(conn, caller, stored, _request(caller, question))
    told = {
        "code": stored.code,
        "valid": verdict.valid,
        "refusal": None if verdict.valid else verdict.code,
    }
    await db.run(
        conn, "vouchers.tell_validated", project_id=caller.project_id, id=stored.id, data=told
    )
    return verdict


async def look_up(
    conn: db.Connection, asker: Asker, code_or_id: str, question: Question
) -> Verdict:
    """Validate for who may be guessing. Call inside `lookups.counted`.

    Raises: UnknownCode, TooManyAttempts; Invalid.
    """
    await lookups.check(conn, asker.caller.project_id, asker.limits)
    try:
        return await validate(conn, asker.caller, code_or_id, question)
    except NotFound as fault:
        raise UnknownCode(fault.detail) from None


async def _judged(
    conn: db.Connection, caller: Caller, stored: Stored, request: Request | Refusal
) -> Verdict:
    sale = None
    if stored.sale_only or stored.authority == "flash" or stored.flash_sale_id is not None:
        sale = await db.one(
            conn, "vouchers.sale_state", _SaleState, project_id=caller.project_id, id=stored.id
        )
    holds_units = stored.authority == "flash" and sale is not None
    remaining = (
        limits.smallest_rest(sale.rest, None if holds_units else stored.remaining)
        if sale is not None and (holds_units or stored.flash_sale_id is not None)
        else stored.remaining
    )
    if isinstance(request, Refusal):
        return _no(caller, stored, remaining, request)
    is_plain = stored.promotion is None and stored.campaign_promotion is None
    has_lines = request.order is not None and request.order.is_itemised
    quoted: Quote | Refusal | None = None
    refusal = _refusal(stored, sale, request, caller)
    if refusal is None and (not is_plain or has_lines):
        quoted = await _quoted(conn, caller, stored, request)
        if isinstance(quoted, Refusal):
            refusal = quoted
    refusal = refusal or await _rest_refusal(
        conn, caller, stored, request.customer_id, remaining, is_sale=remaining != stored.remaining
    )
    if refusal is None and isinstance(quoted, Quote):
        refusal = await quotes.budget_refusal(
            conn, caller.project_id, quoted.takings, caller.exponent
        )
    if refusal is not None:
        return _no(caller, stored, remaining, refusal)
    if isinstance(quoted, Quote):
        off, after = quoted.taken.total, quotes.detail(request, quoted.taken, ())
        order = after.shown(caller.exponent)
    else:
        value = None if request.order is None else request.order_value_minor
        off, order = stored.terms.discount(value), msgspec.UNSET
    return Verdict(
        valid=True, code=stored.code, voucher=stored.code,
        discount_applied=money.json_amount(off, caller.exponent),
        remaining=remaining, order=order,
    )  # fmt: skip


def _no(caller: Caller, stored: Stored, remaining: int | None, refusal: Refusal) -> Verdict:
    return Verdict(
        valid=False, code=refusal.code, voucher=stored.code,
        discount_applied=money.json_amount(0, caller.exponent), remaining=remaining,
        detail=refusal.detail, because=refusal.because,
    )  # fmt: skip


def _request(caller: Caller, question: Question) -> Request | Refusal:
    if question.metadata:
        limits.check_metadata(question.metadata)
    asked = NewRedemption(
        customer_id=question.customer_id,
        order_value=question.order_value,
        metadata=question.metadata,
        order=question.order,
    )
    return quotes.read(asked, caller)


async def _quoted(
    conn: db.Connection, caller: Caller, stored: Stored, request: Request
) -> Quote | Refusal:
    [terms] = await db.many(
        conn, "redemptions.terms", Terms,
        project_id=caller.project_id, codes=[codes.checked(stored.code)],
    )  # fmt: skip
    known = await quotes.facts(conn, caller, terms, request)
    return quotes.quote(terms, request, known, None, caller, names_customer=False)


def _refusal(
    stored: Stored, sale: _SaleState | None, request: Request, caller: Caller
) -> Refusal | None:
    now = datetime.now(UTC)
    if stored.status == "disabled":
        return Refusal("voucher_inactive", "This code is disabled.")
    if stored.campaign_status == "draft":
        return Refusal("not_started", "The campaign of this code is a draft.")
    if stored.campaign_status == "paused":
        return Refusal("paused", "The campaign of this code is paused.")
    if stored.campaign_status == "ended":
        return Refusal("ended", "The campaign of this code has ended.")
    if sale is None and stored.sale_only:
        return Refusal("ended", "This code sells only in a flash sale, which is over.")
    if sale is not None and (stored.sale_only or sale.status in ("open", "paused")):
        if sale.status == "paused":
            return Refusal("paused", "The flash sale is paused.")
        if sale.status in ("closed", "fenced") or (sale.ends_at and now >= sale.ends_at):
            return Refusal("ended", "The flash sale has ended.")
        if sale.status == "scheduled" or (sale.starts_at and now < sale.starts_at):
            return Refusal("not_started", "The flash sale has not begun yet.")
    return limits.window_refusal(stored.terms, now) or limits.order_refusal(
        stored.terms, request.order_value_minor, caller.currency
    )


async def _rest_refusal(
    conn: db.Connection,
    caller: Caller,
    stored: Stored,
    customer_id: str | None,
    remaining: int | None,
    *,
    is_sale: bool,
) -> Refusal | None:
    if customer_id is not None and (
        stored.per_customer_limit is not None or stored.campaign_per_customer_limit is not None
    ):
        is_used_up = await db.value(
            conn, "vouchers.customer_used_up", bool,
            project_id=caller.project_id, customer_id=customer_id, voucher_id=stored.id,
            campaign_id=stored.campaign_id, per_voucher=stored.per_customer_limit,
            per_campaign=stored.campaign_per_customer_limit,
        )  # fmt: skip
        if is_used_up:
            return Refusal(
                "customer_limit_reached", "This customer has used the code as often as allowed."
            )
    if remaining == 0:
        if is_sale:
            return Refusal("sold_out", "Every unit of the flash sale is taken.")
        return Refusal("limit_reached", "This code has no redemption left.")
    return None
