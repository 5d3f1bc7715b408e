"""Evaluation and probe of real toy models on prepared corpora of coloured images, where every figure is known."""

import csv
import io
import json

import pytest
import torch
from colour_toys import COLOURS, PLAIN, Joint, Words, colour_corpus, model, picture
from rich.console import Console

from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.tables import probe_tables
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.evaluate import evaluate, measure, measure_validation
from unicl_cli.jobs.evaluators import probe as probe_evaluator
from unicl_cli.jobs.evaluators.build import make_evaluator
from unicl_cli.jobs.evaluators.options import ProbeOptions
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.jobs.probe import probe
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.supcon import SupCon
from unicl_cli.losses.unicl import UniCL


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return colour_corpus(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Corpus:
    """Three images in a test split with one or two captions each."""
    root = tmp_path_factory.mktemp("captioned")
    for name, colour in COLOURS.items():
        picture(root / f"{name}.png", colour)
    rows = [("blue", "a blue thing"), ("green", "a green thing"), ("red", "a red thing")]
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        writer.writerows((f"{name}.png", caption, "test") for name, caption in rows)
    out = root / "corpus"
    prepare(PrepareRequest((), (str(root / "list.csv"),), (), out), workers=1)
    return open_corpus(out)


def test_zero_shot_counts_each_picture_once_and_the_wrong_one_as_wrong(corpus):
    document = evaluate(model(UniCL(), corpus), data=None, split=None, batch=5, accelerator=PLAIN)
    assert document["schema"] == "unicl/eval/1"
    (entry,) = document["data"]
    assert (entry["name"], entry["split"], entry["n"], entry["classes"]) == (corpus.name, "test", 12, 3)
    assert entry["top1"] == pytest.approx(11 / 12)
    assert entry["mean_per_class"] == pytest.approx((1 + 0.75 + 1) / 3)
    assert [(row["class"], row["n"], row["recall"]) for row in entry["per_class"]] == [
        ("blue", 4, 1.0),
        ("green", 4, 0.75),
        ("red", 4, 1.0),
    ]
    assert entry["top1_interval"][0] < 11 / 12 < entry["top1_interval"][1]
    assert entry["per_source"]["pictures"]["n"] == 12
    assert "top5" not in entry
    assert "retrieval" not in entry
    assert "warnings" not in entry
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_size_changes_nothing(corpus, batch):
    loaded = model(UniCL(), corpus)
    whole = evaluate(loaded, data=None, split="train", batch=7, accelerator=PLAIN)
    assert evaluate(loaded, data=None, split="train", batch=batch, accelerator=PLAIN) == whole


def test_a_trained_head_answers_with_its_own_columns_in_the_order_of_the_corpus(corpus):
    loss = CrossEntropy(image_width=3, num_classes=4)
    loss.head.weight.data = torch.cat([torch.zeros(1, 3), torch.eye(3).flip(0)])  # nothing, red, green, blue
    loss.head.bias.data = torch.tensor([-9.0, 0, 0, 0])
    classes = (corpus.classes[0]._replace(key="void", names=("void",)), *reversed(corpus.classes))
    loss.head.weight.data[1:] = torch.tensor([COLOURS[each.names[0]] for each in classes[1:]]) / 255.0
    loaded = model(loss, corpus, classes=classes, tokenizer=None)
    (entry,) = evaluate(loaded, data=None, split=None, batch=5, accelerator=PLAIN)["data"]
    assert entry["top1"] == pytest.approx(11 / 12)
    assert entry["candidates"] == {"total": 4, "not_in_corpus": 1}
    told = "1 of 4 candidates is not a class of the corpus: void; --candidates corpus leaves them out"
    assert entry["warnings"] == [told]


def test_a_class_that_the_head_never_learned_is_wrong_and_named(corpus):
    loss = CrossEntropy(image_width=3, num_classes=2)
    loss.head.weight.data = torch.tensor([COLOURS["blue"], COLOURS["green"]]) / 255.0
    loss.head.bias.data.zero_()  # torch draws it at random: it could make blue images green
    loaded = model(loss, corpus, classes=corpus.classes[:2], tokenizer=None)
    (entry,) = evaluate(loaded, data=None, split="train", batch=50, accelerator=PLAIN)["data"]
    assert [row["recall"] for row in entry["per_class"]] == [1.0, 1.0, 0.0]
    assert entry["warnings"] == ["1 of 3 classes are unknown to the model's classifier: red"]
    strangers = loaded._replace(
        classes=tuple(each._replace(key=each.key + "2", names=("x",)) for each in corpus.classes)
    )
    with pytest.raises(UniclError, match="knows none of these classes: blue, green, red"):
        evaluate(strangers, data=None, split=None, batch=5, accelerator=PLAIN)


def test_a_loss_that_scores_pairs_is_asked_itself(corpus):
    (entry,) = evaluate(model(Joint(), corpus), data=None, split=None, batch=5, accelerator=PLAIN)["data"]
    assert entry["top1"] == pytest.approx(11 / 12)
    assert "retrieval" not in entry


def test_a_loss_without_scores_points_at_the_probe(corpus):
    with pytest.raises(UniclError) as caught:
        evaluate(model(SupCon(3), corpus), data=None, split=None, batch=5, accelerator=PLAIN)
    assert "unicl probe" in str(caught.value.hint)
    assert measure_validation(model(SupCon(3), corpus), corpus, "test", batch=5) == {}


def test_captions_are_searched_both_ways_and_never_taken_for_a_class(captioned):
    (entry,) = evaluate(model(UniCL(), captioned), data=None, split=None, batch=2, accelerator=PLAIN)["data"]
    assert entry["n"] == 3
    found = entry["retrieval"]
    assert (found["images"], found["texts"]) == (3, 3)
    for way in ("text_to_image", "image_to_text"):
        assert [found[way][k] for k in ("r1", "r5", "r10")] == [1.0, 1.0, 1.0]
    assert "top1" not in entry


def test_a_model_that_reads_class_names_alone_is_not_asked_for_captions(captioned):
    loaded = model(UniCL(), captioned, tokenizer=Words(context_length=1))
    with pytest.raises(UniclError, match="nothing to evaluate"):
        evaluate(loaded, data=None, split=None, batch=2, accelerator=PLAIN)


def test_a_diverged_model_fails_loudly_and_names_a_picture(corpus):
    loaded = model(UniCL(), corpus)
    loaded.step.model.see.weight.data.fill_(torch.nan)
    with pytest.raises(UniclError, match=r"non-finite features from toy on .* test, first at 'pictures:") as caught:
        evaluate(loaded, data=None, split=None, batch=5, accelerator=PLAIN)
    assert caught.value.exit_code == 1
    with pytest.raises(UniclError, match="non-finite features"):
        probe(loaded, data=None, split=None, options=ProbeOptions(), batch=5, accelerator=PLAIN)


def test_classes_without_rows_and_equal_names_are_told(corpus):
    twice = Corpus(corpus.path, corpus.manifest, corpus.checksum)
    red = twice.classes[2]
    twice.classes = (*twice.classes, red._replace(key="red again"))
    entry = measure(Encoder(model(UniCL(), corpus)), twice, "test", {"zeroshot": make_evaluator("zeroshot")}, batch=50)
    assert entry["warnings"][0] == "1 groups of classes have the same prompts: red = red"
    assert any("tie for the first" in warning for warning in entry["warnings"])
    assert any("1 of 4 classes have no row" in warning for warning in entry["warnings"])
    assert entry["top1"] == entry["top1_any_of_identical"] == pytest.approx(11 / 12)


def test_what_is_missing_is_said_with_the_way_out(corpus, captioned):
    loaded = model(UniCL(), corpus)
    with pytest.raises(UniclError, match="names no corpus"):
        evaluate(loaded._replace(corpora=()), data=None, split=None, batch=5, accelerator=PLAIN)
    with pytest.raises(UniclError, match="no split 'tset'; did you mean 'test'"):
        evaluate(loaded, data=None, split="tset", batch=5, accelerator=PLAIN)
    with pytest.raises(UniclError, match="no rows with labels in split 'train'"):
        probe(loaded, data=str(captioned.path), split=None, options=ProbeOptions(), batch=5, accelerator=PLAIN)
    with pytest.raises(UniclError, match="the probe is trained on it"):
        probe(loaded, data=None, split="train", options=ProbeOptions(), batch=5, accelerator=PLAIN)


def test_validation_gives_the_same_figures_and_leaves_the_training_mode(corpus, captioned):
    loaded = model(UniCL(), corpus)
    loaded.step.train()
    assert measure_validation(loaded, corpus, "test", batch=5) == {"top1": pytest.approx(11 / 12), "candidates": 3}
    assert measure_validation(loaded, captioned, "test", batch=5) == {"text_to_image_r1": 1.0, "image_to_text_r1": 1.0}
    assert loaded.step.training
    assert loaded.step.model.training
    assert set(measure_validation(loaded, corpus, "test", batch=5, limit=3)) == {"top1", "candidates"}


def test_the_probe_learns_the_colours_and_reads_the_test_split_after_c_is_chosen(corpus, monkeypatch):
    order: list[str] = []
    table, sweep = Corpus.table, probe_evaluator.sweep
    monkeypatch.setattr(Corpus, "table", lambda self, *which: order.append(which[0]) or table(self, *which))
    monkeypatch.setattr(probe_evaluator, "sweep", lambda measure: order.append("sweep") or sweep(measure))
    document = probe(
        model(SupCon(3), corpus), data=None, split=None, options=ProbeOptions(), batch=5, accelerator=PLAIN
    )
    assert order == ["train", "sweep", "test"]
    assert document["schema"] == "unicl/probe/1"
    assert (document["split"], document["n"], document["features"]) == ("test", 12, "pre")
    assert document["top1"] == pytest.approx(11 / 12)
    assert document["validation"] == "a fifth of train"
    assert document["n_train"] == 30
    best = max(point["val"] for point in document["curve"])
    assert document["c"] in [point["c"] for point in document["curve"] if point["val"] == best]
    assert [point["c"] for point in document["curve"]] == sorted(point["c"] for point in document["curve"])


def test_the_probe_of_embeddings_after_the_projection_is_another_one(corpus):
    loaded = model(UniCL(), corpus)
    pre, post = (
        probe(loaded, data=None, split=None, options=ProbeOptions(point), batch=5, accelerator=PLAIN)
        for point in ("pre", "post")
    )
    assert post["feature_norm"] == pytest.approx(1.0, abs=1e-5)
    assert pre["feature_norm"] < 0.99


def test_few_shots_are_all_trained_before_the_test_split_is_opened(corpus, monkeypatch):
    order: list[str] = []
    table, trained = Corpus.table, probe_evaluator.train_trial
    monkeypatch.setattr(Corpus, "table", lambda self, *which: order.append(which[0]) or table(self, *which))
    monkeypatch.setattr(
        probe_evaluator, "train_trial", lambda *args, **options: order.append("few") or trained(*args, **options)
    )
    options = ProbeOptions(shots=(1, 2, 99), seeds=2)
    document = probe(model(SupCon(3), corpus), data=None, split=None, options=options, batch=5, accelerator=PLAIN)
    assert order == ["train", *["few"] * 6, "test"]
    one, two, all_ = document["few_shot"]
    assert [entry["shots"] for entry in document["few_shot"]] == [1, 2, 99]
    assert (one["n_train"], two["n_train"], all_["n_train"]) == (3, 6, 24)
    tops = [run["top1"] for run in two["runs"]]
    assert two["top1"] == pytest.approx(sum(tops) / 2)
    assert two["top1_sd"] == pytest.approx(abs(tops[0] - tops[1]) / 2**0.5)
    assert all_["top1_sd"] == 0.0  # every seed has the same rows
    assert document["warnings"] == ["99 shots: 3 classes have fewer rows: blue, green, red"]
    assert "top1" not in document


def test_neighbours_are_counted_on_validation_data_and_the_report_shows_what_was_asked(corpus):
    loaded = model(SupCon(3), corpus)
    ways = (ProbeOptions(method="knn"), ProbeOptions(method="knn", shots=(2,), seeds=1), ProbeOptions(normalize=True))
    near, few, unit = (
        probe(loaded, data=None, split=None, options=options, batch=5, accelerator=PLAIN) for options in ways
    )
    assert near["top1"] == pytest.approx(11 / 12)
    assert near["k"] in [point["k"] for point in near["curve"]]
    assert "c" not in near
    assert few["few_shot"][0]["top1_sd"] is None
    assert unit["feature_norm"] == pytest.approx(1.0, abs=1e-6)
    for document in (near, few, unit):
        console = Console(width=120, file=io.StringIO())
        for table in probe_tables(document):
            console.print(table)
        text = console.file.getvalue()
        assert ("Nearest neighbours" in text) == (document["method"] == "knn")
        assert ("shots" in text) == ("few_shot" in document)
