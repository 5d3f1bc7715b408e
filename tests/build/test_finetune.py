"""The recipes for fine-tuning on small stand-ins: what learns, what stays, resume, finished models, warnings."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from unicl_cli.build.data import build_data
from unicl_cli.build.load import load_model
from unicl_cli.build.lora import has_adapters
from unicl_cli.build.optimizer import recipe_warnings
from unicl_cli.cli import main
from unicl_cli.core import checkpoint
from unicl_cli.core.ema import Average
from unicl_cli.recipe.load import load, load_text


@pytest.fixture
def tune(digits, open_clip_folder, tmp_path, monkeypatch):
    """``tune("lora", "run", changes…)``: the shipped recipe on a tiny corpus from a tiny model; its run directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    shutil.copytree(open_clip_folder("clip"), "weights")

    def train(how, run="run", *changes, code=0):
        corpus = [
            f"data.train=[{{corpus: {digits}}}]",
            f"eval=[{{corpus: {digits}, every: 2, limit: 24, split: test}}]",
        ]
        size = [
            "data.image_size=64",
            "batch={size: 12}",
            "steps=4",
            "schedule.warmup=1",
            "optim.lr=1e-3",
            "log.every=1",
        ]
        model = ["model.arch=local-dir:weights"]
        if how == "lit":
            model = [
                "model.image={name: timm, model: resnet18, pretrained: false, freeze: true}",
                "model.text={name: transformer, width: 16, layers: 1, heads: 2}",
                *("model.tokenizer=corpus", "model.context_length=16", "model.embed_dim=16"),
            ]
        words = [*corpus, *size, *model, "checkpoint.every=2", *changes]
        assert main(["train", f"finetune-{how}", *words, "--run-dir", run, "-q"]) == code
        return Path(run)

    return train


def tensors(folder, name="model.safetensors"):
    return checkpoint.read_tensors(folder / name)


def begin(run):
    """The weights of the tiny model under the names of the Step."""
    return checkpoint.weights(load_model("local-dir:weights").step)


def moved(run, name="model.safetensors"):
    old = begin(run)
    new = tensors(run, name)
    return {key for key in new if key in old and not torch.equal(new[key], old[key])}


def last_checkpoint(run):
    return run / "checkpoints" / (run / "checkpoints/latest").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["open-clip", "layer-decay", "ema"])
def test_everything_learns(tune, how):
    run = tune(how)
    assert moved(run) == set(begin(run))


def test_a_locked_text_tower_stays(tune):
    run = tune("locked-text")
    changed = moved(run)
    assert changed
    assert all(name.startswith("model.image.") or name == "model.logit_scale" for name in changed)
    kept = checkpoint.read_tensors(last_checkpoint(run) / "optim.safetensors")
    assert not any(name.startswith("model.text.") for name in kept), "no state for what is frozen"


def test_lit_trains_the_text_tower_and_the_projection_of_the_locked_one(tune):
    run = tune("lit")
    first, last = tensors(run / "checkpoints/step-00000002"), tensors(run)
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert not any(name.startswith("model.image.trunk.") for name in changed), "BatchNorm's averages too"
    assert "model.image.proj.weight" in changed
    assert sum(name.startswith("model.text.") for name in changed) > 10


def test_lora_ends_in_plain_weights_and_goes_on_after_a_cut_to_the_same_bits(tune):
    run = tune("lora", "run", "ema={decay: 0.5}")
    final, average = tensors(run), tensors(run, "ema.safetensors")
    assert final.keys() == average.keys() == begin(run).keys(), "every reader works without peft"
    assert any(name.endswith("in_proj_weight") for name in moved(run))
    middle = run / "checkpoints/step-00000002"
    assert has_adapters(tensors(middle))
    assert all(
        has_adapters([name]) or "logit_scale" in name for name in checkpoint.read_tensors(middle / "optim.safetensors")
    )
    loaded = load_model(str(last_checkpoint(run)))
    assert all(torch.equal(x, average[name]) for name, x in checkpoint.weights(loaded.step).items())
    raw = load_model(str(last_checkpoint(run)), raw_weights=True)
    assert all(torch.equal(x, final[name]) for name, x in checkpoint.weights(raw.step).items())
    for path in ("meta.json", "model.safetensors", "ema.safetensors"):
        (run / path).unlink()
    shutil.rmtree(run / "checkpoints/step-00000004")
    (run / "checkpoints/latest").write_text("step-00000002")
    shutil.rmtree("weights")
    assert main(["train", str(run / "resolved.yaml"), "--run-dir", "run", "-q"]) == 0
    assert all(torch.equal(x, final[name]) for name, x in tensors(run).items()), "as if never cut"
    assert all(torch.equal(x, average[name]) for name, x in tensors(run, "ema.safetensors").items())


@pytest.mark.slow
def test_a_lora_run_is_mixed_and_started_from(tune, digits):
    run = tune("lora")
    old = begin(run)
    half = ["mix", "local-dir:weights", "run", "--alpha", "0.5", "-o", "half"]
    assert main(half) == 0
    mixed, new = tensors(Path("half")), tensors(run)
    name = "model.image.net.transformer.resblocks.0.mlp.c_fc.weight"
    torch.testing.assert_close(mixed[name], (old[name] + new[name]) / 2)
    again = tune("lora", "again", "model.init=run/checkpoints/step-00000004", "steps=1", "optim.lr=1e-12")
    torch.testing.assert_close(tensors(again)[name], new[name], atol=1e-6, rtol=0)


def test_a_dry_run_says_how_many_parameters_learn(tune, capfd):
    capfd.readouterr()
    tune("lora", "run", "--dry-run", "--json")
    lora = json.loads(capfd.readouterr().out)
    tune("open-clip", "run", "--dry-run", "--json")
    whole = json.loads(capfd.readouterr().out)
    assert whole["parameters_trained"] == whole["parameters"]
    assert lora["parameters_trained"] < 0.05 * lora["parameters"]
    assert lora["memory"]["optimizer"] == 8 * lora["parameters_trained"]
    assert lora["parameters"] == whole["parameters"] + lora["parameters_trained"] - 1, "adapters, and the scale"


def test_an_adapter_that_no_loss_reaches_is_an_error(tune, capfd, tmp_path):
    plugin = """
def odd():
    from unicl_cli.encoders.cbow import Cbow
    from torch import nn
    class Odd(nn.Module):
        width = 8
        def __init__(self):
            super().__init__()
            self.block = nn.ModuleDict({"used": nn.Linear(3, 8), "read": nn.Linear(8, 8)})
        units = property(lambda self: [self.block])
        def forward(self, x):
            x = self.block["used"](x.mean((2, 3)))
            return nn.functional.linear(x, self.block["read"].weight)
    return Odd()
PARTS = {"encoders": {"odd": odd}}
"""
    (tmp_path / "odd.py").write_text(plugin)
    words = ["--plugin", "odd.py", "train", "digits-unicl", "model.image={name: odd, lora: {rank: 2}}", "batch.size=12"]
    corpus = load(str(tune("locked-text", "r") / "resolved.yaml")).data.train[0].corpus
    capfd.readouterr()
    assert main([*words, f"data.train=[{{corpus: {corpus}}}]", "eval=[]", "--run-dir", "odd", "-q"]) == 2
    assert "model.image.lora: no loss reaches the adapter of model.image.trunk.block.read" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, {"image", "text"}),
        ({"image": {"freeze": True}, "text": {"lr_scale": 0.01}}, set()),
        ({"image": {"lora": {}}, "text": {"layer_decay": 0.7}}, set()),
        ({"image": {"freeze": {"unlock": 1}}, "text": {"freeze": "all"}}, {"image"}),
        ({"pretrained": False}, set()),
    ],
)
def test_a_rate_that_loses_trained_weights_is_warned_of(digits, changes, warned):
    model = {"name": "open_clip", "arch": "open_clip:ViT-B-32/openai", **changes}
    whole = {"data": {"train": [{"corpus": str(digits)}]}, "model": model, "batch": {"size": 12}, "steps": 500}
    asked = load_text(json.dumps(whole))
    said = recipe_warnings(asked, build_data(asked))
    assert {line.removeprefix("model.").split()[0] for line in said} == warned
    slow = load_text(json.dumps({**whole, "optim": {"lr": 1e-5}}))
    assert recipe_warnings(slow, build_data(slow)) == []


def test_a_tower_that_starts_from_a_runs_weights_is_warned_of_too(digits):
    model = {"image": "cnn", "text": "cbow", "init": "runs/old", "init_parts": ["image"]}
    whole = {"data": {"train": [{"corpus": str(digits)}]}, "model": model, "batch": {"size": 12}, "steps": 500}
    asked = load_text(json.dumps(whole))
    (line,) = recipe_warnings(asked, build_data(asked))
    assert line.startswith(
        "model.image starts from trained weights but learns at 0.0005; above 0.0001 they are usually lost"
    )


@pytest.mark.parametrize(("own", "warned"), [(1e-3, False), (5e-4, False), (2e-4, True)])
def test_a_rate_up_to_that_of_the_run_which_trained_a_tower_is_not_warned_of(digits, tmp_path, own, warned):
    model = {"image": "cnn", "text": "cbow"}
    whole = {"data": {"train": [{"corpus": str(digits)}]}, "model": model, "batch": {"size": 12}, "steps": 500}
    (tmp_path / "resolved.yaml").write_text(json.dumps({**whole, "optim": {"lr": own}}))
    (tmp_path / "meta.json").write_text("{}")
    asked = load_text(json.dumps({**whole, "model": {**model, "init": str(tmp_path)}, "optim": {"lr": 5e-4}}))
    said = recipe_warnings(asked, build_data(asked))
    assert [line.split()[0] for line in said] == (["model.image", "model.text"] if warned else [])


def test_an_average_keeps_trained_weights_alone_and_warms_up_as_tensorflows():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].weight.requires_grad = False
    average = Average(module, 0.9, warmup=True)
    assert average.trained.keys() == {"0.bias", "1.weight", "1.bias"}
    start = module[1].weight.detach().clone()
    with torch.no_grad():
        module[1].weight.add_(1)
        module[0].weight.add_(1)
        module[1].running_mean.add_(1)
    average.update(1)
    torch.testing.assert_close(average.values["1.weight"], start + 1 - 2 / 11)
    assert torch.equal(average.values["0.weight"], module[0].weight), "what is frozen is the model's own"
    assert torch.equal(average.values["1.running_mean"], module[1].running_mean)
    before = average.values["1.weight"].clone()
    average.update(1000)
    torch.testing.assert_close(average.values["1.weight"], 0.9 * before + 0.1 * module[1].weight)
    plain = Average(module, 0.9)
    with torch.no_grad():
        module[1].weight.add_(1)
    plain.update(1)
    torch.testing.assert_close(plain.values["1.weight"], module[1].weight - 0.9)
