"""The shipped recipes: each validates, also as a copy elsewhere, and each arm differs by what its name says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli import registry
from unicl_cli.build.data import build_data, check_learnable
from unicl_cli.cli import main
from unicl_cli.jobs.train.stage_chain import check_stages
from unicl_cli.recipe.layers import builtin_folder, builtin_names, shipped_recipes
from unicl_cli.recipe.load import load, load_text
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stage_of, stages_of
from unicl_cli.recipe.text import as_mapping, dump, recipe_json_schema

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


PAPER = {
    *(
        f"{data}-{tower}-{loss}"
        for data in ("cifar10", "cifar100", "imagenet")
        for tower in ("resnet50", "swin-t")
        for loss in ("unicl", "ce", "supcon")
    ),
    *(f"imagenet-{captions}-swin-t" for captions in ("gcc3m", "gcc15m", "yfcc14m")),
    *(f"{data}-swin-{size}" for data in ("in21k", "in21k-yfcc14m-half", "in21k-yfcc14m") for size in "tb"),
    *(f"in21k-yfcc14m{half}-{arm}-swin-t" for half in ("", "-half") for arm in ("clip", "multitask")),
    *("yfcc14m-swin-t", "in21k-gcc15m-yfcc14m-swin-b", "in21k-gcc15m-yfcc14m-focal-b"),
}
"""One recipe for each training of the paper's tables and of its released weights."""
TUNED = {f"finetune-{how}" for how in ("open-clip", "lit", "locked-text", "lora", "layer-decay", "ema")}
MINE = {"my-labels", "my-captions", "my-labels-and-captions", "my-tags", "my-taxonomy", *TUNED}


def test_the_set_is_complete():
    arms = {f"{data}-{arm}" for data in ("digits", "shapes") for arm in ("base", "unicl", *ARMS)}
    assert arms | PAPER | MINE | {"quickstart"} <= set(NAMES)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_recipes_at_the_scale_of_the_paper_keep_its_settings(name: str):
    recipe = load(name)
    assert recipe.batch.size == (1024 if name.startswith("cifar") else 4096)
    if recipe.model.part.options.get("text") is not None:
        assert (recipe.model.tokenizer, recipe.model.context_length) == ("clip", 77)
        assert recipe.data.templates is None, "what the corpus says: CLIP's"
    for item in recipe.data.train:
        captions = item.corpus.endswith(("gcc3m", "gcc12m", "yfcc14m"))
        assert (item.augment is not None and item.augment[0].name == "basic") is captions


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    """The models and losses that were built, and the first recipe of each."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAPER | MINE))
def test_every_stage_of_a_recipe_can_be_built(
    name: str, built: dict[str, str], stand_ins: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(stand_ins)
    recipe = load(name)
    stages = [stage for stage, _, _ in stages_of(recipe, stand_ins / "run")]
    parts = repr([(stage.model, stage.loss, stage.data.views, stage.data.image_size) for stage in stages])
    if built.setdefault(parts, name) == name:
        check_stages(recipe, stand_ins / "run")
        return
    for stage in stages:  # the same model and loss on other data
        check_learnable(stage, build_data(stage))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-resnet50-supcon", "in21k-gcc15m-yfcc14m-focal-b", "finetune-lora"])
def test_a_recipe_can_be_planned_on_a_machine_that_could_never_train_it(
    name: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """One of each kind of tower; the batch of focal-b would only take longer."""
    monkeypatch.chdir(stand_ins)
    less = ["batch.size=64"] if name.endswith("focal-b") else []
    assert main(["train", name, "--dry-run", "--json", "--devices", "cpu:1", *less]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["parameters"] > 1e6
    assert not (stand_ins / "runs").exists()


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small corpora under the names that the recipes use: a plan needs manifests, not millions of images."""
    root = tmp_path_factory.mktemp("stand-ins")
    labels, captions = root / "labels", root / "captions"
    for shade, split in enumerate(("train", "val", "test")):
        for tone, kind in enumerate(("cat", "dog")):
            folder = root / "pictures" / split / kind
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 40), (80 * number, 80 * shade, 80 * tone)).save(folder / f"{number}.png")
    lines = [f"train/{kind}/{n}.png\ta {kind} at play" for kind in ("cat", "dog") for n in range(3)]
    (root / "pictures" / "list.tsv").write_text("\n".join(["image\tcaption", *lines]) + "\n", encoding="utf-8")
    assert main(["prepare", "-q", "--labels", str(root / "pictures"), "-o", str(labels)]) == 0
    assert main(["prepare", "-q", "--captions", str(root / "pictures" / "list.tsv"), "-o", str(captions)]) == 0
    for name in ("cifar10", "cifar100", "imagenet", "imagenet21k"):
        shutil.copytree(labels, root / "corpora" / name)
    for name in ("gcc3m", "gcc12m", "yfcc14m"):
        shutil.copytree(captions, root / "corpora" / name)
    both = ("--labels", str(root / "pictures"), "--captions", str(root / "pictures" / "list.tsv"))
    assert main(["prepare", "-q", *both, "-o", str(root / "corpus")]) == 0
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_validates_and_says_what_it_is(name: str):
    recipe = load(name)
    assert recipe.name == name.removesuffix("-base")
    assert load_text(dump(recipe)) == recipe
    assert all(isinstance(stage_of(recipe, number), Recipe) for number in range(len(recipe.stages)))
    assert (builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("data", ["digits", "shapes"])
@pytest.mark.parametrize(("arm", "sections"), ARMS.items())
def test_an_arm_differs_from_unicl_in_nothing_else(data: str, arm: str, sections: set[str]):
    unicl, other = as_mapping(load(f"{data}-unicl")), as_mapping(load(f"{data}-{arm}"))
    assert {key for key in unicl if unicl[key] != other[key]} == {"name", *sections}


def test_recipes_of_an_installed_plugin_are_found_by_name_and_never_hide_an_own_one(
    distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    site = distribution("unicl-x", "", losses="x = unicl_x:build_x")
    (site / "unicl_x.py").unlink()
    home = site / "unicl_x" / "recipes"
    home.mkdir(parents=True)
    (home.parent / "__init__.py").write_text("raise RuntimeError('a listing imports no plugin')")
    (home / "x.yaml").write_text("# Shapes, briefly.\nextends: shapes-unicl\nname: x\nsteps: 7\n")
    (home / "quickstart.yaml").write_text("name: mine\n")
    assert load("x").steps == 7
    assert shipped_recipes()["quickstart"] == builtin_folder() / "quickstart.yaml"
    monkeypatch.setenv("UNICL_NO_PLUGINS", "unicl-x")
    registry.forget()
    assert "x" not in shipped_recipes()


def test_editors_find_a_schema_that_is_fresh_beside_each_recipe():
    written = (builtin_folder() / "recipe.schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == recipe_json_schema(), "unicl recipes schema > recipes/recipe.schema.json"
    for name in NAMES:
        first = (builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=recipe.schema.json"


def test_digits_are_never_mirrored():
    digits = [load(name) for name in NAMES if name.startswith("digits") or name == "quickstart"]
    assert all(item.flip == 0 for recipe in digits for item in recipe.data.augment)


def test_the_second_stage_of_supcon_is_a_head_on_a_frozen_tower():
    recipe = load("digits-supcon")
    second = stage_of(recipe, 1)
    assert (recipe.loss.name, recipe.data.views) == ("supcon", 2)
    assert (second.loss.name, second.data.views) == ("ce", 1)
    assert second.model.part.options["image"].tuning.freeze


def test_recipes_for_own_images_train_what_their_names_say():
    labels, captions, both = (load(name).data for name in ("my-labels", "my-captions", "my-labels-and-captions"))
    assert (labels.mix.labels, captions.mix.labels, both.mix.labels) == (1, 0, "auto")
    assert (labels.text_for_labelled, both.text_for_labelled) == ("prompt", "mixed")
    assert load("my-labels-and-captions").loss.options["own_text"] == 0.5


def test_a_copy_elsewhere_still_finds_what_it_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "shapes-multitask", "mine"]) == 0
    assert load("mine.yaml") == load("shapes-multitask")
