"""The memory of a step: the estimate beside what a card takes, and a batch that does not fit encoded in parts."""

import gc
import json

import pytest
import torch
from on_device import CARD, DEVICE, at, marks, metrics, needs_card, train

from unicl_cli.build.model import build_step
from unicl_cli.jobs.bench.model_pair import clip_bpe, make_recipe, shape_of
from unicl_cli.jobs.bench.step import SilentSink, make_our_loop
from unicl_cli.jobs.train.memory import BatchShape, Ledger, fake_batch, make_fake, state_bytes, step_bytes
from unicl_cli.jobs.train.micro_batch import longest_texts

pytestmark = marks
ROWS = at(96, 8)
IMAGES = {
    "ViT-B/32": (at("ViT-B-32", "tiny"), {}),
    "Swin-T": (at("Swin-T", "tiny"), {"model": at("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")}),
    "ResNet-50": (at("ViT-B-32", "tiny"), {"model": at("resnet50", "resnet18"), "args": {}}),
}


def recipe_of(kind: str):
    name, image = IMAGES[kind]
    shape = shape_of(name)
    if image:
        shape = shape._replace(image={"name": "timm", **image})
    return make_recipe(shape, ROWS, precision=at("bf16", "fp32"), frozen_text=False)


def full_batch(side: int):
    """Random images, each with another text of full length, as the estimate assumes."""
    rows = torch.arange(ROWS)
    empty = fake_batch(BatchShape(ROWS, 1, side, 77))
    images = torch.randint(256, empty.images.shape, dtype=torch.uint8)
    batch = empty._replace(images=images, text_index=rows, labels=rows, keys=rows, draws=rows)
    return longest_texts(batch, clip_bpe())


def bytes_taken(recipe, step, batch) -> float:
    """The most bytes that two updates have alive at once: on a card by its allocator, else by a count of storages."""
    loop = make_our_loop(recipe, step, DEVICE, log_every=1000)
    loop(iter([(0, batch)]), SilentSink())
    if CARD:
        torch.cuda.reset_peak_memory_stats()
        loop(iter([(1, batch)]), SilentSink())
        return torch.cuda.max_memory_allocated()
    with Ledger([*step.parameters(), *step.buffers()]) as ledger:
        step(batch)["loss"].backward()
    held = state_bytes(recipe, step, 1)
    return sum(held.values()) - held["gradients"] + ledger.most


@pytest.mark.parametrize("kind", IMAGES)
def test_the_estimate_is_within_15_percent_of_what_a_step_takes(kind, record_property):
    recipe = recipe_of(kind)
    with torch.device("meta"):
        shapes, _ = build_step(recipe, clip_bpe, (), 1)
    held = state_bytes(recipe, shapes, 1)
    side = recipe.data.image_size
    alive = step_bytes(
        shapes.train(), make_fake(shapes), BatchShape(ROWS, 1, side, 77), world=1, strategy="ddp", half=CARD
    )
    guess = sum(held.values()) - held["gradients"] + alive
    step, _ = build_step(recipe, clip_bpe, (), 1)
    before = torch.cuda.memory_allocated() if CARD else 0
    taken = bytes_taken(recipe, step.train().to(DEVICE), full_batch(side)) - before
    record_property("estimated MiB", round(guess / 2**20))
    record_property("taken MiB", round(taken / 2**20))
    assert guess == pytest.approx(taken, rel=0.15)


@needs_card
def test_a_batch_that_does_not_fit_is_encoded_in_parts_with_the_same_losses(tmp_path, digits, capfd, record_property):
    how = {"steps": 6, "batch": {"size": 4096}, "data": {"image_size": 64, "train": [{"corpus": str(digits)}]}}
    whole = train(tmp_path / "whole", digits, **how)
    peak = metrics(whole)[-1]["mem_gb"] * 1e9
    total = torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + 0.6 * peak
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total + 0.1))  # a tenth is the rehearsal's margin
    try:
        parts = train(tmp_path / "parts", digits, **how)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    last = sorted((parts / "checkpoints").glob("step-*"))[-1]
    micro = json.loads((last / "trainer.json").read_text())["micro"]
    record_property("rows at once", micro)
    assert micro is not None
    assert micro < 4096
    assert "more did not fit into" in capfd.readouterr().err
    for one, other in zip(metrics(whole), metrics(parts), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
