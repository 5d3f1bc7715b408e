"""The experiments on targets beyond one key: own texts, label sets, taxonomies, and options that are off by default.

    python benchmarks/targets.py --out DIR --seeds 5 [own-text] [sets] [taxonomy] [options] [long-tail]

Every arm of an experiment trains for as many steps and is measured on the same test images. Differences from the first
arm of its block are paired by seed, with 95 % intervals (Student's t). Runs that exist are kept. `docs/targets.md` has
the table.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import experiment
from experiment import cell
from rich.console import Console
from rich.table import Table
from shape_rows import RAREST, SEEN

from unicl_cli.data.sources.shapes import PAIRS

SOURCES = str(Path(__file__).with_name("shape_rows.py"))
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
KNOWN = (1.0, 0.5, 0.2)

CORPORA: dict[str, tuple[str, ...]] = {
    "together": ("--labels", "shapes?captions=true&count=3000&test=1"),
    "separate": ("--labels", "shapes?count=1500&test=1", "--captions", "shapes?count=1500&test=1"),
    "both": ("--labels", "shapes?captions=true&count=1500&test=1", "--captions", "shapes?count=1500&test=1"),
    "test": ("--labels", "shapes?captions=true&count=1&test=960"),
    **{f"sets-{known:g}": ("--labels", f"shape-sets?known={known}&test=1") for known in KNOWN},
    **{f"repeat-{known:g}": ("--labels", f"shape-sets?known={known}&test=1&form=repeat") for known in KNOWN},
    "sets-test": ("--labels", "shape-sets?count=1"),
    **{f"tree-{form}": ("--labels", f"shape-tree?form={form}&test=1") for form in ("tree", "flat", "leaves")},
    "tree-test": ("--labels", "shape-tree?form=leaves&inner=0&count=1"),
    "tail": ("--labels", "shape-tail?test=1"),
}
"""Corpus -> the sources that it is made of; 3,000 training images each, the long tail fewer."""
TRANSFORMER = "model.text={name: transformer, width: 64, layers: 2, heads: 4}"


class Arm(NamedTuple):
    """One line of a table: a corpus and the changes of a recipe."""

    block: str
    name: str
    corpus: str
    test: str
    recipe: str = "shapes-unicl"
    changes: tuple[str, ...] = ()


def own_text_arms() -> list[Arm]:
    """Return rows with label and caption, separate rows, and both, by the share of the target on a row's own text."""
    shares = [(corpus, share) for corpus in ("together", "both") for share in SHARES]
    return [
        Arm(corpus, f"own_text {share:g}", corpus, "test", changes=(f"loss.own_text={share}",))
        for corpus, share in [*shares[:5], ("separate", 0.0), *shares[5:]]
    ]


def set_arms() -> list[Arm]:
    """Return label sets, repeated rows and BCE, by the share of annotations that are there."""
    arms: list[Arm] = []
    for known in KNOWN:
        block = f"{known:.0%} of annotations"
        arms += [
            Arm(block, "rows repeated", f"repeat-{known:g}", "sets-test"),
            Arm(block, "label sets", f"sets-{known:g}", "sets-test"),
            Arm(block, "BCE", f"sets-{known:g}", "sets-test", "shapes-ce"),
        ]
    return arms


def taxonomy_arms() -> list[Arm]:
    """Return a taxonomy and two ways without one, where 30 % of the rows are labelled at an inner node."""
    block = "30 % of rows at an inner node"
    forms = (("leaves", "those rows left out"), ("flat", "flat classes"), ("tree", "taxonomy"))
    arms = [Arm(block, name, f"tree-{form}", "tree-test") for form, name in forms]
    return [
        *arms,
        Arm(block, "taxonomy, its own class alone", "tree-tree", "tree-test", changes=("data.ancestors=false",)),
    ]


def option_arms() -> list[Arm]:
    """Return the options of texts and classes, each against none; the first arms have runs of ``own-text``."""
    together, separate = "label and caption", "labels and captions apart"
    share = "loss.own_text=0.5"
    options = (
        (together, "together", "no option", share),
        (together, "together", "two texts", "data.text_for_labelled=both"),
        (together, "together", "heads: kind", "model.heads=kind"),
        (together, "together", "class columns", "loss.class_columns={}"),
        (separate, "separate", "no option", "loss.own_text=0.0"),
        (separate, "separate", "heads: kind", "model.heads=kind"),
        (separate, "separate", "class columns", "loss.class_columns={}"),
        (separate, "separate", "caption_labels: hide", "data.caption_labels=hide"),
        (separate, "separate", "caption_labels: positive", "data.caption_labels=positive"),
    )
    arms = [
        Arm(block, name, corpus, "test", changes=(change,) if name == "no option" else (share, change))
        for block, corpus, name, change in options
    ]
    block = f"{separate}, Transformer"
    arms.append(Arm(block, "no option", "separate", "test", changes=(TRANSFORMER,)))
    arms.append(Arm(block, "prefix: kind", "separate", "test", changes=(TRANSFORMER, "model.text.prefix=kind")))
    return arms


def tail_arms() -> list[Arm]:
    """Return powers of class shares, without and with the prompts of all classes beside each batch."""
    columns = ("loss.class_columns={}",)
    cases = (("batch alone", (), (0, -1, 1)), ("class columns", columns, (0, 1)))
    return [
        Arm(block, f"logit_adjustment {power}", "tail", "tree-test", changes=(*more, f"loss.logit_adjustment={power}"))
        for block, more, powers in cases
        for power in powers
    ]


EXPERIMENTS = {
    "own-text": own_text_arms,
    "sets": set_arms,
    "taxonomy": taxonomy_arms,
    "options": option_arms,
    "long-tail": tail_arms,
}
FIGURES = {
    "own-text": {"top1": "top-1", "r1": "text to image R@1", "r10": "R@10"},
    "sets": {"map": "mAP"},
    "taxonomy": {"top1": "top-1 of 18"},
    "options": {"top1": "top-1", "r1": "text to image R@1", "r10": "R@10"},
    "long-tail": {"top1": "top-1 of 18", "rare": f"of the rarest {RAREST}"},
}


def run_unicl(*words: str) -> str:
    return experiment.run_unicl("--plugin", SOURCES, *words, "-q")


def prepare(name: str, out: Path) -> None:
    run_unicl("prepare", *CORPORA[name], "-o", str(out / name), "--holdout", "0")


def measure(arm: Arm, seed: int, out: Path, steps: int) -> Mapping[str, float]:
    """Train an arm, or go on with it, and return its figures on the test images."""
    name = "-".join((arm.corpus, *arm.changes, *([] if arm.recipe == "shapes-unicl" else [arm.recipe]), str(seed)))
    file = out / f"{name}.json"
    if not file.exists():
        run = str(out / "runs" / file.stem)
        changes = [f"data.train.0.corpus={out / arm.corpus}", *arm.changes, f"seed={seed}", "eval=[]"]
        run_unicl("train", arm.recipe, *changes, f"steps={steps}", "--run-dir", run)
        (found,) = json.loads(run_unicl("eval", run, "--data", str(out / arm.test), "--json"))["data"]
        file.write_text(json.dumps(figures_of(found)))
    return json.loads(file.read_text())


def figures_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation that a table shows."""
    recall = found.get("retrieval", {}).get("text_to_image", {})
    figures = {"top1": found.get("top1"), "map": found.get("map"), "r1": recall.get("r1"), "r10": recall.get("r10")}
    recalls = {entry["class"]: entry["recall"] for entry in found.get("per_class", ())}
    if len(recalls) == SEEN and None not in recalls.values():
        figures["rare"] = mean(recalls[item.names[0]] for item in PAIRS[SEEN - RAREST : SEEN])
    return {name: value for name, value in figures.items() if value is not None}


def tabulate(name: str, results: Mapping[Arm, Sequence[Mapping[str, float]]], title: str) -> Table:
    """Return the table of an experiment; the first arm of each block is its base."""
    table = Table("rows", "target", *FIGURES[name].values(), title=title)
    bases: dict[str, Sequence[Mapping[str, float]]] = {}
    for arm, found in results.items():
        base = bases.setdefault(arm.block, found)
        cells = [cell([row[key] for row in found], [row[key] for row in base]) for key in FIGURES[name]]
        table.add_row(arm.block, arm.name, *cells)
    return table


def run_experiment(name: str, out: Path, seeds: int, steps: int) -> None:
    """Run one experiment, print its table and write its figures."""
    arms = EXPERIMENTS[name]()
    for corpus in dict.fromkeys(at for arm in arms for at in (arm.corpus, arm.test)):
        prepare(corpus, out)
    results: dict[Arm, list[Mapping[str, float]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            results[arm].append(measure(arm, seed, out, steps))
    Console().print(tabulate(name, results, f"{name}: {seeds} seeds, {steps} steps"))
    rows = [{**arm._asdict(), "runs": found} for arm, found in results.items()]
    (out / f"{name}.json").write_text(json.dumps({"steps": steps, "rows": rows}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", choices=[[], *EXPERIMENTS], default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    for name in options.experiments or EXPERIMENTS:
        run_experiment(name, options.out, options.seeds, options.steps)


if __name__ == "__main__":
    main()
