"""Codes of a second factor are those that any app shows."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.rules import one_time_codes

# RFC 6238, appendix B, SHA-1; ours are the last six of its eight digits.
RFC_SECRET = b"12345678901234567890"
RFC_CODES = {
    59: "94287082",
    1_111_111_109: "07081804",
    1_111_111_111: "14050471",
    1_234_567_890: "89005924",
    2_000_000_000: "69279037",
    20_000_000_000: "65353130",
}


@pytest.mark.parametrize(("at_s", "code"), RFC_CODES.items())
def test_codes_are_those_of_the_standard(at_s: int, code: str) -> None:
    assert one_time_codes.code_at(RFC_SECRET, at_s // 30) == code[-6:]
    assert one_time_codes.step_of(RFC_SECRET, code[-6:], at_s) == at_s // 30


@given(st.integers(10**6, 10**10), st.integers(-100, 100))
def test_a_code_is_taken_a_step_early_or_late_and_no_more(now_s: int, off: int) -> None:
    step = now_s // 30
    code = one_time_codes.code_at(RFC_SECRET, step + off)
    near = {one_time_codes.code_at(RFC_SECRET, step + n): step + n for n in (-1, 0, 1)}

    assert one_time_codes.step_of(RFC_SECRET, code, now_s) == near.get(code)


@pytest.mark.parametrize("code", ["", "28708", "2870820", "28708٢", "28708 ", "abcdef"])
def test_what_is_no_code_is_none(code: str) -> None:
    assert one_time_codes.step_of(RFC_SECRET, code, 59) is None


def test_the_address_tells_an_app_everything() -> None:
    uri = one_time_codes.address_of(RFC_SECRET, issuer="VauchFlow", account="a+b@example.com")

    assert uri.startswith("otpauth://totp/VauchFlow%3Aa%2Bb%40example.com?")
    assert parse_qs(urlsplit(uri).query) == {
        "secret": ["GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"],
        "issuer": ["VauchFlow"],
    }
