"""Figures as text: one form for each kind, with plurals that fit the number."""

import pytest

from unicl_cli import formats


def test_a_count_has_its_noun_and_thousands():
    counted = [formats.count_of(n, noun) for n, noun in ((1, "row"), (0, "row"), (8121, "image"), (2, "class"))]
    assert counted == ["1 row", "0 rows", "8,121 images", "2 classes"]
    assert formats.count_of(2, "corpus", "corpora") == "2 corpora"
    assert [formats.plural(n, "has", "have") for n in (0, 1, 2)] == ["have", "has", "have"]


def test_bytes_are_told_in_binary_units():
    counts = (0, 5, 1023, 1024, 3 * 2**30, 2**50)
    shown = ["0 B", "5 B", "1023 B", "1.0 KiB", "3.0 GiB", "1024.0 TiB"]
    assert [formats.byte_size(n) for n in counts] == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("top1", 0.466, "top-1 46.6 %"),
        ("top5", 1.0, "top-5 100.0 %"),
        ("text_to_image_r10", 0.5, "text to image R@10 50.0 %"),
        ("knn_top1", 0.5, "knn top-1 50.0 %"),
        ("raw_probe_map", 0.25, "raw probe mAP 25.0 %"),
        ("map", 0.25, "mAP 25.0 %"),
        ("mean_per_class", 0.25, "mean per class 25.0 %"),
        ("grad_norm", 29.2412, "grad norm 29.24"),
        ("lr", 6.769e-8, "lr 6.769e-08"),
    ],
)
def test_shares_of_rows_are_percent_and_other_figures_are_not(name: str, value: float, shown: str):
    assert formats.format_figures({"step": 3, "corpus": "c", name: value}) == shown


def test_durations_turn_into_days_and_times_are_those_of_the_clock():
    assert [formats.format_duration(n) for n in (42, 185, 4320)] == ["42s", "3m05s", "1h12m"]
    assert [formats.format_age(n) for n in (60, 3 * 86400)] == ["1m00s", "3 days"]
    assert len(formats.format_time(0)) == len("1970-01-01 00:00")


@pytest.mark.parametrize("n", [0, 1, 20, 22, 24, 25, 30, 1000])
def test_a_list_is_cut_only_where_the_cut_saves_lines(n: int):
    first, hidden, last = formats.split_ends(list(range(n)), 10)
    assert len(first) + hidden + len(last) == n
    assert hidden == 0 or hidden > 4
    assert [*first, *last] == (list(range(n)) if n <= 24 else [*range(10), *range(n - 10, n)])


def test_words_are_listed_with_the_number_of_the_others():
    assert formats.list_first(list("abc"), 2) == "a, b, c"
    assert formats.list_first(list("abcd"), 2) == "a, b and 2 more"


def test_a_line_holds_as_many_parts_as_fit():
    assert formats.fit_parts(["a long place", "bb", "c"], 16, ", ") == "a long place, bb"
    assert formats.fit_parts(["a long place", "bb"], 5, ", ") == "a long place"
