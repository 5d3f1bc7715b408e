"""The validations of a run: zero-shot figures in ``eval.jsonl``, and the step at which they were best."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from unicl_cli.build.load import Loaded, transform_of
from unicl_cli.core.dist import any_rank, bare, rank
from unicl_cli.core.files import write_atomic
from unicl_cli.core.json_lines import read_lines
from unicl_cli.core.loop import Step
from unicl_cli.core.sinks import explain_write_errors
from unicl_cli.data.corpus import open_corpus
from unicl_cli.formats import format_figures
from unicl_cli.jobs.evaluate import measure_validation
from unicl_cli.jobs.train.setup import Parts
from unicl_cli.recipe.schema import Eval
from unicl_cli.runs.documents import ValidationLine
from unicl_cli.runs.folder import VALIDATIONS


class Validations:
    """The recipe's ``eval`` entries. Every rank has one, since all ranks validate together; rank 0's writes."""

    def __init__(self, parts: Parts, run: Path, accelerator: Any) -> None:
        self.parts, self.run_dir, self.accelerator = parts, run, accelerator
        self.path = run / VALIDATIONS
        self.say: Callable[[str], None] = lambda message: None
        self.track: Callable[[int, Mapping[str, float]], None] = lambda step, values: None

    def due(self, step: int) -> list[Eval]:
        """Return the entries to measure once ``step`` steps are completed."""
        last = step == self.parts.sizes.steps
        return [entry for entry in self.parts.recipe.eval if last or step % entry.every == 0]

    def catch_up(self, step: int) -> None:
        """Measure the entries of ``step`` without a line: the run was stopped between its checkpoint and them."""
        for entry in self.due(step) if step else ():
            if any_rank(rank() == 0 and not self.has_line(step, entry)):
                self.measure(step, entry)

    def measure(self, step: int, entry: Eval) -> None:
        """Measure the model on one of ``eval``, on every rank; write a line of ``eval.jsonl``."""
        parts = self.parts
        corpus = open_corpus(entry.corpus)
        split = corpus.eval_split(entry.split)
        transform = transform_of(bare(parts.step), parts.recipe.data.image_size)
        templates, module = parts.data.templates, cast("Step", parts.step)
        loaded = Loaded(str(self.run_dir), module, parts.tokenizer, transform, parts.data.classes, templates, ())
        with self.accelerator.autocast():
            figures = measure_validation(
                loaded, corpus, split, batch=entry.batch, limit=entry.limit, candidates=entry.candidates
            )
        if rank() == 0:
            self.write_line(step, {"corpus": entry.corpus, "split": split, **figures})

    def best_at(self, step: int, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return rank 0's step, metric and value if the first of ``eval`` was never better than at ``step``, else None.

        ``before``: the best that a checkpoint knew, whose line may be gone.
        """
        asked = self.parts.recipe.checkpoint.best
        if asked is None or rank() != 0:
            return None
        figures = self.history(asked.metric)
        if before is not None:
            figures.setdefault(before["step"], before["value"])
        choose = max if asked.mode == "max" else min
        if step not in figures or figures[step] != choose(figures.values()):
            return None
        return {"step": step, "metric": asked.metric, "value": figures[step]}

    def history(self, metric: str) -> dict[int, float]:
        """Return step -> ``metric`` of the first of ``eval``."""
        first = self.parts.recipe.eval[0]
        rows = [row for row in self.lines() if is_of(row, first)]
        return {row["step"]: row[metric] for row in rows if row.get(metric) is not None}

    # -- eval.jsonl -----------------------------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """Return the sound lines of ``eval.jsonl``."""
        found = [line.values for line in read_lines(self.path, ValidationLine) if line.is_complete]
        return [row for row in found if row.get("corpus") is not None and row.get("split") is not None]

    def has_line(self, step: int, entry: Eval) -> bool:
        return any(row["step"] == step and is_of(row, entry) for row in self.lines())

    def write_line(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append a line and say it; a validation that is repeated after a stop replaces its line."""
        key = (step, figures["corpus"], figures["split"])
        kept = [row for row in self.lines() if (row["step"], row["corpus"], row["split"]) != key]
        self.rewrite([row for row in kept if row["step"] <= step] + [{"step": step, **figures}])
        name = f"eval/{figures['corpus']}/{figures['split']}"
        self.track(step, {f"{name}/{k}": v for k, v in figures.items() if isinstance(v, float)})
        shown = format_figures(figures)
        if figures.get("top1", 0) is None:
            shown = f"no top-1 ({figures['reason']}) {shown}".rstrip()
        self.say(f"step {step:,} {figures['corpus']} {figures['split']}: {shown}")

    def drop_after(self, step: int) -> None:
        """Drop the lines of later steps, on rank 0: the run goes back to ``step``."""
        if rank() == 0 and self.path.is_file():
            self.rewrite([row for row in self.lines() if row["step"] <= step])

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write ``eval.jsonl`` anew."""
        with explain_write_errors(self.path):
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def is_of(row: Mapping[str, Any], entry: Eval) -> bool:
    """Return True if a line of ``eval.jsonl`` is of this entry of ``eval``."""
    return row["corpus"] == entry.corpus and entry.split in (None, row["split"])
