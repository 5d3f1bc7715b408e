"""The phases of `gpu.py`, in order of value, and the commands of each: on a card, and at toy size without one."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OUTCOMES = "pytest_outcomes"
"""The pytest plugin of this folder that writes each test's outcome at once."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Command(NamedTuple):
    """A command of a phase; it writes its own JSON. ``weight``: its share of the phase's time."""

    name: str
    argv: tuple[str, ...]
    weight: float = 1.0
    env: Mapping[str, str] = {}


class Phase(NamedTuple):
    """A phase; ``weight``: its share of the time. What it does not use is left to the phases after it."""

    name: str
    title: str
    weight: float
    commands: tuple[Command, ...]


class Bench(NamedTuple):
    """A `unicl bench`: its words on a card, and at toy size; None: only on a card."""

    name: str
    card: str
    toy: str | None
    weight: float = 1.0


STEP = "--rounds 5 --only captions --only labels-1000-t80"
BENCHES: Mapping[str, tuple[Bench, ...]] = {
    "loss": (
        Bench(
            "bf16",
            "loss --all --sizes 4k,8k,32k,128k --precision bf16 --vs open_clip --rounds 3",
            "loss --all --sizes 64 --precision bf16 --vs open_clip --rounds 1 --no-peak",
        ),
        Bench("fp32", "loss --all --sizes 4k,8k,32k,128k --precision fp32 --vs open_clip --rounds 3", None),
    ),
    "step": (
        Bench(
            "vit",
            f"step --vs open_clip --model ViT-B-32 --batch 256 {STEP} --only profile",
            "step --vs open_clip --model tiny --batch 4 --rounds 1 --no-peak --only captions --only profile",
            4,
        ),
        Bench("swin", f"step --vs open_clip --model Swin-T --batch 256 {STEP}", None, 4),
        Bench(
            "vit-largest",
            "step --vs open_clip --model ViT-B-32 --batch 256 --rounds 3 --only largest-captions --only largest-labels",
            None,
            3,
        ),
        Bench("frozen", "step --vs open_clip --model ViT-B-32 --batch 256 --rounds 3 --only frozen-captions", None),
        Bench(
            "swin-largest",
            "step --vs open_clip --model Swin-T --batch 256 --rounds 3 --only largest-captions --only largest-labels",
            None,
            2,
        ),
        Bench("compiled", "step --model ViT-B-32 --batch 256 --rounds 3 --only compiled-captions", None, 2),
    ),
    "feeding": (
        Bench(
            "training",
            "loader --only training --vs open_clip --model ViT-B-32 --batch 256 --rounds 3",
            "loader --only training --vs open_clip --model tiny --batch 4 --rounds 1",
            2,
        ),
        Bench("files", "loader --vs open_clip --rounds 3 --only decode+augment --only batches", None),
    ),
    "rest": (
        Bench(
            "text",
            "text --vs open_clip --model ViT-B-32 --batch 256 --precision bf16 --rounds 3",
            "text --vs open_clip --model tiny --batch 4 --rounds 1 --no-peak --only captions",
        ),
        Bench(
            "eval",
            "eval --vs open_clip --model ViT-B-32 --classes 100 --batch 256 --rounds 3",
            "eval --vs open_clip --model tiny --classes 2 --batch 2 --rounds 1",
        ),
        Bench("probe", f"probe --only sweep --rounds 1 --threads {CORES}", None, 2),
    ),
}
MIRRORED = ("tests/core/test_prefetch.py", "tests/data/test_device_augment.py")
"""Files with single tests of a card beside those of the CPU."""
TESTS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "right": (("kernel", 2.5), ("step", 1.5), ("training", 2.0), ("memory", 1.0)),
    "many": (("many", 1.0),),
}
"""The files of tests/gpu that a phase runs, each in a process of its own: a fault of the card ends only one."""
PHASES: Mapping[str, tuple[str, float, float]] = {
    "right": ("values, gradients, training, memory against oracles", 0.32, 0.45),
    "loss": ("the loss beside torch, open_clip and memeff", 0.12, 0.09),
    "step": ("the training step beside open_clip", 0.34, 0.09),
    "feeding": ("JPEG files to trained steps", 0.11, 0.17),
    "rest": ("text tower, zero-shot evaluation, probe", 0.08, 0.1),
    "many": ("several cards equal one", 0.03, 0.1),
}
"""Title, and share of the time on a card and at toy size."""


def build_phases(out: Path, cards: int, *, interpreter: bool = False) -> list[Phase]:
    """Return all phases with their commands, which write below ``out``; without ``cards`` at toy size.

    ``interpreter``: the kernels run in Triton's. With one card, the phase that needs several has no commands.
    """
    extra = {"TRITON_INTERPRET": "1"} if interpreter else {}
    toy = not cards
    return [
        Phase(
            name,
            title,
            small if toy else weight,
            (*make_tests(name, out, extra), *make_benches(name, out, extra, toy=toy)),
        )
        if name != "many" or cards != 1
        else Phase(name, title, 1e-3, ())
        for name, (title, weight, small) in PHASES.items()
    ]


def make_tests(phase: str, out: Path, interpreter: Mapping[str, str]) -> list[Command]:
    """Return the phase's runs of pytest."""
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    found: list[Command] = []
    for name, weight in TESTS.get(phase, ()):
        files = (f"tests/gpu/test_{name}.py", *(MIRRORED if name == "step" else ()))
        words = ("-m", "pytest", "-q", "-m", "gpu", "-p", OUTCOMES, "-p", "no:cacheprovider", *files)
        env = {"PYTHONPATH": paths, "OUTCOMES_FILE": str(out / phase / f"{name}.json")}
        if name == "kernel":
            env |= interpreter
        found.append(Command(name, (sys.executable, *words), weight, env))
    return found


def make_benches(phase: str, out: Path, interpreter: Mapping[str, str], *, toy: bool) -> list[Command]:
    """Return the phase's benchmarks; at toy size only those that have one."""
    found: list[Command] = []
    for bench in BENCHES.get(phase, ()):
        words = bench.toy if toy else bench.card
        if words is None:
            continue
        file = out / phase / f"{bench.name}.json"
        argv = (sys.executable, "-m", "unicl_cli", "bench", *shlex.split(words), "-q", "-o", str(file))
        found.append(Command(bench.name, argv, bench.weight, interpreter if phase == "loss" else {}))
    return found
