"""Tools for tests of plugins: a toy model and batch, commands in a fresh process, one process against two."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_LABEL, Batch, Features
from unicl_cli.core.checkpoint import read_tensors
from unicl_cli.core.checkpoint_files import MODEL

RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 32, augment: none}}
model: {{image: {image}, text: {text}, embed_dim: 16}}
loss: {loss}
batch: {{size: 12}}
steps: {steps}
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0}}
log: {{every: 1}}
precision: fp32
"""
SMALL_IMAGE = "{name: cnn, width: 8, stages: 2}"
SMALL_TEXT = "{name: transformer, width: 16, layers: 1, heads: 2}"


class FeatureTable(nn.Module):
    """Model of two tables in float64; the first pixel of an image and the first token of a text select their rows."""

    def __init__(self, rows: int, width: int, *, scale: float = 10.0) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(rows, width, generator=noise, dtype=torch.float64))
        self.text = nn.Parameter(torch.randn(rows, width, generator=noise, dtype=torch.float64))
        self.logit_scale = nn.Parameter(torch.full([1], math.log(scale), dtype=torch.float64))
        self.embed_dim = self.image_width = width

    def encode_image(self, images: Tensor, /) -> Features:
        pooled = self.image[images.flatten(1)[:, 0].long()]
        return Features(pooled, F.normalize(pooled, dim=-1))

    def encode_text(self, tokens: Tensor, /) -> Features:
        pooled = self.text[tokens[:, 0]]
        return Features(pooled, F.normalize(pooled, dim=-1))

    def scale(self, name: str = "text", /) -> Tensor:
        del name
        return self.logit_scale.exp().squeeze(0)


def batch_of(labels: Sequence[int], texts: Sequence[int] | None = None, *, views: int = 1) -> Batch:
    """Build a batch for a FeatureTable of ``len(labels) * views`` rows, at most 256.

    ``labels`` has NO_LABEL for captions, ``texts`` NO_TEXT for rows without text; by default each row has its own text.
    """
    rows, given = torch.arange(len(labels)), torch.tensor(labels)
    first = torch.arange(len(labels) * views, dtype=torch.uint8).view(-1, views, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    return Batch(
        images=first if views > 1 else first[:, 0],
        tokens=rows[:, None],
        text_index=rows if texts is None else torch.tensor(texts),
        labels=given,
        keys=torch.where(given == NO_LABEL, 2**40 + rows, given),
        draws=rows,
        extra={},
    )


def recipe_of(
    corpus: Path, *, image: str = SMALL_IMAGE, text: str = SMALL_TEXT, loss: str = "unicl", steps: int = 6
) -> str:
    """Return a small recipe whose weights do not depend on the number of processes: SGD, float32, no augmentation."""
    return RECIPE.format(corpus=corpus, image=image, text=text, loss=loss, steps=steps)


def unicl(*arguments: object, errors: bool = False) -> str:
    """Run `unicl …` in a fresh process and return its stdout, or with ``errors`` its stderr.

    Raises RuntimeError for an exit status other than 0.
    """
    command = [sys.executable, "-P", "-m", "unicl_cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"unicl {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
    return done.stderr if errors else done.stdout


def small_corpus(out: Path) -> Path:
    """Prepare a corpus with labels of seven digits and captions of ten in ``out``, and return ``out``."""
    sources = ("--labels", "digits?classes=0-6&limit=60", "--captions", "digits?limit=60")
    unicl("prepare", *sources, "-o", out, "--workers", 1)
    return out


def max_difference(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two finished runs of the same recipe."""
    a, b = (read_tensors(run / MODEL) for run in (one, other))
    if a.keys() != b.keys():
        raise ValueError(f"{one} and {other} have different parameters: {sorted(a.keys() ^ b.keys())}")
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def train_on_one_and_two(recipe: str, folder: Path, *overrides: str) -> tuple[Path, Path]:
    """Train a recipe's text on one process and on two; return both runs, whose `max_difference` should be < 1e-4."""
    file, runs = folder / "recipe.yaml", (folder / "one", folder / "two")
    file.write_text(recipe, encoding="utf-8")
    for count, run in enumerate(runs, start=1):
        unicl("train", file, *overrides, "--run-dir", run, "--devices", f"cpu:{count}", "-q")
    return runs
