"""Stages that cannot be built, or cannot follow one another, are refused before the first one is trained."""

import json
from pathlib import Path

import pytest
import yaml
from launching import TINY

from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.stage_chain import check_stages
from unicl_cli.recipe.load import load_text

FITS_NOT = "stages.1: model.init: RUN/stage-1 is a different model"
UNFIT = {  # the second stage -> what is said
    "another width of the joint space": (
        {"model": {"embed_dim": 8}},
        "stages.1: model.init: RUN/stage-1 is a different model: image.proj.weight is (16, 16) there, (8, 16) here",
    ),
    "another image tower": ({"model": {"image": {"width": 16}}}, FITS_NOT),
    "another text tower": ({"model": {"text": "cbow"}}, FITS_NOT),
    "no text tower": (
        {"model": {"text": None}, "loss": "ce"},
        "stages.1: model.init: RUN/stage-1 is a different model",
    ),
    "another vocabulary": ({"model": {"tokenizer": "clip"}}, FITS_NOT),
    "another length": ({"model": {"context_length": 8}}, FITS_NOT),
    "other heads": ({"model": {"text": {"heads": 4}}}, "RUN/stage-1 has other settings: text.heads 2 -> 4"),
    "a loss of several views": ({"loss": "supcon"}, "stages.1: data.views: loss supcon needs several views"),
    "a loss of one view": ({"data": {"views": 2}}, "stages.1: data.views: the loss takes one view per image"),
    "a loss of labels": ({"loss": "ce", "data": {"mix": {"labels": 0}}}, "stages.1: data.train: the loss ce learns"),
    "one row a step": ({"batch": {"size": 1}}, "stages.1: batch.size: a batch of 1 is too small"),
    "a pattern without parameters": (
        {"optim": {"groups": [{"match": "model.nosuch.*", "freeze": True}]}},
        "stages.1: ",
    ),
    "nothing left to learn": (
        {"model": {"image": {"freeze": "all"}, "text": {"freeze": "all"}, "logit_scale": {"learn": False}}},
        "stages.1: model: every parameter is frozen",
    ),
    "a tokenizer without tokens for the prompts": (
        {"model": {"tokenizer": "classes", "context_length": None}, "data": {"mix": {"labels": 1}}},
        "the tokenizer has no token for",
    ),
    "a corpus that is not there": ({"data": {"train": [{"corpus": "nosuch"}]}}, "no finished corpus at nosuch"),
}


def recipe(digits, *stages, **changes):
    data = TINY["data"] | {"train": [{"corpus": str(digits)}]}
    return json.loads(json.dumps(TINY | {"data": data, "stages": list(stages), "steps": 2} | changes))


def checked(digits, *stages, **changes):
    check_stages(load_text(json.dumps(recipe(digits, *stages, **changes))), Path("RUN"))


@pytest.mark.parametrize("kind", list(UNFIT))
def test_what_cannot_follow_is_found_before_anything_is_trained(digits, tmp_path, monkeypatch, capfd, kind):
    monkeypatch.chdir(tmp_path)
    patch, said = UNFIT[kind]
    Path("r.yaml").write_text(yaml.safe_dump(recipe(digits, {}, patch)))
    for more in (("--dry-run",), ()):
        assert main(["train", "r.yaml", "--run-dir", "RUN", *more]) == 2
        assert said in capfd.readouterr().err
    assert not list(tmp_path.glob("RUN/stage-1/*"))


@pytest.mark.parametrize(
    "stages",
    [
        ({}, {"optim": {"lr": 1e-4}}, {"model": {"image": {"freeze": True}}}),
        ({"model": {"text": None}, "loss": "ce"}, {"model": {"init_parts": ["image"]}}),
        ({"model": {"text": {"lora": {"rank": 2}}}}, {}),
        ({"model": {"tokenizer": "clip"}}, {"model": {"tokenizer": "clip"}}),
        ({}, {"model": {"embed_dim": 8, "init_parts": ["image", "text"]}}),
    ],
    ids=["the same model", "an image tower and a new text tower", "adapters", "clip", "another joint space"],
)
def test_stages_that_fit_pass(digits, stages):
    checked(digits, *stages)


def test_the_check_and_the_training_agree(digits, tmp_path, monkeypatch):
    """A tokenizer that is fitted on the texts: the outline of a stage stands for what is trained."""
    monkeypatch.chdir(tmp_path)
    second = {"model": {"embed_dim": 8, "text": None, "init_parts": ["image"]}, "loss": "ce"}
    Path("r.yaml").write_text(yaml.safe_dump(recipe(digits, {}, {"optim": {"lr": 1e-4}}, second)))
    assert main(["train", "r.yaml", "--run-dir", "run", "-q"]) == 0


def test_normalisation_that_differs_is_found_though_shapes_agree(digits):
    tower = {"name": "timm", "model": "vit_tiny_patch16_224.augreg_in21k"}
    other = tower | {"model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k"}
    model = TINY["model"] | {"image": tower}
    data = TINY["data"] | {"image_size": 32, "train": [{"corpus": str(digits)}]}
    checked(digits, {}, {"model": {"image": other}}, model=model, data=data)
    model = model | {"image": {"name": "timm", "model": "resnet10t"}}
    with pytest.raises(UniclError, match="different model"):
        checked(digits, {}, {"model": {"image": {"model": "resnet14t"}}}, model=model, data=data)


def test_keys_of_the_whole_run_cannot_change_in_a_stage(digits):
    for patch, key in (
        ({"precision": "bf16"}, "precision: is one for all stages"),
        ({"deterministic": True}, "deterministic: is one for all stages"),
        ({"run_dir": "other"}, "run_dir: is one for all stages"),
        ({"model": {"init": "other"}}, "model.init: a later stage starts from the stage before it"),
    ):
        with pytest.raises(UniclError, match=f"stages.1.{key}"):
            checked(digits, {}, patch)
    checked(digits, {"precision": "auto"}, {"run_dir": "runs/{name}-{hash8}"})


def test_the_first_stage_starts_from_the_model_that_it_names(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump(recipe(digits, {"model": {"init": "first"}})))
    assert main(["train", "r.yaml", "stages=[]", "--run-dir", "first", "-q"]) == 0
    assert main(["train", "r.yaml", "--run-dir", "second", "-q"]) == 0
    assert "second: starts from all of first" in capfd.readouterr().err
