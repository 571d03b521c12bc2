"""What is installed, and under which names."""

import importlib.metadata
import re
import tomllib

from tests.tidy.sources import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
ROOMS = {"api", "core", "bench", "hotpath", "tests"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    found = {}
    for line in LOCK.splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        found[normalised(name)] = version
    return found


def test_the_lock_names_versions_and_no_addresses() -> None:
    assert "://" not in LOCK
    assert "--" not in LOCK
    assert all(pinned().values()), "every line pins one version"


def test_every_direct_dependency_is_locked_as_it_is_declared() -> None:
    groups = PYPROJECT["dependency-groups"].values()
    declared = [
        *PYPROJECT["project"]["dependencies"],
        *(line for group in groups for line in group),
    ]
    for requirement in declared:
        name = normalised(re.split(r"[\[<>=!~; ]", requirement)[0])
        assert name in pinned(), requirement
        _, exact, version = requirement.partition("==")
        if exact:
            assert pinned()[name] == version, requirement


def test_the_wheel_holds_the_compiled_module_and_nothing_else() -> None:
    maturin = PYPROJECT["tool"]["maturin"]
    assert maturin["module-name"] == "vauchflow_hotpath._native"
    assert maturin["python-source"] == "hotpath/python"
    assert maturin["manifest-path"] == "hotpath/Cargo.toml"
    assert not {"python-packages", "include"} & maturin.keys()
    below = ROOT / maturin["python-source"]
    packages = {path.name for path in below.iterdir() if path.name != "__pycache__"}
    assert packages == {"vauchflow_hotpath"}
    assert PYPROJECT["project"]["classifiers"] == ["Private :: Do Not Upload"]


def test_no_installed_distribution_takes_a_rooms_name() -> None:
    taken = importlib.metadata.packages_distributions()
    foreign = {
        room: taken[room] for room in ROOMS if room in taken and taken[room] != ["vauchflow"]
    }
    assert foreign == {}
