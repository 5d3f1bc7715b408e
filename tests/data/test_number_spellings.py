"""Numbers among labels: whole ones that are written as floats, and several spellings of one."""

from decimal import Decimal

import pytest

from unicl_cli.data.number_spellings import check_spelling, number_of, read_whole_numbers
from unicl_cli.errors import UniclError


@pytest.mark.parametrize(
    ("labels", "whole"),
    [
        ("0.0 1.0 10.0", {"0.0": "0", "1.0": "1", "10.0": "10"}),
        ("1.0 1 2", {"1.0": "1"}),
        ("1. 2.000", {"1.": "1", "2.000": "2"}),
        ("0.000000000000000000e+00 1.5e+01", {"0.000000000000000000e+00": "0", "1.5e+01": "15"}),
        ("1e+16 3", {"1e+16": "10000000000000000"}),
        ("1,0 2,0", {"1,0": "1", "2,0": "2"}),
        ("-1.0 -0.0 1.0", {"-1.0": "-1", "-0.0": "0", "1.0": "1"}),
        (f"{'9' * 60}.0 1", {f"{'9' * 60}.0": "9" * 60}),
        ("1 2 3", {}),
        ("1.0 cat", {}),
        ("1.0 1.5", {}),
        (f"1.0 {'9' * 60}.5", {}),
        ("1e3 2", {}),
        ("1.0 0x1", {}),
        ("", {}),
    ],
)
def test_floats_are_whole_numbers_only_if_all_labels_are(labels, whole):
    assert read_whole_numbers(labels.split()) == whole


@pytest.mark.parametrize(
    "spellings",
    ["1 01 +1 1.0 1. 0x1 0X01 0b1 0o1 1e0 10e-1 \u0661", "1000 1e3 1E+3 1_000 1,000 1'000 1000.00", "2.5 2.50 25e-1"],
)
def test_spellings_of_one_number_are_equal_and_refused(spellings):
    first, *others = spellings.split()
    for other in others:
        assert number_of(other) == number_of(first), other
        with pytest.raises(UniclError, match="are one number, written in several ways"):
            check_spelling("l.csv", ["cat", first, other, "7"])


@pytest.mark.parametrize("label", "cat 1a 0xg _1 1__0 1,0 1,00,000 nan inf 1e99999 e1 0x".split())  # noqa: SIM905
def test_other_texts_are_not_numbers(label):
    assert number_of(label) is None


def test_different_numbers_are_left_alone():
    check_spelling("l.csv", ["1", "0x2", "3e0", "1e3", "1,001", "-1", "cat", "1a"])
    assert number_of("-1e2") == Decimal(-100)
