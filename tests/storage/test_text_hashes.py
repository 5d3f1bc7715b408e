"""Equal texts found by their hashes: the same groups as with the texts themselves."""

import numpy as np
import pytest

from unicl_cli.storage.buckets import Buckets
from unicl_cli.storage.text_hashes import count_distinct, find_repeated, group_equal, hash_text, hash_texts, is_among

MANY = [f"text {n % 7_001 if n % 3 else n}" for n in range(40_000)]
"""More than one chunk of records, with texts that occur up to four times."""


@pytest.mark.parametrize("texts", [[], ["a"], ["b", "a", "c"], list("abacab"), ["é\ud800", "x", "é\ud800", "x"], MANY])
def test_equal_texts_are_grouped_in_the_order_of_the_first(texts):
    hashes = Buckets(2)
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        hashes.add(hash_texts(part), np.arange(start, start + len(part)))
    groups = {}
    for at, text in enumerate(texts):
        groups.setdefault(text, []).append(at)
    assert list(group_equal(hashes)) == list(groups.values())
    assert count_distinct(hashes) == len(groups)
    repeated = find_repeated(hashes)
    assert [text for text in groups if is_among(hash_text(text), repeated)] == [
        t for t, of in groups.items() if len(of) > 1
    ]


def test_a_hash_is_the_same_everywhere():
    assert hash_text("unicl") == GOLDEN
    assert not is_among(5, np.array([], np.uint64))
    assert is_among(2**64 - 1, np.array([1, 2**64 - 1], np.uint64))


GOLDEN = 12165896572172733535
