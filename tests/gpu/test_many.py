"""Several processes equal one: with NCCL on two cards; without a card, with gloo on the CPU at toy size."""

import pytest
import torch
from forked_ranks import on_ranks
from launching import done, recipe
from on_device import CARD, SMALL, at, curve
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CARD and torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
STRATEGIES = {"ddp": (), "fsdp2": ("parallel.strategy=fsdp2",), "ddp in parts": ("batch.micro=6",)}


@pytest.fixture(scope="module")
def train_on(tmp_path_factory, digits):
    """``train_on(devices, *words)``: the run directory of a training in processes of its own, each made once."""
    home, made = tmp_path_factory.mktemp("many"), {}

    def run(devices: int, *words: str):
        if (devices, words) not in made:
            folder = home / str(len(made))
            folder.mkdir()
            keys = {"precision": "fp32", "model": SMALL, "batch": {"size": 24}}
            file = recipe(folder, digits, steps=at(20, 3), every=at(20, 3), **keys)
            command = ("train", file, "--run-dir", folder / "run", "-q", *words)
            if CARD:
                done(*command, "--devices", devices)
            else:
                on_ranks(devices, *command)
            made[devices, words] = folder / "run"
        return made[devices, words]

    return run


@pytest.mark.parametrize("kind", at(list(STRATEGIES), ["fsdp2"]))
def test_two_processes_end_with_the_weights_of_one(kind, train_on, record_property):
    one, two = train_on(1), train_on(2, *STRATEGIES[kind])
    apart = (curve(two) / curve(one) - 1).abs().max().item()
    record_property("losses apart", apart)
    assert apart <= 1e-4
    alone, together = (load_file(run / "model.safetensors") for run in (one, two))
    gaps = {name: ((together[name] - x).norm() / x.norm().clamp(min=1e-3)).item() for name, x in alone.items()}
    record_property("weights apart", max(gaps.values()))
    assert {name: value for name, value in gaps.items() if not value <= 1e-4} == {}
