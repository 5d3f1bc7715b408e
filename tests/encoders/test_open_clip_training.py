"""Training from open_clip's weights: parts taken, parts that learn, a run that no longer needs those weights."""

import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from forked_ranks import on_ranks

from unicl_cli.build.init import load_init
from unicl_cli.build.load import load_model
from unicl_cli.build.model import build_step
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.cli import main
from unicl_cli.contracts import Batch
from unicl_cli.core import checkpoint
from unicl_cli.core.loop import Step
from unicl_cli.core.towers import change_traits
from unicl_cli.data.tokenizers import clip_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.losses.unicl import UniCL
from unicl_cli.recipe.load import load_text

TEXT = {"name": "transformer", "width": 32, "layers": 2, "heads": 2}
KINDS = ("clip", "custom", "siglip", "timm", "resnet", "hf")


@pytest.fixture
def recipe(digits):
    def make(arch, size=64, **model):
        whole = {
            "data": {"train": [{"corpus": str(digits)}], "image_size": size, "augment": "none"},
            "model": {"name": "open_clip", "arch": f"local-dir:{arch}", **model},
            "batch": {"size": 12, "micro": 4},
            "steps": 4,
            "optim": {"lr": 1e-3},
            "schedule": {"warmup": 0},
            "checkpoint": {"every": 2},
        }
        return load_text(json.dumps(whole))

    return make


def built(recipe, chunks=1):
    return build_step(recipe, lambda: pytest.fail("the model has its own tokenizer"), (), chunks)


def batch_of(model, tokenizer, rows=6):
    torch.manual_seed(1)
    texts = ["a photo of a cat.", "a dog", "a bird in a photo of a dog"]
    return Batch(
        images=torch.randint(256, (rows, 3, *model.image.traits.frame.size), dtype=torch.uint8),
        tokens=tokenizer(texts),
        text_index=torch.arange(rows) % 3,
        labels=torch.arange(rows) % 3,
        keys=torch.arange(rows) % 3,
        draws=torch.arange(rows),
        extra={},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_tower_learns_and_starts_where_its_weights_are(open_clip_folder, recipe, kind):
    size = 160 if kind in ("siglip", "timm") else 64
    step, tokenizer = built(recipe(open_clip_folder(kind), size))
    loaded = load_model(f"local-dir:{open_clip_folder(kind)}")
    assert all(torch.equal(x, loaded.step.state_dict()[name]) for name, x in step.state_dict().items())
    assert float(step.model.scale().detach()) == pytest.approx(math.exp(3))
    step.train()
    step(batch_of(step.model, tokenizer))["loss"].backward()
    idle = [name for name, p in step.named_parameters() if p.grad is None]
    assert idle in (
        [],
        ["model.text.net.transformer.pooler.dense.weight", "model.text.net.transformer.pooler.dense.bias"],
    )
    assert len(step.model.image.units) >= 2
    assert len(step.model.text.units) == 2


@pytest.mark.parametrize("kind", ["clip", "hf"])
def test_micro_batches_have_the_value_and_gradients_of_the_whole(open_clip_folder, recipe, kind):
    found = []
    for chunks in (1, 4):
        step, tokenizer = built(recipe(open_clip_folder(kind)), chunks)
        step.double().train()
        torch.manual_seed(0)
        if kind == "hf":
            step.model.text.eval()  # its dropout draws other numbers for other chunks
        loss = step(batch_of(step.model, tokenizer))["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in step.parameters() if p.grad is not None)])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-10, rtol=1e-7)


def test_parts_can_be_frozen_or_learn_slower(open_clip_folder, recipe):
    options = {"image": {"freeze": True}, "text": {"lr_scale": 0.1}, "learn_scale": False}
    step, _ = built(recipe(open_clip_folder("clip"), **options))
    trained = {name for name, p in step.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("model.text.") for name in trained)
    groups = build_optimizer(recipe(open_clip_folder("clip"), **options), step).param_groups
    assert {group["lr_scale"] for group in groups} == {0.1}
    step.train()
    assert not step.model.image.training
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(step.model.text.net.positional_embedding) in undecayed
    assert id(step.model.text.net.token_embedding.weight) in undecayed


@pytest.mark.parametrize(("kind", "size"), [("clip", 96), ("siglip", 96), ("timm", 64)])
def test_another_image_size_interpolates_the_positions(open_clip_folder, recipe, tmp_path, kind, size):
    step, tokenizer = built(recipe(open_clip_folder(kind), size))
    assert step.model.image.traits.frame.size == (size, size)
    step.eval()
    with torch.no_grad():
        out = step(batch_of(step.model, tokenizer))
    assert out["loss"].isfinite()
    step.model.text.store(tmp_path)
    kept = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]["image_size"]
    assert kept == [size, size]


@pytest.fixture
def trained(open_clip_folder, recipe, tmp_path, monkeypatch):
    """``trained(kind)``: a finished run of 4 steps whose first weights are gone."""
    from unicl_cli.recipe.text import dump

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unicl"])

    def make(kind):
        shutil.copytree(open_clip_folder(kind), "weights")
        Path("r.yaml").write_text(dump(recipe("weights")))
        assert main(["train", "r.yaml", "--run-dir", "runs/r", "-q"]) == 0
        shutil.rmtree("weights")
        return Path("runs/r")

    return make


@pytest.mark.parametrize("kind", ["clip", pytest.param("hf", marks=pytest.mark.slow)])
def test_a_run_is_loaded_and_continued_without_the_first_weights(trained, kind):
    run = trained(kind)
    final = checkpoint.read_tensors(run / "model.safetensors")
    loaded = load_model("runs/r")
    assert all(torch.equal(x, final[name]) for name, x in checkpoint.weights(loaded.step).items())
    assert loaded.transform.frame is not None, "the model's own preprocessing"
    assert loaded.tokenizer(["a photo of a cat."]).shape[1] <= 24
    (run / "meta.json").unlink()
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoints/step-00000004")
    (run / "checkpoints/latest").write_text("step-00000002")
    assert main(["train", "r.yaml", "--run-dir", "runs/r", "-q"]) == 0
    again = checkpoint.read_tensors(run / "model.safetensors")
    assert all(torch.equal(x, final[name]) for name, x in again.items()), "as if never cut"


CLIP_TOKENS = cache(clip_tokenizer)


def own(digits, image, text, size=160):
    """A model of our own with CLIP's tokens, its tokenizer and recipe."""
    whole = {
        "data": {"train": [{"corpus": str(digits)}], "image_size": size},
        "model": {"tokenizer": "clip", "context_length": 24, "embed_dim": 24, "image": image, "text": text},
        "batch": {"size": 12},
        "steps": 1,
    }
    recipe = load_text(json.dumps(whole))
    return *build_step(recipe, lambda: CLIP_TOKENS(24), (), 1), recipe


def test_the_same_towers_of_our_own_take_over_open_clips_weights(open_clip_folder, digits):
    step, tokenizer, recipe = own(digits, {"name": "timm", "model": "test_convnext"}, TEXT)
    theirs = load_model(f"local-dir:{open_clip_folder('timm')}")
    pixels = theirs.step.model.image.traits
    change_traits(step.model.image.trunk, mean=pixels.mean, std=pixels.std)
    for name in ("pixel_mean", "pixel_std"):
        getattr(step.model, name).copy_(getattr(theirs.step.model, name))
    said = load_init(step, recipe, f"local-dir:{open_clip_folder('timm')}", tokenizer)
    assert said.startswith("image tower and text tower and logit scale of local-dir:")
    step.eval()
    pixels = torch.rand(2, 3, 160, 160)
    tokens = tokenizer(["a photo of a cat.", "a dog"])
    with torch.no_grad():
        torch.testing.assert_close(
            step.model.image(pixels)[1], theirs.step.model.image(pixels)[1], atol=1e-5, rtol=1e-5
        )
        got, expected = (each.encode_text(tokens).embed for each in (step.model, theirs.step.model))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(step.model.logit_scale, theirs.step.model.logit_scale)


def test_a_tower_that_is_another_is_left_and_named(open_clip_folder, digits):
    step, tokenizer, recipe = own(digits, "cnn", TEXT)
    before = step.model.image.proj.weight.clone()
    said = load_init(step, recipe, f"local-dir:{open_clip_folder('clip')}", tokenizer)
    assert said.startswith("text tower (not the image tower, which differs) of ")
    assert torch.equal(step.model.image.proj.weight, before)
    for wrong in ({"heads": 4}, {"quick_gelu": True}, {"layers": 3}):
        step, tokenizer, recipe = own(digits, "cnn", {**TEXT, **wrong})
        with pytest.raises(UniclError, match=r"model\.init: no tower of local-dir:.* is the same"):
            load_init(step, recipe, f"local-dir:{open_clip_folder('clip')}", tokenizer)


def test_timms_form_of_clips_vit_takes_over_open_clips(open_clip_folder, digits):
    folder = open_clip_folder("clip")
    args = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 16}
    image = {"name": "timm", "model": "vit_base_patch16_clip_224", "args": args}
    step, tokenizer, recipe = own(digits, image, TEXT, 64)
    assert load_init(step, recipe, f"local-dir:{folder}", tokenizer).startswith("image tower and text tower")
    theirs = load_model(f"local-dir:{folder}").step.model
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    step.eval()
    with torch.no_grad():
        got, expected = (each.encode_image(images).embed for each in (step.model, theirs))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_model_of_open_clip_starts_from_a_run_of_the_same(trained, recipe, open_clip_folder):
    run = trained("clip")
    step, tokenizer = built(recipe(open_clip_folder("clip")))
    assert load_init(step, recipe(open_clip_folder("clip")), str(run), tokenizer) == "all of runs/r"
    final = checkpoint.read_tensors(run / "model.safetensors")
    assert torch.equal(step.state_dict()["model.image.net.proj"], final["model.image.net.proj"])
    folder, other = open_clip_folder("clip"), Step(step.model, UniCL())
    assert load_init(other, recipe(folder), f"local-dir:{folder}", tokenizer).startswith("all weights of local-dir:")


@pytest.mark.slow
def test_two_sharded_processes_train_as_one_does(open_clip_folder, recipe, tmp_path):
    from unicl_cli.recipe.text import dump

    (tmp_path / "r.yaml").write_text(dump(recipe(open_clip_folder("clip"))))
    found = []
    for count, strategy in ((1, "ddp"), (2, "fsdp2")):
        options = ("optim.name=sgd", "optim.lr=0.01", f"parallel.strategy={strategy}")
        on_ranks(count, "train", tmp_path / "r.yaml", *options, "--run-dir", tmp_path / strategy, "-q")
        found.append(checkpoint.read_tensors(tmp_path / strategy / "model.safetensors"))
    for name, x in found[0].items():
        torch.testing.assert_close(
            found[1][name], x, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
