"""Labels and names: a number has its own name, or the command ends; names are those that prompts can say."""

import pytest

from unicl_cli.contracts import ClassName
from unicl_cli.data.class_names import parse_class_text
from unicl_cli.data.class_numbers import (
    describe_changed_names,
    describe_doubtful_names,
    match_labels,
    name_classes,
    pair_names,
    speak_names,
)
from unicl_cli.errors import UniclError


def matched(text, labels, first=None):
    """Label -> the name of its class."""
    found = match_labels(parse_class_text(text, "names"), labels, first)
    return {label: found.classes[number].names[0] for label, number in sorted(found.numbers.items()) if label in labels}


LINES = "tern\ngull\nauk\nskua"


@pytest.mark.parametrize(
    ("text", "labels", "first", "names"),
    [
        (LINES, {"0", "2"}, None, {"0": "tern", "2": "auk"}),
        (LINES, {"1", "2"}, 1, {"1": "tern", "2": "gull"}),
        (LINES, {"1", "2"}, 0, {"1": "gull", "2": "auk"}),
        (LINES, {"0", "2", "-1"}, None, {"0": "tern", "2": "auk"}),
        (LINES, {"auk", "gull"}, None, {"auk": "auk", "gull": "gull"}),
        (LINES, {"0", "4"}, None, {"0": "tern"}),
        ("2 gull\n1 tern\n3 auk", {"1", "3"}, None, {"1": "tern", "3": "auk"}),
        ("1 gull\n7 tern", {"07", "1"}, None, {"07": "tern", "1": "gull"}),
        ("1 001.Black_tern\n2 002.Royal_tern", {"1", "2"}, None, {"1": "Black tern", "2": "Royal tern"}),
        ("001.Black_tern\n002.Royal_tern", {"002.Royal_tern"}, None, {"002.Royal_tern": "Royal tern"}),
        ("10\n20\n30", {"20", "10"}, None, {"10": "10", "20": "20"}),
    ],
)
def test_a_label_has_the_name_that_stands_for_it_or_none(text, labels, first, names):
    assert matched(text, labels, first) == names


@pytest.mark.parametrize("labels", [{"1", "2", "3", "4"}, {"1", "2"}, {"3"}, {"-1", "2"}])
def test_positions_without_a_zero_are_refused_until_it_is_said_where_they_begin(labels):
    with pytest.raises(UniclError, match="without 0") as caught:
        matched(LINES, labels)
    assert caught.value.hint == "add first=1 if label 1 is 'tern', or first=0 if label 0 is"


@pytest.mark.parametrize(("text", "labels"), [(LINES, {"auk"}), ("1 tern\n2 gull", {"1"})])
def test_first_is_refused_where_nothing_is_counted(text, labels):
    with pytest.raises(UniclError, match="first=1: the labels are not positions"):
        matched(text, labels, 1)


def test_one_name_for_two_ids_is_refused():
    with pytest.raises(UniclError, match=r"names: crane is the name of several classes \(1, 2\)"):
        matched("1\tcrane\n2\tcrane", {"1"})


@pytest.mark.parametrize(
    ("keys", "spoken"),
    [
        (("001.Black_tern", "013.Royal_tern"), [("Black tern",), ("Royal tern",)]),
        (("0_cat", "1_dog"), [("cat",), ("dog",)]),
        (("013.Tern",), [("013.Tern",)]),
        (("5_euro", "10_euro"), [("5 euro",), ("10 euro",)]),
        (("2012_Audi", "2013_Ford"), [("2012 Audi",), ("2013 Ford",)]),
        (("1_cat", "dog"), [("1 cat",), ("dog",)]),
        (("001.Tern", "010.Gull", "T_shirt"), [("Tern",), ("Gull",), ("T shirt",)]),
        (("n01440764", "n02085620-Chihuahua"), [("tench", "Tinca tinca"), ("Chihuahua",)]),
        (("n99999999",), [("n99999999",)]),
        (("0", "1"), [("0",), ("1",)]),
    ],
)
def test_counts_and_wordnet_ids_are_not_said(keys, spoken):
    assert speak_names(keys) == spoken


def test_changed_and_doubtful_names_are_told_with_a_count():
    classes = name_classes([("001.Black_tern",), ("002.Royal_tern",)])
    assert describe_changed_names(classes, "remedy") == [
        "classes are named without the number or id of their key (2): '001.Black_tern' is 'Black tern' (remedy)"
    ]
    names = ("3", "n99999999", "007 agent", "True", "['cat']", "cat", "T-shirt")
    notes = describe_doubtful_names([ClassName(name, (name,)) for name in names])
    assert notes == [
        "1 of 7 class names are numbers: 3",
        "1 of 7 class names are WordNet ids: n99999999",
        "1 of 7 class names begin with a number or an id: 007 agent",
        "1 of 7 class names say nothing about an image: True",
        "1 of 7 class names look like syntax: ['cat']",
    ]


def test_ids_that_are_paths_are_told_as_paths_and_not_as_changed():
    classes = name_classes([["/m/01yrx"], ["/a/abbey"]])
    assert describe_changed_names(classes, "remedy") == []
    assert describe_doubtful_names(classes) == ["2 of 2 class names look like paths: /m/01yrx, /a/abbey"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("fox owl fox", {"0": "fox", "1": "owl"}),
        ("fox fox fox", None),  # two numbers, one name
        ("fox owl hen", None),  # one number, two names
        ("1.5 2.5 1.5", None),
        ("fox  fox", None),
    ],
)
def test_a_column_names_numbers_only_if_each_has_one_of_its_own(names, found):
    assert pair_names(zip(("0", "1", "0"), names.split(" "), strict=False)) == found


def test_a_column_of_captions_is_not_one_of_names():
    assert pair_names([("0", "a fox"), ("1", "an owl")]) is None
