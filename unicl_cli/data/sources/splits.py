"""Words that people use for splits, as folder names and in lists."""

import re
from collections.abc import Iterable

_WORDS = {
    "train": "train training trn trainval",
    "val": "val valid validate validation dev devel development eval evaluation publictest",
    "test": "test testing tst privatetest",
}
SPLITS = {word: split for split, words in _WORDS.items() for word in words.split()}
"""Word -> name of the split in a corpus; words are compared without case, digits at their end, and separators."""
ORDER = ("train", "val", "test")
"""The splits of a corpus in their usual order; others follow."""
_FILLERS = frozenset(("data", "dataset", "folder", "image", "images", "img", "imgs", "part", "set", "split", "subset"))


def split_of(word: str) -> str | None:
    """Return the split that a word names, in any case and form: `Training`, `public-test`, `test_images`, `val2017`.

    None for every other word, and for a bare number.
    """
    parted = re.sub(r"([a-z])([A-Z])", r"\1 \2", word)  # PublicTest
    tokens = [re.sub(r"\d+$", "", token) for token in re.split(r"[\W_]+", parted.casefold())]
    left = "".join(token for token in tokens if token not in _FILLERS)
    return SPLITS.get(left.removesuffix("set"))


def split_within(name: str) -> str | None:
    """Return the split that the first such word of a name is: train for `images_train_2`; None if there is none."""
    return next((split for word in re.split(r"[\W\d_]+", name) if (split := split_of(word))), None)


def find_splits(words: Iterable[str]) -> dict[str, str]:
    """Return word -> split for the words that name one; what all words begin with is dropped if need be (`seg_train`).

    A shared beginning is dropped only if two different splits follow it: `electric_train` and `electric_bus` are
    classes.
    """
    words = sorted(words)
    found = {word: split for word in words if (split := split_of(word))}
    tails = {word: re.split(r"[\W_]+", word, maxsplit=1) for word in words}
    if found or len({tail[0] for tail in tails.values()}) > 1:
        return found
    found = {word: split for word, tail in tails.items() if (split := split_of("".join(tail[1:])))}
    return found if len(set(found.values())) > 1 else {}
