"""When a run is in trouble: updates that were left out, spikes, a logit scale that sticks; all saved with the run."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from unicl_cli.errors import UniclError

WINDOW = 10_000
RECENT = 200
FIRST = 20
IN_A_ROW = 3
CAPPED_STEPS = 1_000
LOW_SCALE = 5.0
HINT = "lower optim.lr or lengthen schedule.warmup; the last checkpoint is from before"


class Diverged(UniclError):  # noqa: N818 - the run's state, not a mistake
    """A run that does not go on: exit code 3. ``evidence`` of step ``step`` is for its crash folder."""

    def __init__(self, message: str, hint: str, step: int, evidence: Mapping[str, Any]) -> None:
        super().__init__(message, hint, exit_code=3)
        self.step, self.evidence = step, evidence


class BadSteps:
    """Counts updates that were left out since a loss or a gradient was not finite.

    The run may have ``in_a_row`` of them in a row, and ``share`` of its last 10,000 steps. A gradient that only
    overflowed in fp16 is how its scaler finds the scale: it counts in a row, and not for the share.
    """

    def __init__(self, in_a_row: int = 10, share: float = 0.001) -> None:
        self.in_a_row, self.most = in_a_row, round(share * WINDOW)
        self.row = 0
        self.recent: list[int] = []

    def count(self, step: int, *, bad: bool, overflow: bool = False) -> None:
        """The outcome of step number ``step``, each in turn."""
        self.recent = [known for known in self.recent if known > step - WINDOW]
        self.row = self.row + 1 if bad else 0
        if bad and not overflow:
            self.recent.append(step)

    def room(self) -> int:
        """How many bad steps from now on do not end the run, whichever they are."""
        return min(self.in_a_row - self.row, self.most - len(self.recent))

    def reason(self) -> str | None:
        """Why the run has to end; None where it goes on."""
        if self.row > self.in_a_row:
            return f"{self.row} times in a row" if self.row > 1 else "once"
        if len(self.recent) > self.most:
            return f"{len(self.recent)} times in {WINDOW:,} steps"
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"row": self.row, "recent": list(self.recent)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.row, self.recent = int(state["row"]), list(state["recent"])


class Spikes:
    """Finds three logged values in a row above the median + 6 MAD of the last 200."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.high, self.calm_step = 0, 0

    def add(self, step: int, value: float) -> float | None:
        """The limit, where this value is the third in a row above it; what is not finite is no value."""
        if not math.isfinite(value):
            return None
        limit = self.limit()
        self.high = self.high + 1 if value > limit else 0
        if not self.high:
            self.calm_step = step
        if not self.high or self.high > IN_A_ROW:  # what stays there after it was told is what is usual now
            self.recent.append(value)
        return limit if self.high == IN_A_ROW else None

    def limit(self) -> float:
        """Median + 6 x the median absolute deviation, from 20 values on."""
        if len(self.recent) < FIRST:
            return math.inf
        median = statistics.median(self.recent)
        return median + 6 * statistics.median(abs(value - median) for value in self.recent)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"recent": list(self.recent), "high": self.high, "calm_step": self.calm_step}

    def load(self, state: Mapping[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=RECENT)
        self.high, self.calm_step = int(state["high"]), int(state["calm_step"])


class ScaleWatch:
    """Tells, once each, of a logit scale that stays at its cap or that falls under 5 after the warm-up."""

    def __init__(self, cap: float | None, warmup: int) -> None:
        self.cap, self.warmup = cap, warmup
        self.capped_since: int | None = None
        self.was_high = False
        self.told: list[str] = []

    def add(self, step: int, value: float) -> str | None:
        """A warning, or None."""
        self.was_high |= value >= LOW_SCALE
        capped = self.cap is not None and value >= self.cap * (1 - 1e-6)
        self.capped_since = (step if self.capped_since is None else self.capped_since) if capped else None
        if self.capped_since is not None and step - self.capped_since > CAPPED_STEPS:
            return self.once("cap", f"logit_scale has been at its cap of {self.cap:g} for {CAPPED_STEPS:,} steps")
        if step > self.warmup and self.was_high and value < LOW_SCALE:
            return self.once("low", f"logit_scale has fallen to {value:.2f}")
        return None

    def once(self, name: str, fact: str) -> str | None:
        if name in self.told:
            return None
        self.told.append(name)
        return fact

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"capped_since": self.capped_since, "was_high": self.was_high, "told": list(self.told)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.capped_since, self.was_high = state["capped_since"], bool(state["was_high"])
        self.told = list(state["told"])


class Spike(NamedTuple):
    """What is to be said of a figure that was far above its usual values, and the last line before it rose."""

    words: str
    calm_step: int


class Figures:
    """Watches what is logged: loss, gradient norm, logit scale."""

    SPIKING: Mapping[str, str] = {"loss": "loss", "grad_norm": "gradient norm"}

    def __init__(self, cap: float | None = None, warmup: int = 0) -> None:
        self.spikes = {name: Spikes() for name in self.SPIKING}
        self.scale = ScaleWatch(cap, warmup)

    def watch(self, step: int, values: Mapping[str, float]) -> tuple[list[Spike], str | None]:
        """The spikes that this line completes, and what is to be said of the scale."""
        found: list[Spike] = []
        for name, spikes in self.spikes.items():
            value = values.get(name, math.nan)
            limit = spikes.add(step, value)
            if limit is not None:
                words = f"the {self.SPIKING[name]} is {value:.3f}, for three lines above {limit:.3f} (median + 6 MAD)"
                found.append(Spike(words, spikes.calm_step))
        scale = values.get("logit_scale", math.nan)
        return found, self.scale.add(step, scale) if math.isfinite(scale) else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {**{name: spikes.state() for name, spikes in self.spikes.items()}, "scale": self.scale.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, spikes in self.spikes.items():
            spikes.load(state[name])
        self.scale.load(state["scale"])


class Guard:
    """All that a run knows of its own troubles: bad steps, the figures' history, how often it went back."""

    def __init__(self, bad: BadSteps, figures: Figures) -> None:
        self.bad, self.figures = bad, figures
        self.rollbacks = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON: the decisions of a resumed run are those of one that was never cut."""
        return {"bad": self.bad.state(), "figures": self.figures.state(), "rollbacks": self.rollbacks}

    def load(self, state: Mapping[str, Any]) -> None:
        self.bad.load(state["bad"])
        self.figures.load(state["figures"])
        self.rollbacks = int(state["rollbacks"])
