"""What can go wrong, by one code each, forever.

An expected refusal is a *value* (`Refusal`), a broken request or a broken machine is an *exception*
(`Fault`), broken code is an assertion. This module knows no HTTP: `api/errors.py` is the only map
to a status. `docs/errors.md` is generated from the sentences below.
"""

from typing import Any, ClassVar, Final

import msgspec

# A client that waits this long, in seconds, finds a full queue drained and a respawned server up
# in most cases; the HTTP door adds jitter.
RETRY_AFTER_S: Final = 1


CODES: Final[dict[str, str]] = {}
"""Every code there is and its public sentence."""


def _register(sentences: list[tuple[str, str]]) -> frozenset[str]:
    for code, sentence in sentences:
        if code in CODES:
            raise ValueError(f"the code {code!r} has two meanings")
        CODES[code] = sentence
    return frozenset(code for code, _ in sentences)


REFUSALS: Final = _register(
    [
        ("limit_reached", "The voucher or its campaign has no redemption left."),
        ("customer_limit_reached", "This customer has used the voucher as often as allowed."),
        ("budget_reached", "The campaign's budget is spent."),
        ("sold_out", "Every unit of the flash sale is taken; a returned unit reopens it."),
        ("voucher_inactive", "The voucher is disabled."),
        ("voucher_expired", "The voucher's last moment has passed."),
        ("not_started", "The voucher, campaign or sale has not begun yet."),
        ("ended", "The campaign or sale is over."),
        ("paused", "The campaign or sale is paused by its owner."),
        ("not_eligible", "A rule excludes this customer or order; `because` names it."),
        ("order_value_too_low", "The order is worth less than the voucher asks for."),
        ("currency_mismatch", "The order's currency is not the project's."),
        ("insufficient_balance", "The gift card holds less than was asked for."),
        ("gift_card_inactive", "The gift card is disabled."),
        ("gift_card_expired", "The gift card's last moment has passed."),
        ("refund_too_large", "More would be refunded to the gift card than was spent with it."),
        ("already_rolled_back", "The redemption was rolled back before."),
        ("self_referral", "A customer cannot refer themselves."),
        ("already_attributed", "This customer was referred before."),
        ("attribution_expired", "The time to convert this referral is over."),
        ("rollback_window_passed", "The redemption is too old to be rolled back."),
        ("hold_expired", "The hold ran out before it was confirmed."),
        ("not_combinable", "One of these codes does not combine with the others."),
        ("not_settled_yet", "The redemption is on its way into the ledger; ask again shortly."),
        ("receipt_void", "The unit of this receipt was given back, or released to others."),
        ("not_written_off", "A number that was to be released is sold, at Redis, or no number."),
        ("too_many_webhooks", "The project has as many webhooks as it may have."),
        ("sale_live", "The sale is armed or open: its terms are frozen until it ends."),
        ("sale_over", "The sale is closed for good; make another one."),
        ("sale_not_open", "The sale is not open, so that cannot be done with it."),
        ("voucher_in_sale", "A flash sale holds this voucher; end the sale first."),
        ("blocked", "The customer, code, address or device is on the project's block list."),
        ("cannot_arm", "Redis is not set up to keep a fast sale's promise; the reason is named."),
    ]
)
"""Plain answers to a well-formed request that cannot be granted."""

FAULTS: Final = _register(
    [
        ("invalid", "The request is malformed; `field` names the part and `detail` the mend."),
        ("missing_key", "The request carries no API key."),
        ("malformed_key", "The API key has a typing error: its checksum does not fit."),
        ("invalid_key", "The API key is unknown, revoked or expired."),
        ("invalid_credentials", "This e-mail and this password do not belong together."),
        ("second_factor_required", "This person has a second factor: send its `code` as well."),
        ("invalid_session", "The session has ended; log in again."),
        ("invalid_csrf_token", "A write with a cookie needs the session's X-CSRF-Token."),
        ("forbidden", "This kind of key, or this person's role, may not do that."),
        ("missing_scope", "The key may not do that; `because` names the scope it lacks."),
        ("plan_limit", "The account's plan ends here; `detail` says what to do."),
        ("origin_not_allowed", "This browser key may not be used on pages of this origin."),
        ("invalid_customer_token", "The customer_token is missing, over, or not for this claim."),
        ("not_found", "There is no such object in this project."),
        ("method_not_allowed", "The address exists, but not for this method."),
        ("already_exists", "An object with this code or name is there already."),
        ("request_in_flight", "Another request with this Idempotency-Key is still running."),
        ("idempotency_mismatch", "The Idempotency-Key was used with another request before."),
        ("payload_too_large", "The body is larger than this address takes."),
        ("unsupported_media_type", "The body is not JSON."),
        ("rate_limited", "Too many requests at once; Retry-After says when the next one passes."),
        ("too_many_attempts", "Too many attempts failed; try again in a minute."),
        ("overloaded", "The queue is full. Nothing was applied; ask again shortly."),
        ("unavailable", "A server behind this one is away. Nothing was applied; ask again."),
        ("outcome_unknown", "It may have been applied; ask again with the same Idempotency-Key."),
        ("internal", "Something broke here. The request id finds it in the logs."),
    ]
)
"""Broken requests and broken machines."""


class Refusal(msgspec.Struct, frozen=True):
    """A plain no, returned as a value.

    `because` holds the facts, `extra` more members of the answer (such as the redemption a
    customer already has).
    """

    code: str
    detail: str
    because: dict[str, Any] | None = None
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Hold the code against the registry: a made-up one is a bug."""
        assert self.code in REFUSALS, self.code


class Fault(Exception):
    """A request that cannot be served as it stands. Never raised as itself."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        because: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Say in `detail` what is wrong and how to mend it, in one sentence for the caller."""
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.because = because
        self.extra = extra or {}


class Invalid(Fault):
    """The request is malformed. `field` is a path such as `rules.discount_value`."""

    code = "invalid"


class Unauthenticated(Fault):
    """No usable key or session. Unknown and revoked ones are told apart by nobody."""

    def __init__(self, detail: str | None = None, *, code: str) -> None:
        """Take one of missing_key, malformed_key, invalid_key, invalid_credentials, …_session."""
        assert code.startswith(("missing_", "malformed_", "invalid_")) and code in FAULTS, code
        super().__init__(detail or CODES[code])
        self.code = code  # type: ignore[misc]


class SecondFactorRequired(Fault):
    """The password is right, and not enough."""

    code = "second_factor_required"

    def __init__(self, detail: str = CODES["second_factor_required"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)


class Forbidden(Fault):
    """The key or session is good and may not do this."""

    code = "forbidden"


class InvalidCsrfToken(Fault):
    """A write came with a session's cookie and without what only the session's own pages know."""

    code = "invalid_csrf_token"

    def __init__(self, detail: str = CODES["invalid_csrf_token"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)


class MissingScope(Fault):
    """The key is good for other things."""

    code = "missing_scope"

    def __init__(self, scope: str) -> None:
        """Name the scope, such as `vouchers:write`."""
        super().__init__(
            f"This key lacks the scope {scope}; make one that has it.", because={"scope": scope}
        )


class PlanLimit(Fault):
    """The account's plan includes no more; `because` says of what, and until when."""

    code = "plan_limit"


class OriginNotAllowed(Fault):
    """A browser's key on a page it was not made for."""

    code = "origin_not_allowed"

    def __init__(self, detail: str = CODES["origin_not_allowed"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)


class InvalidCustomerToken(Fault):
    """A browser claims for somebody, or something, that the shop did not sign."""

    code = "invalid_customer_token"

    def __init__(self, detail: str) -> None:
        """Say what does not fit."""
        super().__init__(detail, field="customer_token")


class NotFound(Fault):
    """No such object in this project; another project's object is the same answer."""

    code = "not_found"


class AlreadyExists(Fault):
    """A name that must be unique is taken."""

    code = "already_exists"


class IdempotencyMismatch(Fault):
    """An idempotency key came back with another request."""

    code = "idempotency_mismatch"

    def __init__(self, detail: str = CODES["idempotency_mismatch"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)


class RequestInFlight(Fault):
    """An idempotency key is being worked on by another request: ask again shortly."""

    code = "request_in_flight"

    def __init__(self, detail: str = CODES["request_in_flight"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)
        self.retry_after_s = RETRY_AFTER_S


class TooManyAttempts(Fault):
    """A caller or an address guesses: it is told nothing more in this minute."""

    code = "too_many_attempts"

    def __init__(self, detail: str = CODES["too_many_attempts"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)
        self.retry_after_s = 60


class PayloadTooLarge(Fault):
    """The body has too many bytes; reading stopped there."""

    code = "payload_too_large"


class UnsupportedMediaType(Fault):
    """The body says it is something other than JSON."""

    code = "unsupported_media_type"


class Unavailable(Fault):
    """Nothing was applied and nothing will be: the caller may freely ask again."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        code: str = "unavailable",
        retry_after_s: int = RETRY_AFTER_S,
    ) -> None:
        """Take `overloaded` (a queue here is full) or `unavailable` (a server is away)."""
        assert code in ("overloaded", "unavailable"), code
        super().__init__(detail or CODES[code])
        self.code = code  # type: ignore[misc]
        self.retry_after_s = retry_after_s


class OutcomeUnknown(Fault):
    """It may have been applied. Asking again with the same idempotency key finds out."""

    code = "outcome_unknown"

    def __init__(self, detail: str = CODES["outcome_unknown"]) -> None:
        """The default sentence says it all."""
        super().__init__(detail)
