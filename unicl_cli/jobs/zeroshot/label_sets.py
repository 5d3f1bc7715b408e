"""Answers with any number of labels: every class whose probability reaches its threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import groups_of
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.multilabel import Cut
from unicl_cli.formats import count_of
from unicl_cli.inference.image_inputs import ImageInput
from unicl_cli.inference.scorer import Scorer
from unicl_cli.jobs.zeroshot.answers import DIGITS, Answer, AnswerOptions, name_class, unanswered

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.jobs.zeroshot.classes import Classes
    from unicl_cli.runs.thresholds import FoundThresholds


class SetJudge(NamedTuple):
    """Turns scores into rows with all labels that reach their thresholds. ``cut`` reads what ``prepare`` returns."""

    scorer: Scorer
    classes: Sequence[ClassName]
    cut: Cut
    prepare: Callable[[Tensor], Tensor]
    options: AnswerOptions
    warnings: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the classes; empty if no class has one."""
        found = groups_of(self.classes)
        return () if found == ("",) else found

    @property
    def most(self) -> int:
        """Maximum number of classes of an answer."""
        return len(self.classes)

    @property
    def has_paths(self) -> bool:
        return False

    def rows(self, images: Sequence[ImageInput], scores: Tensor, problems: Sequence[str | None]) -> list[Answer]:
        """Turn scores (n, C) and problems into rows ``{"path", "label", "prob", "labels", "top", "error"}``.

        ``label`` is the most probable of ``labels``, null if there is none.
        """
        found = self.cut.probabilities(self.prepare(scores.cpu()).float().numpy())
        answered = (found >= self.cut.thresholds) & self.scorer.known.numpy()
        order = np.argsort(-found, axis=1, kind="stable")
        rows: list[Answer] = []
        for row, (image, problem) in enumerate(zip(images, problems, strict=True)):
            if problem is not None:
                rows.append({"path": image.path, **unanswered(), "labels": [], "top": [], "error": problem})
                continue
            own = order[row].tolist()
            labels = [self.item(label, float(found[row, label])) for label in own if answered[row, label]]
            top = [self.item(label, float(found[row, label])) for label in own[: self.options.top_k]]
            best = {"label": labels[0]["label"], "prob": labels[0]["prob"]} if labels else unanswered()
            rows.append({"path": image.path, **best, "labels": labels, "top": top, "error": None})
        return rows

    def item(self, label: int, prob: float) -> Answer:
        """Return a class with its group (null without one), its probability and its threshold."""
        item = self.classes[label]
        threshold = round(float(self.cut.thresholds[label]), DIGITS)
        return {**name_class(item), "group": item.group or None, "prob": round(prob, DIGITS), "threshold": threshold}


def make_set_judge(
    loaded: Loaded, asked: Classes, scorer: Scorer, options: AnswerOptions, found: FoundThresholds | None
) -> SetJudge:
    """Return what answers with label sets. Raises UniclError if nothing says how probable a class is by itself."""
    warnings = (*asked.warnings, *scorer.warnings)
    if found is not None:
        classes, own = match_thresholds(loaded, asked, found)
        own = own if options.threshold is None else np.full(len(own), options.threshold)
        warnings = (*warnings, *((found.describe_stale(),) if found.is_stale else ()))
        cut = Cut(found.document.scale, found.document.bias, own)
        return SetJudge(scorer, classes, cut, same_scores, options, warnings)
    return make_sigmoid_judge(loaded.name, asked.names, scorer, options, warnings)


def make_sigmoid_judge(
    name: str, classes: Sequence[ClassName], scorer: Scorer, options: AnswerOptions, warnings: tuple[str, ...]
) -> SetJudge:
    """Return what answers by the model's own sigmoid and one threshold for all classes."""
    if options.threshold is None:
        raise UniclError(f"--multi: {name} has no thresholds", "give one for all classes: --threshold 0.5")
    if not scorer.sigmoid:
        raise UniclError(
            f"--multi: {name} has no thresholds, and no probability of a class by itself for --threshold",
            "fit thresholds: unicl eval MODEL --fit-thresholds",
        )
    warning = f"--threshold {options.threshold:g} is uncalibrated: it means something else for another model"
    cut = Cut(1.0, 0.0, np.full(len(classes), options.threshold))
    return SetJudge(scorer, classes, cut, scorer.logits, options, (*warnings, warning))


def same_scores(scores: Tensor) -> Tensor:
    return scores


def match_thresholds(
    loaded: Loaded, asked: Classes, found: FoundThresholds
) -> tuple[list[ClassName], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return the classes that are asked about, as the model names them, and their thresholds.

    A class fits if it is one that the thresholds were fitted for, in its own prompts: by key, or by the model's name.
    """
    document = found.document
    known = dict(zip(document.classes, document.thresholds, strict=True))
    own = {item.key: item for item in loaded.classes}
    by_name = {name: item for name, item in group_by_name(loaded.classes).items() if item is not None}
    classes: list[ClassName] = []
    missing: list[str] = []
    for item in asked.names:
        fitted = item if item.key in known else by_name.get(item.names[0], item)
        learned = own.get(fitted.key, fitted)
        is_same = item.names == learned.names[:1] and item.key not in asked.prompts
        if fitted.key not in known or not is_same:
            missing.append(item.names[0])
        classes.append(learned._replace(names=learned.names[:1]))
    if missing:
        raise UniclError(
            f"{found.file}: has no threshold for {count_of(len(missing), 'class')} by this name and prompt, such as "
            f"{missing[0]}",
            "ask about the classes that they were fitted on, or fit them again: "
            "unicl eval MODEL --data CORPUS --fit-thresholds",
        )
    return classes, np.array([known[item.key] for item in classes], np.float64)


def group_by_name(classes: Sequence[ClassName]) -> dict[str, ClassName | None]:
    """Return the class that each name belongs to; None for a name of several."""
    found: dict[str, ClassName | None] = {}
    for item in classes:
        found[item.names[0]] = None if item.names[0] in found else item
    return found
