"""`./vauchflow import` and `export`: vouchers of one project, from and into a file."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from core import db, exports, ids, imports
from core.api_keys import Caller
from core.errors import Invalid
from core.imports import RefusedLine
from core.rules import money
from core.settings import Settings

# Lines of one commit: under a second. Who is interrupted starts again: codes that are there are
# refused, and nothing comes twice.
COMMIT_LINES: Final = 5_000
STATEMENT_TIMEOUT_MS: Final = 60_000

Tell = Callable[[int, int | None], None]
"""Hears how many are done, of how many where that is known."""


class _Project(msgspec.Struct, frozen=True):
    id: UUID
    name: str
    currency: str


async def load(
    settings: Settings, raw: bytes, project: str | None, tell: Tell
) -> tuple[int, list[RefusedLine]]:
    """Import a table of any length; return how many vouchers were made, and each refused line.

    Raises: Invalid for a file that is no table, also in the middle: what was before it stays.
    """
    lines = imports.read_table(raw, lines_max=None)
    total, made, done = max(raw.count(b"\n"), 1), 0, 0
    refused: list[RefusedLine] = []
    caller = await _caller(settings, project)
    database = await db.Database.open(settings.database_dsn("app"), size_max=1)
    try:
        while piece := list(islice(lines, COMMIT_LINES)):
            async with database.transaction(
                caller.project_id, statement_timeout_ms=STATEMENT_TIMEOUT_MS
            ) as conn:
                told = await imports.store(conn, caller, iter(piece))
            made += told.imported
            refused += told.refused
            done += len(piece)
            tell(done, total)
    finally:
        await database.close()
    return made, refused


async def save(
    settings: Settings,
    file: Path,
    project: str | None,
    campaign_id: str | None,
    form: exports.Format,
    tell: Tell,
) -> int:
    """Write a project's vouchers, newest first; return how many. The file appears when it is whole.

    Raises: NotFound for the campaign, Invalid for the project.
    """
    caller = await _caller(settings, project)
    database = await db.Database.open(settings.database_dsn("app"), size_max=1)
    draft = file.with_name(f".{file.name}.part")
    done, after = 0, None
    try:
        with draft.open("wb") as out:
            while True:
                async with database.transaction(caller.project_id, reads_only=True) as conn:
                    found = await exports.part(
                        conn, caller, form, campaign_id=campaign_id, after=after
                    )
                out.write(found.text)
                done, after = done + found.count, found.last
                tell(done, None)
                if after is None:
                    break
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
        await database.close()
    return done


async def _caller(settings: Settings, project: str | None) -> Caller:
    """Act for a project: the one named, or the only one there is. Raises: Invalid."""
    database = await db.Database.open(settings.database_dsn("worker"), size_max=1)
    try:
        async with database.connection(reads_only=True) as conn:
            known = await db.many(conn, "tenants.projects", _Project)
    finally:
        await database.close()
    named = {ids.format_id("prj", one.id): one for one in known}
    if project is None and len(named) == 1:
        project = next(iter(named))
    if project not in named:
        there = ", ".join(f"{public} ({one.name})" for public, one in named.items()) or "none"
        raise Invalid(f"Name a project with --project; there are: {there}")
    found = named[project]
    exponent = money.exponent_of(found.currency)
    assert exponent is not None, "a project's currency is known"
    return Caller(found.id, found.id, "SECRET", found.currency, exponent)
