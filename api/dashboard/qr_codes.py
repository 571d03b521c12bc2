"""QR codes as ISO/IEC 18004 has them: bytes, correction level M, drawn as one path of an SVG.

Nothing but a second factor's address is drawn here, so only what that needs is in here.
"""

from collections.abc import Callable, Iterator
from typing import Final

Grid = list[list[bool]]

# Level M of versions 1 to 15: correction bytes a block, and blocks. Version 15 holds 412 bytes; the
# address of the longest e-mail that is mostly letters has some 350.
_CORRECTION: Final = (10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24)
_BLOCKS: Final = (1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10)
# Light modules around a code, without which readers miss it.
QUIET: Final = 4

_MASKS: Final[tuple[Callable[[int, int], bool], ...]] = (
    lambda x, y: (x + y) % 2 == 0,
    lambda x, y: y % 2 == 0,
    lambda x, y: x % 3 == 0,
    lambda x, y: (x + y) % 3 == 0,
    lambda x, y: (x // 3 + y // 2) % 2 == 0,
    lambda x, y: x * y % 2 + x * y % 3 == 0,
    lambda x, y: (x * y % 2 + x * y % 3) % 2 == 0,
    lambda x, y: ((x + y) % 2 + x * y % 3) % 2 == 0,
)


def path_of(text: str) -> tuple[int, str] | None:
    """Return how wide a drawing of a text is, in modules, and its path; None for one too long."""
    grid = modules_of(text.encode())
    if grid is None:
        return None
    dark = "".join(
        f"M{x + QUIET} {y + QUIET}h1v1h-1z"
        for y, row in enumerate(grid)
        for x, is_dark in enumerate(row)
        if is_dark
    )
    return len(grid) + 2 * QUIET, dark


def modules_of(data: bytes) -> Grid | None:
    """Return the modules of a code, by row, dark ones True; None where the data is too long."""
    for version in range(1, len(_BLOCKS) + 1):
        words = _words(data, version)
        if words is not None:
            return _drawn(version, _with_correction(words, version))
    return None


def _raw_bits(version: int) -> int:
    """Return how many modules of a version hold data."""
    bits = (16 * version + 128) * version + 64
    if version >= 2:
        marks = version // 7 + 2
        bits -= (25 * marks - 10) * marks - 55
    return bits - 36 if version >= 7 else bits


def _words(data: bytes, version: int) -> bytes | None:
    """Return the data words of a version: mode, length, bytes, padding. None where it is full."""
    correction, blocks = _CORRECTION[version - 1], _BLOCKS[version - 1]
    capacity = _raw_bits(version) // 8 - correction * blocks
    length_bits = 8 if version < 10 else 16
    used = 4 + length_bits + 8 * len(data)
    if used > 8 * capacity:
        return None
    bits = f"0100{len(data):0{length_bits}b}" + "".join(f"{byte:08b}" for byte in data)
    bits += "0" * min(4, 8 * capacity - used)
    bits += "0" * (-len(bits) % 8)
    words = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    padding = b"\xec\x11" * capacity
    return words + padding[: capacity - len(words)]


def _with_correction(words: bytes, version: int) -> bytes:
    """Part words into blocks, add the correction of each, and shuffle them as they are drawn."""
    correction, count = _CORRECTION[version - 1], _BLOCKS[version - 1]
    short, longer = divmod(len(words), count)
    divisor = _divisor(correction)
    blocks: list[bytes] = []
    at = 0
    for number in range(count):
        length = short + (1 if number >= count - longer else 0)
        blocks.append(words[at : at + length])
        at += length
    rests = [_rest(block, divisor) for block in blocks]
    shuffled = [b[at] for at in range(short + 1) for b in blocks if at < len(b)]
    return bytes(shuffled + [rest[at] for at in range(correction) for rest in rests])


def _times(one: int, other: int) -> int:
    """Multiply in the field of 256 elements, modulo x⁸ + x⁴ + x³ + x² + 1."""
    product = 0
    for bit in range(7, -1, -1):
        product = (product << 1) ^ ((product >> 7) * 0x11D)
        product ^= ((other >> bit) & 1) * one
    return product


def _divisor(degree: int) -> list[int]:
    """Return the polynomial whose roots are the first powers of 2, without its leading 1."""
    found = [0] * (degree - 1) + [1]
    root = 1
    for _ in range(degree):
        for at in range(degree):
            found[at] = _times(found[at], root) ^ (found[at + 1] if at + 1 < degree else 0)
        root = _times(root, 2)
    return found


def _rest(block: bytes, divisor: list[int]) -> list[int]:
    rest = [0] * len(divisor)
    for byte in block:
        factor = byte ^ rest.pop(0)
        rest.append(0)
        for at, part in enumerate(divisor):
            rest[at] ^= _times(part, factor)
    return rest


def _drawn(version: int, words: bytes) -> Grid:
    """Draw a code under the mask that a reader likes best."""
    size = 17 + 4 * version
    is_kept = [[False] * size for _ in range(size)]
    grid = [[False] * size for _ in range(size)]

    def put(x: int, y: int, is_dark: bool) -> None:
        if 0 <= x < size and 0 <= y < size:
            grid[y][x], is_kept[y][x] = is_dark, True

    _draw_patterns(version, size, put)
    _draw_format(0, size, put)
    places = [(x, y) for x, y in _zigzag(size) if not is_kept[y][x]]
    for number, (x, y) in enumerate(places):
        if number < 8 * len(words):
            grid[y][x] = bool(words[number >> 3] >> (7 - (number & 7)) & 1)
    best: tuple[int, Grid] | None = None
    for mask, flips in enumerate(_MASKS):
        _draw_format(mask, size, put)
        tried = [list(row) for row in grid]
        for x, y in places:
            tried[y][x] ^= flips(x, y)
        penalty = _penalty(tried)
        if best is None or penalty < best[0]:
            best = penalty, tried
    assert best is not None
    return best[1]


def _draw_patterns(version: int, size: int, put: Callable[[int, int, bool], None]) -> None:
    """Draw what tells a reader where the code lies, and how large it is."""
    for at in range(size):
        put(6, at, at % 2 == 0)
        put(at, 6, at % 2 == 0)
    for left, top in ((3, 3), (size - 4, 3), (3, size - 4)):
        for dy in range(-4, 5):
            for dx in range(-4, 5):
                put(left + dx, top + dy, max(abs(dx), abs(dy)) not in (2, 4))
    marks = _marks(version, size)
    last = len(marks) - 1
    for i, x in enumerate(marks):
        for j, y in enumerate(marks):
            if (i, j) not in ((0, 0), (0, last), (last, 0)):
                for dy in range(-2, 3):
                    for dx in range(-2, 3):
                        put(x + dx, y + dy, max(abs(dx), abs(dy)) != 1)
    if version >= 7:
        rest = version
        for _ in range(12):
            rest = (rest << 1) ^ ((rest >> 11) * 0x1F25)
        bits = version << 12 | rest
        for number in range(18):
            near, far, is_dark = number // 3, size - 11 + number % 3, bool(bits >> number & 1)
            put(far, near, is_dark)
            put(near, far, is_dark)


def _marks(version: int, size: int) -> list[int]:
    """Return where the small squares are centred, both ways."""
    if version == 1:
        return []
    count = version // 7 + 2
    step = (version * 8 + count * 3 + 5) // (count * 4 - 4) * 2
    return [6, *reversed([size - 7 - step * number for number in range(count - 1)])]


def _draw_format(mask: int, size: int, put: Callable[[int, int, bool], None]) -> None:
    """Draw level M, which is 0, and the mask, twice."""
    rest = mask
    for _ in range(10):
        rest = (rest << 1) ^ ((rest >> 9) * 0x537)
    bits = (mask << 10 | rest) ^ 0x5412
    column = [0, 1, 2, 3, 4, 5, 7, 8, *range(size - 7, size)]
    row = [*range(size - 1, size - 9, -1), 7, 5, 4, 3, 2, 1, 0]
    for number in range(15):
        is_dark = bool(bits >> number & 1)
        put(8, column[number], is_dark)
        put(row[number], 8, is_dark)
    put(8, size - 8, True)


def _zigzag(size: int) -> Iterator[tuple[int, int]]:
    """Yield modules in the order data is laid: columns in pairs, from the right, up and down."""
    is_up = True
    for right in range(size - 1, 0, -2):
        # The column of the dotted line is left out.
        right = right if right > 6 else right - 1
        for step in range(size):
            y = size - 1 - step if is_up else step
            yield right, y
            yield right - 1, y
        is_up = not is_up


def _penalty(grid: Grid) -> int:
    """Return how hard to read a code is: runs, squares, false finders, too dark or too light."""
    size = len(grid)
    lines = ["".join("01"[dark] for dark in row) for row in grid]
    lines += ["".join("01"[row[x]] for row in grid) for x in range(size)]
    found = 0
    for line in lines:
        runs = [len(run) for run in line.replace("01", "0 1").replace("10", "1 0").split()]
        found += sum(run - 2 for run in runs if run >= 5)
        found += 40 * sum(
            line.startswith(("10111010000", "00001011101"), at) for at in range(size - 10)
        )
    for y in range(size - 1):
        for x in range(size - 1):
            found += 3 * (grid[y][x] == grid[y][x + 1] == grid[y + 1][x] == grid[y + 1][x + 1])
    dark = sum(map(sum, grid))
    return found + 10 * (abs(20 * dark - 10 * size * size) // (size * size))
