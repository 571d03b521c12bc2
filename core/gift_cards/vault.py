"""The secrets of gift cards: how codes and PINs are drawn, and what is kept of them."""

import hmac
import secrets
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from core import ids
from core.rules import codes
from core.rules.codes import CodeConfig

# 30^16 is 4 * 10^23: with a million cards a guess finds one in 4 * 10^17.
LOOK: Final = CodeConfig(pattern="####-####-####-####")
PIN_DIGITS: Final = 6


class Secrets(msgspec.Struct, frozen=True):
    """What opens a card, shown once."""

    id: str
    code: str
    pin: str | None


class Vault:
    """Makes and recognises codes and PINs; holds the secret that their hashes are keyed with."""

    def __init__(self, secret: str) -> None:
        """Take the system's secret."""
        self._key = hmac.digest(secret.encode(), b"gift cards", "sha256")

    def digest(self, project_id: UUID, code_norm: str) -> bytes:
        """Return what is stored of a code."""
        return hmac.digest(self._key, project_id.bytes + code_norm.encode(), "sha256")

    def pin_digest(self, card_id: UUID, pin: str) -> bytes:
        """Return what is stored of a PIN."""
        return hmac.digest(self._key, b"pin" + card_id.bytes + pin.encode(), "sha256")

    def draw(self, card_ids: Sequence[UUID], pins: Sequence[bool]) -> list[Secrets]:
        """Draw a code for each card, and a PIN for those that get one."""
        drawn = codes.pattern_of(LOOK, 1).draw(len(card_ids))
        return [
            Secrets(
                ids.format_id("gft", card_id),
                code,
                f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}d}" if has_pin else None,
            )
            for card_id, code, has_pin in zip(card_ids, drawn, pins, strict=True)
        ]

    def columns(
        self, project_id: UUID, card_ids: Sequence[UUID], made: Sequence[Secrets]
    ) -> dict[str, Any]:
        """Return what is stored of drawn secrets, as parameters of a statement."""
        norms = [normalised(one.code) for one in made]
        return {
            "ids": list(card_ids),
            "digests": [self.digest(project_id, norm) for norm in norms],
            "last_fours": [norm[-4:] for norm in norms],
            "pins": [
                self.pin_digest(card_id, one.pin) if one.pin is not None else None
                for card_id, one in zip(card_ids, made, strict=True)
            ],
        }


def normalised(code: str) -> str:
    """Return a code without what people write between its characters."""
    return code.replace("-", "").replace(" ", "").upper()
