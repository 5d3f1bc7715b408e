"""Helpers of the tests in tests/gpu: the card, or the CPU in its place at toy size, and trainings on either."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from launching import recipe

from unicl_cli.cli import main

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
needs_card = pytest.mark.skipif(not CARD, reason="needs a GPU")
marks = [pytest.mark.gpu] if CARD else [pytest.mark.gpu, pytest.mark.slow]
"""Of a file whose tests run at toy size among the slow ones, too: they have to work on the day that there is a card."""
SMALL = {
    "image": {"name": "cnn", "width": 16, "stages": 2},
    "text": {"name": "transformer", "width": 32, "layers": 2, "heads": 2},
    "embed_dim": 32,
    "tokenizer": "corpus",
    "context_length": 16,
}


def at(card: Any, toy: Any) -> Any:
    """Choose a size: on a card, or without one."""
    return card if CARD else toy


def train(folder: Path, corpus: Path, *words: str, cpu: bool = False, steps: int = 20, **changes: Any) -> Path:
    """Run `unicl train` in this process on the card, or on the CPU; return the run directory."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train on both, one after the other
    folder.mkdir(exist_ok=True)
    keys = {"precision": "fp32", "model": SMALL, "batch": {"size": 24}, "every": steps} | changes
    file = recipe(folder, corpus, steps=steps, **keys)
    devices = "1" if CARD and not cpu else "cpu:1"
    sys.argv = ["unicl"]
    done = ("train", str(file), "--run-dir", str(folder / "run"), "--devices", devices, "-q", *words)
    assert main([*done]) == 0
    return folder / "run"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path, name: str = "loss") -> torch.Tensor:
    """Return the logged values of a run, (steps,)."""
    return torch.tensor([line[name] for line in metrics(run)], dtype=torch.float64)
