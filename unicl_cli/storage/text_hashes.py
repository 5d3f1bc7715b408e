"""64-bit hashes of texts, by which equal ones are found among any number, in bounded memory."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unicl_cli.storage.buckets import Buckets, mark_first

Hashes = NDArray[np.uint64]


def hash_text(text: str) -> int:
    """Return the hash of a text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_texts(texts: Iterable[str]) -> Hashes:
    """Return the hashes of texts."""
    return np.fromiter(map(hash_text, texts), np.uint64)


def count_distinct(hashes: Buckets) -> int:
    """Return the number of different values of the first column."""
    return sum(int(np.count_nonzero(mark_first(records[:, 0]))) for records in hashes)


def find_repeated(hashes: Buckets) -> Hashes:
    """Return the values of the first column that occur more than once, each once, ascending."""
    found = [np.zeros(0, np.uint64)]
    for records in hashes:
        ordered = records[:, 0]
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        found.append(again[mark_first(again)])
    return np.concatenate(found)


def is_among(number: int, ordered: Hashes) -> bool:
    """Return whether a hash is among ascending ones."""
    at = int(np.searchsorted(ordered, np.uint64(number)))
    return at < len(ordered) and int(ordered[at]) == number


def group_equal(hashes: Buckets) -> Iterator[list[int]]:
    """Yield the ascending places of each text, in the order of the first ones.

    ``hashes`` are pairs of the hash of a text and its place, from 0 on.
    """
    groups = Buckets(2, len(hashes))
    for records in hashes:
        is_first = mark_first(records[:, 0])
        first = records[is_first, 1]
        groups.add(first[np.cumsum(is_first) - 1], records[:, 1])
    for records in groups:
        starts = np.flatnonzero(mark_first(records[:, 0])).tolist()
        places = records[:, 1].tolist()
        for start, end in pairwise([*starts, len(places)]):
            yield places[start:end]
