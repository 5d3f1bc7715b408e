"""Watch over a run's logged metrics: warnings about skipped updates, spikes and a stuck logit scale."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unicl_cli.build.optimizer import warmup_steps
from unicl_cli.core.guard import BadSteps, DivergenceGuard, Figures
from unicl_cli.jobs.train.checkpoints import Checkpoints
from unicl_cli.jobs.train.setup import Parts


def build_guard(parts: Parts) -> DivergenceGuard:
    """Build the guard with the limits of the recipe."""
    limits = parts.recipe.guard
    bad = BadSteps(0, 0.0) if limits.on_bad == "stop" else BadSteps(limits.max_bad_steps, limits.max_bad_share)
    scale: Any = parts.recipe.model.part.options.get("logit_scale")
    return DivergenceGuard(bad, Figures(getattr(scale, "max", None), warmup_steps(parts.recipe, parts.sizes.steps)))


def batch_sources(parts: Parts, step: int) -> str:
    """Return the files of the global batch number ``step``, each with its share."""
    strands, rows = parts.data.order.batch(step)
    places = zip((parts.data.mix.strands[n] for n in strands), rows.tolist(), strict=True)
    shards = [s.table.shard_of(row if s.rows is None else int(s.rows[row])) for s, row in places]
    names, counts = np.unique([f"{p.parents[2].name}/{p.name.rsplit('-', 3)[0]}" for p in shards], return_counts=True)
    return ", ".join(f"{name} {count / len(shards):.0%}" for name, count in zip(names, counts, strict=True))


class WatchSink:
    """A sink that warns; a spike that calls for a rollback is noted in ``checkpoints.calm_step``."""

    def __init__(self, checkpoints: Checkpoints, say: Callable[[str], None]) -> None:
        self.checkpoints, self.say = checkpoints, say
        recipe = checkpoints.parts.recipe
        self.answer = recipe.guard.on_spike
        self.finite = {"loss": "loss"} if recipe.precision == "fp16" else Figures.SPIKING
        """Metrics that must be finite; fp16 gradients may overflow, since that is how the scaler finds its scale."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, words in self.finite.items():
            if not math.isfinite(values.get(name, 0.0)):
                self.say(f"warning: step {step}: the {words} is not finite: its update is skipped")
                break
        spikes, scale = self.checkpoints.guard.figures.watch(step, values)
        if scale is not None:
            self.say(f"warning: step {step}: {scale}")
        if not spikes or self.answer == "ignore":
            return
        sources = batch_sources(self.checkpoints.parts, step - 1 + self.checkpoints.offset)
        for spike in spikes:
            self.say(f"warning: step {step}: {spike.words}; the batch: {sources}")
        if self.answer == "rollback":
            self.checkpoints.calm_step = min(spike.calm_step for spike in spikes)
        else:
            self.say("  hint: if it stays there, lower optim.lr or lengthen schedule.warmup")

    def close(self) -> None:
        """Do nothing: the sink keeps nothing open."""
