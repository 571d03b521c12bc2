"""What the documents say of the code is so."""

import ast
import re
from pathlib import Path

import msgspec

from api import errors
from core import events
from core import settings as settings_module
from core.__main__ import main
from core.settings import PREFIX, Settings
from tests.tidy.sources import ROOT, files, name_of, python_files

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
STATES = (ROOT / "docs" / "states.md").read_text()
SCHEMA = (ROOT / "core" / "db" / "schema.sql").read_text()
DECISIONS = files("docs/decisions/*.md")
PAGES = [*files("*.md", "docs/**/*.md")]
# What is made as it is needed has no default to print.
MADE = {"data_dir": "`.vauchflow`", "secret": "made once, kept in the data directory"}
DECISION_LINES_MAX = 60


def setting_rows() -> list[str]:
    """Return the rows of the README's table, from the struct and the sentence below each field."""
    tree = ast.parse(Path(settings_module.__file__).read_text())
    struct = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    sentences = {}
    for field, text in zip(struct.body, struct.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            sentences[field.target.id] = str(text.value.value)
    rows = []
    for entry in msgspec.structs.fields(Settings):
        default = MADE.get(entry.name)
        if default is None:
            is_said = entry.default not in (None, "")
            default = f"`{str(entry.default).lower()}`" if is_said else ""
        meaning = sentences[entry.name].replace("None: ", "Not set: ")
        meaning = meaning.removesuffix(" Default `.vauchflow`.")
        rows.append(f"| `{PREFIX}{entry.name.upper()}` | {default} | {meaning} |")
    return rows


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [link for link in found if "://" not in link]


def paths_named(text: str) -> set[str]:
    """Return what a text names in code type as a file of a room."""
    rooms = r"(?:api|core|hotpath|bench|tests|docs)"
    return set(re.findall(rf"`({rooms}/[\w./-]*\.(?:py|sql|lua|rs|md|pyi))\b", text))


def allowed_states(table: str, column: str) -> set[str]:
    """Return what a column's CHECK lets in, from the schema."""
    start = SCHEMA.index(f"CREATE TABLE vf.{table} (")
    body = SCHEMA[start : SCHEMA.index("\n)", start)]
    found = re.search(rf"^\s*{column}\s[^;]*?CHECK \({column} IN \(([^)]*)\)", body, re.M)
    assert found is not None, f"{table}.{column}"
    return set(re.findall(r"'(\w+)'", found[1]))


def test_every_error_code_is_documented_as_it_is_answered() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == errors.page()


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    shown = [line for line in README.splitlines() if line.startswith(f"| `{PREFIX}")]
    assert shown == setting_rows()


def test_every_type_of_event_is_documented_as_it_is_described() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", page, re.M))
    assert rows == events.TYPES


def test_the_readme_lists_every_command() -> None:
    section = README.partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.M)) == set(main.commands)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.M)
        assert set(named) <= targets, name_of(page)


def test_every_link_and_every_file_that_is_named_is_there() -> None:
    for page in PAGES:
        gone = [link for link in links(page) if not (page.parent / link).exists()]
        gone += [path for path in paths_named(page.read_text()) if not (ROOT / path).exists()]
        # NNNN and <noun> stand for something; they are not matched as files.
        assert gone == [], name_of(page)


def test_every_constraint_that_is_named_is_in_the_schema() -> None:
    section = ARCHITECTURE.partition("\n## The invariants")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+_(?:over|key|one_\w+|grant|source|sum|window))`", section))
    assert len(named) >= 8
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", SCHEMA)] == []


def test_every_decision_is_numbered_in_order_one_page_and_linked() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert numbers == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    for page in DECISIONS:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} "), name_of(page)
        headings = re.findall(r"^## (.*)$", text, re.M)
        assert headings == ["Context", "Decision", "Consequence"], name_of(page)
        assert text.count("\n") <= DECISION_LINES_MAX, name_of(page)
        assert f"decisions/{page.name}" in ARCHITECTURE, name_of(page)


def test_the_states_that_are_drawn_are_those_the_database_lets_in() -> None:
    for table, column in (
        ("projects", "status"),
        ("fraud_alerts", "status"),
        ("vouchers", "status"),
        ("vouchers", "authority"),
        ("campaigns", "status"),
        ("holds", "status"),
        ("batches", "status"),
        ("flash_sales", "status"),
        ("leases", "state"),
        ("redemptions", "status"),
        ("gift_cards", "status"),
        ("referral_programs", "status"),
        ("referrals", "status"),
        ("referral_rewards", "status"),
    ):
        heading = f"`{table}.{column}`"
        section = STATES.partition(heading)[2].partition("\n## ")[0]
        assert section, f"docs/states.md has no section for {heading}"
        table_rows = set(re.findall(r"^\| `([\w-]+)` \|", section.partition("\n###")[0], re.M))
        assert table_rows == allowed_states(table, column), heading


def test_the_map_of_a_room_names_every_module() -> None:
    for room in ("core", "api"):
        doc = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
        named = set(re.findall(r"^ *(\w+)/? {2,}\S", doc, re.M))
        below = {p.relative_to(ROOT / room).parts[0] for p in python_files(room)}
        assert named == {name.removesuffix(".py") for name in below} - {"__init__"}, room


def test_no_page_names_a_place_of_somebodys_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text()), name_of(page)
