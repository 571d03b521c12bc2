"""The page of figures says what was measured: every line, with its bound, and the later of two."""

import xml.etree.ElementTree as ElementTree

import msgspec

from bench import lines, report
from bench.lines import Result
from bench.plots import bars
from bench.ratio import Report


def reported(*results: Result, started_at: str = "2030-01-01T00:00:00Z") -> Report:
    machine: dict[str, str | int] = {
        "processor": "P",
        "cores": 2,
        "system": "S",
        "commit": "c0ffee",
    }
    return Report(
        command="python -m bench.ratio",
        started_at=started_at,
        machine=machine,
        others_share_median=0.02,
        others_share_max=0.2,
        results=list(results),
    )


def strict(*ratios: float) -> Result:
    return lines.over(list(ratios), id="S1", says="strict ÷ echo", at_least=0.55)


def test_a_later_report_replaces_the_same_line_and_keeps_the_others() -> None:
    other = lines.over([1.0], id="S2", says="fast ÷ echo", at_least=0.9)
    found = report.merged([reported(strict(0.1), other), reported(strict(0.7))])
    assert [(one.id, one.value) for one in found] == [("S1", 0.7), ("S2", 1.0)]


def test_the_page_tells_value_span_bound_and_verdict_of_every_line() -> None:
    reports = [reported(strict(0.5, 0.4, 0.6), lines.over([9.0], id="S12", says="MB", at_most=50))]
    page = report.page(reports, report.merged(reports))
    assert "| S1 | strict ÷ echo | 0.5 (0.4 to 0.6, 3 rounds) | ≥ 0.55 | **missed** |" in page
    assert "| S12 | MB | 9 (9 to 9, 1 round) | ≤ 50 | holds |" in page
    assert "2%, at most 20%" in page
    assert "c0ffee" in page


def test_a_line_that_was_measured_on_a_busy_machine_is_marked() -> None:
    busy = reported(strict(0.7))
    busy.others_share_median = 0.11
    assert "| holds (busy) |" in report.page([busy], report.merged([busy]))


def test_lines_stand_in_the_order_of_their_numbers() -> None:
    names = ["S10", "S2b", "told", "S2", "S1"]
    results = [lines.over([1.0], id=name, says=name) for name in names]
    assert [one.id for one in report.merged([reported(*results)])] == [
        "S1", "S2", "S2b", "S10", "told",
    ]  # fmt: skip


def test_a_plot_is_an_image_with_a_row_for_each_result() -> None:
    drawn = bars(
        "Ratios & bounds", [strict(0.5, 0.4, 0.6), lines.over([7.0], id="told", says="<x>")]
    )
    image = ElementTree.fromstring(drawn)
    texts = [node.text for node in image.iter() if node.tag.endswith("text")]
    assert texts == ["Ratios & bounds", "S1  strict ÷ echo", "0.50  (≥ 0.55)", "told  <x>", "7.00"]
    widths = [float(node.attrib["width"]) for node in image.iter() if node.tag.endswith("rect")]
    assert all(width >= 0 for width in widths)


def test_the_page_in_the_repository_is_drawn_from_its_results() -> None:
    reports = msgspec.json.decode(report.REFERENCE.read_bytes(), type=list[Report])
    assert report.PAGE.read_text() == report.page(reports, report.merged(reports))
