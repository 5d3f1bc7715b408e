"""The sigmoid loss against open_clip's, against its definition, on empty batches, and on two processes."""

import json
import math
from pathlib import Path

import pytest
import torch
from open_clip.loss import SigLipLoss
from PIL import Image
from unicl_sigmoid import build_sigmoid

from unicl_cli.api import NO_LABEL, NO_TEXT, read_tensors
from unicl_cli.testing import FeatureTable, batch_of, furthest, recipe_of, small_corpus, trained_on_one_and_two, unicl

ROWS, WIDTH = 7, 5


def test_captions_alone_are_open_clips_loss_in_value_and_gradient() -> None:
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(bias=-10.0).double()
    ours = loss(model, batch_of([NO_LABEL] * ROWS))["loss"]
    parameters = [*model.parameters(), *loss.parameters()]
    gradients = torch.autograd.grad(ours, parameters)
    batch = batch_of([NO_LABEL] * ROWS)
    u, v = model.encode_image(batch.images).embed, model.encode_text(batch.tokens).embed
    theirs = SigLipLoss()(u, v, model.scale(), loss.bias)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients, torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(mine, other)


def test_labels_are_positives_and_rows_without_text_are_hidden() -> None:
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(bias=-2.0).double()
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
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid().double()
    out = loss(model, batch_of([NO_LABEL] * ROWS, [NO_TEXT] * ROWS))["loss"]
    out.backward()
    assert out == 0
    for parameter in [*model.parameters(), *loss.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_and_probabilities_are_sigmoids(tmp_path: Path) -> None:
    recipe = recipe_of(small_corpus(tmp_path / "corpus"), loss="{name: sigmoid, bias: -3.0}")
    run, other = trained_on_one_and_two(recipe, tmp_path, "model.logit_scale.init=10.0")
    assert furthest(run, other) < 1e-4
    one = read_tensors(run / "model.safetensors")
    assert float(one["loss.bias"]) != -3.0
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    line = json.loads(unicl("zeroshot", image, "--model", run, "--classes", "zero", "--json"))
    (top,) = line["top"]
    logit = float(one["model.logit_scale"].exp()) * top["cosine"] + float(one["loss.bias"])
    assert top["prob"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
    assert top["prob"] < 0.999, "a softmax over one class would be sure"
