"""Trainings on a card beside those on the CPU: equal, resumable, finite; without a card, few steps on the CPU."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from on_device import CARD, SMALL, at, curve, marks, metrics, needs_card, train
from safetensors.torch import load_file

pytestmark = marks
STEPS = at(300, 8)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def curves(tmp_path_factory, digits) -> dict[str, torch.Tensor]:
    """The losses of the same steps in bfloat16 and in float32."""
    home = tmp_path_factory.mktemp("curves")
    runs = {name: train(home / name, digits, precision=name, steps=STEPS) for name in ("bf16", "fp32")}
    return {name: curve(run) for name, run in runs.items()} | {"norms": curve(runs["bf16"], "grad_norm")}


def test_twenty_steps_in_float32_equal_those_of_the_cpu(tmp_path, digits, record_property):
    steps = at(20, 4)
    here = train(tmp_path / "here", digits, steps=steps)
    there = train(tmp_path / "there", digits, f"loss.tile={at('auto', 8)}", cpu=True, steps=steps)
    apart = (curve(here) / curve(there) - 1).abs().max().item()
    record_property("losses apart", apart)
    assert apart <= 1e-4
    one, other = weights(here), weights(there)
    gaps = {name: ((one[name] - x).norm() / x.norm().clamp(min=1e-3)).item() for name, x in other.items()}
    record_property("weights apart", max(gaps.values()))
    assert {name: value for name, value in gaps.items() if not value <= 1e-4} == {}


def test_a_deterministic_run_that_was_cut_continues_to_the_same_bits(tmp_path, digits):
    how = {"steps": at(20, 4), "every": at(10, 2), "deterministic": True, "precision": at("bf16", "fp32")}
    whole = train(tmp_path / "whole", digits, **how)
    cut = tmp_path / "cut" / "run"
    shutil.copytree(whole, cut)
    last = sorted((cut / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(last)
    for name in ("meta.json", "model.safetensors", "checkpoints/latest"):
        (cut / name).unlink()
    train(tmp_path / "cut", digits, **how)
    one, other = weights(whole), weights(cut)
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_the_curve_in_bfloat16_follows_the_one_in_float32(curves, record_property):
    apart = (curves["bf16"] / curves["fp32"] - 1).abs()
    record_property("mean difference", apart.mean().item())
    assert apart.mean() < 0.02
    assert curves["bf16"][-1] < curves["bf16"][0]


def test_no_step_in_bfloat16_gives_anything_but_numbers(curves):
    assert len(curves["bf16"]) == STEPS
    assert bool(curves["bf16"].isfinite().all())
    assert bool(curves["norms"].isfinite().all())


@pytest.mark.parametrize("loss", ["clip", "supcon", "ce", "multitask"])
def test_the_other_losses_train_too(tmp_path, digits, loss):
    if not CARD and loss != "supcon":
        pytest.skip("needs a GPU: on the CPU other tests train these")
    views = {"image_size": 16, "augment": {"name": "simclr"}, "views": 2, "train": [{"corpus": str(digits)}]}
    more = {"loss": loss, "data": views} if loss == "supcon" else {"loss": loss}
    run = train(tmp_path, digits, "data.augment_on=device", steps=at(30, 3), precision="auto", **more)
    assert bool(curve(run).isfinite().all())


@needs_card
def test_compiled_blocks_with_texts_of_changing_length_follow_the_plain_ones(tmp_path, digits):
    plain = train(tmp_path / "plain", digits, steps=12)
    compiled = train(tmp_path / "compiled", digits, "parallel.compile=true", steps=12)
    assert (curve(compiled) / curve(plain) - 1).abs().max() < 1e-3


@needs_card
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_with_recomputed_parts_and_blocks(tmp_path, digits, precision):
    run = train(
        tmp_path, digits, "batch.micro=8", "parallel.grad_checkpoint=true", steps=40, precision=precision, model=SMALL
    )
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]
    assert json.loads((run / "status.json").read_text())["state"] == "done"
