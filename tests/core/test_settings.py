"""Settings come from the environment once, and derive what must not be typed twice."""

import multiprocessing
import stat
from pathlib import Path

import pytest

from core.settings import PROJECT_ROOT, Settings, SettingsError, load, unknown_variables

SECRET = "a1" * 32


def test_there_are_at_most_25_settings() -> None:
    assert len(Settings.__struct_fields__) <= 25


def test_each_role_logs_in_under_its_own_name_and_password(data_dir: Path) -> None:
    url = "postgresql://root:hunter2@a.example:5432,b.example:5433/shop?sslmode=require&user=x"
    settings = load({"VAUCHFLOW_DATABASE_URL": url, "VAUCHFLOW_SECRET": SECRET}, data_dir)
    app, worker = settings.database_dsn("app"), settings.database_dsn("worker")
    password = settings.role_password("vf_app")
    assert len(password) == 64
    assert app == (
        f"postgresql://vf_app:{password}@a.example:5432,b.example:5433/shop?sslmode=require"
    )
    assert worker.startswith("postgresql://vf_worker:")
    assert settings.role_password("vf_worker") not in app
    assert settings.database_dsn("owner") == url


def test_a_role_may_be_given_its_own_url(data_dir: Path) -> None:
    settings = load(
        {
            "VAUCHFLOW_DATABASE_URL": "postgresql:///one",
            "VAUCHFLOW_APP_DATABASE_URL": "postgresql://vf_app:pw@bouncer:6432/one",
        },
        data_dir,
    )
    assert settings.database_dsn("app") == "postgresql://vf_app:pw@bouncer:6432/one"
    assert settings.database_dsn("worker").startswith("postgresql://vf_worker:")


def test_no_database_says_how_to_get_one(data_dir: Path) -> None:
    with pytest.raises(SettingsError, match=r"start the embedded one with ./vauchflow up"):
        load({}, data_dir).database_dsn("app")


def test_a_secret_is_made_once_and_readable_by_its_owner_only(data_dir: Path) -> None:
    first = load({}, data_dir).secret
    assert load({}, data_dir).secret == first
    assert len(first) == 64
    assert stat.S_IMODE((data_dir / "secret").stat().st_mode) == 0o600
    assert [path.name for path in data_dir.iterdir()] == ["secret"]


def _secret_of(path: str) -> str:
    return load({}, Path(path)).secret


def test_racing_first_starts_agree_on_one_secret(data_dir: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_secret_of, [str(data_dir)] * 32, chunksize=1))) == 1


def test_a_given_secret_needs_no_data_directory(data_dir: Path) -> None:
    missing = data_dir / "missing"
    assert load({"VAUCHFLOW_SECRET": SECRET}, missing).secret == SECRET
    assert not missing.exists()


def test_a_short_secret_is_refused(data_dir: Path) -> None:
    with pytest.raises(SettingsError, match="at least 32 characters"):
        load({"VAUCHFLOW_SECRET": "hunter2"}, data_dir)


def test_the_data_directory_option_wins_over_the_environment(data_dir: Path) -> None:
    environ = {"VAUCHFLOW_DATA_DIR": str(data_dir / "b"), "VAUCHFLOW_SECRET": SECRET}
    assert load(environ, data_dir / "a").data_dir == data_dir / "a"
    assert load(environ).data_dir == data_dir / "b"
    assert load({"VAUCHFLOW_SECRET": SECRET}).data_dir == PROJECT_ROOT / ".vauchflow"


def test_printing_settings_shows_no_secret(data_dir: Path) -> None:
    environ = {"VAUCHFLOW_SECRET": SECRET, "VAUCHFLOW_DATABASE_URL": "postgresql://u:hunter2@h/d"}
    shown = repr(load(environ, data_dir))
    assert SECRET not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("fd00::7", "http://[fd00::7]:8080"),
    ],
)
def test_the_address_of_clients_follows_the_host(data_dir: Path, host: str, base: str) -> None:
    environ = {"VAUCHFLOW_HOST": host, "VAUCHFLOW_SECRET": SECRET}
    assert load(environ, data_dir).base_url == base
    environ["VAUCHFLOW_PUBLIC_URL"] = "https://shop.example/"
    assert load(environ, data_dir).base_url == "https://shop.example"


def test_a_misspelt_variable_is_found() -> None:
    assert unknown_variables({"VAUCHFLOW_PROT": "1", "VAUCHFLOW_PORT": "1", "PATH": ""}) == [
        "VAUCHFLOW_PROT"
    ]
