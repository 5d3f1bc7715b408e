"""Pieces of the HTML pages."""

import pytest

from unicl_cli.formats import format_share
from unicl_cli.pages import html


def test_a_curve_shows_its_range_in_the_form_of_its_figure():
    chart = html.line_chart([(0, 0.25), (100, 0.5)], name="steps", form=format_share)
    assert "50.0 %" in chart
    assert "25.0 %" in chart
    assert "0.5" not in html.line_chart([(0, 1.0), (9, 3.0)], name="steps")


def test_wide_content_scrolls_and_shows_that_it_does():
    table = html.table(("a", "b"), [("1", "2")])
    assert 'class="scroll" tabindex="0"' in table
    (rule,) = [line for line in html.STYLE.splitlines() if line.startswith(".scroll{")]
    assert "background-attachment:local,local,scroll,scroll" in rule


def test_images_on_white_have_an_edge():
    rules = [line for line in html.STYLE.splitlines() if line.startswith((".pictures img", "td:has(img)"))]
    assert len(rules) == 2
    assert all("border:1px solid var(--line)" in rule for rule in rules)


def test_the_page_says_where_it_was_written(
    tmp_path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "unicl_cli")  # as without --quiet
    html.write_page(tmp_path / "page.html", html.build_page("title", "lead"))
    assert capsys.readouterr().err == f"page: {tmp_path / 'page.html'}\n"
