"""Judges of images: made from a model, and from the classes that are asked about or a probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import bare
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.linear_probe import LinearProbe, make_probe_scorer
from unicl_cli.inference.scorer import Scorer, make_scorer
from unicl_cli.jobs.zeroshot.answers import AnswerOptions, Judge
from unicl_cli.jobs.zeroshot.classes import Classes
from unicl_cli.jobs.zeroshot.label_sets import SetJudge, make_set_judge, make_sigmoid_judge
from unicl_cli.jobs.zeroshot.questions import Question, select_classes, split_questions

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.runs.thresholds import FoundThresholds

BACKGROUND = ("a photo.", "something", "an object")
"""Prompts without a class: the column that "none of these" and independent classes are compared with."""


def make_judge(
    loaded: Loaded,
    classes: Classes | LinearProbe | None,
    options: AnswerOptions,
    accelerator: Any,
    thresholds: FoundThresholds | None = None,
) -> Judge | SetJudge:
    """Return what scores images against these classes, by this probe, or against the model's own classes."""
    encoder = Encoder(loaded, accelerator.autocast)
    if isinstance(classes, LinearProbe):
        return make_probe_judge(encoder, classes, options)
    if classes is None and not loaded.classes:
        raise UniclError(f"model {loaded.name} has no classes of its own", "name classes: --classes cat,dog")
    asked = (
        Classes(tuple(each._replace(names=each.names[:1]) for each in loaded.classes)) if classes is None else classes
    )
    asked = asked._replace(names=select_classes(asked.names, options.wanted, is_multi=options.multi))
    prompts = asked.fill_prompts(loaded.templates)
    if options.multi:
        scorer = make_scorer(encoder, asked.names, prompts=prompts)
        return make_set_judge(loaded, asked, scorer, options, thresholds)
    questions = split_questions(asked.names, options.wanted)
    check_taxonomy(questions, options)
    columns = list(asked.names)
    loss: Any = bare(loaded.step).loss
    background = options.none or (options.independent and loss.activation != "sigmoid")
    if background and loss.score == "head":
        raise UniclError(
            f"model {loaded.name} scores by a classifier of its own classes, which has no 'none of these'",
            "remove --none and --independent; --threshold works",
        )
    if background:
        columns.append(ClassName("\0none", ("none of these",)))
        prompts.append(list(BACKGROUND))
    scorer = make_scorer(encoder, columns, prompts=prompts)
    if options.by_cosine and not scorer.cosines:
        raise UniclError(f"model {loaded.name} does not score by cosines", "remove --scores cosine")
    questions, unknown = drop_unknown(questions, scorer)
    warnings = [*asked.warnings, *scorer.warnings, *unknown, *warn_about_one_class(questions, scorer, options)]
    if options.threshold is not None:
        warnings.append(f"--threshold {options.threshold:g} is uncalibrated: it means something else for another model")
    return Judge(scorer, asked.names, questions, options, tuple(warnings))


def make_probe_judge(encoder: Encoder, probe: LinearProbe, options: AnswerOptions) -> Judge | SetJudge:
    """Return what scores images by a saved probe. Raises UniclError if the probe was fitted on another model."""
    if options.multi and not probe.sigmoid:
        raise UniclError(
            "--multi: the classes of this probe exclude each other",
            "fit a probe on rows with label sets: unicl probe --data CORPUS --save FILE",
        )
    probe = restrict_probe(probe, select_classes(probe.classes, options.wanted, is_multi=options.multi))
    scorer = make_probe_scorer(encoder, probe)
    if options.multi:
        return make_sigmoid_judge("the probe", probe.classes, scorer, options, ())
    questions = split_questions(probe.classes, options.wanted)
    check_taxonomy(questions, options)
    return Judge(scorer, probe.classes, questions, options)


def restrict_probe(probe: LinearProbe, classes: Sequence[ClassName]) -> LinearProbe:
    """Return the probe with the columns of some of its classes, in its own order."""
    if len(classes) == len(probe.classes):
        return probe
    keys = {item.key for item in classes}
    columns = [number for number, item in enumerate(probe.classes) if item.key in keys]
    return probe._replace(
        weights=probe.weights[:, columns],
        bias=probe.bias[columns],
        classes=tuple(probe.classes[number] for number in columns),
    )


def check_taxonomy(questions: Sequence[Question], options: AnswerOptions) -> None:
    """Raise UniclError for options under which the classes of a taxonomy could contradict those above them."""
    for option, is_given in (("--independent", options.independent), ("--scores cosine", options.by_cosine)):
        if is_given and any(question.taxonomy is not None for question in questions):
            raise UniclError(
                f"{option}: cannot be used with a taxonomy, whose classes have the sum of those below them",
                f"leave {option} out, or name classes of one level with --classes",
            )


def drop_unknown(questions: Sequence[Question], scorer: Scorer) -> tuple[list[Question], list[str]]:
    """Leave out the questions none of whose classes a classifier knows; return the others, with warnings."""
    kept: list[Question] = []
    warnings: list[str] = []
    for question in questions:
        if bool(scorer.known[question.competing].any()):
            kept.append(question)
        else:
            warnings.append(f"no answer about {question.name}: the model's classifier knows none of its classes")
    if not kept:
        raise UniclError("the model's classifier knows none of these classes", "use a model with a text tower")
    return kept, warnings


def warn_about_one_class(questions: Sequence[Question], scorer: Scorer, options: AnswerOptions) -> list[str]:
    """Return a warning for each question with one answer, whose probability says nothing."""
    if options.by_cosine or options.independent or options.none:
        return []
    warnings: list[str] = []
    for question in questions:
        known = question.competing[scorer.known[question.competing]]
        is_relative = question.taxonomy is not None or not scorer.sigmoid
        if is_relative and len(torch.unique(scorer.first[known])) == 1:
            warning = "one class: its probability is always 100 %; name others, or add --none or --scores cosine"
            warnings.append(warning if len(questions) == 1 else f"{question.name}: {warning}")
    return warnings
