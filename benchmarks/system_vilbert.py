"""ViLBERT on scenes of four shapes: words, regions, alignment and expressions with and without co-attention."""

import json
import sys
from pathlib import Path
from statistics import mean

from experiment import interval, run_unicl
from rich.table import Table

from unicl_cli.data.sources.scenes import scenes

SEER = ("shapes-unicl", "data.workers=0")
ARMS = {"with co-attention": "true", "without": "false"}
PRETRAINING = ("words", "regions", "align", "text_to_image_r1_of_32")
EXPRESSIONS = ("acc@0.5", "boxes zeroed")
STEPS = 300


def run(out: Path, seeds: int) -> list[Table]:
    """Train every arm over the seeds; return the table."""
    out.mkdir(parents=True, exist_ok=True)
    corpora = {"captions": out / "scenes", "refer": out / "scenes-refer"}
    prepare(out, corpora)
    found = {
        (arm, seed): {
            **figures(out, corpora["captions"], "vilbert-shapes", arm, seed),
            **refer(out, corpora, arm, seed),
        }
        for seed in range(seeds)
        for arm in ARMS
    }
    draw_attention(out)
    return [table_of(found, seeds)]


def draw_attention(out: Path) -> None:
    """Draw `attention.png`, the picture of the plugin's README: the words of a held-out scene on its regions."""
    source = scenes(kind="captions")
    row = source.rows("test")[0]
    found = source.read(row)
    for name, kind in (("scene.png", "image"), ("scene.json", "boxes")):
        (out / name).write_bytes(found[kind])
    run = str(out / "vilbert-shapes-true-0")
    image, boxes = str(out / "scene.png"), str(out / "scene.json")
    run_unicl(
        "vilbert", "maps", image, row.texts[0], "--model", run, "--boxes", boxes, "-o", str(out / "attention.png")
    )


def prepare(out: Path, corpora: dict[str, Path]) -> None:
    """Make the corpora and the frozen run that sees the regions."""
    for task, corpus in corpora.items():
        if not corpus.is_dir():
            run_unicl("prepare", "--captions", f"scenes?task={task}&test=500", "-o", str(corpus), "-q")
    shapes, seer = out / "shapes", out / "seer"
    if not shapes.is_dir():
        run_unicl("prepare", "--labels", "shapes", "--captions", "shapes", "-o", str(shapes), "-q")
    if not (seer / "model.safetensors").is_file():
        data = (f"data.train=[{{corpus: {shapes}}}]", "eval=[]")
        run_unicl("train", *SEER, *data, "--run-dir", str(seer), "-q")


def figures(out: Path, corpus: Path, recipe: str, arm: str, seed: int, *more: str) -> dict[str, float]:
    """Train one run, or take the one that is there; return the loss's own figures on the test split."""
    name = f"{recipe}-{ARMS[arm]}-{seed}"
    kept = out / f"{name}.json"
    if not kept.is_file():
        changes = (
            f"seed={seed}", f"steps={STEPS}", f"data.train=[{{corpus: {corpus}}}]", f"model.co_attention={ARMS[arm]}",
            f"model.regions.model={out / 'seer'}", "data.workers=0", *more,
        )  # fmt: skip
        run_unicl("train", recipe, *changes, "--run-dir", str(out / name), "-q")
        kept.write_text(json.dumps(measure(out / name, corpus)), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def measure(run_folder: Path, corpus: Path, *more: str) -> dict[str, float]:
    """Return the figures of `unicl eval --evaluator loss`."""
    words = ("eval", str(run_folder), "--data", str(corpus), "--evaluator", "loss", "--json", *more)
    return json.loads(run_unicl(*words))["data"][0]["evaluators"]["loss"]


def refer(out: Path, corpora: dict[str, Path], arm: str, seed: int) -> dict[str, float]:
    """Train on referring expressions from the arm's own pre-training; add the accuracy with all boxes zeroed."""
    start = out / f"vilbert-shapes-{ARMS[arm]}-{seed}"
    found = figures(out, corpora["refer"], "vilbert-refer", arm, seed, f"model.init={start}")
    kept = out / f"zeroed-{ARMS[arm]}-{seed}.json"
    if not kept.is_file():
        kept.write_text(
            json.dumps(zeroed(out / f"vilbert-refer-{ARMS[arm]}-{seed}", corpora["refer"])), encoding="utf-8"
        )
    return {**found, "boxes zeroed": json.loads(kept.read_text(encoding="utf-8"))}


def zeroed(run_folder: Path, corpus: Path) -> float:
    """Return acc@0.5 of a run whose box embedding has been set to 0, in a copy of the run."""
    import shutil

    from safetensors.torch import load_file, save_file

    copy = run_folder.with_name(f"{run_folder.name}-zeroed")
    shutil.copytree(run_folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_regions.box.weight"].zero_()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return measure(copy, corpus)["acc@0.5"]


def table_of(found: dict[tuple[str, int], dict[str, float]], seeds: int) -> Table:
    """Return mean and half width of the 95 % interval of each figure, in percent."""
    table = Table(title=f"ViLBERT on scenes, {STEPS} steps, {seeds} seeds: percent on 500 held-out rows")
    table.add_column("figure")
    for arm in ARMS:
        table.add_column(arm, justify="right")
    for name in (*PRETRAINING, *EXPRESSIONS):
        cells = []
        for arm in ARMS:
            values = [found[arm, seed][name] for seed in range(seeds)]
            centre, half = interval(values) if seeds > 1 else (mean(values), float("nan"))
            cells.append(f"{100 * centre:.1f} ± {100 * half:.1f}")
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    sys.exit("run benchmarks/systems.py vilbert")
