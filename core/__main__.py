"""The command line: `./vauchflow`, or `python -m core` from the project root.

This file reads the environment, finds the settings and calls one function a command. Expected
failures end as one line on standard error and status 1.
"""

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import rich.console
import rich.progress
import rich_click as click

from core import logs
from core import settings as settings_module
from core.endings import end
from core.processes import ServerError, die_with_parent
from core.settings import PROJECT_ROOT, Settings, SettingsError

# Longer than any transaction may take; the supervisor waits 15 s before it kills.
DRAIN_TIMEOUT_S = 12.0
# Without a supervisor the databases are going, too: nothing is left to wait for.
ORPHAN_DRAIN_TIMEOUT_S = 2.0

_PATH = click.Path(file_okay=False, path_type=Path)
_data_dir = click.option(
    "--data-dir", type=_PATH, help="Where everything is kept.  [default: .vauchflow]"
)


def _fail(line: str) -> None:
    print(f"vauchflow: {line}", file=sys.stderr)
    raise SystemExit(1)


def _environ() -> dict[str, str]:
    """Return this process's environment, with the project root importable for children."""
    environ = dict(os.environ)
    paths = [str(PROJECT_ROOT), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environ


def _settings(data_dir: Path | None, *, join_running: bool = True, **more: object) -> Settings:
    environ = _environ()
    for name, value in more.items():
        if value is not None:
            environ[settings_module.PREFIX + name.upper()] = str(value)
    return settings_module.load(environ, data_dir, join_running=join_running)


@contextlib.contextmanager
def _plain_failures() -> Iterator[None]:
    """Turn what an operator can mend into one line. A bug keeps its traceback."""
    from core.db.migrate import MigrationRefused
    from core.errors import Fault

    try:
        yield
    except (SettingsError, ServerError, MigrationRefused) as error:
        _fail(str(error))
    except Fault as error:
        _fail(str(getattr(error, "detail", None) or error))
    except OSError as error:
        _fail(str(error))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Vouchers, referrals, gift cards and flash sales behind one API that never over-redeems."""


@main.command()
@_data_dir
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on.  [default: 8080]")
@click.option("--workers", type=int, help="HTTP worker processes.  [default: 1]")
@click.option("--no-demo", is_flag=True, help="Make no demo project.")
@click.option("--die-with-parent", "tied", is_flag=True, hidden=True)
def up(
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    no_demo: bool,
    tied: bool,
) -> None:
    """Start everything on this machine and keep it running."""
    from core.supervisor import Up

    if tied:
        die_with_parent(signal.SIGTERM)
    with _plain_failures():
        settings = _settings(data_dir, join_running=False, host=host, port=port, workers=workers)
        logs.configure(settings)
        Up(settings, _environ(), _progress()).run(with_demo=not no_demo)


def _progress() -> Callable[[str], None]:
    """Return how to say what is being done: with the time since the start, on standard error."""
    console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    started_at_s = time.monotonic()

    def say(line: str) -> None:
        elapsed_s = time.monotonic() - started_at_s
        console.print(f"[dim]{elapsed_s:6.1f} s[/]  {line}")

    return say


@main.command()
@_data_dir
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on.  [default: 8080]")
@click.option("--workers", type=int, help="HTTP worker processes.  [default: 1]")
def serve(data_dir: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the HTTP API only."""
    with _plain_failures():
        settings = _settings(data_dir, host=host, port=port, workers=workers)
    arguments = ["--host", settings.host, "--port", str(settings.port)]
    arguments += ["--workers", str(settings.workers), "--data-dir", str(settings.data_dir)]
    os.chdir(PROJECT_ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "api", *arguments], _environ())


@main.command()
@_data_dir
def reconcile(data_dir: Path | None) -> None:
    """Write the wins of flash sales into PostgreSQL; run one a system."""
    _run_until_signal("core.reconciler", data_dir)


@main.command()
@_data_dir
def worker(data_dir: Path | None) -> None:
    """Open and close sales, deliver events, expire what is due."""
    _run_until_signal("core.worker", data_dir)


def _run_until_signal(module: str, data_dir: Path | None) -> None:
    """Run a module's `run(settings)`; a signal cancels it and bounds how long it may take."""
    parent = os.getppid()
    # Otherwise a task that never ends would keep a stopped system alive.
    deadline = threading.Timer(DRAIN_TIMEOUT_S, os._exit, [1])
    orphaned = threading.Timer(ORPHAN_DRAIN_TIMEOUT_S, os._exit, [1])
    deadline.daemon = orphaned.daemon = True

    async def run(settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(importlib.import_module(module).run(settings))
        endings: list[asyncio.Task[None]] = []

        def stop() -> None:
            if not endings:
                deadline.start()
                if os.getppid() != parent:
                    orphaned.start()
                endings.append(loop.create_task(end(task)))

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with _plain_failures():
        settings = _settings(data_dir)
        settings.database_dsn("worker")
        logs.configure(settings)
        asyncio.run(run(settings))


@main.command()
@_data_dir
def migrate(data_dir: Path | None) -> None:
    """Bring the database to this version's schema; harmless when it is there."""
    from core.db import migrate as migrations

    with _plain_failures():
        names = asyncio.run(migrations.migrate(_settings(data_dir)))
    print("\n".join(f"applied {name}" for name in names) or "nothing to apply")


@main.command()
@_data_dir
@click.option("--history", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def verify(data_dir: Path | None, history: Path | None) -> None:
    """Check the books: every invariant, with its figures. Reads only."""
    from core import verify as verification

    with _plain_failures():
        raise SystemExit(asyncio.run(verification.run(_settings(data_dir), history)))


@main.command()
@_data_dir
@click.option(
    "--replaced", is_flag=True, help="Redis's data is not what was answered: write it off."
)
def recover(data_dir: Path | None, replaced: bool) -> None:
    """Give a restored or promoted PostgreSQL back what Redis kept of fast sales."""
    from core import recover as recovery

    with _plain_failures():
        settings = _settings(data_dir)
        logs.configure(settings)
        raise SystemExit(asyncio.run(recovery.run(settings, is_replaced=replaced)))


@main.command()
@_data_dir
def doctor(data_dir: Path | None) -> None:
    """Check the set-up: versions, servers, roles, isolation."""
    from core import doctor as examination

    with _plain_failures():
        raise SystemExit(asyncio.run(examination.run(_settings(data_dir), os.environ)))


_project = click.option("--project", help="Whose vouchers: prj_…  [default: the only project]")


@main.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_project
@_data_dir
def import_(file: Path, project: str | None, data_dir: Path | None) -> None:
    """Import vouchers from a CSV file; a line that is refused is told and harms no other."""
    from core import transfers

    with _plain_failures():
        settings = _settings(data_dir)
        with _bar("importing") as tell:
            made, refused = asyncio.run(transfers.load(settings, file.read_bytes(), project, tell))
    for line in refused:
        print(f"line {line.line}: {line.code or '-'}: {line.detail}", file=sys.stderr)
    print(f"imported {made}, refused {len(refused)}")
    raise SystemExit(1 if refused else 0)


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["csv", "ndjson"]), help="[default: csv]")
@click.option("--campaign", help="Only vouchers of a campaign: cmp_…")
@_project
@_data_dir
def export(
    file: Path, form: str | None, campaign: str | None, project: str | None, data_dir: Path | None
) -> None:
    """Write vouchers into a file: CSV, or with all of their rules as newline-delimited JSON."""
    from core import transfers

    with _plain_failures():
        settings = _settings(data_dir)
        with _bar("exporting") as tell:
            count = asyncio.run(
                transfers.save(
                    settings, file, project, campaign, "ndjson" if form == "ndjson" else "csv", tell
                )
            )
    print(f"exported {count}")


@contextlib.contextmanager
def _bar(doing: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far something is, on standard error, as long as it lasts."""
    columns = (
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(),
    )  # fmt: skip
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as progress:
        task = progress.add_task(doing, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@main.command(name="demo-data")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, another year.")
@click.option(
    "--redemptions", type=int, default=50_000, show_default=True, help="How many in the year."
)
@_data_dir
def demo_data(seed: int, redemptions: int, data_dir: Path | None) -> None:
    """Fill a second project of the demo account with a believable year."""
    from core.demo_data import writing

    with _plain_failures():
        settings = _settings(data_dir)
        with _bar("writing") as tell:
            made = asyncio.run(writing.run(settings, seed, redemptions, tell))
    if not made.counts:
        print(f"{made.project_id} is there already: nothing was changed")
        return
    told = ("redemptions", "vouchers", "campaigns", "customers", "cards", "referrals", "sales")
    print(", ".join(f"{made.counts[name]:,} {name}" for name in told))
    print(f"{made.project_id} is beside the demo project: choose it at the top left")


_url = click.option("--url", help="The API's address.  [default: the demo project's]")
_key = click.option("--key", help="A secret key: vf_sk_…  [default: the demo project's]")


@main.command()
@click.option("--forward-to", required=True, help="Your receiver: http://localhost:3000/hook")
@_url
@_key
@_data_dir
def listen(forward_to: str, url: str | None, key: str | None, data_dir: Path | None) -> None:
    """Hand every new event to an address of this machine, signed like a webhook's."""
    from core import forwarding

    with _plain_failures(), contextlib.suppress(KeyboardInterrupt):
        desk = forwarding.Desk(_settings(data_dir).data_dir, url, key)
        asyncio.run(forwarding.listen(desk, forward_to, lambda line: print(line, flush=True)))


@main.command()
@click.argument("type")
@_url
@_key
@_data_dir
def trigger(type: str, url: str | None, key: str | None, data_dir: Path | None) -> None:
    """Have an example of an event told to all webhooks and listeners: voucher.redeemed."""
    from core import forwarding

    with _plain_failures():
        forwarding.trigger(forwarding.Desk(_settings(data_dir).data_dir, url, key), type)
    print(f"told {type}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_data_dir
def bench(arguments: tuple[str, ...], data_dir: Path | None) -> None:
    """Run the load test and the audit after it."""
    more = [*arguments, *(["--data-dir", str(data_dir.absolute())] if data_dir else [])]
    os.chdir(PROJECT_ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "bench.run", *more], _environ())


if __name__ == "__main__":
    main(prog_name="vauchflow")
