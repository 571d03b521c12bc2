"""Each planted bug is planted into what stands: a suite that fails then fails by the bug."""

import re
import shutil
from pathlib import Path

import pytest

from tests.planted.__main__ import MIGRATIONS, NATIVE, PATCHES, Bug, catalogue, made_anew, plant
from tests.tidy.sources import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the migrations."""
    shutil.copytree(ROOT / MIGRATIONS, tmp_path / MIGRATIONS)
    return tmp_path


@pytest.mark.parametrize("bug", catalogue(()), ids=lambda bug: bug.name)
def test_a_planted_bug_applies_where_things_are_made_now(bug: Bug, copy: Path) -> None:
    patch = (PATCHES / f"{bug.name}.patch").read_text()
    for name in [*re.findall(r"^--- a/(.*)$", patch, re.MULTILINE), f"{NATIVE}/__init__.py"]:
        place = copy / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
    assert plant(bug, copy) == ""


def test_a_bug_in_a_function_that_a_later_migration_makes_anew_is_noticed(copy: Path) -> None:
    first = copy / MIGRATIONS / "0001_pre_initial.sql"
    assert made_anew(copy) == ""
    text = first.read_text()
    at = text.index("IF", text.index("CREATE FUNCTION vf.judge_lease("))
    first.write_text(f"{text[:at]}PERFORM 1; {text[at:]}")
    assert made_anew(copy) == "vf.judge_lease of 0001_pre_initial.sql"
