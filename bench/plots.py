"""Bars with their bounds, as SVG: a few dozen lines instead of a plotting library."""

from html import escape

from bench.lines import Result

ROW_PX, LABEL_PX, PLOT_PX, NUMBER_PX, TOP_PX = 22, 430, 380, 110, 40
INK, GOOD, BAD, TOLD = "#222", "#2a7f4f", "#b5432a", "#6b7785"


def bars(title: str, results: list[Result]) -> str:
    """Draw a bar for each result, from the least to the largest as a line, and its bound as a mark.

    Values of lines are no common unit, so each bar with a bound is drawn as a share of that bound;
    without one, as a share of the largest without one.
    """
    unbound = [one.value for one in results if _bound(one) is None]
    largest = max(unbound, default=1.0)
    height = TOP_PX + ROW_PX * len(results) + 12
    width = LABEL_PX + PLOT_PX + NUMBER_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="20" font-size="14" fill="{INK}">{escape(title)}</text>',
    ]
    for number, one in enumerate(results):
        parts += _row(one, TOP_PX + number * ROW_PX, largest)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _row(one: Result, top: int, largest: float) -> list[str]:
    bound = _bound(one)
    # Twice the bound fills the plot, so that the bound is the middle of it.
    full = 2 * bound if bound is not None else 1.05 * largest

    def at(value: float) -> float:
        return LABEL_PX + PLOT_PX * min(1.0, max(0.0, value / full))

    colour = TOLD if bound is None else BAD if one.is_missed else GOOD
    middle = top + ROW_PX / 2
    label = escape(f"{one.id}  {one.says}" if one.id != "S6b" else one.says)
    drawn = [
        f'<text x="{LABEL_PX - 8}" y="{middle + 4}" text-anchor="end" fill="{INK}" '
        f'font-size="11">{label[:70]}</text>',
        f'<rect x="{LABEL_PX}" y="{top + 4}" width="{at(one.value) - LABEL_PX:.1f}" '
        f'height="{ROW_PX - 8}" fill="{colour}" fill-opacity="0.75"/>',
    ]
    if one.high > one.low:
        drawn.append(
            f'<line x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{INK}"/>'
        )
    if bound is not None:
        drawn.append(
            f'<line x1="{at(bound):.1f}" x2="{at(bound):.1f}" y1="{top + 1}" '
            f'y2="{top + ROW_PX - 1}" stroke="{INK}" stroke-width="2"/>'
        )
    told = f"{one.value:,.0f}" if one.value >= 100 else f"{one.value:.2f}"
    told += f"  ({one.bound})" if one.bound else ""
    drawn.append(
        f'<text x="{LABEL_PX + PLOT_PX + 8}" y="{middle + 4}" fill="{INK}">{escape(told)}</text>'
    )
    return drawn


def _bound(one: Result) -> float | None:
    return one.at_least if one.at_least is not None else one.at_most
