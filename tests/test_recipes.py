"""The shipped recipes: each validates, also as a copy elsewhere, and each arm differs by what its name says."""

from pathlib import Path

import pytest

from unicl_cli.cli import main
from unicl_cli.recipe import Recipe, as_mapping, builtin_folder, builtin_names, dump, load, load_text

NAMES = builtin_names()
ARMS = {
    "label-only": {"data"},
    "caption-only": {"data"},
    "clip-joint": {"loss"},
    "multitask": {"loss"},
    "image-term": {"loss"},
    "text-term": {"loss"},
    "linear-text": {"data", "model"},
    "ce": {"data", "model", "loss"},
    "supcon": {"data", "model", "loss", "stages"},
}


def test_the_comparison_set_is_complete():
    arms = {f"{data}-{arm}" for data in ("digits", "shapes") for arm in ("base", "unicl", *ARMS)}
    assert arms | {"quickstart"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_validates_and_says_what_it_is(name: str):
    recipe = load(name)
    assert recipe.name == name.removesuffix("-base")
    assert load_text(dump(recipe)) == recipe
    assert all(isinstance(recipe.stage(number), Recipe) for number in range(len(recipe.stages)))
    assert (builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("data", ["digits", "shapes"])
@pytest.mark.parametrize(("arm", "sections"), ARMS.items())
def test_an_arm_differs_from_unicl_in_nothing_else(data: str, arm: str, sections: set[str]):
    unicl, other = as_mapping(load(f"{data}-unicl")), as_mapping(load(f"{data}-{arm}"))
    assert {key for key in unicl if unicl[key] != other[key]} == {"name", *sections}


def test_digits_are_never_mirrored():
    digits = [load(name) for name in NAMES if name.startswith("digits") or name == "quickstart"]
    assert all(item.flip == 0 for recipe in digits for item in recipe.data.augment)


def test_the_second_stage_of_supcon_is_a_head_on_a_frozen_tower():
    recipe = load("digits-supcon")
    second = recipe.stage(1)
    assert (recipe.loss.name, recipe.data.views) == ("supcon", 2)
    assert (second.loss.name, second.data.views) == ("ce", 1)
    assert second.model.part.options["image"].freeze


def test_a_copy_elsewhere_still_finds_what_it_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "shapes-multitask", "mine"]) == 0
    assert load("mine.yaml") == load("shapes-multitask")
