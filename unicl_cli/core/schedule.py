"""Learning rates as functions of the step: nothing to save, nothing to restore."""

import math


def lr_at(step: int, *, name: str, peak: float, warmup: int, steps: int, floor: float) -> float:
    """Return the rate of update ``step`` (0 the first): linear warm-up, then ``cosine`` to floor × peak or constant."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if name == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2)
