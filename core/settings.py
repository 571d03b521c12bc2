"""What an operator may turn, read once from the environment and passed down.

This is the only module that knows the names of environment variables. Every variable is
`VAUCHFLOW_` and the field's name in capitals. A number nobody needs to turn is a named constant
beside its use, not a field here; the cap is 25 fields.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import msgspec

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PREFIX = "VAUCHFLOW_"
SERVERS_FILE = "servers.json"
SECRET_FILE = "secret"  # noqa: S105 - a file's name

# 256 random bits: the pepper of key digests and the root of derived passwords.
SECRET_BYTES = 32
# A shorter secret from the environment is refused: 32 characters hold at least 128 bits as hex.
SECRET_CHARACTERS_MIN = 32

Role = Literal["owner", "app", "worker"]
_LOGIN_OF_ROLE = {"app": "vf_app", "worker": "vf_worker"}


class SettingsError(Exception):
    """One plain sentence for the operator: a setting is missing or cannot be used."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one process. Nothing in here changes while it runs."""

    data_dir: Path
    """Where the embedded servers, the secret and demo.json live. Default `.vauchflow`."""
    database_url: str | None = None
    """PostgreSQL as the owner who may migrate; None: the embedded one, when it is not running."""
    app_database_url: str | None = None
    """PostgreSQL as vf_app; None: database_url with the user and password replaced."""
    worker_database_url: str | None = None
    """PostgreSQL as vf_worker; None: database_url with the user and password replaced."""
    prepared_statements: bool = True
    """False behind PgBouncer in transaction mode."""
    pool_size_max: int = 8
    """Most PostgreSQL connections of one process."""
    redis_url: str = ""
    """redis://, rediss://, unix:// or redis+cluster://; empty: the embedded one is not running."""
    host: str = "127.0.0.1"
    """The address the HTTP server listens on."""
    port: int = 8080
    """The TCP port the HTTP server listens on."""
    workers: int = 1
    """HTTP worker processes on this machine."""
    public_url: str | None = None
    """The address clients use, without a trailing slash; None: http://host:port."""
    secret: str
    """Root of key digests, receipts and derived passwords. All nodes of one system share it."""
    smtp_url: str = ""
    """smtp:// or smtps:// with user and password, for mails to people; empty: into the log."""
    mail_from: str = "vauchflow@localhost"
    """Who mails to people come from."""
    log_format: Literal["console", "json"] = "json"
    """console on a terminal, json elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""
    backlog_max: int = 200_000
    """Answered flash wins, in units, that may wait for PostgreSQL; frozen in a lease at arming."""
    webhook_allow: str = ""
    """Networks that webhooks may reach though not public, and by http, too: 10.0.0.0/8, ::1."""
    trusted_proxies: str = ""
    """Networks whose X-Forwarded-For, or else Forwarded, is believed: 10.0.0.0/8, ::1."""
    trim_keep_s: int = 3_600
    """Seconds a settled win stays in the stream: what a restored PostgreSQL can be given back."""

    def __repr__(self) -> str:
        """Show where the process works, never the secret or a URL's password."""
        return f"Settings(data_dir={str(self.data_dir)!r}, base_url={self.base_url!r})"

    def database_dsn(self, role: Role) -> str:
        """Return the URL to connect with as a role.

        The passwords of vf_app and vf_worker are derived from the secret; migrating sets them.
        A unix socket with trust ignores them.

        Raises: SettingsError when no database is known.
        """
        override = {"app": self.app_database_url, "worker": self.worker_database_url}.get(role)
        if override:
            return override
        if not self.database_url:
            raise SettingsError(
                "no database: start the embedded one with ./vauchflow up (and give the same "
                f"--data-dir, now {self.data_dir}), or set {PREFIX}DATABASE_URL"
            )
        if role == "owner":
            return self.database_url
        login = _LOGIN_OF_ROLE[role]
        return _with_login(self.database_url, login, self.role_password(login))

    def role_password(self, login: str) -> str:
        """Return the password of a database role: HMAC-SHA256(secret, "role:" + login) as hex."""
        key = self.secret.encode()
        return hmac.new(key, f"role:{login}".encode(), hashlib.sha256).hexdigest()

    @property
    def base_url(self) -> str:
        """Return the address clients use."""
        if self.public_url:
            return self.public_url
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http://{host}:{self.port}"


class RunningServers(msgspec.Struct, frozen=True):
    """`servers.json`: the embedded servers of a running `up`, for the other commands."""

    pid: int
    address: str
    database_url: str | None
    redis_url: str | None
    pids: dict[str, int]


def load(
    environ: Mapping[str, str], data_dir: Path | None = None, *, join_running: bool = True
) -> Settings:
    """Read the settings.

    `data_dir` wins over VAUCHFLOW_DATA_DIR. With `join_running`, URLs the environment does not
    give are those of the embedded servers that run on the data directory, where there are some.
    Makes the data directory and its secret when they are missing.

    Raises: SettingsError, naming the variable.
    """
    given = data_dir or Path(environ.get(PREFIX + "DATA_DIR") or PROJECT_ROOT / ".vauchflow")
    where = given.expanduser().absolute()
    values: dict[str, object] = {
        "data_dir": where,
        "log_format": "console" if sys.stderr.isatty() else "json",
    }
    for name in Settings.__struct_fields__:
        text = environ.get(PREFIX + name.upper(), "").strip()
        if text and name != "data_dir":
            values[name] = text
    running = running_servers(where) if join_running else None
    if running:
        values.setdefault("database_url", running.database_url)
        values.setdefault("redis_url", running.redis_url or "")
    if "secret" not in values:
        values["secret"] = _own_secret(where)
    if "public_url" in values:
        values["public_url"] = str(values["public_url"]).rstrip("/")
    settings = _convert(values)
    _check_ranges(settings)
    return settings


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the VAUCHFLOW_ variables that mean nothing: most often a misspelt one."""
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__}
    return sorted(n for n in environ if n.startswith(PREFIX) and n not in known)


def running_servers(data_dir: Path) -> RunningServers | None:
    """Return what the `up` that holds a data directory wrote, or None.

    A killed `up` leaves its file behind; connecting then fails and says so.
    """
    try:
        return msgspec.json.decode((data_dir / SERVERS_FILE).read_bytes(), type=RunningServers)
    except (OSError, msgspec.DecodeError):
        return None


def _convert(values: dict[str, object]) -> Settings:
    for name, value in values.items():
        if not isinstance(value, str):
            continue
        hint = Settings.__annotations__[name]
        try:
            if hint is bool:
                value = value.lower()
            values[name] = msgspec.convert(value, hint, strict=False)
        except msgspec.ValidationError:
            allowed = {int: "a whole number", bool: "true or false"}.get(hint) or " or ".join(
                map(repr, hint.__args__)
            )
            raise SettingsError(
                f"{PREFIX}{name.upper()} must be {allowed}, not {value!r}"
            ) from None
    return msgspec.convert(values, Settings)


_RANGES = {
    "port": (1, 65_535),
    "workers": (1, 64),
    "pool_size_max": (1, 500),
    "backlog_max": (1, 100_000_000),
    "trim_keep_s": (0, 30 * 86_400),
}
_SCHEMES = {
    "database_url": ("postgresql", "postgres"),
    "app_database_url": ("postgresql", "postgres"),
    "worker_database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", "unix", "redis+cluster"),
    "public_url": ("http", "https"),
    "smtp_url": ("smtp", "smtps"),
}


def _check_ranges(settings: Settings) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise SettingsError(
                f"{PREFIX}{name.upper()} must be from {least} to {most}, not {value}"
            )
    for name, schemes in _SCHEMES.items():
        value = getattr(settings, name)
        if value and value.partition("://")[0] not in schemes:
            raise SettingsError(
                f"{PREFIX}{name.upper()} must start with {' or '.join(s + '://' for s in schemes)}"
            )
    for name in ("webhook_allow", "trusted_proxies"):
        try:
            for text in filter(None, map(str.strip, getattr(settings, name).split(","))):
                ipaddress.ip_network(text)
        except ValueError as error:
            raise SettingsError(f"{PREFIX}{name.upper()} must list networks: {error}") from None
    if len(settings.secret) < SECRET_CHARACTERS_MIN:
        raise SettingsError(
            f"{PREFIX}SECRET must have at least {SECRET_CHARACTERS_MIN} characters; make one "
            "with: openssl rand -hex 32"
        )


def _own_secret(data_dir: Path) -> str:
    """Return the data directory's secret, made once; racing first starts agree on one."""
    path = data_dir / SECRET_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            draft = data_dir / f".{SECRET_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(SECRET_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                # A link never replaces: the first of two racing starts wins.
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"the data directory {data_dir} cannot be used: {error.strerror or error}; "
            "give another with --data-dir"
        ) from None


def _with_login(url: str, login: str, password: str) -> str:
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("user", "password")]
    netloc = f"{quote(login)}:{quote(password)}@{hosts}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query, safe="/")))
