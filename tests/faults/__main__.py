"""`python -m tests.faults`: play rounds, one line each, and keep what they showed."""

import argparse
import contextlib
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.faults import results
from tests.faults.catalogue import CONTROL_NUMBER, FAULTS, MODES
from tests.faults.rounds import Verdict, play
from tests.faults.shim import NoCompiler
from tests.faults.system import System

# Verifying costs a second for what so many rounds leave in the ledger.
ROUNDS_OF_A_SYSTEM = 36
# A cut right after the servers flushed by themselves undoes next to nothing: it is made again.
CONTROL_CUTS_MAX = 4


class Turn(msgspec.Struct, frozen=True):
    """One round to be played."""

    number: int
    mode: str
    seed: int


class Stage:
    """The running system, made when it is needed and anew after a round that broke."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._system: System | None = None
        self._directory: Path | None = None

    def system(self) -> System:
        """Return a running system. Raises: NoCompiler, ServerError, ProductFault."""
        if self._system is None:
            self._directory = Path(tempfile.mkdtemp(prefix="vf-faults-", dir="/tmp"))
            self._system = System(self._directory)
            self._system.start()
        return self._system

    def scratch(self) -> Path:
        """Return a directory of the running system."""
        assert self._directory is not None
        return self._directory

    def leave(self, keep_as: Path | None = None) -> None:
        """Stop it and remove it; a copy of its history and logs can be kept. Idempotent."""
        system, directory = self._system, self._directory
        self._system = self._directory = None
        if system is not None:
            with contextlib.suppress(Exception):
                system.stop()
        if directory is None:
            return
        if keep_as is not None and system is not None:
            keep_as.mkdir(parents=True, exist_ok=True)
            for kept in (*directory.glob("history.jsonl"), *directory.glob("servers/*.log")):
                shutil.copy(kept, keep_as)
            if hasattr(system, "product"):
                (keep_as / "product.log").write_text("\n".join(system.product.log))
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Play what was asked for; the exit status is 1 when a round broke or none was played."""
    asked = _parsed()
    done = results.read_rounds(asked.results) if asked.resume else []
    turns = list(_turns(asked))
    if not asked.resume and asked.results is not None:
        asked.results.unlink(missing_ok=True)
    print(f"{len(turns) - len(done)} rounds from seed {asked.seed}", flush=True)
    began_s = time.monotonic()
    stage = Stage()
    try:
        for place, turn in enumerate(turns[len(done) :], len(done) + 1):
            if place % ROUNDS_OF_A_SYSTEM == 0:
                stage.leave()
            verdict = play(
                stage.system(), turn.number, turn.mode, turn.seed, stage.scratch(), asked.variant
            )
            for more in range(1, CONTROL_CUTS_MAX):
                if turn.number != CONTROL_NUMBER or verdict.lost:
                    break
                stage.leave()
                verdict = play(
                    stage.system(), turn.number, turn.mode, turn.seed + more, stage.scratch(),
                    asked.variant,
                )  # fmt: skip
            done.append(verdict)
            if asked.results is not None:
                results.add_round(asked.results, verdict)
            _tell(place, len(turns), verdict)
            if verdict.broken:
                stage.leave(results.KEPT / f"{verdict.seed}-{verdict.number}-{verdict.mode}")
            elif turn.number == CONTROL_NUMBER:
                stage.leave()
    except NoCompiler as fault:
        print(f"FAILED  fault {fault}")
        return 1
    finally:
        stage.leave()
    broken = sum(1 for one in done if one.broken)
    print(
        f"faults: {len(done) - broken} passed, {broken} failed in "
        f"{time.monotonic() - began_s:.0f} s; {sum(v.attempts for v in done):,} attempts, "
        f"{sum(v.acknowledged for v in done):,} acknowledged, "
        f"{sum(v.lost for v in done):,} lost, {sum(v.over for v in done):,} over-redeemed"
    )
    return 1 if broken or not done else 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="so many; 0: each fault and mode")
    parser.add_argument("--seed", type=int, help="of the first round; the next have the next")
    parser.add_argument("--fault", type=int, choices=sorted(FAULTS))
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--variant", default="", help="which kind of the fault; else the seed's")
    parser.add_argument("--control", action="store_true", help="only the controls")
    parser.add_argument("--resume", action="store_true", help="go on after the kept rounds")
    parser.add_argument(
        "--results", type=Path, help="where rounds are kept; else a whole run's are"
    )
    asked = parser.parse_args()
    is_whole = not (asked.fault or asked.mode or asked.control)
    if asked.results is None and is_whole:
        asked.results = results.ROUNDS
    if asked.resume and asked.results is None:
        parser.error("--resume needs --results, or a whole run")
    if asked.seed is None:
        kept = results.read_rounds(asked.results) if asked.resume else []
        asked.seed = kept[0].seed if kept else secrets.randbelow(1_000_000)
    return asked


def _turns(asked: argparse.Namespace) -> Iterator[Turn]:
    controls = [
        Turn(CONTROL_NUMBER, mode, asked.seed) for mode in (asked.mode or "fast strict").split()
    ]
    if asked.control:
        yield from controls
        return
    numbers = [asked.fault] if asked.fault else sorted(FAULTS)
    modes = [asked.mode] if asked.mode else list(MODES)
    pairs = [(number, mode) for number in numbers for mode in modes]
    count = asked.rounds or len(pairs)
    for place in range(count):
        if place % len(pairs) == 0 and place:
            # Each lap in another order: what one fault leaves behind meets all others in time.
            random.Random(asked.seed + place).shuffle(pairs)
        number, mode = pairs[place % len(pairs)]
        yield Turn(number, mode, asked.seed + place if count > 1 else asked.seed)
    if not asked.fault:
        yield from controls


def _tell(place: int, count: int, verdict: Verdict) -> None:
    word = "FAILED" if verdict.broken else "ok"
    variant = f" ({verdict.variant})" if verdict.variant else ""
    print(
        f"{word:<7} fault {place}/{count} {verdict.number:>2} {verdict.fault}{variant}, "
        f"{verdict.mode}: {verdict.attempts:,} attempts, {verdict.acknowledged:,} acknowledged, "
        f"{verdict.lost} lost, {verdict.burned} burned, back {verdict.back_s:.1f} s, "
        f"{verdict.seconds:.0f} s",
        flush=True,
    )
    for line in verdict.broken:
        print(f"        {line}")
    if verdict.broken:
        print(f"        again: {verdict.command}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
