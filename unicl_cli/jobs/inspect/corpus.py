"""Facts of a corpus as one JSON document, for `unicl inspect CORPUS`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.media import count_missing
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.formats import split_ends
from unicl_cli.inference.progress import progress
from unicl_cli.jobs.inspect.advice import write_notes
from unicl_cli.jobs.inspect.concepts import count_concepts, count_labels, count_named_classes, pair_statistics
from unicl_cli.jobs.inspect.label_sets import set_facts
from unicl_cli.jobs.inspect.lengths import caption_facts
from unicl_cli.jobs.inspect.scan import CorpusScan, GroupTally, scan_corpus
from unicl_cli.storage.documents import Document
from unicl_cli.storage.files import open_regular
from unicl_cli.storage.json_text import parse_json

Ints = NDArray[np.int64]
SHARES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
FEW, TINY = 20, 16
"""A class with at most so many images has few; an image with a shorter side below so many pixels is tiny."""
MAX_SAMPLES, SAMPLED_ROWS = 3, 30
"""Texts shown of each source, and rows read to find as many that differ."""
MAX_REJECT = 1_000_000
"""The longest line of rejects in bytes; the rest of a longer one is a damaged line."""
DAMAGED_REJECT = {"key": "?", "reason": "?", "detail": "this line of rejects is damaged"}
MAX_LISTED = 10
"""Classes, rejects and the like listed by name, at most."""


class Reject(Document):
    """A line of rejects: a row that `prepare` left out."""

    key: str
    reason: str
    detail: str


def inspect_corpus(corpus: Corpus, *, split: str | None, tokenizer: str, batch_size: int) -> dict[str, Any]:
    """Return the document. Classes and captions are counted in ``split``; None: train, else the first split."""
    chosen = choose_split(corpus, split)
    with progress(f"reading {corpus.path}", corpus.manifest.rows) as advance:
        scanned = scan_corpus(corpus, chosen, advance)
    counts = sum(
        (group.labels for (_, kind, of), group in scanned.groups.items() if (kind, of) == ("labels", chosen)),
        np.zeros(len(corpus.classes), np.int64),
    )
    media = media_kinds(scanned.groups)
    facts: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "corpus",
        "path": str(corpus.path),
        "name": corpus.name,
        "checksum": corpus.checksum,
        **corpus.manifest.model_dump(include={"survival"} if corpus.manifest.survival else set()),
        "rows": corpus.manifest.rows,
        "bytes": corpus.manifest.bytes,
        "classes": len(corpus.classes),
        "templates": corpus.templates if isinstance(corpus.templates, str) else list(corpus.templates),
        "splits": list(corpus.splits),
        "split": chosen,
        "sources": [source_facts(corpus, key, group, media[key[0]]) for key, group in sorted(scanned.groups.items())],
        "pictures": image_facts(scanned),
        "rejected": read_rejects(corpus),
    }
    if corpus.classes:
        labelled = int((np.diff(scanned.sets.ends) > 0).sum())
        facts["per_class"] = class_facts(corpus.classes, counts, labelled)
        facts["colliding_names"] = colliding_names(corpus.classes)
    if scanned.texts.rows:
        facts["captions"] = caption_facts(corpus, scanned, tokenizer)
    if scanned.texts.rows and corpus.classes:
        facts["named_classes"] = count_named_classes(corpus.classes, counts, scanned.texts, MAX_LISTED)
    if corpus.manifest.has_sets and len(scanned.sets.known):
        facts["label_sets"] = set_facts(corpus.classes, scanned.sets, MAX_LISTED)
    facts["concepts"] = count_concepts(corpus.classes, counts, scanned)
    facts["pairs"] = pair_statistics(count_labels(corpus.classes, scanned.sets), scanned.texts, batch_size)
    facts["duplicates"] = count_duplicates(corpus, scanned)
    return facts | {"notes": write_notes(facts)}


def choose_split(corpus: Corpus, split: str | None) -> str:
    """Return ``split``, or by default train, else the first. Raise UniclError if the corpus does not have it."""
    if split is not None and split not in corpus.splits:
        raise UniclError(
            f"corpus {corpus.path}: has no split '{split}'{did_you_mean(split, corpus.splits)}",
            f"use {', '.join(corpus.splits)}",
        )
    if not corpus.splits:
        raise UniclError(f"corpus {corpus.path}: has no rows", f"see {corpus.path}/rejects for the reasons")
    return split or corpus.splits[0]


def source_facts(corpus: Corpus, key: tuple[str, str, str], group: GroupTally, media: Sequence[str]) -> dict[str, Any]:
    """Return one line of the table of sources; ``media`` are the kinds that rows of the source have."""
    return {
        "source": key[0],
        "kind": key[1],
        "split": key[2],
        "rows": group.rows,
        "texts": group.texts,
        "classes": int((group.labels > 0).sum()),
        "bytes": group.bytes,
        "picture_bytes": group.image_bytes,
        **({"media": {kind: count_missing(group.media[kind], group.rows) for kind in media}} if media else {}),
        "short_side": quantiles_of_counts(group.short),
        "long_side": quantiles_of_counts(group.long),
        "samples": sample_texts(corpus, key) if group.texts else [],
    }


def media_kinds(groups: Mapping[tuple[str, str, str], GroupTally]) -> dict[str, list[str]]:
    """Return the kinds of media that any row of a source has, by the name of the source."""
    found: dict[str, set[str]] = defaultdict(set)
    for (source, _, _), group in groups.items():
        found[source] |= group.media.keys()
    return {source: sorted(kinds) for source, kinds in found.items()}


def sample_texts(corpus: Corpus, key: tuple[str, str, str]) -> list[str]:
    """Return the first texts of a few rows of a source, kind and split, each text once."""
    source, kind, split = key
    rows = first_group(corpus, {"source": source, "kind": kind, "split": split})
    table = corpus.table(split, kind)
    texts = (text for row in rows[:SAMPLED_ROWS] for text in table.read(row).texts[:1])
    return list(dict.fromkeys(texts))[:MAX_SAMPLES]


def first_group(corpus: Corpus, line: Mapping[str, Any]) -> range:
    """Return the rows of the first row group of a source in the table of its split and kind; they are shuffled."""
    first = 0
    for shard in corpus.manifest.shards:
        if (shard.split, shard.kind) == (line["split"], line["kind"]):
            if shard.source == line["source"]:
                return range(first, first + shard.row_groups[0])
            first += shard.rows
    return range(0)


def image_facts(scanned: CorpusScan) -> dict[str, Any]:
    """Return the image sizes over all sources and splits."""
    groups = list(scanned.groups.values())
    rows = sum(group.rows for group in groups)
    short = sum((g.short for g in groups), np.zeros(1, np.int64))
    return {
        "short_side": quantiles_of_counts(short),
        "tiny": {"below": TINY, "n": int(short[:TINY].sum())},
        "long_side": quantiles_of_counts(sum((g.long for g in groups), np.zeros(1, np.int64))),
        "mean_bytes": sum(g.image_bytes for g in groups) / max(1, rows),
    }


def quantiles_of_counts(counts: Ints) -> dict[str, int]:
    """Return the values at SHARES, each one that occurs; ``counts[v]`` is the number of occurrences of v."""
    ends = np.cumsum(counts)
    if not ends[-1]:
        return {}
    ranks = {name: max(1, int(np.ceil(share * ends[-1]))) for name, share in SHARES.items()}
    return {name: int(np.searchsorted(ends, rank)) for name, rank in ranks.items()}


def class_facts(classes: Sequence[ClassName], counts: Ints, labelled: int) -> dict[str, Any]:
    """Return images per class of the split: quantiles, the largest and smallest classes, a histogram.

    ``labelled`` are the rows with a label. A class above others counts only if rows have it as their own label.
    """
    parents = {item.parent for item in classes}
    own = np.array([n for n, item in enumerate(classes) if counts[n] or item.key not in parents], np.int64)
    counted = counts[own]
    order = own[np.argsort(-counted, kind="stable")]
    listed = [{"class": classes[n].names[0], "key": classes[n].key, "n": int(counts[n])} for n in order]
    largest, hidden, smallest = split_ends(listed, MAX_LISTED)
    quantiles = dict(zip(SHARES, np.quantile(counted, list(SHARES.values()), method="inverted_cdf"), strict=True))
    return {
        "n": labelled,
        "classes": len(own),
        "empty": int((counted == 0).sum()),
        "few": {"at_most": FEW, "n": int(((counted > 0) & (counted <= FEW)).sum())},
        "mean": float(counted.mean()),
        "quantiles": {name: int(value) for name, value in quantiles.items()},
        "largest": list(largest),
        "smallest": list(smallest) if hidden else [],
        "histogram": count_bins(counted),
    }


def count_bins(values: Ints, most: int = 16) -> list[dict[str, int]]:
    """Return at most ``most`` bins of equal width; of doubling width if half of the values would share the first.

    ``high`` belongs to its bin.
    """
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // most))
    edges = [low + n * width for n in range((high - low) // width + 2)]
    if width > 1 and np.median(values) < low + width:
        edges = [0, *(2**n for n in range(high.bit_length() + 1))]
        edges = edges[next(n for n, edge in enumerate(edges[1:]) if edge > low) :]
    counts = np.histogram(values, edges)[0].tolist()
    return [{"low": a, "high": b - 1, "n": count} for (a, b), count in zip(pairwise(edges), counts, strict=True)]


def colliding_names(classes: Sequence[ClassName]) -> list[dict[str, Any]]:
    """Return prompt names shared by several classes, ignoring case and spaces: equal texts with different labels."""
    keys: dict[str, list[ClassName]] = defaultdict(list)
    for item in classes:
        keys[" ".join(item.names[0].casefold().split())].append(item)
    return [{"name": same[0].names[0], "keys": [item.key for item in same]} for same in keys.values() if len(same) > 1]


def read_rejects(corpus: Corpus) -> dict[str, Any]:
    """Return the rows that `prepare` left out: counts by reason, and the first few."""
    first: list[dict[str, str]] = []
    for file in sorted((corpus.path / "rejects").glob("*.jsonl")):
        first += read_first_rejects(file, MAX_LISTED - len(first))
    reasons = corpus.manifest.rejected
    return {"n": sum(reasons.values()), "reasons": reasons, "first": first}


def read_first_rejects(file: Path, count: int) -> list[dict[str, str]]:
    """Return at most ``count`` rows of a file of rejects; a damaged line, or a file that cannot be read, is said so."""
    try:
        with open_regular(file) as lines:
            return [parse_reject(line) for line in islice(iter(partial(lines.readline, MAX_REJECT), b""), count)]
    except OSError as error:
        return [DAMAGED_REJECT | {"detail": f"{file.name} cannot be read: {error.strerror}"}][:count]


def parse_reject(line: bytes) -> dict[str, str]:
    """Parse a line of rejects; a damaged line is reported as such."""
    try:
        return Reject.model_validate(parse_json(line, surrogates=True)).model_dump(include={"key", "reason", "detail"})
    except ValueError:
        return dict(DAMAGED_REJECT)


def count_duplicates(corpus: Corpus, scanned: CorpusScan) -> dict[str, Any]:
    """Count rows that repeat an image byte for byte: in all, with several labels, and also in train."""
    split, label, digest = scanned.images
    order = np.lexsort((label, split, digest))
    split, label, digest = split[order], label[order], digest[order]
    repeated = np.concatenate([[False], digest[1:] == digest[:-1]])
    image = np.cumsum(~repeated) - 1  # the number of each row's image among the distinct ones
    labelled = label != NO_LABEL
    image_of_label = np.unique(np.stack([image[labelled], label[labelled]]), axis=1)[0]
    labels_per_image = np.bincount(image_of_label, minlength=1)
    facts: dict[str, Any] = {
        "rows": int(repeated.sum()),
        "pictures_with_several_labels": int((labels_per_image > 1).sum()),
        "also_in_train": count_leaks(list(corpus.splits), split, image),
    }
    of_manifest = corpus.manifest.model_dump(include={"dedup", "duplicates_of_eval", "not_in"}, exclude_unset=True)
    return facts | {name: fact for name, fact in of_manifest.items() if fact}


def count_leaks(splits: Sequence[str], split: NDArray[np.int16], image: Ints) -> dict[str, int]:
    """Return for each other split the rows whose image is in train too; ``split`` and ``image`` are per row."""
    if "train" not in splits:
        return {}
    train_images = np.unique(image[split == splits.index("train")])
    leaks: dict[str, int] = {}
    for number, name in enumerate(splits):
        if name != "train":
            leaks[name] = int(np.isin(image[split == number], train_images).sum())
    return leaks
