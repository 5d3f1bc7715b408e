"""A mix of corpora as samples: the rows of a step, and each row's text and views, all derived from the step."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, Drawn, Sample
from unicl_cli.core.prompts import fill_template
from unicl_cli.core.sampler import Alternation, BalancedStream, Mixture, Order, Stream, share
from unicl_cli.data.caption_labels import CaptionLabels
from unicl_cli.data.corpus import Corpus, RowTable, integers_of, undecodable
from unicl_cli.data.pictures import ImageError
from unicl_cli.data.transforms import TrainTransform

LABELS, CAPTIONS = "labels", "captions"
BOTH = "both"
"""The choice of texts by which a row with a label and captions shows both a prompt and a caption."""
At = tuple[int, int, int, int]
"""Place of a sample: strand, row of the strand, step, draw."""


class TextChoice(NamedTuple):
    """Options for a row's text. ``labelled`` (prompt | caption | mixed | both) is for rows with a label and captions.

    ``naming`` handles the classes that the caption of a row without a label names; None: they mean nothing.
    """

    labelled: str
    class_names: str  # first | uniform
    seed: int
    naming: CaptionLabels | None = None


class ClassPlace(NamedTuple):
    """The place of a corpus's classes in a mix; see the fields of `Strand`."""

    labels: NDArray[np.int64]
    above: tuple[tuple[int, ...], ...] = ()
    groups: tuple[int, ...] = (1,)


class Strand(NamedTuple):
    """A part of the mix: the rows of one kind of one corpus. ``first`` is the number of its row 0 in the whole mix."""

    table: RowTable
    kind: str
    weight: float
    rows: NDArray[np.int64] | None  # None: all of the table
    group_sizes: NDArray[np.int64]  # of the rows that take part
    labels: NDArray[np.int64]  # class of the corpus -> class of the mix
    above: tuple[tuple[int, ...], ...]  # class of the corpus -> itself and those above it; empty without a taxonomy
    groups: tuple[int, ...]  # group of the corpus -> its bit in the mix
    names: tuple[tuple[str, ...], ...]  # of the corpus's classes
    templates: tuple[str, ...]
    transform: TrainTransform
    first: int

    @property
    def size(self) -> int:
        return int(self.group_sizes.sum())

    def label_set(self, sample: Sample) -> tuple[int, ...]:
        """Return all labels of a row, classes of the corpus: those above its own in a taxonomy, too."""
        if not self.above:
            return sample.labels
        return tuple(sorted({upper for label in sample.labels for upper in self.above[label]}))

    def known(self, sample: Sample) -> int:
        """Return the groups of the mix that a row is annotated for, as bits."""
        return sum(bit for number, bit in enumerate(self.groups) if sample.known >> number & 1)

    def labelled_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row of each label, and the label, a class of the corpus."""
        sets = self.table.label_sets()
        row = np.repeat(np.arange(len(self.table)), np.diff(sets.ends))
        taken = slice(None) if self.rows is None else np.isin(row, self.rows)
        return row[taken], sets.values[taken]

    def classes_with_rows(self) -> set[int]:
        """Return the classes of the mix that a row has."""
        return {int(self.labels[label]) for label in np.unique(self.labelled_rows()[1])}

    def count_classes(self, classes: int) -> NDArray[np.int64]:
        """Count the rows with each class of the mix, int64 (classes,): as a label, or above one in a taxonomy."""
        row, label = self.labelled_rows()
        if self.above:  # once a row, however many of its labels are below the class
            depth = np.array([len(upper) for upper in self.above])[label]
            upper = np.array([up for one in label.tolist() for up in self.above[one]], np.int64)
            label = np.unique(np.stack([np.repeat(row, depth), upper], 1), axis=0)[:, 1]
        return np.bincount(self.labels[label] if len(label) else label, minlength=classes)

    def all_labelled(self) -> bool:
        """Return True if each row has a label."""
        counts = np.diff(self.table.label_sets().ends)
        return bool((counts if self.rows is None else counts[self.rows]).all())

    def has_media(self, kind: str) -> bool:
        """Return True if a row has media of this kind."""
        return self.table.has_media(kind) if self.rows is None else bool(self.table.media_rows(kind)[self.rows].any())

    def has_texts(self, *, lacking: bool = False) -> bool:
        """Return whether a row has texts of its own, or is ``lacking`` them."""
        return self.table.has_texts(self.rows, lacking=lacking)

    def row_labels(self) -> NDArray[np.int64]:
        """Return the class of the mix of each row, int64 (size,); NO_LABEL for a row with none or several."""
        found = integers_of(self.table.column("label"))
        chosen = found if self.rows is None else found[self.rows]
        return np.where(chosen == NO_LABEL, NO_LABEL, self.labels[chosen]) if len(self.labels) else chosen


def select_rows(table: RowTable, fraction: float, limit: int | None) -> NDArray[np.int64] | None:
    """Return the rows to use (None: all): those whose key's hash is below ``fraction``, at most ``limit`` of them.

    Because of the hash, a larger fraction contains every smaller one, and the order of the files does not matter.
    """
    if fraction >= 1 and (limit is None or limit >= len(table)):
        return None
    rows = np.arange(len(table))
    if fraction < 1:
        keys = (key for chunk in table.column("key").chunks for key in chunk.to_pylist())  # a shard at a time
        hashes = (int.from_bytes(blake2b(str(key).encode(), digest_size=6).digest(), "big") for key in keys)
        rows = rows[np.fromiter(hashes, np.int64, len(rows)) < fraction * 2**48]
    return rows[:limit]


def count_by_group(table: RowTable, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Count ``rows`` in each row group; empty groups are left out."""
    if rows is None:
        return table.group_sizes
    ends = np.cumsum(table.group_sizes)
    counts = np.diff(np.searchsorted(rows, ends, side="left"), prepend=0)
    return counts[counts > 0]


def classes_with_rows(strands: Sequence[Strand]) -> set[int]:
    """Return the classes of the mix that have a row; a corpus may also name classes without rows."""
    return set[int]().union(*(strand.classes_with_rows() for strand in strands))


def strands_of(
    corpus: Corpus,
    split: str,
    *,
    place: ClassPlace,
    templates: tuple[str, ...],
    transform: TrainTransform,
    weight: float,
    fraction: float,
    limit: int | None,
) -> list[Strand]:
    """Return one strand for each kind in a corpus's split; ``fraction`` and ``limit`` count within a kind."""
    names = tuple(c.names for c in corpus.classes)
    strands: list[Strand] = []
    for kind in corpus.kinds(split):
        table = corpus.table(split, kind)
        rows = select_rows(table, fraction, limit)
        sizes = count_by_group(table, rows)
        strands.append(Strand(table, kind, weight, rows, sizes, *place, names, templates, transform, 0))
    return [s for s in strands if s.size]


class MixedCorpora:
    """All strands of a training, addressed by At; picklable for spawned workers.

    Unless ``media`` is set, samples have no media and the corpora's media are not read from the disk; the same holds
    for ``images``, where samples have the number of their row, int64 (), in the place of an image.
    """

    def __init__(
        self, strands: Sequence[Strand], texts: TextChoice, *, media: bool = False, images: bool = True
    ) -> None:
        firsts = np.cumsum([0, *(s.size for s in strands)])
        self.strands = [s._replace(first=int(n)) for s, n in zip(strands, firsts[:-1], strict=True)]
        self.texts, self.media, self.images = texts, media, images

    def with_media(self) -> "MixedCorpora":
        """Return the same mix, whose samples carry the media of their rows."""
        return MixedCorpora(self.strands, self.texts, media=True, images=self.images)

    def without_images(self) -> "MixedCorpora":
        """Return the same mix, whose samples have the number of their row instead of an image."""
        return MixedCorpora(self.strands, self.texts, media=self.media, images=False)

    def __len__(self) -> int:
        return sum(s.size for s in self.strands)

    def prefetch(self, places: Sequence[At]) -> None:
        """Read what the samples at ``places`` need at the same time, where each read waits for another machine."""
        for number, strand in enumerate(self.strands):
            own = [row for at, row, _, _ in places if at == number]
            if own:
                rows = own if strand.rows is None else strand.rows[own].tolist()
                strand.table.prefetch(rows, media=self.media, image=self.images)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row in memory: its views, and the mean size of its media where they are read."""
        views = self.strands[0].transform.nbytes if self.images else 8
        if not self.media:
            return views
        return views + math.ceil(max(strand.table.media_bytes() for strand in self.strands))

    def __getitem__(self, at: At) -> Drawn:
        number, row, step, draw = at
        strand = self.strands[number]
        place = row if strand.rows is None else int(strand.rows[row])
        sample = strand.table.read(place, media=self.media, image=self.images)
        own, words = strand.label_set(sample), self.words(step, strand.first + row)
        text, text_hash, shown = self.text(strand, sample, own, words)
        labels = tuple(int(strand.labels[label]) for label in own)
        drawn = Drawn(
            row=strand.first + row,
            draw=draw,
            seed=self.texts.seed,
            image=self.image(strand, sample, place, draw) if self.images else torch.tensor(strand.first + row),
            label=labels[0] if len(labels) == 1 else NO_LABEL,
            text=text,
            text_hash=text_hash,
            media=sample.media,
            labels=labels,
            shown=NO_LABEL if shown == NO_LABEL else int(strand.labels[shown]),
            known=strand.known(sample) if strand.kind == LABELS else 0,
            key=sample.key if self.media else "",
        )
        if self.texts.labelled == BOTH and labels and text_hash:
            prompt, _, shown = self.prompt(strand, own, words)
            drawn = drawn._replace(prompt=prompt, prompted=int(strand.labels[shown]))
        naming = self.texts.naming
        return drawn if naming is None or strand.kind == LABELS else naming.complete(drawn)

    def image(self, strand: Strand, sample: Sample, place: int, draw: int) -> Tensor:
        """Return the views of a row; ``place`` is the row's in its table."""
        try:
            return strand.transform(sample.image, draw)
        except ImageError as error:
            raise undecodable(strand.table.shard_of(place), sample.key, error) from error

    def text(
        self, strand: Strand, sample: Sample, labels: tuple[int, ...], words: tuple[int, ...]
    ) -> tuple[str | None, int, int]:
        """Return the text of a row with these ``labels`` and random ``words``, its hash and its class.

        A prompt names one of the row's labels and has the hash 0; a caption has the class NO_LABEL.
        """
        captions = bool(sample.texts)
        if labels and captions:
            captions = self.texts.labelled in ("caption", BOTH) or (self.texts.labelled == "mixed" and words[0] & 1)
        if captions:
            k = words[1] % len(sample.texts)
            return sample.texts[k], sample.text_hash[k], NO_LABEL
        return self.prompt(strand, labels, words) if labels else (None, 0, NO_LABEL)

    def words(self, step: int, row: int) -> tuple[int, ...]:
        """Return the random numbers of a row's texts in a step: which kind, which text, which name, which label."""
        return tuple(np.random.SeedSequence((self.texts.seed, step, row)).generate_state(4).tolist())

    def prompt(self, strand: Strand, labels: tuple[int, ...], words: tuple[int, ...]) -> tuple[str, int, int]:
        """Return a prompt for one of the labels of a row, as ``text`` does."""
        _, pick, name, which = words
        shown = labels[which % len(labels)]
        names = strand.names[shown]
        chosen = names[name % len(names)] if self.texts.class_names == "uniform" else names[0]
        return fill_template(strand.templates[pick % len(strand.templates)], chosen), 0, shown

    def all_texts(self, limit: int = 1_000_000) -> Iterator[str]:
        """Yield the texts that training can draw: each prompt once, and at most ``limit`` captions per strand."""
        for strand in self.strands:
            if strand.kind == LABELS:
                yield from (fill_template(t, n) for names in strand.names for n in names for t in strand.templates)
            captions = strand.table.column("texts")
            step = max(1, math.ceil(len(captions) / limit))
            for start in range(0, len(captions), 65_536):
                for texts in captions[start : start + 65_536 : step].to_pylist():
                    yield from texts

    def some_texts(self, limit: int) -> Iterator[str]:
        """Yield texts that training draws, as ``texts`` says, of at most ``limit`` rows spread over each strand."""
        for strand in self.strands:
            rows = np.linspace(0, strand.size - 1, min(limit, strand.size)).astype(np.int64)
            places = rows if strand.rows is None else strand.rows[rows]
            sets, captions = strand.table.label_sets(), strand.table.column("texts")
            for number, place in enumerate(places.tolist()):
                labels, own = sets.values[sets.ends[place] : sets.ends[place + 1]], captions[place].as_py()
                if own and (not len(labels) or self.texts.labelled != "prompt"):
                    yield from own
                if len(labels) and not (own and self.texts.labelled == "caption"):
                    names = strand.names[labels[number % len(labels)]]
                    template = strand.templates[number % len(strand.templates)]
                    for name in names if self.texts.class_names == "uniform" else names[:1]:
                        yield fill_template(template, name)


def label_share(strands: Sequence[Strand], share: float | str) -> Fraction:
    """Return the share of label rows; ``auto`` is one half if there are also other rows."""
    labelled = [s.kind == LABELS for s in strands]
    if all(labelled) or not any(labelled):
        return Fraction(int(all(labelled)))
    return Fraction(1, 2) if share == "auto" else Fraction(str(share))


def stream_of(strand: Strand, seed: str, balance: float) -> Stream:
    """Return the order of a strand's rows, balanced if they have labels."""
    if not balance or strand.kind != LABELS:
        return Stream(strand.group_sizes, seed)
    return BalancedStream(strand.group_sizes, seed, strand.row_labels(), balance)


def order_of(
    strands: Sequence[Strand], *, labels: float | str, by: str, batch_size: int, seed: int, balance: float = 0.0
) -> Mixture | Alternation:
    """Return the order of a training. Among label rows, and among the others, a strand's share is weight × rows.

    ``labels`` is the share of label rows: with ``by`` sample in each batch, with step as whole steps of label rows.
    ``balance`` is the power of `BalancedStream`, within each strand of label rows.
    """
    share_of_labels = label_share(strands, labels)
    streams = [stream_of(s, f"{seed}/{n}", balance) for n, s in enumerate(strands)]
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
    """A batch sampler that can start at any step: for each step, the list of this rank's places."""

    def __init__(self, order: Order, start: int, steps: int, rank: int, world: int) -> None:
        self.order, self.start, self.steps, self.rank, self.world = order, start, steps, rank, world

    @property
    def rows(self) -> int:
        """The length of each list."""
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


class OnePass:
    """A batch sampler that gives each row of a mix once: for each round, the list of this rank's places.

    A round is ``rows`` rows for each rank, in rank order. In the last one, lists may be shorter; the last row stands
    for none, so that every rank has the same number of lists.
    """

    def __init__(self, mix: MixedCorpora, rows: int, rank: int, world: int) -> None:
        self.mix, self.rows, self.rank, self.world = mix, rows, rank, world

    def __len__(self) -> int:
        return -(-len(self.mix) // (self.rows * self.world))

    def __iter__(self) -> Iterator[list[At]]:
        last, firsts = len(self.mix) - 1, [strand.first for strand in self.mix.strands]
        for number in range(self.rank, len(self) * self.world, self.world):
            rows = np.arange(min(number * self.rows, last), min((number + 1) * self.rows, last + 1))
            strands = np.searchsorted(firsts, rows, side="right") - 1
            yield [(n, row - firsts[n], 0, 0) for n, row in zip(strands.tolist(), rows.tolist(), strict=True)]
