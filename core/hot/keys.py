"""The names of the Redis keys. All keys of one lease or voucher share a hash tag, so one slot."""

from __future__ import annotations


def of_lease(lease_id: str) -> tuple[str, str, str, str]:
    """State, idempotency records, customers, stream."""
    tag = f"vf:{{{lease_id}}}"
    return (f"{tag}:s", f"{tag}:k", f"{tag}:c", f"{tag}:x")


def of_settled(lease_id: str) -> str:
    """What is left of a settled lease's state while its stream is kept."""
    return f"vf:{{{lease_id}}}:a"


def of_draft(lease_id: str, pseudonym: str) -> str:
    """A settled lease's stream while it is written anew for somebody who gets this name."""
    return f"vf:{{{lease_id}}}:d:{pseudonym}"


# State hashes of leases, those that are served first.
PATTERNS_OF_LEASES = ("vf:{*}:s", "vf:{*}:a")


def of_crowd(voucher_id: str) -> tuple[str, str, str, str]:
    """Facts, idempotency records, customers, freshness."""
    tag = f"vf:{{{voucher_id}}}"
    return (f"{tag}:f", f"{tag}:fk", f"{tag}:fc", f"{tag}:ft")


def of_rate(account_id: str, key_id: str | None = None) -> str:
    """The bucket of an account, or of one of its keys: together, so that one call draws from both.

    When it is full again, in µs.
    """
    return f"vf:{{{account_id}}}:rate" + (f":{key_id}" if key_id else "")


def of_requests(project_id: str) -> str:
    """The list of what a project's keys asked lately."""
    return f"vf:{{{project_id}}}:requests"


def record(fingerprint: str, seq: int, at_ms: int, remaining: int, payload: bytes) -> bytes:
    """One idempotency record, in the form claim.lua writes and both scripts read."""
    return f"{fingerprint}|{seq}|{at_ms}|{remaining}|".encode() + payload
