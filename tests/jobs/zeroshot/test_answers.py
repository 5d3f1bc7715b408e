"""How `zeroshot` answers: none of these, thresholds, independent classes, prompts of a class's own, forms of output."""

import csv
import io
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import PLAIN, cosines, filled, noise, toy

from unicl_cli.errors import UniclError
from unicl_cli.inference.answer_stream import json_lines, write_answers
from unicl_cli.inference.image_inputs import ImageInput
from unicl_cli.jobs.zeroshot.answers import AnswerOptions
from unicl_cli.jobs.zeroshot.classes import Classes, choose_classes, parse_classes
from unicl_cli.jobs.zeroshot.judge import BACKGROUND, make_judge
from unicl_cli.jobs.zeroshot.output import Layout, csv_rows, format_lines, text_lines
from unicl_cli.jobs.zeroshot.table import TerminalTable
from unicl_cli.jobs.zeroshot.zeroshot import zeroshot
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.unicl import UniCL

NAMES = ("cat", "dog", "bird")


def line_of(row) -> str:
    (line,) = format_lines(row, Layout(NAMES))
    return line


def asked(loaded, classes: Classes | str | None, seed: int = 0, **wanted):
    named = parse_classes(classes) if isinstance(classes, str) else classes
    judge = make_judge(loaded, named, AnswerOptions(**wanted), PLAIN)
    ((row,),) = zeroshot(loaded, [ImageInput("-", data=noise(seed))], judge, batch=4)
    return row


def test_none_of_these_is_one_more_column_of_the_softmax():
    loaded = toy()
    for seed in range(6):
        expected = (14 * cosines(loaded, [*filled(loaded, "cat", "dog"), list(BACKGROUND)], seed)).softmax(0)
        row = asked(loaded, "cat,dog", seed, none=True)
        assert row["none"] == pytest.approx(expected[2].item(), abs=1e-5)
        assert {item["label"]: item["prob"] for item in row["top"]} == {
            "cat": pytest.approx(expected[0].item(), abs=1e-5),
            "dog": pytest.approx(expected[1].item(), abs=1e-5),
        }
        best = int(expected.argmax())
        assert row["label"] == (None if best == 2 else ["cat", "dog"][best])
        assert row["prob"] == pytest.approx(expected.max().item(), abs=1e-5)


def test_independent_classes_are_measured_against_the_background_each_for_itself():
    loaded = toy()
    *own, background = cosines(loaded, [*filled(loaded, "cat", "dog", "bird"), list(BACKGROUND)]).tolist()
    row = asked(loaded, "cat,dog,bird", independent=True)
    for item in row["top"]:
        cosine = own[["cat", "dog", "bird"].index(item["label"])]
        assert item["prob"] == pytest.approx(torch.tensor(14 * (cosine - background)).sigmoid().item(), abs=1e-5)
    alone = asked(loaded, "dog", independent=True)
    assert alone["prob"] == pytest.approx(next(i["prob"] for i in row["top"] if i["label"] == "dog"), abs=1e-5)
    assert alone["prob"] != 1.0


def test_a_sigmoid_model_is_independent_already():
    loss = UniCL()
    loss.activation, loss.bias = "sigmoid", nn.Parameter(torch.tensor([-2.0]))
    plain, independent = (asked(toy(loss), "cat,dog", independent=flag) for flag in (False, True))
    assert plain == independent
    row = asked(toy(loss), "cat,dog", none=True)
    assert [item["prob"] for item in row["top"]] == [item["prob"] for item in plain["top"]]
    assert (row["label"] is None) == (row["none"] > plain["prob"])


def test_below_the_threshold_there_is_no_label_and_the_best_class_is_still_told():
    free = asked(toy(), "cat,dog")
    for by_cosine in (False, True):
        value = free["top"][0]["cosine"] if by_cosine else free["prob"]
        over = asked(toy(), "cat,dog", threshold=value + 1e-3, by_cosine=by_cosine)
        under = asked(toy(), "cat,dog", threshold=value - 1e-3, by_cosine=by_cosine)
        assert (over["label"], under["label"]) == (None, free["label"])
        assert over["top"] == free["top"]
    assert any(
        "uncalibrated" in told
        for told in make_judge(toy(), parse_classes("a"), AnswerOptions(threshold=1), PLAIN).warnings
    )


def test_a_classifier_of_its_own_classes_knows_neither_background_nor_cosines():
    loaded = toy(CrossEntropy(16, 2), classes=("bird", "cat"))
    for wanted in ({"none": True}, {"independent": True}, {"by_cosine": True}):
        with pytest.raises(UniclError, match="model toy") as caught:
            asked(loaded, "bird,cat", **wanted)
        assert caught.value.hint
    assert asked(loaded, "bird,cat", threshold=1.1)["label"] is None


class Pairs(UniCL):
    """Scores an image with a text by the text's length: the mean over the prompts of a class is its score."""

    score, activation = "pair", "sigmoid"

    def pair_scores(self, model, images, tokens):
        return -(tokens != 0).sum(1).float().expand(len(images), -1)


def test_a_loss_that_scores_pairs_answers_itself():
    row = asked(toy(Pairs()), "cat,snow leopard", none=True)
    assert [item["label"] for item in row["top"]] == ["cat", "snow leopard"]
    assert all(item["cosine"] is None for item in row["top"])
    lengths = [(toy().tokenizer(own) != 0).sum(1).float().mean() for own in (*filled(toy(), "cat"), list(BACKGROUND))]
    assert [row["top"][0]["prob"], row["none"]] == [
        pytest.approx((-length).sigmoid().item(), abs=1e-6) for length in lengths
    ]


@pytest.mark.parametrize("form", ["json", "tab"])
def test_a_class_may_have_prompts_of_its_own(tmp_path, form):
    prompts = {"cat": ["a photo of a snow leopard", "bird {}"], "dog": ["a dog"]}
    path = tmp_path / "classes"
    if form == "json":
        path.write_text(json.dumps(prompts), encoding="utf-8")
    else:
        path.write_text("".join(f"{name}\t{text}\n" for name, own in prompts.items() for text in own) + "bird\n")
    classes = parse_classes(f"@{path}")
    loaded = toy()
    expected = [["a photo of a snow leopard", "bird cat"], ["a dog"]]
    expected += filled(loaded, "bird") if form == "tab" else []
    assert classes.fill_prompts(loaded.templates) == expected
    row = asked(loaded, classes)
    values = dict(zip(["cat", "dog", "bird"], cosines(loaded, expected).tolist(), strict=False))
    assert {item["label"]: item["cosine"] for item in row["top"]} == {
        name: pytest.approx(value, abs=1e-5) for name, value in values.items()
    }


def test_a_list_in_json_takes_any_name_literally(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('["a=b", "salt, pepper", "\\"x\\"", "a=b"]')
    classes = parse_classes(f"@{path}")
    assert [each.names for each in classes.names] == [("a=b",), ("salt, pepper",), ('"x"',)]
    assert classes.warnings == ("--classes names a=b more than once",)
    assert parse_classes('["a=b", "salt, pepper"]').names == classes.names[:2]


def test_maps_of_numbers_name_classes_and_prompts_stay_prompts(tmp_path):
    (tmp_path / "map.json").write_text('{"0": "cat", "1": "dog"}')
    (tmp_path / "lines.txt").write_text("0 cat\n1 dog\n")
    for spec in (f"@{tmp_path / 'map.json'}", f"@{tmp_path / 'lines.txt'}", "0: cat, 1: dog"):
        assert [each.names for each in parse_classes(spec).names] == [("cat",), ("dog",)]
    assert "its lines begin with ids, from 0 to 1" in parse_classes(f"@{tmp_path / 'lines.txt'}").warnings[0]
    inline = parse_classes('{"cat": ["a cat, asleep", "cats"], "dog": ["a dog"]}')
    assert [each.names for each in inline.names] == [("cat",), ("dog",)]
    assert inline.fill_prompts(()) == [["a cat, asleep", "cats"], ["a dog"]]
    assert parse_classes("n01440764,cat").warnings == ("1 of 2 class names are WordNet ids: n01440764",)


@pytest.mark.parametrize(
    "text", ['{"cat": []}', '{"cat": 3}', '{"cat": ["a", ""]}', "[1]", "[", '{"": ["x"]}', "[]", "{}", '[["cat"]]']
)
def test_a_class_file_that_cannot_be_used_is_one_line(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UniclError, match="--classes @") as caught:
        parse_classes(f"@{path}")
    assert caught.value.hint


def test_the_classes_of_a_corpus_are_taken_by_their_prompt_names(digits):
    classes = choose_classes(None, str(digits))
    assert len(classes.names) == 10
    assert all(len(each.names) == 1 for each in classes.names)
    with pytest.raises(UniclError, match="both --classes and --classes-from"):
        choose_classes("a", str(digits))
    assert choose_classes(None, None) is None


ROW = {
    "path": "a\n.png",
    "label": "salt, pepper",
    "prob": 0.9,
    "top": [{"label": "salt, pepper", "prob": 0.9, "cosine": 0.25}, {"label": 'x"y', "prob": 0.1, "cosine": None}],
    "error": None,
}
BAD = {"path": "b.png", "label": None, "prob": None, "top": [], "error": "no such file"}


def test_csv_reads_back_with_one_header_and_any_class_name():
    form = csv_rows(Layout(NAMES, 3))
    text = form([ROW]) + form([BAD])
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["path"], first["label"], first["label_2"], first["label_3"]) == (
        r"a\n.png",
        "salt, pepper",
        'x"y',
        "",
    )
    assert (first["prob"], first["cosine_1"], first["cosine_2"]) == ("0.9", "0.25", "")
    assert (second["error"], second["label"]) == ("no such file", "")


@pytest.mark.parametrize("path", ["b.png", "https://a.example/\x9b\u202e"])
def test_what_a_server_says_makes_no_row_and_steers_no_terminal(path: str):
    """The reason phrase of an answer is free text: here a carriage return, a tab, escapes and a line break."""
    reason = "http_404: \x1b]0;owned\x07\x1b[31mred\rgood.png\tcat 99.9 %\ngood.png\tcat 99.9 %\u202e\x9b31m"
    row = BAD | {"path": path, "error": reason}
    table = TerminalTable(Layout(("cat",), 1), width=100)
    for form in (text_lines(Layout(NAMES)), table, json_lines, csv_rows(Layout(NAMES, 1))):
        text = form([row])
        assert not set("\x1b\x07\r\u202e\x9b") & set(text)
        assert text.count("\n") == (2 if text.startswith("path,") else 1)
        assert text.count("\t") <= 1
    assert json.loads(json_lines([row]))["error"] == reason


def test_a_line_is_one_line_and_says_none_or_cosines():
    assert line_of(ROW) == 'a\\n.png\tsalt, pepper 90.0 %\tx"y 10.0 %'
    assert line_of(ROW | {"label": None}).split("\t")[1] == "none of these"
    assert (
        text_lines(Layout(NAMES, by_cosine=True))([ROW | {"top": ROW["top"][:1]}]) == "a\\n.png\tsalt, pepper 0.250\n"
    )


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name))
@settings(max_examples=50, deadline=None)
def test_a_name_that_is_no_text_comes_back_from_json(name):
    written: list[bytes] = []
    write_answers([[ROW | {"path": os.fsdecode(name)}]], written.append, json_lines, 1)
    assert os.fsencode(json.loads(written[0])["path"]) == name


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no images: the list on standard input is empty"),
        ([[BAD]], "b.png: no such file"),
        ([[ROW, BAD], [ROW]], "1 of 3 images could not be read, first b.png: no such file"),
    ],
)
def test_the_end_says_what_was_not_answered(batches, message):
    written: list[bytes] = []
    with pytest.raises(UniclError) as caught:
        write_answers(batches, written.append, json_lines, None)
    assert (caught.value.message, caught.value.exit_code) == (message, 2)
    assert len(written) == len(batches)


def test_templates_in_any_order_and_batch_size_answer_alike():
    loaded = toy()
    turned = loaded._replace(templates=loaded.templates[::-1])
    left, right = (asked(each, "cat,dog,bird") for each in (loaded, turned))
    assert left["top"][0]["cosine"] == pytest.approx(right["top"][0]["cosine"], abs=1e-6)
    assert left["label"] == right["label"]


def test_labels_command_no_terminal():
    row = {
        "path": "a\x1b.png",
        "label": "b",
        "error": None,
        "top": [{"label": "b\x9b\x1b\t", "prob": 1.0, "cosine": 0.5}],
    }
    assert line_of(row) == "a\\x1b.png\tb\\x9b\\x1b\\t 100.0 %"
