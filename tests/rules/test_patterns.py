"""Codes of a given look: uniform, of the right shape, and refused where there are too few."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.rules import codes
from core.rules.codes import CodeConfig


def test_a_code_looks_as_it_was_asked_to() -> None:
    for config, shape in (
        (CodeConfig(), r"[2-9A-HJKMNP-TV-Z]{12}"),
        (CodeConfig(length=6, charset="0123456789", prefix="SUMMER-", postfix="-26"),
         r"SUMMER-[0-9]{6}-26"),
        (CodeConfig(pattern="A##-#B-####", charset="xyzw"), r"A[xyzw]{2}-[xyzw]B-[xyzw]{4}"),
        (CodeConfig(pattern="########"), r"[2-9A-HJKMNP-TV-Z]{8}"),
    ):  # fmt: skip
        drawn = codes.pattern_of(config, 10).draw(200)
        assert len(drawn) == 200
        assert all(re.fullmatch(shape, code) for code in drawn), config
        assert all(codes.normalise(code) == code.upper() for code in drawn)


@given(st.integers(2, 40), st.integers(1, 300))
def test_every_character_is_drawn_and_none_else(size: int, count: int) -> None:
    charset = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:;!"[:size]
    drawn = codes._drawn(charset, count)
    assert len(drawn) == count
    assert set(drawn) <= set(charset)


def test_characters_are_drawn_evenly() -> None:
    counts = Counter(codes._drawn("ABC", 30_000))
    assert all(9_400 < counts[one] < 10_600 for one in "ABC"), counts


def test_fifty_thousand_codes_of_the_default_look_are_all_different() -> None:
    drawn = codes.pattern_of(CodeConfig(), 50_000).draw(50_000)
    assert len(set(drawn)) == 50_000


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CodeConfig(charset="A"), "code_config.charset"),
        (CodeConfig(charset="aA"), "code_config.charset"),
        (CodeConfig(charset="AB/"), "code_config.charset"),
        (CodeConfig(charset="AB#"), "code_config.charset"),
        (CodeConfig(charset="ABé"), "code_config.charset"),
        (CodeConfig(pattern="ABC"), "code_config"),
        (CodeConfig(pattern="A/####"), "code_config"),
        (CodeConfig(pattern=" ########"), "code_config"),
        (CodeConfig(pattern="##", prefix="A"), "code_config.pattern"),
        (CodeConfig(prefix="A" * 53), "code_config"),
        (CodeConfig(prefix="=cmd"), "code_config"),
        (CodeConfig(charset="ABCDEFGHIJ-"), "code_config"),
        (CodeConfig(length=2), "code_config"),
        (CodeConfig(length=3, charset="0123456789"), "code_config"),
    ],
)
def test_a_look_that_cannot_be_had_is_refused(config: CodeConfig, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        codes.pattern_of(config, 101)
    assert refused.value.field == field


def test_too_few_combinations_are_told_with_both_numbers() -> None:
    config = CodeConfig(length=3, charset="0123456789")
    assert codes.pattern_of(config, 100).combinations == 1_000
    with pytest.raises(Invalid, match=r"has 1000 combinations; 101 codes .* need 1010"):
        codes.pattern_of(config, 101)
    assert len(codes.pattern_of(config, random.randint(1, 100)).draw(5)) == 5
