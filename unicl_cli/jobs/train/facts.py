"""The facts of a training in the ``trainer.json`` of its checkpoints."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from unicl_cli.core.checkpoint_files import CheckpointFacts, read_facts
from unicl_cli.core.guard import GuardState
from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, Natural, StepCount

NEEDED = {"offset", "best", "tokens", "guard", "scaler", "threads", "corpora"}
"""State without which a training cannot continue as if it had never stopped."""
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
"""State of torch's GradScaler."""


def _check_scaler(state: dict[str, float]) -> dict[str, float]:
    if not state.keys() >= SCALER or min(state.values()) < 0 or state["scale"] == 0:
        raise ValueError("is not the state of a gradient scaler")
    return state


class BestFigure(Document):
    """The best validation so far."""

    step: StepCount
    metric: str
    value: float


class TrainingFacts(CheckpointFacts):
    """``trainer.json`` of a training; a checkpoint of an earlier version lacks some keys."""

    micro: Annotated[int, Field(gt=0, le=2**24)] | None = None
    tokens: Natural = 0
    offset: StepCount = 0
    best: BestFigure | None = None
    guard: GuardState | None = None
    scaler: Annotated[dict[str, float], AfterValidator(_check_scaler)] | None = None
    threads: Annotated[int, Field(gt=0, le=4096)] = 1
    recipe: str | None = None
    corpora: Annotated[dict[str, str], Field(default_factory=dict)]


def read_training_facts(folder: Path) -> dict[str, Any]:
    """Return ``trainer.json`` of a checkpoint of a training. UniclError if it is damaged or lacks state."""
    facts = read_facts(folder, TrainingFacts)
    missing = sorted(NEEDED - facts.keys())
    if missing or facts["guard"] is None:
        what = missing[0] if missing else "guard"
        message = f"the checkpoint of step {facts['step']} was written by an earlier unicl: no {what}"
        raise UniclError(message, "start a new run with --run-dir")
    return facts
