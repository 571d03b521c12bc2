"""Whether the wall between projects stands, asked of the catalogs and never of a list of tables.

A new table, key, function or grant that opens a gap is found by what it is. `doctor` prints the
findings, the tests demand that there are none.
"""

from typing import Final

import msgspec

from core.db import Connection, many

# Unique without the project, and safe: nobody but us chooses these values, so a collision cannot
# be provoked and tells nothing.
UNIQUE_BY_OUR_OWN_VALUES: Final = frozenset(
    {
        "vf.api_keys_digest_key",  # an HMAC of 256 random bits
        "vf.invitations_digest_key",  # an HMAC of 256 random bits
        "vf.leases_id_key",  # a random uuid
        "vf.leases_tag_key",  # 64 random bits
        "vf.redemptions_pkey",  # a lease's random id, or a voucher's, and a number we count
    }
)
# No tenant's rows: which code runs, which processes are alive, what a look at the books found, and
# whose history this is, who publishes events and how far
# the figures, the counts of vouchers and the fraud rules are.
OPEN_TO_ALL_PROJECTS: Final = frozenset(
    {
        "vf.migrations",
        "vf.api_workers",
        "vf.lease_workers",
        "vf.verifications",
        "vf.history",
        "vf.event_clock",
        "vf.figures_mark",
        "vf.voucher_mark",
        "vf.fraud_mark",
    },
)

CHECKS: Final[dict[str, str]] = {
    "audit.open_tables": "row-level security is not enabled and forced with a full policy",
    "audit.loose_policies": "the policy is not exactly `project = app.project_id`",
    "audit.unwalled_grants": "vf_app reaches a table without row-level security",
    "audit.cross_project_keys": "the foreign key can point into another project",
    "audit.unique_oracles": "the unique index tells of other projects' rows",
    "audit.unpinned_definers": "the SECURITY DEFINER function has no pinned path or owner",
    "audit.public_functions": "everybody may call the function",
    "audit.grants_past_the_wall": "row-level security does not hold this grant back",
    "audit.strong_roles": "the role is stronger than it must be",
    "audit.foreign_owners": "vf_owner does not own it",
    "audit.careless_views": "the view does not run as who asks",
}
_ALLOWED: Final = {
    "audit.unique_oracles": UNIQUE_BY_OUR_OWN_VALUES,
    "audit.unwalled_grants": OPEN_TO_ALL_PROJECTS,
}


class Finding(msgspec.Struct, frozen=True):
    """One gap: the object, the check that found it, and why that is one."""

    check: str
    object: str
    why: str


async def findings(conn: Connection) -> list[Finding]:
    """Run every check. Any role may: it only reads the catalogs. Cost: one query a check."""
    found = []
    for check, why in CHECKS.items():
        objects = await many(conn, check, str)
        allowed = _ALLOWED.get(check, frozenset())
        found += [Finding(check, name, why) for name in objects if name not in allowed]
    return found


async def session_faults(conn: Connection) -> list[str]:
    """Return why this connection must not serve requests; empty when it may."""
    return await many(conn, "audit.session", str)
