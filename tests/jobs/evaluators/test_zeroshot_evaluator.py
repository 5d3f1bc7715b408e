"""The evaluator `zeroshot`: which classes may be answered, and what it says about them."""

import io

import pytest
import torch
from colour_toys import COLOURS, PLAIN, Joint, colour_corpus, model, one_class_of
from rich.console import Console

from unicl_cli.errors import UniclError
from unicl_cli.evaluate.tables import eval_tables
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.evaluate import evaluate, measure, measure_validation
from unicl_cli.jobs.evaluators.build import make_evaluator
from unicl_cli.jobs.evaluators.kept import Keep
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.unicl import UniCL


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return colour_corpus(tmp_path_factory.mktemp("colours"))


@pytest.mark.parametrize("loss", ["text", "head", "pair"])
def test_the_models_other_classes_are_answers_to_a_corpus_of_one_class(corpus, tmp_path, loss):
    """Three of four red test images are blue: without the class blue, every answer would be right."""
    red = one_class_of(corpus, tmp_path, "red")
    made = {"text": UniCL(), "head": CrossEntropy(image_width=3, num_classes=3), "pair": Joint()}[loss]
    if loss == "head":
        made.head.weight.data = torch.tensor([COLOURS[each.names[0]] for each in corpus.classes]) / 255.0
        made.head.bias.data.zero_()
    loaded = model(made, corpus)
    given = {"data": [str(red.path)], "split": None, "batch": 5, "accelerator": PLAIN}
    (entry,) = evaluate(loaded, **given)["data"]
    assert (entry["n"], entry["classes"], entry["top1"], entry["mean_per_class"]) == (4, 1, 0.25, 0.25)
    assert entry["candidates"] == {"total": 3, "not_in_corpus": 2}
    assert entry["warnings"][0].startswith("2 of 3 candidates are not classes of the corpus: blue, green;")
    (alone,) = evaluate(loaded, **given, candidates="corpus")["data"]
    assert alone["candidates"] == {"total": 1, "not_in_corpus": 0}
    assert [alone[key] for key in ("top1", "top1_interval", "mean_per_class")] == [None] * 3
    assert [row["recall"] for row in alone["per_class"]] == [None]
    assert [row["top1"] for row in alone["per_source"].values()] == [None]
    assert "one candidate" in alone["reason"]
    assert any("no accuracy" in warning for warning in alone["warnings"])
    assert "ece" not in alone
    for document in ({"model": "toy", "data": [alone]}, {"model": "toy", "data": [entry]}):
        console = Console(file=io.StringIO(), width=100)
        for table in eval_tables(document):
            console.print(table)
        assert ("1 + 2" in console.file.getvalue()) == (document["data"] == [entry])
    figures = measure_validation(loaded, red, "test", batch=5)
    assert figures == {"top1": 0.25, "candidates": 3}
    figures = measure_validation(loaded, red, "test", batch=5, candidates="corpus")
    assert figures == {"top1": None, "candidates": 1, "reason": "one candidate: every answer is right"}


def test_a_list_of_candidates_adds_classes_and_leaves_out_the_rows_of_others(corpus):
    loaded = model(UniCL(), corpus)
    given = {"data": None, "split": None, "batch": 5, "accelerator": PLAIN}
    kept = []
    (entry,) = evaluate(loaded, **given, candidates=("Green", "blue", "umbrella"), keep=Keep(answers=kept.append))[
        "data"
    ]
    assert (entry["n"], entry["classes"], entry["candidates"]) == (8, 3, {"total": 3, "not_in_corpus": 1})
    assert entry["top1"] == pytest.approx(7 / 8)
    assert "4 of 12 rows are left out: their classes are not among the candidates" in entry["warnings"]
    assert {top for row in kept[0]["top"] for top in row[:3]} == {0, 1, 3}, "red, class 2, is never answered"
    with pytest.raises(UniclError, match="none of them is a class of the corpus"):
        evaluate(loaded, **given, candidates=("umbrella",))


def test_equal_prompts_alone_are_one_candidate(corpus, tmp_path):
    red = one_class_of(corpus, tmp_path, "red")
    red.classes = (*red.classes, red.classes[0]._replace(key="red again"))
    stranger = model(UniCL(), corpus)._replace(classes=())
    entry = measure(Encoder(stranger), red, "test", {"zeroshot": make_evaluator("zeroshot")}, batch=50)
    assert (entry["top1"], entry["candidates"]["total"]) == (None, 1)
