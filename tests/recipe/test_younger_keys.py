"""Keys that are younger than the first recipes: evaluators of `eval`, and defaults that leave the hash as it was."""

import pytest
from small_recipe import fault, small

from unicl_cli.recipe.load import load_text
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
        (["eval=[{corpus: c}]", "checkpoint.best.metric=knn_top1"], "'knn_top1' is not a metric of eval, whose eva"),
        (["eval=[{corpus: c, evaluators: [knn]}]", "checkpoint.best={}"], "'top1' is not a metric of eval, whose"),
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
    assert recipe_hash(small("loss.own_text=0.5")) != recipe_hash(small()) == recipe_hash(small("loss.own_text=0"))
