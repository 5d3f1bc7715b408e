"""Recipes: scalars, layers, overrides, every problem at its line, and text that reads back as the same recipe."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recipe import SMALL, fault, small

from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load, load_text
from unicl_cli.recipe.schema import Augment, Recipe, Section
from unicl_cli.recipe.stages import stage_of
from unicl_cli.recipe.text import as_mapping, dump, hashed_keys, recipe_hash, recipe_json_schema
from unicl_cli.runs.place import run_path
from unicl_cli.yaml_lines import write_yaml

BAD = """\
name: bad
seed: -1
data:
  train:
    - {corpus: c, wieght: 2.0}
  workers: -1
model:
  image: {name: tim, model: vit_small_patch16_224}
  text:
    name: transformer
    widht: 64
    layers: many
  logit_scale: {int: 10}
  normalise: true
optim:
  name: adamW
  weight_decay: .inf
  betas: [0.9, 1.5]
batch: {size: 1e3, micro: big}
loss:
  name: unicl
  tile: big
eval: {corpus: c}
"""


# -- problems -----------------------------------------------------------------------------------------------------


def test_every_problem_is_named_at_its_line(golden: Callable[[str, str], None]):
    golden("recipe-problems.txt", fault(lambda: load_text(BAD, "bad.yaml", ["optim.lr=fast", "data.views=0"])))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=fast", "command line (optim.lr=fast): optim.lr: should be a valid number, got 'fast'"),
        ("optim.lrr=1", "command line (optim.lrr=1): optim.lrr: unknown key; did you mean 'lr'?"),
        ("optm.lr=1", "command line (optm.lr=1): optm: unknown key; did you mean 'optim'?"),
        ("steps=true", "steps: should be a valid integer, got true"),
        ("steps='5'", "steps: should be a valid integer, got '5'"),
        ("steps=1.5", "steps: should be a valid integer, got 1.5"),
        ("loss=", "loss: should be the name of a part, or a mapping with a name, got null"),
        ("loss=clp", "loss.name: no loss 'clp'; did you mean 'clip'?"),
        ("model.tokeniser=x", "model.tokeniser: unknown key; did you mean 'tokenizer'?"),
        ("model.part=x", "model.part: unknown key"),
        ("model.image=", "model.image: should be the name of a part, or a mapping with a name, got null"),
        ("model=clp", "model.name: no encoder 'clp'"),
        ("data.augment=basicc", "data.augment: 'basicc' is not one of none, basic, shift, strong"),
        ("data.augment=[none, none]", "data.augment: 2 entries, but data.views is 1"),
        ("data.train=[]", "data.train: should have at least 1 item, got []"),
        ("data.mix.labels=2", "data.mix.labels: should be less than or equal to 1 or 'auto', got 2"),
        ("steps=", "small.yaml:1: set exactly one of steps, epochs, samples (found 0)"),
        ("extends=x", "extends: unknown key"),
        ("stages=[{optm: 1}]", "stages.0.optm: unknown key; did you mean 'optim'?"),
        ("stages=[{stages: []}]", "stages.0.stages: is not allowed inside a stage"),
        ("stages=[{loss: clp}]", "stages.0.loss.name: no loss 'clp'; did you mean 'clip'?"),
        ("name=a/b", "name: should match pattern"),
        ("guard=3", "guard: should be a mapping, got 3"),
    ],
)
def test_one_mistake_is_one_problem(override: str, said: str):
    message = fault(lambda: small(override))
    assert message.startswith("1 problem in the recipe\n")
    assert said in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr", "override 'optim.lr': not KEY=VALUE"),
        ("=3", "override '=3': not KEY=VALUE"),
        ("data.train.1.corpus=x", "override 'data.train.1.corpus=x': no '1' in a list of 1"),
        ("data.train.-1.corpus=x", "no '-1' in a list of 1"),
        ("steps.x=3", "command line: steps is 5 and has no 'x'"),
        ("optim.betas=[1", "command line (optim.betas=[1):1:3: expected ',' or ']'"),
        ("optim.betas=[0.5]", "command line (optim.betas=[0.5]): optim.betas.1: is missing"),
    ],
)
def test_an_override_that_cannot_be_read_is_one_line(override: str, said: str):
    message = fault(lambda: small(override))
    assert said in message
    assert "\n" not in message.removeprefix("1 problem in the recipe\n")


@pytest.mark.parametrize("text", ["", "3", "[a]", "just text"])
def test_a_file_that_is_not_a_mapping_says_so(text: str):
    assert fault(lambda: load_text(text, "f")) == "f: not a mapping of keys"


def test_a_file_that_is_not_text_says_so(tmp_path: Path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    assert "r.yaml: cannot be read: 'utf-8' codec" in fault(lambda: load(str(tmp_path / "r.yaml")))


# -- layers -------------------------------------------------------------------------------------------------------


def test_overrides_mean_what_the_file_would():
    recipe = small("optim.lr=3e-4", "optim.betas=[0.9, 0.95]", "steps=1e5", "ema.decay=0.5", "model.text=cbow")
    assert (recipe.optim.lr, recipe.optim.betas, recipe.steps) == (3e-4, (0.9, 0.95), 100_000)
    assert recipe.ema is not None
    assert recipe.ema.decay == 0.5
    assert recipe.model.part.options["text"].name == "cbow"
    assert small("data.augment=shift", "data.augment.noise=0.1").data.augment == (Augment(name="shift", noise=0.1),)


def test_another_name_replaces_a_part_and_the_same_name_keeps_its_options():
    rest = {"fold": True, "own_text": 0.0, "weights": {}, "class_columns": None, "logit_adjustment": 0.0}
    assert small("loss=clip").loss.options == {"tile": "auto", "fold": True}
    assert small("loss=clip", "loss.tile=4").loss.options == {"tile": 4, "fold": True}
    assert small("loss.terms=[image]").loss.options == {"tile": 8, "terms": ["image"], **rest}
    assert small("loss={name: unicl, terms: [text]}").loss.options == {"tile": 8, "terms": ["text"], **rest}
    assert small("model.text={name: transformer, layers: 2}").model.part.options["text"].options["width"] == 64
    assert small("model.image.width=8").model.part.options["image"].options["width"] == 8


def test_a_later_length_replaces_an_earlier_one():
    recipe = small("epochs=2.5")
    assert (recipe.steps, recipe.epochs) == (None, 2.5)
    assert "set exactly one of steps, epochs, samples (found 2)" in fault(lambda: load_text(SMALL + "epochs: 1", "f"))


def write_files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_child_changes_what_it_names(tmp_path: Path):
    child = "extends: small.yaml\nmodel: {text: {layers: 2}}\nloss: clip\nsamples: 100\n"
    write_files(tmp_path, small=SMALL, child=child, leaf="extends: child.yaml\nname: leaf\n")
    recipe = load(str(tmp_path / "leaf.yaml"), ["seed=3"])
    text = recipe.model.part.options["text"].options
    assert (recipe.name, recipe.seed, recipe.samples, recipe.steps) == ("leaf", 3, 100, None)
    assert (text["width"], text["layers"], recipe.loss.name) == (64, 2, "clip")


def test_a_problem_is_named_in_the_layer_that_still_counts(tmp_path: Path):
    child = (
        "extends: small.yaml\ndata:\n  train:\n    - {corpus: c, split: 3}\nloss: {name: clip, tle: 1}\nsteps: many\n"
    )
    write_files(tmp_path, small=SMALL, child=child)
    lines = fault(lambda: load(str(tmp_path / "child.yaml"), ["loss.tile=x", "model.text.width=y"])).splitlines()
    assert [re.sub(r"^.*/", "", line.strip()) for line in lines[1:]] == [
        "command line (loss.tile=x): loss.tile: should be a valid integer or 'auto', got 'x'",
        "command line (model.text.width=y): model.text.width: should be a valid integer, got 'y'",
        "child.yaml:4: data.train.0.split: should be a valid string, got 3",
        "child.yaml:5: loss.tle: unknown key; did you mean 'tile'?",
        "child.yaml:6: steps: should be a valid integer, got 'many'",
    ]


def test_marks_below_a_replaced_value_are_gone(tmp_path: Path):
    parent = SMALL.replace("[{corpus: c}]", "\n    - corpus: c\n      split: train")
    write_files(tmp_path, parent=parent, child="extends: parent.yaml\ndata:\n  train: [{split: x}]\n")
    message = fault(lambda: load(str(tmp_path / "child.yaml")))
    assert "child.yaml:3: data.train.0.corpus: is missing" in message


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("b.yaml", "b.yaml:1: extends: 'a.yaml' extends itself in a circle"),
        ("a.yaml", "a.yaml:1: extends: 'a.yaml' extends itself in a circle"),
        ("digits-bse", "a.yaml:1: extends: no recipe 'digits-bse'; did you mean 'digits-base'?"),
        ("[a]", "a.yaml:1: extends: should be a file or the name of a recipe, got ['a']"),
    ],
)
def test_extends_that_leads_nowhere_is_one_line(tmp_path: Path, extends: str, said: str):
    write_files(tmp_path, a=f"extends: {extends}\n", b="extends: a.yaml\n")
    assert said in fault(lambda: load(str(tmp_path / "a.yaml")))


def test_stages_are_patches_of_the_recipe():
    patch = "stages=[{}, {loss: ce, epochs: 3, model: {image: {freeze: true}}}]"
    recipe = small(patch, "stages.1.loss={name: ce, label_smoothing: 0.1}")
    first, second = (stage_of(recipe, number) for number in range(len(recipe.stages)))
    assert first == small()
    assert (second.loss.name, second.loss.options) == ("ce", {"label_smoothing": 0.1})
    assert (second.epochs, second.steps, second.stages) == (3.0, None, ())
    assert second.model.part.options["image"].tuning.freeze
    assert second.model.part.options["text"] == recipe.model.part.options["text"]
    assert stage_of(small(), 0) == small()


# -- back to text -------------------------------------------------------------------------------------------------

LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
NAMES = st.text(LETTERS, min_size=1, max_size=12)
POSITIVE = st.floats(1e-9, 1e9)
SHARE = st.floats(0, 1)
WIDTHS = st.sampled_from([8, 64, 8192])
PART = st.fixed_dictionaries({"name": st.just("cnn")}, optional={"width": WIDTHS, "freeze": st.booleans()})
TEXT = st.none() | st.fixed_dictionaries({"name": st.just("cbow")}, optional={"lr_scale": SHARE})
CROPS = st.tuples(POSITIVE, POSITIVE).map(lambda pair: tuple(sorted(pair)))
AUGMENT = st.sampled_from(["none", "basic", "shift"]) | st.fixed_dictionaries(
    {}, optional={"name": st.just("strong"), "crop": CROPS, "rand": NAMES, "noise": SHARE}
)
RECIPES = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {
                "train": st.lists(
                    st.fixed_dictionaries({"corpus": st.text(LETTERS), "weight": POSITIVE}), min_size=1, max_size=2
                )
            },
            optional={
                "augment": AUGMENT,
                "templates": NAMES | st.lists(NAMES, min_size=1, max_size=2),
                "mix": st.fixed_dictionaries({"labels": SHARE | st.just("auto")}),
            },
        ),
        "model": st.fixed_dictionaries(
            {"image": PART, "text": TEXT},
            optional={"tokenizer": st.text(LETTERS), "logit_scale": st.just({"learn": False})},
        ),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "loss": st.sampled_from(["clip", {"name": "unicl", "terms": ["text"]}, {"tile": 3}]),
        "optim": st.fixed_dictionaries(
            {}, optional={"lr": POSITIVE, "betas": st.tuples(SHARE.filter(lambda x: x < 1))}
        ),
        "ema": st.none() | st.just({"decay": 0.5}),
        "stages": st.lists(st.sampled_from([{}, {"loss": "ce"}, {"epochs": 2}]), max_size=2),
    },
)


@settings(deadline=None, max_examples=25)
@given(RECIPES, st.sampled_from([{"steps": 3}, {"epochs": 0.5}, {"samples": 10**6}]))
def test_a_dumped_recipe_loads_as_the_same_recipe(raw: dict[str, Any], length: dict[str, Any]):
    if (betas := raw.get("optim", {}).get("betas")) is not None:
        raw["optim"]["betas"] = [*betas, *betas]
    recipe = load_text(write_yaml(json.loads(json.dumps({**raw, **length}))))
    again = load_text(dump(recipe))
    assert again == recipe
    assert dump(again) == dump(recipe)
    assert recipe_hash(again) == recipe_hash(recipe)


def test_the_resolved_recipe_has_every_default():
    def keys(section: type[Section]) -> set[str]:
        return set(section.model_fields)

    whole = as_mapping(small("ema={}", "eval=[{corpus: c}]"))
    assert set(whole) == keys(Recipe)
    recipe = small("ema={}", "eval=[{corpus: c}]")
    for name in ("data", "optim", "schedule", "batch", "log", "checkpoint", "parallel", "ema", "guard"):
        assert set(whole[name]) == keys(type(getattr(recipe, name)))
    tuning = {"freeze": False, "lr_scale": 1.0, "layer_decay": 1.0, "lora": None}
    assert whole["model"]["image"] == {"name": "cnn", "width": 32, "stages": 3, **tuning}
    numbers = {"own_text": 0.0, "weights": {}, "class_columns": None, "logit_adjustment": 0.0}
    assert whole["loss"] == {"name": "unicl", "terms": ["image", "text"], "tile": 8, "fold": True, **numbers}
    assert yaml.safe_load(dump(recipe))["optim"]["lr"] == recipe.optim.lr, "other readers get numbers too"


@pytest.mark.parametrize(
    ("override", "same"),
    [
        *(("run_dir=x", True), ("log.every=3", True), ("data.workers=3", True), ("checkpoint.keep=1", True)),
        *(("parallel.strategy=ddp", True), ("optim.lr=5e-4", True), ("loss.terms=[image, text]", True)),
        *(("batch.micro=3", True), ("parallel.grad_checkpoint=true", True), ("batch.size=6", False)),
        *(("data.decoder=pillow", True), ("data.resize=pillow", False), ("data.augment_on=device", False)),
        *(("seed=1", False), ("optim.lr=6e-4", False), ("data.train.0.corpus=d", False), ("loss.tile=9", False)),
    ],
)
def test_the_hash_sees_exactly_what_changes_numbers(override: str, same: bool):
    assert (recipe_hash(small(override)) == recipe_hash(small())) is same


def test_a_recipe_keeps_its_hash_when_eval_gets_a_key():
    entry = {"corpus": "c", "split": None, "every": 1000, "batch": 512, "limit": None}
    assert hashed_keys(small("eval=[{corpus: c}]"))["eval"] == [entry]
    assert hashed_keys(small("eval=[{corpus: c, candidates: corpus}]"))["eval"] == [entry | {"candidates": "corpus"}]
    assert recipe_hash(small("eval=[{corpus: c, evaluators: [knn]}]")) != recipe_hash(small("eval=[{corpus: c}]"))


def test_the_run_directory_is_named_after_the_recipe():
    recipe = small()
    assert run_path(recipe) == Path(f"runs/small-{recipe_hash(recipe)[:8]}")
    assert run_path(small("run_dir=out/{name}")) == Path("out/small")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        small().seed = 3


def test_the_schema_describes_every_key():
    whole = recipe_json_schema()
    for section in [whole, *whole["$defs"].values()]:
        for key, place in section["properties"].items():
            assert "description" in place or "$ref" in place, key
    assert "part" not in whole["$defs"]["ModelSection"]["properties"]


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("image_size=64", "'data.image_size'"),
        ("corpus=x", "'data.train.0.corpus' or 'eval.0.corpus'"),
        ("batch_size=8", "'batch.size'"),
        ("learning_rate=1e-3", "'optim.lr'"),
        ("data.train.0.image_size=8", "'data.image_size'"),
        ("optim.lrr=1", "'lr'"),
        ("flip=0", "'data.train.0.augment.flip' or 'data.augment.flip'"),
    ],
)
def test_a_key_without_its_section_is_named_in_full(override, keys):
    with pytest.raises(UniclError) as caught:
        load("quickstart", [override])
    assert f"unknown key; did you mean {keys}?" in caught.value.message


def test_a_key_like_none_is_only_unknown():
    with pytest.raises(UniclError, match=r"xyzzy: unknown key$"):
        load("quickstart", ["xyzzy=1"])
