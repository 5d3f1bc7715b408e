"""Switches of speed: what they turn off, and that they change no number."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicl_cli.build.model import build_step
from unicl_cli.cli import main
from unicl_cli.core.switches import align_conv_weights, compile_units
from unicl_cli.data.tokenizers import clip_tokenizer
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump, recipe_hash

SWITCHES = {"pack_texts": False, "text_cache": "off", "image_cache": "off", "channels_last": False, "compile": True}


def recipe_of(digits, *, image="resnet18", freeze=False, steps=4, **parallel):
    whole = {
        "data": {"train": [{"corpus": str(digits)}], "image_size": 32, "augment": "none"},
        "model": {
            "image": {"name": "timm", "model": image} if image != "cnn" else {"name": "cnn", "width": 8},
            "text": {"name": "transformer", "width": 16, "layers": 2, "heads": 2, "freeze": freeze},
            "embed_dim": 16,
        },
        "batch": {"size": 12},
        "steps": steps,
        "checkpoint": {"every": 30},
        "log": {"every": 1},
        "schedule": {"warmup": 0},
        "parallel": parallel,
    }
    return load_text(json.dumps(whole))


def step_of(recipe):
    return build_step(recipe, clip_tokenizer, (), 1)[0]


def test_switches_change_no_numbers_and_no_hash(digits):
    others = [recipe_of(digits, **{key: value}) for key, value in SWITCHES.items()]
    assert {recipe_hash(other) for other in others} == {recipe_hash(recipe_of(digits))}


def test_what_is_switched_off_is_off(digits):
    on, off = step_of(recipe_of(digits)), step_of(recipe_of(digits, pack_texts=False, channels_last=False))
    assert (on.model.text.trunk.traits.packs, on.model.image.trunk.traits.channels_last) == (True, True)
    assert (off.model.text.trunk.traits.packs, off.model.image.trunk.traits.channels_last) == (False, False)
    assert not step_of(recipe_of(digits, image="vit_tiny_patch16_224")).model.image.trunk.traits.channels_last


@pytest.mark.parametrize("model", ["resnet10t", "resnet14t"])  # basic blocks and bottlenecks
def test_channels_last_gives_the_same_value_and_gradients(digits, model):
    found = []
    for wanted in (True, False):
        tower = step_of(recipe_of(digits, image=model, channels_last=wanted)).double().train().model.image.trunk
        seen = []
        tower.model.conv1.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(out.stride(1)))
        out = tower(torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in tower.parameters())])
        assert (seen[0] == 1) is wanted
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_aligned_weights_get_gradients_in_their_own_layout_and_the_same_values(digits):
    """Otherwise autograd copies each gradient, and DDP warns of strides that do not match."""
    towers = [step_of(recipe_of(digits)).train() for _ in range(2)]
    align_conv_weights(towers[0])
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for step in towers:
        step.model.image.trunk(images).square().mean().backward()
    aligned, plain = (dict(step.model.image.trunk.named_parameters()) for step in towers)
    assert all(p.grad.stride() == p.stride() for p in aligned.values())
    assert any(p.grad.stride() != p.stride() for p in plain.values())  # 1 x 1 kernels: what DDP warns of
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in aligned.values() if p.ndim == 4)
    for name, p in plain.items():
        torch.testing.assert_close(aligned[name].grad, p.grad, rtol=1e-5, atol=1e-7)


@pytest.fixture(autouse=True)
def empty_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])


def trained(recipe, name):
    """Losses by step, and the finished weights."""
    Path(f"{name}.yaml").write_text(dump(recipe))
    assert main(["train", f"{name}.yaml", "--run-dir", name, "--devices", "cpu:1", "--quiet"]) == 0
    lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(f"{name}/model.safetensors")


def test_a_frozen_text_tower_is_looked_up_resumed_and_switched_off(digits, capfd):
    """The losses of encoding, and a run that was cut goes on bit for bit with a bank that begins anew."""
    options = {"image": "cnn", "freeze": True, "steps": 60}
    losses, weights = trained(recipe_of(digits, **options), "looked-up")
    assert "texts are encoded once and looked up" in capfd.readouterr().err
    expected, _ = trained(recipe_of(digits, text_cache="off", **options), "encoded")
    assert "looked up" not in capfd.readouterr().err
    assert losses == pytest.approx(expected, abs=1e-4)

    shutil.copytree("looked-up", "cut")
    for name in ("meta.json", "model.safetensors", "checkpoints/step-00000060"):
        path = Path("cut") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path("cut/checkpoints/latest").write_text("step-00000030")
    again, resumed = trained(recipe_of(digits, **options), "cut")
    assert again == losses
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_texts_that_come_seldom_are_encoded(digits, capfd):
    trained(recipe_of(digits, image="cnn", freeze=True, steps=3), "short")
    assert "looked up" not in capfd.readouterr().err


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers_under_the_same_names():
    """Needs a C++ compiler, and minutes; later batches of other sizes compile nothing."""
    torch.manual_seed(0)
    tower = TextTransformer(40, 16, 39, width=16, layers=3, heads=2, quick_gelu=False, eps=1e-5).double()
    names = list(tower.state_dict())
    batches = [torch.randint(1, 4, (rows, 16)) for rows in (60, 50, 70)]
    for tokens in batches:
        tokens[torch.arange(len(tokens)), torch.randint(2, 16, (len(tokens),))] = 39

    def gradients(tokens):
        tower.zero_grad()
        out = tower(tokens)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in tower.parameters())]

    expected = [gradients(tokens) for tokens in batches]
    assert compile_units(tower) == 3
    first = gradients(batches[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        later = [gradients(tokens) for tokens in batches[1:]]
    for got, wanted in zip([first, *later], expected, strict=True):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert list(tower.state_dict()) == names
