"""The document of `unicl probe`: a simple classifier on the image features of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import rank
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.linear_probe import LinearProbe, reference_features, save_probe
from unicl_cli.jobs.evaluators.options import ProbeOptions, check_options
from unicl_cli.jobs.evaluators.probe import Classifier, ProbeEvaluator

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded


def probe(
    loaded: Loaded,
    *,
    data: str | None,
    split: str | None,
    options: ProbeOptions,
    batch: int,
    accelerator: Any,
    save: Path | None = None,
) -> dict[str, Any]:
    """Return the document of `unicl probe`, the same on every rank; ``accelerator`` is accelerate's.

    The first rank writes the linear classifier to ``save``.
    """
    corpus = corpus_to_probe(loaded, data)
    tested = corpus.eval_split(split)
    encoder, kept = Encoder(loaded, accelerator.autocast), list[Classifier]()
    figures = ProbeEvaluator(check_options(options), kept.append)(encoder, corpus, tested, batch=batch)
    document = {"schema": "unicl/probe/1", "model": loaded.name, "data": corpus.name, "split": tested, **figures}
    if save is None:
        return document
    has_sets = corpus.groups is not None
    found = as_linear_probe(encoder, kept[0], corpus.classes, options, has_sets=has_sets)
    if rank() == 0:
        facts = {name: document[name] for name in ("data", "split", "n", "top1", "map", "c") if name in document}
        save_probe(found, save, facts)
    return document | {"saved": str(save)}


def as_linear_probe(
    encoder: Encoder,
    trained: Classifier,
    classes: Sequence[ClassName],
    options: ProbeOptions,
    *,
    has_sets: bool = False,
) -> LinearProbe:
    """Return the classifier in the form that is saved; classes without training rows are left out.

    With ``has_sets`` each class has a sigmoid of its own.
    """
    if trained.linear is None:
        raise ValueError("only a linear classifier can be saved")
    weights, bias = trained.linear.weights[0].float(), trained.linear.bias[0].float()
    known = bias.isfinite().nonzero()[:, 0]
    reference = reference_features(encoder, options.features, normalize=options.normalize)
    names = tuple(classes[label] for label in known.tolist())
    point, name = options.features, encoder.loaded.name
    found = LinearProbe(weights[:, known], bias[known], reference, names, point, options.normalize, name)
    return found._replace(sigmoid=has_sets)


def corpus_to_probe(loaded: Loaded, data: str | None) -> Corpus:
    """Open the named corpus, or the one corpus of the model's recipe that has classes."""
    if data is not None:
        return open_corpus(data)
    corpora = [open_corpus(path) for path in dict.fromkeys(loaded.corpora)]
    found = [corpus for corpus in corpora if len(corpus.classes) > 1]
    if len(found) == 1:
        return found[0]
    named = "several corpora with classes" if found else "no corpus with classes"
    raise UniclError(f"the recipe of model {loaded.name} names {named}", "name the corpus to probe: --data CORPUS")
