"""Scores of many classes by a captioner: each image encoded once, against once for each class, in one run.

python benchmarks/captioner.py [--classes 100] [--images 4]
"""

import argparse
import random
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from unicl_captioner import build_captioner

from unicl_cli.api import build_image_tower

SIDE, REPEATS = 96, 2
START, END, VOCABULARY = 1, 2, 4096
TEMPLATE = (5, 6, 7, 8)
"""Tokens before each class name, as of "a photo of a"."""


class Tower(nn.Module):
    """A ResNet-18 as a model whose image tokens a captioner reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tower: Any = build_image_tower({"name": "timm", "model": "resnet18"}, SIDE)  # pyright: ignore[reportArgumentType] - a part as in a recipe

    def image_tokens(self, images: Tensor) -> Tensor:
        return self.tower.tokens(images / 127.5 - 1)


def draw_prompts(count: int) -> Tensor:
    """Draw the prompts of classes whose names have one to three tokens, int64 (count, L)."""
    draw = random.Random(0)
    names = [[draw.randrange(10, VOCABULARY) for _ in range(draw.choice((1, 2, 3)))] for _ in range(count)]
    rows = [[START, *TEMPLATE, *name, 9, END] for name in names]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def measure_seconds(work: Callable[[], Tensor]) -> float:
    """Return the shortest of some runs."""
    found: list[float] = []
    for _ in range(REPEATS):
        begun = perf_counter()
        work()
        found.append(perf_counter() - begun)
    return min(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Tower().eval()
    ids: dict[str, int] = {"start_id": START, "eot_id": END, "vocab_size": VOCABULARY, "context_length": 16}
    loss: Any = build_captioner(**ids, token_width=model.tower.width, chunks=1, width=128, layers=2, heads=4).eval()
    images = torch.randint(0, 256, (options.images, 3, SIDE, SIDE), dtype=torch.uint8)
    prompts = draw_prompts(options.classes)

    def once() -> Tensor:
        return loss.pair_scores(model, images, prompts)

    def for_each_class() -> Tensor:
        return torch.cat([loss.pair_scores(model, images, prompt[None]) for prompt in prompts], 1)

    apart = float((once() - for_each_class()).abs().max())
    reused, anew = measure_seconds(once), measure_seconds(for_each_class)
    table = Table("images encoded", "seconds", "factor", title=f"{options.classes} classes, {options.images} images")
    table.add_row("for each class", f"{anew:.3f}", "1×")
    table.add_row("once", f"{reused:.3f}", f"{anew / reused:.0f}×")
    console = Console()
    console.print(table)
    console.print(f"largest difference of a score: {apart:.1e}")


if __name__ == "__main__":
    main()
