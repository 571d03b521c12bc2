"""Two spellings of one identifier are equal, and what identifies nobody is none."""

import pytest

from core.rules import rewards
from core.rules.rewards import IdentifierKind


@pytest.mark.parametrize(
    ("kind", "texts", "form"),
    [("email", ("Ada.Lovelace+news@Example.com", "adalovelace@example.com "),
      "adalovelace@example.com"),
     ("phone", ("+43 (1) 234-567", "0043 1234567"), "431234567"),
     ("device", ("D-1 ", "d-1"), "d-1"),
     # Placeholders that a shop registers many customers with.
     ("email", ("n/a", " ", "+x@example.com", "ada@", "@"), ""),
     ("phone", ("none", "000"), "")],
)  # fmt: skip
def test_what_is_compared_of_an_identifier(
    kind: IdentifierKind, texts: tuple[str, ...], form: str
) -> None:
    assert {rewards.normalised(kind, text) for text in texts} == {form}
