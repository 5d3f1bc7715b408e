"""Frozen towers, adapters, layers and averages under two processes: what one trains, sharded or not.

As a script this file is the worker: ``test_tuned_processes.py CORPUS WEIGHTS FOLDER``.
"""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from forking import complete
from torch import nn

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.lora import MARK
from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.core import checkpoint
from unicl_cli.core.dist import barrier, full_tensor, rank, shard, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.loop import Plan, fit, freeze_idle
from unicl_cli.core.schedule import lr_at
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.process import end_worker
from unicl_cli.recipe.load import load_text

IMAGE = {"name": "cnn", "width": 8, "stages": 2}
TEXT = {"name": "transformer", "width": 16, "layers": 3, "heads": 2}
LORA = {"lora": {"rank": 2}}
CASES = {  # name -> changes of the towers, and of the recipe
    "locked image": ({"freeze": True}, {}, {}),
    "locked image with its projection": ({"freeze": "all"}, {}, {}),
    "locked text": ({}, {"freeze": True}, {}),
    "locked but for the last block": ({"freeze": {"unlock": 1}}, {"freeze": {"unlock": 1}}, {}),
    "locked in micro-batches": ({"freeze": True}, {"freeze": {"unlock": 2}}, {"batch": {"size": 12, "micro": 2}}),
    "lora": ({"freeze": True}, LORA, {}),
    "lora in micro-batches": ({}, LORA, {"batch": {"size": 12, "micro": 2}}),
    "layer decay": ({"layer_decay": 0.5}, {"layer_decay": 0.7}, {}),
    "groups": ({}, {}, {"groups": [{"match": "*.bias", "freeze": True}, {"match": "model.text.*", "lr_scale": 0.3}]}),
}
STRATEGIES = ("ddp", "fsdp2")


def recipe_of(corpus, weights, name):
    data = {"train": [{"corpus": str(corpus)}], "image_size": 16, "augment": {"name": "shift", "noise": 0.1}}
    image, text, more = CASES.get(name, ({}, {}, {}))
    model = {"image": IMAGE | image, "text": TEXT | text, "embed_dim": 16, "context_length": 24}
    if name == "open_clip lora":
        model = {"name": "open_clip", "arch": f"local-dir:{weights}", "image": LORA, "text": LORA}
        data["image_size"] = 64
    optim = {"name": "sgd", "lr": 0.1, "groups": more.get("groups", [])}
    whole = {"data": data, "model": model, "batch": more.get("batch", {"size": 12}), "steps": 4, "optim": optim}
    return load_text(json.dumps(whole))


class Silent:
    def __init__(self):
        self.rows = {}

    def log(self, step, values):
        self.rows[step] = (values["loss"], values["grad_norm"])

    def close(self):
        pass


def trained(corpus, weights, name, strategy):
    """Weights, average, losses and gradient norms of one case in float64 on this rank."""
    recipe = recipe_of(corpus, weights, name)
    micro, local = recipe.batch.micro, recipe.batch.size // world_size()
    accelerator = start_accelerator("fp32", "cpu")
    data = build_data(recipe)
    step, tokenizer = build_step(
        recipe, lambda: build_tokenizer(recipe, data), data.classes, 1 if micro == "auto" else -(-local // micro)
    )
    add_adapters(recipe, step)
    step.double().train()
    for key, parameter in step.named_parameters():
        if f"{MARK}B" in key:
            nn.init.constant_(parameter, 0.02)
    batches = partial(stream_batches, recipe, data, tokenizer)
    freeze_idle(step, next(batches(step, 0, 1, 0))[1], accelerator)
    frozen = {key for key, p in step.named_parameters() if not p.requires_grad}
    step = shard(step) if strategy == "fsdp2" and world_size() > 1 else accelerator.prepare(step)
    optimizer = accelerator.prepare(build_optimizer(recipe, step))
    average = Average(step, 0.5, warmup=True)
    lr = partial(lr_at, name="cosine", peak=recipe.optim.lr, warmup=1, steps=4, floor=0.0)
    sink, plan = Silent(), Plan(steps=4, seed=0, lr=lr, log_every=1)
    fit(step, batches(step, 0, 4, 0), optimizer, plan, accelerator, sink, after=average.update)
    mean = {key: full_tensor(x) for key, x in average.values.items()}
    return {"weights": checkpoint.weights(step), "average": mean, "rows": sink.rows, "frozen": frozen}


NAMES = [*CASES, "open_clip lora"]


@pytest.fixture(scope="module")
def alone(digits, open_clip_folder):
    return {name: trained(digits, open_clip_folder("clip"), name, "ddp") for name in NAMES}


@pytest.fixture(scope="module")
def together(digits, open_clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [__file__, str(digits), str(open_clip_folder("clip")), str(folder)]
    done = complete([*launch, *words], timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_tune_what_one_tunes(alone, together, strategy):
    far = {}
    for name, one in alone.items():
        two = together[f"{name}, {strategy}"]
        assert one["frozen"] == two["frozen"], name
        for kind in ("weights", "average"):
            assert one[kind].keys() == two[kind].keys()
            far[f"{name}: {kind}"] = max((one[kind][n] - x).abs().max().item() for n, x in two[kind].items())
        far[f"{name}: logged"] = max(
            abs(a - b) for s in one["rows"] for a, b in zip(one["rows"][s], two["rows"][s], strict=True)
        )
    assert {name: d for name, d in far.items() if d > 1e-12} == {}


@pytest.mark.slow
def test_what_is_frozen_has_not_moved_and_the_rest_has(alone, digits, open_clip_folder):
    for name, one in alone.items():
        recipe = recipe_of(digits, open_clip_folder("clip"), name)
        data = build_data(recipe)
        step, _ = build_step(recipe, lambda r=recipe, d=data: build_tokenizer(r, d), data.classes, 1)
        add_adapters(recipe, step)
        before = checkpoint.weights(step.double())
        frozen = [key for key in one["frozen"] if not torch.equal(before[key], one["weights"][key])]
        assert frozen == [], name
        moved = [key for key in before if not torch.equal(before[key], one["weights"][key])]
        assert moved, name


if __name__ == "__main__":
    target, results = Path(sys.argv[3]), {}
    for how in STRATEGIES:
        for case in NAMES:
            results[f"{case}, {how}"] = trained(Path(sys.argv[1]), Path(sys.argv[2]), case, how)
    barrier()
    if rank() == 0:
        torch.save(results, target / "results.pt")
    torch.distributed.destroy_process_group()
    end_worker(0)
