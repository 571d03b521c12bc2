"""Money as integers of minor units, and its two borders with JSON.

An amount arrives as the text of a JSON number and leaves as one: no float ever sees it. Two texts
of one number (`89.9`, `89.90`, `8.99e1`) are one amount.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec

from core.errors import Invalid

# ISO 4217, by how many decimals a currency has.
_TWO_DECIMALS: Final = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF
CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG
HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU
MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR
SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED
VES WST XCD YER ZAR ZMW ZWG
"""
_NO_DECIMALS: Final = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DECIMALS: Final = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DECIMALS: Final = "CLF UYW"
_EXPONENTS: Final[dict[str, int]] = {
    **dict.fromkeys(_TWO_DECIMALS.split(), 2),
    **dict.fromkeys(_NO_DECIMALS.split(), 0),
    **dict.fromkeys(_THREE_DECIMALS.split(), 3),
    **dict.fromkeys(_FOUR_DECIMALS.split(), 4),
}

# 10^15 minor units are ten million millions of euros; ten thousand such amounts still add up
# inside a bigint, and the largest is exact as a double for clients that read it as one.
AMOUNT_MINOR_MAX: Final = 1_000_000_000_000_000
# 100 % in basis points.
PERCENT_BP_MAX: Final = 10_000

# An amount of 10^15 in the currency with the most decimals has 20 characters; a client that pads
# with zeros gets twice that. Longer texts are refused before anything is computed with them.
_NUMBER_LENGTH_MAX: Final = 40
# The digits before the point of the largest amount without decimals.
_PLAIN_DIGITS_MAX: Final = 16
_NUMBER: Final = re.compile(
    rb"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,2}))?", re.ASCII
)


def exponent_of(currency: str) -> int | None:
    """Return how many decimals a currency has, None when ISO 4217 does not know it."""
    return _EXPONENTS.get(currency)


def is_given(raw: bytes | msgspec.Raw) -> bool:
    """Say whether a raw JSON member is there and not null."""
    return bytes(raw) not in (b"", b"null")


def parse_amount(raw: bytes | msgspec.Raw, currency: str, *, field: str, minor_min: int = 0) -> int:
    """Read the text of a JSON number as minor units, exactly.

    Raises: Invalid, with `field`, for anything but a number, for more decimals than the currency
    has, for less than `minor_min` and for more than AMOUNT_MINOR_MAX.
    """
    exponent = exponent_of(currency)
    assert exponent is not None, currency
    minor = _scaled(bytes(raw), exponent, field=field, what=currency)
    if minor < minor_min:
        least = _decimal(minor_min, exponent)
        raise Invalid(f"{field} must be at least {least}", field=field)
    if minor > AMOUNT_MINOR_MAX:
        most = _decimal(AMOUNT_MINOR_MAX, exponent)
        raise Invalid(f"{field} must be at most {most}", field=field)
    return minor


def parse_percent(raw: bytes | msgspec.Raw, *, field: str) -> int:
    """Read the text of a JSON number of percent as basis points: above 0, up to 100.

    Raises: Invalid, with `field`.
    """
    points = _scaled(bytes(raw), 2, field=field, what="a percentage")
    if not 0 < points <= PERCENT_BP_MAX:
        raise Invalid(f"{field} must be above 0 and at most 100 percent", field=field)
    return points


@lru_cache(maxsize=16_384)
def json_amount(minor: int, exponent: int) -> msgspec.Raw:
    """Write minor units as a JSON number with exactly the currency's decimals: `18.00`."""
    return msgspec.Raw(_decimal(minor, exponent).encode())


def json_percent(points: int) -> msgspec.Raw:
    """Write basis points as a JSON number of percent with as few decimals as it needs: `20`."""
    text = _decimal(points, 2)
    return msgspec.Raw(text.rstrip("0").rstrip(".").encode())


def _decimal(minor: int, exponent: int) -> str:
    if exponent == 0:
        return str(minor)
    sign = "-" if minor < 0 else ""
    whole, part = divmod(abs(minor), 10**exponent)
    return f"{sign}{whole}.{part:0{exponent}d}"


def _scaled(text: bytes, exponent: int, *, field: str, what: str) -> int:
    # Most amounts are written as people write them, and need no pattern: 89.99, 90.
    whole, dot, part = text.partition(b".")
    if whole.isdigit() and len(whole) <= _PLAIN_DIGITS_MAX and (len(whole) == 1 or text[0] != 48):
        if not dot:
            return int(whole) * int(10**exponent)
        if len(part) == exponent and part.isdigit():
            return int(whole + part)
    match = _NUMBER.fullmatch(text) if len(text) <= _NUMBER_LENGTH_MAX else None
    if match is None:
        if text[:1] in b"-0123456789" and text:
            raise Invalid(f"{field} is out of range", field=field)
        raise Invalid(f"{field} must be a number", field=field)
    sign, whole, part, power = match.groups()
    digits = whole + part.rstrip(b"0") if part else whole
    # The digits are an integer that must be shifted by this many places to count minor units.
    shift = exponent + (int(power) if power else 0) - (len(digits) - len(whole))
    number = int(digits)
    if shift >= 0:
        number *= int(10**shift)
    else:
        number, rest = divmod(number, int(10**-shift))
        if rest:
            decimals = exponent - shift
            raise Invalid(f"{field} has {decimals} decimals; {what} takes {exponent}", field=field)
    return -number if sign else number
