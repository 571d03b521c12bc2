"""Plant known bugs one by one and see each caught: `python -m tests.planted [--jobs N] [NAME…]`.

A bug is a patch beside this file, with two lines on top: what it breaks, and the quickest suite
that must notice. It is applied to a copy of the tree, so that what ships carries no switch. The
suites must pass on a copy without any patch, and fail on the planted one; a patch that no longer
applies, or plants into a function that a later migration makes anew, is a failure, too. Leaves
`.proof/planted.json` for docs/proof.md.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).parent
RESULTS = ROOT / ".proof" / "planted.json"
# The copy whose crate is compiled stays in its place, and so do its objects: what is compiled again
# is only what a patch changed.
TARGET = ROOT / "target" / "planted"
WORKSHOP = TARGET / "tree"
NATIVE = "hotpath/python/vauchflow_hotpath"
MIGRATIONS = "core/db/migrations"
# A suite takes seconds; compiling the crate's tests for the first time takes half a minute.
SUITE_S, CLEAN_S = 120, 420
# Scripts are part of the compiled module. Where a patch changes one, the copy's Python reads it.
READ_SCRIPTS = """
from pathlib import Path as _Path

_lua = _Path(__file__).parents[2] / "lua"
CLAIM_LUA, CROWD_LUA, FACTS_LUA, LEASE_LUA, RATE_LUA = (
    (_lua / f"{name}.lua").read_text() for name in ("claim", "crowd", "facts", "lease", "rate")
)
"""


class Bug(msgspec.Struct):
    """A patch and what became of it."""

    name: str
    what: str
    caught_by: str
    seconds: float = 0.0
    caught: bool = False
    why: str = ""


class Report(msgspec.Struct):
    """What docs/proof.md reads."""

    at: str
    seconds: float
    bugs: list[Bug]


def catalogue(names: Sequence[str]) -> list[Bug]:
    """Read the patches, all or those named. Raises: SystemExit for a name that is none."""
    bugs = []
    for path in sorted(PATCHES.glob("*.patch")):
        what, caught_by = path.read_text().splitlines()[:2]
        assert what.startswith("What: ") and caught_by.startswith("Caught-By: "), path.name
        bugs.append(Bug(path.stem, what[6:], caught_by[11:]))
    unknown = set(names) - {bug.name for bug in bugs}
    if unknown:
        raise SystemExit(f"no such bug: {', '.join(sorted(unknown))}")
    return [bug for bug in bugs if not names or bug.name in names]


def files() -> list[str]:
    """Return what makes up the tree: what git knows, and the compiled module."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    native = [str(path.relative_to(ROOT)) for path in (ROOT / NATIVE).glob("_native*.so")]
    return [name for name in listed.stdout.splitlines() + native if (ROOT / name).is_file()]


@contextmanager
def copy_of(tree: Sequence[str]) -> Iterator[Path]:
    """Copy the tree to a directory that the servers of the tests can reach."""
    copy = Path(tempfile.mkdtemp(prefix="vf-planted-", dir="/tmp"))
    try:
        copy.chmod(0o755)
        for name in tree:
            place = copy / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place)
        # For `./vauchflow`; the packages are the same.
        (copy / ".venv").symlink_to(ROOT / ".venv")
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def workshop(tree: Sequence[str]) -> Iterator[Path]:
    """Make the compiled copy equal to the tree; one at a time may have it.

    What differs is written anew, never dated back: cargo tells changes by time alone.
    """
    for path in [path for path in WORKSHOP.rglob("*") if path.is_file()]:
        if str(path.relative_to(WORKSHOP)) not in tree:
            path.unlink()
    for name in tree:
        place, content = WORKSHOP / name, (ROOT / name).read_bytes()
        if not place.is_file() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    yield WORKSHOP


def place_for(suite: str, tree: Sequence[str]) -> AbstractContextManager[Path]:
    """Return the copy in which a suite runs."""
    return workshop(tree) if suite.startswith("cargo") else copy_of(tree)


def functions(migration: Path) -> dict[str, str]:
    """Return the functions that a migration makes, by name."""
    statements = re.split(r"^(?=CREATE )", migration.read_text(), flags=re.MULTILINE)
    found = [(re.match(r"CREATE (?:OR REPLACE )?FUNCTION ([\w.]+)", s), s) for s in statements]
    return {made[1]: statement for made, statement in found if made}


def made_anew(copy: Path) -> str:
    """Return the functions that differ in a copy where a later migration makes them anew."""
    later: set[str] = set()
    overtaken = []
    for path in sorted((ROOT / MIGRATIONS).glob("*.sql"), reverse=True):
        stands, planted = functions(path), functions(copy / MIGRATIONS / path.name)
        overtaken += [
            f"{name} of {path.name}" for name in stands.keys() & later
            if planted.get(name) != stands[name]
        ]  # fmt: skip
        later |= stands.keys()
    return ", ".join(sorted(overtaken))


def plant(bug: Bug, copy: Path) -> str:
    """Apply a patch to a copy; the empty string, or why it plants nothing."""
    patch = PATCHES / f"{bug.name}.patch"
    done = subprocess.run(
        ["git", "apply", "--recount", "-C1", str(patch)], cwd=copy, capture_output=True, text=True,
        # The workshop is inside the repository, whose paths are not meant.
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)},
    )  # fmt: skip
    if done.returncode:
        return f"the patch no longer applies: {done.stderr.strip().splitlines()[-1]}"
    overtaken = made_anew(copy)
    if overtaken:
        return f"plant it where the function is made now, not in {overtaken}"
    if "b/hotpath/lua/" in patch.read_text():
        with (copy / NATIVE / "__init__.py").open("a") as module:
            module.write(READ_SCRIPTS)
    return ""


def command(suite: str) -> list[str]:
    """Return how a suite is run: node ids of pytest, a module of Python, or cargo."""
    words = shlex.split(suite)
    if words[0] == "cargo":
        return words
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    return [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words]


def run(suite: str, copy: Path, within_s: float) -> tuple[int, str]:
    """Run a suite in a copy; its exit status and what it said. 124: it did not end in time."""
    environ = {
        **os.environ,
        "PYTHONPATH": f"{copy / 'hotpath/python'}:{copy}",
        "CARGO_TARGET_DIR": str(TARGET),
        "VAUCHFLOW_TEST_SEED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        command(suite), cwd=copy, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate()
        return 124, said
    return process.returncode, said


def noticed(suite: str, status: int, said: str) -> str:
    """Return the empty string if a suite failed as a test does, or why it is no finding."""
    if status == 0:
        return "not caught: the suite passed"
    if status == 124:
        return ""  # everything hangs: nobody overlooks that
    if suite.startswith("cargo"):
        return "" if "test result: FAILED" in said else "it does not compile"
    if suite.startswith("python"):
        return "" if re.search(r"^seed \d+: ", said, re.MULTILINE) else "the suite itself broke"
    return "" if status == 1 and " error" not in said.splitlines()[-1] else "the suite itself broke"


def catch(bug: Bug, tree: Sequence[str]) -> str:
    """Plant one bug and run its suite; returns what the suite said."""
    with place_for(bug.caught_by, tree) as copy:
        bug.why = plant(bug, copy)
        if bug.why:
            return ""
        began = time.monotonic()
        status, said = run(bug.caught_by, copy, SUITE_S)
        bug.seconds = round(time.monotonic() - began, 1)
        bug.why = noticed(bug.caught_by, status, said)
        bug.caught = not bug.why
        return said


class Hands:
    """Who runs suites: some at a time, of those that compile one."""

    def __init__(self, count: int) -> None:
        """Begin without work."""
        self.any, self.compiling = ThreadPoolExecutor(count), ThreadPoolExecutor(1)

    def give(self, suite: str, work: Callable[..., str], *args: object) -> Future[str]:
        """Have the work done that runs a suite."""
        return (self.compiling if suite.startswith("cargo") else self.any).submit(work, *args)


def clean(bugs: Sequence[Bug], tree: Sequence[str], hands: Hands) -> str:
    """Run every suite on a copy without a bug; the empty string, or what failed."""
    suites = {bug.caught_by for bug in bugs}
    nodes = sorted(node for suite in suites if suite[:6] == "tests/" for node in shlex.split(suite))
    whole = {suite for suite in suites if not suite.startswith("tests/")}
    whole |= {" ".join(map(shlex.quote, nodes))} - {""}

    def failure(suite: str) -> str:
        with place_for(suite, tree) as copy:
            status, said = run(suite, copy, CLEAN_S)
        return f"{suite}\n{said[-3_000:]}" if status else ""

    running = [hands.give(suite, failure, suite) for suite in sorted(whole)]
    return next(filter(None, (done.result() for done in running)), "")


def main(arguments: Sequence[str]) -> int:
    """Catch every bug; 1 when one got away, or when a suite fails without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--said", action="store_true", help="print what a failing suite said")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    bugs, tree, began = catalogue(options.names), files(), time.monotonic()
    hands = Hands(options.jobs)
    broken = clean(bugs, tree, hands)
    if broken:
        print(f"FAILED  planted nothing: a suite fails without any bug: {broken}")
        return 1
    running = {hands.give(bug.caught_by, catch, bug, tree): bug for bug in bugs}
    for done in as_completed(running):
        bug, said = running[done], done.result()
        told = f"{bug.caught_by}, {bug.seconds} s" if bug.caught else bug.why
        sign = "ok     " if bug.caught else "FAILED "
        print(f"{sign} planted {bug.name}: {told}", flush=True)
        if not bug.caught and options.said:
            print(said[-3_000:])
    seconds = round(time.monotonic() - began, 1)
    print(f"{sum(bug.caught for bug in bugs)} of {len(bugs)} planted bugs caught in {seconds} s")
    if not options.names:
        RESULTS.parent.mkdir(exist_ok=True)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        RESULTS.write_bytes(msgspec.json.encode(Report(at, seconds, bugs)))
    return not all(bug.caught for bug in bugs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
