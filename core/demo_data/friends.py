"""Referrals of the year: who brought whom, what both got, and what waits for somebody to look."""

import re
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from core.demo_data.cards import Ledger
from core.demo_data.draws import Draws, Row, text
from core.demo_data.people import Person
from core.rules.rewards import REVIEW_HOURS, WINDOW_DAYS, Reward, Rules

REFERRER_MINOR: Final = 1_000
REFEREE_MINOR: Final = 500
# Of those who were referred, so many came true, were not believed, or were only invited.
REWARDED: Final = 0.64
REJECTED: Final = 0.09
INVITED: Final = 0.08
# The review list has some that nobody has looked at yet.
OPEN_REVIEWS: Final = 3


class Friends:
    """The rows of a program and its referrals."""

    def __init__(self) -> None:
        """Begin empty."""
        self.programs: list[Row] = []
        self.codes: list[Row] = []
        self.referrals: list[Row] = []
        self.rewards: list[Row] = []
        self.history: list[Row] = []


def draw(
    draws: Draws, ledger: Ledger, people: list[Person], count: int, first: datetime, until: datetime
) -> Friends:
    """Let customers of the year have come through others; rewards are gift cards."""
    found = Friends()
    program = _program(draws, first)
    found.programs.append(program)
    new = [one for one in people if one.since > first]
    referees = sorted(
        draws.random.sample(new, min(count, len(new))), key=lambda one: one.since
    )  # fmt: skip
    codes: dict[str, Row] = {}
    for place, referee in enumerate(referees):
        earlier = [one for one in people[: 40 + place] if one.since < referee.since]
        if not earlier:
            continue
        referrer = earlier[int(len(earlier) * draws.random.random() ** 2)]
        code = codes.get(referrer.customer_id)
        if code is None:
            code = codes[referrer.customer_id] = _code(draws, program, referrer, referee.since)
            found.codes.append(code)
        is_open = place >= len(referees) - OPEN_REVIEWS
        _refer(draws, ledger, found, code, referee, until, is_open=is_open)
    return found


def _program(draws: Draws, at: datetime) -> Row:
    rules = Rules(
        referrer=Reward(kind="gift_card", amount_minor=REFERRER_MINOR),
        referee=Reward(kind="gift_card", amount_minor=REFEREE_MINOR),
        tiers=(), cap=None, window_days=WINDOW_DAYS, delay_s=0, touch="first",
        review_hours=REVIEW_HOURS, on_lapse="reject", new_customers_only=True,
    )  # fmt: skip
    return {
        "id": draws.id_at(at), "name": "Bring a friend", "conversion": "first_order",
        "min_order_minor": 2_000, "rules": msgspec.to_builtins(rules), "created_at": text(at),
    }  # fmt: skip


def _code(draws: Draws, program: Row, owner: Person, at: datetime) -> Row:
    given = re.sub(r"[^A-Z]", "", owner.email.partition(".")[0].upper())
    code = f"{given}-{owner.customer_id[4:]}"
    at -= timedelta(days=1)
    return {
        "id": draws.id_at(at), "program_id": program["id"], "customer_id": owner.customer_id,
        "code": code, "code_norm": code, "conversion_count": 0, "created_at": text(at),
    }  # fmt: skip


def _refer(
    draws: Draws, ledger: Ledger, found: Friends, code: Row, referee: Person, until: datetime, *,
    is_open: bool,
) -> None:  # fmt: skip
    at = min(referee.since, until - timedelta(hours=draws.random.randint(1, 40)))
    row: Row = {
        "id": draws.id_at(at), "program_id": code["program_id"], "code_id": code["id"],
        "referrer_id": code["customer_id"], "referee_id": referee.customer_id,
        "created_at": text(at),
    }  # fmt: skip
    found.referrals.append(row)
    lot = draws.random.random()
    if is_open or lot > 1 - REJECTED:
        _reject(draws, row, at, is_open=is_open)
        _note(draws, found, row, "rejected", at, {"reason": row["reason"]})
        return
    if lot > 1 - REJECTED - INVITED:
        row |= {"status": "invited", "referee_id": None}
        _note(draws, found, row, "invited", at, {})
        return
    row |= {
        "status": "attributed", "attributed_at": text(at),
        "expires_at": text(at + timedelta(days=WINDOW_DAYS)),
    }  # fmt: skip
    _note(draws, found, row, "attributed", at, {})
    bought = at + timedelta(hours=draws.random.expovariate(1 / 60))
    if lot < REWARDED and bought < until and bought < at + timedelta(days=WINDOW_DAYS):
        _reward(draws, ledger, found, code, row, bought)


def _reject(draws: Draws, row: Row, at: datetime, *, is_open: bool) -> None:
    kind = draws.random.choice(("device", "payment", "address"))
    row |= {
        "status": "rejected", "reason": "same_person", "because": {"shared": [kind]},
        "review": "open" if is_open else "rejected",
        "review_until": text(at + timedelta(hours=REVIEW_HOURS)), "ended_at": text(at),
    }  # fmt: skip


def _reward(
    draws: Draws, ledger: Ledger, found: Friends, code: Row, row: Row, at: datetime
) -> None:  # fmt: skip
    code["conversion_count"] += 1
    row |= {
        "status": "rewarded", "converted_at": text(at), "place": code["conversion_count"],
        "order_id": f"NC-R{row['id'][-6:]}".upper(),
        "order_value_minor": draws.random.randrange(2_000, 9_000, 10),
    }  # fmt: skip
    sides = (
        ("referrer", row["referrer_id"], REFERRER_MINOR),
        ("referee", row["referee_id"], REFEREE_MINOR),
    )
    for side, customer, amount in sides:
        card = ledger.issue(
            at, amount, f"referral-{row['id']}-{side}", customer=customer, source="promotion"
        )
        found.rewards.append(
            {
                "referral_id": row["id"], "side": side, "customer_id": customer,
                "kind": "gift_card", "status": "issued", "amount_minor": amount, "period": "",
                "gift_card_id": card["id"], "due_at": text(at), "issued_at": text(at),
            }
        )  # fmt: skip
    _note(draws, found, row, "converted", at, {})
    _note(draws, found, row, "rewarded", at, {})


def _note(
    draws: Draws, found: Friends, row: Row, event: str, at: datetime, detail: dict[str, Any]
) -> None:  # fmt: skip
    found.history.append(
        {
            "id": draws.id_at(at), "referral_id": row["id"], "event": event, "detail": detail,
            "at": text(at),
        }
    )  # fmt: skip
