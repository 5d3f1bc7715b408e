"""Tiled against dense loss, forward and backward: time and peak memory, each run in a fresh process, alternating.

python benchmarks/loss.py                      # B = 8192, d = 512: dense, open_clip's ClipLoss, tiled
python benchmarks/loss.py --growth             # tiled alone up to B = 32768
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIANTS = ("dense", "open_clip", "tiled")


def resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """MiB: the most this process has held; it never goes down, hence one variant a process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(variant: str, rows: int, dim: int, tile: int | None, repeats: int) -> dict[str, Any]:
    """Half captions, half 1,000 classes, float32, one thread; MiB above the inputs, CPU seconds of each repeat."""
    import torch
    from open_clip.loss import ClipLoss
    from torch.nn import functional as F

    from unicl_cli.losses import both_ways

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)

    def step(n: int) -> tuple[float, float]:
        u, v = (F.normalize(torch.randn(n, dim, generator=draw), dim=-1).requires_grad_() for _ in range(2))
        caption = torch.rand(n, generator=draw) < 0.5
        keys = torch.where(caption, 2**40 + torch.arange(n), torch.randint(0, 1000, (n,), generator=draw))
        scale = torch.tensor(1 / 0.07, requires_grad=True)
        held, start = resident(), time.process_time()
        if variant == "tiled":
            loss = both_ways(u, v, keys, scale, tile=tile)["loss"]
        elif variant == "dense":
            logits = scale * u @ v.T  # as published: one product, soft targets
            same = (keys[:, None] == keys).float()
            targets = same / same.sum(1, keepdim=True)
            loss = -(targets * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * n)
        else:
            loss = ClipLoss()(u, v, scale)
        loss.backward()
        seconds.append(time.process_time() - start)
        return loss.item(), peak() - held

    seconds: list[float] = []
    step(64)  # loads the libraries
    draw.manual_seed(1)
    loss, mib = step(rows)
    for _ in range(repeats):
        step(rows)
    return {
        "variant": variant,
        "rows": rows,
        "loss": loss,
        "mib": mib,
        "seconds": statistics.median(seconds[-repeats:]),
    }


def fresh(variant: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", variant, "--rows", str(rows), "--dim", str(options.dim)]
    command += ["--repeats", str(options.repeats), *(["--tile", str(options.tile)] if options.tile else [])]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(out.stdout)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    runs = [fresh(variant, options.rows, options) for _ in range(options.rounds) for variant in VARIANTS]
    of = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(of["dense"], of["tiled"], strict=True))
    if gap > 1e-4:
        raise SystemExit(f"tiled and dense disagree by {gap}")
    for name in VARIANTS:
        row = {key: [run[key] for run in of[name]] for key in ("mib", "seconds")}
        ratio = {key: [a / b for a, b in zip(row[key], (r[key] for r in of["dense"]), strict=True)] for key in row}
        print(
            f"{name:10} B={options.rows} {spread(row['mib'], 0):>22} MiB  {spread(row['seconds']):>20} s   "
            f"of dense: memory {spread(ratio['mib'], 3)}, time {spread(ratio['seconds'])}",
            file=sys.stderr if options.json else sys.stdout,
        )
    return runs


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    runs = []
    for rows in (4096, 8192, 16384, 32768):
        runs.append(fresh("tiled", rows, options))
        line = f"tiled B={rows:6} {runs[-1]['mib']:6.0f} MiB ({runs[-1]['mib'] * 1024 / rows:.1f} KiB a row)  "
        print(f"{line}{runs[-1]['seconds']:.1f} s", file=sys.stderr if options.json else sys.stdout)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--tile", type=int, help="rows of a tile (default: chosen by the loss)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each variant, alternating")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps in a process, after the first one")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.rows, options.dim, options.tile, options.repeats)))
        return
    runs = growth(options) if options.growth else compare(options)
    if options.json:
        print(json.dumps({"schema": "unicl/bench-loss/1", "machine": platform.machine(), "runs": runs}))


if __name__ == "__main__":
    main()
