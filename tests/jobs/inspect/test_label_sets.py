"""`unicl inspect` of corpora with label sets and taxonomies, and of their batches; figures against plain loops."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launching import here

from unicl_cli.build.data import build_data
from unicl_cli.cli import run
from unicl_cli.contracts import ALL_GROUPS, ClassName, Sample
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.mix import Draws
from unicl_cli.evaluator_contracts import RowSets
from unicl_cli.jobs.inspect.concepts import count_labels, pair_statistics
from unicl_cli.jobs.inspect.label_sets import set_facts
from unicl_cli.jobs.inspect.scan import CaptionTally, hash_sets
from unicl_cli.recipe.load import load_text

SHAPES = "shapes?attributes=true&captions=true&count=60&test=6&size=12"
RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 16, augment: none, text_for_labelled: mixed}}
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: {{name: cbow, width: 16}}, embed_dim: 16}}
loss: {{name: unicl, own_text: {own}, weights: {weights}}}
batch: {{size: 24}}
steps: 2
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "corpus"
    here("prepare", "--labels", SHAPES, "-o", out, "--holdout", "0", "-q")
    return out


def answer(capsys, *args: str) -> dict:
    capsys.readouterr()
    assert run(["inspect", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def samples_of(corpus: Path) -> list[Sample]:
    table = open_corpus(corpus).table("train", "labels")
    return [table.read(n) for n in range(len(table))]


def sets_of(rows: list[tuple[int, ...]], known: list[int]) -> RowSets:
    ends = np.cumsum([0, *map(len, rows)])
    return RowSets(ends, np.array([x for row in rows for x in row], np.int64), np.array(known, np.int64))


def test_sets_groups_and_classes_are_counted_row_by_row(corpus, capsys, tmp_path):
    page = tmp_path / "page.html"
    facts = answer(capsys, str(corpus), "--html", str(page))
    samples, classes = samples_of(corpus), open_corpus(corpus).classes
    own = Counter(label for sample in samples for label in sample.labels)
    listed = {row["key"]: row["n"] for row in facts["per_class"]["largest"]}
    assert listed == {c.key: own[n] for n, c in enumerate(classes)}
    assert facts["per_class"]["n"] == len(samples) == 60
    found = facts["label_sets"]
    assert (found["rows"], found["labels"], found["sizes"]) == (60, 180, [{"labels": 3, "n": 60}])
    assert found["groups"] == [
        {"group": name, "classes": size, "known": 60, "rows": 60, "labels": 60}
        for name, size in (("colour", 8), ("shape", 6), ("texture", 4))
    ]
    pairs = Counter(pair for sample in samples for pair in itertools.combinations(sample.labels, 2))
    first = found["co_occurrence"]["pairs"][0]
    (a, b), n = min(pairs.items(), key=lambda item: (-item[1], item[0]))
    assert (first["keys"], first["n"]) == ([classes[a].key, classes[b].key], n)
    assert first["lift"] == pytest.approx(n * 60 / (own[a] * own[b]))
    assert facts["duplicates"]["pictures_with_several_labels"] == 0
    assert "Labels that meet most often" in page.read_text()
    shown = ", ".join(classes[label].names[0] for label in samples[0].labels)
    assert shown in page.read_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_of_sets_fit_the_terminal(corpus, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["inspect", str(corpus), "-q"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for words in ("Labels per row", "annotated rows", "lift"):
        assert words in out


TREE = (
    ClassName("a", ("a",), "order"),
    ClassName("b", ("b",), "family", "a"),
    ClassName("c", ("c",), "genus", "b"),
    ClassName("d", ("d",), "genus", "b"),
    ClassName("e", ("e",), "order"),
    ClassName("red", ("red",), "colour"),
    ClassName("blue", ("blue",), "colour"),
)
"""Groups: order 1, family 2, genus 4, colour 8."""
ROWS = [((2, 5), 15), ((2,), 7), ((3, 5), 15), ((1, 6), 11), ((4, 5), 15), ((), 8), ((1,), 3), ((2, 6), 15)]


def test_lift_counts_rows_that_know_both_groups_and_depth_those_above_leaves():
    facts = set_facts(TREE, sets_of(*map(list, zip(*ROWS, strict=True))), 20)
    assert {each["group"]: each["known"] for each in facts["groups"]} == {
        "order": 7, "family": 7, "genus": 5, "colour": 6,
    }  # fmt: skip
    for pair in facts["co_occurrence"]["pairs"]:
        numbers = [next(n for n, c in enumerate(TREE) if c.key == key) for key in pair["keys"]]
        bits = [{"order": 1, "family": 2, "genus": 4, "colour": 8}[TREE[n].group] for n in numbers]
        both = [row for row, known in ROWS if known & bits[0] and known & bits[1]]
        one, other, together = (
            [row for row in both if set(of) <= set(row)] for of in ((numbers[0],), (numbers[1],), numbers)
        )
        assert pair["n"] == len(together)
        assert pair["lift"] == pytest.approx(len(together) * len(both) / (len(one) * len(other)))
    assert [pair["keys"] for pair in facts["co_occurrence"]["pairs"]] == [
        ["b", "blue"], ["c", "red"], ["c", "blue"], ["d", "red"], ["e", "red"],
    ]  # fmt: skip
    assert facts["taxonomy"] == {
        "classes": 4, "roots": 1, "depth": 3, "ranks": ["order", "family", "genus"], "inner": 2, "rows": 6,
        "rows_above_leaves": 2,
    }  # fmt: skip


def test_expected_matches_are_those_of_all_pairs_of_a_row_and_a_prompt():
    sets = sets_of(*map(list, zip(*ROWS, strict=True)))
    labels = count_labels(TREE, sets)
    above = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 3}, 4: {4}, 5: {5}, 6: {6}}
    whole = [(set().union(*(above[x] for x in row)), known) for row, known in ROWS if row]
    fits = [[len(mine & other) / len(other) for other, _ in whole] for mine, _ in whole]
    bit = {n: {"order": 1, "family": 2, "genus": 4, "colour": 8}[c.group] for n, c in enumerate(TREE)}
    hides = [[np.mean([not known & bit[x] for x in other]) for other, _ in whole] for _, known in whole]
    facts = pair_statistics(labels, CaptionTally(7, 1), 4)["labels"]
    assert facts["same_concept_share"] == pytest.approx(np.mean(fits))
    assert facts["others_per_anchor"] == pytest.approx(3 * (np.sum(fits) - np.trace(fits)) / (7 * 6))
    assert facts["hidden_share"] == pytest.approx(np.mean(hides))


def test_label_sets_have_one_number_each():
    rows = [(), (3,), (1, 2), (3, 4), (1, 2), (0, 1, 2), (0, 3), (1, 2, 3)]
    found = hash_sets(sets_of(rows, [ALL_GROUPS] * len(rows))).tolist()
    assert found[:2] == [-1, 3]
    assert len(set(found)) == len(set(rows))
    assert found[2] == found[4]
    assert min(found[2:]) > 1 << 31


CASES = [
    (0.5, "{}", "mixed"),
    (0.0, "{colour: 2, texture: 0.25}", "mixed"),
    (1.0, "{}", "mixed"),
    (0.5, "{}", "both"),
    (0.5, "{colour: 0, texture: 2}", "mixed"),
    (0.5, "{colour: 0}", "both"),
]


@pytest.mark.parametrize(("own", "weights", "texts"), CASES)
def test_the_target_of_a_batch_is_that_of_its_rows(corpus, tmp_path, capsys, own, weights, texts):
    """A row with two texts stands there twice; a prompt of a class of weight 0 leaves its row out."""
    text = RECIPE.format(corpus=corpus, own=own, weights=weights).replace("mixed", texts)
    (tmp_path / "r.yaml").write_text(text)
    facts = answer(capsys, str(tmp_path / "r.yaml"), "--batch")
    data = build_data(load_text(text))
    drawn = [data.mix[place] for place in next(iter(Draws(data.order, 0, 1, 0, 1)))]
    seconds = [row._replace(text=row.prompt, text_hash=0, shown=row.prompted) for row in drawn if row.prompt]
    weigh = yaml.safe_load(weights)
    weight = [weigh.get(c.group, 1.0) for c in data.classes]
    rows = [row for row in [*drawn, *seconds] if row.shown < 0 or weight[row.shown]]
    assert facts["second_texts"] == len(seconds) == (24 if texts == "both" else 0)
    assert facts["rows_left_out"] == 24 + len(seconds) - len(rows)
    assert (facts["rows_left_out"] > 0) is (0 in weigh.values())
    n = len(rows)
    q = np.zeros((n, n))
    for i, row in enumerate(rows):
        said = [set(other.labels) if other.shown < 0 else {other.shown} for other in rows]
        overlap = np.array([sum(weight[x] for x in {*row.labels} & of) for of in said])
        same = np.array([row.text_hash > 0 and row.text_hash == other.text_hash for other in rows], float)
        share = own if row.text_hash else 0.0
        q[i] = share * same / max(1, same.sum()) + (1 - share) * overlap / overlap.sum()
    place = {(row.draw, row.text): number for number, row in enumerate(rows)}
    order = [place[each["draw"], each["text"]] for each in facts["shown"]]
    positives = q > 0
    assert facts["unicl"]["positives"] == positives.sum()
    drawn_cells = positives[order][:, order]
    assert [[cell == "1" for cell in line] for line in facts["matrix"]["unicl"]] == drawn_cells.tolist()
    assert [each["positives"] for each in facts["shown"]] == positives[order].sum(1).tolist()
    if "shares" in facts:
        assert np.abs(np.array(facts["shares"]) - q[order][:, order]).max() < 1e-4
    else:
        assert own == 1.0
    names = [[data.classes[x].names[0] for x in rows[n].labels] for n in order]
    assert [each["classes"] for each in facts["shown"]] == names
    assert run(["inspect", str(tmp_path / "r.yaml"), "--batch", "-q"]) == 0
    assert ("second text" in capsys.readouterr().out) is (texts == "both")


def test_prompts_of_deeper_ranks_are_hidden_in_the_batch(tmp_path, capsys):
    from PIL import Image

    for at, folder in enumerate(("animal/cat/siamese", "animal/cat", "animal/dog", "plant/oak")):
        for n in range(6):
            (tmp_path / "p" / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (60 * at, 40 * n, 9)).save(tmp_path / "p" / folder / f"{n}.png")
    here("prepare", "--labels", tmp_path / "p", "--taxonomy", "folders", "-o", tmp_path / "c", "-q")
    facts = answer(capsys, str(tmp_path / "c"), "--batch", "--batch-size", "24", "--html", str(tmp_path / "page.html"))
    hidden = {
        (row["classes"][-1] if len(row["classes"]) > 1 else "", text["text"])
        for row, line in zip(facts["shown"], facts["matrix"]["unicl"], strict=True)
        for text, cell in zip(facts["shown"], line, strict=True)
        if cell == "3"
    }
    assert facts["unicl"]["hidden"] > 0
    assert all("siamese" in text for _, text in hidden)
    cats = [row for row in facts["shown"] if "cat" in row["classes"] and "siamese" not in row["classes"]]
    prompts = sum("siamese" in row["text"] for row in facts["shown"])
    assert facts["unicl"]["hidden"] == len(cats) * prompts
    assert 'class="unknown"' in (tmp_path / "page.html").read_text()
    noted = answer(capsys, str(tmp_path / "c"))
    assert noted["label_sets"]["taxonomy"]["rows_above_leaves"] == 6
    assert any("labelled above a leaf" in note for note in noted["notes"])
    assert noted["per_class"]["empty"] == 0
    assert torch.tensor([line["classes"] for line in noted["sources"]]).tolist() == [4]
