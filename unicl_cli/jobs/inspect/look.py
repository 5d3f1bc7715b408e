"""What a path is, and the document of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.inspect.corpus import inspect_corpus

BATCH = 256
"""Rows of a corpus's batch where nothing says how many."""


class Wanted(NamedTuple):
    """The options of the command line."""

    split: str | None
    tokenizer: str
    batch: bool
    batch_size: int | None
    step: int
    html: Path | None
    samples: int


def look(path: str, wanted: Wanted) -> dict[str, Any]:
    """The document of `unicl inspect`; the page is written on the way."""
    corpus = open_corpus(path)
    return inspect_corpus(corpus, split=wanted.split, tokenizer=wanted.tokenizer, batch_size=wanted.batch_size or BATCH)
