"""Columns of plain text start below one another, and no line ends in spaces."""

from unicl_cli.pages.text import align_columns


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("name", "state", "age"), ("a-long-name", "-", "25s"), ("b", "running", "")]
    assert align_columns(rows) == [
        "name         state    age",
        "a-long-name  -        25s",
        "b            running",
    ]


def test_no_rows_make_no_lines():
    assert align_columns([]) == []
