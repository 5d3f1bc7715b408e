"""Text of other people on its way to a terminal, a CSV file, a JSON document and a recipe."""

import csv
import io
import json
import re
import sys
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unicl_cli.cli import main
from unicl_cli.errors import UniclError, csv_cell, escape_control, print_line, write_line
from unicl_cli.storage.json_output import format_json, print_json
from unicl_cli.yaml_lines import parse_yaml, write_flow, write_yaml

STEERING = [chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F))]
STEERING += [chr(code) for code in (*range(0x2066, 0x206A), 0x2060, 0xFEFF, 0xDC80, 0xDCFF, 0xDFFF)]
"""Controls, separators, marks of direction, and second halves of characters (JSON would join them to a first half)."""
TEXTS = st.text(st.sampled_from(STEERING) | st.characters(codec="utf-8"), max_size=20)


def steers(text: str) -> bool:
    """Judge by Unicode's own tables: category and bidirectional class."""
    marks = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return any(
        c in "\u2060\ufeff"
        or unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")
        or unicodedata.bidirectional(c) in marks
        or (unicodedata.category(c) == "Cf" and unicodedata.bidirectional(c) in ("L", "R", "AL") and ord(c) < 0x3000)
        for c in text
    )


def no_nul(text: str) -> bool:
    """Judge whether YAML takes a text: no recipe holds NUL."""
    return "\0" not in text


@given(TEXTS)
@example("".join(STEERING))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_text_steers_a_terminal_or_ends_its_line(text: str):
    assert not steers(escape_control(text))
    if not steers(text):
        assert escape_control(text) == text


def test_every_character_that_steers_is_shown_as_its_escape():
    for c in (*STEERING, "\ud800", "\udbff"):
        assert re.fullmatch(r"a\\([tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})b", escape_control(f"a{c}b")), ascii(c)
    assert (
        escape_control("Größe 猫 😀 e\u0301 👩\u200d👩 \u05d0 a\u200cb")
        == "Größe 猫 😀 e\u0301 👩\u200d👩 \u05d0 a\u200cb"
    )


@given(st.dictionaries(TEXTS, st.lists(TEXTS | st.integers() | st.none(), max_size=3), max_size=3))
@example({"".join(STEERING): ["".join(STEERING[::-1])]})
@settings(max_examples=25, deadline=None, derandomize=True)
def test_json_is_visible_and_equal_when_it_is_read_back(value: object):
    text = format_json(value)
    assert not steers(text)
    assert json.loads(text) == value
    assert json.loads(format_json(value, 1, ascii_only=True).encode("ascii")) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_number_that_json_lacks(number: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        format_json({"top1": [number]})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_document_is_json_in_every_encoding_of_standard_output(encoding: str, monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"naïve": "猫 😀 \udcff \x9b \u202e"}
    print_json(value)
    stream.flush()
    data = stream.buffer.getvalue()
    assert json.loads(data) == value
    assert ("猫".encode() in data) == (encoding == "utf-8")


@given(st.dictionaries(TEXTS.filter(no_nul), TEXTS.filter(no_nul), max_size=3))
@example({"".join(STEERING[1:]): "".join(STEERING[:0:-1])})
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_recipe_is_visible_and_equal_when_it_is_read_back(value: dict[str, str]):
    for text in (write_yaml(value), write_flow(value)):
        assert not steers(text.replace("\n", ""))
        assert parse_yaml(text, "x").data == value


@pytest.mark.parametrize("value", [None, 3, -3, 0.5, -0.5, 1e-7, True])
def test_a_number_in_a_csv_stays_a_number(value: object):
    assert csv_cell(value) is value


@given(TEXTS)
@example("".join(STEERING))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_text_in_a_csv_is_one_visible_line_and_no_formula(text: str):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([csv_cell(text), "after"])
    assert not steers(out.getvalue()[:-1])
    ((cell, after),) = csv.reader(io.StringIO(out.getvalue()))
    assert after == "after"
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    if not steers(text) and text[:1] not in ("=", "+", "-", "@"):
        assert cell == text


@pytest.mark.parametrize("text", ["=1+1", "+49 30", "-x.png", "@me"])
def test_a_formula_in_a_csv_is_text(text: str):
    assert csv_cell(text) == f"'{text}"


def test_only_the_lines_of_an_error_itself_break_it(capsys: pytest.CaptureFixture[str]):
    error = UniclError("a\n  hint: b", details=["c\rd", "e"])
    assert error.visible() == "a\\n  hint: b\n  c\\rd\n  e"
    assert main(["inspect", "a\n  hint: run this"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == r"error: a\n  hint: run this: no such file or directory"
    write_line("x\ny")
    print_line("x\ny")
    assert capsys.readouterr() == ("x\\ny\n", "x\\ny\n")
