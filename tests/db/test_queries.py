"""Every named statement is checked against the migrated schema and against its callers."""

import ast
import asyncio
import importlib
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from core.db import queries, rows
from core.db.queries import MalformedQuery, Query, UnknownQuery, number_parameters, parse
from core.settings import Settings

ROOT = Path(queries.__file__).parents[2]
CALLS = {"one": "one", "value": "one", "many": "many", "run": "exec"}
# What asyncpg makes of a column; a field of another type would fail at the first row.
PYTHON_TYPES: dict[str, type] = {
    "bool": bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "float8": float,
    "numeric": Decimal,
    "text": str,
    "varchar": str,
    "name": str,
    "uuid": UUID,
    "bytea": bytes,
    "timestamptz": datetime,
}


class Call(typing.NamedTuple):
    """A place in the product that runs a named statement."""

    where: str
    function: str
    name: str
    params: frozenset[str] | None
    type_: Any


def product_files() -> list[Path]:
    return sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("api/**/*.py")])


def calls_in(path: Path) -> Iterator[Call]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        named = node.args[1]
        if function not in CALLS or not isinstance(named, ast.Constant):
            continue
        if not isinstance(named.value, str) or "." not in named.value:
            continue
        params = frozenset(keyword.arg for keyword in node.keywords if keyword.arg)
        has_stars = any(keyword.arg is None for keyword in node.keywords)
        type_ = resolve(module, node.args[2]) if len(node.args) > 2 else None
        yield Call(
            f"{path.relative_to(ROOT)}:{node.lineno}",
            function,
            named.value,
            None if has_stars else params,
            type_,
        )


def resolve(module: str, node: ast.expr) -> Any:
    """Return the type a caller names, or None where only the running code knows it."""
    try:
        return eval(ast.unparse(node), dict(vars(importlib.import_module(module))))
    except NameError:
        return None


CALLS_FOUND = [call for path in product_files() for call in calls_in(path)]


@pytest.fixture(scope="module")
def prepared(module_settings: Settings) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Each statement's parameter types and columns, as the role it is meant for sees them."""

    async def prepare_all() -> dict[str, tuple[list[str], dict[str, str]]]:
        found = {}
        for role in ("app", "worker"):
            raw = await asyncpg.connect(module_settings.database_dsn(role))
            for query in queries.QUERIES.values():
                if query.is_operator != (role == "worker"):
                    continue
                try:
                    statement = await raw.prepare(query.sql)
                    # Planning it starts the executor, which looks at the role's grants.
                    await raw.execute(f"EXPLAIN (GENERIC_PLAN) {query.sql}")
                except asyncpg.PostgresError as error:
                    raise AssertionError(f"{query.name} as vf_{role}: {error}") from error
                found[query.name] = (
                    [parameter.name for parameter in statement.get_parameters()],
                    {column.name: column.type.name for column in statement.get_attributes()},
                )
            await raw.close()
        return found

    return asyncio.run(prepare_all())


@pytest.mark.parametrize("query", queries.QUERIES.values(), ids=lambda query: query.name)
def test_a_statement_fits_the_migrated_schema_and_its_roles_grants(
    query: Query, prepared: dict[str, tuple[list[str], dict[str, str]]]
) -> None:
    parameters, columns = prepared[query.name]
    assert len(parameters) == len(query.params)
    assert columns or query.kind == "exec", "only :exec statements return nothing"


@pytest.mark.parametrize("query", queries.QUERIES.values(), ids=lambda query: query.name)
def test_a_statement_is_used_and_described_in_a_sentence(query: Query) -> None:
    assert query.description.endswith(".")
    assert query.description[0].isupper()
    quoted = f'"{query.name}"'
    assert any(quoted in path.read_text() for path in product_files()), f"{quoted} is unused"


@pytest.mark.parametrize("call", CALLS_FOUND, ids=lambda call: f"{call.where}:{call.name}")
def test_a_call_names_a_statement_its_parameters_and_its_columns(
    call: Call, prepared: dict[str, tuple[list[str], dict[str, str]]]
) -> None:
    query = queries.find(call.name)
    assert query.kind == CALLS[call.function]
    if call.params is not None:
        assert call.params == set(query.params)
    if call.type_ is None or call.type_ is dict:
        return
    columns = prepared[call.name][1]
    rows.shape(call.type_, tuple(columns))
    if isinstance(call.type_, type) and issubclass(call.type_, msgspec.Struct):
        hints = typing.get_type_hints(call.type_)
    else:
        hints = dict.fromkeys(columns, call.type_)
    wrong = {
        column: (pg_type, hints[column])
        for column, pg_type in columns.items()
        if pg_type in PYTHON_TYPES and not takes(hints[column], PYTHON_TYPES[pg_type])
    }
    assert wrong == {}


def takes(hint: Any, value_type: type) -> bool:
    """Say whether a field of this type can hold what the driver gives."""
    if hint is Any or hint is object:
        return True
    if isinstance(hint, typing.NewType):
        return takes(hint.__supertype__, value_type)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(takes(part, value_type) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return all(isinstance(value, value_type) for value in typing.get_args(hint))
    if origin is typing.Annotated:
        return takes(typing.get_args(hint)[0], value_type)
    return isinstance(hint, type) and issubclass(hint, value_type)


def test_parameters_are_numbered_by_first_use_and_found_nowhere_else() -> None:
    sql, params = number_parameters(
        "x.y",
        """
        SELECT '@no', "@no", E'it\\'s @no', $tag$ @no ' $tag$, @one::int -- @no
          FROM t /* @no */ WHERE a @> @two AND a <@ @one AND b @@ c AND d = ANY (@two)
           AND mail = 'a@b.c' AND e@>f
        """,
    )
    assert params == ("one", "two")
    assert "$1::int" in sql
    assert "a @> $2 AND a <@ $1 AND b @@ c AND d = ANY ($2)" in sql
    assert sql.count("@no") == 6
    assert "e@>f" in sql


def test_a_file_is_split_into_named_described_statements() -> None:
    found = parse(
        "things",
        "-- What things are.\n\n-- name: take :one\n-- Takes one.\n-- Once.\nSELECT @a;\n\n"
        "-- name: drop :exec\n-- Operator: drops all.\nDELETE FROM t\n",
    )
    assert found == [
        Query("things.take", "one", "Takes one. Once.", "/* things.take */ SELECT $1", ("a",)),
        Query("things.drop", "exec", "Operator: drops all.", "/* things.drop */ DELETE FROM t", ()),
    ]
    assert [query.is_operator for query in found] == [False, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-- name: take :one\nSELECT 1", "no description"),
        ("-- name: take :one\n-- A.\nSELECT 1; SELECT 2", "more than one statement"),
        ("-- name: take :one\n-- A.\n", "no statement"),
        ("-- name: take :several\n-- A.\nSELECT 1", "is no"),
        ("SELECT 1", "is no"),
        ("-- name: a :one\n-- A.\nSELECT 1;\n-- name: a :one\n-- A.\nSELECT 1;", "twice"),
    ],
)
def test_a_malformed_file_fails_the_import(text: str, reason: str) -> None:
    with pytest.raises(MalformedQuery, match=reason):
        parse("things", text)


def test_an_unknown_name_fails_with_the_known_ones() -> None:
    with pytest.raises(UnknownQuery, match=r"nothing\.here.*migrations\.applied"):
        queries.find("nothing.here")
