"""The sigmoid loss against open_clip's, against its definition, on empty batches, and on two processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from open_clip.loss import SigLipLoss
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_sigmoid import build_sigmoid

from unicl_cli.api import NO_LABEL, NO_TEXT, Batch, Features, read_tensors

ROWS, WIDTH = 7, 5
RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 32, augment: none}}
model:
  image: {{name: cnn, width: 8, stages: 2}}
  text: {{name: transformer, width: 16, layers: 1, heads: 2}}
  embed_dim: 16
  logit_scale: {{init: 10.0}}
loss: {{name: sigmoid, bias: -3.0}}
batch: {{size: 12}}
steps: 6
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0}}
log: {{every: 1}}
precision: fp32
"""


class Table(nn.Module):
    """A model whose features are its parameters: row n of each table."""

    embed_dim = image_width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(ROWS, WIDTH, generator=noise, dtype=torch.float64))
        self.text = nn.Parameter(torch.randn(ROWS, WIDTH, generator=noise, dtype=torch.float64))
        self.logit_scale = nn.Parameter(torch.full([1], math.log(10.0), dtype=torch.float64))

    def encode_image(self, images: Tensor) -> Features:
        return Features(self.image, F.normalize(self.image, dim=-1))

    def encode_text(self, tokens: Tensor) -> Features:
        return Features(self.text, F.normalize(self.text, dim=-1))

    def scale(self, name: str = "text") -> Tensor:
        return self.logit_scale.exp().squeeze(0)


def batch_of(labels: list[int], texts: list[int] | None = None) -> Batch:
    rows, given = torch.arange(ROWS), torch.tensor(labels)
    return Batch(
        images=torch.zeros(ROWS, 3, 2, 2, dtype=torch.uint8),
        tokens=torch.zeros(ROWS, 1, dtype=torch.int64),
        text_index=rows if texts is None else torch.tensor(texts),
        labels=given,
        keys=torch.where(given == NO_LABEL, 2**40 + rows, given),
        draws=rows,
        extra={},
    )


def test_captions_alone_are_open_clips_loss_in_value_and_gradient() -> None:
    model, loss = Table(), build_sigmoid(bias=-10.0).double()
    ours = loss(model, batch_of([NO_LABEL] * ROWS))["loss"]
    parameters = [*model.parameters(), *loss.parameters()]
    gradients = torch.autograd.grad(ours, parameters)
    u, v = model.encode_image(torch.empty(0)).embed, model.encode_text(torch.empty(0)).embed
    theirs = SigLipLoss()(u, v, model.scale(), loss.bias)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients, torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(mine, other)


def test_labels_are_positives_and_rows_without_text_are_hidden() -> None:
    model, loss = Table(), build_sigmoid(bias=-2.0).double()
    batch = batch_of([0, 1, 0, NO_LABEL, 0, 1, NO_LABEL], [0, 1, 2, 3, NO_TEXT, 5, 6])
    u, v = model.encode_image(batch.images).embed.tolist(), model.encode_text(batch.tokens).embed.tolist()
    there = [row for row in range(ROWS) if batch.text_index[row] != NO_TEXT]
    total = 0.0
    for i in there:
        for j in there:
            z = 1 if batch.keys[i] == batch.keys[j] else -1
            logit = 10.0 * sum(a * b for a, b in zip(u[i], v[j], strict=True)) - 2.0
            total += math.log1p(math.exp(-z * logit))
    assert loss(model, batch)["loss"].item() == pytest.approx(total / len(there))


def test_a_batch_without_any_text_is_zero_with_every_gradient() -> None:
    model, loss = Table(), build_sigmoid().double()
    out = loss(model, batch_of([NO_LABEL] * ROWS, [NO_TEXT] * ROWS))["loss"]
    out.backward()
    assert out == 0
    for parameter in [*model.parameters(), *loss.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def unicl(*arguments: object) -> str:
    command = [sys.executable, "-m", "unicl_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_and_probabilities_are_sigmoids(tmp_path: Path) -> None:
    corpus, recipe = tmp_path / "corpus", tmp_path / "recipe.yaml"
    unicl("prepare", "--labels", "digits?classes=0-6&limit=60", "--captions", "digits?limit=60", "-o", corpus)
    recipe.write_text(RECIPE.format(corpus=corpus), encoding="utf-8")
    for count in (1, 2):
        unicl("train", recipe, "--run-dir", tmp_path / str(count), "--devices", f"cpu:{count}", "-q")
    one, two = (read_tensors(tmp_path / str(count) / "model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    assert float(one["loss.bias"]) != -3.0
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-4, rtol=0, msg=name)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    line = json.loads(unicl("zeroshot", picture, "--model", tmp_path / "1", "--classes", "zero", "--json"))
    (top,) = line["top"]
    logit = float(one["model.logit_scale"].exp()) * top["cosine"] + float(one["loss.bias"])
    assert top["prob"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
    assert top["prob"] < 0.999, "a softmax over one class would be sure"
