"""The targets of a run on a GPU, and what the JSON files of `gpu.py` say of each: met, missed, or not run."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_phases import PHASES
from rich.table import Table

Document = Mapping[str, Any]
OPEN_CLIP = "open_clip"


class Target(NamedTuple):
    """A figure that ``read`` finds in a command's document, and its bound; ``most``: it must not be above the bound."""

    phase: str
    command: str
    what: str
    bound: float | None
    read: Callable[[Document], float | None]
    most: bool = False
    unit: str = "×"


class Verdict(NamedTuple):
    """A target with the figure that a run gave; ``verdict``: met, missed, not run, or nothing to judge."""

    phase: str
    what: str
    bound: str
    figure: str
    verdict: str


def row_of(document: Document, name: str) -> Document | None:
    return next((row for row in document["rows"] if row["name"] == name), None)


def seconds(document: Document, row: str, variant: str) -> float | None:
    """Return the median time of a variant; None if it was not measured."""
    found = row_of(document, row)
    return None if found is None or variant not in found["variants"] else found["variants"][variant]["median_s"]


def speed(row: str, ours: str, theirs: str) -> Callable[[Document], float | None]:
    """Read how many times as fast ``ours`` is as ``theirs``."""

    def read(document: Document) -> float | None:
        mine, other = seconds(document, row, ours), seconds(document, row, theirs)
        return None if mine is None or other is None else other / mine

    return read


def memory(row: str, ours: str, theirs: str) -> Callable[[Document], float | None]:
    """Read the share of ``theirs``'s peak memory that ``ours`` takes."""

    def read(document: Document) -> float | None:
        found = row_of(document, row)
        peaks = [] if found is None else [found["variants"].get(who, {}).get("mib") for who in (ours, theirs)]
        return peaks[0] / peaks[1] if len(peaks) == 2 and all(peaks) else None

    return read


def share_of_peak(row: str, variant: str, product: str) -> Callable[[Document], float | None]:
    """Read the useful operations per second of a variant as a share of those of one large product."""

    def read(document: Document) -> float | None:
        took, found, yardstick = seconds(document, row, variant), row_of(document, row), row_of(document, "product")
        if took is None or found is None or yardstick is None or product not in yardstick["variants"]:
            return None
        return found["facts"]["flop"] / took / yardstick["variants"][product]["per_s"]

    return read


def fact(row: str, *names: str) -> Callable[[Document], float | None]:
    """Read a number among the facts of a row."""

    def read(document: Document) -> float | None:
        found: Any = row_of(document, row)
        for name in ("facts", *names):
            found = None if found is None else found.get(name)
        return found

    return read


def loss_targets() -> list[Target]:
    found: list[Target] = []
    for name, peak in (("bf16", "bf16"), ("fp32", "fp32")):
        of = f"loss, {name}, d = 512"
        found += [
            Target("loss", name, f"{of}, B = 8,192: time / open_clip's", 1.2, slower("B=8192"), most=True),
            Target(
                "loss", name, f"{of}, B = 8,192: memory / dense", 0.1, memory("B=8192", "folded", "dense"), most=True
            ),
        ]
        for size in (8192, 32768, 131072):
            at, row = f"{of}, one positive per row, B = {size:,}", f"pairs B={size}"
            found += [
                Target("loss", name, f"{at}: times as fast as memeff", None, speed(row, "tiled", "memeff")),
                Target("loss", name, f"{at}: times as fast as open_clip", None, speed(row, "tiled", OPEN_CLIP)),
                Target("loss", name, f"{at}: times as fast as torch's tiles", None, speed(row, "tiled", "torch tiles")),
                Target(
                    "loss", name, f"{at}: share of the {peak} peak", None, share_of_peak(row, "tiled", peak), unit=""
                ),
            ]
    return found


def slower(row: str) -> Callable[[Document], float | None]:
    """Read our time as a multiple of open_clip's."""
    return speed(row, OPEN_CLIP, "folded")


def step_targets() -> list[Target]:
    found: list[Target] = []
    for command, model in (("vit", "ViT-B/32"), ("swin", "Swin-T")):
        for words, row, bound in (("captions", "captions", 1.3), ("labels", "labels-1000-t80", 1.5)):
            what = f"step, {model}, {words}, batch 256 / open_clip"
            found.append(Target("step", command, what, bound, speed(row, "unicl", OPEN_CLIP)))
            what = f"step, {model}, {words}, largest batch / open_clip"
            large = f"largest-{words}"
            found.append(Target("step", f"{command}-largest", what, bound, speed(large, "unicl", OPEN_CLIP)))
    frozen = speed("frozen-captions", "unicl", OPEN_CLIP)
    compiled = speed("compiled-captions", "unicl, compiled", "unicl")
    waits = "step: times that the host waits for the GPU"
    return [
        *found,
        Target("step", "frozen", "step, ViT-B/32, frozen text tower / open_clip", None, frozen),
        Target("step", "compiled", "step, ViT-B/32, compiled / not compiled", None, compiled),
        Target("step", "vit", f"{waits}, no line logged", 0, fact("profile", "host_waits"), most=True, unit=""),
        Target("step", "vit", f"{waits}, a line logged", 1, fact("profile", "host_waits_logged"), most=True, unit=""),
    ]


def other_targets() -> list[Target]:
    waited = fact("training", "waited", "unicl")
    device = speed("training", "simclr on device", "simclr in workers")
    return [
        Target("feeding", "training", "JPEG to trained step / open_clip", None, speed("training", "unicl", OPEN_CLIP)),
        Target("feeding", "training", "the same: share of the time that waits for data", None, waited, unit=""),
        Target("feeding", "training", "SimCLR's augmentation on the device / in workers", None, device),
        Target(
            "feeding", "files", "JPEG to augmented uint8 / open_clip", 2, speed("decode+augment", "unicl", OPEN_CLIP)
        ),
        Target("rest", "text", "text tower, captions / open_clip", 3, speed("captions", "unicl", OPEN_CLIP)),
        Target("rest", "text", "text tower, prompts / open_clip", 5, speed("prompts-100", "unicl", OPEN_CLIP)),
        Target("rest", "eval", "zero-shot classifier / open_clip", 8, speed("classifier-100x80", "unicl", OPEN_CLIP)),
        Target("rest", "eval", "image features / open_clip", None, speed("pictures", "unicl", OPEN_CLIP)),
        Target("rest", "probe", "probe / scikit-learn", 30, speed("sweep", "unicl", "sklearn, default")),
    ]


def read_json(path: Path) -> Any:
    """Return a file's document; None if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def judge_target(target: Target, out: Path, *, toy: bool) -> Verdict:
    document = None if toy else read_json(out / target.phase / f"{target.command}.json")  # other sizes: another figure
    figure = None if document is None else target.read(document)
    bound = "" if target.bound is None else f"{'≤' if target.most else '≥'} {target.bound:g}{target.unit}"
    if figure is None:
        return Verdict(target.phase, target.what, bound, "", f"not run{why_missing(document, target)}")
    if target.bound is None:
        verdict = ""
    elif figure <= target.bound if target.most else figure >= target.bound:
        verdict = "met"
    else:
        verdict = "missed"
    return Verdict(target.phase, target.what, bound, f"{figure:.3g}{target.unit}", verdict)


def why_missing(document: Document | None, target: Target) -> str:
    """Return the reason that a document gives for a variant that it skipped, in brackets."""
    for row in [] if document is None else document["rows"]:
        for variant, reason in row["skipped"].items():
            if variant in target.what and row["name"].rpartition("=")[2] in target.what.replace(",", ""):
                return f" ({variant}: {reason})"
    return ""


def judge_tests(phase: str, out: Path, *, toy: bool) -> list[Verdict]:
    """Return a verdict for each file of tests: met if every test passed that was to run."""
    found: list[Verdict] = []
    for file in sorted((out / phase).glob("*.json")):
        document = read_json(file)
        if document.get("schema") != "unicl/outcomes/1":
            continue
        outcomes = [test["outcome"] for test in document["tests"]]
        counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
        counts["not reached"] = len(document.get("collected", ())) - len(outcomes)
        figure = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        verdict = "met"
        if counts["failed"]:
            verdict = "missed"
        elif not counts["passed"]:
            verdict = "not run"
        elif counts["not reached"] or not document["complete"]:
            verdict = "cut"
        elif toy:
            verdict = "toy size"
        found.append(Verdict(phase, f"checks of {file.stem}", "all pass", figure, verdict))
    return found or [Verdict(phase, PHASES[phase][0], "all pass", "", "not run")]


def judge_run(out: Path) -> list[Verdict]:
    """Return all verdicts on the run whose files are in ``out``; without files, every target is not run."""
    toy = bool((read_json(out / "gpu.json") or {}).get("toy"))
    targets = [*loss_targets(), *step_targets(), *other_targets()]
    judged = [judge_target(target, out, toy=toy) for target in targets]
    return [*judge_tests("right", out, toy=toy), *judged, *judge_tests("many", out, toy=toy)]


def phase_states(out: Path) -> list[tuple[str, str, Sequence[str]]]:
    """Return (phase, state, commands that did not end well) of each phase that was begun."""
    found: list[tuple[str, str, Sequence[str]]] = []
    for name in PHASES:
        document = read_json(out / f"{name}.json")
        if document is not None:
            bad = [f"{c['name']}: {c['state']}" for c in document["commands"] if c["state"] != "done"]
            found.append((name, document["state"], bad))
    return found


def result_table(out: Path) -> Table:
    """Return the table that ends a run: every target that was measured or has a reason, and how each phase ended."""
    table = Table(pad_edge=False, caption=f"JSON: {out}")
    for name in ("phase", "what", "bound", "measured", ""):
        table.add_column(name)
    for verdict in judge_run(out):
        if verdict.verdict != "not run":
            table.add_row(*verdict)
    for phase, state, bad in phase_states(out):
        table.add_row(phase, "the phase", "", "; ".join(bad), state)
    return table
