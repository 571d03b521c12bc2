"""What is drawn can be read: by a reader of its own, which knows the standard and not the writer.

It reads in the order of the standard's chapter 9 and corrects nothing, so that nothing may be off.
"""

import random

import pytest

from api.dashboard import qr_codes

Grid = list[list[bool]]
# Version: blocks of level M as (how many, data bytes in each), and where small squares are centred.
VERSIONS = {
    1: ([(1, 16)], []),
    2: ([(1, 28)], [6, 18]),
    5: ([(2, 43)], [6, 30]),
    7: ([(4, 31)], [6, 22, 38]),
    8: ([(2, 38), (2, 39)], [6, 24, 42]),
    10: ([(4, 43), (1, 44)], [6, 28, 50]),
    15: ([(5, 41), (5, 42)], [6, 26, 48, 70]),
}
# The 15 bits of level M with each mask, as table C.1 prints them.
FORMATS = [0x5412, 0x5125, 0x5E7C, 0x5B4B, 0x45F9, 0x40CE, 0x4F97, 0x4AA0]


def flipped(mask: int, row: int, column: int) -> bool:
    product = row * column
    return [
        (row + column) % 2, row % 2, column % 3, (row + column) % 3, (row // 2 + column // 3) % 2,
        product % 2 + product % 3, (product % 2 + product % 3) % 2,
        ((row + column) % 2 + product % 3) % 2,
    ][mask] == 0  # fmt: skip


def function_modules(version: int, centres: list[int]) -> set[tuple[int, int]]:
    size = 4 * version + 17
    kept = {(6, n) for n in range(size)} | {(n, 6) for n in range(size)}
    for top, left in ((0, 0), (0, size - 8), (size - 8, 0)):
        kept |= {(top + r, left + c) for r in range(8) for c in range(8)}
    kept |= {(8, n) for n in (*range(9), *range(size - 8, size))}
    kept |= {(n, 8) for n in (*range(9), *range(size - 8, size))}
    corners = [(6, 6), (6, size - 7), (size - 7, 6)]
    for row in centres:
        for column in centres:
            if (row, column) not in corners:
                kept |= {(row + r, column + c) for r in range(-2, 3) for c in range(-2, 3)}
    if version >= 7:
        kept |= {(r, size - 11 + c) for r in range(6) for c in range(3)}
        kept |= {(size - 11 + c, r) for r in range(6) for c in range(3)}
    return kept


def read(grid: Grid) -> bytes:
    size = len(grid)
    version = (size - 17) // 4
    blocks, centres = VERSIONS[version]
    top = "".join(
        "01"[grid[8][c]] for c in (0, 1, 2, 3, 4, 5, 7, 8)
    ) + "".join("01"[grid[r][8]] for r in (7, 5, 4, 3, 2, 1, 0))  # fmt: skip
    mask = FORMATS.index(int(top, 2))
    kept = function_modules(version, centres)
    bits = ""
    columns = [c for c in range(size - 1, 0, -1) if c > 6] + [5, 4, 3, 2, 1, 0]
    for pair in range(0, len(columns), 2):
        rows = range(size - 1, -1, -1) if pair % 4 == 0 else range(size)
        for row in rows:
            for column in columns[pair : pair + 2]:
                if (row, column) not in kept:
                    bits += "01"[grid[row][column] ^ flipped(mask, row, column)]
    words = [int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8)]
    lengths = [length for count, length in blocks for _ in range(count)]
    data: list[list[int]] = [[] for _ in lengths]
    at = 0
    for place in range(max(lengths)):
        for number, length in enumerate(lengths):
            if place < length:
                data[number].append(words[at])
                at += 1
    rest = words[at:]
    for number, block in enumerate(data):
        correction = rest[number :: len(lengths)]
        assert_correct(block + correction, len(correction))
    text = "".join(f"{word:08b}" for block in data for word in block)
    assert text[:4] == "0100"
    length_bits = 8 if version < 10 else 16
    length, begin = int(text[4 : 4 + length_bits], 2), 4 + length_bits
    return bytes(int(text[begin + 8 * n : begin + 8 * n + 8], 2) for n in range(length))


def assert_correct(block: list[int], correction: int) -> None:
    """A block, read as a polynomial, is 0 at as many powers of 2 as it has correction words."""
    powers = [1]
    for _ in range(254):
        doubled = powers[-1] << 1
        powers.append(doubled ^ 0x11D if doubled > 255 else doubled)
    logs = {value: number for number, value in enumerate(powers)}
    for root in range(correction):
        value = 0
        for word in block:
            value = (powers[(logs[value] + root) % 255] if value else 0) ^ word
        assert value == 0, "the correction words are wrong"


@pytest.mark.parametrize("length", [1, 14, 20, 80, 120, 150, 200, 400, 412])
def test_what_is_drawn_can_be_read(length: int) -> None:
    text = "".join(random.choices("abcXYZ019%:/?=&@-", k=length)).encode()
    grid = qr_codes.modules_of(text)
    assert grid is not None and len(grid) == len(grid[0])
    assert read(grid) == text


def test_what_is_too_long_is_not_drawn() -> None:
    assert qr_codes.modules_of(b"x" * 412) is not None
    assert qr_codes.modules_of(b"x" * 413) is None
    assert qr_codes.path_of("x" * 413) is None
