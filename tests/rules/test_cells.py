"""No spreadsheet runs what is let out of here, and what was let out comes back as it was."""

import csv
import io

import pytest

from core.rules import cells

RUN = [
    f"{sign}{rest}"
    for sign in ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
    for rest in ("1+1", "cmd|' /C calc'!A0", 'HYPERLINK("http://x","y")', "SUM(1,1)", "", "-2+3")
]
TEXT = ["", "a", "SAVE20", "a=b", "1-1", "ﬁ", "'", "'a", " =1", "{}", '"=1"', "💥", "5.00", "\\=1"]


@pytest.mark.parametrize("text", RUN)
def test_what_a_spreadsheet_would_run_is_text(text: str) -> None:
    assert cells.harmless(text) == f"'{text}"
    assert cells.plain(cells.harmless(text)) == text


@pytest.mark.parametrize("text", TEXT)
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert cells.harmless(text) == text
    assert cells.plain(text) == text


def test_a_table_comes_back_cell_by_cell() -> None:
    written = io.StringIO()
    csv.writer(written).writerows([cells.harmless(text)] for text in RUN + TEXT[1:])
    read = [row[0] for row in csv.reader(io.StringIO(written.getvalue(), newline=""))]
    assert [cells.plain(text) for text in read] == RUN + TEXT[1:]
    assert len(RUN) >= 60
