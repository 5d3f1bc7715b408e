"""Start weights: all of a run or some of its parts; weights that mean something else are refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.init import adopted_tokenizer, flat_settings, load_init
from unicl_cli.build.model import build_step
from unicl_cli.cli import main
from unicl_cli.core import checkpoint
from unicl_cli.data.tokenizers import clip_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump

IMAGE = {"name": "cnn", "width": 8, "stages": 2}
TEXT = {"name": "transformer", "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def make(digits):
    def recipe(image=None, text=None, model=None, limit=None, **more):
        whole = {
            "data": {"train": [{"corpus": str(digits), "limit": limit}], "image_size": 16, "augment": "none"},
            "model": {
                "image": IMAGE | (image or {}), "text": TEXT | (text or {}), "embed_dim": 16, "context_length": 16,
            } | (model or {}),
            "batch": {"size": 12}, "steps": 2, "optim": {"lr": 1e-3}, "log": {"every": 1}, **more,
        }  # fmt: skip
        return load_text(json.dumps(whole))

    return recipe


@pytest.fixture(scope="module")
def run(make, tmp_path_factory):
    """A finished run, trained by the command."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["unicl"])
        Path("r.yaml").write_text(dump(make()))
        assert main(["train", "r.yaml", "--run-dir", "old", "-q"]) == 0
    return folder / "old"


def started(asked, name):
    data = build_data(asked)
    step, tokenizer = build_step(asked, lambda: build_tokenizer(asked, data), data.classes, 1)
    before = {key: x.clone() for key, x in checkpoint.weights(step).items()}
    said = load_init(step, asked, str(name), tokenizer)
    after = checkpoint.weights(step)
    return said, {key for key, x in after.items() if not torch.equal(x, before[key])}, after


def test_all_of_a_run_is_taken(make, run):
    said, _, after = started(make(seed=1), run)
    assert said == f"all of {run}"
    assert all(torch.equal(after[name], x) for name, x in checkpoint.read_tensors(run / "model.safetensors").items())


def test_a_run_of_another_model_is_refused_and_the_way_out_is_named(make, run):
    for changes, said in (
        ({"model": {"embed_dim": 24}}, r"image\.proj\.weight is \(16, 16\) there, \(24, 16\) here"),
        ({"image": {"stages": 3}}, "it has no image.trunk.stages.2.conv.weight"),
        ({"model": {"text": None}}, "this model has no text"),
    ):
        with pytest.raises(UniclError, match=said) as caught:
            started(make(**changes), run)
        assert "model.init_parts=[image]" in str(caught.value.hint)


def test_parts_are_taken_whole_and_a_projection_that_does_not_fit_is_left(make, run):
    old = checkpoint.read_tensors(run / "model.safetensors")
    said, changed, after = started(make(seed=1, model={"init_parts": ["image", "logit_scale"]}), run)
    assert said == f"image tower and logit scale of {run}"
    assert {name.split(".")[1] for name in changed} == {"image", "logit_scale"}
    assert torch.equal(after["model.image.proj.weight"], old["model.image.proj.weight"])
    said, changed, after = started(make(seed=1, model={"embed_dim": 24, "init_parts": ["image"]}), run)
    assert said == f"image tower (not the projection of the image tower, which differs) of {run}"
    assert all(name.startswith("model.image.trunk.") for name in changed)
    assert torch.equal(after["model.image.trunk.read.weight"], old["model.image.trunk.read.weight"])
    with pytest.raises(UniclError, match=r"the text of .* does not fit: text\.trunk\.pos is"):
        started(make(text={"width": 32}, model={"init_parts": ["image", "text"]}), run)
    with pytest.raises(UniclError, match=r"the text of .* does not fit: this model has no text\."):
        started(make(model={"text": None, "init_parts": ["text"]}), run)


def test_equal_shapes_with_other_heads_are_another_model(make, run):
    with pytest.raises(UniclError, match=r"has other settings: text\.heads 2 -> 4"):
        started(make(text={"heads": 4}), run)
    with pytest.raises(UniclError, match=r"text\.quick_gelu"):
        started(make(text={"quick_gelu": True}, model={"init_parts": ["text"]}), run)
    said, _, _ = started(make(text={"heads": 4}, model={"init_parts": ["image"]}), run)
    assert said.startswith("image tower of")
    said, _, _ = started(make(text={"lr_scale": 0.5, "layer_decay": 0.5}, image={"freeze": True}), run)
    assert said.startswith("all of"), "how a tower learns is no part of what it computes"


def test_other_tokens_are_refused_until_the_runs_own_are_taken(make, run):
    swapped = json.loads((run / "tokenizer.json").read_text())
    names = list(swapped["model"]["vocab"])[-2:]
    table = swapped["model"]["vocab"]
    table[names[0]], table[names[1]] = table[names[1]], table[names[0]]
    (run.parent / "swapped.json").write_text(json.dumps(swapped))
    wrong = {"tokenizer": str(run.parent / "swapped.json")}
    with pytest.raises(UniclError, match="was trained with another tokenizer") as caught:
        started(make(model=wrong), run)
    assert caught.value.hint == f"set model.tokenizer={run / 'tokenizer.json'}"
    by_file = make(model={"tokenizer": str(run / "tokenizer.json")})
    assert started(by_file, run)[0] == f"all of {run}"
    assert started(make(model={**wrong, "init_parts": ["image"]}), run)[0].startswith("image tower of")


def test_pixels_that_are_normalised_otherwise_are_refused(make, run):
    asked = make()
    data = build_data(asked)
    step, tokenizer = build_step(asked, lambda: build_tokenizer(asked, data), data.classes, 1)
    step.model.pixel_mean += 3
    with pytest.raises(UniclError, match="normalises pixels differently"):
        load_init(step, asked, str(run), tokenizer)


def test_parts_of_open_clips_weights_can_be_named(make, open_clip_folder):
    folder = open_clip_folder("clip")
    text = {"width": 32, "layers": 2}
    clip = {"tokenizer": "clip", "context_length": 24, "embed_dim": 24}
    said, changed, _ = started(make(text=text, model={**clip, "init_parts": ["text"]}), f"local-dir:{folder}")
    assert said == f"text tower of local-dir:{folder}"
    assert all(name.startswith("model.text.") for name in changed)
    with pytest.raises(UniclError, match=r"no image tower of local-dir:.* is the same as"):
        started(make(text=text, model={**clip, "init_parts": ["image"]}), f"local-dir:{folder}")
    with pytest.raises(UniclError, match=r"no tower of local-dir:.* is the same as"):
        started(make(model=clip), f"local-dir:{folder}")


def test_open_clip_models_of_equal_shapes_and_other_activations_are_refused(open_clip_folder, make, tmp_path):
    import shutil

    shutil.copytree(open_clip_folder("clip"), tmp_path / "quick")
    config = json.loads((tmp_path / "quick/open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "quick/open_clip_config.json").write_text(json.dumps(config))
    whole = {
        "data": {"train": [{"corpus": "c"}], "image_size": 64},
        "model": {"name": "open_clip", "arch": f"local-dir:{open_clip_folder('clip')}"},
        "batch": {"size": 12}, "steps": 1,
    }  # fmt: skip
    asked = load_text(json.dumps(whole))
    step, tokenizer = build_step(asked, lambda: pytest.fail("its own"), (), 1)
    with pytest.raises(UniclError, match="has other settings: quick_gelu"):
        load_init(step, asked, f"local-dir:{tmp_path / 'quick'}", tokenizer)


def test_what_only_training_reads_is_no_setting():
    options = {
        "image": {"name": "cnn", "freeze": {"unlock": 1}, "lora": {"rank": 4}, "width": 8},
        "logit_scale": {"max": 3},
    }
    assert flat_settings(options) == {"image.name": "cnn", "image.width": 8}


def test_the_command_says_what_it_takes(make, run, monkeypatch, capfd):
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    words = ["train", "r.yaml", "model.init_parts=[image]", "model.image.freeze=true", "--init", "old"]
    assert main([*words, "--run-dir", "lit", "-q"]) == 0
    assert "lit: starts from image tower of old" in capfd.readouterr().err
    old, new = (checkpoint.read_tensors(run.parent / name / "model.safetensors") for name in ("old", "lit"))
    assert all(torch.equal(old[n], x) for n, x in new.items() if n.startswith("model.image.trunk."))
    assert not torch.equal(old["model.image.proj.weight"], new["model.image.proj.weight"])
    assert not torch.equal(old["model.text.proj.weight"], new["model.text.proj.weight"])


def test_a_run_gives_its_tokenizer_to_a_training_that_starts_from_it(make, run, tmp_path, monkeypatch, capfd):
    """Other captions give another vocabulary; the text tower keeps the meaning of its tokens."""
    monkeypatch.setattr("sys.argv", ["unicl"])
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    lines = ["image,caption", *(f"{name}.png,quite another vocabulary {name * 3}" for name in "abc")]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert main(["prepare", "--captions", str(tmp_path / "list.csv"), "-o", str(tmp_path / "other"), "-q"]) == 0
    asked = make()
    recipe = tmp_path / "other.yaml"
    recipe.write_text(dump(asked))
    new = tmp_path / "new"
    command = [
        "train",
        str(recipe),
        "batch.size=3",
        f"data.train=[{{corpus: {tmp_path / 'other'}}}]",
        "--run-dir",
        str(new),
    ]
    assert main([*command, "--init", str(run), "steps=2", "-q"]) == 0
    assert f"starts from all of {run}, with its tokenizer" in capfd.readouterr().err
    assert (new / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert adopted_tokenizer(asked, str(run)) is not None
    for own in ({"tokenizer": "clip"}, {"tokenizer": "classes"}, {"init_parts": ["image"]}):
        assert adopted_tokenizer(make(model=own), str(run)) is None
    assert adopted_tokenizer(asked, None) is None


def test_a_training_with_an_adopted_tokenizer_continues_without_the_run_it_came_from(make, run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["unicl"])
    source = Path(shutil.copytree(run, tmp_path / "source"))
    new = tmp_path / "new"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(dump(make()))
    command = ["train", str(recipe), "--run-dir", str(new), "-q", "--init", str(source)]
    assert main([*command, "steps=2", "checkpoint.every=1"]) == 0
    shutil.rmtree(source)
    (new / "meta.json").unlink()
    shutil.rmtree(new / "checkpoints" / "step-00000002")
    assert main([*command, "steps=2", "checkpoint.every=1"]) == 0
    assert (new / "meta.json").is_file()


def test_the_cleaning_of_clips_words_goes_with_the_tokenizer(make, tmp_path):
    clip = clip_tokenizer(12)
    clip.save(tmp_path / "tokenizer.json")
    facts = {"classes": [], "templates": ["a {}"], "context_length": 12, "clean": True}
    (tmp_path / "classes.json").write_text(json.dumps(facts))
    (tmp_path / "resolved.yaml").write_text(dump(make()))
    (tmp_path / "meta.json").write_text("{}")
    taken = adopted_tokenizer(make(), str(tmp_path))
    assert taken is not None
    assert torch.equal(taken(["A   CAT &amp; dog"]), clip(["a cat & dog"]))
