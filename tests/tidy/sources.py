"""What the tidy tests look at: the files of the product, as they stand in the working tree."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from core.settings import PROJECT_ROOT

ROOT = PROJECT_ROOT
PRODUCT = ("api", "core", "bench")
_SKIPPED = {"__pycache__", "target", ".venv", "vendor"}


def files(*globs: str) -> list[Path]:
    """Return matching files below the root, sorted, without what is built or installed."""
    found = {path for glob in globs for path in ROOT.glob(glob) if path.is_file()}
    return sorted(p for p in found if not _SKIPPED.intersection(p.relative_to(ROOT).parts))


def python_files(*rooms: str) -> list[Path]:
    return files(*(f"{room}/**/*.py" for room in rooms))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(tree_of(path))
