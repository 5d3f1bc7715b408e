"""One real batch and its targets, for CLIP (each pair alone) and for UniCL (equal keys, or labels in common)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, zeros

from unicl_cli.build.corpora import check_corpora
from unicl_cli.build.data import TrainingData, build_data
from unicl_cli.contracts import NO_KEY, NO_TEXT, Drawn
from unicl_cli.data.class_mentions import ClassNameFinder, distinct_pairs, split_words
from unicl_cli.data.collate import collate
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.mix import BOTH, At, Draws, MixedCorpora
from unicl_cli.data.text import text_hash
from unicl_cli.errors import UniclError
from unicl_cli.jobs.inspect.batch_target import BatchTarget, build_unicl, incidence_of
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe
from unicl_cli.storage.json_output import format_json

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
MAX_SHOWN = 32
"""Largest number of rows in the drawn matrices."""
NEGATIVE, POSITIVE, MISSED, HIDDEN = "0", "1", "2", "3"
"""Cells of a matrix; missed: row and column share a class or text, but the target is negative; hidden: neither."""
PLACEHOLDER_SIZE = 64
"""Image side of the default recipe."""


class Relations(NamedTuple):
    """By which rows form pairs: their target, their texts, and the classes that captions of unlabelled rows name.

    ``texts`` are hashes, int64 (n,); the others are sparse matrices of ones, (n, classes).
    """

    target: BatchTarget
    texts: Ints
    labels: Any
    text_labels: Any
    named: Any

    def missed(self, images: Ints) -> tuple[Mask, Mask]:
        """Mark equal texts, and captions that name a class of the other row, among the pairs that are negatives."""
        positive, hidden = self.target.positives(images), self.target.hidden(images)
        is_negative = ~(positive | hidden)
        same = self.texts[images, None] == self.texts
        naming = (self.labels[images] @ self.named.T + self.named[images] @ self.text_labels.T).toarray() > 0
        return same & is_negative, naming & is_negative


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


class CountedRows(NamedTuple):
    """The rows of a batch as the loss `unicl` counts them: one for each text that a row shows."""

    rows: list[Drawn]
    images: Ints  # (n,): the row of the batch that each belongs to
    target: BatchTarget
    facts: dict[str, int]


def inspect_batch(recipe: Recipe, path: str, step: int, *, with_images: bool) -> InspectedBatch:
    """Draw the batch of ``step`` (0: the first) with the recipe's own sampler and keys, and describe it."""
    check_corpora(recipe)
    data = build_data(recipe)
    at = next(iter(Draws(data.order, step, step + 1, 0, 1)))
    rows, images, target, counts = count_rows(recipe, data, at, path)
    relations = relate_rows(rows, target, data)
    by_class = sorted(range(min(MAX_SHOWN, len(rows))), key=lambda n: (not rows[n].labels, rows[n].labels, n))
    shown = np.array(by_class)
    labelled = sum(bool(row.labels) for row in rows)
    facts: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "batch",
        "path": path,
        "step": step,
        "batch_size": recipe.batch.size,
        "caption_targets": recipe.data.caption_targets,
        "corpora": [item.corpus for item in recipe.data.train],
        "label_rows": labelled,
        "caption_rows": len(rows) - labelled,
        **counts,
        "classes": len({label for row in rows for label in row.labels}),
        "distinct_texts": len({row.text for row in rows}),
        **pair_counts(relations),
        "shown": [
            row_facts(rows[row], int(target.positives(shown[[n]]).sum()), data) for n, row in enumerate(by_class)
        ],
        "matrix": target_matrices(relations, shown),
        **target_shares(target, shown),
    }
    chosen = [data.mix[at[images[row]]].image for row in shown] if with_images else []
    return InspectedBatch(facts, [image if image.ndim == 3 else image[0] for image in chosen])


def count_rows(recipe: Recipe, data: TrainingData, at: Sequence[At], path: str) -> CountedRows:
    """Draw the rows ``at`` these places without their images; return those that count. UniclError if none does."""
    blank = cast("Any", skip_image)
    mix = MixedCorpora([strand._replace(transform=blank) for strand in data.mix.strands], data.mix.texts)
    drawn = [mix[place] for place in at]
    loss = build_unicl(recipe, data.label_sets, shows_captions=data.shows_captions)
    hook, two_texts = getattr(loss, "extra", None), data.mix.texts.labelled == BOTH
    targets = recipe.data.caption_targets
    made = collate(drawn, zeros(len(drawn)), tokenizer=None, caption_targets=targets, extra=hook, two_texts=two_texts)
    batch, keys = loss.count_rows(made)
    counted = np.flatnonzero(keys.numpy() != NO_KEY)
    with_text = int((batch.text_index != NO_TEXT).sum())
    if not with_text:
        raise UniclError(
            f"{path}: no row of the batch has a text, so there are no pairs of images and texts",
            "choose a corpus with labels or captions; images alone suit only losses without texts, such as supcon",
        )
    if not len(counted):
        raise UniclError(
            f"{path}: each prompt of the batch names a class of weight 0, so no row counts",
            "set a loss.weights above 0 for its group, or choose another --step",
        )
    seconds = [row._replace(text=row.prompt, text_hash=0, shown=row.prompted) for row in drawn] if two_texts else []
    rows = [[*drawn, *seconds][row] for row in counted]
    facts = {
        "rows_without_text": int((made.text_index == NO_TEXT).sum()),
        "second_texts": sum(row.text is not None for row in seconds),
        "rows_left_out": with_text - len(rows),
    }
    return CountedRows(rows, counted % len(drawn), BatchTarget(loss, batch, counted, len(data.classes)), facts)


def skip_image(data: bytes, draw: int) -> Tensor:
    """Stand in for the transform: texts and keys do not depend on the image."""
    del data, draw
    return zeros(0)


def relate_rows(rows: list[Drawn], target: BatchTarget, data: TrainingData) -> Relations:
    """Return the relations of the rows that have a text."""
    texts = np.array([text_hash(row.text or "") for row in rows], np.int64)
    free = np.array([n for n, row in enumerate(rows) if not row.labels], np.int64)
    if data.mix.texts.naming is not None:  # a caption is no negative of the classes that it names
        free = free[:0]
    words = split_words(pa.array([rows[n].text for n in free], pa.string()))
    text, named = ClassNameFinder(data.classes).find(words)
    text, named = distinct_pairs(free[text], named, max(1, len(data.classes)))
    mentions: list[list[int]] = [[] for _ in rows]
    for n, label in zip(text.tolist(), named.tolist(), strict=True):
        mentions[n].append(label)
    labels = incidence_of([row.labels for row in rows], len(data.classes))
    text_labels = labels if target.target is None else target.text_labels
    return Relations(target, texts, labels, text_labels, incidence_of(mentions, len(data.classes)))


def pair_counts(relations: Relations) -> dict[str, Any]:
    """Count positives, hidden pairs and false negatives among the pairs (image i, text j), including i = j."""
    target = relations.target
    n = len(relations.texts)
    positives = hidden = same_text = naming = 0
    for images in target.chunks():
        is_positive = target.positives(images)
        positives += int(is_positive.sum())
        hidden += int((target.hidden(images) & ~is_positive).sum())
        same, named = relations.missed(images)
        same_text, naming = same_text + int(same.sum()), naming + int(named.sum())
    return {
        "pairs": n * n,
        "clip": {"positives": n, "false_negatives": positives - n, "per_anchor": (positives - n) / n},
        "unicl": {
            "positives": positives,
            "positives_per_anchor": positives / n,
            "hidden": hidden,
            "same_text_other_key": same_text,
            "captions_naming_the_class": naming,
        },
    }


def target_matrices(relations: Relations, shown: Ints) -> dict[str, list[str]]:
    """Return both target matrices of the shown rows, one string of cells per image."""
    target = relations.target
    same, naming = (x[:, shown] for x in relations.missed(shown))
    alike, hidden, missed = target.positives(shown)[:, shown], target.hidden(shown)[:, shown], same | naming
    itself = np.eye(len(shown), dtype=bool)
    cells = {
        "clip": np.select([itself, alike | missed], [POSITIVE, MISSED], NEGATIVE),
        "unicl": np.select([alike, missed, hidden], [POSITIVE, MISSED, HIDDEN], NEGATIVE),
    }
    return {name: ["".join(row) for row in matrix.tolist()] for name, matrix in cells.items()}


def target_shares(target: BatchTarget, shown: Ints) -> dict[str, Any]:
    """Return UniCL's target of the shown rows by its shares, if the positives of an image differ in them."""
    if target.target is None:
        return {}
    whole = target.shares(shown)
    highest = whole.max(1, keepdims=True)
    if np.isclose(np.where(whole > 0, whole, highest), highest).all():
        return {}
    return {"shares": np.round(whole[:, shown], 4).tolist()}


def row_facts(row: Drawn, positives: int, data: TrainingData) -> dict[str, Any]:
    """Return a listed row; ``positives`` is the number of texts in the batch that are positives of its image."""
    names = [data.classes[label].names[0] for label in row.labels]
    one = names[0] if len(names) == 1 else None
    return {"row": row.row, "draw": row.draw, "class": one, "classes": names, "text": row.text, "positives": positives}
