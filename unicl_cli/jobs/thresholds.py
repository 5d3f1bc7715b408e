"""Thresholds of a model's classes, fitted on the rows of one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from unicl_cli.data.corpus import Corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.tables import make_table
from unicl_cli.evaluate.thresholds import FEWEST, FittedCut, fit_thresholds
from unicl_cli.formats import count_of, plural
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import make_scorer
from unicl_cli.jobs.evaluate import open_corpora
from unicl_cli.jobs.evaluators.build import missing_needs
from unicl_cli.jobs.evaluators.candidates import Candidates
from unicl_cli.jobs.evaluators.label_sets import score_label_sets
from unicl_cli.jobs.evaluators.zeroshot import ZeroShotEvaluator
from unicl_cli.runs.thresholds import Thresholds

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded

SPLIT = "val"
"""Split on which thresholds are fitted by default: never the one that is reported."""


class FittedThresholds(NamedTuple):
    """Thresholds to write, and the document that is shown."""

    thresholds: Thresholds
    document: dict[str, Any]


def fit_model_thresholds(
    loaded: Loaded, *, data: Sequence[str] | None, split: str | None, batch: int, accelerator: Any, weights: str | None
) -> FittedThresholds:
    """Fit thresholds on the rows with labels of one split (default val) of one corpus, the same on every rank.

    ``data`` None means the corpus of the model's recipe; ``weights`` is the sha256 of the model's weights. Raises
    UniclError if there are several corpora, or if no row of the split has a label that the model scores.
    """
    corpus = choose_corpus(open_corpora(loaded, data), loaded.name)
    fitted_on = corpus.eval_split(split or SPLIT)
    if missing := missing_needs(ZeroShotEvaluator(), loaded.step, loaded.tokenizer, corpus, fitted_on):
        raise UniclError(
            f"corpus {corpus.path}, split {fitted_on}: thresholds need {' and '.join(missing)}",
            "use a split with labels, and a model that scores classes",
        )
    encoder = Encoder(loaded, accelerator.autocast)
    scorer = make_scorer(encoder, corpus.classes, batch=batch)
    chosen = Candidates(corpus.classes, (True,) * len(corpus.classes), len(corpus.classes))
    images = score_label_sets(encoder, scorer, chosen, corpus, fitted_on, batch=batch)
    scored = scorer.known.numpy()
    if not images.truth.positives[scored].any():
        raise UniclError(
            f"corpus {corpus.path}, split {fitted_on}: no row has a label, so there is nothing to fit",
            "use a split whose rows have labels",
        )
    found = fit_thresholds(images.scores.by_classes, images.truth, scored)
    thresholds = Thresholds(
        data=corpus.name,
        split=fitted_on,
        n=len(images.rows),
        weights=weights,
        classes=[item.key for item in corpus.classes],
        scale=found.cut.scale,
        bias=found.cut.bias,
        thresholds=found.cut.thresholds.tolist(),
    )
    document = {"model": loaded.name, **thresholds.model_dump(mode="json", by_alias=True)}
    document |= {"own_thresholds": int(found.own.sum()), "common_threshold": found.common}
    warnings = [*scorer.warnings, *warn_about_fit(found)]
    return FittedThresholds(thresholds, document | {"warnings": warnings} if warnings else document)


def choose_corpus(corpora: Sequence[Corpus], model: str) -> Corpus:
    """Return the only corpus. Raises UniclError if there are several: thresholds are for one list of classes."""
    if len(corpora) > 1:
        raise UniclError(
            f"--fit-thresholds: takes one corpus, and {model} has {len(corpora)}", "name it with --data CORPUS"
        )
    return corpora[0]


def warn_about_fit(found: FittedCut) -> list[str]:
    """Return warnings about scores that do not separate positives from others, and about rare classes."""
    warnings: list[str] = []
    if found.calibration.scale <= 0:
        warnings.append("images with a class do not score higher than those without it: the thresholds mean nothing")
    rare = int(np.count_nonzero(~found.own))
    if rare:
        have = f"{count_of(rare, 'class')} {plural(rare, 'has', 'have')} fewer than {FEWEST} images"
        warnings.append(f"{have} and {plural(rare, 'takes', 'take')} the common threshold")
    return warnings


def threshold_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield one table: the rows that were used, the classes, and the logistic scale and bias."""
    names = ("n", "classes", "own\nthreshold", "common\nthreshold", "scale", "bias")
    table = make_table(f"Thresholds · {document['model']}", ("data", "split"), names)
    table.add_row(
        document["data"],
        document["split"],
        f"{document['n']:,}",
        f"{len(document['classes']):,}",
        f"{document['own_thresholds']:,}",
        f"{document['common_threshold']:.3g}",
        *(f"{document[name]:.4g}" for name in ("scale", "bias")),
    )
    yield table
