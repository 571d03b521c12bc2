"""What goes wrong before anything runs is said in one line, and nothing is left behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from core.settings import PROJECT_ROOT

LAUNCHER = PROJECT_ROOT / "vauchflow"


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VAUCHFLOW_")}
    return subprocess.run(
        list(command),
        cwd="/",
        env=kept | {"COLUMNS": "200"} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_command_works_from_any_directory_and_through_a_link(data_dir: Path) -> None:
    link = data_dir / "vf"
    link.symlink_to(LAUNCHER)
    shown = run(str(link), "--help")
    assert shown.returncode == 0
    for name in ("up", "serve", "reconcile", "worker", "migrate", "verify", "doctor", "bench"):
        assert f" {name} " in shown.stdout, name


def test_without_an_environment_the_command_says_how_to_make_one(data_dir: Path) -> None:
    alone = data_dir / "vauchflow"
    shutil.copy(LAUNCHER, alone)
    refused = run(str(alone), "up")
    assert refused.returncode == 1
    assert refused.stderr == f"vauchflow: not set up yet; run: make -C {data_dir} setup\n"


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("VAUCHFLOW_PORT", "http", "VAUCHFLOW_PORT must be a whole number, not 'http'"),
        ("VAUCHFLOW_PORT", "0", "VAUCHFLOW_PORT must be from 1 to 65535, not 0"),
        (
            "VAUCHFLOW_REDIS_URL",
            "localhost:6379",
            "VAUCHFLOW_REDIS_URL must start with redis:// or rediss:// or unix:// or "
            "redis+cluster://",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    data_dir: Path, variable: str, value: str, line: str
) -> None:
    refused = run(str(LAUNCHER), "up", "--data-dir", str(data_dir), **{variable: value})
    assert refused.returncode == 1
    assert refused.stderr == f"vauchflow: {line}\n"
    assert not (data_dir / "pg18").exists()


def test_a_data_directory_that_cannot_be_made_is_one_line() -> None:
    refused = run(str(LAUNCHER), "up", "--data-dir", "/proc/nowhere")
    assert refused.returncode == 1
    assert refused.stderr == (
        "vauchflow: the data directory /proc/nowhere cannot be used: No such file or directory; "
        "give another with --data-dir\n"
    )


@pytest.mark.parametrize("command", ["migrate", "reconcile", "worker"])
def test_a_command_that_needs_the_database_says_how_to_get_one(
    data_dir: Path, command: str
) -> None:
    refused = run(str(LAUNCHER), command, "--data-dir", str(data_dir))
    assert refused.returncode == 1
    assert refused.stderr.startswith("vauchflow: no database: start the embedded one with")
    assert len(refused.stderr.splitlines()) == 1


def test_doctor_without_servers_has_nothing_to_mend(data_dir: Path) -> None:
    shown = run(str(LAUNCHER), "doctor", "--data-dir", str(data_dir), VAUCHFLOW_PROT="9000")
    assert "✗ unknown variables VAUCHFLOW_PROT: misspelt?" in shown.stdout
    assert shown.returncode == 1
    shown = run(str(LAUNCHER), "doctor", "--data-dir", str(data_dir))
    assert "– PostgreSQL: no database" in shown.stdout
    assert "not in use" in shown.stdout
    assert shown.returncode == 0, shown.stdout
