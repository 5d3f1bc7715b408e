"""The evaluator `cross-modal`: images, texts and media find each other, and class names classify each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_LABEL
from unicl_cli.evaluate.classifier import prompts_of
from unicl_cli.evaluate.retrieval import Found, recalls, search
from unicl_cli.evaluate.tables import accuracy_figures
from unicl_cli.jobs.evaluators.rows import limit_rows

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Need

TOP = (1, 5, 10)
Encode = Callable[["EvalRows", Sequence[int]], Tensor]


class Modality(NamedTuple):
    """The distinct items of a modality in a split, and those of each row: one, several (texts) or none."""

    features: Tensor
    """float32 (items, D)."""
    of_row: list[list[int]]

    def first_items(self, rows: Sequence[int]) -> Tensor:
        """Return the first item of each of these rows, int64 (n,)."""
        return torch.tensor([self.of_row[row][0] for row in rows])


class CrossModalEvaluator:
    """Recall at 1, 5 and 10 between any two modalities among the rows that have both, with that of a random order.

    Zero-shot accuracy of images and of each kind of media, on rows with one label, through the prompts of the classes.
    A pair that training never showed together measures emergent alignment (ImageBind, CVPR 2023, section 4.1). Empty
    for a model of images and texts alone.
    """

    needs: Sequence[Need] = ("captions",)
    takes_sets = True

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        if not model.media:
            return {}
        tables = [corpus.table(split, kind) for kind in corpus.kinds(split)]
        rows = SplitRows(tables, [limit_rows(range(len(table)), limit) for table in tables])
        name = f"{corpus.name} {split}"
        found = {"image": encode_images(model, rows, batch, f"{name} images")}
        found["text"] = encode_captions(model, rows, batch, f"{name} texts")
        for kind in model.media:
            found[kind.name] = encode_kind(model, kind.name, rows, batch, f"{name} {kind.name}")
        pairs: dict[str, Any] = {}
        for one, other in combinations([each for each in found if each != "text"], 2):
            pairs |= retrieve(one, found[one], other, found[other])
        for one in found:
            pairs |= retrieve(one, found[one], "text", found["text"]) if one != "text" else {}
        collapsed = [pair for pair, figures in pairs.items() if figures.pop("collapsed")]
        figures = {"retrieval": pairs, "zeroshot": classify(model, corpus, found, rows.column("label"), batch)}
        warnings = [f"collapsed: {pair.replace('_', ' ')}: all items score the same" for pair in collapsed]
        recalls = {f"{pair}_r1": figures["r1"] for pair, figures in pairs.items()}  # a validation keeps these
        measured = {name: value for name, value in figures.items() if value} | recalls
        return measured | {"warnings": warnings} if warnings else measured


class SplitRows(NamedTuple):
    """The chosen rows of the tables of a split, one table after the other."""

    tables: Sequence[EvalRows]
    chosen: Sequence[Sequence[int]]

    def column(self, name: str) -> list[Any]:
        """Return a column of the rows."""
        return [
            value
            for table, rows in zip(self.tables, self.chosen, strict=True)
            for value in table.column(name).take(pa.array(rows, pa.int64())).to_pylist()
        ]

    def encode(self, names: Sequence[Sequence[Hashable]], encode: Encode) -> Modality:
        """Encode each distinct item at the first row that has it; ``names`` are those of each row, one or none."""
        of_row, first = number_items(names)
        starts, parts, begin = set(first), list[Tensor](), 0
        for table, rows in zip(self.tables, self.chosen, strict=True):
            wanted = [row for place, row in enumerate(rows, begin) if place in starts]
            parts += [encode(table, wanted)] if wanted else []
            begin += len(rows)
        return Modality(torch.cat(parts) if parts else torch.empty(0, 1), of_row)


def number_items(names: Sequence[Sequence[Hashable]]) -> tuple[list[list[int]], list[int]]:
    """Number the distinct items of rows: return those of each row, and for each item the row that has it first."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    of_row: list[list[int]] = []
    for row, own in enumerate(names):
        first += [row] * len(set(own) - numbers.keys())
        of_row.append([numbers.setdefault(name, len(numbers)) for name in own])
    return of_row, first


def encode_images(model: EvalModel, rows: SplitRows, batch: int, label: str) -> Modality:
    """Encode each distinct image once."""

    def encode(table: EvalRows, wanted: Sequence[int]) -> Tensor:
        return model.encode_rows(table, wanted, batch=batch, label=label)

    return rows.encode([[digest] for digest in rows.column("sha256")], encode)


def encode_kind(model: EvalModel, kind: str, rows: SplitRows, batch: int, label: str) -> Modality:
    """Encode each distinct item of a kind of media once."""
    names: list[list[bytes]] = []
    for table, chosen in zip(rows.tables, rows.chosen, strict=True):
        has = table.media_rows(kind)
        own = (table.read(row, media=True).media if has[row] else {} for row in chosen)
        names += [[sha256(media[kind]).digest()] if kind in media else [] for media in own]

    def encode(table: EvalRows, wanted: Sequence[int]) -> Tensor:
        return model.encode_media(kind, table, wanted, batch=batch, label=label)

    return rows.encode(names, encode)


def encode_captions(model: EvalModel, rows: SplitRows, batch: int, label: str) -> Modality:
    """Encode each distinct caption once."""
    captions = rows.column("texts")
    texts = list(dict.fromkeys(text for own in captions for text in own))
    features = model.encode_texts(texts, batch=batch, label=label) if texts else torch.empty(0, 1)
    return Modality(features, number_items(captions)[0])


def retrieve(one: str, first: Modality, other: str, second: Modality) -> dict[str, Any]:
    """Return the recalls of two modalities by direction, among the rows that have both; none if fewer than two do.

    A row has one item of ``first``, and any number of ``second``. Equal items are hits for each other.
    """
    rows = [row for row, (a, b) in enumerate(zip(first.of_row, second.of_row, strict=True)) if a and b]
    if len(rows) < 2:
        return {}
    items = first.first_items(rows)
    ids = items.unique(return_inverse=True)[1]
    owners = torch.tensor([place for place, row in enumerate(rows) for _ in second.of_row[row]])
    others = torch.tensor([item for row in rows for item in second.of_row[row]])
    distinct, places = others.unique(return_inverse=True)
    found = search(first.features[items], second.features[distinct], places, owners, ids)
    shares, (to_other, to_one) = recalls(found), chance_recalls(found, places)
    facts = {"n": len(rows), "collapsed": found.collapsed}
    return {
        f"{one}_to_{other}": facts | shares["image_to_text"] | to_other,
        f"{other}_to_{one}": facts | shares["text_to_image"] | to_one,
    }


def chance_recalls(found: Found, places: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Return the recalls of candidates in a random order: from rows to other items, and back.

    ``places``, int64 (T,), are the distinct items, from 0 on, that `search` was given.
    """
    ids, owners = found.image_ids, found.image_of_text
    belongs = torch.zeros(int(ids.max()) + 1, int(places.max()) + 1)
    belongs[ids[owners], places] = 1
    right_items = (belongs @ torch.bincount(places).float())[ids]
    right_rows = (belongs.T @ torch.bincount(ids).float())[places]
    return random_recalls(right_items, len(places)), random_recalls(right_rows, len(ids))


def random_recalls(right: Tensor, total: int) -> dict[str, float]:
    """Return the chance that one of the ``right`` candidates of each query, (queries,), is among k of ``total``."""
    counts = [int(count) for count in right.tolist()]
    shares: dict[str, float] = {}
    for k in TOP:
        missed = [comb(total - count, k) / comb(total, k) if k <= total else 0.0 for count in counts]
        shares[f"chance_r{k}"] = 1 - sum(missed) / len(missed)
    return shares


def classify(
    model: EvalModel, corpus: EvalCorpus, found: Mapping[str, Modality], labels: Sequence[int], batch: int
) -> dict[str, Any]:
    """Return the accuracy of each modality but text among the classes of the corpus, on rows with one label.

    Nothing where classes have groups or parents: several are true of an image then, and no single one is the answer.
    """
    labelled = [row for row, label in enumerate(labels) if label != NO_LABEL]
    has_groups = any(each.group or each.parent for each in corpus.classes)
    if len(corpus.classes) < 2 or not labelled or has_groups:
        return {}
    prompts = prompts_of([each.names[:1] for each in corpus.classes], model.templates)
    distinct = {text: place for place, text in enumerate(dict.fromkeys(text for own in prompts for text in own))}
    vectors = model.encode_texts(list(distinct), batch=batch, label=f"{corpus.name} prompts")
    classes = F.normalize(torch.stack([vectors[[distinct[text] for text in own]].mean(0) for own in prompts]), dim=1)
    figures: dict[str, Any] = {}
    for name, modality in found.items():
        rows = [row for row in labelled if modality.of_row[row]] if name != "text" else []
        if rows:
            answers = (modality.features[modality.first_items(rows)] @ classes.T).argmax(1)
            hits = answers == torch.tensor([labels[row] for row in rows])
            figures[name] = {"n": len(rows), **accuracy_figures(hits), "chance": 1 / len(classes)}
    return figures
