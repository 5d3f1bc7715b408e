"""64-bit hashes of texts, by which equal ones are found among any number without keeping the texts."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def hash_text(text: str) -> int:
    """Return the hash of a text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_texts(texts: Iterable[str], count: int) -> Hashes:
    """Return the hashes of ``count`` texts."""
    return np.fromiter(map(hash_text, texts), np.uint64, count)


def count_distinct(hashes: Hashes) -> int:
    """Return the number of different hashes."""
    ordered = np.sort(hashes)
    return len(ordered) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def find_repeated(hashes: Hashes) -> Hashes:
    """Return the hashes that occur more than once, each once, ascending."""
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    return again[np.append(True, again[1:] != again[:-1])] if len(again) else again


def is_among(number: int, ordered: Hashes) -> bool:
    """Return whether a hash is among ascending ones."""
    at = int(np.searchsorted(ordered, np.uint64(number)))
    return at < len(ordered) and int(ordered[at]) == number


class EqualTexts:
    """The places of each text among many, from their hashes: 9 bytes for each text, none if all differ."""

    def __init__(self, hashes: Hashes) -> None:
        self.count = len(hashes)
        self._next: NDArray[np.int64] | None = None
        if count_distinct(hashes) < self.count:
            order = np.argsort(hashes, kind="stable")
            follows = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
            self._next = np.full(self.count, -1, np.int64)
            self._next[order[follows]] = order[follows + 1]
            self._is_first = np.ones(self.count, np.bool_)
            self._is_first[order[follows + 1]] = False

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the ascending places of each text, in the order of the first ones."""
        for place in range(self.count):
            if self._next is None:
                yield [place]
            elif self._is_first[place]:
                places = [place]
                while (place := int(self._next[places[-1]])) >= 0:
                    places.append(place)
                yield places
