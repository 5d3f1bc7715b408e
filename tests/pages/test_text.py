"""Columns of plain text start below one another, and no line ends in spaces."""

from unicl_cli.pages.text import align_columns, shorten


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("name", "state", "age"), ("a-long-name", "-", "25s"), ("b", "running", "")]
    assert align_columns(rows) == [
        "name         state    age",
        "a-long-name  -        25s",
        "b            running",
    ]


def test_no_rows_make_no_lines():
    assert align_columns([]) == []


def test_the_last_column_is_wrapped_between_words():
    rows = [("quickstart", "labels of seven digits and captions of ten"), ("b", "one-two")]
    lines = align_columns(rows, 34)
    assert lines == [
        "quickstart  labels of seven digits",
        "            and captions of ten",
        "b           one-two",
    ]
    assert max(map(len, align_columns([("a", "word " * 40)], 50))) <= 50


def test_a_long_cell_loses_its_middle():
    assert shorten("openclipart-png-nested", 11) == "openc…ested"
    assert shorten("digits", 11) == "digits"
