"""The evaluated images that a model was trained on, found by the sha256 that every corpus holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.mix import LABELS, select_rows
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe, TrainData
from unicl_cli.runs.documents import Meta, read_if_sound
from unicl_cli.runs.folder import META, RESOLVED, find_run
from unicl_cli.storage import hub

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicl_cli.data.corpus import Corpus, RowTable
    from unicl_cli.data.manifest import NotIn


LOCAL = "local-dir:"


class Overlap(NamedTuple):
    """Of the ``images`` distinct images of a split, ``trained`` were trained on."""

    trained: int
    images: int

    def warning(self) -> str:
        """Return the warning that names both numbers."""
        what = f"{self.trained:,} of {self.images:,} evaluated images were trained on"
        return f"{what}: the results will look too good"


def find_overlap(recipes: Sequence[Recipe], corpus: Corpus, split: str) -> Overlap:
    """Count the images of a split that are also among the training rows of ``recipes``.

    Training corpora that cannot be read any more are left out. Memory: 8 bytes for each image of the split, and one
    column of one shard at a time.
    """
    tables = [corpus.table(split, kind) for kind in corpus.kinds(split)]
    images = np.unique(np.concatenate([hashes for table in tables for hashes in table.image_hashes()]))
    found = np.zeros(len(images), np.bool_)
    for item, labels in ((item, recipe.data.mix.labels) for recipe in recipes for item in recipe.data.train):
        with suppress(UniclError):  # a corpus has moved or is damaged: no figure depends on it
            for hashes in trained_images(item, labels):
                places = np.searchsorted(images, hashes).clip(max=len(images) - 1)
                found[places[images[places] == hashes]] = True
    return Overlap(int(found.sum()), len(images))


def find_left_out(recipes: Sequence[Recipe], corpus: Corpus, split: str) -> dict[str, Any]:
    """Return the rows that `prepare --not-in` kept out of the training corpora because ``corpus`` has their image.

    ``same`` and ``near`` are their numbers, ``checked`` and ``unchecked`` the training corpora that were and were not
    made so; empty if none was. The checksum must be that of ``corpus``: a changed one is another.
    """
    found = {"same": 0, "near": 0}
    checked: list[str] = []
    unchecked: list[str] = []
    for path in dict.fromkeys(item.corpus for recipe in recipes for item in recipe.data.train):
        records = [of for of in _not_in(path) if of.checksum == corpus.checksum and of.split in (None, split)]
        (checked if records else unchecked).append(path)
        for record in records:
            found["same"] += record.same
            found["near"] += record.near
    return found | {"checked": checked, "unchecked": unchecked} if checked else {}


def _not_in(path: str) -> Sequence[NotIn]:
    """Return the corpora that were kept out of a training corpus; none if that cannot be read any more."""
    with suppress(UniclError):
        return open_corpus(path).manifest.not_in
    return ()


def trained_images(item: TrainData, labels: float | str) -> Iterator[NDArray[np.uint64]]:
    """Yield hashes of the images of training rows, shard by shard; ``labels`` is the recipe's `data.mix.labels`."""
    corpus = open_corpus(item.corpus)
    for kind in corpus.kinds(item.split):
        if labels != (0 if kind == LABELS else 1):
            table = corpus.table(item.split, kind)
            yield from _chosen(table, select_rows(table, 1.0 if item.fraction is None else item.fraction, item.limit))


def _chosen(table: RowTable, rows: NDArray[np.int64] | None) -> Iterator[NDArray[np.uint64]]:
    first = 0
    for hashes in table.image_hashes():
        if rows is None:
            yield hashes
        else:
            yield hashes[rows[(rows >= first) & (rows < first + len(hashes))] - first]
        first += len(hashes)


def recipes_of(model: str) -> list[Recipe]:
    """Return the recipes of the trainings behind a model: its stages, the runs it started from, the parts of a mixture.

    What is not a run, or cannot be read, has none.
    """
    recipes: dict[Path, Recipe] = {}
    met: set[str] = set()
    pending = [model]
    while pending:
        name = pending.pop()
        if name in met:
            continue
        met.add(name)
        with suppress(UniclError, OSError, ValueError):
            folder = Path(name.removeprefix(LOCAL))
            pending += _parts_of_mixture(folder)
            if not hub.has_form(name):
                run = find_run(name)[0].resolve()
                recipes[run] = recipe = load(str(run / RESOLVED))
                pending += [str(stage) for stage in sorted(run.glob("stage-*"))]
                pending += [recipe.model.init] if recipe.model.init else []
    return list(recipes.values())


def _parts_of_mixture(folder: Path) -> list[str]:
    """Return the two models that `unicl mix` made a folder from; none for another folder."""
    meta = read_if_sound(folder / META, Meta)
    return [] if meta is None or meta.mixed is None else [meta.mixed.old, meta.mixed.new]
