"""Cells of tables that are let out, which no spreadsheet may take for a formula."""

from typing import Final

# What spreadsheets run, in full width, too; behind an apostrophe it is text. A line break would
# begin the next cell's line in some of them.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def harmless(text: str) -> str:
    """Return a cell's text as it may stand in a table."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain(cell: str) -> str:
    """Take off what `harmless` put before a text."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell
