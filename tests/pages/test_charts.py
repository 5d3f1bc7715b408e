"""Charts of pages: lengths and places in percent of one axis."""

import re

import pytest

from unicl_cli.pages.html import bar_chart, interval_chart


def places(markup: str, name: str, side: str) -> list[float]:
    return [float(found) for found in re.findall(rf'<{name} style="[^"]*{side}:([\d.]+)%', markup)]


def test_intervals_share_one_axis_that_holds_zero():
    rows = [("up", 0.2, (0.1, 0.3), "+20"), ("down", -0.05, (-0.1, 0.0), "-5")]
    chart = interval_chart(rows)
    assert places(chart, "s", "left") == [25, 25]  # of the axis from -0.1 to 0.3
    assert places(chart, "b", "left") == [75, 12.5]
    assert places(chart, "i", "left") == [50, 0]
    assert places(chart, "i", "width") == [50, 25]


def test_an_axis_without_extent_is_drawn_too():
    assert places(interval_chart([("none", 0.0, (0.0, 0.0), "0")]), "b", "left") == [0]


@pytest.mark.parametrize(("full", "width"), [(None, [100, 50]), (1.0, [50, 25])])
def test_bars_are_relative_to_the_largest_or_to_a_given_whole(full, width):
    assert places(bar_chart([("a", 0.5, "50"), ("b", 0.25, "25")], full=full), "i", "width") == width
