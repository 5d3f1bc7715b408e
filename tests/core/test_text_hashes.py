"""Equal texts found by their hashes: the same groups as with the texts themselves."""

import numpy as np
import pytest

from unicl_cli.core.text_hashes import EqualTexts, count_distinct, find_repeated, hash_text, hash_texts, is_among


@pytest.mark.parametrize("texts", [[], ["a"], ["b", "a", "c"], list("abacab"), ["é\ud800", "x", "é\ud800", "x", "y"]])
def test_equal_texts_are_grouped_in_the_order_of_the_first(texts):
    hashes = hash_texts(texts, len(texts))
    groups = {}
    for at, text in enumerate(texts):
        groups.setdefault(text, []).append(at)
    assert list(EqualTexts(hashes)) == list(groups.values())
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
