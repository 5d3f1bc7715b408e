"""Guards against divergence: skipped updates, spikes, a stuck logit scale; their history is saved with the run."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, StepCount

WINDOW = 10_000
"""Window of steps of which only a share may be bad."""
RECENT, FIRST = 200, 20
"""Number of logged values in the median, and the least number for it to count."""
IN_A_ROW = 3
"""Consecutive values above the limit that make a spike."""
CAPPED_STEPS = 1_000
"""Steps at its cap after which there is a warning about the logit scale."""
LOW_SCALE = 5.0
"""Logit scale below which there is a warning, once it has been above."""
HINT = "lower optim.lr or lengthen schedule.warmup; the last checkpoint is from before"


class BadStepsState(Document):
    """The state of `BadSteps`."""

    row: StepCount
    recent: Annotated[list[StepCount], Field(max_length=WINDOW)]


class SpikesState(Document):
    """The state of `Spikes`."""

    recent: Annotated[list[float], Field(max_length=RECENT)]
    high: StepCount
    calm_step: StepCount


class ScaleState(Document):
    """The state of `ScaleWatch`."""

    capped_since: StepCount | None
    was_high: bool
    told: list[str]


class FiguresState(Document):
    """The state of `Figures`."""

    loss: SpikesState
    grad_norm: SpikesState
    scale: ScaleState


class GuardState(Document):
    """The state of `DivergenceGuard`, as ``trainer.json`` holds it."""

    bad: BadStepsState
    figures: FiguresState
    rollbacks: StepCount


class Diverged(UniclError):  # noqa: N818 - the run's state, not a mistake
    """A run that cannot continue: exit code 3. ``evidence`` of step ``step`` goes to its crash folder."""

    def __init__(self, message: str, hint: str, step: int, evidence: Mapping[str, Any]) -> None:
        super().__init__(message, hint, exit_code=3)
        self.step, self.evidence = step, evidence


def divergence_error(message: str) -> UniclError:
    """Return the error for a model whose outputs are not finite."""
    hint = "evaluate an earlier checkpoint, or use precision fp32: the weights have probably diverged"
    return UniclError(message, hint, exit_code=1)


class BadSteps:
    """A counter of bad steps: updates that were skipped because the loss or its gradient was not finite.

    A run may have ``in_a_row`` of them in a row, and ``share`` of its last 10,000 steps. A gradient that only
    overflowed in fp16 counts in a row but not towards the share: that is how the scaler finds its scale.
    """

    def __init__(self, in_a_row: int = 10, share: float = 0.001) -> None:
        self.in_a_row, self.most = in_a_row, round(share * WINDOW)
        self.row = 0
        self.recent: list[int] = []

    def count(self, step: int, *, bad: bool, overflow: bool = False) -> None:
        """Count the outcome of step number ``step``; steps come in order."""
        self.recent = [known for known in self.recent if known > step - WINDOW]
        self.row = self.row + 1 if bad else 0
        if bad and not overflow:
            self.recent.append(step)

    def bad_steps_left(self) -> int:
        """Return the number of bad steps that the run survives from here on, in a row or not."""
        return min(self.in_a_row - self.row, self.most - len(self.recent))

    def reason(self) -> str | None:
        """Return the reason for which the run must end, or None."""
        if self.row > self.in_a_row:
            return f"{self.row} times in a row" if self.row > 1 else "once"
        if len(self.recent) > self.most:
            return f"{len(self.recent)} times in {WINDOW:,} steps"
        return None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON."""
        return {"row": self.row, "recent": list(self.recent)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.row, self.recent = int(state["row"]), list(state["recent"])


class Spikes:
    """A detector of spikes: three logged values in a row above the median + 6 MAD of the last 200."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.high, self.calm_step = 0, 0

    def add(self, step: int, value: float) -> float | None:
        """Add a value, ignored if not finite; return the limit if this is the third value in a row above it."""
        if not math.isfinite(value):
            return None
        limit = self.limit()
        self.high = self.high + 1 if value > limit else 0
        if not self.high:
            self.calm_step = step
        if not self.high or self.high > IN_A_ROW:  # a value that stays high after the warning is the new normal
            self.recent.append(value)
        return limit if self.high == IN_A_ROW else None

    def limit(self) -> float:
        """Return the median + 6 x the median absolute deviation; infinite before 20 values."""
        if len(self.recent) < FIRST:
            return math.inf
        median = statistics.median(self.recent)
        return median + 6 * statistics.median(abs(value - median) for value in self.recent)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON."""
        return {"recent": list(self.recent), "high": self.high, "calm_step": self.calm_step}

    def load(self, state: Mapping[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=RECENT)
        self.high, self.calm_step = int(state["high"]), int(state["calm_step"])


class ScaleWatch:
    """Two warnings, once each: the logit scale stays at its cap, or falls under 5 after the warm-up."""

    def __init__(self, cap: float | None, warmup: int) -> None:
        self.cap, self.warmup = cap, warmup
        self.capped_since: int | None = None
        self.was_high = False
        self.reported: list[str] = []

    def add(self, step: int, value: float) -> str | None:
        """Add a value; return a warning, or None."""
        self.was_high |= value >= LOW_SCALE
        capped = self.cap is not None and value >= self.cap * (1 - 1e-6)
        if not capped:
            self.capped_since = None
        elif self.capped_since is None:
            self.capped_since = step
        if self.capped_since is not None and step - self.capped_since > CAPPED_STEPS:
            return self.once("cap", f"logit_scale has been at its cap of {self.cap:g} for {CAPPED_STEPS:,} steps")
        if step > self.warmup and self.was_high and value < LOW_SCALE:
            return self.once("low", f"logit_scale has fallen to {value:.2f}")
        return None

    def once(self, name: str, fact: str) -> str | None:
        """Return ``fact`` the first time, None ever after."""
        if name in self.reported:
            return None
        self.reported.append(name)
        return fact

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON."""
        return {"capped_since": self.capped_since, "was_high": self.was_high, "told": list(self.reported)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.capped_since, self.was_high = state["capped_since"], bool(state["was_high"])
        self.reported = list(state["told"])


class Spike(NamedTuple):
    """A metric far above its usual values: the message, and the last logged step before it rose."""

    words: str
    calm_step: int


class Figures:
    """The history of the logged metrics that are watched: loss, gradient norm, logit scale."""

    SPIKING: Mapping[str, str] = {"loss": "loss", "grad_norm": "gradient norm"}

    def __init__(self, cap: float | None = None, warmup: int = 0) -> None:
        self.spikes = {name: Spikes() for name in self.SPIKING}
        self.scale = ScaleWatch(cap, warmup)

    def watch(self, step: int, values: Mapping[str, float]) -> tuple[list[Spike], str | None]:
        """Add a logged line; return the spikes that it completes, and a warning about the scale or None."""
        found: list[Spike] = []
        for name, spikes in self.spikes.items():
            value = values.get(name, math.nan)
            limit = spikes.add(step, value)
            if limit is not None:
                above = f"the third line in a row above {limit:.3f} (median + 6 MAD)"
                found.append(Spike(f"the {self.SPIKING[name]} is {value:.3f}, {above}", spikes.calm_step))
        scale = values.get("logit_scale", math.nan)
        return found, self.scale.add(step, scale) if math.isfinite(scale) else None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON."""
        return {**{name: spikes.state() for name, spikes in self.spikes.items()}, "scale": self.scale.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, spikes in self.spikes.items():
            spikes.load(state[name])
        self.scale.load(state["scale"])


class DivergenceGuard:
    """The guards of a run: bad steps, the history of its metrics, the number of rollbacks."""

    def __init__(self, bad: BadSteps, figures: Figures) -> None:
        self.bad, self.figures = bad, figures
        self.rollbacks = 0

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON, so that a resumed run decides as one that never stopped."""
        return {"bad": self.bad.state(), "figures": self.figures.state(), "rollbacks": self.rollbacks}

    def load(self, state: Mapping[str, Any]) -> None:
        self.bad.load(state["bad"])
        self.figures.load(state["figures"])
        self.rollbacks = int(state["rollbacks"])
