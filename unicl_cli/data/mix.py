"""From a mix of corpora to samples: which rows, which text of a row, which view, all derived from the step."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, Drawn, Sample
from unicl_cli.core.prompts import fill_template
from unicl_cli.core.sampler import Alternation, Mixture, Stream, share
from unicl_cli.data.corpus import Corpus, Table
from unicl_cli.data.transforms import TrainTransform

LABELS = "labels"
At = tuple[int, int, int, int]
"""Where a sample is: strand, row of the strand, step, draw."""


class Texts(NamedTuple):
    """How a row gets its text. ``labelled``: prompt | caption | mixed, for rows that have a label and captions."""

    labelled: str
    class_names: str  # first | uniform
    seed: int


class Strand(NamedTuple):
    """The rows of one kind of one corpus: a part of the mix. ``first`` is the number of its row 0 in the whole mix."""

    table: Table
    kind: str
    weight: float
    rows: NDArray[np.int64] | None  # None: all of the table
    group_sizes: NDArray[np.int64]  # of the rows that take part
    labels: NDArray[np.int64]  # class of the corpus -> class of the mix
    names: tuple[tuple[str, ...], ...]  # of the corpus's classes
    templates: tuple[str, ...]
    transform: TrainTransform
    first: int

    @property
    def size(self) -> int:
        return int(self.group_sizes.sum())


def selected(table: Table, fraction: float, limit: int | None) -> NDArray[np.int64] | None:
    """Rows that take part, None for all: those whose key's hash lies under ``fraction``, the first ``limit`` of them.

    By hash of the key, so that a larger fraction holds the smaller one and no order of files matters.
    """
    if fraction >= 1 and (limit is None or limit >= len(table)):
        return None
    rows = np.arange(len(table))
    if fraction < 1:
        keys = table.column("key").to_pylist()
        hashes = (int.from_bytes(blake2b(str(key).encode(), digest_size=6).digest(), "big") for key in keys)
        rows = rows[np.fromiter(hashes, np.int64, len(rows)) < fraction * 2**48]
    return rows[:limit]


def group_sizes(table: Table, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """How many of ``rows`` lie in each row group, empty groups left out."""
    if rows is None:
        return table.group_sizes
    ends = np.cumsum(table.group_sizes)
    counts = np.diff(np.searchsorted(rows, ends, side="left"), prepend=0)
    return counts[counts > 0]


def present(strands: Sequence[Strand]) -> set[int]:
    """Classes of the mix that have a row; a corpus may name classes of which it holds none."""
    met: set[int] = set()
    for strand in strands:
        labels = strand.table.column("label").to_numpy()
        chosen = np.unique(labels if strand.rows is None else labels[strand.rows])
        met.update(strand.labels[chosen[chosen != NO_LABEL]].tolist())
    return met


def strands_of(
    corpus: Corpus,
    split: str,
    *,
    labels: NDArray[np.int64],
    templates: tuple[str, ...],
    transform: TrainTransform,
    weight: float,
    fraction: float,
    limit: int | None,
) -> list[Strand]:
    """One strand for each kind that the split of the corpus has; ``fraction`` and ``limit`` count within a kind."""
    names = tuple(c.names for c in corpus.classes)
    strands: list[Strand] = []
    for kind in corpus.kinds(split):
        table = corpus.table(split, kind)
        rows = selected(table, fraction, limit)
        sizes = group_sizes(table, rows)
        strands.append(Strand(table, kind, weight, rows, sizes, labels, names, templates, transform, 0))
    return [s for s in strands if s.size]


class Mix:
    """All strands of a training, addressed by At; picklable for spawned workers."""

    def __init__(self, strands: Sequence[Strand], texts: Texts) -> None:
        firsts = np.cumsum([0, *(s.size for s in strands)])
        self.strands = [s._replace(first=int(n)) for s, n in zip(strands, firsts[:-1], strict=True)]
        self.texts = texts

    def __len__(self) -> int:
        return sum(s.size for s in self.strands)

    @property
    def picture_bytes(self) -> int:
        """Of the views of one row."""
        return self.strands[0].transform.nbytes

    def __getitem__(self, at: At) -> Drawn:
        number, row, step, draw = at
        strand = self.strands[number]
        sample = strand.table.read(row if strand.rows is None else int(strand.rows[row]))
        text, text_hash = self.text(strand, sample, step, strand.first + row)
        return Drawn(
            row=strand.first + row,
            draw=draw,
            seed=self.texts.seed,
            image=strand.transform(sample.image, draw),
            label=NO_LABEL if sample.label == NO_LABEL else int(strand.labels[sample.label]),
            text=text,
            text_hash=text_hash,
            media={},
        )

    def text(self, strand: Strand, sample: Sample, step: int, row: int) -> tuple[str | None, int]:
        """The row's text in this step and its hash (0 for a prompt): a function of (seed, step, row)."""
        words = np.random.SeedSequence((self.texts.seed, step, row)).generate_state(4)
        coin, pick, name = int(words[0] & 1), int(words[1]), int(words[2])
        captions = bool(sample.texts)
        if sample.label != NO_LABEL and captions:
            captions = self.texts.labelled == "caption" or (self.texts.labelled == "mixed" and coin == 1)
        if captions:
            k = pick % len(sample.texts)
            return sample.texts[k], sample.text_hash[k]
        if sample.label == NO_LABEL:
            return None, 0
        names = strand.names[sample.label]
        chosen = names[name % len(names)] if self.texts.class_names == "uniform" else names[0]
        return fill_template(strand.templates[pick % len(strand.templates)], chosen), 0

    def all_texts(self, limit: int = 1_000_000) -> Iterator[str]:
        """The texts that training can draw, for a tokenizer: every prompt once, up to ``limit`` captions a strand."""
        for strand in self.strands:
            if strand.kind == LABELS:
                yield from (fill_template(t, n) for names in strand.names for n in names for t in strand.templates)
            captions = strand.table.column("texts")
            step = max(1, math.ceil(len(captions) / limit))
            for start in range(0, len(captions), 65_536):
                for texts in captions[start : start + 65_536 : step].to_pylist():
                    yield from texts


def label_share(strands: Sequence[Strand], wanted: float | str) -> Fraction:
    """The share of label rows: ``auto`` is half where there are both kinds."""
    labelled = [s.kind == LABELS for s in strands]
    if all(labelled) or not any(labelled):
        return Fraction(int(all(labelled)))
    return Fraction(1, 2) if wanted == "auto" else Fraction(str(wanted))


def order_of(
    strands: Sequence[Strand], *, labels: float | str, by: str, batch_size: int, seed: int
) -> Mixture | Alternation:
    """The order of a training. Within label rows, and within the others, a strand's share is weight × rows.

    ``by`` sample: each batch holds the share; step: that share of the steps is all labels.
    """
    share_of_labels = label_share(strands, labels)
    streams = [Stream(s.group_sizes, f"{seed}/{n}") for n, s in enumerate(strands)]
    sizes = [Fraction(str(s.weight)) * s.size for s in strands]
    totals = {
        kind: sum(z for z, s in zip(sizes, strands, strict=True) if (s.kind == LABELS) == kind)
        for kind in (True, False)
    }

    def part(whole: Fraction, *, kind: bool) -> list[Fraction]:
        pairs = zip(sizes, strands, strict=True)
        return [whole * z / totals[kind] if (s.kind == LABELS) == kind else Fraction(0) for z, s in pairs]

    if by == "step" and 0 < share_of_labels < 1:
        one = Fraction(1)
        return Alternation(
            Mixture(streams, part(one, kind=True), batch_size, seed),
            Mixture(streams, part(one, kind=False), batch_size, seed + 1),
            share_of_labels,
        )
    both = [part(whole, kind=kind) for kind, whole in ((True, share_of_labels), (False, 1 - share_of_labels)) if whole]
    return Mixture(streams, [sum(column, Fraction(0)) for column in zip(*both, strict=True)], batch_size, seed)


class Draws:
    """A batch sampler that begins at any step: one list a step, this rank's share."""

    def __init__(self, order: Mixture | Alternation, start: int, steps: int, rank: int, world: int) -> None:
        self.order, self.start, self.steps, self.rank, self.world = order, start, steps, rank, world

    @property
    def rows(self) -> int:
        """Of each list."""
        return self.order.batch_size // self.world

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[At]]:
        size = self.order.batch_size
        mine = share(size, self.rank, self.world)
        for step in range(self.start, self.steps):
            strand, row = self.order.batch(step)
            draw = step * size + np.arange(size)
            columns = (strand[mine].tolist(), row[mine].tolist(), [step] * (size // self.world), draw[mine].tolist())
            yield list(zip(*columns, strict=True))
