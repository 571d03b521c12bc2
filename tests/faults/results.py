"""What runs leave for docs/proof.md: JSON lines below `.proof/`, which git does not keep."""

from pathlib import Path
from typing import Final

import msgspec

from bench.product import ROOT
from tests.faults.rounds import Verdict

DIRECTORY: Final = ROOT / ".proof"
ROUNDS: Final = DIRECTORY / "rounds.jsonl"
LONG: Final = DIRECTORY / "rounds-long.jsonl"
PLANTED: Final = DIRECTORY / "planted.json"
KEPT: Final = DIRECTORY / "broken"


def add_round(file: Path, verdict: Verdict) -> None:
    """Append a round at once: a run that is broken off loses none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(verdict) + b"\n")


def read_rounds(file: Path) -> list[Verdict]:
    """Return the kept rounds, in the order they were played; none when there is no file."""
    if not file.exists():
        return []
    return [msgspec.json.decode(line, type=Verdict) for line in file.read_bytes().splitlines()]
