"""Concepts of labels and captions (Table 1 of the UniCL paper), and the chance that a batch repeats one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import ancestors_of, label_sets_of
from unicl_cli.data.class_mentions import compute
from unicl_cli.evaluate.annotations import add_ancestors
from unicl_cli.evaluator_contracts import RowSets
from unicl_cli.jobs.inspect.scan import CaptionTally, CorpusScan

Ints = NDArray[np.int64]
FREQUENT = 5
"""A word in the captions of more images than this is a concept, as in the paper's Table 1."""
FUNCTION_WORDS = frozenset((
    "a", "about", "above", "after", "all", "along", "also", "an", "and", "another", "any", "are", "around", "as",
    "at", "away", "back", "be", "been", "before", "behind", "being", "below", "beside", "between", "both", "but", "by",
    "can", "could", "did", "do", "does", "down", "during", "each", "every", "few", "for", "from", "get", "had",
    "has", "have", "he", "her", "here", "him", "his", "how", "if", "in", "inside", "into", "is", "it",
    "its", "just", "like", "many", "may", "me", "more", "most", "much", "my", "near", "no", "not", "of",
    "off", "on", "one", "only", "onto", "or", "other", "our", "out", "outside", "over", "own", "said", "she",
    "should", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "through", "to", "too", "two", "under", "up", "upon", "us", "very", "was", "we", "were", "what",
    "when", "where", "which", "while", "who", "will", "with", "would", "you", "your",
))  # fmt: skip


def count_concepts(classes: Sequence[ClassName], counts: Ints, scanned: CorpusScan) -> dict[str, Any]:
    """Return images, concepts and images per concept, for labels, captions and both together.

    A concept of labels is a class with an image. A concept of captions is a word in the captions of more than
    FREQUENT images, without function words and single letters; the paper takes spaCy's noun phrases there. In
    "both", a word that names such a class counts once.
    """
    texts, seen, labelled = scanned.texts, counts > 0, int((np.diff(scanned.sets.ends) > 0).sum())
    often = scanned.words.filter(compute.greater(scanned.words.column("images"), FREQUENT)).column("word").to_pylist()
    words = {word for word in often if len(word) > 1 and not word.isdecimal()} - FUNCTION_WORDS
    named = {name.lower() for item, has in zip(classes, seen, strict=True) if has for name in item.names}
    labels = int(seen.sum())
    found = {"labels": (labelled, labels), "captions": (texts.rows, len(words))}
    found["both"] = (labelled + texts.unlabelled, labels + len(words - named))
    return {
        kind: {"pictures": images, "concepts": n, "pictures_per_concept": images / n if n else None}
        for kind, (images, n) in found.items()
        if images
    }


def count_named_classes(classes: Sequence[ClassName], counts: Ints, texts: CaptionTally, shown: int) -> dict[str, Any]:
    """Count the images whose captions name each class: classes never named are what labels add, and vice versa.

    ``most`` and ``least`` have up to ``shown`` named classes each, none of them in both; ``per_class`` has all classes.
    """
    order = np.argsort(-texts.named, kind="stable")
    each = [
        {"class": c.names[0], "key": c.key, "n": named, "labelled": labelled}
        for c, named, labelled in zip(classes, texts.named.tolist(), counts.tolist(), strict=True)
    ]
    most, least = ([each[n] for n in part if each[n]["n"]] for part in (order[:shown], order[shown:]))
    never = np.flatnonzero(texts.named == 0)
    never = never[np.argsort(-counts[never], kind="stable")]
    return {
        "named": int((texts.named > 0).sum()),
        "never": len(never),
        "only_in_captions": int(((texts.named > 0) & (counts == 0)).sum()),
        "pictures": texts.naming,
        "share": texts.naming / texts.rows,
        "only_in_labels": int(((texts.named == 0) & (counts > 0)).sum()),
        "most": most,
        "least": least[-shown:],
        "never_named": [classes[n].names[0] for n in never[:shown]],
        "per_class": each,
    }


class LabelCounts(NamedTuple):
    """The labels of a split's label rows as training has them, with the classes above them.

    ``rows`` are the rows with a label, ``images`` those that have each class, ``prompts`` the expected number of rows
    whose prompt names it, int64 and float64 (classes,). ``hidden`` is the share of pairs of an image and a prompt of a
    group that it is not annotated for.
    """

    rows: int
    images: Ints
    prompts: NDArray[np.float64]
    hidden: float


def count_labels(classes: Sequence[ClassName], sets: RowSets) -> LabelCounts:
    """Count the labels of rows, each with the classes above its own; a prompt names one of them at random."""
    sets = add_ancestors(sets, ancestors_of(classes))
    each, values = np.diff(sets.ends), sets.values
    row = np.repeat(np.arange(len(each)), each)
    images = np.bincount(values, minlength=len(classes))
    prompts = np.bincount(values, 1 / each[row], minlength=len(classes)).astype(np.float64)
    rows = int((each > 0).sum())
    groups = np.array(label_sets_of(classes, 1).groups, np.int64)
    named = np.bincount(groups, prompts) / max(1, rows)
    unknown = [float((sets.known[each > 0] >> g & 1 == 0).mean()) if rows else 0.0 for g in range(len(named))]
    return LabelCounts(rows, images, prompts, float(named @ np.array(unknown)))


def pair_statistics(labels: LabelCounts, texts: CaptionTally, batch_size: int) -> dict[str, Any]:
    """Return the share S of pairs of the same concept (sum of p_c squared), and expected matches in a batch.

    A batch mixes label rows and caption rows as `data.mix.labels: auto` does: half and half if there are both.
    Rows are drawn without repetition; for a large corpus, an anchor expects (rows - 1) S others of its concept. With
    label sets, S is the chance that the prompt of one row names a label of another.
    """
    labelled = labels.rows
    share = 0.5 if labelled and texts.unlabelled else float(labelled > 0)
    rows = round(batch_size * share)
    facts: dict[str, Any] = {"batch_size": batch_size, "label_rows": rows, "caption_rows": batch_size - rows}
    if labelled:
        matches = float(labels.images @ labels.prompts)
        facts["labels"] = {
            "same_concept_share": matches / labelled**2,
            "others_per_anchor": expected_matches(matches, labelled, rows),
            **({"hidden_share": labels.hidden} if labels.hidden else {}),
        }
    if texts.unlabelled:
        named = texts.named_unlabelled / texts.unlabelled
        repeats = np.unique(np.concatenate(texts.hashes), return_counts=True)[1]
        facts["captions"] = {
            "same_text_share": same_concept_share(repeats),
            "same_text_per_anchor": expected_others(repeats, batch_size - rows),
            "same_named_class_share": min(1.0, float((named**2).sum())),
        }
        if labelled:
            across = min(1.0, float((labels.images / labelled * named).sum()))
            facts["captions_naming_a_label"] = {"share": across, "per_anchor": across * (batch_size - rows)}
    return facts


def same_concept_share(counts: Ints) -> float:
    """Return S, the chance that two rows drawn with replacement have the same concept."""
    return float(((counts / counts.sum()) ** 2).sum())


def expected_others(counts: Ints, rows: int) -> float:
    """Return how many of the other ``rows - 1`` share an anchor's concept, drawn without repetition if possible."""
    return expected_matches(float((counts.astype(np.float64) ** 2).sum()), int(counts.sum()), rows)


def expected_matches(matches: float, total: int, rows: int) -> float:
    """Return the same from the number of matching ordered pairs among ``total`` rows, each with itself included."""
    if rows < 2:
        return 0.0
    if rows > total:
        return (rows - 1) * matches / total**2
    return (rows - 1) * (matches - total) / (total * (total - 1.0))
