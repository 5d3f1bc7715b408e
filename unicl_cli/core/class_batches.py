"""P×K sampling: batches of P classes with K rows of each, as a function of (seed, step) alone."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from unicl_cli.core.sampler import Ints, Mixture, Permutation


class ClassBatches:
    """Batches of ``classes`` different classes with ``rows`` rows of each (Hermans et al., arXiv:1703.07737, sec. 2).

    A pass over the classes, in a new order each time, is cut into batches; the classes that would not fill the last
    batch are left out. A class draws its rows in passes, too, each in a new order: ``rows`` of them in each pass over
    the classes. The rows of a class with fewer rows are each drawn equally often, up to one. ``labels`` are int64 (n,)
    for each stream; rows with a label below 0 are never drawn.
    """

    def __init__(self, labels: Sequence[Ints], classes: int, rows: int, seed: int) -> None:
        self.classes, self.rows, self.seed = classes, rows, seed
        self.batch_size = classes * rows
        self.ends = np.cumsum([len(of) for of in labels])
        whole = np.concatenate(labels)
        order = np.argsort(whole, kind="stable")
        order = order[np.searchsorted(whole[order], 0) :]
        self.starts, self.counts = np.unique(whole[order], return_index=True, return_counts=True)[1:]
        small = len(whole) < 2**31
        self.members = order.astype(np.int32) if small else order  # the rows of each class, class after class
        if len(self.counts) < classes:
            raise ValueError(f"{classes} classes a batch, and only {len(self.counts)} have rows")

    @property
    def few(self) -> int:
        """The number of classes with fewer rows than a batch takes of each."""
        return int(np.count_nonzero(self.counts < self.rows))

    def used_before(self, step: int) -> list[int]:
        """Return the number of rows of each stream in the batches before ``step``, as it is on average."""
        share = np.repeat(1 / self.counts, self.counts) / len(self.counts)
        firsts = self.ends - np.diff(self.ends, prepend=0)
        parts = [share[(self.members >= a) & (self.members < b)].sum() for a, b in zip(firsts, self.ends, strict=True)]
        return [round(step * self.batch_size * float(part)) for part in parts]

    def epoch_steps(self) -> Fraction:
        """Return the steps that draw as many rows as there are."""
        return Fraction(len(self.members), self.batch_size)

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Return (P·K,) stream numbers and (P·K,) rows of ``step`` (0 is the first), class after class."""
        number, turn = divmod(step, len(self.counts) // self.classes)
        places = np.arange(turn * self.classes, (turn + 1) * self.classes)
        chosen = Permutation(len(self.counts), f"{self.seed}/classes/{number}")(places)
        rows = np.concatenate([self._draw(int(c), number) for c in chosen])
        stream = np.searchsorted(self.ends, rows, side="right")
        return stream, rows - (self.ends - np.diff(self.ends, prepend=0))[stream]

    def _draw(self, c: int, number: int) -> Ints:
        """Return the rows that class ``c`` gives in pass ``number``."""
        count = int(self.counts[c])
        each, rest = divmod(self.rows, count)
        places = np.tile(np.arange(count), each)
        if rest:
            lap, turn = divmod(number, count // rest)
            shuffled = Permutation(count, f"{self.seed}/{c}/{lap}")(np.arange(turn * rest, (turn + 1) * rest))
            places = np.concatenate([places, shuffled])
        return self.members[self.starts[c] + places].astype(np.int64)


class JoinedBatches:
    """Batches of classes joined with the batches of a mixture (None: alone), in random order within a batch."""

    def __init__(self, classes: ClassBatches, others: Mixture | None, seed: int) -> None:
        self.classes, self.seed = classes, seed
        self.parts = [classes, others] if others else [classes]
        self.batch_size = sum(part.batch_size for part in self.parts)

    def used_before(self, step: int) -> list[int]:
        """Return the same as `Mixture.used_before`, on average for rows of classes."""
        return [sum(counts) for counts in zip(*(part.used_before(step) for part in self.parts), strict=True)]

    def epoch_steps(self) -> Fraction:
        """Return the steps of a pass over the stream that takes longest."""
        return max(part.epoch_steps() for part in self.parts)

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Return the same as `Mixture.batch`."""
        found = [part.batch(step) for part in self.parts]
        stream, row = (np.concatenate(column) for column in zip(*found, strict=True))
        slots = Permutation(self.batch_size, f"{self.seed}/slot/{step}")(np.arange(self.batch_size))
        return stream[slots], row[slots]
