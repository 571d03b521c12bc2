"""The named statements of `sql/<noun>.sql`, loaded once at import.

SQL is source code here: a statement is found by `<noun>.<name>`, says in one sentence what it is
for, and names its parameters `@like_this`. This module knows text only; it never connects.
"""

import re
from pathlib import Path
from typing import Final, Literal

import msgspec

Kind = Literal["one", "many", "exec"]

SQL_DIR: Final = Path(__file__).with_name("sql")

_HEADER: Final = re.compile(
    r"--\s*name:\s*(?P<name>[a-z][a-z0-9_]*)\s+:(?P<kind>one|many|exec)\s*$"
)
# What must pass through untouched comes first, so that an @ inside it is never a parameter.
# `@>`, `<@`, `@@` and `@?` are operators: a parameter is an @ with no @ or < before it and a
# letter right behind.
_TOKEN: Final = re.compile(
    r"""
    (?P<verbatim>
        [eE]'(?:[^'\\]|\\.|'')*'            # E'…' with backslash escapes
      | '(?:[^']|'')*'                      # '…'
      | "(?:[^"]|"")*"                      # "…"
      | \$(?P<tag>[a-zA-Z_]*)\$.*?\$(?P=tag)\$   # $tag$…$tag$
      | --[^\n]*                            # line comment
      | /\*.*?\*/                           # block comment
    )
    | (?<![@<\w])@(?P<param>[a-z_][a-z0-9_]*)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)


class Query(msgspec.Struct, frozen=True):
    """One named statement, ready for the wire: `params[0]` is what `$1` stands for."""

    name: str
    kind: Kind
    description: str
    sql: str
    params: tuple[str, ...]

    @property
    def is_operator(self) -> bool:
        """Whether the statement crosses tenants and so belongs to the worker's role."""
        return self.description.startswith("Operator:")


class UnknownQuery(LookupError):
    """A statement was asked for by a name that no file has: a bug in the caller."""


class MalformedQuery(ValueError):
    """A file under `sql/` breaks the rules above; the import fails at once."""


def parse(noun: str, text: str) -> list[Query]:
    """Split one file into its statements.

    Raises: MalformedQuery for a statement without description, two statements under one name,
    or anything but comments and blank lines before the first name.
    """
    found: list[Query] = []
    for block in re.split(r"(?m)^(?=--\s*name:)", text):
        lines = block.strip().splitlines()
        if not lines:
            continue
        header = _HEADER.match(lines[0])
        if header is None:
            if all(not line.strip() or line.startswith("--") for line in lines) and not found:
                continue  # the file's own opening comment
            raise MalformedQuery(f"{noun}.sql: {lines[0]!r} is no `-- name: x :one|:many|:exec`")
        name = f"{noun}.{header['name']}"
        body_at = next(
            (i for i, line in enumerate(lines) if i and not line.startswith("--")), len(lines)
        )
        description = " ".join(line[2:].strip() for line in lines[1:body_at]).strip()
        if not description:
            raise MalformedQuery(f"{name} has no description under its name")
        if any(name == other.name for other in found):
            raise MalformedQuery(f"{name} is there twice")
        sql, params = number_parameters(name, "\n".join(lines[body_at:]))
        kind: Kind = header["kind"]  # type: ignore[assignment]
        # The comment names the statement in the server's log and in pg_stat_activity.
        found.append(Query(name, kind, description, f"/* {name} */ {sql}", params))
    return found


def number_parameters(name: str, text: str) -> tuple[str, tuple[str, ...]]:
    """Rewrite `@name` to `$n`, one number per name in order of first use.

    Raises: MalformedQuery when there is no statement, or more than one.
    """
    params: list[str] = []
    pieces: list[str] = []
    position = 0
    body = text.strip().removesuffix(";").rstrip()
    for token in _TOKEN.finditer(body):
        if token["end"]:
            raise MalformedQuery(f"{name} has more than one statement")
        if token["param"] is None:
            continue
        if token["param"] not in params:
            params.append(token["param"])
        pieces += body[position : token.start()], f"${params.index(token['param']) + 1}"
        position = token.end()
    sql = "".join([*pieces, body[position:]])
    if not _TOKEN.sub(lambda token: token[0] if token["tag"] else "", sql).strip():
        raise MalformedQuery(f"{name} has no statement")
    return sql, tuple(params)


def load(directory: Path) -> dict[str, Query]:
    """Read every `<noun>.sql` of a directory; names come out as `<noun>.<name>`."""
    return {
        query.name: query
        for path in sorted(directory.glob("*.sql"))
        for query in parse(path.stem, path.read_text(encoding="utf-8"))
    }


QUERIES: Final[dict[str, Query]] = load(SQL_DIR)


def find(name: str) -> Query:
    """Return the statement called `<noun>.<name>`.

    Raises: UnknownQuery, listing the names there are.
    """
    try:
        return QUERIES[name]
    except KeyError:
        known = ", ".join(sorted(QUERIES)) or "none"
        raise UnknownQuery(f"no statement is called {name!r}; there are: {known}") from None
