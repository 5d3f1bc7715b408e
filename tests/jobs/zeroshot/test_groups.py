"""`zeroshot` on classes in groups and taxonomies: an answer for each group, ranks, and any number of labels."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from torch import nn
from toys import PLAIN, cosines, filled, noise, toy

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.inference.answer_stream import json_lines
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.image_inputs import ImageInput
from unicl_cli.inference.linear_probe import LinearProbe, reference_features
from unicl_cli.jobs.zeroshot.answers import AnswerOptions
from unicl_cli.jobs.zeroshot.classes import Classes, parse_classes
from unicl_cli.jobs.zeroshot.judge import make_judge
from unicl_cli.jobs.zeroshot.output import choose_layout, csv_rows, text_lines
from unicl_cli.jobs.zeroshot.questions import Wanted
from unicl_cli.jobs.zeroshot.table import TerminalTable
from unicl_cli.jobs.zeroshot.zeroshot import zeroshot
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.unicl import UniCL
from unicl_cli.runs.thresholds import FoundThresholds, Thresholds

ATTRIBUTES = tuple(
    ClassName(name, (name,), group)
    for name, group in (
        ("cat", "animal"),
        ("snow", "ground"),
        ("dog", "animal"),
        ("photo", "ground"),
        ("bird", "animal"),
    )
)
TREE = (
    ClassName("all", ("a",), "kingdom"),
    ClassName("b", ("bird",), "order", "all"),
    ClassName("m", ("of",), "order", "all"),
    ClassName("c", ("cat",), "species", "m"),
    ClassName("d", ("dog",), "species", "m"),
    ClassName("l", ("leopard",), "species", "m"),
    ClassName("s", ("snow",), "species", "b"),
)


def model(classes, loss=None):
    return toy(loss)._replace(classes=classes)


def sigmoid_loss() -> UniCL:
    loss = UniCL()
    loss.activation, loss.bias = "sigmoid", nn.Parameter(torch.tensor([-2.0]))
    return loss


def judge_of(loaded, classes=None, thresholds=None, **wanted):
    return make_judge(loaded, classes, AnswerOptions(**wanted), PLAIN, thresholds)


def rows_of(judge, loaded, seeds=(0,)):
    images = [ImageInput(f"{seed}.png", data=noise(seed) if seed >= 0 else b"bad") for seed in seeds]
    return [row for part in zeroshot(loaded, images, judge, batch=8) for row in part]


def answer(loaded, classes=None, thresholds=None, seed=0, **wanted):
    return rows_of(judge_of(loaded, classes, thresholds, **wanted), loaded, (seed,))[0]


def fitted(classes, values, scale=6.0, bias=-1.0):
    document = Thresholds(
        data="corpus", split="val", n=9, classes=list(classes), scale=scale, bias=bias, thresholds=values
    )
    return FoundThresholds(document, Path("thresholds.json"), is_named=False)


def own_cosines(loaded, seed=0):
    return cosines(loaded, filled(loaded, *(item.names[0] for item in loaded.classes)), seed)


def test_classes_compete_within_their_group_only():
    loaded = model(ATTRIBUTES)
    for seed in range(4):
        row, scores = answer(loaded, seed=seed), 14 * own_cosines(loaded, seed)
        expected = {
            group: dict(zip([item.names[0] for item in own], scores[places].softmax(0).tolist(), strict=True))
            for group in ("animal", "ground")
            for places in [[n for n, item in enumerate(ATTRIBUTES) if item.group == group]]
            for own in [[ATTRIBUTES[n] for n in places]]
        }
        assert [each["group"] for each in row["groups"]] == ["animal", "ground"]
        for each in row["groups"]:
            assert {item["label"]: item["prob"] for item in each["top"]} == pytest.approx(
                expected[each["group"]], abs=1e-5
            )
            assert each["label"] == max(expected[each["group"]], key=expected[each["group"]].get)
        assert [item["label"] for item in row["top"]] == [
            each["label"] for each in sorted(row["groups"], key=lambda each: -each["prob"])
        ]
        assert (row["label"], row["prob"]) == (row["top"][0]["label"], row["top"][0]["prob"])


def test_one_group_has_the_row_of_any_classes():
    loaded = model(ATTRIBUTES)
    whole, row = answer(loaded), answer(loaded, wanted=Wanted(("ground",)))
    for found, expected in zip(row["top"], whole["groups"][1]["top"], strict=True):
        assert found == {name: pytest.approx(value, abs=2e-6) if name in ("prob", "cosine") else value
                         for name, value in expected.items()}  # fmt: skip
    assert list(row) == ["path", "label", "prob", "top", "error"]


def test_none_of_these_and_a_threshold_are_for_each_group():
    loaded = model(ATTRIBUTES)
    row = answer(loaded, none=True, threshold=0.999)
    assert [each["label"] for each in row["groups"]] == [None, None]
    assert (row["label"], row["prob"]) == (None, None)
    for each in row["groups"]:
        assert sum(item["prob"] for item in each["top"]) + each["none"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", [None, sigmoid_loss()])
def test_a_taxonomy_never_contradicts_itself(loss):
    loaded = model(TREE, loss)
    logits = own_cosines(loaded).double() * 14
    leaves = dict(zip("cdls", logits[3:].softmax(0).tolist(), strict=True))
    row = answer(loaded)
    assert {item["label"] for item in row["top"]} == {"cat", "dog", "leopard", "snow"}
    assert {item["label"]: item["prob"] for item in row["top"]}["dog"] == pytest.approx(leaves["d"], abs=1e-5)
    orders = {"bird": leaves["s"], "of": leaves["c"] + leaves["d"] + leaves["l"]}
    for item in row["top"]:
        above, own = item["lineage"]
        assert (own["label"], own["prob"]) == (item["label"], item["prob"])
        assert above["prob"] == pytest.approx(orders[above["label"]], abs=1e-5)
    at_rank = answer(loaded, wanted=Wanted(rank="order"))
    assert {item["label"]: item["prob"] for item in at_rank["top"]} == pytest.approx(orders, abs=1e-5)
    assert at_rank["label"] == max(orders, key=orders.get)


def test_a_group_or_rank_that_is_not_there_is_one_line():
    mixed = model((*TREE, *(item._replace(key=f"x{item.key}") for item in ATTRIBUTES)))
    for wanted, message, hint in (
        (Wanted(("anmal",)), "--group anmal: no such group; did you mean 'animal'?", "animal, ground"),
        (Wanted(rank="ordre"), "--rank ordre: no such rank; did you mean 'order'?", "kingdom, order, species"),
        (Wanted(rank="animal"), "--rank animal: is not a rank of a taxonomy", "--group animal"),
        (Wanted(("order",)), "--group order: is a rank of a taxonomy", "--rank order"),
    ):
        for multi in (False, True):
            with pytest.raises(UniclError) as caught:
                judge_of(mixed, wanted=wanted, multi=multi)
            assert caught.value.message == message
            assert hint in (caught.value.hint or "")
    with pytest.raises(UniclError, match="--group x: these classes have no groups"):
        judge_of(toy(), parse_classes("cat,dog"), wanted=Wanted(("x",)))


@pytest.mark.parametrize("wanted", [{"independent": True}, {"by_cosine": True}])
def test_a_taxonomy_refuses_scores_that_do_not_add_up(wanted):
    with pytest.raises(UniclError, match="cannot be used with a taxonomy"):
        judge_of(model(TREE), **wanted)


def test_a_classifier_says_which_group_it_does_not_know():
    loaded = model(ATTRIBUTES[:1] + ATTRIBUTES[2:3], CrossEntropy(16, 2))
    judge = judge_of(loaded, Classes(ATTRIBUTES))
    assert any("no answer about ground" in told for told in judge.warnings)
    (row,) = rows_of(judge, loaded)
    assert row["label"] in ("cat", "dog")


def test_every_label_that_reaches_its_threshold_is_an_answer():
    loaded = model(ATTRIBUTES)
    expected = (6 * own_cosines(loaded) - 1).sigmoid().tolist()
    values = [expected[0] - 1e-4, expected[1] + 1e-4, expected[2] - 1e-4, 0.0, 1.0]
    row = answer(loaded, None, fitted([item.key for item in ATTRIBUTES], values), multi=True)
    wanted = sorted((n for n in (0, 2, 3)), key=lambda n: -expected[n])
    assert [item["label"] for item in row["labels"]] == [ATTRIBUTES[n].names[0] for n in wanted]
    for item, number in zip(row["labels"], wanted, strict=True):
        assert item["group"] == ATTRIBUTES[number].group
        assert item["prob"] == pytest.approx(expected[number], abs=1e-5)
        assert item["threshold"] == pytest.approx(values[number], abs=1e-6)
    assert (row["label"], row["prob"]) == (row["labels"][0]["label"], row["labels"][0]["prob"])
    nothing = answer(loaded, None, fitted([item.key for item in ATTRIBUTES], [1.0] * 5), multi=True)
    assert (nothing["label"], nothing["prob"], nothing["labels"], len(nothing["top"])) == (None, None, [], 5)


def test_thresholds_of_other_classes_or_prompts_are_one_line():
    loaded = model(ATTRIBUTES)
    of_others = fitted(["cat", "dog", "house"], [0.5] * 3)
    own = fitted([item.key for item in ATTRIBUTES], [0.5] * 5)
    for classes, thresholds, name in (
        (None, of_others, "snow"),
        (parse_classes("cat,house"), own, "house"),
        (parse_classes("cat=leopard,dog"), own, "cat"),
        (parse_classes('{"cat": ["a leopard"]}'), own, "cat"),
        (Classes((ClassName("cat", ("leopard",)),)), own, "leopard"),
    ):
        with pytest.raises(UniclError, match=r"has no threshold for \d class(es)? by this name and prompt") as caught:
            judge_of(loaded, classes, thresholds, multi=True)
        assert f"such as {name}" in caught.value.message
        assert "--fit-thresholds" in (caught.value.hint or "")


def test_a_part_of_the_classes_keeps_its_thresholds_by_key_or_name():
    renamed = tuple(item._replace(key=f"n{number}") for number, item in enumerate(ATTRIBUTES))
    loaded, own = model(renamed), fitted([item.key for item in renamed], [0.0, 0.1, 0.2, 0.3, 0.4])
    row = answer(loaded, parse_classes("dog,cat"), own, multi=True)
    found = {item["label"]: (item["threshold"], item["group"]) for item in row["top"]}
    assert found == {"dog": (0.2, "animal"), "cat": (0.0, "animal")}
    twice = model((*renamed, ClassName("other", ("cat",), "ground")))
    with pytest.raises(UniclError, match="such as cat"):
        judge_of(twice, parse_classes("cat"), fitted([*own.document.classes, "other"], [0.1] * 6), multi=True)


def test_one_threshold_for_all_is_compared_with_a_sigmoid_or_refused():
    loaded = model(ATTRIBUTES, sigmoid_loss())
    expected = (14 * own_cosines(loaded) - 2).sigmoid().tolist()
    value = sorted(expected)[2]
    judge = judge_of(loaded, multi=True, threshold=value - 1e-5)
    assert any("uncalibrated" in told for told in judge.warnings)
    (row,) = rows_of(judge, loaded)
    assert [item["prob"] for item in row["labels"]] == pytest.approx(sorted(expected, reverse=True)[:3], abs=1e-5)
    for loss in (None, CrossEntropy(16, 5)):
        with pytest.raises(UniclError, match="no probability of a class by itself"):
            judge_of(model(ATTRIBUTES, loss), multi=True, threshold=0.5)
    with pytest.raises(UniclError, match="has no thresholds"):
        judge_of(loaded, multi=True)


def test_one_threshold_for_all_replaces_those_of_the_run():
    loaded = model(ATTRIBUTES)
    row = answer(loaded, None, fitted([item.key for item in ATTRIBUTES], [1.0] * 5), multi=True, threshold=0.0)
    assert len(row["labels"]) == 5
    assert {item["threshold"] for item in row["labels"]} == {0.0}


@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_probe_answers_by_group_and_with_sets(sigmoid):
    loaded = toy()
    weights = torch.randn(16, 5, generator=torch.Generator().manual_seed(3))
    reference = reference_features(Encoder(loaded, PLAIN.autocast), "post", normalize=True)
    probe = LinearProbe(weights, torch.zeros(5), reference, ATTRIBUTES, "post", True, "toy", sigmoid)
    logits = loaded.step.model.encode_image(loaded.transform(noise(0))[None]).embed[0] @ weights
    row = answer(loaded, probe, wanted=Wanted(("ground",)))
    found = {item["label"]: item["prob"] for item in row["top"]}
    own = logits[[1, 3]].sigmoid() if sigmoid else logits[[1, 3]].softmax(0)
    assert found == pytest.approx(dict(zip(("snow", "photo"), own.tolist(), strict=True)), abs=1e-5)
    if sigmoid:
        several = answer(loaded, probe, multi=True, threshold=0.5)
        assert {item["label"] for item in several["labels"]} == {
            item.names[0] for item, logit in zip(ATTRIBUTES, logits.tolist(), strict=True) if logit >= 0
        }
    else:
        with pytest.raises(UniclError, match="the classes of this probe exclude each other"):
            judge_of(loaded, probe, multi=True, threshold=0.5)


def forms(judge, rows):
    layout = choose_layout(judge)
    table = TerminalTable(layout, width=80)
    lines = [text_lines(layout)(rows).splitlines(), table(rows).splitlines()]
    return [*lines, list(csv.DictReader(io.StringIO(csv_rows(layout)(rows)))), table.note()]


def test_each_group_has_a_line_of_its_own():
    loaded = model(ATTRIBUTES)
    judge = judge_of(loaded)
    rows = rows_of(judge, loaded, (0, -1, 2))
    lines, table, cells, _ = forms(judge, rows)
    assert [line.split("\t")[:2] for line in lines] == [
        *(["0.png", name] for name in ("animal", "ground")),
        ["-1.png", "error: not an image"],
        *(["2.png", name] for name in ("animal", "ground")),
    ]
    assert max(map(cell_len, table)) <= 80
    assert [line.split()[0] for line in table] == ["0.png", "ground", "-1.png", "2.png", "ground"]
    assert [row["label_ground"] for row in cells] == [rows[0]["groups"][1]["label"], "", rows[2]["groups"][1]["label"]]
    assert [json.loads(line)["path"] for line in json_lines(rows).splitlines()] == ["0.png", "-1.png", "2.png"]


def test_the_path_down_a_taxonomy_is_shown_and_cut_from_above():
    long = tuple(item._replace(names=(item.names[0] * 30,)) if item.key in "bm" else item for item in TREE)
    for classes, begins in ((TREE, ""), (long, "… > ")):
        loaded = model(classes)
        judge = judge_of(loaded)
        rows = [row | {"path": "folder/" * 8} for row in rows_of(judge, loaded)]
        lines, table, cells, note = forms(judge, rows)
        names = [each["label"] for each in rows[0]["top"][0]["lineage"]]
        assert [part.split(" ")[0] for part in lines[0].split("\t")[1].split(" > ")] == names
        assert cells[0]["lineage_1"] == " > ".join(names)
        assert (cell_len(table[0]) <= 80, f"{begins}{names[-1] if begins else names[0]} " in table[0]) == (True, True)
        assert note == "1 of 4 classes fit on a line; --csv and --json print all"


def test_no_answer_of_a_set_is_hidden_and_an_empty_group_says_so():
    names = tuple(f"{word} {n}" for n in range(4) for word in ("snow", "cat", "dog"))
    loaded = model((*(ClassName(name, (name,), "many") for name in names), ClassName("bird", ("bird",), "one")))
    thresholds = fitted([item.key for item in loaded.classes], [0.0] * 12 + [1.0])
    judge = judge_of(loaded, None, thresholds, multi=True, top_k=1)
    rows = rows_of(judge, loaded)
    lines, table, cells, note = forms(judge, rows)
    assert all(name in "".join(table) for name in names)
    assert max(map(cell_len, table)) <= 80
    assert table[-1].split() == ["one", "none", "of", "these"]
    assert lines[1] == "0.png\tone\tnone of these"
    assert note is None
    assert (set(cells[0]["labels_many"].split(";")), cells[0]["labels_one"]) == (set(names), "")


def test_a_separator_in_a_name_is_refused_in_csv():
    loaded = model((ClassName("a;b", ("a;b",)), ClassName("cat", ("cat",))))
    judge = judge_of(loaded, None, fitted(["a;b", "cat"], [0.0, 0.0]), multi=True)
    with pytest.raises(UniclError, match="contains ';'") as caught:
        csv_rows(choose_layout(judge))
    assert caught.value.hint == "use --json"
