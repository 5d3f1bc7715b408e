"""The loop takes any batch and any module: a training without images, through the public interface."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from unicl_cli import api


class Sentences(NamedTuple):
    """A batch without images: two lists of bags of words that belong together."""

    first: list[torch.Tensor]
    second: list[torch.Tensor]


class SentencePairs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(50, 8)

    def forward(self, batch: Sentences) -> dict[str, torch.Tensor]:
        a, b = (torch.cat([self.words(bag[None]) for bag in bags]) for bags in batch)
        return api.both_ways(a, b, torch.arange(len(a)), 1.0)


class Lines:
    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])

    def close(self) -> None: ...


def test_fit_takes_any_batch_and_any_module():
    torch.manual_seed(0)
    module, lines = SentencePairs(), Lines()
    bags = [torch.randint(0, 50, (3 + n,)) for n in range(6)]
    batches = ((step, Sentences(bags, [bag.flip(0)[1:] for bag in bags])) for step in range(30))
    plan = api.Plan(steps=30, seed=0, lr=lambda step: 0.5, log_every=1)
    done = api.fit(
        module,
        batches,
        torch.optim.SGD(module.parameters(), lr=0.5),
        plan,
        api.start_accelerator("fp32", "cpu"),
        lines,
        after=lambda step: None,
    )
    assert done == len(lines.losses) == 30
    assert lines.losses[-1] < 0.9 * lines.losses[0]
