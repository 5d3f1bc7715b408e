"""One training step on a card: it never waits for the GPU but for a logged line, and its batches are the CPU's."""

import pytest
import torch
from on_device import DEVICE, at, marks, needs_card, train

from unicl_cli.jobs.bench.profiling import count_waits

pytestmark = marks
RECIPES = {
    "plain": (),
    "augmented on the device": ("data.augment_on=device", "data.augment={name: simclr}"),
    "frozen text tower": ("model.text.freeze=true", "parallel.text_cache=auto"),
    "in parts, with an average": ("batch.micro=8", "ema={decay: 0.99}"),
}


@pytest.mark.parametrize("kind", at(list(RECIPES), ["plain", "in parts, with an average"]))
def test_a_step_waits_for_the_gpu_only_where_a_line_is_logged(tmp_path, digits, kind, record_property):
    def waits(steps: int, every: int) -> int:
        words = (*RECIPES[kind], f"log.every={every}", "optim.name=adamw", "checkpoint.every=1000")
        with count_waits(DEVICE) as places:
            train(tmp_path / f"{steps}-{every}", digits, *words, steps=steps, precision="auto")
        record_property(f"{steps} steps, a line every {every}", sorted(set(places)))
        return len(places)

    steps = at(20, 2)
    short, long = waits(steps, 1000), waits(2 * steps, 1000)
    assert long == short, "more steps, no more waits"
    assert waits(2 * steps, 1) - waits(steps, 1) <= steps, "one wait per logged line"


@needs_card
def test_float32_is_float32_on_a_card_too(tmp_path, digits):
    train(tmp_path, digits, steps=1)
    x = torch.randn(8, 64, 32, 32, device="cuda")
    w = torch.randn(64, 64, 3, 3, device="cuda")
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    assert (torch.nn.functional.conv2d(x, w) - exact).abs().max() < 1e-5 * exact.abs().max()
