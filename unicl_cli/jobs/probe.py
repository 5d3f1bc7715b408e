"""How much a simple classifier finds in a model's image features: chosen on validation data, tested once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.holdout import few, held_out
from unicl_cli.evaluate.knn import neighbour_curve, votes
from unicl_cli.evaluate.logistic_regression import Point, fit, measured, sweep
from unicl_cli.evaluate.tables import accuracy
from unicl_cli.inference.encoder import Encoder, each_row, refuse_not_finite
from unicl_cli.inference.scorer import shortened
from unicl_cli.jobs.evaluate import labels_of

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.data.corpus import Corpus

FeaturePoint = Literal["pre", "post"]
Method = Literal["logreg", "knn"]
VALIDATED = 4
"""Rows of each class that validate few shots: a whole validation split would have more labels than train."""


class Examples(NamedTuple):
    """Features (n, d) and classes int64 (n,) of the label rows of a split, with their keys."""

    features: Tensor
    targets: Tensor
    keys: list[str]

    def only(self, mask: Sequence[bool]) -> Examples:
        chosen = torch.tensor(mask, device=self.targets.device)
        kept = [key for key, keep in zip(self.keys, mask, strict=True) if keep]
        return Examples(self.features[chosen], self.targets[chosen], kept)

    def joined(self, other: Examples) -> Examples:
        return Examples(
            torch.cat([self.features, other.features]),
            torch.cat([self.targets, other.targets]),
            self.keys + other.keys,
        )


class Asked(NamedTuple):
    """How to probe: ``features`` before or after the projection, of unit length where ``normalize``; with all rows of
    train, or with each number of ``shots`` a class, ``seeds`` times."""

    features: FeaturePoint = "pre"
    method: Method = "logreg"
    normalize: bool = False
    shots: tuple[int, ...] = ()
    seeds: int = 3


class Classifier(NamedTuple):
    """A trained one: features (n, d) -> classes (n,); the setting (C or k) that was ``chosen`` from the ``curve``."""

    predict: Callable[[Tensor], Tensor]
    chosen: float
    curve: list[Point]


def probe(
    loaded: Loaded, *, data: str | None, split: str | None, asked: Asked, batch: int, accelerator: Any
) -> dict[str, Any]:
    """The document of `unicl probe`, the same on every rank; ``accelerator`` is accelerate's.

    The tested split is read after everything is chosen and trained. Validation is the val split, or, where there is
    none or it is the one tested, a fifth of train by hash of the keys.
    """
    corpus = probed_corpus(loaded, data)
    tested = corpus.eval_split(split)
    if tested == "train":
        raise UniclError("--split train: the probe is trained on it", "test on another split, for example --split val")
    check_labels(corpus, ["train", tested])
    encoder = Encoder(loaded, accelerator.autocast)
    examples = partial(encoded, encoder, corpus, asked=asked, batch=batch)
    train = examples(split="train")
    if tested != "val" and "val" in corpus.splits and "labels" in corpus.kinds("val"):
        validation, source = examples(split="val"), "val"
    else:
        mask = held_out(train.keys, train.targets.tolist())
        train, validation = train.only([not held for held in mask]), train.only(mask)
        source = "a fifth of train"
    if len(train.targets.unique()) < 2 or not len(validation.targets):
        raise UniclError(
            f"corpus {corpus.path}: split train has too few labels for a probe", "it needs two classes of two rows each"
        )
    facts: dict[str, Any] = {"features": asked.features, "method": asked.method, "normalize": asked.normalize}
    facts |= {
        "validation": source,
        "feature_norm": float(train.features.norm(dim=1).mean()),
    }  # C means something beside
    classes = len(corpus.classes)
    if asked.shots:
        drawn = [
            (shots, seed, few_shot(train, validation, classes, asked.method, shots=shots, seed=seed))
            for shots in asked.shots
            for seed in range(asked.seeds)
        ]
        test = examples(split=tested)
        facts["few_shot"] = spread(drawn, test)
        warnings = [told for shots in asked.shots for told in scarce(train, corpus, shots)]
    else:
        trained = TRAINED[asked.method](train, validation, classes, joined=True)
        test = examples(split=tested)
        facts |= single(trained, test, asked.method) | {"n_train": len(train.targets) + len(validation.targets)}
        warnings = remarks(train.joined(validation), test, trained)
    document = {
        "schema": "unicl/probe/1",
        "model": loaded.name,
        "data": corpus.name,
        "split": tested,
        "n": len(test.targets),
        **facts,
    }
    return document | {"warnings": warnings} if warnings else document


def by_regression(train: Examples, validation: Examples, num_classes: int, *, joined: bool) -> Classifier:
    """C is chosen on the validation rows; the last fit is on both (``joined``) or on the training rows alone."""

    def measure(strengths: Sequence[float]) -> list[Point]:
        models = fit(train.features, train.targets, strengths, num_classes)
        return measured(models, strengths, validation.features, validation.targets)

    curve = sweep(measure)
    best = max(curve, key=lambda point: point.merit)
    whole = train.joined(validation) if joined else train
    model = fit(whole.features, whole.targets, [best.c], num_classes)

    def predict(features: Tensor) -> Tensor:
        return model.logits(features)[0].argmax(1)

    return Classifier(predict, best.c, curve)


def by_neighbours(train: Examples, validation: Examples, num_classes: int, *, joined: bool) -> Classifier:
    """The number of neighbours is chosen on the validation rows."""
    curve = neighbour_curve(train.features, train.targets, validation.features, validation.targets, num_classes)
    best = max(curve, key=lambda point: point.merit)
    whole = train.joined(validation) if joined else train

    def predict(features: Tensor) -> Tensor:
        (shares,) = votes(whole.features, whole.targets, features, [int(best.c)], num_classes)
        return shares.argmax(1)

    return Classifier(predict, best.c, curve)


TRAINED = {"logreg": by_regression, "knn": by_neighbours}
SETTING = {"logreg": "c", "knn": "k"}


def few_shot(
    train: Examples, validation: Examples, num_classes: int, method: Method, *, shots: int, seed: int
) -> tuple[Classifier, int]:
    """``shots`` rows of each class train, at most four others of each class validate; and how many rows train."""
    part = train.only(few(train.keys, train.targets.tolist(), shots, seed))
    judged = validation.only(few(validation.keys, validation.targets.tolist(), min(shots, VALIDATED), seed))
    return TRAINED[method](part, judged, num_classes, joined=False), len(part.targets)


def single(trained: Classifier, test: Examples, method: Method) -> dict[str, Any]:
    name = SETTING[method]
    return {
        **accuracy(trained.predict(test.features) == test.targets),
        name: trained.chosen if name == "c" else int(trained.chosen),
        "curve": [{name: point.c if name == "c" else int(point.c), "val": point.accuracy} for point in trained.curve],
    }


def spread(drawn: Sequence[tuple[int, int, tuple[Classifier, int]]], test: Examples) -> list[dict[str, Any]]:
    """For each number of shots the mean and the standard deviation over the seeds, and each seed."""
    runs: dict[int, list[dict[str, Any]]] = {}
    sizes: dict[int, int] = {}
    for shots, seed, (trained, rows) in drawn:
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


def scarce(train: Examples, corpus: Corpus, shots: int) -> list[str]:
    """Says which classes have fewer rows than shots; they are used whole."""
    counts = torch.bincount(train.targets, minlength=len(corpus.classes)).tolist()
    names = [each.names[0] for each, count in zip(corpus.classes, counts, strict=True) if count < shots]
    return [f"{shots} shots: {len(names)} classes have fewer rows: {shortened(names)}"] if names else []


def remarks(train: Examples, test: Examples, trained: Classifier) -> list[str]:
    """What the reader of the result should know."""
    found: list[str] = []
    unseen = ~torch.isin(test.targets, train.targets)
    if bool(unseen.any()):
        classes = len(test.targets[unseen].unique())
        found.append(
            f"{classes} classes of the tested split have no training row: {int(unseen.sum())} rows cannot be hit"
        )
    if trained.chosen in (1e-6, 1e6):
        found.append(f"C = {trained.chosen:g} is the end of the range that is searched")
    return found


def probed_corpus(loaded: Loaded, data: str | None) -> Corpus:
    """The named corpus, or the one corpus of the model's recipe that has classes."""
    if data is not None:
        return open_corpus(Path(data))
    found = [corpus for path in dict.fromkeys(loaded.corpora) if len((corpus := open_corpus(Path(path))).classes) > 1]
    if len(found) == 1:
        return found[0]
    what = "several corpora with classes" if found else "no corpus with classes"
    raise UniclError(f"the recipe of model {loaded.name} names {what}", "say which to probe: --data CORPUS")


def check_labels(corpus: Corpus, splits: Sequence[str]) -> None:
    for split in splits:
        if split not in corpus.splits or "labels" not in corpus.kinds(split):
            raise UniclError(
                f"corpus {corpus.path} has no rows with labels in split '{split}'",
                "a probe trains on split train and tests on another, both with labels",
            )


def encoded(encoder: Encoder, corpus: Corpus, *, split: str, asked: Asked, batch: int) -> Examples:
    """The label rows of a split through the image tower, once; on a GPU's memory where the model is on one."""
    table = corpus.table(split, "labels")
    rows = range(len(table))

    def compute(images: Tensor, _: Tensor) -> Tensor:
        features = encoder.image(images)
        chosen = features.pooled if asked.features == "pre" else features.embed
        return F.normalize(chosen, dim=1) if asked.normalize else chosen

    label = f"{corpus.name} {split}"
    found = each_row(table, rows, compute, transform=encoder.loaded.transform, batch=batch, label=label)
    refuse_not_finite(found.isfinite().all(1), rows, table, f"{encoder.loaded.name} on {label}")
    home = encoder.device if encoder.device.type == "cuda" else torch.device("cpu")  # the fit is in float64
    return Examples(found.to(home), labels_of(table).to(home), table.column("key").to_pylist())
