"""Rules of the rooms that import contracts cannot see."""

import ast
import re
from pathlib import Path

from core.settings import Settings
from tests.tidy.sources import PRODUCT, files, name_of, nodes, python_files

# Whole statements, not words of a sentence: "select one from" a list is English, too, so the verbs
# count in capitals, as SQL is written here.
SQL = re.compile(
    r"\b(SELECT\b.+|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE\s"
    r"|(CREATE|ALTER|DROP)\s+(TABLE|INDEX|ROLE|FUNCTION|SCHEMA|POLICY|DATABASE)|GRANT\s+\S+\s+(ON|TO))",
    re.DOTALL,
)
# The two ways in hand the environment on; prometheus_client has a variable of its own.
READS_ENVIRONMENT = {"core/__main__.py", "api/__main__.py", "api/metrics.py"}
CLOCKS = {"now", "utcnow", "today", "monotonic", "time_ns", "perf_counter"}


def texts(path: Path) -> list[tuple[int, str]]:
    return [
        (node.lineno, node.value)
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def imported_by(path: Path) -> set[str]:
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_sql_lives_in_sql_files() -> None:
    outside = [p for p in python_files(*PRODUCT) if not name_of(p).startswith("core/db/")]
    found = {
        f"{name_of(path)}:{line}": text
        for path in outside
        for line, text in texts(path)
        if SQL.search(text)
    }
    assert found == {}


def test_rows_are_locked_so_that_foreign_keys_pass() -> None:
    # FOR UPDATE of a voucher and a foreign key to it, each first, is a deadlock.
    hard = [
        f"{name_of(path)}:{number}"
        for path in files("core/db/**/*.sql")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "FOR UPDATE" in line.partition("--")[0]
    ]
    assert hard == []


def breaks_the_rule_book(node: ast.AST) -> bool:
    match node:
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            return True
        case ast.Constant(value=float()) | ast.BinOp(op=ast.Div()):
            return True
        case ast.Call(func=ast.Name(id="float")):
            return True
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in CLOCKS
    return False


def test_the_rule_book_has_no_float_no_clock_and_waits_for_nothing() -> None:
    found = [
        f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        for path in python_files("core/rules")
        for node in nodes(path)
        if breaks_the_rule_book(node)
    ]
    assert found == []


def test_the_crate_is_never_imported_by_its_folder() -> None:
    # `import hotpath` succeeds, empty: the folder is a namespace package.
    guilty = [
        name_of(path)
        for path in python_files(*PRODUCT, "tests", "hotpath")
        if "hotpath" in {name.partition(".")[0] for name in imported_by(path)}
    ]
    assert guilty == []


def test_the_environment_is_read_at_the_ways_in_only() -> None:
    readers = {
        name_of(path)
        for path in python_files("api", "core")
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and getattr(node.value, "id", "") == "os"
    }
    assert readers <= READS_ENVIRONMENT


def test_every_setting_does_something() -> None:
    read = set()
    for path in python_files("api", "core"):
        for node in nodes(path):
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                is_own = owner == "self" and path.name == "settings.py"
                if is_own or owner.endswith("settings"):
                    read.add(node.attr)
    assert set(Settings.__struct_fields__) - read == set()
