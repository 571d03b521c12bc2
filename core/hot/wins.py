"""A sale's stream as the columns of `vf.settle_wins`: the quick way, and the close one."""

from typing import Any, Final
from uuid import UUID

import msgspec
import vauchflow_hotpath

from core import ids
from core.hot.leases import RawEntry, StreamEntry, Win

_COLUMNS: Final = (
    "seqs", "ids", "keys", "fingerprints", "customers", "order_values", "discounts", "order_ids",
    "metadata", "remaining", "at_ms",
)  # fmt: skip
_decode_payload = msgspec.json.Decoder(tuple[int, int, str | None, str | None]).decode


def columns(
    entries: list[RawEntry], lease_id: UUID, tag: int, rows_max: int
) -> tuple[int, dict[str, str | None]] | None:
    """Write the first entries as columns, each an array literal, or None for one of NULLs.

    At most `rows_max` rows, or one entry; returns how many entries those are. None: one of them
    cannot be read, and `columns_closely` goes on without it. Cost: about 2 µs a win, compiled.
    """
    told = vauchflow_hotpath.settle_columns(entries, str(lease_id), tag, rows_max)
    return None if told is None else (told[0], dict(zip(_COLUMNS, told[2], strict=True)))


def columns_closely(
    tag: int, lease_id: UUID, taken: list[StreamEntry], accounted: int, poison_until: int
) -> dict[str, list[Any]]:
    """Return lists instead, and by its number as poison what cannot be read."""
    rows: list[tuple[Any, ...]] = []
    poison: list[tuple[int, str]] = []
    top = accounted
    for entry in taken:
        if entry.fault is not None:
            poison += [(seq, repr(entry.raw)) for seq in range(top + 1, poison_until + 1)]
        for win in entry.wins:
            top = max(top, win.seq)
            try:
                rows.append(_row(tag, lease_id, win, entry.at_ms))
            except (ValueError, msgspec.MsgspecError):
                poison.append((win.seq, repr(win)))
    by_column = zip(*rows, strict=True) if rows else ([] for _ in _COLUMNS)
    arrays = {name: list(column) for name, column in zip(_COLUMNS, by_column, strict=True)}
    arrays["poison"] = [seq for seq, _ in poison]
    arrays["poison_raw"] = [raw for _, raw in poison]
    return arrays


def _row(tag: int, lease_id: UUID, win: Win, at_ms: int) -> tuple[Any, ...]:
    redemption_id = ids.win_id(tag, lease_id, win.seq)
    order_value, discount, order_id, metadata = _decode_payload(win.payload)
    return (
        win.seq,
        redemption_id,
        win.key or ids.format_id("rdm", redemption_id),
        bytes.fromhex(win.fingerprint),
        win.customer,
        order_value,
        discount,
        order_id,
        metadata,
        win.remaining,
        at_ms,
    )
