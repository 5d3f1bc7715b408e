"""Rows of a taxonomy from the source to the loss, against the definition from the names of their folders."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launching import TINY, here, same, steps_of
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.build.data import build_data, build_tokenizer, merged_classes, place_classes
from unicl_cli.build.model import build_step
from unicl_cli.contracts import NO_LABEL, Features
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.losses.unicl import UniCL
from unicl_cli.recipe.load import load

FOLDERS = {
    "animal/cat/siamese": 5,
    "animal/cat/persian": 4,
    "animal/cat": 3,
    "animal/dog/beagle": 4,
    "animal/dog": 2,
    "animal": 2,
    "plant/oak": 3,
    "plant": 2,
}
"""The class folders and their images; three of them lie above others."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("taxonomy")
    for at, (folder, count) in enumerate(FOLDERS.items()):
        for split in ("train", "test"):
            (root / "pets" / split / folder).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                out = io.BytesIO()
                Image.new("RGB", (16, 16), (30 * at, 40 * n, 90 if split == "train" else 9)).save(out, "PNG")
                (root / "pets" / split / folder / f"{n}.png").write_bytes(out.getvalue())
    here("prepare", "--labels", root / "pets", "--taxonomy", "folders", "-o", root / "corpus", "-q")
    data = TINY["data"] | {"train": [{"corpus": str(root / "corpus")}], "templates": ["the {}", "a {}"]}
    whole = TINY | {"data": data, "eval": [{"corpus": str(root / "corpus"), "split": "test"}]}
    (root / "r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(whole))))
    return root / "r.yaml"


class Given:
    """A model with fixed embeddings of the images and of the distinct texts of one batch."""

    embed_dim = image_width = 4

    def __init__(self, images: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.u, self.v = (
            F.normalize(torch.randn(images, 4, generator=draw, dtype=torch.float64), dim=1).requires_grad_()
            for _ in range(2)
        )

    def encode_image(self, images: Tensor, /) -> Features:
        return Features(self.u[: len(images)], self.u[: len(images)])

    def encode_text(self, tokens: Tensor, /) -> Features:
        return Features(self.v[: len(tokens)], self.v[: len(tokens)])

    def scale(self, name: str = "text", /) -> Tensor:
        del name
        return torch.tensor(9.0, dtype=torch.float64)


def dense(logits: Tensor, folders: list[str], texts: list[str]) -> Tensor:
    """The mean of both cross-entropies: a prompt fits an image below its class, and is hidden where it may do so."""
    named = {folder.rpartition("/")[2]: folder for folder in [*FOLDERS, "animal/dog"]}
    said = [named[text.partition(" ")[2]] for text in texts]
    fits = torch.tensor([[f"{folder}/".startswith(f"{path}/") for path in said] for folder in folders])
    deepest = {folder: any(other.startswith(f"{folder}/") for other in FOLDERS) for folder in folders}
    hidden = torch.tensor(
        [[deepest[folder] and path.count("/") > folder.count("/") for path in said] for folder in folders]
    )
    assert not (fits & hidden).any()
    assert hidden.any()
    total = torch.zeros((), dtype=torch.float64)
    for x, ok, gone in ((logits, fits, hidden), (logits.T, fits.T, hidden.T)):
        target = ok.double() / ok.sum(1, keepdim=True)
        x = x.masked_fill(gone, -torch.inf)
        total = total + (x.logsumexp(1) - (target * x.masked_fill(gone, 0)).sum(1)).mean() / 2
    return total


def test_a_class_counts_the_rows_below_it_once(recipe):
    data = build_data(load(str(recipe)))
    counts = dict(zip((item.key for item in data.classes), data.facts["class_counts"](), strict=True))
    tables = [(strand, strand.table) for strand in data.mix.strands]
    sets = [strand.label_set(table.read(row)) for strand, table in tables for row in range(len(table))]
    wanted = {item.key: sum(label in own for own in sets) for label, item in enumerate(data.classes)}
    assert counts == wanted
    assert counts["animal"] == sum(count for folder, count in FOLDERS.items() if folder.startswith("animal"))


def test_the_loss_of_a_batch_is_that_of_the_definition(recipe):
    given = load(str(recipe))
    data = build_data(given)
    loss = UniCL(label_sets=data.label_sets)
    assert data.label_sets is not None
    for step in range(3):
        draws = Draws(data.order, step, step + 1, 0, 1)
        drawn = [data.mix[place] for place in next(iter(draws))]
        (_, batch), *_ = batches(
            data.mix, draws, build_tokenizer(given, data), caption_targets="unique", extra=loss.extra, workers=0,
            pin_memory=False, distinct=True,
        )  # fmt: skip
        table = data.mix.strands[0].table
        folders = [table.read(row.row).key.partition(":")[2].partition("/")[2].rpartition("/")[0] for row in drawn]
        model = Given(len(drawn))
        found = loss(model, batch)["loss"]
        logits = 9 * model.u @ model.v[batch.text_index].T
        exact = dense(logits, folders, [row.text or "" for row in drawn])
        assert found.item() == pytest.approx(exact.item(), abs=1e-12)
        grads = [torch.autograd.grad(x, (model.u, model.v), retain_graph=True) for x in (found, exact)]
        assert max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) < 1e-12


def test_without_ancestors_rows_have_their_own_label_alone(recipe):
    data = build_data(load(str(recipe), ["data.ancestors=false"]))
    sizes = {len(data.mix[place].labels) for place in next(iter(Draws(data.order, 0, 1, 0, 1)))}
    deep = build_data(load(str(recipe)))
    assert sizes == {1}
    assert {len(deep.mix[place].labels) for place in next(iter(Draws(deep.order, 0, 1, 0, 1)))} == {1, 2, 3}


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(recipe, tmp_path):
    here("train", recipe, "--run-dir", tmp_path / "whole", "-q")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut"
    for step in (6, 8):
        shutil.rmtree(cut / f"checkpoints/step-{step:08d}", ignore_errors=True)
    (cut / "checkpoints/latest").write_text("step-00000003")
    for name in ("model.safetensors", "meta.json", "eval.jsonl"):
        (cut / name).unlink(missing_ok=True)
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))
    status = json.loads((cut / "status.json").read_text())
    (cut / "status.json").write_text(json.dumps(status | {"state": "stopped", "step": 3}))
    here("train", recipe, "--run-dir", cut, "-q")
    assert steps_of(cut) == list(range(1, 9))
    assert same(tmp_path / "whole", cut)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


def test_the_only_root_is_no_candidate_and_no_name_in_a_caption(recipe, tmp_path):
    """Every image is an animal: that prompt is a column of none, and a caption that says so names no class."""
    shutil.copytree(recipe.parent / "pets" / "train" / "animal", tmp_path / "pets" / "animal")
    rows = "".join(f"{file},an animal\n" for file in sorted((tmp_path / "pets" / "animal" / "dog").glob("*.png")))
    (tmp_path / "list.csv").write_text(f"image,caption\n{rows}")
    here("prepare", "--labels", tmp_path / "pets", "--taxonomy", "folders", "-o", tmp_path / "one", "-q")
    here("prepare", "--captions", tmp_path / "list.csv", "-o", tmp_path / "captions", "-q")
    train = json.dumps([{"corpus": str(tmp_path / name)} for name in ("one", "captions")])
    changes = [f"data.train={train}", "eval=[]", "loss.class_columns={}", "data.caption_labels=positive"]
    made = load(str(recipe), changes)
    data = build_data(made)
    (root,) = (number for number, item in enumerate(data.classes) if not item.parent)
    assert data.label_sets is not None
    assert data.label_sets.silent == (root,)
    step, tokenizer = build_step(made, lambda: build_tokenizer(made, data), data.classes, 1, label_sets=data.label_sets)
    assert tokenizer is not None
    batch = next(stream_batches(made, data, tokenizer, step, 0, 1, 0))[1]
    captions = batch.extra["known"] == 0
    assert captions.any()
    assert (batch.extra["label_set"][captions] == NO_LABEL).all()
    before = step(batch)["loss"].item()
    step.loss.class_tokens[root] = step.loss.class_tokens[(root + 1) % len(data.classes)]
    assert step(batch)["loss"].item() == before
    step.loss.class_tokens[(root + 2) % len(data.classes)] = step.loss.class_tokens[root]
    assert step(batch)["loss"].item() != before


def test_each_class_that_a_caption_names_brings_those_above_it(recipe):
    (corpus,) = (open_corpus(item.corpus) for item in load(str(recipe), []).data.train)
    classes, maps = merged_classes([corpus])
    widths = [place_classes([corpus], classes, maps, ancestors=True, named=n)[1].width for n in (0, 1, 2, 8)]
    assert widths == [3, 3, 6, len(classes)]
