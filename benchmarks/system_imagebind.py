"""Experiment `imagebind` of systems.py: sounds and texts that never met, beside their two legs and a shuffled control.

Images with captions are one corpus, images with spoken names another; the test rows have all three. ``shuffled`` trains
on the same images with the names of others.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import interval, run_unicl
from rich.table import Table

PLUGIN = ("--plugin", str(Path(__file__).with_name("shuffled_media.py")))
MEDIA = "media=audio"
SOURCES = {
    "texts": ("--captions", "shapes"),
    "media": ("--images", f"shapes?{MEDIA}"),
    "shuffled": ("--images", f"shuffled-shapes?{MEDIA}"),
    "all": ("--labels", f"shapes?count=1&captions=true&{MEDIA}"),
}
ARMS = {"bound": "media", "shuffled": "shuffled"}
TOWERS = (
    "{audio: {name: audio-transformer, width: 64, layers: 2, heads: 4, mels: 64, frames: 64, stride: 16}, depth: null}"
)
STEPS = 200
LEGS = ("text_to_image", "image_to_audio")
EMERGENT = ("audio_to_text", "text_to_audio")


def run(out: Path, seeds: int) -> list[Table]:
    """Train both arms and return the tables of recalls and of accuracies."""
    for name, (option, source) in SOURCES.items():
        if not (out / name / "manifest.json").is_file():
            run_unicl(*PLUGIN, "prepare", option, source, "-o", str(out / name), "-q")
    found = {arm: [train_arm(out, arm, seed) for seed in range(seeds)] for arm in ARMS}
    return [recall_table(found, seeds), accuracy_table(found, seeds)]


def train_arm(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """Return the figures of a run, trained unless it is finished."""
    folder, kept = out / f"{arm}-{seed}", out / f"{arm}-{seed}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    data = ", ".join(f"{{corpus: {out / name}}}" for name in ("texts", ARMS[arm]))
    words = [f"data.train=[{data}]", f"eval=[{{corpus: {out / 'all'}, split: test}}]", f"model.others={TOWERS}"]
    run_unicl("train", "imagebind-shapes", *words, f"steps={STEPS}", f"seed={seed}", "--run-dir", str(folder), "-q")
    told = run_unicl("eval", str(folder), "--evaluator", "cross-modal", "--data", str(out / "all"), "--json", "-q")
    figures = json.loads(told)["data"][0]["evaluators"]["cross-modal"]
    kept.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def recall_table(found: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> Table:
    """Return recall at 1 of the pairs that training showed, and of those that it did not."""
    table = Table(title=f"Recall at 1 among 960 rows, % (95 % interval, {seeds} seeds), {STEPS} steps")
    for name in ("arm", *(pair.replace("_", " ") for pair in (*LEGS, *EMERGENT))):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, runs in found.items():
        table.add_row(arm, *(cell([run["retrieval"][pair]["r1"] for run in runs]) for pair in (*LEGS, *EMERGENT)))
    first = next(iter(found.values()))[0]["retrieval"]
    table.add_row("chance", *(f"{100 * first[pair]['chance_r1']:.1f}" for pair in (*LEGS, *EMERGENT)))
    return table


def accuracy_table(found: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> Table:
    """Return the zero-shot accuracy of images and of sounds, and the verdict of the experiment."""
    table = Table(title=f"Zero-shot among 48 class names, % (95 % interval, {seeds} seeds)")
    for name in ("arm", "image", "audio"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, runs in found.items():
        table.add_row(arm, *(cell([run["zeroshot"][name]["top1"] for run in runs]) for name in ("image", "audio")))
    table.add_row("chance", "2.1", "2.1")
    emergent, control = ([run["retrieval"]["audio_to_text"]["r1"] for run in runs] for runs in found.values())
    change, half = interval([one - other for one, other in zip(emergent, control, strict=True)])
    verdict = "as published" if change > half else "within noise"
    table.caption = f"audio to text above the control: {100 * change:+.1f} ± {100 * half:.1f}: {verdict}"
    return table


def cell(values: Sequence[float]) -> str:
    """Return a mean in percent with the half width of its interval."""
    centre, half = interval(values)
    return f"{100 * centre:.1f} ± {100 * half:.1f}"
