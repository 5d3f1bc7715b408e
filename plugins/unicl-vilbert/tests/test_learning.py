"""Co-attention learns what neither stream knows alone: words of the image, regions of the text; never by alignment."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_bert.bert import Bert, Size, Special
from unicl_regions.boxes import Regions
from unicl_vilbert import build_loss, build_refer, build_vilbert

from unicl_cli.api import NO_LABEL, Batch, Part, Plan, Step, fit, start_accelerator

TYPES, FEATURES, SHOWN, STEPS, ROWS = 10, 24, 4, 400, 64


class Objects(nn.Module):
    """Four things of ten types, each a noisy vector, and their true types."""

    width, classes, units = FEATURES, TYPES, ()

    def find(self, images: Tensor, extra: dict[str, Tensor]) -> Regions:
        boxes = torch.rand(len(images), SHOWN, 5, generator=torch.Generator().manual_seed(0)) * 0.1
        return Regions(
            extra["features"],
            extra.get("boxes", boxes),
            torch.ones(len(images), SHOWN, dtype=torch.bool),
            extra["types"],
        )

    def distributions(self, images: Tensor, found: Regions) -> Tensor:
        return found.classes


def batches() -> Iterator[tuple[int, Batch]]:
    noise = torch.Generator().manual_seed(5)
    vectors = torch.randn(TYPES, FEATURES, generator=noise)
    for step in range(STEPS):
        types = torch.stack([torch.randperm(TYPES, generator=noise)[:SHOWN] for _ in range(ROWS)])
        told = types.gather(1, torch.rand(ROWS, SHOWN, generator=noise).argsort(1))
        features = vectors[types] + 0.5 * torch.randn(ROWS, SHOWN, FEATURES, generator=noise)
        tokens = torch.cat([torch.full((ROWS, 1), 1), told + 3, torch.full((ROWS, 1), 2)], 1)
        seeds = torch.randint(0, 2**32, (ROWS,), generator=noise)
        extra = {"seeds": seeds, "features": features, "types": F.one_hot(types, TYPES).float()}
        rows = torch.arange(ROWS)
        images = torch.zeros(ROWS, 3, 2, 2, dtype=torch.uint8)
        yield step, Batch(images, tokens, rows, torch.full([ROWS], NO_LABEL), 2**40 + rows, rows, extra)


def referring() -> Iterator[tuple[int, Batch]]:
    """Two of four things are alike, one on either side; the text names their type and a side (word 8 or 9)."""
    noise = torch.Generator().manual_seed(5)
    vectors = torch.randn(TYPES, FEATURES, generator=noise)
    corners = torch.tensor([[0.1, 0.1], [0.6, 0.1], [0.1, 0.6], [0.6, 0.6]])
    places = torch.cat([corners, corners + 0.3, torch.full((4, 1), 0.09)], 1)
    rows = torch.arange(ROWS)
    for step in range(STEPS // 2):
        kinds = torch.stack([torch.randperm(TYPES - 2, generator=noise)[:3] for _ in range(ROWS)])
        order = torch.rand(ROWS, SHOWN, generator=noise).argsort(1)
        types, boxes = kinds[:, [0, 0, 1, 2]].gather(1, order), places[order]
        side = torch.randint(0, 2, (ROWS,), generator=noise)
        words = torch.stack([torch.full_like(side, -2), kinds[:, 0], TYPES - 2 + side, torch.full_like(side, -1)], 1)
        extra = {"features": 20 * vectors[types], "types": F.one_hot(types, TYPES).float(), "boxes": boxes}
        extra |= {"target_box": places[side], "has_target": torch.ones(ROWS, dtype=torch.bool)}
        images, labels = torch.zeros(ROWS, 3, 2, 2, dtype=torch.uint8), torch.full([ROWS], NO_LABEL)
        yield step, Batch(images, words + 3, rows, labels, 2**40 + rows, rows, extra)


class Tail:
    """A sink that keeps the metrics of the last steps."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rows.append(values)

    def mean(self, name: str) -> float:
        return sum(row[name] for row in self.rows[-40:]) / 40

    def close(self) -> None: ...


def trained(loss: nn.Module, stream: Iterator[tuple[int, Batch]], **options: bool) -> Tail:
    torch.manual_seed(0)
    text = Bert(Size(TYPES + 4, 48, 2, 4, 96, 8), Special(0, 2, TYPES + 3))
    made = {"text": text, "regions": Objects()}
    sizes = {"width": 48, "heads": 4, "hidden": 96, "blocks": 2, "shared": 48, "shared_heads": 4}
    parts = {name: Part(name, {}) for name in made}
    model = build_vilbert(encoder=lambda part: made[part.name], chunks=1, **parts, **sizes, **options)
    step, tail = Step(model, loss), Tail()
    plan = Plan(steps=STEPS, seed=0, lr=lambda n: 2e-3 * min(1, (n + 1) / 20), log_every=1)
    optimizer = torch.optim.AdamW(step.parameters(), lr=2e-3)
    fit(step.train(), stream, optimizer, plan, start_accelerator("fp32", "cpu"), tail, after=lambda step: None)
    return tail


@pytest.mark.slow
def test_words_and_regions_need_co_attention_and_alignment_does_not():
    joint, apart = (trained(build_loss(), batches(), co_attention=crossed) for crossed in (True, False))
    for name in ("words_acc", "regions_acc"):
        assert joint.mean(name) >= 0.6
        assert apart.mean(name) <= 0.25
    assert apart.mean("align_acc") >= 0.8


@pytest.mark.slow
def test_the_side_of_an_expression_is_learned_if_places_count_beside_large_features():
    found = {
        apart: trained(build_refer(image_width=48, moves_pixels=False), referring(), separate_norms=apart)
        for apart in (True, False)
    }
    assert found[True].mean("acc@0.5") >= 0.9
    assert found[False].mean("acc@0.5") <= 0.6, "it finds the two that are alike, and guesses"
