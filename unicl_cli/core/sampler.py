"""The rows of each step, as a function of (seed, step) alone: without a table and without state."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
U64 = NDArray[np.uint64]
WINDOW = 64
"""Row groups that are mixed with one another; since the corpus is permuted, these suffice to mix its classes."""


def seed_of(*key: int) -> int:
    """Return a 32-bit seed from integers, stable by numpy's promise (torch's CPU generator keeps only 32 bits)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def scramble(x: U64) -> U64:
    """Apply the finaliser of splitmix64 to each element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A seeded bijection of [0, n) by a Feistel network with cycle walking: O(1) memory and start-up for any n."""

    def __init__(self, n: int, seed: int | str, rounds: int = 6) -> None:
        half = (max(2, (n - 1).bit_length()) + 1) // 2
        self.n = n
        self.half = np.uint64(half)
        self.mask = np.uint64((1 << half) - 1)
        self.keys = [
            np.uint64(int.from_bytes(blake2b(f"{seed}:{n}:{r}".encode(), digest_size=8).digest(), "little"))
            for r in range(rounds)
        ]

    def _encrypt(self, x: U64) -> U64:
        left, right = x >> self.half, x & self.mask
        for key in self.keys:
            left, right = right, left ^ (scramble(right + key) & self.mask)
        return (left << self.half) | right

    def __call__(self, i: Sequence[int] | NDArray[np.integer]) -> Ints:
        """Return the images of the indices ``i``; each must lie in [0, n), or the walk would not end."""
        x = np.atleast_1d(np.asarray(i)).astype(np.uint64)
        if x.size and int(x.max()) >= self.n:
            raise IndexError(f"index {int(x.max())} is outside a permutation of {self.n}")
        with np.errstate(over="ignore"):
            x = self._encrypt(x)
            outside = x >= self.n
            while outside.any():
                x[outside] = self._encrypt(x[outside])
                outside = x >= self.n
        return x.astype(np.int64)


class BlockOrder:
    """The order of one pass over a table: permuted row groups, then a permutation inside each window of them.

    A pass visits every row once, and a loader touches few row groups at a time. ``group_sizes`` are the table's.
    """

    def __init__(self, group_sizes: Ints, seed: str) -> None:
        self.seed = seed
        groups = len(group_sizes)
        self.order = Permutation(groups, f"{seed}/groups")(np.arange(groups))
        first = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
        self.first = first[self.order]
        self.ends = np.cumsum(group_sizes[self.order])  # in visiting order
        self.starts = self.ends - group_sizes[self.order]
        self.window_starts = self.starts[::WINDOW]

    def __call__(self, position: Ints) -> Ints:
        """Return the rows at the positions, each in [0, rows)."""
        rows = np.empty_like(position)
        windows = np.searchsorted(self.window_starts, position, side="right") - 1
        for window in np.unique(windows):
            inside = windows == window
            start = self.window_starts[window]
            end = self.ends[min((window + 1) * WINDOW, len(self.ends)) - 1]
            shuffled = start + Permutation(int(end - start), f"{self.seed}/{window}")(position[inside] - start)
            group = np.searchsorted(self.ends, shuffled, side="right")
            rows[inside] = self.first[group] + shuffled - self.starts[group]
        return rows


class Stream:
    """The endless sequence of rows of one table: pass after pass, each in its own block order."""

    def __init__(self, group_sizes: Ints, seed: str) -> None:
        self.group_sizes, self.seed = group_sizes, seed
        self.rows = int(group_sizes.sum())
        self._order = lru_cache(maxsize=2)(self._pass)  # a batch meets two passes at most

    def _pass(self, number: int) -> BlockOrder:
        return BlockOrder(self.group_sizes, f"{self.seed}/{number}")

    def __call__(self, start: int, count: int) -> Ints:
        """Return the rows at positions start … start + count - 1 of the endless sequence."""
        passes, position = np.divmod(start + np.arange(count), self.rows)
        rows = np.empty(count, np.int64)
        for n in np.unique(passes):
            rows[passes == n] = self._order(int(n))(position[passes == n])
        return rows

    def __reduce__(self) -> tuple[type["Stream"], tuple[Ints, str]]:
        return Stream, (self.group_sizes, self.seed)


class BalancedStream(Stream):
    """A stream that draws a class of n rows in proportion to n^(1 - power), with the rows of a class in turn.

    A pass has as many positions as the table has rows, and each class the same number of them in every pass, one at
    least: the shares are exact, and rows of a class differ by one draw at most. Power 0.5 is the square-root sampling
    of Mahajan et al. (ECCV 2018), power 1 class-balanced sampling. ``labels``, int64 (rows,), are the rows' classes.
    """

    def __init__(self, group_sizes: Ints, seed: str, labels: Ints, power: float) -> None:
        super().__init__(group_sizes, seed)
        self.labels, self.power = labels, power
        _, self.kind, self.counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(self.kind, kind="stable")
        self.place = np.empty_like(order)  # of each row among those of its class
        self.place[order] = np.arange(self.rows) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        self.slots = allot(self.counts.astype(np.float64) ** (1 - power), self.rows)

    def _repeats(self, number: int) -> Ints:
        """Return how often pass ``number`` draws each row, int64 (rows,)."""
        each, rest = np.divmod(self.slots, self.counts)
        turned = (self.place - number * rest[self.kind]) % self.counts[self.kind]
        return each[self.kind] + (turned < rest[self.kind])

    def _pass(self, number: int) -> "RepeatedOrder":
        return RepeatedOrder(self.group_sizes, self._repeats(number), f"{self.seed}/{number}")

    def __reduce__(self) -> tuple[type["BalancedStream"], tuple[Any, ...]]:
        return BalancedStream, (self.group_sizes, self.seed, self.labels, self.power)


class RepeatedOrder(BlockOrder):
    """The block order of a table in which row i appears ``repeats[i]`` times."""

    def __init__(self, group_sizes: Ints, repeats: Ints, seed: str) -> None:
        sizes = np.add.reduceat(repeats, np.cumsum(group_sizes) - group_sizes)
        super().__init__(sizes[sizes > 0], seed)
        self.row_ends = np.cumsum(repeats)

    def __call__(self, position: Ints) -> Ints:
        """Return the rows at the positions, each below the sum of the repeats."""
        return np.searchsorted(self.row_ends, super().__call__(position), side="right")


def allot(weights: NDArray[np.float64], total: int) -> Ints:
    """Split ``total`` in proportion to ``weights``, at least 1 to each; equal on every machine."""
    shares = np.round((total - len(weights)) * weights / weights.sum(), 6)
    whole = shares.astype(np.int64)
    largest = np.argsort(whole - shares, kind="stable")[: total - len(weights) - int(whole.sum())]
    whole[largest] += 1
    return whole + 1


class Mixture:
    """Streams mixed into global batches: ``shares[i]`` of each batch, summing to one.

    The remainder of a fractional share is carried from step to step, so each is exact in the long run. In one batch a
    stream is off by less than one row. The stream with the largest share takes the rows that rounding leaves: it is off
    by less than one row per other stream.
    """

    def __init__(self, streams: Sequence[Stream], shares: Sequence[Fraction], batch_size: int, seed: int) -> None:
        if sum(shares) != 1:
            raise ValueError(f"shares sum to {sum(shares)}, not 1")
        used = sum(share > 0 for share in shares)
        if batch_size < used**2:  # below this, rounding could ask the largest share for rows back
            mixed = f"{used} streams (labels and captions of each corpus)"
            raise ValueError(f"a batch of {batch_size} is too small for {mixed}: it needs at least {used**2} rows")
        self.streams, self.shares, self.batch_size, self.seed = list(streams), list(shares), batch_size, seed

    def used_before(self, step: int) -> list[int]:
        """Return the number of rows of each stream that the batches before ``step`` have used."""
        total = step * self.batch_size
        counts = [int(share * total) for share in self.shares]  # int() of a Fraction is its floor
        counts[self.shares.index(max(self.shares))] += total - sum(counts)
        return counts

    def epoch_steps(self) -> Fraction:
        """Return the steps of a pass over the stream that takes longest."""
        pairs = zip(self.streams, self.shares, strict=True)
        return max(stream.rows / (share * self.batch_size) for stream, share in pairs if share)

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Return (B,) stream numbers and (B,) rows of the global batch of ``step`` (0 is the first)."""
        before, after = self.used_before(step), self.used_before(step + 1)
        counts = [b - a for a, b in zip(before, after, strict=True)]
        stream = np.repeat(np.arange(len(counts)), counts)
        draws = zip(self.streams, before, counts, strict=True)
        row = np.concatenate([take(start, count) for take, start, count in draws])
        slots = Permutation(self.batch_size, f"{self.seed}/slot/{step}")(np.arange(self.batch_size))
        return stream[slots], row[slots]


def share(batch_size: int, rank: int, world: int) -> slice:
    """Return a rank's part of a global batch; parts are contiguous, so that gathered order is draw order."""
    size = batch_size // world
    return slice(rank * size, (rank + 1) * size)


class Order(Protocol):
    """The batches of a training, each a function of its step."""

    batch_size: int

    def used_before(self, step: int) -> list[int]: ...
    def epoch_steps(self) -> Fraction: ...
    def batch(self, step: int) -> tuple[Ints, Ints]: ...


class Alternation:
    """Two orders that alternate by whole steps: ``first`` takes the share ``part`` of the steps, evenly spread."""

    def __init__(self, first: Order, second: Order, part: Fraction) -> None:
        self.first, self.second, self.part = first, second, part
        self.batch_size = first.batch_size

    def used_before(self, step: int) -> list[int]:
        """Return the same as `Mixture.used_before`."""
        turns = int(self.part * step)
        both = zip(self.first.used_before(turns), self.second.used_before(step - turns), strict=True)
        return [one + other for one, other in both]

    def epoch_steps(self) -> Fraction:
        """Return the steps of a pass over the stream that takes longest."""
        return max(self.first.epoch_steps() / self.part, self.second.epoch_steps() / (1 - self.part))

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Return the same as `Mixture.batch`."""
        before, after = int(self.part * step), int(self.part * (step + 1))
        return self.first.batch(before) if after > before else self.second.batch(step - before)
