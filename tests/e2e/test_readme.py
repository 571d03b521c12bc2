"""The README's five minutes, as a reader lives them: every block is run, every answer compared.

`…` in an answer stands for anything; in a command it is the value of that kind from the answer
before. Keys, numbers (with their decimals) and texts must be equal.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from bench.product import Product
from core.settings import PROJECT_ROOT
from tests.e2e.sales import running

README = PROJECT_ROOT / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ID = re.compile(r"\b([a-z]{3})_[0-9A-Z]{26}\b")
# What a reader needs to see the next answer; wins of a fast sale are settled within it.
PATIENCE_S = 5.0
COMMAND_TIMEOUT_S = 30.0


class Step(NamedTuple):
    command: str
    kind: str | None
    expected: str


def steps() -> list[Step]:
    """Return the shell blocks of the tour, each with the answer printed below it."""
    tour = README.read_text().partition("\n## Five minutes\n")[2].partition("\n## ")[0]
    found: list[Step] = []
    for kind, text in FENCE.findall(tour):
        if kind == "sh":
            found.append(Step(text, None, ""))
        else:
            assert kind in ("json", "text") and found[-1].kind is None, text
            found[-1] = Step(found[-1].command, kind, text)
    return found


class Reader:
    """Somebody with a shell, who pastes."""

    def __init__(self, product: Product) -> None:
        self.seen = {"vf_sk": product.token}
        self._url = product.url
        self._data_dir = product.data_dir
        self._variables = ""

    def paste(self, command: str) -> str:
        filled = re.sub(r"\b([a-z]{3}|vf_sk)_…", lambda found: self.seen[found[1]], command)
        filled = filled.replace("http://127.0.0.1:8080", self._url)
        assert "…" not in filled, filled
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", self._variables + filled],
            cwd=PROJECT_ROOT,
            env={"PATH": "/usr/bin:/bin", "VAUCHFLOW_DATA_DIR": str(self._data_dir)},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), (filled, done)
        for line in filled.splitlines(keepends=True):
            if re.match(r"[A-Z]+=", line):
                self._variables += line
        return done.stdout

    def learn(self, answer: str) -> None:
        for found in ID.finditer(answer):
            self.seen[found[1]] = found[0]


def fits(shown: str, text: str) -> bool:
    pattern = ".*".join(map(re.escape, shown.split("…")))
    return re.fullmatch(pattern, text) is not None


def differences(shown: Any, got: Any, path: str = "$") -> Iterator[str]:
    """Compare two decoded answers; numbers were kept as they are written."""
    if isinstance(shown, dict) and isinstance(got, dict):
        for name in shown.keys() ^ got.keys():
            yield f"{path}.{name} is only {'shown' if name in shown else 'answered'}"
        for name in shown.keys() & got.keys():
            yield from differences(shown[name], got[name], f"{path}.{name}")
    elif isinstance(shown, list) and isinstance(got, list) and len(shown) == len(got):
        for index, (one, other) in enumerate(zip(shown, got, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(shown, str) and isinstance(got, str):
        if not fits(shown, got):
            yield f"{path}: {shown!r} is shown, {got!r} is answered"
    elif (type(shown), str(shown)) != (type(got), str(got)):
        yield f"{path}: {shown} is shown, {got} is answered"


def compared(step: Step, answer: str) -> list[str]:
    if step.kind == "json":
        shown, got = (json.loads(text, parse_float=Decimal) for text in (step.expected, answer))
        return sorted(differences(shown, got))
    shown_lines, lines = step.expected.splitlines(), answer.splitlines()
    if step.kind is None or len(shown_lines) != len(lines):
        return [] if shown_lines == lines else [f"answered: {answer}"]
    return [line for line, got in zip(shown_lines, lines, strict=True) if not fits(line, got)]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with running() as started:
        yield started


@pytest.mark.timeout(150)
def test_the_five_minute_tour_answers_as_printed(product: Product) -> None:
    reader = Reader(product)
    for step in steps():
        answer = reader.paste(step.command)
        deadline_s = time.monotonic() + PATIENCE_S
        while wrong := compared(step, answer):
            # Only what reads may be asked again; what writes has answered once and for all.
            is_read = " -d " not in step.command and " -X " not in step.command
            assert is_read and time.monotonic() < deadline_s, (step.command, wrong, answer)
            time.sleep(0.1)
            answer = reader.paste(step.command)
        reader.learn(answer)


def test_the_tour_shows_every_step_of_a_sale_in_both_modes() -> None:
    pasted = "\n".join(step.command for step in steps())
    for part in ("/validate", "/redeem", "/open", "/claim", "/close", "/rollback", "verify"):
        assert part in pasted, part
    assert '"durability": "fast"' in pasted and '"durability": "strict"' in pasted
    assert len([step for step in steps() if step.kind == "json"]) >= 15


def test_a_difference_in_a_key_a_decimal_or_a_text_is_noticed() -> None:
    shown = {"id": "vch_…", "amount": Decimal("18.00"), "list": [1], "none": None}

    def told(**change: Any) -> list[str]:
        return sorted(differences(shown, {**shown, "id": "vch_1", **change}))

    assert told() == []
    assert told(id="cmp_1") == ["$.id: 'vch_…' is shown, 'cmp_1' is answered"]
    assert told(amount=Decimal("18.0")) == ["$.amount: 18.00 is shown, 18.0 is answered"]
    assert told(more=1) == ["$.more is only answered"]
    assert told(none=0) == ["$.none: None is shown, 0 is answered"]
    assert told(list=[1, 2]) == ["$.list: [1] is shown, [1, 2] is answered"]
