"""The document of `unicl probe`: a simple classifier on the image features of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.evaluators.build import make_evaluator

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.jobs.evaluators.options import ProbeOptions


def probe(
    loaded: Loaded, *, data: str | None, split: str | None, options: ProbeOptions, batch: int, accelerator: Any
) -> dict[str, Any]:
    """Return the document of `unicl probe`, the same on every rank; ``accelerator`` is accelerate's."""
    corpus = corpus_to_probe(loaded, data)
    tested = corpus.eval_split(split)
    evaluator = make_evaluator({"name": "probe", **options._asdict()})
    figures = evaluator(Encoder(loaded, accelerator.autocast), corpus, tested, batch=batch)
    return {"schema": "unicl/probe/1", "model": loaded.name, "data": corpus.name, "split": tested, **figures}


def corpus_to_probe(loaded: Loaded, data: str | None) -> Corpus:
    """Open the named corpus, or the one corpus of the model's recipe that has classes."""
    if data is not None:
        return open_corpus(Path(data))
    corpora = [open_corpus(Path(path)) for path in dict.fromkeys(loaded.corpora)]
    found = [corpus for corpus in corpora if len(corpus.classes) > 1]
    if len(found) == 1:
        return found[0]
    named = "several corpora with classes" if found else "no corpus with classes"
    raise UniclError(f"the recipe of model {loaded.name} names {named}", "name the corpus to probe: --data CORPUS")
