"""Time and memory of NT-Xent: the tiled sums beside lightly's dense loss, in one run on the CPU.

    python benchmarks/nt_xent.py [--views 8192] [--dim 128] [--rounds 5]

Each loss computes value and gradient of the same views. Time is the median of paired rounds; the peak of memory is that
of a fresh process above its peak before the loss. Needs Linux, and `pip install --no-deps lightly`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from unicl_simclr import build_simclr

from unicl_cli.testing import FeatureTable, batch_of

TEMPERATURE = 0.5
Loss = Callable[[], Tensor]


def make_tiled(rows: Tensor) -> Loss:
    """Return the loss of unicl-simclr, without a head, with value and gradient in ``rows``, (N, 2, D)."""
    loss = build_simclr(image_width=rows.shape[2], layers=0, temperature=TEMPERATURE)
    batch = batch_of([-1] * len(rows), [-1] * len(rows), views=1)._replace(images=rows.view(len(rows), 2, -1, 1, 1))

    class Given(FeatureTable):
        def encode_image(self, images: Tensor, /):  # noqa: ANN202
            return super().encode_image(images[:1] * 0)._replace(pooled=images.flatten(1))

    return lambda: loss(Given(1, 1), batch)["loss"]


def make_dense(rows: Tensor) -> Loss:
    """Return lightly's loss of the two views."""
    from lightly.loss import NTXentLoss

    return lambda: NTXentLoss(TEMPERATURE)(rows[:, 0], rows[:, 1])


MAKERS = {"tiled": make_tiled, "dense": make_dense}


def make_rows(views: int, dim: int) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(views // 2, 2, dim, generator=noise), dim=2).requires_grad_()


def time_once(loss: Loss, rows: Tensor) -> float:
    """Return the seconds of value and gradient."""
    rows.grad = None
    begun = time.perf_counter()
    loss().backward()
    return time.perf_counter() - begun


def peak_bytes() -> int:
    """Return the peak of this program's memory, on Linux; ``ru_maxrss`` would be that of the parent too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure_memory(name: str, views: int, dim: int) -> float:
    """Return the MiB that a loss adds to the peak of a fresh process."""
    words = [sys.executable, __file__, "--views", str(views), "--dim", str(dim), "--alone", name]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--views", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        small = make_rows(64, options.dim)
        time_once(MAKERS[options.alone](small), small)  # imports, threads, caches
        rows = make_rows(options.views, options.dim)
        before = peak_bytes()
        time_once(MAKERS[options.alone](rows), rows)
        sys.stdout.write(f"{peak_bytes() - before}\n")
        return
    rows = make_rows(options.views, options.dim)
    losses = {name: make(rows) for name, make in MAKERS.items()}
    values: dict[str, float] = {}
    for name, loss in losses.items():
        time_once(loss, rows)
        values[name] = loss().item()
    rounds = [{name: time_once(loss, rows) for name, loss in losses.items()} for _ in range(options.rounds)]
    ratio = statistics.median(each["tiled"] / each["dense"] for each in rounds)
    memory = {name: measure_memory(name, options.views, options.dim) for name in MAKERS}
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"NT-Xent of {options.views} views, {options.dim} numbers each; threads {torch.get_num_threads()}")
    for name in MAKERS:
        seconds = statistics.median(each[name] for each in rounds)
        console.print(f"{name}: loss {values[name]:.6f}, {seconds:.2f} s, {memory[name]:.0f} MiB")
    console.print(f"tiled / dense: time {ratio:.2f}, memory {memory['tiled'] / memory['dense']:.3f}")


if __name__ == "__main__":
    main()
