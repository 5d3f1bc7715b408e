"""YAML as a reader expects it: scalars, repeated keys, faults with their place, text that reads back the same."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.errors import UniclError
from unicl_cli.yaml_lines import parse_yaml, read_value, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3e-4", 3e-4), ("1e5", 1e5), ("1e+3", 1e3), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf)),
        *(("no", "no"), ("on", "on"), ("off", "off"), ("NO", "NO"), ("true", True), ("FALSE", False)),
        *(("012", 12), ("0o12", 10), ("0x10", 16), ("-1_000", -1000), ("+7", 7)),
        *(("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("12:30:45", "12:30:45")),
        *(("", None), ("~", None), ("null", None), ("1e", "1e"), ("e5", "e5"), ("'3'", "3"), ("[1, a]", [1, "a"])),
    ],
)
def test_scalars_are_what_a_reader_expects_in_files_and_overrides(text: str, value: Any):
    assert parse_yaml(f"key: {text}\n", "f").data == {"key": value}
    got = read_value(text, "command line")
    assert got == value
    assert type(got) is type(value)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(DATA)
def test_any_data_survives_writing_and_reading(data: Any):
    assert parse_yaml(write_yaml(data), "f").data == data


@settings(deadline=None, max_examples=50)
@given(st.from_regex(r"[-+]?[0-9._eEx:]{1,8}|no|on|yes|null|~|<<|true", fullmatch=True))
def test_text_that_looks_like_a_number_stays_text(text: str):
    assert parse_yaml(write_yaml({"key": text}), "f").data == {"key": text}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f:4: duplicate key 'c' (first set at f:3)"),
        ("a: [1\n", "f:2:1: expected ',' or ']'"),
        ("1: x", "f:1: key '1' is not text"),
        ("[a]: x", "f:1: a list or mapping as key is not text"),
        ("a: &x [*x]", "f: an anchor contains itself"),
        ("a: !!python/object:os.system {}", "f:1:4: could not determine a constructor"),
        ("a: \x00", "f: unacceptable character"),
    ],
)
def test_yaml_that_cannot_be_meant_is_one_line_with_its_place(text: str, said: str):
    with pytest.raises(UniclError) as caught:
        parse_yaml(text, "f")
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!bool x", "a: !!timestamp z", "a: !!float y", f"a: {'9' * 5000}"])
def test_a_value_that_its_tag_does_not_fit_is_one_line(text: str):
    with pytest.raises(UniclError, match=r"r\.yaml"):
        parse_yaml(text, "r.yaml")


@pytest.mark.parametrize("form", ["[{}]", "{{k: [{}]}}", "{{<<: [{}]}}"])
def test_a_few_lines_of_aliases_that_make_billions_are_refused_at_once(form: str):
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12)]
    with pytest.raises(UniclError, match=r"r\.yaml: more than 200,000 values"):
        parse_yaml("\n".join(lines), "r.yaml")


def test_words_that_older_yaml_takes_for_truth_values_are_texts_for_its_readers_too():
    words = ["off", "On", "y", "NO", "yes", "offset"]
    assert yaml.safe_load(write_yaml(words)) == words
    assert parse_yaml(write_yaml(words), "").data == words
