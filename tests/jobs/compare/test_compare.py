"""Comparison of real toy models on one corpus: every figure against `evaluate`, every test against scipy."""

import csv
import io
import json
import re

import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest
from toys import PLAIN, put, toy

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.statistics import adjust_holm
from unicl_cli.jobs.compare.compare import compare
from unicl_cli.jobs.compare.names import short_names
from unicl_cli.jobs.compare.page import comparison_page
from unicl_cli.jobs.compare.recipes import changed_keys, common_corpora
from unicl_cli.jobs.compare.tables import by_difference, compare_tables, p_value
from unicl_cli.jobs.evaluate import evaluate
from unicl_cli.jobs.evaluators.kept import Keep
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.recipe.load import load as load_recipe

NAMES = ("local-dir:first", "local-dir:second", "local-dir:third")
CLASSES = ("bird", "cat", "dog", "leopard", "snow", "photo")


def drawn(number: int) -> bytes:
    file = io.BytesIO()
    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """Six classes of 20 test images, and 30 images with one, two or three captions."""
    root = tmp_path_factory.mktemp("compared")
    images = {f"photos/test/{CLASSES[n % 6]}/{n}.png": drawn(n) for n in range(120)}
    put(root, images | {f"told/{n}.png": drawn(1000 + n) for n in range(30)})
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for n in range(30):
            words = [f"a {CLASSES[n % 6]} and a {CLASSES[(n // 6 + k) % 6]} {'of' * (k + 1)} {n}" for k in range(3)]
            writer.writerows((f"told/{n}.png", text, "test") for text in words[: 1 + n % 3])
    sources = ((str(root / "photos"),), (str(root / "list.csv"),), ())
    prepare(PrepareRequest(*sources, root / "corpus"), workers=1)
    return str(root / "corpus")


def seeded(number: int, **changes):
    """The toy with other random weights."""
    loaded = toy(changes.pop("loss", None), CLASSES)
    draw = torch.Generator().manual_seed(number)
    for weight in loaded.step.parameters():
        weight.data = torch.randn(weight.shape, generator=draw)
    return loaded._replace(name=f"toy {number}", **changes)


MODELS = dict(zip(NAMES, (seeded(1), seeded(2), seeded(3)), strict=True))


def compared(corpus, models=MODELS, **options):
    settings = {"data": [corpus], "split": None, "batch": 16, "accelerator": PLAIN, **options}
    return compare(list(models), models.__getitem__, **settings)


@pytest.fixture(scope="module")
def found(corpus):
    return compared(corpus)


def test_each_model_has_the_figures_of_its_own_evaluation(found, corpus):
    (entry,) = found.document["data"]
    assert found.document["schema"] == "unicl/compare/1"
    assert (entry["name"], entry["split"]) == ("corpus", "test")
    for row, (name, loaded) in zip(entry["models"], MODELS.items(), strict=True):
        alone = evaluate(loaded, data=[corpus], split=None, batch=50, accelerator=PLAIN)["data"][0]
        assert row["model"] == name
        assert {key: value for key, value in row.items() if key != "model"} == {
            key: alone[key] for key in row if key != "model"
        }
        assert "text_to_image" in row["retrieval"]
        recalls = [each["recall"][found.document["models"].index(name)] for each in entry["per_class"]]
        assert recalls == [each["recall"] for each in alone["per_class"]]
    assert len({row["top1"] for row in entry["models"]}) > 1
    json.dumps(found.document, allow_nan=False)


def test_the_test_is_mcnemars_on_the_rows_that_only_one_model_answers(found, corpus):
    kept = {}
    for name, loaded in MODELS.items():
        keep = Keep(answers=lambda columns, name=name: kept.update({name: columns}))
        evaluate(loaded, data=[corpus], split=None, batch=50, accelerator=PLAIN, keep=keep)
    (entry,) = found.document["data"]
    first = kept[NAMES[0]]
    for figure, k in (("top1", 1), ("top5", 5)):
        rows = [row for row in entry["differences"] if row["figure"] == figure]
        assert [row["model"] for row in rows] == list(NAMES[1:])
        for row in rows:
            hits = [
                [y in top[:k] for y, top in zip(own["y"], own["top"], strict=True)]
                for own in (first, kept[row["model"]])
            ]
            better = sum(b and not a for a, b in zip(*hits, strict=True))
            worse = sum(a and not b for a, b in zip(*hits, strict=True))
            assert (row["n"], row["better"], row["worse"]) == (120, better, worse)
            assert row["p"] == pytest.approx(binomtest(better, better + worse).pvalue)
            assert row["difference"] == pytest.approx((better - worse) / 120)
            assert row["interval"][0] < row["difference"] < row["interval"][1]
        assert [row["p_holm"] for row in rows] == adjust_holm([row["p"] for row in rows])


def test_retrieval_is_paired_by_image_in_both_directions(found):
    (entry,) = found.document["data"]
    shares = {row["model"]: row["retrieval"] for row in entry["models"]}
    for way in ("text_to_image", "image_to_text"):
        rows = [row for row in entry["differences"] if row["figure"] == f"{way}_r1"]
        assert len(rows) == 2
        for row in rows:
            assert row["n"] == shares[NAMES[0]]["images"]
            expected = shares[row["model"]][way]["r1"] - shares[NAMES[0]][way]["r1"]
            assert row["difference"] == pytest.approx(expected)


def test_a_model_compared_with_an_equal_one_differs_in_nothing(corpus):
    document = compared(corpus, dict(zip(NAMES[:2], (seeded(1), seeded(1)), strict=True))).document
    (entry,) = document["data"]
    assert {(row["difference"], row["better"], row["worse"], row["p"]) for row in entry["differences"]} == {
        (0, 0, 0, 1)
    }
    assert by_difference(entry["per_class"]) == []
    assert "warnings" not in document


def test_other_prompts_and_parts_that_only_some_models_score_are_told(corpus):
    head = CrossEntropy(image_width=16, num_classes=6)
    models = {NAMES[0]: seeded(1), NAMES[1]: seeded(2, loss=head, tokenizer=None, templates=("{}",))}
    document = compared(corpus, models).document
    assert document["warnings"] == [
        "the models use different prompt templates (local-dir:first 2, local-dir:second 1): "
        "--template gives all of them the same"
    ]
    (entry,) = document["data"]
    assert "local-dir:second: not compared on captions, which the model does not score" in entry["warnings"]
    assert {row["figure"] for row in entry["differences"]} == {"top1", "top5"}


def test_models_that_choose_from_different_classes_are_not_compared(corpus):
    wider = seeded(2)._replace(classes=(*seeded(2).classes, ClassName("fish", ("fish",))))
    models = {NAMES[0]: seeded(1), NAMES[1]: wider}
    with pytest.raises(UniclError, match="choose from different classes: fish are candidates of one") as caught:
        compared(corpus, models)
    assert "--candidates corpus" in str(caught.value.hint)
    (entry,) = compared(corpus, models, candidates="corpus").document["data"]
    assert [row["candidates"]["total"] for row in entry["models"]] == [6, 6]
    (entry,) = compared(corpus, {NAMES[0]: wider, NAMES[1]: wider}).document["data"]
    assert [row["candidates"] for row in entry["models"]] == [{"total": 7, "not_in_corpus": 1}] * 2


def test_one_candidate_gives_no_accuracy_and_no_difference(corpus):
    document = compared(corpus, candidates=("cat",)).document
    (entry,) = document["data"]
    assert [row["top1"] for row in entry["models"]] == [None] * 3
    assert {row["figure"] for row in entry["differences"]} == {"text_to_image_r1", "image_to_text_r1"}
    console = Console(width=80, file=io.StringIO())
    for table in compare_tables(document):
        console.print(table)
    assert "Classification" not in console.file.getvalue()


def test_a_warning_of_one_model_names_it_and_one_of_all_stands_once(corpus):
    short = seeded(2)
    short = short._replace(templates=("word " * 30 + "{}",))
    models = {NAMES[0]: seeded(1)._replace(templates=short.templates), NAMES[1]: short}
    warnings = compared(corpus, models).document["data"][0]["warnings"]
    assert [text for text in warnings if "were cut" in text] == ["6 of 6 prompts were cut at the context of 16 tokens"]
    models[NAMES[0]] = seeded(1)
    warnings = compared(corpus, models).document["data"][0]["warnings"]
    assert "local-dir:second: 6 of 6 prompts were cut at the context of 16 tokens" in warnings


def test_the_tables_fit_80_columns_and_name_models_by_letters(found):
    console = Console(width=80, file=io.StringIO())
    for table in compare_tables(found.document):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…│" not in text.replace(" ", "")  # no cell is cut
    assert "120 images, 6 classes" in text
    assert "B − A" in text
    assert "C − A" in text
    assert "Holm" in text


def test_classes_of_one_row_do_not_come_first():
    rows = [
        {"class": "rare", "n": 1, "recall": [0.0, 1.0]},
        {"class": "usual", "n": 100, "recall": [0.5, 0.7]},
        {"class": "same", "n": 50, "recall": [0.5, 0.5]},
    ]
    assert [row["class"] for row in by_difference(rows)] == ["usual", "rare"]


def test_the_page_shows_images_that_only_one_model_classifies(found):
    page = comparison_page(found)
    assert "Right by B, wrong by A" in page
    assert "Right by A, wrong by C" in page
    assert page.count('src="data:image/png;base64,') >= 24
    notes = re.findall(r'Right by (\w), wrong by (\w)</h2><p class="note">(\d+) images', page)
    pairs = {(right, wrong): int(count) for right, wrong, count in notes}
    for row in found.document["data"][0]["differences"]:
        if row["figure"] == "top1":
            letter = "ABC"[NAMES.index(row["model"])]
            assert (pairs[letter, "A"], pairs["A", letter]) == (row["better"], row["worse"])
    assert 'src="http' not in page
    assert "<script" not in page


def test_recipes_must_train_on_the_same_corpora_unless_data_are_named(tmp_path):
    recipes = [
        load_recipe("quickstart", [f"data.train=[{{corpus: {name}}}]", "steps=7"]) for name in ("one", "./one", "two")
    ]
    assert common_corpora(["a", "b"], recipes[:2]) == ("one",)
    assert common_corpora(["hf-hub:x/y", "b"], [None, recipes[1]]) == ("./one",)
    with pytest.raises(UniclError, match="a and c were trained on different corpora: one and two") as caught:
        common_corpora(["a", "c"], [recipes[0], recipes[2]])
    assert "--data" in str(caught.value.hint)
    with pytest.raises(UniclError, match="none of the models names a corpus"):
        common_corpora(["hf-hub:x/y"], [None])


def test_recipe_keys_that_change_results_are_listed_with_a_value_per_model():
    one = load_recipe("quickstart", ["run_dir=a"])
    two = load_recipe("quickstart", ["run_dir=b", "name=other", "loss=clip", "optim.lr=1e-4"])
    rows = {row["key"]: row["values"] for row in changed_keys([one, None, two])}
    assert rows["loss.name"] == ["unicl", None, "clip"]
    assert rows["optim.lr"] == [0.003, None, 1e-4]
    assert not {"name", "run_dir"} & rows.keys()
    assert changed_keys([one, None]) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a", "runs/b/checkpoints/step-1"], ["a", "b/checkpoints/step-1"]),
        (["runs/a", "hf-hub:x/y"], ["a", "hf-hub:x/y"]),
        (["/x/a", "b"], ["/x/a", "b"]),
        (["hf-hub:x/y", "open_clip:RN50"], ["hf-hub:x/y", "open_clip:RN50"]),
    ],
)
def test_short_names_leave_out_the_folders_in_common(names, short):
    assert short_names(names) == short


def test_small_p_values_are_a_bound():
    assert [p_value(p) for p in (0.0, 0.000999, 0.001, 0.0499, 1.0)] == ["<0.001", "<0.001", "0.001", "0.050", "1.000"]


def test_a_class_that_a_head_cannot_answer_is_not_among_its_best(corpus):
    head = CrossEntropy(image_width=16, num_classes=3)
    loaded = seeded(2, loss=head, tokenizer=None)
    loaded = loaded._replace(classes=loaded.classes[:3])
    kept = []
    evaluate(loaded, data=[corpus], split=None, batch=50, accelerator=PLAIN, keep=Keep(answers=kept.append))
    (answers,) = kept
    assert {len(top) for top in answers["top"]} == {len(scores) for scores in answers["scores"]} == {3}
    assert {name for names in answers["top_classes"] for name in names} == set(CLASSES[:3])
    document = compared(corpus, {NAMES[0]: loaded, NAMES[1]: seeded(1)}).document
    told = [text for text in document["data"][0]["warnings"] if "unknown to the model's classifier" in text]
    assert told == ["local-dir:first: 3 of 6 classes are unknown to the model's classifier: leopard, photo, snow"]
