"""Keys that are younger than the first recipes: evaluators of `eval`, and the default of a resolved recipe of then."""

from pathlib import Path
from typing import Any

import pytest
from small_recipe import SMALL, fault, small

from unicl_cli.recipe.load import load, load_earlier, load_text
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stage_of
from unicl_cli.recipe.text import YOUNGER, as_mapping, dump, recipe_hash


def test_evaluators_are_parts_that_read_back_with_their_options():
    recipe = small("eval=[{corpus: c, evaluators: [zeroshot, {name: knn, k: 5}]}, {corpus: d}]")
    named = as_mapping(recipe)["eval"][0]["evaluators"]
    assert named == [{"name": "zeroshot", "candidates": "all"}, {"name": "knn", "k": 5, "features": "pre"}]
    assert as_mapping(recipe)["eval"][1]["evaluators"] is None
    assert load_text(dump(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["eval=[{corpus: c, evaluators: [knm]}]"], "eval.0.evaluators.0.name: no evaluator 'knm'; did you mean 'knn'"),
        (["eval=[{corpus: c, evaluators: [{name: knn, n: 5}]}]"], "eval.0.evaluators.0.n: unknown key"),
        (["eval=[{corpus: c, evaluators: [{name: knn, k: 0}]}]"], "eval.0.evaluators.0.k: "),
        (["eval=[{corpus: c, evaluators: [7]}]"], "eval.0.evaluators.0: should be the name of a part"),
        (["eval=[{corpus: c, evaluators: []}]"], "eval.0.evaluators: "),
        (["eval=[{corpus: c, evaluators: knn}]"], "eval.0.evaluators: "),
        (["eval=[{corpus: c, evaluators: [knn, {name: knn, k: 5}]}]"], "names knn twice"),
        (["eval=[{corpus: c, evaluators: [{name: zeroshot, candidates: corpus}]}]"], "takes its candidates from the"),
        (["eval=[{corpus: c}]", "checkpoint.best.metric=knn_top1"], "'knn_top1' is not a figure of eval, whose eva"),
        (["eval=[{corpus: c, evaluators: [knn]}]", "checkpoint.best={}"], "'top1' is not a figure of eval, whose"),
        (["eval=[{corpus: c}]", "checkpoint.best.metric=topl"], "evaluators give top1, map, text_to_image_r1, im"),
        (["checkpoint.best={}"], "needs an entry in eval"),
    ],
)
def test_evaluators_that_cannot_be_used_are_problems_at_their_place(changes: list[str], told: str):
    assert told in fault(lambda: small(*changes))


def test_the_best_checkpoint_may_be_chosen_by_the_figure_of_a_named_evaluator():
    entry = "eval=[{corpus: c, evaluators: [knn, odd-spread]}]"
    for metric in ("knn_top1", "odd-spread_within_class"):
        best = small(entry, f"checkpoint.best.metric={metric}").checkpoint.best
        assert best is not None
        assert best.metric == metric


def test_keys_are_left_out_of_the_hash_at_the_defaults_that_they_have():
    whole = as_mapping(small())
    assert {section: {key: whole[section][key] for key in keys} for section, keys in YOUNGER.items()} == YOUNGER
    assert recipe_hash(small("loss.own_text=0")) != recipe_hash(small()) == recipe_hash(small("loss.own_text=0.5"))


def own_texts(recipe: Recipe) -> list[Any]:
    return [stage_of(recipe, n).loss.options.get("own_text") for n in range(len(recipe.stages))] or [
        recipe.loss.options.get("own_text")
    ]


@pytest.mark.parametrize(
    ("lines", "now", "earlier"),
    [
        ("", [0.5], [0.0]),
        ("loss: unicl", [0.5], [0.0]),
        ("loss: {tile: 4}", [0.5], [0.0]),
        ("loss: {name: unicl, own_text: 0.3}", [0.3], [0.3]),
        ("loss: clip", [None], [None]),
        ("loss: ce\nstages: [{seed: 1}, {loss: unicl}]", [None, 0.5], [None, 0.0]),
        ("loss: {own_text: 0.3}\nstages: [{loss: {name: unicl, tile: 4}}, {loss: clip}]", [0.3, None], [0.3, None]),
        ("stages: [{loss: {name: clip}}, {steps: 3}]", [None, 0.5], [None, 0.0]),
    ],
)
def test_a_recipe_without_an_option_has_its_default_of_now_and_a_resolved_one_that_of_then(
    tmp_path: Path, lines: str, now: list[float | None], earlier: list[float | None]
):
    text = SMALL.replace("loss: {name: unicl, tile: 8}\n", "") + lines
    files = [tmp_path / name for name in ("r.yaml", "resolved.yaml", "child.yaml")]
    for file in files[:2]:
        file.write_text(text)
    files[2].write_text("extends: resolved.yaml\nseed: 3")
    found = [own_texts(load(str(file))) for file in files]
    assert [*found, own_texts(load_earlier(str(files[0])))] == [now, earlier, earlier, earlier]
