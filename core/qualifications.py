"""What can this customer get for this cart? The best deal first, and reasons for the rest."""

from decimal import Decimal
from typing import Annotated, Final

import msgspec

from core import db, validations
from core.api_keys import Caller
from core.errors import Invalid
from core.rules import codes
from core.validations import Question, Verdict

# Codes that are judged for one cart, each in some milliseconds; the newest where there are more.
CANDIDATES_MAX: Final = 100


class NewQualification(Question, kw_only=True, forbid_unknown_fields=True):
    """A cart and whose it is; `codes` are judged besides those that are the customer's anyway."""

    codes: Annotated[tuple[str, ...], msgspec.Meta(max_length=CANDIDATES_MAX)] = ()


class Qualification(msgspec.Struct, frozen=True):
    """What may be redeemed, the largest discount first, and what may not, with the reason."""

    data: list[Verdict]
    rest: list[Verdict]


async def qualify(conn: db.Connection, caller: Caller, asked: NewQualification) -> Qualification:
    """Judge what the customer may know of, each code for itself. Consumes nothing.

    That is: the codes sent, the vouchers in the customer's wallet, and what is there for
    everybody: automatic campaigns and standalone codes. Raises: Invalid.
    """
    if asked.customer_id is None:
        raise Invalid("customer_id is required", field="customer_id")
    await validations.meet(conn, caller, asked)
    known = await db.many(
        conn, "qualifications.candidates", str,
        project_id=caller.project_id, customer_id=asked.customer_id, limit=CANDIDATES_MAX,
    )  # fmt: skip
    chosen: dict[str, str] = {}
    for code in [*asked.codes, *known]:
        chosen.setdefault(codes.normalise(code) or code, code)
    judged = list(chosen.values())[:CANDIDATES_MAX]
    verdicts = await validations.each(conn, caller, judged, asked)
    granted = [verdict for verdict in verdicts if verdict.valid]
    granted.sort(key=lambda one: (-Decimal(bytes(one.discount_applied).decode()), one.voucher))
    return Qualification(granted, [verdict for verdict in verdicts if not verdict.valid])
