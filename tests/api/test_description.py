"""The API does what /openapi.json says, whatever is sent: schemathesis over every address.

All of its checks, with two tenants' keys who must not see each other's objects.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.api.conftest import Api, Project
from tests.api.objects import one_of_each
from tests.conftest import SEED

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
CASES_MIN = 5_000
# What the run may take in all; a machine that does less in this time has tried less of chance.
FOR_S = 240
# How often an address names what there is, so that more than "not found" is tried.
KNOWN_SHARE = 0.6
# A schema cannot say that a date lies behind another, that a currency has two decimals, or what a
# plan includes: such a request fits the description and is refused.
OF_MEANING = ["2xx", "400", "401", "402", "403", "404", "409", "413", "422", "429"]
# Its answer has no end that could be waited for: tests/api/test_live.py.
ENDLESS = "/v1/live"
# Whoever asks too often is told so before it is looked at what was asked.
OF_NONSENSE = ["400", "401", "402", "403", "404", "405", "409", "413", "415", "422", "429"]


def settings_of(projects: dict[str, Project], known: dict[str, str], place: Path) -> Path:
    """Write what schemathesis is told; returns the file."""
    people = place / "people.json"
    people.write_bytes(
        msgspec.json.encode(
            {
                "auth": [
                    {
                        "name": name,
                        "fixedHeaders": [
                            {"name": "Authorization", "value": f"Bearer {project.secret_key}"}
                        ],
                    }
                    for name, project in projects.items()
                ]
            }
        )
    )
    lines = [
        f"seed = {SEED}", f'hooks = "{HOOKS}"', f"max-time = {FOR_S}", "[auth.wfc]",
        f'path = "{people}"', f"peers = {list(projects)}", "[generation]",
        'database = "none"', "no-shrink = true", "[checks]",
        f"positive_data_acceptance.expected-statuses = {OF_MEANING}",
        f"negative_data_rejection.expected-statuses = {OF_NONSENSE}",
    ]  # fmt: skip
    lines += [
        line for noun, value in known.items()
        for line in (f'[dictionaries."{noun}"]', f'values = ["{value}"]')
    ]  # fmt: skip
    for noun in known:
        under = f"^/v1/(analytics/)?{noun}/"
        if noun == "deliveries":
            under = "/deliveries/"
        names = ("delivery",) if noun == "deliveries" else ("id", "code", "sale", "customer",
                                                            "redemption")  # fmt: skip
        lines += ["[[operations]]", f"include-path-regex = '{under}'"]
        lines += [
            f'parameters."path.{name}" = {{ dictionary = "{noun}", probability = {KNOWN_SHARE} }}'
            for name in names
        ]
    lines += ["[[operations]]", f'include-path = "{ENDLESS}"', "enabled = false"]
    file = place / "schemathesis.toml"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.long
@pytest.mark.timeout(FOR_S + 180)
def test_nothing_is_answered_that_is_not_described(
    api: Api, make_project: Callable[..., Project], tmp_path: Path
) -> None:
    projects = {"ours": make_project(), "theirs": make_project(currency="JPY")}
    with api.client(projects["ours"].secret_key) as client:
        known = one_of_each(api, client, "OURS")
    logged = api.log_size()
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file",
         str(settings_of(projects, known, tmp_path)), "run", f"{api.base_url}/openapi.json",
         "--checks", "all", "--continue-on-failure", "--no-color",
         # How fast bodies are thought up is the tool's affair, and a slow machine's.
         "--suppress-health-check", "all"],
        cwd=tmp_path, capture_output=True, text=True, timeout=FOR_S + 120,
    )  # fmt: skip
    summary = done.stdout[done.stdout.rfind("= SUMMARY =") :]
    print(summary)
    failures = done.stdout[done.stdout.find("= FAILURES =") :]
    assert done.returncode == 0, failures[:20_000] or done.stderr[-2_000:]
    made = re.search(r"^ +([\d,]+) generated", summary, re.MULTILINE)
    assert made is not None and int(made[1].replace(",", "")) >= CASES_MIN
    tested = re.search(r"Selected: (\d+)/(\d+)\n +Tested: (\d+)", summary)
    assert tested is not None
    selected, there, asked = (int(count) for count in tested.groups())
    assert (selected, asked) == (there - 1, there - 1), "every address but one was asked"
    assert [e for e in api.log_since(logged) if e["level"] == "error"] == []
    assert httpx.get(f"{api.base_url}/readyz").status_code == 200
