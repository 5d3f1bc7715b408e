"""The evaluators `zeroshot` and `probe` on rows with label sets: every figure against scikit-learn or by hand."""

import tracemalloc

import numpy as np
import pytest
import torch
from scored_sets import SetCorpus, sets_of
from sklearn.metrics import average_precision_score, f1_score
from toys import toy

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.annotations import Annotations
from unicl_cli.evaluate.multilabel import measure_classes, rank_all_pairs
from unicl_cli.inference import class_scores
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.linear_probe import load_probe, make_probe_scorer, save_probe
from unicl_cli.inference.scorer import make_scorer
from unicl_cli.jobs.evaluate import main_figures, measure
from unicl_cli.jobs.evaluators.build import DEFAULT_EVALUATORS, make_evaluator, missing_needs
from unicl_cli.jobs.evaluators.kept import Keep
from unicl_cli.jobs.evaluators.options import ProbeOptions
from unicl_cli.jobs.evaluators.probe import ProbeEvaluator
from unicl_cli.jobs.probe import as_linear_probe
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.runs.thresholds import FoundThresholds, Thresholds

WORDS = {"cat": "pet", "dog": "pet", "bird": "pet", "snow": "sky", "photo": "sky", "leopard": ""}
CLASSES = tuple(ClassName(name, (name,), group) for name, group in WORDS.items())
GROUPS = np.array([0, 0, 0, 1, 1, 2])
RNG = np.random.default_rng(3)
MODEL = toy()


def random_rows(count):
    """Rows with any labels; a third of them are annotated for some groups only."""
    rows = []
    for number in range(count):
        known = int(RNG.integers(1, 8)) if number % 3 == 0 else 7
        labels = [c for c in range(6) if RNG.random() < 0.35 and known >> GROUPS[c] & 1]
        rows.append((labels, known))
    return rows


ROWS = random_rows(70)
CORPUS = SetCorpus(CLASSES, test=ROWS, val=random_rows(40), train=random_rows(60))
HAS = np.array([[c in labels for c in range(6)] for labels, _ in ROWS])
KNOWN = np.array([[known >> group & 1 for group in GROUPS] for _, known in ROWS]) == 1


def scores_of(corpus=CORPUS, split="test", loaded=MODEL):
    """The cosines of all rows, (n, C)."""
    encoder = Encoder(loaded)
    scorer = make_scorer(encoder, corpus.classes)
    rows = range(len(corpus.table(split, "labels")))
    found = encoder.map_rows(
        corpus.table(split, "labels"), rows, lambda images, _: scorer.scores(images), batch=64, label=""
    )
    return found.numpy()


def evaluated(corpus=CORPUS, split="test", loaded=MODEL, thresholds=None, **options):
    made = make_evaluator({"name": "zeroshot", **options}, Keep(thresholds=thresholds))
    return measure(Encoder(loaded), corpus, split, {"zeroshot": made}, batch=16)


@pytest.mark.parametrize("block", [1, 150, 1 << 22])
def test_average_precision_of_known_pairs_is_scikit_learns(block, monkeypatch):
    monkeypatch.setattr(class_scores, "BLOCK", block)
    monkeypatch.setattr(class_scores, "ROWS", 13)
    entry, scores = evaluated(), scores_of()
    each = [average_precision_score(HAS[KNOWN[:, c], c], scores[KNOWN[:, c], c]) for c in range(6)]
    assert entry["map"] == pytest.approx(np.mean(each), abs=1e-9)
    assert entry["map_micro"] == pytest.approx(average_precision_score(HAS[KNOWN], scores[KNOWN]), abs=1e-9)
    assert [row["ap"] for row in entry["per_class"]] == pytest.approx(each, abs=1e-9)
    assert [(row["class"], row.get("group", ""), row["n"], row["annotated"]) for row in entry["per_class"]] == [
        (name, group, HAS[:, c].sum(), KNOWN[:, c].sum()) for c, (name, group) in enumerate(WORDS.items())
    ]
    assert {name: own["map"] for name, own in entry["per_group"].items()} == {
        "pet": pytest.approx(np.mean(each[:3])), "sky": pytest.approx(np.mean(each[3:5])), "": pytest.approx(each[5]),
    }  # fmt: skip
    assert (entry["n"], entry["classes"], entry["candidates"]["total"]) == (70, 6, 6)
    assert not {"top1", "top5", "f1_macro", "thresholds", "ece"} & set(entry)
    assert entry["map_interval"][0] < entry["map"] < entry["map_interval"][1]


def test_a_group_in_which_each_annotated_row_has_one_class_has_a_top1():
    rows = [([number % 3, 3 + number % 2, *([5] if number % 4 else [])], 7) for number in range(20)]
    rows += [([number % 2], 1) for number in range(5)]
    corpus = SetCorpus(CLASSES, test=rows)
    entry, scores = evaluated(corpus), scores_of(corpus)
    pet, sky = entry["per_group"]["pet"], entry["per_group"]["sky"]
    assert (pet["n"], sky["n"]) == (25, 20), "rows that are not annotated for the sky are left out"
    truth = np.array([labels[0] for labels, _ in rows])
    assert pet["top1"] == pytest.approx((scores[:, :3].argmax(1) == truth).mean())
    assert sky["top1"] == pytest.approx((scores[:20, 3:5].argmax(1) + 3 == 3 + np.arange(20) % 2).mean())
    assert "top1" not in entry["per_group"][""], "a group of one class"
    several = SetCorpus(CLASSES, test=[*rows, ([0, 1], 7)])
    assert "top1" not in evaluated(several)["per_group"]["pet"]
    without = SetCorpus(CLASSES, test=[*rows, ([3], 3)])
    assert "top1" not in evaluated(without)["per_group"]["pet"]


def test_rows_of_one_label_each_also_have_the_figures_of_one_label():
    """Classes for which a row is not annotated cannot beat its class."""
    rows = [([number % 3], 1 if number % 2 else 7) for number in range(24)]
    corpus, loaded = SetCorpus(CLASSES, test=rows), MODEL._replace(classes=(ClassName("cat dog", ("cat dog",), "sky"),))
    entry, scores = evaluated(corpus), scores_of(corpus)
    shown = np.where(np.array([[known >> group & 1 for group in GROUPS] for _, known in rows]) == 1, scores, -9)
    truth = np.array([labels[0] for labels, _ in rows])
    assert entry["top1"] == pytest.approx((shown.argmax(1) == truth).mean())
    assert entry["top1"] != pytest.approx((scores.argmax(1) == truth).mean()), "the case tells nothing"
    assert {"top1_interval", "mean_per_class", "ece", "per_source", "map"} <= set(entry)
    assert [row["recall"] for row in entry["per_class"]] == [
        pytest.approx((shown[truth == c].argmax(1) == c).mean()) for c in range(3)
    ]
    more = evaluated(corpus, loaded=loaded)
    assert more["candidates"] == {"total": 7, "not_in_corpus": 1}
    assert more["map"] == entry["map"]


def test_the_recall_of_a_class_is_not_that_of_another_with_its_name():
    classes = (
        ClassName("pet", ("pet",), "1"), ClassName("pet/cat", ("cat",), "2", "pet"),
        ClassName("pet/cat/cat", ("cat",), "3", "pet/cat"), ClassName("pet/dog", ("dog",), "2", "pet"),
    )  # fmt: skip
    entry = evaluated(SetCorpus(classes, test=[([2 + number % 2], 7) for number in range(10)]))
    assert [(row["group"], row["class"], row["n"], "recall" in row) for row in entry["per_class"]] == [
        ("2", "cat", 5, False), ("3", "cat", 5, True), ("2", "dog", 5, True),
    ]  # fmt: skip


def test_a_taxonomy_counts_each_rank_and_steps_to_the_common_ancestor():
    classes = (
        ClassName("photo", ("photo",), "kingdom"), ClassName("cat", ("cat",), "genus", "photo"),
        ClassName("dog", ("dog",), "genus", "photo"), ClassName("leopard", ("leopard",), "species", "cat"),
        ClassName("snow", ("snow leopard",), "species", "cat"), ClassName("bird", ("bird",), "species", "dog"),
    )  # fmt: skip
    rows = [([3 + number % 3], 7) for number in range(18)] + [([1 + number % 2], 3) for number in range(6)]
    corpus = SetCorpus(classes, test=rows)
    entry, scores = evaluated(corpus), scores_of(corpus)
    leaves = torch.tensor(scores[:, 3:] * 14.0).double().softmax(1).numpy()
    genus = np.stack([leaves[:, 0] + leaves[:, 1], leaves[:, 2]], 1)
    above = np.array([0, 0, 1])
    truth = np.array([above[labels[0] - 3] if labels[0] > 2 else labels[0] - 1 for labels, _ in rows])
    assert entry["per_rank"]["genus"]["n"] == 24
    assert entry["per_rank"]["genus"]["top1"] == pytest.approx((genus.argmax(1) == truth).mean())
    species = np.array([labels[0] - 3 for labels, _ in rows[:18]])
    assert entry["per_rank"]["species"]["n"] == 18
    assert entry["per_rank"]["species"]["top1"] == pytest.approx((leaves[:18].argmax(1) == species).mean())
    assert "kingdom" not in entry["per_rank"], "one class at this rank"
    best = leaves.argmax(1)
    steps = [0 if best[row] == species[row] else 1 if above[best[row]] == truth[row] else 2 for row in range(18)] + [
        0 if above[best[row]] == truth[row] else 1 for row in range(18, 24)
    ]
    assert entry["lca_distance"] == pytest.approx(np.mean(steps))
    positives = {row["class"]: row["n"] for row in entry["per_class"]}
    assert (positives["cat"], positives["dog"]) == (12 + 3, 6 + 3), "a class has the images of those below it"


def test_a_head_that_lacks_a_class_is_at_chance_there():
    head = CrossEntropy(image_width=16, num_classes=5)
    loaded = toy(head)._replace(classes=CLASSES[:5])
    entry = evaluated(loaded=loaded)
    last = entry["per_class"][-1]
    assert last["ap"] == pytest.approx(last["n"] / last["annotated"])
    assert any("1 of 6 classes are unknown to the model's classifier: leopard" in text for text in entry["warnings"])


def fitted(classes=CLASSES, data="elsewhere", split="val", cuts=(0.3, 0.4, 0.5, 0.45, 0.35, 0.5)):
    keys = [item.key for item in reversed(classes)]
    found = list(reversed(cuts))[: len(keys)]
    return Thresholds(data=data, split=split, n=9, classes=keys, scale=3.0, bias=-0.2, thresholds=found)


def test_f1_is_scikit_learns_at_the_thresholds_of_the_file(tmp_path):
    found = FoundThresholds(fitted(), tmp_path / "t.json", is_named=True)
    entry, scores = evaluated(thresholds=found), scores_of()
    answers = 1 / (1 + np.exp(-(3.0 * scores.astype(float) - 0.2))) >= np.array([0.3, 0.4, 0.5, 0.45, 0.35, 0.5])
    each = [f1_score(HAS[KNOWN[:, c], c], answers[KNOWN[:, c], c]) for c in range(6)]
    assert entry["f1_macro"] == pytest.approx(np.mean(each), abs=1e-9)
    assert entry["f1_micro"] == pytest.approx(f1_score(HAS[KNOWN], answers[KNOWN]), abs=1e-9)
    assert [row["f1"] for row in entry["per_class"]] == pytest.approx(each, abs=1e-9)
    assert entry["thresholds"] == {"file": str(tmp_path / "t.json"), "data": "elsewhere", "split": "val", "n": 9}
    assert not any("thresholds" in text for text in entry.get("warnings", ()))


def test_thresholds_of_the_same_split_and_of_other_classes_are_told(tmp_path):
    file = tmp_path / "t.json"
    same = FoundThresholds(fitted(data="made", split="test"), file, is_named=False)
    assert any("were fitted on this split: F1 is too high" in text for text in evaluated(thresholds=same)["warnings"])
    for data, named in (("made", False), ("elsewhere", True)):
        other = FoundThresholds(fitted(CLASSES[:4], data=data), file, is_named=named)
        with pytest.raises(UniclError, match=r"t\.json: has no threshold for 2 classes of made, such as "):
            evaluated(thresholds=other)
    entry = evaluated(thresholds=FoundThresholds(fitted(CLASSES[:4]), file, is_named=False))
    assert "f1_macro" not in entry
    assert any("no F1:" in text for text in entry["warnings"])


@pytest.mark.parametrize("is_named", [False, True])
def test_thresholds_of_other_weights_count_only_if_the_user_names_them(tmp_path, is_named):
    found = FoundThresholds(fitted(), tmp_path / "t.json", is_named=is_named, is_stale=True)
    entry = evaluated(thresholds=found)
    assert ("f1_macro" in entry) is is_named
    (said,) = [text for text in entry["warnings"] if "were fitted for other weights than the model has now" in text]
    assert said.startswith("no F1: ") is not is_named


def test_candidates_restrict_the_classes_that_are_measured():
    entry, whole = evaluated(candidates=("cat", "snow")), evaluated()
    assert [row["class"] for row in entry["per_class"]] == ["cat", "snow"]
    assert entry["map"] == pytest.approx(
        np.mean([row["ap"] for row in whole["per_class"] if row["class"] in "cat snow"])
    )
    assert any("4 classes of the corpus left out" in text for text in entry["warnings"])


def test_a_validation_tracks_map_where_there_is_no_top1():
    figures = main_figures(Encoder(MODEL), CORPUS, "test", DEFAULT_EVALUATORS, batch=16, limit=None, candidates="all")
    assert figures == {"map": evaluated()["map"], "candidates": 6}
    limited = main_figures(Encoder(MODEL), CORPUS, "test", DEFAULT_EVALUATORS, batch=16, limit=30, candidates="all")
    assert limited["map"] != figures["map"]
    empty = SetCorpus(CLASSES, test=[([], 7), ([], 7)])
    figures = main_figures(Encoder(MODEL), empty, "test", DEFAULT_EVALUATORS, batch=16, limit=None, candidates="all")
    assert figures == {"map": None, "candidates": 6, "reason": "no row has a label"}


def test_classes_without_rows_and_classes_of_all_rows_are_told():
    entry = evaluated(SetCorpus(CLASSES, test=[([0, 1], 7), ([0], 7), ([0, 2], 7)]))
    assert any("3 of 6 classes have no row in split test: left out of mAP" in text for text in entry["warnings"])
    assert any("1 class is a label of every annotated row" in text for text in entry["warnings"])


def test_an_evaluator_that_takes_one_label_a_row_is_left_out():
    class OneLabel:
        needs = ("labels",)

    assert missing_needs(OneLabel(), MODEL.step, MODEL.tokenizer, CORPUS, "test") == ["rows with one label each"]
    assert missing_needs(make_evaluator("zeroshot"), MODEL.step, MODEL.tokenizer, CORPUS, "test") == []
    single = SetCorpus(CLASSES, test=[([number % 6], 7) for number in range(12)])
    assert missing_needs(OneLabel(), MODEL.step, MODEL.tokenizer, single, "test") == []


def test_scores_are_never_held_at_once():
    """800 rows x 1,500 classes are 4.8 MB of float32: a quarter of that is enough."""
    rng = np.random.default_rng(0)
    rows = [sorted(rng.choice(1500, 4, replace=False)) for _ in range(800)]
    truth = Annotations(sets_of(rows, [1] * 800), [0] * 1500)

    def blocks():
        return ((start, np.random.default_rng(start).random((50, 800), np.float32)) for start in range(0, 1500, 50))

    wanted = np.ones(1500, bool)
    tracemalloc.start()
    measure_classes(blocks, truth, wanted)
    rank_all_pairs(blocks, truth, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.8e6 / 4


# -- probe ----------------------------------------------------------------------------------------------------------


def test_a_probe_fits_a_sigmoid_for_each_class(tmp_path):
    kept = []
    options = ProbeOptions(c=1.0)
    figures = ProbeEvaluator(options, kept.append)(Encoder(MODEL), CORPUS, "test", batch=16)
    assert (figures["n"], figures["n_train"], figures["c"], figures["curve"]) == (70, 100, 1.0, [])
    features = Encoder(MODEL).encode_rows(CORPUS.table("test", "labels"), range(70), point="pre", batch=16, label="")
    scores = kept[0].linear.logits(features)[0].float().numpy()
    each = [average_precision_score(HAS[KNOWN[:, c], c], scores[KNOWN[:, c], c]) for c in range(6)]
    assert figures["map"] == pytest.approx(np.mean(each), abs=1e-6)
    probe = as_linear_probe(Encoder(MODEL), kept[0], CLASSES, options, has_sets=True)
    save_probe(probe, tmp_path / "p.safetensors", {"map": figures["map"]})
    read = load_probe(tmp_path / "p.safetensors")
    assert (read.sigmoid, read.classes) == (True, CLASSES)
    assert make_probe_scorer(Encoder(MODEL), read).sigmoid


def test_the_probe_chooses_c_by_map_on_val_or_on_a_fifth_of_train():
    found = ProbeEvaluator()(Encoder(MODEL), CORPUS, "test", batch=16)
    best = max(found["curve"], key=lambda point: (point["val"], -point["c"]))
    assert (found["validation"], found["c"]) == ("val", best["c"])
    other = ProbeEvaluator()(Encoder(MODEL), CORPUS, "val", batch=16)
    assert (other["validation"], other["n"], other["n_train"]) == ("a fifth of train", 40, 60)


@pytest.mark.parametrize(("named", "options"), [("knn", {"method": "knn"}), ("shots", {"shots": (2,)})])
def test_what_takes_one_label_a_row_is_refused(named, options):
    with pytest.raises(UniclError, match=f"{named}: takes one label per row, but rows of made have label sets"):
        ProbeEvaluator(ProbeOptions(**options))(Encoder(MODEL), CORPUS, "test", batch=16)
