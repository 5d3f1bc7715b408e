"""Metrics of rows with label sets: average precision and F1 of classes, top-1 within groups, ranks of a taxonomy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL
from unicl_cli.core.class_groups import ancestors_of, groups_of
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.annotations import Annotations, Bools, add_ancestors, take_rows
from unicl_cli.evaluate.hierarchy import (
    Hierarchy,
    best_leaves,
    build_hierarchy,
    classes_at_ranks,
    distance_to_common,
    find_truths,
    roll_up,
)
from unicl_cli.evaluate.metrics import target_ranks
from unicl_cli.evaluate.multilabel import ClassFigures, Cut, mean_and_interval, measure_classes, rank_all_pairs
from unicl_cli.evaluate.tables import accuracy_figures
from unicl_cli.formats import count_of, plural
from unicl_cli.inference.class_scores import ClassScores
from unicl_cli.inference.encoder import Encoder, check_finite
from unicl_cli.inference.scorer import Scorer
from unicl_cli.jobs.evaluators.candidates import Candidates
from unicl_cli.jobs.evaluators.rows import limit_rows

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalRows
    from unicl_cli.jobs.evaluators.kept import KeepPrecisions
    from unicl_cli.runs.thresholds import FoundThresholds

NO_POSITIVE = "no row has a label"


class LabelledImages(NamedTuple):
    """Scores and labels of the rows of a split with label sets; ``rows`` are their numbers in the table."""

    scores: ClassScores
    truth: Annotations
    rows: list[int]
    chosen: Candidates
    groups: tuple[str, ...]

    @property
    def wanted(self) -> Bools:
        """The classes of the corpus that are candidates, bool (C,)."""
        return np.array(self.chosen.allowed[: self.chosen.in_corpus])

    def group_numbers(self) -> Tensor:
        """Return the group of each candidate, int64; -1: a further class whose group the corpus does not have."""
        numbers = {name: number for number, name in enumerate(self.groups)}
        return torch.tensor([numbers.get(item.group, -1) for item in self.chosen.classes])

    def hidden(self, part: slice, groups: Tensor) -> Tensor:
        """Mark the classes that are no wrong answer to each row of ``part``, bool (b, candidates).

        Classes that the row has, those of groups for which it is not annotated, and those that are not candidates.
        """
        known = torch.from_numpy(self.truth.sets.known[part])
        bits = torch.where(groups >= 0, torch.ones_like(groups) << groups.clamp(min=0), 0)
        hidden = (known[:, None] & bits) == 0
        hidden |= ~torch.tensor(self.chosen.allowed)
        hidden[:, : self.chosen.in_corpus] |= torch.from_numpy(self.truth.has_row(part.start, part.stop))
        return hidden


def order_thresholds(found: FoundThresholds, corpus: EvalCorpus) -> Cut | None:
    """Return thresholds in the order of the corpus's classes; None if they are a run's that do not count here.

    These were fitted for other weights, or for the classes of another corpus. Raises UniclError if a class of the
    corpus has none.
    """
    document = found.document
    if found.is_stale and not found.is_named:
        return None
    known = dict(zip(document.classes, document.thresholds, strict=True))
    missing = [item.names[0] for item in corpus.classes if item.key not in known]
    if missing and not found.is_named and document.data != corpus.name:
        return None
    if missing:
        raise UniclError(
            f"{found.file}: has no threshold for {count_of(len(missing), 'class')} of {corpus.name}, such as "
            f"{missing[0]}",
            "fit them again: unicl eval MODEL --data CORPUS --fit-thresholds",
        )
    return Cut(document.scale, document.bias, np.array([known[item.key] for item in corpus.classes], np.float64))


def read_annotations(corpus: EvalCorpus, table: EvalRows, rows: Sequence[int]) -> Annotations:
    """Return the labels of some rows of a split, and those above them in a taxonomy."""
    sets = add_ancestors(take_rows(table.label_sets(), rows), ancestors_of(corpus.classes))
    return Annotations(sets, corpus.groups or (0,) * len(corpus.classes))


def score_label_sets(
    encoder: Encoder,
    scorer: Scorer,
    chosen: Candidates,
    corpus: EvalCorpus,
    split: str,
    *,
    batch: int,
    limit: int | None = None,
) -> LabelledImages:
    """Encode the rows with labels of a split once; scores are made from their features whenever they are read."""
    table, label = corpus.table(split, "labels"), f"{corpus.name} {split}"
    rows = limit_rows(range(len(table)), limit)
    features = encoder.map_rows(table, rows, lambda images, _: scorer.encode(images), batch=batch, label=label)
    check_finite(features.isfinite().all(1), rows, table, f"{encoder.loaded.name} on {label}")
    scores = ClassScores(scorer, features, chosen.in_corpus, encoder.device)
    return LabelledImages(scores, read_annotations(corpus, table, rows), rows, chosen, groups_of(corpus.classes))


def label_set_figures(
    images: LabelledImages,
    corpus: EvalCorpus,
    split: str,
    thresholds: FoundThresholds | None = None,
    keep: KeepPrecisions | None = None,
) -> dict[str, Any]:
    """Return the metrics of the rows, with warnings; ``keep`` takes the average precisions."""
    truth, wanted = images.truth, images.wanted
    cut = None if thresholds is None else order_thresholds(thresholds, corpus)
    found = measure_classes(images.scores.by_classes, truth, wanted, cut)
    ranked = rank_all_pairs(images.scores.by_classes, truth, wanted)
    facts: dict[str, Any] = {"n": len(images.rows), "classes": len(corpus.classes)}
    if ranked is None:
        return facts | {"map": None, "map_interval": None, "reason": NO_POSITIVE}
    present = found.positives > 0
    precisions, influences = found.precision[present], found.influence.sum(0)
    if keep is not None:
        keep((precisions, influences))
    mean, bounds = mean_and_interval(precisions, influences)
    facts |= {"map": mean, "map_interval": list(bounds), "map_micro": ranked.average_precision()}
    if cut is not None and thresholds is not None:
        facts |= f1_figures(found) | {"thresholds": thresholds.describe()}
    facts["per_class"] = class_rows(corpus, found, cut)
    answers = answer_within_groups(images)
    if images.groups != ("",):
        facts["per_group"] = group_figures(images, found, answers)
    taxonomy = build_hierarchy(corpus.classes)
    if taxonomy is not None:
        facts |= taxonomy_figures(images, taxonomy)
    warnings = [*warn_about_classes(found, wanted, split), *warn_about_thresholds(thresholds, cut, corpus, split)]
    return facts | {"warnings": warnings}


def f1_figures(found: ClassFigures) -> dict[str, float]:
    """Return the mean F1 of the classes with a positive, and F1 of all known pairs."""
    if found.answered is None or found.hits is None:
        raise ValueError("F1 needs thresholds")
    answered, hits = int(found.answered.sum()), int(found.hits.sum())
    macro = float(found.f1()[found.positives > 0].mean())
    return {"f1_macro": macro, "f1_micro": 2 * hits / (answered + int(found.positives.sum()))}


def class_rows(corpus: EvalCorpus, found: ClassFigures, cut: Cut | None) -> list[dict[str, Any]]:
    """Return the metrics of each class with a positive."""
    f1 = None if cut is None else found.f1()
    rows: list[dict[str, Any]] = []
    for label in found.positives.nonzero()[0].tolist():
        item = corpus.classes[label]
        row: dict[str, Any] = {"class": item.names[0]}
        row |= {"group": item.group} if item.group else {}
        row |= {"n": int(found.positives[label]), "annotated": int(found.annotated[label])}
        row["ap"] = float(found.precision[label])
        if f1 is not None and cut is not None:
            row |= {"f1": float(f1[label]), "threshold": float(cut.thresholds[label])}
        rows.append(row)
    return rows


def group_figures(images: LabelledImages, found: ClassFigures, answers: Mapping[int, Tensor]) -> dict[str, Any]:
    """Return the mean average precision of each group with a positive, and top-1 where ``answers`` has the hits."""
    figures: dict[str, Any] = {}
    for group, name in enumerate(images.groups):
        inside = (images.truth.groups == group) & (found.positives > 0)
        if not inside.any():
            continue
        mean, bounds = mean_and_interval(found.precision[inside], found.influence[group])
        facts = {"classes": int((images.truth.groups == group).sum()), "map": mean, "map_interval": list(bounds)}
        top1 = accuracy_figures(answers[group]) if group in answers else {}
        annotated = int(images.truth.annotated(group).sum())
        figures[name] = {"n": len(answers[group]) if group in answers else annotated, **top1, **facts}
    return figures


def answer_within_groups(images: LabelledImages) -> dict[int, Tensor]:
    """Return the hits, bool (n of the group,), of the groups in which each annotated row has exactly one class.

    A row's class competes with the other classes of the group. A group with one candidate has no answers.
    """
    truth, groups = images.truth, images.group_numbers()
    allowed = torch.tensor(images.chosen.allowed)
    targets: dict[int, Tensor] = {}
    for group in range(len(images.groups)):
        own = find_only_class(truth, group)
        if own is not None and int(((groups == group) & allowed).sum()) > 1:
            targets[group] = own
    hits = {group: torch.zeros(len(truth), dtype=torch.bool) for group in targets}
    if not targets:
        return {}
    for part, block in images.scores.by_rows(len(images.chosen.classes)):
        scores, hidden = block.cpu(), images.hidden(part, groups)
        for group, own in targets.items():
            columns = (groups == group).nonzero()[:, 0]
            hits[group][part] = rank_truths(scores, hidden, own[part], columns) == 0
    counted = {group: (own >= 0) & allowed[own.clamp(min=0)] for group, own in targets.items()}
    return {group: hits[group][counted[group]] for group in targets if bool(counted[group].any())}


def find_only_class(truth: Annotations, group: int) -> Tensor | None:
    """Return the class of a group that each row has, int64 (n,), -1 for rows that are not annotated for it.

    None if an annotated row has none or several.
    """
    rows = np.repeat(np.arange(len(truth)), truth.counts)
    inside = truth.groups[truth.sets.values] == group
    counts = np.bincount(rows[inside], minlength=len(truth))
    if (counts[truth.annotated(group)] != 1).any() or (counts > 1).any():
        return None
    own = np.full(len(truth), NO_LABEL, np.int64)
    own[rows[inside]] = truth.sets.values[inside]
    return torch.from_numpy(own)


def rank_truths(scores: Tensor, hidden: Tensor, truths: Tensor, columns: Tensor) -> Tensor:
    """Return the rank of the true class among ``columns`` that are not hidden, int64 (b,); any for a truth of -1."""
    places = torch.searchsorted(columns, truths.clamp(min=int(columns[0])))
    own = scores[:, columns]
    open_ones = own.masked_fill(hidden[:, columns], -torch.inf)
    open_ones.scatter_(1, places[:, None], own.gather(1, places[:, None]))
    return target_ranks(open_ones, places)


def taxonomy_figures(images: LabelledImages, taxonomy: Hierarchy) -> dict[str, Any]:
    """Return top-1 at each rank, from probabilities that are rolled up, and the mean distance of the likeliest leaf."""
    truth, scorer = images.truth, images.scores.scorer
    labels = np.split(truth.sets.values, truth.sets.ends[1:-1])
    answerable = scorer.known[: images.chosen.in_corpus] & torch.from_numpy(images.wanted)
    truths = find_truths([own.tolist() for own in labels], taxonomy)
    open_trees = taxonomy.trees[taxonomy.leaves & answerable].unique()
    truths[~torch.isin(taxonomy.trees[truths], open_trees)] = NO_LABEL
    counted = truths >= 0
    if not bool(counted.any()):
        return {}
    ranks = classes_at_ranks(truths.tolist(), truth.groups.tolist(), taxonomy)
    hits = {rank: torch.zeros(len(truth), dtype=torch.bool) for rank in ranks}
    leaves = torch.zeros(len(truth), dtype=torch.int64)
    groups = torch.from_numpy(truth.groups)
    for part, block in images.scores.by_rows(len(images.chosen.classes)):
        logits = scorer.logits(block)[:, : images.chosen.in_corpus].cpu().double()
        rolled = roll_up(logits.masked_fill(~answerable, -torch.inf), taxonomy)
        leaves[part] = best_leaves(rolled, truths[part], taxonomy)
        for rank, own in ranks.items():
            columns = (groups == rank).nonzero()[:, 0]
            places = torch.searchsorted(columns, own[part].clamp(min=int(columns[0])))
            hits[rank][part] = target_ranks(rolled[:, columns], places) == 0
    steps = [
        distance_to_common(label, leaf, taxonomy)
        for label, leaf in zip(truths[counted].tolist(), leaves[counted].tolist(), strict=True)
    ]
    return {
        "per_rank": {
            images.groups[rank]: {"n": int((own >= 0).sum()), **accuracy_figures(hits[rank][own >= 0])}
            for rank, own in ranks.items()
            if bool((own >= 0).any())
        },
        "lca_distance": sum(steps) / len(steps),
    }


def warn_about_classes(found: ClassFigures, wanted: Bools, split: str) -> list[str]:
    """Return warnings about classes without a positive, and about those that every annotated row has."""
    warnings: list[str] = []
    absent = int((wanted & (found.positives == 0)).sum())
    if absent:
        warnings.append(f"{absent} of {len(wanted)} classes have no row in split {split}: left out of mAP")
    full = int(((found.positives > 0) & (found.positives == found.annotated)).sum())
    if full:
        text = f"{count_of(full, 'class')} {plural(full, 'is', 'are')} a label of every annotated row of split {split}"
        warnings.append(f"{text}: their average precision is 1 whatever the model says")
    left_out = int((~wanted).sum())
    if left_out:
        warnings.append(f"{count_of(left_out, 'class')} of the corpus left out: not among the candidates")
    return warnings


def warn_about_thresholds(
    thresholds: FoundThresholds | None, cut: Cut | None, corpus: EvalCorpus, split: str
) -> list[str]:
    """Return warnings if the thresholds are of another corpus or of other weights, or were fitted on the same split."""
    if thresholds is None:
        return []
    document = thresholds.document
    stale = [thresholds.describe_stale()] if thresholds.is_stale else []
    if cut is None:
        reason = [] if stale else [f"{thresholds.file} has thresholds of the classes of {document.data}"]
        return [f"no F1: {each}; fit them again: unicl eval MODEL --fit-thresholds" for each in stale + reason]
    if (document.data, document.split) == (corpus.name, split):
        return [
            *stale,
            f"the thresholds of {thresholds.file} were fitted on this split: F1 is too high; use another split",
        ]
    return stale
