"""Codes: two spellings of one code, and codes that cannot be one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.rules import codes


@pytest.mark.parametrize("code", ["SAVE20", "save20", " Save20 ", "sAvE20"])
def test_case_and_spaces_at_the_ends_do_not_count(code: str) -> None:
    assert codes.normalise(code) == "SAVE20"


def test_dashes_count() -> None:
    assert codes.normalise("A-1-11") != codes.normalise("A-11-1")


@pytest.mark.parametrize(
    "code",
    [
        "",
        " ",
        "A" * 65,
        "a/b",
        "a\nb",
        "A\n",
        "\x00",
        "ı",
        "ﬁ",
        "\u212a",
        "\uff21",
        "А",
        "é",
        "\x7f",
    ],
)
def test_what_can_be_no_code_is_refused_before_case_folding(code: str) -> None:
    assert codes.normalise(code) is None
    with pytest.raises(Invalid) as refused:
        codes.checked(code)
    assert refused.value.field == "code"


@given(
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)
)
def test_normalising_twice_is_normalising_once(code: str) -> None:
    norm = codes.normalise(code)
    assert (norm is None) == ("/" in code)
    if norm is not None:
        assert codes.normalise(norm) == norm == codes.normalise(code.swapcase())


def test_drawn_codes_differ_and_cannot_be_misread() -> None:
    drawn = {codes.generate() for _ in range(1000)}

    assert len(drawn) == 1000
    assert all(codes.normalise(code) == code and len(code) == 12 for code in drawn)
    assert set("".join(drawn)) == set(codes.ALPHABET)
    assert not set(codes.ALPHABET) & set("01IOLU")
