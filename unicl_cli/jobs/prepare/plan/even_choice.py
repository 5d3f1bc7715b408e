"""A share of images that is even over their classes, in an order by hash, which is kept on disk."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from unicl_cli.jobs.prepare.plan.rows import Numbers
from unicl_cli.storage.buckets import Buckets

Integers = NDArray[np.integer]


class Order:
    """Images in the order of their hashes, as often as wanted; equal hashes in the order of the images."""

    def __init__(self, hashes: Iterable[tuple[int, int]]) -> None:
        self.records = Buckets(2)
        for record in hashes:
            self.records.append(*record)

    def __iter__(self) -> Iterator[Numbers]:
        return (records[:, 1].astype(np.int64) for records in self.records)

    def find_last(self, images: Integers) -> int:
        """Return the last of some images in this order."""
        last = -1
        for of in self:
            found = of[np.isin(of, images)]
            last = int(found[-1]) if len(found) else last
        return last


def choose_evenly(order: Iterable[Integers], label: Integers, kind: Integers, share: float) -> Iterator[list[int]]:
    """Choose ``share`` of the images in ``order``, the first ones of each class and, inside a class, of each kind.

    ``order`` gives the images in arrays, twice; ``label`` and ``kind`` are integers, by image. The whole, each class
    and each kind of a class differ from their exact share by less than one image; the last image of a class is never
    chosen. Images without a label are a class, too.
    """
    counts = Counter(pair for images in order for pair in _pairs(images, label, kind))
    if not counts:
        return
    classes = sorted({own for own, _ in counts})
    members = {own: sorted(pair for pair in counts if pair[0] == own) for own in classes}
    open_places: dict[tuple[int, int], int] = {}
    sizes = np.array([sum(counts[pair] for pair in members[own]) for own in classes])
    for own, quota in zip(classes, apportion(sizes, round(share * counts.total()), sizes - 1).tolist(), strict=True):
        kinds = np.array([counts[pair] for pair in members[own]])
        open_places.update(zip(members[own], apportion(kinds, quota, kinds).tolist(), strict=True))
    for images in order:
        chosen: list[int] = []
        for image, pair in zip(images.tolist(), _pairs(images, label, kind), strict=True):
            if open_places[pair]:
                open_places[pair] -= 1
                chosen.append(image)
        yield chosen


def _pairs(images: Integers, label: Integers, kind: Integers) -> Iterator[tuple[int, int]]:
    """Yield the class and the kind of each image."""
    return zip(label[images].tolist(), kind[images].tolist(), strict=True)


def apportion(sizes: Numbers, total: int, most: Numbers) -> Numbers:
    """Divide ``total`` in proportion to ``sizes`` by the largest remainders, each part at most ``most``; int64.

    What a part cannot take for its ``most`` is not given to others: each differs by less than one from its exact share.
    """
    exact = total * sizes / sizes.sum()
    parts = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    order = np.argsort(-(exact - parts), kind="stable")
    open_ones = order[(parts < np.minimum(most, exact - 1e-9))[order]]
    parts[open_ones[: max(0, total - int(parts.sum()))]] += 1
    return parts
