"""Benchmark of the image cache: steps per second of `unicl train` with and without it, in turns, on shapes.

python benchmarks/image_cache.py --out DIR [--rounds 3]
"""

import json
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from experiment import run_unicl
from rich.console import Console
from rich.table import Table

TIMM = "{{name: timm, model: {model}, freeze: {freeze}}}"
CASES = {  # name -> image tower, side, batch
    "resnet18, 64 px, batch 64": (TIMM.format(model="resnet18", freeze="true"), 64, 64),
    "vit_tiny, 64 px, batch 64": (TIMM.format(model="vit_tiny_patch16_224", freeze="true"), 64, 64),
    "cnn, 64 px, batch 64": ("{name: cnn, freeze: true}", 64, 64),
    "cnn that learns, 64 px, batch 64": ("{name: cnn}", 64, 64),
}
STEPS, WARM = 12, 3
"""Steps of a run, and the first of them that are not timed."""


def time_steps(corpus: Path, folder: Path, image: str, side: int, batch: int, cache: str) -> float:
    """Train and return the median of the steps per second, the loader included."""
    run_unicl(
        *("train", "shapes-base", "--run-dir", str(folder), "--devices", "cpu:1", "-q", f"model.image={image}"),
        *(f"data.train=[{{corpus: {corpus}}}]", f"data.image_size={side}", f"batch.size={batch}", f"steps={STEPS}"),
        *("log.every=1", "eval=[]", f"parallel.image_cache={cache}"),
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return median(line["img_s"] / batch for line in lines[WARM:])


def main(out: Annotated[Path, typer.Option()], rounds: int = 3) -> None:
    """Time each case ``rounds`` times with the cache and without it, and print the ratios of the medians."""
    corpus = out / "corpus"
    if not (corpus / "manifest.json").is_file():
        given = ("--labels", "shapes?count=200&test=5", "--captions", "shapes?count=150&test=5")
        run_unicl("prepare", *given, "-o", str(corpus), "-q")
    table = Table("case", "steps/s with the cache", "steps/s without", "ratio (least to most of a round)")
    for number, (name, (image, side, batch)) in enumerate(CASES.items()):
        found: dict[str, list[float]] = {"auto": [], "off": []}
        for turn in range(rounds):
            for cache, rates in found.items():
                file = out / f"case-{number}-{turn}-{cache}.json"
                if not file.is_file():
                    rate = time_steps(corpus, file.with_suffix(""), image, side, batch, cache)
                    file.write_text(json.dumps(rate), encoding="utf-8")
                rates.append(json.loads(file.read_text(encoding="utf-8")))
        ratios = [on / off for on, off in zip(*found.values(), strict=True)]
        on, off = (median(rates) for rates in found.values())
        table.add_row(name, f"{on:.1f}", f"{off:.2f}", f"{on / off:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
