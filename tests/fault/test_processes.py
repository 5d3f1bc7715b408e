"""Two and three processes train what one trains, sharded or not, and go on with what any number of them has saved.

As a script this file is the worker of the float64 cases: ``test_processes.py CORPORA FOLDER``.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from launching import begun, done, ended, here, max_difference

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.model import build_step
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import bare, barrier, rank, shard, world_size
from unicl_cli.core.loop import Plan, fit, freeze_idle
from unicl_cli.core.schedule import lr_at
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.jobs.train.image_cache import encode_all
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.process import end_worker
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump

MODEL = {
    "image": {"name": "cnn", "width": 8, "stages": 2},
    "text": {"name": "transformer", "width": 16, "layers": 2, "heads": 2},
    "embed_dim": 16,
    "tokenizer": "corpus",
    "context_length": 24,
}
FROZEN = {**MODEL["image"], "freeze": True}
CAPTIONER = {"name": "captioner", "width": 16, "layers": 2, "heads": 2, "drop_image": 0.3}
CASES = {  # name -> changes of the recipe
    "unicl": {},
    "unicl micro": {"batch": {"size": 12, "micro": 3}},
    "unicl text_hash": {"data": {"caption_targets": "text_hash"}},
    "unicl tile": {"loss": {"name": "unicl", "tile": 3}},
    "unicl adamw": {"optim": {"name": "adamw", "lr": 1e-3}},
    "unicl cbow": {"model": {"text": {"name": "cbow", "width": 16}}},
    "unicl packed": {"batch": {"size": 120}},  # so many texts that a rank packs them
    "unicl looked up": {"model": {"text": {**MODEL["text"], "freeze": True}}},
    "unicl looked up micro": {"model": {"text": {**MODEL["text"], "freeze": True}}, "batch": {"size": 12, "micro": 2}},
    "unicl images once": {"model": {"image": FROZEN}, "data": {"augment": "none"}},
    "ce images once micro": {
        "loss": "ce",
        "model": {"image": FROZEN, "text": None},
        "data": {"augment": "none", "mix": {"labels": 1.0}},
        "batch": {"size": 12, "micro": 2},
    },
    "clip": {"loss": "clip"},
    "ce": {"loss": "ce", "model": {"text": None}, "data": {"mix": {"labels": 1.0}}},
    "ce on a mix": {"loss": "ce", "model": {"text": None}},
    "multitask": {"loss": "multitask"},
    "multitask micro": {"loss": "multitask", "batch": {"size": 12, "micro": 1}},
    "supcon": {"loss": "supcon", "model": {"text": None}, "data": {"views": 2}},
    "captioner": {"loss": CAPTIONER, "model": {"text": None}},
    "captioner micro": {"loss": CAPTIONER, "model": {"text": None}, "batch": {"size": 12, "micro": 3}},
    "bow": {"loss": "bow", "model": {"text": None}},
    "bow sigmoid": {"loss": {"name": "bow", "activation": "sigmoid"}, "model": {"text": None}},
    "sets": {"loss": {"name": "unicl", "weights": {"colour": 2.0}, "class_columns": {}}},
    "sets micro": {"batch": {"size": 12, "micro": 3}, "data": {"text_for_labelled": "both"}},
}
STRATEGIES = ("ddp", "fsdp2")
OF_THREE = (
    *("unicl", "unicl micro", "unicl packed", "unicl looked up", "unicl images once", "multitask micro", "supcon"),
    *("captioner", "bow", "bow sigmoid", "sets micro", "unicl cbow", "clip", "ce"),
)
"""What differs where three processes share a batch: how rows, texts and views are cut, gathered and counted."""


def recipe_of(corpora, name, **more):
    corpus = Path(corpora) / ("sets" if name.startswith("sets") else "digits")
    data = {"train": [{"corpus": str(corpus)}], "image_size": 16, "augment": {"name": "shift", "noise": 0.1}}
    whole = {
        "data": data, "model": MODEL, "batch": {"size": 12}, "steps": 6, "schedule": {"warmup": 2},
        "optim": {"name": "sgd", "lr": 0.1}, **more,
    }  # fmt: skip
    for key, value in CASES[name].items():
        whole[key] = {**whole[key], **value} if key in ("data", "model") else value
    return load_text(yaml.safe_dump(json.loads(json.dumps(whole))))


class Losses:
    """A sink that keeps everything."""

    def __init__(self):
        self.rows = {}

    def log(self, step, values):
        self.rows[step] = {k: v for k, v in values.items() if k not in ("img_s", "data_frac", "mem_gb", "eta_s")}

    def close(self):
        pass


class Training:
    """One case in float64 on this rank, wrapped as asked for."""

    def __init__(self, corpus, name, strategy):
        self.recipe = recipe_of(corpus, name)
        micro = self.recipe.batch.micro
        chunks = 1 if micro == "auto" else -(-(self.recipe.batch.size // world_size()) // micro)
        self.accelerator = start_accelerator("fp32", "cpu")
        self.data = build_data(self.recipe)
        tokenizer = build_tokenizer(self.recipe, self.data)
        facts = {"label_sets": self.data.label_sets, "shows_captions": self.data.shows_captions}
        step, self.tokenizer = build_step(self.recipe, lambda: tokenizer, self.data.classes, chunks, **facts)
        step.double().train()
        freeze_idle(step, next(self.batches(step, 0, 1))[1], self.accelerator)
        sharded = strategy == "fsdp2" and world_size() > 1
        self.step = shard(step) if sharded else self.accelerator.prepare(step)
        self.optimizer = self.accelerator.prepare(build_optimizer(self.recipe, self.step))
        bare(self.step).model.remember_texts()  # where the tower is frozen
        if "images once" in name and world_size() > 1:  # compared with one process that encodes at each step
            rows = self.recipe.batch.size // world_size() if micro == "auto" else micro
            self.data = encode_all(self.recipe, self.data, self.step, rows, self.accelerator)

    def batches(self, step, start, end):
        return stream_batches(self.recipe, self.data, self.tokenizer, step, start, end, 0)

    def run(self, start=0, end=6):
        lr = partial(lr_at, name="cosine", peak=self.recipe.optim.lr, warmup=2, steps=6, floor=0.0)
        sink, plan = Losses(), Plan(steps=end, seed=0, lr=lr, log_every=1)
        batches = self.batches(self.step, start, end)
        fit(self.step, batches, self.optimizer, plan, self.accelerator, sink, after=lambda step: None)
        return {"weights": checkpoint.weights(self.step), "rows": sink.rows}

    def save(self, root, step):
        return checkpoint.save(root, self.step, self.optimizer, {"step": step}, keep=1)

    def load(self, folder):
        checkpoint.load_weights(self.step, checkpoint.read_tensors(folder / checkpoint_files.MODEL), str(folder))
        checkpoint.load_optimizer(self.step, self.optimizer, folder / checkpoint_files.OPTIM)


def everything(corpus, folder):
    """The cases on this rank; checkpoints of the first three steps go out, those of one process come in."""
    results = {}
    names = OF_THREE if os.environ["WORLD_SIZE"] == "3" else CASES
    for strategy in STRATEGIES:
        for name in names:
            results[f"{name}, {strategy}"] = Training(corpus, name, strategy).run()
        first = Training(corpus, "unicl adamw", strategy)
        first.run(0, 3)
        first.save(folder / f"out-{strategy}", 3)
        second = Training(corpus, "unicl adamw", strategy)
        second.load(folder / "in" / "step-00000003")
        results[f"continued, {strategy}"] = second.run(3, 6)
        barrier()
    return results


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, digits):
    """A folder with two corpora: digits, and shapes with label sets and captions of their own."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "digits").symlink_to(digits)
    shapes = "shapes?attributes=true&captions=true&count=60&test=6&size=16"
    here("prepare", "--labels", shapes, "-o", folder / "sets", "--holdout", "0", "-q")
    return folder


@pytest.fixture(scope="module")
def alone(corpora):
    return {name: Training(corpora, name, "ddp").run() for name in CASES}


@pytest.fixture(scope="module", params=[2, 3])
def together(request, corpora, tmp_path_factory):
    """Results of all cases in one launch of so many processes."""
    folder = tmp_path_factory.mktemp("ranks")
    first = Training(corpora, "unicl adamw", "ddp")
    first.run(0, 3)
    first.save(folder / "in", 3)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # for what this file imports from beside it
    command = [*launch, __file__, str(corpora), str(folder)]
    code, _, err = ended(begun(command=command, env=path), timeout=500)
    assert code == 0, err[-3000:]
    return folder, torch.load(folder / "results.pt")


def distance(a, b):
    """The largest difference between the weights of two runs, and between what they logged."""
    assert a["weights"].keys() == b["weights"].keys()
    assert a["rows"].keys() == b["rows"].keys()
    weights = max((a["weights"][n] - b["weights"][n]).abs().max().item() for n in a["weights"])
    logged = max(abs(a["rows"][s][key] - b["rows"][s][key]) for s in a["rows"] for key in a["rows"][s])
    return max(weights, logged)


@pytest.mark.slow
def test_processes_train_what_one_trains(alone, together):
    _, ranks = together
    pairs = [name.split(", ") for name in ranks if not name.startswith("continued")]
    assert len(pairs) in (2 * len(CASES), 2 * len(OF_THREE))
    far = {f"{n}, {s}": distance(alone[n], ranks[f"{n}, {s}"]) for n, s in pairs}
    assert {name: d for name, d in far.items() if d > 1e-12} == {}


@pytest.mark.slow
def test_a_checkpoint_goes_on_under_any_number_of_processes(alone, together, corpora):
    folder, ranks = together
    whole = alone["unicl adamw"]
    for strategy in STRATEGIES:
        after = ranks[f"continued, {strategy}"]
        assert distance(after, whole | {"rows": {s: whole["rows"][s] for s in (4, 5, 6)}}) < 1e-12
        back = Training(corpora, "unicl adamw", "ddp")
        back.load(folder / f"out-{strategy}" / "step-00000003")
        assert distance(back.run(3, 6), after) < 1e-12


@pytest.mark.slow
def test_the_cases_train_something(alone, corpora):
    for name, result in alone.items():
        before = checkpoint.weights(Training(corpora, name, "ddp").step)
        assert max((before[n] - w).abs().max().item() for n, w in result["weights"].items()) > 1e-3, name


# -- through the command ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_gives_the_weights_of_one_process(tmp_path, corpora):
    """Under FSDP2; DDP through the command is in `test_nodes.py`."""
    file = tmp_path / "r.yaml"
    file.write_text(dump(recipe_of(corpora, "unicl", log={"every": 1}, checkpoint={"every": 5}, steps=10)))
    words = ("train", file, "parallel.strategy=fsdp2", "-q")
    one, more = tmp_path / "one", tmp_path / "more"
    here(*words, "--run-dir", one, "--devices", "cpu:1")
    assert done(*words, "--run-dir", more, "--devices", "cpu:2") == f"{more}\n"
    assert max_difference(one, more) < 1e-4
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, more)]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], abs=1e-4)
    assert [row["samples"] for row in rows[1]] == [row["samples"] for row in rows[0]]


if __name__ == "__main__":
    target = Path(sys.argv[2])
    outcome = everything(Path(sys.argv[1]), target)
    if rank() == 0:
        torch.save(outcome, target / "results.pt")
    torch.distributed.destroy_process_group()
    end_worker(0)
