"""The only map from what the product says to HTTP: a status for each code, and the wire shape.

Errors are RFC 9457 problems. `python -m api.errors` prints `docs/errors.md`; a test holds the
file against it.
"""

import sys
from typing import Any, Final

import msgspec

from api import rates
from core.errors import CODES, FAULTS, REFUSALS, Fault, Refusal
from core.rate_limits import RateLimited

Headers = list[tuple[bytes, bytes]]

# A refusal is 409; what is not named here is a bug and is 500.
_STATUS: Final[dict[str, int]] = {
    **dict.fromkeys(REFUSALS, 409),
    "invalid": 400,
    "missing_key": 401,
    "malformed_key": 401,
    "invalid_key": 401,
    "invalid_credentials": 401,
    "second_factor_required": 401,
    "invalid_session": 401,
    "invalid_csrf_token": 403,
    "plan_limit": 402,
    "forbidden": 403,
    "missing_scope": 403,
    "origin_not_allowed": 403,
    "invalid_customer_token": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "already_exists": 409,
    "request_in_flight": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_mismatch": 422,
    "rate_limited": 429,
    "too_many_attempts": 429,
    "internal": 500,
    "overloaded": 503,
    "unavailable": 503,
    "outcome_unknown": 504,
}
# Refusals that pass by themselves say when to ask again, in seconds.
_RETRY_AFTER_S: Final = {"not_settled_yet": 1, "outcome_unknown": 1}

PROBLEM: Final = b"application/problem+json"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An RFC 9457 problem. Some codes add members of their own."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    doc_url: str
    field: str | None = None
    because: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole HTTP answer, ready to send. Its headers are besides the ones `front` always adds."""

    status: int
    body: bytes
    headers: Headers = []


def status_of(code: str) -> int:
    """Return the status a code is answered with."""
    return _STATUS[code]


def codes_of(status: int) -> list[str]:
    """Return the codes that are answered with a status."""
    return [code for code in CODES if _STATUS[code] == status]


class Problems:
    """Writes problems that point at this deployment's own documentation."""

    def __init__(self, base_url: str) -> None:
        """Take the address clients use."""
        self._doc_url = f"{base_url}/docs/errors#"

    def of(
        self,
        code: str,
        detail: str,
        request_id: str,
        *,
        field: str | None = None,
        because: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> Answer:
        """Write one problem. `extra` never replaces a member of its own."""
        status = _STATUS[code]
        problem = {
            "type": self._doc_url + code,
            "title": code.replace("_", " ").capitalize(),
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": request_id,
            "doc_url": self._doc_url + code,
        }
        if field is not None:
            problem["field"] = field
        if because is not None:
            problem["because"] = because
        if extra:
            problem = {**extra, **problem}
        headers = [(b"content-type", PROBLEM)]
        retry_after_s = retry_after_s or _RETRY_AFTER_S.get(code)
        if retry_after_s:
            headers.append((b"retry-after", b"%d" % retry_after_s))
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="vauchflow"'))
        return Answer(status, msgspec.json.encode(problem), headers)

    def of_refusal(self, refusal: Refusal, request_id: str) -> Answer:
        """Write a refusal."""
        return self.of(
            refusal.code,
            refusal.detail,
            request_id,
            because=refusal.because,
            extra=refusal.extra,
        )

    def of_fault(self, fault: Fault, request_id: str) -> Answer:
        """Write a fault."""
        answer = self.of(
            fault.code,
            fault.detail,
            request_id,
            field=fault.field,
            because=fault.because,
            extra=fault.extra,
            retry_after_s=getattr(fault, "retry_after_s", None),
        )
        if isinstance(fault, RateLimited):
            told = rates.headers(fault.standing)
            answer.headers.extend((name.encode(), text.encode()) for name, text in told)
        return answer

    def internal(self, request_id: str) -> Answer:
        """Write the answer to a bug: the request id and nothing else."""
        return self.of("internal", CODES["internal"], request_id)


def page() -> str:
    """Return `docs/errors.md`."""
    lines = [
        "# Errors",
        "",
        "<!-- Generated: python -m api.errors > docs/errors.md -->",
        "",
        "Every error is an RFC 9457 problem (`application/problem+json`) with `type`, `title`,",
        "`status`, `detail`, `code`, `request_id` and `doc_url`; `field` names the part of the",
        "request that is wrong, and `because` holds the facts of a refusal. Codes never change",
        "their meaning.",
    ]
    for title, intro, codes in (
        ("Refusals", "The request was understood and the answer is no.", REFUSALS),
        ("Faults", "The request, or a machine behind it, is broken.", FAULTS),
    ):
        lines += ["", f"## {title}", "", intro, "", "| code | status | meaning |", "|---|---|---|"]
        lines += [
            f"| `{code}` | {_STATUS[code]} | {sentence} |"
            for code, sentence in CODES.items()
            if code in codes
        ]
    return "\n".join(lines) + "\n"


assert _STATUS.keys() == CODES.keys(), _STATUS.keys() ^ CODES.keys()

if __name__ == "__main__":
    sys.stdout.write(page())
