"""Run lengths of masks, in both of COCO's forms, and those that do not fill an image."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st

from unicl_cli.data.run_lengths import mask_of_runs, run_lengths, unpack_runs


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_both_forms_give_the_mask_again(height: int, width: int, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < 0.4).astype(np.uint8)
    plain, packed = run_lengths(mask), coco_mask.encode(np.asfortranarray(mask))["counts"]
    assert unpack_runs(packed.decode()) == plain
    for counts in (plain, packed.decode()):
        found = mask_of_runs({"size": [height, width], "counts": counts}, height, width)
        assert np.array_equal(found, mask)


@pytest.mark.parametrize("counts", [[0, 5], [13], [3, -1, 10], [], "", "oooooooooooooooooooooooooooo", "04ÿ", [10**12]])
def test_runs_that_do_not_fill_the_image_are_refused(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match="run lengths do not fit 3 x 4 pixels"):
        mask_of_runs({"size": [3, 4], "counts": counts}, 3, 4)


def test_runs_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        mask_of_runs({"size": [4, 3], "counts": [12]}, 3, 4)
