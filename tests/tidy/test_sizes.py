"""Size is a matter of discipline, and discipline is a test."""

import ast
from pathlib import Path

from tests.tidy.sources import PRODUCT, ROOT, files, name_of, nodes, python_files

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
# What a handler does after its docstring: decode, call, encode.
HANDLER_LINES_MAX = 15
ROUTE_DECORATORS = {"get", "post", "patch", "put", "delete"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "service", "misc"}

SOURCES = files("api/**/*.py", "core/**/*.py", "bench/**/*.py", "tests/**/*.py",
                "hotpath/**/*.rs", "hotpath/**/*.py*", "hotpath/**/*.lua")  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def body_lines_of(function: Function) -> int:
    has_docstring = ast.get_docstring(function) is not None
    body = function.body[1:] if has_docstring else function.body
    assert function.end_lineno is not None
    return function.end_lineno - body[0].lineno + 1 if body else 0


def is_handler(function: Function) -> bool:
    return any(
        isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") in ROUTE_DECORATORS
        for decorator in function.decorator_list
    )


def functions_in(path: Path) -> list[Function]:
    return [n for n in nodes(path) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_a_module_fits_in_one_reading() -> None:
    counts = {name_of(path): path.read_text().count("\n") for path in SOURCES}
    assert {name: n for name, n in counts.items() if n > MODULE_LINES_MAX} == {}


def test_a_file_is_named_for_what_it_is_about() -> None:
    parts = {name_of(path): path.relative_to(ROOT).with_suffix("").parts for path in SOURCES}
    assert [name for name in parts if BANNED_NAMES.intersection(parts[name])] == []


def test_a_function_fits_on_a_screen() -> None:
    counts = {
        f"{name_of(path)}::{function.name}": lines_of(function)
        for path in python_files(*PRODUCT, "tests")
        for function in functions_in(path)
    }
    assert {name: n for name, n in counts.items() if n > FUNCTION_LINES_MAX} == {}


def test_a_handler_decodes_calls_and_encodes() -> None:
    counts = {
        f"{name_of(path)}::{function.name}": body_lines_of(function)
        for path in python_files("api")
        for function in functions_in(path)
        if is_handler(function)
    }
    assert len(counts) > 20, "the handlers were found"
    assert {name: n for name, n in counts.items() if n > HANDLER_LINES_MAX} == {}
