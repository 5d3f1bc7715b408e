"""The evaluator `probe`: a simple classifier on image features, chosen on validation data and tested once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.errors import UniclError
from unicl_cli.evaluate.holdout import few_shot_mask, held_out_mask
from unicl_cli.evaluate.knn import neighbour_curve, vote_shares
from unicl_cli.evaluate.logistic_regression import (
    Linear,
    Point,
    Search,
    fit_classifiers,
    measure_classifiers,
    sweep,
)
from unicl_cli.evaluate.tables import accuracy_figures
from unicl_cli.formats import count_of, plural
from unicl_cli.inference.progress import progress
from unicl_cli.inference.scorer import shorten_names
from unicl_cli.jobs.evaluators.label_sets import read_annotations
from unicl_cli.jobs.evaluators.options import Method, ProbeOptions
from unicl_cli.jobs.evaluators.rows import limit_rows, read_labels
from unicl_cli.jobs.evaluators.set_probe import (
    SetExamples,
    check_one_vs_rest,
    set_probe_figures,
    split_examples,
    train_one_vs_rest,
)

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Need

VALIDATED = 4
"""Validation rows per class of a few-shot probe: a whole validation split would have more labels than train."""
FITS = 16
"""Fits of a search for C: fifteen to compare, and the last one."""


class Examples(NamedTuple):
    """Features (n, d) and classes int64 (n,) of the rows with labels of a split, with their keys."""

    features: Tensor
    targets: Tensor
    keys: list[str]

    def only(self, mask: Sequence[bool]) -> Examples:
        """Return the examples for which ``mask`` is true."""
        chosen = torch.tensor(mask, device=self.targets.device)
        kept = [key for key, keep in zip(self.keys, mask, strict=True) if keep]
        return Examples(self.features[chosen], self.targets[chosen], kept)

    def joined(self, other: Examples) -> Examples:
        """Return these examples followed by the others."""
        return Examples(
            torch.cat([self.features, other.features]),
            torch.cat([self.targets, other.targets]),
            self.keys + other.keys,
        )


class Classifier(NamedTuple):
    """A trained classifier: features (n, d) -> classes (n,); its setting (C or k) was ``chosen`` from the ``curve``.

    ``linear`` has its weights if it is linear.
    """

    predict: Callable[[Tensor], Tensor]
    chosen: float
    curve: list[Point]
    linear: Linear | None = None


class ProbeEvaluator(NamedTuple):
    """Accuracy of the classifier on the split that is evaluated, which is read after everything else is chosen.

    Validation rows are split val; if the corpus has none, or val is evaluated, a fifth of train by hash of the keys.
    ``keep`` gets the classifier, unless there are several (``shots``).
    """

    options: ProbeOptions = ProbeOptions()
    keep: Callable[[Classifier], None] | None = None
    takes_sets: bool = True
    main: tuple[str, ...] = ("top1", "map")

    @property
    def needs(self) -> Sequence[Need]:
        return ("labels",)

    def check(self, corpus: EvalCorpus, split: str) -> None:
        """Raise UniclError for a corpus or options that a probe cannot train with."""
        check_splits(corpus, split)
        if corpus.groups is not None:
            check_one_vs_rest(self.options, corpus)

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        self.check(corpus, split)
        if corpus.groups is not None:
            return self._probe_sets(model, corpus, split, batch=batch, limit=limit)
        read = partial(encode_examples, model, corpus, options=self.options, batch=batch, limit=limit)
        train, validation, source = training_examples(read, corpus, split)
        facts: dict[str, Any] = {
            "features": self.options.features,
            "method": self.options.method,
            "normalize": self.options.normalize,
            "candidates": {"total": len(train.targets.unique()), "not_in_corpus": 0},
            "validation": source if self.options.c is None else "none: C is given",
            "feature_norm": float(train.features.norm(dim=1).mean()),  # C means nothing without it
        }
        if self.options.shots:
            trials = train_few_shot(train, validation, len(corpus.classes), self.options)
            test = read(split=split)
            facts["few_shot"] = few_shot_figures(trials, test)
            warnings = [text for shots in self.options.shots for text in warn_about_shots(train, corpus, shots)]
        else:
            with progress("fits", FITS) as advance:
                task = Task(train, validation, len(corpus.classes), joined=True)
                trained = train_classifier(task, self.options, advance)
            if self.keep is not None:
                self.keep(trained)
            test = read(split=split)
            facts |= figures_of(trained, test, self.options.method) | {"n_train": len(task.whole.targets)}
            warnings = probe_warnings(task.whole, test, trained)
        facts = {"n": len(test.targets), **facts}
        return facts | {"warnings": warnings} if warnings else facts

    def _probe_sets(
        self, model: EvalModel, corpus: EvalCorpus, split: str, *, batch: int, limit: int | None
    ) -> dict[str, Any]:
        """Return the metrics of a corpus with label sets."""

        def read(of: str) -> SetExamples:
            table, label = corpus.table(of, "labels"), f"{corpus.name} {of}"
            found, keys, rows = encode_features(model, table, label, self.options, batch=batch, limit=limit)
            return SetExamples(found, read_annotations(corpus, table, rows), keys, rows)

        validates = split != "val" and "labels" in corpus.kinds("val")
        train, validation, source = split_examples(read("train"), read("val") if validates else None, corpus)
        with progress("fits", FITS) as advance:
            trained = train_one_vs_rest(train, validation, self.options.c, advance)
        if self.keep is not None:
            self.keep(Classifier(partial(answer_sets, trained.linear), trained.chosen, trained.curve, trained.linear))
        figures = set_probe_figures(trained, read(split), corpus, split)
        facts = {
            "features": self.options.features,
            "method": self.options.method,
            "normalize": self.options.normalize,
            "candidates": {"total": int((trained.linear.bias[0] > -torch.inf).sum()), "not_in_corpus": 0},
            "validation": source if self.options.c is None else "none: C is given",
            "feature_norm": float(train.features.norm(dim=1).mean()),
        }
        warnings = figures.pop("warnings")
        facts = {"n": figures.pop("n"), **facts, **figures}
        return facts | {"warnings": warnings} if warnings else facts


def answer_sets(linear: Linear, features: Tensor) -> Tensor:
    """Mark the classes that are likelier than not: (n, d) -> bool (n, K)."""
    return linear.logits(features)[0] > 0


def check_splits(corpus: EvalCorpus, tested: str) -> None:
    """Raise UniclError unless a probe can train on split train and test on ``tested``."""
    if tested == "train":
        raise UniclError("--split train: the probe is trained on it", "test on another split, for example --split val")
    for split in ("train", tested):
        if "labels" not in corpus.kinds(split):
            raise UniclError(
                f"corpus {corpus.path} has no rows with labels in split '{split}'",
                "use a corpus with labels in train and in another split: a probe trains on one and tests on the other",
            )


def training_examples(read: Callable[..., Examples], corpus: EvalCorpus, tested: str) -> tuple[Examples, Examples, str]:
    """Return the examples to train on, those to validate on, and the source of the latter in words."""
    train = read(split="train")
    if tested != "val" and "labels" in corpus.kinds("val"):
        validation, source = read(split="val"), "val"
    else:
        mask = held_out_mask(train.keys, train.targets.tolist())
        train, validation = train.only([not held for held in mask]), train.only(mask)
        source = "a fifth of train"
    if len(train.targets.unique()) < 2 or not len(validation.targets):
        raise UniclError(
            f"corpus {corpus.path}: split train has too few labels for a probe",
            "use a corpus with two classes of two rows each, or more",
        )
    return train, validation, source


def encode_examples(
    model: EvalModel, corpus: EvalCorpus, *, split: str, options: ProbeOptions, batch: int, limit: int | None
) -> Examples:
    """Encode the rows with labels of a split, once; the features stay on the GPU if the model is on one."""
    table = corpus.table(split, "labels")
    found, keys, rows = encode_features(model, table, f"{corpus.name} {split}", options, batch=batch, limit=limit)
    return Examples(found, read_labels(table)[torch.tensor(rows)].to(found.device), keys)


def encode_features(
    model: EvalModel, table: EvalRows, label: str, options: ProbeOptions, *, batch: int, limit: int | None
) -> tuple[Tensor, list[str], list[int]]:
    """Return features (n, d) of the rows with labels of a split, their keys, and their numbers in the table."""
    rows = limit_rows(range(len(table)), limit)
    found = model.encode_rows(table, rows, point=options.features, batch=batch, label=label)
    if options.normalize:
        found = F.normalize(found, dim=1)
    home = model.device if model.device.type == "cuda" else torch.device("cpu")  # the fit is in float64
    keys = table.column("key").to_pylist()
    return found.to(home), [keys[row] for row in rows], rows


class Task(NamedTuple):
    """The rows to train a classifier on, and those that choose its setting; ``joined``: the last fit is on both."""

    train: Examples
    validation: Examples
    num_classes: int
    joined: bool

    @property
    def whole(self) -> Examples:
        """The rows of the last fit."""
        return self.train.joined(self.validation) if self.joined else self.train


def train_classifier(task: Task, options: ProbeOptions, advance: Callable[[int], None]) -> Classifier:
    """Train a classifier by the method of ``options``; ``advance`` counts the fits of a regression."""
    if options.method == "knn":
        return train_neighbours(task)
    return train_regression(task, options.c, advance)


def train_regression(task: Task, c: float | None, advance: Callable[[int], None]) -> Classifier:
    """Fit a logistic regression at ``c``, or at the best C on the validation rows."""
    train, validation, whole = task.train, task.validation, task.whole
    curve: list[Point] = []
    start: Linear | None = None
    if c is None:
        search = Search(train.features, train.targets, task.num_classes)

        def measure(strengths: Sequence[float]) -> list[Point]:
            models = search.fit(strengths)
            advance(len(strengths))
            return measure_classifiers(models, strengths, validation.features, validation.targets)

        curve = sweep(measure)
        c = max(curve, key=lambda point: point.sort_key).c
        start = search.known[c]
    model = fit_classifiers(whole.features, whole.targets, [c], task.num_classes, start=start)
    advance(1)

    def predict(features: Tensor) -> Tensor:
        return model.logits(features)[0].argmax(1)

    return Classifier(predict, c, curve, model)


def train_neighbours(task: Task) -> Classifier:
    """Let the nearest neighbours vote; their number is chosen on the validation rows."""
    train, validation, whole = task.train, task.validation, task.whole
    curve = neighbour_curve(train.features, train.targets, validation.features, validation.targets, task.num_classes)
    best = max(curve, key=lambda point: point.sort_key)

    def predict(features: Tensor) -> Tensor:
        (shares,) = vote_shares(whole.features, whole.targets, features, [int(best.c)], task.num_classes)
        return shares.argmax(1)

    return Classifier(predict, best.c, curve)


SETTING = {"logreg": "c", "knn": "k"}


class Trial(NamedTuple):
    """One few-shot classifier and the number of rows that trained it."""

    shots: int
    seed: int
    classifier: Classifier
    rows: int


def train_few_shot(train: Examples, validation: Examples, num_classes: int, options: ProbeOptions) -> list[Trial]:
    """Train a classifier for each number of shots and each seed."""
    draws = [(shots, seed) for shots in options.shots for seed in range(options.seeds)]
    with progress("fits", len(draws) * FITS) as advance:
        return [
            train_trial(train, validation, num_classes, options, shots=shots, seed=seed, advance=advance)
            for shots, seed in draws
        ]


def train_trial(
    train: Examples,
    validation: Examples,
    num_classes: int,
    options: ProbeOptions,
    *,
    shots: int,
    seed: int,
    advance: Callable[[int], None],
) -> Trial:
    """Train on ``shots`` rows of each class, validate on at most four others of each class."""
    part = train.only(few_shot_mask(train.keys, train.targets.tolist(), shots, seed))
    judged = validation.only(few_shot_mask(validation.keys, validation.targets.tolist(), min(shots, VALIDATED), seed))
    trained = train_classifier(Task(part, judged, num_classes, joined=False), options, advance)
    return Trial(shots, seed, trained, len(part.targets))


def figures_of(trained: Classifier, test: Examples, method: Method) -> dict[str, Any]:
    """Return the accuracy on ``test``, the chosen setting and the validation curve."""
    name = SETTING[method]
    number = float if name == "c" else int
    return {
        **accuracy_figures(trained.predict(test.features) == test.targets),
        name: number(trained.chosen),
        "curve": [{name: number(point.c), "val": point.accuracy} for point in trained.curve],
    }


def few_shot_figures(trials: Sequence[Trial], test: Examples) -> list[dict[str, Any]]:
    """Return for each number of shots the mean and the standard deviation over the seeds, and each seed."""
    runs: dict[int, list[dict[str, Any]]] = {}
    sizes: dict[int, int] = {}
    for shots, seed, trained, rows in trials:
        right = int((trained.predict(test.features) == test.targets).sum())
        runs.setdefault(shots, []).append({"seed": seed, "top1": right / len(test.targets), "setting": trained.chosen})
        sizes[shots] = rows
    return [
        {
            "shots": shots,
            "n_train": sizes[shots],
            "top1": mean(run["top1"] for run in own),
            "top1_sd": stdev(run["top1"] for run in own) if len(own) > 1 else None,
            "runs": own,
        }
        for shots, own in runs.items()
    ]


def warn_about_shots(train: Examples, corpus: EvalCorpus, shots: int) -> list[str]:
    """Return a warning that names the classes with fewer rows than shots, if any; all their rows are used."""
    counts = torch.bincount(train.targets, minlength=len(corpus.classes)).tolist()
    names = [each.names[0] for each, count in zip(corpus.classes, counts, strict=True) if count < shots]
    fewer = f"{count_of(len(names), 'class')} {plural(len(names), 'has', 'have')} fewer rows"
    return [f"{count_of(shots, 'shot')}: {fewer}: {shorten_names(names)}"] if names else []


def warn_about_unseen(train: Examples, test: Examples) -> list[str]:
    """Return a warning about classes that are tested without a training row, if there are any."""
    unseen = ~torch.isin(test.targets, train.targets)
    if not bool(unseen.any()):
        return []
    classes, rows = len(test.targets[unseen].unique()), int(unseen.sum())
    untrained = f"{count_of(classes, 'class')} of the tested split {plural(classes, 'has', 'have')} no training row"
    return [f"{untrained}: {count_of(rows, 'row')} {plural(rows, 'counts', 'count')} as wrong"]


def probe_warnings(train: Examples, test: Examples, trained: Classifier) -> list[str]:
    """Return the warnings about classes without training rows and about a setting at the end of its range."""
    found = warn_about_unseen(train, test)
    if trained.chosen in (1e-6, 1e6):
        found.append(f"C = {trained.chosen:g} is at the end of the range that is searched")
    return found
