"""One real batch and its targets, for CLIP (each pair alone) and for UniCL (equal keys)."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, zeros

from unicl_cli.build.corpora import check_corpora
from unicl_cli.build.data import TrainingData, build_data
from unicl_cli.contracts import NO_LABEL, NO_TEXT, Drawn
from unicl_cli.core.json_output import format_json
from unicl_cli.data.class_mentions import ClassNameFinder, distinct_pairs, split_words
from unicl_cli.data.collate import collate
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.mix import Draws, MixedCorpora
from unicl_cli.data.text import text_hash
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe

Ints = NDArray[np.int64]
MAX_SHOWN = 32
"""Largest number of rows in the drawn matrices."""
NEGATIVE, POSITIVE, MISSED = "0", "1", "2"
"""Cells of a matrix; missed: row and column share a class or text, but the target is negative."""
PLACEHOLDER_SIZE = 64
"""Image side of the default recipe."""


class RowGroups(NamedTuple):
    """The values by which rows form pairs. ``names`` are (row, class): an unlabelled row's caption names the class."""

    keys: Ints
    labels: Ints
    texts: Ints
    names: tuple[Ints, Ints]


class InspectedBatch(NamedTuple):
    """The document of a batch and, if requested, the images of its rows as the model sees them."""

    document: dict[str, Any]
    images: list[Tensor]


def default_recipe(corpus: Corpus, split: str, batch_size: int) -> Recipe:
    """Return the recipe for a corpus without one: the defaults, without augmentation."""
    return load_text(
        f"""
data:
  train: [{{corpus: {format_json(str(corpus.path))}, split: {format_json(split)}}}]
  image_size: {PLACEHOLDER_SIZE}
  augment: none
model: {{image: cnn, text: cbow, embed_dim: 8}}
batch: {{size: {batch_size}}}
steps: 1
"""
    )


def inspect_batch(recipe: Recipe, path: str, step: int, *, with_images: bool) -> InspectedBatch:
    """Draw the batch of ``step`` (0: the first) with the recipe's own sampler and keys, and describe it."""
    check_corpora(recipe)
    data = build_data(recipe)
    at = next(iter(Draws(data.order, step, step + 1, 0, 1)))
    blank = cast("Any", skip_image)
    mix = MixedCorpora([strand._replace(transform=blank) for strand in data.mix.strands], data.mix.texts)
    drawn = [mix[place] for place in at]
    batch = collate(drawn, zeros(len(drawn)), tokenizer=None, caption_targets=recipe.data.caption_targets, extra=None)
    with_text = np.flatnonzero(batch.text_index.numpy() != NO_TEXT)
    if not len(with_text):
        raise UniclError(
            f"{path}: no row of the batch has a text, so there are no pairs of images and texts",
            "choose a corpus with labels or captions; images alone suit only losses without texts, such as supcon",
        )
    rows = [drawn[row] for row in with_text]
    numbers = row_groups(rows, batch.keys.numpy()[with_text], data)
    shown = np.array(sorted(range(min(MAX_SHOWN, len(rows))), key=lambda row: (numbers.keys[row], row)))
    facts: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "batch",
        "path": path,
        "step": step,
        "batch_size": recipe.batch.size,
        "caption_targets": recipe.data.caption_targets,
        "corpora": [item.corpus for item in recipe.data.train],
        "label_rows": int((numbers.labels != NO_LABEL).sum()),
        "caption_rows": int((numbers.labels == NO_LABEL).sum()),
        "rows_without_text": len(drawn) - len(rows),
        "classes": len(np.unique(numbers.labels[numbers.labels != NO_LABEL])),
        "distinct_texts": len({row.text for row in rows}),
        **pair_counts(numbers),
        "shown": [row_facts(rows[row], int((numbers.keys == numbers.keys[row]).sum()), data) for row in shown],
        "matrix": target_matrices(numbers, shown),
    }
    chosen = [data.mix[at[with_text[row]]].image for row in shown] if with_images else []
    return InspectedBatch(facts, [image if image.ndim == 3 else image[0] for image in chosen])


def skip_image(data: bytes, draw: int) -> Tensor:
    """Stand in for the transform: texts and keys do not depend on the image."""
    del data, draw
    return zeros(0)


def row_groups(rows: list[Drawn], keys: Ints, data: TrainingData) -> RowGroups:
    """Return the keys, labels and texts of the rows, and the classes that captions name."""
    labels = np.array([row.label for row in rows], np.int64)
    texts = np.array([text_hash(row.text or "") for row in rows], np.int64)
    free = np.flatnonzero(labels == NO_LABEL)
    if data.mix.texts.naming is not None:  # a caption is no negative of the classes that it names
        free = free[:0]
    words = split_words(pa.array([rows[row].text for row in free], pa.string()))
    text, named = ClassNameFinder(data.classes).find(words)
    text, named = distinct_pairs(free[text], named, max(1, len(data.classes)))
    return RowGroups(keys, labels, texts, (text, named))


def pair_counts(numbers: RowGroups) -> dict[str, Any]:
    """Count positives and false negatives among the ordered pairs (image i, text j), including i = j."""
    n = len(numbers.keys)
    positives = count_pairs(numbers.keys)
    same_text = count_pairs(numbers.texts)
    both = count_pairs(numbers.keys, numbers.texts)
    labels = numbers.labels[numbers.labels != NO_LABEL]
    size = 1 + max(labels.max(initial=0), numbers.names[1].max(initial=0))
    naming = int(np.bincount(labels, minlength=size) @ np.bincount(numbers.names[1], minlength=size))
    return {
        "pairs": n * n,
        "clip": {"positives": n, "false_negatives": positives - n, "per_anchor": (positives - n) / n},
        "unicl": {
            "positives": positives,
            "positives_per_anchor": positives / n,
            "same_text_other_key": same_text - both,
            "captions_naming_the_class": 2 * naming,
        },
    }


def count_pairs(*columns: Ints) -> int:
    """Count the ordered pairs of rows that agree in all columns, including each row with itself."""
    counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
    return int((counts.astype(np.int64) ** 2).sum())


def target_matrices(numbers: RowGroups, shown: Ints) -> dict[str, list[str]]:
    """Return both target matrices of the shown rows, one string of cells per image."""
    keys, texts, labels = numbers.keys[shown], numbers.texts[shown], numbers.labels[shown]
    named = set(zip(*(column.tolist() for column in numbers.names), strict=True))
    relation = np.array([[(int(j), int(label)) in named for j in shown] for label in labels])
    alike = keys[:, None] == keys[None, :]
    missed = (texts[:, None] == texts[None, :]) | relation | relation.T
    itself = np.eye(len(shown), dtype=bool)
    cells = {
        "clip": np.select([itself, alike | missed], [POSITIVE, MISSED], NEGATIVE),
        "unicl": np.select([alike, missed], [POSITIVE, MISSED], NEGATIVE),
    }
    return {name: ["".join(row) for row in matrix.tolist()] for name, matrix in cells.items()}


def row_facts(row: Drawn, positives: int, data: TrainingData) -> dict[str, Any]:
    """Return a listed row; ``positives`` is the number of texts in the batch that are positives of its image."""
    named = None if row.label == NO_LABEL else data.classes[row.label].names[0]
    return {"row": row.row, "draw": row.draw, "class": named, "text": row.text, "positives": positives}
