"""Intervals and exact tests for shares of hits: Wilson scores, bootstrap over images, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
DRAWS, SEED = 10_000, 0
"""Draws of a bootstrap, and the seed of its generator: the same data always give the same interval."""

Bounds = tuple[float, float]
Counts = NDArray[np.int64]


class Difference(NamedTuple):
    """A share of hits compared with that of a first model, over ``n`` items that both answered.

    ``better`` and ``worse`` count the items with more and with fewer hits than the first model's: the discordant pairs.
    Of mean average precisions they count the classes.
    """

    n: int
    difference: float
    interval: Bounds
    better: int
    worse: int
    p: float


def wilson(hits: float, n: int) -> Bounds:
    """Return the 95 % score interval of a share of ``n`` >= 1 trials, inside [0, 1] (Wilson 1927, JASA 22)."""
    share, z2 = hits / n, Z95 * Z95
    middle = share + z2 / (2 * n)
    half = Z95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if hits == 0 else max(low, 0.0)), (1.0 if hits == n else min(high, 1.0))


def mean_interval(hits: Sequence[int], rows: Sequence[int]) -> Bounds:
    """Return the 95 % interval of the mean of independent shares ``hits / rows``: the mean recall per class.

    The Wilson limits of the shares are squared and added (Zou and Donner 2008, Statistics in Medicine 27, section 2).
    Unlike a bootstrap it keeps its width where every row of a class is a hit.
    """
    below = above = 0.0
    for hit, n in zip(hits, rows, strict=True):
        low, high = wilson(hit, n)
        below += (hit / n - low) ** 2
        above += (high - hit / n) ** 2
    mean = sum(hit / n for hit, n in zip(hits, rows, strict=True)) / len(rows)
    return max(0.0, mean - sqrt(below) / len(rows)), min(1.0, mean + sqrt(above) / len(rows))


def share_interval(hits: Counts, trials: Counts) -> Bounds:
    """Return the 95 % interval of the share of hits; item i has ``hits[i]`` of ``trials[i]`` >= 1, both (n,).

    With one trial per item it is Wilson's. Several trials of one item (the captions of an image) are not independent:
    items are drawn with replacement then (cluster bootstrap, percentiles). Where all items are alike, such a bootstrap
    has no width, and the interval is Wilson's for n trials.
    """
    share, n = int(hits.sum()) / int(trials.sum()), len(hits)
    if (trials == 1).all():
        return wilson(int(hits.sum()), n)
    sums = draw_sums(np.stack([hits, trials], 1))
    low, high = percentiles(sums[:, 0] / sums[:, 1])
    return (low, high) if low < high else wilson(share * n, n)


def compare_shares(first: Counts, second: Counts, trials: Counts) -> Difference:
    """Compare the shares of hits of two models on the same items; all (n,), ``trials`` >= 1 of each item.

    The interval is Newcombe's for one trial per item, else a bootstrap over items as in `share_interval`.
    """
    more: Counts = second - first
    difference = int(more.sum()) / int(trials.sum())
    if (trials == 1).all():
        interval = newcombe(first.astype(bool), second.astype(bool))
    else:
        sums = draw_sums(np.stack([more, trials], 1))
        interval = percentiles(sums[:, 0] / sums[:, 1])
        if interval[0] == interval[1]:  # all items alike: as far as one more item could move it
            beyond = wilson(0, len(first))[1]
            interval = max(-1.0, difference - beyond), min(1.0, difference + beyond)
    better, worse = int((more > 0).sum()), int((more < 0).sum())
    return Difference(len(first), difference, interval, better, worse, exact_p(more))


def newcombe(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Bounds:
    """Return the 95 % interval of ``second``'s share minus ``first``'s, hits (n,) on the same items.

    Wilson limits, squared and added with the correlation of the pairs (Newcombe 1998, Statistics in Medicine 17,
    2635-2650, method 10).
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    one, two = (both + lost) / n, (both + gained) / n
    (low_one, high_one), (low_two, high_two) = wilson(both + lost, n), wilson(both + gained, n)
    agreement = both * neither - gained * lost
    if agreement > 0:
        agreement = max(0.0, agreement - n / 2)  # continuity
    margins = prod((both + lost, gained + neither, both + gained, lost + neither))
    phi = agreement / sqrt(margins) if margins else 0.0

    def add(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    below, above = add(two - low_two, high_one - one), add(high_two - two, one - low_one)
    return two - one - below, two - one + above


def exact_p(differences: Counts) -> float:
    """Return the two-sided p value of the paired randomisation test on whole numbers (n,), exactly.

    If both models are equally good, each difference is as likely with the other sign (Fisher 1935; Pitman 1937). With
    differences of -1, 0 and 1 it is the exact test of McNemar (1947): a binomial test of the discordant pairs.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chances = np.ones(1)  # of each sum, from the most negative to the most positive
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = fair_binomial(count)
        chances = np.convolve(chances, flips)
    sums = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return min(1.0, float(chances[sums >= abs(int(differences.sum()))].sum()))


def fair_binomial(n: int) -> NDArray[np.float64]:
    """Return the chances of 0, 1, … n heads of a fair coin."""
    heads = np.arange(1, n + 1)
    logs = np.concatenate([np.zeros(1), np.cumsum(np.log((n - heads + 1) / heads))])
    return np.exp(logs - n * np.log(2))


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """Return the p values of several tests adjusted for their number (Holm 1979, Scand. J. Statistics 6)."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=lambda number: ps[number])):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[number]))
        adjusted[number] = largest
    return adjusted


def draw_sums(items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the column sums of DRAWS samples, with replacement, of the rows of (n, k): (DRAWS, k).

    Equal rows are drawn together: their numbers in a sample are multinomial.
    """
    distinct, counts = np.unique(items, axis=0, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(items), counts / len(items), size=DRAWS)
    return (drawn @ distinct).astype(np.float64)


def percentiles(values: NDArray[np.float64]) -> Bounds:
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high
