"""The image cache of a training: the results of none, each image decoded once, and off where it would be wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicl_cli import registry
from unicl_cli.cli import main
from unicl_cli.data import transforms
from unicl_cli.jobs.train import image_cache

ON, OFF = "images are encoded once: their tower is frozen", "images are encoded at each step, although"
ROWS, BATCH, STEPS = 120, 24, 12
PLUGIN = """
from functools import partial
from unicl_cli.api import UniclError, reads_no_images
from unicl_cli.losses.clip import Clip

class Reader(Clip):
    def forward(self, model, batch):
        out = super().forward(model, batch)
        return {**out, "brightness": self.look(batch.images)}
    def look(self, images):
        return images.float().mean()

class Divider(Reader):
    def look(self, images):
        return (images / 255).mean()

class Tagged(Clip):
    def __init__(self, hook):
        super().__init__()
        self.extra = hook

def tag(drawn, tokens, text_index):
    import torch
    return {"tag": torch.tensor([row.row for row in drawn])}

def build_undeclared(): return Tagged(tag)
def build_declared(): return Tagged(partial(reads_no_images(lambda *given: tag(*given))))
def build_reader(): return Reader()
def build_divider(): return Divider()

PARTS = {"losses": {"undeclared": build_undeclared, "declared": build_declared, "reader": build_reader,
                    "divider": build_divider}}
"""


@pytest.fixture(autouse=True)
def empty_place(monkeypatch, tmp_path):
    """No plugin file of one test is seen by the next."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    monkeypatch.setenv("UNICL_PLUGINS", "")
    registry.forget()
    yield
    monkeypatch.undo()
    registry.forget()


@pytest.fixture
def decoded(monkeypatch):
    """The images that the loader has decoded."""
    seen = []
    plain = transforms.decode_pixels
    monkeypatch.setattr(transforms, "decode_pixels", lambda data, decoder: (seen.append(data), plain(data, decoder))[1])
    return seen


def recipe_of(digits, **more):
    model = {"image": {"name": "cnn", "width": 8, "stages": 2, "freeze": True}, "text": {"name": "cbow", "width": 16}}
    return {
        "data": {"train": [{"corpus": str(digits)}], "image_size": 16, "augment": "none"},
        "model": {**model, "embed_dim": 16}, "batch": {"size": BATCH}, "steps": STEPS, "schedule": {"warmup": 0},
        "checkpoint": {"every": STEPS // 2}, "log": {"every": 1}, **more,
    }  # fmt: skip


def trained(recipe, name, *overrides, plugin=None):
    """Losses by step, and the finished weights."""
    Path(f"{name}.json").write_text(json.dumps(recipe))
    options = [] if plugin is None else ["--plugin", str(plugin)]
    words = ["train", f"{name}.json", "--run-dir", name, "--devices", "cpu:1", "--quiet", *overrides]
    assert main([*options, *words]) == 0
    lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(f"{name}/model.safetensors")


def same(one, other):
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def near(one, other):
    """Equal to rounding: a kernel may round a row by its place in the batch."""
    gaps = [(value.float() - other[1][name].float()).abs().max() for name, value in one[1].items()]
    return one[0] == pytest.approx(other[0], abs=1e-4) and max(gaps) < 1e-3


def test_a_frozen_image_tower_trains_the_same_and_decodes_each_image_once(digits, capfd, decoded):
    """A run that was cut goes on bit for bit, with a cache that it fills anew."""
    once = trained(recipe_of(digits), "once")
    assert f"{ON}, and each comes about {STEPS * BATCH // ROWS} times" in capfd.readouterr().err
    assert len(decoded) == BATCH + ROWS, "the first batch for the rehearsal, and then each image"
    decoded.clear()
    shutil.copytree("once", "cut")
    plain = trained(recipe_of(digits), "plain", "parallel.image_cache=off")
    assert "images are encoded" not in capfd.readouterr().err
    assert len(decoded) == BATCH + STEPS * BATCH
    assert near(once, plain)

    for name in ("meta.json", "model.safetensors", "checkpoints/step-00000012"):
        path = Path("cut") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path("cut/checkpoints/latest").write_text("step-00000006")
    assert same(once, trained(recipe_of(digits), "cut"))


@pytest.mark.parametrize(
    "changes",
    [("batch.micro=7",), pytest.param(("data.workers=1",), marks=pytest.mark.slow), ("loss=multitask",),
     ("loss=ce", "model.text=null", "data.mix.labels=1"), ("ema={decay: 0.9}", "model.image.freeze=all"),
     ("data.train=[{corpus: CORPUS, limit: 11}]",), ("data.augment_on=device", "data.mix.by=step")],
)  # fmt: skip
def test_the_cache_changes_no_result(digits, capfd, changes):
    """Rows that come twice in a step, micro-batches, workers, averages, other losses."""
    changes = [change.replace("CORPUS", str(digits)) for change in changes]
    once = trained(recipe_of(digits), "once", *changes)
    assert ON in capfd.readouterr().err
    assert near(once, trained(recipe_of(digits), "plain", "parallel.image_cache=off", *changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (("data.augment=basic",), "data.augment changes them from draw to draw"),
        (("data.augment={name: none, noise: 0.1}", "data.augment_on=device"), "data.augment changes them"),
        (("loss=supcon", "data.views=2", "model.text=null"), "the loss takes several views of each (data.views)"),
        (("steps=9",), "each comes only about 1.8 times"),
        (("loss=undeclared",), "a hook `extra` may read them"),
        (("loss=reader",), "'float' needs their pixels"),
        (("loss=divider",), "something besides the tower uses them: TypeError: unsupported operand"),
        (("loss=declared",), None),
        (("model.image.freeze=false",), ""),
        (("model.image.freeze={unlock: 1}",), ""),
    ],
)
def test_the_cache_is_off_where_it_would_be_wrong_or_slow(digits, capfd, changes, why):
    Path("parts.py").write_text(PLUGIN)
    trained(recipe_of(digits), "run", *changes, plugin="parts.py")
    told = capfd.readouterr().err
    assert (ON in told) == (why is None)
    assert (OFF in told) == bool(why)
    assert (why or "") in told


def test_features_over_the_limit_are_not_kept(digits, capfd, monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_BYTES", 4 * 16 * ROWS - 1)
    trained(recipe_of(digits), "run")
    assert f"{OFF} their tower is frozen: features of {ROWS} images take 7.5 KiB, more than 7.5 KiB" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("augment", ["basic", "none"])
def test_lit_keeps_its_images(digits, capfd, augment):
    changes = [f"data.train=[{{corpus: {digits}}}]", "data.image_size=16", f"data.augment={augment}", "eval=[]"]
    changes += ["model.image={name: cnn, width: 8, freeze: true}", "model.tokenizer=corpus", "model.context_length=16"]
    changes += ["model.text={name: cbow, width: 16}", "batch.size=24", "epochs=null", "steps=20", "-q"]
    assert main(["train", "finetune-lit", "--run-dir", "lit", "--devices", "cpu:1", *changes]) == 0
    assert (ON if augment == "none" else "data.augment changes them") in capfd.readouterr().err


def test_the_second_stage_of_supcon_keeps_its_images(digits, capfd):
    """Its linear head; the first stage learns the tower."""
    changes = [f"data.train=[{{corpus: {digits}}}]", "data.image_size=16", "eval=[]", "batch.size=24", "steps=6", "-q"]
    stages = "stages=[{}, {loss: ce, steps: 12, model: {image: {freeze: true}}, data: {views: 1, augment: none}}]"
    words = ["train", "digits-supcon", "--devices", "cpu:1", *changes, stages, "log.every=1", "schedule.warmup=0"]
    for name in ("auto", "off"):
        assert main([*words, "--run-dir", name, f"parallel.image_cache={name}"]) == 0
        assert capfd.readouterr().err.count(ON) == (name == "auto")
    weights = [load_file(f"{name}/model.safetensors") for name in ("auto", "off")]
    assert all((value - weights[1][name]).abs().max() < 1e-4 for name, value in weights[0].items())
