"""A stream becomes rows the same whichever way it is read."""

import random
import uuid

import msgspec

from core import ids
from core.hot import leases, wins

LEASE = uuid.UUID("0f0e0d0c-0b0a-4000-8000-000000000001")
REFERENCES = ["c1", "a,b", 'quo"te', "back\\slash", "{}", "NULL", "é ü", "$1", ""]


def entry(first: int, count: int, rng: random.Random) -> leases.RawEntry:
    packed = [
        (
            rng.choice(REFERENCES),
            rng.randbytes(16).hex(),
            rng.choice(REFERENCES),
            msgspec.json.encode(
                (
                    rng.randrange(10**9),
                    rng.randrange(10**9),
                    rng.choice([None, *REFERENCES[:-1]]),
                    rng.choice([None, '{"a":"\\"x"}']),
                )
            ).decode(),
        )
        for _ in range(count)
    ]
    fields = {
        b"f": b"%d" % first,
        b"t": b"%d" % rng.randrange(2**41),
        b"r": b"%d" % rng.randrange(10**6),
        b"d": msgspec.msgpack.encode(packed),
    }
    return b"%d-0" % first, fields


def elements(literal: str) -> list[object]:
    """The elements of an array literal, whose escapes are those of JSON."""
    inner = literal[1:-1].split(",")
    if any('"' in part for part in inner):
        text = literal[1:-1]
        return list(
            msgspec.json.decode(
                "[" + ",".join("null" if p == "NULL" else p for p in _split(text)) + "]"
            )
        )
    return [None if part == "NULL" else part for part in inner]


def _split(text: str) -> list[str]:
    parts, part, is_quoted, is_escaped = [], "", False, False
    for char in text:
        if char == "," and not is_quoted:
            parts.append(part)
            part = ""
            continue
        is_quoted ^= char == '"' and not is_escaped
        is_escaped = char == "\\" and not is_escaped
        part += char
    return [*parts, part]


def test_the_compiled_columns_hold_what_a_close_reading_finds() -> None:
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    raw, first = [], 1
    for _ in range(40):
        count = rng.randint(1, 40)
        raw.append(entry(first, count, rng))
        first += count
    told = wins.columns(raw, LEASE, 77, 10_000)
    assert told is not None
    taken, columns = told
    assert taken == len(raw)
    closely = wins.columns_closely(77, LEASE, leases.decoded(raw), 0, 0)
    assert closely.pop("poison") == closely.pop("poison_raw") == []
    for name, column in closely.items():
        found = elements(columns[name])
        if name == "ids":
            assert [uuid.UUID(str(one)) for one in found] == column
        elif name == "fingerprints":
            assert [bytes.fromhex(str(one)[2:]) for one in found] == column
        elif column and isinstance(column[0], int):
            assert [int(str(one)) for one in found] == column, name
        else:
            assert found == column, name
    assert closely["keys"][0] and ids.seq_of_win(closely["ids"][4], LEASE) == 5


def test_one_unreadable_entry_sends_all_to_the_close_reading() -> None:
    rng = random.Random(1)
    good, bad = entry(1, 3, rng), entry(4, 3, rng)
    for name in (b"f", b"t", b"r", b"d"):
        broken = (bad[0], {key: value for key, value in bad[1].items() if key != name})
        assert wins.columns([good, broken], LEASE, 1, 100) is None, name
    torn = (bad[0], bad[1] | {b"d": bad[1][b"d"][:-1]})
    assert wins.columns([good, torn], LEASE, 1, 100) is None
    told = wins.columns([good, bad], LEASE, 1, 3)
    assert told is not None and told[0] == 1
