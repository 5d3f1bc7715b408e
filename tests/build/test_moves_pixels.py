"""`moves_pixels`: true if the augmentation of any corpus changes places in an image."""

import pytest

from unicl_cli.build.model import moves_pixels
from unicl_cli.recipe.load import load_text

RECIPE = """
data: {{train: [{{corpus: a{own}}}], augment: {augment}}}
model: {{image: cnn, text: cbow}}
loss: unicl
steps: 1
"""


@pytest.mark.parametrize(
    ("augment", "own", "moves"),
    [
        ("none", "", False),
        ("{name: none, noise: 0.1, jitter: 0.4}", "", False),
        ("basic", "", True),
        ("{name: none, flip: 0.5}", "", True),
        ("{name: none, shift: 1}", "", True),
        ("{name: none, rand: rand-m9}", "", True),
        ("none", ", augment: {name: none, crop: [0.5, 1.0]}", True),
    ],
)
def test_crops_flips_and_shifts_of_any_corpus_count(augment, own, moves):
    assert moves_pixels(load_text(RECIPE.format(augment=augment, own=own))) == moves
