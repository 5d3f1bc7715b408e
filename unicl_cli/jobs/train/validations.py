"""The validations of a run: zero-shot metrics in ``eval.jsonl``, and the step at which they were best."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from unicl_cli.build.load import Loaded, transform_of
from unicl_cli.core.dist import any_rank, bare, rank
from unicl_cli.core.ema import Average
from unicl_cli.core.loop import Step
from unicl_cli.core.sinks import explain_write_errors
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.formats import RAW, format_figures, label_figure
from unicl_cli.jobs.evaluate import measure_validation
from unicl_cli.jobs.evaluators.build import make_evaluator, missing_needs
from unicl_cli.jobs.train.setup import Parts
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.documents import ValidationLine
from unicl_cli.runs.folder import VALIDATIONS
from unicl_cli.runs.validations import Entry, best_step, is_of, main_entry, name_entries
from unicl_cli.storage.files import write_atomic
from unicl_cli.storage.json_lines import read_lines
from unicl_cli.tower_contracts import Tokenizer

AVERAGE = "average"
"""Value of ``weights`` in a line whose metrics are of the moving average."""


class Validations:
    """The recipe's ``eval`` entries. Every rank has one, since all ranks validate together; rank 0's writes.

    With a moving ``average`` of the weights, the metrics under their usual names are those of the average, as in `unicl
    eval`; those of the trained weights are added as ``raw_top1`` and so on.
    """

    def __init__(
        self, parts: Parts, entries: Sequence[Entry], run: Path, accelerator: Any, average: Average | None = None
    ) -> None:
        self.parts, self.entries, self.run_dir, self.accelerator = parts, entries, run, accelerator
        self.average = average
        self.names = name_entries([(entry.number, entry.corpus, entry.split) for entry in entries])
        self.path = run / VALIDATIONS
        self.say: Callable[[str], None] = lambda message: None
        self.track: Callable[[int, Mapping[str, float]], None] = lambda step, values: None

    def due(self, step: int) -> list[Entry]:
        """Return the entries to measure once ``step`` steps are completed."""
        last, asked = step == self.parts.sizes.steps, self.parts.recipe.eval
        return [entry for entry in self.entries if last or step % asked[entry.number].every == 0]

    def catch_up(self, step: int) -> None:
        """Measure the entries of ``step`` without a line: the run was stopped between its checkpoint and them."""
        for entry in self.due(step) if step else ():
            if any_rank(rank() == 0 and not self.has_line(step, entry)):
                self.measure(step, entry)

    def measure(self, step: int, entry: Entry) -> None:
        """Measure the model on one of ``eval``, on every rank; write a line of ``eval.jsonl``."""
        figures = self.run_evaluators(entry)
        if self.average is not None:
            raw = {f"{RAW}{name}": value for name, value in figures.items() if isinstance(value, float)}
            with self.average.in_place():
                figures = {"weights": AVERAGE, **self.run_evaluators(entry), **raw}
        if rank() == 0:
            self.write_line(step, entry, figures)

    def run_evaluators(self, entry: Entry) -> dict[str, Any]:
        """Return the metrics of the weights that the model has now, the same on every rank."""
        parts, asked = self.parts, self.parts.recipe.eval[entry.number]
        transform = transform_of(bare(parts.step), parts.recipe.data.image_size)
        templates, module = parts.data.templates, cast("Step", parts.step)
        loaded = Loaded(str(self.run_dir), module, parts.tokenizer, transform, parts.data.classes, templates, ())
        with self.accelerator.autocast():
            return measure_validation(
                loaded,
                open_corpus(entry.corpus),
                entry.split,
                batch=asked.batch,
                limit=asked.limit,
                candidates=asked.candidates,
                evaluators=asked.evaluators,
            )

    def best_at(self, step: int, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return rank 0's step, metric and value if ``step`` is the first with the best value so far, else None.

        The value is that of the main entry. ``before``: the best that a checkpoint knew, whose line may be gone.
        """
        asked = self.parts.recipe.checkpoint.best
        if asked is None or rank() != 0:
            return None
        weights = {} if self.average is None else {"weights": AVERAGE}
        metric = self.tracked_metric(asked.metric)
        figures = self.history(metric)
        if before is not None and before["metric"] == metric and weights.items() <= before.items():
            figures.setdefault(before["step"], before["value"])
        if step not in figures or best_step(figures, asked.mode) != step:
            return None
        return {"step": step, "metric": metric, "value": figures[step], **weights}

    def tracked_metric(self, asked: str) -> str:
        """Return the metric by which checkpoints are compared: mAP instead of top-1 where rows have label sets."""
        main = main_entry(self.entries)
        names = {name for row in self.lines() if is_of(row, main, self.entries) for name in row}
        return "map" if asked == "top1" and "top1" not in names and "map" in names else asked

    def history(self, metric: str) -> dict[int, float]:
        """Return step -> ``metric`` of the main entry; with an average, only of lines that are the average's."""
        main = main_entry(self.entries)
        rows = [row for row in self.lines() if is_of(row, main, self.entries)]
        if self.average is not None:  # an older unicl measured the trained weights
            rows = [row for row in rows if row.get("weights") == AVERAGE]
        return {row["step"]: row[metric] for row in rows if row.get(metric) is not None}

    # -- eval.jsonl -----------------------------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """Return the sound lines of ``eval.jsonl``."""
        found = [line.values for line in read_lines(self.path, ValidationLine) if line.is_complete]
        return [row for row in found if row.get("corpus") is not None and row.get("split") is not None]

    def has_line(self, step: int, entry: Entry) -> bool:
        return any(row["step"] == step and is_of(row, entry, self.entries) for row in self.lines())

    def write_line(self, step: int, entry: Entry, figures: Mapping[str, Any]) -> None:
        """Append a line and say it; a validation that is repeated after a stop replaces its line."""
        kept = [row for row in self.lines() if not (row["step"] == step and is_of(row, entry, self.entries))]
        self.rewrite([row for row in kept if row["step"] <= step] + [{"step": step, **entry.facts(), **figures}])
        name = self.names[entry.number, entry.corpus, entry.split]
        shown = format_figures(figures)
        self.track(
            step, {f"eval/{tracked_name(entry, name)}/{k}": v for k, v in figures.items() if isinstance(v, float)}
        )
        without = [label_figure(key) for key in ("top1", "map") if figures.get(key, 0) is None]
        if without:
            shown = f"no {' or '.join(without)} ({figures['reason']}) {shown}".rstrip()
        self.say(f"step {step:,} {name}: {shown or 'nothing to measure'}")
        best = self.parts.recipe.checkpoint.best
        if best is not None and entry == main_entry(self.entries):
            metric = self.tracked_metric(best.metric)
            if figures.get(metric) is None:
                self.say(
                    f"warning: checkpoint.best: {name} has no {label_figure(metric)}, so no checkpoint is the best"
                )

    def drop_after(self, step: int) -> None:
        """Drop the lines of later steps, on rank 0: the run goes back to ``step``."""
        if rank() == 0 and self.path.is_file():
            self.rewrite([row for row in self.lines() if row["step"] <= step])

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write ``eval.jsonl`` anew."""
        with explain_write_errors(self.path):
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def tracked_name(entry: Entry, name: str) -> str:
    """Return the part of a tracker's key that names the entry, with its number where ``name`` has it."""
    plain = f"{entry.corpus} {entry.split}"
    return f"{entry.corpus}/{entry.split}" + ("" if name == plain else f"/{entry.number}")


def check_evaluators(recipe: Recipe, step: Step, tokenizer: Tokenizer | None) -> None:
    """Raise UniclError for an evaluator that an entry of ``eval`` names and that does not fit its model or data."""
    for entry in resolve_entries(recipe):
        corpus = open_corpus(entry.corpus)
        for part in recipe.eval[entry.number].evaluators or ():
            evaluator = make_evaluator(part)
            if missing := missing_needs(evaluator, step, tokenizer, corpus, entry.split):
                raise UniclError(
                    f"eval.{entry.number}.evaluators: {part.name} needs {' and '.join(missing)}: "
                    f"corpus {entry.corpus}, split {entry.split}",
                    "name other evaluators, or another corpus or split",
                )
            check = getattr(evaluator, "check", None)
            if check is not None:
                check(corpus, entry.split)


def resolve_entries(recipe: Recipe) -> list[Entry]:
    """Return the entries of ``eval``, each with the split that it measures."""
    learned = {(Path(item.corpus).resolve(), item.split) for item in recipe.data.train}
    splits = [open_corpus(entry.corpus).eval_split(entry.split) for entry in recipe.eval]
    return [
        Entry(number, entry.corpus, split, (Path(entry.corpus).resolve(), split) in learned)
        for number, (entry, split) in enumerate(zip(recipe.eval, splits, strict=True))
    ]
