"""The order of images by hash, on disk."""

import numpy as np

from unicl_cli.jobs.prepare.plan.even_choice import Order


def test_images_are_in_the_order_of_their_hashes():
    random = np.random.default_rng(0)
    hashes = (random.integers(0, 500, 3000) << 50).tolist()  # many are equal
    order = Order(zip(hashes, range(3000), strict=True))
    expected = sorted(range(3000), key=lambda image: (hashes[image], image))
    for _ in range(2):
        assert np.concatenate(list(order)).tolist() == expected
    some = [5, 17, 2999, 1200]
    assert order.find_last(np.array(some)) == max(some, key=expected.index)
