"""A loaded model measured on corpora: classification of the rows with labels, retrieval on the rows with texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unicl_cli.core.dist import bare
from unicl_cli.core.files import replace_durably, temporary_beside
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.evaluate.metrics import best, calibration, target_ranks, tied
from unicl_cli.evaluate.retrieval import recalls
from unicl_cli.evaluate.tables import classification
from unicl_cli.inference.encoder import Encoder, each_row, each_text, refuse_not_finite
from unicl_cli.inference.scorer import Scorer, scorer_for

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.data.corpus import Corpus, Table

Keep = Callable[[Mapping[str, Any]], None]
"""Takes what was answered to each row of a data set: equally long columns by name."""
TESTED = ("test", "val")
SHOWN = 5
MANY_TIES = 0.001


class Answers(NamedTuple):
    """To n label rows: ``ranks`` of the true class and whether it ``ties`` for the first place, int64 (n,); the best
    classes ``top`` int64 (n, k) and their ``scores`` float32 (n, k); ``confidence`` in the first, float32 (n,)."""

    ranks: Tensor
    ties: Tensor
    confidence: Tensor
    top: Tensor
    scores: Tensor


def evaluate(
    loaded: Loaded,
    *,
    data: Sequence[str] | None,
    split: str | None,
    batch: int,
    accelerator: Any,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """The document of `unicl eval`, the same on every rank. ``data`` None: the corpora of the model's recipe."""
    corpora = opened(loaded, data)
    encoder = Encoder(loaded, accelerator.autocast)
    warnings: list[str] = []
    entries: list[dict[str, Any]] = []
    for corpus in corpora:
        if data is None and split is None and len(corpora) > 1 and not set(TESTED) & set(corpus.splits):
            warnings.append(f"{corpus.name} has neither a test nor a val split: left out")
            continue
        entries.append(measure(encoder, corpus, chosen_split(corpus, split), batch=batch, keep=keep))
    if not entries:
        raise UniclError(
            "no corpus of the model's recipe has a test or val split", "name data: --data CORPUS --split train"
        )
    document: dict[str, Any] = {"schema": "unicl/eval/1", "model": loaded.name, "data": entries}
    return document | {"warnings": warnings} if warnings else document


def opened(loaded: Loaded, data: Sequence[str] | None) -> list[Corpus]:
    """The named corpora, or those of the model's recipe, each once."""
    paths = list(dict.fromkeys(data or loaded.corpora))
    if not paths:
        raise UniclError(
            f"model {loaded.name} names no corpus to evaluate on",
            "give one with --data CORPUS (see `unicl prepare --help`)",
        )
    return [open_corpus(Path(path)) for path in paths]


def chosen_split(corpus: Corpus, split: str | None) -> str:
    """``split``, or test, or val; raises UniclError where the corpus has no such split."""
    have = list(corpus.splits)
    if split is not None:
        if split not in have:
            raise UniclError(
                f"corpus {corpus.path} has no split '{split}'{did_you_mean(split, have)}", f"it has {', '.join(have)}"
            )
        return split
    for name in TESTED:
        if name in have:
            return name
    raise UniclError(
        f"corpus {corpus.path} has neither a test nor a val split",
        f"name one with --split (it has {', '.join(have)}), or prepare it with --holdout 0.05",
    )


def measure(encoder: Encoder, corpus: Corpus, split: str, *, batch: int, keep: Keep | None = None) -> dict[str, Any]:
    """One entry of the document; what does not apply is absent."""
    entry: dict[str, Any] = {"name": corpus.name, "split": split}
    warnings: list[str] = []
    if "labels" in corpus.kinds(split):
        scorer = scorer_for(encoder, corpus.classes, batch=batch)
        warnings += scorer.warnings
        entry |= classify(encoder, scorer, corpus, split, batch=batch, warnings=warnings, keep=keep)
    if can_search(encoder.loaded):
        retrieval = search(encoder, corpus, split, batch=batch, warnings=warnings)
        if retrieval:
            entry.setdefault("n", retrieval["images"])
            entry["retrieval"] = retrieval
    if "n" not in entry:
        raise UniclError(
            f"corpus {corpus.path}, split {split}: nothing to evaluate model {encoder.loaded.name} on",
            "evaluation needs rows with labels, or with texts and a model that was trained on texts",
        )
    entry["checksum"] = corpus.checksum
    return entry | {"warnings": warnings} if warnings else entry


def classify(
    encoder: Encoder,
    scorer: Scorer,
    corpus: Corpus,
    split: str,
    *,
    batch: int,
    warnings: list[str],
    keep: Keep | None = None,
) -> dict[str, Any]:
    """The figures of the label rows; adds to ``warnings``."""
    table = corpus.table(split, "labels")
    rows = range(len(table))
    found = ranked(encoder, scorer, table, rows, batch=batch, label=f"{corpus.name} {split}")
    ranks, predicted = found.ranks, found.top[:, 0]
    refuse_not_finite(ranks >= 0, rows, table, f"{encoder.loaded.name} on {corpus.name} {split}")
    targets = labels_of(table)
    names = [each.names[0] for each in corpus.classes]
    facts = classification(ranks, targets, names, table.column("source").to_pylist())
    facts |= calibration(found.confidence, ranks == 0)
    if keep is not None:
        keep(
            {
                "data": [corpus.name] * len(ranks),
                "split": [split] * len(ranks),
                "key": table.column("key").to_pylist(),
                "y": targets.tolist(),
                "top": found.top.tolist(),
                "scores": found.scores.tolist(),
                "p_max": found.confidence.tolist(),
                "correct": (ranks == 0).tolist(),
            }
        )
    if len(scorer.first.unique()) < len(names):
        same = scorer.first[predicted] == scorer.first[targets]
        facts["top1_any_of_identical"] = int(same.sum()) / len(same)
    share = float(found.ties.double().mean())
    if share > MANY_TIES:
        warnings.append(f"{100 * share:.1f} % of the rows tie for the first place; the lowest class wins")
    absent = len(names) - len(facts["per_class"])
    if absent:
        warnings.append(
            f"{absent} of {len(names)} classes have no row in split {split}: left out of the mean per class"
        )
    return facts


def labels_of(table: Table) -> Tensor:
    """int64 (n,)."""
    return torch.from_numpy(table.column("label").to_numpy().astype("int64"))


def ranked(encoder: Encoder, scorer: Scorer, table: Table, rows: Sequence[int], *, batch: int, label: str) -> Answers:
    """What the model answers to rows with labels."""
    targets = labels_of(table)[torch.tensor(rows)].to(encoder.device)

    def compute(images: Tensor, places: Tensor) -> Tensor:
        scores, true = scorer.scores(images), targets[places.to(encoder.device)]
        sure = scorer.probabilities(scores).amax(1)
        values, order = best(scores, SHOWN)
        whole = torch.stack([target_ranks(scores, true), tied(scores, true).long()], 1)
        return torch.cat([whole.float(), sure[:, None], order.float(), values], 1)  # numbers below 2^24 are exact

    found = each_row(table, rows, compute, transform=encoder.loaded.transform, batch=batch, label=label)
    whole, sure, rest = found[:, :2].long(), found[:, 2], found[:, 3:]
    shown = rest.shape[1] // 2
    return Answers(whole[:, 0], whole[:, 1], sure, rest[:, :shown].long(), rest[:, shown:])


def write_predictions(path: Path, kept: Sequence[Mapping[str, Any]]) -> None:
    """One Parquet file with the rows of all data sets, in their order; ``top`` are numbers of classes."""
    with temporary_beside(path) as part:
        pq.write_table(pa.concat_tables([pa.table(dict(columns)) for columns in kept]), part)
        replace_durably(part, path)


def can_search(loaded: Loaded) -> bool:
    """Does the model put captions and images into one space? A vocabulary of class names alone reads no captions."""
    loss: Any = bare(loaded.step).loss
    return loss.score == "text" and loaded.tokenizer is not None and loaded.tokenizer.context_length > 1


class Captions:
    """The texts of images: each distinct one once, and which image has which."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.text_rows: list[int] = []
        self.image_of_text: list[int] = []
        self.images = 0

    def add(self, own: Sequence[str]) -> None:
        """The texts of the next image."""
        self.text_rows += [self.texts.setdefault(text, len(self.texts)) for text in own]
        self.image_of_text += [self.images] * len(own)
        self.images += 1


def search(
    encoder: Encoder, corpus: Corpus, split: str, *, batch: int, warnings: list[str], limit: int | None = None
) -> dict[str, Any]:
    """Retrieval among all rows of the split that have texts, whatever their kind; empty where none has."""
    name = f"{corpus.name} {split}"
    transform = encoder.loaded.transform
    captions = Captions()
    pictures: list[Tensor] = []
    for kind in corpus.kinds(split):
        table = corpus.table(split, kind)
        texts: list[list[str]] = table.column("texts").to_pylist()
        rows = spread([row for row, own in enumerate(texts) if own], limit)
        if not rows:
            continue
        for row in rows:
            captions.add(texts[row])
        embed = each_row(
            table, rows, lambda x, _: encoder.image(x).embed, transform=transform, batch=batch, label=f"{name} images"
        )
        refuse_not_finite(embed.isfinite().all(1), rows, table, f"{encoder.loaded.name} on {name}")
        pictures.append(embed)
    if not pictures:
        return {}
    features = each_text(encoder, list(captions.texts), batch=batch, label=f"{name} texts")
    if not bool(features.isfinite().all()):
        raise UniclError(
            f"non-finite text features from {encoder.loaded.name}", "the weights have diverged", exit_code=1
        )
    owners = torch.tensor(captions.image_of_text)
    found = recalls(torch.cat(pictures), features, torch.tensor(captions.text_rows), owners)
    if found.pop("collapsed", False):
        warnings.append("collapsed: all images and texts score the same, so nothing is found")
    repeated = len(captions.text_rows) - len(captions.texts)
    if repeated:
        warnings.append(f"{repeated} of {len(owners)} captions repeat another; an equal caption is no hit")
    return found


def spread(rows: Sequence[int], limit: int | None) -> list[int]:
    """At most ``limit`` of the rows, evenly over their order: the first ones may all be of one source."""
    if limit is None or len(rows) <= limit:
        return list(rows)
    return [rows[place * len(rows) // limit] for place in range(limit)]


def validate(loaded: Loaded, corpus: Corpus, split: str, *, batch: int, limit: int | None = None) -> dict[str, float]:
    """The few figures of a validation during training, on every rank the same; ``limit`` rows of each kind.

    ``top1`` of the rows with labels, ``text_to_image_r1`` and ``image_to_text_r1`` of those with captions; nothing for
    a loss that scores no classes. Takes a plain, DDP or FSDP2 ``loaded.step``, called by all ranks together, and leaves
    it in the mode in which it was. Precision is the caller's autocast.
    """
    step: Any = bare(loaded.step)
    training = step.training
    step.eval()
    try:
        return figures(Encoder(loaded), corpus, split, batch=batch, limit=limit)
    finally:
        step.train(training)


def figures(encoder: Encoder, corpus: Corpus, split: str, *, batch: int, limit: int | None) -> dict[str, float]:
    values: dict[str, float] = {}
    loss: Any = bare(encoder.loaded.step).loss
    label = f"{corpus.name} {split}"
    if loss.score != "none" and "labels" in corpus.kinds(split):
        scorer = scorer_for(encoder, corpus.classes, batch=batch)
        table = corpus.table(split, "labels")
        rows = spread(range(len(table)), limit)
        ranks = ranked(encoder, scorer, table, rows, batch=batch, label=label).ranks
        refuse_not_finite(ranks >= 0, rows, table, f"the model on {label}")
        values["top1"] = int((ranks == 0).sum()) / len(ranks)
    if can_search(encoder.loaded):
        found = search(encoder, corpus, split, batch=batch, warnings=[], limit=limit)
        values |= {f"{way}_r1": found[way]["r1"] for way in ("text_to_image", "image_to_text") if found}
    return values
