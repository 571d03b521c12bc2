"""Voucher codes: how two spellings are one code, and how a random one is made."""

import secrets
from typing import Annotated, Final

import msgspec

from core.errors import Invalid

CODE_LENGTH_MAX: Final = 64
# Crockford's base 32 without 0 and 1, which are read as O and I on paper: 30^12 is 5 * 10^17, so
# with a million live codes a guess finds one in 5 * 10^11.
ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
GENERATED_LENGTH: Final = 12
# A guess at one of a batch's codes misses nine times out of ten at the least, and drawing again
# what was taken ends soon.
SPARE_FACTOR: Final = 10
_FORMULA: Final = frozenset("=+-@")


def normalise(code: str) -> str | None:
    """Return the form two spellings of one code share, None for what can be no code.

    Letters count the same in both cases and spaces at the ends are slips of the paste buffer.
    Dashes count: merchants bring batches where `A-1-11` and `A-11-1` are two codes. Anything but
    printable ASCII is refused *before* case folding: some letters beyond it fold onto ASCII ones.
    A slash could not stand in an address.
    """
    if not code.isascii() or not code.isprintable() or "/" in code:
        return None
    norm = code.strip(" ").upper()
    return norm if 0 < len(norm) <= CODE_LENGTH_MAX else None


def checked(code: str, *, field: str = "code") -> str:
    """Return the normalised form of a code that is about to be stored.

    Raises: Invalid, with `field`, where `normalise` says None.
    """
    norm = normalise(code)
    if norm is None:
        raise Invalid(
            f"{field} must be 1 to {CODE_LENGTH_MAX} printable ASCII characters without a slash",
            field=field,
        )
    return norm


class CodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How codes are to look. In `pattern` each # is drawn; it stands for the other members."""

    length: Annotated[int, msgspec.Meta(ge=1, le=CODE_LENGTH_MAX)] = GENERATED_LENGTH
    charset: str | None = None
    prefix: str = ""
    postfix: str = ""
    pattern: str | None = None


class Pattern(msgspec.Struct, frozen=True):
    """Fixed pieces with a drawn character between each two of them."""

    pieces: tuple[str, ...]
    charset: str

    @property
    def combinations(self) -> int:
        """How many codes there can be."""
        return int(len(self.charset) ** (len(self.pieces) - 1))

    def draw(self, count: int) -> list[str]:
        """Return random codes; some may be equal. Cost: about half a microsecond a code."""
        width = len(self.pieces) - 1
        drawn = _drawn(self.charset, count * width)
        lots = (drawn[at : at + width] for at in range(0, count * width, width))
        if not any(self.pieces[1:-1]):
            first, last = self.pieces[0], self.pieces[-1]
            return [f"{first}{lot}{last}" for lot in lots]
        first, rest = self.pieces[0], self.pieces[1:]
        return [first + "".join(map("".join, zip(lot, rest, strict=True))) for lot in lots]


def _drawn(charset: str, count: int) -> str:
    """Return uniformly drawn characters: bytes beyond the last whole round are thrown away."""
    rounds = 256 // len(charset)
    table = (charset * rounds).encode().ljust(256, b"?")
    beyond = bytes(range(len(charset) * rounds, 256))
    drawn = b""
    while len(drawn) < count:
        # A third more than is missing, so that the second round is rare.
        drawn += secrets.token_bytes((count - len(drawn)) * 4 // 3 + 16).translate(table, beyond)
    return drawn[:count].decode()


def pattern_of(config: CodeConfig, count: int, *, field: str = "code_config") -> Pattern:
    """Return what draws `count` codes of a look. Raises: Invalid, with `field`.

    There must be SPARE_FACTOR times as many combinations as codes.
    """
    charset = ALPHABET if config.charset is None else config.charset
    if not 2 <= len(charset) <= 94 or not _is_plain(charset) or " " in charset or "#" in charset:
        raise Invalid(
            f"{field}.charset must be 2 to 94 printable ASCII characters without space, / and #",
            field=f"{field}.charset",
        )
    if len(set(charset.upper())) != len(charset):
        raise Invalid(
            f"{field}.charset has a character twice; codes do not tell capitals apart",
            field=f"{field}.charset",
        )
    if config.pattern is not None:
        if config.prefix or config.postfix:
            raise Invalid(
                f"{field}.pattern cannot be given with prefix or postfix", field=f"{field}.pattern"
            )
        pieces = tuple(config.pattern.split("#"))
    else:
        pieces = (config.prefix, *[""] * (config.length - 1), config.postfix)
    fixed = "".join(pieces)
    whole = len(fixed) + len(pieces) - 1
    if not _is_plain(fixed) or fixed != fixed.strip() or not len(pieces) > 1:
        raise Invalid(f"{field} must be printable ASCII without / and draw something", field=field)
    if whole > CODE_LENGTH_MAX:
        raise Invalid(f"{field} makes codes of more than {CODE_LENGTH_MAX} characters", field=field)
    if pieces[0][:1] in _FORMULA or (not pieces[0] and not _FORMULA.isdisjoint(charset)):
        raise Invalid(
            f"{field} must not make codes that begin with = + - or @: spreadsheets run them",
            field=field,
        )
    pattern = Pattern(pieces, charset)
    if pattern.combinations < count * SPARE_FACTOR:
        raise Invalid(
            f"{field} has {pattern.combinations} combinations; {count} codes that cannot be "
            f"guessed from each other need {count * SPARE_FACTOR}",
            field=field,
        )
    return pattern


def _is_plain(text: str) -> bool:
    return text.isascii() and (text.isprintable() or not text) and "/" not in text


_DEFAULT: Final = Pattern(("",) * (GENERATED_LENGTH + 1), ALPHABET)


def generate() -> str:
    """Return a random code of 12 characters that cannot be misread."""
    return _DEFAULT.draw(1)[0]
