"""The sigmoid loss against open_clip's, its definition with keys and label sets, on empty batches, on two processes."""

import json
import math
from pathlib import Path

import pytest
import torch
from forked_ranks import on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from PIL import Image
from unicl_sigmoid import build_sigmoid

from unicl_cli.api import NO_LABEL, NO_TEXT, Batch, LabelSets, read_tensors, set_columns
from unicl_cli.cli import main
from unicl_cli.testing import FeatureTable, batch_of, max_difference, recipe_of

ROWS, WIDTH = 7, 5
GROUPS = (0, 0, 1, 1)
SETS = LabelSets(3, GROUPS, ("colour", "shape"))


def test_captions_alone_are_open_clips_loss_in_value_and_gradient() -> None:
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(label_sets=None, bias=-10.0).double()
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
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(label_sets=None, bias=-2.0).double()
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
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(label_sets=None).double()
    out = loss(model, batch_of([NO_LABEL] * ROWS, [NO_TEXT] * ROWS))["loss"]
    out.backward()
    assert out == 0
    for parameter in [*model.parameters(), *loss.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def with_sets(batch: Batch, sets: list[list[int]], shown: list[int], known: list[int]) -> Batch:
    """The batch with label sets, classes that prompts name, and bits of groups that rows know."""
    padded = torch.tensor([[*labels, *[NO_LABEL] * (3 - len(labels))] for labels in sets])
    return batch._replace(extra={"label_set": padded, "shown": torch.tensor(shown), "known": torch.tensor(known)})


ROW = st.tuples(st.sets(st.integers(0, 3), max_size=3), st.integers(0, 3), st.booleans(), st.booleans())


@settings(max_examples=40)
@given(rows=st.lists(ROW, min_size=1, max_size=ROWS))
def test_a_text_fits_the_images_that_have_all_labels_it_says_and_unknown_groups_are_hidden(
    rows: list[tuple[set[int], int, bool, bool]],
) -> None:
    sets = [sorted(label for label in labels if known >> GROUPS[label] & 1) for labels, known, _, _ in rows]
    shown = [s[-1] if s and prompt else NO_LABEL for s, (_, _, prompt, _) in zip(sets, rows, strict=True)]
    there = [number for number, row in enumerate(rows) if row[3]]
    texts = [number if number in there else NO_TEXT for number in range(len(rows))]
    labels = [s[0] if len(s) == 1 else NO_LABEL for s in sets]
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(label_sets=SETS, bias=-2.0).double()
    batch = with_sets(batch_of(labels, texts), sets, shown, [known for _, known, _, _ in rows])
    u, v = model.encode_image(batch.images).embed, model.encode_text(torch.arange(len(rows))[:, None]).embed
    exact = 0 * (u.sum() + v.sum() + model.scale() + loss.bias.sum())
    for i in there:
        for j in there:
            says = sets[j] if shown[j] == NO_LABEL else [shown[j]]
            if shown[j] != NO_LABEL and rows[i][1] and not rows[i][1] >> GROUPS[shown[j]] & 1:
                continue
            fits = set(says) <= set(sets[i]) if says else i == j
            logit = model.scale() * (u[i] @ v[j]) + loss.bias[0]
            exact = exact - torch.nn.functional.logsigmoid(logit if fits else -logit) / len(there)
    ours, parameters = loss(model, batch)["loss"], [*model.parameters(), *loss.parameters()]
    assert ours.item() == pytest.approx(exact.item(), abs=1e-12)
    both = (torch.autograd.grad(3 * value, parameters) for value in (ours, exact))
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_golden_value_of_label_sets() -> None:
    """Logits are the bias, 1. Row 0 is red and round and shows its caption, row 1 "red", row 2 knows no shape: "blue".

    Texts fit: the caption row 0 alone, "red" rows 0 and 1, "blue" row 2.
    """
    model, loss = FeatureTable(3, WIDTH), build_sigmoid(label_sets=SETS, bias=1.0).double()
    with torch.no_grad():
        model.logit_scale.fill_(-torch.inf)
    batch = with_sets(batch_of([NO_LABEL, 0, 1]), [[0, 2], [0], [1]], [NO_LABEL, 0, 1], [3, 3, 1])
    fit, other = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    assert loss(model, batch)["loss"].item() == pytest.approx((4 * fit + 5 * other) / 3)
    shapes = with_sets(batch_of([NO_LABEL, 0, 1]), [[0, 2], [0], [1]], [2, 0, 1], [3, 3, 1])
    assert loss(model, shapes)["loss"].item() == pytest.approx((4 * fit + 4 * other) / 3), "a shape, from row 2"


def test_one_label_a_row_is_the_loss_of_keys() -> None:
    labels = [0, 1, 0, NO_LABEL, 3, 1, NO_LABEL]
    model, loss = FeatureTable(ROWS, WIDTH), build_sigmoid(label_sets=SETS, bias=-2.0).double()
    today = build_sigmoid(label_sets=None, bias=-2.0).double()(model, batch_of(labels))["loss"]
    sets = [[label] if label != NO_LABEL else [] for label in labels]
    for shown in (labels, [NO_LABEL] * ROWS):  # prompts, captions
        batch = with_sets(batch_of(labels), sets, shown, [3] * ROWS)
        assert loss(model, batch)["loss"].item() == pytest.approx(today.item(), abs=1e-14)
    assert loss.extra.func is set_columns


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_and_probabilities_are_sigmoids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ("--labels", "digits?classes=0-6&limit=60", "--captions", "digits?limit=60")
    run = trained_alike(tmp_path, sources, "model.logit_scale.init=10.0")
    one = read_tensors(run / "model.safetensors")
    assert float(one["loss.bias"]) != -3.0
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    capsys.readouterr()
    assert main(["zeroshot", str(image), "--model", str(run), "--classes", "zero", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    (top,) = line["top"]
    logit = float(one["model.logit_scale"].exp()) * top["cosine"] + float(one["loss.bias"])
    assert top["prob"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
    assert top["prob"] < 0.999, "a softmax over one class would be sure"


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_on_label_sets(tmp_path: Path) -> None:
    trained_alike(tmp_path, ("--labels", "shapes?attributes=true&captions=true&count=48&test=6&size=32"))


def trained_alike(folder: Path, sources: tuple[str, ...], *changes: str) -> Path:
    """Train on one process and on two, which end with the same weights; return the run of one."""
    assert main(["prepare", *sources, "-o", str(folder / "corpus"), "--holdout", "0", "--workers", "1"]) == 0
    (folder / "r.yaml").write_text(recipe_of(folder / "corpus", loss="{name: sigmoid, bias: -3.0}"))
    words = ("train", str(folder / "r.yaml"), *changes, "-q", "--run-dir")
    assert main([*words, str(folder / "one"), "--devices", "cpu:1"]) == 0
    on_ranks(2, *words, folder / "two")
    assert max_difference(folder / "one", folder / "two") < 1e-4
    return folder / "one"
