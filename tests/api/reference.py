"""What promotions promise, in plain Python: one dictionary a noun, no database and no clock."""

from dataclasses import dataclass, field

PERCENT, AMOUNT = "PERCENT", "AMOUNT"


@dataclass
class Owner:
    """A campaign or a voucher: what both may limit, and what is gone of it. Money in cents."""

    limit: int | None = None
    per_customer: int | None = None
    budget: int | None = None
    taken: int = 0
    held: int = 0
    spent: int = 0
    by_customer: dict[str, int] = field(default_factory=dict)
    is_on: bool = True

    @property
    def rest(self) -> int | None:
        return None if self.limit is None else self.limit - self.taken

    def take(self, customer: str, discount: int, sign: int = 1) -> None:
        self.taken += sign
        self.spent += sign * discount
        self.by_customer[customer] = self.by_customer.get(customer, 0) + sign


@dataclass
class Campaign(Owner):
    kind: str = PERCENT
    value: int = 10


@dataclass
class Voucher(Owner):
    code: str = ""
    kind: str | None = None
    value: int = 0
    campaign: Campaign | None = None

    @property
    def owners(self) -> list[Owner]:
        return [self] if self.campaign is None else [self, self.campaign]

    @property
    def remaining(self) -> int | None:
        return min((o.rest for o in self.owners if o.rest is not None), default=None)

    def discount(self, value: int) -> int:
        kind, size = self.kind, self.value
        if kind is None:
            assert self.campaign is not None
            kind, size = self.campaign.kind, self.campaign.value
        return (value * size * 100 + 5_000) // 10_000 if kind == PERCENT else min(size, value)

    def refusal(self, customer: str, discount: int) -> str | None:
        """Return the code of the first reason against one more use."""
        if not self.is_on:
            return "voucher_inactive"
        if self.campaign is not None and not self.campaign.is_on:
            return "paused"
        for owner in self.owners:
            used = owner.by_customer.get(customer, 0)
            if owner.per_customer is not None and used >= owner.per_customer:
                return "customer_limit_reached"
        if self.remaining == 0:
            return "limit_reached"
        for owner in self.owners:
            if owner.budget is not None and owner.spent + discount > owner.budget:
                return "budget_reached"
        return None


@dataclass
class Use:
    """A hold or a redemption."""

    voucher: Voucher
    customer: str
    value: int
    discount: int
    id: str = ""
    key: str = ""
    answer: bytes = b""
    is_live: bool = True

    def give_back(self) -> None:
        self.is_live = False
        for owner in self.voucher.owners:
            owner.take(self.customer, self.discount, -1)
