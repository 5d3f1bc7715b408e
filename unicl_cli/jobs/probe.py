"""How much a linear classifier finds in a model's picture features: C chosen on validation data, tested once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.probe import Point, fit, held_out, measured, sweep
from unicl_cli.evaluate.report import accuracy
from unicl_cli.jobs.encoding import Encoder, each_row, refuse_not_finite
from unicl_cli.jobs.evaluate import chosen_split, labels_of

if TYPE_CHECKING:
    from unicl_cli.data.corpus import Corpus
    from unicl_cli.load import Loaded

FeaturePoint = Literal["pre", "post"]


class Examples(NamedTuple):
    """Features (n, d) and classes int64 (n,) of the label rows of a split, with their keys."""

    features: Tensor
    targets: Tensor
    keys: list[str]

    def only(self, mask: Sequence[bool]) -> Examples:
        chosen = torch.tensor(mask)
        kept = [key for key, keep in zip(self.keys, mask, strict=True) if keep]
        return Examples(self.features[chosen], self.targets[chosen], kept)

    def joined(self, other: Examples) -> Examples:
        return Examples(
            torch.cat([self.features, other.features]),
            torch.cat([self.targets, other.targets]),
            self.keys + other.keys,
        )


def probe(
    loaded: Loaded,
    *,
    data: str | None,
    split: str | None,
    features: FeaturePoint,
    batch: int,
    accelerator: Any,
) -> dict[str, Any]:
    """The document of `unicl probe`, the same on every rank; ``accelerator`` is accelerate's.

    ``features``: ``pre`` is the image tower's output, ``post`` the embedding after the projection. The tested split is
    read after C is chosen. Validation is the val split, or, where there is none or it is the one tested, a fifth of
    train by hash of the keys.
    """
    corpus = probed_corpus(loaded, data)
    tested = chosen_split(corpus, split)
    if tested == "train":
        raise UniclError("--split train: the probe is trained on it", "test on another split, for example --split val")
    check_labels(corpus, ["train", tested])
    encoder = Encoder(loaded, accelerator.autocast)
    examples = partial(encoded, encoder, corpus, point=features, batch=batch)
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
    curve, best = choose(train, validation, len(corpus.classes))
    whole = train.joined(validation)
    model = fit(whole.features, whole.targets, [best.c], len(corpus.classes))
    test = examples(split=tested)
    document: dict[str, Any] = {
        "schema": "unicl/probe/1",
        "model": loaded.name,
        "data": corpus.name,
        "split": tested,
        "n": len(test.targets),
        **accuracy(model.logits(test.features)[0].argmax(1) == test.targets),
        "c": best.c,
        "curve": [{"c": point.c, "val": point.accuracy} for point in curve],
        "features": features,
        "validation": source,
        "n_train": len(whole.targets),
        "feature_norm": float(whole.features.norm(dim=1).mean()),  # C means something beside the scale of the features
    }
    warnings = remarks(whole, test, best, curve)
    return document | {"warnings": warnings} if warnings else document


def remarks(train: Examples, test: Examples, best: Point, curve: Sequence[Point]) -> list[str]:
    """What the reader of the result should know."""
    found: list[str] = []
    unseen = ~torch.isin(test.targets, train.targets)
    if bool(unseen.any()):
        classes = len(test.targets[unseen].unique())
        found.append(
            f"{classes} classes of the tested split have no training row: {int(unseen.sum())} rows cannot be hit"
        )
    if best.c in (curve[0].c, curve[-1].c):
        found.append(f"C = {best.c:g} is the end of the range that is searched")
    return found


def choose(train: Examples, validation: Examples, num_classes: int) -> tuple[list[Point], Point]:
    """The validation curve and its best point; sees nothing but these two."""

    def measure(strengths: Sequence[float]) -> list[Point]:
        models = fit(train.features, train.targets, strengths, num_classes)
        return measured(models, strengths, validation.features, validation.targets)

    curve = sweep(measure)
    return curve, max(curve, key=lambda point: point.merit)


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


def encoded(encoder: Encoder, corpus: Corpus, *, split: str, point: FeaturePoint, batch: int) -> Examples:
    """The label rows of a split through the image tower, once."""
    table = corpus.table(split, "labels")
    rows = range(len(table))

    def compute(images: Tensor, _: Tensor) -> Tensor:
        features = encoder.image(images)
        return features.pooled if point == "pre" else features.embed

    label = f"{corpus.name} {split}"
    found = each_row(table, rows, compute, transform=encoder.loaded.transform, batch=batch, label=label)
    refuse_not_finite(found.isfinite().all(1), rows, table, f"{encoder.loaded.name} on {label}")
    return Examples(found, labels_of(table), table.column("key").to_pylist())
